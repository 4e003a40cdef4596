//! Closed loop: how many small tasks a second, beside what the kernel and the cipher leave.

use std::cell::Cell;
use std::time::Duration;

use ramjet_bench::arms::{self, DATAGRAM_LEN_MIN, GsoEcho};
use ramjet_bench::report::{Compares, WorkerCost};

use super::super::bench_args::{BenchTasksArgs, TasksControl};
use super::super::exit::Failure;
use super::super::host::Threads;
use super::super::jobs::Loaded;
use super::super::output::{Output, per_second};
use super::super::settings::Settings;
use super::compared::Pairs;
use super::subject::{Spec, measure};
use super::target::{Target, check_twin};
use super::{Figures, alone, arm_failure};
use crate::worker::IoKind;

/// Bytes that the encrypted echo keeps in flight: enough that it never waits, whatever the length of
/// its datagrams.
const CIPHER_IN_FLIGHT: usize = 1 << 20;
/// Fewest and most datagrams that it keeps in flight.
const CIPHER_WINDOW_MIN: usize = 16;
const CIPHER_WINDOW_MAX: usize = 1_024;

/// The case with metrics.
const SCRAPED: &str = "tasks (metrics of both nodes scraped every second)";

pub(super) fn run(
    args: &BenchTasksArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Figures, Failure> {
    let target = Target::of(&args.target, settings, output)?;
    let spec = Spec {
        frames_per_datagram_max: args.tasks_per_datagram.unwrap_or(u16::MAX),
        datagram_len_max: args.datagram_len_max.unwrap_or(usize::MAX),
        ..Spec::tasks(&args.run, settings)?.aimed(target)
    };
    if !spec.target.has_control() {
        check_twin(args.twin)?;
        return alone::run(&spec, "tasks", Compares::TasksPerS, args.disturbed, output);
    }
    let mut figures = Figures::default();
    for control in &args.controls {
        let case = held_to(*control, &spec, args, output)?;
        figures.cases.extend(case.cases);
        figures.curves.extend(case.curves);
    }
    Ok(figures)
}

fn tasks_per_s(loaded: &Loaded) -> f64 {
    per_second(loaded.results, Duration::from_nanos(loaded.elapsed_ns))
}

fn held_to(
    control: TasksControl,
    spec: &Spec,
    args: &BenchTasksArgs,
    output: &mut Output,
) -> Result<Figures, Failure> {
    let control_name = match control {
        TasksControl::Cipher => {
            "GSO echo over io_uring with AES-256-GCM, datagrams of our length, times our tasks in each"
        }
        TasksControl::Plain => "GSO echo over io_uring, no protocol, no cipher, a datagram a task",
        TasksControl::Mmsg => "the same tasks over the mmsg backend",
        TasksControl::Metrics => "the same tasks, no metrics served",
    };
    let measured = Spec {
        scraped: matches!(control, TasksControl::Metrics),
        ..spec.clone()
    };
    let pairs = Pairs {
        spec: &measured,
        name: if measured.scraped { SCRAPED } else { "tasks" },
        compares: Compares::TasksPerS,
        control_name,
        disturbed: args.disturbed,
        twin: args.twin,
    };
    // The first run of a pair of pairs is ours, so the control knows what it is to carry.
    let shape = Cell::new(None);
    let figure = |loaded: &Loaded| {
        shape.set(loaded.cost().or(shape.get()));
        tasks_per_s(loaded)
    };
    pairs.run(output, figure, || match control {
        TasksControl::Cipher => cipher(spec, shape.get()),
        TasksControl::Plain => {
            let arm = GsoEcho {
                duration: spec.run,
                cores: spec.cores(),
                ..GsoEcho::new(spec.payload, spec.window as usize, false)
            };
            Ok(arms::gso_echo(&arm).map_err(arm_failure)?.per_s)
        }
        TasksControl::Mmsg => Ok(tasks_per_s(&measure(&over_mmsg(spec))?)),
        TasksControl::Metrics => Ok(tasks_per_s(&measure(spec)?)),
    })
}

/// The tasks a second that the encrypted echo would carry at this shape.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the mean length of a datagram"
)]
fn cipher(spec: &Spec, shape: Option<WorkerCost>) -> Result<f64, Failure> {
    let shape = shape.ok_or_else(|| Failure::environment("the worker counted no tasks"))?;
    let len = (shape.datagram_len as usize).max(DATAGRAM_LEN_MIN);
    let window = (CIPHER_IN_FLIGHT / len).clamp(CIPHER_WINDOW_MIN, CIPHER_WINDOW_MAX);
    let arm = GsoEcho {
        duration: spec.run,
        cores: spec.cores(),
        ..GsoEcho::new(len, window, true)
    };
    let datagrams_per_s = arms::gso_echo(&arm).map_err(arm_failure)?.per_s;
    Ok(datagrams_per_s * shape.tasks_per_datagram)
}

fn over_mmsg(spec: &Spec) -> Spec {
    let mmsg = |threads: &Threads| Threads {
        io: IoKind::Mmsg,
        ..threads.clone()
    };
    Spec {
        worker: mmsg(&spec.worker),
        requester: mmsg(&spec.requester),
        ..spec.clone()
    }
}
