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
//!
//! An arena reserves addresses for all its buffers at once and begins with some of them: the kernel
//! finds memory for a page when it is first written. Receive buffers are doubled when the kernel found
//! none, trains are added one by one when none is free, both up to a limit; neither shrinks. So a node
//! that has little to do takes little, and its buffers stay in the cache.
#![expect(
    unsafe_code,
    reason = "memory shared with the kernel has no safe owner; one of two files"
)]

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use ramjet_proto::wire::limits::{
    FRAME_HEADER_LEN, FRAME_PAYLOAD_MAX, PATH_LEN_MAX, RECEIVED_LEN_MAX,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Receive buffers at first: a burst of 32 trains.
pub const RECEIVE_BUFFERS_MIN: u16 = 32;
/// Most receive buffers. A power of two, for the provided-buffer ring.
pub const RECEIVE_BUFFERS_MAX: u16 = 256;
/// Space before the payload of a received train: the kernel's own header, the source address and
/// one control message, rounded up to a cache line.
pub const RECEIVE_HEAD: usize = 128;
/// The longest train that GRO can build: 64 KiB.
pub const RECEIVE_PAYLOAD_MAX: usize = 1 << 16;
/// Stride of the receive arena.
pub const RECEIVE_STRIDE: usize = RECEIVE_HEAD + RECEIVE_PAYLOAD_MAX;

/// Most send trains: one a tunnel a turn, more for a tunnel with much to say.
pub const SEND_TRAINS_MAX: u16 = 128;
/// Datagrams in a train: what every kernel with GSO takes (UDP_MAX_SEGMENTS, 64 before 6.7).
pub const TRAIN_DATAGRAMS_MAX: usize = 64;
/// Bytes in a train: what a UDP header can say, segmented or not.
pub const SEND_LEN_MAX: usize = RECEIVED_LEN_MAX;
/// Stride of the send arena: a full train, and behind it space for one more frame, so that a frame
/// can be written before it is known to fit.
pub const TRAIN_STRIDE: usize = 68 << 10;

const _: () = assert!(TRAIN_STRIDE >= SEND_LEN_MAX + FRAME_HEADER_LEN + FRAME_PAYLOAD_MAX);
const _: () = assert!(PATH_LEN_MAX <= SEND_LEN_MAX);
const _: () = assert!(RECEIVE_BUFFERS_MAX.is_power_of_two());

/// The kernel's large page.
const LARGE_PAGE: usize = 2 << 20;

/// Bytes that one worker's arenas may take.
pub const ARENA_BYTES: usize =
    RECEIVE_BUFFERS_MAX as usize * RECEIVE_STRIDE + SEND_TRAINS_MAX as usize * TRAIN_STRIDE;

/// Which pages the arenas lie in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// The kernel's ordinary ones.
    #[default]
    Normal,
    /// Large ones if the kernel has some at hand (madvise(2), MADV_HUGEPAGE), else ordinary ones.
    Transparent,
    /// Large ones from the pool that the operator has set aside (mmap(2), MAP_HUGETLB); if it is used
    /// up, as [`Pages::Transparent`]. They are taken at once, not when they are first written.
    Huge,
}

/// Zeroed memory that does not move, aligned to a page.
struct Region {
    start: NonNull<u8>,
    len: usize,
    /// What the kernel has given, to be given back: begins at or before `start`.
    mapping: (NonNull<c_void>, usize),
    /// Whether all of it is in large pages from the pool.
    is_huge: bool,
}

// SAFETY: a Region is plain memory with one owner; nothing in it is tied to the thread that made it.
unsafe impl Send for Region {}

impl Region {
    fn new(bytes: usize, pages: Pages) -> io::Result<Self> {
        let rounded = bytes.next_multiple_of(LARGE_PAGE);
        if pages == Pages::Huge
            && let Ok(mapping) = map(rounded, MapFlags::HUGETLB)
        {
            return Ok(Region {
                start: mapping.cast(),
                len: bytes,
                mapping: (mapping, rounded),
                is_huge: true,
            });
        }
        if pages == Pages::Normal {
            let mapping = map(bytes, MapFlags::empty())?;
            return Ok(Region {
                start: mapping.cast(),
                len: bytes,
                mapping: (mapping, bytes),
                is_huge: false,
            });
        }
        let mapped = rounded + LARGE_PAGE;
        let mapping = map(mapped, MapFlags::empty())?;
        let start = mapping.cast::<u8>();
        let skip = start.as_ptr().align_offset(LARGE_PAGE);
        // SAFETY: the mapping is one large page longer than the region, and `skip` is less than that.
        let start = unsafe { start.add(skip) };
        // SAFETY: the range is part of the mapping just made; the advice changes no contents. A kernel
        // that does not take it leaves ordinary pages, which work.
        let _ = unsafe { madvise(start.as_ptr().cast(), rounded, Advice::LinuxHugepage) };
        Ok(Region {
            start,
            len: bytes,
            mapping: (mapping, mapped),
            is_huge: false,
        })
    }

    fn huge_bytes(&self) -> usize {
        if self.is_huge { self.mapping.1 } else { 0 }
    }

    fn address(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len, "offset {offset} of {}", self.len);
        // SAFETY: the offset is within the one mapping that `start` lies in, as just asserted.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let (mapping, len) = self.mapping;
        // SAFETY: exactly what `map` gave, given back once. The ring that shares it was dropped before:
        // a worker's fields are declared in that order.
        let unmapped = unsafe { munmap(mapping.as_ptr(), len) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own");
    }
}

/// Zeroed memory from the kernel.
fn map(len: usize, flags: MapFlags) -> io::Result<NonNull<c_void>> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: without an address the kernel chooses one where nothing else is.
    let mapping = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            len,
            protection,
            MapFlags::PRIVATE | flags,
        )
    }?;
    NonNull::new(mapping).ok_or_else(|| io::Error::other("the kernel mapped address 0"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReceiveState {
    InKernel,
    Leased,
}

/// The buffers that datagrams arrive in.
pub struct ReceiveArena {
    region: Region,
    /// Of the buffers in play.
    states: Vec<ReceiveState>,
    leased: u16,
}

impl ReceiveArena {
    /// The first buffers, owned by the kernel side from the start.
    ///
    /// # Errors
    /// The kernel has no address space or memory.
    pub fn new(pages: Pages) -> io::Result<Self> {
        let most = usize::from(RECEIVE_BUFFERS_MAX);
        let mut states = Vec::with_capacity(most);
        states.resize(usize::from(RECEIVE_BUFFERS_MIN), ReceiveState::InKernel);
        Ok(ReceiveArena {
            region: Region::new(most * RECEIVE_STRIDE, pages)?,
            states,
            leased: 0,
        })
    }

    /// Buffers in play.
    pub fn given(&self) -> u16 {
        u16::try_from(self.states.len()).expect("at most RECEIVE_BUFFERS_MAX")
    }

    /// As many buffers again as are in play, up to the limit: for the backend to offer to the kernel.
    pub fn grow(&mut self) -> Range<u16> {
        let before = self.given();
        let after = (before * 2).min(RECEIVE_BUFFERS_MAX);
        self.states
            .resize(usize::from(after), ReceiveState::InKernel);
        before..after
    }

    /// Bytes in large pages of the pool.
    pub fn huge_bytes(&self) -> usize {
        self.region.huge_bytes()
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
    /// Of the trains that were ever taken.
    states: Vec<SendState>,
    free: Vec<u16>,
}

impl SendArena {
    /// No train was taken yet.
    ///
    /// # Errors
    /// The kernel has no address space or memory.
    pub fn new(pages: Pages) -> io::Result<Self> {
        let most = usize::from(SEND_TRAINS_MAX);
        Ok(SendArena {
            region: Region::new(most * TRAIN_STRIDE, pages)?,
            states: Vec::with_capacity(most),
            free: Vec::with_capacity(most),
        })
    }

    /// A free train, to be filled: the one that was freed last, which the cache still has, or one that
    /// was never used.
    pub fn take(&mut self) -> Option<u16> {
        if let Some(train) = self.free.pop() {
            self.states[usize::from(train)] = SendState::Filling;
            return Some(train);
        }
        let train = self.given();
        if train == SEND_TRAINS_MAX {
            return None;
        }
        self.states.push(SendState::Filling);
        Some(train)
    }

    /// Trains that were ever taken.
    pub fn given(&self) -> u16 {
        u16::try_from(self.states.len()).expect("at most SEND_TRAINS_MAX")
    }

    /// Trains that can still be taken.
    pub fn free(&self) -> usize {
        self.free.len() + usize::from(SEND_TRAINS_MAX - self.given())
    }

    /// Bytes in large pages of the pool.
    pub fn huge_bytes(&self) -> usize {
        self.region.huge_bytes()
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
    ///
    /// # Errors
    /// The kernel has no address space or memory.
    pub(super) fn new() -> io::Result<Self> {
        Ok(DescriptorRing {
            region: Region::new(usize::from(RECEIVE_BUFFERS_MAX) * 16, Pages::Normal)?,
            tail: 0,
        })
    }

    /// Page-aligned start, for the registration.
    pub(super) fn address(&self) -> u64 {
        self.region.address(0) as u64
    }

    /// Offers a buffer to the kernel.
    pub(super) fn push(&mut self, arena: &ReceiveArena, buffer: u16) {
        use std::sync::atomic::{AtomicU16, Ordering};
        let index = usize::from(self.tail & (RECEIVE_BUFFERS_MAX - 1));
        let entry = self
            .region
            .address(index * 16)
            .cast::<io_uring::types::BufRingEntry>();
        let length = u32::try_from(RECEIVE_STRIDE).expect("64 KiB and a head");
        // SAFETY: `entry` is one of the ring's own 16-byte entries. The kernel reads entries below
        // the tail only, and this one is published by the store below, after it is written; there are
        // no more buffers than entries, so it is not still unread.
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
        let mut arena = ReceiveArena::new(Pages::Normal).expect("memory");
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
        let mut arena = SendArena::new(Pages::Normal).expect("memory");
        assert_eq!(
            (arena.given(), arena.free()),
            (0, usize::from(SEND_TRAINS_MAX))
        );
        let taken: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(taken.len(), usize::from(SEND_TRAINS_MAX));
        assert_eq!((arena.given(), arena.free()), (SEND_TRAINS_MAX, 0));
        arena.train(taken[0])[0] = 1;
        arena.hand_over(taken[0]);
        assert_eq!(arena.take(), None);
        arena.free_train(taken[0]);
        assert_eq!(arena.take(), Some(taken[0]));
    }

    #[test]
    fn receive_buffers_double_up_to_their_limit() {
        let mut arena = ReceiveArena::new(Pages::Normal).expect("memory");
        assert_eq!(arena.given(), RECEIVE_BUFFERS_MIN);
        assert_eq!(arena.grow(), RECEIVE_BUFFERS_MIN..2 * RECEIVE_BUFFERS_MIN);
        while !arena.grow().is_empty() {}
        assert_eq!(arena.given(), RECEIVE_BUFFERS_MAX);
        let last = RECEIVE_BUFFERS_MAX - 1;
        arena.lease(last);
        arena.buffer(last)[RECEIVE_STRIDE - 1] = 1;
    }

    #[test]
    fn every_kind_of_page_is_memory_and_falls_back_to_one_that_is_there() {
        for pages in [Pages::Normal, Pages::Transparent, Pages::Huge] {
            let mut arena = SendArena::new(pages).expect("memory");
            let train = arena.take().expect("a train");
            let bytes = arena.train(train);
            assert!(bytes.iter().all(|byte| *byte == 0), "{pages:?} is zeroed");
            bytes.fill(7);
            assert!(arena.huge_bytes() == 0 || pages == Pages::Huge);
        }
    }
}
