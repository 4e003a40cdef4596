//! What was typed.
//!
//! Flags that are settings arrive as text and mean nothing until [`super::settings`] has laid them
//! over the environment and the file; flags of one call are read here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use ramjet_proto::market::Filter;

use super::agent_args::{FileArgs, MessageArgs, TaskArgs, TrustArgs};
use super::arg_groups::{AskArgs, IdentityArgs, MarketArgs, RulesArgs, ServeArgs, ThreadArgs};
use super::bench_args::{BenchArgs, BenchCommand};
use super::doctor::DoctorArgs;
use super::settings::{self as s, Layer};
use crate::port::Form;
use crate::port::launch::Launch;

/// A worker runtime for Pilot Protocol task markets.
#[derive(Debug, Parser)]
#[command(
    name = "ramjet",
    version,
    max_term_width = 100,
    subcommand_required = true
)]
#[command(after_help = "\
Settings may also stand in the environment (--task-ready is RAMJET_TASK_READY) and in a TOML file
(task-ready = true) named by --config or RAMJET_CONFIG, else ~/.config/ramjet/ramjet.toml, else
/etc/ramjet/ramjet.toml. Flags win over the environment, the environment over the file.

Exit codes: 0 done, 1 the work failed, 2 wrong argument or setting, 3 nobody matched or took the
offer in time, 4 refused (the polo gate and others), 5 the host is in the way (registry unreachable,
port in use, io_uring blocked), 130 interrupted.")]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Print JSON on standard output, one value a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Settings file (TOML)
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// What to log on standard error: error, warn, info, debug, trace, or a filter such as
    /// ramjet=debug
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// Form of the log: auto, text, json or journal; auto is the journal where systemd leads standard
    /// error there, else text
    #[arg(long, global = true, value_name = "FORM")]
    pub log_format: Option<String>,
    /// Colours: auto, always or never
    #[arg(long, global = true, value_name = "WHEN")]
    pub color: Option<String>,
}

impl CommonArgs {
    fn layer(&self) -> Layer {
        Layer::default()
            .set(s::LOG, &self.log)
            .set(s::LOG_FORMAT, &self.log_format)
            .set(s::COLOR, &self.color)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show it all on this machine: a registry, a worker, a requester, and real text
    Demo(DemoArgs),
    /// Run one host: registry and worker in one process, until stopped
    Up(UpArgs),
    /// Run the market: discovery, matching, settlement
    Registry(RegistryArgs),
    /// Run a worker, until stopped
    Node(NodeArgs),
    /// List workers by polo
    Resolve(ResolveArgs),
    /// Have a task done, or one for each line of a file
    Submit(SubmitArgs),
    /// Send a message to an agent
    Message(MessageArgs),
    /// Send a file to an agent
    File(FileArgs),
    /// Trust between this node and others: list, ask, approve, reject, revoke
    Trust(TrustArgs),
    /// Hand a task to a plain Pilot agent, or look at those handed over
    Task(TaskArgs),
    /// Show the standing of a node
    Polo(PoloArgs),
    /// Show what the local node does
    Status(StatusArgs),
    /// List engagements, newest first
    Engagements(EngagementsArgs),
    /// Measure this machine and this build
    Bench(BenchArgs),
    /// Say what this host lacks, what it costs, and the command that mends it
    Doctor(DoctorArgs),
    /// Run the program of an agent, as the node starts it
    #[command(hide = true)]
    AgentRun(AgentRunArgs),
    /// Write manual pages and shell completions, for packages
    #[command(hide = true)]
    Generate {
        /// Folder to write them to
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

/// `ramjet agent-run`: for the node itself.
#[derive(Debug, Args)]
pub struct AgentRunArgs {
    /// How the program is spoken to: port, lines, frames, or program behind an adapter
    #[arg(long)]
    #[arg(value_parser = ["port", "lines", "frames", "program"])]
    pub form: String,
    /// Skill that it runs
    #[arg(long)]
    pub skill: String,
    /// Process that starts it
    #[arg(long)]
    pub parent: u32,
    /// Program and arguments
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

impl AgentRunArgs {
    /// What they mean.
    pub fn launch(&self) -> Launch {
        let forms = [Form::Port, Form::Lines, Form::Frames];
        Launch {
            form: forms.into_iter().find(|form| form.label() == self.form),
            skill: self.skill.clone(),
            parent: self.parent,
            command: self.command.clone(),
        }
    }
}

/// `ramjet demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Text files, a task for each line that is not empty; without any, the Universal Declaration
    /// of Human Rights in some 60 languages
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// Built-in skill that does the tasks
    #[arg(long, default_value = "langid", value_name = "NAME")]
    pub skill: String,
    /// Micro-tasks in all: the lines are gone through until there are as many
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub tasks: u64,
    /// Tasks outstanding at a time
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: u32,
    /// How its workers run
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// `ramjet up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// TCP address of the registry [default: 127.0.0.1:9000]
    #[arg(long, value_name = "ADDR")]
    pub registry_listen: Option<String>,
    /// UDP address of the registry's beacon, or none [default: 127.0.0.1:9001]
    #[arg(long, value_name = "ADDR")]
    pub registry_beacon: Option<String>,
    /// How the registry runs
    #[command(flatten)]
    pub rules: RulesArgs,
    /// Who the node is
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// Local socket [default: ramjet.sock in the state folder]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<String>,
    /// What the node offers
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// `ramjet registry`.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// TCP address [default: 127.0.0.1:9000]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// UDP address of the beacon, or none [default: 127.0.0.1:9001]
    #[arg(long, value_name = "ADDR")]
    pub beacon: Option<String>,
    /// Folder of its log [default: $STATE_DIRECTORY, else ~/.local/state/ramjet/registry]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<String>,
    /// How it runs
    #[command(flatten)]
    pub rules: RulesArgs,
    /// TCP address of its Prometheus metrics, at /metrics; whoever reaches it may read them
    /// [default: none]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<String>,
    /// URL of an OpenTelemetry collector that its metrics are pushed to every 15 s, as
    /// http://127.0.0.1:4318/v1/metrics [default: none]
    #[arg(long, value_name = "URL")]
    pub metrics_push: Option<String>,
}

/// `ramjet node`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Which market
    #[command(flatten)]
    pub market: MarketArgs,
    /// Who it is
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// Local socket [default: ramjet.sock in the state folder]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<String>,
    /// What it offers
    #[command(flatten)]
    pub serve: ServeArgs,
    /// TCP address of its Prometheus metrics, at /metrics; whoever reaches it may read them
    /// [default: none]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<String>,
    /// URL of an OpenTelemetry collector that its metrics are pushed to every 15 s, as
    /// http://127.0.0.1:4318/v1/metrics [default: none]
    #[arg(long, value_name = "URL")]
    pub metrics_push: Option<String>,
    /// Node to trust, by its number; may be repeated
    #[arg(long, value_name = "NODE")]
    pub trust: Vec<u32>,
}

impl NodeArgs {
    fn layer(&self, layer: Layer) -> Layer {
        let layer = layer
            .set(s::SOCKET, &self.socket)
            .set(s::METRICS, &self.metrics)
            .set(s::METRICS_PUSH, &self.metrics_push);
        self.serve
            .layer(self.identity.layer(self.market.layer(layer)))
    }
}

/// `ramjet resolve`.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// Only workers with this capability: task-ready, or K=V as in --filter
    #[arg(long, value_name = "NAME")]
    pub capability: Vec<String>,
    /// Only workers whose capability K holds V, as in skills=langid; may be repeated
    #[arg(long, value_name = "K=V")]
    pub filter: Vec<Filter>,
    /// Least polo
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub min_polo: Option<i64>,
    /// Most rows
    #[arg(long, default_value_t = 100, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Whom to ask
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `ramjet submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// Skill wanted
    #[arg(long, value_name = "NAME")]
    pub skill: String,
    /// What to send
    #[command(flatten)]
    pub input: InputArgs,
    /// Only workers whose capability K holds V; may be repeated
    #[arg(long, value_name = "K=V")]
    pub filter: Vec<Filter>,
    /// Least polo of the worker
    #[arg(long, default_value_t = i64::MIN, hide_default_value = true)]
    #[arg(value_name = "N", allow_negative_numbers = true)]
    pub min_polo: i64,
    /// How long the work may take, as in 30s or 5m
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = duration)]
    pub timeout: Duration,
    /// How long to wait for a worker to accept; then it costs 1 polo
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub accept_timeout: Duration,
    /// Tasks outstanding at a time, with --lines
    #[arg(long, default_value_t = 256, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub window: u32,
    /// Reject the results: the worker earns nothing for them
    #[arg(long)]
    pub reject: bool,
    /// When a worker is lost, offer the tasks without an answer again, this many times
    #[arg(long, default_value_t = 0, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    pub resubmit: u32,
    /// Socket of the local node that submits [default: requester.sock or ramjet.sock in the state
    /// folder]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, conflicts_with = "registry")]
    pub socket: Option<String>,
    /// With --registry: who submits; without --identity and --state, somebody new
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// Which market, to do without a local node
    #[command(flatten)]
    pub market: MarketArgs,
    /// How its worker runs, without a local node
    #[command(flatten)]
    pub threads: ThreadArgs,
}

/// Exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct InputArgs {
    /// One task with this payload
    #[arg(long, value_name = "TEXT")]
    pub data: Option<String>,
    /// One task with this file as its payload; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// A task for each line of this file; - is standard input. Results are printed in the order of
    /// the lines
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub lines: Option<PathBuf>,
}

/// `ramjet polo`.
#[derive(Debug, Args)]
pub struct PoloArgs {
    /// Node number, address or hostname; the local node if left away
    pub who: Option<String>,
    /// Whom to ask
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `ramjet status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Socket of the local node [default: ramjet.sock in the state folder]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<String>,
    /// State folder of the local node [default: $STATE_DIRECTORY, else ~/.local/state/ramjet]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub state: Option<String>,
}

/// `ramjet engagements`.
#[derive(Debug, Args)]
pub struct EngagementsArgs {
    /// Node number, address or hostname; all engagements if left away
    pub who: Option<String>,
    /// Most rows
    #[arg(long, default_value_t = 20, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Whom to ask
    #[command(flatten)]
    pub ask: AskArgs,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a time with its unit, as in 30s or 5m"))?;
    if duration.is_zero() {
        Err("must be longer than 0".to_owned())
    } else {
        Ok(duration)
    }
}

/// A time in seconds, for a run of a benchmark.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number of seconds from 0.05 to 600".to_owned()),
    }
}

impl RegistryArgs {
    fn layer(&self, layer: Layer) -> Layer {
        self.rules.layer(
            layer
                .set(s::LISTEN, &self.listen)
                .set(s::BEACON, &self.beacon)
                .set(s::STATE, &self.state)
                .set(s::METRICS, &self.metrics)
                .set(s::METRICS_PUSH, &self.metrics_push),
        )
    }
}

impl Cli {
    /// The settings among the flags.
    pub fn layer(&self) -> Layer {
        let common = self.common.layer();
        match &self.command {
            Command::Demo(demo) => demo.threads.layer(common),
            Command::Up(up) => {
                let layer = common
                    .set(s::REGISTRY_LISTEN, &up.registry_listen)
                    .set(s::REGISTRY_BEACON, &up.registry_beacon)
                    .set(s::SOCKET, &up.socket);
                up.serve.layer(up.identity.layer(up.rules.layer(layer)))
            }
            Command::Registry(registry) => registry.layer(common),
            Command::Node(node) => node.layer(common),
            Command::Resolve(resolve) => resolve.ask.layer(common),
            Command::Submit(submit) => {
                let layer = common.set(s::SOCKET, &submit.socket);
                submit
                    .threads
                    .layer(submit.identity.layer(submit.market.layer(layer)))
            }
            Command::Message(message) => message.node.layer(common),
            Command::File(file) => file.node.layer(common),
            Command::Trust(trust) => trust.node.layer(common),
            Command::Task(task) => task.node.layer(common),
            Command::Polo(polo) => polo.ask.layer(common),
            Command::Status(status) => common
                .set(s::SOCKET, &status.socket)
                .set(s::STATE, &status.state),
            Command::Engagements(engagements) => engagements.ask.layer(common),
            Command::Bench(bench) => match &bench.what {
                BenchCommand::Tasks(tasks) => tasks.run.threads.layer(tasks.target.layer(common)),
                BenchCommand::Latency(latency) => {
                    latency.run.threads.layer(latency.target.layer(common))
                }
                BenchCommand::Soak(soak) => soak.threads.layer(soak.target.layer(common)),
                BenchCommand::Fairness(fairness) => fairness.threads.layer(common),
                BenchCommand::Limits(_) => common,
                BenchCommand::Peers(peers) => peers.threads.layer(common),
                BenchCommand::Tunnels(tunnels) => tunnels.threads.layer(common),
                BenchCommand::TunnelsWorker(node) => node.layer(common),
                BenchCommand::Registry(_) => common,
                BenchCommand::RegistryServer(registry) => registry.layer(common),
            },
            Command::Doctor(_) | Command::AgentRun(_) | Command::Generate { .. } => common,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::settings::Settings;
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_that_are_settings_reach_the_layer_of_their_command() {
        let line = "ramjet node --registry 127.0.0.1:1 --skill echo --skill langid,sha256 \
                    --task-ready --public=false --capability model=m --cores 0,1";
        let cli = parse(line).expect("valid");
        let settings = Settings::resolve(cli.layer(), [], None).expect("no other source");
        assert_eq!(settings.texts(s::SKILL), ["echo", "langid", "sha256"]);
        assert_eq!(settings.flag(s::TASK_READY), Ok(Some(true)));
        assert_eq!(settings.flag(s::PUBLIC), Ok(Some(false)));
        assert_eq!(settings.texts(s::CORES), ["0", "1"]);
        assert_eq!(settings.texts(s::CAPABILITY), ["model=m"]);
        let registry = parse("ramjet registry --listen 127.0.0.1:2 --beacon none").expect("valid");
        let settings = Settings::resolve(registry.layer(), [], None).expect("no other source");
        assert_eq!(settings.text(s::LISTEN).as_deref(), Some("127.0.0.1:2"));
        assert_eq!(settings.text(s::BEACON).as_deref(), Some("none"));
        let up = parse("ramjet up --registry-listen 127.0.0.1:3").expect("valid");
        let settings = Settings::resolve(up.layer(), [], None).expect("no other source");
        assert_eq!(
            settings.text(s::REGISTRY_LISTEN).as_deref(),
            Some("127.0.0.1:3")
        );
        assert!(!settings.is_set(s::LISTEN));
    }

    #[test]
    fn submit_takes_exactly_one_input() {
        assert!(parse("ramjet submit --skill echo --data x").is_ok());
        assert!(parse("ramjet submit --skill echo").is_err());
        assert!(parse("ramjet submit --skill echo --data x --lines -").is_err());
        assert!(parse("ramjet submit --skill echo --data x --socket s --registry r:1").is_err());
    }

    #[test]
    fn bounds_of_a_call_are_checked() {
        for line in [
            "ramjet demo --tasks 0",
            "ramjet demo --window 4097",
            "ramjet submit --skill echo --data x --timeout 0s",
            "ramjet submit --skill echo --data x --timeout 5",
            "ramjet resolve --limit 1001",
            "ramjet resolve --filter skills",
            "ramjet bench tasks --seconds 0",
            "ramjet bench peers --pairs 4",
            "ramjet bench peers --windows 1,0",
            "ramjet bench peers --windows 4097",
            "ramjet bench peers --payload 7",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        let Command::Submit(submit) =
            parse("ramjet submit --skill echo --data x --min-polo -3 --timeout 1m30s")
                .expect("valid")
                .command
        else {
            panic!("submit");
        };
        assert_eq!(
            (submit.min_polo, submit.timeout),
            (-3, Duration::from_secs(90))
        );
    }

    #[test]
    fn peers_are_compared_over_five_windows_unless_others_are_named() {
        let peers = |line: &str| match parse(line).expect("valid").command {
            Command::Bench(BenchArgs {
                what: BenchCommand::Peers(peers),
            }) => peers,
            other => panic!("{other:?}"),
        };
        let default = peers("ramjet bench peers");
        assert_eq!(default.windows, [1, 16, 64, 256, 1024]);
        assert_eq!((default.pairs, default.payload), (5, 64));
        assert!(default.peer.is_empty() && default.binary.is_none());
        let named = peers("ramjet bench peers --windows 8,32 --peer nats --peer quinn --io mmsg");
        assert_eq!(named.windows, [8, 32]);
        assert_eq!(named.peer, ["nats", "quinn"]);
        assert_eq!(named.threads.io.as_deref(), Some("mmsg"));
    }

    #[test]
    fn json_may_stand_before_or_after_the_command() {
        for line in ["ramjet --json status", "ramjet status --json"] {
            assert!(parse(line).expect("valid").common.json, "{line}");
        }
    }
}
