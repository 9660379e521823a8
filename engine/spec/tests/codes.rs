//! Each code has a file that earns it, and the text that is shown for it:
//! `cases/CODE.yaml` and `cases/CODE.txt`. A first line `# --set name=value`
//! gives an override. What depends on the state has this beside it, as
//! `cases/CODE.json`. `UPDATE_SNAPSHOTS=1 cargo test` writes the texts anew.

use std::fs;
use std::path::PathBuf;

use crate::Pipeline;
use crate::plan::changes::compare;
use crate::spec::codes::CODES;
use crate::spec::{Diagnostics, Loaded, load};

fn cases() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("engine/spec/tests/cases")
}

/// Loads a case; gives what is shown, with the cases' folder left out.
fn shown(code: &str) -> (Diagnostics, String) {
    let path = cases().join(format!("{code}.yaml"));
    let text = fs::read_to_string(&path).unwrap_or_default();
    let set = text.lines().next().and_then(|line| line.strip_prefix("# --set "));
    let overrides: Vec<_> =
        set.and_then(|s| s.split_once('=')).map(|(k, v)| (k.into(), v.into())).into_iter().collect();
    let found = match load(&path, &overrides) {
        // What stands under N07 is found by the planner only.
        Ok(loaded) if code.starts_with("N07") => planned(loaded),
        Ok(loaded) if code.starts_with("N08") => changed(loaded, code),
        Ok(loaded) => loaded.warnings,
        Err(found) => found,
    };
    let folder = format!("{}/", cases().display());
    let shown = found.to_string().replace(&folder, "") + "\n";
    (found, shown)
}

fn planned(loaded: Loaded) -> Diagnostics {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(Pipeline::new(loaded).plan()) {
        Ok(plan) => plan.warnings,
        Err(found) => found,
    }
}

/// Holds a case against the state beside it.
fn changed(loaded: Loaded, code: &str) -> Diagnostics {
    let state = fs::read(cases().join(format!("{code}.json"))).unwrap();
    let state = serde_json::from_slice(&state).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let plan = Pipeline::new(loaded).plan().await.unwrap();
        let refusals = compare(&plan, &state).await.unwrap_err();
        Diagnostics::new(refusals.iter().map(|refusal| refusal.diagnostic(&plan)).collect())
    })
}

#[test]
fn every_code_is_earned_by_its_file_and_shown_as_written_down() {
    let update = std::env::var_os("UPDATE_SNAPSHOTS").is_some();
    for code in CODES {
        let snapshot = cases().join(format!("{}.txt", code.code));
        let (found, shown) = shown(code.code);
        assert!(!found.is_empty(), "{} loads", code.code);
        for one in &found {
            assert_eq!(one.code, code.code, "{one}");
        }
        if update {
            fs::write(&snapshot, &shown).unwrap();
        }
        let expected = fs::read_to_string(&snapshot).unwrap_or_else(|e| panic!("{}: {e}", snapshot.display()));
        assert_eq!(shown, expected, "{}", code.code);
    }
}

#[test]
fn no_file_is_left_of_a_code_that_is_gone() {
    for file in fs::read_dir(cases()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(CODES.iter().any(|code| name.starts_with(code.code)), "{name}");
    }
}
