//! What a pipeline needs of AWS: the least that its operators can do with, and the endpoints that they call.

use std::collections::{BTreeMap, BTreeSet};

use nexus_operators::permissions as actions;
use serde_json::{Value, json};

mod arn;

pub use arn::Account;

use crate::spec::model::{Encryption, Secret};
use crate::spec::{Loaded, Tier};

/// What the right to keep objects is for.
const LAKE: &str = "the lake's files are kept";
const STATE: &str = "commit records and state are kept";

/// What a pipeline needs of AWS.
#[derive(Debug)]
pub struct Needs {
    /// Rights, by the resources that they are on.
    pub grants: Vec<Grant>,
    /// The services that are called.
    pub services: BTreeSet<Service>,
    /// What the pipeline file cannot tell.
    pub notes: Vec<&'static str>,
}

/// Rights on one resource, or on the objects of one prefix.
#[derive(Debug)]
pub struct Grant {
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
}

impl Needs {
    /// Finds out what a pipeline needs.
    pub fn of(loaded: &Loaded, account: &Account) -> Self {
        let mut needs = Self { grants: Vec::new(), services: BTreeSet::new(), notes: Vec::new() };
        needs.sources(loaded, account);
        for name in loaded.spec.reference.keys() {
            let path = loaded.reference_path(name).unwrap_or_default();
            if let Some((bucket, glob)) = arn::in_bucket(&path) {
                let prefix = glob.split(['*', '?', '[']).next().unwrap_or_default();
                let why = format!("the reference table `{name}` is read");
                needs.objects(account, &why, actions::READ_OBJECTS, (bucket, prefix));
            }
        }
        needs.kept(loaded, account);
        for (name, secret) in &loaded.spec.secrets {
            if let Secret::AwsSecretsManager(secret) = secret {
                let why = format!("the secret `{name}` is read");
                needs.grant(Service::SecretsManager, why, actions::READ_SECRET, account.secret(&secret.id), None);
            }
        }
        needs
    }

    /// Gives the policy, as IAM reads it.
    pub fn policy(&self) -> Value {
        let statements = self.grants.iter().enumerate().map(|(place, grant)| {
            let mut statement = json!({
                "Sid": Self::sid(place),
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

    /// Gives what each statement of the policy is for, by its `Sid`.
    pub fn reasons(&self) -> BTreeMap<String, &str> {
        self.grants.iter().enumerate().map(|(place, grant)| (Self::sid(place), grant.why.as_str())).collect()
    }

    /// Gives the names of the VPC endpoints that a network without a way out needs, each with its kind.
    pub fn endpoints(&self, account: &Account) -> Vec<(String, &'static str)> {
        let endpoint = |service: &Service| {
            let (name, kind) = match service {
                Service::S3 => ("s3", "Gateway"),
                Service::Kinesis => ("kinesis-streams", "Interface"),
                Service::Sqs => ("sqs", "Interface"),
                Service::SecretsManager => ("secretsmanager", "Interface"),
            };
            (account.endpoint(name), kind)
        };
        self.services.iter().map(endpoint).collect()
    }

    fn sid(place: usize) -> String {
        format!("Nexus{:02}", place + 1)
    }

    fn sources(&mut self, loaded: &Loaded, account: &Account) {
        for (name, source) in &loaded.spec.sources {
            if let Some(kinesis) = &source.kinesis {
                let why = format!("the source `{name}` reads the stream");
                self.grant(Service::Kinesis, why, actions::READ_STREAM, account.stream(&kinesis.stream), None);
            }
            if let Some(s3) = &source.s3 {
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

    /// The lake and the state.
    fn kept(&mut self, loaded: &Loaded, account: &Account) {
        let tiers = Tier::ALL.into_iter().map(|tier| (loaded.lake_root(tier), LAKE));
        let state = (loaded.state_root(), STATE);
        let mut seen: Vec<String> = Vec::new();
        for (root, why) in tiers.chain([state]) {
            let Some((bucket, prefix)) = arn::in_bucket(&root) else { continue };
            let folder = if prefix.is_empty() { String::new() } else { format!("{}/", prefix.trim_end_matches('/')) };
            let whole = format!("{bucket}/{folder}");
            // The state lies below the lake if the file gives no other place.
            if seen.iter().any(|known| whole.starts_with(known)) {
                continue;
            }
            self.objects(account, why, actions::KEEP_OBJECTS, (bucket, &folder));
            seen.push(whole);
        }
        if let (Encryption::Kms(key), false) = (&loaded.spec.encryption, seen.is_empty()) {
            let (resource, condition) = account.key(key);
            let why = "objects of the lake and the state are encrypted by this key".to_owned();
            // S3 calls KMS itself, so that no endpoint is needed.
            self.grants.push(Grant { why, actions: actions::USE_KEY, resource, condition });
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
        let known = self
            .grants
            .iter_mut()
            .find(|grant| grant.actions == actions && grant.resource == resource && grant.condition == condition);
        match known {
            Some(grant) if grant.why.contains(&why) => {}
            Some(grant) => grant.why = format!("{}; {why}", grant.why),
            None => self.grants.push(Grant { why, actions, resource, condition }),
        }
    }

    fn note(&mut self, note: &'static str) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}
