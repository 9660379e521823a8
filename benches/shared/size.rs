//! How much is measured, and how little where a bench is only tried, as the tests do.

/// Tells whether times count.
pub fn measures() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Gives the first where times count.
pub fn of(measured: u64, tried: u64) -> u64 {
    if measures() { measured } else { tried }
}
