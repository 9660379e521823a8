//! What a pipeline needs of AWS: the least that its operators can do with, and the endpoints that they call.

use std::collections::{BTreeMap, BTreeSet};

use nexus_operators::aws::AwsSettings;
use nexus_operators::permissions as actions;
use serde_json::{Value, json};

mod arn;

pub use arn::Account;

use crate::spec::model::{Encryption, KinesisMode, PostgresAuth, Roles, Secret};
use crate::spec::{Kept, Loaded};

/// What a pipeline needs of AWS.
#[derive(Debug)]
pub struct Needs {
    /// Rights, by the resources that they are on.
    pub grants: Vec<Grant>,
    /// The services that are called.
    pub services: BTreeSet<Service>,
    /// What the pipeline file cannot tell.
    pub notes: Vec<&'static str>,
    /// The role that is granted what is found out next.
    role: Option<String>,
}

/// Rights on one resource, or on the objects of one prefix.
#[derive(Debug)]
pub struct Grant {
    /// The role that is granted them; the process's own identity if none.
    pub role: Option<String>,
    /// What for.
    pub why: String,
    /// The actions.
    pub actions: &'static [&'static str],
    /// The resource's ARN.
    pub resource: String,
    /// The condition under which they are granted, as a policy has it.
    pub condition: Option<Value>,
}

/// A service of AWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Amazon S3.
    S3,
    /// Amazon Kinesis Data Streams.
    Kinesis,
    /// Amazon SQS.
    Sqs,
    /// AWS Secrets Manager.
    SecretsManager,
    /// AWS Security Token Service.
    Sts,
}

impl Needs {
    /// Finds out what a pipeline needs.
    pub fn of(loaded: &Loaded, account: &Account) -> Self {
        let mut needs = Self { grants: Vec::new(), services: BTreeSet::new(), notes: Vec::new(), role: None };
        needs.sources(loaded, account);
        for (name, reference) in &loaded.spec.reference {
            let path = loaded.reference_path(name).unwrap_or_default();
            if let Some((bucket, glob)) = arn::in_bucket(&path) {
                let prefix = glob.split(['*', '?', '[']).next().unwrap_or_default();
                let why = format!("the reference table `{name}` is read");
                needs.act_as(loaded, reference.role.as_ref());
                needs.objects(account, &why, actions::READ_OBJECTS, (bucket, prefix));
            }
        }
        needs.kept(loaded, account);
        for (name, secret) in &loaded.spec.secrets {
            if let Secret::AwsSecretsManager(secret) = secret {
                let why = format!("the secret `{name}` is read");
                needs.act_as(loaded, secret.role.as_ref());
                needs.grant(Service::SecretsManager, why, actions::READ_SECRET, account.secret(&secret.id), None);
            }
        }
        for (tier, name, table) in loaded.spec.all_tables() {
            let Some(postgres) = table.postgres.as_ref().filter(|sink| sink.auth == PostgresAuth::RdsIam) else {
                continue;
            };
            needs.act_as(loaded, postgres.role.as_ref());
            let why = format!("the table `{tier}.{name}` is written to a database of RDS");
            // The token is signed here, so that no endpoint is needed.
            needs.add(why, actions::CONNECT_TO_RDS, account.database_users(), None);
            needs.note("narrow `dbuser:*/*` to the database's resource id and the user in its URL");
        }
        needs
    }

    /// Adds what `nexus check --online` calls beside what a run does.
    pub fn add_online(&mut self, loaded: &Loaded, account: &Account) {
        for (name, source) in &loaded.spec.sources {
            if let Some(s3) = &source.s3 {
                self.act_as(loaded, s3.role.as_ref());
                let why = format!("`nexus check --online` asks the queue of the source `{name}` for its length");
                self.grant(Service::Sqs, why, actions::LOOK_AT_QUEUE, account.queue(&s3.queue), None);
            }
        }
    }

    /// Gives the roles that are granted anything.
    pub fn roles(&self) -> BTreeSet<&str> {
        self.grants.iter().filter_map(|grant| grant.role.as_deref()).collect()
    }

    /// Gives the policy of a role, or of the process's own identity, as IAM reads it.
    pub fn policy(&self, role: Option<&str>) -> Value {
        let statements = self.granted(role).map(|(sid, grant)| {
            let mut statement = json!({
                "Sid": sid,
                "Effect": "Allow",
                "Action": grant.actions,
                "Resource": grant.resource,
            });
            if let (Some(condition), Some(fields)) = (&grant.condition, statement.as_object_mut()) {
                fields.insert("Condition".to_owned(), condition.clone());
            }
            statement
        });
        json!({ "Version": "2012-10-17", "Statement": statements.collect::<Vec<_>>() })
    }

    /// Gives what each statement of such a policy is for, by its `Sid`.
    pub fn reasons<'a>(&'a self, role: Option<&'a str>) -> BTreeMap<String, &'a str> {
        self.granted(role).map(|(sid, grant)| (sid, grant.why.as_str())).collect()
    }

    /// Gives the names of the VPC endpoints that a network without a way out needs, each with its kind.
    pub fn endpoints(&self, account: &Account) -> Vec<(String, &'static str)> {
        let endpoint = |service: &Service| {
            let (name, kind) = match service {
                Service::S3 => ("s3", "Gateway"),
                Service::Kinesis => ("kinesis-streams", "Interface"),
                Service::Sqs => ("sqs", "Interface"),
                Service::SecretsManager => ("secretsmanager", "Interface"),
                Service::Sts => ("sts", "Interface"),
            };
            (account.endpoint(name), kind)
        };
        self.services.iter().map(endpoint).collect()
    }

    fn granted<'a>(&'a self, role: Option<&'a str>) -> impl Iterator<Item = (String, &'a Grant)> {
        let granted = self.grants.iter().filter(move |grant| grant.role.as_deref() == role);
        granted.enumerate().map(|(place, grant)| (format!("Nexus{:02}", place + 1), grant))
    }

    /// Has what is found out next granted to the last role of a chain, and each role of it be assumed by the one before.
    fn act_as(&mut self, loaded: &Loaded, own: Option<&Roles>) {
        self.role = None;
        for role in loaded.aws(own).roles {
            let why = "the role is assumed".to_owned();
            self.grant(Service::Sts, why, actions::ASSUME_ROLE, role.arn.clone(), None);
            self.note("the trust policy of each role has to let in who assumes it");
            self.role = Some(role.arn);
        }
    }

    fn sources(&mut self, loaded: &Loaded, account: &Account) {
        for (name, source) in &loaded.spec.sources {
            if let Some(kinesis) = &source.kinesis {
                self.act_as(loaded, kinesis.role.as_ref());
                let why = format!("the source `{name}` reads the stream");
                let stream = account.stream(&kinesis.stream);
                match kinesis.mode {
                    KinesisMode::Poll => self.grant(Service::Kinesis, why, actions::READ_STREAM, stream, None),
                    KinesisMode::FanOut => {
                        let consumer = arn::consumer(&stream, &loaded.consumer(name, kinesis));
                        self.grant(Service::Kinesis, why, actions::REGISTER_CONSUMER, stream, None);
                        let why = format!("the stream pushes records to the source `{name}`");
                        self.grant(Service::Kinesis, why, actions::SUBSCRIBE, consumer, None);
                    }
                }
            }
            if let Some(s3) = &source.s3 {
                self.act_as(loaded, s3.role.as_ref());
                let why = format!("the source `{name}` takes messages from its queue");
                self.grant(Service::Sqs, why, actions::TAKE_MESSAGES, account.queue(&s3.queue), None);
                for allowed in &s3.allow {
                    if let Some(place) = arn::in_bucket(allowed) {
                        let why = format!("the source `{name}` reads objects that are announced");
                        self.objects(account, &why, actions::READ_VERSIONS, place);
                    }
                }
            }
            if source.kinesis.is_some() || source.s3.is_some() {
                let note = "if a stream, a queue or a bucket that is read is encrypted by a key of your own, add \
                            kms:Decrypt on that key";
                self.note(note);
            }
        }
    }

    /// The lake, the state and archives, each by who keeps it.
    fn kept(&mut self, loaded: &Loaded, account: &Account) {
        let mut seen: Vec<(AwsSettings, String)> = Vec::new();
        for Kept { why, url, role, aws, .. } in loaded.kept() {
            let Some((bucket, prefix)) = arn::in_bucket(&url) else { continue };
            let folder = if prefix.is_empty() { String::new() } else { format!("{}/", prefix.trim_end_matches('/')) };
            let whole = format!("{bucket}/{folder}");
            // The state lies below the lake if the file gives no other place.
            if seen.iter().any(|(by, known)| *by == aws && whole.starts_with(known)) {
                continue;
            }
            self.act_as(loaded, role);
            self.objects(account, why, actions::KEEP_OBJECTS, (bucket, &folder));
            if let Encryption::Kms(key) = &loaded.spec.encryption {
                let (resource, condition) = account.key(key);
                let why = "objects of the lake and the state are encrypted by this key".to_owned();
                // S3 calls KMS itself, so that no endpoint is needed.
                self.add(why, actions::USE_KEY, resource, condition);
            }
            seen.push((aws, whole));
        }
    }

    /// Objects below a prefix, and the right to be told of one that it is missing.
    fn objects(&mut self, account: &Account, why: &str, of: &'static [&'static str], (bucket, prefix): (&str, &str)) {
        self.grant(Service::S3, why.to_owned(), of, account.objects(bucket, prefix), None);
        // S3 does not know a prefix when it asks whether it may say that an object is missing.
        let below = json!({ "StringLikeIfExists": { "s3:prefix": format!("{}*", arn::escaped(prefix)) } });
        let condition = (!prefix.is_empty()).then_some(below);
        let why = format!("{why}: objects are listed, and missing ones told from forbidden ones");
        self.grant(Service::S3, why, actions::LIST_OBJECTS, account.bucket(bucket), condition);
    }

    fn grant(
        &mut self,
        service: Service,
        why: String,
        actions: &'static [&'static str],
        resource: String,
        condition: Option<Value>,
    ) {
        self.services.insert(service);
        self.add(why, actions, resource, condition);
    }

    fn add(&mut self, why: String, actions: &'static [&'static str], resource: String, condition: Option<Value>) {
        let same = |grant: &&mut Grant| {
            let found = (grant.actions, &grant.resource, &grant.condition, &grant.role);
            found == (actions, &resource, &condition, &self.role)
        };
        let known = self.grants.iter_mut().find(same);
        match known {
            Some(grant) if grant.why.contains(&why) => {}
            Some(grant) => grant.why = format!("{}; {why}", grant.why),
            None => self.grants.push(Grant { role: self.role.clone(), why, actions, resource, condition }),
        }
    }

    fn note(&mut self, note: &'static str) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}
