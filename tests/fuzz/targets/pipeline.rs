#![no_main]

#[allow(dead_code, reason = "each target has its own function")]
#[path = "../engine.rs"]
mod engine;

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::pipeline(data));
