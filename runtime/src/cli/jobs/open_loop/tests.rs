//! The open loop on a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ramjet_bench::schedule::Arrivals;

use super::*;
use crate::job::Refused;

/// A clock that a test moves, in microseconds.
#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn set(&self, us: u64) -> Time {
        self.0.store(us, Ordering::Relaxed);
        self.now()
    }

    fn now(&self) -> Time {
        Time::from_nanos((1_000 + self.0.load(Ordering::Relaxed)) * 1_000)
    }
}

type Made<Clock> = (OpenLoop<Clock>, Intervals, Receiver<OpenLooped>);

/// A task every 100 us, 200 us of warm-up, 1 ms of run, intervals of 500 us.
fn made(hand: &Hand, pace: Pace) -> Made<impl FnMut() -> Time + Send + use<>> {
    let plan = OpenLoopPlan {
        payload: vec![7; 16],
        echo: true,
        pace,
        warm_up: Duration::from_micros(200),
        run: Duration::from_millis(1),
        interval: Duration::from_micros(500),
    };
    let hand = hand.clone();
    OpenLoop::new(plan, move || hand.now())
}

fn every_100_us() -> Pace {
    Pace::Open(Schedule::new(Arrivals::Fixed, 10_000.0, 0))
}

/// Nothing before so many microseconds after the start.
fn until(us: u64) -> Next {
    Next::Waiting {
        until: Time::from_nanos((1_000 + us) * 1_000),
    }
}

fn token_of(next: Next, space: &[u8]) -> u64 {
    let Next::Task { len: 16, token } = next else {
        panic!("a task, not {next:?}");
    };
    assert_eq!(space[..8], token.to_le_bytes());
    assert_eq!(space[8..16], [7; 8]);
    token
}

fn timing(round_trip_us: u64) -> Timing {
    Timing {
        round_trip_ns: round_trip_us * 1_000,
        busy_ns: 1_000,
        staged_ns: 2_000,
    }
}

#[test]
fn latency_runs_from_the_moment_a_task_was_meant_to_be_sent() {
    let hand = Hand::default();
    let (mut job, intervals, report) = made(&hand, every_100_us());
    let mut space = [0; 64];
    for sent in 0..12 {
        // The requester looks 30 us late, every time.
        let now = hand.set(sent * 100 + 30 * u64::from(sent > 0));
        let token = token_of(job.next(&mut space, now), &space);
        let then = if sent < 11 {
            until((sent + 1) * 100)
        } else {
            Next::End
        };
        assert_eq!(job.next(&mut space, now), then);
        hand.set(sent * 100 + 50);
        let echo = space[..16].to_vec();
        let answer = Answer::Done(&echo);
        let round_trip = if sent > 0 { 20 } else { 50 };
        assert_eq!(
            job.answer(token, answer, timing(round_trip)),
            Verdict::Accept
        );
        if sent % 2 == 0 {
            // Then a turn without work: how late the next task is, is the generator's own lag.
            for us in [60, 70] {
                let now = hand.set(sent * 100 + us);
                assert_eq!(job.next(&mut space, now), until((sent + 1) * 100));
            }
        }
    }
    let now = hand.set(1_200);
    assert_eq!(job.next(&mut space, now), Next::End);
    drop(job);
    let looped = report.recv().expect("sent when dropped");
    let counts = Counts {
        due: 10,
        sent: 10,
        in_time: 10,
        ..Counts::default()
    };
    assert_eq!(looped.counts, counts);
    assert_eq!(
        (looped.own_lag.len(), looped.own_lag.max() / 1_000),
        (5, 30)
    );
    let seen: Vec<(u128, u64, u64)> = intervals
        .drain()
        .map(|over| {
            (
                over.start.as_micros(),
                over.latency.len(),
                over.latency.max() / 1_000,
            )
        })
        .collect();
    assert_eq!(seen, [(0, 5, 50), (500, 5, 50)]);
    // One of the ten is the seventh.
    let stages = looped.stages;
    let told = [stages.send, stages.queue, stages.handler, stages.network];
    assert_eq!(
        told.map(|stage| (stage.len(), stage.max() / 1_000)),
        [(1, 30), (1, 2), (1, 1), (1, 17)]
    );
}

#[test]
fn a_task_that_waits_for_a_slot_counts_from_its_moment_and_not_as_lag() {
    let hand = Hand::default();
    let (mut job, intervals, report) = made(&hand, every_100_us());
    let mut space = [0; 64];
    let now = hand.set(0);
    token_of(job.next(&mut space, now), &space);
    // At 200 us two more are due and find a slot; the others are asked for after the overtime.
    let now = hand.set(200);
    for _ in 0..2 {
        token_of(job.next(&mut space, now), &space);
    }
    let now = hand.set(110_000);
    assert_eq!(job.next(&mut space, now), Next::End, "overtime is over");
    drop(job);
    let looped = report.recv().expect("sent when dropped");
    assert_eq!(
        (looped.counts.due, looped.counts.sent, looped.counts.lost),
        (10, 1, 1)
    );
    assert_eq!(intervals.drain().count(), 219, "each half of a millisecond");

    let (mut job, _intervals, report) = made(&hand, every_100_us());
    let now = hand.set(0);
    token_of(job.next(&mut space, now), &space);
    // The second task is due at 100 us, but no slot is free until 1,250 us.
    let now = hand.set(1_250);
    for _ in 1..12 {
        token_of(job.next(&mut space, now), &space);
    }
    assert_eq!(job.next(&mut space, now), Next::End);
    drop(job);
    let looped = report.recv().expect("sent when dropped");
    let counts = Counts {
        due: 10,
        sent: 10,
        in_time: 0,
        lost: 10,
        late: 1,
        held_back: 10,
    };
    assert_eq!((looped.counts, looped.own_lag.len()), (counts, 0));
}

#[test]
fn answers_are_told_apart_and_faults_are_lost_tasks() {
    let hand = Hand::default();
    let (mut job, _intervals, report) = made(&hand, Pace::Closed);
    let mut space = [0; 64];
    let now = hand.set(0);
    job.next(&mut space, now);
    let now = hand.set(300);
    let mut send = |job: &mut OpenLoop<_>| {
        let token = token_of(job.next(&mut space, now), &space);
        (token, space[..16].to_vec())
    };
    let sent: Vec<(u64, Vec<u8>)> = (0..3).map(|_| send(&mut job)).collect();
    let at = timing(40);
    hand.set(340);
    let other = Answer::Done(&sent[1].1);
    assert_eq!(job.answer(sent[0].0, other, at), Verdict::Reject);
    assert_eq!(job.answer(sent[1].0, other, at), Verdict::Accept);
    assert_eq!(job.answer(sent[1].0, other, at), Verdict::Reject);
    job.answer(sent[2].0, Answer::Refused(Refused::Lost), at);
    assert_eq!(job.answer(99, other, at), Verdict::Reject);
    // The place is used again, under another token.
    let again = send(&mut job);
    assert_ne!(again.0, sent[2].0);
    assert_eq!(again.0 & 0xFF, sent[2].0 & 0xFF);
    drop(job);
    let looped = report.recv().expect("sent when dropped");
    assert_eq!((looped.counts.sent, looped.counts.lost), (4, 3));
    let measured = looped.measured;
    assert_eq!((measured.issued, measured.accepted), (5, 1));
    assert_eq!((measured.rejected, measured.repeated), (1, 2));
    assert_eq!(measured.refused.get("lost"), Some(&1));
}
