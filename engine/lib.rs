//! Nexus: an embedded columnar streaming engine.

pub mod spec;

pub use nexus_operators as operators;
