//! Everything on a channel that waits for time: repeats, receipts, reports, silence.
//!
//! Each channel is looked at when its own deadline has come, and at most once a millisecond: nothing
//! here is finer than that. A channel that rests costs nothing, so that thousands may.

use core::time::Duration;

use ramjet_proto::engagement::{FrameSink, Totals};
use ramjet_proto::frame::Head;
use ramjet_proto::frame::kind::{CloseReason, FROM_WORKER, Kind};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::Tunnels;

use super::channels::{Channel, End, RequestState, ServeEnd};
use super::rooms::{Rooms, sink};
use crate::control::vocabulary::{Report, Side};

/// How often control hears how a moving engagement stands.
pub(super) const REPORT_EVERY: Duration = Duration::from_millis(200);
/// A channel that we serve ends when its requester is silent for this long.
pub(super) const SERVE_SILENCE: Duration = Duration::from_secs(60);
/// A requester that hears nothing says PING this often.
pub(super) const PING_EVERY: Duration = Duration::from_secs(15);
/// First repeat of OPEN, CLOSE and RECEIPT; doubled each time.
const REPEAT_AFTER: Duration = Duration::from_millis(250);
/// OPEN without an answer for this long means that the worker is lost.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// CLOSE without an answer this often ends the channel all the same.
const CLOSE_SENDS_MAX: u32 = 4;
/// Finest grain of these timers.
const GRAIN: Duration = Duration::from_millis(1);
/// Channels whose timers run in one turn, so that a turn stays bounded.
const CHANNELS_PER_TURN: usize = 256;

/// What is to be done with a channel after its timers ran.
enum Due {
    Keep(Time),
    End(CloseReason),
}

impl Rooms {
    /// Runs what is due on every channel.
    pub(super) fn run_timers(&mut self, now: Time, tunnels: &Tunnels) {
        for _ in 0..CHANNELS_PER_TURN {
            let Some(place) = self.channels.pop_due(now) else {
                return;
            };
            let Some(channel) = self.channels.at(place) else {
                continue;
            };
            let due = match channel.end {
                End::Request(_) => self.request_timers(now, place, tunnels),
                End::Serve(_) => self.serve_timers(now, place),
            };
            match due {
                Due::Keep(due) => {
                    let due = due.min(self.path_timer(now, place));
                    self.channels.wake(place, due.max(now + GRAIN));
                }
                Due::End(reason) => self.end(place, reason),
            }
        }
    }

    fn path_timer(&mut self, now: Time, place: u32) -> Time {
        match self.channels.at(place) {
            Some(channel) => {
                let (tunnel, last_heard) = (channel.tunnel, channel.last_heard);
                self.search_path(now, tunnel, last_heard)
            }
            None => Time::NEVER,
        }
    }

    fn serve_timers(&mut self, now: Time, place: u32) -> Due {
        let channel = self.channels.at_mut(place).expect("walked by the caller");
        let silent_at = channel.last_heard + SERVE_SILENCE;
        if now >= silent_at {
            return Due::End(CloseReason::Lost);
        }
        let End::Serve(ServeEnd { slots: Some(_) }) = &channel.end else {
            return Due::Keep(silent_at);
        };
        if now >= channel.report_due
            && let Some(report) = progress(channel, false)
        {
            self.reporter.report(&self.counters, report);
        }
        Due::Keep(silent_at.min(channel.report_due))
    }

    fn request_timers(&mut self, now: Time, place: u32, tunnels: &Tunnels) -> Due {
        let channel = self.channels.at_mut(place).expect("walked by the caller");
        let End::Request(end) = &mut channel.end else {
            return Due::Keep(Time::NEVER);
        };
        if end.state == RequestState::Opening {
            return self.repeat_open(now, place, tunnels);
        }
        if let RequestState::Closing(reason) = end.state {
            return self.repeat_close(now, place, reason);
        }
        let mut sink = sink(
            &mut self.outbox,
            &mut self.send,
            channel.tunnel,
            self.packing,
        );
        let (mut next, mut repeats) = (Time::NEVER, false);
        if let (Some(slots), Some(_)) = (&mut end.slots, &end.job) {
            let path = self.paths.of(channel.tunnel, now);
            let repeated = slots.totals().repeated;
            slots.handle_timeout(now, path, &mut sink);
            repeats = slots.totals().repeated > repeated;
            if slots.is_lost(now) {
                return Due::End(CloseReason::Lost);
            }
            next = next.min(slots.next_timeout());
        }
        if let Some(receipt) = &mut end.receipt {
            if now >= receipt.due {
                sink.send(
                    Head::channel(Kind::Receipt, channel.channel, 0),
                    &receipt.bytes[..],
                );
                receipt.sends += 1;
                receipt.due = now + REPEAT_AFTER * (1 << receipt.sends.min(4)) / 2;
            }
            next = next.min(receipt.due);
        }
        if now >= end.handshake_due {
            if now.since(channel.last_heard) >= SERVE_SILENCE {
                return Due::End(CloseReason::Lost);
            }
            if now.since(channel.last_heard) >= PING_EVERY {
                sink.send(Head::channel(Kind::Ping, channel.channel, 0), &[]);
            }
            end.handshake_due = now + PING_EVERY;
        }
        next = next.min(end.handshake_due);
        if repeats {
            self.outbox.path(channel.tunnel).suspect();
        }
        let covered = end.receipts_cover;
        let due_after = (end.unsigned_max / 4).max(1);
        let answered = channel.totals();
        let unsigned = answers(&answered).saturating_sub(covered);
        let receipt_due = unsigned >= due_after;
        if now >= channel.report_due || receipt_due {
            if receipt_due && let End::Request(end) = &mut channel.end {
                end.receipts_cover = answers(&answered);
            }
            if let Some(report) = progress(channel, receipt_due) {
                self.reporter.report(&self.counters, report);
            }
        }
        Due::Keep(next.min(channel.report_due))
    }

    fn repeat_open(&mut self, now: Time, place: u32, tunnels: &Tunnels) -> Due {
        let channel = self.channels.at_mut(place).expect("walked by the caller");
        if now.since(channel.last_heard) >= OPEN_TIMEOUT {
            return Due::End(CloseReason::Lost);
        }
        let End::Request(end) = &mut channel.end else {
            return Due::Keep(Time::NEVER);
        };
        if now >= end.handshake_due && tunnels.is_established(channel.tunnel) {
            let head = Head::channel(Kind::Open, channel.channel, channel.terms.credits);
            let mut sink = sink(
                &mut self.outbox,
                &mut self.send,
                channel.tunnel,
                self.packing,
            );
            sink.send(head, &end.grant);
            end.handshake_due = now + REPEAT_AFTER * (1 << end.handshakes.min(3));
            end.handshakes += 1;
        }
        // A tunnel that comes up wakes the timers; until then a look now and then is enough.
        Due::Keep(end.handshake_due.max(now + Duration::from_millis(5)))
    }

    fn repeat_close(&mut self, now: Time, place: u32, reason: CloseReason) -> Due {
        let channel = self.channels.at_mut(place).expect("walked by the caller");
        let End::Request(end) = &mut channel.end else {
            return Due::Keep(Time::NEVER);
        };
        if now >= end.handshake_due {
            if end.handshakes >= CLOSE_SENDS_MAX {
                return Due::End(reason);
            }
            let head = Head::channel(Kind::Close, channel.channel, reason as u32);
            sink(
                &mut self.outbox,
                &mut self.send,
                channel.tunnel,
                self.packing,
            )
            .send(head, &[]);
            end.handshake_due = now + REPEAT_AFTER * (1 << end.handshakes);
            end.handshakes += 1;
        }
        Due::Keep(end.handshake_due)
    }

    /// Control ends an engagement.
    pub(super) fn close(&mut self, now: Time, place: u32, reason: CloseReason) {
        let Some(channel) = self.channels.at_mut(place) else {
            return;
        };
        match &mut channel.end {
            End::Request(end) if end.state == RequestState::Opening && end.handshakes == 0 => {
                self.end(place, reason);
            }
            End::Request(end) => {
                end.state = RequestState::Closing(reason);
                end.handshake_due = now;
                end.handshakes = 0;
                if let (Some(slots), Some(job)) = (&mut end.slots, &mut end.job) {
                    let path = self.paths.of(channel.tunnel, now);
                    slots.abandon(now, path, crate::job::Refused::Cancelled, job.as_mut());
                }
                self.channels.wake(place, now);
            }
            End::Serve(_) => {
                let (tunnel, number) = (channel.tunnel, channel.channel);
                let head =
                    Head::channel(Kind::Close, number, reason as u32).with_flags(FROM_WORKER);
                sink(&mut self.outbox, &mut self.send, tunnel, self.packing).send(head, &[]);
                self.end(place, reason);
            }
        }
    }
}

fn answers(totals: &Totals) -> u64 {
    totals.done + totals.failed + totals.expired
}

/// How a channel stands, if that is news.
fn progress(channel: &mut Channel, receipt_due: bool) -> Option<Report> {
    let totals = channel.totals();
    // The next frame says when to look again.
    channel.report_due = Time::NEVER;
    if totals == channel.reported && !receipt_due {
        return None;
    }
    channel.reported = totals;
    let side = channel.side();
    Some(Report::Progress {
        engagement: channel.engagement,
        side,
        totals,
        receipt_due: receipt_due && side == Side::Requester,
    })
}
