//! The requester's end of a channel.
//!
//! A slot is *free*, *outstanding* (a task is out and is repeated until its answer comes), or
//! *backing off* (the worker was busy; the task goes out again, as the next generation, when the
//! time it named has passed).
//!
//! Who drives it: [`Requesting::pump`] once a turn while the channel is open, [`Requesting::answer`]
//! for each RESULT, FAILED, REFUSED and WORKING, [`Requesting::handle_timeout`] when
//! [`Requesting::next_timeout`] has passed. It calls the [`Job`] for tasks and with answers, each
//! token exactly once.
//!
//! The send window follows loss: it starts at [`WINDOW_INITIAL`], grows by one for each answer until
//! it holds every credit, and halves when a task had to be repeated, at most once a round trip.

use core::time::Duration;

use crate::engagement::job::{Answer, Job, Next, Refused, Timing, Verdict};
use crate::engagement::rtt::Rtt;
use crate::engagement::serving::next_generation;
use crate::engagement::{FrameSink, Totals};
use crate::fault::DropReason;
use crate::frame::duration16;
use crate::frame::kind::{Kind, PRIOR_ACCEPTED, PRIOR_REJECTED, RefusalCode};
use crate::frame::{Frame, Head, TaskId};
use crate::ids::ChannelId;
use crate::time::Time;
use crate::wire::limits::FRAME_PAYLOAD_MAX;

/// Tasks outstanding before the first answer.
pub const WINDOW_INITIAL: u32 = 64;
/// Least window after losses.
const WINDOW_MIN: u32 = 4;
/// How long a free slot may keep a verdict to itself in the hope of a next task to carry it.
const VERDICT_DELAY: Duration = Duration::from_millis(20);
/// A task that is known to run is asked after this seldom.
const WORKING_PROBE: Duration = Duration::from_millis(500);
/// Silence after which the other end counts as lost, once a task has been repeated this often.
const LOST_AFTER: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    Outstanding,
    BackingOff,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: SlotState,
    /// Flags that the next frame about this slot owes the worker: 0 when it owes none.
    prior: u8,
    /// Whether the worker said that the task runs.
    working: bool,
    sends: u32,
    token: u64,
    first_sent: Time,
    due: Time,
    payload: Vec<u8>,
}

impl Slot {
    const EMPTY: Slot = Slot {
        generation: 0,
        state: SlotState::Free,
        prior: 0,
        working: false,
        sends: 0,
        token: 0,
        first_sent: Time::ZERO,
        due: Time::NEVER,
        payload: Vec::new(),
    };
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
    window: u32,
    window_cut_at: Time,
    outstanding: u32,
    ended: bool,
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
            window: WINDOW_INITIAL.min(u32::from(credits)),
            window_cut_at: now,
            outstanding: 0,
            ended: false,
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
        self.next_scan.min(self.verdicts_due)
    }

    /// Takes up to `budget` tasks from the job and sends them; how many.
    pub fn pump(
        &mut self,
        now: Time,
        sink: &mut impl FrameSink,
        job: &mut dyn Job,
        budget: usize,
    ) -> usize {
        let mut sent = 0;
        while sent < budget && self.may_send() {
            let Some(space) = sink.reserve(FRAME_PAYLOAD_MAX) else { break };
            let (len, token) = match job.next(space, now) {
                Next::Task { len, token } => (len, token),
                Next::Large { token, .. } => {
                    self.totals.refused += 1;
                    job.answer(token, Answer::Refused(Refused::TooBig), Timing::default());
                    continue;
                }
                Next::Later => break,
                Next::End => {
                    self.ended = true;
                    break;
                }
            };
            let (head, slot) = self.start(now, token, job.deadline_us());
            slot.payload.clear();
            slot.payload.extend_from_slice(&space[..len]);
            sink.commit(head, len);
            sent += 1;
        }
        if sent > 0 {
            self.next_scan = self.next_scan.min(now + self.rtt.timeout());
        }
        if self.is_done() && self.verdicts_owed > 0 {
            self.verdicts_due = now;
        }
        sent
    }

    fn may_send(&self) -> bool {
        !self.has_ended() && !self.free.is_empty() && self.outstanding < self.window
    }

    /// Puts a new task into a free slot.
    fn start(&mut self, now: Time, token: u64, deadline_us: u32) -> (Head, &mut Slot) {
        let index = self.free.pop().expect("may_send saw a free slot");
        let slot = &mut self.slots[usize::from(index)];
        if slot.prior != 0 {
            self.verdicts_owed -= 1;
        }
        slot.generation = next_generation(slot.generation);
        slot.state = SlotState::Outstanding;
        slot.working = false;
        slot.sends = 1;
        slot.token = token;
        slot.first_sent = now;
        slot.due = now + self.rtt.timeout();
        self.outstanding += 1;
        self.totals.tasks += 1;
        let task = TaskId { slot: index, generation: slot.generation };
        // A repeat must carry the same verdict: the first copy may be the one that was lost.
        let flags = slot.prior;
        (Head { flags, ..Head::task(Kind::Task, self.channel, task, deadline_us) }, slot)
    }

    /// Takes RESULT, FAILED, REFUSED or WORKING.
    ///
    /// # Errors
    /// The reason for which the frame was dropped.
    pub fn answer(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        job: &mut dyn Job,
    ) -> Result<Progressed, DropReason> {
        let credits = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
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
        if frame.kind == Kind::Working {
            slot.working = true;
            slot.due = now + WORKING_PROBE;
            return Ok(Progressed::Noted);
        }
        let round_trip_ns = now.nanos_since(slot.first_sent);
        if slot.sends == 1 {
            self.rtt.sample(round_trip_ns);
        }
        self.window = (self.window + 1).min(credits);
        let token = slot.token;
        let (answer, timing) = match frame.kind {
            Kind::Refused => match refused(frame) {
                Some(retry @ (Refused::Busy { .. } | Refused::ReceiptDue)) => {
                    self.back_off(now, frame.task, retry);
                    return Ok(Progressed::Noted);
                }
                Some(reason) => (Answer::Refused(reason), Timing { round_trip_ns, busy_ns: 0 }),
                None => return Err(DropReason::BadFrame),
            },
            kind => {
                let (busy_ns, _) = duration16::unpack(frame.auxiliary);
                let timing = Timing { round_trip_ns, busy_ns };
                match kind {
                    Kind::Result => (Answer::Done(frame.payload), timing),
                    Kind::Failed => (Answer::Failed(frame.payload), timing),
                    _ => return Err(DropReason::OutOfOrder),
                }
            }
        };
        let verdict = job.answer(token, answer, timing);
        self.finish(now, frame, answer, verdict);
        Ok(Progressed::Answered(round_trip_ns))
    }

    fn back_off(&mut self, now: Time, task: TaskId, retry: Refused) {
        let micros = match retry {
            Refused::Busy { retry_after_us } => retry_after_us,
            _ => crate::engagement::serving::RETRY_AFTER_US,
        };
        let slot = &mut self.slots[usize::from(task.slot)];
        slot.state = SlotState::BackingOff;
        slot.prior = 0;
        slot.due = now + Duration::from_micros(u64::from(micros.max(100)));
        self.next_scan = self.next_scan.min(slot.due);
    }

    /// Counts an answer and frees its slot.
    fn finish(&mut self, now: Time, frame: &Frame<'_>, answer: Answer<'_>, verdict: Verdict) {
        let slot = &mut self.slots[usize::from(frame.task.slot)];
        slot.prior = 0;
        match answer {
            Answer::Done(_) => {
                self.totals.done += 1;
                if verdict == Verdict::Accept {
                    let (busy_ns, staged_ns) = duration16::unpack(frame.auxiliary);
                    self.totals.accepted += 1;
                    self.totals.busy_ns += busy_ns;
                    self.totals.staged_ns += staged_ns;
                    slot.prior = PRIOR_ACCEPTED;
                } else {
                    self.totals.rejected += 1;
                    slot.prior = PRIOR_REJECTED;
                }
                if self.verdicts_owed == 0 {
                    self.verdicts_due = now + VERDICT_DELAY;
                }
                self.verdicts_owed += 1;
            }
            Answer::Failed(_) => self.totals.failed += 1,
            Answer::Refused(Refused::Late) => self.totals.expired += 1,
            Answer::Refused(_) => self.totals.refused += 1,
        }
        slot.state = SlotState::Free;
        slot.due = Time::NEVER;
        self.outstanding -= 1;
        self.free.push(frame.task.slot);
    }

    /// Repeats what is due, retries what was busy, and tells verdicts that found no task to carry
    /// them.
    pub fn handle_timeout(&mut self, now: Time, sink: &mut impl FrameSink, job: &dyn Job) {
        if now >= self.verdicts_due {
            self.tell_verdicts(now, sink);
        }
        if now < self.next_scan {
            return;
        }
        let mut earliest = Time::NEVER;
        for index in 0..self.slots.len() {
            if self.slots[index].state == SlotState::Free {
                continue;
            }
            if self.slots[index].due <= now {
                self.repeat(now, index, sink, job.deadline_us());
            }
            earliest = earliest.min(self.slots[index].due);
        }
        // Answers move deadlines out without moving the scan; looking again a little late is cheap.
        self.next_scan = match earliest {
            Time::NEVER => Time::NEVER,
            due => due.max(now + Duration::from_millis(1)),
        };
    }

    fn repeat(&mut self, now: Time, index: usize, sink: &mut impl FrameSink, deadline_us: u32) {
        let slot = &mut self.slots[index];
        if slot.state == SlotState::BackingOff {
            slot.generation = next_generation(slot.generation);
            slot.state = SlotState::Outstanding;
            slot.working = false;
            slot.sends = 0;
        } else if !slot.working && now.since(self.window_cut_at) > self.rtt.timeout() {
            self.window = (self.window / 2).max(WINDOW_MIN.min(self.window));
            self.window_cut_at = now;
        }
        slot.sends += 1;
        slot.due = now + if slot.working { WORKING_PROBE } else { self.rtt.timeout_after(slot.sends) };
        let slot_number = u16::try_from(index).expect("slots are numbered in 16 bits");
        let task = TaskId { slot: slot_number, generation: slot.generation };
        let head =
            Head { flags: slot.prior, ..Head::task(Kind::Task, self.channel, task, deadline_us) };
        if sink.send(head, &slot.payload) && slot.sends > 1 {
            self.totals.repeated += 1;
        }
    }

    fn tell_verdicts(&mut self, now: Time, sink: &mut impl FrameSink) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.state != SlotState::Free || slot.prior == 0 {
                continue;
            }
            let slot_number = u16::try_from(index).expect("slots are numbered in 16 bits");
            let task = TaskId { slot: slot_number, generation: slot.generation };
            let rejected = u32::from(slot.prior == PRIOR_REJECTED);
            let head = Head::task(Kind::Verdict, self.channel, task, rejected);
            if !sink.send(head, &[]) {
                self.verdicts_due = now + Duration::from_millis(1);
                return;
            }
            slot.prior = 0;
            self.verdicts_owed -= 1;
        }
        self.verdicts_due = Time::NEVER;
    }

    /// Gives every task that is still out to the job as `reason`: the channel has ended.
    pub fn abandon(&mut self, now: Time, reason: Refused, job: &mut dyn Job) {
        self.ended = true;
        for slot in &mut self.slots {
            if slot.state == SlotState::Free {
                continue;
            }
            slot.state = SlotState::Free;
            let round_trip_ns = now.nanos_since(slot.first_sent);
            self.totals.refused += 1;
            job.answer(
                slot.token,
                Answer::Refused(reason),
                Timing { round_trip_ns, busy_ns: 0 },
            );
        }
        self.outstanding = 0;
        self.next_scan = Time::NEVER;
        self.verdicts_due = Time::NEVER;
    }

    /// Anything at all came from the worker.
    pub fn heard(&mut self, now: Time) {
        self.last_heard = now;
    }
}

fn refused(frame: &Frame<'_>) -> Option<Refused> {
    Some(match RefusalCode::from_wire(frame.flags)? {
        RefusalCode::Busy => Refused::Busy { retry_after_us: frame.auxiliary },
        RefusalCode::Late => Refused::Late,
        RefusalCode::TooBig => Refused::TooBig,
        RefusalCode::NoSkill => Refused::NoSkill,
        RefusalCode::GrantEnded => Refused::GrantEnded,
        RefusalCode::ReceiptDue => Refused::ReceiptDue,
        RefusalCode::Draining => Refused::Draining,
        RefusalCode::Cancelled => Refused::Cancelled,
    })
}
