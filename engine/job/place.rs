//! Where sinks keep their files, by the sinks' names: `<tier.table>/parquet`, `<source or tier.table>/quarantine`,
//! `<source>/archive`, `<source>/errors`.

use nexus_operators::store::{Access, Encryption, Store};
use nexus_operators::{Error, Result};

use crate::plan::Plan;
use crate::spec::Tier;
use crate::state::StateStore;
pub use crate::state::record::POSTGRES;
use crate::state::record::{ARCHIVE, ERRORS, QUARANTINE};

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

/// Gives the folders of a Parquet sink. What is written is encrypted so.
pub async fn parquet_place(
    plan: &Plan,
    store: &StateStore,
    encryption: &Encryption,
    sink: &str,
) -> Result<ParquetPlace> {
    let (of, kind) = sink.split_once('/').unwrap_or((sink, PARQUET));
    if is_archive(sink) {
        return archive_place(plan, store, encryption, sink).await;
    }
    let table = of.split_once('.').and_then(|(tier, table)| Some((Tier::by_name(tier)?, table)));
    // What a source could not read lies beside the tables that it would have gone to.
    let tier = table.map_or(Tier::Bronze, |(tier, _)| tier);
    let folder = match (kind, table) {
        (QUARANTINE, _) => format!("_quarantine/{of}"),
        (_, Some((tier, table))) => format!("{tier}/{table}"),
        (_, None) => return Err(Error::internal(format!("sink {sink} belongs to no table"))),
    };
    let aws = plan.loaded.lake_aws(tier, table.map(|(_, table)| table));
    let access = Access { encryption: encryption.clone(), aws };
    let root = Store::open(&plan.loaded.lake_root(tier), &access).await?;
    Ok(ParquetPlace {
        table: root.below(&folder),
        staging: root.below(&format!("_nexus/{}/staging/{sink}", plan.loaded.spec.name)),
        notes: store.folder().below(&format!("notes/{sink}")),
        spool: store.folder().below(&format!("rolls/{of}")),
    })
}

/// Tells whether a sink is of a source's archive.
pub fn is_archive(sink: &str) -> bool {
    // What a service adds to a table may have any name.
    sink.split_once('/').is_some_and(|(of, kind)| !of.contains('.') && (kind == ARCHIVE || kind == ERRORS))
}

/// Gives what the names of a sink's files begin with.
pub fn file_stem(plan: &Plan, sink: &str) -> String {
    let pipeline = &plan.loaded.spec.name;
    match sink.split_once('/') {
        Some((source, _)) if is_archive(sink) => format!("{pipeline}-{source}"),
        _ => pipeline.clone(),
    }
}

/// Gives the folders of a sink of a source's archive.
async fn archive_place(plan: &Plan, store: &StateStore, encryption: &Encryption, sink: &str) -> Result<ParquetPlace> {
    let gone = || Error::config(format!("the file has no archive for sink {sink} any more"));
    let (source, kind) = sink.split_once('/').ok_or_else(gone)?;
    let prefix = plan.loaded.spec.sources.get(source).and_then(|spec| spec.archive.as_ref()).map(|spec| &spec.prefix);
    let (root, prefix) = plan.loaded.archive_root(source).zip(prefix).ok_or_else(gone)?;
    let access = Access { encryption: encryption.clone(), aws: plan.loaded.archive_aws(source) };
    let root = Store::open(&root, &access).await?;
    let folder = if kind == ERRORS { format!("errors/{prefix}") } else { prefix.clone() };
    Ok(ParquetPlace {
        table: if folder.is_empty() { root.clone() } else { root.below(folder.trim_end_matches('/')) },
        staging: root.below(&format!("_nexus/{}/staging/{sink}", plan.loaded.spec.name)),
        notes: store.folder().below(&format!("notes/{sink}")),
        spool: store.folder().below(&format!("rolls/{sink}")),
    })
}

/// Gives the folder of the rows of a table that wait for Postgres.
pub fn spool_place(store: &StateStore, table: &str) -> Store {
    store.folder().below(&format!("spool/{table}"))
}
