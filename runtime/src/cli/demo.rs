//! `ramjet demo`: the whole lifecycle on this machine, on real text.
//!
//! A registry, a worker and a requester, all three throw-away, in one process. Every line becomes a
//! micro-task. The requester computes the expected result of every distinct line before the run,
//! with the same skill, and compares every answer: what differs is rejected, and the demo fails.
//!
//! `--json` prints one object: `skill`, `lines`, `passes`, `tasks`, `accepted`, `rejected`,
//! `failed`, `refused` (by reason), `settled`, `elapsed_s`, `tasks_per_s`, `latency_us` (`p50`,
//! `p99`, `p999`, `max`), `busy_us_per_task`, `polo` (of `worker` and
//! `requester`, `before` and `after`), `timeline`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::bounded;
use ramjet_proto::market::message::Query;
use ramjet_proto::market::{AcceptFrom, Filter};
use serde_json::{Value, json};

use super::args::DemoArgs;
use super::engage::{self, Followed, Interrupts, Timeline};
use super::exit::{Exit, Failure};
use super::host::{self, Threads};
use super::identity_file::throw_away;
use super::jobs::{Expected, Live, Measured, Verify};
use super::market;
use super::output::{self, Output, Paint, counted, grouped, latency, per_second, rate, tenth};
use super::settings::{self as s, Settings};
use super::signals::Signals;
use super::text::{EmptyLines, Source, Text};
use super::up::start_both;
use crate::node::{EngageOutcome, EngageRequest, Node, NodeConfig};
use crate::skills;

/// The Universal Declaration of Human Rights, a paragraph a line, in the languages that `langid`
/// tells apart; `runtime/data/README.md` says where it comes from.
static DECLARATION: &[u8] = include_bytes!("../../data/udhr.txt");

/// How long the worker may take to show up at the registry.
const ADVERTISE_MAX: Duration = Duration::from_secs(10);
/// Between two looks for it.
const ADVERTISE_LOOK: Duration = Duration::from_millis(5);
/// How long an offer waits for the only worker there is.
const ACCEPT_DEADLINE_MS: u32 = 10_000;
/// How long the run may take.
const DURATION_S: u32 = 3_600;

pub(super) fn run(
    args: &DemoArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let signals = Signals::install()?;
    let text = Arc::new(read(args)?);
    let handler = skills::handler(&args.skill).map_err(|error| {
        let meant = s::suggestion(&args.skill, skills::NAMES.into_iter());
        Failure::usage(format!("--skill: {error}{meant}"))
    })?;
    let expected = Expected::of(&text, &*handler)?;
    let plan = Plan::of(args, &text);
    output.say(&plan.headline());

    let mut timeline = Timeline::start();
    let registry = market::start_in_memory()?;
    let (worker, requester) = nodes(args, settings, registry.tcp_addr())?;
    let (worker, requester) = start_both(worker, requester)?;
    timeline.mark(
        output,
        "registered",
        format!(
            "worker is node {}, requester is node {}",
            worker.node_id(),
            requester.node_id()
        ),
    );
    let ran = wait_advertised(&requester, &args.skill)
        .map(|detail| timeline.mark(output, "advertised", detail))
        .and_then(|()| {
            engage(
                &plan,
                &requester,
                text,
                expected,
                &signals,
                output,
                &mut timeline,
            )
        });
    output.end_bar();
    if let Ok(ran) = &ran {
        engage::mark_end(&ran.followed, output, &mut timeline);
    }
    // Stopped in any case; if the run failed, that is what is reported.
    let stopped = [requester.shutdown(), worker.shutdown()];
    registry.shutdown();
    let ran = ran?;
    for result in stopped {
        result?;
    }
    report(&plan, &ran, &timeline, output)
}

/// What is going to be done.
struct Plan {
    skill: String,
    source: &'static str,
    lines: u64,
    bytes: u64,
    tasks: u64,
    window: u32,
}

impl Plan {
    fn of(args: &DemoArgs, text: &Text) -> Self {
        let default = "the Universal Declaration of Human Rights";
        Plan {
            skill: args.skill.clone(),
            source: if args.files.is_empty() {
                default
            } else {
                "the given files"
            },
            lines: text.len() as u64,
            bytes: text.payload_len(),
            tasks: args.tasks,
            window: args.window,
        }
    }

    fn passes(&self) -> f64 {
        // Both are far below 2^52.
        per_second(self.tasks, Duration::from_secs(self.lines))
    }

    fn headline(&self) -> String {
        format!(
            "{} of {} ({} bytes), gone through {:.1} times: {} for {}, {} at a time",
            counted(self.lines, "line", "lines"),
            self.source,
            grouped(self.bytes),
            self.passes(),
            counted(self.tasks, "micro-task", "micro-tasks"),
            self.skill,
            grouped(u64::from(self.window)),
        )
    }
}

fn read(args: &DemoArgs) -> Result<Text, Failure> {
    let text = if args.files.is_empty() {
        Text::of_lines(
            "udhr.txt",
            Bytes::from_static(DECLARATION),
            EmptyLines::Skip,
        )?
    } else {
        let sources: Vec<Source> = args.files.iter().map(|path| Source::of(path)).collect();
        Text::read(&sources, EmptyLines::Skip)?
    };
    if text.is_empty() {
        return Err(Failure::usage(
            "there is no line with text in the given files",
        ));
    }
    Ok(text)
}

/// A worker for the skill and a requester, both throw-away. They are the same user's, so each
/// trusts the other and the worker serves whom it trusts.
fn nodes(
    args: &DemoArgs,
    settings: &Settings,
    registry: std::net::SocketAddr,
) -> Result<(NodeConfig, NodeConfig), Failure> {
    let threads = host::threads(settings)?;
    let [worker_threads, requester_threads] = on_two_cores(settings, threads);
    let skill = skills::built_in(&args.skill, AcceptFrom::Trusted)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let worker = NodeConfig {
        skills: vec![skill],
        task_ready: true,
        public: true,
        credits: args.window,
        hostname: Some("demo-worker".to_owned()),
        ..host::bare_node(registry, throw_away()?, worker_threads)
    };
    let requester = host::bare_node(registry, throw_away()?, requester_threads);
    Ok((worker, requester))
}

/// Worker on the first core and requester on the last, unless cores were named or there is one.
pub(super) fn on_two_cores(settings: &Settings, threads: Threads) -> [Threads; 2] {
    let mut both = [threads.clone(), threads];
    let cores = if settings.is_set(s::CORES) {
        both[0].cores.clone()
    } else {
        host::allowed_cores()
    };
    if let [first, .., last] = cores[..] {
        // With several threads a node the kernel places them better than a list of two would.
        let pin = both[0].workers == 1;
        both[0].cores = if pin { vec![first] } else { Vec::new() };
        both[1].cores = if pin { vec![last] } else { Vec::new() };
    }
    both
}

/// Waits until the registry lists a task-ready worker for `skill`.
pub(super) fn wait_advertised(requester: &Node, skill: &str) -> Result<String, Failure> {
    let deadline = Instant::now() + ADVERTISE_MAX;
    let query = Query {
        task_ready: true,
        filters: vec![Filter {
            key: "skills".to_owned(),
            value: skill.to_owned(),
        }],
        ..Query::default()
    };
    loop {
        if let Some(worker) = requester.resolve(query.clone())?.first() {
            return Ok(format!(
                "{} offers {skill}, polo {}",
                worker.address, worker.polo
            ));
        }
        if Instant::now() >= deadline {
            return Err(Failure::environment(format!(
                "the worker did not advertise {skill} within {} s; look at --log debug",
                ADVERTISE_MAX.as_secs()
            )));
        }
        std::thread::sleep(ADVERTISE_LOOK);
    }
}

/// The run, as it ended.
struct Ran {
    followed: Followed,
    measured: Measured,
    elapsed: Duration,
}

fn engage(
    plan: &Plan,
    requester: &Node,
    text: Arc<Text>,
    expected: Expected,
    signals: &Signals,
    output: &mut Output,
    timeline: &mut Timeline,
) -> Result<Ran, Failure> {
    let (live, (report, reported)) = (Arc::new(Live::default()), bounded(1));
    let job = Verify::new(text, expected, plan.tasks, live.clone(), report);
    let begun = Instant::now();
    let events = requester.engage(EngageRequest {
        skill: plan.skill.clone(),
        filters: Vec::new(),
        min_polo: i64::MIN,
        tasks: plan.tasks,
        concurrency: plan.window,
        duration_s: DURATION_S,
        accept_deadline_ms: ACCEPT_DEADLINE_MS,
        job: Box::new(job),
    })?;
    output.start_bar(plan.tasks);
    let interrupts = Interrupts::signals(signals.received.clone());
    let mut finished = None;
    let followed = engage::follow(&events, output, timeline, &interrupts, &mut |output| {
        let answered = live.answered();
        if answered == plan.tasks {
            finished.get_or_insert_with(|| begun.elapsed());
        }
        let (p50, p99) = live.latency_ns();
        output.move_bar(answered, || {
            let rate = rate(per_second(answered, begun.elapsed()));
            format!("{rate}  p50 {}  p99 {}", latency(p50), latency(p99))
        });
    });
    let mut followed = followed?;
    // The job tells what it measured as it is dropped.
    drop(followed.end.job.take());
    let measured = reported
        .recv()
        .map_err(|_| Failure::environment("the job was lost"))?;
    Ok(Ran {
        followed,
        elapsed: finished.unwrap_or_else(|| begun.elapsed()),
        measured,
    })
}

fn report(
    plan: &Plan,
    ran: &Ran,
    timeline: &Timeline,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let settled = ran.followed.end.outcome == EngageOutcome::Settled;
    let object = report_object(plan, ran, timeline, settled);
    let failure = engage::failure_of(&ran.followed.end.outcome, &plan.skill)
        .or_else(|| fault(plan, &ran.measured, settled));
    if let Some(mut failure) = failure {
        if let Value::Object(members) = object {
            failure.details.extend(members);
        }
        return Err(failure);
    }
    if output.json {
        output.object(&object)?;
    } else {
        output.data(&report_page(plan, ran, output))?;
    }
    Ok(Exit::Ok)
}

/// Why the demo failed although its engagement ended well; `None` if it did not.
fn fault(plan: &Plan, measured: &Measured, settled: bool) -> Option<Failure> {
    let sound = measured.accepted == plan.tasks && measured.repeated == 0;
    if sound && settled {
        return None;
    }
    let first = measured
        .first_fault
        .as_deref()
        .unwrap_or("the last receipt is not settled");
    Some(Failure::new(
        Exit::Failed,
        format!(
            "{} of {} tasks were answered and verified, {} answered twice; first fault: {first}",
            grouped(measured.accepted),
            grouped(plan.tasks),
            measured.repeated
        ),
    ))
}

fn report_object(plan: &Plan, ran: &Ran, timeline: &Timeline, settled: bool) -> Value {
    let measured = &ran.measured;
    json!({
        "skill": plan.skill,
        "lines": plan.lines,
        "passes": tenth(plan.passes()),
        "tasks": plan.tasks,
        "accepted": measured.accepted,
        "rejected": measured.rejected,
        "failed": measured.failed,
        "refused": measured.refused,
        "settled": settled,
        "elapsed_s": ran.elapsed.as_secs_f64(),
        "tasks_per_s": tenth(per_second(measured.accepted, ran.elapsed)),
        "latency_us": latency_object(measured),
        "busy_us_per_task": busy_us(measured),
        "polo": ran.followed.changes(),
        "timeline": timeline.marks(),
    })
}

/// Quantiles of the round trip in microseconds.
pub(super) fn latency_object(measured: &Measured) -> Value {
    let quantile = |share| tenth(output::micros(measured.quantile_ns(share)));
    json!({
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "p999": quantile(0.999),
        "max": tenth(output::micros(measured.round_trip.max())),
    })
}

/// Mean handler time of a result, in microseconds.
fn busy_us(measured: &Measured) -> f64 {
    match measured.round_trip.len() {
        0 => 0.0,
        results => tenth(output::micros(measured.busy_ns / results)),
    }
}

fn report_page(plan: &Plan, ran: &Ran, output: &Output) -> String {
    let measured = &ran.measured;
    let quantile = |share| latency(measured.quantile_ns(share));
    let mut rows = vec![
        (
            "tasks",
            format!("{} of {}", grouped(measured.issued), grouped(plan.tasks)),
        ),
        (
            "accepted",
            format!("{}, every result compared", grouped(measured.accepted)),
        ),
        (
            "rate",
            format!(
                "{} over {:.1} s",
                rate(per_second(measured.accepted, ran.elapsed)).replace("/s", " tasks/s"),
                ran.elapsed.as_secs_f64()
            ),
        ),
        (
            "round trip",
            format!(
                "p50 {}  p99 {}  p99.9 {}, with {} outstanding",
                quantile(0.5),
                quantile(0.99),
                quantile(0.999),
                plan.window
            ),
        ),
        ("handler", format!("{:.1} µs a task", busy_us(measured))),
    ];
    if let Some(changes) = ran.followed.changes() {
        rows.push((
            "polo",
            format!(
                "worker {} → {}, requester {} → {}",
                changes.worker.before,
                changes.worker.after,
                changes.requester.before,
                changes.requester.after
            ),
        ));
    }
    let rows: Vec<String> = rows
        .into_iter()
        .map(|(name, fact)| format!("{name:<12}{}", output.paint(Paint::Good, &fact)))
        .collect();
    rows.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_that_ships_is_what_its_page_says() {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, DECLARATION);
        let hex: String = digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let page = include_str!("../../data/README.md");
        assert!(
            page.contains(&hex),
            "runtime/data/README.md does not name {hex}"
        );
        let text = Text::of_lines(
            "udhr.txt",
            Bytes::from_static(DECLARATION),
            EmptyLines::Skip,
        )
        .expect("within limits");
        assert_eq!(text.len(), 4_149);
    }

    #[test]
    fn the_skill_finds_many_languages_in_the_text() {
        let text = std::str::from_utf8(DECLARATION).expect("UTF-8");
        let languages: std::collections::BTreeSet<_> = text
            .lines()
            .step_by(7)
            .filter_map(whatlang::detect_lang)
            .map(|lang| lang.code())
            .collect();
        assert!(languages.len() >= 55, "{languages:?}");
    }

    #[test]
    fn only_a_run_without_a_fault_is_sound() {
        let text = Text::of_lines("t", Bytes::from_static(b"a\nb\n"), EmptyLines::Skip);
        let args = DemoArgs {
            files: Vec::new(),
            skill: "echo".to_owned(),
            tasks: 5,
            window: 2,
            threads: super::super::arg_groups::ThreadArgs::default(),
        };
        let plan = Plan::of(&args, &text.expect("short"));
        assert!(
            plan.headline()
                .contains("2 lines of the Universal Declaration")
        );
        assert!(
            plan.headline()
                .contains("gone through 2.5 times: 5 micro-tasks")
        );
        let good = Measured {
            issued: 5,
            accepted: 5,
            ..Measured::default()
        };
        assert_eq!(fault(&plan, &good, true), None);
        let unsound = [
            (good.clone(), false),
            (
                Measured {
                    repeated: 1,
                    ..good.clone()
                },
                true,
            ),
            (
                Measured {
                    accepted: 4,
                    rejected: 1,
                    ..good
                },
                true,
            ),
        ];
        for (measured, settled) in unsound {
            let failure = fault(&plan, &measured, settled).expect("a fault");
            assert_eq!(failure.exit, Exit::Failed);
        }
    }
}
