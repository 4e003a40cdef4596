//! One end of one stream: its states, and what each packet does to them.
//!
//! | state | entered by | leaves by |
//! |---|---|---|
//! | `SynSent` | a dial | SYN-ACK: `Established`; RST or the limit of the dial: `Gone` |
//! | `Established` | SYN-ACK, or a SYN that we answer | close: `Closing`; the peer's FIN, once everything before it is here: `TimeWait` |
//! | `Closing` | our close | FIN, once everything is acknowledged or after [`CLOSE_LIMIT`]: `FinWait` |
//! | `FinWait` | our FIN | FIN-ACK or FIN, or nothing for [`FIN_SENDS_MAX`] time-outs: `TimeWait` |
//! | `TimeWait` | both FINs | [`TIME_WAIT`]: `Gone`; a FIN without ACK is answered again |
//! | `Gone` | RST either way, silence | |
//!
//! A FIN that comes before what was sent before it waits for it. RST is believed whatever its
//! numbers: it comes through the tunnel of the peer, and daemons send zeros.

mod hear;
mod speak;

use core::time::Duration;

use bytes::Bytes;

use super::options::is_ramjet;
use super::receive::Receiving;
use super::send::Sending;
use super::{SegmentHead, first};
use crate::engagement::congestion::Congestion;
use crate::time::Time;

/// Bytes of a stream that may wait to be read where memory is not short.
pub const ALLOWANCE_MAX: usize = 4 << 20;
/// The same with as many streams as there may be.
pub const ALLOWANCE_MIN: usize = 64 << 10;
/// After a close, what was written has so long to be acknowledged before FIN leaves all the same.
pub const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How long a stream that has ended is remembered.
pub const TIME_WAIT: Duration = Duration::from_secs(10);
/// A FIN is given up after this many sends: everything before it is acknowledged.
pub const FIN_SENDS_MAX: u32 = 5;
/// Slots that a SYN tells: every daemon does.
const WINDOW_SYN: u16 = 512;
/// First repeat of SYN; doubled each time, up to `SYN_AGAIN_MAX`.
const SYN_AGAIN: Duration = Duration::from_millis(250);
const SYN_AGAIN_MAX: Duration = Duration::from_secs(4);
/// A FIN whose gap is not filled is acted on after this long without a packet.
const FIN_HELD: Duration = Duration::from_secs(15);
/// A stream that is silent for this long is asked whether it lives, again and again …
const ASK_AFTER: Duration = Duration::from_secs(30);
/// … and ends after this long.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// A SYN that repeats one from longer ago than this is of a new life of the peer: daemons always
/// begin at the same number.
const SYN_REPEATS_FOR: Duration = Duration::from_secs(5);

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// SYN is out, or waits for the tunnel.
    SynSent,
    /// Data flows.
    Established,
    /// We closed; FIN waits for the last acknowledgment.
    Closing,
    /// Our FIN is out.
    FinWait,
    /// Both have ended; repeats are answered.
    TimeWait,
    /// Nothing is left.
    Gone,
}

/// What happened to a stream. `Connected` comes first, and one of the others last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer answered our SYN.
    Connected,
    /// The peer has closed it; everything before that can be taken.
    Finished,
    /// It was closed here, and everything written was acknowledged.
    Closed,
    /// It was closed here, and not everything was.
    Cut,
    /// The peer refused our SYN.
    Refused,
    /// The peer reset it.
    Reset,
    /// The peer was silent for too long.
    TimedOut,
}

/// How a stream stands, for a person to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Bytes that may be in flight.
    pub window: usize,
    /// Bytes that are.
    pub in_flight: usize,
    /// Segments that are not acknowledged.
    pub unacknowledged: usize,
    /// Segments that arrived ahead of a gap.
    pub out_of_order: usize,
    /// The window that the peer told last.
    pub peer_window: u16,
    /// Ours.
    pub own_window: u16,
    /// Smoothed round trip, and its variation.
    pub round_trip: (Duration, Duration),
    /// Bytes sent, each counted once.
    pub bytes_sent: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Segments sent, repeats included.
    pub segments_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Segments that were repeated.
    pub retransmits: u64,
}

/// Packets without data that are to be sent.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    syn_ack: bool,
    fin_ack: bool,
    reset: bool,
    ask: bool,
}

/// One end of a stream.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// We answered a SYN, and did not send one.
    accepted: bool,
    foreign: bool,
    own_first: u64,
    peer_first: u32,
    sending: Sending,
    receiving: Receiving,
    due: Due,
    event: Option<Event>,
    /// The last event was set before.
    ended: bool,
    connected: bool,
    /// Our FIN has left, and taken a number.
    fin_sent: bool,
    /// When the peer was last heard, when we last spoke, when it began.
    heard_at: Time,
    spoke_at: Time,
    since: Time,
    /// When SYN or FIN is sent (again), and how often it was.
    again_at: Time,
    sends: u32,
    /// When the state ends at the latest.
    until: Time,
    packets_received: u64,
}

/// What a call of [`Session::transmit`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// All that may leave now has left.
    All,
    /// There was no room for more packets, or the quota is used up: call again in the next turn.
    Partly,
    /// The path is full with what others sent: call again when anything of it is acknowledged.
    Held,
}

impl Session {
    fn new(state: State, now: Time, own: u32) -> Self {
        let own_first = first(own);
        Session {
            state,
            accepted: false,
            foreign: true,
            own_first,
            peer_first: 0,
            sending: Sending::new(now, own_first + 1),
            receiving: Receiving::new(first(0), true, 0),
            due: Due::default(),
            event: None,
            ended: false,
            connected: false,
            fin_sent: false,
            heard_at: now,
            spoke_at: now,
            since: now,
            again_at: Time::NEVER,
            sends: 0,
            until: Time::NEVER,
            packets_received: 0,
        }
    }

    /// A stream to open, numbered from `own`. SYN leaves after [`Self::begin`]; without an answer
    /// within `limit` it ends as [`Event::TimedOut`].
    pub fn dial(now: Time, own: u32, limit: Duration) -> Self {
        Session {
            until: now + limit,
            ..Session::new(State::SynSent, now, own)
        }
    }

    /// The tunnel is up: SYN may leave.
    pub fn begin(&mut self, now: Time) {
        if self.state == State::SynSent && self.again_at == Time::NEVER {
            self.again_at = now;
        }
    }

    /// The answer to a SYN, numbered from `own`.
    pub fn accept(
        now: Time,
        own: u32,
        syn: &SegmentHead,
        payload: &[u8],
        allowance: usize,
    ) -> Self {
        let mut session = Session::new(State::Established, now, own);
        session.accepted = true;
        session.due.syn_ack = true;
        session.open(now, syn, payload, allowance);
        session
    }

    fn open(&mut self, now: Time, head: &SegmentHead, payload: &[u8], allowance: usize) {
        self.foreign = !is_ramjet(payload);
        self.peer_first = head.sequence;
        let next = first(head.sequence) + 1;
        self.receiving = Receiving::new(next, self.foreign, allowance);
        self.sending.open(now, self.foreign, head.window);
        self.packets_received += 1;
    }

    // ---- what is asked of it -----------------------------------------------------------------

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the peer is no ramjet node.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Whether a SYN of this number begins another stream, because this one is of an earlier life of
    /// the peer, or has ended; else it is a repeat.
    pub fn is_superseded(&self, now: Time, syn: &SegmentHead) -> bool {
        match self.state {
            State::TimeWait | State::Gone => true,
            State::SynSent => false,
            State::Established | State::Closing | State::FinWait => {
                !self.accepted
                    || syn.sequence != self.peer_first
                    || now.since(self.since) >= SYN_REPEATS_FOR
            }
        }
    }

    /// Queues bytes; nothing happens once it is closed.
    pub fn write(&mut self, bytes: Bytes) {
        if self.state == State::Established && !bytes.is_empty() {
            self.sending.write(bytes);
        }
    }

    /// Bytes that were written and have not left.
    pub fn unsent(&self) -> usize {
        self.sending.unsent()
    }

    /// Bytes that have left for the first time since [`Self::take_sent`].
    pub fn sent(&self) -> usize {
        self.sending.sent()
    }

    /// As [`Self::sent`], and begins to count anew.
    pub fn take_sent(&mut self) -> usize {
        self.sending.take_sent()
    }

    /// Segments that were repeated so far.
    pub fn repeats(&self) -> u64 {
        self.sending.repeats()
    }

    /// Whether bytes wait to be taken.
    pub fn has_inbound(&self) -> bool {
        self.receiving.has_inbound()
    }

    /// What arrived in order; it counts against the window until [`Self::consumed`].
    pub fn take_inbound(&mut self) -> Bytes {
        self.receiving.take()
    }

    /// The reader took so many bytes.
    pub fn consumed(&mut self, len: usize) {
        self.receiving.consumed(len);
    }

    /// Bytes that may wait to be read from now on.
    pub fn allow(&mut self, allowance: usize) {
        self.receiving.allow(allowance);
    }

    /// Ends it once everything written is acknowledged.
    pub fn close(&mut self, now: Time, path: &mut Congestion) {
        match self.state {
            State::SynSent => self.end(Event::Closed, path),
            State::Established => {
                self.state = State::Closing;
                self.until = now + CLOSE_LIMIT;
                self.receiving.discard();
            }
            _ => {}
        }
    }

    /// Ends it at once; the peer is told, if there is one.
    pub fn reset(&mut self, path: &mut Congestion) {
        self.due.reset = match self.state {
            // It may have accepted us, and its answer be on its way.
            State::SynSent => self.sends > 0,
            State::Established | State::Closing | State::FinWait => true,
            State::TimeWait | State::Gone => self.due.reset,
        };
        self.vanish(path);
    }

    /// Ends it at once, and tells nobody.
    pub fn vanish(&mut self, path: &mut Congestion) {
        self.state = State::Gone;
        self.sending.abandon(path);
        self.receiving.discard();
    }

    /// What happened since the last call. What ended a stream is told after everything that arrived
    /// before was taken.
    pub fn take_event(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.connected) {
            return Some(Event::Connected);
        }
        if self.event == Some(Event::Finished) && self.has_inbound() {
            return None;
        }
        self.event.take()
    }

    /// Whether nothing is left to say or to remember.
    pub fn is_over(&self) -> bool {
        self.state == State::Gone && !self.due.reset && self.event.is_none()
    }

    /// Tells the last event, unless one was told.
    fn tell(&mut self, event: Event) {
        if !std::mem::replace(&mut self.ended, true) {
            self.event = Some(event);
        }
    }

    fn end(&mut self, event: Event, path: &mut Congestion) {
        self.tell(event);
        self.vanish(path);
    }

    fn rest(&mut self, now: Time, event: Event, path: &mut Congestion) {
        self.tell(event);
        self.state = State::TimeWait;
        self.until = now + TIME_WAIT;
        self.again_at = Time::NEVER;
        self.sending.abandon(path);
    }

    // ---- time --------------------------------------------------------------------------------

    /// When [`Self::handle_timeout`] wants to be called next, or [`Time::NEVER`].
    pub fn next_timeout(&self) -> Time {
        let lasting = self.again_at.min(self.until);
        match self.state {
            State::Gone => Time::NEVER,
            State::SynSent | State::TimeWait => lasting,
            State::Established | State::Closing | State::FinWait => lasting
                .min(self.sending.next_timeout())
                .min(self.receiving.due_at())
                .min(self.ask_at())
                .min(self.heard_at + SILENCE_MAX),
        }
    }

    /// When a stream on which nothing moves is asked whether it lives.
    fn ask_at(&self) -> Time {
        if self.state == State::Established && self.sending.is_done() {
            self.heard_at.max(self.spoke_at) + ASK_AFTER
        } else {
            Time::NEVER
        }
    }

    /// Does what is due. What is to be sent is sent by [`Self::transmit`].
    pub fn handle_timeout(&mut self, now: Time, path: &mut Congestion) {
        match self.state {
            State::Gone => return,
            State::SynSent if now >= self.until => {
                self.due.reset = self.sends > 0;
                return self.end(Event::TimedOut, path);
            }
            State::TimeWait if now >= self.until => return self.vanish(path),
            State::SynSent | State::TimeWait => return,
            State::Established | State::Closing | State::FinWait => {}
        }
        let silent = now.since(self.heard_at) >= SILENCE_MAX;
        if silent || self.sending.is_hopeless(now) {
            self.due.reset = true;
            let event = match self.state {
                State::FinWait => Event::Closed,
                State::Closing if self.sending.is_done() => Event::Closed,
                State::Closing => Event::Cut,
                _ => Event::TimedOut,
            };
            return self.end(event, path);
        }
        self.sending.handle_timeout(now, path);
        self.due.ask |= now >= self.ask_at();
        if now >= self.until && self.receiving.is_finishing() {
            // What is missing before the FIN does not come any more.
            return self.finished(now, path);
        }
        if self.state == State::FinWait && now >= self.again_at && self.sends >= FIN_SENDS_MAX {
            self.rest(now, Event::Closed, path);
        }
    }

    /// How it stands.
    pub fn standing(&self, path: &Congestion) -> Standing {
        let (out_of_order, own_window, bytes_received) = self.receiving.standing();
        Standing {
            out_of_order,
            own_window,
            bytes_received,
            packets_received: self.packets_received,
            ..self.sending.standing(path)
        }
    }
}
