//! Sources: from what the file says to an operator and its decoder.

use std::time::Duration;

use arrow::datatypes::{Field, SchemaRef};
use chrono::DateTime;
use nexus_operators::batch::OffsetKind;
use nexus_operators::clock::SharedClock;
use nexus_operators::decode::{self, BATCH_ROWS_MAX, Decoder, DecoderSettings, FormatSettings, UnknownColumns};
use nexus_operators::source::Source;
use nexus_operators::source::file::{FileSettings, FileSource};
use nexus_operators::source::generate::{self, GenerateSettings, GenerateSource, Generator};
#[cfg(feature = "kinesis")]
use nexus_operators::source::kinesis::KinesisSettings;
#[cfg(feature = "s3")]
use nexus_operators::source::s3::{OnPoison, PoisonPolicy, S3Settings};
use nexus_operators::{Error, Result};

use super::reference::infer;
use crate::spec::model::{self, UnknownColumn};
use crate::spec::{Loaded, WrongFormat, columns};
use crate::state::record::EvolvedColumn;

/// A source, checked and typed.
#[derive(Debug, Clone)]
pub struct SourcePlan {
    /// The source's name.
    pub name: String,
    /// How records become rows.
    pub decoder: DecoderSettings,
    /// The columns that SQL sees.
    pub schema: SchemaRef,
    /// The column that tells when a row happened.
    pub event_time: Option<usize>,
    /// How late rows may come.
    pub lateness: Duration,
    /// A partition without rows for this long does not hold the watermark back.
    pub idle: Duration,
    /// Whether the columns were inferred.
    pub inferred: bool,
    /// Whether fields that no column declares become columns.
    pub evolves: bool,
    /// Whether an embedding service hands the operator over.
    pub embedded: bool,
}

impl SourcePlan {
    /// Plans a source of the file.
    pub fn new(loaded: &Loaded, name: &str, source: &model::Source) -> Result<Self> {
        let generated = source.generate.as_ref().map(generator_columns).transpose()?;
        let format = match (&generated, &source.format) {
            (Some(_), _) => FormatSettings::Batch,
            (None, format) => {
                let wrong = |wrong: WrongFormat| Error::config(wrong.why);
                loaded.format_settings(["sources", name], format.as_ref()).map_err(wrong)?
            }
        };
        let (columns, inferred) = match (generated, &source.columns) {
            (Some(generated), _) => (generate::fields(&generated), false),
            (None, Some(declared)) => (declared_fields(declared)?, false),
            (None, None) if format == FormatSettings::Raw => (Vec::new(), false),
            (None, None) if format.own_columns().is_some() => (format.own_columns().unwrap_or_default(), true),
            (None, None) => {
                let glob = loaded.source_glob(name).ok_or_else(|| Error::config("`columns` is needed"))?;
                (infer(&glob, &format)?, true)
            }
        };
        let offsets = if source.kinesis.is_some() { OffsetKind::Sequence } else { OffsetKind::Number };
        let settings = DecoderSettings {
            source: name.into(),
            format,
            columns,
            unknown: match source.on_unknown_column {
                UnknownColumn::Rescue | UnknownColumn::Evolve => UnknownColumns::Rescue,
                UnknownColumn::Ignore => UnknownColumns::Ignore,
                UnknownColumn::Reject => UnknownColumns::Reject,
            },
            offsets,
            batch_rows_max: BATCH_ROWS_MAX,
            record_bytes_max: record_bytes_max(loaded),
            archives: false,
        };
        let event_time = source.event_time.as_ref();
        let mut plan = Self::of_decoder(name, settings, event_time.map(|time| time.column.as_str()))?;
        plan.inferred = inferred;
        plan.evolves = source.on_unknown_column == UnknownColumn::Evolve;
        if let Some(time) = event_time {
            plan.lateness = time.lateness.0;
            plan.idle = time.idle.0;
        }
        Ok(plan)
    }

    /// Plans a source from its decoder's settings.
    pub fn of_decoder(name: &str, decoder: DecoderSettings, event_time: Option<&str>) -> Result<Self> {
        let schema = decode::decoder(decoder.clone())?.schema();
        let event_time = match event_time {
            None => None,
            Some(column) => Some(time_column(&schema, column)?),
        };
        Ok(Self {
            name: name.to_owned(),
            decoder,
            schema,
            event_time,
            lateness: Duration::ZERO,
            idle: Duration::from_secs(30),
            inferred: false,
            evolves: false,
            embedded: false,
        })
    }

    /// Gives the source with columns that it has got while the pipeline ran, behind its own. One that the file declares
    /// by now is as the file says.
    pub fn with_columns(&self, evolved: &[EvolvedColumn]) -> Result<Self> {
        let mut decoder = self.decoder.clone();
        for column in evolved {
            if decoder.columns.iter().any(|declared| declared.name().eq_ignore_ascii_case(&column.name)) {
                continue;
            }
            let field = columns::field(&column.name, &column.data_type);
            decoder.columns.push(field.map_err(|e| Error::config(format!("column {}: {}", column.name, e.message)))?);
        }
        let time = self.event_time.map(|index| self.schema.field(index).name().as_str());
        let wider = Self::of_decoder(&self.name, decoder, time)?;
        Ok(Self { decoder: wider.decoder, schema: wider.schema, event_time: wider.event_time, ..self.clone() })
    }

    /// Makes the decoder.
    pub fn decoder(&self) -> Result<Box<dyn Decoder>> {
        decode::decoder(self.decoder.clone())
    }

    /// Makes a decoder that gives the records as they came, too.
    pub fn archiving_decoder(&self) -> Result<Box<dyn Decoder>> {
        decode::decoder(DecoderSettings { archives: true, ..self.decoder.clone() })
    }

    /// Makes the operator that the file describes.
    pub fn operator(&self, loaded: &Loaded, clock: &SharedClock) -> Result<Box<dyn Source>> {
        let spec = loaded.spec.sources.get(&self.name);
        let spec = spec.ok_or_else(|| Error::config(format!("source {} has no operator", self.name)))?;
        let framing = self.decoder.format.framing();
        let record_bytes_max = self.decoder.record_bytes_max;
        if let (Some(file), Some(glob)) = (&spec.file, loaded.source_glob(&self.name)) {
            let settings = FileSettings {
                name: self.name.clone(),
                glob,
                relative_to: loaded.source_folder(&self.name),
                follow: file.follow,
                framing,
                record_bytes_max,
            };
            return Ok(Box::new(FileSource::new(settings, clock.clone())));
        }
        if let Some(generate) = &spec.generate {
            let settings = GenerateSettings {
                name: self.name.clone(),
                rows: generate.rows,
                rate: generate.rate,
                seed: generate.seed,
                columns: generator_columns(generate)?,
            };
            return Ok(Box::new(GenerateSource::new(&settings, clock.clone())?));
        }
        if let Some(kinesis) = &spec.kinesis {
            return self.kinesis(kinesis, loaded, clock);
        }
        if let Some(s3) = &spec.s3 {
            return self.s3(s3, loaded, clock);
        }
        Err(Error::config(format!("source {} has no kind", self.name)))
    }

    #[cfg(feature = "kinesis")]
    fn kinesis(&self, spec: &model::KinesisSource, loaded: &Loaded, clock: &SharedClock) -> Result<Box<dyn Source>> {
        use nexus_operators::source::kinesis::KinesisSource;
        Ok(Box::new(KinesisSource::new(self.kinesis_settings(spec, loaded)?, clock.clone(), None)))
    }

    /// Gives what the file says of a stream.
    #[cfg(feature = "kinesis")]
    pub fn kinesis_settings(&self, spec: &model::KinesisSource, loaded: &Loaded) -> Result<KinesisSettings> {
        use nexus_operators::source::kinesis::{Aggregated, Mode, OnDataLoss, Start};
        Ok(KinesisSettings {
            name: self.name.clone(),
            stream: spec.stream.clone(),
            start: match spec.start.as_str() {
                "earliest" => Start::Earliest,
                "latest" => Start::Latest,
                time => Start::At(time_us(time)?.div_euclid(1000)),
            },
            mode: match spec.mode {
                model::KinesisMode::Poll => Mode::Poll,
                model::KinesisMode::FanOut => Mode::FanOut { consumer: loaded.consumer(&self.name, spec) },
            },
            aggregated: match spec.aggregated {
                model::Aggregated::Auto => Aggregated::Auto,
                model::Aggregated::Never => Aggregated::Never,
            },
            on_data_loss: match spec.on_data_loss {
                model::OnDataLoss::Fail => OnDataLoss::Fail,
                model::OnDataLoss::Continue => OnDataLoss::Continue,
            },
            aws: loaded.aws(spec.role.as_ref()),
        })
    }

    #[cfg(not(feature = "kinesis"))]
    fn kinesis(&self, _: &model::KinesisSource, _: &Loaded, _: &SharedClock) -> Result<Box<dyn Source>> {
        Err(not_built_in(&self.name, "kinesis"))
    }

    #[cfg(feature = "s3")]
    fn s3(&self, spec: &model::S3Source, loaded: &Loaded, clock: &SharedClock) -> Result<Box<dyn Source>> {
        use nexus_operators::source::s3::S3Source;
        Ok(Box::new(S3Source::new(self.s3_settings(spec, loaded), clock.clone(), None)?))
    }

    /// Gives what the file says of a queue and its objects.
    #[cfg(feature = "s3")]
    pub fn s3_settings(&self, spec: &model::S3Source, loaded: &Loaded) -> S3Settings {
        S3Settings {
            name: self.name.clone(),
            queue: spec.queue.clone(),
            allow: spec.allow.clone(),
            bucket_owner: spec.bucket_owner.clone(),
            in_flight: spec.in_flight,
            framing: self.decoder.format.framing(),
            record_bytes_max: self.decoder.record_bytes_max,
            object_bytes_max: spec.object.map(|size| size.0),
            on_poison: poison_policy(&spec.on_poison),
            visibility: spec.visibility.0,
            reconcile: spec.reconcile.map(|every| every.0),
            aws: loaded.aws(spec.role.as_ref()),
        }
    }

    #[cfg(not(feature = "s3"))]
    fn s3(&self, _: &model::S3Source, _: &Loaded, _: &SharedClock) -> Result<Box<dyn Source>> {
        Err(not_built_in(&self.name, "s3"))
    }
}

#[cfg(feature = "s3")]
fn poison_policy(spec: &model::PoisonPolicy) -> PoisonPolicy {
    let on = |on| match on {
        model::OnPoison::Quarantine => OnPoison::Quarantine,
        model::OnPoison::Retry => OnPoison::Retry,
        model::OnPoison::Fail => OnPoison::Fail,
    };
    PoisonPolicy {
        message: on(spec.message),
        missing: on(spec.missing),
        denied: on(spec.denied),
        region: on(spec.region),
        too_large: on(spec.too_large),
        unreadable: on(spec.unreadable),
        receives: spec.receives,
    }
}

#[cfg(not(all(feature = "kinesis", feature = "s3")))]
fn not_built_in(name: &str, feature: &str) -> Error {
    Error::config(format!(
        "source {name} needs `{feature}`, which this build leaves out; build it with feature `{feature}`"
    ))
}

/// Gives the largest record that is decoded.
pub fn record_bytes_max(loaded: &Loaded) -> usize {
    usize::try_from(loaded.spec.limits.record.0).unwrap_or(usize::MAX).min(decode::RECORD_BYTES_LIMIT)
}

/// Gives declared columns as Arrow fields.
pub fn declared_fields(declared: &model::Columns) -> Result<Vec<Field>> {
    columns::fields(declared).map_err(|(column, e)| Error::config(format!("column {column}: {}", e.message)))
}

fn time_column(schema: &SchemaRef, column: &str) -> Result<usize> {
    let index = schema.index_of(column).map_err(|_| Error::config(format!("there is no column `{column}`")))?;
    if matches!(schema.field(index).data_type(), arrow::datatypes::DataType::Timestamp(..)) {
        return Ok(index);
    }
    let found = schema.field(index).data_type();
    Err(Error::config(format!("event time needs a timestamp; `{column}` is {found}")))
}

fn generator_columns(spec: &model::GenerateSource) -> Result<Vec<(String, Generator)>> {
    let columns = spec.columns.iter().map(|(name, generator)| {
        let generator = match generator {
            model::Generator::Sequence {} => Generator::Sequence,
            model::Generator::Integer { min, max } => Generator::Integer { min: *min, max: *max },
            model::Generator::Number { min, max } => Generator::Number { min: *min, max: *max },
            model::Generator::Choice(texts) => Generator::Choice(texts.clone()),
            model::Generator::Time { start, step } => Generator::Time {
                start_us: time_us(start)?,
                step_us: i64::try_from(step.0.as_micros()).unwrap_or(i64::MAX),
            },
        };
        Ok((name.clone(), generator))
    });
    columns.collect()
}

fn time_us(text: &str) -> Result<i64> {
    let time = DateTime::parse_from_rfc3339(text);
    time.map(|time| time.timestamp_micros()).map_err(|e| Error::config(format!("`{text}` is not a time: {e}")))
}
