//! Whether this kernel cuts trains into datagrams (GSO) and gathers datagrams into trains (GRO), tried
//! on loopback before the first worker starts.
//!
//! That an option can be set does not say that it works: a kernel or a sandbox may take it and then
//! lose, merge or refuse what is sent with it. So a train whose last datagram is shorter goes through
//! two sockets of our own, and what arrives is compared byte by byte. What does not hold is not used:
//! datagrams then leave, or arrive, one by one. A device may still refuse trains later; the ring falls
//! back when that shows.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::ring;

/// How long loopback may take for a handful of datagrams.
const PATIENCE: Duration = Duration::from_secs(1);
/// Length of each datagram of the trial but the last, and of that.
const SEGMENT_LEN: usize = 512;
const LAST_LEN: usize = 100;
const SEGMENTS: usize = 5;
const TRAIN_LEN: usize = (SEGMENTS - 1) * SEGMENT_LEN + LAST_LEN;

/// Whether trains are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Segmentation {
    /// As far as this kernel passes the trial.
    #[default]
    Auto,
    /// Not at all: one datagram a send and a receive.
    Off,
}

/// What holds on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trains {
    /// A train that is sent arrives as its datagrams.
    pub sent: bool,
    /// Datagrams that are gathered on arrival can be told apart again.
    pub gathered: bool,
}

impl Trains {
    /// All of it.
    pub const ALL: Trains = Trains {
        sent: true,
        gathered: true,
    };

    /// None at all.
    pub const NONE: Trains = Trains {
        sent: false,
        gathered: false,
    };

    /// What a node with this setting uses.
    pub fn of(segmentation: Segmentation) -> Self {
        match segmentation {
            Segmentation::Off => Trains::NONE,
            Segmentation::Auto => Trains {
                sent: arrives(true, false).unwrap_or(false),
                gathered: arrives(false, true).unwrap_or(false),
            },
        }
    }
}

/// Sends the trial, as one train or as single datagrams, to a socket that gathers or does not; whether
/// exactly its datagrams arrive, in order.
fn arrives(segmented: bool, gathering: bool) -> io::Result<bool> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (sender, receiver) = (UdpSocket::bind(any)?, UdpSocket::bind(any)?);
    let target = receiver.local_addr()?;
    let (source, sink) = (
        UdpSocketState::new(UdpSockRef::from(&sender))?,
        UdpSocketState::new(UdpSockRef::from(&receiver))?,
    );
    if gathering {
        ring::gather_trains(&receiver)?;
    } else {
        ring::leave_single(&receiver)?;
    }
    let train: Vec<u8> = (0..=u8::MAX).cycle().take(TRAIN_LEN).collect();
    let step = if segmented { TRAIN_LEN } else { SEGMENT_LEN };
    for contents in train.chunks(step) {
        let transmit = Transmit {
            destination: target,
            ecn: None,
            contents,
            segment_size: segmented.then_some(SEGMENT_LEN),
            src_ip: None,
        };
        source.try_send(UdpSockRef::from(&sender), &transmit)?;
    }
    let mut expected = train.chunks(SEGMENT_LEN);
    let mut space = vec![0; 1 << 16];
    while expected.len() > 0 {
        if !is_readable(&receiver)? {
            return Ok(false);
        }
        let mut meta = [RecvMeta::default()];
        let mut spaces = [IoSliceMut::new(&mut space)];
        sink.recv(UdpSockRef::from(&receiver), &mut spaces, &mut meta)?;
        for got in space[..meta[0].len].chunks(meta[0].stride.max(1)) {
            if expected.next() != Some(got) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn is_readable(socket: &UdpSocket) -> io::Result<bool> {
    let patience = Timespec {
        tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(PATIENCE.subsec_nanos()),
    };
    let mut watched = [PollFd::new(socket, PollFlags::IN)];
    Ok(poll(&mut watched, Some(&patience))? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_datagrams_arrive_whatever_the_kernel_offers() {
        assert!(arrives(false, false).expect("loopback"));
        assert_eq!(Trains::of(Segmentation::Off), Trains::NONE);
    }

    /// Every kernel that this is built for has both; a sandbox without them fails here, by name.
    #[test]
    fn a_linux_kernel_passes_the_trial() {
        let trains = Trains::of(Segmentation::Auto);
        assert!(trains.sent, "GSO on loopback (udp(7), UDP_SEGMENT)");
        assert!(trains.gathered, "GRO on loopback (udp(7), UDP_GRO)");
    }
}
