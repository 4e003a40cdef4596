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
//! | file | holds |
//! |---|---|
//! | [`subject`] | the subject: two nodes of this process, and one run of them |
//! | [`compared`] | interleaved pairs of the subject and a control arm |
//! | [`tasks`], [`latency`], [`limits`] | the cases |
//! | [`peers`] | ramjet beside what one would pick instead |

mod compared;
mod latency;
mod limits;
mod peers;
mod subject;
mod tasks;

use ramjet_bench::arms;
use ramjet_bench::facts::MachineFacts;
use ramjet_bench::report;

use self::subject::Spec;
use super::bench_args::{BenchArgs, BenchCommand};
use super::exit::{Exit, Failure};
use super::output::Output;
use super::settings::Settings;

pub(super) fn run(
    args: &BenchArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    output.say(&MachineFacts::read().line());
    let cases = match &args.what {
        BenchCommand::Tasks(run) => vec![tasks::run(&Spec::tasks(run, settings)?, output)?],
        BenchCommand::Latency(run) => vec![latency::run(&Spec::latency(run, settings)?, output)?],
        BenchCommand::Limits(limits_args) => limits::run(limits_args, output)?,
        BenchCommand::Peers(peers_args) => return peers::run(peers_args, settings, output),
    };
    if output.json {
        for case in &cases {
            output.object(case)?;
        }
    } else {
        output.data(report::table(&cases).trim_end())?;
    }
    Ok(Exit::Ok)
}

fn arm_failure(error: arms::ArmError) -> Failure {
    Failure::environment(format!("control arm: {error}"))
}
