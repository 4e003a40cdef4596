//! The targets as functions, so that the fuzzer and the ordinary tests run the same code.

pub mod agent;
pub mod streams;
pub mod targets;
