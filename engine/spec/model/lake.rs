//! The lake and the state: where they are, and which roles keep them.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Roles, Spec};
use crate::spec::tier::Tier;

/// Where the tables are stored.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Lake {
    /// One root; tables lie at `<root>/<tier>/<table>/`.
    Root(String),
    /// One root a tier; tables lie at `<root>/<tier>/<table>/`.
    Tiers(Box<LakeTiers>),
}

/// A root for each tier.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LakeTiers {
    /// Root of the bronze tables, of the sources' quarantine, and of the state if `state` is not given.
    pub bronze: Location,
    /// Root of the silver tables.
    #[serde(default)]
    pub silver: Option<Location>,
    /// Root of the gold tables.
    #[serde(default)]
    pub gold: Option<Location>,
    /// Root of the vibranium tables.
    #[serde(default)]
    pub vibranium: Option<Location>,
}

/// A folder or `s3://bucket/prefix`, or the same with the role that keeps what is in it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Location {
    /// Where it is.
    Path(String),
    /// Where it is, and who keeps it.
    Kept(KeptLocation),
}

/// A folder with a role.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeptLocation {
    /// A folder or `s3://bucket/prefix`.
    pub path: String,
    /// The role that reads and writes it; that of `aws` if not given.
    #[serde(default)]
    pub role: Option<Roles>,
}

impl LakeTiers {
    /// Gives a tier's root. A tier that has none of its own, since none of its tables is stored, has that of bronze.
    pub fn root(&self, tier: Tier) -> (Tier, &Location) {
        let own = match tier {
            Tier::Bronze => None,
            Tier::Silver => self.silver.as_ref(),
            Tier::Gold => self.gold.as_ref(),
            Tier::Vibranium => self.vibranium.as_ref(),
        };
        own.map_or((Tier::Bronze, &self.bronze), |root| (tier, root))
    }
}

impl Location {
    /// Gives where it is.
    pub fn path(&self) -> &str {
        match self {
            Self::Path(path) => path,
            Self::Kept(kept) => &kept.path,
        }
    }

    /// Gives the role that keeps it, if it has one of its own.
    pub fn role(&self) -> Option<&Roles> {
        match self {
            Self::Path(_) => None,
            Self::Kept(kept) => kept.role.as_ref(),
        }
    }

    /// Gives where in the file its path stands, if it stands at `place` itself.
    pub fn place_of_path<'a>(&self, place: &[&'a str]) -> Vec<&'a str> {
        match self {
            Self::Path(_) => place.to_vec(),
            Self::Kept(_) => [place, &["path"]].concat(),
        }
    }
}

impl Spec {
    /// Gives the role of its own that keeps the files of a tier, or of one table.
    pub fn role_in_lake(&self, tier: Tier, table: Option<&str>) -> Option<&Roles> {
        let of_table = table.and_then(|table| self.tables(tier).get(table)?.role.as_ref());
        of_table.or_else(|| match &self.lake {
            Lake::Root(_) => None,
            Lake::Tiers(tiers) => tiers.root(tier).1.role(),
        })
    }

    /// Gives the role of its own that keeps the state: that of the bronze tier, if the state lies there.
    pub fn role_of_state(&self) -> Option<&Roles> {
        match &self.state {
            Some(state) => state.role(),
            None => self.role_in_lake(Tier::Bronze, None),
        }
    }
}
