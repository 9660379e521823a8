//! Black-box tests of the Postgres sink, on a real server.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
    RecordBatch, StringViewArray, Time64MicrosecondArray, TimestampMicrosecondArray, UInt8Array, UInt16Array,
    UInt32Array, UInt64Array,
};
use arrow::array::{Int64Builder, ListBuilder, MapBuilder, StringBuilder, StructArray, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::*;
use crate::ErrorKind;
use crate::sink::RefusedUpto;
use crate::testing::postgres::Postgres;
use crate::testing::sink::{Target, conforms, rows, schema};

/// A table of a server, and a state store.
pub(super) struct Database {
    server: Arc<Postgres>,
    pub(super) settings: PostgresSettings,
    spool: Store,
    /// Removed when the test ends.
    _folder: TempDir,
}

pub(super) fn settings(rows: SchemaRef, table: &str) -> PostgresSettings {
    PostgresSettings {
        pipeline: "p".into(),
        sink_name: format!("gold.{table}"),
        state_id: "s1".into(),
        generation: 1,
        schema: "Lake House".into(),
        table: table.into(),
        key: vec!["id".into()],
        append: false,
        create: true,
        rows,
    }
}

pub(super) fn id(generation: u64, epoch: u64) -> EpochId {
    EpochId { generation, epoch }
}

impl Database {
    pub(super) async fn new(server: Arc<Postgres>, settings: PostgresSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spool = Store::open(folder.path().to_str().unwrap(), &Default::default()).await.unwrap();
        Self { server, settings, spool, _folder: folder }
    }

    pub(super) fn open(&self) -> PostgresSink {
        let secret = self.server.secret("url", &self.server.url());
        PostgresSink::new(self.settings.clone(), None, secret, self.spool.clone()).unwrap()
    }

    pub(super) fn server(&self) -> &Postgres {
        &self.server
    }

    pub(super) fn spool(&self) -> Store {
        self.spool.clone()
    }

    pub(super) async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.server.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    pub(super) fn table(&self) -> String {
        format!("\"{}\".\"{}\"", self.settings.schema, self.settings.table)
    }

    pub(super) async fn land(&self, id: EpochId, batches: &[RecordBatch]) -> Result<()> {
        let mut sink = self.open();
        for batch in batches {
            sink.write(id, batch).await?;
        }
        let prepared = sink.prepare(id).await?;
        sink.committer().commit(id, &prepared.handle.unwrap()).await
    }

    /// Gives the rows that the server has refused.
    pub(super) async fn refused(&self) -> Vec<Quarantined> {
        let (rows, mut upto, mut found) = (self.open().refused(), RefusedUpto::default(), Vec::new());
        while let Some((epoch, rows)) = rows.next(upto).await.unwrap() {
            upto.pass(epoch, rows.len() as u64);
            found.extend(rows);
        }
        found
    }

    /// Gives one text for each row: the columns as Postgres writes them.
    pub(super) async fn texts(&self, columns: &str) -> Vec<String> {
        let sql = format!("SELECT concat_ws('|', {columns}) FROM {} ORDER BY 1", self.table());
        let client = self.client().await;
        client.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }
}

impl Target for Database {
    async fn sink(&self) -> Box<dyn Sink> {
        Box::new(self.open())
    }

    async fn visible(&self) -> Vec<i64> {
        let client = self.client().await;
        match client.query(&format!("SELECT id FROM {}", self.table()), &[]).await {
            Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
            Err(e) if e.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => Vec::new(),
            Err(e) => panic!("{e}"),
        }
    }

    async fn staged(&self) -> usize {
        self.spool.list("").await.unwrap().len()
    }
}

#[tokio::test]
async fn conforms_with_a_key_and_without() {
    let server = Arc::new(Postgres::start());
    let count = std::sync::atomic::AtomicUsize::new(0);
    for append in [false, true] {
        conforms(|| async {
            let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut settings = settings(schema(), &format!("Delays {number}"));
            settings.append = append;
            settings.key = if append { vec![] } else { vec!["id".into()] };
            Database::new(server.clone(), settings).await
        })
        .await;
    }
}

fn words(pairs: &[(i64, &str)]) -> RecordBatch {
    let ids = Int64Array::from_iter_values(pairs.iter().map(|(id, _)| *id));
    let origins: StringViewArray = pairs.iter().map(|(_, word)| Some(*word)).collect();
    RecordBatch::try_new(schema(), vec![Arc::new(ids), Arc::new(origins)]).unwrap()
}

#[tokio::test]
async fn the_last_row_of_a_key_wins() {
    let database = Database::new(Arc::new(Postgres::start()), settings(schema(), "t")).await;
    database.land(id(1, 1), &[words(&[(1, "a"), (2, "b"), (1, "c")]), words(&[(2, "d"), (3, "e")])]).await.unwrap();
    assert_eq!(database.texts("id, origin").await, ["1|c", "2|d", "3|e"]);
    database.land(id(1, 2), &[words(&[(3, "f"), (4, "g")])]).await.unwrap();
    assert_eq!(database.texts("id, origin").await, ["1|c", "2|d", "3|f", "4|g"]);
}

#[tokio::test]
async fn a_table_of_keys_alone_takes_rows_again() {
    let mut settings = settings(schema(), "t");
    settings.key = vec!["origin".into(), "id".into()];
    let database = Database::new(Arc::new(Postgres::start()), settings).await;
    database.land(id(1, 1), &[words(&[(1, "a"), (1, "a")])]).await.unwrap();
    database.land(id(1, 2), &[words(&[(1, "a"), (2, "b")])]).await.unwrap();
    assert_eq!(database.texts("id, origin").await, ["1|a", "2|b"]);
}

/// Killed after the Postgres COMMIT and before the epoch is marked done.
#[tokio::test]
async fn an_epoch_that_is_there_is_not_added_again() {
    let mut settings = settings(schema(), "t");
    (settings.key, settings.append) = (vec![], true);
    let database = Database::new(Arc::new(Postgres::start()), settings).await;
    let mut sink = database.open();
    sink.write(id(1, 1), &rows(0..5)).await.unwrap();
    let handle = sink.prepare(id(1, 1)).await.unwrap().handle.unwrap();
    let name = handle["files"][0].as_str().unwrap();
    let spooled = database.spool.get(name).await.unwrap().unwrap();
    sink.committer().commit(id(1, 1), &handle).await.unwrap();
    database.spool.put(name, spooled).await.unwrap();
    database.open().committer().commit(id(1, 1), &handle).await.unwrap();
    assert_eq!(database.visible().await.len(), 5);
    assert_eq!(database.staged().await, 0);
}

#[tokio::test]
async fn a_new_state_store_starts_from_the_first_epoch() {
    let mut database = Database::new(Arc::new(Postgres::start()), settings(schema(), "t")).await;
    database.land(id(1, 1), &[rows(0..2)]).await.unwrap();
    database.settings.state_id = "s2".into();
    database.land(id(1, 1), &[rows(2..4)]).await.unwrap();
    assert_eq!(database.visible().await.len(), 4);
}

#[tokio::test]
async fn an_older_generation_is_fenced() {
    let database = Database::new(Arc::new(Postgres::start()), settings(schema(), "t")).await;
    let mut old = database.open();
    old.write(id(1, 1), &rows(0..2)).await.unwrap();
    let handle = old.prepare(id(1, 1)).await.unwrap().handle.unwrap();
    database.land(id(2, 2), &[rows(2..4)]).await.unwrap();
    let error = old.committer().commit(id(1, 1), &handle).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert_eq!(database.visible().await, [2, 3]);
}

#[tokio::test]
async fn rows_wait_in_the_spool_while_the_server_is_away() {
    let database = Database::new(Arc::new(Postgres::start()), settings(schema(), "t")).await;
    let mut sink = database.open();
    sink.write(id(1, 1), &rows(0..2)).await.unwrap();
    let first = sink.prepare(id(1, 1)).await.unwrap().handle.unwrap();
    sink.committer().commit(id(1, 1), &first).await.unwrap();

    database.server.stop();
    sink.write(id(1, 2), &rows(2..4)).await.unwrap();
    let second = sink.prepare(id(1, 2)).await.unwrap().handle.unwrap();
    let error = sink.committer().commit(id(1, 2), &second).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(database.open().check().await.unwrap_err().kind(), ErrorKind::Unavailable);

    database.server.restart();
    sink.committer().commit(id(1, 2), &second).await.unwrap();
    assert_eq!(database.visible().await.len(), 4);
}

#[tokio::test]
async fn lost_rows_are_an_error() {
    let database = Database::new(Arc::new(Postgres::start()), settings(schema(), "t")).await;
    let mut sink = database.open();
    sink.write(id(1, 1), &rows(0..2)).await.unwrap();
    let handle = sink.prepare(id(1, 1)).await.unwrap().handle.unwrap();
    database.spool.delete("1-1-0.arrow.zst").await.unwrap();
    let error = sink.committer().commit(id(1, 1), &handle).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("1-1-0.arrow.zst"), "{error}");
}

#[tokio::test]
async fn large_epochs_take_several_files() {
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8View, false)]));
    let mut settings = settings(schema.clone(), "t");
    (settings.key, settings.append) = (vec![], true);
    let database = Database::new(Arc::new(Postgres::start()), settings).await;
    let mut sink = database.open();
    for batch in 0..40 {
        let text: StringViewArray = (0..1000).map(|row| Some(format!("{batch} {row} {}", "x".repeat(1000)))).collect();
        sink.write(id(1, 1), &RecordBatch::try_new(schema.clone(), vec![Arc::new(text)]).unwrap()).await.unwrap();
    }
    let prepared = sink.prepare(id(1, 1)).await.unwrap();
    assert_eq!((prepared.files, prepared.rows), (3, 40_000));
    sink.committer().commit(id(1, 1), &prepared.handle.unwrap()).await.unwrap();
    let distinct = database.client().await;
    let count = distinct.query_one(&format!("SELECT count(DISTINCT text) FROM {}", database.table()), &[]).await;
    assert_eq!(count.unwrap().get::<_, i64>(0), 40_000);
}

fn lists<B: arrow::array::ArrayBuilder>(values: B, mut fill: impl FnMut(&mut B)) -> ArrayRef {
    let mut lists = ListBuilder::new(values);
    fill(lists.values());
    lists.append(true);
    lists.append(false);
    Arc::new(lists.finish())
}

fn every_type() -> RecordBatch {
    let times = TimestampMicrosecondArray::from(vec![Some(1_359_608_400_123_456), None]);
    let mut map = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
    map.keys().append_value("k");
    map.values().append_value(1);
    map.append(true).unwrap();
    map.append(false).unwrap();
    let city: ArrayRef = Arc::new(StringViewArray::from(vec![Some("Köln"), None]));
    let structs = StructArray::from(vec![(Arc::new(Field::new("city", DataType::Utf8View, true)), city)]);
    let decimals = Decimal128Array::from(vec![Some(-12_345), None]).with_precision_and_scale(10, 2).unwrap();
    let wide = arrow::compute::cast(&decimals, &DataType::Decimal256(60, 3)).unwrap();
    let utc = TimestampMicrosecondBuilder::new().with_timezone("UTC");
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("uint8", Arc::new(UInt8Array::from(vec![Some(255), None]))),
        ("uint16", Arc::new(UInt16Array::from(vec![Some(u16::MAX), None]))),
        ("uint32", Arc::new(UInt32Array::from(vec![Some(u32::MAX), None]))),
        ("uint64", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None]))),
        ("int8", Arc::new(arrow::array::Int8Array::from(vec![Some(-128), None]))),
        ("int32", Arc::new(Int32Array::from(vec![Some(i32::MIN), None]))),
        ("float64", Arc::new(Float64Array::from(vec![Some(-0.5), None]))),
        ("decimal", Arc::new(decimals)),
        ("wide", wide),
        ("text", Arc::new(StringViewArray::from(vec![Some("a text longer than twelve bytes, é"), None]))),
        ("bytes", Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]))),
        ("date", Arc::new(Date32Array::from(vec![Some(15_736), None]))),
        ("time", Arc::new(Time64MicrosecondArray::from(vec![Some(3_600_000_001), None]))),
        ("naive", Arc::new(times.clone())),
        ("ts", Arc::new(times.with_timezone("UTC"))),
        ("ints", lists(Int64Builder::new(), |v| v.append_slice(&[1, 2]))),
        ("texts", lists(StringBuilder::new(), |v| v.append_value("x"))),
        ("times", lists(utc, |v| v.append_value(1_359_608_400_000_000))),
        ("struct", Arc::new(structs)),
        ("map", Arc::new(map.finish())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

#[tokio::test]
async fn every_type_arrives() {
    let rows = every_type();
    let mut settings = settings(rows.schema(), "t");
    (settings.key, settings.append) = (vec![], true);
    let database = Database::new(Arc::new(Postgres::start()), settings).await;
    database.land(id(1, 1), std::slice::from_ref(&rows)).await.unwrap();

    let client = database.client().await;
    client.batch_execute("SET TimeZone = 'UTC'").await.unwrap();
    let sql = format!("SELECT row_to_json(t)::text FROM {} t WHERE bool", database.table());
    let json: String = client.query_one(&sql, &[]).await.unwrap().get(0);
    let seen: serde_json::Value = serde_json::from_str(&json).unwrap();
    let expected = serde_json::json!({
        "bool": true, "uint8": 255, "uint16": 65535, "uint32": 4_294_967_295_u32, "uint64": u64::MAX,
        "int8": -128, "int32": i32::MIN, "float64": -0.5, "decimal": -123.45, "wide": -123.45,
        "text": "a text longer than twelve bytes, é", "bytes": "\\x00ff", "date": "2013-01-31",
        "time": "01:00:00.000001", "naive": "2013-01-31T05:00:00.123456", "ts": "2013-01-31T05:00:00.123456+00:00",
        "ints": [1, 2], "texts": ["x"], "times": ["2013-01-31T05:00:00+00:00"],
        "struct": {"city": "Köln"}, "map": {"k": 1},
    });
    assert_eq!(seen, expected);
    let nulls = format!("SELECT num_nonnulls(t.*) FROM {} t WHERE bool IS NULL", database.table());
    // A struct is there though its field is NULL.
    assert_eq!(client.query_one(&nulls, &[]).await.unwrap().get::<_, i32>(0), 1);
}

#[tokio::test]
async fn json_text_becomes_jsonb() {
    let json = Field::new("doc", DataType::Utf8View, true).with_metadata([("nexus.type".into(), "json".into())].into());
    let schema = Arc::new(Schema::new(vec![json]));
    let mut settings = settings(schema.clone(), "t");
    (settings.key, settings.append) = (vec![], true);
    let database = Database::new(Arc::new(Postgres::start()), settings).await;
    let docs =
        |doc: &str| RecordBatch::try_new(schema.clone(), vec![Arc::new(StringViewArray::from(vec![doc]))]).unwrap();
    database.land(id(1, 1), &[docs(r#"{"a": [1, "\\u0000"]}"#)]).await.unwrap();
    assert_eq!(database.texts("doc->'a'->>0, jsonb_typeof(doc)").await, ["1|object"]);

    let bad = [r#"{"a":"#, r#"{"a": "\u0000"}"#].map(docs);
    database.land(id(1, 2), &bad).await.unwrap();
    assert_eq!(database.texts("doc->'a'->>0").await.len(), 1);
    let refused = database.refused().await;
    assert_eq!(refused.len(), 2);
    assert!(refused.iter().all(|row| row.reason.contains("`doc` has") && !row.redrivable), "{refused:?}");
    assert_eq!(refused[0].raw, r#"{"doc":"{\"a\":"}"#);
}

#[tokio::test]
async fn what_postgres_cannot_hold_is_refused_with_its_epoch() {
    let database = Database::new(Arc::new(Postgres::start()), settings(schema(), "t")).await;
    let batches = [words(&[(1, "a"), (2, "b\0c"), (3, "d")]), words(&[(4, "\0")])];
    database.land(id(1, 1), &batches).await.unwrap();
    assert_eq!(database.texts("id, origin").await, ["1|a", "3|d"]);
    let refused = database.refused().await;
    assert_eq!(refused.len(), 2);
    assert!(refused[0].reason.contains("`origin` has text with a NUL byte"), "{refused:?}");
    assert_eq!(refused[0].raw, r#"{"id":2,"origin":"b\u0000c"}"#);
    assert_eq!(database.staged().await, 0);

    let mut keyed = settings(schema(), "v");
    keyed.key = vec!["origin".into()];
    let keyed = Database::new(database.server.clone(), keyed).await;
    keyed.land(id(1, 1), &[rows(0..4)]).await.unwrap();
    let refused = keyed.refused().await;
    assert_eq!(refused.len(), 1);
    assert!(refused[0].reason.contains("`origin` of the key is NULL"), "{refused:?}");

    let late: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![i64::MIN]));
    let late = RecordBatch::try_from_iter([("id", late)]).unwrap();
    let other = Database::new(database.server.clone(), settings(late.schema(), "u")).await;
    other.land(id(1, 1), &[late]).await.unwrap();
    assert_eq!(other.refused().await.len(), 1);
}

#[tokio::test]
async fn a_table_that_does_not_fit_is_refused_with_the_difference() {
    let mut database = Database::new(Arc::new(Postgres::start()), settings(schema(), "t")).await;
    database.settings.create = false;
    let refused = |database: &Database| {
        let sink = database.open();
        async move {
            let error = sink.check().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{error}");
            error.to_string()
        }
    };
    let text = refused(&database).await;
    assert!(text.contains("nexus.commits") && text.contains("CREATE TABLE"), "{text}");

    let client = database.client().await;
    database.settings.create = true;
    client.batch_execute("CREATE SCHEMA \"Lake House\"").await.unwrap();
    client.batch_execute("CREATE TABLE \"Lake House\".t (id bigint PRIMARY KEY, more int NOT NULL)").await.unwrap();
    let text = refused(&database).await;
    assert!(text.contains("- origin text is missing") && text.contains("+ more integer is NOT NULL"), "{text}");

    client
        .batch_execute("ALTER TABLE \"Lake House\".t DROP more, DROP id, ADD id bigint, ADD origin int")
        .await
        .unwrap();
    let text = refused(&database).await;
    assert!(text.contains("42804"), "text does not go into a number: {text}");

    client.batch_execute("ALTER TABLE \"Lake House\".t DROP origin, ADD origin varchar(3)").await.unwrap();
    let text = refused(&database).await;
    assert!(text.contains("42P10") && text.contains("primary key"), "{text}");

    client.batch_execute("ALTER TABLE \"Lake House\".t ADD PRIMARY KEY (id)").await.unwrap();
    database.open().check().await.unwrap();
    database.land(id(1, 1), &[words(&[(1, "abc")])]).await.unwrap();
    database.land(id(1, 2), &[words(&[(1, "abcd")])]).await.unwrap();
    let refused = database.refused().await;
    assert_eq!(refused.len(), 1);
    assert!(refused[0].reason.contains("(SQLSTATE 22001), column origin"), "{refused:?}");
}

#[tokio::test]
async fn many_sinks_make_their_tables_at_once() {
    let server = Arc::new(Postgres::start());
    let mut checks = Vec::new();
    for number in 0..6 {
        let table = format!("t{}", number / 2);
        let database = Database::new(server.clone(), settings(schema(), &table)).await;
        checks.push(async move { database.open().check().await });
    }
    futures::future::try_join_all(checks).await.unwrap();
}

#[tokio::test]
async fn a_changed_password_is_fetched_again() {
    let server = Arc::new(Postgres::start());
    let database = Database::new(server.clone(), settings(schema(), "t")).await;
    let client = database.client().await;
    client.batch_execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'one'").await.unwrap();
    let rules = "local all all trust\nhost all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    std::fs::write(format!("{}/pg_hba.conf", server.data()), rules).unwrap();
    server.configure(&[]);

    let url = |password: &str| format!("postgres://app:{password}@127.0.0.1:{{port}}/postgres");
    let secret = server.secret("app", &url("one"));
    let mut sink = PostgresSink::new(database.settings.clone(), None, secret, database.spool.clone()).unwrap();
    sink.write(id(1, 1), &rows(0..2)).await.unwrap();
    let first = sink.prepare(id(1, 1)).await.unwrap().handle.unwrap();
    sink.committer().commit(id(1, 1), &first).await.unwrap();

    client.batch_execute("ALTER ROLE app PASSWORD 'two'").await.unwrap();
    client.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'", &[]).await.unwrap();
    sink.write(id(1, 2), &rows(2..4)).await.unwrap();
    let second = sink.prepare(id(1, 2)).await.unwrap().handle.unwrap();
    // The pool may hand out a connection that the server has cut.
    let mut error = sink.committer().commit(id(1, 2), &second).await.unwrap_err();
    while !error.to_string().contains("28P01") {
        error = sink.committer().commit(id(1, 2), &second).await.unwrap_err();
    }
    // A rotation changes the password first: who has been let in before waits for the secret to follow.
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(!error.to_string().contains("one"), "{error}");
    let secret = server.secret("app", &url("one"));
    let stranger = PostgresSink::new(database.settings.clone(), None, secret, database.spool.clone()).unwrap();
    let error = stranger.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");

    server.secret("app", &url("two"));
    sink.committer().commit(id(1, 2), &second).await.unwrap();
    assert_eq!(database.visible().await.len(), 4);
}

#[tokio::test]
async fn a_secret_that_is_no_url_is_not_shown() {
    let server = Arc::new(Postgres::start());
    let database = Database::new(server.clone(), settings(schema(), "t")).await;
    let secret = server.secret("broken", "postgres://user:pass word@host:notaport/db");
    let sink = PostgresSink::new(database.settings.clone(), None, secret, database.spool.clone()).unwrap();
    let error = sink.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(!format!("{error} {error:?}").contains("notaport"), "{error:?}");
}

/// Gives a file to whom a folder belongs.
pub(super) fn own_as(folder: &str, file: &str) {
    if std::fs::metadata(folder).unwrap().uid() != std::fs::metadata(file).unwrap().uid() {
        let owned = std::process::Command::new("chown").args(["postgres:postgres", file]).status();
        assert!(owned.unwrap().success());
    }
}

pub(super) fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Makes a certificate for 127.0.0.1 that signs itself.
fn self_signed(folder: &str) -> String {
    let (key, certificate) = (format!("{folder}/server.key"), format!("{folder}/server.crt"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=nexus", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &key, "-out", &certificate])
        .output();
    assert!(made.unwrap().status.success());
    own_as(folder, &key);
    own_as(folder, &certificate);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    certificate
}

#[tokio::test]
async fn certificates_are_verified_unless_the_url_says_otherwise() {
    let server = Arc::new(Postgres::start());
    let database = Database::new(server.clone(), settings(schema(), "t")).await;
    let check = async |parameters: &str| {
        let url = format!("{}?application_name=x&{parameters}", server.url());
        let secret = server.secret("tls", &url);
        PostgresSink::new(database.settings.clone(), None, secret, database.spool.clone()).unwrap().check().await
    };
    assert!(check("sslmode=require").await.is_err(), "the server has no TLS yet");

    let certificate = self_signed(&server.data());
    std::fs::write(format!("{}/pg_hba.conf", server.data()), "hostssl all all 127.0.0.1/32 trust\n").unwrap();
    server.configure(&["ssl=on"]);
    let error = check("sslmode=require").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("sslrootcert"), "{error}");
    check("sslmode=no-verify").await.unwrap();
    check(&format!("sslmode=verify-full&sslrootcert={certificate}")).await.unwrap();
    let error = check("sslmode=disable").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert_eq!(check("sslmode=sometimes").await.unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn a_key_is_needed_and_known() {
    let spool = Store::memory();
    let refused = |change: fn(&mut PostgresSettings)| {
        let mut settings = settings(schema(), "t");
        change(&mut settings);
        let made = PostgresSink::new(settings, None, SecretRef::Env("X".into()), spool.clone());
        let error = made.err().expect("it is refused");
        assert_eq!(error.kind(), ErrorKind::Config);
        error.to_string()
    };
    assert!(refused(|s| s.key.clear()).contains("append: true"));
    assert!(refused(|s| s.append = true).contains("`key`"));
    assert!(refused(|s| s.key = vec!["nope".into()]).contains("`nope`"));
    let interval = DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano);
    let text = {
        let mut settings = settings(Arc::new(Schema::new(vec![Field::new("id", interval, true)])), "t");
        settings.key = vec!["id".into()];
        PostgresSink::new(settings, None, SecretRef::Env("X".into()), spool.clone())
            .err()
            .expect("it is refused")
            .to_string()
    };
    assert!(text.contains("`id`") && text.contains("Interval"), "{text}");
}
