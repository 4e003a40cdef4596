//! Payloads and results too long for one frame: parts, in a window of their own.
//!
//! All parts but the last carry [`PART_LEN`] bytes, so a part's offset names it. The receiver says
//! how far everything has arrived (PART_ACK): after every [`ACK_EVERY`] parts, at a gap, and at the
//! end. The sender keeps at most [`WINDOW_PARTS`] parts beyond that point, so that small tasks beside
//! it wait for one short train and not for the whole. Nothing here repeats by itself: the requester's
//! timer drives both directions.

use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::engagement::FrameSink;
use crate::fault::DropReason;
use crate::frame::Head;
use crate::frame::kind::{PART_LEN, PartHeader};
use crate::wire::limits::TASK_LEN_MAX;

/// Parts that may be on their way: about 81 KiB.
pub const WINDOW_PARTS: usize = 64;
/// The receiver acknowledges at least this often.
pub const ACK_EVERY: u32 = 16;

const HEADER_LEN: usize = size_of::<PartHeader>();

/// The sending side of one long payload or result.
#[derive(Clone, Copy, Debug)]
pub struct PartsOut {
    total: usize,
    acked: usize,
    next: usize,
}

impl PartsOut {
    /// Nothing sent yet.
    pub fn new(total: usize) -> Self {
        PartsOut {
            total,
            acked: 0,
            next: 0,
        }
    }

    /// Whether every byte has arrived.
    pub fn is_complete(&self) -> bool {
        self.acked >= self.total
    }

    /// Whether the window lets a part go now.
    pub fn may_send(&self) -> bool {
        self.next < self.total && self.next < self.acked + WINDOW_PARTS * PART_LEN
    }

    /// Sends what the window allows, up to `budget` parts; how many went.
    pub fn pump(
        &mut self,
        bytes: &[u8],
        head: Head,
        detail: u32,
        sink: &mut impl FrameSink,
        budget: usize,
    ) -> usize {
        let mut sent = 0;
        while sent < budget && self.may_send() {
            if !self.send_at(self.next, bytes, head, detail, sink) {
                break;
            }
            self.next = (self.next + PART_LEN).min(self.total);
            sent += 1;
        }
        sent
    }

    /// Sends the last part alone: asks how things stand.
    pub fn probe(&self, bytes: &[u8], head: Head, detail: u32, sink: &mut impl FrameSink) -> bool {
        let last = (self.total - 1) / PART_LEN * PART_LEN;
        self.send_at(last, bytes, head, detail, sink)
    }

    fn send_at(
        &self,
        offset: usize,
        bytes: &[u8],
        head: Head,
        detail: u32,
        sink: &mut impl FrameSink,
    ) -> bool {
        let part = &bytes[offset..(offset + PART_LEN).min(self.total)];
        let Some(space) = sink.reserve(HEADER_LEN + part.len()) else {
            return false;
        };
        let number = |value: usize| u32::try_from(value).expect("below TASK_LEN_MAX");
        let header = PartHeader {
            total: U32::new(number(self.total)),
            detail: U32::new(detail),
        };
        header.write_to_prefix(space).expect("reserved");
        space[HEADER_LEN..][..part.len()].copy_from_slice(part);
        sink.commit(
            Head {
                auxiliary: number(offset),
                ..head
            },
            HEADER_LEN + part.len(),
        );
        true
    }

    /// Takes a PART_ACK.
    pub fn ack(&mut self, offset: u32) {
        let offset = (offset as usize).min(self.total);
        self.acked = self.acked.max(offset);
        self.next = self.next.max(self.acked);
    }

    /// Begins again after the last byte that is known to have arrived.
    pub fn rewind(&mut self) {
        self.next = self.acked;
    }
}

/// The receiving side.
#[derive(Debug)]
pub struct PartsIn {
    bytes: Vec<u8>,
    have: Vec<bool>,
    /// Parts before this one have all arrived.
    contiguous: usize,
    since_ack: u32,
    gap: bool,
    detail: u32,
}

/// A part as it lies in its frame.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Length of the whole.
    pub total: usize,
    /// See [`PartHeader`].
    pub detail: u32,
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
        PartsIn {
            bytes: vec![0; part.total],
            have: vec![false; part.total.div_ceil(PART_LEN)],
            contiguous: 0,
            since_ack: 0,
            gap: false,
            detail: part.detail,
        }
    }

    /// Puts a part in its place.
    ///
    /// # Errors
    /// [`DropReason::BadFrame`] if it is of another whole; [`DropReason::Duplicate`] if it is here
    /// already, and then an acknowledgment is due.
    pub fn take(&mut self, part: &Part<'_>) -> Result<(), DropReason> {
        if part.total != self.bytes.len() {
            return Err(DropReason::BadFrame);
        }
        let index = part.offset / PART_LEN;
        if self.have[index] {
            self.gap = true;
            return Err(DropReason::Duplicate);
        }
        self.have[index] = true;
        self.bytes[part.offset..][..part.bytes.len()].copy_from_slice(part.bytes);
        self.since_ack += 1;
        if index != self.contiguous {
            self.gap = true;
        }
        while self.have.get(self.contiguous) == Some(&true) {
            self.contiguous += 1;
        }
        Ok(())
    }

    /// Whether every part is here.
    pub fn is_complete(&self) -> bool {
        self.contiguous == self.have.len()
    }

    /// The offset to acknowledge, if one is due; asking takes it.
    pub fn ack_due(&mut self) -> Option<u32> {
        if !(self.gap || self.since_ack >= ACK_EVERY || self.is_complete()) {
            return None;
        }
        self.gap = false;
        self.since_ack = 0;
        let offset = (self.contiguous * PART_LEN).min(self.bytes.len());
        Some(u32::try_from(offset).expect("below TASK_LEN_MAX"))
    }

    /// See [`PartHeader`].
    pub fn detail(&self) -> u32 {
        self.detail
    }

    /// Bytes that it holds in memory.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it holds none: never, since a whole has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The whole.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
