//! The folders that a pipeline keeps, and as whom: what its rights and its probes are made of.

use nexus_operators::aws::AwsSettings;

use super::loaded::Loaded;
use super::model::Roles;
use super::tier::Tier;

/// A folder that a pipeline keeps.
#[derive(Debug)]
pub struct Kept<'a> {
    /// Where the file names it, such as `lake`.
    pub place: String,
    /// What for.
    pub why: &'static str,
    /// An absolute folder or an `s3://` URL.
    pub url: String,
    /// The role of its own that keeps it.
    pub role: Option<&'a Roles>,
    /// As whom it is kept.
    pub aws: AwsSettings,
}

const LAKE: &str = "the lake's files are kept";
const STATE: &str = "commit records and state are kept";
const ARCHIVE: &str = "records are archived as they came";

impl Loaded {
    /// Gives the folders that the pipeline keeps: of its tiers, of tables with roles of their own, of the state and of
    /// archives. One may lie within another, or be named twice.
    pub fn kept(&self) -> Vec<Kept<'_>> {
        let kept = |place: String, why, url, role| Kept { place, why, url, role, aws: self.aws(role) };
        let mut all = Vec::new();
        for tier in Tier::ALL {
            // The quarantine of sources lies in the bronze tier.
            if tier == Tier::Bronze || self.spec.tables(tier).values().any(|table| table.role.is_none()) {
                let role = self.spec.role_in_lake(tier, None);
                all.push(kept("lake".to_owned(), LAKE, self.lake_root(tier), role));
            }
        }
        for (tier, name, _) in self.spec.all_tables().filter(|(_, _, table)| table.role.is_some()) {
            let (root, role) = (self.lake_root(tier), self.spec.role_in_lake(tier, Some(name)));
            let below = |folder| format!("{}/{folder}", root.trim_end_matches('/'));
            for folder in [format!("{tier}/{name}"), format!("_quarantine/{tier}.{name}")] {
                all.push(kept(format!("{tier}.{name}"), LAKE, below(folder), role));
            }
        }
        all.push(kept("state".to_owned(), STATE, self.state_root(), self.spec.role_of_state()));
        for (name, source) in &self.spec.sources {
            let Some((archive, url)) = source.archive.as_ref().zip(self.archive_root(name)) else { continue };
            all.push(kept(format!("sources.{name}.archive"), ARCHIVE, url, archive.role.as_ref()));
        }
        all
    }
}
