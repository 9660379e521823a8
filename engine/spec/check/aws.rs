//! Roles and endpoints of AWS.

use super::Check;
use crate::spec::codes;
use crate::spec::model::{Lake, Location, PostgresAuth, Roles, Secret};
use crate::spec::tier::Tier;

pub(super) fn check(check: &mut Check<'_>) {
    let spec = check.spec;
    for (key, url) in spec.aws.endpoints.all() {
        let Some(url) = url else { continue };
        let place = ["aws", "endpoints", key];
        let is_web = |url: url::Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        if !url::Url::parse(url).is_ok_and(is_web) {
            check.error(&place, codes::BAD_AWS, "the endpoint is no HTTP URL", "write `https://host`");
        } else if spec.aws.fips == Some(true) {
            let hint = "name the FIPS endpoint itself, or leave out one of the two";
            check.error(&place, codes::BAD_AWS, "an endpoint that is named is called as it is, `fips` or not", hint);
        }
    }
    roles(check, &["aws", "role"], spec.aws.role.as_ref());
    roles(check, &["state", "role"], spec.state.as_ref().and_then(Location::role));
    if let Lake::Tiers(tiers) = &spec.lake {
        for tier in Tier::ALL {
            let (of, root) = tiers.root(tier);
            if of == tier {
                roles(check, &["lake", tier.name(), "role"], root.role());
            }
        }
    }
    for (name, reference) in &spec.reference {
        roles(check, &["reference", name, "role"], reference.role.as_ref());
    }
    for (name, source) in &spec.sources {
        let of_archive = source.archive.as_ref().and_then(|archive| archive.role.as_ref());
        roles(check, &["sources", name, "archive", "role"], of_archive);
        let of_kinesis = source.kinesis.as_ref().and_then(|kinesis| kinesis.role.as_ref());
        roles(check, &["sources", name, "kinesis", "role"], of_kinesis);
        roles(check, &["sources", name, "s3", "role"], source.s3.as_ref().and_then(|s3| s3.role.as_ref()));
    }
    for (name, secret) in &spec.secrets {
        if let Secret::AwsSecretsManager(secret) = secret {
            roles(check, &["secrets", name, "aws_secrets_manager", "role"], secret.role.as_ref());
        }
    }
    for (tier, table, definition) in spec.all_tables() {
        roles(check, &[tier.name(), table, "role"], definition.role.as_ref());
        let Some(postgres) = &definition.postgres else { continue };
        let place = [tier.name(), table, "postgres", "role"];
        roles(check, &place, postgres.role.as_ref());
        if postgres.role.is_some() && postgres.auth == PostgresAuth::Password {
            let hint = "add `auth: rds_iam`, or give the role to the secret";
            check.error(&place, codes::BAD_AWS, "a password is checked by the database, whoever asks", hint);
        }
    }
}

fn roles(check: &mut Check<'_>, path: &[&str], roles: Option<&Roles>) {
    for (index, role) in roles.into_iter().flat_map(Roles::chain).enumerate() {
        let index = index.to_string();
        let place = if matches!(roles, Some(Roles::Chain(_))) { [path, &[&index]].concat() } else { path.to_vec() };
        if !is_role(&role.arn) {
            let message = format!("`{}` is not the ARN of a role", role.arn);
            check.error(&place, codes::BAD_AWS, message, "write `arn:aws:iam::123456789012:role/name`");
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        if role.session_name.is_some_and(|name| !(2..=64).contains(&name.len()) || !name.chars().all(is_allowed)) {
            let hint = "2 to 64 letters, digits and `_+=,.@-`";
            check.error(&place, codes::BAD_AWS, "a session cannot be called like this", hint);
        }
    }
}

fn is_role(arn: &str) -> bool {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let is_account = |id: &str| id.len() == 12 && id.bytes().all(|digit| digit.is_ascii_digit());
    match parts.as_slice() {
        ["arn", partition, "iam", "", account, role] => {
            partition.starts_with("aws")
                && is_account(account)
                && role.strip_prefix("role/").is_some_and(|r| !r.is_empty())
        }
        _ => false,
    }
}
