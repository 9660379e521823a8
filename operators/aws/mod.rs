//! What a pipeline says of AWS: where the services are, and as whom they are called.
//!
//! All that is not said comes from where every tool of AWS takes it: the environment, the profile, a web identity (IRSA),
//! the container (ECS, EKS) and the machine (IMDSv2), in this order.

#[cfg(feature = "aws")]
mod config;
#[cfg(feature = "aws")]
mod credentials;
#[cfg(feature = "aws")]
mod failure;
#[cfg(feature = "aws")]
mod rds;
#[cfg(feature = "aws")]
mod secrets;

use std::collections::BTreeMap;

#[cfg(feature = "aws")]
pub use config::config;
#[cfg(feature = "s3")]
pub(crate) use config::endpoint_of;
#[cfg(feature = "aws")]
pub(crate) use failure::lacking;
#[cfg(feature = "aws")]
pub(crate) use rds::with_token;
#[cfg(feature = "aws")]
pub use secrets::{probe_secret, read_secret};

/// Where the services of AWS are, and as whom they are called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AwsSettings {
    /// The region.
    pub region: Option<String>,
    /// Whether endpoints are called whose cryptography FIPS 140 has approved.
    pub fips: Option<bool>,
    /// Endpoints of one's own, such as VPC endpoints without private DNS.
    pub endpoints: BTreeMap<Service, String>,
    /// Roles, each assumed by the one before it, and the first by the process's own identity.
    pub roles: Vec<Role>,
}

/// A role to assume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its ARN.
    pub arn: String,
    /// What its trust policy wants to hear from others.
    pub external_id: Option<String>,
    /// How the session is called in CloudTrail.
    pub session_name: String,
}

/// A service that Nexus calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Amazon Kinesis Data Streams.
    Kinesis,
    /// Amazon S3.
    S3,
    /// AWS Secrets Manager.
    SecretsManager,
    /// Amazon SQS.
    Sqs,
    /// AWS Security Token Service, for roles.
    Sts,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Kinesis, Self::S3, Self::SecretsManager, Self::Sqs, Self::Sts];

    /// Gives the id by which profiles and the SDKs know the service.
    pub fn id(self) -> &'static str {
        match self {
            Self::Kinesis => "Kinesis",
            Self::S3 => "S3",
            Self::SecretsManager => "Secrets Manager",
            Self::Sqs => "SQS",
            Self::Sts => "STS",
        }
    }
}
