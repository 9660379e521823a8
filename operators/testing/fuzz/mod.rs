//! What fuzzing feeds: for each decoder and parser of what comes from outside, a function that takes any bytes and
//! panics where an invariant does not hold.
//!
//! libFuzzer calls them (`make fuzz`), and a plain test calls them with the kept inputs of `tests/fuzz/corpus` and
//! seeded mutations of these.

mod archive;
mod binary;
mod content;
mod events;
mod framing;
mod json;
mod parquet;
pub(super) mod reading;
mod replay;

pub use replay::replay;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All targets, by the name that their corpus has.
pub const TARGETS: &[(&str, Target)] = &[
    ("archive", archive::archive),
    ("avro", binary::avro),
    ("cloudwatch", binary::cloudwatch),
    ("content", content::content),
    ("csv", framing::csv),
    ("cut", events::cut),
    ("json", json::json),
    ("json_framing", framing::json),
    #[cfg(feature = "kinesis")]
    ("kpl", events::kpl),
    ("parquet", parquet::parquet),
    ("protobuf", binary::protobuf),
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
    use std::path::Path;

    use super::*;

    /// Mutations of the kept inputs that each target is given.
    const MUTATIONS: usize = 2_000;

    #[test]
    fn kept_inputs_and_mutations_of_them_hold() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        replay(&corpus, TARGETS, MUTATIONS);
    }
}
