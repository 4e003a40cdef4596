//! What waits for time: repeats, retries, and verdicts that found no task to carry them.

use core::time::Duration;

use super::{Requesting, SlotState, WORKING_PROBE, task_head};
use crate::engagement::FrameSink;
use crate::engagement::congestion::Congestion;
use crate::engagement::serving::next_generation;
use crate::frame::kind::{Kind, PRIOR_REJECTED};
use crate::frame::{Head, TaskId};
use crate::time::Time;
use crate::wire::limits::FRAME_HEADER_LEN;

impl Requesting {
    /// Repeats what is due, retries what was busy, and tells verdicts that found no task to carry
    /// them.
    pub fn handle_timeout(&mut self, now: Time, path: &mut Congestion, sink: &mut impl FrameSink) {
        if now >= self.verdicts_due {
            self.tell_verdicts(now, sink);
        }
        if now < self.next_scan {
            return;
        }
        if self.outstanding == 0 {
            // Every slot is free: none needs to be looked at.
            self.next_scan = Time::NEVER;
            return;
        }
        let mut earliest = Time::NEVER;
        for index in 0..self.slots.len() {
            if self.slots[index].state == SlotState::Free {
                continue;
            }
            if self.slots[index].due <= now {
                self.repeat(now, path, index, sink);
            }
            earliest = earliest.min(self.slots[index].due);
        }
        // Answers move deadlines out without moving the scan; looking again a little late is cheap.
        self.next_scan = match earliest {
            Time::NEVER => Time::NEVER,
            due => due.max(now + Duration::from_millis(1)),
        };
    }

    fn repeat(
        &mut self,
        now: Time,
        path: &mut Congestion,
        index: usize,
        sink: &mut impl FrameSink,
    ) {
        let slot = &mut self.slots[index];
        if slot.state == SlotState::BackingOff {
            slot.generation = next_generation(slot.generation);
            slot.state = SlotState::Outstanding;
            slot.working = false;
            slot.pieces = 0;
            // Its round trip holds the wait, and is no sample of the path.
            slot.sends = 1;
            if slot.long.is_none() {
                slot.counted = true;
                path.task_sent(FRAME_HEADER_LEN + slot.payload.len());
            }
        } else if slot.counted {
            // The time-out that has passed began with its last send.
            let waited = self.rtt.timeout_after(slot.sends);
            path.task_timed_out(now, now.before(waited));
        }
        slot.sends += 1;
        slot.due = now
            + if slot.working {
                WORKING_PROBE
            } else {
                self.rtt.timeout_after(slot.sends)
            };
        let slot_number = u16::try_from(index).expect("slots are numbered in 16 bits");
        if slot.long.is_some() || slot.parts_in.is_some() {
            self.ask(now, path, slot_number, sink);
            return;
        }
        let head = task_head(
            Kind::Task,
            self.channel,
            slot_number,
            slot,
            slot.deadline_us,
        );
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
            let task = TaskId {
                slot: slot_number,
                generation: slot.generation,
            };
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
}
