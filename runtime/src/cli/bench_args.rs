//! The arguments of `ramjet bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

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
    /// Side by side with what one would pick instead: tonic, NATS, quinn, the Pilot daemon
    Peers(BenchPeersArgs),
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

/// What to compare with, and how often.
#[derive(Debug, Args)]
pub struct BenchPeersArgs {
    /// Seconds of one run
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = seconds)]
    pub seconds: f64,
    /// Pairs of runs, ours and the peer's, in the order A B B A
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(5..=100))]
    pub pairs: u32,
    /// Payload bytes
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(8..=1100))]
    pub payload: u32,
    /// Tasks outstanding at a time, of which each side's best is looked for
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(default_values_t = [1, 16, 64, 256, 1024])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub windows: Vec<u32>,
    /// Only this peer; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub peer: Vec<String>,
    /// The program with the peers [default: ramjet-bench-peers beside this one, else in
    /// bench/peers/target/release]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub binary: Option<PathBuf>,
    /// Folder that pilotprotocol was installed into [default: where interop/run does]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub pilot_dir: Option<PathBuf>,
    /// File of nats-server [default: from PATH, else /usr/sbin/nats-server]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub nats_server: Option<PathBuf>,
    /// How workers run [default: pinned to two cores, spin]
    #[command(flatten)]
    pub threads: ThreadArgs,
}
