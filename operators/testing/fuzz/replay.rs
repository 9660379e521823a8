//! The kept inputs of targets, and seeded mutations of these, for a plain test.

use std::fs;
use std::path::Path;

use super::Target;

/// The seed, unless `NEXUS_TEST_SEED` gives another.
const SEED: u64 = 2026;

/// What is put into inputs, beside parts of other inputs.
const WORDS: [&[u8]; 16] = [
    b"{", b"}", b"[", b"]", b"\"", b"\\", b"\n", b"\r\n", b",", b":", b"null", b"-1e9", b"\xff", b"\0", b"\\ud83d",
    b"''",
];

/// Gives each target the inputs in the folder of its name, and so many mutations of them.
///
/// # Panics
///
/// Panics after all targets, naming the first input of each on which it has panicked.
pub fn replay(corpus: &Path, targets: &[(&str, Target)], mutations: usize) {
    let seed = std::env::var("NEXUS_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED);
    let mut failures = Vec::new();
    for (name, target) in targets {
        let kept = kept(&corpus.join(name));
        let inputs: Vec<&[u8]> = kept.iter().map(|(_, input)| input.as_slice()).collect();
        let mut random = Random(seed);
        let mutated = (0..mutations)
            .map(|number| (format!("mutation {number} of NEXUS_TEST_SEED={seed}"), mutate(&inputs, &mut random)));
        let failed =
            kept.iter().cloned().chain(mutated).find(|(_, input)| std::panic::catch_unwind(|| target(input)).is_err());
        failures.extend(failed.map(|(from, input)| format!("{name}: {from}: b\"{}\"", input.escape_ascii())));
    }
    assert!(failures.is_empty(), "targets fail, as said above, on\n{}", failures.join("\n"));
}

/// Reads the inputs of a folder, in the order of their names.
fn kept(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder).unwrap_or_else(|e| panic!("there is no corpus in {}: {e}", folder.display()));
    let mut paths: Vec<_> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    paths.sort();
    assert!(!paths.is_empty(), "the corpus in {} is empty", folder.display());
    let read = |path: &std::path::PathBuf| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    paths.iter().map(|path| (path.display().to_string(), read(path))).collect()
}

fn mutate(inputs: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let other = inputs[random.below(inputs.len())];
    let mut input = inputs[random.below(inputs.len())].to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let until = (at + random.below(8)).min(input.len());
        let put = match random.below(5) {
            0 => {
                input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8));
                continue;
            }
            1 => Vec::new(),
            2 => WORDS[random.below(WORDS.len())].to_vec(),
            3 => input[at..until].repeat(2),
            _ => other[random.below(other.len() + 1)..].iter().copied().take(64).collect(),
        };
        input.splice(at..until, put);
    }
    input
}

/// Random numbers that a seed gives again (SplitMix64, Steele and others 2014).
struct Random(u64);

impl Random {
    /// Gives one of the numbers below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end.max(1) as u64).unwrap_or(0)
    }
}
