//! AWS: where its services are, and as whom they are called.

use schemars::JsonSchema;
use serde::Deserialize;

/// Where the services of AWS are, and as whom they are called. What is not said comes from the environment, the profile,
/// a web identity (IRSA), the container and the machine, as for all tools of AWS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Aws {
    /// The region.
    #[serde(default)]
    pub region: Option<String>,
    /// Call the endpoints whose cryptography FIPS 140 has approved.
    #[serde(default)]
    pub fips: Option<bool>,
    /// Endpoints of one's own, such as VPC endpoints without private DNS.
    #[serde(default)]
    pub endpoints: Endpoints,
    /// The role that is assumed for all that names none of its own: the lake, the state, sources, secrets.
    #[serde(default)]
    pub role: Option<Roles>,
}

/// Endpoints by service, as URLs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoints {
    /// Of Kinesis Data Streams.
    #[serde(default)]
    pub kinesis: Option<String>,
    /// Of S3. Buckets stand in the path.
    #[serde(default)]
    pub s3: Option<String>,
    /// Of Secrets Manager.
    #[serde(default)]
    pub secretsmanager: Option<String>,
    /// Of SQS.
    #[serde(default)]
    pub sqs: Option<String>,
    /// Of the Security Token Service, which gives out roles. For a web identity, `AWS_ENDPOINT_URL_STS` says it.
    #[serde(default)]
    pub sts: Option<String>,
}

/// A role to assume by its ARN, a role with what it needs, or a list of roles, each assumed by the one before it. An empty
/// list is the process's own identity.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Roles {
    /// One, by its ARN.
    Arn(String),
    // Before a single one: a list of texts would pass for the fields of one.
    /// Several, each assumed by the one before it.
    Chain(Vec<Role>),
    /// One, with what it needs.
    One(AssumedRole),
}

/// A role of a chain: its ARN, or the role with what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Role {
    /// Its ARN.
    Arn(String),
    /// With what it needs.
    With(AssumedRole),
}

/// A role to assume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AssumedRole {
    /// Its ARN.
    pub arn: String,
    /// What its trust policy wants to hear from other accounts.
    #[serde(default)]
    pub external_id: Option<String>,
    /// How the session is called in CloudTrail; `nexus-` and the pipeline's name if not given.
    #[serde(default)]
    pub session_name: Option<String>,
}

impl Endpoints {
    /// Gives the endpoints, each with its key.
    pub fn all(&self) -> [(&'static str, Option<&String>); 5] {
        [
            ("kinesis", self.kinesis.as_ref()),
            ("s3", self.s3.as_ref()),
            ("secretsmanager", self.secretsmanager.as_ref()),
            ("sqs", self.sqs.as_ref()),
            ("sts", self.sts.as_ref()),
        ]
    }
}

impl Roles {
    /// Gives the roles in the order in which they are assumed.
    pub fn chain(&self) -> Vec<AssumedRole> {
        let by_arn = |arn: &String| AssumedRole { arn: arn.clone(), external_id: None, session_name: None };
        match self {
            Roles::Arn(arn) => vec![by_arn(arn)],
            Roles::One(role) => vec![role.clone()],
            Roles::Chain(roles) => roles
                .iter()
                .map(|role| match role {
                    Role::Arn(arn) => by_arn(arn),
                    Role::With(role) => role.clone(),
                })
                .collect(),
        }
    }
}
