//! The source over a stream in memory and over kinesis-local, by the same
//! suite; and over a stream in memory that fails in every way the service does.

mod conformance;
mod fake;
mod faults;
mod local;
mod pushed;
mod resharding;
mod wire;
