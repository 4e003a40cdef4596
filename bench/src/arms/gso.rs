//! The echo of ramjet's own path without its protocol: io_uring, GRO in, GSO out, optional
//! AES-256-GCM.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::RawFd;
use std::time::Duration;

use super::drive::{Drive, EchoPath, RECEIVE_BUFFER_LEN};
use super::mmsg::BatchPath;
use super::{
    ArmError, ArmResult, Cores, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, TRAIN_MAX, WINDOW_MAX,
};
use crate::ring::EchoRing;

/// What [`gso_echo`] runs.
#[derive(Clone, Debug)]
pub struct GsoEcho {
    /// Length of a datagram, in bytes of UDP payload, from [`DATAGRAM_LEN_MIN`] to
    /// [`DATAGRAM_LEN_MAX`].
    pub datagram_len: usize,
    /// Datagrams kept in flight, from 1 to [`WINDOW_MAX`].
    pub window: usize,
    /// Datagrams of one segmented send, from 1 to [`TRAIN_MAX`]; a train holds at most
    /// [`DATAGRAM_LEN_MAX`] bytes.
    pub train: usize,
    /// Whether each datagram is opened and sealed with AES-256-GCM at both ends.
    pub encrypted: bool,
    /// Length of the measured interval.
    pub duration: Duration,
    /// Where the two threads run; detected if absent.
    pub cores: Option<Cores>,
}

impl GsoEcho {
    /// One second of the echo, in trains of a quarter of the window, so that several are in flight.
    #[must_use]
    pub fn new(datagram_len: usize, window: usize, encrypted: bool) -> Self {
        let longest = DATAGRAM_LEN_MAX / datagram_len.clamp(1, DATAGRAM_LEN_MAX);
        Self {
            datagram_len,
            window,
            train: (window / 4).clamp(1, TRAIN_MAX.min(longest)),
            encrypted,
            duration: Duration::from_secs(1),
            cores: None,
        }
    }

    fn check(&self) -> Result<Drive, ArmError> {
        let longest = DATAGRAM_LEN_MAX / self.datagram_len.max(1);
        ArmError::check(
            "datagram length",
            self.datagram_len,
            DATAGRAM_LEN_MIN,
            DATAGRAM_LEN_MAX,
        )?;
        ArmError::check("window", self.window, 1, WINDOW_MAX)?;
        ArmError::check(
            "train",
            self.train,
            1,
            TRAIN_MAX.min(longest).min(self.window),
        )?;
        Ok(Drive {
            datagram_len: self.datagram_len,
            window: self.window,
            train: self.train,
            encrypted: self.encrypted,
            duration: self.duration,
            cores: self.cores.map_or_else(Cores::detect, Ok)?,
            receive_buffer_len: RECEIVE_BUFFER_LEN,
        })
    }
}

/// Echoes a window of datagrams through io_uring at both ends: multishot receives into a provided
/// buffer ring with `UDP_GRO`, sends with `UDP_SEGMENT` out of the buffer the train arrived in,
/// spinning.
///
/// Where io_uring is not available the same window runs over `recvmmsg` and `sendmmsg`, and the
/// result's `path` and `note` say so.
///
/// # Errors
/// [`ArmError`]: a parameter out of bounds, a refusal of the kernel, a stalled or corrupt run.
pub fn gso_echo(spec: &GsoEcho) -> Result<ArmResult, ArmError> {
    let drive = spec.check()?;
    let mut result = match drive.run(true, |spec, fd, trains| RingPath::open(fd, trains, spec)) {
        Err(ArmError::RingUnavailable { what, source }) => {
            let plain = Drive { train: 1, ..drive };
            let mut result = plain.run(false, |spec, fd, _| Ok(BatchPath::open(fd, spec)))?;
            result.details.path = String::from(BatchPath::NAME);
            let stand_in = format!(
                "io_uring is not available (could not {what}: {source}); recvmmsg and sendmmsg \
                stood in"
            );
            let lowered = result.details.note.take();
            result.details.note = Some(match lowered {
                Some(lowered) => format!("{stand_in}; {lowered}"),
                None => stand_in,
            });
            result
        }
        other => {
            let mut result = other?;
            result.details.path = String::from(RingPath::NAME);
            result
        }
    };
    result.name = format!(
        "gso_echo {} B x {}, train {}{}",
        spec.datagram_len,
        result.details.window,
        result.details.train,
        if spec.encrypted { ", AES-256-GCM" } else { "" }
    );
    Ok(result)
}

struct RingPath(EchoRing);

impl RingPath {
    const NAME: &str = "io_uring multishot recvmsg, GRO in, GSO out";

    /// A ring with room for the whole window twice, should every train come apart on the way.
    fn open(fd: RawFd, trains: usize, drive: &Drive) -> Result<Self, ArmError> {
        let in_flight = drive.window.div_ceil(drive.train);
        let slots = (in_flight * 2).max(16).next_power_of_two();
        let bound = || io::Error::from(io::ErrorKind::InvalidInput);
        let slots = u16::try_from(slots).map_err(|_| ArmError::ring("size the ring", bound()))?;
        let trains = u16::try_from(trains).map_err(|_| ArmError::ring("size the ring", bound()))?;
        EchoRing::new(fd, slots, drive.train * drive.datagram_len, trains)
            .map(Self)
            .map_err(|(what, source)| ArmError::ring(what, source))
    }
}

impl EchoPath for RingPath {
    fn turn(&mut self, work: &mut impl FnMut(&mut [u8], usize) -> bool) -> io::Result<usize> {
        self.0.turn(work)
    }

    fn inject(
        &mut self,
        peer: SocketAddrV4,
        train: usize,
        datagram_len: usize,
        fill: &mut impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        self.0
            .inject(peer, train * datagram_len, datagram_len, fill)
    }

    fn syscalls(&self) -> u64 {
        self.0.syscalls()
    }
}
