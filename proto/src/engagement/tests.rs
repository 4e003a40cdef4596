//! Two ends of a channel on a virtual clock, with a network between them that loses, repeats and
//! reorders. The seed is in the failure message of every property.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::FrameSink;
use super::congestion::Congestion;
use super::job::{Answer, Job, Next, Timing, Verdict};
use super::requesting::Requesting;
use super::serving::{Admitted, Answered, Serving, ServingLimits};
use crate::fault::DropReason;
use crate::frame::kind::{Kind, RefusalCode};
use crate::frame::{Frame, Head, TaskId};
use crate::ids::ChannelId;
use crate::time::Time;

pub(super) const CHANNEL: ChannelId = ChannelId(3);

pub(super) type Owned = (Head, Vec<u8>);

/// Collects frames instead of sealing them.
#[derive(Default)]
pub(super) struct Collected {
    space: Vec<u8>,
    pub(super) frames: Vec<Owned>,
}

impl FrameSink for Collected {
    fn reserve(&mut self, payload_max: usize) -> Option<&mut [u8]> {
        self.space.resize(payload_max, 0);
        Some(&mut self.space)
    }

    fn commit(&mut self, head: Head, payload_len: usize) {
        self.frames.push((head, self.space[..payload_len].to_vec()));
    }
}

pub(super) fn view(owned: &Owned) -> Frame<'_> {
    let (head, payload) = owned;
    Frame {
        kind: head.kind(),
        flags: head.flags(),
        channel: head.channel_id(),
        task: head.task_id(),
        auxiliary: head.auxiliary(),
        payload,
    }
}

/// Sends the numbers below `count` and checks that each comes back doubled, once, after as many
/// pieces of progress as it asks for. Some are padded to many frames' length.
struct Doubling {
    next: u64,
    count: u64,
    answers: BTreeMap<u64, Option<u64>>,
    pieces: BTreeMap<u64, u64>,
    /// Handler and waiting time of the accepted results, as told with each.
    told_ns: (u64, u64),
}

impl Doubling {
    fn new(count: u64) -> Self {
        Doubling {
            next: 0,
            count,
            answers: BTreeMap::new(),
            pieces: BTreeMap::new(),
            told_ns: (0, 0),
        }
    }
}

/// Length of the payload that carries a number: every fifth takes up to 24 parts.
fn payload_len(value: u64) -> usize {
    if value % 5 == 3 {
        1_320 + usize::try_from(value * 997 % 30_000).expect("small")
    } else {
        8
    }
}

/// Pieces of progress before the answer to a number.
fn pieces_of(value: u64) -> u64 {
    value % 4
}

impl Job for Doubling {
    fn next(&mut self, space: &mut [u8], _now: Time) -> Next {
        if self.next == self.count {
            return Next::End;
        }
        let token = self.next;
        self.next += 1;
        let mut payload = token.to_be_bytes().to_vec();
        payload.resize(payload_len(token), 0xA5);
        if payload.len() > 8 {
            return Next::Large {
                payload: payload.into(),
                token,
            };
        }
        space[..8].copy_from_slice(&payload);
        Next::Task { len: 8, token }
    }

    fn progress(&mut self, token: u64, piece: &[u8]) {
        let seen = self.pieces.entry(token).or_insert(0);
        assert_eq!(piece, seen.to_be_bytes(), "pieces of {token} in order");
        assert!(
            !self.answers.contains_key(&token),
            "progress of {token} after its answer"
        );
        *seen += 1;
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, timing: Timing) -> Verdict {
        let value = match answer {
            Answer::Done(bytes) => {
                assert_eq!(bytes.len(), payload_len(token));
                assert!(
                    bytes[8..].iter().all(|byte| *byte == 0xA5),
                    "padding of {token}"
                );
                Some(number(bytes))
            }
            _ => None,
        };
        assert_eq!(
            self.pieces.get(&token).copied().unwrap_or(0),
            pieces_of(token)
        );
        assert!(
            self.answers.insert(token, value).is_none(),
            "token {token} answered twice"
        );
        if token.is_multiple_of(5) {
            Verdict::Reject
        } else {
            self.told_ns.0 += timing.busy_ns;
            self.told_ns.1 += timing.staged_ns;
            Verdict::Accept
        }
    }
}

fn number(payload: &[u8]) -> u64 {
    u64::from_be_bytes(payload[..8].try_into().expect("8 bytes"))
}

fn doubled(mut payload: Vec<u8>) -> Vec<u8> {
    let value = number(&payload);
    payload[..8].copy_from_slice(&(value * 2).to_be_bytes());
    payload
}

pub(super) fn limits(credits: u32, tasks: u64) -> ServingLimits {
    ServingLimits {
        credits,
        tasks,
        expires_at: Time::NEVER,
        unsigned_max: u64::MAX / 2,
    }
}

/// A network that decides the fate of each frame by the bytes it was given, and then by numbers that
/// follow from them with a period of 256: one loss in eight, never in step with the repeats, which
/// would starve a transfer that no real network starves.
struct Network {
    fates: VecDeque<u8>,
    in_flight: Vec<(u8, Owned)>,
}

impl Network {
    fn send(&mut self, frames: Vec<Owned>) {
        for frame in frames {
            let fate = self.fates.pop_front().unwrap_or(0);
            // Full period (Hull and Dobell): the factor is 1 modulo 4 and the summand odd.
            self.fates
                .push_back(fate.wrapping_mul(165).wrapping_add(13));
            let delay = fate & 0x1F;
            match fate >> 5 {
                0 => {}
                1 => self
                    .in_flight
                    .extend([(delay, frame.clone()), (delay >> 2, frame)]),
                _ => self.in_flight.push((delay >> 1, frame)),
            }
        }
    }

    /// What arrives this round: everything whose delay has run out, latest first now and then.
    fn arrive(&mut self) -> Vec<Owned> {
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition(|(delay, _)| *delay == 0);
        self.in_flight = later
            .into_iter()
            .map(|(delay, frame)| (delay - 1, frame))
            .collect();
        due.into_iter().rev().map(|(_, frame)| frame).collect()
    }
}

/// What a worker does with a frame.
pub(super) fn receive(
    serving: &mut Serving,
    now: Time,
    frame: &Frame<'_>,
    path: &mut Congestion,
    out: &mut Collected,
    running: &mut VecDeque<(Admitted, Vec<u8>)>,
) {
    match frame.kind {
        Kind::Task => {
            if let Ok(Some(admitted)) = serving.admit(now, frame, out) {
                running.push_back((admitted, frame.payload.to_vec()));
            }
        }
        Kind::TaskPart => {
            if let Ok(Some(task)) = serving.admit_part(now, frame, out) {
                running.push_back(task);
            }
        }
        // Late and repeated ones are refused by reason, which the table's own test checks.
        Kind::PartAck => drop(serving.part_ack(now, path, frame)),
        Kind::ProgressAck => drop(serving.progress_ack(frame, out)),
        Kind::Verdict => drop(serving.verdict(frame)),
        other => panic!("a requester sent {other:?}"),
    }
}

/// Runs until the job is done; how often each value was executed.
fn run(
    fates: &[u8],
    credits: u32,
    count: u64,
) -> (Doubling, Requesting, Serving, BTreeMap<u64, u32>) {
    let network = || Network {
        fates: fates.iter().copied().collect(),
        in_flight: Vec::new(),
    };
    let (mut there, mut back) = (network(), network());
    let mut job = Doubling::new(count);
    let mut now = Time::from_nanos(1);
    let mut requesting = Requesting::new(CHANNEL, credits, count, now);
    let mut serving = Serving::new(CHANNEL, limits(credits, count));
    let (mut our_path, mut their_path) = (Congestion::new(now), Congestion::new(now));
    let mut executed = BTreeMap::new();
    let mut running: VecDeque<(Admitted, Vec<u8>)> = VecDeque::new();
    let mut out = Collected::default();
    let mut rounds = 0;
    while !requesting.is_done() {
        rounds += 1;
        assert!(
            rounds < 400_000,
            "no end after {rounds} rounds: {:?}",
            requesting.totals()
        );
        now = now + Duration::from_millis(1);
        requesting.pump(now, &mut our_path, &mut out, &mut job, 32);
        requesting.pump_parts(now, &mut our_path, &mut out, 32);
        requesting.handle_timeout(now, &mut our_path, &mut out);
        there.send(std::mem::take(&mut out.frames));

        for owned in there.arrive() {
            receive(
                &mut serving,
                now,
                &view(&owned),
                &mut their_path,
                &mut out,
                &mut running,
            );
        }
        // Half of what waits is done each round, so that repeats meet running tasks.
        for _ in 0..running.len().div_ceil(2) {
            let (admitted, payload) = running.pop_front().expect("counted");
            let value = number(&payload);
            for piece in 0..pieces_of(value) {
                assert!(serving.progress(admitted.task(), &piece.to_be_bytes(), &mut out));
            }
            *executed.entry(value).or_insert(0) += 1;
            serving.answer_long(
                admitted,
                Answered::Done,
                1_000,
                now,
                doubled(payload),
                &mut out,
            );
        }
        serving.acknowledge(&mut out);
        serving.pump_parts(now, &mut their_path, &mut out, 16);
        back.send(std::mem::take(&mut out.frames));
        for owned in back.arrive() {
            let _ = requesting.answer(now, &mut our_path, &view(&owned), &mut out, &mut job);
        }
    }
    serving.release(&mut their_path);
    assert_eq!(our_path.in_flight(), (0, 0), "everything has its answer");
    assert_eq!(their_path.in_flight(), (0, 0), "the channel has ended");
    (job, requesting, serving, executed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn every_task_runs_once_and_is_answered_once(
        fates in proptest::collection::vec(any::<u8>(), 1..200),
        credits in 1..40_u32,
        count in 1..300_u64,
    ) {
        let (job, requesting, serving, executed) = run(&fates, credits, count);
        prop_assert_eq!(job.answers.len() as u64, count);
        for (token, value) in &job.answers {
            prop_assert_eq!(*value, Some(token * 2));
        }
        prop_assert!(executed.values().all(|times| *times == 1));
        prop_assert_eq!(executed.len() as u64, count);
        let totals = requesting.totals();
        prop_assert_eq!(totals.accepted + totals.rejected, count);
        prop_assert_eq!(totals.rejected, count.div_ceil(5));
        prop_assert_eq!(serving.totals().done, count);
        prop_assert!(totals.busy_ns <= serving.totals().busy_ns);
        prop_assert_eq!(job.told_ns, (totals.busy_ns, totals.staged_ns));
    }
}

fn task(slot: u16, generation: u32) -> Owned {
    (
        Head::task(Kind::Task, CHANNEL, TaskId { slot, generation }, 0),
        vec![0; 8],
    )
}

#[test]
fn a_slot_follows_its_table() {
    let mut serving = Serving::new(CHANNEL, limits(2, 10));
    let mut out = Collected::default();
    let now = Time::from_nanos(5);
    let mut admit = |serving: &mut Serving, slot, generation| {
        serving.admit(now, &view(&task(slot, generation)), &mut out)
    };
    assert_eq!(admit(&mut serving, 2, 1), Err(DropReason::SlotOutOfRange));
    assert_eq!(admit(&mut serving, 0, 0), Err(DropReason::Stale));
    assert_eq!(admit(&mut serving, 0, 2), Err(DropReason::OutOfOrder));
    let admitted = admit(&mut serving, 0, 1).expect("new").expect("runs");
    assert_eq!(admit(&mut serving, 0, 1), Err(DropReason::Duplicate));
    assert_eq!(admit(&mut serving, 0, 2), Err(DropReason::OutOfOrder));
    serving.answer(admitted, Answered::Done, 0, now, b"kept");
    assert_eq!(admit(&mut serving, 0, 1), Err(DropReason::Duplicate));
    let second = admit(&mut serving, 0, 2).expect("new").expect("runs");
    assert_eq!(admit(&mut serving, 0, 1), Err(DropReason::Stale));
    serving.refuse(second, RefusalCode::Busy, 100, &mut out);
    let kinds: Vec<_> = out.frames.iter().map(|(head, _)| head.kind()).collect();
    assert_eq!(kinds, [Kind::Working, Kind::Result, Kind::Refused]);
    assert_eq!(out.frames[1].1, b"kept");
}

#[test]
fn the_grant_bounds_tasks_and_unsigned_work() {
    let mut out = Collected::default();
    let now = Time::from_nanos(5);
    let mut serving = Serving::new(
        CHANNEL,
        ServingLimits {
            unsigned_max: 1,
            ..limits(4, 2)
        },
    );
    let first = serving
        .admit(now, &view(&task(0, 1)), &mut out)
        .expect("new")
        .expect("runs");
    serving.answer(first, Answered::Done, 0, now, b"");
    assert_eq!(serving.admit(now, &view(&task(1, 1)), &mut out), Ok(None));
    assert_eq!(out.frames[0].0.flags(), RefusalCode::ReceiptDue as u8);
    serving.cover(1);
    let second = serving
        .admit(now, &view(&task(1, 2)), &mut out)
        .expect("new")
        .expect("runs");
    serving.answer(second, Answered::Done, 0, now, b"");
    serving.cover(2);
    assert_eq!(serving.admit(now, &view(&task(2, 1)), &mut out), Ok(None));
    assert_eq!(out.frames[1].0.flags(), RefusalCode::GrantEnded as u8);
    assert_eq!(serving.totals().tasks, 2);
}

#[test]
fn a_busy_worker_is_asked_again_as_the_next_generation() {
    let mut job = Doubling::new(1);
    let mut now = Time::from_nanos(1);
    let mut requesting = Requesting::new(CHANNEL, 1, 1, now);
    let mut serving = Serving::new(CHANNEL, limits(1, 1));
    let mut out = Collected::default();
    let path = &mut Congestion::new(now);
    requesting.pump(now, path, &mut out, &mut job, 1);
    let sent = out.frames.pop().expect("a task");
    let admitted = serving
        .admit(now, &view(&sent), &mut out)
        .expect("new")
        .expect("runs");
    serving.refuse(admitted, RefusalCode::Busy, 500, &mut out);
    let refusal = out.frames.pop().expect("a refusal");
    requesting
        .answer(now, path, &view(&refusal), &mut out, &mut job)
        .expect("for an outstanding task");
    assert!(job.answers.is_empty());
    now = now + Duration::from_micros(500);
    requesting.handle_timeout(now, path, &mut out);
    let again = out.frames.pop().expect("the task again");
    assert_eq!(
        again.0.task_id(),
        TaskId {
            slot: 0,
            generation: 2
        }
    );
    assert!(
        serving
            .admit(now, &view(&again), &mut out)
            .expect("new")
            .is_some()
    );
}

/// Tasks of which each has another deadline.
struct Hurried(u32);

impl Job for Hurried {
    fn next(&mut self, _space: &mut [u8], _now: Time) -> Next {
        self.0 += 1;
        Next::Task {
            len: 0,
            token: self.0.into(),
        }
    }

    fn deadline_us(&self) -> u32 {
        self.0 * 100
    }

    fn answer(&mut self, _token: u64, _answer: Answer<'_>, _timing: Timing) -> Verdict {
        Verdict::Accept
    }
}

#[test]
fn every_copy_of_a_task_carries_its_own_deadline() {
    let mut job = Hurried(0);
    let now = Time::from_nanos(1);
    let mut requesting = Requesting::new(CHANNEL, 3, 3, now);
    let mut out = Collected::default();
    let path = &mut Congestion::new(now);
    requesting.pump(now, path, &mut out, &mut job, 3);
    let deadlines = |out: &mut Collected| {
        let mut told: Vec<_> = out
            .frames
            .drain(..)
            .map(|frame| frame.0.auxiliary())
            .collect();
        told.sort_unstable();
        told
    };
    assert_eq!(deadlines(&mut out), [100, 200, 300]);
    requesting.handle_timeout(now + Duration::from_secs(1), path, &mut out);
    assert_eq!(deadlines(&mut out), [100, 200, 300], "the repeats");
}
