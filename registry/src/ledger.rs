//! The log thread's work, without the thread: a turn takes what is queued, and answers it.
//!
//! One turn: queries are answered from the committed state; then changes are applied in the order
//! of their arrival, after the deadlines that have passed; then everything that changed is written
//! in one durable transaction; only then do answers and news leave. If the write fails, every
//! change of the turn is answered [`Why::Unavailable`], the state is read back from the store, and
//! until that succeeds nothing is served.
//!
//! The time comes in as an argument. Market requests are judged in `trade.rs`.

use core::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::NodeId;
use ramjet_proto::market::message::{Reply, ReplyBody, RequestBody};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::address::observed_endpoint;
use crate::answer;
use crate::command::{Command, Entry, Outcome, Refused, Registration, Why};
use crate::config::{Limits, RegistryError};
use crate::desk::{Desk, Outbox, framed};
use crate::directory::LAN_ADDRS_MAX;
use crate::fault::{Count, Counters};
use crate::pilot::{self, RegisterAsk};
use crate::state::State;
use crate::store::Store;

/// Longest text in an answer that repeats what a peer sent, in bytes.
const REASON_LEN_MAX: usize = 1_024;

/// Something for the log thread.
#[derive(Debug)]
pub enum Job {
    /// A Pilot message.
    Pilot(pilot::Ask, ReplyTo),
    /// A market request other than hello and prove, whose own signature the session has verified
    /// with the key the connection proved.
    Market {
        /// The request's number.
        id: u64,
        /// What is asked.
        body: Box<RequestBody>,
        /// Who asks.
        reply_to: ReplyTo,
    },
    /// The first half of a proof: the nonce is the session's.
    Hello {
        /// The request's number.
        id: u64,
        /// The node that is claimed.
        node: NodeId,
        /// 32 random bytes.
        nonce: [u8; 32],
        /// Who asks.
        reply_to: ReplyTo,
    },
    /// The second half.
    Prove {
        /// The request's number.
        id: u64,
        /// The node that is claimed.
        node: NodeId,
        /// What must be signed.
        bytes: Vec<u8>,
        /// The signature.
        signature: Vec<u8>,
        /// Who asks.
        reply_to: ReplyTo,
    },
    /// A connection has ended.
    Gone(Arc<Outbox>),
}

/// Where an answer goes. The permit is given back when the request is done.
#[derive(Debug)]
pub struct ReplyTo {
    /// The connection.
    pub outbox: Arc<Outbox>,
    /// Its place among the connection's requests in flight.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Something that leaves once the turn is durable.
#[derive(Debug)]
enum Delivery {
    Reply {
        reply_to: ReplyTo,
        /// The request's number; none for a Pilot message.
        id: Option<u64>,
        frame: Bytes,
        /// The counter of its reason, if it is a refusal.
        refused: Option<Count>,
    },
    Push(NodeId, Bytes),
    /// The node is told over the beacon that a handshake waits for it.
    Notice(NodeId),
}

/// How a registry is told to behave, for the ledger.
#[derive(Clone, Debug)]
pub struct Conduct {
    /// See [`crate::config::Config::allow_unsigned_polo`].
    pub allow_unsigned_polo: bool,
    /// Where the beacon listens, for `beacon_list`.
    pub beacon: Option<SocketAddr>,
    /// The way to the beacon's notices, if there is a beacon.
    pub notices: Option<mpsc::Sender<NodeId>>,
    /// Bounds.
    pub limits: Limits,
}

/// State, store and desk, and the turn that joins them.
#[derive(Debug)]
pub struct Ledger {
    store: Store,
    pub(crate) state: State,
    pub(crate) identity: Identity,
    pub(crate) desk: Desk,
    pub(crate) counters: Arc<Counters>,
    pub(crate) conduct: Conduct,
    /// False between a failed commit and a recovery.
    healthy: bool,
    /// What the turn has changed so far, encoded.
    entries: Vec<(u64, Vec<u8>)>,
    deliveries: Vec<Delivery>,
}

impl Ledger {
    /// Takes over a store. The registry was silent until now: open offers start their time again.
    ///
    /// # Errors
    /// [`RegistryError::Store`], if the store cannot be written.
    pub fn new(
        store: Store,
        state: State,
        identity: Identity,
        conduct: Conduct,
        counters: Arc<Counters>,
        now_ms: u64,
    ) -> Result<Self, RegistryError> {
        let mut ledger = Ledger {
            store,
            state,
            identity,
            desk: Desk::default(),
            counters,
            conduct,
            healthy: true,
            entries: Vec::new(),
            deliveries: Vec::new(),
        };
        let rules = ledger.conduct.limits.rules;
        for command in [Command::Rules(rules), Command::Interrupted] {
            // Neither can be refused.
            let _ = ledger.log(now_ms, command);
        }
        ledger.commit().map_err(|error| RegistryError::Store {
            path: "log".to_owned(),
            error,
        })?;
        Ok(ledger)
    }

    /// The state as it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The key under which grants are signed.
    pub fn public_key(&self) -> PublicKey {
        self.identity.public()
    }

    /// Most jobs of one turn.
    pub fn batch_max(&self) -> usize {
        self.conduct.limits.batch_max
    }

    /// When a turn is due without any job, in milliseconds since the Unix epoch.
    pub fn next_due_ms(&self) -> Option<u64> {
        if self.healthy {
            self.state.book.next_due().map(|(due_ms, _)| due_ms)
        } else {
            None
        }
    }

    /// One turn.
    pub fn turn(&mut self, now_ms: u64, jobs: Vec<Job>) {
        debug_assert!(self.entries.is_empty() && self.deliveries.is_empty());
        if !self.healthy {
            self.recover(now_ms);
        }
        let mut changes = Vec::new();
        for job in jobs {
            if let Some(change) = self.take_query(now_ms, job) {
                changes.push(change);
            }
        }
        if self.healthy {
            self.expire_offers(now_ms);
        }
        for change in changes {
            self.take_change(now_ms, change);
        }
        match self.commit() {
            Ok(()) => self.release(),
            Err(error) => self.roll_back(now_ms, &error),
        }
        self.publish_levels();
    }

    fn publish_levels(&self) {
        let state = &self.state;
        let engagements = state.engagements();
        for (count, level) in [
            (Count::LogPosition, state.position()),
            (Count::NodesOnFile, state.directory().len() as u64),
            (Count::OffersOpen, state.book().open() as u64),
            (Count::EngagementsOnFile, engagements.len() as u64),
            (Count::ContradictionsOnFile, engagements.contradictions()),
        ] {
            self.counters.set(count, level);
        }
    }

    /// Answers a job that changes nothing; gives back one that may.
    fn take_query(&mut self, now_ms: u64, job: Job) -> Option<Job> {
        match job {
            Job::Gone(outbox) => {
                self.desk.disconnect(&outbox);
                None
            }
            job if !self.healthy => {
                self.refuse_unavailable(job);
                None
            }
            Job::Hello {
                id,
                node,
                nonce,
                reply_to,
            } => {
                let body = self.hello(node, nonce);
                self.reply_market(id, reply_to, body);
                None
            }
            Job::Prove {
                id,
                node,
                bytes,
                signature,
                reply_to,
            } => {
                let body = self.prove(node, &bytes, &signature, &reply_to.outbox);
                let proven = body.is_ok();
                self.reply_market(id, reply_to, body);
                if proven {
                    self.tell_of_open_offers(now_ms, node);
                }
                None
            }
            Job::Pilot(
                ask @ (pilot::Ask::Register(_)
                | pilot::Ask::Change { .. }
                | pilot::Ask::UnsignedPolo(_)),
                reply_to,
            ) => Some(Job::Pilot(ask, reply_to)),
            Job::Pilot(ask, reply_to) => {
                let answer = answer::query(&self.state, &ask, now_ms, self.conduct.beacon);
                self.reply_pilot(reply_to, answer);
                None
            }
            Job::Market { id, body, reply_to } => match self.query(now_ms, &body) {
                Some(answer) => {
                    self.reply_market(id, reply_to, answer);
                    None
                }
                None => Some(Job::Market { id, body, reply_to }),
            },
        }
    }

    fn take_change(&mut self, now_ms: u64, job: Job) {
        match job {
            Job::Pilot(ask, reply_to) => {
                let answer = self.change(now_ms, ask, &reply_to.outbox);
                self.reply_pilot(reply_to, answer);
            }
            Job::Market { id, body, reply_to } => {
                let answer = self.trade(now_ms, *body, &reply_to.outbox);
                self.reply_market(id, reply_to, answer);
            }
            Job::Hello { .. } | Job::Prove { .. } | Job::Gone(_) => {
                unreachable!("take_query answers these")
            }
        }
    }

    /// Applies a command, and keeps it for the log if it changed something.
    pub(crate) fn log(&mut self, now_ms: u64, command: Command) -> Result<Outcome, Refused> {
        let before = self.state.position();
        let outcome = self.state.apply(now_ms, &command);
        let position = self.state.position();
        if position != before {
            debug_assert_eq!(position, before + 1, "one command, one position");
            let entry = Entry {
                at_ms: self.state.now_ms(),
                command,
            };
            let bytes = serde_json::to_vec(&entry).expect("commands have text keys and no floats");
            self.entries.push((position, bytes));
        }
        outcome
    }

    fn change(
        &mut self,
        now_ms: u64,
        ask: pilot::Ask,
        outbox: &Outbox,
    ) -> Result<serde_json::Value, Refused> {
        match ask {
            pilot::Ask::Register(ask) => {
                let registration = self.admit_registration(now_ms, *ask, outbox)?;
                match self.log(now_ms, Command::Register(registration))? {
                    Outcome::Registered {
                        node,
                        hostname_error,
                    } => Ok(answer::registered(&self.state, node, hostname_error)),
                    outcome => unreachable!("a registration came to {outcome:?}"),
                }
            }
            pilot::Ask::Change { command, proof } => {
                let is_gone = self.state.directory.node(proof.node).is_err();
                if !(is_gone && matches!(command, Command::Deregister { .. })) {
                    answer::verify(&self.state, &proof)?;
                }
                let outcome = self.log(now_ms, command.clone())?;
                if let Command::RequestHandshake { to, .. } = command {
                    self.deliveries.push(Delivery::Notice(to));
                }
                Ok(answer::changed(&self.state, &command, outcome))
            }
            pilot::Ask::UnsignedPolo(command) => {
                if !self.conduct.allow_unsigned_polo {
                    return Err(Refused::new(
                        Why::Unsupported,
                        "an unsigned change of polo cannot be taken: polo moves by receipts that \
                         both ends signed; a closed test network may allow it in the registry's \
                         configuration (allow_unsigned_polo)",
                    ));
                }
                let outcome = self.log(now_ms, command.clone())?;
                Ok(answer::changed(&self.state, &command, outcome))
            }
            other => unreachable!("{other:?} changes nothing"),
        }
    }

    fn admit_registration(
        &mut self,
        now_ms: u64,
        ask: RegisterAsk,
        outbox: &Outbox,
    ) -> Result<Registration, Refused> {
        let source = outbox.source();
        let limits = &self.conduct.limits;
        let (per_second, burst) = (limits.registrations_per_second, limits.registrations_burst);
        if self.state.directory.by_key(&ask.key).is_none()
            && !self
                .desk
                .admit_registration(source, now_ms, per_second, burst)
        {
            return Err(Refused::new(
                Why::Limited,
                format!(
                    "rate limited: more than {per_second} new nodes a second from {source}, after \
                     {burst} at once; try again in a second"
                ),
            ));
        }
        let signed = !ask.signature.is_empty();
        if signed && !ask.key.verifies(ask.challenge.as_bytes(), &ask.signature) {
            return Err(Refused::new(
                Why::Signature,
                format!("register: invalid signature over {:?}", ask.challenge),
            ));
        }
        let endpoint = observed_endpoint(&ask.listen_addr, source).ok_or_else(|| {
            Refused::new(
                Why::Invalid,
                format!(
                    "invalid listen_addr {:?}: host:port with a port above 0",
                    ask.listen_addr
                ),
            )
        })?;
        Ok(Registration {
            key: ask.key,
            signed,
            endpoint: endpoint.to_string(),
            owner: ask.owner,
            hostname: ask.hostname,
            version: ask.version,
            lan_addrs: ask.lan_addrs.into_iter().take(LAN_ADDRS_MAX).collect(),
            relay_only: ask.relay_only,
        })
    }

    /// Writes what the turn changed; nothing if it changed nothing.
    fn commit(&mut self) -> Result<(), String> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let snapshot = self
            .store
            .append(&self.entries, &self.state)
            .map_err(|error| error.to_string())?;
        self.counters
            .add_many(Count::CommandsLogged, self.entries.len() as u64);
        self.counters.add(Count::BatchesCommitted);
        if snapshot {
            self.counters.add(Count::Snapshots);
        }
        self.entries.clear();
        Ok(())
    }

    /// Lets out what waited for the commit.
    fn release(&mut self) {
        for delivery in mem::take(&mut self.deliveries) {
            match delivery {
                Delivery::Reply {
                    reply_to,
                    frame,
                    refused,
                    ..
                } => {
                    self.send_reply(&reply_to, frame, refused);
                }
                Delivery::Push(node, frame) => {
                    if self.desk.push(node, &frame) {
                        self.counters.add(Count::PushesSent);
                    }
                }
                Delivery::Notice(node) => {
                    if let Some(notices) = &self.conduct.notices {
                        // Where they come too fast the node finds the rest by its own poll.
                        let _ = notices.try_send(node);
                    }
                }
            }
        }
    }

    fn roll_back(&mut self, now_ms: u64, error: &str) {
        tracing::error!(%error, "the log could not be written; the turn is undone");
        self.counters.add(Count::BatchesFailed);
        self.entries.clear();
        self.healthy = false;
        for delivery in mem::take(&mut self.deliveries) {
            if let Delivery::Reply { reply_to, id, .. } = delivery {
                self.send_reply(&reply_to, unavailable(id), Some(Count::RefusedUnavailable));
            }
        }
        self.recover(now_ms);
    }

    fn recover(&mut self, now_ms: u64) {
        match self.store.recover() {
            Ok(state) => {
                self.state = state;
                self.healthy = true;
                // Accepts were refused for a while: that must cost no requester.
                let _ = self.log(now_ms, Command::Interrupted);
                if let Err(error) = self.commit() {
                    tracing::error!(%error, "the log cannot be written yet");
                    self.entries.clear();
                    self.healthy = false;
                    return;
                }
                let state = &self.state;
                self.desk
                    .retain_offers(|offer| state.book.offer(offer).is_some());
                tracing::info!(
                    position = self.state.position(),
                    "the log can be written again"
                );
            }
            Err(error) => tracing::error!(%error, "the log cannot be written yet"),
        }
    }

    fn refuse_unavailable(&self, job: Job) {
        let (reply_to, id) = match job {
            Job::Pilot(_, reply_to) => (reply_to, None),
            Job::Market { id, reply_to, .. }
            | Job::Hello { id, reply_to, .. }
            | Job::Prove { id, reply_to, .. } => (reply_to, Some(id)),
            Job::Gone(_) => return,
        };
        self.send_reply(&reply_to, unavailable(id), Some(Count::RefusedUnavailable));
    }

    fn send_reply(&self, reply_to: &ReplyTo, frame: Bytes, refused: Option<Count>) {
        count_reply(&self.counters, refused);
        reply_to.outbox.send(frame);
    }

    fn reply_pilot(&mut self, reply_to: ReplyTo, answer: Result<serde_json::Value, Refused>) {
        let refused = answer.as_ref().err().map(|refused| refused.why.count());
        let frame = match answer {
            Ok(value) => framed(&value),
            Err(refused) => pilot_error(&refused.reason),
        };
        self.deliveries.push(Delivery::Reply {
            reply_to,
            id: None,
            frame,
            refused,
        });
    }

    fn reply_market(&mut self, id: u64, reply_to: ReplyTo, answer: Result<ReplyBody, Refused>) {
        let refused = answer.as_ref().err().map(|refused| refused.why.count());
        let frame = match answer {
            Ok(body) => framed(&Reply { id, body }),
            Err(refused) => market_refusal(id, refused),
        };
        self.deliveries.push(Delivery::Reply {
            reply_to,
            id: Some(id),
            frame,
            refused,
        });
    }

    /// Queues news for a node, to leave after the commit.
    pub(crate) fn push(&mut self, node: NodeId, frame: Bytes) {
        self.deliveries.push(Delivery::Push(node, frame));
    }
}

/// Counts an answer, or a refusal and its reason.
pub fn count_reply(counters: &Counters, refused: Option<Count>) {
    match refused {
        None => counters.add(Count::RequestsAnswered),
        Some(reason) => {
            counters.add(Count::RequestsRefused);
            counters.add(reason);
        }
    }
}

/// The framed form of a refusal towards Pilot clients.
pub fn pilot_error(reason: &str) -> Bytes {
    framed(&json!({"type": "error", "error": shorten(reason)}))
}

/// The framed form of a refusal towards market clients.
pub fn market_refusal(id: u64, refused: Refused) -> Bytes {
    let reason = shorten(&refused.reason).to_owned();
    let refusal = Refused { reason, ..refused }.into_message();
    framed(&Reply {
        id,
        body: ReplyBody::Refused(refusal),
    })
}

fn unavailable(id: Option<u64>) -> Bytes {
    let reason = "the registry cannot write its log, nothing was done: try again later";
    match id {
        None => pilot_error(reason),
        Some(id) => market_refusal(id, Refused::new(Why::Unavailable, reason)),
    }
}

/// A reason may repeat what a peer sent; it is cut where it could outgrow a frame.
fn shorten(reason: &str) -> &str {
    let end = reason.len().min(REASON_LEN_MAX);
    let end = (0..=end)
        .rev()
        .find(|&end| reason.is_char_boundary(end))
        .unwrap_or(0);
    &reason[..end]
}

#[cfg(test)]
mod tests;
