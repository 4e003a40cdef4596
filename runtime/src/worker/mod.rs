//! The data path: one pinned thread, one ring, one socket, ten rooms.
//!
//! Callers start workers with [`spawn`], speak to them through [`Mailbox`], and read their
//! [`Counters`] at any time.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;

use ramjet_proto::identity::Identity;
use ramjet_proto::ids::NodeId;

use crate::control::vocabulary::{Command, Report};
use crate::handler::Skill;

/// Which system interface moves datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoKind {
    /// io_uring: multishot receive into provided buffers, one enter a turn.
    #[default]
    Uring,
    /// `recvmmsg` and `sendmmsg`: where io_uring is blocked, and the control arm of benchmarks.
    Mmsg,
}

/// What a worker does when it has nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Never sleeps: lowest latency, a whole core.
    Spin,
    /// Spins for a while after the last work (50 µs), then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Park,
}

/// Everything a worker needs, decided before its thread starts.
pub struct WorkerPlan {
    /// Its place in the group, from 0.
    pub index: usize,
    /// How many there are: it owns the tunnels to nodes `n` with `n mod workers == index`.
    pub workers: usize,
    /// The core to pin to; `None` to float.
    pub core: Option<usize>,
    /// Bound with SO_REUSEPORT, steering filter attached, in `index` order.
    pub socket: UdpSocket,
    /// Backend.
    pub io: IoKind,
    /// Idle policy.
    pub idle: Idle,
    /// Our own node.
    pub node: NodeId,
    /// Our own keys, for PILA.
    pub identity: Arc<Identity>,
    /// Skills, by the index that [`crate::control::vocabulary::ChannelTerms::skill`] names.
    pub skills: Arc<[Skill]>,
    /// The beacon to be discovered through, if any.
    pub beacon: Option<SocketAddr>,
    /// Most tunnels.
    pub tunnels_max: usize,
}

/// The clock that every worker of this process reads: nanoseconds since the process started.
pub mod clock {
    use std::sync::OnceLock;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use ramjet_proto::time::Time;

    static ORIGIN: OnceLock<Instant> = OnceLock::new();

    /// Now, on the monotonic clock.
    pub fn now() -> Time {
        let origin = *ORIGIN.get_or_init(Instant::now);
        // 584 years fit.
        Time::from_nanos(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Milliseconds since the Unix epoch, on the wall clock: for grants and the market only.
    pub fn unix_ms() -> u64 {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }
}
