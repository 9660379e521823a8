#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus_operators::testing::fuzz::{pass_over_contained_panics, target};

fuzz_target!(init: pass_over_contained_panics(), |data: &[u8]| target("archive")(data));
