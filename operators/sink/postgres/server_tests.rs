//! Tests of what stands between the sink and the rows of a table: types of columns that are there already, certificates,
//! a pooler, and a process that stands still.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
    Int64Builder, ListBuilder, RecordBatch, StringBuilder, StringViewArray, StructArray, Time64MicrosecondArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field};

use super::tests::{Database, id, settings};
use super::*;
use crate::ErrorKind;
use crate::testing::postgres::Postgres;
use crate::testing::sink::{rows, schema};

fn text(text: &str) -> ArrayRef {
    Arc::new(StringViewArray::from(vec![Some(text), None]))
}

fn texts(values: &[&str]) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    values.iter().for_each(|value| lists.values().append_value(value));
    lists.append(true);
    lists.append(false);
    Arc::new(lists.finish())
}

fn integer(value: i64) -> ArrayRef {
    Arc::new(Int64Array::from(vec![Some(value), None]))
}

fn integers(values: &[i64]) -> ArrayRef {
    let mut lists = ListBuilder::new(Int64Builder::new());
    lists.values().append_slice(values);
    lists.append(true);
    lists.append(false);
    Arc::new(lists.finish())
}

fn float(value: f64) -> ArrayRef {
    Arc::new(Float64Array::from(vec![Some(value), None]))
}

fn decimal(value: i128) -> ArrayRef {
    Arc::new(Decimal128Array::from(vec![Some(value), None]).with_precision_and_scale(12, 3).unwrap())
}

/// 2013-01-31 05:00:00.123456 in UTC.
fn time() -> TimestampMicrosecondArray {
    TimestampMicrosecondArray::from(vec![Some(1_359_608_400_123_456), None])
}

fn utc() -> ArrayRef {
    Arc::new(time().with_timezone("UTC"))
}

const TYPES_SQL: &str = "CREATE TYPE mood AS ENUM ('glad', 'sad'); \
    CREATE DOMAIN code AS varchar(4) CHECK (VALUE ~ '^[a-z]+$'); \
    CREATE DOMAIN known AS uuid; CREATE DOMAIN nested AS code CHECK (VALUE <> 'none')";

const UUID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";

/// Values of rows, the types of columns they go to, and what is there then.
fn pairs() -> Vec<(ArrayRef, &'static str, &'static str)> {
    let city: ArrayRef = Arc::new(StringViewArray::from(vec![Some("Köln"), None]));
    let fields = vec![Field::new("city", DataType::Utf8View, true)];
    let place: ArrayRef = Arc::new(StructArray::new(fields.into(), vec![city], Some(vec![true, false].into())));
    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]));
    let flag: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), None]));
    let day: ArrayRef = Arc::new(Date32Array::from(vec![Some(15_736), None]));
    let clock: ArrayRef = Arc::new(Time64MicrosecondArray::from(vec![Some(3_600_700_001), None]));
    vec![
        (text(UUID), "uuid", UUID),
        (text(UUID), "known", UUID),
        (text(UUID), "text", UUID),
        (text("ten chars."), "varchar(10)", "ten chars."),
        (text("abcd"), "char(6)", "abcd"),
        (text("abcd"), "code", "abcd"),
        (text("abcd"), "nested", "abcd"),
        (text("glad"), "mood", "glad"),
        (text("10.1.2.3"), "inet", "10.1.2.3/32"),
        (text("10.1.0.0/16"), "cidr", "10.1.0.0/16"),
        (text("08:00:2b:01:02:03"), "macaddr", "08:00:2b:01:02:03"),
        (text(r#"{"b":1, "a":2}"#), "jsonb", r#"{"a": 2, "b": 1}"#),
        (text(r#"{"b":1, "a":2}"#), "json", r#"{"b":1, "a":2}"#),
        (text("1 day 02:00"), "interval", "1 day 02:00:00"),
        (text("(1,2)"), "point", "(1,2)"),
        (text("[1,5)"), "int4range", "[1,5)"),
        (text("101"), "bit(3)", "101"),
        (text("a fat cat"), "tsvector", "'a' 'cat' 'fat'"),
        (integer(-7), "smallint", "-7"),
        (integer(-7), "integer", "-7"),
        (integer(-7), "bigint", "-7"),
        (integer(-7), "numeric(4,1)", "-7.0"),
        (integer(-7), "real", "-7"),
        (integer(-7), "double precision", "-7"),
        (integer(-7), "text", "-7"),
        (Arc::new(Int32Array::from(vec![Some(5), None])), "bigint", "5"),
        (float(0.5), "real", "0.5"),
        (float(0.5), "numeric", "0.5"),
        (float(0.25), "numeric(6,1)", "0.3"),
        (decimal(-12_345), "numeric", "-12.345"),
        (decimal(-12_345), "numeric(6,1)", "-12.3"),
        (decimal(-12_345), "double precision", "-12.345"),
        (flag.clone(), "boolean", "true"),
        (flag, "text", "true"),
        (bytes, "bytea", "\\x00ff"),
        (day.clone(), "date", "2013-01-31"),
        (day, "timestamp", "2013-01-31 00:00:00"),
        (clock.clone(), "time", "01:00:00.700001"),
        (clock, "time(0)", "01:00:01"),
        (utc(), "timestamptz", "2013-01-31 05:00:00.123456+00"),
        (utc(), "timestamptz(0)", "2013-01-31 05:00:00+00"),
        (utc(), "timestamp", "2013-01-31 05:00:00.123456"),
        (utc(), "date", "2013-01-31"),
        (Arc::new(time()), "timestamp", "2013-01-31 05:00:00.123456"),
        (Arc::new(time()), "timestamptz", "2013-01-31 05:00:00.123456+00"),
        (texts(&["x", "y"]), "text[]", "{x,y}"),
        (texts(&["x", "y"]), "varchar(3)[]", "{x,y}"),
        (texts(&[UUID]), "uuid[]", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"),
        (texts(&["10.0.0.1"]), "inet[]", "{10.0.0.1}"),
        (texts(&["sad", "glad"]), "mood[]", "{sad,glad}"),
        (integers(&[1, 2]), "bigint[]", "{1,2}"),
        (integers(&[1, 2]), "smallint[]", "{1,2}"),
        (integers(&[1, 2]), "numeric(3,1)[]", "{1.0,2.0}"),
        (place.clone(), "jsonb", r#"{"city": "Köln"}"#),
        (place, "json", r#"{"city": "Köln"}"#),
    ]
}

/// A table that was made beforehand, for rows of some values and with their numbers.
async fn existing(
    server: &Arc<Postgres>,
    name: &str,
    pairs: &[(ArrayRef, &str)],
    keyed: bool,
) -> (Database, RecordBatch) {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![0, 1]));
    let columns = pairs.iter().enumerate().map(|(at, (values, _))| (format!("c{at}"), values.clone(), true));
    let rows = RecordBatch::try_from_iter_with_nullable([("n".to_owned(), numbers, false)].into_iter().chain(columns));
    let rows = rows.unwrap();
    let mut settings = settings(rows.schema(), name);
    settings.schema = "public".into();
    settings.key = if keyed { vec!["n".into()] } else { vec![] };
    settings.append = !keyed;
    let database = Database::new(server.clone(), settings).await;
    let columns: Vec<_> = pairs.iter().enumerate().map(|(at, (_, of))| format!("c{at} {of}")).collect();
    let sql = format!("CREATE TABLE {name} (n bigint PRIMARY KEY, {})", columns.join(", "));
    database.client().await.batch_execute(&sql).await.unwrap();
    (database, rows)
}

async fn make_types(server: &Arc<Postgres>) {
    let database = Database::new(server.clone(), settings(schema(), "t")).await;
    database.client().await.batch_execute(TYPES_SQL).await.unwrap();
}

#[tokio::test]
async fn values_become_those_of_the_columns_that_are_there() {
    let server = Arc::new(Postgres::start());
    make_types(&server).await;
    let (wanted, pairs): (Vec<_>, Vec<_>) = pairs().into_iter().map(|(values, of, is)| (is, (values, of))).unzip();
    for keyed in [false, true] {
        let name = if keyed { "keyed" } else { "appended" };
        let (database, rows) = existing(&server, name, &pairs, keyed).await;
        database.land(id(1, 1), &[rows]).await.unwrap();
        assert_eq!(database.refused().await, []);
        let client = database.client().await;
        client.batch_execute("SET TimeZone = 'UTC'").await.unwrap();
        for (at, (_, of)) in pairs.iter().enumerate() {
            let sql = format!("SELECT trim(c{at}::text) FROM {name} ORDER BY n");
            let found = client.query(&sql, &[]).await.unwrap();
            let found: Vec<Option<String>> = found.iter().map(|row| row.get(0)).collect();
            assert_eq!(found, [Some(wanted[at].to_owned()), None], "{of}");
        }
    }
}

#[tokio::test]
async fn a_value_that_its_column_does_not_take_is_refused_and_the_column_named() {
    let server = Arc::new(Postgres::start());
    make_types(&server).await;
    let cases: Vec<(ArrayRef, &str, &str)> = vec![
        (text("no-uuid"), "uuid", "22P02"),
        (text("no-uuid"), "known", "22P02"),
        (text("abcde"), "varchar(4)", "22001"),
        (text("abcde"), "code", "22001"),
        (text("AB"), "code", "23514"),
        (text("none"), "nested", "23514"),
        (text("angry"), "mood", "22P02"),
        (text("10.1.2.300"), "inet", "22P02"),
        (text("{"), "jsonb", "22P02"),
        (integer(40_000), "smallint", "22003"),
        (integer(1 << 40), "integer", "22003"),
        (decimal(12_345_678), "numeric(4,1)", "22003"),
        (float(1e300), "real", "22003"),
        (texts(&["fine", "too long"]), "varchar(4)[]", "22001"),
        (texts(&["no-uuid"]), "uuid[]", "22P02"),
        (integers(&[1, 70_000]), "smallint[]", "22003"),
    ];
    for (number, (values, of, state)) in cases.into_iter().enumerate() {
        let pairs = [(text("fine"), "text"), (values, of)];
        let (database, rows) = existing(&server, &format!("t{number}"), &pairs, number % 3 == 2).await;
        database.land(id(1, 1), &[rows]).await.unwrap();
        assert_eq!(database.texts("n").await, ["1"], "{of}");
        let refused = database.refused().await;
        assert_eq!(refused.len(), 1, "{of}");
        let reason = &refused[0].reason;
        assert!(reason.contains(&format!("(SQLSTATE {state})")) && reason.contains(", column c1"), "{of}: {reason}");
    }
}

#[tokio::test]
async fn rows_that_delete_take_the_row_of_their_key_away() {
    struct Gone;
    impl DeleteWhen for Gone {
        fn deletes(&self, rows: &RecordBatch) -> Result<BooleanArray> {
            let texts = arrow::compute::cast(rows.column(1), &DataType::Utf8)?;
            Ok(arrow::array::AsArray::as_string::<i32>(&texts).iter().map(|text| Some(text == Some("gone"))).collect())
        }
    }
    let database = Database::new(Arc::new(Postgres::start()), settings(schema(), "t")).await;
    let words = |pairs: &[(i64, &str)]| {
        let ids = Int64Array::from_iter_values(pairs.iter().map(|pair| pair.0));
        let texts: StringViewArray = pairs.iter().map(|pair| Some(pair.1)).collect();
        RecordBatch::try_new(schema(), vec![Arc::new(ids), Arc::new(texts)]).unwrap()
    };
    let land = async |epoch: u64, rows: RecordBatch| {
        let secret = database.server().secret("url", &database.server().url());
        let when: Box<dyn DeleteWhen> = Box::new(Gone);
        let mut sink = PostgresSink::new(database.settings.clone(), Some(when), secret, database.spool()).unwrap();
        sink.write(id(1, epoch), &rows).await.unwrap();
        let handle = sink.prepare(id(1, epoch)).await.unwrap().handle.unwrap();
        sink.committer().commit(id(1, epoch), &handle).await.unwrap();
    };
    land(1, words(&[(1, "a"), (2, "b"), (3, "c"), (3, "gone"), (4, "gone")])).await;
    assert_eq!(database.texts("id, origin").await, ["1|a", "2|b"]);
    land(2, words(&[(1, "gone"), (2, "gone"), (2, "d"), (5, "gone"), (5, "e"), (5, "gone")])).await;
    assert_eq!(database.texts("id, origin").await, ["2|d"]);
    // One that is refused falls back to the one before it, which deletes.
    let client = database.client().await;
    client.batch_execute(&format!("ALTER TABLE {} ADD CHECK (origin <> 'bad')", database.table())).await.unwrap();
    land(3, words(&[(2, "gone"), (2, "bad"), (6, "f"), (6, "bad"), (7, "bad")])).await;
    assert_eq!(database.texts("id, origin").await, ["6|f"]);
    assert_eq!(database.refused().await.len(), 3);
}

/// Signs a certificate by an authority, both made anew in a folder; gives where the authority's is.
fn certify(folder: &Path, name: &str, subject: &str, alternative: &str) {
    let run = |arguments: &[&str]| {
        let done = Command::new("openssl").current_dir(folder).args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    if !folder.join("ca.crt").exists() {
        let own = ["-subj", "/CN=a private authority", "-keyout", "ca.key", "-out", "ca.crt", "-days", "2"];
        run(&[&["req", "-x509"], &ec[..], &own[..]].concat());
    }
    let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
    run(&[&["req"], &ec[..], &["-subj", subject, "-keyout", &key, "-out", &request][..]].concat());
    std::fs::write(folder.join("extensions"), format!("subjectAltName={alternative}\n")).unwrap();
    let by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions"];
    run(&[&["x509", "-req", "-in", &request, "-out", &certificate], &by[..]].concat());
}

#[tokio::test]
async fn a_private_authority_is_trusted_and_clients_show_certificates() {
    let server = Arc::new(Postgres::start());
    let database = Database::new(server.clone(), settings(schema(), "t")).await;
    database.client().await.batch_execute("CREATE ROLE loader LOGIN SUPERUSER").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    certify(folder.path(), "server", "/CN=db", "IP:127.0.0.1");
    certify(folder.path(), "elsewhere", "/CN=db", "DNS:db.example.com");
    certify(folder.path(), "loader", "/CN=loader", "DNS:loader");
    certify(folder.path(), "other", "/CN=other", "DNS:other");
    let data = server.data();
    let serve = |name: &str| {
        for (from, to) in
            [(format!("{name}.crt"), "server.crt"), (format!("{name}.key"), "server.key"), ("ca.crt".into(), "ca.crt")]
        {
            let to = format!("{data}/{to}");
            std::fs::copy(folder.path().join(from), &to).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
            super::tests::own_as(&data, &to);
        }
        std::fs::write(format!("{data}/pg_hba.conf"), "hostssl all all 127.0.0.1/32 cert\n").unwrap();
        server.configure(&["ssl=on", "ssl_ca_file='ca.crt'"]);
    };
    let check = async |parameters: &[(&str, &str)]| {
        let mut url = "postgres://loader@127.0.0.1:{port}/postgres?sslmode=verify-full".to_owned();
        for (name, file) in parameters {
            url.push_str(&format!("&{name}={}", folder.path().join(file).display()));
        }
        let secret = server.secret("tls", &url);
        PostgresSink::new(database.settings.clone(), None, secret, database.spool()).unwrap().check().await
    };
    let (root, certificate, key) = (("sslrootcert", "ca.crt"), ("sslcert", "loader.crt"), ("sslkey", "loader.key"));
    serve("server");
    check(&[root, certificate, key]).await.unwrap();
    let refused = async |parameters: &[(&str, &str)], words: &str| {
        let error = check(parameters).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(&[certificate, key], "sslrootcert").await;
    refused(&[root], "28000").await;
    refused(&[root, certificate], "`sslcert` and `sslkey`").await;
    refused(&[root, ("sslcert", "other.crt"), ("sslkey", "other.key")], "SQLSTATE 28000").await;
    refused(&[root, certificate, ("sslkey", "other.key")], "does not go with the key").await;
    refused(&[root, certificate, ("sslkey", "none.key")], "could not read").await;
    serve("elsewhere");
    refused(&[root, certificate, key], "not trusted").await;
}

/// A pgbouncer that gives a server's connection to a client for one transaction.
struct Bouncer(Child);

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_pooler_gives_each_transaction_another_connection() {
    let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).exists());
    let Some(program) = program else {
        println!("left out: pgbouncer is not installed (on Debian: `apt install pgbouncer`)");
        return;
    };
    let server = Arc::new(Postgres::start());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = Path::new(&server.data()).parent().unwrap().to_owned();
    let file = folder.join("pgbouncer.ini");
    let to = server.url().replace("postgres://postgres@127.0.0.1:", "").replace("/postgres", "");
    let lines = format!(
        "[databases]\npostgres = host=127.0.0.1 port={to} dbname=postgres user=postgres\n[pgbouncer]\n\
         listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
         default_pool_size = 3\nserver_round_robin = 1\n"
    );
    std::fs::write(&file, lines).unwrap();
    let mut command = match super::tests::is_root() {
        true => {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--", program]);
            command
        }
        false => Command::new(program),
    };
    let started = command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _bouncer = Bouncer(started);
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let landing = (0..4).map(|number| {
        let (server, url) = (server.clone(), url.clone());
        async move {
            let mut settings = settings(schema(), &format!("t{number}"));
            if number % 2 == 1 {
                (settings.key, settings.append) = (vec![], true);
            }
            let database = Database::new(server.clone(), settings).await;
            let secret = server.secret(&format!("bouncer{number}"), &url);
            let mut sink = PostgresSink::new(database.settings.clone(), None, secret, database.spool()).unwrap();
            sink.check().await.unwrap();
            let refuse = format!("ALTER TABLE {} ADD CHECK (id % 10 <> 7)", database.table());
            database.client().await.batch_execute(&refuse).await.unwrap();
            for epoch in 1..4 {
                sink.write(id(1, epoch), &rows(epoch as i64 * 20..epoch as i64 * 20 + 20)).await.unwrap();
                let handle = sink.prepare(id(1, epoch)).await.unwrap().handle.unwrap();
                sink.committer().commit(id(1, epoch), &handle).await.unwrap();
                let refused = sink.refused();
                let (of, found) = refused.next(crate::sink::RefusedUpto { epoch, rows: 0 }).await.unwrap().unwrap();
                assert_eq!((of, found.len()), (epoch, 2));
                refused.forget(crate::sink::RefusedUpto { epoch, rows: 2 }).await.unwrap();
            }
            assert_eq!(database.texts("id").await.len(), 54);
        }
    });
    futures::future::join_all(landing).await;
}

#[tokio::test]
async fn a_newer_process_ends_the_session_of_one_that_stands_still() {
    let server = Arc::new(Postgres::start());
    let mut database = Database::new(server.clone(), settings(schema(), "t")).await;
    database.open().check().await.unwrap();
    // As the older process would: it holds its place in nexus.commits, and sends no more.
    let frozen = async |generation: u64, sink: &str| {
        let client = database.client().await;
        let hold = super::holder::Holder::new(["p", sink, "s1"], generation).hold_sql();
        let note = format!("INSERT INTO nexus.commits VALUES ('p', '{sink}', 's1', {generation}, 2, 0)");
        client.batch_execute(&format!("BEGIN; {hold}; {note}")).await.unwrap();
        client
    };
    let older = frozen(1, "gold.t").await;
    let of_another = frozen(1, "gold.u").await;
    let newer = frozen(9, "gold.v").await;
    database.settings.generation = 2;
    database.land(id(2, 2), &[rows(0..3)]).await.unwrap();
    assert_eq!(database.texts("id").await.len(), 3);
    assert!(older.batch_execute("COMMIT").await.is_err(), "the older session goes on");
    of_another.batch_execute("COMMIT").await.unwrap();
    // A process that is the older one itself ends nobody.
    let mut settings = database.settings.clone();
    (settings.sink_name, settings.table) = ("gold.v".into(), "v".into());
    let late = Database::new(server.clone(), settings).await;
    late.land(id(2, 1), &[rows(0..3)]).await.unwrap();
    newer.batch_execute("COMMIT").await.unwrap();
}

#[tokio::test]
async fn a_connection_that_nobody_polls_holds_up_no_other() {
    let server = Arc::new(Postgres::start());
    let secret = server.secret("slow", &server.url());
    let SecretRef::File(path) = &secret else { panic!("it is a file") };
    // A secret that comes only when its other end is opened.
    let (pipe, good) = (path.with_extension("pipe"), path.with_extension("good"));
    std::fs::rename(path, &good).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::os::unix::fs::symlink(&pipe, path).unwrap();
    let database = super::connect::Database::new(secret.clone());
    let mut left_alone = Box::pin(database.client());
    assert!(futures::poll!(&mut left_alone).is_pending());
    const O_NONBLOCK: i32 = 0o4000;
    let writer = std::fs::OpenOptions::new().write(true).custom_flags(O_NONBLOCK).clone();
    let end = loop {
        // It opens once somebody reads.
        match writer.open(&pipe) {
            Ok(end) => break end,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    std::fs::remove_file(path).unwrap();
    std::fs::rename(&good, path).unwrap();
    let other = tokio::time::timeout(Duration::from_secs(30), database.client()).await;
    other.expect("it is answered").unwrap().simple_query("SELECT 1").await.unwrap();
    drop(end);
}
