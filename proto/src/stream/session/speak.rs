//! What a stream sends.

use super::{Event, FIN_SENDS_MAX, SYN_AGAIN, SYN_AGAIN_MAX, Session, Spoken, State, WINDOW_SYN};
use crate::engagement::congestion::Congestion;
use crate::stream::options::OPTIONS;
use crate::stream::sack::{self, RANGES_MAX, SACK_LEN_MAX};
use crate::stream::send::Sent;
use crate::stream::{SEGMENT_LEN_FOREIGN, SegmentHead, SegmentSink, wire_of};
use crate::time::Time;
use crate::wire::header::{FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN};

impl Session {
    /// Sends what may leave, of new data at most `quota` bytes in segments of at most `len_max`.
    pub fn transmit(
        &mut self,
        now: Time,
        path: &mut Congestion,
        len_max: usize,
        quota: &mut usize,
        sink: &mut dyn SegmentSink,
    ) -> Spoken {
        if !self.transmit_marks(now, path, sink) {
            return Spoken::Partly;
        }
        if !matches!(
            self.state,
            State::Established | State::Closing | State::FinWait
        ) {
            return Spoken::All;
        }
        let len_max = if self.foreign {
            len_max.min(SEGMENT_LEN_FOREIGN)
        } else {
            len_max
        };
        let head = self.head();
        let before = self.sending.orders();
        let sent = self.sending.transmit(now, path, len_max, quota, head, sink);
        if self.sending.orders() > before {
            self.spoke_at = now;
            if !self.receiving.has_gap() {
                self.receiving.acknowledged();
            }
        }
        if !self.transmit_acknowledgments(now, head, sink) || !self.transmit_fin(now, path, sink) {
            return Spoken::Partly;
        }
        match sent {
            Sent::All => Spoken::All,
            Sent::Partly => Spoken::Partly,
            Sent::Held => Spoken::Held,
        }
    }

    fn head(&mut self) -> SegmentHead {
        SegmentHead {
            flags: FLAG_ACK,
            sequence: self.sequence(),
            acknowledgment: wire_of(self.receiving.acknowledgment()),
            window: self.receiving.window(),
        }
    }

    /// The number of what we send next.
    fn sequence(&self) -> u32 {
        wire_of(self.sending.next() + u64::from(self.fin_sent))
    }

    /// SYN, SYN-ACK, FIN-ACK and RST; whether there was room for them.
    fn transmit_marks(
        &mut self,
        now: Time,
        path: &mut Congestion,
        sink: &mut dyn SegmentSink,
    ) -> bool {
        let opening = SegmentHead {
            flags: FLAG_SYN,
            sequence: wire_of(self.own_first),
            acknowledgment: 0,
            window: WINDOW_SYN,
        };
        if self.state == State::SynSent && now >= self.again_at {
            if !sink.put(opening, &OPTIONS) {
                return false;
            }
            self.spoke_at = now;
            let wait = SYN_AGAIN.saturating_mul(1 << self.sends.min(5));
            self.again_at = now + wait.min(SYN_AGAIN_MAX);
            self.sends += 1;
        }
        if self.due.syn_ack {
            let options: &[u8] = if self.foreign { &[] } else { &OPTIONS };
            let head = SegmentHead {
                flags: FLAG_SYN | FLAG_ACK,
                acknowledgment: self.peer_first.wrapping_add(1),
                window: self.receiving.window(),
                ..opening
            };
            if !sink.put(head, options) {
                return false;
            }
            self.spoke_at = now;
            self.due.syn_ack = false;
        }
        if self.due.fin_ack {
            let head = SegmentHead {
                flags: FLAG_FIN | FLAG_ACK,
                window: 0,
                ..self.head()
            };
            if !sink.put(head, &[]) {
                return false;
            }
            self.due.fin_ack = false;
        }
        if self.due.reset {
            let head = SegmentHead {
                flags: FLAG_RST,
                ..SegmentHead::default()
            };
            if !sink.put(head, &[]) {
                return false;
            }
            self.due.reset = false;
            self.sending.abandon(path);
        }
        true
    }

    /// ACKs without data; whether there was room for them.
    fn transmit_acknowledgments(
        &mut self,
        now: Time,
        head: SegmentHead,
        sink: &mut dyn SegmentSink,
    ) -> bool {
        let head = SegmentHead {
            sequence: self.sequence(),
            ..head
        };
        let due = self.receiving.due(now);
        if due > 0 {
            let mut ranges = [(0, 0); RANGES_MAX];
            let mut payload = [0; SACK_LEN_MAX];
            let len = match self.receiving.ranges(&mut ranges) {
                0 => 0,
                count => sack::write(&ranges[..count], &mut payload),
            };
            for _ in 0..due {
                if !sink.put(head, &payload[..len]) {
                    return false;
                }
            }
            self.receiving.acknowledged();
            self.spoke_at = now;
        }
        if std::mem::take(&mut self.due.ask) {
            // A byte from before what the peer expects: it is dropped and answered by an ACK, which
            // a bare ACK is not.
            let head = SegmentHead {
                sequence: wire_of(self.sending.next() - 1),
                ..head
            };
            self.spoke_at = now;
            return sink.put(head, &[0]);
        }
        true
    }

    fn transmit_fin(
        &mut self,
        now: Time,
        path: &mut Congestion,
        sink: &mut dyn SegmentSink,
    ) -> bool {
        if self.state == State::Closing && (self.sending.is_done() || now >= self.until) {
            if !self.sending.is_done() {
                self.tell(Event::Cut);
                self.sending.abandon(path);
            }
            self.state = State::FinWait;
            (self.again_at, self.until) = (now, Time::NEVER);
        }
        if self.state != State::FinWait || now < self.again_at || self.sends >= FIN_SENDS_MAX {
            return true;
        }
        let head = SegmentHead {
            flags: FLAG_FIN,
            sequence: wire_of(self.sending.next()),
            acknowledgment: 0,
            window: 0,
        };
        if !sink.put(head, &[]) {
            return false;
        }
        self.spoke_at = now;
        self.fin_sent = true;
        self.again_at = now + self.sending.timeout().saturating_mul(1 << self.sends);
        self.sends += 1;
        true
    }
}
