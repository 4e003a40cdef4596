//! Where things lie in a region of the arena: pure arithmetic, for both ends.
//!
//! ```text
//!  0    header, 64 bytes
//!  64   task[n], 32 bytes each
//!       answer[n], 16 bytes each
//!       payloads, each at a multiple of 8, in order
//!       results, at a multiple of 64
//! ```
//!
//! Offsets count from the region's start. What the other end wrote is checked where it is used.

use super::wire::{ABI, Breach, Fields};

/// What a region in use begins with.
pub const REGION_MAGIC: u32 = 0x4A52_4D31;
/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Bytes of one task's entry.
pub const TASK_ENTRY_LEN: usize = 32;
/// Bytes of one answer's entry.
pub const ANSWER_ENTRY_LEN: usize = 16;
/// Where a task's flags stand in its entry.
pub const FLAGS_OFFSET: usize = 28;
/// A flag: nobody waits for the task any more.
pub const UNWANTED: u32 = 1;
/// Payloads begin at multiples of this.
const PAYLOAD_ALIGN: usize = 8;
/// Results begin at a multiple of this.
const RESULT_ALIGN: usize = 64;

/// What a region takes for one task beside its result: entries, and the payload rounded up.
pub const fn task_room(payload_len: usize) -> usize {
    TASK_ENTRY_LEN + ANSWER_ENTRY_LEN + payload_len.next_multiple_of(PAYLOAD_ALIGN)
}

/// What a region takes beside its tasks: the header, and the results' alignment.
pub const REGION_OVERHEAD: usize = HEADER_LEN + RESULT_ALIGN;

/// Where a batch's parts begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Tasks.
    pub tasks: usize,
    /// Bytes of all payloads, each rounded up.
    pub payload_len: usize,
    /// Bytes of results.
    pub result_len: usize,
}

impl Layout {
    /// For payloads of the given lengths and results of at most `result_len_max` bytes each.
    pub fn of(payload_lens: impl Iterator<Item = usize>, result_len_max: usize) -> Self {
        let (mut tasks, mut payload_len) = (0, 0);
        for len in payload_lens {
            tasks += 1;
            payload_len += len.next_multiple_of(PAYLOAD_ALIGN);
        }
        Layout {
            tasks,
            payload_len,
            result_len: tasks * result_len_max,
        }
    }

    /// Where answers begin.
    pub fn answers(&self) -> usize {
        HEADER_LEN + self.tasks * TASK_ENTRY_LEN
    }

    /// Where payloads begin.
    pub fn payloads(&self) -> usize {
        self.answers() + self.tasks * ANSWER_ENTRY_LEN
    }

    /// Where results begin.
    pub fn results(&self) -> usize {
        (self.payloads() + self.payload_len).next_multiple_of(RESULT_ALIGN)
    }

    /// Where results end, and so all of it.
    pub fn end(&self) -> usize {
        self.results() + self.result_len
    }

    /// Where the payload after one of `len` bytes at `offset` begins.
    pub fn next_payload(offset: usize, len: usize) -> usize {
        offset + len.next_multiple_of(PAYLOAD_ALIGN)
    }

    /// The entry of answer `index`.
    pub fn answer(&self, index: usize) -> usize {
        self.answers() + index * ANSWER_ENTRY_LEN
    }
}

/// The header of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionHeader {
    /// Of the connection.
    pub epoch: u32,
    /// Tasks.
    pub tasks: u32,
    /// The batch.
    pub batch: u64,
    /// On CLOCK_MONOTONIC in nanoseconds; 0 for none.
    pub earliest_deadline_ns: u64,
    /// Work units of all tasks.
    pub work: u64,
    /// Where results may lie.
    pub result_offset: u32,
    /// Bytes for them.
    pub result_len: u32,
}

impl RegionHeader {
    /// Appends its 64 bytes.
    pub fn append(&self, out: &mut Vec<u8>) {
        let end = out.len() + HEADER_LEN;
        out.extend_from_slice(&REGION_MAGIC.to_le_bytes());
        out.extend_from_slice(&ABI.to_le_bytes());
        out.extend_from_slice(&64_u16.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.tasks.to_le_bytes());
        out.extend_from_slice(&self.batch.to_le_bytes());
        out.extend_from_slice(&self.earliest_deadline_ns.to_le_bytes());
        out.extend_from_slice(&self.work.to_le_bytes());
        out.extend_from_slice(&self.result_offset.to_le_bytes());
        out.extend_from_slice(&self.result_len.to_le_bytes());
        out.resize(end, 0);
    }

    /// Reads it; `None` if these are no header.
    pub fn read(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let mut read = || -> Result<Option<Self>, Breach> {
            let (magic, abi, len) = (fields.u32()?, fields.u16()?, fields.u16()?);
            if (magic, abi, usize::from(len)) != (REGION_MAGIC, ABI, HEADER_LEN) {
                return Ok(None);
            }
            Ok(Some(RegionHeader {
                epoch: fields.u32()?,
                tasks: fields.u32()?,
                batch: fields.u64()?,
                earliest_deadline_ns: fields.u64()?,
                work: fields.u64()?,
                result_offset: fields.u32()?,
                result_len: fields.u32()?,
            }))
        };
        read().ok().flatten()
    }
}

/// One task in a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskEntry {
    /// Tells tasks of a connection apart.
    pub key: u64,
    /// On CLOCK_MONOTONIC in nanoseconds; 0 for none.
    pub deadline_ns: u64,
    /// Where its payload begins.
    pub offset: u32,
    /// Its bytes.
    pub len: u32,
    /// Work units.
    pub work: u32,
    /// [`UNWANTED`] or none.
    pub flags: u32,
}

impl TaskEntry {
    /// Appends its 32 bytes.
    pub fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.to_le_bytes());
        out.extend_from_slice(&self.deadline_ns.to_le_bytes());
        for field in [self.offset, self.len, self.work, self.flags] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    /// Reads it.
    pub fn read(bytes: &[u8; TASK_ENTRY_LEN]) -> Self {
        let mut fields = Fields(bytes);
        let mut read = || -> Result<Self, Breach> {
            Ok(TaskEntry {
                key: fields.u64()?,
                deadline_ns: fields.u64()?,
                offset: fields.u32()?,
                len: fields.u32()?,
                work: fields.u32()?,
                flags: fields.u32()?,
            })
        };
        read().unwrap_or_default()
    }
}

/// What an agent says of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerStatus {
    /// Nothing.
    Unanswered,
    /// Done: the result.
    Done,
    /// Failed: the reason.
    Failed,
    /// Refused: too late.
    Late,
    /// Refused: too busy.
    Busy,
}

/// One answer in a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerEntry {
    /// As in [`AnswerStatus`], by its number.
    pub status: u32,
    /// Where its bytes begin.
    pub offset: u32,
    /// How many.
    pub len: u32,
}

impl AnswerEntry {
    /// Its 16 bytes.
    pub fn bytes(&self) -> [u8; ANSWER_ENTRY_LEN] {
        let mut bytes = [0; ANSWER_ENTRY_LEN];
        let fields = [self.status, self.offset, self.len];
        for (space, field) in bytes.chunks_exact_mut(4).zip(fields) {
            space.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// Reads it.
    pub fn read(bytes: &[u8; ANSWER_ENTRY_LEN]) -> Self {
        let mut fields = Fields(bytes);
        let mut read = || -> Result<Self, Breach> {
            Ok(AnswerEntry {
                status: fields.u32()?,
                offset: fields.u32()?,
                len: fields.u32()?,
            })
        };
        read().unwrap_or_default()
    }

    /// Checks it against the batch that it answers: what it says, and where its bytes lie.
    ///
    /// # Errors
    /// What is wrong with it, which fails the one task.
    pub fn check(
        &self,
        layout: &Layout,
        result_len_max: usize,
    ) -> Result<(AnswerStatus, usize, usize), &'static str> {
        let status = match self.status {
            0 => return Ok((AnswerStatus::Unanswered, 0, 0)),
            1 => AnswerStatus::Done,
            2 => AnswerStatus::Failed,
            3 => return Ok((AnswerStatus::Late, 0, 0)),
            4 => return Ok((AnswerStatus::Busy, 0, 0)),
            _ => return Err("the agent answered with an unknown status"),
        };
        let (offset, len) = (self.offset as usize, self.len as usize);
        if len > result_len_max {
            return Err("the agent's answer is longer than it declared");
        }
        let results = layout.results()..=layout.end();
        let end = offset.saturating_add(len);
        if len > 0 && !(results.contains(&offset) && results.contains(&end)) {
            return Err("the agent's answer lies outside the results");
        }
        Ok((status, offset, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_aligned() {
        let layout = Layout::of([5, 8, 0, 17].into_iter(), 100);
        assert_eq!((layout.tasks, layout.payload_len), (4, 8 + 8 + 24));
        assert_eq!((layout.answers(), layout.payloads()), (192, 256));
        assert_eq!((layout.results(), layout.end()), (320, 720));
        assert_eq!(layout.answer(3), 192 + 48);
        let room: usize = [5, 8, 0, 17].iter().map(|len| task_room(*len) + 100).sum();
        assert!(layout.end() <= room + REGION_OVERHEAD);
    }

    #[test]
    fn entries_survive_the_way() {
        let header = RegionHeader {
            epoch: 1,
            tasks: 2,
            batch: 3,
            earliest_deadline_ns: 4,
            work: 5,
            result_offset: 6,
            result_len: 7,
        };
        let task = TaskEntry {
            key: 1,
            deadline_ns: 2,
            offset: 3,
            len: 4,
            work: 5,
            flags: UNWANTED,
        };
        let mut bytes = Vec::new();
        header.append(&mut bytes);
        task.append(&mut bytes);
        let (head, rest) = bytes.split_first_chunk().expect("64 bytes");
        assert_eq!(RegionHeader::read(head), Some(header));
        assert_eq!(RegionHeader::read(&[0; 64]), None);
        let entry: &[u8; 32] = rest.try_into().expect("32 bytes");
        assert_eq!(TaskEntry::read(entry), task);
        assert_eq!(entry[FLAGS_OFFSET], 1, "where the flags stand");
        let answer = AnswerEntry {
            status: 1,
            offset: 2,
            len: 3,
        };
        assert_eq!(AnswerEntry::read(&answer.bytes()), answer);
    }

    #[test]
    fn an_answer_stays_within_the_results_or_fails_its_task() {
        let layout = Layout::of([8].into_iter(), 100);
        let (begin, end) = (layout.results(), layout.end());
        let check = |status: u32, offset: usize, len: usize| {
            let entry = AnswerEntry {
                status,
                offset: u32::try_from(offset).expect("small"),
                len: u32::try_from(len).expect("small"),
            };
            entry.check(&layout, 60)
        };
        assert_eq!(check(1, begin, 60), Ok((AnswerStatus::Done, begin, 60)));
        assert_eq!(check(2, end - 1, 1), Ok((AnswerStatus::Failed, end - 1, 1)));
        assert_eq!(check(1, 0, 0), Ok((AnswerStatus::Done, 0, 0)));
        assert_eq!(check(0, 1, 1), Ok((AnswerStatus::Unanswered, 0, 0)));
        assert_eq!(check(3, 1, 1), Ok((AnswerStatus::Late, 0, 0)));
        assert_eq!(check(4, 1, 1), Ok((AnswerStatus::Busy, 0, 0)));
        for (status, offset, len) in [
            (1, begin - 1, 1),
            (1, end, 1),
            (1, end - 1, 2),
            (1, begin, 61),
            (2, 0, 4),
            (5, begin, 1),
            (1, u32::MAX as usize, 60),
        ] {
            assert!(
                check(status, offset, len).is_err(),
                "{status} {offset} {len}"
            );
        }
    }
}
