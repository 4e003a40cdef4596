//! One case over interleaved pairs of the subject and its control.

use std::time::Duration;

use ramjet_bench::facts::Watch;
use ramjet_bench::pairs::interleave;
use ramjet_bench::report::{CaseReport, Compares};

use super::super::exit::Failure;
use super::super::jobs::Loaded;
use super::super::output::{Output, micros, per_second};
use super::subject::{Spec, measure};

/// One case over interleaved pairs.
pub(super) struct Pairs<'a> {
    pub(super) spec: &'a Spec,
    pub(super) name: &'static str,
    pub(super) compares: Compares,
}

impl Pairs<'_> {
    pub(super) fn run(
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
