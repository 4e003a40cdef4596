//! Payloads and results too long for one frame: parts.
//!
//! All parts but the last carry [`PART_LEN`] bytes, so a part's offset names it. How many may be on
//! their way, and how fast they leave, the path's controller decides ([`super::congestion`]).
//!
//! The receiver answers with PART_ACK: how far everything has arrived, which parts beyond that point
//! are here too, and when the part that came last was sent. It does so after [`ACK_EVERY`] parts, when
//! the whole is here, and at the end of each turn that brought any. The sender takes a part for lost
//! when one that left later by more than the path reorders has arrived (RFC 8985), and sends it again
//! before any new one: a gap is closed within a round trip. Of what left in the same microsecond, so
//! must [`LATER_PARTS`] behind it (RFC 9002, 6.1.1).
//!
//! What the end of a transfer loses has nothing behind it that could arrive. So the requester asks
//! when a transfer is silent: by its newest part again ([`PartsOut::probe`]), or by a PART_ACK that
//! says so ([`PartsIn::acknowledge`] with `stalled`). Nothing here has a timer of its own.
//!
//! Memory: 8 bytes a part at the sender, one bit at the receiver, both taken with the whole.

use core::time::Duration;

use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::engagement::FrameSink;
use crate::engagement::congestion::{Congestion, Counted};
use crate::fault::DropReason;
use crate::frame::kind::{PART_LEN, PARTS_MAP_MAX, PARTS_STALLED, PartAckHeader, PartHeader};
use crate::frame::{Frame, Head};
use crate::time::Time;
use crate::wire::limits::{FRAME_HEADER_LEN, TASK_LEN_MAX};

/// The receiver acknowledges at least this often.
pub const ACK_EVERY: u32 = 16;
/// Parts that must have arrived from behind one that left at the same time before it counts as lost.
const LATER_PARTS: usize = 3;
/// Parts beyond the first that is missing: as many as a PART_ACK has bits for.
const SPAN_MAX: usize = PARTS_MAP_MAX * 8 - 1;

const HEADER_LEN: usize = size_of::<PartHeader>();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unsent,
    InFlight,
    Lost,
    Arrived,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    /// By [`Congestion::stamp`], of the last time it was sent.
    at: u32,
    state: State,
    /// Whether it was sent more than once.
    again: bool,
}

/// What the parts are of.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// The head of each part; its offset is filled in.
    pub head: Head,
    /// See [`PartHeader`].
    pub detail: u32,
}

/// The sending side of one long payload or result.
#[derive(Debug)]
pub struct PartsOut {
    total: usize,
    parts: Box<[Sent]>,
    /// Parts before this one have all arrived.
    contiguous: usize,
    /// Parts from this one on were never sent.
    fresh: usize,
    /// One more than the last part that has arrived.
    arrived_end: usize,
    lost: usize,
    in_flight: usize,
    /// No lost part lies before this one.
    lost_from: usize,
    counted: Counted,
    repeated: u64,
}

impl PartsOut {
    /// Nothing sent yet.
    pub fn new(total: usize) -> Self {
        let unsent = Sent {
            at: 0,
            state: State::Unsent,
            again: false,
        };
        PartsOut {
            total,
            parts: vec![unsent; total.div_ceil(PART_LEN)].into_boxed_slice(),
            contiguous: 0,
            fresh: 0,
            arrived_end: 0,
            lost: 0,
            in_flight: 0,
            lost_from: 0,
            counted: Counted::default(),
            repeated: 0,
        }
    }

    /// Whether every byte has arrived.
    pub fn is_complete(&self) -> bool {
        self.contiguous == self.parts.len()
    }

    /// Whether there is a part to send, as far as this transfer is concerned.
    pub fn may_send(&self) -> bool {
        self.lost > 0 || self.fresh < self.parts.len().min(self.contiguous + SPAN_MAX)
    }

    /// Whether anything is on its way.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight > 0
    }

    /// Bytes that were never sent.
    pub fn unsent(&self) -> usize {
        self.total.saturating_sub(self.fresh * PART_LEN)
    }

    /// Sends what the path allows, up to `budget` parts; how many went.
    pub fn pump(
        &mut self,
        now: Time,
        path: &mut Congestion,
        whole: Whole<'_>,
        sink: &mut impl FrameSink,
        budget: usize,
    ) -> usize {
        let mut sent = 0;
        while sent < budget && self.may_send() && path.may_send_part(now).is_ok() {
            let index = self.next_to_send();
            if !self.send_part(now, index, whole, sink) {
                break;
            }
            let part = &mut self.parts[index];
            match std::mem::replace(&mut part.state, State::InFlight) {
                State::Lost => {
                    self.lost -= 1;
                    self.repeated += 1;
                    part.again = true;
                }
                State::Unsent | State::InFlight | State::Arrived => {}
            }
            self.in_flight += 1;
            self.fresh = self.fresh.max(index + 1);
            path.part_sent(self.frame_len(index), &mut self.counted);
            sent += 1;
        }
        sent
    }

    /// The first lost part, or the first that was never sent.
    fn next_to_send(&mut self) -> usize {
        if self.lost == 0 {
            self.lost_from = self.fresh;
            return self.fresh;
        }
        while self.parts[self.lost_from].state != State::Lost {
            self.lost_from += 1;
        }
        self.lost_from
    }

    /// Sends the newest part that ever went, again: asks how things stand. Whether it went; it does
    /// not if none ever did.
    pub fn probe(&mut self, now: Time, whole: Whole<'_>, sink: &mut impl FrameSink) -> bool {
        let Some(newest) = self.fresh.checked_sub(1) else {
            return false;
        };
        let went = self.send_part(now, newest, whole, sink);
        self.repeated += u64::from(went);
        went
    }

    fn send_part(
        &mut self,
        now: Time,
        index: usize,
        whole: Whole<'_>,
        sink: &mut impl FrameSink,
    ) -> bool {
        let offset = index * PART_LEN;
        let part = &whole.bytes[offset..(offset + PART_LEN).min(self.total)];
        let Some(space) = sink.reserve(HEADER_LEN + part.len()) else {
            return false;
        };
        let stamp = Congestion::stamp(now);
        self.parts[index].at = stamp;
        let header = PartHeader {
            total: U32::new(number(self.total)),
            detail: U32::new(whole.detail),
            sent: U32::new(stamp),
        };
        header.write_to_prefix(space).expect("reserved");
        space[HEADER_LEN..][..part.len()].copy_from_slice(part);
        sink.commit(
            whole.head.with_auxiliary(number(offset)),
            HEADER_LEN + part.len(),
        );
        true
    }

    /// What a part takes on the path.
    fn frame_len(&self, index: usize) -> usize {
        let offset = index * PART_LEN;
        FRAME_HEADER_LEN + HEADER_LEN + PART_LEN.min(self.total - offset)
    }

    /// Takes a PART_ACK.
    ///
    /// # Errors
    /// [`DropReason::BadFrame`] if it is not one of such a whole.
    pub fn ack(
        &mut self,
        now: Time,
        path: &mut Congestion,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        let (header, map) =
            PartAckHeader::ref_from_prefix(frame.payload).map_err(|_| DropReason::BadFrame)?;
        let offset = frame.auxiliary as usize;
        let whole = offset == self.total || offset.is_multiple_of(PART_LEN);
        if offset > self.total || !whole || map.len() > PARTS_MAP_MAX {
            return Err(DropReason::BadFrame);
        }
        let here = offset.div_ceil(PART_LEN);
        let in_flight = self.in_flight;
        let end_before = self.arrived_end;
        for index in self.contiguous..here {
            self.arrived(path, index, end_before);
        }
        for (index, bits) in (here..).step_by(8).zip(map) {
            // Of an old acknowledgment, most is known.
            if *bits != 0 && index + 8 > self.contiguous {
                for bit in (0..8).filter(|bit| bits & (0x80 >> bit) != 0) {
                    self.arrived(path, index + bit, end_before);
                }
            }
        }
        while self.contiguous < self.arrived_end
            && self.parts[self.contiguous].state == State::Arrived
        {
            self.contiguous += 1;
        }
        self.fresh = self.fresh.max(self.contiguous);
        let echo = header.echo.get();
        // What was known already, or was asked about after a silence, came back late for other reasons
        // than the path.
        let is_sample = self.in_flight < in_flight && frame.flags & PARTS_STALLED == 0;
        let round_trip = age(Congestion::stamp(now), echo).filter(|_| is_sample);
        path.parts_acknowledged(now, round_trip);
        self.find_lost(now, path, echo);
        if frame.flags & PARTS_STALLED != 0 {
            self.stalled(now, path);
        }
        Ok(())
    }

    /// A part is here. Before this acknowledgment, the last that was known of ended at `end_before`.
    fn arrived(&mut self, path: &mut Congestion, index: usize, end_before: usize) {
        let Some(part) = self.parts.get_mut(index) else {
            return;
        };
        let sent_once = !part.again;
        match std::mem::replace(&mut part.state, State::Arrived) {
            State::Arrived => return,
            State::InFlight => {
                self.in_flight -= 1;
                path.part_arrived(self.frame_len(index), &mut self.counted);
            }
            State::Lost => self.lost -= 1,
            State::Unsent => {}
        }
        if sent_once && index < end_before {
            path.reordered();
        }
        self.arrived_end = self.arrived_end.max(index + 1);
    }

    /// A part sent before the one that is echoed, by more than the path reorders, is lost.
    fn find_lost(&mut self, now: Time, path: &mut Congestion, echo: u32) {
        let reordering = path.reordering();
        for index in self.contiguous..self.arrived_end.min(self.fresh) {
            let Some(earlier) = age(echo, self.parts[index].at) else {
                continue;
            };
            let is_lost = match reordering {
                Some(reordering) => earlier > reordering,
                None => !earlier.is_zero() || index + LATER_PARTS < self.arrived_end,
            };
            if is_lost {
                self.lose(now, path, index);
            }
        }
    }

    /// The receiver has heard nothing for a while: what left longer ago than a round trip is lost.
    pub fn stalled(&mut self, now: Time, path: &mut Congestion) {
        let round_trip = path.round_trip();
        let long_ago = (round_trip + round_trip / 8).max(Duration::from_millis(1));
        let stamp = Congestion::stamp(now);
        for index in self.contiguous..self.fresh {
            if age(stamp, self.parts[index].at).is_none_or(|age| age > long_ago) {
                self.lose(now, path, index);
            }
        }
    }

    fn lose(&mut self, now: Time, path: &mut Congestion, index: usize) {
        let frame_len = self.frame_len(index);
        let part = &mut self.parts[index];
        if part.state != State::InFlight {
            return;
        }
        part.state = State::Lost;
        self.in_flight -= 1;
        self.lost += 1;
        self.lost_from = self.lost_from.min(index);
        let age = age(Congestion::stamp(now), part.at).unwrap_or_default();
        path.part_lost(now, age, frame_len, &mut self.counted);
    }

    /// Parts that went again since this was last asked.
    pub fn take_repeated(&mut self) -> u64 {
        std::mem::take(&mut self.repeated)
    }

    /// Gives the transfer up: what the path still counts of it.
    pub fn release(&mut self, path: &mut Congestion) {
        path.parts_forgotten(&mut self.counted);
    }

    /// What the path still counts of it, for whoever has no path at hand now.
    pub fn into_counted(self) -> Counted {
        self.counted
    }
}

/// How much later than `earlier` a stamp is; `None` if it is not later.
fn age(stamp: u32, earlier: u32) -> Option<Duration> {
    let micros = stamp.wrapping_sub(earlier);
    (micros < 1 << 31).then(|| Duration::from_micros(u64::from(micros)))
}

fn number(value: usize) -> u32 {
    u32::try_from(value).expect("at most TASK_LEN_MAX")
}

/// The receiving side.
#[derive(Debug)]
pub struct PartsIn {
    total: usize,
    /// Up to the last part that is here, zeros where parts are missing: what comes in order is written
    /// once.
    bytes: Vec<u8>,
    /// One bit a part, the most significant first: 1 when it is here.
    have: Box<[u8]>,
    count: usize,
    /// Parts before this one have all arrived.
    contiguous: usize,
    /// One more than the last part that has arrived.
    arrived_end: usize,
    since_ack: u32,
    repeated: bool,
    /// Whether it is on its channel's list of those to acknowledge.
    listed: bool,
    echo: u32,
    detail: u32,
}

/// A part as it lies in its frame.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Length of the whole.
    pub total: usize,
    /// See [`PartHeader`].
    pub detail: u32,
    /// See [`PartHeader`].
    pub sent: u32,
    /// Where it belongs.
    pub offset: usize,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// Reads a part; its place and length must be those of a part of such a whole.
    ///
    /// # Errors
    /// [`DropReason::BadFrame`].
    pub fn parse(payload: &'a [u8], offset: u32) -> Result<Self, DropReason> {
        let (header, bytes) =
            PartHeader::ref_from_prefix(payload).map_err(|_| DropReason::BadFrame)?;
        let (total, offset) = (header.total.get() as usize, offset as usize);
        let fits = total <= TASK_LEN_MAX
            && offset < total
            && offset.is_multiple_of(PART_LEN)
            && bytes.len() == PART_LEN.min(total - offset);
        if !fits {
            return Err(DropReason::BadFrame);
        }
        Ok(Part {
            total,
            detail: header.detail.get(),
            sent: header.sent.get(),
            offset,
            bytes,
        })
    }

    /// Whether it is the last.
    pub fn is_last(&self) -> bool {
        self.offset + self.bytes.len() == self.total
    }
}

impl PartsIn {
    /// Space for the whole that this part belongs to.
    pub fn new(part: &Part<'_>) -> Self {
        let count = part.total.div_ceil(PART_LEN);
        PartsIn {
            total: part.total,
            bytes: Vec::with_capacity(part.total),
            have: vec![0; count.div_ceil(8)].into_boxed_slice(),
            count,
            contiguous: 0,
            arrived_end: 0,
            since_ack: 0,
            repeated: false,
            listed: false,
            echo: part.sent,
            detail: part.detail,
        }
    }

    /// Puts a part in its place.
    ///
    /// # Errors
    /// [`DropReason::BadFrame`] if it is of another whole; [`DropReason::Duplicate`] if it is here
    /// already, and then an acknowledgment is due.
    pub fn take(&mut self, part: &Part<'_>) -> Result<(), DropReason> {
        if part.total != self.total {
            return Err(DropReason::BadFrame);
        }
        self.echo = part.sent;
        let index = part.offset / PART_LEN;
        if self.has(index) {
            self.repeated = true;
            return Err(DropReason::Duplicate);
        }
        self.have[index / 8] |= 0x80 >> (index % 8);
        self.put(part);
        self.since_ack += 1;
        self.arrived_end = self.arrived_end.max(index + 1);
        while self.contiguous < self.arrived_end && self.has(self.contiguous) {
            self.contiguous += 1;
        }
        Ok(())
    }

    fn put(&mut self, part: &Part<'_>) {
        if part.offset < self.bytes.len() {
            self.bytes[part.offset..][..part.bytes.len()].copy_from_slice(part.bytes);
        } else {
            self.bytes.resize(part.offset, 0);
            self.bytes.extend_from_slice(part.bytes);
        }
    }

    fn has(&self, index: usize) -> bool {
        self.have[index / 8] & (0x80 >> (index % 8)) != 0
    }

    /// Whether every part is here.
    pub fn is_complete(&self) -> bool {
        self.contiguous == self.count
    }

    /// Whether an acknowledgment cannot wait for the end of the turn.
    pub fn is_ack_due(&self) -> bool {
        self.since_ack >= ACK_EVERY || self.is_complete()
    }

    /// Whether it is to be put on the list of those that are acknowledged at the end of the turn:
    /// once until [`Self::unlist`].
    pub fn list(&mut self) -> bool {
        !std::mem::replace(&mut self.listed, true)
    }

    /// It is on the list no more; whether there is anything to acknowledge.
    pub fn unlist(&mut self) -> bool {
        self.listed = false;
        self.since_ack > 0 || self.repeated
    }

    /// Sends a PART_ACK; whether there was space for it.
    pub fn acknowledge(&mut self, head: Head, stalled: bool, sink: &mut impl FrameSink) -> bool {
        let first = self.contiguous;
        let len = if self.arrived_end > first {
            (self.arrived_end - first).div_ceil(8).min(PARTS_MAP_MAX)
        } else {
            0
        };
        let Some(space) = sink.reserve(size_of::<PartAckHeader>() + len) else {
            return false;
        };
        let header = PartAckHeader {
            echo: U32::new(self.echo),
        };
        header.write_to_prefix(space).expect("reserved");
        let map = &mut space[size_of::<PartAckHeader>()..][..len];
        let (byte, shift) = (first / 8, first % 8);
        for (place, bits) in map.iter_mut().enumerate() {
            let at = |index: usize| u16::from(self.have.get(index).copied().unwrap_or(0));
            let both = at(byte + place) << 8 | at(byte + place + 1);
            *bits = (both << shift).to_be_bytes()[0];
        }
        let flags = if stalled { PARTS_STALLED } else { 0 };
        let head = head
            .with_flags(head.flags() | flags)
            .with_auxiliary(number((first * PART_LEN).min(self.total)));
        sink.commit(head, size_of::<PartAckHeader>() + len);
        self.since_ack = 0;
        self.repeated = false;
        true
    }

    /// See [`PartHeader`].
    pub fn detail(&self) -> u32 {
        self.detail
    }

    /// Bytes that it holds in memory.
    pub fn len(&self) -> usize {
        self.total
    }

    /// Whether it holds none: never, since a whole has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The whole.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
