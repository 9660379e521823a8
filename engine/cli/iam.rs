//! `nexus iam`: the least-privilege policy of a pipeline, and the VPC endpoints that it needs.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Failure, File, terminal};
use crate::Error;
use crate::iam::{Account, Needs};

/// Print the least-privilege IAM policy that a pipeline needs, and its VPC endpoints.
#[derive(Debug, clap::Args)]
pub struct Iam {
    #[command(flatten)]
    file: File,
    /// The account of streams, queues, keys and secrets that the file gives by name; any if not given.
    #[arg(long, default_value = "*", value_parser = account)]
    account: String,
    /// Their region; that of `AWS_REGION` if not given, or any.
    #[arg(long)]
    region: Option<String>,
    /// With `--format policy`: the role of the file whose policy is wanted; that of the process's own identity if not
    /// given.
    #[arg(long)]
    role: Option<String>,
    /// Add what `nexus check --online` calls beside what a run does.
    #[arg(long)]
    online: bool,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// The policy, what each statement is for, and the endpoints, for people.
    Text,
    /// The same, for programs.
    Json,
    /// The policy alone, as `aws iam put-role-policy` takes it.
    Policy,
}

impl Iam {
    pub async fn execute(self) -> Result<(), Failure> {
        let pipeline = self.file.load().await?;
        let variables = ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter();
        let region = self.region.or_else(|| variables.filter_map(|name| std::env::var(name).ok()).next());
        let account = Account { id: self.account, region: region.unwrap_or_else(|| "*".to_owned()) };
        let mut needs = Needs::of(pipeline.loaded(), &account);
        if self.online {
            needs.add_online(pipeline.loaded(), &account);
        }
        if let Some(role) = self.role.as_deref().filter(|role| !needs.roles().contains(role)) {
            return Err(Error::config(format!("the file has no role {role} that needs anything")).into());
        }
        match self.format {
            Format::Policy => terminal::say(&pretty(&needs.policy(self.role.as_deref()))?),
            Format::Json => {
                let endpoints = needs.endpoints(&account).into_iter();
                let endpoints: Vec<_> =
                    endpoints.map(|(service, kind)| json!({ "service": service, "type": kind })).collect();
                let of = |role| json!({ "policy": needs.policy(Some(role)), "reasons": needs.reasons(Some(role)) });
                let roles: BTreeMap<_, _> = needs.roles().into_iter().map(|role| (role, of(role))).collect();
                let whole = json!({
                    "policy": needs.policy(None),
                    "reasons": needs.reasons(None),
                    "roles": roles,
                    "endpoints": endpoints,
                    "notes": needs.notes,
                });
                terminal::say(&pretty(&whole)?);
            }
            Format::Text => text(&needs, &account)?,
        }
        Ok(())
    }
}

fn text(needs: &Needs, account: &Account) -> Result<(), Failure> {
    if needs.grants.is_empty() {
        terminal::say("the pipeline calls nothing of AWS");
        return Ok(());
    }
    for role in std::iter::once(None).chain(needs.roles().into_iter().map(Some)) {
        if let Some(role) = role {
            terminal::say(&format!("the role {role}:\n"));
        }
        terminal::say(&format!("{}\n", pretty(&needs.policy(role))?));
        for (sid, why) in needs.reasons(role) {
            terminal::say(&format!("{sid}  {why}"));
        }
        terminal::say("");
    }
    terminal::say("VPC endpoints:");
    for (service, kind) in needs.endpoints(account) {
        terminal::say(&format!("  {service}  {kind}"));
    }
    for note in &needs.notes {
        terminal::say(&format!("\nnote: {note}"));
    }
    Ok(())
}

fn pretty(value: &serde_json::Value) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(value).map_err(|e| Error::internal("could not write a policy").because(e))?)
}

fn account(text: &str) -> Result<String, String> {
    let is_number = text.len() == 12 && text.bytes().all(|digit| digit.is_ascii_digit());
    if is_number || text == "*" { Ok(text.to_owned()) } else { Err("an account is a number of 12 digits".to_owned()) }
}
