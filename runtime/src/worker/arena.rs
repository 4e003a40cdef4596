//! The memory that the kernel and the rooms share: receive buffers and send trains.
//!
//! Every buffer has one owner at a time, written down in its state:
//!
//! ```text
//!  receive:  InKernel ──completion──▶ Leased ──release──▶ InKernel
//!  send:     Free ──take──▶ Filling ──submit──▶ InKernel ──completion──▶ Free
//! ```
//!
//! A slice of a buffer is handed out only while its state says that the rooms own it, and borrows
//! the arena, so it cannot outlive the change of owner. Buffers in the kernel are never touched.
//! Absent: growth. The arenas are as large as they will ever be before the first datagram.
#![expect(
    unsafe_code,
    reason = "memory shared with the kernel has no safe owner; one of two files"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use ramjet_proto::wire::limits::{
    FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, PATH_LEN_MAX, RECEIVED_LEN_MAX,
};

/// Receive buffers: as many as a burst of 128 trains. A power of two, for the provided-buffer ring.
pub const RECEIVE_BUFFERS: u16 = 128;
/// Space before the payload of a received train: the kernel's own header, the source address and
/// one control message, rounded up to a cache line.
pub const RECEIVE_HEAD: usize = 128;
/// The longest train that GRO can build: 64 KiB.
pub const RECEIVE_PAYLOAD_MAX: usize = 1 << 16;
/// Stride of the receive arena.
pub const RECEIVE_STRIDE: usize = RECEIVE_HEAD + RECEIVE_PAYLOAD_MAX;

/// Send trains: one a tunnel a turn, more for a tunnel with much to say.
pub const SEND_TRAINS: u16 = 64;
/// Datagrams in a train: what every kernel with GSO takes (UDP_MAX_SEGMENTS, 64 before 6.7).
pub const TRAIN_DATAGRAMS_MAX: usize = 64;
/// Bytes in a train: what a UDP header can say, segmented or not.
pub const SEND_LEN_MAX: usize = RECEIVED_LEN_MAX;
/// Stride of the send arena: a full train, and behind it space for one more frame, so that a frame
/// can be written before it is known to fit.
pub const TRAIN_STRIDE: usize = 68 << 10;

const _: () = assert!(TRAIN_STRIDE >= SEND_LEN_MAX + FRAME_HEADER_LEN + FRAME_PAYLOAD_MAX);
const _: () = assert!(PATH_LEN_MAX <= SEND_LEN_MAX);
const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two());

/// Bytes that one worker's arenas take.
pub const ARENA_BYTES: usize =
    RECEIVE_BUFFERS as usize * RECEIVE_STRIDE + SEND_TRAINS as usize * TRAIN_STRIDE;

/// Page-aligned memory that does not move.
struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a Region is plain memory with one owner; nothing in it is tied to the thread that made it.
unsafe impl Send for Region {}

impl Region {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4_096).expect("arena sizes are constants");
        // SAFETY: the layout has a size above zero: every arena holds at least one buffer.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Region { start, layout }
    }

    fn address(&self, offset: usize) -> *mut u8 {
        assert!(
            offset < self.layout.size(),
            "offset {offset} of {}",
            self.layout.size()
        );
        // SAFETY: the offset is within the one allocation that `start` begins, as just asserted.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `start` came from the same allocator with this layout, in `Region::new`. The ring
        // that shares it was dropped before: a worker's fields are declared in that order.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReceiveState {
    InKernel,
    Leased,
}

/// The buffers that datagrams arrive in.
pub struct ReceiveArena {
    region: Region,
    states: Box<[ReceiveState]>,
    leased: u16,
}

impl Default for ReceiveArena {
    fn default() -> Self {
        Self::new()
    }
}

impl ReceiveArena {
    /// All buffers, owned by the kernel side from the start.
    pub fn new() -> Self {
        let buffers = usize::from(RECEIVE_BUFFERS);
        ReceiveArena {
            region: Region::new(buffers * RECEIVE_STRIDE),
            states: vec![ReceiveState::InKernel; buffers].into_boxed_slice(),
            leased: 0,
        }
    }

    /// The kernel filled this buffer: the rooms own it now.
    pub fn lease(&mut self, buffer: u16) {
        let state = &mut self.states[usize::from(buffer)];
        assert_eq!(
            *state,
            ReceiveState::InKernel,
            "buffer {buffer} completed twice"
        );
        *state = ReceiveState::Leased;
        self.leased += 1;
    }

    /// The rooms are done with it: the kernel may have it again.
    pub fn release(&mut self, buffer: u16) {
        let state = &mut self.states[usize::from(buffer)];
        assert_eq!(
            *state,
            ReceiveState::Leased,
            "buffer {buffer} released twice"
        );
        *state = ReceiveState::InKernel;
        self.leased -= 1;
    }

    /// A leased buffer, head and payload.
    pub fn buffer(&mut self, buffer: u16) -> &mut [u8] {
        assert_eq!(
            self.states[usize::from(buffer)],
            ReceiveState::Leased,
            "buffer {buffer}"
        );
        let start = self.region.address(usize::from(buffer) * RECEIVE_STRIDE);
        // SAFETY: the stride lies within the region; the state says that the kernel does not own
        // this buffer, and the slice borrows the arena, so no second slice of it exists.
        unsafe { std::slice::from_raw_parts_mut(start, RECEIVE_STRIDE) }
    }

    /// Where the kernel is to write a buffer that it owns.
    pub(super) fn kernel_address(&self, buffer: u16) -> u64 {
        assert_eq!(
            self.states[usize::from(buffer)],
            ReceiveState::InKernel,
            "buffer {buffer}"
        );
        self.region.address(usize::from(buffer) * RECEIVE_STRIDE) as u64
    }

    /// Buffers that the rooms own now.
    pub fn leased(&self) -> u16 {
        self.leased
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendState {
    Free,
    Filling,
    InKernel,
}

/// The buffers that trains leave from.
pub struct SendArena {
    region: Region,
    states: Box<[SendState]>,
    free: Vec<u16>,
}

impl Default for SendArena {
    fn default() -> Self {
        Self::new()
    }
}

impl SendArena {
    /// All trains free.
    pub fn new() -> Self {
        let trains = usize::from(SEND_TRAINS);
        SendArena {
            region: Region::new(trains * TRAIN_STRIDE),
            states: vec![SendState::Free; trains].into_boxed_slice(),
            free: (0..SEND_TRAINS).rev().collect(),
        }
    }

    /// A free train, to be filled.
    pub fn take(&mut self) -> Option<u16> {
        let train = self.free.pop()?;
        self.states[usize::from(train)] = SendState::Filling;
        Some(train)
    }

    /// Trains that can still be taken.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A train that is being filled.
    pub fn train(&mut self, train: u16) -> &mut [u8] {
        assert_eq!(
            self.states[usize::from(train)],
            SendState::Filling,
            "train {train}"
        );
        let start = self.region.address(usize::from(train) * TRAIN_STRIDE);
        // SAFETY: the stride lies within the region; the state says that neither the kernel nor the
        // free list owns this train, and the slice borrows the arena.
        unsafe { std::slice::from_raw_parts_mut(start, TRAIN_STRIDE) }
    }

    /// The train goes to the kernel; returns where it lies.
    pub(super) fn hand_over(&mut self, train: u16) -> *mut u8 {
        let state = &mut self.states[usize::from(train)];
        assert_eq!(*state, SendState::Filling, "train {train} sent twice");
        *state = SendState::InKernel;
        self.region.address(usize::from(train) * TRAIN_STRIDE)
    }

    /// The kernel is done with it, or it is given up unsent.
    pub fn free_train(&mut self, train: u16) {
        let state = &mut self.states[usize::from(train)];
        assert_ne!(*state, SendState::Free, "train {train} freed twice");
        *state = SendState::Free;
        self.free.push(train);
    }
}

/// The ring of buffer descriptors that a receive takes its buffers from
/// (io_uring_register_buf_ring(3)): 16-byte entries, the tail in the last two bytes of the first.
pub(super) struct DescriptorRing {
    region: Region,
    tail: u16,
}

impl DescriptorRing {
    /// Empty.
    pub(super) fn new() -> Self {
        DescriptorRing {
            region: Region::new(usize::from(RECEIVE_BUFFERS) * 16),
            tail: 0,
        }
    }

    /// Page-aligned start, for the registration.
    pub(super) fn address(&self) -> u64 {
        self.region.address(0) as u64
    }

    /// Offers a buffer to the kernel.
    pub(super) fn push(&mut self, arena: &ReceiveArena, buffer: u16) {
        use std::sync::atomic::{AtomicU16, Ordering};
        let index = usize::from(self.tail & (RECEIVE_BUFFERS - 1));
        let entry = self
            .region
            .address(index * 16)
            .cast::<io_uring::types::BufRingEntry>();
        let length = u32::try_from(RECEIVE_STRIDE).expect("64 KiB and a head");
        // SAFETY: `entry` is one of the ring's own 16-byte entries. The kernel reads entries below
        // the tail only, and this one is published by the store below, after it is written; the
        // count of buffers equals the count of entries, so it is not still unread.
        unsafe {
            (*entry).set_addr(arena.kernel_address(buffer));
            (*entry).set_len(length);
            (*entry).set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        let first = self
            .region
            .address(0)
            .cast::<io_uring::types::BufRingEntry>();
        // SAFETY: `first` is the start of the ring, whose tail field the crate locates; it is two
        // bytes, aligned, written by this thread alone and read by the kernel with acquire order.
        let tail =
            unsafe { AtomicU16::from_ptr(io_uring::types::BufRingEntry::tail(first).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_one_owner() {
        let mut arena = ReceiveArena::new();
        arena.lease(3);
        arena.buffer(3)[RECEIVE_STRIDE - 1] = 7;
        assert_eq!(arena.leased(), 1);
        arena.release(3);
        assert!(
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| arena.buffer(3).len()))
                .is_err()
        );
    }

    #[test]
    fn trains_run_out_and_come_back() {
        let mut arena = SendArena::new();
        let taken: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(taken.len(), usize::from(SEND_TRAINS));
        arena.train(taken[0])[0] = 1;
        arena.hand_over(taken[0]);
        assert_eq!(arena.take(), None);
        arena.free_train(taken[0]);
        assert_eq!(arena.take(), Some(taken[0]));
    }
}
