//! Reading content from its bytes to rows, checking on the way what holds of all content.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use bytes::Bytes;

use crate::batch::{Chunk, OffsetKind, timestamp_type};
use crate::decode::{Decoder, DecoderSettings, FormatSettings, Reject, UnknownColumns, decoder};
use crate::error::ErrorKind;
use crate::source::framed::{Framed, FramedSettings, Grain, Input, Step};

/// Most rows of a batch: few, so that little content makes several.
pub(in crate::testing) const BATCH_ROWS_MAX: usize = 7;

/// A limit that no input of a fuzzer reaches.
pub(in crate::testing) const RECORD_BYTES_MAX: usize = 1 << 20;

/// What came of some content.
#[derive(Debug, PartialEq)]
pub(in crate::testing) struct Outcome {
    pub(in crate::testing) rows: RecordBatch,
    pub(in crate::testing) rejects: Vec<Reject>,
    /// Why it could not be read on.
    pub(in crate::testing) damage: Option<String>,
    /// Where reading goes on behind each piece, and how many records were before.
    pub(in crate::testing) seams: Vec<(u64, usize)>,
}

impl Outcome {
    pub(in crate::testing) fn records(&self) -> usize {
        self.rows.num_rows() + self.rejects.len()
    }
}

/// Gives the settings of a decoder with these columns.
pub(in crate::testing) fn settings(
    format: FormatSettings,
    columns: Vec<Field>,
    unknown: UnknownColumns,
) -> DecoderSettings {
    DecoderSettings {
        source: "fuzzed".into(),
        format,
        columns,
        unknown,
        offsets: OffsetKind::Number,
        batch_rows_max: BATCH_ROWS_MAX,
        record_bytes_max: RECORD_BYTES_MAX,
        archives: false,
    }
}

/// Chooses what becomes of unknown columns.
pub(in crate::testing) fn unknown(choice: u8) -> UnknownColumns {
    match choice % 3 {
        0 => UnknownColumns::Rescue,
        1 => UnknownColumns::Ignore,
        _ => UnknownColumns::Reject,
    }
}

/// Gives a column of each type, under a short name that a fuzzer finds.
pub(in crate::testing) fn columns() -> Vec<Field> {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    let pair = Fields::from(vec![field("x", DataType::Int64), field("y", DataType::Utf8View)]);
    let entry = Fields::from(vec![Field::new("key", DataType::Utf8View, false), field("value", DataType::Float64)]);
    vec![
        field("s", DataType::Utf8View),
        field("i", DataType::Int64),
        field("f", DataType::Float64),
        field("b", DataType::Boolean),
        field("u", DataType::UInt8),
        field("d", DataType::Date32),
        field("t", DataType::Time64(TimeUnit::Microsecond)),
        field("ts", timestamp_type()),
        field("dec", DataType::Decimal128(10, 2)),
        field("bin", DataType::BinaryView),
        field("l", DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true)))),
        field("st", DataType::Struct(pair)),
        field("m", DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entry), false)), false)),
    ]
}

/// Reads and decodes content from `offset` on.
pub(in crate::testing) fn read(settings: &DecoderSettings, content: &Bytes, grain: Grain, offset: u64) -> Outcome {
    let framing = FramedSettings {
        framing: settings.format.framing(),
        record_bytes_max: settings.record_bytes_max,
        waits: false,
    };
    let mut framed = Framed::new("fuzzed".into(), Input::Memory(content.clone()), framing, offset).with_grain(grain);
    let decoder = decoder(settings.clone()).expect("the settings are good");
    let (mut batches, mut rejects, mut seams) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = offset;
    let damage = loop {
        match futures::executor::block_on(framed.next()) {
            Ok(Step::Piece { payload, next }) => {
                assert!(next == framed.offset() && next >= at, "the offset goes from {at} to {next}");
                at = next;
                let chunk = Chunk { partition: "fuzzed".into(), payload, read_at_us: 0, lag_ms: None };
                decode(&*decoder, settings, &chunk, &mut batches, &mut rejects);
                let records = batches.iter().map(RecordBatch::num_rows).sum::<usize>() + rejects.len();
                seams.push((next, records));
            }
            Ok(Step::End) => break None,
            Ok(Step::Incomplete) => panic!("nothing more is written to this content"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Data, "{error}");
                break Some(error.to_string());
            }
        }
    };
    let rows = concat_batches(&decoder.schema(), &batches).expect("the batches have the decoder's schema");
    Outcome { rows, rejects, damage, seams }
}

/// Decodes one chunk, and checks its steps.
pub(in crate::testing) fn decode(
    decoder: &dyn Decoder,
    settings: &DecoderSettings,
    chunk: &Chunk,
    batches: &mut Vec<RecordBatch>,
    rejects: &mut Vec<Reject>,
) {
    for step in decoder.decode(chunk) {
        let step = match step {
            Ok(step) => step,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Data, "{error}");
                let (offset, raw) = (chunk.offset_behind(0), chunk.raw());
                rejects.push(Reject::in_part(offset, raw, error.to_string()));
                return;
            }
        };
        assert!(step.batches.len() <= 1, "a step of {} batches", step.batches.len());
        for batch in &step.batches {
            assert!((1..=settings.batch_rows_max).contains(&batch.num_rows()), "{} rows", batch.num_rows());
            for column in batch.columns() {
                column.to_data().validate_full().expect("the columns are valid");
            }
        }
        for reject in &step.rejects {
            assert!(!reject.reason.is_empty(), "a reject without a reason at {}", reject.offset);
        }
        batches.extend(step.batches);
        rejects.extend(step.rejects);
    }
}
