//! The sinks of a job: of tables, and of what comes to the quarantine.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

#[cfg(feature = "postgres")]
use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
#[cfg(feature = "postgres")]
use arrow::compute::prep_null_mask_filter;
#[cfg(feature = "postgres")]
use datafusion::physical_expr::PhysicalExpr;
use nexus_operators::sink::delta::{DeltaSettings, DeltaSink};
use nexus_operators::sink::parquet::audit::TableFolder;
use nexus_operators::sink::parquet::{
    FileContent, ParquetCompression, ParquetLayout, ParquetSettings, ParquetSink, RemovedFile, Roll, RollingPlace,
    RollingSink,
};
#[cfg(feature = "postgres")]
use nexus_operators::sink::postgres::{PostgresSettings, PostgresSink};
use nexus_operators::sink::{EpochId, RefusedRows, RefusedUpto, Sink};
#[cfg(feature = "postgres")]
use nexus_operators::store::Store;
#[cfg(feature = "postgres")]
use nexus_operators::transform::query::failed;
use nexus_operators::{Error, Result, archive, fail, quarantine};
use tokio::sync::mpsc;

use super::{Restored, Wiring};
use crate::job::archive::Archive;
use crate::job::channel::{Item, Receiver, Sender};
use crate::job::files::parquet_settings;
#[cfg(feature = "postgres")]
use crate::job::place::spool_place;
use crate::job::place::{PARQUET, POSTGRES, ParquetPlace, file_stem, parquet_place};
use crate::job::sink::{CommitStage, Order, SinkStage, Takeover};
use crate::job::start::handles_of;
#[cfg(feature = "postgres")]
use crate::plan::Plan;
use crate::plan::changes::stored_schema;
use crate::plan::table::TablePlan;
use crate::spec::model::{self, TableFormat};
use crate::state::record::{ARCHIVE, CommitRecord, ERRORS, QUARANTINE};

/// The least memory of a sink that archives: a part of an upload in the making, and another that is being sent. With less, an
/// object would end where its part no longer fits, whatever `buffer` says.
const ARCHIVE_BYTES_MIN: usize = 16 << 20;

/// Objects of an archive that are open at once: those of an hour and of the next, of a few headers.
const ARCHIVE_OPEN_MAX: usize = 8;

/// A sink, and the rows that its service refuses, if it can keep them.
type Refusing = (Box<dyn Sink>, Option<Arc<dyn RefusedRows>>);

/// What the stages of a sink are told beside the sink.
#[derive(Default)]
pub(super) struct SinkSettings {
    /// What becomes of rows that its service refuses.
    takeover: Option<Takeover>,
    /// Whether rows may come behind the last barrier.
    stays: bool,
}

impl Wiring<'_> {
    /// Makes the sinks that the file asks for, and gives their channels, that of Postgres as the last.
    pub(super) async fn stored(
        &mut self,
        plan: &TablePlan,
        spec: &model::Table,
        quarantine: Option<&Sender<Item>>,
    ) -> Result<Vec<Sender<Item>>> {
        let name = plan.name();
        let mut takers = Vec::new();
        if spec.store {
            let schema = stored_schema(&plan.schema, self.restored.schemas.get(&name));
            let settings = parquet_settings(self.plan, plan, spec, schema, self.budget.sink)?;
            let sink = format!("{name}/{PARQUET}");
            let place = parquet_place(self.plan, &self.restored.store, &self.restored.encryption, &sink).await?;
            let operator = match self.plan.loaded.spec.table_format(spec) {
                TableFormat::Parquet => self.files(&sink, settings, place, spec.roll.as_ref())?,
                TableFormat::Delta => self.delta(&sink, settings, place, spec.roll.as_ref()).await?,
            };
            takers.push(self.sink(&sink, operator, SinkSettings::default()).await?);
        }
        if let Some(postgres) = &spec.postgres {
            let (sink, refused) = self.postgres(plan, postgres).await?;
            let sink_name = format!("{name}/{POSTGRES}");
            let upto = self.restored.state.refused.get(&sink_name).copied().unwrap_or_default();
            let takeover = refused.zip(quarantine).map(|(rows, quarantine)| Takeover {
                sink: sink_name.as_str().into(),
                table: name.clone(),
                rows,
                quarantine: quarantine.clone(),
                progress: self.progress.clone(),
                clock: self.clock.clone(),
                sent: upto,
                forgotten: RefusedUpto::default(),
            });
            takers.push(self.sink(&sink_name, sink, SinkSettings { takeover, stays: false }).await?);
        }
        Ok(takers)
    }

    /// Tells whether rows of a table are in the quarantine, or are to come there, though its file says nothing of it any
    /// more.
    pub(super) fn has_quarantined(&self, table: &str) -> bool {
        let sink = format!("{table}/{QUARANTINE}");
        let owed = |record: &CommitRecord| record.sinks.get(&sink).is_some_and(|prepared| prepared.handle.is_some());
        let taken = self.portion.as_ref().is_some_and(|portion| portion.taken.contains_key(table));
        taken || self.restored.undone.iter().any(owed)
    }

    /// Makes the sink of what comes to the quarantine of a table or source, and gives its channel. Rows that another sink
    /// of the table `refuses` come to it too.
    pub(super) async fn quarantine(&mut self, of: &str, refuses: bool) -> Result<Sender<Item>> {
        let settings = ParquetSettings {
            pipeline: self.plan.loaded.spec.name.clone(),
            tier: "quarantine".to_owned(),
            table: of.to_owned(),
            schema: quarantine::schema(),
            partition_by: Vec::new(),
            compression: ParquetCompression::Zstd,
            layout: ParquetLayout::default(),
            open_partitions_max: 1,
            buffer_bytes: self.budget.sink,
        };
        let taken = self.portion.as_ref().and_then(|portion| portion.taken.get(of));
        let removes = taken.map(|taken| taken.files().to_vec()).unwrap_or_default();
        let name = format!("{of}/{QUARANTINE}");
        let sender = self.parquet(&name, settings, removes, refuses).await?;
        if refuses {
            self.takers_of_refused.insert(name, sender.clone());
        }
        Ok(sender)
    }

    /// Makes the sinks of a source's archive, if it has one.
    pub(super) async fn archive(&mut self, source: &str) -> Result<Option<Archive>> {
        let spec = self.plan.loaded.spec.sources.get(source).and_then(|source| source.archive.clone());
        let Some(spec) = spec.filter(|_| self.stores) else { return Ok(None) };
        let records = self.archived(source, ARCHIVE, &spec).await?;
        let errors = self.archived(source, ERRORS, &spec).await?;
        Ok(Some(Archive { records, errors }))
    }

    async fn archived(&mut self, source: &str, kind: &str, spec: &model::Archive) -> Result<Sender<Item>> {
        let sink = format!("{source}/{kind}");
        let settings = ParquetSettings {
            pipeline: file_stem(self.plan, &sink),
            tier: kind.to_owned(),
            table: source.to_owned(),
            schema: archive::schema(),
            partition_by: Vec::new(),
            compression: ParquetCompression::default(),
            layout: ParquetLayout { content: FileContent::Records { gzip: spec.gzip }, ..ParquetLayout::default() },
            open_partitions_max: ARCHIVE_OPEN_MAX,
            buffer_bytes: self.budget.sink.max(ARCHIVE_BYTES_MIN),
        };
        let place = parquet_place(self.plan, &self.restored.store, &self.restored.encryption, &sink).await?;
        let roll = model::Roll { size: spec.buffer.size, age: spec.buffer.every };
        let operator = self.files(&sink, settings, place, Some(&roll))?;
        self.sink(&sink, operator, SinkSettings::default()).await
    }

    async fn parquet(
        &mut self,
        sink: &str,
        settings: ParquetSettings,
        removes: Vec<RemovedFile>,
        stays: bool,
    ) -> Result<Sender<Item>> {
        let ParquetPlace { table, staging, notes, .. } =
            parquet_place(self.plan, &self.restored.store, &self.restored.encryption, sink).await?;
        let operator = Box::new(ParquetSink::new(settings, table, staging, notes)?.removing(removes));
        self.sink(sink, operator, SinkSettings { takeover: None, stays }).await
    }

    /// Makes what writes the files of a table. What waits is written also if its file says nothing of it any more.
    fn files(
        &mut self,
        sink: &str,
        settings: ParquetSettings,
        place: ParquetPlace,
        roll: Option<&model::Roll>,
    ) -> Result<Box<dyn Sink>> {
        let ParquetPlace { table, staging, notes, spool } = place;
        let waiting = self.restored.state.waiting.get(sink).cloned();
        if roll.is_none() && waiting.is_none() {
            return Ok(Box::new(ParquetSink::new(settings, table, staging, notes)?));
        }
        let place = RollingPlace { table, staging, notes, spool };
        let roll = roll.map(|roll| Roll { bytes: roll.size.0, age: roll.age.0 });
        if let Some(roll) = roll {
            self.rolls.insert(sink.to_owned(), roll.age);
        }
        let waiting = waiting.unwrap_or_default();
        Ok(Box::new(RollingSink::new(settings, place, roll, waiting, self.clock.clone())?))
    }

    async fn delta(
        &mut self,
        sink: &str,
        parquet: ParquetSettings,
        place: ParquetPlace,
        roll: Option<&model::Roll>,
    ) -> Result<Box<dyn Sink>> {
        let settings = DeltaSettings { parquet, state_id: self.restored.state.id.clone(), clock: self.clock.clone() };
        let folder = TableFolder::new(place.table.clone(), place.staging.clone(), place.notes.clone());
        fail::point("before_log_begin")?;
        let operator = DeltaSink::open(settings, folder, |parquet| self.files(sink, parquet, place, roll)).await?;
        fail::point("after_log_begin")?;
        Ok(Box::new(operator))
    }

    #[cfg(feature = "postgres")]
    async fn postgres(&mut self, plan: &TablePlan, spec: &model::PostgresSink) -> Result<Refusing> {
        let spool = spool_place(&self.restored.store, &plan.name());
        let claim = (self.restored.state.id.clone(), self.restored.generation);
        let sink = postgres_sink(self.plan, plan, spec, claim, spool)?;
        match sink.check().await {
            Err(error) if error.kind() == nexus_operators::ErrorKind::Unavailable => {
                tracing::warn!(table = plan.name(), %error, "Postgres is away; rows are spooled until it is back");
            }
            checked => checked?,
        }
        let refused = sink.refused();
        Ok((Box::new(sink), Some(refused)))
    }

    #[cfg(not(feature = "postgres"))]
    #[allow(clippy::unused_async, reason = "the same call awaits where Postgres is built in")]
    async fn postgres(&mut self, plan: &TablePlan, _: &model::PostgresSink) -> Result<Refusing> {
        let name = plan.name();
        Err(Error::config(format!(
            "{name} needs Postgres, which this build leaves out; build it with feature `postgres`"
        )))
    }

    /// Adds the stages of a sink, and gives its channel.
    pub(super) async fn sink(
        &mut self,
        name: &str,
        sink: Box<dyn Sink>,
        settings: SinkSettings,
    ) -> Result<Sender<Item>> {
        let committer = sink.committer();
        let Restored { state, generation, undone, .. } = self.restored;
        fail::point("before_sweep")?;
        let oldest_kept = if fail::mutated("no_sweep") { 0 } else { *generation };
        let swept = committer.sweep(oldest_kept, &handles_of(undone, name)).await;
        let swept = swept.map_err(|e| e.while_doing(format!("could not clear what a crash left behind in {name}")))?;
        fail::point("after_sweep")?;
        if swept > 0 {
            tracing::info!(sink = name, swept, "removed what a crash had left behind");
        }
        let (sender, from): (Sender<Item>, Receiver<Item>) = self.channel(format!("sink {name}"));
        let (queue, epochs) = mpsc::unbounded_channel();
        for record in undone {
            if let Some(prepared) = record.sinks.get(name) {
                let id = EpochId { generation: record.generation, epoch: record.epoch };
                let recorded = state.refused.get(name).copied().unwrap_or_default();
                let order = Order { id, handle: prepared.handle.clone(), recorded };
                queue.send(order).map_err(|_| Error::internal("a new queue is closed"))?;
            }
        }
        let open = EpochId { generation: *generation, epoch: state.epoch + 1 };
        let reports = self.reports.clone();
        let SinkSettings { takeover, stays } = settings;
        let held_bytes = Arc::<AtomicUsize>::default();
        self.progress.watch_sink(name.to_owned(), held_bytes.clone());
        let stage = SinkStage { name: name.to_owned(), sink, from, reports: reports.clone(), open, stays, held_bytes };
        let commit = CommitStage { name: name.to_owned(), committer, takeover, from: epochs, reports };
        self.queues.insert(name.to_owned(), queue);
        self.stages.push((format!("sink {name}"), Box::pin(stage.run())));
        self.commits.push((format!("commit {name}"), Box::pin(commit.run())));
        Ok(sender)
    }
}

/// Makes the sink of a table's rows in Postgres, for a process that has claimed a state store under a number.
#[cfg(feature = "postgres")]
pub fn postgres_sink(
    plan: &Plan,
    table: &TablePlan,
    spec: &model::PostgresSink,
    (state_id, generation): (String, u64),
    spool: Store,
) -> Result<PostgresSink> {
    let secret = plan.loaded.database(spec);
    let secret = secret.ok_or_else(|| Error::config(format!("there is no secret `{}`", spec.url)))?;
    let settings = PostgresSettings {
        pipeline: plan.loaded.spec.name.clone(),
        sink_name: table.name(),
        state_id,
        generation,
        schema: spec.schema.clone(),
        table: spec.table.clone(),
        key: spec.key.clone(),
        append: spec.append,
        create: spec.create,
        rows: table.keyed_schema(),
    };
    let delete_when = table.delete_when.clone().map(|condition| Box::new(Condition(condition)) as _);
    PostgresSink::new(settings, delete_when, secret, spool)
}

/// A condition over rows of a table.
#[cfg(feature = "postgres")]
struct Condition(Arc<dyn PhysicalExpr>);

#[cfg(feature = "postgres")]
impl nexus_operators::sink::postgres::DeleteWhen for Condition {
    fn deletes(&self, rows: &RecordBatch) -> Result<BooleanArray> {
        let met = self.0.evaluate(rows).and_then(|met| met.into_array(rows.num_rows())).map_err(failed)?;
        let met = met.as_boolean();
        Ok(if met.null_count() > 0 { prep_null_mask_filter(met) } else { met.clone() })
    }
}
