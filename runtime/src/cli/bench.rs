//! `ramjet bench tasks|latency|limits`: first form of the benchmark.
//!
//! The subject is the whole path in one process: an in-memory registry, a worker and a requester,
//! each with one worker thread pinned to a core of its own, an engagement for `echo`, and a job
//! that compares every result with its payload. The control is the same kernel path without our
//! protocol ([`ramjet_bench::arms`]). The two alternate in the order A B B A, and the nodes are
//! stopped while the control runs, so that neither takes the other's core.
//!
//! `--json` prints one object a case: `case`, `tasks_per_s`, `p50_us`, `p99_us`, `control`, `ratio`
//! with its interval, `method`, and what disturbed the run.

use std::time::Duration;

use crossbeam::channel::bounded;
use ramjet_bench::arms::{
    self, AesGcm, ArmResult, GsoEcho, MmsgEcho, Payload, RoundTrip, WaitMode,
};
use ramjet_bench::facts::{MachineFacts, Watch};
use ramjet_bench::pairs::interleave;
use ramjet_bench::report::{self, CaseReport, Compares};
use ramjet_proto::market::AcceptFrom;

use super::args::{BenchArgs, BenchCommand, BenchLimitsArgs, BenchRunArgs};
use super::demo::{on_two_cores, wait_advertised};
use super::engage::{self, Interrupts, Timeline};
use super::exit::{Exit, Failure};
use super::host::{self, Threads};
use super::identity_file::throw_away;
use super::jobs::{Load, Loaded};
use super::market;
use super::output::{Output, micros, per_second};
use super::settings::{self as s, Settings};
use super::up::start_both;
use crate::node::{EngageRequest, Node, NodeConfig};
use crate::skills;
use crate::worker::Idle;

/// Uncounted time at the head of every run of the subject: tunnel, caches, windows.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long a run may take beyond its own time.
const DURATION_S: u32 = 900;
/// Datagrams of the limits: a small task, a middling one, and a full one.
const DATAGRAM_LENS: [usize; 3] = [64, 256, 1_400];
/// Window of the limits' echo arms.
const LIMITS_WINDOW: usize = 1_024;

pub(super) fn run(
    args: &BenchArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    output.say(&MachineFacts::read().line());
    let cases = match &args.what {
        BenchCommand::Tasks(run) => vec![tasks(&Spec::tasks(run, settings)?, output)?],
        BenchCommand::Latency(run) => vec![round_trip(&Spec::latency(run, settings)?, output)?],
        BenchCommand::Limits(limits_args) => limits(limits_args, output)?,
    };
    if output.json {
        for case in &cases {
            output.object(case)?;
        }
    } else {
        output.data(report::table(&cases).trim_end())?;
    }
    Ok(Exit::Ok)
}

/// What a subject runs.
struct Spec {
    payload: usize,
    window: u32,
    run: Duration,
    pairs: usize,
    worker: Threads,
    requester: Threads,
}

impl Spec {
    fn tasks(args: &BenchRunArgs, settings: &Settings) -> Result<Self, Failure> {
        Spec::of(args, settings, 64, 1_024)
    }

    fn latency(args: &BenchRunArgs, settings: &Settings) -> Result<Self, Failure> {
        Spec::of(args, settings, 256, 1)
    }

    fn of(
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

    fn method(&self, loop_words: &str) -> String {
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

    fn cores(&self) -> Option<arms::Cores> {
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

fn tasks(spec: &Spec, output: &mut Output) -> Result<CaseReport, Failure> {
    let control = GsoEcho {
        duration: spec.run,
        cores: spec.cores(),
        ..GsoEcho::new(spec.payload, spec.window as usize, false)
    };
    let figure =
        |loaded: &Loaded| per_second(loaded.results, Duration::from_nanos(loaded.elapsed_ns));
    let pairs = Pairs {
        spec,
        name: "tasks",
        compares: Compares::TasksPerS,
    };
    pairs.run(output, figure, || {
        Ok(arms::gso_echo(&control).map_err(arm_failure)?.per_s)
    })
}

fn round_trip(spec: &Spec, output: &mut Output) -> Result<CaseReport, Failure> {
    let control = RoundTrip {
        duration: spec.run,
        cores: spec.cores(),
        ..RoundTrip::new(WaitMode::Spinning, Payload::bytes(spec.payload))
    };
    let figure = |loaded: &Loaded| micros(loaded.measured.quantile_ns(0.5));
    let pairs = Pairs {
        spec,
        name: "latency",
        compares: Compares::P50Us,
    };
    pairs.run(output, figure, || {
        Ok(arms::udp_round_trip(&control).map_err(arm_failure)?.p50_us)
    })
}

/// One case over interleaved pairs.
struct Pairs<'a> {
    spec: &'a Spec,
    name: &'static str,
    compares: Compares,
}

impl Pairs<'_> {
    fn run(
        &self,
        output: &mut Output,
        figure: impl Fn(&Loaded) -> f64,
        control: impl FnMut() -> Result<f64, Failure>,
    ) -> Result<CaseReport, Failure> {
        let spec = self.spec;
        let (loop_words, control_name) = match self.compares {
            Compares::TasksPerS => (
                format!("closed loop, window {}", spec.window),
                "raw GSO echo over io_uring, no protocol, no cipher, a datagram a task",
            ),
            Compares::P50Us => (
                format!("{} outstanding", spec.window),
                "raw UDP round trip, spinning, no protocol, no cipher",
            ),
        };
        let mut runs = Vec::new();
        let watch = Watch::begin();
        output.start_bar(spec.pairs as u64);
        let subject = || {
            let loaded = measure(spec)?;
            output.move_bar(runs.len() as u64 + 1, || {
                format!("last {:.1}", figure(&loaded))
            });
            let measured = figure(&loaded);
            runs.push(loaded);
            Ok(measured)
        };
        let summary = interleave(spec.pairs, subject, control)
            .map_err(|error| Failure::environment(error.to_string()))?;
        let quiet = watch.end();
        output.end_bar();
        let method = spec.method(&loop_words);
        let name = format!(
            "{} echo {} B window {}",
            self.name, spec.payload, spec.window
        );
        let mut case = CaseReport::of_pairs(name, self.compares, control_name, &summary, method);
        let median = |of: &dyn Fn(&Loaded) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        case.tasks_per_s =
            median(&|run| per_second(run.results, Duration::from_nanos(run.elapsed_ns)));
        case.p50_us = median(&|run| micros(run.measured.quantile_ns(0.5)));
        case.p99_us = median(&|run| micros(run.measured.quantile_ns(0.99)));
        case.quiet = Some(quiet);
        Ok(case)
    }
}

fn arm_failure(error: arms::ArmError) -> Failure {
    Failure::environment(format!("control arm: {error}"))
}

/// One run of the subject, from nothing to nothing.
fn measure(spec: &Spec) -> Result<Loaded, Failure> {
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

/// What the machine does without us.
fn limits(args: &BenchLimitsArgs, output: &mut Output) -> Result<Vec<CaseReport>, Failure> {
    let duration = Duration::from_secs_f64(args.seconds);
    let method = format!(
        "one run of {:.1} s, both ends spinning on a core each",
        args.seconds
    );
    let mut cases = Vec::new();
    let mut add = |arm: Result<ArmResult, arms::ArmError>, method: &str| {
        cases.push(CaseReport::of_arm(&arm.map_err(arm_failure)?, method));
        output.move_bar(cases.len() as u64, String::new);
        Ok::<(), Failure>(())
    };
    for len in DATAGRAM_LENS {
        for encrypted in [false, true] {
            // A sealed datagram has room for its tag only from the arm's own minimum on.
            let spec = GsoEcho {
                duration,
                ..GsoEcho::new(len, LIMITS_WINDOW, encrypted)
            };
            add(arms::gso_echo(&spec), &method)?;
        }
        let spec = MmsgEcho {
            duration,
            ..MmsgEcho::new(Payload::bytes(len), LIMITS_WINDOW)
        };
        add(arms::mmsg_echo(&spec), &method)?;
    }
    for mode in [WaitMode::Spinning, WaitMode::Blocking] {
        let spec = RoundTrip {
            duration,
            ..RoundTrip::new(mode, Payload::bytes(256))
        };
        add(
            arms::udp_round_trip(&spec),
            &format!("one outstanding, {:.1} s", args.seconds),
        )?;
    }
    for len in DATAGRAM_LENS {
        let cost = arms::aes_gcm(&AesGcm {
            duration,
            ..AesGcm::new(len)
        })
        .map_err(arm_failure)?;
        cases.push(cipher_case(&cost));
    }
    Ok(cases)
}

/// Sealing and opening one datagram: how often one core can do both in a second.
fn cipher_case(cost: &arms::AesCost) -> CaseReport {
    let both_us = (cost.seal_ns + cost.open_ns) / 1e3;
    CaseReport {
        case: format!("AES-256-GCM seal and open {} B", cost.datagram_len),
        tasks_per_s: Some(1e6 / both_us),
        p50_us: Some(both_us),
        p99_us: None,
        control: None,
        control_name: "none: this is a control".to_owned(),
        compares: Compares::TasksPerS,
        ratio: None,
        ratio_low: None,
        ratio_high: None,
        method: format!(
            "mean of {} datagrams in place: seal {:.0} ns, open {:.0} ns",
            cost.datagrams, cost.seal_ns, cost.open_ns
        ),
        quiet: None,
        note: None,
    }
}
