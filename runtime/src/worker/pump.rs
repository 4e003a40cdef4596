//! What leaves in a turn, in its order: first acknowledgments and small tasks, then parts of long
//! payloads and results.
//!
//! Every channel with something to send is on one list, once. A turn goes through the list and begins
//! at another channel each time. Tasks are bounded for each channel; parts are bounded for all
//! together by one train of the kernel and shared out in equal pieces, which for pieces of one length
//! is deficit round robin. So a channel with much to say delays the small tasks of another by one
//! train a turn at the most, on whichever tunnel it is.

use std::collections::VecDeque;

use ramjet_proto::engagement::congestion::Held;
use ramjet_proto::time::Time;

use super::channels::{Channel, End, RequestState, ServeEnd};
use super::rooms::{Rooms, sink};
use crate::control::vocabulary::Report;

/// Tasks that one channel may begin in one turn, so that a turn stays bounded.
const TASKS_MAX: usize = 768;
/// Parts that all channels may send in one turn: what one train holds.
const PARTS_MAX: usize = 48;
/// Fewest parts of a channel in its turn, if it has them: what the longest datagram holds.
const PARTS_MIN: usize = 12;

/// A channel on a list: place and generation.
type Ticket = (u32, u32);

/// The channels with something to send.
#[derive(Default)]
pub struct Active {
    channels: VecDeque<Ticket>,
    /// Of these, the ones with parts, in this turn.
    bulk: Vec<Ticket>,
}

impl Active {
    /// Whether no channel has anything to send.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }
}

impl Rooms {
    /// Puts a channel on the list of those that have something to send each turn.
    pub(super) fn activate(&mut self, place: u32) {
        let Some(ticket) = self.channels.ticket(place) else {
            return;
        };
        if let Some(channel) = self.channels.at_mut(place)
            && !std::mem::replace(&mut channel.active, true)
        {
            self.active.channels.push_back(ticket);
        }
    }

    /// Lets every channel with something to send do so: new tasks of its job, and parts of long
    /// tasks and results. Returns whether any was sent.
    pub(super) fn pump(&mut self, now: Time) -> bool {
        self.outstanding = 0;
        self.polling = false;
        let mut sent = 0;
        for _ in 0..self.active.channels.len() {
            let Some(ticket) = self.active.channels.pop_front() else {
                break;
            };
            if self.pump_channel(now, ticket, &mut sent) {
                self.active.channels.push_back(ticket);
            } else if let Some(channel) = self.channels.redeem(ticket) {
                channel.active = false;
            }
        }
        if self.active.channels.len() > 1 {
            self.active.channels.rotate_left(1);
        }
        if !self.active.bulk.is_empty() {
            sent += self.pump_parts(now);
        }
        self.pump_streams(now) || sent > 0
    }

    /// Acknowledgments and small tasks of one channel; whether it stays on the list.
    fn pump_channel(&mut self, now: Time, ticket: Ticket, sent: &mut usize) -> bool {
        let Some(channel) = self.channels.redeem(ticket) else {
            return false;
        };
        let mut sink = sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        );
        let end = match &mut channel.end {
            End::Request(end) => end,
            End::Serve(ServeEnd { slots: Some(slots) }) => {
                slots.acknowledge(&mut sink);
                if slots.has_parts() {
                    self.active.bulk.push(ticket);
                }
                return slots.has_parts();
            }
            End::Serve(_) => return false,
        };
        let (RequestState::Open, Some(slots), Some(job)) =
            (end.state, &mut end.slots, &mut end.job)
        else {
            return false;
        };
        let path = self.paths.of(channel.tunnel, now);
        *sent += slots.pump(now, path, &mut sink, job.as_mut(), TASKS_MAX);
        self.outstanding += slots.outstanding() as usize;
        self.polling |= slots.is_polling();
        if !slots.is_done() {
            let due = slots.next_timeout();
            if slots.has_parts() {
                self.active.bulk.push(ticket);
            }
            self.channels.wake(ticket.0, due);
            return true;
        }
        // Verdicts that no task will carry go now.
        slots.handle_timeout(now, path, &mut sink);
        end.state = RequestState::Answered;
        let job = end.job.take().expect("matched above");
        let engagement = channel.engagement;
        let report = Report::JobDone {
            engagement,
            totals: *slots.totals(),
            job,
        };
        self.reporter.report(&self.counters, report);
        false
    }

    /// Parts of the channels that have any: equal pieces of what a turn may send; how many went.
    fn pump_parts(&mut self, now: Time) -> usize {
        let mut bulk = std::mem::take(&mut self.active.bulk);
        let mut left = PARTS_MAX;
        self.pacing_due = Time::NEVER;
        while left > 0 && !bulk.is_empty() {
            let piece = (left / bulk.len()).max(PARTS_MIN);
            bulk.retain(|ticket| {
                let wanted = piece.min(left);
                let went = self.parts_of(now, *ticket, wanted);
                left -= went;
                // Who sent less than it might is held back, or has no more.
                went == wanted && wanted > 0
            });
        }
        bulk.clear();
        self.active.bulk = bulk;
        PARTS_MAX - left
    }

    fn parts_of(&mut self, now: Time, ticket: Ticket, wanted: usize) -> usize {
        let Some(channel) = self.channels.redeem(ticket) else {
            return 0;
        };
        let Channel { tunnel, end, .. } = channel;
        let mut sink = sink(&mut self.outbox, &mut self.send, *tunnel, self.packing);
        let path = self.paths.of(*tunnel, now);
        let (went, more, due) = match end {
            End::Request(end) => match (&mut end.slots, &end.job) {
                (Some(slots), Some(_)) => {
                    let went = slots.pump_parts(now, path, &mut sink, wanted);
                    (went, slots.has_parts(), slots.next_timeout())
                }
                _ => (0, false, Time::NEVER),
            },
            End::Serve(ServeEnd { slots: Some(slots) }) => {
                let went = slots.pump_parts(now, path, &mut sink, wanted);
                (went, slots.has_parts(), Time::NEVER)
            }
            End::Serve(_) => (0, false, Time::NEVER),
        };
        self.channels.wake(ticket.0, due);
        if more && let Err(Held::Until(due)) = path.may_send_part(now) {
            self.pacing_due = self.pacing_due.min(due);
        }
        went
    }
}
