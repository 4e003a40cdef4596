//! The arguments of `ramjet bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use ramjet_bench::schedule::{Arrivals, RATE_MAX, RATE_MIN};

use super::arg_groups::{IdentityArgs, MarketArgs, ThreadArgs};
use super::args::{NodeArgs, RegistryArgs, duration, seconds};
use super::settings::Layer;

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
    Tasks(BenchTasksArgs),
    /// One task of 256 bytes outstanding: the round trip; with --rate or --ladder an open loop of
    /// 64-byte tasks at stated rates
    Latency(BenchLatencyArgs),
    /// A stated rate for a stated time: what drifts, leaks or is lost
    Soak(BenchSoakArgs),
    /// A requester of small tasks beside one that saturates the worker with long ones: its p99 beside
    /// the other over its p99 alone
    Fairness(BenchFairnessArgs),
    /// What the machine can do without us: system calls, cipher, loopback
    Limits(BenchLimitsArgs),
    /// Side by side with what one would pick instead: tonic, NATS, quinn, the Pilot daemon
    Peers(BenchPeersArgs),
    /// A worker with up to 10,000 tunnels at once: tasks a second beside 4 tunnels, memory of each
    Tunnels(TunnelsArgs),
    /// The worker of `tunnels`, in a process of its own
    #[command(hide = true)]
    TunnelsWorker(Box<NodeArgs>),
    /// A registry with 10,000 nodes that are alive: how long a lookup takes, memory of each node
    Registry(RegistryLoadArgs),
    /// The server of `registry`, in a process of its own
    #[command(hide = true)]
    RegistryServer(Box<RegistryArgs>),
}

/// How long and how often to measure.
#[derive(Debug, Args)]
pub struct BenchRunArgs {
    /// Seconds of one run of a pair
    #[arg(long, default_value_t = 1.0, value_name = "S", value_parser = seconds)]
    pub seconds: f64,
    /// Pairs of runs, ours and the control arm, in the order A B B A
    #[arg(long, default_value_t = 7, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(5..=100))]
    pub pairs: u32,
    /// Payload bytes, up to 16777216; beyond 1310 they travel in parts [default: 64; 256 for latency
    /// with one outstanding]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub payload: Option<u32>,
    /// Tasks outstanding at a time [default: 1024 for tasks, or what 8 MiB hold of long payloads, 1
    /// for latency; an open loop may have up to so many, default 1024, on a ladder the best of 256,
    /// 1024 and 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: Option<u32>,
    /// How workers run [default: pinned to two cores, spin]
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// What is asked of whom.
#[derive(Debug, Default, Args)]
pub struct TargetArgs {
    /// Skill to use: a built-in one, or with --registry any that a worker offers [default: echo]
    #[arg(long, value_name = "NAME")]
    pub skill: Option<String>,
    /// What each task carries, instead of made-up bytes
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["payload", "data_file"])]
    pub data: Option<String>,
    /// File with what each task carries; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with = "payload")]
    pub data_file: Option<PathBuf>,
    /// With --registry: who asks; without --identity and --state, somebody new
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// With --registry a worker of that market is measured, else one in this process
    #[command(flatten)]
    pub market: MarketArgs,
}

impl TargetArgs {
    pub(super) fn layer(&self, layer: Layer) -> Layer {
        self.identity.layer(self.market.layer(layer))
    }
}

/// What to do about a disturbed machine.
#[derive(Clone, Copy, Debug, Args)]
pub struct DisturbedArgs {
    /// How often a run is repeated in which the machine did something else
    #[arg(long, default_value_t = 3, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: u32,
    /// Print figures of disturbed runs too, marked as such
    #[arg(long)]
    pub force: bool,
}

/// Where a report goes.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Write a report as one HTML page with its plots
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report: Option<PathBuf>,
    /// Write everything the report shows, and the distributions, as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report_json: Option<PathBuf>,
}

/// What `ramjet bench tasks` is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TasksControl {
    /// The segmented echo with AES-256-GCM, over datagrams as long as ours, times our tasks in each:
    /// what the kernel and the cipher leave us
    Cipher,
    /// The segmented echo without protocol and cipher, a datagram a task
    Plain,
    /// The same tasks over our other backend, recvmmsg and sendmmsg
    Mmsg,
    /// The same tasks without metrics: ours then serve them and are scraped every second
    Metrics,
}

/// `ramjet bench tasks`.
#[derive(Debug, Args)]
pub struct BenchTasksArgs {
    /// What is run
    #[command(flatten)]
    pub run: BenchRunArgs,
    /// What it is held to; a case for each
    #[arg(
        long = "control",
        value_enum,
        default_value = "cipher",
        value_name = "ARM"
    )]
    pub controls: Vec<TasksControl>,
    /// Most tasks in a datagram [default: as many as fit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub tasks_per_datagram: Option<u16>,
    /// Longest datagram to try on the path, in bytes [default: what loopback carries]
    #[arg(long, value_name = "N")]
    pub datagram_len_max: Option<usize>,
    /// What is asked of whom
    #[command(flatten)]
    pub target: TargetArgs,
    /// Also run the control against itself: what ratio this machine reports when nothing differs
    #[arg(long)]
    pub twin: bool,
    /// What to do about a disturbed machine
    #[command(flatten)]
    pub disturbed: DisturbedArgs,
    /// Where a report goes
    #[command(flatten)]
    pub report: ReportArgs,
}

/// `ramjet bench latency`.
#[derive(Debug, Args)]
pub struct BenchLatencyArgs {
    /// What is run
    #[command(flatten)]
    pub run: BenchRunArgs,
    /// What is asked of whom
    #[command(flatten)]
    pub target: TargetArgs,
    /// Also run the control against itself: what ratio this machine reports when nothing differs
    #[arg(long, conflicts_with_all = ["rate", "ladder"])]
    pub twin: bool,
    /// Open loop at this many tasks a second
    #[arg(long, value_name = "N", value_parser = rate, conflicts_with = "ladder")]
    pub rate: Option<f64>,
    /// Open loop at 10, 25, 50, 70, 80 and 90 % of the capacity, which is measured first
    #[arg(long)]
    pub ladder: bool,
    /// What the shares of the ladder are of, in tasks a second, instead of measuring it
    #[arg(long, value_name = "N", value_parser = rate, requires = "ladder")]
    pub capacity: Option<f64>,
    /// How long each rate is held
    #[arg(long = "for", default_value = "3s", value_name = "TIME", value_parser = duration)]
    pub length: Duration,
    /// When tasks are due
    #[command(flatten)]
    pub arrivals: ArrivalArgs,
    /// Where histograms go
    #[command(flatten)]
    pub logs: LogArgs,
    /// What to do about a disturbed machine
    #[command(flatten)]
    pub disturbed: DisturbedArgs,
    /// Where a report goes
    #[command(flatten)]
    pub report: ReportArgs,
}

/// When the tasks of an open loop are due.
#[derive(Clone, Copy, Debug, Args)]
pub struct ArrivalArgs {
    /// How tasks arrive
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub arrivals: ArrivalKind,
    /// What decides the gaps between Poisson arrivals
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// How tasks arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ArrivalKind {
    /// Independently of each other
    #[default]
    Poisson,
    /// At a fixed interval
    Fixed,
}

impl From<ArrivalKind> for Arrivals {
    fn from(kind: ArrivalKind) -> Self {
        match kind {
            ArrivalKind::Poisson => Arrivals::Poisson,
            ArrivalKind::Fixed => Arrivals::Fixed,
        }
    }
}

/// Where the histograms of an open loop go.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Write the latencies of each second as an HdrHistogram interval log; on a ladder the load is
    /// put before the extension, as in x-50.hlog
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub hlog: Option<PathBuf>,
    /// Write the percentile distribution as HdrHistogram's plotters read it; named as with --hlog
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub hgrm: Option<PathBuf>,
}

/// `ramjet bench soak`.
#[derive(Debug, Args)]
pub struct BenchSoakArgs {
    /// Tasks a second
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: f64,
    /// How long the rate is held, up to 23h
    #[arg(long = "for", default_value = "60s", value_name = "TIME", value_parser = soak_length)]
    pub length: Duration,
    /// Length of an interval
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub interval: Duration,
    /// Payload bytes
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1200))]
    pub payload: u32,
    /// Tasks that may be outstanding at a time
    #[arg(long, default_value_t = 1_024, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: u32,
    /// When tasks are due
    #[command(flatten)]
    pub arrivals: ArrivalArgs,
    /// Print latencies of intervals in which the machine did something else, and of a run that does
    /// not count, marked as such
    #[arg(long)]
    pub force: bool,
    /// Where histograms go
    #[command(flatten)]
    pub logs: LogArgs,
    /// Where a report goes
    #[command(flatten)]
    pub report: ReportArgs,
    /// What is asked of whom
    #[command(flatten)]
    pub target: TargetArgs,
    /// How workers run [default: pinned to two cores, spin]
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// `ramjet bench fairness`.
#[derive(Debug, Args)]
pub struct BenchFairnessArgs {
    /// Seconds of one run of a pair
    #[arg(long, default_value_t = 3.0, value_name = "S", value_parser = seconds)]
    pub seconds: f64,
    /// Pairs of runs, beside the greedy requester and alone, in the order A B B A
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(5..=100))]
    pub pairs: u32,
    /// Tasks a second of the modest requester
    #[arg(long, default_value_t = 1_000.0, value_name = "N", value_parser = rate)]
    pub rate: f64,
    /// Its payload bytes
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub payload: u32,
    /// Tasks that it may have outstanding
    #[arg(long, default_value_t = 1_024, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: u32,
    /// Payload bytes of the greedy requester
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub greedy_payload: u32,
    /// Tasks that it keeps outstanding
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub greedy_window: u32,
    /// What to do about a disturbed machine
    #[command(flatten)]
    pub disturbed: DisturbedArgs,
    /// Where a report goes
    #[command(flatten)]
    pub report: ReportArgs,
    /// How workers run [default: pinned, spin]
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// How long to measure.
#[derive(Debug, Args)]
pub struct BenchLimitsArgs {
    /// Seconds of one run
    #[arg(long, default_value_t = 1.0, value_name = "S", value_parser = seconds)]
    pub seconds: f64,
    /// What to do about a disturbed machine
    #[command(flatten)]
    pub disturbed: DisturbedArgs,
    /// Where a report goes
    #[command(flatten)]
    pub report: ReportArgs,
}

/// How many tunnels, and how to load them.
#[derive(Debug, Args)]
pub struct TunnelsArgs {
    /// Numbers of tunnels to measure, each with a worker of its own
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = tunnels)]
    #[arg(default_value = "1,4,100,1000,10000")]
    pub tunnels: Vec<usize>,
    /// Seconds of one run
    #[arg(long, default_value_t = 1.0, value_name = "S", value_parser = seconds)]
    pub seconds: f64,
    /// Pairs of runs, so many tunnels and 4, in the order A B B A
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(5..=100))]
    pub pairs: u32,
    /// Payload bytes
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(8..=1200))]
    pub payload: u32,
    /// Tasks that a tunnel sends in one go
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub burst: u32,
    /// Tasks in flight on all tunnels together
    #[arg(long, default_value_t = 1024, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: u32,
    /// How the worker runs [default: pinned to a core, spin]
    #[command(flatten)]
    pub threads: ThreadArgs,
    /// What to do about a disturbed machine
    #[command(flatten)]
    pub disturbed: DisturbedArgs,
    /// Where a report goes
    #[command(flatten)]
    pub report: ReportArgs,
}

/// How many nodes, and how to load their registry.
#[derive(Debug, Args)]
pub struct RegistryLoadArgs {
    /// Nodes, each with a key, an address and a connection of its own
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub nodes: u32,
    /// Lookups a second, over all connections
    #[arg(long, default_value_t = 2_000.0, value_name = "N", value_parser = rate)]
    pub rate: f64,
    /// Seconds of one run
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = seconds)]
    pub seconds: f64,
    /// Between two heartbeats of a node
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    pub heartbeat: Duration,
    /// Pairs of runs, so many nodes and 100 at another registry, in the order A B B A
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(5..=100))]
    pub pairs: u32,
    /// What to do about a disturbed machine
    #[command(flatten)]
    pub disturbed: DisturbedArgs,
    /// Where a report goes
    #[command(flatten)]
    pub report: ReportArgs,
}

/// Most tunnels that a worker may be told to hold.
const TUNNELS_MAX: usize = 65_536;

fn tunnels(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(number) if (1..=TUNNELS_MAX).contains(&number) => Ok(number),
        _ => Err(format!("must be a number from 1 to {TUNNELS_MAX}")),
    }
}

/// Tasks a second.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (RATE_MIN..=RATE_MAX).contains(&rate) => Ok(rate),
        _ => Err(format!(
            "must be a number of tasks a second from {RATE_MIN} to {RATE_MAX}"
        )),
    }
}

/// Longest soak: an engagement may last a day.
const SOAK_MAX: Duration = Duration::from_secs(23 * 3_600);

fn soak_length(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(length) if (Duration::from_secs(1)..=SOAK_MAX).contains(&length) => Ok(length),
        Ok(_) => Err("must be from 1s to 23h".to_owned()),
        Err(error) => Err(error.to_string()),
    }
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
