//! The agent port: external processes that run skills of the node, in batches.
//!
//! ```text
//!                     ┌────────────── engine, a thread for each skill ─────────────┐
//!  worker ─ box ─▶ place ─▶ batcher ─▶ arena, BATCH ─▶ agent ─▶ DONE ─▶ box ─▶ worker
//!                                                        ▲
//!  port's thread: who attaches, owned processes ─────────┘
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`wire`], [`hello`], [`layout`] | packets, JSON and the arena's layout: `docs/WIRE.md`, "Agent port" |
//! | [`socket`], [`arena`] | SOCK_SEQPACKET, peers' uids; the sealed memory shared with an agent |
//! | `place` | the workers' end: places in their list of skills |
//! | `batcher` | which tasks ride in the next batch |
//! | `engine` | one skill: gathers, hands over, settles |
//! | `thread`, [`supervisor`] | who attaches to what; processes that the node starts |
//! | `stats` | what is counted and timed |
//! | [`client`], [`adapter`], [`launch`] | the agent's end: a client, the adapter for programs that know nothing of ramjet, and `agent-run` |
//!
//! Invariants: a task that was handed over is answered once, whatever an agent does; an agent can end
//! its own connection and fail its own tasks, and nothing else; owned processes end with the node.
//! Absent: the market, of which this part knows only the [`Control`] that it is lent.

pub mod adapter;
pub mod arena;
pub(crate) mod batcher;
pub mod client;
mod engine;
pub mod hello;
pub mod launch;
pub mod layout;
pub(crate) mod place;
pub mod socket;
mod stats;
pub mod supervisor;
#[cfg(test)]
mod tests;
mod thread;
pub mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::JoinHandle;

use ramjet_proto::ids::NodeId;
use ramjet_proto::market::AcceptFrom;

pub(crate) use self::place::{AGENT_SKILLS_MAX, AgentPlaces};
pub use self::stats::AgentSkillStatus;
pub(crate) use self::stats::SkillReading;
pub use self::supervisor::{Form, OwnedAgent};

use self::socket::Listener;
use self::thread::{Mail, MailSender, PortThread, Roster, Seed};

/// Tasks of one worker that may wait for agents or run there, unless told otherwise.
pub const TASKS_MAX_DEFAULT: usize = 8_192;
/// Bytes of all arenas together, unless told otherwise.
pub const MEMORY_MAX_DEFAULT: usize = 1 << 30;

/// What a node does with agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentsConfig {
    /// Where agents attach; `None` for nowhere.
    pub socket: Option<PathBuf>,
    /// Agents that the node starts itself.
    pub owned: Vec<OwnedAgent>,
    /// Whom a skill serves beyond the gate, unless it is in `policies`.
    pub accept_from: AcceptFrom,
    /// The same, by skill.
    pub policies: BTreeMap<String, AcceptFrom>,
    /// Most tasks of each worker that wait for agents or run there.
    pub tasks_max: usize,
    /// Most bytes of memory shared with agents, of all of them.
    pub memory_max: usize,
    /// The program whose `agent-run` starts owned agents: this one, unless this is a test.
    pub launcher: PathBuf,
}

impl AgentsConfig {
    /// A node without agents.
    pub fn none() -> Self {
        AgentsConfig {
            socket: None,
            owned: Vec::new(),
            accept_from: AcceptFrom::Gate,
            policies: BTreeMap::new(),
            tasks_max: TASKS_MAX_DEFAULT,
            memory_max: MEMORY_MAX_DEFAULT,
            launcher: PathBuf::from("/proc/self/exe"),
        }
    }

    /// Whom a skill serves beyond the gate.
    pub fn policy(&self, skill: &str) -> AcceptFrom {
        let named = self.policies.get(skill);
        named.copied().unwrap_or(self.accept_from)
    }

    /// The skills of the node's own agents, and whom they serve.
    pub(crate) fn owned_skills(&self) -> impl Iterator<Item = (String, AcceptFrom)> {
        let names = self.owned.iter().map(|agent| agent.skill.clone());
        names.map(|name| {
            let policy = self.policy(&name);
            (name, policy)
        })
    }

    /// Whether agents may come at all.
    pub fn is_used(&self) -> bool {
        self.socket.is_some() || !self.owned.is_empty()
    }
}

/// Whether the skill of a place has an agent that takes batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) place: usize,
    pub(crate) ready: bool,
}

/// Takes the place that control gave a skill, or why it gave none.
pub(crate) type RespondPlace = Box<dyn FnOnce(Result<usize, String>) + Send>;

/// What the port asks of control.
pub(crate) trait Control: Send {
    /// A place for a skill: the one it has, or a free one that is not `taken`.
    fn place(
        &self,
        skill: String,
        accept_from: AcceptFrom,
        taken: [bool; AGENT_SKILLS_MAX],
        respond: RespondPlace,
    );

    /// Whether offers for the skill of a place are taken from now on.
    fn offer(&self, offer: Offer);
}

/// The bound socket and the places, before the thread.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: Option<Listener>,
}

/// Binds the socket, so that what is wrong with it is known at once.
///
/// # Errors
/// The path and what stands in the way.
pub(crate) fn bind(config: &AgentsConfig) -> Result<Bound, String> {
    let listener = config.socket.as_deref().map(Listener::bind).transpose()?;
    Ok(Bound { listener })
}

/// A running port.
pub(crate) struct Port {
    mail: MailSender,
    roster: Roster,
    thread: JoinHandle<()>,
}

impl Port {
    /// Starts the port's thread. `tasks_max` is how many boxes the workers have together.
    ///
    /// # Errors
    /// What the system says of a new thread or descriptor.
    pub(crate) fn start(
        config: AgentsConfig,
        bound: Bound,
        places: AgentPlaces,
        tasks_max: usize,
        control: Box<dyn Control>,
    ) -> Result<Self, String> {
        let roster = Roster::default();
        let started = PortThread::new(Seed {
            config,
            places,
            control,
            listener: bound.listener,
            tasks_max,
            roster: Roster::clone(&roster),
        })
        .and_then(|(port, mail)| {
            let thread = std::thread::Builder::new().name("ramjet-port".to_owned());
            Ok((thread.spawn(move || port.run())?, mail))
        });
        let (thread, mail) = started.map_err(|error| format!("the agent port: {error}"))?;
        Ok(Port {
            mail,
            roster,
            thread,
        })
    }

    /// The node has its number.
    pub(crate) fn node(&self, node: NodeId) {
        self.mail.send(Mail::Node(node));
    }

    /// What is counted and timed of each skill.
    pub(crate) fn statuses(&self) -> Vec<AgentSkillStatus> {
        thread::each(&self.roster, |name, stats| stats.status(name))
    }

    /// The same for metrics.
    pub(crate) fn readings(&self) -> Vec<SkillReading> {
        thread::each(&self.roster, |name, stats| stats.reading(name))
    }

    /// Ends agents and thread. The workers have ended before.
    pub(crate) fn stop(self) {
        self.mail.send(Mail::Stop);
        // A thread that panicked has said so on standard error.
        let _ = self.thread.join();
    }
}
