//! A modest requester beside a greedy one: what the second costs the first.
//!
//! The modest one sends small tasks at moments laid down before the run (open loop), the greedy one
//! keeps a window of long payloads in flight (closed loop). A pair is the modest one alone and beside
//! the greedy one, in the order of all pairs here, against one worker that runs throughout; its
//! figure is the modest one's p99. The greedy one also runs alone once a pair, so that what it gives
//! up is seen too.
//!
//! The worker has one core. With three cores or more each requester is a node of its own on its own
//! core. With two, both are engagements of one node: two spinning threads on one core would take
//! turns of milliseconds, and the figure would be the kernel's scheduler and not ours. They then
//! share tunnel, thread and turns at the requester's end too, and the figure holds what that costs.

use std::time::Duration;

use crossbeam::channel::bounded;
use ramjet_bench::facts::{Quiet, Watch};
use ramjet_bench::pairs::{PairError, Patience, Watched, interleave_watched};
use ramjet_bench::report::{CaseReport, Compares};
use ramjet_bench::schedule::Arrivals;

use super::super::bench_args::BenchFairnessArgs;
use super::super::exit::{Exit, Failure};
use super::super::host::{self, Threads};
use super::super::jobs::{self, Loaded};
use super::super::output::{Output, micros, per_second};
use super::super::settings::{self as s, Settings};
use super::Figures;
use super::open_loop::Load;
use super::subject::{Spec, Subject, WARM_UP};
use crate::node::Node;

/// The greedy one runs for so much longer than the modest one is counted.
const LONGER: Duration = Duration::from_millis(200);
/// Grant, tunnel, answers that are still out, settlement.
const GRACE_S: u64 = 120;

pub(super) fn run(
    args: &BenchFairnessArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Figures, Failure> {
    let spec = Spec::fairness(args, settings)?;
    let subject = Subject::start(&spec, args.window.max(args.greedy_window))?;
    let apart = core_for_another(settings, &spec)
        .map(|threads| {
            let core = threads.cores.first().copied();
            let node = subject.add_requester(threads)?;
            Ok::<_, Failure>(node.map(|node| (node, core)))
        })
        .transpose()
        .map(Option::flatten);
    let measured = apart.and_then(|apart| {
        let core = apart.as_ref().and_then(|(_, core)| *core);
        let rivals = Rivals {
            args,
            spec: &spec,
            subject: &subject,
            other: apart.map(|(node, _)| node),
        };
        let measured = rivals.measure(core, output);
        match rivals.other.as_ref().map(Node::shutdown) {
            Some(Err(error)) if measured.is_ok() => Err(error.into()),
            _ => measured,
        }
    });
    output.end_bar();
    let stopped = subject.stop();
    let figures = measured?;
    stopped?;
    Ok(figures)
}

/// Threads for a second requester on a core that neither node has, if there is one.
fn core_for_another(settings: &Settings, spec: &Spec) -> Option<Threads> {
    let cores = if settings.is_set(s::CORES) {
        host::threads(settings).ok()?.cores
    } else {
        host::allowed_cores()
    };
    let taken =
        |core: &usize| spec.worker.cores.contains(core) || spec.requester.cores.contains(core);
    let free = cores.into_iter().find(|core| !taken(core))?;
    Some(Threads {
        cores: vec![free],
        ..spec.requester.clone()
    })
}

/// The modest requester, the greedy one, and the worker between them.
struct Rivals<'a> {
    args: &'a BenchFairnessArgs,
    spec: &'a Spec,
    subject: &'a Subject,
    /// The greedy one's node, if it has its own.
    other: Option<Node>,
}

/// What the runs of a kind gave, in their order.
#[derive(Default)]
struct Runs {
    modest: Vec<Modest>,
    greedy: Vec<f64>,
}

#[derive(Clone, Copy)]
struct Modest {
    p50_us: f64,
    p99_us: f64,
    per_s: f64,
}

impl Rivals<'_> {
    fn measure(&self, core: Option<usize>, output: &mut Output) -> Result<Figures, Failure> {
        let (mut beside, mut alone) = (Runs::default(), Runs::default());
        output.start_bar(u64::from(self.args.pairs));
        let whole = Watch::begin();
        let mut pair = Watch::begin();
        let subject = || {
            let (modest, greedy) = self.both()?;
            beside.modest.push(modest);
            beside.greedy.push(self.bytes_per_s(&greedy));
            output.move_bar(beside.modest.len() as u64, || {
                format!("last p99 {:.1} us", modest.p99_us)
            });
            Ok(modest.p99_us)
        };
        let control = || {
            let modest = self.modest()?;
            alone.modest.push(modest);
            let greedy = self.greedy(self.spec.run)?;
            alone.greedy.push(self.bytes_per_s(&greedy));
            Ok(modest.p99_us)
        };
        let disturbance = || {
            let quiet = std::mem::replace(&mut pair, Watch::begin()).end();
            quiet.disturbed.then(|| quiet.reasons.join(", "))
        };
        let patience = Patience {
            retries: self.args.disturbed.retries,
            force: self.args.disturbed.force,
        };
        let pairs = self.args.pairs as usize;
        let watched = interleave_watched(pairs, patience, subject, control, disturbance).map_err(
            |error: PairError<Failure>| match error {
                PairError::Disturbed { .. } => Failure::new(Exit::Failed, error.to_string()),
                PairError::Arm(failure) => failure,
                error => Failure::environment(error.to_string()),
            },
        )?;
        let quiet = Quiet {
            disturbed: !watched.disturbed.is_empty(),
            reasons: watched.disturbed.clone(),
            ..whole.end()
        };
        Ok(Figures {
            cases: self.cases(&watched, &quiet, core, &beside, &alone),
            ..Figures::default()
        })
    }

    /// The modest one's latency, and what is left to the greedy one.
    fn cases(
        &self,
        watched: &Watched,
        quiet: &Quiet,
        core: Option<usize>,
        beside: &Runs,
        alone: &Runs,
    ) -> Vec<CaseReport> {
        let args = self.args;
        let method = self.method(core);
        let name = format!(
            "p99 of {} B at {}/s beside {} B",
            args.payload, args.rate, args.greedy_payload
        );
        let mut modest = CaseReport::of_pairs(
            name,
            Compares::P99Us,
            "the same alone",
            &watched.summary,
            method.clone(),
        );
        let kept = |runs: &[Modest], of: fn(&Modest) -> f64| {
            median(watched.kept.iter().filter_map(|run| runs.get(*run)).map(of))
        };
        modest.tasks_per_s = kept(&beside.modest, |run| run.per_s);
        modest.p50_us = kept(&beside.modest, |run| run.p50_us);
        modest.quiet = Some(quiet.clone());
        let mut notes = Vec::new();
        if let Some(p50_us) = kept(&alone.modest, |run| run.p50_us) {
            notes.push(format!("p50 alone {p50_us:.1} us"));
        }
        if watched.repeated > 0 || watched.left_out > 0 {
            notes.push(format!(
                "disturbed pairs: {} run again, {} left out",
                watched.repeated, watched.left_out
            ));
        }
        modest.note = (!notes.is_empty()).then(|| notes.join("; "));
        let of = |runs: &[f64]| -> Vec<f64> {
            let kept = watched.kept.iter();
            kept.filter_map(|run| runs.get(*run).copied()).collect()
        };
        let (shared, whole) = (of(&beside.greedy), of(&alone.greedy));
        let payload = f64::from(args.greedy_payload);
        let ratios = shared
            .iter()
            .zip(&whole)
            .map(|(shared, whole)| shared / whole);
        let greedy = CaseReport {
            case: format!("{} B echo beside {} B", args.greedy_payload, args.payload),
            tasks_per_s: median(shared.iter().map(|bytes| bytes / payload)),
            p50_us: None,
            p99_us: None,
            control: median(whole.iter().map(|bytes| bytes / payload)),
            control_name: "the same alone".to_owned(),
            compares: Compares::TasksPerS,
            ratio: median(ratios),
            ratio_low: None,
            ratio_high: None,
            method,
            quiet: Some(quiet.clone()),
            worker: None,
            note: median(shared.iter().copied())
                .zip(median(whole.iter().copied()))
                .map(|(shared, whole)| {
                    format!(
                        "{:.0} MB/s each way, {:.0} MB/s alone",
                        shared / 1e6,
                        whole / 1e6
                    )
                }),
        };
        vec![modest, greedy]
    }

    fn method(&self, core: Option<usize>) -> String {
        let args = self.args;
        let whose = match core {
            Some(core) => format!("the greedy one is a node of its own on core {core}"),
            None => {
                "both requesters are engagements of one node, on one thread and one tunnel, so \
                     that no second spinning thread shares its core"
                    .to_owned()
            }
        };
        format!(
            "echo, encrypted: {} B at {} tasks/s, open loop from intended moments (Poisson), beside \
             {} B in a closed loop of window {}; {}; {whose}; {} interleaved pairs of {:.1} s each \
             after {} ms warm-up, medians",
            args.payload,
            args.rate,
            args.greedy_payload,
            args.greedy_window,
            self.spec.placement(),
            args.pairs,
            args.seconds,
            WARM_UP.as_millis(),
        )
    }

    fn modest(&self) -> Result<Modest, Failure> {
        let load = Load {
            name: "modest".to_owned(),
            share: None,
            rate: Some(self.args.rate),
            arrivals: Arrivals::Poisson,
            seed: 1,
            window: self.args.window,
            length: self.spec.run,
            interval: self.spec.run,
        };
        let ran = load.run(self.spec, self.subject, &mut |_| {})?;
        if let Some(fault) = &ran.looped.measured.first_fault {
            return Err(wrong(fault));
        }
        let counts = ran.looped.counts;
        if counts.lost > 0 || counts.sent < counts.due {
            return Err(Failure::new(
                Exit::Failed,
                format!(
                    "of {} tasks that were due {} were sent and {} lost; lower --rate or raise \
                     --window",
                    counts.due, counts.sent, counts.lost
                ),
            ));
        }
        Ok(Modest {
            p50_us: micros(ran.latency.value_at_quantile(0.5)),
            p99_us: micros(ran.latency.value_at_quantile(0.99)),
            per_s: per_second(counts.in_time, self.spec.run),
        })
    }

    fn greedy(&self, run: Duration) -> Result<Loaded, Failure> {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (report, reported) = bounded(1);
        let payload = (0_u8..=255).cycle();
        let payload = payload.take(self.args.greedy_payload as usize).collect();
        let job = Box::new(jobs::Load::new(payload, nanos(WARM_UP), nanos(run), report));
        let node = self.other.as_ref().unwrap_or(self.subject.requester());
        let duration_s = u32::try_from(run.as_secs() + GRACE_S).unwrap_or(u32::MAX);
        self.subject
            .engage_from(node, job, self.args.greedy_window, duration_s, &mut || {})?;
        let loaded = reported
            .recv()
            .map_err(|_| Failure::environment("the job was lost"))?;
        match &loaded.measured.first_fault {
            Some(fault) => Err(wrong(fault)),
            None => Ok(loaded),
        }
    }

    fn both(&self) -> Result<(Modest, Loaded), Failure> {
        std::thread::scope(|scope| {
            let greedy = scope.spawn(|| self.greedy(self.spec.run + LONGER));
            let modest = self.modest();
            let greedy = greedy
                .join()
                .unwrap_or_else(|_| Err(Failure::environment("the greedy requester was lost")));
            Ok((modest?, greedy?))
        })
    }

    fn bytes_per_s(&self, loaded: &Loaded) -> f64 {
        let per_s = per_second(loaded.results, Duration::from_nanos(loaded.elapsed_ns));
        per_s * f64::from(self.args.greedy_payload)
    }
}

fn wrong(fault: &str) -> Failure {
    Failure::new(Exit::Failed, format!("the echo was wrong: {fault}"))
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
