//! `ramjet bench`: how fast, beside what the kernel and the cipher allow in the same run.
//!
//! The subject is the whole path in one process: an in-memory registry, a worker and a requester,
//! each with one worker thread pinned to a core of its own, an engagement for `echo`, and a job
//! that compares every result with its payload. The control is the same kernel path without our
//! protocol ([`ramjet_bench::arms`]). The two alternate in the order A B B A, and the nodes are
//! stopped while the control runs, so that neither takes the other's core.
//!
//! `--json` prints one object a case: `case`, `tasks_per_s`, `p50_us`, `p99_us`, `control`, `ratio`
//! with its interval, `method`, and what disturbed the run.
//!
//! A ladder prints one object a rate, a soak one object. No figure of a disturbed run is printed,
//! unless by force and marked.
//!
//! | file | holds |
//! |---|---|
//! | [`subject`] | the subject: two nodes of this process, and one run of them |
//! | [`target`] | what is asked of whom: other skills, other markets |
//! | [`compared`], [`alone`] | interleaved pairs of the subject and a control arm; without one |
//! | [`open_loop`] | one run at a stated rate, and the rung it makes |
//! | [`tasks`], [`latency`], [`ladder`], [`soak`], [`fairness`], [`limits`] | the cases |
//! | [`tunnels`] | thousands of tunnels of one worker |
//! | [`registry`] | thousands of nodes at one registry |
//! | [`process`] | what is measured in a process of its own |
//! | [`scrape`] | what reads the metrics of nodes while they are measured |
//! | [`logs`], [`reports`] | files: histograms, the page and its JSON |
//! | [`peers`] | ramjet beside what one would pick instead |

mod alone;
mod compared;
mod fairness;
mod ladder;
mod latency;
mod limits;
mod logs;
mod open_loop;
mod peers;
mod process;
mod registry;
mod reports;
mod scrape;
mod soak;
mod subject;
mod target;
mod tasks;
mod tunnels;

use ramjet_bench::arms;
use ramjet_bench::facts::{MachineFacts, Watch};
use ramjet_bench::ladder::Ladder;
use ramjet_bench::page::Curve;
use ramjet_bench::report::{self, CaseReport};
use ramjet_bench::soak::SoakReport;

use self::registry::RegistryReport;
use self::tunnels::TunnelsReport;
use super::bench_args::{BenchArgs, BenchCommand, ReportArgs};
use super::exit::{Exit, Failure};
use super::output::Output;
use super::settings::Settings;

/// What a command measured.
#[derive(Default)]
struct Figures {
    cases: Vec<CaseReport>,
    curves: Vec<Curve>,
    ladder: Option<Ladder>,
    soak: Option<SoakReport>,
    tunnels: Vec<TunnelsReport>,
    registry: Option<RegistryReport>,
}

pub(super) fn run(
    args: &BenchArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    match &args.what {
        BenchCommand::Tasks(args) => told("tasks per second", &args.report, output, |output| {
            tasks::run(args, settings, output)
        }),
        BenchCommand::Latency(args) if args.ladder || args.rate.is_some() => {
            told("latency at stated rates", &args.report, output, |output| {
                Ok(Figures {
                    ladder: Some(ladder::run(args, settings, output)?),
                    ..Figures::default()
                })
            })
        }
        BenchCommand::Latency(args) => {
            told("latency of one task", &args.report, output, |output| {
                latency::run(args, settings, output)
            })
        }
        BenchCommand::Soak(args) => told("soak", &args.report, output, |output| {
            Ok(Figures {
                soak: Some(soak::run(args, settings, output)?),
                ..Figures::default()
            })
        }),
        BenchCommand::Fairness(args) => told(
            "one requester beside another",
            &args.report,
            output,
            |output| fairness::run(args, settings, output),
        ),
        BenchCommand::Limits(args) => told(
            "what the machine gives without ramjet",
            &args.report,
            output,
            |output| {
                Ok(Figures {
                    cases: limits::run(args, output)?,
                    ..Figures::default()
                })
            },
        ),
        BenchCommand::Tunnels(args) => told("many tunnels", &args.report, output, |output| {
            Ok(Figures {
                tunnels: tunnels::run(args, settings, output)?,
                ..Figures::default()
            })
        }),
        BenchCommand::TunnelsWorker(node) => tunnels::worker(node, settings, output),
        BenchCommand::Registry(args) => told(
            "many nodes at one registry",
            &args.report,
            output,
            |output| {
                Ok(Figures {
                    registry: Some(registry::run(args, output)?),
                    ..Figures::default()
                })
            },
        ),
        BenchCommand::RegistryServer(_) => registry::serve(settings, output),
        BenchCommand::Peers(args) => {
            output.say(&MachineFacts::read().line());
            peers::run(args, settings, output)
        }
    }
}

/// Measures, prints, and writes the report.
fn told(
    title: &str,
    files: &ReportArgs,
    output: &mut Output,
    measure: impl FnOnce(&mut Output) -> Result<Figures, Failure>,
) -> Result<Exit, Failure> {
    reports::check(files)?;
    let machine = MachineFacts::read();
    output.say(&machine.line());
    let watch = Watch::begin();
    let figures = measure(output)?;
    let quiet = watch.end();
    output.end_bar();
    print(&figures, output)?;
    let exit = exit_of(&figures);
    reports::write(files, title, machine, quiet, figures, output)?;
    Ok(exit)
}

fn print(figures: &Figures, output: &Output) -> Result<(), Failure> {
    if output.json {
        for case in &figures.cases {
            output.object(case)?;
        }
        for rung in figures.ladder.iter().flat_map(Ladder::all) {
            output.object(rung)?;
        }
        if let Some(soak) = &figures.soak {
            output.object(soak)?;
        }
        for tunnels in &figures.tunnels {
            output.object(tunnels)?;
        }
        if let Some(registry) = &figures.registry {
            output.object(registry)?;
        }
        return Ok(());
    }
    let mut text = String::new();
    if !figures.cases.is_empty() {
        text.push_str(&report::table(&figures.cases));
    }
    if let Some(ladder) = &figures.ladder {
        text.push_str(&ramjet_bench::ladder::table(ladder));
    }
    if let Some(soak) = &figures.soak {
        text.push_str(&ramjet_bench::soak::summary(soak));
    }
    if !figures.tunnels.is_empty() {
        text.push_str(&tunnels::page(&figures.tunnels));
    }
    if let Some(registry) = &figures.registry {
        text.push_str(&registry::page(registry));
    }
    output.data(text.trim_end())
}

/// Work that was lost, or rates of which none counts, make a command fail.
fn exit_of(figures: &Figures) -> Exit {
    let soaked = figures.soak.as_ref().is_none_or(SoakReport::is_ok);
    let climbed = figures.ladder.as_ref().is_none_or(|ladder| {
        let told = |rung: &ramjet_bench::ladder::Rung| rung.is_valid() || rung.forced;
        ladder.rungs.iter().any(told) && ladder.rungs.iter().all(|rung| rung.counts.lost == 0)
    });
    if soaked && climbed {
        Exit::Ok
    } else {
        Exit::Failed
    }
}

fn arm_failure(error: arms::ArmError) -> Failure {
    Failure::environment(format!("control arm: {error}"))
}
