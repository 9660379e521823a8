//! Every code that a diagnostic can bear, with what it means.

/// A kind of mistake.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// Such as `N0102`. It never changes its meaning.
    pub code: &'static str,
    /// A few words.
    pub title: &'static str,
    /// What is wrong, why it matters, and what to do.
    pub explanation: &'static str,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $title:literal, $explanation:literal;)+) => {
        $($(#[doc = $doc])+ pub const $name: &str = $code;)+

        /// All codes, in order.
        pub const CODES: &[Code] = &[$(Code { code: $code, title: $title, explanation: $explanation }),+];
    };
}

codes! {
    /// The file cannot be read.
    UNREADABLE = "N0001", "file cannot be read",
        "The pipeline file does not exist, may not be read, or is not UTF-8 text.";
    /// The file is not YAML.
    SYNTAX = "N0002", "not YAML",
        "The text breaks the rules of YAML. Often a quote or bracket is not closed, a tab indents a line, or a plain \
         text holds `: ` or begins with a sign that YAML keeps for itself; put such a text in quotes.";
    /// A key stands twice in one mapping.
    DUPLICATE_KEY = "N0003", "key given twice",
        "One mapping holds the same key twice. One of the two would be lost silently, so neither is taken.";
    /// YAML that pipeline files do not use.
    NOT_SUPPORTED = "N0004", "YAML feature not used here",
        "Aliases, tags and keys that are not text make a file hard to read and to check, and a pipeline file needs \
         none of them. Parameters (`params:` and `${name}`) do what aliases do.";
    /// Several documents in one file.
    SEVERAL_DOCUMENTS = "N0005", "several documents",
        "A pipeline is one document in one file. Give what follows `---` a file of its own.";
    /// The file is too large or too deep.
    TOO_LARGE = "N0006", "file too large or nested too deeply",
        "A pipeline file has at most 4 MiB, 64 levels and 200 000 keys and values. Keep data in files of its own, and long queries in `sql_file`.";
    /// A required key is missing.
    MISSING_KEY = "N0101", "missing key",
        "A key without a default is not given. `nexus schema` lists the keys of every part of the file.";
    /// A key that does not exist.
    UNKNOWN_KEY = "N0102", "unknown key",
        "There is no such key here. A misspelt key must not be ignored, since its default would silently take its place.";
    /// A value of the wrong type.
    WRONG_TYPE = "N0103", "wrong type",
        "The value has another shape than the key needs: a list where a text is wanted, a text where a number is.";
    /// A value that is not among the choices.
    UNKNOWN_CHOICE = "N0104", "not one of the choices",
        "The key takes one of a few values, and this is none of them.";
    /// A text that is not a duration, a size or a share.
    BAD_UNIT = "N0105", "not a length of time, a size or a share",
        "A length of time is a number and `ms`, `s`, `m`, `h` or `d` (`10s`). A size is a number and `B`, `KiB`, `MiB`, \
         `GiB`, `KB`, `MB` or `GB` (`128MiB`). A share is a number from 0 to 100 and `%` (`0.1%`).";
    /// A number or text out of its range.
    OUT_OF_RANGE = "N0106", "out of range",
        "The number is smaller or larger than the key allows, or the text shorter or longer.";
    /// `${name}` names no parameter.
    UNKNOWN_PARAM = "N0201", "unknown parameter",
        "`${name}` stands for a parameter, and `params:` has none of this name. Environment variables are not read. \
         Write `$${name}` for the text `${name}` itself.";
    /// `--set` names no parameter.
    UNKNOWN_OVERRIDE = "N0202", "unknown parameter on the command line",
        "`--set name=value` overrides a parameter that the file declares under `params:`. It cannot add one.";
    /// `--set` gives a value of another type.
    OVERRIDE_TYPE = "N0203", "parameter of another type",
        "A parameter has the type of its default. The value given with `--set` is of another one.";
    /// `${` without a name or an end.
    BAD_SUBSTITUTION = "N0204", "malformed `${`",
        "`${` begins a parameter's name and `}` ends it. Write `$${` for the text `${` itself.";
    /// A parameter that is not used.
    UNUSED_PARAM = "N0205", "parameter not used",
        "A parameter is declared and stands nowhere in the file. Overriding it would have no effect.";
    /// A name with characters that are not allowed.
    BAD_NAME = "N0301", "name not allowed",
        "Names become folders, tables in SQL and labels of metrics. They begin with a lower-case letter and go on with \
         lower-case letters, digits and `_`; a pipeline's name may hold `-` too. At most 63 characters.";
    /// Two things with one name.
    NAME_CLASH = "N0302", "name used twice",
        "SQL addresses sources and reference tables by their bare names, so no two of them may share one, and none may \
         be called like a tier.";
    /// `from` or a test names what does not exist.
    UNKNOWN_INPUT = "N0303", "no such source or table",
        "Sources and reference tables are addressed by their names, tables as `tier.table`. There is none with this one.";
    /// A lower tier reads a higher one.
    TIER_ORDER = "N0304", "lower tier reads a higher one",
        "Rows go from bronze to silver, gold and vibranium. A table reads tables of its own and of lower tiers.";
    /// Tables that read one another.
    CYCLE = "N0305", "tables read one another",
        "A table reads itself, perhaps by way of others, so that none of them can begin.";
    /// A secret that is not declared.
    UNKNOWN_SECRET = "N0306", "no such secret",
        "Secrets are used by the name that `secrets:` gives them, and never stand in the file themselves.";
    /// A secret that is not used.
    UNUSED_SECRET = "N0307", "secret not used", "A secret is declared and no sink uses it.";
    /// A column type that does not parse.
    BAD_COLUMN_TYPE = "N0401", "not a column type",
        "Types are `bool`, `int8` to `int64`, `uint8` to `uint64`, `float32`, `float64`, `decimal(p, s)`, `string`, \
         `binary`, `date`, `time`, `timestamp`, `list<T>`, `struct<name: T, ...>`, `map<K, V>` and `json`, each with \
         `not null` behind it if a value must be there.";
    /// None or several of file, kinesis, s3 and generate.
    SOURCE_KIND = "N0402", "exactly one kind of source",
        "A source reads from exactly one of `file`, `kinesis`, `s3` and `generate`.";
    /// A source without the columns it needs.
    COLUMNS_NEEDED = "N0403", "columns needed",
        "The schema of streams and queues is a contract that must be written down, since there is nothing to infer it \
         from when the pipeline starts. The same holds for CSV files without a header.";
    /// `columns` or `format` where there is nothing to declare.
    COLUMNS_NOT_ALLOWED = "N0404", "nothing to declare here",
        "Format `raw` has the one column `_raw`, and `generate` declares its columns itself and needs no format.";
    /// An event-time column that is not declared or no timestamp.
    BAD_EVENT_TIME = "N0405", "event time needs a timestamp",
        "`event_time` names one of the source's columns of type `timestamp`.";
    /// A time that is not RFC 3339.
    BAD_TIME = "N0406", "not a time",
        "Times are written as RFC 3339 says, with the offset: `2026-11-21T08:00:00Z`.";
    /// A path, glob or URL that cannot be meant.
    BAD_LOCATION = "N0407", "not a usable location",
        "Tables are stored in a folder or below `s3://bucket/prefix`; a `file` source reads a path or a glob on this \
         machine; a queue is the URL that SQS gives.";
    /// Nothing may be read from S3, or not a prefix.
    BAD_ALLOW = "N0408", "no allowed prefix",
        "A message can name any object. Only those below the prefixes of `allow` are read, so there must be one, \
         written as `s3://bucket/prefix`.";
    /// A generated column that cannot be made.
    BAD_GENERATOR = "N0409", "column cannot be generated",
        "`min` is at most `max`, a choice has at least one text, and a time begins at an RFC 3339 time.";
    /// `evolve` where fields have no names or types are guessed.
    CANNOT_EVOLVE = "N0410", "columns cannot evolve",
        "`on_unknown_column: evolve` makes columns of fields that no column declares. That needs fields with names, as in \
         JSON and in CSV with a header. Parquet files have types of their own, which are declared and not guessed.";
    /// A format whose schema cannot be used, or that does not fit its source.
    BAD_FORMAT = "N0411", "format cannot be read so",
        "Avro files hold their own schema; single records of Avro need a `schema` or a `schema_file`. Protocol Buffers need \
         a file of descriptors (`protoc --include_imports --descriptor_set_out=FILE`) and the full name of a message in it; \
         files hold messages with their lengths before them (`framing: delimited`). Log events have the columns that \
         CloudWatch Logs gives them.";
    /// A consumer where none is needed, or that cannot be.
    BAD_CONSUMER = "N0412", "consumer does not fit",
        "With `mode: fan_out` a Kinesis stream pushes its records to a registered consumer, which is named by 1 to 128 \
         letters, digits and `_.-`, or by its ARN. A stream that is polled has none.";
    /// An archive that cannot be made so.
    BAD_ARCHIVE = "N0413", "archive cannot be made so",
        "An `archive` keeps the records of a source below `path`, a folder or `s3://bucket/prefix`, in which no tables, no \
         state and no other archive lie. `prefix` has a slash behind each folder, and no expressions: \
         `yyyy/MM/dd/HH/` always follows it. Records of Avro and Parquet cannot be archived: files of theirs hold a schema \
         each, and single records nothing that keeps them apart.";
    /// None or several of from, sql and `sql_file`.
    TABLE_INPUT = "N0501", "exactly one of `from`, `sql` and `sql_file`",
        "A table takes its rows from one source or table, or from one query.";
    /// A postgres sink with key and append, or with neither.
    KEY_XOR_APPEND = "N0502", "either `key` or `append: true`",
        "With a `key` a row replaces the row of the same key; with `append: true` every row is added. It must be said \
         which, since the one loses history and the other doubles what changes.";
    /// A tier without a root in the lake.
    NO_ROOT = "N0503", "tier has no root in the lake",
        "`lake` gives each tier a root of its own and leaves out a tier that has stored tables.";
    /// A list of columns that is empty or names one twice.
    BAD_KEY = "N0504", "not a key",
        "A key names at least one column, and each once. `order_by` of `unique` says which row of a key is newer, and \
         belongs to `keep: newest`.";
    /// A partition expression that does not parse.
    BAD_PARTITION = "N0505", "not a partition",
        "Tables are partitioned by columns, by `date(column)` and by `hour(column)`. Files do not hold the columns that their \
         folders name, so at least one column must not be a partition.";
    /// A query that cannot be read or is empty.
    NO_QUERY = "N0506", "no query",
        "The query is empty, or the file that `sql_file` names cannot be read.";
    /// A rule without a condition.
    EMPTY_RULE = "N0507", "rule without a condition",
        "`that` holds a condition over the table's columns, such as `amount > 0`.";
    /// An error budget that nothing could ever exceed.
    BAD_ERRORS = "N0508", "error budget without effect",
        "`errors` stops a run when more than `at_most` of the rows go to the quarantine. It has no effect where none ever \
         does, or where all may: a table has a rule with `else: quarantine`, or counts late rows (`late: true`), and \
         `at_most` is less than 100%. Rows come late to tables with windows, not to sources.";
    /// A condition of deletion without a key.
    BAD_DELETE = "N0509", "rows cannot be deleted",
        "`delete_when` deletes the row of the same key, so it belongs to a postgres sink with a `key`, and it is a condition \
         over the table's columns, such as `status = 'gone'`.";
    /// Files that cannot be written as they are asked for.
    BAD_FILES = "N0511", "files cannot be written so",
        "`order_by`, `roll` and `parquet` tell how the files of a table that is stored are written. `order_by` has a column an \
         entry, with `asc` or `desc` and `nulls first` or `nulls last` behind it. A bloom filter is wrong in more than 0% \
         and less than 100% of all cases.";
    /// No table at all.
    NO_TABLES = "N0601", "no tables",
        "A pipeline has at least one table under `bronze`, `silver`, `gold` or `vibranium`.";
    /// No source at all.
    NO_SOURCES = "N0602", "no sources",
        "A pipeline has at least one source; reference tables alone give nothing to run on.";
    /// A limit at which nothing can run.
    BAD_LIMIT = "N0603", "limit not workable",
        "The limit leaves no room to work: a pipeline needs 64 MiB of memory, a record must fit in it several times, \
         and what is counted must be at least one.";
    /// None or both of file and url for events about runs.
    LINEAGE_TARGET = "N0604", "exactly one of `file` and `url`",
        "Events about runs go to a file on this machine or to an HTTP address. A password does not belong into the address.";
    /// A role or an endpoint of AWS that cannot be meant.
    BAD_AWS = "N0605", "not a role or an endpoint of AWS",
        "A role is named by its ARN, `arn:aws:iam::123456789012:role/name`; an endpoint is an HTTP or HTTPS URL. An endpoint \
         that is named is called as it is, so `fips: true` would have no effect on it: name the FIPS endpoint itself, or \
         leave one of the two out. The session of a role is called by 2 to 64 letters, digits and `_+=,.@-`.";
    /// A test case that gives a source both files and records.
    MIXED_CASE = "N0611", "files and records in one case",
        "In a test case, records in place are read as JSON, and a file in the format of its source. A source is read in \
         one of the two ways in all steps of a case.";
    /// A query that DataFusion does not take.
    BAD_SQL = "N0701", "SQL does not fit",
        "The query cannot be read, or names a table, column or function that is not there. Tables are named \
         `tier.table`; sources and reference tables by their name alone.";
    /// A query that would mean something else in a stream.
    NOT_STREAMABLE = "N0702", "query does not work on a stream",
        "Rows arrive without end, and a query runs epoch by epoch. What needs all rows at once (a sort, a limit, an \
         aggregate that never ends, a join of two streams without a bound of their times) would not give what it gives in a batch, so it is refused.";
    /// An option of a table that does not fit its columns.
    BAD_TABLE_OPTION = "N0703", "option does not fit the table",
        "A rule is a condition over the columns that the query gives; `unique` needs columns of the table and an \
         event time. Files are sorted by columns that they hold and whose values have an order.";
    /// An option names a column that the table does not have.
    UNKNOWN_COLUMN = "N0704", "no such column",
        "The option names a column that the query does not give.";
    /// A source that cannot be planned.
    BAD_SOURCE = "N0705", "source does not work",
        "The source's columns or its event time do not fit, or its columns could not be inferred from its files.";
    /// A reference table that cannot be read.
    BAD_REFERENCE = "N0706", "reference table cannot be read",
        "The file is not there, or a record of it does not decode. A bad row would silently join to nothing, so the \
         table is refused as a whole.";
    /// Something that nobody reads.
    UNREAD = "N0707", "read by nobody",
        "What no table reads has no effect.";
    /// A column that cannot be in a Delta table.
    NO_DELTA_TYPE = "N0708", "column does not fit a Delta table",
        "Delta has no times of day, no numbers of more than 38 digits and no intervals, and no column whose name holds a \
         space or one of `,;{}()=`, or differs from another one in upper and lower case alone. Unsigned numbers are \
         stored as the next wider signed ones.";
    /// A key of a sink under which rows that differ replace one another.
    KEY_NOT_UNIQUE = "N0711", "key does not tell rows apart",
        "The query has a row for each of several keys (those of `GROUP BY`, or of `unique`), and the sink's key names only \
         some of them. Rows that differ in the others replace one another, and the last one stays. If that is meant, such \
         as to keep the newest window of each site, nothing has to be done.";
    /// A column that is NULL in every row.
    NEVER_SET = "N0712", "column never set",
        "Nothing gives the column a value: the query selects NULL for it, or the header of the CSV files does not name it. \
         Readers would take it for missing data. A misspelt name is the most common reason.";
    /// Stored rows and those to come do not fit one another.
    DESTRUCTIVE_CHANGE = "N0801", "change that stored rows do not survive",
        "The files of a table are read as one table, by the names of its columns. Columns may be added (older rows have \
         NULL there), integers may become wider, decimals may get more digits, and `not null` may be dropped. A column \
         that goes, gets another name or a type that does not hold the old values, and other partitions would leave \
         rows that cannot be read together. `nexus check` looks at the state if it lies on this machine; `nexus run` \
         always does.";
    /// State that is kept for another query.
    OTHER_STATE = "N0802", "state of another query",
        "Open windows and remembered keys belong to the query that made them. Columns may be added beside them; other \
         groups, aggregates, filters, keys or types of what they are made of need state of their own.";
}

/// Gives the explanation of a code; nothing if there is no such code.
pub fn explain(code: &str) -> Option<&'static str> {
    CODES.iter().find(|c| c.code == code).map(|c| c.explanation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_each_stands_once() {
        assert!(CODES.windows(2).all(|two| two[0].code < two[1].code));
        assert!(CODES.iter().all(|c| c.code.len() == 5 && !c.title.is_empty() && c.explanation.ends_with('.')));
    }

    #[test]
    fn explain_knows_the_codes() {
        assert!(explain(UNKNOWN_KEY).is_some_and(|text| text.contains("misspelt")));
        assert_eq!(explain("N9999"), None);
    }
}
