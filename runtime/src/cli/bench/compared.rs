//! One case over interleaved pairs of the subject and a control arm.
//!
//! A pair in which the machine did something else is repeated, a bounded number of times, and then
//! left out; with too few quiet pairs there is no figure.

use std::time::Duration;

use hdrhistogram::Histogram;
use ramjet_bench::facts::{Quiet, Watch};
use ramjet_bench::latencies::curve;
use ramjet_bench::page::Curve;
use ramjet_bench::pairs::{PairError, PairSummary, Patience, Watched, interleave_watched};
use ramjet_bench::report::{CaseReport, Compares, WorkerCost};

use super::super::bench_args::DisturbedArgs;
use super::super::exit::{Exit, Failure};
use super::super::jobs::Loaded;
use super::super::output::{Output, micros, per_second};
use super::Figures;
use super::subject::{Spec, measure};
use crate::latency::Histograms;

/// One case over interleaved pairs.
pub(super) struct Pairs<'a> {
    pub(super) spec: &'a Spec,
    pub(super) name: &'static str,
    pub(super) compares: Compares,
    pub(super) control_name: &'a str,
    pub(super) disturbed: DisturbedArgs,
    /// Whether the control also runs against itself.
    pub(super) twin: bool,
}

impl Pairs<'_> {
    /// The case, after it the twin if one is wanted, and the distribution behind the case.
    pub(super) fn run(
        &self,
        output: &mut Output,
        figure: impl Fn(&Loaded) -> f64,
        control: impl Fn() -> Result<f64, Failure>,
    ) -> Result<Figures, Failure> {
        let spec = self.spec;
        let mut runs = Vec::new();
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
        let (watched, quiet) = self.interleave(subject, &control)?;
        output.end_bar();
        // What a left-out pair measured takes no part in the other figures either.
        let runs: Vec<&Loaded> = watched
            .kept
            .iter()
            .filter_map(|run| runs.get(*run))
            .collect();
        let name = format!(
            "{} echo {} B window {}",
            self.name, spec.payload, spec.window
        );
        let mut case = self.case(name.clone(), &watched, quiet, self.control_name);
        let median = |of: &dyn Fn(&Loaded) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(|run| of(run)).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        case.tasks_per_s =
            median(&|run| per_second(run.results, Duration::from_nanos(run.elapsed_ns)));
        case.p50_us = median(&|run| micros(run.measured.quantile_ns(0.5)));
        case.p99_us = median(&|run| micros(run.measured.quantile_ns(0.99)));
        case.worker = cost(&runs);
        let mut cases = vec![case];
        if self.twin {
            cases.push(self.run_twin(&control)?);
        }
        Ok(Figures {
            cases,
            curves: vec![Curve {
                name,
                points: curve(&together(&runs)),
            }],
            ..Figures::default()
        })
    }

    /// The control against itself: what ratio this machine reports when nothing differs.
    fn run_twin(&self, control: &impl Fn() -> Result<f64, Failure>) -> Result<CaseReport, Failure> {
        let (watched, quiet) = self.interleave(control, control)?;
        let name = format!(
            "A/A twin of {}, {} B window {}",
            self.name, self.spec.payload, self.spec.window
        );
        let mut case = self.case(name, &watched, quiet, "the same again");
        let floor = noise_floor(&watched.summary);
        let words = format!(
            "noise floor: the control against itself differs by up to {:.1} %; a smaller \
             difference means nothing here",
            floor * 100.0
        );
        case.note = Some(
            case.note
                .map_or(words.clone(), |note| format!("{words}; {note}")),
        );
        Ok(case)
    }

    fn interleave(
        &self,
        subject: impl FnMut() -> Result<f64, Failure>,
        control: impl FnMut() -> Result<f64, Failure>,
    ) -> Result<(Watched, Quiet), Failure> {
        let patience = Patience {
            retries: self.disturbed.retries,
            force: self.disturbed.force,
        };
        let whole = Watch::begin();
        let mut pair = Watch::begin();
        let disturbance = || {
            let quiet = std::mem::replace(&mut pair, Watch::begin()).end();
            quiet.disturbed.then(|| quiet.reasons.join(", "))
        };
        let watched = interleave_watched(self.spec.pairs, patience, subject, control, disturbance)
            .map_err(|error| match error {
                PairError::Disturbed { .. } => Failure::new(Exit::Failed, error.to_string()),
                error => Failure::environment(error.to_string()),
            })?;
        // The pairs decide what counts: what disturbed a pair that was run again is no blemish.
        let quiet = Quiet {
            disturbed: !watched.disturbed.is_empty(),
            reasons: disturbances(&watched.disturbed, self.spec.pairs),
            ..whole.end()
        };
        Ok((watched, quiet))
    }

    fn case(
        &self,
        name: String,
        watched: &Watched,
        quiet: Quiet,
        control_name: &str,
    ) -> CaseReport {
        let spec = self.spec;
        let loop_words = match self.compares {
            Compares::TasksPerS => format!("closed loop, window {}", spec.window),
            Compares::P50Us | Compares::P99Us => format!("{} outstanding", spec.window),
        };
        let method = spec.method(&loop_words);
        let mut case =
            CaseReport::of_pairs(name, self.compares, control_name, &watched.summary, method);
        case.quiet = Some(quiet);
        case.note = (watched.repeated > 0 || watched.left_out > 0).then(|| {
            format!(
                "disturbed pairs: {} run again, {} left out",
                watched.repeated, watched.left_out
            )
        });
        case
    }
}

/// One line for all pairs that count although they were disturbed.
fn disturbances(pairs: &[String], of: usize) -> Vec<String> {
    let line = |first: &String| format!("{} of {of} pairs, the first by {first}", pairs.len());
    pairs.first().map(line).into_iter().collect()
}

/// How far the ratio of two equal things lies from 1, by the far end of its interval.
fn noise_floor(twin: &PairSummary) -> f64 {
    (1.0 - twin.ratio_low)
        .abs()
        .max((twin.ratio_high - 1.0).abs())
}

/// What a task cost the worker, by the median run.
fn cost(runs: &[&Loaded]) -> Option<WorkerCost> {
    let mut costs: Vec<WorkerCost> = runs.iter().filter_map(|run| run.cost()).collect();
    costs.sort_by(|one, other| one.cpu_ns_per_task.total_cmp(&other.cpu_ns_per_task));
    costs.get(costs.len() / 2).copied()
}

fn together(runs: &[&Loaded]) -> Histogram<u64> {
    let mut all = Histograms::new().round_trip;
    for run in runs {
        all.add(&run.measured.round_trip).expect("same bounds");
    }
    all
}
