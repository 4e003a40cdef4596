//! Closed loop: how many small tasks a second.

use std::time::Duration;

use ramjet_bench::arms::{self, GsoEcho};
use ramjet_bench::report::Compares;

use super::super::bench_args::BenchTasksArgs;
use super::super::exit::Failure;
use super::super::jobs::Loaded;
use super::super::output::{Output, per_second};
use super::super::settings::Settings;
use super::compared::Pairs;
use super::subject::Spec;
use super::target::{Target, check_twin};
use super::{Figures, alone, arm_failure};

pub(super) fn run(
    args: &BenchTasksArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Figures, Failure> {
    let target = Target::of(&args.target, settings, output)?;
    let spec = &Spec::tasks(&args.run, settings)?.aimed(target);
    if !spec.target.has_control() {
        check_twin(args.twin)?;
        return alone::run(spec, "tasks", Compares::TasksPerS, args.disturbed, output);
    }
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
        disturbed: args.disturbed,
        twin: args.twin,
    };
    pairs.run(output, figure, || {
        Ok(arms::gso_echo(&control).map_err(arm_failure)?.per_s)
    })
}
