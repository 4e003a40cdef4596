//! A running node: its workers, its control thread, and the one handle to both.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;
use ramjet_proto::identity::Identity;
use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::{
    Diagnosis, EngagementRow, Query, Refusal, Settlement, Standing, WorkerRow,
};
use ramjet_proto::market::{AcceptFrom, Filter, Gate};

use crate::control::ControlTimings;
pub use crate::control::agent::{AgentRequest, Data, DataKind};
use crate::control::vocabulary::{CloseReason, Totals};
use crate::handler::Skill;
use crate::job::Job;
use crate::latency::Histograms;
pub use crate::port::{AgentSkillStatus, AgentsConfig, OwnedAgent};
use crate::worker::{Idle, IoKind, IoOptions};

/// What a node is, decided before it starts.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The registry's TCP address.
    pub registry: SocketAddr,
    /// The registry's key, if the operator pins it; else the first one seen is kept in `state`.
    pub registry_key: Option<ramjet_proto::identity::PublicKey>,
    /// Where the tunnel listens; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// The address that others should use, if it differs from what the registry sees.
    pub endpoint: Option<SocketAddr>,
    /// The beacon's UDP address.
    pub beacon: Option<SocketAddr>,
    /// Who it is.
    pub identity: Arc<Identity>,
    /// Pilot's `owner` field; distinct for each node.
    pub owner: String,
    /// Its hostname at the registry.
    pub hostname: Option<String>,
    /// Whether anyone may resolve it.
    pub public: bool,
    /// What it can do; their names become the `skills` capability.
    pub skills: Vec<Skill>,
    /// Further capabilities.
    pub capabilities: BTreeMap<String, String>,
    /// Whether it wants tasks.
    pub task_ready: bool,
    /// Slots it grants to one engagement.
    pub credits: u32,
    /// Engagements it serves at a time.
    pub engagements_max: usize,
    /// Results it sends without a signed receipt for them, in one engagement.
    pub unsigned_max: u64,
    /// Worker threads.
    pub workers: usize,
    /// Cores to pin them to, in order; empty to float.
    pub cores: Vec<usize>,
    /// Backend.
    pub io: IoKind,
    /// What of the kernel's help the workers take.
    pub io_options: IoOptions,
    /// Idle policy.
    pub idle: Idle,
    /// Threads of the pool, for skills placed there.
    pub pool_threads: usize,
    /// Most tunnels a worker holds.
    pub tunnels_max: usize,
    /// Most frames in a datagram: [`u16::MAX`] for as many as fit; 1 for a datagram a task, which
    /// costs throughput and is there to be measured.
    pub frames_per_datagram_max: u16,
    /// Longest datagram to try on a path, in bytes of UDP payload; 1,400 or less tries none beyond
    /// the 1,400 that every path is taken to carry.
    pub datagram_len_max: usize,
    /// Whether streams to port 7 are answered with what they bring.
    pub echo: bool,
    /// Where the spool and the pinned registry key live; `None` keeps both in memory (throw-away).
    pub state: Option<PathBuf>,
    /// The local socket, if it serves one.
    pub socket: Option<PathBuf>,
    /// Agents: external processes that run skills in batches.
    pub agents: AgentsConfig,
    /// What it offers to plain Pilot agents.
    pub services: ServiceConfig,
    /// The sockets of its tunnel, where an earlier process of this node has left them; the bind to
    /// `listen` is spared then. They must be a group that [`crate::worker::bind_group`] made, one
    /// socket for each worker.
    pub sockets: Option<Arc<Vec<UdpSocket>>>,
    /// Shown the tunnel's sockets once, when they are bound and before a worker has them: to leave
    /// them to a later process of this node.
    pub on_bound: Option<fn(&[UdpSocket])>,
}

/// What of a node can be changed while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Whether it wants tasks.
    pub task_ready: bool,
    /// Its capabilities beside its skills, all of them.
    pub capabilities: BTreeMap<String, String>,
    /// Whom each skill serves beyond the gate; a skill that is not named keeps its policy.
    pub accept_from: BTreeMap<String, AcceptFrom>,
}

/// What a node offers to plain Pilot agents, beside the handshake by which trust is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Data exchange on port 1001: messages, files, and tasks as JSON.
    pub exchange: bool,
    /// The task service of Pilot up to 1.9, on port 1003.
    pub tasks: bool,
    /// Whether every request for trust is approved.
    pub auto_approve: bool,
}

impl ServiceConfig {
    /// Nothing but the handshake.
    pub const NONE: ServiceConfig = ServiceConfig {
        exchange: false,
        tasks: false,
        auto_approve: false,
    };
}

impl Default for ServiceConfig {
    fn default() -> Self {
        ServiceConfig {
            exchange: true,
            tasks: true,
            auto_approve: false,
        }
    }
}

/// An engagement that a requester wants.
pub struct EngageRequest {
    /// The skill.
    pub skill: String,
    /// Conditions on the worker.
    pub filters: Vec<Filter>,
    /// Least polo of the worker.
    pub min_polo: i64,
    /// Most tasks it may carry.
    pub tasks: u64,
    /// Tasks outstanding at a time.
    pub concurrency: u32,
    /// How long it may last, in seconds.
    pub duration_s: u32,
    /// How long to wait for an accept, in milliseconds.
    pub accept_deadline_ms: u32,
    /// What to send.
    pub job: Box<dyn Job>,
}

/// One step of an engagement, as its requester sees it. The last is always `Ended`.
#[derive(Debug)]
pub enum EngageEvent {
    /// The offer is in the registry's log.
    Offered {
        /// The offer.
        offer: OfferId,
        /// Workers that were told.
        notified: u32,
        /// Why nobody was told, if nobody was; the offer stays open until its deadline.
        diagnosis: Option<Diagnosis>,
    },
    /// A worker took it.
    Granted {
        /// The engagement.
        engagement: EngagementId,
        /// The winner.
        worker: NodeId,
        /// Its address text.
        worker_address: String,
        /// Both polos at the match: requester, worker.
        polo: (i64, i64),
        /// How the gate was passed.
        gate: Gate,
        /// Slots.
        credits: u32,
    },
    /// The tunnel is up and the channel admitted.
    Opened,
    /// The first result is here.
    FirstResult,
    /// How it stands, now and then.
    Progress(Totals),
    /// A settlement took effect.
    Settled(Settlement),
    /// It is over.
    Ended(EngageEnd),
}

/// How an engagement ended for its requester.
pub struct EngageEnd {
    /// Whether it went well, or what went wrong.
    pub outcome: EngageOutcome,
    /// What it came to.
    pub totals: Totals,
    /// The newest settlement, if one took effect.
    pub settlement: Option<Settlement>,
    /// The job, for its owner to read.
    pub job: Option<Box<dyn Job>>,
}

impl std::fmt::Debug for EngageEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngageEnd")
            .field("outcome", &self.outcome)
            .field("totals", &self.totals)
            .field("settlement", &self.settlement)
            .finish_non_exhaustive()
    }
}

/// Why an engagement ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngageOutcome {
    /// Every task has an answer, and its last receipt is settled.
    Settled,
    /// Every task has an answer; the last receipt waits in the spool because the registry is away.
    Spooled,
    /// The registry refused the offer or, after the work, its last receipt.
    Refused(Refusal),
    /// Nobody took it in time; it cost polo: before and after.
    Expired {
        /// Before and after.
        polo: (i64, i64),
        /// Workers that had been told.
        notified: u32,
        /// Why nobody was told, if nobody was.
        diagnosis: Option<Diagnosis>,
    },
    /// The channel closed before every task had an answer.
    Closed(CloseReason),
    /// The registry could not be reached to make the offer: the address and what went wrong.
    NoRegistry(String),
}

/// What a node says of itself.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Its number, once registered.
    pub node: NodeId,
    /// Its address text.
    pub address: String,
    /// Its hostname.
    pub hostname: Option<String>,
    /// Where its tunnel listens.
    pub listen: SocketAddr,
    /// The registry's address, and whether it is reached now.
    pub registry: (SocketAddr, bool),
    /// Its polo, as last heard.
    pub polo: Option<i64>,
    /// Whether it wants tasks.
    pub task_ready: bool,
    /// Its skills.
    pub skills: Vec<String>,
    /// Worker threads, their backend and idle policy.
    pub workers: (usize, Cow<'static, str>, Cow<'static, str>),
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Receipts that wait to be settled.
    pub spooled: usize,
    /// Counters, summed over the workers: name to value, drop reasons as `dropped_<reason>`.
    pub counters: BTreeMap<String, u64>,
    /// Latencies since start in microseconds: `round_trip`, `handler`, `staged`, each p50, p99,
    /// p999, max.
    pub latency_us: BTreeMap<String, [f64; 4]>,
    /// Running engagements.
    pub engagements: Vec<EngagementStatus>,
    /// Skills that agents run.
    #[serde(default)]
    pub agents: Vec<AgentSkillStatus>,
}

/// One running engagement of a node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EngagementStatus {
    /// Its number.
    pub engagement: EngagementId,
    /// `requester` or `worker`.
    pub side: Cow<'static, str>,
    /// The other end.
    pub peer: NodeId,
    /// Its skill.
    pub skill: String,
    /// Tasks answered so far.
    pub done: u64,
    /// Of these accepted.
    pub accepted: u64,
    /// The newest receipt with both signatures: 0 if none.
    pub k: u32,
}

/// Why a node could not start, or a question could not be answered: the thing, the value, and what
/// to do next, ready for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeError(pub String);

impl std::fmt::Display for NodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NodeError {}

/// Where the events of an engagement arrive; the last is always [`EngageEvent::Ended`]. Dropping it
/// does not end the engagement.
pub type Engagement = Receiver<EngageEvent>;

/// A running node. Dropping it does not stop it; [`Node::shutdown`] does.
///
/// Every method may be called from any thread, blocks for at most
/// [`ControlTimings::ask`] (except [`Node::shutdown`]), and never touches the path of a task.
pub struct Node {
    pub(crate) control: crate::control::ControlHandle,
}

impl Node {
    /// Binds the tunnel, starts the control thread, registers, and starts the workers.
    ///
    /// # Errors
    /// A field of `config` out of its range, an address that cannot be bound, a state directory
    /// that cannot be used, or a registry that did not register the node within
    /// [`ControlTimings::start`], by its address and what it said. Nothing runs afterwards.
    pub fn start(config: NodeConfig) -> Result<Node, NodeError> {
        Node::start_with(config, ControlTimings::default())
    }

    /// [`Node::start`] with other timings.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_with(config: NodeConfig, timings: ControlTimings) -> Result<Node, NodeError> {
        let node = Node::start_waiting_with(config, timings)?;
        match node.wait_registered(timings.start) {
            Ok(_) => Ok(node),
            Err(error) => {
                // The registration is what failed; how the rest stopped adds nothing to it.
                let _ = node.shutdown();
                Err(error)
            }
        }
    }

    /// As [`Node::start`], but returns as soon as the control thread runs and goes on trying to
    /// register in the background, without an end: for services that start before their registry.
    ///
    /// # Errors
    /// As [`Node::start`], except for the registry's.
    pub fn start_waiting(config: NodeConfig) -> Result<Node, NodeError> {
        Node::start_waiting_with(config, ControlTimings::default())
    }

    /// [`Node::start_waiting`] with other timings.
    ///
    /// # Errors
    /// As [`Node::start_waiting`].
    pub fn start_waiting_with(
        config: NodeConfig,
        timings: ControlTimings,
    ) -> Result<Node, NodeError> {
        Ok(Node {
            control: crate::control::start(config, timings)?,
        })
    }

    /// Waits until the registry has numbered this node and its workers run.
    ///
    /// # Errors
    /// After `limit`: the registry's address and what went wrong last.
    pub fn wait_registered(&self, limit: Duration) -> Result<NodeId, NodeError> {
        self.control.wait_registered(limit)
    }

    /// Its number at the registry; 0, which is nobody's, until it is registered.
    pub fn node_id(&self) -> NodeId {
        self.control.node_id()
    }

    /// Its Pilot address text; empty until it is registered.
    pub fn address(&self) -> String {
        self.control.address()
    }

    /// Where its tunnel listens, with the port that the kernel chose.
    pub fn listen_addr(&self) -> SocketAddr {
        self.control.listen_addr()
    }

    /// Offers work and, once a worker has taken it, runs the request's job over a tunnel to it.
    /// Returns at once; what becomes of it arrives as events.
    ///
    /// # Errors
    /// A field of the request out of its range, a full table or spool, or a node that is shutting
    /// down. Nothing was offered then.
    pub fn engage(&self, request: EngageRequest) -> Result<Engagement, NodeError> {
        self.control.engage(request)
    }

    /// Lists workers, by polo from the highest.
    ///
    /// # Errors
    /// The registry is not reached, refuses, or does not answer.
    pub fn resolve(&self, query: Query) -> Result<Vec<WorkerRow>, NodeError> {
        self.control.resolve(query)
    }

    /// The standing of a node, by number, address or hostname.
    ///
    /// # Errors
    /// The registry is not reached, does not know it, or does not answer.
    pub fn standing(&self, who: &str) -> Result<Standing, NodeError> {
        self.control.standing(who)
    }

    /// The newest engagements of a node, or of all, 1 to 1,000 rows.
    ///
    /// # Errors
    /// The registry is not reached, refuses, or does not answer.
    pub fn engagements(
        &self,
        who: Option<&str>,
        limit: u32,
    ) -> Result<Vec<EngagementRow>, NodeError> {
        self.control.engagements(who, limit)
    }

    /// Reports mutual trust with another node to the registry (`report_trust`).
    ///
    /// # Errors
    /// The registry is not reached, does not know the node, or does not answer.
    pub fn trust(&self, node: NodeId) -> Result<(), NodeError> {
        self.control.trust(node)
    }

    /// Asks something of its services for plain Pilot agents: messages, files, trust, tasks. Blocks
    /// for as long as [`AgentRequest::patience`] says.
    ///
    /// # Errors
    /// What went wrong, with the node or the file and the next step.
    pub fn agent(&self, request: AgentRequest) -> Result<serde_json::Value, NodeError> {
        self.control.agent(request)
    }

    /// What it is and does now.
    ///
    /// # Errors
    /// The control thread does not answer.
    pub fn status(&self) -> Result<Status, NodeError> {
        self.control.status()
    }

    /// Latencies since start, of all workers together.
    ///
    /// # Errors
    /// The control thread does not answer.
    pub fn histograms(&self) -> Result<Histograms, NodeError> {
        self.control.histograms()
    }

    /// Asks every worker, through the control thread, for a sign of life: done within `limit` only if
    /// all of them, and the control thread, still turn. What a supervisor's watchdog should hang on.
    ///
    /// # Errors
    /// Which worker gave no sign, since this call or the last one.
    pub fn beat(&self, limit: Duration) -> Result<(), NodeError> {
        self.control.beat(limit)
    }

    /// Changes what can be changed without a restart. It holds for whatever is decided from now on;
    /// engagements that run are not touched. All of it is taken, or none.
    ///
    /// # Errors
    /// What the registry would not take of it, by name and bound.
    pub fn reload(&self, reloaded: Reloaded) -> Result<(), NodeError> {
        self.control.reload(reloaded)
    }

    /// Why this node can take no more work, if a thread of it has ended: whoever runs it as a
    /// service ends the process and lets its supervisor start a new one.
    pub fn failure(&self) -> Option<String> {
        self.control.failure()
    }

    /// Takes no more work, lets what runs finish for at most [`ControlTimings::drain`], hands in
    /// the last receipts, releases its engagements, and stops every thread. Receipts that could
    /// not be settled stay in the spool for the next start.
    ///
    /// # Errors
    /// A thread did not end in time, or ended with an error.
    pub fn shutdown(&self) -> Result<(), NodeError> {
        self.control.shutdown()
    }
}
