//! The words of the local socket, for both of its ends.
//!
//! ```text
//!  frame    length u32 (of kind and body) | kind u8 | body            all integers big-endian
//!  kind 0   JSON: a request with `op`, a reply or an event with `reply`
//!  kind 1   task      token u64 | payload                              client to node
//!  kind 2   answer    token u64 | status u8 | round trip ns, busy ns, staged ns, each u64 | bytes
//!  kind 3   verdict   token u64 | 0 accept, 1 reject                   client to node
//!  kind 4   progress  token u64 | bytes                                node to client
//!  kind 5   task      token u64 | deadline µs u32 | payload            client to node
//! ```
//!
//! A connection carries questions, one at a time, each answered by one reply; or, from a `submit`
//! on, one engagement, and it closes when that ends. `submit` is answered by `submitted` with the
//! window: how many tasks the client may have without a final word. A task's final word is its
//! verdict where the answer was a result (status 0), else the answer itself: a handler's failure
//! (1) or a refusal (2), whose bytes are UTF-8. Tokens are the client's, distinct among those in
//! the window. `end` says that no task follows, `cancel` that no answer is wanted. Events come as
//! they happen, the last is `ended`. What breaks these rules is answered by `error` and a close.

use std::io::{self, Read, Write};

use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::{
    Diagnosis, EngagementRow, Query, Refusal, Settlement, Standing, WorkerRow,
};
use ramjet_proto::market::{Filter, Gate};
use ramjet_proto::wire::limits::TASK_LEN_MAX;
use serde::{Deserialize, Serialize};

use super::agent::AgentRequest;
use super::vocabulary::{CloseReason, Totals};
use crate::job::{Refused, Timing, Verdict};
use crate::node::{EngageEnd, EngageEvent, EngageOutcome, Status};

pub(crate) const KIND_JSON: u8 = 0;
pub(crate) const KIND_TASK: u8 = 1;
pub(crate) const KIND_ANSWER: u8 = 2;
pub(crate) const KIND_VERDICT: u8 = 3;
pub(crate) const KIND_PIECE: u8 = 4;
/// A task with a deadline of its own; one of [`KIND_TASK`] has that of its engagement.
pub(crate) const KIND_TASK_DEADLINE: u8 = 5;
/// A Pilot datagram for the programs of the host: what a client gets, of this or of the driver's
/// protocol, before it has said which it speaks. No client of this protocol wants it.
pub(crate) const KIND_DATAGRAM: u8 = 0x0C;

/// What an answer frame holds before its bytes.
const ANSWER_HEADER_LEN: usize = 8 + 1 + 8 + 8 + 8;
/// Longest kind and body: the largest result and its header.
pub(crate) const FRAME_LEN_MAX: usize = 1 + ANSWER_HEADER_LEN + TASK_LEN_MAX;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum LocalRequest {
    Status {},
    Resolve { query: Query },
    Standing { who: String },
    Engagements { who: Option<String>, limit: u32 },
    Agent { request: AgentRequest },
    Submit(LocalSubmit),
    End {},
    Cancel {},
}

/// An engagement that a client wants; its tasks follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalSubmit {
    pub(crate) skill: String,
    #[serde(default)]
    pub(crate) filters: Vec<Filter>,
    #[serde(default = "any_polo")]
    pub(crate) min_polo: i64,
    pub(crate) tasks: u64,
    pub(crate) concurrency: u32,
    pub(crate) duration_s: u32,
    pub(crate) accept_deadline_ms: u32,
    #[serde(default)]
    pub(crate) deadline_us: u32,
}

fn any_polo() -> i64 {
    i64::MIN
}

/// What the node answers and tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum LocalReply {
    Status { status: Box<Status> },
    Workers { workers: Vec<WorkerRow> },
    Standing { standing: Standing },
    Engagements { engagements: Vec<EngagementRow> },
    Agent { answer: serde_json::Value },
    Submitted { offer: OfferId, window: usize },
    Event { event: LocalEvent },
    Error { error: String },
}

/// [`EngageEvent`] without its job.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum LocalEvent {
    Offered {
        offer: OfferId,
        notified: u32,
        diagnosis: Option<Diagnosis>,
    },
    Granted {
        engagement: EngagementId,
        worker: NodeId,
        worker_address: String,
        polo: (i64, i64),
        gate: Gate,
        credits: u32,
    },
    Opened {},
    FirstResult {},
    Progress {
        #[serde(with = "TotalsWire")]
        totals: Totals,
    },
    Settled {
        settlement: Settlement,
    },
    Ended {
        outcome: LocalOutcomeWire,
        #[serde(with = "TotalsWire")]
        totals: Totals,
        settlement: Option<Settlement>,
    },
}

/// [`EngageOutcome`] in JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum LocalOutcomeWire {
    Settled {},
    Spooled {},
    Refused {
        refusal: Refusal,
    },
    Expired {
        polo: (i64, i64),
        notified: u32,
        diagnosis: Option<Diagnosis>,
    },
    Closed {
        reason: String,
    },
    NoRegistry {
        why: String,
    },
}

/// The members of [`Totals`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Totals")]
struct TotalsWire {
    tasks: u64,
    done: u64,
    accepted: u64,
    rejected: u64,
    failed: u64,
    expired: u64,
    refused: u64,
    busy_ns: u64,
    staged_ns: u64,
    repeated: u64,
}

impl From<EngageEvent> for LocalEvent {
    fn from(event: EngageEvent) -> Self {
        match event {
            EngageEvent::Offered {
                offer,
                notified,
                diagnosis,
            } => LocalEvent::Offered {
                offer,
                notified,
                diagnosis,
            },
            EngageEvent::Granted {
                engagement,
                worker,
                worker_address,
                polo,
                gate,
                credits,
            } => LocalEvent::Granted {
                engagement,
                worker,
                worker_address,
                polo,
                gate,
                credits,
            },
            EngageEvent::Opened => LocalEvent::Opened {},
            EngageEvent::FirstResult => LocalEvent::FirstResult {},
            EngageEvent::Progress(totals) => LocalEvent::Progress { totals },
            EngageEvent::Settled(settlement) => LocalEvent::Settled { settlement },
            EngageEvent::Ended(EngageEnd {
                outcome,
                totals,
                settlement,
                job: _,
            }) => LocalEvent::Ended {
                outcome: outcome.into(),
                totals,
                settlement,
            },
        }
    }
}

impl From<LocalEvent> for EngageEvent {
    fn from(event: LocalEvent) -> Self {
        match event {
            LocalEvent::Offered {
                offer,
                notified,
                diagnosis,
            } => EngageEvent::Offered {
                offer,
                notified,
                diagnosis,
            },
            LocalEvent::Granted {
                engagement,
                worker,
                worker_address,
                polo,
                gate,
                credits,
            } => EngageEvent::Granted {
                engagement,
                worker,
                worker_address,
                polo,
                gate,
                credits,
            },
            LocalEvent::Opened {} => EngageEvent::Opened,
            LocalEvent::FirstResult {} => EngageEvent::FirstResult,
            LocalEvent::Progress { totals } => EngageEvent::Progress(totals),
            LocalEvent::Settled { settlement } => EngageEvent::Settled(settlement),
            LocalEvent::Ended {
                outcome,
                totals,
                settlement,
            } => EngageEvent::Ended(EngageEnd {
                outcome: outcome.into(),
                totals,
                settlement,
                job: None,
            }),
        }
    }
}

impl From<EngageOutcome> for LocalOutcomeWire {
    fn from(outcome: EngageOutcome) -> Self {
        match outcome {
            EngageOutcome::Settled => LocalOutcomeWire::Settled {},
            EngageOutcome::Spooled => LocalOutcomeWire::Spooled {},
            EngageOutcome::Refused(refusal) => LocalOutcomeWire::Refused { refusal },
            EngageOutcome::Expired {
                polo,
                notified,
                diagnosis,
            } => LocalOutcomeWire::Expired {
                polo,
                notified,
                diagnosis,
            },
            EngageOutcome::Closed(reason) => LocalOutcomeWire::Closed {
                reason: reason.label().to_owned(),
            },
            EngageOutcome::NoRegistry(why) => LocalOutcomeWire::NoRegistry { why },
        }
    }
}

impl From<LocalOutcomeWire> for EngageOutcome {
    fn from(outcome: LocalOutcomeWire) -> Self {
        match outcome {
            LocalOutcomeWire::Settled {} => EngageOutcome::Settled,
            LocalOutcomeWire::Spooled {} => EngageOutcome::Spooled,
            LocalOutcomeWire::Refused { refusal } => EngageOutcome::Refused(refusal),
            LocalOutcomeWire::Expired {
                polo,
                notified,
                diagnosis,
            } => EngageOutcome::Expired {
                polo,
                notified,
                diagnosis,
            },
            LocalOutcomeWire::Closed { reason } => {
                let known = CloseReason::ALL
                    .into_iter()
                    .find(|known| known.label() == reason);
                // A node of another version may name a reason that this client does not know.
                EngageOutcome::Closed(known.unwrap_or(CloseReason::Fault))
            }
            LocalOutcomeWire::NoRegistry { why } => EngageOutcome::NoRegistry(why),
        }
    }
}

/// Appends a frame whose body is `parts` in order.
pub(crate) fn append_frame(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    assert!(body < FRAME_LEN_MAX, "a local frame of {body} bytes");
    let length = u32::try_from(1 + body).expect("FRAME_LEN_MAX fits 32 bits");
    out.extend(length.to_be_bytes());
    out.push(kind);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Appends a JSON frame.
pub(crate) fn append_json(out: &mut Vec<u8>, value: &impl Serialize) {
    let json = serde_json::to_vec(value).expect("local messages serialize");
    append_frame(out, KIND_JSON, &[&json]);
}

/// Appends a task frame.
pub(crate) fn append_task(out: &mut Vec<u8>, token: u64, payload: &[u8]) {
    append_frame(out, KIND_TASK, &[&token.to_be_bytes(), payload]);
}

/// Appends a verdict frame.
pub(crate) fn append_verdict(out: &mut Vec<u8>, token: u64, verdict: Verdict) {
    let byte = u8::from(verdict == Verdict::Reject);
    append_frame(out, KIND_VERDICT, &[&token.to_be_bytes(), &[byte]]);
}

/// What an answer frame says became of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerStatus {
    Done = 0,
    Failed = 1,
    Refused = 2,
}

/// Appends an answer frame.
pub(crate) fn append_answer(
    out: &mut Vec<u8>,
    token: u64,
    status: AnswerStatus,
    timing: Timing,
    bytes: &[u8],
) {
    let parts: [&[u8]; 6] = [
        &token.to_be_bytes(),
        &[status as u8],
        &timing.round_trip_ns.to_be_bytes(),
        &timing.busy_ns.to_be_bytes(),
        &timing.staged_ns.to_be_bytes(),
        bytes,
    ];
    append_frame(out, KIND_ANSWER, &parts);
}

/// Reads an answer frame's body.
pub(crate) fn read_answer(body: &[u8]) -> Option<(u64, AnswerStatus, Timing, &[u8])> {
    let (token, rest) = read_token(body)?;
    let (&status, rest) = rest.split_first()?;
    let (round_trip_ns, rest) = read_token(rest)?;
    let (busy_ns, rest) = read_token(rest)?;
    let (staged_ns, rest) = read_token(rest)?;
    let status = match status {
        0 => AnswerStatus::Done,
        1 => AnswerStatus::Failed,
        2 => AnswerStatus::Refused,
        _ => return None,
    };
    Some((
        token,
        status,
        Timing {
            round_trip_ns,
            busy_ns,
            staged_ns,
        },
        rest,
    ))
}

/// Reads a verdict frame's body.
pub(crate) fn read_verdict(body: &[u8]) -> Option<(u64, Verdict)> {
    match read_token(body)? {
        (token, [0]) => Some((token, Verdict::Accept)),
        (token, [1]) => Some((token, Verdict::Reject)),
        _ => None,
    }
}

/// Reads a task frame's body: token, deadline of its own in microseconds, payload.
pub(crate) fn read_task(kind: u8, body: &[u8]) -> Option<(u64, Option<u32>, &[u8])> {
    let (token, rest) = read_token(body)?;
    if kind == KIND_TASK {
        return Some((token, None, rest));
    }
    let (deadline, payload) = rest.split_first_chunk::<4>()?;
    Some((token, Some(u32::from_be_bytes(*deadline)), payload))
}

/// Takes a big-endian u64 off the front: a token, or a time.
pub(crate) fn read_token(body: &[u8]) -> Option<(u64, &[u8])> {
    let (token, rest) = body.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*token), rest))
}

/// The refusal of a label; what another version may say counts as lost.
pub(crate) fn refused_of_label(label: &[u8]) -> Refused {
    let all = [
        Refused::Busy { retry_after_us: 0 },
        Refused::Late,
        Refused::TooBig,
        Refused::NoSkill,
        Refused::GrantEnded,
        Refused::ReceiptDue,
        Refused::Draining,
        Refused::Cancelled,
        Refused::Lost,
    ];
    all.into_iter()
        .find(|refused| refused.label().as_bytes() == label)
        .unwrap_or(Refused::Lost)
}

/// The length that a frame's first four bytes announce.
///
/// # Errors
/// A length of 0 or beyond the limit.
pub(crate) fn frame_len(prefix: [u8; 4]) -> io::Result<usize> {
    let len = u32::from_be_bytes(prefix) as usize;
    if len == 0 || len > FRAME_LEN_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a local frame of {len} bytes, must be 1 to {FRAME_LEN_MAX}"),
        ));
    }
    Ok(len)
}

/// Reads one frame of this protocol: its kind and its body.
pub(crate) fn read_frame(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    loop {
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix)?;
        let mut kind = [0];
        let len = frame_len(prefix)?;
        stream.read_exact(&mut kind)?;
        let mut body = vec![0; len - 1];
        stream.read_exact(&mut body)?;
        let [kind] = kind;
        if kind != KIND_DATAGRAM {
            return Ok((kind, body));
        }
    }
}

/// Writes `out` and empties it.
pub(crate) fn write_out(stream: &mut impl Write, out: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(out)?;
    out.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_flat_json_with_their_op() {
        let json = r#"{"op":"submit","skill":"echo","tasks":1,"concurrency":1,"duration_s":60,"accept_deadline_ms":500}"#;
        let request: LocalRequest = serde_json::from_str(json).expect("parses");
        let LocalRequest::Submit(submit) = request else {
            panic!("{request:?}")
        };
        assert_eq!((submit.min_polo, submit.deadline_us), (i64::MIN, 0));
        let status = serde_json::to_string(&LocalRequest::Status {}).expect("serializes");
        assert_eq!(status, r#"{"op":"status"}"#);
    }

    #[test]
    fn the_end_of_an_engagement_survives_the_socket() {
        let totals = Totals {
            tasks: 9,
            done: 8,
            rejected: 1,
            busy_ns: 7,
            ..Totals::default()
        };
        for reason in CloseReason::ALL {
            let end = EngageEnd {
                outcome: EngageOutcome::Closed(reason),
                totals,
                settlement: None,
                job: None,
            };
            let json = serde_json::to_vec(&LocalEvent::from(EngageEvent::Ended(end)));
            let event: LocalEvent =
                serde_json::from_slice(&json.expect("serializes")).expect("parses");
            let EngageEvent::Ended(end) = event.into() else {
                panic!("another event")
            };
            assert_eq!(
                (end.outcome, end.totals),
                (EngageOutcome::Closed(reason), totals)
            );
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_by_value() {
        let longest = u32::try_from(FRAME_LEN_MAX).expect("fits");
        assert_eq!(
            frame_len(longest.to_be_bytes()).expect("allowed"),
            FRAME_LEN_MAX
        );
        let error = frame_len((longest + 1).to_be_bytes()).expect_err("too long");
        assert!(
            error.to_string().contains(&(longest + 1).to_string()),
            "{error}"
        );
        assert!(frame_len([0; 4]).is_err());
    }

    #[test]
    fn refusals_survive_as_labels() {
        for refused in [
            Refused::Late,
            Refused::GrantEnded,
            Refused::Cancelled,
            Refused::TooBig,
        ] {
            assert_eq!(refused_of_label(refused.label().as_bytes()), refused);
        }
        assert_eq!(refused_of_label(b"of tomorrow"), Refused::Lost);
    }

    proptest! {
        #[test]
        fn answers_survive_and_their_prefixes_never_panic(
            token: u64, round_trip_ns: u64, busy_ns: u64, staged_ns: u64,
            bytes in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let timing = Timing { round_trip_ns, busy_ns, staged_ns };
            let mut out = Vec::new();
            append_answer(&mut out, token, AnswerStatus::Failed, timing, &bytes);
            let (kind, body) = read_frame(&mut &out[..]).expect("own frame");
            prop_assert_eq!(kind, KIND_ANSWER);
            prop_assert_eq!(
                read_answer(&body),
                Some((token, AnswerStatus::Failed, timing, &bytes[..]))
            );
            for length in 0..ANSWER_HEADER_LEN {
                prop_assert_eq!(read_answer(&body[..length]), None);
            }
            prop_assert_eq!(read_verdict(&body[..8]), None);
            let own = 7_u32.to_be_bytes();
            let task = [&token.to_be_bytes()[..], &own, &bytes].concat();
            prop_assert_eq!(
                read_task(KIND_TASK_DEADLINE, &task),
                Some((token, Some(7), &bytes[..]))
            );
            prop_assert_eq!(read_task(KIND_TASK, &task), Some((token, None, &task[8..])));
            prop_assert_eq!(read_task(KIND_TASK_DEADLINE, &task[..11]), None);
            prop_assert_eq!(read_task(KIND_TASK, &task[..7]), None);
        }
    }
}
