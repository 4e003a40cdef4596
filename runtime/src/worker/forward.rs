//! Datagrams that reached another worker than the one whose they are.
//!
//! The kernel steers by the sender's node id where a tunnel frame has it. What it cannot read goes to
//! some worker, which looks again and hands it on; the owner counts it as received once more.

use std::net::SocketAddr;
use std::sync::Arc;

use ramjet_proto::fault::DropReason;
use ramjet_proto::ids::NodeId;
use ramjet_proto::wire::limits::SEALED_HEADER_LEN;

use super::counters::Counter;
use super::mailbox::{Forwarded, Inbox};
use super::rooms::Rooms;

/// The beacon's message 06: its type, the sender's node, then a tunnel frame.
const RELAY_DELIVER: u8 = 6;
const RELAY_HEADER_LEN: usize = 5;

/// The beacon's message 04: which of our tunnels it concerns, it does not say.
const PUNCH_COMMAND: u8 = 4;

/// The worker that owns a tunnel frame's sender, if it is another one.
pub(super) fn misdirected(datagram: &[u8], index: usize, workers: usize) -> Option<usize> {
    // The filter reads the sender where a tunnel frame has it; what the beacon relays stands behind
    // a header of its own.
    let frame = match datagram.first() {
        Some(&RELAY_DELIVER) => datagram.get(RELAY_HEADER_LEN..)?,
        _ => datagram,
    };
    if workers < 2 || frame.len() < SEALED_HEADER_LEN || !frame.starts_with(b"PIL") {
        return None;
    }
    let node = u32::from_be_bytes(frame[4..8].try_into().expect("four bytes"));
    let owner = owner_of(NodeId(node), workers);
    (owner != index).then_some(owner)
}

/// The worker that owns the tunnel to a node.
pub fn owner_of(node: NodeId, workers: usize) -> usize {
    node.0 as usize % workers.max(1)
}

/// Hands a datagram to the worker whose it is. Rare: a sender whose frames do not say who it is, or
/// a filter that is missing.
pub(super) fn forward(owner: &Inbox, source: SocketAddr, datagram: &[u8], rooms: &mut Rooms) {
    let forwarded = Forwarded {
        source,
        bytes: datagram.to_vec(),
    };
    rooms.counters.add(Counter::DatagramsForwarded, 1);
    if owner.forwarded.push(forwarded).is_ok() {
        owner.waker.wake();
        rooms.counters.add(Counter::DatagramsHandled, 1);
    } else {
        rooms.counters.drop_datagram(DropReason::ControlBusy);
    }
}

/// Hands a copy of a datagram that may concern any worker to all the others: a punch command may be
/// the answer to the request of any of them. Those that are full do without.
pub(super) fn share(
    peers: &[Arc<Inbox>],
    index: usize,
    source: SocketAddr,
    datagram: &[u8],
    rooms: &Rooms,
) {
    if datagram.first() != Some(&PUNCH_COMMAND) {
        return;
    }
    for (_, peer) in peers
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != index)
    {
        let copy = Forwarded {
            source,
            bytes: datagram.to_vec(),
        };
        if peer.forwarded.push(copy).is_ok() {
            rooms.counters.add(Counter::DatagramsForwarded, 1);
            peer.waker.wake();
        }
    }
}
