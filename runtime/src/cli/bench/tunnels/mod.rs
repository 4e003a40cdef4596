//! `ramjet bench tunnels`: a worker with up to 10,000 tunnels at once, and what that costs.
//!
//! The subject is a worker in a process of its own. Its requesters are driven by one thread of this
//! process: each has its own identity, address, tunnel and engagement, registered at and granted by
//! the registry of this process. The control is another worker process with few tunnels under the
//! same load. The two alternate in the order A B B A, and the one that is not measured is stopped.
//!
//! | file | holds |
//! |---|---|
//! | [`point`] | one number of tunnels: the pairs, and what they come to |
//! | [`market`] | a worker and all its requesters |
//! | [`process`] | the worker's process: start, memory, processor time |
//! | [`recruits`] | identities at the registry: registrations, offers, grants |
//! | [`fleet`], [`requester`], [`wire`], [`echo`] | the generator: all requesters, one of them, their socket, their tasks |
//! | [`report`] | what is printed |
//!
//! Unlike the rest of the command line it drives the protocol itself: a node has one identity, and
//! this takes thousands.

mod echo;
mod fleet;
mod market;
mod point;
mod process;
mod recruits;
mod report;
mod requester;
mod wire;

use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use self::fleet::Load;
pub(super) use self::report::{TunnelsReport, page};
use super::super::args::NodeArgs;
use super::super::bench_args::{DisturbedArgs, TunnelsArgs};
use super::super::demo::on_two_cores;
use super::super::exit::{Exit, Failure};
use super::super::host::{self, Threads};
use super::super::market as registry;
use super::super::node;
use super::super::output::Output;
use super::super::settings::{self as s, Settings};
use super::process::end_with_parent;
use super::subject::WARM_UP;
use crate::worker::{self, Idle};

/// What is measured, and how.
struct Spec {
    worker: Threads,
    generator: Threads,
    /// The cores of this thread before it pins itself.
    cores: CpuSet,
    load: Load,
    run: Duration,
    pairs: usize,
    disturbed: DisturbedArgs,
}

/// The worker's process: `ramjet node`, which ends with the process that started it.
pub(super) fn worker(
    args: &NodeArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    end_with_parent()?;
    node::run(args, settings, output)
}

/// Measures each number of tunnels.
pub(super) fn run(
    args: &TunnelsArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Vec<TunnelsReport>, Failure> {
    let spec = Spec::of(args, settings)?;
    let registry = registry::start_in_memory()?;
    let mut reports = Vec::new();
    output.start_bar(args.tunnels.len() as u64);
    for (index, &tunnels) in args.tunnels.iter().enumerate() {
        output.move_bar(index as u64, || format!("{tunnels} tunnels"));
        let report = point::measure(&spec, registry.tcp_addr(), index, tunnels)
            .map_err(|error| Failure::new(Exit::Failed, format!("{tunnels} tunnels: {error}")))?;
        reports.push(report);
    }
    output.end_bar();
    registry.shutdown();
    Ok(reports)
}

impl Spec {
    fn of(args: &TunnelsArgs, settings: &Settings) -> Result<Self, Failure> {
        let mut threads = host::threads(settings)?;
        if !settings.is_set(s::IDLE) {
            threads.idle = Idle::Spin;
        }
        if args.window < args.burst {
            return Err(Failure::usage(format!(
                "--window: {}, must be at least one --burst of {}",
                args.window, args.burst
            )));
        }
        let [worker, generator] = on_two_cores(settings, threads);
        Ok(Spec {
            worker,
            generator,
            cores: sched_getaffinity(None)
                .map_err(|error| Failure::environment(format!("cores: {error}")))?,
            load: Load {
                burst: args.burst,
                window: args.window,
                payload: args.payload as usize,
            },
            run: Duration::from_secs_f64(args.seconds),
            pairs: args.pairs as usize,
            disturbed: args.disturbed,
        })
    }

    /// Pins this thread, the generator, to its core.
    fn pin(&self) -> Result<(), String> {
        match self.generator.cores.first() {
            Some(&core) => worker::pin(core)
                .map_err(|error| format!("core {core}: cannot pin the generator: {error}")),
            None => Ok(()),
        }
    }

    /// Gives this thread all its cores back.
    fn float(&self) -> Result<(), String> {
        sched_setaffinity(None, &self.cores).map_err(|error| format!("cores: {error}"))
    }

    fn method(&self) -> String {
        let core = |threads: &Threads| {
            let first = threads.cores.first();
            first.map_or_else(|| "any".to_owned(), usize::to_string)
        };
        let load = &self.load;
        format!(
            "closed loop, round robin over all tunnels, bursts of {} tasks, at most {} in flight \
             together, {} B echo, encrypted, every result compared; worker process on core {} \
             ({:?}, {:?}), one generator thread on core {}, an identity and an address for each \
             tunnel; real key exchanges, registrations, offers and grants, no receipts; {} \
             interleaved pairs of {:.2} s each after {} ms warm-up, medians",
            load.burst,
            load.window,
            load.payload,
            core(&self.worker),
            self.worker.idle,
            self.worker.io,
            core(&self.generator),
            self.pairs,
            self.run.as_secs_f64(),
            WARM_UP.as_millis(),
        )
    }
}
