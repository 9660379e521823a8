//! The suite of the state store, over every store that it may lie in.

use std::collections::BTreeMap;
use std::sync::Arc;

use nexus_operators::ErrorKind;
use nexus_operators::position::{Cut, Position};
use nexus_operators::sink::Prepared;
use nexus_operators::store::{Access, Store};
use nexus_operators::testing::clock::ManualClock;

use super::history::history_file;
use super::*;

/// Epochs of the longest history here: one file of 64 files, one of 64 records, and a rest.
const EPOCHS: u64 = 64 * 65 + 7;

/// Runs the suite; each call of `folder` gives a new and empty folder.
async fn conforms<F: Future<Output = Store>>(folder: impl Fn() -> F) {
    a_claim_fences_older_processes(open(folder().await)).await;
    one_of_many_claimants_goes_on(open(folder().await)).await;
    an_epoch_has_one_record(open(folder().await)).await;
    any_prefix_of_the_records_can_be_loaded(open(folder().await)).await;
    notes_of_committed_epochs_add_up(open(folder().await)).await;
    what_is_folded_is_read_as_before(open(folder().await)).await;
    nothing_is_folded_that_a_sink_owes(open(folder().await)).await;
    a_fold_that_was_cut_short_is_finished(open(folder().await)).await;
    a_record_in_the_place_of_a_folded_one_does_not_count(open(folder().await)).await;
}

#[tokio::test]
async fn conforms_on_a_disk() {
    let root = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicUsize::new(0);
    conforms(|| async {
        let name = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
        let path = root.path().join(name).display().to_string();
        Store::open(&path, &Access::default()).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn conforms_in_memory() {
    conforms(|| async { Store::memory() }).await;
    many_records_are_folded_twice(open(Store::memory())).await;
}

#[cfg(feature = "s3")]
#[tokio::test]
async fn conforms_on_s3() {
    let server = nexus_operators::testing::ministack::Ministack::start();
    let count = std::sync::atomic::AtomicUsize::new(0);
    conforms(|| async {
        server.bucket(&format!("state-{}", count.fetch_add(1, std::sync::atomic::Ordering::Relaxed)))
    })
    .await;
}

fn open(folder: Store) -> StateStore {
    StateStore::new(folder, "numbers", ManualClock::at(1_000_000))
}

/// Makes a record that moves a source on by one.
fn next(store: &StateStore, state: &State) -> CommitRecord {
    let epoch = state.epoch + 1;
    let mut record = store.record(state.generation, epoch);
    let position = Position::Offset { offset: epoch, identity: None };
    let cut = Cut { advanced: BTreeMap::from([("file".to_owned(), position)]), forgotten: Vec::new() };
    record.sources.insert("numbers".to_owned(), record::SourceRecord { cut, ..Default::default() });
    record.sinks.insert("bronze.numbers/parquet".to_owned(), Prepared::default());
    record
}

async fn commit_up_to(store: &StateStore, state: &mut State, epoch: u64) {
    while state.epoch < epoch {
        let record = next(store, state);
        store.commit(state, &record).await.unwrap();
    }
}

async fn names(store: &StateStore, folder: &str) -> Vec<String> {
    store.folder().list(folder).await.unwrap().into_iter().map(|entry| entry.name).collect()
}

/// Reads all records, as an audit does.
async fn all_records(store: &StateStore) -> BTreeMap<u64, CommitRecord> {
    let mut all = BTreeMap::new();
    for epoch in store.epochs().await.unwrap() {
        all.insert(epoch, store.epoch(epoch).await.unwrap().unwrap());
    }
    for span in store.history().await.unwrap() {
        for record in store.read_history(&span).await.unwrap().unwrap() {
            all.insert(record.epoch, record);
        }
    }
    all
}

async fn a_claim_fences_older_processes(store: StateStore) {
    let (first, mut older) = store.claim().await.unwrap();
    commit_up_to(&store, &mut older, 3).await;
    let (second, mut newer) = store.claim().await.unwrap();
    assert!(second > first);
    assert_eq!((newer.epoch, &newer.positions), (4, &older.positions), "the claim is an epoch of its own");
    assert_eq!(newer.id, older.id);

    let record = next(&store, &older);
    let refused = store.commit(&mut older, &record).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert_eq!(older.epoch, 3, "what was refused is not folded");
    assert_eq!(store.check_fence(first).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(store.compact(first, 3).await.map_err(|e| e.kind()), Ok(()), "there is nothing to fold");
    commit_up_to(&store, &mut newer, 5).await;
    assert_eq!(names(&store, "generations").await.len(), 1, "older claims are removed");
}

async fn one_of_many_claimants_goes_on(store: StateStore) {
    let store = Arc::new(store);
    let (_, mut before) = store.claim().await.unwrap();
    commit_up_to(&store, &mut before, 5).await;
    let claims = (0..12).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let (_, mut state) = store.claim().await?;
            for _ in 0..3 {
                let record = next(&store, &state);
                store.commit(&mut state, &record).await?;
            }
            Ok::<_, Error>(state)
        })
    });
    let ended = futures::future::join_all(claims.collect::<Vec<_>>()).await;
    let mut finished = Vec::new();
    for ended in ended {
        match ended.unwrap() {
            Ok(state) => finished.push(state),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "{error}"),
        }
    }
    assert!(!finished.is_empty(), "nobody went on");
    // Whoever came first may have ended before the next came: their records follow one another.
    let newest = store.load().await.unwrap();
    assert!(finished.contains(&newest), "the newest state is nobody's");
    let records = all_records(&store).await;
    assert!(records.keys().copied().eq(1..=newest.epoch), "there is a gap in {:?}", records.keys());
    assert!(records.values().map(|record| record.generation).is_sorted(), "an older process wrote after a newer one");
}

async fn an_epoch_has_one_record(store: StateStore) {
    let (_, mut state) = store.claim().await.unwrap();
    let record = next(&store, &state);
    let mut lost_reply = state.clone();
    store.commit(&mut state, &record).await.unwrap();
    store.commit(&mut lost_reply, &record).await.unwrap();
    assert_eq!(lost_reply, state, "a process finds its own record after a lost reply");

    let mut other = record.clone();
    other.written_at_us += 1;
    let mut behind = State { epoch: record.epoch - 1, ..state.clone() };
    assert_eq!(store.commit(&mut behind, &other).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(store.epoch(record.epoch).await.unwrap(), Some(record));
}

/// Whatever a crash has cut off at the end, the rest is a state.
async fn any_prefix_of_the_records_can_be_loaded(store: StateStore) {
    let (_, mut state) = store.claim().await.unwrap();
    let mut states = vec![state.clone()];
    while state.epoch < 70 {
        let up_to = state.epoch + 1;
        commit_up_to(&store, &mut state, up_to).await;
        states.push(state.clone());
    }
    assert_eq!(store.checkpoints().await.unwrap(), [64]);
    for expected in states.iter().rev() {
        if expected.epoch % 64 == 63 {
            store.folder().delete(&checkpoint_file(64)).await.unwrap();
        }
        assert_eq!(store.load().await.unwrap(), *expected);
        store.folder().delete(&epoch_file(expected.epoch)).await.unwrap();
    }
}

async fn notes_of_committed_epochs_add_up(store: StateStore) {
    let notes = |epochs: &[(&str, u64)]| -> BTreeMap<String, u64> {
        epochs.iter().map(|(sink, epoch)| ((*sink).to_owned(), *epoch)).collect()
    };
    store.note_committed(1, &notes(&[("a", 3), ("b", 2)])).await.unwrap();
    store.note_committed(2, &notes(&[("b", 5), ("c", 1)])).await.unwrap();
    store.note_committed(2, &notes(&[("b", 6), ("c", 1)])).await.unwrap();
    assert_eq!(store.committed().await.unwrap(), notes(&[("a", 3), ("b", 6), ("c", 1)]));
}

async fn what_is_folded_is_read_as_before(store: StateStore) {
    let (generation, mut state) = store.claim().await.unwrap();
    store.note_committed(generation - 1, &BTreeMap::new()).await.unwrap();
    store.note_committed(generation, &BTreeMap::from([("sink".to_owned(), 200)])).await.unwrap();
    commit_up_to(&store, &mut state, 200).await;
    let before = all_records(&store).await;
    store.compact(generation, 200).await.unwrap();

    assert_eq!(store.history().await.unwrap(), [1..=64, 65..=128, 129..=192]);
    assert_eq!(store.epochs().await.unwrap(), (193..=200).collect::<Vec<_>>());
    assert_eq!(store.checkpoints().await.unwrap(), [128, 192]);
    assert_eq!(names(&store, "committed").await.len(), 1, "notes of older processes are removed");
    assert_eq!(all_records(&store).await, before);
    assert_eq!(store.load().await.unwrap(), state);
    // As where a listing lags, and does not show the checkpoints yet.
    for checkpoint in [192, 128] {
        store.folder().delete(&checkpoint_file(checkpoint)).await.unwrap();
        assert_eq!(store.load().await.unwrap(), state);
    }
    assert_eq!(store.claim().await.unwrap().1.epoch, 201);
}

async fn nothing_is_folded_that_a_sink_owes(store: StateStore) {
    let (generation, mut state) = store.claim().await.unwrap();
    commit_up_to(&store, &mut state, 140).await;
    store.compact(generation, 127).await.unwrap();
    assert_eq!(store.epochs().await.unwrap(), (65..=140).collect::<Vec<_>>());
    // Nor what no checkpoint stands for: its crash came between the record and the checkpoint.
    store.folder().delete(&checkpoint_file(128)).await.unwrap();
    store.compact(generation, 140).await.unwrap();
    assert_eq!(store.epochs().await.unwrap(), (65..=140).collect::<Vec<_>>());
    assert_eq!(store.load().await.unwrap(), state);
}

async fn a_fold_that_was_cut_short_is_finished(store: StateStore) {
    let (generation, mut state) = store.claim().await.unwrap();
    commit_up_to(&store, &mut state, 130).await;
    let before = all_records(&store).await;
    store.compact(generation, 130).await.unwrap();
    // Killed after the file of history was written, and before any, or some, of its records were removed.
    for left_over in [1..=64, 60..=64] {
        for epoch in left_over {
            let text = json(&before[&epoch]).unwrap();
            store.folder().put(&epoch_file(epoch), text).await.unwrap();
        }
        assert_eq!(all_records(&store).await, before);
        assert_eq!(store.load().await.unwrap(), state);
        store.compact(generation, 130).await.unwrap();
        assert_eq!(store.epochs().await.unwrap(), [129, 130]);
    }
    assert_eq!(all_records(&store).await, before);

    // A file of history that holds something else is a reason to keep the records.
    store.folder().delete(&history_file(&(65..=128))).await.unwrap();
    for epoch in 65..=128 {
        store.folder().put(&epoch_file(epoch), json(&before[&epoch]).unwrap()).await.unwrap();
    }
    store.folder().put(&history_file(&(65..=127)), Bytes::from_static(b"none")).await.unwrap();
    let damaged = store.read_history(&(65..=127)).await.unwrap_err();
    assert!(damaged.to_string().contains(&history_file(&(65..=127))), "{damaged}");
    store.compact(generation, 130).await.unwrap();
    assert_eq!(all_records_but(&store, 65..=127).await, before);
}

async fn all_records_but(store: &StateStore, span: history::Span) -> BTreeMap<u64, CommitRecord> {
    store.folder().delete(&history_file(&span)).await.unwrap();
    all_records(store).await
}

/// A process that slept in its commit wakes when its epoch's record has been folded away, and its name is free.
async fn a_record_in_the_place_of_a_folded_one_does_not_count(store: StateStore) {
    let (_, mut sleeper) = store.claim().await.unwrap();
    commit_up_to(&store, &mut sleeper, 10).await;
    let (generation, mut state) = store.claim().await.unwrap();
    commit_up_to(&store, &mut state, 70).await;
    store.compact(generation, 70).await.unwrap();
    let before = all_records(&store).await;

    let late = next(&store, &sleeper);
    assert!(store.folder().create(&epoch_file(late.epoch), json(&late).unwrap()).await.unwrap());
    assert_eq!(store.commit(&mut sleeper, &late).await.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(store.load().await.unwrap(), state);
    commit_up_to(&store, &mut state, 130).await;
    store.compact(generation, 130).await.unwrap();
    assert_eq!(store.epochs().await.unwrap(), [129, 130], "what does not count is removed");
    assert_eq!(all_records(&store).await[&late.epoch], before[&late.epoch]);
}

async fn many_records_are_folded_twice(store: StateStore) {
    let (generation, mut state) = store.claim().await.unwrap();
    while state.epoch < EPOCHS {
        let up_to = (state.epoch + 64).min(EPOCHS);
        commit_up_to(&store, &mut state, up_to).await;
        store.compact(generation, state.epoch).await.unwrap();
    }
    assert_eq!(store.history().await.unwrap(), [1..=4096, 4097..=4160]);
    let records = all_records(&store).await;
    assert!(records.keys().copied().eq(1..=EPOCHS));
    let mut sum = State { version: VERSION, id: state.id.clone(), ..State::default() };
    records.values().for_each(|record| fold(&mut sum, record));
    assert_eq!((sum, store.load().await.unwrap()), (state.clone(), state));
}
