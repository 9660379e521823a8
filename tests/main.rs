//! Black-box tests of the command `nexus`: real files, real servers, and
//! readers that are not Nexus.
//!
//! One binary: each further one would link DataFusion and the AWS SDKs again.
//! The servers come from `make test-env`.

#![allow(clippy::print_stdout, reason = "what a test prints is shown when it fails")]

mod api;
mod archive;
mod audit;
mod bad_data;
mod balance;
mod book;
mod cases;
mod cli;
mod cloud;
mod compact;
mod connectors;
mod console;
mod corrected;
mod crash;
mod delta;
mod delta_merged;
mod deploy;
mod endless;
mod errors;
mod evolve;
mod fail_points;
mod flights;
mod formats;
#[path = "fuzz/engine.rs"]
mod fuzz_engine;
mod golden;
mod hostile;
mod iam;
mod identity;
mod inputs;
mod keyed;
mod large_record;
mod layout;
mod lineage;
mod memory;
mod newest;
mod nexmark;
mod objects;
mod online;
mod oracle;
mod panics;
mod pictures;
mod pressure;
mod public_api;
mod readers;
mod redrive;
mod reference;
mod refused;
mod resharded;
mod restart;
mod schema;
mod servers;
mod serving;
mod signed;
mod soak;
mod tool;
mod traces;
mod world;
