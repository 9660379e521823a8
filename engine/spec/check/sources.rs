//! Sources and reference tables.

use std::time::Duration;

use arrow::datatypes::DataType;

use super::Check;
use crate::spec::codes;
use crate::spec::columns;
use crate::spec::loaded::is_url;
use crate::spec::model::{
    Columns, EventTime, Format, GenerateSource, Generator, KinesisMode, KinesisSource, ProtobufFraming, S3Source,
    Source, UnknownColumn,
};
use crate::spec::suggest;

/// The shortest time that a message can be kept hidden: it is extended at half of it, and looked after every second.
const VISIBILITY_MIN: Duration = Duration::from_secs(2);

/// The longest that SQS takes.
const VISIBILITY_MAX: Duration = Duration::from_secs(12 * 3600);

/// How often prefixes may be listed: less than a second would list without end, and objects older than two weeks are not
/// remembered.
const RECONCILE_MIN: Duration = Duration::from_secs(1);
const RECONCILE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The kinds of sources.
const KINDS: [&str; 4] = ["file", "kinesis", "s3", "generate"];

/// The endings of files whose format is known, before `.gz` and `.zst`.
const KNOWN_ENDINGS: [&str; 6] = [".avro", ".csv", ".json", ".jsonl", ".ndjson", ".parquet"];

pub(super) fn check(check: &mut Check<'_>) {
    let spec = check.spec;
    for (name, source) in &spec.sources {
        let path = ["sources", name.as_str()];
        kind(check, &path, source);
        formats(check, &path, source);
        if format_settings(check, ["sources", name], source.format.as_ref()) {
            let content = source.file.is_some() || source.s3.is_some();
            check_format(check, &path, source.format.as_ref(), source.columns.as_ref(), content);
        }
        evolve(check, &path, source);
        column_types(check, &path, source.columns.as_ref());
        if let Some(event_time) = &source.event_time {
            self::event_time(check, &path, source, event_time);
        }
        if let Some(errors) = &source.errors {
            let place = [&path[..], &["errors"]].concat();
            check.errors(&place, errors);
            if errors.late {
                let place = [&place[..], &["late"]].concat();
                let hint = "count them where the windows are: under `errors` of the table";
                check.error(&place, codes::BAD_ERRORS, "no row comes late to a source", hint);
            }
        }
    }
    for (name, reference) in &spec.reference {
        let path = ["reference", name.as_str()];
        let location = [&path[..], &["path"]].concat();
        match reference.path.starts_with("s3://") || is_url(&reference.path) {
            true => check.location(&location, &reference.path),
            false => check.glob(&location, &reference.path),
        }
        let plain = reference.path.trim_end_matches(".gz").trim_end_matches(".zst");
        if reference.format.is_none() && !KNOWN_ENDINGS.iter().any(|ending| plain.ends_with(ending)) {
            let message = "the format does not follow from the path's ending";
            check.error(&location, codes::BAD_LOCATION, message, "say it: `format: csv`");
        }
        if matches!(reference.format, Some(Format::Raw)) {
            let message = "a reference table cannot be `raw`: there would be nothing to join by";
            check.error(&[&path[..], &["format"]].concat(), codes::COLUMNS_NOT_ALLOWED, message, None);
        }
        if format_settings(check, ["reference", name], reference.format.as_ref()) {
            check_format(check, &path, reference.format.as_ref(), reference.columns.as_ref(), true);
        }
        column_types(check, &path, reference.columns.as_ref());
    }
}

fn kind(check: &mut Check<'_>, path: &[&str], source: &Source) {
    let given = [source.file.is_some(), source.kinesis.is_some(), source.s3.is_some(), source.generate.is_some()];
    let given: Vec<&str> = KINDS.into_iter().zip(given).filter_map(|(kind, is)| is.then_some(kind)).collect();
    match given.as_slice() {
        [_] => {}
        [] => {
            let message = "the source does not say where its records come from";
            check.error(path, codes::SOURCE_KIND, message, suggest::available(KINDS));
        }
        [_, second, ..] => {
            let message = format!("the source has several kinds: `{}`", given.join("`, `"));
            let place = [path, &[second]].concat();
            check.error(&place, codes::SOURCE_KIND, message, "make a source of each");
        }
    }
    if let Some(file) = &source.file {
        let path = [path, &["file", "path"]].concat();
        match is_url(&file.path) {
            true => {
                let message = "a `file` source reads from this machine, not from a URL";
                let hint = "objects on S3 are read by an `s3` source, from the queue that announces them";
                check.error(&path, codes::BAD_LOCATION, message, hint);
            }
            false => check.glob(&path, &file.path),
        }
    }
    if let Some(kinesis) = &source.kinesis {
        self::kinesis(check, &[path, &["kinesis"]].concat(), kinesis);
    }
    if let Some(s3) = &source.s3 {
        self::s3(check, &[path, &["s3"]].concat(), s3);
    }
    if let Some(generate) = &source.generate {
        self::generate(check, &[path, &["generate"]].concat(), generate);
    }
}

fn kinesis(check: &mut Check<'_>, path: &[&str], kinesis: &KinesisSource) {
    if kinesis.stream.trim().is_empty() {
        let stream = [path, &["stream"]].concat();
        check.error(&stream, codes::BAD_LOCATION, "the stream's name is empty", "write its name or ARN");
    }
    if let Some(consumer) = &kinesis.consumer {
        let place = [path, &["consumer"]].concat();
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let is_name = (1..=128).contains(&consumer.len()) && consumer.chars().all(is_allowed);
        let is_arn = consumer.starts_with("arn:") && consumer.contains("/consumer/");
        if kinesis.mode == KinesisMode::Poll {
            let hint = "add `mode: fan_out`, or remove it";
            check.error(&place, codes::BAD_CONSUMER, "a stream that is polled needs no consumer", hint);
        } else if !is_name && !is_arn {
            let hint = "write 1 to 128 letters, digits and `_.-`, or the consumer's ARN";
            check.error(&place, codes::BAD_CONSUMER, "a consumer cannot be called like this", hint);
        }
    }
    if !matches!(kinesis.start.as_str(), "earliest" | "latest") {
        check.time(&[path, &["start"]].concat(), &kinesis.start, "`earliest`, `latest` or a time such as ");
    }
}

fn s3(check: &mut Check<'_>, path: &[&str], s3: &S3Source) {
    if !s3.queue.starts_with("https://") && !s3.queue.starts_with("http://") {
        let queue = [path, &["queue"]].concat();
        let hint = "write the URL that SQS gives: `https://sqs.REGION.amazonaws.com/ACCOUNT/NAME`";
        check.error(&queue, codes::BAD_LOCATION, "the queue is not a URL", hint);
    }
    let allow = [path, &["allow"]].concat();
    let hint = "write `[\"s3://bucket/prefix/\"]`";
    if s3.allow.is_empty() {
        check.error(&allow, codes::BAD_ALLOW, "no prefix may be read", hint);
    }
    for (index, prefix) in s3.allow.iter().enumerate() {
        let bucket = prefix.strip_prefix("s3://").and_then(|rest| rest.split('/').next());
        if bucket.is_none_or(|bucket| bucket.is_empty() || bucket.contains('*')) {
            let index = index.to_string();
            let place = [&allow[..], &[&index]].concat();
            check.error(&place, codes::BAD_ALLOW, format!("`{prefix}` is not a prefix on S3"), hint);
        }
    }
    if let Some(owner) = &s3.bucket_owner
        && (owner.len() != 12 || !owner.bytes().all(|b| b.is_ascii_digit()))
    {
        let place = [path, &["bucket_owner"]].concat();
        let hint = "write it in quotes, so that it keeps its zeros: `\"012345678901\"`";
        check.error(&place, codes::OUT_OF_RANGE, "the account of the bucket's owner has not 12 digits", hint);
    }
    if let Some(every) = s3.reconcile {
        reconcile(check, path, s3, every.0);
    }
    if s3.in_flight == 0 {
        let place = [path, &["in_flight"]].concat();
        check.error(&place, codes::BAD_LIMIT, "no object may be read", "at least 1");
    }
    if s3.object.is_some_and(|size| size.0 == 0) {
        let place = [path, &["object"]].concat();
        check.error(&place, codes::BAD_LIMIT, "no object may be read", "write a size, `5GiB`, or leave it out");
    }
    if s3.on_poison.receives == 0 {
        let place = [path, &["on_poison", "receives"]].concat();
        check.error(&place, codes::BAD_LIMIT, "no message is received", "at least 1");
    }
    if !(VISIBILITY_MIN..=VISIBILITY_MAX).contains(&s3.visibility.0) {
        let place = [path, &["visibility"]].concat();
        check.error(&place, codes::BAD_LIMIT, "a message cannot be hidden for this long", "from `2s` to `12h`");
    }
}

/// S3 lists folders.
fn reconcile(check: &mut Check<'_>, path: &[&str], s3: &S3Source, every: Duration) {
    let place = [path, &["reconcile"]].concat();
    if !(RECONCILE_MIN..=RECONCILE_MAX).contains(&every) {
        let message = "the prefixes cannot be listed this often";
        check.error(&place, codes::BAD_LIMIT, message, "from `1s` to `7d`; an hour is usual");
    }
    let is_folder = |prefix: &String| prefix.ends_with('/') || prefix.matches('/').count() == 2;
    if let Some(prefix) = s3.allow.iter().find(|prefix| !is_folder(prefix)) {
        let message = format!("`{prefix}` is no folder, so it cannot be listed");
        check.error(&place, codes::BAD_ALLOW, message, "end the prefixes of `allow` with a slash");
    }
}

fn generate(check: &mut Check<'_>, path: &[&str], generate: &GenerateSource) {
    if generate.columns.is_empty() {
        let place = [path, &["columns"]].concat();
        check.error(&place, codes::BAD_GENERATOR, "no column is generated", "add one: `id: sequence`");
    }
    if generate.rate == Some(0) {
        let place = [path, &["rate"]].concat();
        check.error(&place, codes::BAD_LIMIT, "no row would ever be made", "at least 1, or leave it out");
    }
    for (name, generator) in &generate.columns {
        let place = [path, &["columns", name]].concat();
        let swapped = "`min` is above `max`";
        match generator {
            Generator::Integer { min, max } if min > max => {
                check.error(&place, codes::BAD_GENERATOR, swapped, format!("write `min: {max}, max: {min}`"));
            }
            Generator::Number { min, max } if min > max => {
                check.error(&place, codes::BAD_GENERATOR, swapped, format!("write `min: {max}, max: {min}`"));
            }
            Generator::Choice(choices) if choices.is_empty() => {
                let message = "there is nothing to choose from";
                check.error(&place, codes::BAD_GENERATOR, message, "write `choice: [a, b]`");
            }
            Generator::Time { start, .. } => check.time(&[&place[..], &["time", "start"]].concat(), start, ""),
            _ => {}
        }
    }
}

fn formats(check: &mut Check<'_>, path: &[&str], source: &Source) {
    let columns = [path, &["columns"]].concat();
    let format = [path, &["format"]].concat();
    let raw = matches!(source.format, Some(Format::Raw));
    let streamed = source.kinesis.is_some() || source.s3.is_some();
    match &source.columns {
        Some(_) if source.generate.is_some() => {
            let message = "a `generate` source declares its columns under `generate`";
            check.error(&columns, codes::COLUMNS_NOT_ALLOWED, message, "remove these");
        }
        Some(_) if raw => {
            let message = "format `raw` has the one column `_raw`";
            check.error(&columns, codes::COLUMNS_NOT_ALLOWED, message, "remove `columns`, or choose another format");
        }
        Some(declared) if declared.0.is_empty() => {
            check.error(&columns, codes::COLUMNS_NEEDED, "no column is declared", "name one: `id: int64`");
        }
        None if streamed && !raw && !has_columns(source.format.as_ref()) => {
            let message = "a stream or queue needs `columns`: there is nothing to infer them from";
            let hint = "add `columns: { id: int64 not null, ... }`, or take `format: raw`";
            check.error(path, codes::COLUMNS_NEEDED, message, hint);
        }
        None if matches!(&source.format, Some(Format::Csv(csv)) if !csv.header) => {
            let message = "a CSV without a header needs `columns`, in the order of the fields";
            check.error(path, codes::COLUMNS_NEEDED, message, "add `columns: { id: int64, ... }`");
        }
        _ => {}
    }
    match &source.format {
        Some(_) if source.generate.is_some() => {
            let message = "a `generate` source makes rows, and has no format";
            check.error(&format, codes::COLUMNS_NOT_ALLOWED, message, "remove `format`");
        }
        Some(Format::Parquet) if source.kinesis.is_some() => {
            let message = "the records of a stream are not Parquet files";
            check.error(
                &format,
                codes::COLUMNS_NOT_ALLOWED,
                message,
                "available: `json`, `csv`, `avro`, `protobuf`, `cloudwatch_logs`, `raw`",
            );
        }
        _ => {}
    }
}

/// Reads the schema of a format; tells whether it could.
fn format_settings(check: &mut Check<'_>, path: [&str; 2], format: Option<&Format>) -> bool {
    let Err(wrong) = check.loaded.format_settings(path, format) else { return true };
    let place = [&path[..], &["format"], &wrong.keys].concat();
    check.error(&place, codes::BAD_FORMAT, wrong.why, None);
    false
}

/// Tells whether a format says which columns there are.
fn has_columns(format: Option<&Format>) -> bool {
    match format {
        Some(Format::Avro(avro)) => avro.schema.is_some() || avro.schema_file.is_some(),
        Some(Format::Protobuf(_) | Format::CloudwatchLogs) => true,
        _ => false,
    }
}

/// Checks a format against where the bytes come from: whole files or objects (`content`), or records.
fn check_format(
    check: &mut Check<'_>,
    path: &[&str],
    format: Option<&Format>,
    columns: Option<&Columns>,
    content: bool,
) {
    match format {
        Some(Format::Avro(_)) if content && has_columns(format) => {
            let message = "single records of Avro come from a stream; files hold their own schema";
            check.error(&[path, &["format", "avro"]].concat(), codes::BAD_FORMAT, message, "write `format: avro`");
        }
        Some(Format::Protobuf(protobuf)) if content && protobuf.framing == ProtobufFraming::Record => {
            let message = "where a message ends in a file is not known without its length";
            let place = [path, &["format", "protobuf"]].concat();
            check.error(&place, codes::BAD_FORMAT, message, "write `framing: delimited`");
        }
        Some(Format::CloudwatchLogs) => {
            let known = nexus_operators::decode::cloudwatch_columns();
            let known: Vec<&str> = known.iter().map(|field| field.name().as_str()).collect();
            for (name, _) in columns.map_or(&[][..], |c| &c.0) {
                if !known.contains(&name.as_str()) {
                    let place = [path, &["columns", name]].concat();
                    let message = format!("a log event has no column `{name}`");
                    check.error(&place, codes::BAD_FORMAT, message, suggest::hint(name, known.iter().copied()));
                }
            }
        }
        _ => {}
    }
}

/// Columns are made of fields that have names.
fn evolve(check: &mut Check<'_>, path: &[&str], source: &Source) {
    if source.on_unknown_column != UnknownColumn::Evolve {
        return;
    }
    let why = match (&source.generate, &source.format) {
        (Some(_), _) => "generated rows have no other columns than those declared",
        (None, Some(Format::Raw)) => "format `raw` has the one column `_raw`",
        (None, Some(Format::Parquet | Format::Avro(_) | Format::Protobuf(_) | Format::CloudwatchLogs)) => {
            "the format has types of its own, which would be guessed from what values look like as JSON"
        }
        (None, Some(Format::Csv(csv))) if !csv.header => "the fields of a CSV without a header have no names",
        (None, None | Some(Format::Json | Format::Csv(_))) => return,
    };
    let place = [path, &["on_unknown_column"]].concat();
    let hint = "declare the columns, or take `rescue`";
    check.error(&place, codes::CANNOT_EVOLVE, format!("columns cannot evolve: {why}"), hint);
}

fn column_types(check: &mut Check<'_>, path: &[&str], columns: Option<&Columns>) {
    for (name, text) in columns.map_or(&[][..], |c| &c.0) {
        let Err(wrong) = columns::field(name, text) else { continue };
        let place = [path, &["columns", name]].concat();
        let column = text.get(..wrong.offset).map_or(1, |before| before.chars().count() + 1);
        let at = (1, column);
        let mut found = check.loaded.diagnostic_in_text(&place, at, codes::BAD_COLUMN_TYPE, wrong.message, wrong.hint);
        if let Some(marked) = &mut found.place {
            marked.width = wrong.width;
        }
        check.add(&place, found);
    }
}

fn event_time(check: &mut Check<'_>, path: &[&str], source: &Source, event_time: &EventTime) {
    let place = [path, &["event_time", "column"]].concat();
    let column = event_time.column.as_str();
    let (names, is_time): (Vec<&str>, Option<bool>) = match (&source.generate, &source.columns) {
        (Some(generate), _) => {
            let is_time = generate.columns.get(column).map(|g| matches!(g, Generator::Time { .. }));
            (generate.columns.keys().map(String::as_str).collect(), is_time)
        }
        (None, Some(columns)) => {
            let declared = columns.0.iter().find(|(name, _)| name == column);
            // A type that does not parse has been reported; what it would be is not known.
            let is_time = |field: arrow::datatypes::Field| matches!(field.data_type(), DataType::Timestamp(_, _));
            let is_time = declared.map(|(name, text)| columns::field(name, text).map_or(true, is_time));
            (columns.0.iter().map(|(name, _)| name.as_str()).collect(), is_time)
        }
        // Inferred columns are known when the pipeline is planned; those of `raw` are none that tell a time.
        (None, None) if matches!(source.format, Some(Format::Raw)) => (Vec::new(), None),
        (None, None) => return,
    };
    match is_time {
        Some(true) => {}
        None if column == nexus_operators::batch::INGESTED_AT_COLUMN => {}
        None => {
            let message = format!("the event-time column `{column}` is not declared");
            check.error(&place, codes::BAD_EVENT_TIME, message, suggest::hint(column, names));
        }
        Some(false) => {
            let message = format!("the event-time column `{column}` is not a timestamp");
            check.error(&place, codes::BAD_EVENT_TIME, message, format!("declare it as `{column}: timestamp`"));
        }
    }
}
