//! How much one path may carry: a congestion controller for everything that one tunnel sends.
//!
//! One controller stands for one tunnel in the direction in which we send, and is lent to every
//! channel on it, whichever end of the channel we are: what queues and what is lost belongs to the
//! path, and two channels that each thought it theirs would fill it twice. It belongs to the
//! engagements and not to the tunnel because only they acknowledge: an answer acknowledges its task,
//! a PART_ACK its parts, and there is no other receipt for a datagram.
//!
//! | bound | holds | moved by |
//! |---|---|---|
//! | window ([`cubic`]) | tasks, and tasks and parts together | loss: CUBIC (RFC 9438) with the rules of RFC 9002; and a queue that stands (RFC 8289) |
//! | share ([`delay`]) | parts | queueing delay: down in proportion to what the queue is above its target, as Swift (SIGCOMM 2020) does |
//! | pace ([`pacing`]) | parts | a token bucket of 1.25 windows a round trip, bursts of one train (RFC 9002, 7.7) |
//!
//! Tasks are counted from their first send to their answer, so the window covers both directions of
//! a small task; an answer in one frame is not counted by the worker. Tasks see the window alone, as
//! if no parts were there: they go first, and parts have what is left. The share keeps the queue
//! that parts build as short as the path allows, for the sake of the small tasks of everyone who
//! shares the receiver's socket.
//!
//! Decisions are made once a round (about a round trip); between them a task costs an addition and a
//! comparison each way. Invariants: with nothing in flight something may always be sent; a window
//! never falls below two base datagrams; what was counted in flight is released once, or forgotten
//! with its epoch when nothing is heard of it ([`Counted`]).
//!
//! Absent: a clock, a socket, and the bytes themselves.

mod cubic;
mod delay;
mod pacing;
#[cfg(test)]
mod tests;

use core::time::Duration;

use crate::engagement::congestion::cubic::Cubic;
use crate::engagement::congestion::delay::{Base, Share};
use crate::engagement::congestion::pacing::Pacer;
use crate::time::Time;
use crate::wire::limits::DATAGRAM_LEN_MAX;

/// Bytes in flight before anything is known of a path: ten base datagrams (RFC 9002, 7.2).
pub const WINDOW_INITIAL: usize = 10 * DATAGRAM_LEN_MAX;
/// Fewest bytes after losses: two base datagrams (RFC 9002, 7.2).
pub const WINDOW_MIN: usize = 2 * DATAGRAM_LEN_MAX;
/// Most bytes in flight: what 80 ms hold at 100 MB/s.
pub const WINDOW_MAX: usize = 8 << 20;

/// A round takes at least this long, however short the round trip is: a decision costs some hundred
/// nanoseconds, and must not be made for every datagram on loopback.
const ROUND_MIN: Duration = Duration::from_micros(20);
/// Before the first round trip is known (RFC 9002, 6.2.2 says 333 ms).
const ROUND_TRIP_INITIAL: Duration = Duration::from_millis(333);
/// Shortest wait before a stalled transfer is asked about. Below it, a turn of a busy worker would
/// look like a stall.
const PROBE_MIN: Duration = Duration::from_millis(5);
/// Queue that tasks may build before the window gives way, where the path itself is shorter.
const TASK_QUEUE_MIN: Duration = Duration::from_millis(10);
/// A queue stands if it was not shorter for so long, or for four round trips (RFC 8289, 3.2).
const INTERVAL: Duration = Duration::from_millis(100);
/// Parts that nobody speaks of are counted for one to two of these, or of four probe times.
const EPOCH_MIN: Duration = Duration::from_secs(1);

/// What a round has seen so far.
#[derive(Clone, Copy, Debug)]
struct Round {
    began: Time,
    ends: Time,
    /// Shortest round trip of anything; `u64::MAX` without a sample.
    shortest_ns: u64,
    /// Shortest of what was sent after the share last gave way.
    shortest_since_cut_ns: u64,
    acked: usize,
    acked_parts: usize,
    window_full: bool,
    share_full: bool,
}

impl Round {
    fn begin(now: Time, round_trip: Duration) -> Self {
        Round {
            began: now,
            ends: now + round_trip.max(ROUND_MIN),
            shortest_ns: u64::MAX,
            shortest_since_cut_ns: u64::MAX,
            acked: 0,
            acked_parts: 0,
            window_full: false,
            share_full: false,
        }
    }
}

/// Bytes of parts in flight, of one sender or of all, by the epoch of a path in which they were sent.
///
/// The requester may know of an arrival and its word of it be lost, and then nobody speaks of it
/// again. So a path forgets what was sent two epochs ago, each sender's count with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    epoch: u32,
    now: usize,
    before: usize,
}

impl Counted {
    /// Bytes that are counted, as of the last time that the path was at hand.
    pub fn bytes(self) -> usize {
        self.now + self.before
    }

    /// Moves on to an epoch; bytes that are forgotten with those that passed.
    fn reach(&mut self, epoch: u32) -> usize {
        let forgotten = match epoch.wrapping_sub(self.epoch) {
            0 => return 0,
            1 => std::mem::replace(&mut self.before, std::mem::take(&mut self.now)),
            _ => std::mem::take(&mut self.before) + std::mem::take(&mut self.now),
        };
        self.epoch = epoch;
        forgotten
    }

    /// Takes bytes off, the oldest first: how many of each epoch.
    fn take(&mut self, len: usize) -> (usize, usize) {
        let before = len.min(self.before);
        let now = (len - before).min(self.now);
        self.before -= before;
        self.now -= now;
        (before, now)
    }
}

/// Why parts do not go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// As much is in flight as may be: an acknowledgment lets more go.
    Full,
    /// The pace: more may go at this time.
    Until(Time),
}

/// The controller of one path.
#[derive(Debug)]
pub struct Congestion {
    window: Cubic,
    share: Share,
    pacer: Pacer,
    base: Base,
    smoothed_ns: u64,
    variation_ns: u64,
    /// Shortest round trip of the last round that had one. Rounds and pace follow it and not the
    /// smoothed one, which a core that was taken away for a moment leaves long for many rounds.
    recent_ns: u64,
    tasks: usize,
    parts: Counted,
    epoch_ends: Time,
    /// When parts were last acknowledged, or begun with none in flight.
    parts_heard: Time,
    /// Whether the path has shown that it reorders.
    reorders: bool,
    round: Round,
    /// Shortest round trip of the interval that ends then.
    standing_ns: u64,
    standing_until: Time,
}

impl Congestion {
    /// A path of which nothing is known.
    pub fn new(now: Time) -> Self {
        Congestion {
            window: Cubic::new(),
            share: Share::new(),
            pacer: Pacer::new(now),
            base: Base::new(now),
            smoothed_ns: 0,
            variation_ns: 0,
            recent_ns: 0,
            tasks: 0,
            parts: Counted::default(),
            epoch_ends: now + EPOCH_MIN,
            parts_heard: now,
            reorders: false,
            round: Round::begin(now, Duration::ZERO),
            standing_ns: u64::MAX,
            standing_until: now + INTERVAL,
        }
    }

    /// Bytes that may be in flight.
    pub fn window(&self) -> usize {
        self.window.bytes()
    }

    /// Of these, bytes of parts.
    pub fn share(&self) -> usize {
        self.share.bytes().min(self.window.bytes())
    }

    /// Bytes in flight, of tasks and of parts.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.tasks, self.parts.bytes())
    }

    /// The sender's clock as parts carry it: microseconds, wrapping.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it wraps, as the wire says"
    )]
    pub fn stamp(now: Time) -> u32 {
        (now.as_nanos() / 1_000) as u32
    }

    /// How much later than a lost part another must have been sent that has arrived. Nothing, until the
    /// path has shown that it reorders; then a quarter of the shortest round trip, and what one turn
    /// may reorder (RFC 8985, 6.2).
    pub fn reordering(&self) -> Option<Duration> {
        let quarter = Duration::from_nanos(self.base.shortest_ns().unwrap_or(0) / 4);
        self.reorders.then(|| quarter + Duration::from_micros(50))
    }

    /// Something that was sent once arrived after what was sent later.
    pub fn reordered(&mut self) {
        self.reorders = true;
    }

    /// How long a transfer may be silent before it is asked about (RFC 9002, 6.2.1).
    pub fn probe_after(&self) -> Duration {
        if self.smoothed_ns == 0 {
            return ROUND_TRIP_INITIAL;
        }
        Duration::from_nanos(self.smoothed_ns + 4 * self.variation_ns).max(PROBE_MIN)
    }

    /// The smoothed round trip, or a guess before the first.
    pub fn round_trip(&self) -> Duration {
        match self.smoothed_ns {
            0 => ROUND_TRIP_INITIAL,
            nanos => Duration::from_nanos(nanos),
        }
    }

    /// Whether a task may go.
    #[inline]
    pub fn may_send_task(&mut self) -> bool {
        let free = self.tasks < self.window.bytes();
        self.round.window_full |= !free;
        free
    }

    /// A task of so many bytes went.
    #[inline]
    pub fn task_sent(&mut self, len: usize) {
        self.tasks += len;
    }

    /// A task has its answer, or is known to have arrived. `round_trip_ns` is the path's part of its
    /// round trip, if that can be told.
    #[inline]
    pub fn task_settled(&mut self, now: Time, len: usize, round_trip_ns: Option<u64>) {
        debug_assert!(self.tasks >= len, "{len} of {} bytes", self.tasks);
        self.tasks = self.tasks.saturating_sub(len);
        self.round.acked += len;
        if let Some(nanos) = round_trip_ns {
            self.round.shortest_ns = self.round.shortest_ns.min(nanos);
        }
        if now >= self.round.ends {
            self.end_round(now, round_trip_ns);
        }
    }

    /// A task is given up: its bytes say nothing of the path.
    pub fn task_forgotten(&mut self, len: usize) {
        self.tasks = self.tasks.saturating_sub(len);
    }

    /// Whether a part may go now; else what holds it.
    ///
    /// # Errors
    /// What must happen before one may.
    pub fn may_send_part(&mut self, now: Time) -> Result<(), Held> {
        if now >= self.epoch_ends {
            self.turn_epoch(now);
        }
        let parts = self.parts.bytes();
        if parts > 0 {
            let window_full = self.tasks + parts >= self.window.bytes();
            let share_full = parts >= self.share.bytes();
            self.round.window_full |= window_full;
            self.round.share_full |= share_full;
            if window_full || share_full {
                return Err(Held::Full);
            }
        } else {
            self.parts_heard = now;
        }
        if self.recent_ns == 0 {
            return Ok(());
        }
        let round_trip_ns = self.recent_ns.min(self.round.shortest_ns).max(1);
        let rate = self.share() as u64 * 1_000_000_000 / round_trip_ns;
        // Twice the window a round trip while it may double, else a quarter more than it.
        let rate = if self.share.is_starting() {
            rate * 2
        } else {
            rate + rate / 4
        };
        self.pacer.check(now, rate).map_err(Held::Until)
    }

    /// An epoch ends: what was sent before it and never heard of is counted no more. Where nothing at
    /// all was heard, the path is gone, and is begun anew from the least.
    fn turn_epoch(&mut self, now: Time) {
        let lasts = EPOCH_MIN.max(self.probe_after() * 4);
        self.epoch_ends = now + lasts;
        let forgotten = self.parts.reach(self.parts.epoch.wrapping_add(1));
        if forgotten > 0 && now.since(self.parts_heard) >= lasts {
            self.window.collapse(now);
            self.share.lose(self.window.bytes());
        }
    }

    /// A part of so many bytes went.
    pub fn part_sent(&mut self, len: usize, counted: &mut Counted) {
        counted.reach(self.parts.epoch);
        counted.now += len;
        self.parts.now += len;
        self.pacer.spend(len);
    }

    /// A part that was counted has arrived.
    pub fn part_arrived(&mut self, len: usize, counted: &mut Counted) {
        self.release(len, counted);
        self.round.acked += len;
        self.round.acked_parts += len;
    }

    /// An acknowledgment of parts came, after what was counted was told. `round_trip` is that of the
    /// part that it echoes.
    pub fn parts_acknowledged(&mut self, now: Time, round_trip: Option<Duration>) {
        self.parts_heard = now;
        let nanos = round_trip.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        if let Some(nanos) = nanos {
            self.round.shortest_ns = self.round.shortest_ns.min(nanos);
            if now.as_nanos().saturating_sub(nanos) >= self.share.cut_at().as_nanos() {
                self.round.shortest_since_cut_ns = self.round.shortest_since_cut_ns.min(nanos);
            }
        }
        if now >= self.round.ends {
            self.end_round(now, nanos);
        }
    }

    /// A part that was counted is lost; it was sent so long ago.
    pub fn part_lost(&mut self, now: Time, age: Duration, len: usize, counted: &mut Counted) {
        self.release(len, counted);
        let sent_at = now.before(age);
        if age > self.probe_after() * 3 {
            // Nothing arrived in all that time (RFC 9002, 7.6).
            if self.window.is_news(sent_at) {
                self.window.collapse(now);
            }
        } else {
            self.window.lose(now, sent_at);
        }
        self.share.lose(self.window.bytes());
    }

    /// What a sender has in flight is given up with it.
    pub fn parts_forgotten(&mut self, counted: &mut Counted) {
        self.release(counted.bytes(), counted);
    }

    /// A task that was sent then is repeated.
    pub fn task_timed_out(&mut self, now: Time, sent_at: Time) {
        self.window.time_out(now, sent_at);
        self.share.lose(self.window.bytes());
    }

    /// A task that was repeated had arrived the first time.
    pub fn task_was_not_lost(&mut self) {
        self.window.undo();
    }

    fn release(&mut self, len: usize, counted: &mut Counted) {
        counted.reach(self.parts.epoch);
        let (before, now) = counted.take(len);
        debug_assert!(self.parts.before >= before, "{before} of {:?}", self.parts);
        debug_assert!(self.parts.now >= now, "{now} of {:?}", self.parts);
        self.parts.before = self.parts.before.saturating_sub(before);
        self.parts.now = self.parts.now.saturating_sub(now);
    }

    /// Once a round trip: what the path has shown moves both bounds.
    #[cold]
    fn end_round(&mut self, now: Time, last_ns: Option<u64>) {
        let round = self.round;
        if let Some(nanos) = last_ns {
            self.smooth(nanos.max(1));
        }
        if round.shortest_ns != u64::MAX {
            self.base.sample(now, round.shortest_ns);
            self.recent_ns = round.shortest_ns.max(1);
        }
        let base_ns = self.base.shortest_ns().unwrap_or(0);
        self.follow_task_queue(now, &round, base_ns);
        if round.shortest_since_cut_ns != u64::MAX {
            let queue_ns = round.shortest_since_cut_ns.saturating_sub(base_ns);
            self.share
                .move_by(now, queue_ns, base_ns, round.acked_parts, round.share_full);
        }
        if round.window_full {
            let lasted = now.since(round.began);
            self.window
                .grow(round.acked, lasted, Duration::from_nanos(self.recent_ns));
        }
        let round_trip = Duration::from_nanos(self.recent_ns);
        if round.acked_parts > 0 && self.base.is_rest_due(now, round_trip) {
            self.share.rest(now);
        }
        self.share.limit(self.window.bytes());
        self.round = Round::begin(now, round_trip);
    }

    /// The window gives way to a queue that stands: one that was never shorter than tasks may build
    /// for a whole interval (RFC 8289, 3). A core that was taken away for a moment builds none.
    fn follow_task_queue(&mut self, now: Time, round: &Round, base_ns: u64) {
        self.standing_ns = self.standing_ns.min(round.shortest_ns);
        if now < self.standing_until {
            return;
        }
        let queue_ns = self.standing_ns.saturating_sub(base_ns);
        if self.standing_ns != u64::MAX && queue_ns > base_ns.max(duration_ns(TASK_QUEUE_MIN)) {
            self.window.lose(now, now);
        }
        self.standing_ns = u64::MAX;
        self.standing_until = now + INTERVAL.max(Duration::from_nanos(4 * self.recent_ns));
    }

    fn smooth(&mut self, nanos: u64) {
        if self.smoothed_ns == 0 {
            self.smoothed_ns = nanos;
            self.variation_ns = nanos / 2;
            return;
        }
        let error = self.smoothed_ns.abs_diff(nanos);
        self.variation_ns = self.variation_ns - self.variation_ns / 4 + error / 4;
        self.smoothed_ns = (self.smoothed_ns - self.smoothed_ns / 8 + nanos / 8).max(1);
    }
}

fn duration_ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
