//! What was typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::load::{Load, PAYLOAD_LEN_MAX, PAYLOAD_LEN_MIN, WINDOW_MAX};
use crate::peer::{Peer, Places, Threads};

/// Most connections of one side.
const CONNECTIONS_MAX: usize = 64;
/// Most turns of a pair of nodes.
const TURNS_MAX: usize = 99;

/// What a user would pick instead of ramjet, measured with the same load.
#[derive(Debug, Parser)]
#[command(name = "ramjet-bench-peers", version, max_term_width = 100)]
#[command(after_help = "\
Exit codes: 0 done, 1 an echo was wrong, 2 wrong argument, 5 the peer is absent, of another version
or does not start, 130 interrupted. `ramjet bench peers` runs all of them beside ramjet.")]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure one peer, closed loop, and print one line of JSON
    Run(RunArgs),
    /// Measure pairs of nodes, daemons and ramjet's, at what plain Pilot programs do
    Nodes(NodesArgs),
    /// Say which peers are here
    List(ListArgs),
    /// The other side of an echo, until standard input ends
    #[command(hide = true)]
    Serve(ServeArgs),
    /// Run a program until standard input ends
    #[command(hide = true)]
    Hold(HoldArgs),
}

/// Where the programs are that do not come with this one.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PlaceArgs {
    /// File of nats-server [default: from PATH, else /usr/sbin/nats-server]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    nats_server: Option<PathBuf>,
    /// Folder that pilotprotocol 1.18.0 was installed into [default: where interop/run does]
    #[arg(long, env = "PILOT_DIR", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pilot_dir: Option<PathBuf>,
    /// File of ramjet, whose registry the Pilot daemons register at [default: beside this program,
    /// else target/release/ramjet]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    ramjet: Option<PathBuf>,
}

impl From<PlaceArgs> for Places {
    fn from(args: PlaceArgs) -> Self {
        Places {
            nats_server: args.nats_server,
            pilot: args.pilot_dir,
            ramjet: args.ramjet,
        }
    }
}

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Which peer
    #[arg(long, value_name = "NAME")]
    pub(crate) peer: Peer,
    /// Bytes of a request and of its reply
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = payload)]
    payload: usize,
    /// Requests outstanding
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = window)]
    window: usize,
    /// Counted seconds
    #[arg(long, default_value = "1", value_name = "S", value_parser = seconds)]
    seconds: Duration,
    /// Uncounted milliseconds before them
    #[arg(long, default_value_t = 300, value_name = "MS")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=60_000))]
    warm_up_ms: u64,
    /// Setting of the peer [default: each is tried briefly and the fastest is taken]
    #[arg(long, value_name = "NAME")]
    pub(crate) setting: Option<String>,
    #[command(flatten)]
    pub(crate) places: PlaceArgs,
    /// Set by the program itself when it has gone there
    #[arg(long, hide = true)]
    pub(crate) inside: Option<Inside>,
}

impl RunArgs {
    /// The load that was asked for.
    pub(crate) fn load(&self) -> Load {
        Load {
            payload_len: self.payload,
            window: self.window,
            warm_up: Duration::from_millis(self.warm_up_ms),
            run: self.seconds,
        }
    }
}

/// Where this process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Inside {
    /// In a network namespace of its own.
    Namespace,
}

/// `nodes`.
#[derive(Debug, Args)]
pub(crate) struct NodesArgs {
    /// Turns of each pair
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = turns)]
    pub(crate) turns: usize,
    /// Print one line of JSON for each measure and pair
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) places: PlaceArgs,
    /// Set by the program itself when it has gone there
    #[arg(long, hide = true)]
    pub(crate) inside: Option<Inside>,
}

/// `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print a line of JSON for each peer
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) places: PlaceArgs,
}

/// `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Which peer
    #[arg(long, value_name = "NAME")]
    pub(crate) peer: Peer,
    /// Threads of the runtime
    #[arg(long, value_name = "HOW")]
    pub(crate) threads: Threads,
    /// Connections to the broker
    #[arg(long, value_name = "N", value_parser = connections)]
    pub(crate) connections: usize,
    /// Address of the broker
    #[arg(long, value_name = "URL")]
    pub(crate) broker: Option<String>,
}

/// `hold`.
#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// File that the program's talk is appended to
    #[arg(long, value_name = "FILE")]
    pub(crate) log: PathBuf,
    /// Pass its standard output on
    #[arg(long)]
    pub(crate) print: bool,
    /// The program
    #[arg(value_name = "PROGRAM")]
    pub(crate) program: PathBuf,
    /// Its arguments
    #[arg(
        value_name = "ARGUMENT",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) arguments: Vec<OsString>,
}

fn bounded(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("must be a whole number from {least} to {most}")),
    }
}

fn payload(text: &str) -> Result<usize, String> {
    bounded(text, PAYLOAD_LEN_MIN, PAYLOAD_LEN_MAX)
}

fn window(text: &str) -> Result<usize, String> {
    bounded(text, 1, WINDOW_MAX)
}

fn turns(text: &str) -> Result<usize, String> {
    bounded(text, 1, TURNS_MAX)
}

fn connections(text: &str) -> Result<usize, String> {
    bounded(text, 1, CONNECTIONS_MAX)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("must be a number of seconds from 0.05 to 600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace()).map(|arguments| arguments.command)
    }

    #[test]
    fn the_command_tree_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_run_has_defaults_and_bounds() {
        let Ok(Command::Run(run)) = parse("p run --peer tonic --window 64 --seconds 0.5") else {
            panic!("a run");
        };
        let load = run.load();
        assert_eq!((load.payload_len, load.window), (64, 64));
        assert_eq!(load.warm_up, Duration::from_millis(300));
        assert_eq!(load.run, Duration::from_millis(500));
        for wrong in [
            "p run",
            "p run --peer redis",
            "p run --peer tonic --window 0",
            "p run --peer tonic --window 4097",
            "p run --peer tonic --payload 7",
            "p run --peer tonic --payload 1101",
            "p run --peer tonic --seconds 0",
            "p run --peer tonic --warm-up-ms 60001",
            "p serve --peer tonic --threads multi --connections 65",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_held_program_keeps_its_own_flags() {
        let Ok(Command::Hold(hold)) = parse("p hold --log l -- prog -a 1 --print --json") else {
            panic!("a held program");
        };
        assert!(!hold.print);
        assert_eq!(hold.program, PathBuf::from("prog"));
        assert_eq!(hold.arguments, ["-a", "1", "--print", "--json"]);
    }
}
