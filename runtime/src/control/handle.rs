//! What a node asks of its control thread.
//!
//! Each question travels with the closure that takes its answer, in one bounded queue; the caller
//! waits with a time-out. The local socket's connections use the same queue from inside the thread.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::{NodeId, OfferId};
use ramjet_proto::market::AcceptFrom;
use ramjet_proto::market::message::{EngagementRow, Query, Standing, WorkerRow};
use tokio::sync::mpsc;

use super::ControlTimings;
use super::agent::{AgentAsk, AgentRequest};
use super::externals::Offered;
use super::local_job::Verdicts;
use super::observe::Vitals;
use super::pilot::Call;
#[cfg(test)]
use super::ports::Ports;
use crate::latency::{Histograms, LatencyBuckets};
use crate::node::{EngageEvent, EngageRequest, Engagement, NodeError, Reloaded, Status};
use crate::port::{AGENT_SKILLS_MAX, Offer, RespondPlace};
use crate::worker::counters::Counters;

/// Questions that wait at a time; more are refused by name.
pub(crate) const ASKS_MAX: usize = 1_024;

/// Takes the answer to a question.
pub(crate) type Respond<T> = Box<dyn FnOnce(Result<T, NodeError>) + Send>;

/// An engagement to make, and where its events go.
pub(crate) struct EngageAsk {
    pub(crate) request: EngageRequest,
    pub(crate) events: EventSink,
    /// Where a job that judges its results later keeps the judgements; `None` if it judges at once.
    pub(crate) verdicts: Option<Arc<Verdicts>>,
    pub(crate) respond: Respond<OfferId>,
}

/// Where events go: a caller's channel, and what wakes it if it is no thread.
pub(crate) struct EventSink {
    pub(crate) channel: crossbeam::channel::Sender<EngageEvent>,
    pub(crate) wake: Option<Arc<tokio::sync::Notify>>,
}

/// Events that a caller may leave unread: room for every step of an engagement and for progress.
pub(crate) const EVENTS_MAX: usize = 64;

/// A question to the control thread.
pub(crate) enum Ask {
    Engage(Box<EngageAsk>),
    Cancel(OfferId),
    Resolve(Query, Respond<Vec<WorkerRow>>),
    Standing(String, Respond<Standing>),
    Engagements(Option<String>, u32, Respond<Vec<EngagementRow>>),
    Trust(NodeId, Respond<()>),
    /// A request on the Pilot connection, answered by the registry's reply as it is.
    Call(Box<Call>, Respond<serde_json::Value>),
    /// What the registry has been told of the node, to be said again when it registers again.
    Remember(Said, Respond<()>),
    /// What the node is, as local programs are told.
    Card(Respond<Card>),
    /// What a local program can do; answered by the places of its skills.
    Skills(Offered, Respond<Vec<usize>>),
    /// A place for a skill that agents run, if not one of those that are taken.
    AgentPlace(String, AcceptFrom, [bool; AGENT_SKILLS_MAX], RespondPlace),
    /// Whether the skill of a place of agents is offered.
    AgentOffer(Offer),
    /// Whether the node wants tasks.
    TaskReady(bool, Respond<()>),
    /// A question to the services of plain agents.
    Agent(Box<AgentAsk>),
    Status(Respond<Status>),
    /// What control knows by itself, without a word to the workers.
    Vitals(Respond<Vitals>),
    Histograms(Respond<Histograms>),
    /// The same in buckets.
    Latencies(Respond<LatencyBuckets>),
    /// Whether every worker turns.
    Beat(Respond<()>),
    /// What is changed while the node runs.
    Reload(Box<Reloaded>, Respond<()>),
    /// Work on the control thread with the node's virtual ports; what takes time, it spawns there.
    #[cfg(test)]
    Ports(Box<dyn FnOnce(Ports) + Send>),
    Shutdown(Respond<()>),
}

/// What a local program had the node say of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Its name; empty for none.
    Hostname(String),
    /// Whether anyone may reach it.
    Public(bool),
    /// Its tags.
    Tags(Vec<String>),
    /// Whether it takes tasks: the flag of Pilot up to 1.9, and market tasks if it has skills.
    TaskExec(bool),
}

/// What the node is, for local programs.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) hostname: Option<String>,
    pub(crate) owner: String,
    pub(crate) key: PublicKey,
    /// Where others send to.
    pub(crate) endpoint: SocketAddr,
    pub(crate) beacon: Option<SocketAddr>,
    /// Whether its workers answer on the echo's port.
    pub(crate) echo: bool,
    pub(crate) uptime_s: u64,
    /// Summed over the workers.
    pub(crate) counters: BTreeMap<String, u64>,
}

/// What the thread publishes about its registration.
#[derive(Default)]
pub(crate) struct Registration {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    /// What went wrong last, until it is registered.
    pub(crate) last_error: Option<String>,
    /// Set when the thread gave up: waiting is pointless.
    pub(crate) fatal: bool,
    /// Why the node, once running, can take no more work, if so.
    pub(crate) failure: Option<String>,
}

/// State that the handle reads and the thread writes.
pub(crate) struct Shared {
    pub(crate) registry: SocketAddr,
    pub(crate) listen: SocketAddr,
    pub(crate) timings: ControlTimings,
    registration: Mutex<Registration>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<Result<(), String>>>>,
    /// The workers' counters, once they run.
    counters: OnceLock<Vec<Arc<Counters>>>,
}

impl Shared {
    pub(crate) fn new(registry: SocketAddr, listen: SocketAddr, timings: ControlTimings) -> Self {
        Shared {
            registry,
            listen,
            timings,
            registration: Mutex::default(),
            changed: Condvar::new(),
            thread: Mutex::new(None),
            counters: OnceLock::new(),
        }
    }

    /// The workers run; called once.
    pub(crate) fn keep_counters(&self, counters: Vec<Arc<Counters>>) {
        let _ = self.counters.set(counters);
    }

    fn registration(&self) -> MutexGuard<'_, Registration> {
        // Its fields are replaced one by one and valid in between.
        self.registration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a change and wakes whoever waits for it.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut Registration)) {
        change(&mut self.registration());
        self.changed.notify_all();
    }

    /// What was published of a failure.
    pub(crate) fn failure(&self) -> Option<String> {
        self.registration().failure.clone()
    }

    pub(crate) fn keep_thread(&self, thread: JoinHandle<Result<(), String>>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }
}

/// The way to a control thread; clones reach the same one.
#[derive(Clone)]
pub struct ControlHandle {
    pub(crate) asks: mpsc::Sender<Ask>,
    pub(crate) shared: Arc<Shared>,
}

impl ControlHandle {
    /// Puts a question, or says why it cannot be put.
    pub(crate) fn put(&self, ask: Ask) -> Result<(), NodeError> {
        self.asks.try_send(ask).map_err(|error| {
            NodeError(match error {
                mpsc::error::TrySendError::Full(_) => format!(
                    "the control thread has {ASKS_MAX} questions waiting, its limit; ask again"
                ),
                mpsc::error::TrySendError::Closed(_) => {
                    "the node has shut down; start it again".to_owned()
                }
            })
        })
    }

    fn ask<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        question: impl FnOnce(Respond<T>) -> Ask,
    ) -> Result<T, NodeError> {
        let (sender, receiver) = crossbeam::channel::bounded(1);
        self.put(question(Box::new(move |answer| {
            // The caller has given up if nobody listens.
            let _ = sender.send(answer);
        })))?;
        match receiver.recv_timeout(limit) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                Err(NodeError(format!("{what}: no answer within {limit:?}")))
            }
            Err(RecvTimeoutError::Disconnected) => Err(NodeError(format!(
                "{what}: the node shut down before it answered"
            ))),
        }
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.shared.registration().node
    }

    pub(crate) fn address(&self) -> String {
        self.shared.registration().address.clone()
    }

    pub(crate) fn listen_addr(&self) -> SocketAddr {
        self.shared.listen
    }

    pub(crate) fn failure(&self) -> Option<String> {
        if let Some(failure) = &self.shared.registration().failure {
            return Some(failure.clone());
        }
        let thread = self
            .shared
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let ended = thread.as_ref().is_some_and(JoinHandle::is_finished);
        ended.then(|| "the control thread has ended; restart the node".to_owned())
    }

    pub(crate) fn wait_registered(&self, limit: Duration) -> Result<NodeId, NodeError> {
        let until = Instant::now() + limit;
        let mut registration = self.shared.registration();
        loop {
            if registration.node != NodeId(0) {
                return Ok(registration.node);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || registration.fatal {
                let what = registration
                    .last_error
                    .as_deref()
                    .unwrap_or("it has not answered yet");
                return Err(NodeError(format!(
                    "registry {}: not registered within {limit:?}: {what}",
                    self.shared.registry
                )));
            }
            registration = self
                .shared
                .changed
                .wait_timeout(registration, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    pub(crate) fn engage(&self, request: EngageRequest) -> Result<Engagement, NodeError> {
        let (channel, events): (_, Receiver<EngageEvent>) = crossbeam::channel::bounded(EVENTS_MAX);
        let events_sink = EventSink {
            channel,
            wake: None,
        };
        self.ask("engage", self.shared.timings.ask, |respond| {
            Ask::Engage(Box::new(EngageAsk {
                request,
                events: events_sink,
                verdicts: None,
                respond,
            }))
        })?;
        Ok(events)
    }

    pub(crate) fn resolve(&self, query: Query) -> Result<Vec<WorkerRow>, NodeError> {
        self.ask("resolve", self.shared.timings.ask, |respond| {
            Ask::Resolve(query, respond)
        })
    }

    pub(crate) fn standing(&self, who: &str) -> Result<Standing, NodeError> {
        let who = who.to_owned();
        self.ask("standing", self.shared.timings.ask, |respond| {
            Ask::Standing(who, respond)
        })
    }

    pub(crate) fn engagements(
        &self,
        who: Option<&str>,
        limit: u32,
    ) -> Result<Vec<EngagementRow>, NodeError> {
        let who = who.map(str::to_owned);
        self.ask("engagements", self.shared.timings.ask, |respond| {
            Ask::Engagements(who, limit, respond)
        })
    }

    pub(crate) fn trust(&self, node: NodeId) -> Result<(), NodeError> {
        self.ask("trust", self.shared.timings.ask, |respond| {
            Ask::Trust(node, respond)
        })
    }

    pub(crate) fn agent(&self, request: AgentRequest) -> Result<serde_json::Value, NodeError> {
        let limit = request.patience() + self.shared.timings.ask;
        self.ask("agent", limit, |respond| {
            Ask::Agent(Box::new(AgentAsk { request, respond }))
        })
    }

    pub(crate) fn status(&self) -> Result<Status, NodeError> {
        self.ask("status", self.shared.timings.ask, Ask::Status)
    }

    /// What control knows, if it answers within `limit`.
    pub(crate) fn vitals(&self, limit: Duration) -> Result<Vitals, NodeError> {
        self.ask("vitals", limit, Ask::Vitals)
    }

    /// The workers' counters; none before they run.
    pub(crate) fn worker_counters(&self) -> &[Arc<Counters>] {
        self.shared.counters.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn histograms(&self) -> Result<Histograms, NodeError> {
        self.ask("histograms", self.shared.timings.ask, Ask::Histograms)
    }

    /// The latencies in buckets, if control answers within `limit`.
    pub(crate) fn latencies(&self, limit: Duration) -> Result<LatencyBuckets, NodeError> {
        self.ask("latencies", limit, Ask::Latencies)
    }

    pub(crate) fn beat(&self, limit: Duration) -> Result<(), NodeError> {
        self.ask("beat", limit, Ask::Beat)
    }

    pub(crate) fn reload(&self, reloaded: Reloaded) -> Result<(), NodeError> {
        self.ask("reload", self.shared.timings.ask, |respond| {
            Ask::Reload(Box::new(reloaded), respond)
        })
    }

    pub(crate) fn shutdown(&self) -> Result<(), NodeError> {
        let timings = &self.shared.timings;
        // Running work, then the last settlements, then the workers.
        let limit = timings.drain + timings.grace + timings.ask;
        self.ask("shutdown", limit, Ask::Shutdown)?;
        let thread = self
            .shared
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match thread.map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(NodeError(error)),
            Some(Err(_)) => Err(NodeError("the control thread panicked".to_owned())),
        }
    }
}
