//! `ramjet submit`: one task with its timeline, or one for each line as an engagement.
//!
//! Through the local node, or stand-alone with `--registry`: then with the identity that was named,
//! or with a new one that is forgotten. Data on standard output: the result of a single task as it
//! is, or a line for each line ([`super::printer`]).
//!
//! `--json`: a single task prints one object: `skill`, `outcome`, `result` or `result_base64` or
//! `failed` or `refused`, `verdict`, `engagement`, `worker`, `worker_address`, `latency_us`, `polo`
//! and `timeline`. With `--lines` every line prints an object with `line` and its answer, and the
//! last object holds all of the above and the counts under `summary`.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use ramjet_proto::identity::PublicKey;
use ramjet_proto::market::Filter;
use ramjet_proto::market::message::{Query, WorkerRow};
use ramjet_proto::market::terms::{ACCEPT_DEADLINE_MS_MAX, DURATION_S_MAX, is_skill_name};
use serde_json::{Value, json};

use super::access::{self, Route};
use super::args::SubmitArgs;
use super::attempts::{DRAINS_MAX, add, unfinished, worker_drained, worth_another};
use super::demo::latency_object;
use super::engage::{self, Followed, Interrupts, Timeline};
use super::exit::{Exit, Failure};
use super::host::{self, REQUESTER_SOCKET_FILE, SOCKET_FILE};
use super::identity_file;
use super::jobs::{Batch, Collect, CollectPlan, Collected, DRAINING, Flow, Live, Measured};
use super::output::{Output, counted, grouped, latency, per_second, rate, stdout_failure, tenth};
use super::printer::{self, Printer};
use super::settings::{self as s, Settings};
use super::signals::Signals;
use super::text::{EmptyLines, Source, Text};
use crate::control::local_client::LocalClient;
use crate::job::Verdict;
use crate::node::{EngageOutcome, EngageRequest, Engagement, Node, NodeConfig, NodeError};

/// Between two looks for a worker in the place of one that drains.
const LOOK: Duration = Duration::from_millis(100);
/// Beyond the time of the work itself: tunnel, last receipt, settlement.
const GRACE: Duration = Duration::from_secs(15);

pub(super) fn run(
    args: &SubmitArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    check(args)?;
    let text = Arc::new(read(args)?);
    if text.is_empty() {
        output.say("there is no line to submit");
        return Ok(Exit::Ok);
    }
    let signals = Signals::install()?;
    let mut timeline = Timeline::start();
    let requester = Requester::open(settings, output, &mut timeline)?;
    let mut submission = Submission {
        args,
        text,
        signals,
        output,
        timeline,
    };
    let done = if args.input.lines.is_some() {
        submission.lines(&requester)
    } else {
        submission.single(&requester)
    };
    let stopped = requester.close();
    let exit = done?;
    stopped?;
    Ok(exit)
}

/// What the registry would refuse is refused here, by the name of its flag.
fn check(args: &SubmitArgs) -> Result<(), Failure> {
    let refuse = |flag: &str, value: &dyn std::fmt::Display, bound: String| {
        Err(Failure::usage(format!("--{flag}: {value} {bound}")))
    };
    if !is_skill_name(&args.skill) {
        return refuse(
            "skill",
            &args.skill,
            "must be 1 to 64 bytes of [a-z0-9._-]".to_owned(),
        );
    }
    if duration_s(args.timeout).is_none() {
        let shown = humantime::format_duration(args.timeout);
        return refuse(
            "timeout",
            &shown,
            format!("is more than {DURATION_S_MAX} s"),
        );
    }
    if accept_deadline_ms(args.accept_timeout).is_none() {
        let shown = humantime::format_duration(args.accept_timeout);
        return refuse(
            "accept-timeout",
            &shown,
            format!("is more than {ACCEPT_DEADLINE_MS_MAX} ms"),
        );
    }
    Ok(())
}

/// Whole seconds, rounded up; `None` beyond the limit of an engagement.
fn duration_s(timeout: Duration) -> Option<u32> {
    let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    u32::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds <= DURATION_S_MAX)
}

/// Whole milliseconds, at least 1; `None` beyond the limit of an offer.
fn accept_deadline_ms(timeout: Duration) -> Option<u32> {
    let ms = u32::try_from(timeout.as_millis()).ok()?;
    (ms <= ACCEPT_DEADLINE_MS_MAX).then_some(ms.max(1))
}

fn read(args: &SubmitArgs) -> Result<Text, Failure> {
    let input = &args.input;
    match (&input.data, &input.file, &input.lines) {
        (Some(data), _, _) => Text::of_payload("--data", data.clone().into_bytes().into()),
        (_, Some(file), _) => Text::read_payload(&Source::of(file)),
        (_, _, Some(lines)) => Text::read(&[Source::of(lines)], EmptyLines::Keep),
        _ => Err(Failure::usage("submit: give --data, --file or --lines")),
    }
}

/// Who makes the offer.
enum Requester {
    Local(LocalClient),
    Own(Node),
}

impl Requester {
    fn open(
        settings: &Settings,
        output: &Output,
        timeline: &mut Timeline,
    ) -> Result<Self, Failure> {
        match access::route(settings, &[REQUESTER_SOCKET_FILE, SOCKET_FILE])? {
            Route::Socket(path) => Ok(Requester::Local(access::connect(&path)?)),
            Route::Registry(registry) => {
                let node = Node::start(own_node(settings, registry, output)?)?;
                let detail = format!("node {} at {registry}", node.node_id());
                timeline.mark(output, "registered", detail);
                Ok(Requester::Own(node))
            }
        }
    }

    fn engage(&self, request: EngageRequest) -> Result<Engagement, Failure> {
        Ok(match self {
            Requester::Local(client) => client.engage(request)?,
            Requester::Own(node) => node.engage(request)?,
        })
    }

    fn resolve(&self, query: Query) -> Result<Vec<WorkerRow>, NodeError> {
        match self {
            Requester::Local(client) => client.resolve(query),
            Requester::Own(node) => node.resolve(query),
        }
    }

    fn close(self) -> Result<(), Failure> {
        match self {
            Requester::Local(_) => Ok(()),
            Requester::Own(node) => Ok(node.shutdown()?),
        }
    }
}

/// A node for this command alone. With a state folder its receipts outlive it.
pub(super) fn own_node(
    settings: &Settings,
    registry: SocketAddr,
    output: &Output,
) -> Result<NodeConfig, Failure> {
    let threads = host::threads(settings)?;
    let state = settings.path(s::STATE);
    let identity = match (settings.path(s::IDENTITY), &state) {
        (None, None) => identity_file::throw_away()?,
        (named, state) => {
            let state = state.clone().unwrap_or_default();
            let (identity, source) = identity_file::of_node(named.as_deref(), None, &state)?;
            super::node::tell_identity(&source, output);
            identity
        }
    };
    if let Some(state) = &state {
        identity_file::create_folder(state)?;
    }
    let key = settings.parsed(s::REGISTRY_KEY, |text| {
        PublicKey::from_base64(text).ok_or_else(|| "is no base64 of a 32-byte key".to_owned())
    })?;
    Ok(NodeConfig {
        registry_key: key.last().copied(),
        beacon: host::beacon(settings)?,
        state,
        ..host::bare_node(registry, identity, threads)
    })
}

struct Submission<'a> {
    args: &'a SubmitArgs,
    text: Arc<Text>,
    signals: Signals,
    output: &'a mut Output,
    timeline: Timeline,
}

/// An engagement and what its job measured.
struct Ran {
    followed: Followed,
    measured: Measured,
    elapsed: Duration,
}

impl Submission<'_> {
    fn verdict(&self) -> Verdict {
        if self.args.reject {
            Verdict::Reject
        } else {
            Verdict::Accept
        }
    }

    /// Makes one offer for `lines` and follows it to its end.
    fn engage(
        &mut self,
        requester: &Requester,
        lines: Vec<u32>,
        flow: &Arc<Flow>,
        printer: Sender<Batch>,
        failed: Receiver<Failure>,
    ) -> Result<Ran, Failure> {
        let args = self.args;
        let tasks = lines.len() as u64;
        let live = Arc::new(Live::default());
        let (report, reported) = bounded(1);
        let job = Collect::new(CollectPlan {
            text: self.text.clone(),
            lines,
            verdict: self.verdict(),
            deadline_us: u32::try_from(args.timeout.as_micros()).unwrap_or(0),
            flow: flow.clone(),
            printer,
            live: live.clone(),
            report,
        });
        let begun = Instant::now();
        let events = requester.engage(EngageRequest {
            skill: args.skill.clone(),
            filters: args.filter.clone(),
            min_polo: args.min_polo,
            tasks,
            concurrency: args.window.min(u32::try_from(tasks).unwrap_or(u32::MAX)),
            duration_s: duration_s(args.timeout).unwrap_or(DURATION_S_MAX),
            accept_deadline_ms: accept_deadline_ms(args.accept_timeout)
                .unwrap_or(ACCEPT_DEADLINE_MS_MAX),
            job: Box::new(job),
        })?;
        if tasks > 1 {
            self.output.start_bar(tasks);
        }
        let patience = args.accept_timeout + args.timeout + GRACE;
        let words = format!(
            "no end within {}; give the work more time with --timeout",
            humantime::format_duration(patience)
        );
        let interrupts = Interrupts {
            signals: self.signals.received.clone(),
            failed,
            deadline: Some((begun + patience, words)),
        };
        let mut look = |output: &mut Output| {
            let answered = live.answered();
            output.move_bar(answered, || rate(per_second(answered, begun.elapsed())));
        };
        let followed = engage::follow(
            &events,
            self.output,
            &mut self.timeline,
            &interrupts,
            &mut look,
        );
        self.output.end_bar();
        let mut followed = followed?;
        let elapsed = begun.elapsed();
        // The job tells what it measured, and the printer its last answers, as it is dropped.
        drop(followed.end.job.take());
        let measured = reported
            .recv()
            .map_err(|_| Failure::environment("the job was lost"))?;
        engage::mark_end(&followed, self.output, &mut self.timeline);
        Ok(Ran {
            followed,
            measured,
            elapsed,
        })
    }

    fn single(&mut self, requester: &Requester) -> Result<Exit, Failure> {
        let (printer, batches) = unbounded();
        let flow = Arc::default();
        let ran = self.engage(
            requester,
            vec![0],
            &flow,
            printer,
            crossbeam::channel::never(),
        )?;
        let answer = batches.try_iter().find_map(|batch| {
            batch
                .iter()
                .next()
                .map(|(_, what, bytes)| (what, bytes.to_vec()))
        });
        let mut object = self.object(&ran);
        if let Some((collected, bytes)) = &answer {
            object.extend(printer::object(*collected, bytes));
        }
        let failure = match (
            &answer,
            engage::failure_of(&ran.followed.end.outcome, &self.args.skill),
        ) {
            (_, Some(failure)) => Some(failure),
            (Some((Collected::Done, _)), None) => None,
            (Some((Collected::Failed, why)), None) => Some(Failure::new(
                Exit::Failed,
                format!("the task failed: {}", String::from_utf8_lossy(why)),
            )),
            (Some((Collected::Refused(reason), _)), None) => Some(Failure::new(
                Exit::Failed,
                format!("the task was not run: {reason}"),
            )),
            (None, None) => Some(Failure::new(
                Exit::Failed,
                "the engagement ended without an answer",
            )),
        };
        if let Some(mut failure) = failure {
            failure.details.append(&mut object);
            return Err(failure);
        }
        if self.output.json {
            self.output.object(&object)?;
        } else if let Some((_, result)) = answer {
            write_result(&result).map_err(stdout_failure)?;
        }
        Ok(Exit::Ok)
    }

    fn lines(&mut self, requester: &Requester) -> Result<Exit, Failure> {
        let flow: Arc<Flow> = Arc::default();
        let count = u32::try_from(self.text.len()).expect("within LINES_MAX");
        let (attempts, attempts_in) = bounded(1);
        let (left_out, left) = bounded(1);
        let (failed_out, failed) = bounded(1);
        let printer = Printer::new(std::io::stdout(), flow.clone(), self.output.clone());
        let thread = printer::spawn(printer, attempts_in, left_out, failed_out);
        let mut lines: Vec<u32> = (0..count).collect();
        let mut total = Measured::default();
        let mut elapsed = Duration::ZERO;
        let mut drains = 0;
        let last = loop {
            let again = self.args.resubmit > self.attempts_made().saturating_sub(drains);
            let (printer, batches) = unbounded();
            // The printer ended by a failure, which `failed` holds.
            let _ = attempts.send((batches, again));
            let offered = lines.clone();
            let ran = self.engage(requester, offered, &flow, printer, failed.clone())?;
            let attempt = left.recv().map_err(|_| lost_printer(&failed))?;
            elapsed += ran.elapsed;
            add(&mut total, &ran.measured);
            lines = unfinished(&lines, ran.measured.issued, attempt);
            let outcome = &ran.followed.end.outcome;
            let drained = worker_drained(outcome, &ran.measured) && drains < DRAINS_MAX;
            drains += u32::from(drained && !again);
            if lines.is_empty() || !(again || drained) || !worth_another(outcome) {
                break ran;
            }
            // An offer that nobody takes costs polo, so one is made when somebody is there for it.
            if drained && !again && !self.wait_for_a_worker(requester) {
                break ran;
            }
            self.timeline.mark(
                self.output,
                "resubmitted",
                counted(
                    lines.len() as u64,
                    "line without an answer",
                    "lines without an answer",
                ),
            );
        };
        drop(attempts);
        let mut printer = thread
            .join()
            .map_err(|_| Failure::environment("the printer panicked"))?;
        let reason = if drains > 0 { DRAINING } else { "lost" };
        let given_up = printer.give_up(count, reason)?;
        // They are among those that were never run.
        total.refused.remove(DRAINING);
        let ran = Ran {
            followed: last.followed,
            measured: total,
            elapsed,
        };
        self.summary(&ran, given_up)
    }

    /// Waits for a worker that wants tasks of this skill, as long as an offer would; false if none came.
    fn wait_for_a_worker(&self, requester: &Requester) -> bool {
        let mut filters = self.args.filter.clone();
        filters.push(Filter {
            key: "skills".to_owned(),
            value: self.args.skill.clone(),
        });
        let query = Query {
            task_ready: true,
            filters,
            min_polo: Some(self.args.min_polo),
            limit: 1,
        };
        let until = Instant::now() + self.args.accept_timeout;
        while Instant::now() < until && self.signals.received.is_empty() {
            // The registry may be away as well, when a whole host is upgraded.
            if requester
                .resolve(query.clone())
                .is_ok_and(|rows| !rows.is_empty())
            {
                return true;
            }
            std::thread::sleep(LOOK);
        }
        false
    }

    fn attempts_made(&self) -> u32 {
        let made = self
            .timeline
            .marks()
            .iter()
            .filter(|mark| mark.step == "resubmitted")
            .count();
        u32::try_from(made).unwrap_or(u32::MAX)
    }

    fn summary(&mut self, ran: &Ran, given_up: u64) -> Result<Exit, Failure> {
        let measured = &ran.measured;
        let lines = self.text.len() as u64;
        let done = measured.accepted + measured.rejected;
        let mut object = self.object(ran);
        object.extend([
            ("lines".to_owned(), lines.into()),
            ("done".to_owned(), done.into()),
            ("accepted".to_owned(), measured.accepted.into()),
            ("rejected".to_owned(), measured.rejected.into()),
            ("failed".to_owned(), measured.failed.into()),
            ("refused".to_owned(), json!(measured.refused)),
            ("never_run".to_owned(), given_up.into()),
            ("elapsed_s".to_owned(), json!(ran.elapsed.as_secs_f64())),
            (
                "tasks_per_s".to_owned(),
                json!(tenth(per_second(done, ran.elapsed))),
            ),
        ]);
        let failure =
            engage::failure_of(&ran.followed.end.outcome, &self.args.skill).or_else(|| {
                let first = measured
                    .first_fault
                    .as_deref()
                    .unwrap_or("lines were never run");
                (done < lines).then(|| {
                    Failure::new(
                        Exit::Failed,
                        format!(
                            "{} of {lines} lines have a result; first fault: {first}",
                            grouped(done)
                        ),
                    )
                })
            });
        if let Some(failure) = failure {
            return Err(failure.with("summary", Value::Object(object)));
        }
        if self.output.json {
            self.output.object(&json!({ "summary": object }))?;
        }
        self.output.say(&format!(
            "{} done in {:.2} s: {}, p50 {}, p99 {}",
            counted(done, "line", "lines"),
            ran.elapsed.as_secs_f64(),
            rate(per_second(done, ran.elapsed)),
            latency(measured.quantile_ns(0.5)),
            latency(measured.quantile_ns(0.99)),
        ));
        Ok(Exit::Ok)
    }

    /// What `--json` says of an engagement, whatever was sent.
    fn object(&self, ran: &Ran) -> serde_json::Map<String, Value> {
        let outcome = match ran.followed.end.outcome {
            EngageOutcome::Settled => "settled",
            EngageOutcome::Spooled => "spooled",
            EngageOutcome::Refused(_) => "refused",
            EngageOutcome::Expired { .. } => "expired",
            EngageOutcome::Closed(_) => "closed",
            EngageOutcome::NoRegistry(_) => "no_registry",
        };
        let mut object = serde_json::Map::new();
        object.insert("skill".to_owned(), self.args.skill.clone().into());
        object.insert("outcome".to_owned(), outcome.into());
        let verdict = if self.args.reject { "reject" } else { "accept" };
        object.insert("verdict".to_owned(), verdict.into());
        if let Some(granted) = &ran.followed.granted {
            object.insert("engagement".to_owned(), granted.engagement.into());
            object.insert("worker".to_owned(), granted.worker.into());
            object.insert(
                "worker_address".to_owned(),
                granted.worker_address.clone().into(),
            );
            object.insert("polo".to_owned(), json!(ran.followed.changes()));
            object.insert("latency_us".to_owned(), latency_object(&ran.measured));
        }
        object.insert("timeline".to_owned(), json!(self.timeline.marks()));
        object
    }
}

/// Exact bytes into a pipe; on a terminal a line end is added if there is none.
fn write_result(result: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(result)?;
    if stdout.is_terminal() && !result.ends_with(b"\n") {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()
}

fn lost_printer(failed: &Receiver<Failure>) -> Failure {
    failed
        .try_recv()
        .unwrap_or_else(|_| Failure::environment("the printer ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up_and_bounded() {
        assert_eq!(duration_s(Duration::from_millis(1)), Some(1));
        assert_eq!(duration_s(Duration::from_secs(86_400)), Some(86_400));
        assert_eq!(duration_s(Duration::from_millis(86_400_001)), None);
        assert_eq!(accept_deadline_ms(Duration::from_nanos(1)), Some(1));
        assert_eq!(accept_deadline_ms(Duration::from_secs(300)), Some(300_000));
        assert_eq!(accept_deadline_ms(Duration::from_millis(300_001)), None);
    }

    #[test]
    fn a_wrong_argument_is_named_before_anything_starts() {
        use clap::Parser;
        let checked = |line: &str| {
            let cli = super::super::args::Cli::try_parse_from(line.split_whitespace());
            let super::super::args::Command::Submit(args) = cli.expect("parses").command else {
                panic!("submit");
            };
            check(&args).map_err(|failure| failure.message)
        };
        let line = "ramjet submit --data x --skill";
        assert_eq!(checked(&format!("{line} echo")), Ok(()));
        for (arguments, expected) in [
            ("Echo", "--skill: Echo must be 1 to 64 bytes of [a-z0-9._-]"),
            (
                "echo --timeout 2days",
                "--timeout: 2days is more than 86400 s",
            ),
            (
                "echo --accept-timeout 6m",
                "--accept-timeout: 6m is more than 300000 ms",
            ),
        ] {
            assert_eq!(
                checked(&format!("{line} {arguments}")),
                Err(expected.to_owned())
            );
        }
    }
}
