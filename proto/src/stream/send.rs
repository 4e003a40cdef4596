//! What was written: segments, their repeats, what the peer and the path allow.
//!
//! A segment is *in flight*, *lost*, or *arrived* beyond a gap, until the peer acknowledges it. Lost
//! is what three segments that were sent later have overtaken (RFC 9002, 6.1.1, by order of sending,
//! so that repeats are told apart from what they repeat), and everything after a time-out. A path
//! that reorders raises the three.

mod leave;

use core::time::Duration;
use std::collections::VecDeque;

use bytes::Bytes;

use super::options::{MEASURED_LEN_MIN, WINDOW_UNIT};
use super::round_trip::RoundTrip;
use super::sack::Range;
use super::window::Window;
use crate::engagement::congestion::{Congestion, Counted};
use crate::time::Time;

/// Segments sent later that must arrive before one is taken for lost.
const REORDERING_MIN: u64 = 3;
const REORDERING_MAX: u64 = 64;
/// How long a short tail waits at most for the acknowledgment of the short segment before it. Other
/// daemons acknowledge a lone one only after up to 40 ms; a reply carries its acknowledgment at once.
const TAIL_HELD_MAX: Duration = Duration::from_millis(1);
/// A stream ends when its oldest segment was sent this often …
const SENDS_MAX: u32 = 8;
/// … and nothing was heard for so long.
const SILENCE_MAX: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    InFlight,
    Lost,
    Arrived,
}

#[derive(Debug)]
struct Segment {
    start: u64,
    bytes: Bytes,
    first_at: Time,
    sent_at: Time,
    /// Place of its last send among all sends.
    order: u64,
    sends: u32,
    fate: Fate,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// What decides how much may be in flight.
#[derive(Debug)]
enum Pace {
    /// The tunnel's controller; what this stream has in flight.
    Shared(Counted),
    /// A window of this stream; bytes in flight.
    Own(Window, usize),
}

/// What a call of [`Sending::transmit`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// All that may leave now has left.
    All,
    /// There was no room for more packets, or the quota is used up.
    Partly,
    /// The path is full with what others sent.
    Held,
}

/// What an acknowledgment says.
pub(super) struct Heard<'r> {
    pub(super) acknowledgment: u64,
    pub(super) ranges: &'r [Range],
    pub(super) window: u16,
    /// Number of the packet that told it: an older one does not move the window back.
    pub(super) sequence: u64,
}

/// The newest of what one acknowledgment showed to have arrived.
#[derive(Clone, Copy, Default)]
struct Newest {
    order: u64,
    round_trip: Option<Duration>,
    /// Length of that segment.
    newest_len: usize,
    /// Bytes of all.
    len: usize,
}

/// The sending half of a stream.
#[derive(Debug)]
pub(super) struct Sending {
    acknowledged: u64,
    next: u64,
    unsent: VecDeque<Bytes>,
    unsent_len: usize,
    segments: VecDeque<Segment>,
    lost: usize,
    arrived: usize,
    foreign: bool,
    window: u16,
    window_from: u64,
    edge: u64,
    /// Sends so far.
    orders: u64,
    arrived_order: u64,
    reordering: u64,
    /// Losses of sends before this one are paid for.
    paid_order: u64,
    backoffs: u32,
    timeout_at: Time,
    pace_at: Time,
    probe_at: Time,
    probes: u32,
    /// Sends that nothing holds back.
    forced: u32,
    heard_at: Time,
    round_trip: RoundTrip,
    pace: Pace,
    /// End of the last segment that was shorter than it could be, and until when it is waited for.
    short_end: u64,
    tail_held_until: Time,
    taken: usize,
    bytes_sent: u64,
    repeats: u64,
}

impl Sending {
    /// Nothing was written; the first byte is number `next`.
    pub(super) fn new(now: Time, next: u64) -> Self {
        Sending {
            acknowledged: next,
            next,
            unsent: VecDeque::new(),
            unsent_len: 0,
            segments: VecDeque::new(),
            lost: 0,
            arrived: 0,
            foreign: true,
            window: 0,
            window_from: 0,
            edge: next,
            orders: 0,
            arrived_order: 0,
            reordering: REORDERING_MIN,
            paid_order: 0,
            backoffs: 0,
            timeout_at: Time::NEVER,
            pace_at: Time::NEVER,
            probe_at: Time::NEVER,
            probes: 0,
            forced: 0,
            heard_at: now,
            round_trip: RoundTrip::default(),
            pace: Pace::Own(Window::new(), 0),
            short_end: next,
            tail_held_until: Time::ZERO,
            taken: 0,
            bytes_sent: 0,
            repeats: 0,
        }
    }

    /// The peer has answered: what it is, and what it allows.
    pub(super) fn open(&mut self, now: Time, foreign: bool, window: u16) {
        self.foreign = foreign;
        self.heard_at = now;
        if !foreign {
            self.pace = Pace::Shared(Counted::default());
        }
        self.allow(window);
    }

    fn allow(&mut self, window: u16) {
        self.window = window;
        let edge = self.acknowledged + u64::from(window) * WINDOW_UNIT as u64;
        self.edge = self.edge.max(edge);
    }

    /// Takes the round trip of SYN.
    pub(super) fn sample(&mut self, time: Duration) {
        self.round_trip.sample(time);
    }

    /// Bytes to send, in order.
    pub(super) fn write(&mut self, bytes: Bytes) {
        self.unsent_len += bytes.len();
        self.unsent.push_back(bytes);
    }

    /// Number of the next byte to send for the first time.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Number of the first byte that is not acknowledged.
    pub(super) fn acknowledgment(&self) -> u64 {
        self.acknowledged
    }

    /// Bytes that were written and have not left.
    pub(super) fn unsent(&self) -> usize {
        self.unsent_len
    }

    /// Whether everything written is acknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.segments.is_empty() && self.unsent_len == 0
    }

    /// Bytes that have left for the first time since the last call.
    pub(super) fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.taken)
    }

    /// Bytes that have left for the first time since [`Self::take_sent`] was called.
    pub(super) fn sent(&self) -> usize {
        self.taken
    }

    /// Nothing will be sent any more; the path is given back what it counted.
    pub(super) fn abandon(&mut self, path: &mut Congestion) {
        if let Pace::Shared(counted) = &mut self.pace {
            path.parts_forgotten(counted);
        }
        self.segments.clear();
        self.unsent.clear();
        self.backoffs = 0;
        (self.unsent_len, self.lost, self.arrived) = (0, 0, 0);
        self.timeout_at = Time::NEVER;
        self.pace_at = Time::NEVER;
        self.probe_at = Time::NEVER;
    }

    /// Segments sent so far, repeats included.
    pub(super) fn orders(&self) -> u64 {
        self.orders
    }

    /// Of these, repeats.
    pub(super) fn repeats(&self) -> u64 {
        self.repeats
    }

    pub(super) fn timeout(&self) -> Duration {
        self.round_trip.timeout(self.foreign, self.backoffs)
    }

    pub(super) fn next_timeout(&self) -> Time {
        self.timeout_at.min(self.pace_at).min(self.probe_at)
    }

    /// Whether the peer must be taken for gone.
    pub(super) fn is_hopeless(&self, now: Time) -> bool {
        self.segments.front().is_some_and(|oldest| {
            oldest.sends >= SENDS_MAX
                && now.since(oldest.first_at.max(self.heard_at)) >= SILENCE_MAX
        })
    }

    // ---- what arrives ------------------------------------------------------------------------

    /// An acknowledgment; whether it can be one.
    pub(super) fn acknowledge(
        &mut self,
        now: Time,
        heard: &Heard<'_>,
        path: &mut Congestion,
    ) -> bool {
        if heard.acknowledgment > self.next {
            return false;
        }
        self.heard_at = now;
        let before = self.acknowledged;
        let mut newest = Newest::default();
        while let Some(segment) = self.segments.front()
            && segment.end() <= heard.acknowledgment
        {
            let segment = self.segments.pop_front().expect("looked at");
            self.arrived -= usize::from(segment.fate == Fate::Arrived);
            self.note(now, &segment, path, &mut newest);
        }
        self.acknowledged = before.max(heard.acknowledgment);
        for range in heard.ranges {
            self.mark(now, *range, path, &mut newest);
        }
        self.take_window(heard);
        if newest.len > 0 || self.acknowledged > before {
            self.progress(now, newest, path);
        }
        true
    }

    /// Marks what lies within a range as arrived.
    fn mark(&mut self, now: Time, range: Range, path: &mut Congestion, newest: &mut Newest) {
        let (left, right) = range;
        let mut index = self
            .segments
            .partition_point(|segment| segment.start < left);
        while let Some(segment) = self.segments.get_mut(index)
            && segment.end() <= right
        {
            index += 1;
            if segment.fate == Fate::Arrived || segment.sends == 0 {
                continue;
            }
            let fate = std::mem::replace(&mut segment.fate, Fate::Arrived);
            let copy = Segment {
                bytes: segment.bytes.clone(),
                fate,
                ..*segment
            };
            self.arrived += 1;
            self.note(now, &copy, path, newest);
        }
    }

    /// A segment has arrived that was in flight or lost.
    fn note(&mut self, now: Time, segment: &Segment, path: &mut Congestion, newest: &mut Newest) {
        let len = segment.bytes.len();
        let age = now.since(segment.sent_at);
        let surely_last = segment.sends == 1 || age >= self.round_trip.shortest();
        match segment.fate {
            Fate::Arrived => return,
            Fate::InFlight => match &mut self.pace {
                Pace::Shared(counted) => path.part_arrived(len, counted),
                Pace::Own(_, in_flight) => *in_flight = in_flight.saturating_sub(len),
            },
            Fate::Lost => self.lost -= 1,
        }
        newest.len += len;
        if segment.fate == Fate::Lost && segment.sends == 1 || !surely_last {
            // It was late, not lost.
            let late = self.arrived_order.saturating_sub(segment.order) + 1;
            self.reordering = late.max(self.reordering + 1).min(REORDERING_MAX);
            path.reordered();
        }
        if surely_last && segment.order >= newest.order {
            newest.order = segment.order;
            newest.round_trip = (segment.sends == 1).then_some(age);
            newest.newest_len = len;
        }
    }

    fn take_window(&mut self, heard: &Heard<'_>) {
        if heard.acknowledgment < self.acknowledged || heard.sequence < self.window_from {
            return;
        }
        let was_closed = self.window == 0;
        self.window_from = heard.sequence;
        self.allow(heard.window);
        if was_closed && self.window > 0 {
            self.probes = 0;
            self.probe_at = Time::NEVER;
            // What asked about the closed window was not taken, and is not lost either.
            self.timeout_at = self.timeout_at.min(self.heard_at);
        }
    }

    /// Something is known to have arrived.
    fn progress(&mut self, now: Time, newest: Newest, path: &mut Congestion) {
        self.backoffs = 0;
        if let Some(time) = newest.round_trip {
            self.round_trip.sample(time);
        }
        self.arrived_order = self.arrived_order.max(newest.order);
        self.detect_losses(now, path);
        match &mut self.pace {
            Pace::Shared(_) => {
                let measured = newest.newest_len >= MEASURED_LEN_MIN;
                path.parts_acknowledged(now, newest.round_trip.filter(|_| measured));
            }
            Pace::Own(window, _) if self.arrived_order >= self.paid_order => {
                window.grow(newest.len)
            }
            Pace::Own(..) => {}
        }
        self.timeout_at = if self.segments.is_empty() {
            Time::NEVER
        } else {
            now + self.timeout()
        };
    }

    fn detect_losses(&mut self, now: Time, path: &mut Congestion) {
        for index in 0..self.segments.len() {
            let segment = &self.segments[index];
            let overtaken = segment.order + self.reordering <= self.arrived_order;
            if !overtaken && segment.sends <= 1 {
                // Whatever stands behind was sent later still.
                return;
            }
            if overtaken && segment.fate == Fate::InFlight {
                self.lose(now, index, path);
            }
        }
    }

    /// A segment that was in flight is lost.
    fn lose(&mut self, now: Time, index: usize, path: &mut Congestion) {
        let segment = &mut self.segments[index];
        segment.fate = Fate::Lost;
        self.lost += 1;
        let len = segment.bytes.len();
        match &mut self.pace {
            Pace::Shared(counted) => {
                path.part_lost(now, now.since(segment.sent_at), len, counted);
            }
            Pace::Own(window, in_flight) => {
                *in_flight = in_flight.saturating_sub(len);
                if segment.order >= self.paid_order {
                    window.lose();
                    self.paid_order = self.orders;
                }
            }
        }
    }

    // ---- time --------------------------------------------------------------------------------

    /// What is due: repeats, a question about a closed window.
    pub(super) fn handle_timeout(&mut self, now: Time, path: &mut Congestion) {
        if now >= self.pace_at {
            self.pace_at = Time::NEVER;
        }
        if now >= self.timeout_at {
            self.time_out(now, path);
        }
        if now >= self.probe_at {
            self.probe_at = Time::NEVER;
            self.probes += 1;
            self.forced = 1;
        }
    }

    fn time_out(&mut self, now: Time, path: &mut Congestion) {
        if self.segments.is_empty() {
            self.timeout_at = Time::NEVER;
            return;
        }
        self.backoffs += 1;
        if self
            .segments
            .front()
            .is_some_and(|first| first.fate == Fate::Arrived)
        {
            // The peer keeps beyond a gap what begins its gap: it has forgotten, so do we.
            for segment in &mut self.segments {
                if segment.fate == Fate::Arrived {
                    segment.fate = Fate::Lost;
                    self.lost += 1;
                }
            }
            self.arrived = 0;
        }
        if let Pace::Own(window, _) = &mut self.pace {
            window.collapse();
            self.paid_order = self.orders;
        }
        for index in 0..self.segments.len() {
            if self.segments[index].fate == Fate::InFlight {
                self.lose(now, index, path);
            }
        }
        self.forced = 1;
        self.timeout_at = now + self.timeout();
    }

    /// Figures for a row about the stream.
    pub(super) fn standing(&self, path: &Congestion) -> super::Standing {
        let (window, in_flight) = match &self.pace {
            Pace::Shared(counted) => (path.share(), counted.bytes()),
            Pace::Own(window, in_flight) => (window.bytes(), *in_flight),
        };
        super::Standing {
            window,
            in_flight,
            unacknowledged: self.segments.len(),
            peer_window: self.window,
            round_trip: self.round_trip.smoothed(),
            bytes_sent: self.bytes_sent,
            segments_sent: self.orders,
            retransmits: self.repeats,
            ..super::Standing::default()
        }
    }
}
