//! Where rows of a table go in PostgreSQL.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Roles;

/// A table of PostgreSQL. Either `key` or `append: true` is given.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresSink {
    /// The name of the secret that holds the connection URL (`postgres://user:password@host/database`).
    pub url: String,
    /// What lets the user in.
    #[serde(default)]
    pub auth: PostgresAuth,
    /// With `auth: rds_iam`, the role that may `rds-db:connect`; that of `aws` if not given.
    #[serde(default)]
    pub role: Option<Roles>,
    /// The table.
    pub table: String,
    /// Its schema; `public` if not given.
    #[serde(default = "PostgresSink::schema_default")]
    pub schema: String,
    /// The columns that tell rows apart: a row with a known key replaces the one that is there.
    #[serde(default)]
    pub key: Vec<String>,
    /// A condition over the table's columns, such as `status = 'gone'`: a row that meets it deletes the row of its key. Of
    /// the rows of a key the last one counts.
    #[serde(default)]
    pub delete_when: Option<String>,
    /// Every row is added.
    #[serde(default)]
    pub append: bool,
    /// Make the schema, the table and columns that have come since, if they are not there.
    #[serde(default = "PostgresSink::create_default")]
    pub create: bool,
}

/// What lets a user into PostgreSQL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PostgresAuth {
    /// What the URL says: a password, a certificate.
    #[default]
    Password,
    /// A token of IAM, made anew before it expires, for a database of Amazon RDS or Aurora. The URL has no password
    /// (`postgres://user@host/database`), names the authority of RDS with `sslrootcert=`, and TLS is required.
    RdsIam,
}

impl PostgresSink {
    fn schema_default() -> String {
        "public".into()
    }

    fn create_default() -> bool {
        true
    }
}
