//! One engagement as its requester sees it: the timeline, and what an end means.

use std::time::Instant;

use crossbeam::channel::{Receiver, never, tick};
use crossbeam::select;
use ramjet_proto::market::Gate;
use ramjet_proto::market::message::{Diagnosis, Refusal, RefusalCode};

use super::exit::{Exit, Failure};
use super::output::{Output, Paint, counted, grouped, printable};
use crate::control::vocabulary::CloseReason;
use crate::node::{EngageEnd, EngageEvent, EngageOutcome, Engagement};

/// One step, and when it was seen.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Mark {
    /// Milliseconds since the command began.
    pub at_ms: f64,
    /// What happened: a word that programs may rely on.
    pub step: &'static str,
    /// The particulars, for people.
    pub detail: String,
}

/// The steps so far, printed as they come.
#[derive(Debug)]
pub struct Timeline {
    origin: Instant,
    marks: Vec<Mark>,
}

impl Timeline {
    /// Begins now.
    pub fn start() -> Self {
        Timeline {
            origin: Instant::now(),
            marks: Vec::new(),
        }
    }

    /// Adds a step and prints it.
    pub fn mark(&mut self, output: &Output, step: &'static str, detail: impl Into<String>) {
        let at_ms = (self.origin.elapsed().as_secs_f64() * 1e4).round() / 10.0;
        let detail = printable(&detail.into());
        let time = output.paint(Paint::Dim, &format!("{at_ms:>10.1} ms"));
        let name = output.paint(Paint::Bold, &format!("{step:<12}"));
        output.say(format!("{time}  {name}  {detail}").trim_end());
        self.marks.push(Mark {
            at_ms,
            step,
            detail,
        });
    }

    /// All steps, for `--json`.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }
}

/// Polo of one end before and after an engagement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// At the match.
    pub before: i64,
    /// After the newest settlement.
    pub after: i64,
}

/// Polo of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Changes {
    /// Of the one who sent.
    pub requester: Change,
    /// Of the one who worked.
    pub worker: Change,
}

/// An engagement from its offer to its end.
#[derive(Debug)]
pub struct Followed {
    /// Who took it, if anybody did.
    pub granted: Option<Granted>,
    /// How it ended.
    pub end: EngageEnd,
}

/// What a grant said.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The engagement's number.
    pub engagement: u64,
    /// The worker's number.
    pub worker: u32,
    /// The worker's address.
    pub worker_address: String,
    /// Polo at the match: requester, worker.
    pub polo: (i64, i64),
}

impl Followed {
    /// Polo of both ends, if it was granted; unchanged where nothing is settled yet.
    pub fn changes(&self) -> Option<Changes> {
        let (requester, worker) = self.granted.as_ref()?.polo;
        let after = match &self.end.settlement {
            Some(settled) => (settled.requester_polo.1, settled.worker_polo.1),
            None => (requester, worker),
        };
        Some(Changes {
            requester: Change {
                before: requester,
                after: after.0,
            },
            worker: Change {
                before: worker,
                after: after.1,
            },
        })
    }
}

/// What may end the wait for an engagement before it ends.
pub struct Interrupts {
    /// The name of a signal.
    pub signals: Receiver<&'static str>,
    /// A failure elsewhere in the command.
    pub failed: Receiver<Failure>,
    /// When the caller's patience ends, and what to say then.
    pub deadline: Option<(Instant, String)>,
}

impl Interrupts {
    /// Only signals.
    pub fn signals(signals: Receiver<&'static str>) -> Self {
        Interrupts {
            signals,
            failed: never(),
            deadline: None,
        }
    }
}

/// How often a waiting command looks at its progress bar and its deadline, in milliseconds.
const TICK_MS: u64 = 100;

/// Follows an engagement to its end. `look` is called ten times a second.
///
/// # Errors
/// A signal, a failure of the command, its deadline, or a node that ends without a word. The
/// outcome of the engagement itself is no error here: see [`failure_of`].
pub fn follow(
    events: &Engagement,
    output: &mut Output,
    timeline: &mut Timeline,
    interrupts: &Interrupts,
    look: &mut dyn FnMut(&mut Output),
) -> Result<Followed, Failure> {
    let ticks = tick(std::time::Duration::from_millis(TICK_MS));
    let mut granted = None;
    loop {
        select! {
            recv(events) -> event => match event {
                Ok(EngageEvent::Ended(end)) => {
                    look(output);
                    return Ok(Followed { granted, end });
                }
                Ok(event) => note(event, output, timeline, &mut granted),
                Err(_) => return Err(Failure::environment(
                    "the node ended before the engagement did; look at its log",
                )),
            },
            recv(interrupts.signals) -> signal => {
                let name = signal.unwrap_or("a signal");
                return Err(Failure::new(
                    Exit::Interrupted,
                    format!("ended by {name}; tasks without an answer are lost"),
                ));
            }
            recv(interrupts.failed) -> failure => {
                return Err(failure.unwrap_or_else(|_| Failure::environment("the printer ended")));
            }
            recv(ticks) -> _ => {
                look(output);
                if let Some((deadline, words)) = &interrupts.deadline
                    && Instant::now() >= *deadline
                {
                    return Err(Failure::new(Exit::Failed, words.clone()));
                }
            }
        }
    }
}

fn note(
    event: EngageEvent,
    output: &Output,
    timeline: &mut Timeline,
    granted: &mut Option<Granted>,
) {
    match event {
        EngageEvent::Offered {
            offer,
            notified,
            diagnosis,
        } => {
            timeline.mark(output, "offered", format!("offer {:016x}", offer.0));
            let why = diagnosis
                .map(|d| format!(": {}", shortage(&d)))
                .unwrap_or_default();
            let workers = counted(u64::from(notified), "worker", "workers");
            timeline.mark(output, "notified", format!("{workers}{why}"));
        }
        EngageEvent::Granted {
            engagement,
            worker,
            worker_address,
            polo,
            gate,
            credits,
        } => {
            let gate = match gate {
                Gate::Met => "gate met",
                Gate::Widened => "gate widened, so this earns no polo",
            };
            let detail = format!(
                "engagement {engagement} to node {worker} at {worker_address}: requester polo {}, \
                 worker polo {}, {gate}; {}",
                polo.0,
                polo.1,
                counted(u64::from(credits), "slot", "slots")
            );
            timeline.mark(output, "granted", detail);
            let (engagement, worker) = (engagement.0, worker.0);
            *granted = Some(Granted {
                engagement,
                worker,
                worker_address,
                polo,
            });
        }
        EngageEvent::Opened => timeline.mark(output, "opened", "encrypted tunnel, port 1001"),
        EngageEvent::FirstResult => timeline.mark(output, "first result", ""),
        // Receipts settle along the way; the last one is shown with the end.
        EngageEvent::Progress(_) | EngageEvent::Settled(_) | EngageEvent::Ended(_) => {}
    }
}

/// Marks the settlement of an engagement, or that it waits.
pub fn mark_end(followed: &Followed, output: &Output, timeline: &mut Timeline) {
    if let Some(settled) = &followed.end.settlement {
        let detail = format!(
            "receipt {}, {} accepted: worker polo {} → {}, requester polo {} → {}",
            settled.k,
            grouped(settled.accepted),
            followed
                .granted
                .as_ref()
                .map_or(settled.worker_polo.0, |g| g.polo.1),
            settled.worker_polo.1,
            followed
                .granted
                .as_ref()
                .map_or(settled.requester_polo.0, |g| g.polo.0),
            settled.requester_polo.1,
        );
        timeline.mark(output, "settled", detail);
    }
    if followed.end.outcome == EngageOutcome::Spooled {
        timeline.mark(
            output,
            "spooled",
            "the registry is away; the last receipt waits and is settled when it is back",
        );
    }
}

/// What an outcome means for a command; `None` if the work was done.
pub fn failure_of(outcome: &EngageOutcome, skill: &str) -> Option<Failure> {
    match outcome {
        EngageOutcome::Settled | EngageOutcome::Spooled => None,
        EngageOutcome::Refused(refusal) => Some(refused(refusal)),
        EngageOutcome::Expired {
            polo,
            notified,
            diagnosis,
        } => {
            let why = match (diagnosis, notified) {
                (Some(diagnosis), _) => unmatched(diagnosis, skill),
                (None, 0) => {
                    format!("no worker was told; see `ramjet resolve --filter skills={skill}`")
                }
                (None, told) => format!(
                    "{} told of it did not accept; they may be full",
                    counted(u64::from(*told), "worker", "workers")
                ),
            };
            let cost = polo.1 - polo.0;
            let failure = Failure::new(
                Exit::Unmatched,
                format!(
                    "the offer expired: nobody took it in time. It cost {cost:+} polo, {} → \
                     {}.\n{why}",
                    polo.0, polo.1
                ),
            );
            let change = Change {
                before: polo.0,
                after: polo.1,
            };
            Some(
                failure
                    .with("polo", serde_json::json!({ "requester": change }))
                    .with("notified", (*notified).into())
                    .with("diagnosis", json(diagnosis)),
            )
        }
        EngageOutcome::Closed(reason) => {
            let failure = Failure::new(Exit::Failed, closed(*reason));
            Some(failure.with("closed", reason.label().into()))
        }
        EngageOutcome::NoRegistry(why) => Some(Failure::environment(format!(
            "{why}\nStart one with `ramjet registry`, or name another with --registry."
        ))),
    }
}

fn json(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn refused(refusal: &Refusal) -> Failure {
    let exit = match refusal.code {
        RefusalCode::Malformed | RefusalCode::Invalid => Exit::Usage,
        RefusalCode::Unavailable => Exit::Environment,
        _ => Exit::Refused,
    };
    let message = match (&refusal.diagnosis, refusal.code) {
        (Some(diagnosis), RefusalCode::Gate) => gate(diagnosis),
        _ => format!("the registry refused the offer: {}", refusal.reason),
    };
    Failure::new(exit, message)
        .with("refused", json(&refusal.code))
        .with("reason", refusal.reason.clone().into())
        .with("diagnosis", json(&refusal.diagnosis))
}

/// Both scores, the policy, and what would help.
fn gate(diagnosis: &Diagnosis) -> String {
    let needed = match diagnosis.polo_needed {
        Some(polo) => format!("the lowest of them asks for {polo}"),
        None => "none of them says what would do".to_owned(),
    };
    format!(
        "refused by the polo gate: your polo is {}, and every worker that could do it ({}) is \
         above that; {needed}.\nThe policy is that a requester's polo must be at least the \
         worker's. What helps: earn polo by working (`ramjet node --skill … --task-ready`), or ask \
         the worker's operator to widen its gate with `--accept-from trusted`, `min-polo={}` or \
         `anyone`.",
        diagnosis.requester_polo, diagnosis.above_gate, diagnosis.requester_polo
    )
}

/// How many workers fell at which step, in one line.
fn shortage(diagnosis: &Diagnosis) -> String {
    if diagnosis.capable == 0 {
        return "nobody has the skill and passes the filters".to_owned();
    }
    let steps = [
        (diagnosis.not_ready, "not ready"),
        (diagnosis.below_min_polo, "below --min-polo"),
        (diagnosis.above_gate, "above your polo"),
    ];
    let fallen: Vec<String> = steps
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
    format!("of {} capable, {}", diagnosis.capable, fallen.join(", "))
}

fn unmatched(diagnosis: &Diagnosis, skill: &str) -> String {
    let advice = if diagnosis.capable == 0 {
        format!("See `ramjet resolve --filter skills={skill}` for who offers it.")
    } else if diagnosis.above_gate > 0 {
        match diagnosis.polo_needed {
            Some(polo) => format!(
                "Your polo is {}; {polo} would do.",
                diagnosis.requester_polo
            ),
            None => format!("Your polo is {}.", diagnosis.requester_polo),
        }
    } else if diagnosis.below_min_polo > 0 {
        "A lower --min-polo would reach them.".to_owned()
    } else {
        "They are busy, draining or away; try again later.".to_owned()
    };
    format!("Why: {}. {advice}", shortage(diagnosis))
}

fn closed(reason: CloseReason) -> String {
    let why = match reason {
        CloseReason::Finished => "it was closed before every task had an answer",
        CloseReason::BadGrant => {
            "the worker refused the grant; the two may use different registries, or clocks that \
             differ"
        }
        CloseReason::NoSkill => "the worker has the skill no more",
        CloseReason::Expired => "the grant ended; give the work more time with --timeout",
        CloseReason::Draining => "the worker is shutting down; submit again for another one",
        CloseReason::Full => "the worker has no room for another engagement; submit again",
        CloseReason::Lost => {
            "the worker fell silent, or its tunnel could not be established; is its UDP address \
             reachable from here?"
        }
        CloseReason::Cancelled => "it was cancelled",
        CloseReason::Fault => {
            "the peer broke the protocol; see the dropped_ counters of `ramjet status`"
        }
    };
    format!("the engagement ended early ({}): {why}", reason.label())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis() -> Diagnosis {
        Diagnosis {
            requester_polo: 0,
            capable: 3,
            not_ready: 1,
            above_gate: 2,
            polo_needed: Some(4),
            ..Diagnosis::default()
        }
    }

    #[test]
    fn a_refusal_by_the_gate_names_both_scores_the_policy_and_what_helps() {
        let refusal = Refusal {
            code: RefusalCode::Gate,
            reason: "gate".to_owned(),
            diagnosis: Some(diagnosis()),
        };
        let failure = failure_of(&EngageOutcome::Refused(refusal), "echo").expect("a failure");
        assert_eq!(failure.exit, Exit::Refused);
        for part in [
            "your polo is 0",
            "asks for 4",
            "at least the worker's",
            "--accept-from",
        ] {
            assert!(
                failure.message.contains(part),
                "{part}: {}",
                failure.message
            );
        }
        assert_eq!(failure.details["refused"], "gate");
        assert_eq!(failure.details["diagnosis"]["polo_needed"], 4);
    }

    #[test]
    fn an_expired_offer_says_what_it_cost_and_why() {
        let expired = |diagnosis, notified| EngageOutcome::Expired {
            polo: (3, 2),
            notified,
            diagnosis,
        };
        let nobody = Diagnosis {
            requester_polo: 3,
            ..Diagnosis::default()
        };
        let table = [
            (expired(Some(nobody), 0), "nobody has the skill"),
            (
                expired(Some(diagnosis()), 0),
                "of 3 capable, 1 not ready, 2 above your polo",
            ),
            (expired(None, 2), "2 workers told of it did not accept"),
        ];
        for (outcome, why) in table {
            let failure = failure_of(&outcome, "echo").expect("a failure");
            assert_eq!(failure.exit, Exit::Unmatched);
            assert!(
                failure.message.contains("It cost -1 polo, 3 → 2"),
                "{}",
                failure.message
            );
            assert!(failure.message.contains(why), "{}", failure.message);
            assert_eq!(failure.details["polo"]["requester"]["after"], 2);
        }
    }

    #[test]
    fn every_other_end_has_its_exit_and_words() {
        assert_eq!(failure_of(&EngageOutcome::Settled, "echo"), None);
        assert_eq!(failure_of(&EngageOutcome::Spooled, "echo"), None);
        for reason in CloseReason::ALL {
            let failure = failure_of(&EngageOutcome::Closed(reason), "echo").expect("a failure");
            assert_eq!(failure.exit, Exit::Failed);
            assert!(
                failure.message.contains(reason.label()),
                "{}",
                failure.message
            );
        }
        let away = EngageOutcome::NoRegistry("127.0.0.1:9: refused".to_owned());
        assert_eq!(
            failure_of(&away, "echo").expect("a failure").exit,
            Exit::Environment
        );
        for (code, exit) in [
            (RefusalCode::Invalid, Exit::Usage),
            (RefusalCode::Limited, Exit::Refused),
            (RefusalCode::Unavailable, Exit::Environment),
        ] {
            let refusal = Refusal {
                code,
                reason: "why".to_owned(),
                diagnosis: None,
            };
            let failure = failure_of(&EngageOutcome::Refused(refusal), "echo").expect("a failure");
            assert_eq!(failure.exit, exit);
            assert!(failure.message.ends_with("why"), "{}", failure.message);
        }
    }
}
