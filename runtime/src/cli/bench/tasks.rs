//! Closed loop: how many small tasks a second.

use std::time::Duration;

use ramjet_bench::arms::{self, GsoEcho};
use ramjet_bench::report::{CaseReport, Compares};

use super::super::exit::Failure;
use super::super::jobs::Loaded;
use super::super::output::{Output, per_second};
use super::arm_failure;
use super::compared::Pairs;
use super::subject::Spec;

pub(super) fn run(spec: &Spec, output: &mut Output) -> Result<CaseReport, Failure> {
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
