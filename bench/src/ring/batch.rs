//! `recvmmsg` and `sendmmsg`: the echo without io_uring.
//!
//! Invariant: headers, parts, names and buffers are boxed once and never resized, so the pointers
//! between them hold wherever the struct moves. Growing one would leave the headers pointing at
//! freed memory.

use std::net::SocketAddrV4;
use std::os::fd::RawFd;
use std::{io, mem, ptr};

use super::{CACHE_LINE, NAME_LEN, empty_header, socket_address};

/// `recvmmsg` in, `sendmmsg` out, from the same buffers.
pub(crate) struct DatagramBatch {
    fd: RawFd,
    headers: Box<[libc::mmsghdr]>,
    parts: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_in]>,
    buffers: Box<[u8]>,
    stride: usize,
    syscalls: u64,
}

impl DatagramBatch {
    /// Buffers for `count` datagrams of at most `datagram_len` bytes over `fd`, which must stay
    /// open.
    pub(crate) fn new(fd: RawFd, count: usize, datagram_len: usize) -> Self {
        let stride = datagram_len.next_multiple_of(CACHE_LINE);
        let mut batch = Self {
            fd,
            headers: Box::new([]),
            parts: Box::new([]),
            // SAFETY: `sockaddr_in` is plain numbers, for which zero is a value.
            names: vec![unsafe { mem::zeroed() }; count].into(),
            buffers: vec![0; stride * count].into(),
            stride,
            syscalls: 0,
        };
        let parts = batch
            .buffers
            .chunks_exact_mut(stride)
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: stride,
            });
        batch.parts = parts.collect();
        let headers = batch
            .parts
            .iter_mut()
            .zip(batch.names.iter_mut())
            .map(|(part, name)| {
                let mut header = empty_header();
                header.msg_name = ptr::from_mut(name).cast();
                header.msg_iov = ptr::from_mut(part);
                header.msg_iovlen = 1;
                libc::mmsghdr {
                    msg_hdr: header,
                    msg_len: 0,
                }
            });
        batch.headers = headers.collect();
        batch
    }

    /// Receives what is there, without waiting, hands each datagram to `work`, and sends back the
    /// leading run of datagrams that `work` keeps (true); it stops at the first one refused.
    ///
    /// # Errors
    /// The kernel's refusal of either call.
    pub(crate) fn turn(
        &mut self,
        work: &mut impl FnMut(&mut [u8], usize) -> bool,
    ) -> io::Result<usize> {
        for (header, part) in self.headers.iter_mut().zip(self.parts.iter_mut()) {
            header.msg_hdr.msg_namelen = libc::socklen_t::try_from(NAME_LEN).unwrap_or(0);
            part.iov_len = self.stride;
        }
        self.syscalls += 1;
        let count = libc::c_uint::try_from(self.headers.len()).unwrap_or(libc::c_uint::MAX);
        // SAFETY: `headers` holds `count` headers whose parts and names point into boxes of this
        // struct that never move; no timeout is passed.
        let received = unsafe {
            libc::recvmmsg(
                self.fd,
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        };
        let mut kept = 0;
        for index in 0..received {
            let len = usize::try_from(self.headers[index].msg_len)
                .unwrap_or(0)
                .min(self.stride);
            let start = index * self.stride;
            if !work(&mut self.buffers[start..start + len], len) {
                break;
            }
            self.parts[index].iov_len = len;
            kept += 1;
        }
        self.send(kept)?;
        Ok(received)
    }

    /// Sends `datagrams` (at most the batch) of `datagram_len` bytes to `peer`; `fill` writes each.
    ///
    /// # Errors
    /// The kernel's refusal to send.
    pub(crate) fn inject(
        &mut self,
        peer: SocketAddrV4,
        datagrams: usize,
        datagram_len: usize,
        fill: &mut impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        assert!(datagrams <= self.headers.len(), "one batch at a time");
        assert!(datagram_len <= self.stride, "a datagram fits its buffer");
        for index in 0..datagrams {
            let start = index * self.stride;
            fill(&mut self.buffers[start..start + datagram_len]);
            self.parts[index].iov_len = datagram_len;
            self.names[index] = socket_address(peer);
            let name_len = libc::socklen_t::try_from(NAME_LEN).unwrap_or(0);
            self.headers[index].msg_hdr.msg_namelen = name_len;
        }
        self.send(datagrams)
    }

    /// Calls into the kernel so far.
    pub(crate) fn syscalls(&self) -> u64 {
        self.syscalls
    }

    fn send(&mut self, count: usize) -> io::Result<()> {
        assert!(
            count <= self.headers.len(),
            "only what the batch holds can be sent"
        );
        let mut sent = 0;
        while sent < count {
            self.syscalls += 1;
            let left = libc::c_uint::try_from(count - sent).unwrap_or(libc::c_uint::MAX);
            // SAFETY: `sent < count <= headers.len()`, so the pointer and the `left` headers after
            // it are inside the box, and their parts hold `iov_len` bytes of this struct's buffers.
            let result =
                unsafe { libc::sendmmsg(self.fd, self.headers.as_mut_ptr().add(sent), left, 0) };
            match usize::try_from(result) {
                Ok(more) => sent += more,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}
