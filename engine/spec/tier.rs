//! The four tiers that rows go through, and the tables of each.

use std::collections::BTreeMap;
use std::fmt;

use super::model::{Spec, Table, TableFormat};

/// A tier of tables. A table reads tables of its own and of lower tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// As it came, with provenance.
    Bronze,
    /// Typed, clean, without duplicates.
    Silver,
    /// Aggregates.
    Gold,
    /// What people and programs act on.
    Vibranium,
}

impl Tier {
    /// All tiers, the lowest first.
    pub const ALL: [Tier; 4] = [Tier::Bronze, Tier::Silver, Tier::Gold, Tier::Vibranium];

    /// Gives the tier's name: its heading in the file, its schema in SQL and its folder in the lake.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Bronze => "bronze",
            Tier::Silver => "silver",
            Tier::Gold => "gold",
            Tier::Vibranium => "vibranium",
        }
    }

    /// Finds a tier by its name.
    pub fn by_name(name: &str) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| tier.name() == name)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Spec {
    /// Gives the tables of a tier, by name.
    pub fn tables(&self, tier: Tier) -> &BTreeMap<String, Table> {
        match tier {
            Tier::Bronze => &self.bronze,
            Tier::Silver => &self.silver,
            Tier::Gold => &self.gold,
            Tier::Vibranium => &self.vibranium,
        }
    }

    /// Gives the tables of a tier, by name, to be changed.
    pub fn tables_mut(&mut self, tier: Tier) -> &mut BTreeMap<String, Table> {
        match tier {
            Tier::Bronze => &mut self.bronze,
            Tier::Silver => &mut self.silver,
            Tier::Gold => &mut self.gold,
            Tier::Vibranium => &mut self.vibranium,
        }
    }

    /// Tells what makes a table of its files.
    pub fn table_format(&self, table: &Table) -> TableFormat {
        table.table_format.unwrap_or(self.table_format)
    }

    /// Gives all tables with their tiers and names, the lowest tier first.
    pub fn all_tables(&self) -> impl Iterator<Item = (Tier, &str, &Table)> {
        let of = |tier| self.tables(tier).iter().map(move |(name, table)| (tier, name.as_str(), table));
        Tier::ALL.into_iter().flat_map(of)
    }
}
