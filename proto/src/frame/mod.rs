//! Task frames: what rides in a Pilot datagram packet to port 1001 between two ramjet nodes.
//!
//! ```text
//!  packet payload = "RJT" version(1) | frame | frame | … | padding
//!
//!   0      1      2        4         6      8             12          16
//!  +------+------+--------+---------+------+-------------+-----------+---------
//!  | kind | flags| length | channel | slot | generation  | auxiliary | payload …
//!  +------+------+--------+---------+------+-------------+-----------+---------
//! ```
//!
//! All integers are big-endian. `length` counts the payload alone. A zero byte where a kind is due
//! ends the train: what follows is padding. Nothing in a train is allocated or copied to be read:
//! [`Train`] hands out views of the decrypted datagram.
//!
//! `docs/WIRE.md` specifies every kind byte for byte; [`kind`] lists them.

pub mod duration16;
pub mod kind;
pub mod path;

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::fault::DropReason;
use crate::ids::ChannelId;
use crate::wire::limits::{FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, TRAIN_HEADER_LEN};

pub use kind::Kind;

/// Virtual port of data exchange, on which trains travel in both directions.
pub const TASK_PORT: u16 = 1001;
/// The first bytes of every train: magic and version.
pub const TRAIN_MAGIC: [u8; TRAIN_HEADER_LEN] = *b"RJT\x01";

/// The header of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    /// [`Kind`], never 0.
    pub kind: u8,
    /// Kind-specific.
    pub flags: u8,
    /// Payload length.
    pub length: U16,
    /// The engagement within its tunnel.
    pub channel: U16,
    /// The task's slot; 0 where the kind has none.
    pub slot: U16,
    /// The slot's use, from 1; 0 where the kind has none.
    pub generation: U32,
    /// Kind-specific.
    pub auxiliary: U32,
}

const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_LEN);

/// A frame as its receiver believes it: the kind is known and the payload lies within the train.
#[derive(Debug)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// Kind-specific.
    pub flags: u8,
    /// The engagement within its tunnel.
    pub channel: ChannelId,
    /// Task name: slot and generation.
    pub task: TaskId,
    /// Kind-specific.
    pub auxiliary: u32,
    /// Its payload, in the datagram.
    pub payload: &'a [u8],
}

/// A task within its channel: a slot, and which use of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TaskId {
    /// Below the channel's credits.
    pub slot: u16,
    /// From 1, one more for each task in the slot. Wraps after 2^32 - 1 to 1.
    pub generation: u32,
}

/// What to write into a frame header; the payload is already in place behind it.
///
/// The sixteen bytes themselves, as two words with no length yet: two words stay in registers on their
/// way to the datagram. Fields that are written one by one and then moved as a whole make the processor
/// wait, at every move, until each store has reached its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// `kind | flags | length: 0 | channel | slot`.
    names: u64,
    /// `generation | auxiliary`.
    values: u64,
}

impl Head {
    /// A frame about a whole channel.
    #[inline]
    pub const fn channel(kind: Kind, channel: ChannelId, auxiliary: u32) -> Self {
        let task = TaskId {
            slot: 0,
            generation: 0,
        };
        Self::task(kind, channel, task, auxiliary)
    }

    /// A frame about one task.
    #[inline]
    pub const fn task(kind: Kind, channel: ChannelId, task: TaskId, auxiliary: u32) -> Self {
        Head {
            names: (kind as u64) << 56 | (channel.0 as u64) << 16 | task.slot as u64,
            values: (task.generation as u64) << 32 | auxiliary as u64,
        }
    }

    /// The same with these flags.
    #[inline]
    pub const fn with_flags(self, flags: u8) -> Self {
        Head {
            names: self.names & !(0xFF << 48) | (flags as u64) << 48,
            ..self
        }
    }

    /// The same with another auxiliary value.
    #[inline]
    pub const fn with_auxiliary(self, auxiliary: u32) -> Self {
        Head {
            values: self.values & !0xFFFF_FFFF | auxiliary as u64,
            ..self
        }
    }

    /// What it is.
    pub fn kind(self) -> Kind {
        Kind::from_wire(self.names.to_be_bytes()[0]).expect("made from a kind")
    }

    /// Kind-specific.
    pub const fn flags(self) -> u8 {
        self.names.to_be_bytes()[1]
    }

    /// The engagement within its tunnel.
    pub const fn channel_id(self) -> ChannelId {
        let [.., high, low, _, _] = self.names.to_be_bytes();
        ChannelId(u16::from_be_bytes([high, low]))
    }

    /// Task name; default where the kind has none.
    pub const fn task_id(self) -> TaskId {
        let [.., high, low] = self.names.to_be_bytes();
        let [g0, g1, g2, g3, ..] = self.values.to_be_bytes();
        TaskId {
            slot: u16::from_be_bytes([high, low]),
            generation: u32::from_be_bytes([g0, g1, g2, g3]),
        }
    }

    /// Kind-specific.
    pub const fn auxiliary(self) -> u32 {
        let [.., a0, a1, a2, a3] = self.values.to_be_bytes();
        u32::from_be_bytes([a0, a1, a2, a3])
    }

    /// Writes the header over the first 16 bytes of `space`, behind which `payload_len` bytes lie.
    ///
    /// # Panics
    /// If the payload is longer than a frame may carry, or the space too short: both are decided by
    /// the caller before it writes.
    #[inline]
    pub fn write(self, space: &mut [u8], payload_len: usize) {
        assert!(
            payload_len <= FRAME_PAYLOAD_MAX,
            "payload of {payload_len} bytes"
        );
        let names = self.names | (payload_len as u64) << 32;
        let (header, _) = space
            .split_first_chunk_mut::<FRAME_HEADER_LEN>()
            .expect("space for a frame header");
        header[..8].copy_from_slice(&names.to_be_bytes());
        header[8..].copy_from_slice(&self.values.to_be_bytes());
    }
}

/// The frames of one packet payload, in order.
///
/// A fault ends the train, since the next header can no longer be found; frames before it stand.
#[derive(Debug)]
pub struct Train<'a> {
    rest: &'a [u8],
}

impl<'a> Train<'a> {
    /// Opens a train.
    ///
    /// # Errors
    /// [`DropReason::BadTrain`] if the magic or version is another.
    pub fn open(payload: &'a [u8]) -> Result<Self, DropReason> {
        match payload.strip_prefix(&TRAIN_MAGIC) {
            Some(rest) => Ok(Train { rest }),
            None => Err(DropReason::BadTrain),
        }
    }

    fn parse(&mut self) -> Result<Frame<'a>, DropReason> {
        let Ok((header, rest)) = FrameHeader::ref_from_prefix(self.rest) else {
            self.rest = &[];
            return Err(DropReason::BadFrame);
        };
        let length = usize::from(header.length.get());
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            self.rest = &[];
            return Err(DropReason::BadFrame);
        };
        self.rest = rest;
        let kind = Kind::from_wire(header.kind).ok_or(DropReason::UnknownFrame)?;
        Ok(Frame {
            kind,
            flags: header.flags,
            channel: ChannelId(header.channel.get()),
            task: TaskId {
                slot: header.slot.get(),
                generation: header.generation.get(),
            },
            auxiliary: header.auxiliary.get(),
            payload,
        })
    }
}

impl<'a> Iterator for Train<'a> {
    type Item = Result<Frame<'a>, DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.first().is_none_or(|kind| *kind == 0) {
            return None;
        }
        Some(self.parse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn train(frames: &[(Head, &[u8])]) -> Vec<u8> {
        let mut bytes = TRAIN_MAGIC.to_vec();
        for (head, payload) in frames {
            let start = bytes.len();
            bytes.resize(start + FRAME_HEADER_LEN, 0);
            bytes.extend_from_slice(payload);
            head.write(&mut bytes[start..], payload.len());
        }
        bytes
    }

    #[test]
    fn a_task_frame_has_the_published_bytes() {
        let task = TaskId {
            slot: 0x0102,
            generation: 3,
        };
        let head = Head::task(Kind::Task, ChannelId(5), task, 20_000).with_flags(1);
        assert_eq!(
            train(&[(head, b"hi")]),
            [
                b'R', b'J', b'T', 1, // magic, version
                5, 1, 0, 2, // TASK, prior accepted, two bytes
                0, 5, 1, 2, // channel 5, slot 258
                0, 0, 0, 3, // generation 3
                0, 0, 0x4E, 0x20, // deadline 20,000 us
                b'h', b'i',
            ]
        );
    }

    #[test]
    fn frames_come_back_in_order_and_padding_ends_the_train() {
        let open = Head::channel(Kind::Open, ChannelId(1), 64);
        let task = Head::task(
            Kind::Task,
            ChannelId(1),
            TaskId {
                slot: 2,
                generation: 1,
            },
            0,
        );
        let mut bytes = train(&[(open, b"grant"), (task, b"")]);
        bytes.extend_from_slice(&[0; 40]);
        let frames: Vec<_> = Train::open(&bytes)
            .expect("magic")
            .map(|f| f.expect("frame"))
            .collect();
        assert_eq!(frames.len(), 2);
        assert_eq!(
            (frames[0].kind, frames[0].payload),
            (Kind::Open, &b"grant"[..])
        );
        assert_eq!((frames[1].kind, frames[1].task.slot), (Kind::Task, 2));
    }

    #[test]
    fn an_unknown_kind_is_skipped_and_a_cut_frame_ends_the_train() {
        let close = Head::channel(Kind::Close, ChannelId(1), 0);
        let mut bytes = train(&[(close, b"x"), (close, b"y")]);
        bytes[TRAIN_HEADER_LEN] = 0xEE;
        let seen: Vec<_> = Train::open(&bytes).expect("magic").collect();
        assert_eq!(seen[0].as_ref().err(), Some(&DropReason::UnknownFrame));
        assert_eq!(seen[1].as_ref().expect("second frame").payload, b"y");
        bytes.pop();
        let seen: Vec<_> = Train::open(&bytes).expect("magic").collect();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[1].as_ref().err(), Some(&DropReason::BadFrame));
    }

    proptest! {
        #[test]
        fn a_head_is_what_its_frame_says(
            flags: u8, other: u8, channel: u16, slot: u16, generation: u32, auxiliary: u32,
            more: u32, payload in proptest::collection::vec(any::<u8>(), 0..=FRAME_PAYLOAD_MAX),
        ) {
            let task = TaskId { slot, generation };
            let head = Head::task(Kind::Failed, ChannelId(channel), task, more)
                .with_flags(other)
                .with_flags(flags)
                .with_auxiliary(auxiliary);
            let bytes = train(&[(head, &payload)]);
            let frame = Train::open(&bytes).expect("magic").next().expect("one").expect("whole");
            prop_assert_eq!((frame.kind, frame.flags), (Kind::Failed, flags));
            prop_assert_eq!((frame.channel, frame.task), (ChannelId(channel), task));
            prop_assert_eq!((frame.auxiliary, frame.payload), (auxiliary, &payload[..]));
            prop_assert_eq!((head.kind(), head.flags()), (frame.kind, frame.flags));
            prop_assert_eq!((head.channel_id(), head.task_id()), (frame.channel, frame.task));
            prop_assert_eq!(head.auxiliary(), frame.auxiliary);
        }

        #[test]
        fn any_bytes_end_and_stay_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            if let Ok(train) = Train::open(&bytes) {
                for frame in train.flatten() {
                    prop_assert!(frame.payload.len() <= bytes.len());
                }
            }
            let mut with_magic = TRAIN_MAGIC.to_vec();
            with_magic.extend_from_slice(&bytes);
            let count = Train::open(&with_magic).expect("magic").count();
            prop_assert!(count <= bytes.len());
        }
    }
}
