//! How two ramjet nodes know each other: eight bytes as the payload of SYN and SYN-ACK.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 4 | `RJST` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | window unit as a power of two, 10: 1 KiB |
//! | 6 | 2 | zero |
//!
//! Other daemons ignore a payload of SYN and never send one. Whoever accepts sends them only to one
//! who has sent them. A version or a unit that is not known here is taken as no options at all.

/// The options of this version.
pub(super) const OPTIONS: [u8; 8] = *b"RJST\x01\x0a\0\0";
/// Bytes that one unit of a window stands for between ramjet nodes.
pub(super) const WINDOW_UNIT: usize = 1 << 10;

/// Shortest segment that ramjet nodes acknowledge in the turn in which it arrives, whatever else
/// there is to say. Its round trip is the path's; that of a shorter one may hold a reader's or a
/// timer's time and is not shown to the congestion controller.
pub(super) const MEASURED_LEN_MIN: usize = 1_000;

const _: () = assert!(1 << OPTIONS[5] == WINDOW_UNIT);

/// Whether the payload of a SYN comes from a ramjet node that we understand.
pub(super) fn is_ramjet(payload: &[u8]) -> bool {
    payload.starts_with(&OPTIONS[..6])
}
