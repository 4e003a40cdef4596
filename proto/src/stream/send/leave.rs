//! Which segments leave, and how they are cut.

use core::time::Duration;

use bytes::{Bytes, BytesMut};

use super::{Fate, Pace, Segment, Sending, Sent, TAIL_HELD_MAX};
use crate::engagement::congestion::{Congestion, Held};
use crate::stream::sack::MAGIC;
use crate::stream::{SEGMENTS_FOREIGN_MAX, SegmentHead, SegmentSink, wire_of};
use crate::time::Time;

/// Pause before a closed window is asked about with a segment, doubled each time.
const PROBE_MIN: Duration = Duration::from_millis(500);
const PROBE_MAX: Duration = Duration::from_secs(5);

impl Sending {
    /// Lets leave what may: lost segments first, then new ones of at most `len_max` bytes.
    pub(in crate::stream) fn transmit(
        &mut self,
        now: Time,
        path: &mut Congestion,
        len_max: usize,
        quota: &mut usize,
        head: SegmentHead,
        sink: &mut dyn SegmentSink,
    ) -> Sent {
        let mut index = 0;
        while self.lost > 0 && index < self.segments.len() {
            if self.segments[index].fate == Fate::Lost {
                if !self.foreign && self.segments[index].bytes.len() > len_max {
                    self.split(index, len_max);
                }
                match self.send(now, index, path, quota, head, sink) {
                    Sent::All => {}
                    other => return other,
                }
            }
            index += 1;
        }
        while self.unsent_len > 0 {
            let Some(len) = self.permitted(len_max) else {
                self.watch_window(now);
                return Sent::All;
            };
            if self.holds_tail(now, len) {
                self.pace_at = self.tail_held_until;
                return Sent::All;
            }
            if !self.may_send(now, len, path) {
                return self.held();
            }
            let bytes = self.cut(len);
            let start = self.next;
            self.next += bytes.len() as u64;
            if bytes.len() < len {
                self.short_end = self.next;
                self.tail_held_until = now + TAIL_HELD_MAX;
            }
            self.lost += 1;
            self.segments.push_back(Segment {
                start,
                bytes,
                first_at: now,
                sent_at: now,
                order: self.orders,
                sends: 0,
                fate: Fate::Lost,
            });
            match self.send(now, self.segments.len() - 1, path, quota, head, sink) {
                Sent::All => {}
                other => return other,
            }
        }
        Sent::All
    }

    /// Sends one segment that waits for it.
    fn send(
        &mut self,
        now: Time,
        index: usize,
        path: &mut Congestion,
        quota: &mut usize,
        head: SegmentHead,
        sink: &mut dyn SegmentSink,
    ) -> Sent {
        let len = self.segments[index].bytes.len();
        if *quota == 0 {
            return Sent::Partly;
        }
        if !self.may_send(now, len, path) {
            return self.held();
        }
        let segment = &mut self.segments[index];
        let head = SegmentHead {
            sequence: wire_of(segment.start),
            ..head
        };
        if !sink.put(head, &segment.bytes) {
            return Sent::Partly;
        }
        *quota = quota.saturating_sub(len);
        self.forced = self.forced.saturating_sub(1);
        if segment.sends == 0 {
            self.taken += len;
            self.bytes_sent += len as u64;
        } else {
            self.repeats += 1;
        }
        self.orders += 1;
        segment.sends += 1;
        segment.sent_at = now;
        segment.order = self.orders;
        segment.fate = Fate::InFlight;
        self.lost -= 1;
        match &mut self.pace {
            Pace::Shared(counted) => path.part_sent(len, counted),
            Pace::Own(_, in_flight) => *in_flight += len,
        }
        if self.timeout_at == Time::NEVER {
            self.timeout_at = now + self.timeout();
        }
        Sent::All
    }

    /// Whether the path takes a segment of this length now.
    fn may_send(&mut self, now: Time, len: usize, path: &mut Congestion) -> bool {
        if self.forced > 0 {
            return true;
        }
        match &self.pace {
            Pace::Shared(_) => match path.may_send_part(now) {
                Ok(()) => true,
                Err(Held::Full) => false,
                Err(Held::Until(at)) => {
                    self.pace_at = at;
                    false
                }
            },
            Pace::Own(window, in_flight) => *in_flight == 0 || in_flight + len <= window.bytes(),
        }
    }

    /// Whether a tail shorter than a segment waits for more (RFC 896): towards other daemons, for which
    /// a segment costs more than its bytes, while a short segment is unacknowledged.
    fn holds_tail(&self, now: Time, len_max: usize) -> bool {
        self.foreign
            && self.forced == 0
            && self.unsent_len < len_max
            && self.short_end > self.acknowledged
            && now < self.tail_held_until
    }

    /// What holds a segment back: the pace, which has its time, or the path.
    fn held(&self) -> Sent {
        match &self.pace {
            // Our own acknowledgments come to us, those of others do not.
            Pace::Shared(counted) if self.pace_at == Time::NEVER && counted.bytes() == 0 => {
                Sent::Held
            }
            _ => Sent::All,
        }
    }

    /// How long a segment the peer's window permits; `None` if it permits none that is worth it.
    fn permitted(&self, len_max: usize) -> Option<usize> {
        let wanted = self.unsent_len.min(len_max);
        if self.foreign {
            let most = usize::from(self.window).min(SEGMENTS_FOREIGN_MAX);
            if self.segments.len() < most {
                return Some(len_max);
            }
        } else {
            let room = usize::try_from(self.edge.saturating_sub(self.next)).unwrap_or(usize::MAX);
            if room >= wanted {
                return Some(len_max);
            }
            if room > 0 && self.segments.is_empty() {
                return Some(room);
            }
        }
        // The question about a closed window is a byte of data: other daemons answer nothing else.
        (self.forced > 0 && self.segments.is_empty()).then_some(1)
    }

    /// The peer's window is closed: it is asked about now and then.
    fn watch_window(&mut self, now: Time) {
        if self.segments.is_empty() && self.probe_at == Time::NEVER {
            let wait = PROBE_MIN
                .saturating_mul(1 << self.probes.min(4))
                .min(PROBE_MAX);
            self.probe_at = now + wait;
        }
    }

    /// Takes the next segment from what is unsent.
    fn cut(&mut self, len_max: usize) -> Bytes {
        let mut first = self.unsent.pop_front().expect("there is something unsent");
        let mut bytes = if first.len() > len_max {
            let bytes = first.split_to(len_max);
            self.unsent.push_front(first);
            bytes
        } else if first.len() == len_max || self.unsent.is_empty() {
            first
        } else {
            self.gather(&first, len_max)
        };
        if bytes.starts_with(&MAGIC) {
            let rest = bytes.split_off(MAGIC.len() - 1);
            self.unsent.push_front(rest);
        }
        self.unsent_len -= bytes.len();
        bytes
    }

    /// Joins small writes.
    fn gather(&mut self, first: &Bytes, len_max: usize) -> Bytes {
        let mut joined = BytesMut::with_capacity(len_max.min(self.unsent_len));
        joined.extend_from_slice(first);
        while joined.len() < len_max
            && let Some(mut more) = self.unsent.pop_front()
        {
            let room = len_max - joined.len();
            let taken = more.split_to(room.min(more.len()));
            joined.extend_from_slice(&taken);
            if !more.is_empty() {
                self.unsent.push_front(more);
            }
        }
        joined.freeze()
    }

    /// Cuts a lost segment that the path does not carry any more.
    fn split(&mut self, index: usize, len_max: usize) {
        let segment = &mut self.segments[index];
        let rest = segment.bytes.split_off(len_max);
        let rest = Segment {
            start: segment.start + len_max as u64,
            bytes: rest,
            ..*segment
        };
        self.segments.insert(index + 1, rest);
        self.lost += 1;
    }
}
