//! Receiving and sealing packets allocates nothing.

#![allow(
    unsafe_code,
    reason = "a global allocator that counts is an unsafe trait"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;

use ramjet_proto::identity::Identity;
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{OutgoingPacket, Received, TunnelConfig, Tunnels};
use ramjet_proto::wire::header::Protocol;
use ramjet_proto::wire::limits::DATAGRAM_LEN_MAX;

thread_local! {
    // Const-initialised, so that reading it allocates nothing itself.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system allocator unchanged; counting touches a thread-local cell
// that needs no initialisation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's layout is passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, hence from the system allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn node(id: u8) -> (Tunnels, Arc<Identity>, SocketAddr) {
    let identity = Arc::new(Identity::from_seed([id; 32]));
    let tunnels = Tunnels::new(TunnelConfig {
        node: NodeId(u32::from(id)),
        identity: Arc::clone(&identity),
        tunnels_max: 64,
        key_exchanges_per_second: 50,
        beacon: None,
    });
    (tunnels, identity, SocketAddr::from(([10, 0, 0, id], 4_000)))
}

#[test]
fn a_packet_costs_no_allocation_either_way() {
    let (mut ours, our_identity, our_address) = node(1);
    let (mut theirs, their_identity, their_address) = node(2);
    let now = Time::ZERO;
    let mut state = 1_u8;
    let mut lend = move |space: &mut [u8]| {
        for byte in space {
            state = state.wrapping_mul(77).wrapping_add(13);
            *byte = state;
        }
    };
    let tunnel = ours.connect(NodeId(2), now, &mut lend).expect("room");
    let key = Some(their_identity.public());
    ours.peer_key(NodeId(2), key, Some(their_address), now, &mut lend);
    let mut space = [0; DATAGRAM_LEN_MAX];
    for _ in 0..4 {
        while let Some(transmit) = ours.poll_transmit(now, &mut space) {
            theirs.receive(now, our_address, &mut space[..transmit.len], &mut lend);
        }
        theirs.peer_key(NodeId(1), Some(our_identity.public()), None, now, &mut lend);
        while let Some(transmit) = theirs.poll_transmit(now, &mut space) {
            ours.receive(now, their_address, &mut space[..transmit.len], &mut lend);
        }
    }
    assert!(ours.is_established(tunnel));

    let packet = OutgoingPacket {
        protocol: Protocol::Datagram,
        flags: 0,
        source_port: 1,
        destination_port: 2,
        sequence: 0,
        acknowledgment: 0,
        window: 0,
    };
    let mut one_way = || {
        let length = ours
            .seal(tunnel, now, &packet, &mut space, 1_000)
            .expect("up");
        let received = theirs.receive(now, our_address, &mut space[..length], &mut lend);
        assert!(matches!(received, Received::Packet(opened) if opened.payload.len() == 1_000));
        let again = theirs.receive(now, our_address, &mut space[..length], &mut lend);
        assert!(matches!(again, Received::Dropped(_)));
    };
    // The first packet under a prefix adds its replay window.
    one_way();
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..10_000 {
        one_way();
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
}
