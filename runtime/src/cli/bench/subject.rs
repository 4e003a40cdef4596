//! The subject: an in-memory registry, a worker and a requester, each node with one worker thread
//! pinned to a core of its own, and one engagement for `echo` whose job compares every result with
//! its payload.

use std::time::Duration;

use crossbeam::channel::bounded;
use ramjet_bench::arms;
use ramjet_proto::market::AcceptFrom;

use super::super::bench_args::BenchRunArgs;
use super::super::demo::{on_two_cores, wait_advertised};
use super::super::engage::{self, Interrupts, Timeline};
use super::super::exit::{Exit, Failure};
use super::super::host::{self, Threads};
use super::super::identity_file::throw_away;
use super::super::jobs::{Load, Loaded};
use super::super::market;
use super::super::output::Output;
use super::super::settings::{self as s, Settings};
use super::super::up::start_both;
use crate::node::{EngageRequest, Node, NodeConfig};
use crate::skills;
use crate::worker::Idle;

/// Uncounted time at the head of every run of the subject: tunnel, caches, windows.
pub(super) const WARM_UP: Duration = Duration::from_millis(300);
/// How long a run may take beyond its own time.
const DURATION_S: u32 = 900;

/// What a subject runs.
pub(super) struct Spec {
    pub(super) payload: usize,
    pub(super) window: u32,
    pub(super) run: Duration,
    pub(super) pairs: usize,
    pub(super) worker: Threads,
    pub(super) requester: Threads,
}

impl Spec {
    pub(super) fn tasks(args: &BenchRunArgs, settings: &Settings) -> Result<Self, Failure> {
        Spec::of(args, settings, 64, 1_024)
    }

    pub(super) fn latency(args: &BenchRunArgs, settings: &Settings) -> Result<Self, Failure> {
        Spec::of(args, settings, 256, 1)
    }

    pub(super) fn of(
        args: &BenchRunArgs,
        settings: &Settings,
        payload: u32,
        window: u32,
    ) -> Result<Self, Failure> {
        let mut threads = host::threads(settings)?;
        if !settings.is_set(s::IDLE) {
            threads.idle = Idle::Spin;
        }
        let [worker, requester] = on_two_cores(settings, threads);
        Ok(Spec {
            payload: args.payload.unwrap_or(payload) as usize,
            window: args.window.unwrap_or(window),
            run: Duration::from_secs_f64(args.seconds),
            pairs: args.pairs as usize,
            worker,
            requester,
        })
    }

    pub(super) fn method(&self, loop_words: &str) -> String {
        format!(
            "{loop_words}, {} B echo, encrypted, worker on core {}, requester on core {}, {:?} \
             idle, {:?}; {} interleaved pairs of {:.1} s each after {} ms warm-up, medians",
            self.payload,
            core_of(&self.worker),
            core_of(&self.requester),
            self.worker.idle,
            self.worker.io,
            self.pairs,
            self.run.as_secs_f64(),
            WARM_UP.as_millis(),
        )
    }

    pub(super) fn cores(&self) -> Option<arms::Cores> {
        match (self.worker.cores.first(), self.requester.cores.first()) {
            (Some(&server), Some(&client)) => Some(arms::Cores { server, client }),
            _ => None,
        }
    }
}

fn core_of(threads: &Threads) -> String {
    threads
        .cores
        .first()
        .map_or_else(|| "any".to_owned(), usize::to_string)
}

/// One run of the subject, from nothing to nothing.
pub(super) fn measure(spec: &Spec) -> Result<Loaded, Failure> {
    let registry = market::start_in_memory()?;
    let skill = skills::built_in("echo", AcceptFrom::Trusted)
        .map_err(|error| Failure::environment(error.to_string()))?;
    let worker = NodeConfig {
        skills: vec![skill],
        task_ready: true,
        credits: spec.window,
        ..host::bare_node(registry.tcp_addr(), throw_away()?, spec.worker.clone())
    };
    let requester = host::bare_node(registry.tcp_addr(), throw_away()?, spec.requester.clone());
    let (worker, requester) = start_both(worker, requester)?;
    let loaded = wait_advertised(&requester, "echo").and_then(|_| load(spec, &requester));
    let stopped = [requester.shutdown(), worker.shutdown()];
    registry.shutdown();
    let loaded = loaded?;
    for result in stopped {
        result?;
    }
    Ok(loaded)
}

fn load(spec: &Spec, requester: &Node) -> Result<Loaded, Failure> {
    let payload: Vec<u8> = (0_u8..=255).cycle().take(spec.payload).collect();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let (report, reported) = bounded(1);
    let job = Load::new(payload, nanos(WARM_UP), nanos(spec.run), report);
    let events = requester.engage(EngageRequest {
        skill: "echo".to_owned(),
        filters: Vec::new(),
        min_polo: i64::MIN,
        tasks: u64::from(u32::MAX),
        concurrency: spec.window,
        duration_s: DURATION_S,
        accept_deadline_ms: 10_000,
        job: Box::new(job),
    })?;
    // The timeline of a benchmark's engagement is of no interest, and signals end the process.
    let mut quiet = Output::quiet();
    let interrupts = Interrupts::signals(crossbeam::channel::never());
    let mut followed = engage::follow(
        &events,
        &mut quiet,
        &mut Timeline::start(),
        &interrupts,
        &mut |_| {},
    )?;
    drop(followed.end.job.take());
    let loaded = reported
        .recv()
        .map_err(|_| Failure::environment("the job was lost"))?;
    if let Some(failure) = engage::failure_of(&followed.end.outcome, "echo") {
        return Err(failure);
    }
    match &loaded.measured.first_fault {
        Some(fault) => Err(Failure::new(
            Exit::Failed,
            format!("the echo was wrong: {fault}"),
        )),
        None => Ok(loaded),
    }
}
