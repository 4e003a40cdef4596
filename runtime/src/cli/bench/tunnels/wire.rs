//! The socket of all requesters.
//!
//! The generator has one socket and every requester an address of 127.0.0.0/8 of its own: the kernel
//! takes the source of a datagram from the control message beside it, and tells with each arrival
//! which address it was for. So a generator of 10,000 nodes makes as many system calls for a task
//! as one of four.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
/// Bytes of one received train.
const RECEIVE_LEN: usize = 64 << 10;
/// Asked of the kernel for each direction; it gives what `rmem_max` and `wmem_max` allow.
const BUFFER_BYTES: usize = 4 << 20;

/// The socket of all requesters.
pub(super) struct Wire {
    socket: UdpSocket,
    state: UdpSocketState,
    space: Vec<u8>,
    metas: [RecvMeta; BATCH_SIZE],
}

/// A received train.
pub(super) struct Arrived {
    /// Which of the receive buffers.
    pub(super) buffer: usize,
    /// The address it was sent to.
    pub(super) to: Ipv4Addr,
    /// Who sent it.
    pub(super) from: SocketAddr,
    /// Bytes in it.
    pub(super) len: usize,
    /// Length of each datagram but the last.
    pub(super) segment: usize,
}

impl Wire {
    /// Binds one port on every address of this host.
    pub(super) fn bind() -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // A smaller buffer works: what is in flight is bounded by the window.
        let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), BUFFER_BYTES);
        let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), BUFFER_BYTES);
        Ok(Wire {
            socket,
            state,
            space: vec![0; BATCH_SIZE * RECEIVE_LEN],
            metas: [RecvMeta::default(); BATCH_SIZE],
        })
    }

    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// What has arrived, at most [`BATCH_SIZE`] trains; nothing if nothing has.
    pub(super) fn receive(&mut self, arrived: &mut Vec<Arrived>) -> io::Result<()> {
        let mut buffers = self.space.chunks_mut(RECEIVE_LEN);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().expect("as many as slices")));
        let socket = UdpSockRef::from(&self.socket);
        let count = match self.state.recv(socket, &mut slices, &mut self.metas) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        for (buffer, meta) in self.metas[..count].iter().enumerate() {
            if let Some(IpAddr::V4(to)) = meta.dst_ip {
                arrived.push(Arrived {
                    buffer,
                    to,
                    from: meta.addr,
                    len: meta.len,
                    segment: meta.stride.max(1),
                });
            }
        }
        Ok(())
    }

    /// One datagram of a received train.
    pub(super) fn datagram(&mut self, arrived: &Arrived, start: usize) -> &mut [u8] {
        let end = (start + arrived.segment).min(arrived.len);
        &mut self.space[arrived.buffer * RECEIVE_LEN..][start..end]
    }

    /// Sends `bytes` from `source`; segmented, if they are longer than a segment. Answers whether
    /// the kernel took them: what it does not take is lost, and the protocol repeats it.
    pub(super) fn send(
        &self,
        source: Ipv4Addr,
        to: SocketAddr,
        bytes: &[u8],
        segment: usize,
    ) -> bool {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents: bytes,
            segment_size: (bytes.len() > segment).then_some(segment),
            src_ip: Some(IpAddr::V4(source)),
        };
        self.state
            .try_send(UdpSockRef::from(&self.socket), &transmit)
            .is_ok()
    }

    /// Datagrams that one segmented send may hold.
    pub(super) fn segments_max(&self) -> usize {
        self.state.max_gso_segments().max(1)
    }
}
