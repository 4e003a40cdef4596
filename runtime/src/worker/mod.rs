//! The data path: one pinned thread, one ring, one socket, ten rooms.
//!
//! ```text
//!  1 receive ─▶ 2 datagram ─▶ 3 tunnel open ─▶ 4 frames ─▶ 5 admission ─▶ 6 handler ··▶ pool
//!   ring/mmsg   └──── proto::tunnel ───────┘    rooms       serve          serve        │
//!                                                                            ◀··········┘
//!  10 send ◀── 9 tunnel seal ◀── 8 frames ◀── 7 result
//!   ring/mmsg   outbox            outbox       serve
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`turn`] | the loop: ten calls, in the order in which a packet walks them |
//! | [`io`], [`ring`], [`mmsg`], [`socket`] | rooms 1 and 10 |
//! | [`arena`] | the memory shared with the kernel |
//! | [`rooms`], [`serve`], [`request`], [`timers`] | rooms 4 to 7, at either end of an engagement |
//! | [`outbox`] | rooms 7 to 9 |
//! | [`streams`] | Pilot streams, datagrams and the echo of port 7 |
//! | [`order`] | in which order the trains of a batch are walked |
//! | [`pump`], [`paths`] | who sends how much in a turn, and what each path may carry |
//! | [`channels`], [`deadlines`] | the table of engagements, and when each wants to be looked at |
//! | [`boxes`], [`pool`] | tasks that run elsewhere: in the pool, or in agents ([`crate::port`]) |
//! | [`plan`] | what all of it may take in memory |
//! | [`mailbox`], [`counters`] | how other threads reach a worker, and what they may read |
//!
//! Callers bind sockets with [`bind_group`], start workers with [`spawn_group`], speak to them
//! through [`WorkerHandle`] and read their counters at any time. Absent: locks, and allocation once
//! every slot of a channel has been used.

pub mod arena;
pub mod boxes;
pub mod channels;
pub mod clock;
pub mod counters;
mod deadlines;
mod forward;
pub mod io;
pub mod mailbox;
pub mod mmsg;
pub mod order;
pub mod outbox;
pub mod paths;
pub mod plan;
pub mod pool;
mod pump;
mod request;
pub mod ring;
pub mod rooms;
mod serve;
pub mod socket;
mod spin;
pub mod streams;
mod timers;
pub mod trains;
mod turn;
mod wake;

pub use forward::owner_of;
pub use mailbox::{ReportReceiver, ReportSender, WorkerHandle, reports};
pub use pool::Pool;
pub use socket::{adopt_group, bind_group};

use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ramjet_proto::identity::Identity;
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{TunnelConfig, Tunnels};
use ramjet_proto::wire::limits::FRAME_PAYLOAD_MAX;

pub use self::arena::Pages;
use self::arena::{ReceiveArena, SendArena};
use self::boxes::{Boxes, POOL_BOXES, TaskBox};
use self::channels::Channels;
use self::clock::Stopwatch;
use self::counters::{Counter, Counters};
use self::io::Io;
use self::mailbox::Inbox;
use self::outbox::{Outbox, Packing};
use self::paths::Paths;
use self::pump::Active;
use self::rooms::{Reporter, Rooms};
use self::streams::StreamRoom;
pub use self::trains::{Segmentation, Trains};
use self::turn::Worker;
use crate::control::vocabulary::Report;
use crate::handler::{Placement, Skill};
use crate::latency::Histograms;

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
    /// Spins for a while after the last work (50 µs), then sleeps; sleeps at once where spinning has
    /// not been paying.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Park,
}

/// What of the kernel's help a worker takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoOptions {
    /// Trains of datagrams.
    pub segmentation: Segmentation,
    /// The pages that buffers lie in.
    pub pages: Pages,
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
    /// What is known of trains on this kernel.
    pub trains: Trains,
    /// The pages that its buffers lie in.
    pub pages: Pages,
    /// Idle policy.
    pub idle: Idle,
    /// Our own node.
    pub node: NodeId,
    /// Our own keys, for PILA.
    pub identity: Arc<Identity>,
    /// Skills, by the index that [`crate::control::vocabulary::ChannelTerms::skill`] names.
    pub skills: Arc<[Skill]>,
    /// Most tasks that wait for agents or run there.
    pub agent_tasks_max: usize,
    /// The beacon to be discovered through, if any.
    pub beacon: Option<SocketAddr>,
    /// Most tunnels.
    pub tunnels_max: usize,
    /// Most frames in a datagram: [`u16::MAX`] for as many as fit, 1 for a datagram a task.
    pub frames_per_datagram_max: u16,
    /// Longest datagram to try on a path, in bytes of UDP payload.
    pub datagram_len_max: usize,
    /// Whether streams to port 7 are answered with what they bring.
    pub echo: bool,
    /// Whether everyone may reach this node's ports, until control says who may.
    pub public: bool,
}

/// Key exchanges taken from one source address in a second. Many nodes share an address behind NAT
/// and on loopback; the cost of one is an Ed25519 and an X25519 operation, about 100 us.
const KEY_EXCHANGES_PER_SECOND: u32 = 200;

/// Starts a group of workers. Each sets its ring up on its own thread; the first that cannot ends
/// the group.
///
/// # Errors
/// What could not be set up, with the backend's name and the next step.
pub fn spawn_group(
    plans: Vec<WorkerPlan>,
    senders: Vec<ReportSender>,
    pool: Option<&Pool>,
) -> Result<Vec<WorkerHandle>, String> {
    assert_eq!(plans.len(), senders.len(), "one report queue a worker");
    let inboxes = plans
        .iter()
        .map(|plan| Inbox::new(POOL_BOXES + plan.agent_tasks_max).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("eventfd: {error}; raise the limit of open files"))?;
    let mut handles = Vec::with_capacity(plans.len());
    for (plan, sender) in plans.into_iter().zip(senders) {
        match spawn(plan, sender, pool, &inboxes) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                for handle in handles {
                    // Its queue is empty: it has only just started.
                    let _ = handle.send(crate::control::vocabulary::Command::Stop);
                    handle.join();
                }
                return Err(error);
            }
        }
    }
    Ok(handles)
}

fn spawn(
    plan: WorkerPlan,
    sender: ReportSender,
    pool: Option<&Pool>,
    inboxes: &[Arc<Inbox>],
) -> Result<WorkerHandle, String> {
    let inbox = Arc::clone(&inboxes[plan.index]);
    let counters = Arc::new(Counters::new());
    let (started, start) = std::sync::mpsc::sync_channel(1);
    let handle_inbox = Arc::clone(&inbox);
    let handle_counters = Arc::clone(&counters);
    let peers = inboxes.to_vec();
    let pool = pool.map(Pool::sender);
    let thread = std::thread::Builder::new()
        .name(format!("ramjet-worker-{}", plan.index))
        .spawn(move || {
            let (index, last_words) = (plan.index, sender.clone());
            let work =
                AssertUnwindSafe(|| run(plan, sender, pool, inbox, peers, counters, &started));
            if catch_unwind(work).is_err() {
                // A broken invariant ends the worker; control ends what ran on it, by name. It may
                // be gone itself, and then nobody is left to tell.
                let error = Some("a bug stopped it; its message is on standard error".to_owned());
                let _ = last_words.push(Report::Stopped {
                    worker: index,
                    error,
                });
            }
        })
        .map_err(|error| format!("worker thread: {error}"))?;
    match start.recv() {
        Ok(Ok(())) => Ok(WorkerHandle {
            inbox: handle_inbox,
            counters: handle_counters,
            thread,
        }),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(_) => Err("a worker thread ended while it started".to_owned()),
    }
}

type Started = std::sync::mpsc::SyncSender<Result<(), String>>;

/// A worker thread, from pinning to its last report.
fn run(
    plan: WorkerPlan,
    sender: ReportSender,
    pool: Option<crossbeam::channel::Sender<Box<TaskBox>>>,
    inbox: Arc<Inbox>,
    peers: Vec<Arc<Inbox>>,
    counters: Arc<Counters>,
    started: &Started,
) {
    if let Some(core) = plan.core
        && let Err(error) = pin(core)
    {
        let _ = started.send(Err(format!(
            "core {core}: cannot pin a worker to it: {error}"
        )));
        return;
    }
    let arenas = ReceiveArena::new(plan.pages).and_then(|receive| {
        let send = SendArena::new(plan.pages)?;
        Ok((receive, send))
    });
    let (receive, send) = match arenas {
        Ok(arenas) => arenas,
        Err(error) => {
            let _ = started.send(Err(format!(
                "memory for {} bytes of buffers: {error}",
                arena::ARENA_BYTES
            )));
            return;
        }
    };
    let huge = receive.huge_bytes() + send.huge_bytes();
    counters.set(Counter::HugePageBytes, huge as u64);
    let uses_pool = plan
        .skills
        .iter()
        .any(|skill| skill.handler.placement() == Placement::Pool);
    let pool_boxes = if uses_pool { POOL_BOXES } else { 0 };
    let mut clock = Stopwatch::new();
    let rooms = Rooms {
        channels: Channels::new(plan.tunnels_max),
        outbox: Outbox::new(plan.tunnels_max, plan.datagram_len_max),
        send,
        skills: Arc::clone(&plan.skills),
        counters: Arc::clone(&counters),
        histograms: Box::new(Histograms::new()),
        reporter: Reporter::new(sender.clone()),
        pool,
        boxes: Boxes::new(pool_boxes, plan.agent_tasks_max, Arc::clone(&inbox)),
        handed: Vec::new(),
        paths: Paths::new(plan.tunnels_max),
        active: Active::default(),
        pacing_due: Time::NEVER,
        streams: StreamRoom::new(plan.index, plan.echo, plan.public),
        scratch: vec![0; FRAME_PAYLOAD_MAX].into_boxed_slice(),
        packing: Packing {
            datagrams_max: 1,
            frames_max: plan.frames_per_datagram_max,
        },
        draining: None,
        polling: false,
        job_waker: std::task::Waker::from(Arc::clone(&inbox)),
        outstanding: 0,
        frame_len: 0,
        at: clock.read(),
        clock,
        unread: 0,
    };
    let tunnels = Tunnels::new(TunnelConfig {
        node: plan.node,
        identity: Arc::clone(&plan.identity),
        tunnels_max: plan.tunnels_max,
        key_exchanges_per_second: KEY_EXCHANGES_PER_SECOND,
        beacon: plan.beacon,
    });
    let index = plan.index;
    let event = Arc::clone(inbox.waker.event());
    let ended = match plan.io {
        IoKind::Uring => {
            // O_NONBLOCK would turn a receive without data into an error instead of a wait.
            let ready = plan.socket.set_nonblocking(false);
            use std::os::fd::AsFd;
            let receiving = match plan.idle {
                Idle::Spin => ring::Receiving::Asked,
                Idle::Adaptive | Idle::Park => ring::Receiving::Armed,
            };
            match ready.and_then(|()| {
                ring::Ring::new(
                    &plan.socket,
                    event.as_fd(),
                    &receive,
                    receiving,
                    plan.trains.sent,
                )
            }) {
                Ok(io) => start(
                    Worker::new(&plan, io, receive, rooms, tunnels, inbox, peers),
                    started,
                ),
                Err(error) => Err(format!(
                    "io_uring: {error}; see kernel.io_uring_disabled and the seccomp profile, or use --io mmsg"
                )),
            }
        }
        IoKind::Mmsg => match plan
            .socket
            .try_clone()
            .and_then(|socket| mmsg::Mmsg::new(socket, event, plan.trains))
        {
            Ok(io) => start(
                Worker::new(&plan, io, receive, rooms, tunnels, inbox, peers),
                started,
            ),
            Err(error) => Err(format!("UDP socket: {error}")),
        },
    };
    let error = ended.err();
    if let Some(error) = &error {
        // Before the start this is the answer to it; afterwards nobody listens there any more.
        let _ = started.try_send(Err(error.clone()));
    }
    // Control joins the thread in any case.
    let _ = sender.push(Report::Stopped {
        worker: index,
        error,
    });
}

fn start<B: Io>(mut worker: Worker<B>, started: &Started) -> Result<(), String> {
    // The starter waits for exactly this.
    let _ = started.send(Ok(()));
    worker.run().map_err(|error| error.to_string())
}

/// Pins the calling thread to a core.
///
/// # Errors
/// A core that there is not, or that this process may not use.
pub fn pin(core: usize) -> std::io::Result<()> {
    if core >= rustix::thread::CpuSet::MAX_CPU {
        return Err(std::io::Error::other("no such core"));
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)?;
    Ok(())
}
