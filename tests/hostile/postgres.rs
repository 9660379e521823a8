//! A Postgres that fails in each of the ways that a commit has to bear, while the lake goes on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{FILES, Input, assert_same, audit, each_run, lake_rows, path, pipeline, restarted, sorted, write_pipeline};
use crate::servers::postgres::{self, Postgres};
use crate::servers::wire::{self, Act, Moment};
use crate::world::{self, Finished, Random, World, ask, table_files};

/// Runs of `make test`.
const RUNS: usize = 2;

/// How long a state of the server lasts: some tries of a commit.
const SPELL: Duration = Duration::from_millis(2500);

/// The role that loads: not a superuser, so that limits hold for it.
const ROLE: &str = "loader";

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// A backend is killed in mid-COPY, upon which the server ends all others and recovers.
    Crash,
    /// An administrator ends the connection in mid-COPY.
    Terminated,
    /// The connection is cut before the COMMIT reaches the server.
    CutBeforeCommit,
    /// The connection is cut before the answer to the COMMIT reaches Nexus.
    CutAfterCommit,
    /// Another session holds what the transaction needs, and needs what it holds.
    Deadlock,
    /// Another session has changed a row since the transaction's snapshot.
    Serialization,
    /// The disk is full for two tries.
    DiskFull,
    /// The server takes no writes, as one that has become a standby.
    ReadOnly,
    /// The server has no connection left.
    TooMany,
}

const TROUBLES: [Trouble; 9] = [
    Trouble::Crash,
    Trouble::Terminated,
    Trouble::CutBeforeCommit,
    Trouble::CutAfterCommit,
    Trouble::Deadlock,
    Trouble::Serialization,
    Trouble::DiskFull,
    Trouble::ReadOnly,
    Trouble::TooMany,
];

impl Trouble {
    /// Gives the moment at which it comes.
    fn moment(self) -> Moment {
        match self {
            Trouble::Crash | Trouble::Terminated => Moment::Copy,
            Trouble::CutBeforeCommit | Trouble::CutAfterCommit => Moment::Commit,
            _ => Moment::Begin,
        }
    }

    /// Gives what Nexus says when it was hit: nothing where no more than the end of a connection tells.
    fn said(self) -> Option<&'static str> {
        match self {
            Trouble::Terminated => Some("57P01"),
            Trouble::Deadlock => Some("40P01"),
            Trouble::Serialization => Some("40001"),
            Trouble::DiskFull => Some("53100"),
            Trouble::ReadOnly => Some("25006"),
            Trouble::TooMany => Some("53300"),
            _ => None,
        }
    }
}

/// A server of a run's own, and what is still to come over it.
struct Scene {
    server: Postgres,
    database: String,
    /// What comes at the next moment that fits, the next one first.
    coming: Mutex<Vec<Trouble>>,
    /// Whether the epoch that was troubled last has yet to be committed.
    resting: Mutex<bool>,
    injected: Mutex<BTreeMap<Trouble, u64>>,
    /// Other sessions that hold something, until somebody waits for it.
    sessions: Mutex<Vec<JoinHandle<()>>>,
}

impl Scene {
    fn new() -> Self {
        let server = Postgres::start();
        let database = server.database();
        let scene = Self {
            server,
            database,
            coming: Mutex::default(),
            resting: Mutex::default(),
            injected: Mutex::default(),
            sessions: Mutex::default(),
        };
        let database = &scene.database;
        scene.sql(&format!(
            "CREATE ROLE {ROLE} LOGIN; ALTER DATABASE {database} OWNER TO {ROLE};
             ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read';
             ALTER DATABASE {database} SET deadlock_timeout = '100ms'"
        ));
        scene
    }

    /// Gives the URL that the role connects by, through a port.
    fn url(&self, port: u16) -> String {
        postgres::url(port, &self.database).replace("postgres@", &format!("{ROLE}@"))
    }

    /// Runs SQL as the superuser, statement by statement.
    fn sql(&self, sql: &str) {
        self.server.sql(&self.database, sql);
    }

    /// Decides at a moment, and brings about what comes then.
    fn decide(self: &Arc<Self>, moment: Moment) -> Act {
        let trouble = {
            let mut resting = lock(&self.resting);
            if *resting {
                *resting = moment != Moment::Commit;
                return Act::Pass;
            }
            let mut coming = lock(&self.coming);
            let Some(trouble) = coming.last().copied().filter(|next| next.moment() == moment) else { return Act::Pass };
            coming.pop();
            *resting = true;
            trouble
        };
        let act = self.bring(trouble);
        *lock(&self.injected).entry(trouble).or_default() += 1;
        act
    }

    fn bring(self: &Arc<Self>, trouble: Trouble) -> Act {
        let whose = format!("FROM pg_stat_activity WHERE usename = '{ROLE}'");
        match trouble {
            Trouble::Crash => {
                // It would end these too, before anybody has waited for them.
                for session in std::mem::take(&mut *lock(&self.sessions)) {
                    session.join().expect("a session that holds something does what it is told");
                }
                self.server.kill_backend(&self.database, &format!("SELECT pid {whose} AND query LIKE 'COPY%'"));
                Act::Pass
            }
            Trouble::Terminated => {
                self.sql(&format!("SELECT pg_terminate_backend(pid) {whose} AND query LIKE 'COPY%'"));
                Act::Pass
            }
            Trouble::CutBeforeCommit => Act::CutBefore,
            Trouble::CutAfterCommit => Act::CutAfter,
            Trouble::Deadlock => {
                self.meanwhile(
                    "SET deadlock_timeout = '1h'; BEGIN; LOCK TABLE events IN SHARE MODE; CALL nexus_test_waits();
                     LOCK TABLE nexus.commits IN ACCESS EXCLUSIVE MODE; COMMIT",
                );
                self.until(
                    "SELECT 1 FROM pg_locks WHERE relation = 'events'::regclass AND mode = 'ShareLock' AND granted",
                );
                Act::Pass
            }
            Trouble::Serialization => {
                self.meanwhile("BEGIN; UPDATE hours SET v = v; CALL nexus_test_waits(); COMMIT");
                self.until("SELECT 1 FROM pg_locks WHERE relation = 'hours'::regclass AND mode = 'RowExclusiveLock' AND granted");
                *lock(&self.injected).entry(trouble).or_default() += 1;
                Act::Pass
            }
            Trouble::DiskFull => {
                self.sql("SELECT setval('nexus_test_tries', 1, false)");
                Act::Pass
            }
            Trouble::ReadOnly => {
                self.spell("SET default_transaction_read_only = on", "RESET default_transaction_read_only")
            }
            Trouble::TooMany => self.spell("CONNECTION LIMIT 0", "CONNECTION LIMIT -1"),
        }
    }

    /// Changes the role for a while; connections that are open must come again.
    fn spell(self: &Arc<Self>, to: &str, back: &str) -> Act {
        self.sql(&format!("ALTER ROLE {ROLE} {to}"));
        let (scene, back) = (self.clone(), format!("ALTER ROLE {ROLE} {back}"));
        std::thread::spawn(move || {
            std::thread::sleep(SPELL);
            scene.sql(&back);
        });
        Act::CutBefore
    }

    /// Has another session do something beside.
    fn meanwhile(self: &Arc<Self>, sql: &'static str) {
        let scene = self.clone();
        let session = std::thread::spawn(move || scene.sql(sql));
        lock(&self.sessions).push(session);
    }

    /// Waits until a query gives rows.
    fn until(&self, query: &str) {
        while self.server.ask(&self.database, query).is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes what the troubles need, in a database that has the tables.
    fn prepare(&self) {
        self.sql(
            "CREATE PROCEDURE nexus_test_waits() LANGUAGE plpgsql AS $$ BEGIN
               FOR i IN 1..6000 LOOP
                 PERFORM 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid));
                 IF FOUND THEN RETURN; END IF;
                 PERFORM pg_sleep(0.01);
               END LOOP;
               RAISE 'nobody waits';
             END $$;
             CREATE SEQUENCE nexus_test_tries START 1000;
             GRANT USAGE ON SEQUENCE nexus_test_tries TO loader;
             CREATE FUNCTION nexus_test_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF nextval('nexus_test_tries') <= 2 THEN
                 RAISE disk_full USING MESSAGE = 'could not extend file: No space left on device';
               END IF;
               RETURN NULL;
             END $$;
             CREATE TRIGGER full_disk BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION nexus_test_full();
             INSERT INTO hours SELECT hour, 'site-' || site, 0, 0
               FROM generate_series('2026-11-01'::timestamptz, '2026-11-02', '1 hour') AS hour, generate_series(0, 2) AS site",
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rows that both tables of Postgres hold, but those that no window has.
const ROWS: &str = "SELECT 'events', n::text, site, ts::text, v FROM events
    UNION ALL SELECT 'hours', hour::text, site, events::text, v FROM hours WHERE events > 0";

/// Reads files into a folder and into Postgres, over which all troubles come in an order of the seed's.
fn troubled(seed: u64) -> BTreeMap<Trouble, u64> {
    let mut random = Random::of(seed);
    let input = Input::random(&mut random, 14);
    let scene = Arc::new(Scene::new());
    let mut world = World::new();
    let lake = world.path("lake");
    let write = |world: &World, bytes: u64| {
        let commit = format!("1h, bytes: {bytes}B");
        write_pipeline(world, &pipeline(&lake.display().to_string(), &commit, FILES, true))
    };
    let direct = scene.url(scene.server.port);
    world.set("DATABASE_URL", &direct);
    let file = write(&world, 1);
    // A run without a row makes the tables.
    world.file("events-000.json", "");
    world.nexus(&["run", path(&file)]).expect_code(0);
    scene.prepare();
    input.write(&world);

    // The windows close at the end of the input, and meet the session that has changed their rows; a crash before that
    // would end the session, so it comes last.
    scene.bring(Trouble::Serialization);
    let mut troubles = TROUBLES.to_vec();
    troubles.retain(|trouble| !matches!(trouble, Trouble::Serialization | Trouble::Crash));
    for at in (1..troubles.len()).rev() {
        troubles.swap(at, random.below(at + 1));
    }
    troubles.insert(0, Trouble::Crash);
    let deciding = scene.clone();
    let port = wire::proxy(scene.server.port, move |moment| deciding.decide(moment));
    world.set("DATABASE_URL", &scene.url(port));
    *lock(&scene.coming) = troubles;
    let mut said = String::new();
    let mut run = |world: &World, file: &Path| -> Finished {
        let finished = world.nexus(&["run", path(file)]);
        said.push_str(&finished.stderr);
        finished
    };
    let restarts = restarted(|| run(&world, &file));
    assert_eq!(restarts, 0, "faults of a moment have ended the run");

    world.set("DATABASE_URL", &direct);
    world.nexus(&["run", path(&file)]).expect_code(0);
    assert_same(&lake_rows(&lake), &input.undisturbed(), "the tables of the lake");
    let found = sorted(postgres::ask(&direct, ROWS));
    let calm = in_calm(&scene, &input);
    assert_same(&found, &calm, "the tables of Postgres");
    audit(&world, &file);
    // A trouble that was over before the run met it shows nothing: it does not count.
    let mut injected = lock(&scene.injected).clone();
    injected.retain(|trouble, _| trouble.said().is_none_or(|code| said.contains(code)));
    injected
}

/// Gives what a run leaves in Postgres that nothing disturbs.
fn in_calm(scene: &Scene, input: &Input) -> Vec<String> {
    let mut world = World::new();
    let database = scene.server.database();
    world.set("DATABASE_URL", &postgres::url(scene.server.port, &database));
    input.write(&world);
    let text = pipeline(&world.path("lake").display().to_string(), "1h, bytes: 1GiB", FILES, true);
    world.nexus(&["run", path(&write_pipeline(&world, &text))]).expect_code(0);
    sorted(world.ask_postgres(ROWS))
}

#[test]
fn a_postgres_in_all_kinds_of_trouble_gets_each_row_once() {
    each_run(RUNS, &TROUBLES, troubled);
}

/// Bytes that may wait for Postgres in the run whose Postgres is away.
const SPOOL_KIB: u64 = 8;

#[test]
fn the_lake_goes_on_without_postgres_as_far_as_the_spool_reaches() {
    let mut random = Random::seeded();
    let input = Input::random(&mut random, 40);
    let scene = Arc::new(Scene::new());
    let mut world = World::new();
    world.set("DATABASE_URL", &scene.url(scene.server.port));
    let lake = world.path("lake");
    let text = pipeline(&lake.display().to_string(), "1h, bytes: 1B", FILES, true);
    let file = write_pipeline(&world, &format!("limits: {{ record: 4KiB, spool: {SPOOL_KIB}KiB }}\n{text}"));
    input.write(&world);

    scene.sql(&format!("ALTER ROLE {ROLE} CONNECTION LIMIT 0"));
    let mut running = world.start(&["run", path(&file)]);
    let files = || table_files(&lake, "bronze/events");
    running.until("the lake has rows", || files() > 0);
    let (mut last, mut still) = (0, 0);
    while still < 4 {
        assert!(!running.ends_within(Duration::from_millis(500)), "the run has ended without Postgres");
        still = if files() == last { still + 1 } else { 0 };
        last = files();
    }
    let spooled: u64 = world::files(&lake.join("_nexus/hostile/spool")).values().map(|(_, bytes)| bytes).sum();
    // The epoch that passes the bound is the last.
    assert!((SPOOL_KIB << 10..SPOOL_KIB << 11).contains(&spooled), "{spooled} bytes wait for Postgres");
    let read = ask(&lake, "SELECT count(DISTINCT _partition) FROM bronze.events")[0][0].as_u64();
    assert!(read.is_some_and(|read| 1 < read && read < input.0.len() as u64), "{read:?} files are in the lake");

    scene.sql(&format!("ALTER ROLE {ROLE} CONNECTION LIMIT -1"));
    running.wait().expect_code(0);
    assert_same(&lake_rows(&lake), &input.undisturbed(), "the tables of the lake");
    let found = sorted(postgres::ask(world.env("DATABASE_URL"), ROWS));
    assert_same(&found, &in_calm(&scene, &input), "the tables of Postgres");
    audit(&world, &file);
}
