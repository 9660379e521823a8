//! The page about what the connectors hold to: the tests and files that it names are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Collects the names of the tests in a folder's Rust files.
fn tests_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository").flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).expect("a file of the repository");
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            for (at, _) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("#[") && line.contains("test"))
            {
                let function = lines.iter().skip(at + 1).find(|line| !line.starts_with("#["));
                let name =
                    function.and_then(|line| line.split_once("fn ")).and_then(|(_, rest)| rest.split('(').next());
                found.extend(name.map(str::to_owned));
            }
        }
    }
}

/// Gives what stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn what_the_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    for folder in ["operators", "engine", "tests"] {
        tests_in(&root.join(folder), &mut tests);
    }
    let page = fs::read_to_string(root.join("docs/connectors.md")).expect("the page");
    let rows: Vec<Vec<_>> =
        page.lines().filter(|line| line.starts_with("| ")).map(|line| line.split(" | ").collect()).collect();
    let statements = rows.iter().filter(|row| !row[0].contains("what holds"));
    let (mut missing, mut count) = (Vec::new(), 0);
    for row in statements {
        count += 1;
        let [_, places, shown] = row.as_slice() else { panic!("a row of three cells: {row:?}") };
        missing.extend(quoted(places).filter(|place| !root.join(place).is_file()).map(str::to_owned));
        missing.extend(quoted(shown).filter(|name| !tests.contains(*name)).map(str::to_owned));
        assert!(quoted(places).count() > 0 && quoted(shown).count() > 0, "{row:?}");
    }
    assert_eq!(missing, [""; 0], "docs/connectors.md names what is not there");
    assert!(count > 30, "{count} statements");
}
