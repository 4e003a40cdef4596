//! Rooms 1 and 10 on `recvmmsg` and `sendmsg`, for hosts where io_uring is blocked, and as the
//! control arm of benchmarks. The system calls are quinn-udp's.

use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::arena::{
    RECEIVE_BUFFERS_MIN, RECEIVE_HEAD, ReceiveArena, SendArena, TRAIN_DATAGRAMS_MAX,
};
use super::io::{Events, HARVEST_MAX, Incoming, Io, Outgoing};
use super::trains::Trains;

/// The fallback backend.
pub struct Mmsg {
    socket: UdpSocket,
    state: UdpSocketState,
    wake: Arc<OwnedFd>,
    idle_buffers: Vec<u16>,
    segmentation: bool,
    events: Events,
}

impl Mmsg {
    /// Takes over a bound socket.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn new(socket: UdpSocket, wake: Arc<OwnedFd>, trains: Trains) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        if !trains.gathered {
            // The line above has asked for it.
            super::ring::leave_single(&socket)?;
        }
        let segmentation = trains.sent;
        Ok(Mmsg {
            socket,
            state,
            wake,
            idle_buffers: (0..RECEIVE_BUFFERS_MIN).rev().collect(),
            segmentation,
            events: Events::default(),
        })
    }

    /// One `recvmmsg`; whether it brought a train.
    fn receive_one(&mut self, receive: &mut ReceiveArena, batch: &mut Vec<Incoming>) -> bool {
        // One buffer a call keeps the borrow of the arena whole: one system call a train, which GRO
        // makes of up to 46 datagrams.
        if self.idle_buffers.is_empty() {
            self.events.out_of_buffers += 1;
            self.idle_buffers.extend(receive.grow());
        }
        let Some(buffer) = self.idle_buffers.pop() else {
            return false;
        };
        receive.lease(buffer);
        let mut meta = [RecvMeta::default()];
        let space = &mut receive.buffer(buffer)[RECEIVE_HEAD..];
        self.events.system_calls += 1;
        let result = self.state.recv(
            UdpSockRef::from(&self.socket),
            &mut [IoSliceMut::new(space)],
            &mut meta,
        );
        match result {
            Ok(1) => {
                batch.push(Incoming {
                    buffer,
                    offset: RECEIVE_HEAD,
                    len: meta[0].len,
                    segment: meta[0].stride.max(1),
                    source: meta[0].addr,
                    truncated: false,
                });
                true
            }
            _ => {
                receive.release(buffer);
                self.idle_buffers.push(buffer);
                false
            }
        }
    }
}

impl Io for Mmsg {
    fn label(&self) -> &'static str {
        "mmsg"
    }

    fn train_datagrams_max(&self) -> usize {
        if self.segmentation {
            self.state.max_gso_segments().clamp(1, TRAIN_DATAGRAMS_MAX)
        } else {
            1
        }
    }

    fn harvest(
        &mut self,
        receive: &mut ReceiveArena,
        _send: &mut SendArena,
        batch: &mut Vec<Incoming>,
    ) -> Events {
        while batch.len() < HARVEST_MAX && self.receive_one(receive, batch) {}
        std::mem::take(&mut self.events)
    }

    fn release(&mut self, receive: &mut ReceiveArena, buffer: u16) {
        receive.release(buffer);
        self.idle_buffers.push(buffer);
    }

    fn submit(&mut self, send: &mut SendArena, outgoing: Outgoing) {
        let transmit = Transmit {
            destination: outgoing.target,
            ecn: None,
            contents: &send.train(outgoing.train)[..outgoing.len],
            segment_size: (outgoing.len > outgoing.segment).then_some(outgoing.segment),
            src_ip: None,
        };
        self.events.system_calls += 1;
        if self
            .state
            .try_send(UdpSockRef::from(&self.socket), &transmit)
            .is_err()
        {
            self.events.refused(outgoing.segment, outgoing.probe);
        }
        send.free_train(outgoing.train);
    }

    fn is_ready(&mut self) -> bool {
        // Only a system call can tell.
        true
    }

    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let Some(wait) = wait else { return Ok(()) };
        let timeout = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        let mut sources = [
            PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        self.events.system_calls += 1;
        match poll(&mut sources, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
