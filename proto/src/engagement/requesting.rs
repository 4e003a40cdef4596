//! The requester's end of a channel.
//!
//! A slot is *free*, *outstanding* (a task is out and is repeated until its answer comes), or
//! *backing off* (the worker was busy; the task goes out again, as the next generation, when the
//! time it named has passed).
//!
//! Who drives it: [`Requesting::pump`] and then, while [`Requesting::has_parts`],
//! [`Requesting::pump_parts`] once a turn while the channel is open, [`Requesting::answer`] for each
//! frame about a task, [`Requesting::handle_timeout`] when [`Requesting::next_timeout`] has passed,
//! and [`Requesting::abandon`] when the channel ends. It calls the [`Job`] for tasks and with answers,
//! each token exactly once.
//!
//! How much may be out beside the credits, the controller of the path says that every call is lent
//! ([`super::congestion`]): a task counts from its first send until its answer comes or the worker
//! says that it has it. A repeat is taken for a loss until the worker says that the first arrived.
//! Long payloads and results are in [`long`], what waits for time in [`repeat`].

mod long;
mod repeat;

pub(crate) use self::long::{PARALLEL_MAX, PARTS_A_TURN};

use core::time::Duration;
use std::collections::VecDeque;

use self::long::Long;
use crate::engagement::congestion::Congestion;
use crate::engagement::job::{Answer, Job, Next, Refused, Timing, Verdict};
use crate::engagement::parts::{PartsIn, PartsOut};
use crate::engagement::rtt::Rtt;
use crate::engagement::serving::next_generation;
use crate::engagement::{FrameSink, Totals};
use crate::fault::DropReason;
use crate::frame::duration16;
use crate::frame::kind::{Kind, PRIOR_ACCEPTED, PRIOR_REJECTED, RefusalCode};
use crate::frame::{Frame, Head, TaskId};
use crate::ids::ChannelId;
use crate::time::Time;
use crate::wire::limits::{FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, TASK_LEN_MAX};

/// How long a free slot may keep a verdict to itself in the hope of a next task to carry it. Nothing
/// waits for it: the worker keeps the memory of a short answer for the slot's next anyway. A requester
/// that serves thousands of engagements in turn comes back to each within this time, and a verdict that
/// has a frame of its own costs both ends nearly as much as a task.
const VERDICT_DELAY: Duration = Duration::from_millis(500);
/// The same where the worker keeps a long result until it is judged.
const LONG_VERDICT_DELAY: Duration = Duration::from_millis(20);
/// A task that is known to run is asked after this seldom.
const WORKING_PROBE: Duration = Duration::from_millis(500);
/// Silence after which the other end counts as lost while a task is owed an answer.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// A worker states its own part of a round trip to a part in a thousand; of what it held for longer
/// than this, the rest is no measure of the path.
const HELD_NS_MAX: u64 = 16_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    Outstanding,
    BackingOff,
}

/// When a job is to be asked for a task again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobDue {
    /// When an answer frees a slot, or the path has room: it had more.
    Asked,
    /// Before long.
    Soon,
    /// Then, or when it rings.
    At(Time),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: SlotState,
    /// Flags that the next frame about this slot owes the worker: 0 when it owes none.
    prior: u8,
    /// Whether the worker said that the task runs.
    working: bool,
    /// Whether the path counts its payload as in flight.
    counted: bool,
    sends: u32,
    /// What every copy of the task says of its deadline.
    deadline_us: u32,
    token: u64,
    first_sent: Time,
    due: Time,
    payload: Vec<u8>,
    /// A long task on its way out. Boxed, as the next: rare, and every slot holds their place.
    long: Option<Box<Long>>,
    /// Whether it is on the list of those with parts to send.
    queued: bool,
    /// A long result on its way in.
    parts_in: Option<Box<PartsIn>>,
    /// Pieces of progress that came in order.
    pieces: u32,
}

impl Slot {
    const EMPTY: Slot = Slot {
        generation: 0,
        state: SlotState::Free,
        prior: 0,
        working: false,
        counted: false,
        sends: 0,
        deadline_us: 0,
        token: 0,
        first_sent: Time::ZERO,
        due: Time::NEVER,
        payload: Vec::new(),
        long: None,
        queued: false,
        parts_in: None,
        pieces: 0,
    };

    /// The worker has the task, or has answered it: the path counts it no more.
    #[inline]
    fn settle(&mut self, now: Time, path: &mut Congestion, round_trip_ns: Option<u64>) {
        if std::mem::take(&mut self.counted) {
            path.task_settled(now, FRAME_HEADER_LEN + self.payload.len(), round_trip_ns);
        }
    }

    /// The slot is given up, and what the path counts of it.
    fn release(&mut self, path: &mut Congestion) {
        if std::mem::take(&mut self.counted) {
            path.task_forgotten(FRAME_HEADER_LEN + self.payload.len());
        }
        if let Some(mut long) = self.long.take() {
            long.parts.release(path);
        }
        self.parts_in = None;
    }
}

/// What an answer tells the caller beyond the job's own callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progressed {
    /// A task got its answer, after this many nanoseconds.
    Answered(u64),
    /// A task waits for its retry, or is known to run.
    Noted,
}

/// The slots of one channel at its requester.
#[derive(Debug)]
pub struct Requesting {
    channel: ChannelId,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    tasks_max: u64,
    outstanding: u32,
    ended: bool,
    /// When the job wants to be asked again: it had nothing.
    job_due: JobDue,
    /// Slots whose long tasks have parts to send, each once.
    sending: VecDeque<u16>,
    /// Of their payloads, bytes that were never sent.
    unsent: usize,
    /// Slots whose long results have parts that are not acknowledged, each once.
    acking: Vec<TaskId>,
    /// Bytes reserved for long results that arrive.
    receiving: usize,
    /// Free slots that owe a verdict, and since when.
    verdicts_owed: u32,
    verdicts_due: Time,
    rtt: Rtt,
    last_heard: Time,
    next_scan: Time,
    totals: Totals,
}

impl Requesting {
    /// A channel that was just opened with this many credits, for at most `tasks_max` tasks.
    pub fn new(channel: ChannelId, credits: u32, tasks_max: u64, now: Time) -> Self {
        let credits = u16::try_from(credits).unwrap_or(u16::MAX);
        Requesting {
            channel,
            slots: (0..credits).map(|_| Slot::EMPTY).collect(),
            free: (0..credits).rev().collect(),
            tasks_max,
            outstanding: 0,
            ended: false,
            job_due: JobDue::Asked,
            sending: VecDeque::new(),
            unsent: 0,
            acking: Vec::new(),
            receiving: 0,
            verdicts_owed: 0,
            verdicts_due: Time::NEVER,
            rtt: Rtt::default(),
            last_heard: now,
            next_scan: Time::NEVER,
            totals: Totals::default(),
        }
    }

    /// What it has come to.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Tasks without an answer.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Whether the job has ended, or used up its grant, and every task has its answer.
    pub fn is_done(&self) -> bool {
        self.has_ended() && self.outstanding == 0
    }

    fn has_ended(&self) -> bool {
        self.ended || self.totals.tasks >= self.tasks_max
    }

    /// Takes no more tasks from the job.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// More tasks after a renewal.
    pub fn extend(&mut self, tasks_max: u64) {
        self.tasks_max = tasks_max;
    }

    /// Whether the worker has been silent for so long that it must be gone.
    pub fn is_lost(&self, now: Time) -> bool {
        self.outstanding > 0 && now.since(self.last_heard) >= LOST_AFTER
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn next_timeout(&self) -> Time {
        let scan = self.next_scan.min(self.verdicts_due);
        match self.job_due {
            JobDue::At(due) => scan.min(due),
            JobDue::Asked | JobDue::Soon => scan,
        }
    }

    /// Whether the job has to be asked again before long, and nothing will say when.
    pub fn is_polling(&self) -> bool {
        self.job_due == JobDue::Soon
    }

    /// Takes up to `budget` tasks from the job and sends those that fit a frame, and what long results
    /// are owed in acknowledgments; how many tasks were begun.
    pub fn pump(
        &mut self,
        now: Time,
        path: &mut Congestion,
        sink: &mut impl FrameSink,
        job: &mut dyn Job,
        budget: usize,
    ) -> usize {
        self.acknowledge(sink);
        let mut begun = 0;
        self.job_due = JobDue::Asked;
        while begun < budget && self.may_begin(path) {
            let Some(space) = sink.reserve(FRAME_PAYLOAD_MAX) else {
                break;
            };
            begun += 1;
            let (len, token) = match job.next(space, now) {
                Next::Task { len, token } => (len, token),
                Next::Large { payload, token } => {
                    if payload.is_empty() || payload.len() > TASK_LEN_MAX {
                        self.totals.refused += 1;
                        job.answer(token, Answer::Refused(Refused::TooBig), Timing::default());
                    } else {
                        self.start_long(now, token, payload);
                    }
                    continue;
                }
                Next::Later => {
                    begun -= 1;
                    self.job_due = JobDue::Soon;
                    break;
                }
                Next::Waiting { until } => {
                    begun -= 1;
                    self.job_due = if until > now {
                        JobDue::At(until)
                    } else {
                        JobDue::Soon
                    };
                    break;
                }
                Next::End => {
                    begun -= 1;
                    self.ended = true;
                    break;
                }
            };
            let (head, slot) = self.start(now, token, job.deadline_us());
            slot.payload.clear();
            slot.payload.extend_from_slice(&space[..len]);
            slot.counted = true;
            path.task_sent(FRAME_HEADER_LEN + len);
            sink.commit(head, len);
        }
        if begun > 0 {
            self.next_scan = self.next_scan.min(now + self.rtt.timeout());
        }
        if self.is_done() && self.verdicts_owed > 0 {
            self.verdicts_due = now;
        }
        begun
    }

    #[inline]
    fn may_begin(&mut self, path: &mut Congestion) -> bool {
        !self.has_ended()
            && !self.free.is_empty()
            && self.unsent < long::UNSENT_MAX
            && path.may_send_task()
    }

    /// Puts a new task into a free slot.
    #[inline]
    fn start(&mut self, now: Time, token: u64, deadline_us: u32) -> (Head, &mut Slot) {
        let index = self.free.pop().expect("may_send saw a free slot");
        let slot = &mut self.slots[usize::from(index)];
        if slot.prior != 0 {
            self.verdicts_owed -= 1;
            if self.verdicts_owed == 0 {
                self.verdicts_due = Time::NEVER;
            }
        }
        slot.generation = next_generation(slot.generation);
        slot.state = SlotState::Outstanding;
        slot.working = false;
        debug_assert!(!slot.counted, "a free slot is not in flight");
        slot.pieces = 0;
        slot.sends = 1;
        slot.deadline_us = deadline_us;
        slot.token = token;
        slot.first_sent = now;
        slot.due = now + self.rtt.timeout();
        if self.outstanding == 0 {
            // Nobody owed us a word until now.
            self.last_heard = now;
        }
        self.outstanding += 1;
        self.totals.tasks += 1;
        let task = TaskId {
            slot: index,
            generation: slot.generation,
        };
        // A repeat must carry the same verdict: the first copy may be the one that was lost.
        let head = Head::task(Kind::Task, self.channel, task, deadline_us).with_flags(slot.prior);
        (head, slot)
    }

    /// Takes any frame about a task: RESULT, RESULT_PART, FAILED, REFUSED, WORKING, PROGRESS or
    /// PART_ACK.
    ///
    /// # Errors
    /// The reason for which the frame was dropped.
    #[inline]
    pub fn answer(
        &mut self,
        now: Time,
        path: &mut Congestion,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
        job: &mut dyn Job,
    ) -> Result<Progressed, DropReason> {
        let slot = self
            .slots
            .get_mut(usize::from(frame.task.slot))
            .ok_or(DropReason::SlotOutOfRange)?;
        if slot.generation != frame.task.generation {
            return Err(DropReason::Stale);
        }
        if slot.state != SlotState::Outstanding {
            return Err(DropReason::Duplicate);
        }
        self.last_heard = now;
        match frame.kind {
            Kind::Working => {
                if !slot.working && slot.sends > 1 {
                    // Only a repeat is answered so: the first had arrived.
                    path.task_was_not_lost();
                }
                self.works(now, path, frame.task);
                Ok(Progressed::Noted)
            }
            Kind::PartAck => self.part_ack(now, path, frame),
            Kind::Progress => {
                self.works(now, path, frame.task);
                self.progress(frame, sink, job)
            }
            Kind::Refused => self.refused(now, path, frame, job),
            _ if u32::from(frame.flags) > slot.pieces => {
                // Pieces are missing: they come again, and the answer after them.
                let next = slot.pieces;
                sink.send(
                    Head::task(Kind::ProgressAck, self.channel, frame.task, next),
                    &[],
                );
                Ok(Progressed::Noted)
            }
            Kind::ResultPart => self.result_part(now, path, frame, sink, job),
            Kind::Result => {
                let answer = Answer::Done(frame.payload);
                Ok(self.finish(now, path, frame.task, frame.auxiliary, answer, job))
            }
            Kind::Failed => {
                let answer = Answer::Failed(frame.payload);
                Ok(self.finish(now, path, frame.task, frame.auxiliary, answer, job))
            }
            _ => Err(DropReason::OutOfOrder),
        }
    }

    /// The worker has the task and runs it.
    fn works(&mut self, now: Time, path: &mut Congestion, task: TaskId) {
        let slot = &mut self.slots[usize::from(task.slot)];
        slot.working = true;
        slot.due = now + WORKING_PROBE;
        slot.settle(now, path, None);
    }

    /// A piece of progress: handed on in order; a gap is asked for.
    fn progress(
        &mut self,
        frame: &Frame<'_>,
        sink: &mut impl FrameSink,
        job: &mut dyn Job,
    ) -> Result<Progressed, DropReason> {
        let slot = &mut self.slots[usize::from(frame.task.slot)];
        if frame.auxiliary > slot.pieces {
            let next = slot.pieces;
            sink.send(
                Head::task(Kind::ProgressAck, self.channel, frame.task, next),
                &[],
            );
            return Err(DropReason::OutOfOrder);
        }
        if frame.auxiliary < slot.pieces {
            return Err(DropReason::Duplicate);
        }
        slot.pieces += 1;
        job.progress(slot.token, frame.payload);
        Ok(Progressed::Noted)
    }

    fn refused(
        &mut self,
        now: Time,
        path: &mut Congestion,
        frame: &Frame<'_>,
        job: &mut dyn Job,
    ) -> Result<Progressed, DropReason> {
        match refused(frame).ok_or(DropReason::BadFrame)? {
            retry @ (Refused::Busy { .. } | Refused::ReceiptDue) => {
                self.back_off(now, path, frame.task, retry);
                Ok(Progressed::Noted)
            }
            reason => Ok(self.finish(now, path, frame.task, 0, Answer::Refused(reason), job)),
        }
    }

    fn back_off(&mut self, now: Time, path: &mut Congestion, task: TaskId, retry: Refused) {
        let micros = match retry {
            Refused::Busy { retry_after_us } => retry_after_us,
            _ => crate::engagement::serving::RETRY_AFTER_US,
        };
        let slot = &mut self.slots[usize::from(task.slot)];
        slot.settle(now, path, None);
        slot.state = SlotState::BackingOff;
        slot.prior = 0;
        if let Some(long) = &mut slot.long {
            self.unsent -= long.parts.unsent();
            long.parts.release(path);
            long.parts = PartsOut::new(long.payload.len());
            self.unsent += long.parts.unsent();
        }
        slot.due = now + Duration::from_micros(u64::from(micros.max(100)));
        self.next_scan = self.next_scan.min(slot.due);
    }

    /// Hands an answer to the job, counts it and frees its slot.
    #[inline]
    fn finish(
        &mut self,
        now: Time,
        path: &mut Congestion,
        task: TaskId,
        auxiliary: u32,
        answer: Answer<'_>,
        job: &mut dyn Job,
    ) -> Progressed {
        let slot = &mut self.slots[usize::from(task.slot)];
        let round_trip_ns = now.nanos_since(slot.first_sent);
        let (busy_ns, staged_ns) = duration16::unpack(auxiliary);
        let mut on_path_ns = None;
        if slot.sends == 1 && slot.long.is_none() && slot.parts_in.is_none() {
            self.rtt.sample(round_trip_ns);
            let held_ns = busy_ns + staged_ns;
            if held_ns < HELD_NS_MAX {
                on_path_ns = Some(round_trip_ns.saturating_sub(held_ns));
            }
        }
        slot.settle(now, path, on_path_ns);
        let verdict = job.answer(
            slot.token,
            answer,
            Timing {
                round_trip_ns,
                busy_ns,
                staged_ns,
            },
        );
        slot.prior = 0;
        if let Some(parts) = &slot.parts_in {
            self.receiving -= parts.len();
        }
        if let Some(long) = &slot.long {
            self.unsent -= long.parts.unsent();
        }
        slot.release(path);
        match answer {
            Answer::Done(result) => {
                self.totals.done += 1;
                if verdict == Verdict::Accept {
                    self.totals.accepted += 1;
                    self.totals.busy_ns += busy_ns;
                    self.totals.staged_ns += staged_ns;
                    slot.prior = PRIOR_ACCEPTED;
                } else {
                    self.totals.rejected += 1;
                    slot.prior = PRIOR_REJECTED;
                }
                let delay = if result.len() > FRAME_PAYLOAD_MAX {
                    LONG_VERDICT_DELAY
                } else {
                    VERDICT_DELAY
                };
                self.verdicts_due = self.verdicts_due.min(now + delay);
                self.verdicts_owed += 1;
            }
            Answer::Failed(_) => self.totals.failed += 1,
            Answer::Refused(Refused::Late) => self.totals.expired += 1,
            Answer::Refused(_) => self.totals.refused += 1,
        }
        slot.state = SlotState::Free;
        slot.due = Time::NEVER;
        self.outstanding -= 1;
        self.free.push(task.slot);
        Progressed::Answered(round_trip_ns)
    }

    /// Gives every task that is still out to the job as `reason`: the channel has ended.
    pub fn abandon(
        &mut self,
        now: Time,
        path: &mut Congestion,
        reason: Refused,
        job: &mut dyn Job,
    ) {
        self.ended = true;
        for slot in &mut self.slots {
            slot.queued = false;
            if slot.state == SlotState::Free {
                continue;
            }
            slot.state = SlotState::Free;
            slot.release(path);
            let round_trip_ns = now.nanos_since(slot.first_sent);
            self.totals.refused += 1;
            job.answer(
                slot.token,
                Answer::Refused(reason),
                Timing {
                    round_trip_ns,
                    ..Timing::default()
                },
            );
        }
        self.outstanding = 0;
        self.sending.clear();
        self.acking.clear();
        (self.unsent, self.receiving) = (0, 0);
        self.next_scan = Time::NEVER;
        self.verdicts_due = Time::NEVER;
    }
}

/// The head of a slot's task, or of a part of it.
fn task_head(kind: Kind, channel: ChannelId, index: u16, slot: &Slot, auxiliary: u32) -> Head {
    let task = TaskId {
        slot: index,
        generation: slot.generation,
    };
    // A repeat must carry the same verdict: the first copy may be the one that was lost.
    Head::task(kind, channel, task, auxiliary).with_flags(slot.prior)
}

fn refused(frame: &Frame<'_>) -> Option<Refused> {
    Some(match RefusalCode::from_wire(frame.flags)? {
        RefusalCode::Busy => Refused::Busy {
            retry_after_us: frame.auxiliary,
        },
        RefusalCode::Late => Refused::Late,
        RefusalCode::TooBig => Refused::TooBig,
        RefusalCode::NoSkill => Refused::NoSkill,
        RefusalCode::GrantEnded => Refused::GrantEnded,
        RefusalCode::ReceiptDue => Refused::ReceiptDue,
        RefusalCode::Draining => Refused::Draining,
        RefusalCode::Cancelled => Refused::Cancelled,
    })
}
