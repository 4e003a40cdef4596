//! `ramjet bench registry`: a registry with 10,000 nodes that are alive, and how long it takes to
//! look one up.
//!
//! The subject is `ramjet registry` in a process of its own, with its log on disk. Its nodes are
//! simulated in this process and speak the real protocol: each has a key, an address and a
//! connection of its own, registers with a signature and sends signed heartbeats. Lookups arrive at
//! a stated rate, spread over all connections and all nodes, and every answer is compared with what
//! the node registered. The control is the same load at another registry with few nodes. The two
//! alternate in the order A B B A.
//!
//! | file | holds |
//! |---|---|
//! | [`crowd`] | the nodes: joining, heartbeats, lookups |
//! | [`load`] | one run at the stated rate |
//! | [`report`] | what is printed |

mod crowd;
mod load;
mod report;

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use ramjet_bench::facts::{Quiet, Watch};
use ramjet_bench::pairs::{PairError, Patience, Watched, interleave_watched};

use self::crowd::{Crowd, Joining};
use self::load::Run;
use self::report::Memory;
pub(super) use self::report::{RegistryReport, page};
use super::super::bench_args::RegistryLoadArgs;
use super::super::descriptors;
use super::super::exit::{Exit, Failure};
use super::super::output::Output;
use super::super::registry;
use super::super::settings::Settings;
use super::process::{Process, end_with_parent};

/// Nodes of the control.
const CONTROL_NODES: usize = 100;
/// How long a registry rests before its memory is read.
const REST: Duration = Duration::from_secs(1);
/// The addresses of the nodes: each gets one of its own from here on.
const SUBJECT_FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
const CONTROL_FIRST: Ipv4Addr = Ipv4Addr::new(127, 16, 0, 1);

/// The server's process: `ramjet registry`, which ends with the process that started it.
pub(super) fn serve(settings: &Settings, output: &mut Output) -> Result<Exit, Failure> {
    end_with_parent()?;
    registry::run(settings, output)
}

/// A registry's process and its nodes.
struct Market {
    // The nodes leave before their registry ends.
    crowd: Crowd,
    server: Process,
    joined_in: Duration,
    /// Resident bytes before the first node and after the last.
    resident: [u64; 2],
}

impl Market {
    fn start(nodes: usize, first: Ipv4Addr, heartbeat: Duration) -> Result<Self, String> {
        let (server, ready) = Process::start("registry", "registry-server", |command| {
            command.args(["--listen", "127.0.0.1:0", "--beacon", "none"]);
        })?;
        let listen: SocketAddr =
            serde_json::from_value(ready.get("listen").cloned().unwrap_or_default())
                .map_err(|error| format!("the registry's address: {error}"))?;
        let before = server.resident_bytes()?;
        let (crowd, joined_in) = Crowd::join(&Joining {
            registry: listen,
            first,
            nodes,
            heartbeat,
        })?;
        thread::sleep(REST);
        Ok(Market {
            resident: [before, server.resident_bytes()?],
            crowd,
            server,
            joined_in,
        })
    }
}

/// Measures.
pub(super) fn run(args: &RegistryLoadArgs, output: &mut Output) -> Result<RegistryReport, Failure> {
    let nodes = args.nodes as usize;
    let places = descriptors::for_connections();
    if nodes + CONTROL_NODES > places {
        return Err(Failure::usage(format!(
            "--nodes: {nodes}, but this process may hold {places} connections; raise the limit of \
             open files (ulimit -n), or take fewer nodes"
        )));
    }
    output.start_bar(2);
    let failed = |error: String| Failure::new(Exit::Failed, error);
    output.move_bar(0, || format!("{nodes} nodes join"));
    let subject = Market::start(nodes, SUBJECT_FIRST, args.heartbeat).map_err(failed)?;
    let control = Market::start(CONTROL_NODES, CONTROL_FIRST, args.heartbeat).map_err(failed)?;
    output.move_bar(1, || "lookups".to_owned());
    let pairs = compare(args, &subject, &control).map_err(failed)?;
    let [before, after] = subject.resident;
    let memory = Memory {
        process_bytes: after,
        node_bytes: after.saturating_sub(before) / u64::from(args.nodes),
    };
    let joined_in = subject.joined_in;
    // A heartbeat that went wrong at any time is an error too.
    subject.crowd.leave().map_err(failed)?;
    control.crowd.leave().map_err(failed)?;
    output.end_bar();
    Ok(RegistryReport::of(args, &pairs, memory, joined_in))
}

/// All pairs of runs.
struct Pairs {
    watched: Watched,
    quiet: Quiet,
    subject: Vec<Run>,
}

fn compare(args: &RegistryLoadArgs, subject: &Market, control: &Market) -> Result<Pairs, String> {
    let patience = Patience {
        retries: args.disturbed.retries,
        force: args.disturbed.force,
    };
    let clocks = [subject.server.clock(), control.server.clock()];
    let servers_cpu_ns =
        || -> Result<u64, String> { Ok(clocks[0].cpu_ns()? + clocks[1].cpu_ns()?) };
    let runs = RefCell::new(Vec::new());
    let length = Duration::from_secs_f64(args.seconds);
    let whole = (Watch::begin(), servers_cpu_ns()?);
    let mut pair = (Watch::begin(), servers_cpu_ns()?);
    let disturbance = || {
        // A registry that is gone fails the next run by its name.
        let now = servers_cpu_ns().unwrap_or(pair.1);
        let (watch, cpu_ns) = std::mem::replace(&mut pair, (Watch::begin(), now));
        let quiet = watch.end_beside(now.saturating_sub(cpu_ns));
        quiet.disturbed.then(|| quiet.reasons.join(", "))
    };
    let watched = interleave_watched(
        args.pairs as usize,
        patience,
        || {
            let run = load::run(&subject.crowd, args.rate, length)?;
            let figure = run.p99_us();
            runs.borrow_mut().push(run);
            Ok(figure)
        },
        || Ok(load::run(&control.crowd, args.rate, length)?.p99_us()),
        disturbance,
    )
    .map_err(|error: PairError<String>| error.to_string())?;
    let quiet = Quiet {
        disturbed: !watched.disturbed.is_empty(),
        reasons: watched.disturbed.clone(),
        ..whole
            .0
            .end_beside(servers_cpu_ns()?.saturating_sub(whole.1))
    };
    // What a left-out pair measured takes no part in the other figures either.
    let runs = runs.into_inner().into_iter().enumerate();
    let kept = runs.filter(|(place, _)| watched.kept.contains(place));
    Ok(Pairs {
        subject: kept.map(|(_, run)| run).collect(),
        quiet,
        watched,
    })
}
