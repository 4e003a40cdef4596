//! The targets as functions, so that the fuzzer and the ordinary tests run the same code.

pub mod targets;
