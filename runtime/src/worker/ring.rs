//! Rooms 1 and 10 on io_uring.
//!
//! One ring with one socket: receives fill buffers from a provided-buffer ring, sends are queued and
//! leave with the turn's one `io_uring_enter`, and a multishot poll on the waker's eventfd ends a
//! wait; so do one-shot polls on sockets of local clients. Only these operations are ever written:
//! receive, send, poll, and the removal of a poll.
//!
//! | the worker | receives by | because |
//! |---|---|---|
//! | may sleep | a multishot `recvmsg`, armed once | a datagram must end the wait |
//! | never sleeps | some `recvmsg` with `MSG_DONTWAIT` in every enter | nobody need be woken: no poll entry, no deferred work, and no second attempt that finds the socket empty before the datagram is handed over |
//!
//! `DEFER_TASKRUN` means that completions appear only when this thread enters the ring with
//! GETEVENTS; the `TASKRUN` flag says when that is worth it, so a worker that spins before it sleeps
//! makes no system call while nothing has arrived.
#![expect(
    unsafe_code,
    reason = "the ring shares memory with the kernel; one of two files"
)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{Fixed, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use ramjet_proto::wire::limits::DATAGRAM_LEN_MAX;
use socket2::SockAddr;
use zerocopy::IntoBytes;

use super::arena::{DescriptorRing, RECEIVE_BUFFERS_MAX, ReceiveArena, SEND_TRAINS_MAX, SendArena};
use super::arena::{RECEIVE_HEAD, TRAIN_DATAGRAMS_MAX};
use super::io::{Events, HARVEST_MAX, Incoming, Io, Outgoing};

const SUBMISSIONS: u32 = 256;
/// Sockets of local clients that may be watched: as many as control serves.
const WATCHED_MAX: u32 = 64;
/// Receive buffers + trains + watched sockets + poll and receive notices, doubled: the queue cannot overflow.
const COMPLETIONS: u32 = 1_024;
const _: () =
    assert!(COMPLETIONS > 2 * (RECEIVE_BUFFERS_MAX as u32 + SEND_TRAINS_MAX as u32 + WATCHED_MAX));

const BUFFER_GROUP: u16 = 0;
const SOCKET: Fixed = Fixed(0);
const WAKE: Fixed = Fixed(1);

const TOKEN_RECEIVE: u64 = 1 << 32;
const TOKEN_WAKE: u64 = 2 << 32;
const TOKEN_SEND: u64 = 3 << 32;
const TOKEN_ASK: u64 = 4 << 32;
const TOKEN_LINE: u64 = 5 << 32;
const TOKEN_UNWATCH: u64 = 6 << 32;

/// Most receives in one enter of a worker that never sleeps.
const ASKS_MAX: u16 = 8;

/// Room for an IPv6 source address.
const NAME_LEN: usize = size_of::<libc::sockaddr_in6>();
/// Room for one control message with an `int` (UDP_GRO): header, value, padding.
const CONTROL_LEN: usize = 24;
/// The kernel's `io_uring_recvmsg_out` before name and control.
const OUT_LEN: usize = 16;
const _: () = assert!(OUT_LEN + NAME_LEN + CONTROL_LEN <= RECEIVE_HEAD);

/// What a queued `sendmsg` points at: lives until its completion.
struct SendHeader {
    message: libc::msghdr,
    vector: libc::iovec,
    name: SockAddr,
    /// `cmsghdr` and a `u16` segment length, aligned as the kernel wants it.
    control: [u64; 3],
    /// What is sent, for the case that the kernel refuses it.
    segment: usize,
    probe: bool,
}

/// Where one asked-for `recvmsg` puts source and control message: lives until its completion.
#[repr(C)]
struct AskHeader {
    message: libc::msghdr,
    control: [u64; CONTROL_LEN / 8],
    name: [u64; NAME_LEN.div_ceil(8)],
}

/// How datagrams are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiving {
    /// By a multishot receive that ends a wait.
    Armed,
    /// By asking in every enter: the worker never sleeps.
    Asked,
}

/// The io_uring backend.
pub struct Ring {
    ring: IoUring,
    descriptors: DescriptorRing,
    receiving: Receiving,
    receive_header: Box<libc::msghdr>,
    ask_headers: Box<[AskHeader]>,
    /// Those that no receive in flight or unharvested completion has.
    free_asks: Vec<u16>,
    /// Receives to ask for in the next enter.
    asks: usize,
    /// Trains that those of the last enter brought.
    brought: usize,
    send_headers: Box<[SendHeader]>,
    receive_armed: bool,
    wake_armed: bool,
    /// Watched sockets that can be read.
    readable: Vec<u32>,
    /// Sends are queued, or a request is to be armed: the next enter has something to submit.
    queued: bool,
    segmentation: bool,
    events: Events,
}

// SAFETY: the raw pointers inside point into boxes and arenas that move with the worker; the ring
// is created and used on the worker's own thread alone.
unsafe impl Send for Ring {}

/// Whether this process may have a ring as the workers set it up.
///
/// # Errors
/// What the kernel refused.
pub fn probe() -> io::Result<()> {
    builder().build(SUBMISSIONS).map(drop)
}

/// How the workers' rings are set up: one thread submits, and completions wait until it asks.
fn builder() -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS);
    builder
}

impl Ring {
    /// Sets the ring up on the calling thread, which must be the only one to use it.
    ///
    /// # Errors
    /// What the kernel refused: io_uring switched off (`kernel.io_uring_disabled`), blocked by
    /// seccomp, too old, or out of locked memory.
    pub fn new(
        socket: &UdpSocket,
        wake: BorrowedFd<'_>,
        receive: &ReceiveArena,
        receiving: Receiving,
        segmentation: bool,
    ) -> io::Result<Self> {
        let ring = builder().build(SUBMISSIONS)?;
        ring.submitter()
            .register_files(&[socket.as_raw_fd(), wake.as_raw_fd()])?;
        let mut descriptors = DescriptorRing::new()?;
        for buffer in 0..receive.given() {
            descriptors.push(receive, buffer);
        }
        // SAFETY: the descriptor ring is page-aligned, holds exactly this many entries, and is a
        // field of this struct declared after `ring`, so the kernel lets go of it first.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                descriptors.address(),
                RECEIVE_BUFFERS_MAX,
                BUFFER_GROUP,
                0,
            )?;
        }
        // SAFETY: all-zero bytes are a valid msghdr: null pointers with zero lengths.
        let mut receive_header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        receive_header.msg_namelen = u32::try_from(NAME_LEN).expect("28");
        receive_header.msg_controllen = CONTROL_LEN;
        let send_headers = (0..SEND_TRAINS_MAX).map(|_| SendHeader::empty()).collect();
        let ask_headers = (0..ASKS_MAX).map(|_| AskHeader::empty()).collect();
        let mut this = Ring {
            ring,
            descriptors,
            receiving,
            receive_header,
            ask_headers,
            free_asks: (0..ASKS_MAX).collect(),
            asks: 1,
            brought: 0,
            send_headers,
            receive_armed: false,
            wake_armed: false,
            readable: Vec::new(),
            queued: false,
            segmentation,
            events: Events::default(),
        };
        this.arm();
        this.enter(None)?;
        Ok(this)
    }

    fn push(&mut self, entry: &squeue::Entry) {
        self.queued = true;
        loop {
            // SAFETY: everything an entry points at lives in a box of this struct or in the arenas,
            // and stays there until the entry's completion.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it over and go on. An error here shows again in `enter`.
            self.events.system_calls += 1;
            let _ = self.ring.submit();
        }
    }

    fn arm(&mut self) {
        if self.receiving == Receiving::Armed && !self.receive_armed {
            let header: *const libc::msghdr = &*self.receive_header;
            let entry = opcode::RecvMsgMulti::new(SOCKET, header, BUFFER_GROUP)
                .build()
                .user_data(TOKEN_RECEIVE);
            self.push(&entry);
            self.receive_armed = true;
        }
        if !self.wake_armed {
            let events = u32::try_from(libc::POLLIN).expect("a small constant");
            let entry = opcode::PollAdd::new(WAKE, events)
                .multi(true)
                .build()
                .user_data(TOKEN_WAKE);
            self.push(&entry);
            self.wake_armed = true;
        }
    }

    /// Asks for as many trains as came last, and one more if every one came that was asked for.
    fn ask(&mut self) {
        let all = self.brought >= self.asks;
        self.asks = self.brought.max(1) + usize::from(all);
        for _ in 0..self.asks {
            let Some(index) = self.free_asks.pop() else {
                break;
            };
            let header = self.ask_headers[usize::from(index)].reset();
            let entry = opcode::RecvMsg::new(SOCKET, header)
                .flags(libc::MSG_DONTWAIT.unsigned_abs())
                .buf_group(BUFFER_GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
                .user_data(TOKEN_ASK | u64::from(index));
            self.push(&entry);
        }
    }

    /// What an asked-for receive brought, if anything.
    fn brought(
        &mut self,
        receive: &mut ReceiveArena,
        completion: &cqueue::Entry,
        batch: &mut Vec<Incoming>,
    ) {
        let index = u16::try_from(completion.user_data() & 0xFFFF).expect("masked");
        self.free_asks.push(index);
        let Some(buffer) = cqueue::buffer_select(completion.flags()) else {
            self.events.out_of_buffers += u32::from(completion.result() == -libc::ENOBUFS);
            return;
        };
        receive.lease(buffer);
        let header = &self.ask_headers[usize::from(index)];
        let source = parse_name(header.name.as_bytes());
        let (Ok(len), Some(source)) = (usize::try_from(completion.result()), source) else {
            self.release(receive, buffer);
            return;
        };
        self.brought += 1;
        let control = header.control.as_bytes();
        let control_len = header.message.msg_controllen.min(control.len());
        batch.push(Incoming {
            buffer,
            offset: 0,
            len,
            segment: parse_segment(&control[..control_len]).unwrap_or(len).max(1),
            source,
            truncated: header.message.msg_flags & libc::MSG_TRUNC != 0,
        });
    }

    fn received(
        &mut self,
        receive: &mut ReceiveArena,
        completion: &cqueue::Entry,
        batch: &mut Vec<Incoming>,
    ) {
        if !cqueue::more(completion.flags()) {
            self.receive_armed = false;
        }
        let Some(buffer) = cqueue::buffer_select(completion.flags()) else {
            self.events.out_of_buffers += u32::from(completion.result() == -libc::ENOBUFS);
            return;
        };
        receive.lease(buffer);
        let filled = usize::try_from(completion.result()).unwrap_or(0);
        let bytes = &receive.buffer(buffer)[..];
        let parsed = RecvMsgOut::parse(&bytes[..filled], &self.receive_header)
            .ok()
            .and_then(|out| {
                let source = parse_name(out.name_data())?;
                let payload = out.payload_data();
                let len = payload.len();
                Some(Incoming {
                    buffer,
                    offset: OUT_LEN + NAME_LEN + CONTROL_LEN,
                    len,
                    segment: parse_segment(out.control_data()).unwrap_or(len).max(1),
                    source,
                    truncated: out.is_payload_truncated(),
                })
            });
        match parsed {
            Some(incoming) => batch.push(incoming),
            None => self.release(receive, buffer),
        }
    }

    fn sent(&mut self, send: &mut SendArena, completion: &cqueue::Entry) {
        let train = u16::try_from(completion.user_data() & 0xFFFF).expect("masked");
        if completion.result() < 0 {
            let header = &self.send_headers[usize::from(train)];
            self.events.refused(header.segment, header.probe);
            let refused = matches!(-completion.result(), libc::EIO | libc::EINVAL);
            let base = header.segment <= DATAGRAM_LEN_MAX;
            if refused && base && header.message.msg_controllen != 0 {
                // Some drivers and kernels refuse trains; the frames are repeated one by one.
                self.segmentation = false;
            }
        }
        send.free_train(train);
    }
}

/// What a token holds beside its kind.
fn number(completion: &cqueue::Entry) -> u32 {
    u32::try_from(completion.user_data() & 0xFFFF_FFFF).expect("masked")
}

impl Io for Ring {
    fn label(&self) -> &'static str {
        "io_uring"
    }

    fn train_datagrams_max(&self) -> usize {
        if self.segmentation {
            TRAIN_DATAGRAMS_MAX
        } else {
            1
        }
    }

    fn harvest(
        &mut self,
        receive: &mut ReceiveArena,
        send: &mut SendArena,
        batch: &mut Vec<Incoming>,
    ) -> Events {
        self.brought = 0;
        while batch.len() < HARVEST_MAX {
            let Some(completion) = self.ring.completion().next() else {
                break;
            };
            match completion.user_data() & !0xFFFF_FFFF {
                TOKEN_RECEIVE => self.received(receive, &completion, batch),
                TOKEN_SEND => self.sent(send, &completion),
                TOKEN_ASK => self.brought(receive, &completion, batch),
                TOKEN_WAKE => self.wake_armed &= cqueue::more(completion.flags()),
                TOKEN_LINE if completion.result() >= 0 => {
                    self.readable.push(number(&completion));
                }
                // A poll that was removed, and its removal.
                _ => {}
            }
        }
        if self.events.out_of_buffers > 0 {
            // What found none waits in the socket.
            for buffer in receive.grow() {
                self.descriptors.push(receive, buffer);
            }
        }
        std::mem::take(&mut self.events)
    }

    fn release(&mut self, receive: &mut ReceiveArena, buffer: u16) {
        receive.release(buffer);
        self.descriptors.push(receive, buffer);
    }

    fn submit(&mut self, send: &mut SendArena, outgoing: Outgoing) {
        let start = send.hand_over(outgoing.train);
        let header = &mut self.send_headers[usize::from(outgoing.train)];
        header.fill(start, &outgoing);
        let entry = if header.message.msg_controllen == 0 {
            // One datagram: the plain send spares the kernel the import of a message header.
            let len = u32::try_from(outgoing.len).expect("at most 64 KiB");
            opcode::Send::new(SOCKET, start, len)
                .dest_addr(header.message.msg_name.cast_const().cast())
                .dest_addr_len(header.name.len())
                .build()
        } else {
            let message: *const libc::msghdr = &header.message;
            opcode::SendMsg::new(SOCKET, message).build()
        };
        self.push(&entry.user_data(TOKEN_SEND | u64::from(outgoing.train)));
    }

    fn watch(&mut self, socket: BorrowedFd<'_>, number: u32) -> bool {
        let events = u32::try_from(libc::POLLIN).expect("a small constant");
        let entry = opcode::PollAdd::new(io_uring::types::Fd(socket.as_raw_fd()), events)
            .build()
            .user_data(TOKEN_LINE | u64::from(number));
        self.push(&entry);
        true
    }

    fn unwatch(&mut self, number: u32) {
        let entry = opcode::PollRemove::new(TOKEN_LINE | u64::from(number))
            .build()
            .user_data(TOKEN_UNWATCH);
        self.push(&entry);
    }

    fn next_readable(&mut self) -> Option<u32> {
        self.readable.pop()
    }

    fn is_ready(&mut self) -> bool {
        // Without `sync` this is a load of the flag word that the kernel sets.
        self.receiving == Receiving::Asked
            || self.ring.submission().taskrun()
            || !self.ring.completion().is_empty()
    }

    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.arm();
        if self.receiving == Receiving::Asked {
            self.ask();
        }
        let pending = {
            let submission = self.ring.submission();
            submission.taskrun() || submission.cq_overflow()
        };
        let result = match wait {
            None if !self.queued && !pending => return Ok(()),
            None => self.enter_now(),
            Some(wait) => {
                let timeout = Timespec::new()
                    .sec(wait.as_secs())
                    .nsec(wait.subsec_nanos());
                let arguments = SubmitArgs::new().timespec(&timeout);
                self.events.system_calls += 1;
                self.ring
                    .submitter()
                    .submit_with_args(1, &arguments)
                    .map(drop)
            }
        };
        self.queued = false;
        match result {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}

impl Ring {
    /// Submits and runs deferred work, without waiting.
    fn enter_now(&mut self) -> io::Result<()> {
        let queued = {
            let mut submission = self.ring.submission();
            submission.sync();
            u32::try_from(submission.len()).expect("at most SUBMISSIONS")
        };
        const GETEVENTS: u32 = 1;
        self.events.system_calls += 1;
        // SAFETY: the entries are complete and what they point at lives on, as `push` demands; no
        // argument is passed.
        unsafe {
            self.ring
                .submitter()
                .enter::<()>(queued, 0, GETEVENTS, None)
        }
        .map(drop)
    }
}

impl Drop for Ring {
    /// Takes everything back from the kernel before the memory it works on is freed.
    fn drop(&mut self) {
        let all = io_uring::types::CancelBuilder::any();
        let patience = Timespec::new().sec(1);
        // Nothing in flight is an error here, and none that could be mended.
        let _ = self
            .ring
            .submitter()
            .register_sync_cancel(Some(patience), all);
    }
}

impl AskHeader {
    fn empty() -> Self {
        AskHeader {
            // SAFETY: all-zero bytes are a valid msghdr: null pointers with zero lengths. Without a
            // vector the kernel takes the length of the buffer that it selects.
            message: unsafe { std::mem::zeroed() },
            control: [0; CONTROL_LEN / 8],
            name: [0; NAME_LEN.div_ceil(8)],
        }
    }

    /// Ready for the next receive: the last one left its own lengths here.
    fn reset(&mut self) -> *mut libc::msghdr {
        self.name[0] = 0;
        self.message.msg_name = self.name.as_mut_ptr().cast();
        self.message.msg_namelen = u32::try_from(NAME_LEN).expect("28");
        self.message.msg_control = self.control.as_mut_ptr().cast();
        self.message.msg_controllen = CONTROL_LEN;
        self.message.msg_flags = 0;
        &raw mut self.message
    }
}

impl SendHeader {
    fn empty() -> Self {
        SendHeader {
            // SAFETY: all-zero bytes are a valid msghdr and iovec: null pointers, zero lengths.
            message: unsafe { std::mem::zeroed() },
            // SAFETY: as above.
            vector: unsafe { std::mem::zeroed() },
            name: SockAddr::from(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)),
            control: [0; 3],
            segment: 0,
            probe: false,
        }
    }

    fn fill(&mut self, start: *mut u8, outgoing: &Outgoing) {
        self.vector = libc::iovec {
            iov_base: start.cast(),
            iov_len: outgoing.len,
        };
        self.segment = outgoing.segment;
        self.probe = outgoing.probe;
        self.name = SockAddr::from(outgoing.target);
        self.message.msg_name = self.name.as_ptr().cast_mut().cast();
        self.message.msg_namelen = self.name.len();
        self.message.msg_iov = &raw mut self.vector;
        self.message.msg_iovlen = 1;
        if outgoing.len > outgoing.segment {
            // struct cmsghdr { size_t len; int level; int type; } then a __u16 (cmsg(3), udp(7)).
            const HEADER: u64 = size_of::<libc::cmsghdr>() as u64;
            let level = u64::from(libc::SOL_UDP.unsigned_abs());
            let kind = u64::from(libc::UDP_SEGMENT.unsigned_abs());
            let segment = outgoing.segment as u64;
            self.control = if cfg!(target_endian = "little") {
                [HEADER + 2, level | kind << 32, segment]
            } else {
                [HEADER + 2, level << 32 | kind, segment << 48]
            };
            self.message.msg_control = self.control.as_mut_ptr().cast();
            self.message.msg_controllen = CONTROL_LEN;
        } else {
            self.message.msg_control = std::ptr::null_mut();
            self.message.msg_controllen = 0;
        }
    }
}

fn set_option<T>(socket: &UdpSocket, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).expect("a small structure");
    let value: *const T = value;
    // SAFETY: `value` points at `length` readable bytes for the time of the call, and what it points
    // at in turn (a filter program) is kept by the caller for as long.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the kernel gather datagrams of one peer into trains (udp(7), UDP_GRO).
///
/// # Errors
/// What the kernel says.
pub fn gather_trains(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, &1_i32)
}

/// The opposite of [`gather_trains`].
///
/// # Errors
/// What the kernel says.
pub fn leave_single(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, &0_i32)
}

/// Forbids fragmentation and the kernel's own memory of path MTUs (ip(7), IP_PMTUDISC_PROBE): what is
/// too long for a path is lost, or refused, and so the path can be measured.
///
/// # Errors
/// What the kernel says.
pub fn forbid_fragments(socket: &UdpSocket) -> io::Result<()> {
    match socket.local_addr()? {
        SocketAddr::V4(_) => set_option(
            socket,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            &libc::IP_PMTUDISC_PROBE,
        ),
        SocketAddr::V6(_) => set_option(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            &libc::IPV6_PMTUDISC_PROBE,
        ),
    }
}

/// Attaches the steering program to a SO_REUSEPORT group through any of its sockets: the socket is
/// chosen by the sender's node id, bytes 4 to 8 of every PILS, PILA and PILK frame, modulo the size
/// of the group. A frame too short to have one goes to the first socket.
///
/// # Errors
/// What the kernel says.
pub fn attach_steering(socket: &UdpSocket, workers: u32) -> io::Result<()> {
    let instruction = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("BPF codes are 16 bits"),
        jt: 0,
        jf: 0,
        k,
    };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 4),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, workers),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let filter = libc::sock_fprog {
        len: 3,
        filter: program.as_mut_ptr(),
    };
    set_option(
        socket,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        &filter,
    )
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel writes these in host order"
)]
fn parse_name(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(name.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(name.get(2..4)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let octets: [u8; 4] = name.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(octets)), port))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = name.get(8..24)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(octets)), port))
        }
        _ => None,
    }
}

/// The segment length that GRO reports (udp(7), UDP_GRO).
#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel writes these in host order"
)]
fn parse_segment(control: &[u8]) -> Option<usize> {
    let level = i32::from_ne_bytes(control.get(8..12)?.try_into().ok()?);
    let kind = i32::from_ne_bytes(control.get(12..16)?.try_into().ok()?);
    let segment = i32::from_ne_bytes(control.get(16..20)?.try_into().ok()?);
    if level == libc::SOL_UDP && kind == libc::UDP_GRO {
        usize::try_from(segment).ok()
    } else {
        None
    }
}
