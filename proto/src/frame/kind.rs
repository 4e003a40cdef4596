//! The kinds of frame, and the codes within them.

/// What a frame is. The comment names who sends it, what `auxiliary` holds, and the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Requester: presents a grant. Slots wanted. The signed grant.
    Open = 1,
    /// Worker: the channel is open. Slots granted. How many answers it sends without a signed
    /// receipt for them, as a u64.
    Opened = 2,
    /// Either: the channel ends, or was never admitted. Flags: [`FROM_WORKER`]. Close reason. Empty.
    Close = 3,
    /// Either: answers CLOSE. Close reason. Empty.
    Closed = 4,
    /// Requester: a task. Time it may wait, in microseconds; 0 for any. The payload.
    /// Flags: [`PRIOR_ACCEPTED`], [`PRIOR_REJECTED`].
    Task = 5,
    /// Worker: a result. Flags: how many pieces of progress came before it. Two
    /// [`super::duration16`]: handler time, waiting time. The result.
    Result = 6,
    /// Worker: the handler failed. As RESULT. Why, in UTF-8.
    Failed = 7,
    /// Worker: the task was not run. Flags: [`RefusalCode`]. Microseconds until a retry makes
    /// sense. Empty.
    Refused = 8,
    /// Worker: a repeated task is still waiting or running. 0. Empty.
    Working = 9,
    /// Worker: a piece of progress. Its index from 0. The piece.
    Progress = 10,
    /// Requester: pieces received in order. The next index wanted. Empty.
    ProgressAck = 11,
    /// Requester: the answer is no longer wanted. 0. Empty.
    Cancel = 12,
    /// Requester: judges a result whose slot it does not reuse at once. 0 accepts, 1 rejects. Empty.
    Verdict = 13,
    /// Requester: a receipt with its signature. 0. The signed receipt.
    Receipt = 14,
    /// Worker: the same receipt with both signatures. 0. The signed receipt.
    Countersigned = 15,
    /// Requester: a piece of a task too long for one frame. Its offset. See [`PartHeader`].
    TaskPart = 16,
    /// Worker: a piece of a result too long for one frame. Its offset. See [`PartHeader`].
    ResultPart = 17,
    /// Either: every byte below this offset has arrived. The offset. See [`PartAckHeader`].
    /// Flags: [`FROM_WORKER`], [`PARTS_STALLED`].
    PartAck = 18,
    /// Either: asks whether the other end is there; answered by PONG. 0. Empty.
    Ping = 19,
    /// Either: answers PING. 0. Empty.
    Pong = 20,
    /// Either: fills a datagram of the length in `auxiliary`, to learn whether the path carries it.
    /// Names no channel. Empty; padding follows.
    Probe = 21,
    /// Either: a PROBE of the length in `auxiliary` arrived whole. Names no channel. Empty.
    ProbeAck = 22,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Kind; 22] = [
        Kind::Open,
        Kind::Opened,
        Kind::Close,
        Kind::Closed,
        Kind::Task,
        Kind::Result,
        Kind::Failed,
        Kind::Refused,
        Kind::Working,
        Kind::Progress,
        Kind::ProgressAck,
        Kind::Cancel,
        Kind::Verdict,
        Kind::Receipt,
        Kind::Countersigned,
        Kind::TaskPart,
        Kind::ResultPart,
        Kind::PartAck,
        Kind::Ping,
        Kind::Pong,
        Kind::Probe,
        Kind::ProbeAck,
    ];

    /// The kind of this number.
    pub fn from_wire(number: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// CLOSE, CLOSED, PART_ACK, PING, PONG: the sender is the channel's worker, so the number is one of
/// the receiver's own channels.
pub const FROM_WORKER: u8 = 0x80;
/// PART_ACK: no part has come for a while, and what was sent before is to be sent again.
pub const PARTS_STALLED: u8 = 1;
/// TASK: the result that this slot held before is accepted.
pub const PRIOR_ACCEPTED: u8 = 1;
/// TASK: the result that this slot held before is rejected.
pub const PRIOR_REJECTED: u8 = 2;

/// Why a worker did not run a task, in the flags of REFUSED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum RefusalCode {
    /// Too much to do; try again after the time in `auxiliary`.
    Busy = 1,
    /// Its deadline passed before it ran.
    Late = 2,
    /// The payload or its result could be too long.
    TooBig = 3,
    /// No such skill.
    NoSkill = 4,
    /// The grant's tasks or time are used up.
    GrantEnded = 5,
    /// Too much work without a signed receipt; try again after the time in `auxiliary`.
    ReceiptDue = 6,
    /// The worker is shutting down.
    Draining = 7,
    /// Cancelled before it ran.
    Cancelled = 8,
}

impl RefusalCode {
    /// The code of this number.
    pub fn from_wire(number: u8) -> Option<RefusalCode> {
        use RefusalCode::*;
        [
            Busy, Late, TooBig, NoSkill, GrantEnded, ReceiptDue, Draining, Cancelled,
        ]
        .into_iter()
        .find(|code| *code as u8 == number)
    }
}

/// Why a channel closed, or was never opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum CloseReason {
    /// Every task has its answer.
    Finished = 0,
    /// The grant's signature, parties or expiry are wrong.
    BadGrant = 1,
    /// The worker has no such skill.
    NoSkill = 2,
    /// The grant has ended.
    Expired = 3,
    /// The node is shutting down.
    Draining = 4,
    /// No free channel or slots.
    Full = 5,
    /// The peer was silent, or its tunnel could not be established.
    Lost = 6,
    /// The operator or the caller ended it.
    Cancelled = 7,
    /// The peer broke the protocol.
    Fault = 8,
}

impl CloseReason {
    /// Every reason, by its number on the wire.
    pub const ALL: [CloseReason; 9] = [
        CloseReason::Finished,
        CloseReason::BadGrant,
        CloseReason::NoSkill,
        CloseReason::Expired,
        CloseReason::Draining,
        CloseReason::Full,
        CloseReason::Lost,
        CloseReason::Cancelled,
        CloseReason::Fault,
    ];

    /// The label used in logs and `--json`.
    pub const fn label(self) -> &'static str {
        match self {
            CloseReason::Finished => "finished",
            CloseReason::BadGrant => "bad_grant",
            CloseReason::NoSkill => "no_skill",
            CloseReason::Expired => "expired",
            CloseReason::Draining => "draining",
            CloseReason::Full => "full",
            CloseReason::Lost => "lost",
            CloseReason::Cancelled => "cancelled",
            CloseReason::Fault => "fault",
        }
    }

    /// The reason of this number; an unknown one is a fault of the peer.
    pub fn from_wire(number: u32) -> CloseReason {
        usize::try_from(number)
            .ok()
            .and_then(|index| CloseReason::ALL.get(index).copied())
            .unwrap_or(CloseReason::Fault)
    }
}

/// The first bytes of a TASK_PART or RESULT_PART payload.
///
/// `total` is the length of the whole. For a task, `detail` is its deadline in microseconds, as in
/// TASK; for a result, the two durations, as in RESULT. `sent` is the sender's own clock, in
/// microseconds, wrapping: whoever receives the part gives it back in PART_ACK and makes nothing else
/// of it.
#[derive(
    Clone,
    Copy,
    Debug,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct PartHeader {
    /// Length of the whole payload or result.
    pub total: zerocopy::byteorder::big_endian::U32,
    /// Kind-specific.
    pub detail: zerocopy::byteorder::big_endian::U32,
    /// When it was sent, by the sender's clock.
    pub sent: zerocopy::byteorder::big_endian::U32,
}

/// The first bytes of a PART_ACK payload.
///
/// Behind it lie at most [`PARTS_MAP_MAX`] bytes, one bit a part from the acknowledged offset on, the
/// most significant first: 1 for a part that has arrived. The first bit is 0 by nature; parts beyond
/// the map have not arrived, or are not told.
#[derive(
    Clone,
    Copy,
    Debug,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct PartAckHeader {
    /// `sent` of the part that came last.
    pub echo: zerocopy::byteorder::big_endian::U32,
}

/// Longest map of a PART_ACK, in bytes: one bit for each part that may be on its way.
pub const PARTS_MAP_MAX: usize = 1_024;

/// Bytes of payload or result in one part: all but the last part carry exactly this many.
pub const PART_LEN: usize = crate::wire::limits::FRAME_PAYLOAD_MAX - size_of::<PartHeader>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_kinds_agree() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(kind as u8), index + 1);
            assert_eq!(Kind::from_wire(kind as u8), Some(kind));
        }
        assert_eq!(Kind::from_wire(0), None);
        assert_eq!(Kind::from_wire(23), None);
        assert_eq!(RefusalCode::from_wire(8), Some(RefusalCode::Cancelled));
        assert_eq!(RefusalCode::from_wire(9), None);
    }
}
