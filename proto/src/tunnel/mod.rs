//! The Pilot tunnel: key exchange, sealing, opening, replay windows, rekeying.
//!
//! [`Tunnels`] holds every tunnel of one worker. It owns no socket and no clock: datagrams go in
//! through [`Tunnels::receive`], packets go out through [`Tunnels::seal`], and after any call the
//! caller drains [`Tunnels::poll_transmit`] and [`Tunnels::poll_event`], then sleeps until
//! [`Tunnels::next_timeout`] at most and calls [`Tunnels::handle_timeout`].
//!
//! | part | holds |
//! |---|---|
//! | `tunnels` | the type that a worker drives: connect, receive, timeouts |
//! | `table` | slots with generations, and the index from node to slot |
//! | `peer` | one tunnel: its keys, its sessions, what confirms and what retires them |
//! | `handshake` | key announcements and the derivation of session keys |
//! | `exchange` | when an announcement is repeated, and when the peer is given up |
//! | `introduce` | key exchanges received, and nodes whose key the registry must tell first |
//! | `keys`, `replay` | AES-256-GCM and nonces; one replay window a nonce prefix |
//! | `open`, `seal` | the two doors that packets pass |
//! | `upkeep` | timeouts: retransmission, keepalive, rotation, retirement |
//! | `relay` | which way datagrams take: directly, or over the beacon |
//! | `outbox`, `limit`, `timers` | bounded helpers of the above |
//!
//! Invariants:
//! - Nothing that is not authenticated by a session key moves a session, a replay window or an
//!   endpoint. An announcement only adds a *candidate* session; the first datagram that opens
//!   under it makes it the live one.
//! - A nonce is never used twice under a key: the counter belongs to our X25519 key, which is drawn
//!   anew for every peer and every rotation, and never restarts.
//! - A key of the peer that has been superseded never comes back, so what was recorded under it
//!   stays worthless.
//! - Every datagram is delivered, handled, or dropped under one [`DropReason`].
//!
//! Absent: streams, frames, files, retries of application data.

mod exchange;
mod handshake;
mod introduce;
mod keys;
mod limit;
mod open;
mod outbox;
mod peer;
mod relay;
mod replay;
mod seal;
mod table;
mod timers;
mod tunnels;
mod upkeep;
#[cfg(test)]
mod vectors;

use std::net::SocketAddr;
use std::sync::Arc;

pub use open::Opened;
pub use relay::Route;
pub use seal::{OutgoingPacket, SealRefusal};
pub use table::TunnelHandle;
pub use tunnels::Tunnels;

use crate::fault::DropReason;
use crate::identity::Identity;
use crate::ids::NodeId;

/// Entropy as an argument: fills the slice with bytes that nobody can guess.
pub type Entropy<'a> = &'a mut dyn FnMut(&mut [u8]);

/// Bytes that one tunnel may take in memory, while its keys are exchanged and its peer does its
/// worst; one that rests, with one session and one nonce prefix, takes a tenth.
pub const TUNNEL_LEN_MAX: usize = peer::TUNNEL_LEN_MAX;

/// What a table of tunnels needs to know.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// Our node.
    pub node: NodeId,
    /// Our keys, which sign every announcement.
    pub identity: Arc<Identity>,
    /// Most tunnels at a time, from 1.
    pub tunnels_max: usize,
    /// Key exchanges accepted a second and source address, also the burst; at least 1. Relayed
    /// ones count by the node they claim to come from.
    pub key_exchanges_per_second: u32,
    /// The beacon, if any: the only address whose beacon messages are believed.
    pub beacon: Option<SocketAddr>,
}

/// What became of a datagram.
#[derive(Debug)]
pub enum Received<'b> {
    /// A packet of an authenticated peer, decrypted in place.
    Packet(Opened<'b>),
    /// Key exchange, keepalive, ping, punch, beacon message: done, nothing for the caller. There
    /// may be something to transmit and an event.
    Handled,
    /// Dropped, for this reason. The caller counts it.
    Dropped(DropReason),
}

/// What the caller should know or do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelEvent {
    /// The registry's key for this node is needed, at most once a second a node; answered by
    /// [`Tunnels::peer_key`].
    PeerKeyWanted(NodeId),
    /// A session is up, for the first time or after a loss: queued traffic may flow.
    Established {
        /// Its handle.
        tunnel: TunnelHandle,
        /// The node at its other end.
        peer: NodeId,
    },
    /// What is sealed for this tunnel takes another way from now on: see [`Tunnels::route`].
    Rerouted {
        /// Its handle.
        tunnel: TunnelHandle,
        /// Over the beacon, not directly.
        relayed: bool,
    },
    /// The peer did not answer the key exchange, or the registry has no key for it. The tunnel is
    /// gone and its handle stale; `connect` may be tried again.
    Lost {
        /// The node that is out of reach.
        peer: NodeId,
    },
}

/// A datagram to send, already written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// How many bytes of the lent space it takes.
    pub len: usize,
}
