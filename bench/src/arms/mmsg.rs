//! The windowed echo over `recvmmsg` and `sendmmsg`: what batching alone gives.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::RawFd;
use std::time::Duration;

use super::drive::{Drive, EchoPath, RECEIVE_BUFFER_LEN};
use super::{ArmError, ArmResult, Cores, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, Payload, WINDOW_MAX};
use crate::ring::DatagramBatch;

/// Datagrams of one call; more only lengthens the turn.
const BATCH_MAX: usize = 64;

/// What [`mmsg_echo`] runs.
#[derive(Clone, Debug)]
pub struct MmsgEcho {
    /// Length of a datagram, from [`DATAGRAM_LEN_MIN`] to [`DATAGRAM_LEN_MAX`] bytes.
    pub payload: Payload,
    /// Datagrams kept in flight, from 1 to [`WINDOW_MAX`].
    pub window: usize,
    /// Whether each datagram is opened and sealed with AES-256-GCM at both ends.
    pub encrypted: bool,
    /// Length of the measured interval.
    pub duration: Duration,
    /// Where the two threads run; detected if absent.
    pub cores: Option<Cores>,
}

impl MmsgEcho {
    /// One second of the plain echo.
    #[must_use]
    pub fn new(payload: Payload, window: usize) -> Self {
        Self {
            payload,
            window,
            encrypted: false,
            duration: Duration::from_secs(1),
            cores: None,
        }
    }
}

/// Echoes a window of datagrams through `recvmmsg` and `sendmmsg` at both ends, spinning.
///
/// # Errors
/// [`ArmError`]: a parameter out of bounds, a refusal of the kernel, a stalled or corrupt run.
pub fn mmsg_echo(spec: &MmsgEcho) -> Result<ArmResult, ArmError> {
    let datagram_len = spec.payload.len();
    ArmError::check(
        "payload length",
        datagram_len,
        DATAGRAM_LEN_MIN,
        DATAGRAM_LEN_MAX,
    )?;
    ArmError::check("window", spec.window, 1, WINDOW_MAX)?;
    let drive = Drive {
        datagram_len,
        window: spec.window,
        train: 1,
        encrypted: spec.encrypted,
        duration: spec.duration,
        cores: spec.cores.map_or_else(Cores::detect, Ok)?,
        receive_buffer_len: RECEIVE_BUFFER_LEN,
    };
    let mut result = drive.run(false, |spec, fd, _| Ok(BatchPath::open(fd, spec)))?;
    let cipher = if spec.encrypted { ", AES-256-GCM" } else { "" };
    result.name = format!(
        "mmsg_echo {datagram_len} B x {}{cipher}",
        result.details.window
    );
    result.details.path = String::from(BatchPath::NAME);
    Ok(result)
}

pub(super) struct BatchPath(DatagramBatch);

impl BatchPath {
    pub(super) const NAME: &str = "recvmmsg and sendmmsg";

    pub(super) fn open(fd: RawFd, drive: &Drive) -> Self {
        let count = drive.window.min(BATCH_MAX);
        Self(DatagramBatch::new(fd, count, drive.datagram_len))
    }
}

impl EchoPath for BatchPath {
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
        self.0.inject(peer, train, datagram_len, fill)
    }

    fn syscalls(&self) -> u64 {
        self.0.syscalls()
    }
}
