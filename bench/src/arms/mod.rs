//! Control arms: the same path without ramjet.
//!
//! Each arm pins a server thread to one core and a client thread to another, joins them over
//! loopback UDP on ports the kernel chose, and runs for a bounded time.
//!
//! ```text
//!   client core                         server core
//!   ┌──────────────────────┐   UDP lo   ┌──────────────────────┐
//!   │ check, stamp, send   │──────────▶ │ receive, (open, seal)│
//!   │ receive              │ ◀──────────│ send back            │
//!   └──────────────────────┘            └──────────────────────┘
//! ```
//!
//! | Arm | Asks |
//! |---|---|
//! | [`udp_round_trip`] | what one datagram there and back costs when nothing else is in flight |
//! | [`mmsg_echo`] | what `recvmmsg` and `sendmmsg` carry with a window in flight |
//! | [`gso_echo`] | what io_uring with GRO in and GSO out carries, plain or encrypted |
//! | [`aes_gcm`] | what sealing and opening cost with no network at all |
//!
//! Invariants: an arm ends within its warm-up plus its duration plus [`STALL_LIMIT`]; every
//! datagram counted has been checked by the client; a loopback client also pays for the server's
//! receive path (the sender's core runs it), so a rate here charges both ends.
//!
//! Absent: ramjet's own code, and any choice of which figure is good enough.

mod aes;
mod codec;
mod drive;
mod error;
mod gso;
mod mmsg;
mod round_trip;

use std::time::Duration;

pub use aes::{AesCost, AesGcm, aes_gcm};
pub use error::ArmError;
pub use gso::{GsoEcho, gso_echo};
pub use mmsg::{MmsgEcho, mmsg_echo};
pub use round_trip::{RoundTrip, udp_round_trip};

use serde::Serialize;

/// How long an arm waits for the next datagram before it gives the run up as stalled.
pub const STALL_LIMIT: Duration = Duration::from_secs(2);

/// Warm-up before counting starts: page faults, cold caches and the first wake-ups stay out of the
/// figure.
pub const WARM_UP: Duration = Duration::from_millis(20);

/// Shortest datagram of a windowed echo: nonce, index, time stamp, proof word and tag, in bytes.
pub const DATAGRAM_LEN_MIN: usize = codec::DATAGRAM_LEN_MIN;

/// Longest UDP payload over IPv4 loopback, in bytes.
pub const DATAGRAM_LEN_MAX: usize = 65_507;

/// Most datagrams in one segmented send; the kernel accepted 64 before it accepted 128.
pub const TRAIN_MAX: usize = 64;

/// Most datagrams an arm keeps in flight, whatever the socket buffers would hold.
pub const WINDOW_MAX: usize = 16_384;

/// How a thread waits for the next datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitMode {
    /// Asks the socket again and again; the core never sleeps.
    Spinning,
    /// Sleeps in the kernel until the datagram comes; each side pays a wake-up.
    Blocking,
}

/// Length of a datagram's payload, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Payload(usize);

impl Payload {
    /// A payload of so many bytes; the arm checks the bound.
    #[must_use]
    pub const fn bytes(len: usize) -> Self {
        Self(len)
    }

    /// The length in bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0
    }

    /// Whether the datagram carries nothing.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The two cores of an arm, by kernel number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Cores {
    /// Where the echo server runs.
    pub server: usize,
    /// Where the client that measures runs.
    pub client: usize,
}

impl Cores {
    /// The first and the last core this process may use; the same one twice where there is only
    /// one.
    ///
    /// # Errors
    /// The kernel's refusal to name the allowed cores.
    pub fn detect() -> Result<Self, ArmError> {
        let allowed = crate::ring::allowed_cores()
            .map_err(|source| ArmError::kernel("read the allowed cores", source))?;
        match (allowed.first(), allowed.last()) {
            (Some(&server), Some(&client)) => Ok(Self { server, client }),
            _ => Err(ArmError::NoCore),
        }
    }
}

/// What an arm measured.
#[derive(Clone, Debug, Serialize)]
pub struct ArmResult {
    /// Name of the arm, with its parameters.
    pub name: String,
    /// Datagrams there and back, per second of the measured interval.
    pub per_s: f64,
    /// Median of the time from send to checked reply, in microseconds. In a windowed arm it
    /// includes the queue the window itself makes.
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
    /// What stands behind the figures.
    pub details: ArmDetails,
}

/// What stands behind the figures of an [`ArmResult`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct ArmDetails {
    /// Kernel interface that carried the datagrams, such as `io_uring multishot recvmsg, GRO in,
    /// GSO out`.
    pub path: String,
    /// Whether every datagram was opened and sealed at both ends.
    pub encrypted: bool,
    /// Length of a datagram, in bytes of UDP payload.
    pub datagram_len: usize,
    /// Datagrams kept in flight.
    pub window: usize,
    /// Datagrams of one segmented send; 1 where the path does not segment.
    pub train: usize,
    /// Checked replies inside the measured interval.
    pub datagrams: u64,
    /// Length of the measured interval, in nanoseconds.
    pub elapsed_ns: u64,
    /// Replies that did not prove to be what was sent. An arm with any is an error, so this is
    /// zero.
    pub corrupt: u64,
    /// Calls into the kernel made by the client, warm-up included.
    pub client_syscalls: u64,
    /// Processor time of the client thread per datagram of the whole run, in nanoseconds.
    pub client_cpu_ns_per_datagram: f64,
    /// Processor time of the server thread per datagram of the whole run, in nanoseconds.
    pub server_cpu_ns_per_datagram: f64,
    /// Involuntary context switches of both threads: somebody else wanted these cores.
    pub involuntary_switches: u64,
    /// What a reader must know, such as why another path stood in for the one asked for.
    pub note: Option<String>,
}

#[cfg(test)]
mod tests;
