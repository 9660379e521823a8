//! Where sinks keep their files, by the sinks' names: `<tier.table>/parquet`, `<source or tier.table>/quarantine`.

use nexus_operators::store::{Access, Store};
use nexus_operators::{Error, Result};

use crate::plan::Plan;
use crate::spec::Tier;
use crate::state::StateStore;
pub use crate::state::record::POSTGRES;
use crate::state::record::QUARANTINE;

/// The kind of sink that stores a table in the lake.
pub const PARQUET: &str = "parquet";

/// The folders of a Parquet sink.
#[derive(Debug, Clone)]
pub struct ParquetPlace {
    /// Where committed files lie.
    pub table: Store,
    /// Where files are staged, on a local disk.
    pub staging: Store,
    /// Where uploads are noted, on an object store.
    pub notes: Store,
    /// Where rows wait for a larger file.
    pub spool: Store,
}

/// Gives the folders of a Parquet sink.
pub async fn parquet_place(plan: &Plan, store: &StateStore, access: &Access, sink: &str) -> Result<ParquetPlace> {
    let (of, kind) = sink.split_once('/').unwrap_or((sink, PARQUET));
    let table = of.split_once('.').and_then(|(tier, table)| Some((Tier::by_name(tier)?, table)));
    // What a source could not read lies beside the tables that it would have gone to.
    let tier = table.map_or(Tier::Bronze, |(tier, _)| tier);
    let folder = match (kind, table) {
        (QUARANTINE, _) => format!("_quarantine/{of}"),
        (_, Some((tier, table))) => format!("{tier}/{table}"),
        (_, None) => return Err(Error::internal(format!("sink {sink} belongs to no table"))),
    };
    let root = Store::open(&plan.loaded.lake_root(tier), access).await?;
    Ok(ParquetPlace {
        table: root.below(&folder),
        staging: root.below(&format!("_nexus/{}/staging/{sink}", plan.loaded.spec.name)),
        notes: store.folder().below(&format!("notes/{sink}")),
        spool: store.folder().below(&format!("rolls/{of}")),
    })
}

/// Gives the folder of the rows of a table that wait for Postgres.
pub fn spool_place(store: &StateStore, table: &str) -> Store {
    store.folder().below(&format!("spool/{table}"))
}
