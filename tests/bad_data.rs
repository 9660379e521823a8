//! Bad records among good ones.

use std::fmt::Write as _;
use std::fs;

use serde_json::json;

use crate::balance::count;
use crate::world::{World, ask};

/// Good lines.
const GOOD: usize = 1_000_000;
/// One line in so many is a broken one, besides the good ones.
const BROKEN_EVERY: usize = 1_000;

#[test]
fn a_thousand_broken_lines_among_a_million_good_ones() {
    let world = World::new();
    let lake = world.path("lake");
    let broken = [
        "{\"n\": 7, \"site\": \"ren",
        "not json at all",
        "{\"n\": \"seven\", \"site\": \"reno\"}",
        "{\"site\": \"reno\"}",
    ];
    let mut lines = String::new();
    let mut offsets = Vec::new();
    for n in 0..GOOD {
        let _ = writeln!(lines, r#"{{"n":{n},"site":"reno"}}"#);
        if n % BROKEN_EVERY == BROKEN_EVERY / 2 {
            offsets.push(lines.len());
            lines.push_str(broken[offsets.len() % broken.len()]);
            lines.push('\n');
        }
    }
    fs::write(world.path("events.json"), &lines).expect("could not write a file");
    let pipeline = world.file(
        "broken.yaml",
        &format!(
            "name: broken\nlake: {}\nsources:\n  events:\n    file: {{ path: events.json }}\n    format: json\n    \
             columns: {{ n: int64 not null, site: string }}\nbronze:\n  events: {{ from: events }}\n",
            lake.display()
        ),
    );

    let report = world.run(&pipeline, &[]);

    let source = &report["sources"]["events"];
    let numbers = ["records", "rows", "quarantined"].map(|name| count(source, name));
    assert_eq!(numbers, [(GOOD + offsets.len()) as u64, GOOD as u64, offsets.len() as u64]);
    let good = ask(&lake, "SELECT count(*), count(DISTINCT n), min(n), max(n) FROM bronze.events");
    assert_eq!(good, [json!([GOOD, GOOD, 0, GOOD - 1])]);

    // Each broken line stands in the quarantine with its place, its bytes, and a reason.
    let found = ask(
        &lake,
        "SELECT _offset::BIGINT, decode(raw), length(reason) > 0, _partition LIKE '%events.json' \
         FROM quarantine.events ORDER BY 1",
    );
    let line_at = |offset: &usize| lines[*offset..].lines().next().unwrap_or_default();
    let expected: Vec<_> = offsets.iter().map(|offset| json!([offset, line_at(offset), true, true])).collect();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
}
