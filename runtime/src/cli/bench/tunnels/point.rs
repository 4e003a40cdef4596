//! One number of tunnels: a worker with so many, a control with few, and pairs of runs of both.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ramjet_bench::facts::{Quiet, Watch};
use ramjet_bench::pairs::{PairError, Patience, Watched, interleave_watched};
use ramjet_bench::report::{CaseReport, Compares};

use super::super::super::output::{grouped, micros, per_second};
use super::Spec;
use super::fleet::Measured;
use super::market::{Joined, Market, Run};
use super::report::{Memory, TunnelsReport};

/// Tunnels of the control, and of the subject before the others come: so many warm its buffers up.
pub(super) const CONTROL_TUNNELS: usize = 4;
/// Fewer tunnels than this drown in what a process takes now and then anyway.
const MEMORY_TUNNELS_MIN: usize = 1_000;
/// How long a worker rests before its memory is read.
const REST: Duration = Duration::from_secs(1);
/// The addresses of the generator's requesters: each gets one of its own from here on.
const SUBJECT_FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
const CONTROL_FIRST: Ipv4Addr = Ipv4Addr::new(127, 16, 0, 1);

/// Measures one number of tunnels; `index` tells the workers of a command apart.
pub(super) fn measure(
    spec: &Spec,
    registry: SocketAddr,
    index: usize,
    tunnels: usize,
) -> Result<TunnelsReport, String> {
    let (mut subject, gathered) = gather(spec, registry, index, tunnels)?;
    let name = format!("control-{index}");
    let mut control = Market::start(spec, registry, name, CONTROL_TUNNELS, CONTROL_FIRST)?;
    control.warm_up(CONTROL_TUNNELS)?;
    control.worker.pause()?;

    let before = gathered.counters.clone();
    let pairs = compare(spec, &mut subject, &mut control)?;
    subject.worker.resume()?;
    let after = subject.worker.status()?.counters;
    let tables = subject
        .resident_at_start
        .saturating_sub(control.resident_at_start);
    let memory = (tunnels >= MEMORY_TUNNELS_MIN).then(|| gathered.memory(tables, tunnels));
    Ok(report(
        spec,
        &subject,
        &gathered,
        &pairs,
        memory,
        (&before, &after),
    ))
}

/// What was seen while the tunnels came.
struct Gathered {
    joined: Joined,
    /// How many came last, and in that time.
    joining: usize,
    /// Resident bytes with the first tunnels, when all were up, and when all had an engagement.
    resident: [u64; 3],
    counters: BTreeMap<String, u64>,
}

impl Gathered {
    /// What each tunnel takes: of the process's growth, and of the `tables` that it had made for
    /// them before.
    fn memory(&self, tables: u64, tunnels: usize) -> Memory {
        let [first, up, engaged] = self.resident;
        let others = (tunnels - CONTROL_TUNNELS) as u64;
        let each = |resident: u64| (resident.saturating_sub(first) + tables) / others;
        Memory {
            tunnel_bytes: each(up),
            engagement_bytes: each(engaged),
            process_bytes: engaged,
        }
    }
}

/// The subject with all its tunnels, and stopped.
fn gather(
    spec: &Spec,
    registry: SocketAddr,
    index: usize,
    tunnels: usize,
) -> Result<(Market, Gathered), String> {
    let name = format!("subject-{index}");
    let mut subject = Market::start(spec, registry, name, tunnels, SUBJECT_FIRST)?;
    let warm = tunnels.min(CONTROL_TUNNELS);
    let mut joined = subject.warm_up(warm)?;
    let (mut joining, mut resident) = (warm, [0; 3]);
    if tunnels > warm {
        joining = tunnels - warm;
        subject.fleet.rest(REST)?;
        resident[0] = subject.worker.resident_bytes()?;
        joined.connecting = subject.connect(joining)?;
        subject.fleet.rest(REST)?;
        resident[1] = subject.worker.resident_bytes()?;
        joined.engaging = subject.engage(joining)?;
        subject.fleet.deal();
        subject.fleet.visit_all()?;
        subject.fleet.rest(REST)?;
        resident[2] = subject.worker.resident_bytes()?;
    }
    let counters = subject.worker.status()?.counters;
    subject.worker.pause()?;
    let gathered = Gathered {
        joined,
        joining,
        resident,
        counters,
    };
    Ok((subject, gathered))
}

/// All pairs of runs.
struct Pairs {
    watched: Watched,
    quiet: Quiet,
    subject: Vec<Run>,
    control: Vec<Run>,
}

fn compare(spec: &Spec, subject: &mut Market, control: &mut Market) -> Result<Pairs, String> {
    let patience = Patience {
        retries: spec.disturbed.retries,
        force: spec.disturbed.force,
    };
    let clocks = [subject.worker.clock(), control.worker.clock()];
    let workers_cpu_ns =
        || -> Result<u64, String> { Ok(clocks[0].cpu_ns()? + clocks[1].cpu_ns()?) };
    let (subject_runs, control_runs) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let arm = |market: &mut Market, runs: &RefCell<Vec<Run>>| {
        let run = market.run(spec)?;
        let figure = per_second(run.measured.results, run.measured.elapsed);
        runs.borrow_mut().push(run);
        Ok::<_, String>(figure)
    };
    let whole = (Watch::begin(), workers_cpu_ns()?);
    let mut pair = (Watch::begin(), workers_cpu_ns()?);
    let disturbance = || {
        // A worker that is gone fails the next run by its name.
        let now = workers_cpu_ns().unwrap_or(pair.1);
        let (watch, cpu_ns) = std::mem::replace(&mut pair, (Watch::begin(), now));
        let quiet = watch.end_beside(now.saturating_sub(cpu_ns));
        quiet.disturbed.then(|| quiet.reasons.join(", "))
    };
    let watched = interleave_watched(
        spec.pairs,
        patience,
        || arm(subject, &subject_runs),
        || arm(control, &control_runs),
        disturbance,
    )
    .map_err(|error: PairError<String>| error.to_string())?;
    let quiet = Quiet {
        disturbed: !watched.disturbed.is_empty(),
        reasons: watched.disturbed.clone(),
        ..whole
            .0
            .end_beside(workers_cpu_ns()?.saturating_sub(whole.1))
    };
    // What a left-out pair measured takes no part in the other figures either.
    let kept = |runs: RefCell<Vec<Run>>| {
        let runs = runs.into_inner().into_iter().enumerate();
        let kept = runs.filter(|(place, _)| watched.kept.contains(place));
        kept.map(|(_, run)| run).collect::<Vec<_>>()
    };
    Ok(Pairs {
        quiet,
        subject: kept(subject_runs),
        control: kept(control_runs),
        watched,
    })
}

fn report(
    spec: &Spec,
    subject: &Market,
    gathered: &Gathered,
    pairs: &Pairs,
    memory: Option<Memory>,
    (before, after): (&BTreeMap<String, u64>, &BTreeMap<String, u64>),
) -> TunnelsReport {
    let tunnels = subject.fleet.requesters.len();
    let Gathered {
        joined, joining, ..
    } = gathered;
    let median = |of: &dyn Fn(&Run) -> Option<f64>| median_of(&pairs.subject, of);
    let summary = &pairs.watched.summary;
    let mut case = CaseReport::of_pairs(
        format!("tunnels {tunnels}"),
        Compares::TasksPerS,
        format!("the same load on {CONTROL_TUNNELS} tunnels of another worker process"),
        summary,
        spec.method(),
    );
    case.p50_us = median(&|run| Some(micros(run.measured.quantiles_ns[0])));
    case.p99_us = median(&|run| Some(micros(run.measured.quantiles_ns[1])));
    case.quiet = Some(pairs.quiet.clone());
    case.worker = cost(&pairs.subject);
    case.note = Some(note(memory, subject.credits));
    let counted = |name: &str| {
        let of = |counters: &BTreeMap<String, u64>| counters.get(name).copied().unwrap_or(0);
        of(after).saturating_sub(of(before))
    };
    let rounds = |measured: &Measured| {
        let bursts = f64::from(spec.load.burst) * whole(tunnels as u64);
        whole(measured.results) / bursts
    };
    TunnelsReport {
        tunnels,
        credits: subject.credits,
        establish_s: joined.connecting.as_secs_f64(),
        handshakes_per_s: per_second(*joining as u64, joined.connecting),
        engagements_per_s: per_second(*joining as u64, joined.engaging),
        tasks_run: counted("tasks_run"),
        control_cpu_ns_per_task: cost(&pairs.control).map(|cost| cost.cpu_ns_per_task),
        generator_busy_share: median(&|run| Some(run.measured.busy_share)),
        rounds: median(&|run| Some(rounds(&run.measured))),
        repeated: subject.fleet.repeated(),
        worker_drops: drops(before, after),
        memory,
        case,
    }
}

/// What the report says of memory in words.
fn note(memory: Option<Memory>, credits: u32) -> String {
    match memory {
        Some(memory) => format!(
            "a tunnel that rests takes {} bytes of its worker's process, with an open engagement of \
             {credits} slots that were all used {} bytes: what the process grew by after its first \
             {CONTROL_TUNNELS} tunnels had been under load, and what it held more than the control's \
             at its start",
            grouped(memory.tunnel_bytes),
            grouped(memory.engagement_bytes)
        ),
        None => format!(
            "memory of a tunnel is told from {} tunnels on: below, it drowns in what a process \
             takes anyway",
            grouped(MEMORY_TUNNELS_MIN as u64)
        ),
    }
}

/// What a task cost the worker in the median run.
fn cost(runs: &[Run]) -> Option<ramjet_bench::report::WorkerCost> {
    let mut costs: Vec<_> = runs.iter().filter_map(|run| run.cost).collect();
    costs.sort_by(|one, other| one.cpu_ns_per_task.total_cmp(&other.cpu_ns_per_task));
    costs.get(costs.len() / 2).copied()
}

fn median_of(runs: &[Run], of: &dyn Fn(&Run) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> = runs.iter().filter_map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A count as a number to divide.
fn whole(count: u64) -> f64 {
    per_second(count, Duration::from_secs(1))
}

/// What the worker dropped between two looks, by reason.
fn drops(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let dropped = |name: &str| name.starts_with("dropped_") || name == "out_of_buffers";
    after
        .iter()
        .filter(|(name, _)| dropped(name))
        .map(|(name, count)| {
            let earlier = before.get(name).copied().unwrap_or(0);
            (name.clone(), count.saturating_sub(earlier))
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}
