//! What fuzzing feeds of the engine: the pipeline file, and what is read back from the state store. Each function takes
//! any bytes and panics where an invariant does not hold.

use std::path::Path;

use nexus::Pipeline;
use nexus::spec;
use nexus::state::State;
use nexus::state::record::CommitRecord;

/// Any text as a pipeline file: what is wrong with it is said, with places within it; what is right can be planned, or
/// its queries are wrong.
pub fn pipeline(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // Sources that are on this machine would be read.
    if ["file", "path", "reference"].iter().any(|word| text.contains(word)) {
        let _ = spec::parse(&text, "pipeline", Path::new("/nowhere"), &[]);
        return;
    }
    match Pipeline::parse(&text) {
        Err(wrong) => assert!(!wrong.to_string().is_empty(), "it is wrong, and nothing is said of it"),
        Ok(pipeline) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let planned = runtime.expect("a runtime can be made").block_on(pipeline.plan());
            drop(planned);
        }
    }
}

/// Any bytes as a commit record and as a checkpoint: what can be read is written and read again as the same, and adding
/// it up twice changes nothing.
pub fn state(data: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<CommitRecord>(data) {
        let text = serde_json::to_vec(&record).expect("a record can be written");
        assert_eq!(serde_json::from_slice::<CommitRecord>(&text).expect("what is written can be read"), record);
        let balance = record.check_balance();
        assert_eq!(balance.is_err(), record.imbalance().is_some());
        let mut state = State::default();
        nexus::state::fold(&mut state, &record);
        let once = state.clone();
        nexus::state::fold(&mut state, &record);
        assert_eq!(state, once, "a record that is read twice counts twice");
    }
    if let Ok(state) = serde_json::from_slice::<State>(data) {
        let text = serde_json::to_vec(&state).expect("a checkpoint can be written");
        assert_eq!(serde_json::from_slice::<State>(&text).expect("what is written can be read"), state);
    }
}
