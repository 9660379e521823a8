//! Tests of rows that the server refuses: all others land, and each refused one is kept with the server's words.

use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use proptest::prelude::*;

use super::tests::{Database, id, settings};
use super::*;
use crate::batch::{OFFSET_COLUMN, PARTITION_COLUMN, SOURCE_COLUMN};
use crate::sink::RefusedUpto;
use crate::testing::postgres::Postgres;

/// A reading, and where it came from: the number of a row is its offset.
type Reading = (i64, Option<&'static str>, f64);

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("site", DataType::Utf8View, true),
        Field::new("v", DataType::Float64, true),
        Field::new(SOURCE_COLUMN, DataType::Utf8View, false),
        Field::new(PARTITION_COLUMN, DataType::Utf8View, false),
        Field::new(OFFSET_COLUMN, DataType::Int64, false),
    ]))
}

fn readings(rows: &[Reading]) -> RecordBatch {
    let count = rows.len();
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(rows.iter().map(|row| row.1).collect::<StringViewArray>()),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2))),
        Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n("meters", count))),
        Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n("a.json", count))),
        Arc::new(Int64Array::from_iter_values(0..count as i64)),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

const COLUMNS: &str = "_source text, _partition text, _offset bigint";

/// A table that was made beforehand. `key` is the key of the sink.
async fn table(server: &Arc<Postgres>, name: &str, columns: &str, key: &[&str]) -> Database {
    let mut settings = settings(schema(), name);
    settings.schema = "public".into();
    settings.key = key.iter().map(|name| (*name).to_owned()).collect();
    settings.append = key.is_empty();
    let database = Database::new(server.clone(), settings).await;
    let sql = format!("CREATE TABLE {name} ({columns}, {COLUMNS})");
    database.client().await.batch_execute(&sql).await.unwrap();
    database
}

/// Gives of each refused row its offset and the reason.
fn told(rows: &[Quarantined]) -> Vec<(i64, &str)> {
    rows.iter().map(|row| (row.offset.as_ref().unwrap().parse().unwrap(), row.reason.as_str())).collect()
}

#[tokio::test]
async fn each_kind_of_refusal_tells_its_state_column_and_constraint() {
    let server = Arc::new(Postgres::start());
    let rows = readings(&[(1, Some("reno"), 1.0), (2, Some("yuma"), 2.0), (3, None, -3.0), (1, Some("bend"), 4.0)]);
    let make = "CREATE TABLE sites (site text PRIMARY KEY); INSERT INTO sites VALUES ('reno'), ('bend'); \
                CREATE DOMAIN positive AS float8 CHECK (VALUE > 0); CREATE TYPE place AS ENUM ('reno', 'yuma')";
    let sites = table(&server, "made", "id bigint, site text, v float8", &[]).await;
    sites.client().await.batch_execute(make).await.unwrap();
    // The columns of a table, the row that it refuses of those above, and what is said of it.
    let cases: [(&str, i64, &[&str]); 10] = [
        ("id bigint, site text NOT NULL, v float8", 2, &["23502", "column site", "violates not-null"]),
        (
            "id bigint, site text, v float8 CONSTRAINT above CHECK (v > -1)",
            2,
            &["23514", "column v", "constraint above"],
        ),
        ("id bigint PRIMARY KEY, site text, v float8", 3, &["23505", "column id", "(id)=(1) already exists"]),
        ("id bigint, site text REFERENCES sites, v float8", 1, &["23503", "column site", "not present"]),
        ("id bigint, site text REFERENCES sites DEFERRABLE INITIALLY DEFERRED, v float8", 1, &["23503", "column site"]),
        ("id bigint, site text, v positive", 2, &["23514", "column v", "domain positive"]),
        ("id bigint, site place, v float8", 3, &["22P02", "column site", "bend"]),
        ("id bigint, site text, v numeric(2,1) CHECK (v < 3.5)", 3, &["23514", "column v"]),
        ("id bigint, site text, v float8 CHECK (1 / (v + 3) < 2)", 2, &["22012", "division by zero"]),
        ("id bigint, site text, v float8, EXCLUDE (id WITH =)", 3, &["23P01", "column id"]),
    ];
    for (number, (columns, refused, words)) in cases.into_iter().enumerate() {
        for key in [&[][..], &["_offset"]].into_iter().take(1 + (number + 1) % 2) {
            let name = format!("t{number}_{}", key.len());
            let unique = if key.is_empty() { String::new() } else { ", UNIQUE (_offset)".into() };
            let table = table(&server, &name, columns, key).await;
            let alter = format!("ALTER TABLE {name} ADD CHECK (true){}", unique.replacen(", ", ", ADD ", 1));
            table.client().await.batch_execute(&alter).await.unwrap();
            table.land(id(1, 1), std::slice::from_ref(&rows)).await.unwrap();
            let found = table.refused().await;
            let [row] = found.as_slice() else { panic!("{columns}: {found:?}") };
            assert_eq!(row.offset, Some(refused.to_string()), "{columns}: {found:?}");
            let missing = words.iter().find(|word| !row.reason.contains(**word));
            assert_eq!(missing, None, "{columns}: {}", row.reason);
            assert_eq!((row.source.as_deref(), row.partition.as_deref()), (Some("meters"), Some("a.json")));
            assert!(row.redrivable && row.rule == "refused by postgres", "{row:?}");
            let landed = table.texts("_offset").await;
            let expected: Vec<_> = (0..4).filter(|row| *row != refused).map(|row| row.to_string()).collect();
            assert_eq!(landed, expected, "{columns}");
        }
    }
}

#[tokio::test]
async fn what_a_trigger_a_view_and_an_index_refuse_is_told_row_by_row() {
    let server = Arc::new(Postgres::start());
    let columns = "id bigint, site text, v float8, UNIQUE (id)";
    let trigger = |body: &str| {
        format!(
            "CREATE FUNCTION check_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$; \
             CREATE TRIGGER checked BEFORE INSERT ON it FOR EACH ROW EXECUTE FUNCTION check_it()"
        )
    };
    let raises = trigger("IF NEW.site = 'yuma' THEN RAISE EXCEPTION 'no reading from %', NEW.site; END IF");
    let asserts = trigger("ASSERT NEW.site <> 'yuma', 'no reading from there'");
    let wide = "CREATE FUNCTION wide(text) RETURNS text IMMUTABLE LANGUAGE sql AS \
                $$ SELECT string_agg(md5($1 || n), '') FROM generate_series(1, 200) n WHERE $1 = 'yuma' $$; \
                CREATE INDEX ON it (wide(site))";
    let view = "ALTER TABLE it RENAME TO beneath; \
                CREATE VIEW it AS SELECT * FROM beneath WHERE site <> 'yuma' WITH CHECK OPTION";
    let cases: [(&str, &[&str]); 4] = [
        (&raises, &["no reading from yuma", "P0001"]),
        (&asserts, &["no reading from there", "P0004"]),
        (wide, &["index row", "54000"]),
        (view, &["check option", "44000"]),
    ];
    for (change, words) in cases {
        for key in [&[][..], &["id"]] {
            // Rows are copied into a table only.
            if key.is_empty() && change == view {
                continue;
            }
            let table = table(&server, "it", columns, key).await;
            let client = table.client().await;
            client.batch_execute(change).await.unwrap();
            let rows: Vec<_> =
                (0..700).map(|id| (id, Some(if id % 100 == 7 { "yuma" } else { "reno" }), 1.0)).collect();
            table.land(id(1, 1), &[readings(&rows)]).await.unwrap();
            let found = table.refused().await;
            let expected: Vec<_> = (0..7).map(|n| n * 100 + 7).collect();
            assert_eq!(told(&found).iter().map(|row| row.0).collect::<Vec<_>>(), expected, "{words:?}");
            let missing = words.iter().find(|word| !found.iter().all(|row| row.reason.contains(**word)));
            assert_eq!(missing, None, "{found:?}");
            assert_eq!(table.texts("id").await.len(), 693);
            let drop = "DROP VIEW IF EXISTS it; DROP TABLE IF EXISTS beneath; DROP FUNCTION IF EXISTS check_it CASCADE; \
                        DROP FUNCTION IF EXISTS wide CASCADE; DROP SCHEMA nexus CASCADE";
            let drop = if change == view { drop.to_owned() } else { drop.replacen("VIEW", "TABLE", 1) };
            client.batch_execute(&drop).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_row_that_is_refused_again_tells_how_often_it_was_sent() {
    let server = Arc::new(Postgres::start());
    let table = table(&server, "t", "id bigint, site text NOT NULL, v float8", &[]).await;
    let sent = |attempts: u32, id: i64, site: Option<&'static str>| {
        crate::quarantine::with_attempts(&readings(&[(id, site, 1.0)]), attempts).unwrap()
    };
    let nul = Some("a\0b");
    let batches = [
        sent(0, 1, None),
        sent(3, 2, None),
        sent(3, 3, Some("reno")),
        sent(3, 4, nul),
        sent(1, 5, None),
        sent(0, 6, None),
    ];
    table.land(id(1, 1), &batches).await.unwrap();
    assert_eq!(table.texts("id").await, ["3"]);
    let mut found: Vec<_> = table.refused().await.iter().map(|row| (row.raw.clone(), row.attempts)).collect();
    found.sort();
    let attempts: Vec<_> = found.iter().map(|row| row.1).collect();
    assert_eq!(attempts, [0, 3, 3, 1, 0], "{found:?}");
}

#[tokio::test]
async fn a_table_that_is_partitioned_takes_rows_and_refuses_those_of_no_partition() {
    let server = Arc::new(Postgres::start());
    for key in [&[][..], &["id"]] {
        let name = format!("parted{}", key.len());
        let table = table(&server, &format!("{name}_like"), "id bigint, site text, v float8", key).await;
        let sql = format!(
            "CREATE TABLE {name} (LIKE {name}_like, PRIMARY KEY (id)) PARTITION BY RANGE (id); \
             CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (10); \
             CREATE TABLE {name}_2 (LIKE {name}_like, CHECK (v > 0)); \
             ALTER TABLE {name}_2 ALTER id SET NOT NULL; \
             ALTER TABLE {name} ATTACH PARTITION {name}_2 FOR VALUES FROM (10) TO (20)"
        );
        table.client().await.batch_execute(&sql).await.unwrap();
        let mut parted = settings(schema(), &name);
        parted.schema = "public".into();
        (parted.key, parted.append) = (table.settings.key.clone(), table.settings.append);
        let parted = Database::new(server.clone(), parted).await;
        let rows = [(1, None, 1.0), (11, None, 2.0), (21, None, 3.0), (12, None, -4.0), (2, None, -5.0)];
        parted.land(id(1, 1), &[readings(&rows)]).await.unwrap();
        assert_eq!(parted.texts("id").await, ["1", "11", "2"]);
        let found = parted.refused().await;
        let told = told(&found);
        assert!(told[0].0 == 2 && told[0].1.contains("no partition of relation"), "{told:?}");
        assert!(told[1].0 == 3 && told[1].1.contains("23514"), "{told:?}");
        assert_eq!(told.len(), 2);
    }
}

#[tokio::test]
async fn of_a_key_the_last_row_lands_that_is_not_refused() {
    let server = Arc::new(Postgres::start());
    let table = table(&server, "t", "id bigint PRIMARY KEY, site text, v float8 CHECK (v > 0)", &["id"]).await;
    let rows = [(1, None, 1.0), (1, None, 2.0), (1, None, -1.0), (2, None, -2.0), (3, None, 3.0)];
    table.land(id(1, 1), &[readings(&rows)]).await.unwrap();
    assert_eq!(table.texts("id, v").await, ["1|2", "3|3"]);
    assert_eq!(told(&table.refused().await).iter().map(|row| row.0).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test]
async fn refused_rows_are_kept_once_and_forgotten_when_told() {
    let server = Arc::new(Postgres::start());
    let table = table(&server, "t", "id bigint, site text NOT NULL, v float8", &[]).await;
    let mut sink = table.open();
    for epoch in 1..4 {
        let rows: Vec<_> = (0..epoch).map(|n| (n, None, epoch as f64)).chain([(9, Some("reno"), 0.0)]).collect();
        sink.write(id(1, epoch as u64), &readings(&rows)).await.unwrap();
        let handle = sink.prepare(id(1, epoch as u64)).await.unwrap().handle.unwrap();
        sink.committer().commit(id(1, epoch as u64), &handle).await.unwrap();
        // Once more, as after a crash that came before it was noted.
        sink.committer().commit(id(1, epoch as u64), &handle).await.unwrap();
    }
    assert_eq!(table.refused().await.len(), 6);
    let client = table.client().await;
    let counts = client.query("SELECT rows, refused FROM nexus.commits ORDER BY epoch", &[]).await.unwrap();
    let counts: Vec<(i64, i64)> = counts.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(counts, [(2, 1), (3, 2), (4, 3)]);

    let rows = table.open().refused();
    let of = async |epoch, upto| rows.next(RefusedUpto { epoch, rows: upto }).await.unwrap();
    assert!(of(2, 0).await.is_some_and(|(epoch, rows)| epoch == 2 && rows.len() == 2));
    assert!(of(2, 1).await.is_some_and(|(epoch, rows)| epoch == 2 && rows.len() == 1));
    assert!(of(2, 2).await.is_some_and(|(epoch, rows)| epoch == 3 && rows.len() == 3));
    assert!(of(3, 3).await.is_none());
    for _ in 0..2 {
        rows.forget(RefusedUpto { epoch: 2, rows: 1 }).await.unwrap();
        let left = client.query_one("SELECT count(*) FROM nexus.refused", &[]).await.unwrap();
        assert_eq!(left.get::<_, i64>(0), 4);
    }
}

#[tokio::test]
async fn without_a_place_for_refused_rows_the_error_says_how_to_make_one() {
    let server = Arc::new(Postgres::start());
    let mut table = table(&server, "t", "id bigint, site text NOT NULL, v float8", &[]).await;
    // As an earlier version has made it.
    let commits = "CREATE SCHEMA nexus; CREATE TABLE nexus.commits (pipeline text, sink text, state text, \
                   generation bigint, epoch bigint, rows bigint, PRIMARY KEY (pipeline, sink, state, epoch))";
    table.client().await.batch_execute(commits).await.unwrap();
    table.settings.create = false;
    table.land(id(1, 1), &[readings(&[(1, Some("reno"), 1.0)])]).await.unwrap();
    let error = table.land(id(1, 2), &[readings(&[(2, None, 1.0)])]).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("23502") && text.contains("CREATE TABLE IF NOT EXISTS nexus.refused"), "{text}");
    table.settings.create = true;
    table.land(id(1, 2), &[readings(&[(2, None, 1.0)])]).await.unwrap();
    assert_eq!(table.refused().await.len(), 1);
}

/// What a row is refused for: nothing, what can be told beforehand, and what only the server can tell.
fn reading() -> impl Strategy<Value = Reading> {
    let site = prop_oneof![8 => Just(Some("reno")), 1 => Just(None), 1 => Just(Some("far too long"))];
    let v = prop_oneof![8 => Just(1.0), 1 => Just(-1.0), 1 => Just(99.0)];
    (0..400_i64, site, v)
}

#[test]
fn what_lands_and_what_is_refused_is_what_single_inserts_give() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = Arc::new(Postgres::start());
    let count = std::cell::Cell::new(0);
    let one = |rows: Vec<Reading>, unique: bool| {
        count.set(count.get() + 1);
        let name = format!("t{}", count.get());
        runtime.block_on(async {
            let id_type = if unique { "bigint PRIMARY KEY" } else { "bigint" };
            let columns = format!(
                "id {id_type}, site varchar(5) NOT NULL, v float8 CHECK (v > 0), CHECK (v < 50 OR site = 'yuma')"
            );
            let table = table(&server, &name, &columns, &[]).await;
            for (epoch, half) in rows.chunks(rows.len().div_ceil(2).max(1)).enumerate() {
                table.land(id(1, epoch as u64 + 1), &[readings(half)]).await.unwrap();
            }
            let mut seen = std::collections::BTreeSet::new();
            let fits = |(id, site, v): &Reading| *site == Some("reno") && *v == 1.0 && (!unique || seen.insert(*id));
            let mut expected: Vec<_> = rows.iter().copied().filter(fits).map(|row| row.0).collect();
            expected.sort_unstable();
            let client = table.client().await;
            let landed = client.query(&format!("SELECT id FROM {name} ORDER BY id"), &[]).await.unwrap();
            let landed: Vec<i64> = landed.iter().map(|row| row.get(0)).collect();
            assert_eq!(landed, expected);
            assert_eq!(table.refused().await.len(), rows.len() - landed.len());
        });
    };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 4, ..ProptestConfig::default() });
    let rows = (proptest::collection::vec(reading(), 1..600), any::<bool>());
    runner
        .run(&rows, |(rows, unique)| {
            one(rows, unique);
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn rows_are_refused_in_each_of_several_files() {
    let server = Arc::new(Postgres::start());
    let table = table(&server, "t", "id bigint, site text NOT NULL, v float8 CHECK (v >= 0)", &[]).await;
    let site: &'static str = "x".repeat(1000).leak();
    let mut sink = table.open();
    for batch in 0..10 {
        let reading = |n| (n, (n % 1000 != 1).then_some(site), if n % 1000 == 2 { -1.0 } else { 1.0 });
        let rows: Vec<Reading> = (batch * 5000..(batch + 1) * 5000).map(reading).collect();
        sink.write(id(1, 1), &readings(&rows)).await.unwrap();
    }
    let prepared = sink.prepare(id(1, 1)).await.unwrap();
    assert_eq!((prepared.files, prepared.rows), (3, 50_000));
    sink.committer().commit(id(1, 1), &prepared.handle.unwrap()).await.unwrap();
    let landed = "SELECT count(*), count(DISTINCT id), count(*) FILTER (WHERE id % 1000 IN (1, 2)) FROM t";
    let landed = table.client().await.query_one(landed, &[]).await.unwrap();
    assert_eq!((landed.get::<_, i64>(0), landed.get::<_, i64>(1), landed.get::<_, i64>(2)), (49_900, 49_900, 0));
    let refused = table.refused().await;
    let of = |state: &str| refused.iter().filter(|row| row.reason.contains(state)).count();
    assert_eq!((refused.len(), of("23502"), of("23514")), (100, 50, 50));
}
