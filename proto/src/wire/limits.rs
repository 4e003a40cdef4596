//! All geometry, in one file, with the relations between the numbers asserted below them.
//!
//! ```text
//!  |<-------------------------- DATAGRAM_LEN_MAX 1400 --------------------------->|
//!  | PILS 4 | node 4 | nonce 12 | packet header 34 | train 4 | frames …    | tag 16 |
//!  |<-- SEALED_HEADER_LEN 20 -->|                  |<- TRAIN_LEN_MAX 1330 ->|        |
//! ```

/// Longest UDP payload this node sends before it knows more of a path: below the 1,500-byte Ethernet
/// MTU with room for an outer IPv6 header, a UDP header and one level of encapsulation.
pub const DATAGRAM_LEN_MAX: usize = 1_400;
/// The lengths that a path is tried for, in order (RFC 8899): the base, a 9,000-byte jumbo frame with
/// the same room, and four to a segmented send on loopback. Above that length neither the cipher nor
/// the kernel gets faster by the byte, and a datagram is the grain at which answers start to flow.
pub const PATH_LENS: [usize; 3] = [DATAGRAM_LEN_MAX, 8_900, PATH_LEN_MAX];
/// The longest of [`PATH_LENS`].
pub const PATH_LEN_MAX: usize = 16_368;

/// `PILS`, sender node, nonce.
pub const SEALED_HEADER_LEN: usize = 4 + 4 + 12;
/// AES-256-GCM tag.
pub const TAG_LEN: usize = 16;
/// Pilot packet header inside the seal.
pub const PACKET_HEADER_LEN: usize = 34;
/// What sealing adds to a packet payload: 70 bytes.
pub const SEAL_OVERHEAD: usize = SEALED_HEADER_LEN + PACKET_HEADER_LEN + TAG_LEN;
/// Longest packet payload in one datagram: a whole train of frames.
pub const TRAIN_LEN_MAX: usize = DATAGRAM_LEN_MAX - SEAL_OVERHEAD;

/// The train's own header: magic and version.
pub const TRAIN_HEADER_LEN: usize = 4;
/// One frame header.
pub const FRAME_HEADER_LEN: usize = 16;
/// Longest payload of one frame, and so of a task or result that travels in one piece.
pub const FRAME_PAYLOAD_MAX: usize = TRAIN_LEN_MAX - TRAIN_HEADER_LEN - FRAME_HEADER_LEN;

/// Engagements that one tunnel carries at a time.
pub const CHANNELS_PER_TUNNEL_MAX: usize = 64;
/// Tasks that one engagement may have outstanding: its slots.
pub const SLOTS_PER_CHANNEL_MAX: usize = 4_096;
/// Longest payload or result of a task, in parts or in one piece: 16 MiB.
pub const TASK_LEN_MAX: usize = 16 << 20;
/// Longest skill name, in bytes of `[a-z0-9._-]`.
pub const SKILL_LEN_MAX: usize = 64;

/// Longest datagram that is accepted from any peer: the largest UDP payload over IPv4.
pub const RECEIVED_LEN_MAX: usize = 65_507;

const _: () = assert!(4 * PATH_LEN_MAX <= RECEIVED_LEN_MAX);
// A signed grant and a signed receipt must travel in one frame: no state is kept for a peer
// before its grant has been seen whole.
const _: () = assert!(crate::market::GRANT_LEN_MAX <= FRAME_PAYLOAD_MAX);
const _: () = assert!(crate::market::RECEIPT_LEN <= FRAME_PAYLOAD_MAX);
const _: () = assert!(SEAL_OVERHEAD == 70);
// Slot and channel numbers are 16 bits on the wire.
const _: () = assert!(SLOTS_PER_CHANNEL_MAX <= 1 << 16 && CHANNELS_PER_TUNNEL_MAX <= 1 << 16);
// Sixteen 64-byte tasks fit one datagram.
const _: () = assert!(TRAIN_HEADER_LEN + 16 * (FRAME_HEADER_LEN + 64) <= TRAIN_LEN_MAX);
