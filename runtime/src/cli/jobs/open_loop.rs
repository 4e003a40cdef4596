//! Tasks at moments that were laid down before the run: the open loop of a benchmark.
//!
//! A latency runs from the moment at which a task was meant to be sent to the arrival of its
//! answer. What is late to be sent, by whoever's fault, is late in the figure. With
//! [`Pace::Closed`] a task is meant to be sent when a slot is free for it; the same job then
//! measures a capacity, or one task outstanding, with the same instruments.
//!
//! Invariants: whether a task counts is decided by its moment alone, which lies after the warm-up
//! and before the end; every task that was sent has one answer or is lost; an echo must bring back
//! the bytes of its own task, the first eight of which are its token.
//!
//! The lag of the generator itself is looked at where the requester had nothing else to do: what
//! a task waits while its thread opens answers or seals tasks is the requester's part of the path.
//!
//! The clock is read at the first task and the first answer of each turn and again after every
//! [`READ_EVERY`]th, so no moment is older than the handling of a few frames. Stages are looked at
//! for every [`STAGE_EVERY`]th task.

use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use hdrhistogram::Histogram;
use ramjet_bench::ladder::{Counts, LATE_AFTER_NS};
use ramjet_bench::latencies::Interval;
use ramjet_bench::schedule::Schedule;
use ramjet_proto::time::Time;

use super::Measured;
use crate::job::{Answer, Job, Next, Timing, Verdict};
use crate::latency::Histograms;

/// Tasks or answers between two looks at the clock within a turn.
const READ_EVERY: u32 = 4;
/// One task in so many is looked at by stage; prime, so that it falls in step with nothing.
const STAGE_EVERY: u64 = 7;
/// How long after the end a task that was due before it may still be sent.
const OVERTIME_NS: u64 = 100_000_000;
/// Emptied histograms that wait for another interval.
const SPARES: usize = 4;
/// Bytes of a payload that tell its task.
const STAMP_LEN: usize = 8;

/// When tasks are meant to be sent.
#[derive(Debug)]
pub enum Pace {
    /// At the moments of a schedule.
    Open(Schedule),
    /// As soon as a slot is free.
    Closed,
}

/// What an open loop does.
#[derive(Debug)]
pub struct OpenLoopPlan {
    /// What each task carries; an echo's first bytes are overwritten by its token.
    pub payload: Vec<u8>,
    /// Whether the result must be the payload.
    pub echo: bool,
    /// When.
    pub pace: Pace,
    /// Uncounted time at the head.
    pub warm_up: Duration,
    /// Counted time.
    pub run: Duration,
    /// Length of an interval.
    pub interval: Duration,
}

/// What an open loop measured; its latencies come by intervals.
#[derive(Debug)]
pub struct OpenLooped {
    /// What became of the tasks that count.
    pub counts: Counts,
    /// Counts and first fault of the whole run; its round trips stay empty.
    pub measured: Measured,
    /// From a task's moment to its send where the requester had nothing else to do, in nanoseconds.
    pub own_lag: Histogram<u64>,
    /// Where the time went.
    pub stages: Stages,
}

/// Where the time of the tasks went that were looked at, in nanoseconds.
#[derive(Debug)]
pub struct Stages {
    /// At the requester: from the intended moment to the send.
    pub send: Histogram<u64>,
    /// At the worker: from arrival to the start of the handler.
    pub queue: Histogram<u64>,
    /// The handler.
    pub handler: Histogram<u64>,
    /// What is left: both ways through sockets and network, opening and sealing, the reply.
    pub network: Histogram<u64>,
}

/// Where the intervals of an open loop arrive.
#[derive(Debug)]
pub struct Intervals {
    filled: Receiver<Interval>,
    spare: Sender<Histogram<u64>>,
}

impl Intervals {
    /// The intervals that are over, in order; the last one comes when the job is dropped.
    pub fn drain(&self) -> impl Iterator<Item = Interval> {
        self.filled.try_iter()
    }

    /// Gives a histogram back for another interval.
    pub fn recycle(&self, mut histogram: Histogram<u64>) {
        histogram.reset();
        // Nobody wants it any more once the job has ended.
        let _ = self.spare.try_send(histogram);
    }
}

/// A task that is out, or the place of one that was.
#[derive(Clone, Copy, Debug)]
struct Out {
    generation: u32,
    waiting: bool,
    due_ns: u64,
    sent_ns: u64,
    /// The turn it was sent in.
    turn: Time,
}

/// The clock, looked at now and then.
#[derive(Debug)]
struct Look {
    turn: Time,
    uses: u32,
    at_ns: u64,
}

impl Look {
    const fn new() -> Self {
        Look {
            turn: Time::NEVER,
            uses: 0,
            at_ns: 0,
        }
    }

    /// Nanoseconds since `begun`, at most a few uses old; whether the turn is another one.
    fn at(&mut self, turn: Time, begun: Time, clock: &mut impl FnMut() -> Time) -> bool {
        let turned = turn != self.turn;
        if turned || self.uses >= READ_EVERY {
            self.at_ns = clock().nanos_since(begun);
            self.uses = 0;
        }
        self.turn = turn;
        self.uses += 1;
        turned
    }
}

/// The job. `Clock` tells the time as the worker's does.
pub struct OpenLoop<Clock> {
    plan: OpenLoopPlan,
    /// When tasks begin to count and when they cease to, after the start.
    counted_ns: (u64, u64),
    clock: Clock,
    begun: Option<Time>,
    sends: Look,
    answers: Look,
    /// Whether nothing was left to send in the last turn.
    caught_up: bool,
    /// Whether what this turn sends had to wait for a slot.
    held: bool,
    /// Tasks sent and answers handled since the first task of this turn was asked for.
    worked: u32,
    /// Whether nothing was, from the last turn's first to this one's.
    idle: bool,
    out: Vec<Out>,
    free: Vec<u32>,
    /// Results of tasks that count.
    results: u64,
    interval: Interval,
    filled: Sender<Interval>,
    spare: Receiver<Histogram<u64>>,
    looped: Option<OpenLooped>,
    report: Sender<OpenLooped>,
}

fn histogram() -> Histogram<u64> {
    Histograms::new().round_trip
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<Clock: FnMut() -> Time + Send> OpenLoop<Clock> {
    /// The job, its intervals, and where the rest of what it measured arrives when it is dropped.
    pub fn new(plan: OpenLoopPlan, clock: Clock) -> (Self, Intervals, Receiver<OpenLooped>) {
        let (report, reported) = bounded(1);
        let (filled, intervals) = unbounded();
        let (give_back, spare) = bounded(SPARES);
        let warm_up_ns = nanos(plan.warm_up);
        let job = OpenLoop {
            counted_ns: (warm_up_ns, warm_up_ns.saturating_add(nanos(plan.run))),
            plan,
            clock,
            begun: None,
            sends: Look::new(),
            answers: Look::new(),
            caught_up: true,
            held: false,
            worked: 0,
            idle: true,
            out: Vec::new(),
            free: Vec::new(),
            results: 0,
            interval: Interval {
                start: Duration::ZERO,
                length: Duration::ZERO,
                latency: histogram(),
            },
            filled,
            spare,
            looped: Some(OpenLooped {
                counts: Counts::default(),
                measured: Measured::default(),
                own_lag: histogram(),
                stages: Stages {
                    send: histogram(),
                    queue: histogram(),
                    handler: histogram(),
                    network: histogram(),
                },
            }),
            report,
        };
        let intervals = Intervals {
            filled: intervals,
            spare: give_back,
        };
        (job, intervals, reported)
    }

    fn counts(&self, due_ns: u64) -> bool {
        (self.counted_ns.0..self.counted_ns.1).contains(&due_ns)
    }

    /// The moment of the next task if it has come; else what to say instead.
    fn due(&mut self) -> Result<u64, Next> {
        let (end_ns, at_ns) = (self.counted_ns.1, self.sends.at_ns);
        let Pace::Open(schedule) = &mut self.plan.pace else {
            return if at_ns < end_ns {
                Ok(at_ns)
            } else {
                Err(Next::End)
            };
        };
        let due_ns = schedule.due_ns();
        if due_ns >= end_ns || at_ns >= end_ns.saturating_add(OVERTIME_NS) {
            return Err(Next::End);
        }
        if due_ns > at_ns {
            let begun = self.begun.unwrap_or(Time::NEVER);
            return Err(Next::Waiting {
                until: begun + Duration::from_nanos(due_ns),
            });
        }
        schedule.advance();
        Ok(due_ns)
    }

    /// Takes a place among the tasks that are out; its token.
    fn take_out(&mut self, due_ns: u64) -> u64 {
        let out = Out {
            generation: 0,
            waiting: true,
            due_ns,
            sent_ns: self.sends.at_ns,
            turn: self.sends.turn,
        };
        let index = match self.free.pop() {
            Some(index) => {
                let place = &mut self.out[index as usize];
                let generation = place.generation.wrapping_add(1);
                *place = Out { generation, ..out };
                index
            }
            None => {
                self.out.push(out);
                u32::try_from(self.out.len() - 1).expect("no more than there are slots")
            }
        };
        u64::from(self.out[index as usize].generation) << 32 | u64::from(index)
    }

    fn note_sent(&mut self, due_ns: u64) {
        let counts = self.counts(due_ns);
        let lag_ns = self.sends.at_ns.saturating_sub(due_ns);
        self.worked += 1;
        let Some(looped) = &mut self.looped else {
            return;
        };
        looped.measured.issued += 1;
        if !counts {
            return;
        }
        looped.counts.sent += 1;
        looped.counts.late += u64::from(lag_ns > LATE_AFTER_NS);
        if self.held {
            looped.counts.held_back += 1;
        } else if self.idle {
            looped.own_lag.saturating_record(lag_ns);
        }
    }

    /// Notes the answer of a task that counts.
    fn note_result(&mut self, out: Out, timing: Timing) {
        self.results += 1;
        let latency_ns = self.answers.at_ns.saturating_sub(out.due_ns);
        self.interval.latency.saturating_record(latency_ns);
        if self.results.is_multiple_of(STAGE_EVERY)
            && let Some(looped) = &mut self.looped
        {
            let send_ns = out.sent_ns.saturating_sub(out.due_ns);
            let known_ns = send_ns + timing.staged_ns + timing.busy_ns;
            let stages = &mut looped.stages;
            stages.send.saturating_record(send_ns);
            stages.queue.saturating_record(timing.staged_ns);
            stages.handler.saturating_record(timing.busy_ns);
            stages
                .network
                .saturating_record(latency_ns.saturating_sub(known_ns));
        }
    }

    /// Hands over the intervals that are over.
    fn roll(&mut self, at_ns: u64) {
        let since_warm_up = Duration::from_nanos(at_ns.saturating_sub(self.counted_ns.0));
        while since_warm_up >= self.interval.start + self.plan.interval {
            self.hand_over(self.plan.interval);
        }
    }

    fn hand_over(&mut self, length: Duration) {
        let latency = self.spare.try_recv().unwrap_or_else(|_| histogram());
        let next = Interval {
            start: self.interval.start + length,
            length: Duration::ZERO,
            latency,
        };
        let mut over = std::mem::replace(&mut self.interval, next);
        over.length = length;
        // Nobody waits any more after an interruption.
        let _ = self.filled.send(over);
    }
}

fn stamp_of(token: u64) -> [u8; STAMP_LEN] {
    // The place comes first, so that a payload too short for all of it tells the places apart.
    token.to_le_bytes()
}

/// Writes the token over the head of an echo's payload.
fn stamp(payload: &mut [u8], token: u64) {
    let stamp = stamp_of(token);
    let len = payload.len().min(STAMP_LEN);
    payload[..len].copy_from_slice(&stamp[..len]);
}

/// Whether these are the bytes that went out under the token.
fn is_echo(result: &[u8], payload: &[u8], token: u64) -> bool {
    let len = payload.len().min(STAMP_LEN);
    result.len() == payload.len()
        && result[..len] == stamp_of(token)[..len]
        && result[len..] == payload[len..]
}

impl<Clock: FnMut() -> Time + Send> Job for OpenLoop<Clock> {
    fn next(&mut self, space: &mut [u8], now: Time) -> Next {
        let begun = *self.begun.get_or_insert(now);
        if self.sends.at(now, begun, &mut self.clock) {
            self.held = !self.caught_up;
            self.idle = self.worked == 0;
            self.worked = 0;
            self.roll(self.sends.at_ns);
        }
        let due_ns = match self.due() {
            Ok(due_ns) => due_ns,
            Err(next) => {
                self.caught_up = true;
                return next;
            }
        };
        self.caught_up = false;
        self.note_sent(due_ns);
        let token = self.take_out(due_ns);
        let payload = &self.plan.payload;
        match space.get_mut(..payload.len()) {
            Some(space) => {
                space.copy_from_slice(payload);
                if self.plan.echo {
                    stamp(space, token);
                }
                let len = payload.len();
                Next::Task { len, token }
            }
            None => {
                let mut payload = payload.clone();
                if self.plan.echo {
                    stamp(&mut payload, token);
                }
                Next::Large {
                    payload: payload.into(),
                    token,
                }
            }
        }
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, timing: Timing) -> Verdict {
        let index = token & u64::from(u32::MAX);
        let place = usize::try_from(index)
            .ok()
            .and_then(|i| self.out.get_mut(i));
        let known = place.filter(|out| out.waiting && u64::from(out.generation) == token >> 32);
        let (Some(out), Some(looped)) = (known, &mut self.looped) else {
            if let Some(looped) = &mut self.looped {
                looped.measured.repeated += 1;
            }
            return Verdict::Reject;
        };
        out.waiting = false;
        let out = *out;
        self.worked += 1;
        self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
        match answer {
            Answer::Done(result)
                if !self.plan.echo || is_echo(result, &self.plan.payload, token) => {}
            fault => {
                let task = looped.measured.answered();
                looped.measured.count_fault(task, fault);
                return Verdict::Reject;
            }
        }
        looped.measured.accepted += 1;
        let begun = self.begun.unwrap_or(Time::ZERO);
        let turn = out.turn + Duration::from_nanos(timing.round_trip_ns);
        if self.answers.at(turn, begun, &mut self.clock) {
            self.roll(self.answers.at_ns);
        }
        if self.counts(self.answers.at_ns)
            && let Some(looped) = &mut self.looped
        {
            looped.counts.in_time += 1;
        }
        if self.counts(out.due_ns) {
            self.note_result(out, timing);
        }
        Verdict::Accept
    }
}

impl<Clock> Drop for OpenLoop<Clock> {
    fn drop(&mut self) {
        let Some(mut looped) = self.looped.take() else {
            return;
        };
        looped.counts.lost = looped.counts.sent - self.results;
        looped.counts.due = looped.counts.sent
            + match &mut self.plan.pace {
                Pace::Open(schedule) => {
                    schedule.skip_to(self.counted_ns.0);
                    schedule.skip_to(self.counted_ns.1)
                }
                Pace::Closed => 0,
            };
        if !self.interval.latency.is_empty() {
            let until_ns = self.answers.at_ns.saturating_sub(self.counted_ns.0);
            let length = Duration::from_nanos(until_ns).saturating_sub(self.interval.start);
            let last = Interval {
                start: self.interval.start,
                length,
                latency: std::mem::replace(&mut self.interval.latency, histogram()),
            };
            let _ = self.filled.send(last);
        }
        // Nobody waits any more after an interruption.
        let _ = self.report.send(looped);
    }
}

#[cfg(test)]
mod tests;
