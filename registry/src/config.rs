//! What a registry is told at start, what it bounds, and why it could not start.
//!
//! Every table and queue of this crate takes its bound from [`Limits`] or from a constant beside
//! the table; the comments say what happens at the bound.

use core::fmt;
use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use ramjet_proto::polo::Policy;
use serde::{Deserialize, Serialize};

/// How to start a registry.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where TCP listens; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Where the UDP beacon listens; none runs no beacon.
    pub beacon: Option<SocketAddr>,
    /// The directory of the store, created if absent. None keeps everything in memory: what is
    /// answered as done is then lost with the process.
    pub state_dir: Option<PathBuf>,
    /// Admits the unsigned `update_polo_score` and `set_polo_score` of old Pilot daemons, with
    /// which any node sets any score: for closed test networks only.
    pub allow_unsigned_polo: bool,
    /// Whose rule moves polo.
    pub polo_policy: Policy,
    /// Appends every byte received and sent, on TCP and UDP, to this file: the proof that no
    /// payload reaches the registry. Costs a write a message.
    pub byte_log: Option<PathBuf>,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Config {
    /// Loopback on Pilot's ports 9000 and 9001, in memory.
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 9000)),
            beacon: Some(SocketAddr::from(([127, 0, 0, 1], 9001))),
            state_dir: None,
            allow_unsigned_polo: false,
            polo_policy: Policy::Article,
            byte_log: None,
            limits: Limits::default(),
        }
    }
}

/// Bounds of the process. Those that decide what a command comes to are in [`Rules`] instead.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; a further one is told so and closed. Daemons hold one each (1.9.1) or
    /// four (1.18.0), a ramjet node two; each is a file descriptor of the process.
    pub connections_max: usize,
    /// Messages a second of one connection; what comes faster is read later, and so slows its
    /// sender down.
    pub messages_per_second: u32,
    /// Messages of one connection at once.
    pub messages_burst: u32,
    /// Requests of one connection that are not answered yet; then it is not read further.
    pub in_flight_per_connection: usize,
    /// Bytes that wait to be written to one connection; a slower peer is disconnected.
    pub outgoing_bytes_per_connection: usize,
    /// Bytes of unfinished messages over all connections; then long messages wait for each other.
    pub incoming_bytes: usize,
    /// How long a connection may stay silent. Pilot's registry closes after five minutes.
    pub read_timeout: Duration,
    /// How long one write may take.
    pub write_timeout: Duration,
    /// Requests that wait for the log; then connections are not read further.
    pub log_queue: usize,
    /// Commands committed in one transaction.
    pub batch_max: usize,
    /// New nodes a second from one source address; known keys are exempt.
    pub registrations_per_second: u32,
    /// New nodes from one source address at once.
    pub registrations_burst: u32,
    /// Relayed packets a second from one source of the beacon.
    pub relayed_per_second: u32,
    /// Log entries after which a snapshot is taken, at least: it is taken no earlier than the
    /// table rows it must write, so that its cost stays a constant share.
    pub snapshot_every: u64,
    /// Tables and rules that take part in the state.
    pub rules: Rules,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 32_768,
            messages_per_second: 2_000,
            messages_burst: 32_768,
            in_flight_per_connection: 1_024,
            outgoing_bytes_per_connection: 8 << 20,
            incoming_bytes: 64 << 20,
            read_timeout: Duration::from_secs(300),
            write_timeout: Duration::from_secs(30),
            log_queue: 8_192,
            batch_max: 1_024,
            registrations_per_second: 100,
            registrations_burst: 2_000,
            relayed_per_second: 4_000,
            snapshot_every: 10_000,
            rules: Rules::default(),
        }
    }
}

/// What decides what a command comes to. It is logged when it changes, so that a log replays to the
/// same state under another configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Whose rule moves polo. [`Config::polo_policy`] is copied here at start.
    pub polo_policy: Policy,
    /// Registered nodes; a further one is refused.
    pub nodes_max: usize,
    /// Open offers of one requester.
    pub offers_per_requester: usize,
    /// Open offers in all.
    pub offers_max: usize,
    /// Ended offers that are remembered, oldest forgotten first: they tell a late accept that it
    /// is late and a repeated offer what became of it.
    pub ended_offers_max: usize,
    /// Engagements on file. At the bound those that ended longest ago make room, settled ones
    /// first; while none has ended, an accept is refused.
    pub engagements_max: usize,
    /// How long after its end an engagement can still be settled, in milliseconds.
    pub settle_window_ms: u64,
    /// What busy time may exceed wall time by, in milliseconds.
    pub busy_slack_ms: u64,
    /// Contradictory receipts kept as evidence, newest.
    pub evidence_max: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            polo_policy: Policy::Article,
            nodes_max: 262_144,
            offers_per_requester: 16_384,
            offers_max: 65_536,
            ended_offers_max: 65_536,
            engagements_max: 65_536,
            settle_window_ms: 30 * 24 * 3_600_000,
            busy_slack_ms: 1_000,
            evidence_max: 256,
        }
    }
}

/// Why a registry could not start.
#[derive(Debug)]
pub enum RegistryError {
    /// A socket could not be bound.
    Bind {
        /// `TCP` or `beacon UDP`.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The kernel's word.
        error: io::Error,
    },
    /// The state directory is used by another process.
    StateLocked {
        /// The store's file.
        path: PathBuf,
    },
    /// The store could not be opened, read or written.
    Store {
        /// The store's file, or `memory`.
        path: String,
        /// What failed.
        error: String,
    },
    /// The byte log could not be opened.
    ByteLog {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        error: io::Error,
    },
    /// A thread or its runtime could not be started, or ended without a word.
    Thread(io::Error),
    /// A limit has a value with which nothing would work.
    Limit {
        /// Name of the limit.
        name: &'static str,
        /// What it must be.
        bound: &'static str,
    },
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegistryError::Bind {
                what,
                address,
                error,
            } => write!(
                f,
                "cannot listen on {what} {address}: {error}; choose another address, or port 0, \
                 or stop what holds it"
            ),
            RegistryError::StateLocked { path } => write!(
                f,
                "the store {} is open in another process; stop that registry, or choose another \
                 state directory",
                path.display()
            ),
            RegistryError::Store { path, error } => write!(
                f,
                "the store {path} cannot be used: {error}; check space and permissions, or choose \
                 another state directory"
            ),
            RegistryError::ByteLog { path, error } => {
                write!(
                    f,
                    "the byte log {} cannot be opened: {error}",
                    path.display()
                )
            }
            RegistryError::Thread(error) => {
                write!(
                    f,
                    "a registry thread cannot run: {error}; check the limit on threads"
                )
            }
            RegistryError::Limit { name, bound } => {
                write!(
                    f,
                    "the limit {name} must be {bound}; correct it in the configuration"
                )
            }
        }
    }
}

impl std::error::Error for RegistryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RegistryError::Bind { error, .. }
            | RegistryError::ByteLog { error, .. }
            | RegistryError::Thread(error) => Some(error),
            RegistryError::StateLocked { .. }
            | RegistryError::Store { .. }
            | RegistryError::Limit { .. } => None,
        }
    }
}
