//! What the operators call of AWS, as the actions that IAM knows: `nexus iam` makes a policy of them. A call that is added
//! to an operator is added here; a test runs pipelines and holds each call against the policy.

/// Reading a Kinesis stream: its shards, where to begin in them, and their records.
pub const READ_STREAM: &[&str] =
    &["kinesis:DescribeStreamSummary", "kinesis:GetRecords", "kinesis:GetShardIterator", "kinesis:ListShards"];

/// Looking at a Kinesis stream that is read by fan-out, and registering a consumer.
pub const REGISTER_CONSUMER: &[&str] = &[
    "kinesis:DescribeStreamConsumer",
    "kinesis:DescribeStreamSummary",
    "kinesis:ListShards",
    "kinesis:RegisterStreamConsumer",
];

/// Having records pushed to a consumer.
pub const SUBSCRIBE: &[&str] = &["kinesis:DescribeStreamConsumer", "kinesis:SubscribeToShard"];

/// Taking messages from an SQS queue. The actions hold for calls with several messages too.
pub const TAKE_MESSAGES: &[&str] = &["sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:ReceiveMessage"];

/// Asking a queue for its length, which `nexus check --online` does beside what a run does.
pub const LOOK_AT_QUEUE: &[&str] = &["sqs:GetQueueAttributes"];

/// Reading objects that are announced, some by their version.
pub const READ_VERSIONS: &[&str] = &["s3:GetObject", "s3:GetObjectVersion"];

/// Reading objects.
pub const READ_OBJECTS: &[&str] = &["s3:GetObject"];

/// Writing objects, also in parts, reading them back and sweeping what was not committed.
pub const KEEP_OBJECTS: &[&str] = &["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"];

/// Listing objects. S3 also asks for it before it says that an object is missing, instead of forbidden.
pub const LIST_OBJECTS: &[&str] = &["s3:ListBucket"];

/// Writing and reading objects that a key in KMS encrypts.
pub const USE_KEY: &[&str] = &["kms:Decrypt", "kms:GenerateDataKey"];

/// Reading a secret.
pub const READ_SECRET: &[&str] = &["secretsmanager:GetSecretValue"];

/// Taking on a role.
pub const ASSUME_ROLE: &[&str] = &["sts:AssumeRole"];

/// Being let into a database of RDS by a token.
pub const CONNECT_TO_RDS: &[&str] = &["rds-db:connect"];
