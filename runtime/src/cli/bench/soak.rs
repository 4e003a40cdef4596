//! A stated rate for a stated time, cut into intervals, with an eye on what grows.
//!
//! The intervals' latencies come from the job; memory, descriptors and what disturbed the machine
//! are read by this process ten times a second, off the workers' threads.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use ramjet_bench::facts::{Watch, descriptors, resident_bytes};
use ramjet_bench::latencies::{Interval, Latencies};
use ramjet_bench::schedule::Arrivals;
use ramjet_bench::soak::{self, SoakInterval, SoakReport};

use super::super::bench_args::BenchSoakArgs;
use super::super::exit::Failure;
use super::super::jobs::Intervals;
use super::super::output::{Output, rate};
use super::super::settings::Settings;
use super::logs::{self, IntervalLog};
use super::open_loop::Load;
use super::subject::{Spec, Subject, WARM_UP};
use super::target::Target;
use crate::latency::Histograms;

pub(super) fn run(
    args: &BenchSoakArgs,
    settings: &Settings,
    output: &Output,
) -> Result<SoakReport, Failure> {
    logs::check(&args.logs)?;
    let target = Target::of(&args.target, settings, output)?;
    let spec = Spec::soak(args, settings)?.aimed(target);
    let load = Load {
        name: rate(args.rate),
        share: None,
        rate: Some(args.rate),
        arrivals: args.arrivals.arrivals.into(),
        seed: args.arrivals.seed,
        window: args.window,
        length: args.length,
        interval: args.interval,
    };
    let log = match &args.logs.hlog {
        Some(path) => Some(IntervalLog::create(path, "ramjet bench soak")?),
        None => None,
    };
    let subject = Subject::start(&spec, args.window)?;
    let report = soak(args, &spec, &load, &subject, log, output);
    let stopped = subject.stop();
    let report = report?;
    stopped?;
    Ok(report)
}

fn soak(
    args: &BenchSoakArgs,
    spec: &Spec,
    load: &Load,
    subject: &Subject,
    log: Option<IntervalLog>,
    output: &Output,
) -> Result<SoakReport, Failure> {
    let before = subject.drops()?;
    let mut diary = Diary {
        log,
        output,
        told: Vec::new(),
        latency: Histograms::new().round_trip,
        watch: Watch::begin(),
        force: args.force,
        interval: args.interval,
        failure: None,
    };
    output.say(&soak::head());
    let ran = load.run(spec, subject, &mut |intervals| diary.read(intervals))?;
    // What came after the last look.
    for interval in &ran.intervals {
        diary.enter(interval);
    }
    if let Some(failure) = diary.failure {
        return Err(failure);
    }
    if let Some(path) = &args.logs.hgrm {
        logs::write_hgrm(path, &diary.latency)?;
    }
    let mut run = load.rung_of(&ran, &diary.latency, 1);
    run.judge();
    run.withhold_unless(args.force);
    let drops = difference(&before, &subject.drops()?);
    let report = SoakReport {
        run,
        payload: spec.payload,
        intervals: diary.told,
        repeated: ran.repeated,
        drops,
        p99: None,
        resident: None,
        descriptors: None,
        failed: Vec::new(),
        remarks: Vec::new(),
        method: method(args, spec),
    };
    Ok(report.judged())
}

/// What is written down while it runs.
struct Diary<'a> {
    log: Option<IntervalLog>,
    output: &'a Output,
    told: Vec<SoakInterval>,
    latency: Histogram<u64>,
    watch: Watch,
    force: bool,
    interval: Duration,
    failure: Option<Failure>,
}

impl Diary<'_> {
    fn read(&mut self, intervals: &Intervals) {
        for interval in intervals.drain() {
            self.enter(&interval);
            intervals.recycle(interval.latency);
        }
    }

    fn enter(&mut self, interval: &Interval) {
        self.latency.add(&interval.latency).expect("same bounds");
        if let Some(log) = &mut self.log
            && let Err(failure) = log.write(interval)
        {
            // The run goes on; its end tells what was in the way.
            self.failure.get_or_insert(failure);
        }
        // What straggles in after the last whole interval belongs to the run, but is no interval.
        if interval.length < self.interval / 2 && !self.told.is_empty() {
            return;
        }
        let quiet = std::mem::replace(&mut self.watch, Watch::begin()).end();
        let latencies = Latencies::of(&interval.latency);
        let told = latencies
            .as_ref()
            .filter(|_| self.force || !quiet.disturbed);
        let row = SoakInterval {
            start_s: interval.start.as_secs_f64(),
            seconds: interval.length.as_secs_f64(),
            answered: interval.latency.len(),
            p50_us: told.and_then(|told| told.p50_us),
            p99_us: told.and_then(|told| told.p99_us),
            max_us: told.map(|told| told.max_us),
            resident_bytes: resident_bytes(),
            descriptors: descriptors(),
            disturbed: quiet.disturbed,
        };
        self.output.say(&soak::line(&row));
        self.told.push(row);
    }
}

/// What was counted between two readings; only what was.
fn difference(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let grown = after.iter().filter_map(|(name, count)| {
        let grown = count - before.get(name).copied().unwrap_or(0).min(*count);
        (grown > 0).then(|| (name.clone(), grown))
    });
    grown.collect()
}

fn method(args: &BenchSoakArgs, spec: &Spec) -> String {
    let arrivals = match args.arrivals.arrivals.into() {
        Arrivals::Poisson => format!("poisson arrivals, seed {}", args.arrivals.seed),
        Arrivals::Fixed => "arrivals at a fixed interval".to_owned(),
    };
    format!(
        "open loop, {} for {}, {arrivals}, up to {} outstanding, {}, encrypted, {}, after {} \
         ms warm-up; latency runs from the intended send; drift: medians over the first and the \
         last third of the intervals of {}",
        rate(args.rate),
        humantime::format_duration(args.length),
        args.window,
        spec.what(),
        spec.placement(),
        WARM_UP.as_millis(),
        humantime::format_duration(args.interval.max(Duration::from_millis(1))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_grew_is_told() {
        let counters = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect()
        };
        let before = counters(&[("dropped_stale", 3), ("dropped_replay", 1)]);
        let after = counters(&[
            ("dropped_stale", 3),
            ("dropped_replay", 5),
            ("out_of_buffers", 2),
        ]);
        let expected = counters(&[("dropped_replay", 4), ("out_of_buffers", 2)]);
        assert_eq!(difference(&before, &after), expected);
    }
}
