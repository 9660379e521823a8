//! The contract of stores as a suite that every backend must pass.
//!
//! ```no_run
//! # async fn check() {
//! use nexus_operators::store::Store;
//! use nexus_operators::testing::store;
//!
//! store::conforms(|| async { Store::memory() }).await;
//! # }
//! ```

use std::future::Future;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use crate::store::Store;

/// Writers that race.
const WRITERS: u8 = 16;

/// Bytes of the content that a race is about: more than one write to a disk or a socket.
const CONTENT_BYTES: usize = 300_000;

/// Files of the largest folder here: more than one page of a listing on S3.
const FILES: usize = 1_100;

/// Names that a store must keep apart and give back as they are.
const NAMES: [&str; 9] = [
    "plain.json",
    "with space.json",
    "per%20cent.json",
    "ümlaut-日本.json",
    "a+b=c&d.json",
    "origin=JFK/part 1/x.parquet",
    "deep/er/and/deeper.bin",
    "quote'\"s.txt",
    "trailing.",
];

/// Runs the whole suite; each call of `store` gives a new and empty store.
///
/// # Panics
///
/// Where the store breaks the contract.
pub async fn conforms<F: Future<Output = Store>>(store: impl Fn() -> F) {
    what_is_written_is_read(store().await).await;
    what_is_not_there_is_no_error(store().await).await;
    pieces_are_read(store().await).await;
    names_are_kept_as_they_are(store().await).await;
    folders_are_listed_by_name(store().await).await;
    one_of_many_creates(store().await).await;
    a_put_is_whole_to_its_readers(store().await).await;
    an_open_file_outlives_its_name(store().await).await;
}

async fn put(store: &Store, name: &str, content: &'static str) {
    store.put(name, Bytes::from_static(content.as_bytes())).await.expect("a file is written");
}

async fn names(store: &Store, folder: &str) -> Vec<String> {
    store.list(folder).await.expect("a folder is listed").into_iter().map(|entry| entry.name).collect()
}

async fn what_is_written_is_read(store: Store) {
    put(&store, "a/b", "one").await;
    assert_eq!(store.get("a/b").await.expect("a file is read").as_deref(), Some(&b"one"[..]));
    put(&store, "a/b", "three").await;
    assert_eq!(store.get("a/b").await.expect("a file is read").as_deref(), Some(&b"three"[..]));
    assert_eq!(store.size("a/b").await.expect("a file is looked at"), Some(5));
    put(&store, "empty", "").await;
    assert_eq!(store.get("empty").await.expect("a file is read").as_deref(), Some(&b""[..]));

    let created = store.create("a/b", Bytes::from_static(b"four")).await.expect("a name is taken");
    assert!(!created, "a file was created in the place of another");
    assert_eq!(store.get("a/b").await.expect("a file is read").as_deref(), Some(&b"three"[..]));
    let below = store.below("a");
    assert_eq!(below.get("b").await.expect("a file is read").as_deref(), Some(&b"three"[..]));

    store.delete("a/b").await.expect("a file is removed");
    assert_eq!(store.get("a/b").await.expect("nothing is read"), None);
    assert!(store.create("a/b", Bytes::from_static(b"five")).await.expect("the name is free again"));
}

async fn what_is_not_there_is_no_error(store: Store) {
    assert_eq!(store.get("none").await.expect("nothing is read"), None);
    assert_eq!(store.size("none").await.expect("nothing is looked at"), None);
    assert!(store.open_file("none").await.expect("nothing is opened").is_none());
    store.delete("none").await.expect("nothing is removed");
    assert_eq!(names(&store, "none").await, Vec::<String>::new());
    assert!(store.get_range("none", 0..1).await.is_err(), "a piece of nothing was read");
}

async fn pieces_are_read(store: Store) {
    put(&store, "digits", "0123456789").await;
    for (range, expected) in [(0..10, "0123456789"), (3..6, "345"), (9..10, "9")] {
        assert_eq!(store.get_range("digits", range).await.expect("a piece is read"), expected);
    }
    assert!(store.get_range("digits", 8..12).await.is_err(), "more was read than there is");
}

async fn names_are_kept_as_they_are(store: Store) {
    for name in NAMES {
        let content = Bytes::from(name.to_owned());
        assert!(store.create(name, content).await.expect("a file is created"), "{name} is another's name");
    }
    let mut expected = NAMES.to_vec();
    expected.sort_unstable();
    assert_eq!(names(&store, "").await, expected);
    for entry in store.list("").await.expect("a folder is listed") {
        assert_eq!(entry.size, entry.name.len() as u64);
        let content = store.get(&entry.name).await.expect("a file is read").expect("a listed name is a file's");
        assert_eq!(content, entry.name.as_bytes(), "two names are one file");
        store.delete(&entry.name).await.expect("a file is removed");
    }
    assert_eq!(names(&store, "").await, Vec::<String>::new());
}

async fn folders_are_listed_by_name(store: Store) {
    for name in ["b/2", "b/10", "b/1/x", "a/1", "ab/1", "c"] {
        put(&store, name, "x").await;
    }
    assert_eq!(names(&store, "b").await, ["b/1/x", "b/10", "b/2"]);
    assert_eq!(names(&store, "a").await, ["a/1"], "a folder is no prefix of a name");
    assert_eq!(names(&store, "").await, ["a/1", "ab/1", "b/1/x", "b/10", "b/2", "c"]);
    assert_eq!(names(&store.below("b"), "").await, ["1/x", "10", "2"], "names are relative to the store");

    for number in 0..FILES {
        put(&store, &format!("many/{number:05}"), "x").await;
    }
    let expected: Vec<_> = (0..FILES).map(|number| format!("many/{number:05}")).collect();
    assert_eq!(names(&store, "many").await, expected);
}

async fn one_of_many_creates(store: Store) {
    for round in 0..5 {
        let name = format!("races/{round}");
        let writers = (0..WRITERS).map(|writer| {
            let (store, name) = (store.clone(), name.clone());
            tokio::spawn(async move { store.create(&name, vec![writer; CONTENT_BYTES].into()).await })
        });
        let mut winners = Vec::new();
        for (writer, ended) in (0..WRITERS).zip(futures::future::join_all(writers.collect::<Vec<_>>()).await) {
            if ended.expect("no writer panics").expect("a race is no error") {
                winners.push(writer);
            }
        }
        let [winner] = winners[..] else { panic!("{winners:?} have all created {name}") };
        let content = store.get(&name).await.expect("a file is read").expect("it was created");
        assert!(content.len() == CONTENT_BYTES && content.iter().all(|byte| *byte == winner), "not the winner's");
    }
    assert_eq!(names(&store, "races").await.len(), 5, "a race has left something behind");
}

async fn a_put_is_whole_to_its_readers(store: Store) {
    store.put("whole", vec![0; CONTENT_BYTES].into()).await.expect("a file is written");
    let writers = (1..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move { store.put("whole", vec![writer; CONTENT_BYTES].into()).await })
    });
    let writers: Vec<_> = writers.collect();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let content = store.get("whole").await.expect("a file is read").expect("it was there before");
        let first = content.first().copied().expect("it is not empty");
        assert!(content.len() == CONTENT_BYTES && content.iter().all(|byte| *byte == first), "two puts were mixed");
        tokio::task::yield_now().await;
    }
    for written in futures::future::join_all(writers).await {
        written.expect("no writer panics").expect("a file is written");
    }
    assert_eq!(names(&store, "").await, ["whole"]);
}

async fn an_open_file_outlives_its_name(store: Store) {
    let written = store.put_and_open("runs/1", Bytes::from_static(b"0123456789")).await.expect("a file is written");
    let opened = store.open_file("runs/1").await.expect("a file is opened").expect("it is there");
    put(&store, "runs/1", "other").await;
    store.delete("runs/1").await.expect("a file is removed");
    for file in [written, opened] {
        let mut piece = [0; 4];
        file.read_exact_at(&mut piece, 3).expect("an open file can be read");
        assert_eq!(&piece, b"3456");
        assert_eq!(file.metadata().expect("it has a size").len(), 10);
    }
    assert_eq!(names(&store, "").await, Vec::<String>::new());
}
