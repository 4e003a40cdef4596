//! The arguments of `ramjet bench`.

use clap::{Args, Subcommand};

use super::arg_groups::ThreadArgs;
use super::args::seconds;

/// `ramjet bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Closed loop: 64-byte echo tasks a second from one requester core to one worker core
    Tasks(BenchRunArgs),
    /// One task of 256 bytes outstanding: the round trip
    Latency(BenchRunArgs),
    /// What the machine can do without us: system calls, cipher, loopback
    Limits(BenchLimitsArgs),
}

/// How long and how often to measure.
#[derive(Debug, Args)]
pub struct BenchRunArgs {
    /// Seconds of one run
    #[arg(long, default_value_t = 1.0, value_name = "S", value_parser = seconds)]
    pub seconds: f64,
    /// Pairs of runs, ours and the control arm, in the order A B B A
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(5..=100))]
    pub pairs: u32,
    /// Payload bytes [default: 64 for tasks, 256 for latency]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1200))]
    pub payload: Option<u32>,
    /// Tasks outstanding at a time [default: 1024 for tasks, 1 for latency]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: Option<u32>,
    /// How workers run [default: pinned to two cores, spin]
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// How long to measure.
#[derive(Debug, Args)]
pub struct BenchLimitsArgs {
    /// Seconds of one run
    #[arg(long, default_value_t = 1.0, value_name = "S", value_parser = seconds)]
    pub seconds: f64,
}
