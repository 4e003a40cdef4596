//! The packets of the agent port: `docs/WIRE.md`, section "Agent port".
//!
//! Both ends are on one host, so integers are little-endian. A packet is read whole or it is a
//! [`Breach`]; nothing here allocates but [`Message::encode`], which appends. Absent: sockets, and what
//! the order of packets means.

/// The version of packets and arena.
pub const ABI: u16 = 1;
/// Longest packet.
pub const PACKET_LEN_MAX: usize = 65_536;
/// Bytes before the body.
pub const HEAD_LEN: usize = 8;
/// Longest reason of a FAILED.
pub const REASON_LEN_MAX: usize = 1_024;

/// What an agent did that ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breach {
    /// A packet longer than [`PACKET_LEN_MAX`].
    TooLong,
    /// A packet whose length is not its kind's.
    BadLength,
    /// A kind that there is not, or that is the other end's.
    UnknownKind,
    /// Another [`ABI`].
    UnknownAbi,
    /// The epoch of another connection.
    WrongEpoch,
    /// A batch that is not in flight, or a task that is not in it.
    UnknownBatch,
    /// A batch that is not the running one.
    OutOfOrder,
    /// A HELLO that is no JSON, or one that cannot be.
    BadHello,
    /// It does not read what it is sent.
    DoesNotRead,
}

impl Breach {
    /// Every one.
    pub const ALL: [Breach; 9] = [
        Breach::TooLong,
        Breach::BadLength,
        Breach::UnknownKind,
        Breach::UnknownAbi,
        Breach::WrongEpoch,
        Breach::UnknownBatch,
        Breach::OutOfOrder,
        Breach::BadHello,
        Breach::DoesNotRead,
    ];

    /// Its name in logs and counters.
    pub fn label(self) -> &'static str {
        match self {
            Breach::TooLong => "too_long",
            Breach::BadLength => "bad_length",
            Breach::UnknownKind => "unknown_kind",
            Breach::UnknownAbi => "unknown_abi",
            Breach::WrongEpoch => "wrong_epoch",
            Breach::UnknownBatch => "unknown_batch",
            Breach::OutOfOrder => "out_of_order",
            Breach::BadHello => "bad_hello",
            Breach::DoesNotRead => "does_not_read",
        }
    }
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// The body of BATCH.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchNote {
    /// Its number, which is never used again on this connection.
    pub batch: u64,
    /// The region that it lies in.
    pub region: u32,
    /// Tasks.
    pub tasks: u32,
    /// The earliest deadline, on CLOCK_MONOTONIC in nanoseconds; 0 for none.
    pub earliest_deadline_ns: u64,
    /// Work units of all tasks.
    pub work: u64,
    /// Where results may lie, from the region's start.
    pub result_offset: u32,
    /// Bytes for all results.
    pub result_len: u32,
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The agent says what it runs, as JSON.
    Hello(&'a [u8]),
    /// The node takes it, as JSON; the arena comes with it.
    Welcome(&'a [u8]),
    /// The node does not, for a reason.
    Refused(&'a [u8]),
    /// The model is loaded.
    Ready,
    /// A batch lies in the arena.
    Batch(BatchNote),
    /// Its answers lie there.
    Done {
        /// Which.
        batch: u64,
        /// Time in the skill's run, in nanoseconds.
        run_ns: u64,
    },
    /// The whole batch failed, for a reason.
    Failed {
        /// Which.
        batch: u64,
        /// Why, as UTF-8.
        reason: &'a [u8],
    },
    /// A piece of progress of one task.
    Progress {
        /// In which batch.
        batch: u64,
        /// Which task of it.
        index: u32,
        /// What it says.
        bytes: &'a [u8],
    },
    /// No further batch comes.
    Drain,
    /// Send no further batch.
    Bye,
    /// The batch is still worked on.
    Alive {
        /// Which.
        batch: u64,
    },
}

impl Message<'_> {
    fn kind(&self) -> u16 {
        match self {
            Message::Hello(_) => 1,
            Message::Welcome(_) => 2,
            Message::Refused(_) => 3,
            Message::Ready => 4,
            Message::Batch(_) => 5,
            Message::Done { .. } => 6,
            Message::Failed { .. } => 7,
            Message::Progress { .. } => 8,
            Message::Drain => 9,
            Message::Bye => 10,
            Message::Alive { .. } => 11,
        }
    }

    /// The packet, in place of what `out` held.
    pub fn encode(&self, epoch: u32, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.kind().to_le_bytes());
        out.extend_from_slice(&ABI.to_le_bytes());
        out.extend_from_slice(&epoch.to_le_bytes());
        match self {
            Message::Hello(bytes) | Message::Welcome(bytes) | Message::Refused(bytes) => {
                out.extend_from_slice(bytes);
            }
            Message::Ready | Message::Drain | Message::Bye => {}
            Message::Batch(note) => {
                out.extend_from_slice(&note.batch.to_le_bytes());
                out.extend_from_slice(&note.region.to_le_bytes());
                out.extend_from_slice(&note.tasks.to_le_bytes());
                out.extend_from_slice(&note.earliest_deadline_ns.to_le_bytes());
                out.extend_from_slice(&note.work.to_le_bytes());
                out.extend_from_slice(&note.result_offset.to_le_bytes());
                out.extend_from_slice(&note.result_len.to_le_bytes());
            }
            Message::Done { batch, run_ns } => {
                out.extend_from_slice(&batch.to_le_bytes());
                out.extend_from_slice(&run_ns.to_le_bytes());
            }
            Message::Failed { batch, reason } => {
                out.extend_from_slice(&batch.to_le_bytes());
                out.extend_from_slice(&reason[..reason.len().min(REASON_LEN_MAX)]);
            }
            Message::Progress {
                batch,
                index,
                bytes,
            } => {
                out.extend_from_slice(&batch.to_le_bytes());
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&[0; 4]);
                out.extend_from_slice(bytes);
            }
            Message::Alive { batch } => out.extend_from_slice(&batch.to_le_bytes()),
        }
    }
}

/// Little-endian integers from the head of a slice.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Breach> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Breach::BadLength)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Breach> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Breach> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Breach> {
        self.take().map(u64::from_le_bytes)
    }

    /// What is left, whatever it is.
    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Reads a packet: its epoch, and what it says.
///
/// # Errors
/// How it breaks the protocol.
pub fn decode(packet: &[u8]) -> Result<(u32, Message<'_>), Breach> {
    let mut fields = Fields(packet);
    let (kind, abi, epoch) = (fields.u16()?, fields.u16()?, fields.u32()?);
    if abi != ABI {
        return Err(Breach::UnknownAbi);
    }
    let message = match kind {
        1 => Message::Hello(fields.rest()),
        2 => Message::Welcome(fields.rest()),
        3 => Message::Refused(fields.rest()),
        4 => Message::Ready,
        5 => Message::Batch(BatchNote {
            batch: fields.u64()?,
            region: fields.u32()?,
            tasks: fields.u32()?,
            earliest_deadline_ns: fields.u64()?,
            work: fields.u64()?,
            result_offset: fields.u32()?,
            result_len: fields.u32()?,
        }),
        6 => Message::Done {
            batch: fields.u64()?,
            run_ns: fields.u64()?,
        },
        7 => {
            let (batch, reason) = (fields.u64()?, fields.rest());
            if reason.len() > REASON_LEN_MAX {
                return Err(Breach::BadLength);
            }
            Message::Failed { batch, reason }
        }
        8 => {
            let (batch, index, _reserved) = (fields.u64()?, fields.u32()?, fields.u32()?);
            let bytes = fields.rest();
            Message::Progress {
                batch,
                index,
                bytes,
            }
        }
        9 => Message::Drain,
        10 => Message::Bye,
        11 => Message::Alive {
            batch: fields.u64()?,
        },
        _ => return Err(Breach::UnknownKind),
    };
    if fields.0.is_empty() {
        Ok((epoch, message))
    } else {
        Err(Breach::BadLength)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: BatchNote = BatchNote {
        batch: 0x0102_0304_0506_0708,
        region: 1,
        tasks: 256,
        earliest_deadline_ns: 9,
        work: 10,
        result_offset: 64,
        result_len: 4_096,
    };

    #[test]
    fn every_kind_survives_the_way() {
        let all = [
            Message::Hello(b"{}"),
            Message::Welcome(b"{\"node\":7}"),
            Message::Refused(b"no"),
            Message::Ready,
            Message::Batch(NOTE),
            Message::Done {
                batch: 3,
                run_ns: 4,
            },
            Message::Failed {
                batch: 3,
                reason: b"ValueError",
            },
            Message::Progress {
                batch: 3,
                index: 2,
                bytes: b"half",
            },
            Message::Drain,
            Message::Bye,
            Message::Alive { batch: 3 },
        ];
        let mut packet = Vec::new();
        for message in all {
            message.encode(77, &mut packet);
            assert_eq!(decode(&packet), Ok((77, message)));
        }
    }

    #[test]
    fn a_batch_is_these_bytes() {
        let mut packet = Vec::new();
        Message::Batch(NOTE).encode(0x0A0B_0C0D, &mut packet);
        let expected: [&[u8]; 9] = [
            &[5, 0],
            &[1, 0],
            &[0x0D, 0x0C, 0x0B, 0x0A],
            &[8, 7, 6, 5, 4, 3, 2, 1],
            &[1, 0, 0, 0, 0, 1, 0, 0],
            &[9, 0, 0, 0, 0, 0, 0, 0],
            &[10, 0, 0, 0, 0, 0, 0, 0],
            &[64, 0, 0, 0],
            &[0, 16, 0, 0],
        ];
        assert_eq!(packet, expected.concat());
    }

    #[test]
    fn what_is_no_packet_is_a_breach_by_name() {
        let packet = |kind: u16, abi: u16, body: &[u8]| {
            let mut packet = kind.to_le_bytes().to_vec();
            packet.extend_from_slice(&abi.to_le_bytes());
            packet.extend_from_slice(&[0; 4]);
            packet.extend_from_slice(body);
            packet
        };
        let table: [(Vec<u8>, Breach); 8] = [
            (Vec::new(), Breach::BadLength),
            (vec![6, 0, 1, 0, 0, 0, 0], Breach::BadLength),
            (packet(4, 2, b""), Breach::UnknownAbi),
            (packet(0, 1, b""), Breach::UnknownKind),
            (packet(12, 1, b""), Breach::UnknownKind),
            (packet(6, 1, &[0; 15]), Breach::BadLength),
            (packet(6, 1, &[0; 17]), Breach::BadLength),
            (packet(7, 1, &[0; 8 + 1_025]), Breach::BadLength),
        ];
        for (bytes, breach) in table {
            assert_eq!(decode(&bytes), Err(breach), "{bytes:?}");
        }
    }
}
