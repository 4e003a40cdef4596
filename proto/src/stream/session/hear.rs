//! What each packet does to a stream.

use super::{Event, FIN_HELD, Session, State};
use crate::engagement::congestion::Congestion;
use crate::fault::DropReason;
use crate::stream::sack::{self, RANGES_MAX};
use crate::stream::send::Heard;
use crate::stream::{SegmentHead, extend, wire_of};
use crate::time::Time;
use crate::wire::header::{FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN};

impl Session {
    /// A packet of this stream.
    ///
    /// # Errors
    /// Why nothing was done with it, though it may be answered.
    pub fn receive(
        &mut self,
        now: Time,
        head: &SegmentHead,
        payload: &[u8],
        path: &mut Congestion,
        allowance: usize,
    ) -> Result<(), DropReason> {
        self.packets_received += 1;
        if head.flags & FLAG_RST != 0 {
            return self.receive_reset(path);
        }
        self.heard_at = now;
        match (head.flags & FLAG_SYN != 0, head.flags & FLAG_ACK != 0) {
            (true, true) => self.receive_syn_ack(now, head, payload, allowance),
            (true, false) => {
                self.due.syn_ack = self.accepted && self.state != State::TimeWait;
                Err(DropReason::Duplicate)
            }
            _ if head.flags & FLAG_FIN != 0 => self.receive_fin(now, head, path),
            (false, true) => self.receive_data(now, head, payload, path),
            (false, false) => Err(DropReason::OutOfOrder),
        }
    }

    fn receive_reset(&mut self, path: &mut Congestion) -> Result<(), DropReason> {
        match self.state {
            State::SynSent => self.end(Event::Refused, path),
            State::Established => self.end(Event::Reset, path),
            State::Closing if !self.sending.is_done() => self.end(Event::Cut, path),
            State::Closing | State::FinWait => self.end(Event::Closed, path),
            State::TimeWait => self.vanish(path),
            State::Gone => return Err(DropReason::Duplicate),
        }
        Ok(())
    }

    fn receive_syn_ack(
        &mut self,
        now: Time,
        head: &SegmentHead,
        payload: &[u8],
        allowance: usize,
    ) -> Result<(), DropReason> {
        let answers = head.acknowledgment == wire_of(self.own_first + 1);
        if self.state != State::SynSent || !answers {
            // Our answer to it was lost.
            self.receiving.owe();
            return Err(DropReason::Duplicate);
        }
        if self.sends == 1 {
            self.sending.sample(now.since(self.spoke_at));
        }
        self.open(now, head, payload, allowance);
        self.receiving.owe();
        self.state = State::Established;
        self.connected = true;
        self.since = now;
        (self.again_at, self.until, self.sends) = (Time::NEVER, Time::NEVER, 0);
        Ok(())
    }

    fn receive_fin(
        &mut self,
        now: Time,
        head: &SegmentHead,
        path: &mut Congestion,
    ) -> Result<(), DropReason> {
        let answered = head.flags & FLAG_ACK != 0;
        match self.state {
            State::Established | State::Closing => {
                let number = extend(self.receiving.next(), head.sequence);
                if self.receiving.finish(number) {
                    self.finished(now, path);
                } else {
                    self.until = self.until.min(now + FIN_HELD);
                }
                Ok(())
            }
            State::FinWait => {
                let number = extend(self.receiving.next(), head.sequence);
                self.receiving.finish(number.min(self.receiving.next()));
                self.due.fin_ack = true;
                self.rest(now, Event::Closed, path);
                Ok(())
            }
            // Older daemons answer every FIN: only the one that cannot be an answer is answered.
            State::TimeWait if !answered => {
                self.due.fin_ack = true;
                Err(DropReason::Duplicate)
            }
            State::TimeWait | State::SynSent | State::Gone => Err(DropReason::OutOfOrder),
        }
    }

    /// The peer's FIN, and everything before it, is here.
    pub(super) fn finished(&mut self, now: Time, path: &mut Congestion) {
        self.due.fin_ack = true;
        let event = match self.state {
            State::Closing if self.sending.is_done() => Event::Closed,
            State::Closing => Event::Cut,
            _ => Event::Finished,
        };
        self.rest(now, event, path);
    }

    fn receive_data(
        &mut self,
        now: Time,
        head: &SegmentHead,
        payload: &[u8],
        path: &mut Congestion,
    ) -> Result<(), DropReason> {
        if !matches!(
            self.state,
            State::Established | State::Closing | State::FinWait
        ) {
            return Err(DropReason::OutOfOrder);
        }
        let sequence = extend(self.receiving.next(), head.sequence);
        let acknowledgment = extend(self.sending.acknowledgment(), head.acknowledgment);
        let mut ranges = [(0, 0); RANGES_MAX];
        let told = sack::read(
            payload,
            self.sending.acknowledgment(),
            self.sending.next(),
            &mut ranges,
        );
        let heard = Heard {
            acknowledgment,
            ranges: &ranges[..told.unwrap_or(0)],
            window: head.window,
            sequence,
        };
        let of_fin = self.fin_sent && acknowledgment == self.sending.next() + 1;
        if !self.sending.acknowledge(now, &heard, path) && !of_fin {
            return Err(DropReason::OutOfOrder);
        }
        if told.is_some() || payload.is_empty() {
            self.receiving.bare();
            return Ok(());
        }
        let taken = self.receiving.accept(now, sequence, payload);
        if self.state != State::Established {
            // Nobody reads any more.
            self.receiving.discard();
        }
        if self.receiving.is_finished() && self.state != State::FinWait {
            self.finished(now, path);
        }
        taken
    }
}
