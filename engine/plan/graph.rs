//! The order of work: which table reads which.

use std::collections::{BTreeMap, BTreeSet};

/// Sorts names so that each comes after all that it reads; a cycle is given as the names on it.
pub fn order(reads: &BTreeMap<String, BTreeSet<String>>) -> Result<Vec<String>, Vec<String>> {
    let mut sorted = Vec::with_capacity(reads.len());
    let mut left: BTreeMap<_, _> = reads.iter().collect();
    while !left.is_empty() {
        let ready = left.iter().find(|(_, needs)| needs.iter().all(|need| !left.contains_key(need)));
        let Some((name, _)) = ready else { return Err(cycle(reads, &left)) };
        let name = (*name).clone();
        left.remove(&name);
        sorted.push(name);
    }
    Ok(sorted)
}

/// Walks from any name that is left until one comes again.
fn cycle(reads: &BTreeMap<String, BTreeSet<String>>, left: &BTreeMap<&String, &BTreeSet<String>>) -> Vec<String> {
    let mut path: Vec<String> = left.keys().take(1).map(|name| (*name).clone()).collect();
    while let Some(here) = path.last() {
        let next = reads.get(here).and_then(|needs| needs.iter().find(|need| left.contains_key(need)));
        let Some(next) = next.cloned() else { break };
        let again = path.iter().position(|name| *name == next);
        path.push(next);
        if let Some(start) = again {
            return path.split_off(start);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        edges.iter().map(|(name, reads)| ((*name).to_owned(), owned(reads))).collect()
    }

    #[test]
    fn readers_come_after_what_they_read() {
        let sorted = order(&graph(&[("gold.a", &["silver.b"]), ("silver.b", &["bronze.c"]), ("bronze.c", &["src"])]));
        assert_eq!(sorted.unwrap(), ["bronze.c", "silver.b", "gold.a"]);
    }

    #[test]
    fn a_cycle_is_named() {
        let cycle = order(&graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])])).unwrap_err();
        assert_eq!(cycle, ["b", "c", "b"]);
    }
}
