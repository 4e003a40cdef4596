//! The door to the kernel: the only unsafe code of this crate.
//!
//! What lives here: [`EchoRing`], one io_uring with a provided buffer ring over one UDP socket; in
//! `batch` its `recvmmsg`/`sendmmsg` counterpart; in `host` thread placement, one socket option,
//! usage counters.
//!
//! Invariants of [`EchoRing`], each with what breaks it:
//! * A slot is in exactly one of three places ([`Place`]): provided to the kernel for receiving, in
//!   hand, or lent to the kernel for sending. Its bytes are touched only in hand. Publishing a slot
//!   that is not in hand would let the kernel write under a reader.
//! * Arena and slots never move and outlive the ring: they are freed only after every request has
//!   completed. If that cannot be shown at the end, they are leaked on purpose.
//! * The ring is created, entered and dropped on one thread (`SINGLE_ISSUER`); raw pointers keep
//!   the type from being sent to another.
//!
//! Who may call it: the arms and `facts`. Absent: what the bytes mean.

#![expect(
    unsafe_code,
    reason = "rings, message headers and usage counters are kernel interfaces without a safe form"
)]

mod batch;
mod host;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::mem::{self, size_of};
use std::net::SocketAddrV4;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{self, BufRingEntry, RecvMsgOut};
use io_uring::{IoUring, cqueue, opcode};

pub(crate) use batch::DatagramBatch;
pub(crate) use host::{
    Usage, allow_receive_offload, allowed_cores, children_usage, pin_to_core, process_usage,
    thread_usage,
};

/// `io_uring_recvmsg_out`: four 32-bit lengths and flags ahead of every received datagram.
const OUT_HEADER_LEN: usize = 16;
const NAME_LEN: usize = size_of::<libc::sockaddr_in>();
/// Space for one `UDP_GRO` control message: a 16-byte header and an `int`, aligned to 8.
const CONTROL_LEN: usize = 24;
const PAYLOAD_AT: usize = OUT_HEADER_LEN + NAME_LEN + CONTROL_LEN;
const CONTROL_HEADER_LEN: usize = size_of::<libc::cmsghdr>();
const CACHE_LINE: usize = 64;
const PAGE: usize = 4096;
const BUFFER_GROUP: u16 = 0;
const RECEIVE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;
/// Completions handled in one turn, so that replies leave before the queue is empty.
const TURN_MAX: usize = 64;

const _: () = assert!(CONTROL_HEADER_LEN == 16);
const _: () = assert!(PAYLOAD_AT.is_multiple_of(8));

/// Where a slot's bytes are; only `InHand` may be read or written here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Provided,
    InHand,
    Sending,
}

/// What one send needs, at an address that stays put until the send completes.
struct Slot {
    header: libc::msghdr,
    part: libc::iovec,
    control: [u64; CONTROL_LEN / 8],
    place: Place,
}

/// Page-aligned memory for the ring of buffer entries, followed by the buffers.
struct Arena {
    base: NonNull<u8>,
    layout: Layout,
    buffers_at: usize,
    stride: usize,
}

impl Arena {
    fn new(slots: u16, payload_len: usize) -> io::Result<Self> {
        let entries_len = usize::from(slots) * size_of::<BufRingEntry>();
        let buffers_at = entries_len.next_multiple_of(PAGE);
        let stride = (PAYLOAD_AT + payload_len).next_multiple_of(CACHE_LINE);
        let total = buffers_at + usize::from(slots) * stride;
        let layout = Layout::from_size_align(total, PAGE).map_err(io::Error::other)?;
        // SAFETY: `total` is at least one page, because `buffers_at` is: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout);
        };
        Ok(Self {
            base,
            layout,
            buffers_at,
            stride,
        })
    }

    fn entry(&self, index: u16) -> *mut BufRingEntry {
        // SAFETY: callers pass an index below the slot count the arena was sized for, so the entry
        // lies within the first `buffers_at` bytes; the page-aligned base is aligned for an entry.
        unsafe {
            self.base
                .as_ptr()
                .cast::<BufRingEntry>()
                .add(usize::from(index))
        }
    }

    fn buffer(&self, slot: u16) -> *mut u8 {
        // SAFETY: `slot` is below the slot count, so the offset is inside the allocation of
        // `buffers_at + slots * stride` bytes.
        unsafe {
            self.base
                .as_ptr()
                .add(self.buffers_at + usize::from(slot) * self.stride)
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc_zeroed` with this very layout and is freed only here; the
        // owner drops an arena only when the kernel holds no request on it, and forgets it
        // otherwise.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// One ring, one socket: multishot receive into provided buffers, segmented sends out of the same
/// buffers.
pub(crate) struct EchoRing {
    ring: IoUring,
    arena: mem::ManuallyDrop<Arena>,
    slots: mem::ManuallyDrop<Box<[Slot]>>,
    template: mem::ManuallyDrop<Box<libc::msghdr>>,
    entry_mask: u16,
    entry_tail: u16,
    receiving: bool,
    sending: usize,
    syscalls: u64,
    harvest: Vec<cqueue::Entry>,
    fd: RawFd,
}

impl EchoRing {
    /// Builds the ring on the calling thread. `withheld` slots stay in hand for
    /// [`EchoRing::inject`]; the rest are given to the kernel. `fd` must stay open for the life of
    /// the ring.
    pub(crate) fn new(
        fd: RawFd,
        slots: u16,
        payload_len: usize,
        withheld: u16,
    ) -> Result<Self, (&'static str, io::Error)> {
        assert!(slots.is_power_of_two(), "the kernel masks the entry index");
        assert!(withheld < slots, "some slot must receive");
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(u32::from(slots) * 4)
            .build(u32::from(slots) * 2)
            .map_err(|source| ("create the ring", source))?;
        let arena =
            Arena::new(slots, payload_len).map_err(|source| ("lay out the buffers", source))?;
        let ring_address = arena.base.as_ptr().addr() as u64;
        // SAFETY: the entries live at the arena's page-aligned base, hold `slots` of them, and the
        // arena outlives the ring by the drop order in `EchoRing::drop`.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(ring_address, slots, BUFFER_GROUP, 0)
        }
        .map_err(|source| ("register the buffer ring", source))?;
        ring.submitter()
            .register_files(&[fd])
            .map_err(|source| ("register the socket", source))?;
        let mut template = Box::new(empty_header());
        template.msg_namelen = libc::socklen_t::try_from(NAME_LEN).unwrap_or(0);
        template.msg_controllen = CONTROL_LEN;
        let mut echo = Self {
            ring,
            arena: mem::ManuallyDrop::new(arena),
            slots: mem::ManuallyDrop::new((0..slots).map(|_| Slot::idle()).collect()),
            template: mem::ManuallyDrop::new(template),
            entry_mask: slots - 1,
            entry_tail: 0,
            receiving: false,
            sending: 0,
            syscalls: 0,
            harvest: Vec::with_capacity(TURN_MAX),
            fd,
        };
        for slot in withheld..slots {
            echo.provide(slot);
        }
        echo.receive();
        echo.submit()
            .map_err(|source| ("start the multishot receive", source))?;
        Ok(echo)
    }

    /// Runs one turn: enters the kernel if there is reason to, hands each received train with its
    /// segment length to `work`, and queues what `work` keeps (true) to go back to where it came
    /// from.
    ///
    /// Returns how many trains arrived.
    ///
    /// # Errors
    /// A receive or a send that the kernel refused; running out of provided buffers is not one.
    pub(crate) fn turn(
        &mut self,
        work: &mut impl FnMut(&mut [u8], usize) -> bool,
    ) -> io::Result<usize> {
        let queue = self.ring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if !idle {
            self.submit()?;
        }
        self.harvest.clear();
        self.harvest.extend(self.ring.completion().take(TURN_MAX));
        let mut trains = 0;
        for index in 0..self.harvest.len() {
            let (data, result, flags) = {
                let entry = &self.harvest[index];
                (entry.user_data(), entry.result(), entry.flags())
            };
            if data == RECEIVE {
                trains += self.on_received(result, flags, work)?;
            } else if let Ok(slot) = u16::try_from(data) {
                self.on_sent(slot, result)?;
            }
        }
        if !self.receiving && self.slots.iter().any(|slot| slot.place == Place::Provided) {
            self.receive();
        }
        Ok(trains)
    }

    /// Sends a first train of `train_len` bytes from a slot in hand; `fill` writes it.
    ///
    /// # Errors
    /// No slot is in hand, or the submission queue is full.
    pub(crate) fn inject(
        &mut self,
        peer: SocketAddrV4,
        train_len: usize,
        segment_len: usize,
        fill: &mut impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        let free = self
            .slots
            .iter()
            .position(|slot| slot.place == Place::InHand);
        let slot = free
            .and_then(|slot| u16::try_from(slot).ok())
            .ok_or_else(|| io::Error::other("every slot is with the kernel"))?;
        assert!(
            PAYLOAD_AT + train_len <= self.arena.stride,
            "a train fits its buffer"
        );
        // SAFETY: the slot is `InHand`, so the kernel does not touch its buffer; the assertion
        // above keeps name and payload inside the buffer, and name and payload do not overlap.
        let payload = unsafe {
            let buffer = self.arena.buffer(slot);
            ptr::write_unaligned(buffer.add(OUT_HEADER_LEN).cast(), socket_address(peer));
            std::slice::from_raw_parts_mut(buffer.add(PAYLOAD_AT), train_len)
        };
        fill(payload);
        self.send(slot, train_len, segment_len)
    }

    /// Calls into the kernel so far.
    pub(crate) fn syscalls(&self) -> u64 {
        self.syscalls
    }

    fn submit(&mut self) -> io::Result<()> {
        self.syscalls += 1;
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            // The completion queue is full: the caller drains it next and comes back.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self) {
        let entry =
            opcode::RecvMsgMulti::new(types::Fixed(0), &raw const **self.template, BUFFER_GROUP)
                .build()
                .user_data(RECEIVE);
        // SAFETY: the template is boxed, never written after construction and outlives the ring;
        // file 0 is the registered socket and group 0 the registered buffers.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // A full queue only delays the receive: the next turn submits and comes back here.
        self.receiving = pushed.is_ok();
    }

    fn on_received(
        &mut self,
        result: i32,
        flags: u32,
        work: &mut impl FnMut(&mut [u8], usize) -> bool,
    ) -> io::Result<usize> {
        if !cqueue::more(flags) {
            self.receiving = false;
        }
        let filled = match usize::try_from(result) {
            Ok(filled) => filled,
            Err(_) if result == -libc::ENOBUFS || result == -libc::ECANCELED => return Ok(0),
            Err(_) => return Err(io::Error::from_raw_os_error(-result)),
        };
        let Some(slot) = cqueue::buffer_select(flags) else {
            return Err(io::Error::other(
                "a received datagram came without a buffer",
            ));
        };
        let place = &mut self.slots[usize::from(slot)].place;
        assert_eq!(
            *place,
            Place::Provided,
            "the kernel filled a buffer it did not hold"
        );
        *place = Place::InHand;
        assert!(
            filled <= self.arena.stride,
            "a completion is longer than its buffer"
        );
        // SAFETY: the completion moved the slot to `InHand`, so the kernel is done with it;
        // `filled` bytes are inside the buffer by the assertion, and were written by the kernel or
        // zeroed at the start.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.arena.buffer(slot), filled) };
        let Ok(out) = RecvMsgOut::parse(buffer, &self.template) else {
            return Err(io::Error::other(
                "a receive completed with less than its header",
            ));
        };
        if out.is_payload_truncated() || out.is_name_data_truncated() {
            return Err(io::Error::other(
                "a received train was longer than its buffer",
            ));
        }
        let payload_len = out.payload_data().len();
        let segment_len = segment_len(out.control_data()).unwrap_or(payload_len);
        let kept = work(
            &mut buffer[PAYLOAD_AT..PAYLOAD_AT + payload_len],
            segment_len,
        );
        if kept {
            self.send(slot, payload_len, segment_len)?;
        } else {
            self.provide(slot);
        }
        Ok(1)
    }

    fn on_sent(&mut self, slot: u16, result: i32) -> io::Result<()> {
        let place = &mut self.slots[usize::from(slot)].place;
        assert_eq!(*place, Place::Sending, "a send completed that was not made");
        *place = Place::InHand;
        self.sending -= 1;
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        self.provide(slot);
        Ok(())
    }

    /// Gives a slot in hand to the kernel for receiving.
    fn provide(&mut self, slot: u16) {
        let place = &mut self.slots[usize::from(slot)].place;
        assert_eq!(*place, Place::InHand, "only a slot in hand can be provided");
        *place = Place::Provided;
        let entry = self.arena.entry(self.entry_tail & self.entry_mask);
        let address = self.arena.buffer(slot).addr() as u64;
        let length = u32::try_from(self.arena.stride).unwrap_or(u32::MAX);
        // SAFETY: at most `slots` slots are `Provided`, so this entry is behind the kernel's head
        // and not being read. The setters leave the tail, which shares the first entry's last
        // field, alone.
        unsafe {
            (*entry).set_addr(address);
            (*entry).set_len(length);
            (*entry).set_bid(slot);
        }
        self.entry_tail = self.entry_tail.wrapping_add(1);
        // SAFETY: the tail is a 16-bit word inside the first entry, aligned, and alive as long as
        // the arena; only this thread writes it, the kernel reads it, hence the release store.
        unsafe {
            let tail = BufRingEntry::tail(self.arena.entry(0)).cast_mut();
            AtomicU16::from_ptr(tail).store(self.entry_tail, Ordering::Release);
        }
    }

    /// Queues the payload of a slot in hand to the address in its name field.
    fn send(&mut self, slot: u16, payload_len: usize, segment_len: usize) -> io::Result<()> {
        let buffer = self.arena.buffer(slot);
        let lent = &mut self.slots[usize::from(slot)];
        assert_eq!(lent.place, Place::InHand, "only a slot in hand can be sent");
        // SAFETY: both offsets are below the stride, so both pointers stay inside the slot's
        // buffer.
        let (name, payload) = unsafe { (buffer.add(OUT_HEADER_LEN), buffer.add(PAYLOAD_AT)) };
        lent.part = libc::iovec {
            iov_base: payload.cast(),
            iov_len: payload_len,
        };
        lent.header.msg_name = name.cast();
        lent.header.msg_namelen = self.template.msg_namelen;
        lent.header.msg_iov = &raw mut lent.part;
        lent.header.msg_iovlen = 1;
        if payload_len > segment_len {
            write_segment_control(&mut lent.control, segment_len)?;
            lent.header.msg_control = lent.control.as_mut_ptr().cast();
            lent.header.msg_controllen = CONTROL_LEN;
        } else {
            lent.header.msg_control = ptr::null_mut();
            lent.header.msg_controllen = 0;
        }
        let entry = opcode::SendMsg::new(types::Fixed(0), &raw const lent.header)
            .build()
            .user_data(u64::from(slot));
        // SAFETY: header, part, control and buffer belong to this slot, which becomes `Sending` and
        // is not touched until its completion; the boxed slots and the arena do not move.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue is full"))?;
        lent.place = Place::Sending;
        self.sending += 1;
        Ok(())
    }

    /// Cancels what is in flight and waits, bounded, until the kernel holds nothing.
    fn quiesce(&mut self) -> bool {
        let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any())
            .build()
            .user_data(CANCEL);
        // SAFETY: the request names no memory.
        let cancelled = unsafe { self.ring.submission().push(&cancel) }.is_ok();
        let deadline = Instant::now() + Duration::from_secs(1);
        while cancelled && (self.receiving || self.sending > 0) && Instant::now() < deadline {
            if self.ring.submit_and_wait(1).is_err() {
                return false;
            }
            for entry in self.ring.completion() {
                match entry.user_data() {
                    RECEIVE if !cqueue::more(entry.flags()) => self.receiving = false,
                    RECEIVE | CANCEL => {}
                    _ => self.sending -= 1,
                }
            }
        }
        cancelled && !self.receiving && self.sending == 0
    }
}

impl Drop for EchoRing {
    fn drop(&mut self) {
        if self.quiesce()
            && self
                .ring
                .submitter()
                .unregister_buf_ring(BUFFER_GROUP)
                .is_ok()
        {
            // SAFETY: no request is in flight and the buffer ring is unregistered, so the kernel
            // holds no pointer to any of the three; nothing uses them after this.
            unsafe {
                mem::ManuallyDrop::drop(&mut self.slots);
                mem::ManuallyDrop::drop(&mut self.template);
                mem::ManuallyDrop::drop(&mut self.arena);
            }
        } else {
            eprintln!(
                "ramjet-bench: the ring of socket {} did not come to rest; its buffers are leaked",
                self.fd
            );
        }
    }
}

impl Slot {
    fn idle() -> Self {
        Self {
            header: empty_header(),
            part: libc::iovec {
                iov_base: ptr::null_mut(),
                iov_len: 0,
            },
            control: [0; CONTROL_LEN / 8],
            place: Place::InHand,
        }
    }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: `msghdr` is pointers and lengths, for which zero (null, none) is a value.
    unsafe { mem::zeroed() }
}

fn socket_address(address: SocketAddrV4) -> libc::sockaddr_in {
    // SAFETY: `sockaddr_in` is plain numbers, for which zero is a value.
    let mut name: libc::sockaddr_in = unsafe { mem::zeroed() };
    name.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2);
    name.sin_port = address.port().to_be();
    name.sin_addr.s_addr = address.ip().to_bits().to_be();
    name
}

/// Reads the segment length from a `UDP_GRO` control message, if that is what the control area
/// holds.
fn segment_len(control: &[u8]) -> Option<usize> {
    if control.len() < CONTROL_HEADER_LEN + size_of::<libc::c_int>() {
        return None;
    }
    // SAFETY: the slice holds a header and an `int` by the check above; unaligned reads need no
    // alignment, and both are plain numbers.
    let (header, value) = unsafe {
        let start = control.as_ptr();
        (
            ptr::read_unaligned(start.cast::<libc::cmsghdr>()),
            ptr::read_unaligned(start.add(CONTROL_HEADER_LEN).cast::<libc::c_int>()),
        )
    };
    let is_offload = header.cmsg_level == libc::SOL_UDP && header.cmsg_type == libc::UDP_GRO;
    let value = usize::try_from(value).ok()?;
    (is_offload && value > 0).then_some(value)
}

/// Writes one `UDP_SEGMENT` control message.
fn write_segment_control(
    control: &mut [u64; CONTROL_LEN / 8],
    segment_len: usize,
) -> io::Result<()> {
    let segment = u16::try_from(segment_len)
        .map_err(|_| io::Error::other("a segment is longer than 65,535 bytes"))?;
    // SAFETY: `cmsghdr` is plain numbers, for which zero is a value; the control area is 24 bytes,
    // aligned to 8, and takes the 16-byte header and the 2-byte segment.
    unsafe {
        let mut header: libc::cmsghdr = mem::zeroed();
        header.cmsg_len = CONTROL_HEADER_LEN + size_of::<u16>();
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        let start = control.as_mut_ptr().cast::<u8>();
        ptr::write(start.cast(), header);
        ptr::write(start.add(CONTROL_HEADER_LEN).cast(), segment);
    }
    Ok(())
}
