//! How many cores the work of one stage is spread over.

use std::num::NonZero;
use std::thread::available_parallelism;

/// The most for one stage: the rest of the pipeline wants cores too, and each part of the work holds memory of its own.
const STAGE_MAX: usize = 4;

/// Gives how many parts of a stage's work run at once.
pub(crate) fn of_a_stage() -> usize {
    available_parallelism().map_or(1, NonZero::get).min(STAGE_MAX)
}
