//! What arrived: order, gaps, the window that we tell, and when to acknowledge.

use core::time::Duration;
use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::options::{MEASURED_LEN_MIN, WINDOW_UNIT};
use super::sack::{RANGES_FOREIGN_MAX, RANGES_MAX, Range};
use crate::fault::DropReason;
use crate::time::Time;

/// Segments kept beyond a gap; what comes beyond is dropped and comes again.
pub const AHEAD_MAX: usize = 4_096;
/// A single short segment of a ramjet node is acknowledged after this long, unless data of ours
/// carries it before. Other daemons hold the next write back until then: they do not wait.
const ACK_DELAY: Duration = Duration::from_millis(1);
/// Slots of a window to other daemons, and the bytes that the older of them take one for.
const SLOTS_FOREIGN: usize = 512;
const SLOT_LEN_FOREIGN: usize = 4_096;
/// Acknowledgments of one turn to another daemon while there is a gap: it wants three of them before
/// it repeats the segment that is missing.
const GAP_ACKS_MAX: u8 = 4;

/// The receiving half of a stream.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Number of the first byte that has not arrived.
    next: u64,
    /// What arrived beyond it, by its number.
    ahead: BTreeMap<u64, Bytes>,
    inbound: BytesMut,
    /// Bytes handed to the reader that it has not read.
    unread: usize,
    foreign: bool,
    /// Bytes that may wait to be read.
    allowance: usize,
    /// End of what we have said may be sent.
    edge: u64,
    /// The last window told.
    told: u16,
    /// In-order segments since the last acknowledgment.
    unacknowledged: u32,
    /// Acknowledgments to send now.
    due: u8,
    /// When one is to be sent in any case.
    due_at: Time,
    /// Number of the peer's FIN.
    finish: Option<u64>,
    received: u64,
}

impl Receiving {
    /// Nothing has arrived; the peer's first byte will be `next`.
    pub(super) fn new(next: u64, foreign: bool, allowance: usize) -> Self {
        let mut receiving = Receiving {
            next,
            ahead: BTreeMap::new(),
            inbound: BytesMut::new(),
            unread: 0,
            foreign,
            allowance,
            edge: next,
            told: 0,
            unacknowledged: 0,
            due: 0,
            due_at: Time::NEVER,
            finish: None,
            received: 0,
        };
        receiving.window();
        receiving
    }

    /// Number of the first byte that has not arrived; behind a FIN that was reached, one more.
    pub(super) fn acknowledgment(&self) -> u64 {
        self.next + u64::from(self.is_finished())
    }

    /// Number of the first byte that has not arrived.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Bytes that may wait to be read from now on.
    pub(super) fn allow(&mut self, allowance: usize) {
        self.allowance = allowance;
    }

    /// The window to tell now; what it promises is kept.
    pub(super) fn window(&mut self) -> u16 {
        let (unit, most) = if self.foreign {
            (SLOT_LEN_FOREIGN, SLOTS_FOREIGN)
        } else {
            (WINDOW_UNIT, usize::from(u16::MAX))
        };
        let units = (self.room() / unit).min(most);
        self.edge = self.edge.max(self.next + (units * unit) as u64);
        self.told = u16::try_from(units).expect("at most as many as fit");
        self.told
    }

    fn room(&self) -> usize {
        self.allowance
            .saturating_sub(self.inbound.len() + self.unread)
    }

    /// A segment with data.
    ///
    /// # Errors
    /// [`DropReason::Duplicate`] for one that arrived before, [`DropReason::MemoryLimit`] beyond
    /// what we said may be sent. Both are acknowledged, so that the peer learns how we stand.
    pub(super) fn accept(
        &mut self,
        now: Time,
        start: u64,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let end = start + payload.len() as u64;
        if end <= self.next {
            self.due = self.due.max(1);
            return Err(DropReason::Duplicate);
        }
        if end > self.edge {
            self.due = self.due.max(1);
            return Err(DropReason::MemoryLimit);
        }
        if start > self.next {
            return self.keep(start, payload);
        }
        self.append(start, payload);
        while let Some(entry) = self.ahead.first_entry() {
            if *entry.key() > self.next {
                break;
            }
            let (start, bytes) = entry.remove_entry();
            self.append(start, &bytes);
        }
        self.unacknowledged += 1;
        let at_once = self.foreign || payload.len() >= MEASURED_LEN_MIN;
        if at_once || self.unacknowledged >= 2 || !self.ahead.is_empty() {
            self.due = self.due.max(1);
        } else {
            self.due_at = self.due_at.min(now + ACK_DELAY);
        }
        Ok(())
    }

    /// Keeps a segment beyond a gap.
    fn keep(&mut self, start: u64, payload: &[u8]) -> Result<(), DropReason> {
        let most = if self.foreign { GAP_ACKS_MAX } else { 1 };
        self.due = (self.due + 1).min(most);
        if self.ahead.contains_key(&start) {
            return Err(DropReason::Duplicate);
        }
        if self.ahead.len() >= AHEAD_MAX {
            return Err(DropReason::MemoryLimit);
        }
        self.ahead.insert(start, Bytes::copy_from_slice(payload));
        Ok(())
    }

    /// Takes what is new of a segment that begins at or before the first missing byte.
    fn append(&mut self, start: u64, bytes: &[u8]) {
        let known = usize::try_from(self.next - start).unwrap_or(usize::MAX);
        if let Some(new) = bytes.get(known..) {
            self.inbound.extend_from_slice(new);
            self.next += new.len() as u64;
            self.received += new.len() as u64;
        }
    }

    /// An ACK without data. A peer that asks whether the window is still closed is answered.
    pub(super) fn bare(&mut self) {
        if self.told == 0 {
            self.due = self.due.max(1);
        }
    }

    /// The peer's FIN has this number. Whether everything before it is here.
    pub(super) fn finish(&mut self, number: u64) -> bool {
        if self.finish.is_none() {
            self.finish = Some(number.max(self.next));
        }
        if !self.is_finished() {
            self.due = self.due.max(1);
        }
        self.is_finished()
    }

    /// Whether a FIN waits for what is missing before it.
    pub(super) fn is_finishing(&self) -> bool {
        self.finish.is_some() && !self.is_finished()
    }

    /// Whether everything before the peer's FIN is here.
    pub(super) fn is_finished(&self) -> bool {
        self.finish.is_some_and(|number| number <= self.next)
    }

    /// Whether there are bytes for the reader.
    pub(super) fn has_inbound(&self) -> bool {
        !self.inbound.is_empty()
    }

    /// What arrived in order since the last call.
    pub(super) fn take(&mut self) -> Bytes {
        self.unread += self.inbound.len();
        self.inbound.split().freeze()
    }

    /// Drops what arrived: nobody will read it.
    pub(super) fn discard(&mut self) {
        self.inbound.clear();
        self.unread = 0;
    }

    /// The reader took so many bytes. A window that was nearly closed is told as it opens, which
    /// nobody would otherwise do.
    pub(super) fn consumed(&mut self, len: usize) {
        self.unread = self.unread.saturating_sub(len);
        let allowed = self.edge.saturating_sub(self.next);
        let more = (self.room() as u64).saturating_sub(allowed);
        let (half, quarter) = (self.allowance as u64 / 2, self.allowance as u64 / 4);
        if allowed < half && more >= quarter {
            self.due = self.due.max(1);
        }
    }

    /// How many acknowledgments are to be sent now.
    pub(super) fn due(&self, now: Time) -> u8 {
        if now >= self.due_at {
            self.due.max(1)
        } else {
            self.due
        }
    }

    /// When one is to be sent that is not due now.
    pub(super) fn due_at(&self) -> Time {
        self.due_at
    }

    /// One more is to be sent now.
    pub(super) fn owe(&mut self) {
        self.due = self.due.max(1);
    }

    /// An acknowledgment left, alone or with data.
    pub(super) fn acknowledged(&mut self) {
        self.due = 0;
        self.unacknowledged = 0;
        self.due_at = Time::NEVER;
    }

    /// Whether something is missing.
    pub(super) fn has_gap(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// The ranges beyond the gap, ascending, as many as the peer reads; how many. Other daemons tell
    /// the highest ones; a ramjet node the lowest, which end the repeats, and the highest, which
    /// shows what is lost.
    pub(super) fn ranges(&self, out: &mut [Range; RANGES_MAX]) -> usize {
        let mut count = 0;
        let most = if self.foreign {
            RANGES_FOREIGN_MAX
        } else {
            RANGES_MAX
        };
        let mut push = |range: Range| {
            if count < most {
                out[count] = range;
                count += 1;
            } else if self.foreign {
                out.copy_within(1..most, 0);
                out[most - 1] = range;
            } else {
                out[most - 1] = range;
            }
        };
        let mut open: Option<Range> = None;
        for (start, bytes) in &self.ahead {
            let end = start + bytes.len() as u64;
            open = match open {
                Some((left, right)) if *start <= right => Some((left, right.max(end))),
                other => {
                    if let Some(range) = other {
                        push(range);
                    }
                    Some((*start, end))
                }
            };
        }
        if let Some(range) = open {
            push(range);
        }
        count
    }

    /// Segments beyond the gap, the window last told, bytes received in order.
    pub(super) fn standing(&self) -> (usize, u16, u64) {
        (self.ahead.len(), self.told, self.received)
    }
}
