//! Whatever is done to a file, it loads or is told what is wrong with it.

use proptest::prelude::*;

use super::{FLIGHTS, read, read_with};
use crate::spec::Severity;

/// What stands in for a piece of the file.
const PIECES: &[&str] = &[
    "",
    "\n",
    " ",
    "\t",
    ":",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "|",
    ">",
    "|2-\n",
    "'",
    "\"",
    "\\",
    "${",
    "${lake}",
    "$${",
    "&a ",
    "*a",
    "!t ",
    "~",
    "null",
    "12",
    "-1",
    "1e400",
    "true",
    "ä",
    "\u{2028}",
    "\r",
    "\0",
    "<<",
    "---\n",
    "#",
    "%",
    ",",
    "99999999999999999999999999999999999999999",
    "list<",
    "bronze",
    "from",
    "\u{1f980}",
];

/// Puts a piece in the place of some characters.
fn mutate(text: &str, edits: &[(usize, usize, usize)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for &(at, length, piece) in edits {
        let at = at % (chars.len() + 1);
        let end = (at + length).min(chars.len());
        chars.splice(at..end, PIECES[piece % PIECES.len()].chars());
    }
    chars.into_iter().collect()
}

proptest! {
    #[test]
    fn a_mutated_file_never_panics(edits in prop::collection::vec((any::<usize>(), 0_usize..12, any::<usize>()), 1..6)) {
        let text = mutate(FLIGHTS, &edits);
        let lines = text.split(['\n', '\r']).count();
        match read(&text) {
            Ok(loaded) => prop_assert!(!loaded.warnings.has_errors()),
            Err(wrong) => {
                prop_assert!(wrong.iter().any(|d| d.severity == Severity::Error));
                for one in &wrong {
                    let place = one.place.as_ref();
                    prop_assert!(place.is_none_or(|p| p.line >= 1 && p.line <= lines && p.column >= 1 && p.width >= 1), "{:?} of {lines} in {text:?}", one);
                    prop_assert!(!one.render(true).is_empty());
                }
            }
        }
    }

    #[test]
    fn any_place_in_a_text_leads_into_the_file(
        edits in prop::collection::vec((any::<usize>(), 0_usize..3, any::<usize>()), 0..3),
        line in 0_usize..12,
        column in 0_usize..80,
        lake in "\\PC{0,12}",
    ) {
        let text = mutate(FLIGHTS, &edits);
        if let Ok(loaded) = read_with(&text, &[("lake", &lake)]) {
            let path = ["gold", "hourly_delays", "sql"];
            let found = loaded.diagnostic_in_text(&path, (line, column), "N0303", "m", None);
            let place = found.place.expect("a place");
            prop_assert!(place.line >= 1 && place.line <= text.lines().count() + 1);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[ a-z:{}\\[\\],|>'\"\n#&*!$-]{0,60}") {
        let _ = read(&text).map_err(|wrong| wrong.to_string());
    }
}

#[test]
fn a_large_file_full_of_mistakes_is_refused_in_seconds() {
    let start = std::time::Instant::now();
    let many = |prefix: &str, line: &str| (0..30_000).map(|n| format!("{prefix}{n}{line}")).collect::<String>();
    let chain: String = (1..30_000).map(|n| format!("  t{n}: {{ from: silver.t{} }}\n", n - 1)).collect();
    for text in [
        many("key", ": 1\n"),
        format!("{}silver:\n{}", super::SMALL, many("  T", ": { from: nowhere }\n")),
        format!("{}silver:\n  t0: {{ from: bronze.orders }}\n{chain}", super::SMALL),
        format!("{}description: \"{}\"\n", super::SMALL, "${x} ".repeat(300_000)),
    ] {
        let _ = read(&text);
    }
    // A bound against work that grows with the square of the file: that took minutes.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
