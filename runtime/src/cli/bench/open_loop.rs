//! One open-loop run of the subject, and the rung it makes.
//!
//! A run that does not count is repeated; [`ramjet_bench::ladder`] says what counts. What is told
//! of the last run is its figures, or the reasons why there are none.

use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use ramjet_bench::facts::{Quiet, Stalls, Watch};
use ramjet_bench::ladder::{Rung, Stage};
use ramjet_bench::latencies::{Interval, Latencies, curve};
use ramjet_bench::schedule::{Arrivals, Schedule};

use super::super::bench_args::DisturbedArgs;
use super::super::exit::Failure;
use super::super::jobs::{Intervals, OpenLoop, OpenLoopPlan, OpenLooped, Pace, Stages};
use super::super::output::{micros, per_second};
use super::subject::{Spec, Subject, WARM_UP};
use crate::latency::Histograms;
use crate::worker::clock;

/// Beyond the run itself: grant, tunnel, answers that are still out, settlement.
const GRACE_S: u64 = 120;

/// How the names of worker threads begin, the requester's included.
const WORKER_THREADS: &str = "ramjet-worker";

/// What a run is.
#[derive(Clone, Debug)]
pub(super) struct Load {
    /// What the rung is called.
    pub(super) name: String,
    /// Share of the capacity, on a ladder.
    pub(super) share: Option<f64>,
    /// Tasks a second; as many as there are slots for if absent.
    pub(super) rate: Option<f64>,
    pub(super) arrivals: Arrivals,
    pub(super) seed: u64,
    pub(super) window: u32,
    pub(super) length: Duration,
    /// Length of an interval.
    pub(super) interval: Duration,
}

/// What a run gave.
pub(super) struct Ran {
    pub(super) looped: OpenLooped,
    /// All latencies that were not taken on the way, in nanoseconds.
    pub(super) latency: Histogram<u64>,
    /// The intervals that were not taken on the way.
    pub(super) intervals: Vec<Interval>,
    pub(super) began: SystemTime,
    pub(super) quiet: Quiet,
    pub(super) stalled_share: Option<f64>,
    /// Tasks that were sent again.
    pub(super) repeated: u64,
}

impl Load {
    /// Runs it once. `look` is called ten times a second and may take the intervals that are over.
    pub(super) fn run(
        &self,
        spec: &Spec,
        subject: &Subject,
        look: &mut dyn FnMut(&Intervals),
    ) -> Result<Ran, Failure> {
        let pace = match self.rate {
            Some(rate) => Pace::Open(Schedule::new(self.arrivals, rate, self.seed)),
            None => Pace::Closed,
        };
        let plan = OpenLoopPlan {
            payload: spec.payload(),
            echo: spec.target.is_echo(),
            pace,
            warm_up: WARM_UP,
            run: self.length,
            interval: self.interval,
        };
        let (job, intervals, report) = OpenLoop::new(plan, clock::now);
        let duration_s = u32::try_from(self.length.as_secs() + GRACE_S).unwrap_or(u32::MAX);
        let (watch, began) = (Watch::begin(), SystemTime::now());
        let stalls = Stalls::begin(WORKER_THREADS);
        let followed = subject.engage(Box::new(job), self.window, duration_s, &mut || {
            look(&intervals);
        })?;
        let (quiet, stalled_share) = (watch.end(), stalls.end());
        let looped = report
            .recv()
            .map_err(|_| Failure::environment("the job was lost"))?;
        let intervals: Vec<Interval> = intervals.drain().collect();
        let mut latency = Histograms::new().round_trip;
        for interval in &intervals {
            latency.add(&interval.latency).expect("same bounds");
        }
        Ok(Ran {
            looped,
            latency,
            intervals,
            began,
            quiet,
            stalled_share,
            repeated: followed.end.totals.repeated,
        })
    }

    /// Runs it until it counts, at most `retries` times more.
    pub(super) fn rung(
        &self,
        spec: &Spec,
        subject: &Subject,
        disturbed: DisturbedArgs,
        unloaded_p50_us: Option<f64>,
    ) -> Result<(Rung, Ran), Failure> {
        let mut attempts = 1;
        loop {
            let ran = self.run(spec, subject, &mut |_| {})?;
            let mut rung = self.rung_of(&ran, &ran.latency, attempts);
            rung.compare_with_unloaded(unloaded_p50_us);
            rung.judge();
            if rung.is_valid() || attempts > disturbed.retries {
                rung.withhold_unless(disturbed.force);
                return Ok((rung, ran));
            }
            attempts += 1;
        }
    }

    /// What a run says, before it is judged.
    pub(super) fn rung_of(&self, ran: &Ran, latency: &Histogram<u64>, attempts: u32) -> Rung {
        let looped = &ran.looped;
        Rung {
            name: self.name.clone(),
            share: self.share,
            offered_per_s: self.rate,
            achieved_per_s: Some(per_second(looped.counts.in_time, self.length)),
            seconds: self.length.as_secs_f64(),
            counts: looped.counts,
            first_fault: looped.measured.first_fault.clone(),
            latencies: Latencies::of(latency),
            p99_over_unloaded: None,
            // Where tasks are due when a slot is free there is no schedule to lag behind.
            generator_lag_p99_us: self
                .rate
                .filter(|_| !looped.own_lag.is_empty())
                .map(|_| micros(looped.own_lag.value_at_quantile(0.99))),
            stalled_share: ran.stalled_share,
            stages: stages_of(&looped.stages, self.rate.is_some()),
            curve: curve(latency),
            attempts,
            quiet: Some(ran.quiet.clone()),
            invalid: Vec::new(),
            forced: false,
        }
    }
}

/// Without a schedule a task is due when it is sent, and that stage is no time at all.
fn stages_of(stages: &Stages, scheduled: bool) -> Vec<Stage> {
    let named = [
        ("send", &stages.send),
        ("worker queue", &stages.queue),
        ("handler", &stages.handler),
        ("network and reply", &stages.network),
    ];
    let named = named.into_iter().skip(usize::from(!scheduled));
    let told = named.filter_map(|(name, histogram)| {
        let latencies = Latencies::of(histogram)?;
        Some(Stage {
            name: name.to_owned(),
            latencies,
        })
    });
    told.collect()
}
