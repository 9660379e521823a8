//! What fuzzing feeds: for each decoder and parser of what comes from outside, a function that takes any bytes and
//! panics where an invariant does not hold.
//!
//! libFuzzer calls them (`make fuzz`), and a plain test calls them with the kept inputs of `tests/fuzz/corpus` and
//! seeded mutations of these.

mod content;
mod events;
mod framing;
mod json;
mod parquet;
mod reading;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All targets, by the name that their corpus has.
pub const TARGETS: &[(&str, Target)] = &[
    ("content", content::content),
    ("csv", framing::csv),
    ("cut", events::cut),
    ("json", json::json),
    ("json_framing", framing::json),
    #[cfg(feature = "kinesis")]
    ("kpl", events::kpl),
    ("parquet", parquet::parquet),
    ("raw", framing::raw),
    #[cfg(feature = "s3")]
    ("s3_event", events::s3_event),
];

/// Gives a target by its name.
pub fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("there is no target {name}")).1
}

/// Has the panic hook, which under libFuzzer ends the process, pass over panics that are caught where they come from.
pub fn pass_over_contained_panics() {
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !crate::contained::is_contained() {
            end(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Mutations of the kept inputs that each target is given.
    const MUTATIONS: usize = 3_000;

    /// What is put into inputs, beside parts of other inputs.
    const WORDS: [&[u8]; 16] = [
        b"{", b"}", b"[", b"]", b"\"", b"\\", b"\n", b"\r\n", b",", b":", b"null", b"-1e9", b"\xff", b"\0", b"\\ud83d", b"''",
    ];

    #[test]
    fn kept_inputs_and_mutations_of_them_hold() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let given = std::env::var("NEXUS_TEST_SEED").ok();
        let seed = given.map_or(2026, |text| text.parse().expect("NEXUS_TEST_SEED is a number"));
        let mut failures = Vec::new();
        for (name, target) in TARGETS {
            let mut files: Vec<_> = fs::read_dir(corpus.join(name))
                .unwrap_or_else(|e| panic!("there is no corpus of {name}: {e}"))
                .map(|file| file.unwrap().path())
                .collect();
            files.sort();
            let inputs: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
            assert!(!inputs.is_empty(), "the corpus of {name} is empty");
            let mut random = Random(seed);
            let kept = files.iter().map(|file| file.display().to_string()).zip(inputs.iter().cloned());
            let mutated = (0..MUTATIONS).map(|number| {
                (format!("mutation {number} of NEXUS_TEST_SEED={seed}"), mutate(&inputs, &mut random))
            });
            let failed = kept.chain(mutated).find(|(_, input)| std::panic::catch_unwind(|| target(input)).is_err());
            failures.extend(failed.map(|(from, input)| format!("{name}: {from}: b\"{}\"", input.escape_ascii())));
        }
        assert!(failures.is_empty(), "targets fail, see above, on\n{}", failures.join("\n"));
    }

    fn mutate(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
        let mut input = inputs[random.below(inputs.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(input.len() + 1);
            let until = (at + random.below(8)).min(input.len());
            match random.below(5) {
                0 if at < input.len() => input[at] ^= 1 << random.below(8),
                1 => drop(input.drain(at..until)),
                2 => drop(input.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
                3 => {
                    let part = input[at..until].to_vec();
                    input.splice(at..at, part);
                }
                _ => {
                    let other = &inputs[random.below(inputs.len())];
                    let part = other[random.below(other.len() + 1)..].iter().copied().take(64);
                    input.splice(at..until, part);
                }
            }
        }
        input
    }

    /// Random numbers that a seed gives again (SplitMix64, Steele and others 2014).
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap()
        }
    }
}
