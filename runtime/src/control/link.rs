//! The node's standing with its registry: two connections, driven without input or output.
//!
//! The Pilot connection registers the node, shows it and keeps it alive; its replies pair up with
//! its requests by order. The market connection proves the node (hello, prove) once it is
//! registered, then carries numbered requests and pushes. The transport brings [`Arrival`]s; after
//! each, and after each [`Link::tick`], the caller takes the [`News`] and the orders.
//!
//! A reply that cannot be read is counted, named in the log and fails the request it answers; a
//! request without an answer ends its connection. Nothing is retried here: a request that fails is
//! handed back, and who asked decides.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use ramjet_proto::identity::Identity;
use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::{
    Base64Bytes, EngagementRow, FromRegistry, Push, Reply, ReplyBody, Request, RequestBody,
    Standing, WorkerRow, prove_bytes,
};
use ramjet_proto::time::Time;
use serde_json::json;

use super::ControlTimings;
use super::handle::{Respond, Said};
use super::pilot::{self, Asker, Call, PilotAsk, PilotReply, bounded};
use super::pin::Pin;
use super::transport::{Arrival, Order, Wire};

/// Requests in flight on one connection; what goes beyond fails at once.
pub(crate) const IN_FLIGHT_MAX: usize = 1_024;

/// The number of a call whose reply nobody waits for.
const NOBODYS_CALL: u64 = u64::MAX;

/// What a market request was for.
pub(crate) enum Tag {
    Hello,
    Prove,
    Keepalive,
    Advertise,
    Offer(OfferId),
    Accept(OfferId),
    Settle(EngagementId),
    Release(EngagementId),
    Workers(Respond<Vec<WorkerRow>>),
    Standing(Respond<Standing>),
    Engagements(Respond<Vec<EngagementRow>>),
}

/// What the link tells the plane.
pub(crate) enum News {
    /// The registry numbered us: for the first time, or again.
    Registered { node: NodeId, address: String },
    /// Proven: everything may be asked. Our polo now.
    Ready { polo: i64 },
    /// Not ready any more: why.
    Away(String),
    /// A registry that can never serve this node: why.
    Fatal(String),
    /// A reply to a market request.
    Reply(Tag, ReplyBody),
    /// A market request that got no usable reply: why.
    Failed(Tag, String),
    /// Unasked.
    Push(Box<Push>),
    /// A reply on the Pilot connection.
    Pilot(PilotAsk, Result<PilotReply, String>),
}

/// Who the node is, for the registry.
pub(crate) struct LinkConfig {
    pub(crate) registry: SocketAddr,
    pub(crate) identity: Arc<Identity>,
    /// The endpoint that others should use.
    pub(crate) listen: SocketAddr,
    pub(crate) owner: String,
    pub(crate) hostname: Option<String>,
    pub(crate) public: bool,
    /// What the registry is told beside these once somebody has said it.
    pub(crate) tags: Option<Vec<String>>,
    pub(crate) task_exec: Option<bool>,
    pub(crate) timings: ControlTimings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Down,
    AwaitingRegistration,
    AwaitingNonce,
    AwaitingProof,
    Ready,
}

#[derive(Default)]
struct PilotWire {
    generation: Option<u64>,
    dropping: bool,
    registered: bool,
    waiting: VecDeque<(PilotAsk, Time)>,
    heartbeat_at: Time,
}

struct MarketWire {
    generation: Option<u64>,
    dropping: bool,
    stage: Stage,
    next_id: u64,
    waiting: BTreeMap<u64, (Tag, Time)>,
    keepalive_at: Time,
}

/// Both connections.
pub(crate) struct Link {
    config: LinkConfig,
    pin: Pin,
    node: Option<NodeId>,
    pilot: PilotWire,
    market: MarketWire,
    orders: Vec<(Wire, Order)>,
    news: Vec<News>,
    counters: BTreeMap<&'static str, u64>,
    last_error: Option<String>,
}

impl Link {
    pub(crate) fn new(config: LinkConfig, pin: Pin) -> Self {
        Link {
            config,
            pin,
            node: None,
            pilot: PilotWire::default(),
            market: MarketWire {
                generation: None,
                dropping: false,
                stage: Stage::Down,
                next_id: 1,
                waiting: BTreeMap::new(),
                keepalive_at: Time::NEVER,
            },
            orders: Vec::new(),
            news: Vec::new(),
            counters: BTreeMap::new(),
            last_error: None,
        }
    }

    /// Whether the market answers now.
    pub(crate) fn is_ready(&self) -> bool {
        self.market.stage == Stage::Ready
    }

    /// The registry's pinned key.
    pub(crate) fn registry_key(&self) -> Option<ramjet_proto::identity::PublicKey> {
        self.pin.key()
    }

    /// Why it is not ready, for people.
    pub(crate) fn away_text(&self) -> String {
        let why = self
            .last_error
            .as_deref()
            .unwrap_or("it has not answered yet");
        format!(
            "registry {}: not reached: {why}; it is tried again",
            self.config.registry
        )
    }

    /// What went wrong last, until the market is ready.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.clone()
    }

    /// Its hostname, as last said.
    pub(crate) fn hostname(&self) -> Option<&str> {
        self.config.hostname.as_deref()
    }

    /// Remembers what the registry was told, for the next registration.
    pub(crate) fn say(&mut self, said: Said) {
        match said {
            Said::Hostname(name) => self.config.hostname = (!name.is_empty()).then_some(name),
            Said::Public(public) => self.config.public = public,
            Said::Tags(tags) => self.config.tags = Some(tags),
            Said::TaskExec(enabled) => self.config.task_exec = Some(enabled),
        }
    }

    /// Events by name since the start.
    pub(crate) fn counters(&self) -> &BTreeMap<&'static str, u64> {
        &self.counters
    }

    /// What the transport is to do.
    pub(crate) fn take_orders(&mut self) -> Vec<(Wire, Order)> {
        std::mem::take(&mut self.orders)
    }

    /// What the plane is to know.
    pub(crate) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    fn count(&mut self, name: &'static str) {
        *self.counters.entry(name).or_default() += 1;
    }

    /// Takes what the transport brings.
    pub(crate) fn arrival(&mut self, wire: Wire, arrival: Arrival, now: Time) {
        match (wire, arrival) {
            (Wire::Pilot, Arrival::Up { generation }) => {
                self.count("link_pilot_connects");
                self.pilot = PilotWire {
                    generation: Some(generation),
                    ..PilotWire::default()
                };
                self.pilot.heartbeat_at = Time::NEVER;
                self.ask_pilot(PilotAsk::Register, now);
            }
            (Wire::Market, Arrival::Up { generation }) => {
                self.count("link_market_connects");
                self.market.generation = Some(generation);
                self.market.dropping = false;
                self.market.stage = Stage::AwaitingRegistration;
                self.say_hello(now);
            }
            (Wire::Pilot, Arrival::Down { reason }) => self.pilot_down(reason),
            (Wire::Market, Arrival::Down { reason }) => self.market_down(reason),
            (Wire::Pilot, Arrival::Message { generation, bytes }) => {
                if self.pilot.generation == Some(generation) {
                    self.pilot_message(&bytes, now);
                }
            }
            (Wire::Market, Arrival::Message { generation, bytes }) => {
                if self.market.generation == Some(generation) {
                    self.market_message(&bytes, now);
                }
            }
        }
    }

    /// Heartbeats, and an end to what does not answer.
    pub(crate) fn tick(&mut self, now: Time) {
        if self.pilot.registered && now >= self.pilot.heartbeat_at {
            self.pilot.heartbeat_at = now + self.config.timings.heartbeat;
            self.ask_pilot(PilotAsk::Heartbeat, now);
        }
        if self.is_ready() && now >= self.market.keepalive_at {
            self.market.keepalive_at = now + self.config.timings.heartbeat;
            let who = self.node.unwrap_or_default().to_string();
            self.ask_market(Tag::Keepalive, RequestBody::Standing { who }, now);
        }
        let limit = self.config.timings.request;
        if self
            .pilot
            .waiting
            .front()
            .is_some_and(|(_, since)| now.since(*since) > limit)
        {
            self.count("link_request_timeouts");
            self.drop_wire(Wire::Pilot, format!("no answer within {limit:?}"));
            // The same process serves both: what hangs for one hangs for the other.
            self.drop_wire(Wire::Market, format!("no answer within {limit:?}"));
        }
        if self
            .market
            .waiting
            .first_key_value()
            .is_some_and(|(_, (_, t))| now.since(*t) > limit)
        {
            self.count("link_request_timeouts");
            self.drop_wire(Wire::Market, format!("no answer within {limit:?}"));
        }
    }

    /// Asks on the Pilot connection; the answer, or its absence, comes as [`News::Pilot`].
    pub(crate) fn ask_pilot(&mut self, ask: PilotAsk, now: Time) {
        self.send_pilot(ask, now, |asker| asker.message(ask));
    }

    /// As [`Self::ask_pilot`], for the call with this number.
    pub(crate) fn call_pilot(&mut self, number: u64, call: &Call, now: Time) {
        self.send_pilot(PilotAsk::Call(number), now, |asker| asker.call(call));
    }

    fn send_pilot(&mut self, ask: PilotAsk, now: Time, word: impl FnOnce(&Asker<'_>) -> Vec<u8>) {
        let Some(generation) = self.pilot.generation.filter(|_| !self.pilot.dropping) else {
            self.news.push(News::Pilot(ask, Err(self.away_text())));
            return;
        };
        if self.pilot.waiting.len() >= IN_FLIGHT_MAX {
            self.count("link_requests_limited");
            let reason = format!("{IN_FLIGHT_MAX} requests wait already");
            self.news.push(News::Pilot(ask, Err(reason)));
            return;
        }
        let message = word(&Asker {
            identity: &self.config.identity,
            node: self.node.unwrap_or_default(),
            listen: self.config.listen,
            owner: &self.config.owner,
            hostname: self.config.hostname.as_deref(),
            public: self.config.public,
        });
        self.pilot.waiting.push_back((ask, now));
        self.orders.push((
            Wire::Pilot,
            Order::Send {
                generation,
                message,
            },
        ));
    }

    /// Asks the market; the answer comes as [`News::Reply`] or [`News::Failed`].
    pub(crate) fn ask_market(&mut self, tag: Tag, body: RequestBody, now: Time) {
        let internal = matches!(tag, Tag::Hello | Tag::Prove);
        let open = if internal {
            self.market.stage != Stage::Down
        } else {
            self.is_ready()
        };
        let Some(generation) = self
            .market
            .generation
            .filter(|_| open && !self.market.dropping)
        else {
            self.news.push(News::Failed(tag, self.away_text()));
            return;
        };
        if self.market.waiting.len() >= IN_FLIGHT_MAX {
            self.count("link_requests_limited");
            let reason = format!("{IN_FLIGHT_MAX} requests wait already");
            self.news.push(News::Failed(tag, reason));
            return;
        }
        let id = self.market.next_id;
        self.market.next_id += 1;
        let message = serde_json::to_vec(&Request { id, body }).expect("requests serialize");
        self.market.waiting.insert(id, (tag, now));
        self.orders.push((
            Wire::Market,
            Order::Send {
                generation,
                message,
            },
        ));
    }

    fn drop_wire(&mut self, wire: Wire, reason: String) {
        let (generation, dropping) = match wire {
            Wire::Pilot => (self.pilot.generation, &mut self.pilot.dropping),
            Wire::Market => (self.market.generation, &mut self.market.dropping),
        };
        if let Some(generation) = generation
            && !std::mem::replace(dropping, true)
        {
            self.orders.push((wire, Order::Drop { generation, reason }));
        }
    }

    fn pilot_down(&mut self, reason: String) {
        self.count("link_pilot_downs");
        tracing::debug!(registry = %self.config.registry, %reason, "pilot connection down");
        let reason = bounded(&reason);
        let waiting = std::mem::take(&mut self.pilot.waiting);
        self.pilot = PilotWire::default();
        for (ask, _) in waiting {
            self.news.push(News::Pilot(ask, Err(reason.clone())));
        }
        self.remember(reason);
    }

    fn market_down(&mut self, reason: String) {
        self.count("link_market_downs");
        tracing::debug!(registry = %self.config.registry, %reason, "market connection down");
        let reason = bounded(&reason);
        let was_ready = self.is_ready();
        self.market.generation = None;
        self.market.dropping = false;
        self.market.stage = Stage::Down;
        for (_, (tag, _)) in std::mem::take(&mut self.market.waiting) {
            self.news.push(News::Failed(tag, reason.clone()));
        }
        if was_ready {
            self.news.push(News::Away(reason.clone()));
        }
        self.remember(reason);
    }

    /// Keeps the reason for people who ask why the registry is away; a refusal says more than the
    /// closing of the connection that follows it.
    fn remember(&mut self, reason: String) {
        self.last_error = Some(reason);
    }

    fn pilot_message(&mut self, bytes: &[u8], now: Time) {
        let Some((ask, _)) = self.pilot.waiting.pop_front() else {
            self.count("link_unasked_replies");
            self.drop_wire(Wire::Pilot, "sent a reply that nobody asked for".to_owned());
            return;
        };
        let reply = pilot::read(ask, bytes);
        match &reply {
            PilotReply::Unreadable(why) => {
                self.count("link_unreadable_replies");
                tracing::warn!(registry = %self.config.registry, ?ask, %why, "unreadable reply");
            }
            PilotReply::Refused(why) => {
                self.count("link_refusals");
                tracing::debug!(registry = %self.config.registry, ?ask, %why, "refused");
            }
            _ => {}
        }
        match (ask, reply) {
            (PilotAsk::Register, PilotReply::Registered { node, address }) => {
                self.registered(node, address, now);
            }
            (PilotAsk::Register, PilotReply::Refused(why) | PilotReply::Unreadable(why)) => {
                self.drop_wire(Wire::Pilot, format!("register: {why}"));
            }
            // The registry has forgotten the node: begin again with it.
            (PilotAsk::Heartbeat, PilotReply::Refused(why)) => {
                self.drop_wire(Wire::Pilot, format!("heartbeat: {why}"));
                self.drop_wire(Wire::Market, format!("heartbeat: {why}"));
            }
            (PilotAsk::Hostname, PilotReply::Refused(why)) => {
                tracing::warn!(hostname = ?self.config.hostname, %why, "hostname refused");
            }
            (ask, reply) => self.news.push(News::Pilot(ask, Ok(reply))),
        }
    }

    fn registered(&mut self, node: NodeId, address: String, now: Time) {
        if let Some(earlier) = self.node.filter(|earlier| *earlier != node) {
            self.count("link_renumbered");
            let reason = format!(
                "it numbers this key {node}, but this node runs as {earlier}; restart the node"
            );
            self.news.push(News::Fatal(reason.clone()));
            self.drop_wire(Wire::Pilot, reason);
            return;
        }
        self.node = Some(node);
        self.pilot.registered = true;
        self.pilot.heartbeat_at = now + self.config.timings.heartbeat;
        self.news.push(News::Registered { node, address });
        self.ask_pilot(PilotAsk::Visibility, now);
        if self.config.hostname.is_some() {
            self.ask_pilot(PilotAsk::Hostname, now);
        }
        self.say_again(node, now);
        self.say_hello(now);
    }

    /// Tells the registry what a local program had us say in an earlier registration.
    fn say_again(&mut self, node: NodeId, now: Time) {
        let tags = self.config.tags.as_ref().map(|tags| {
            let message = json!({"type": "set_tags", "node_id": node, "tags": tags});
            (message, format!("set_tags:{node}"))
        });
        let task_exec = self.config.task_exec.map(|enabled| {
            let message = json!({"type": "set_task_exec", "node_id": node, "enabled": enabled});
            (message, format!("set_task_exec:{node}"))
        });
        for (message, challenge) in tags.into_iter().chain(task_exec) {
            let challenge = Some(challenge);
            let call = Call { message, challenge };
            self.call_pilot(NOBODYS_CALL, &call, now);
        }
    }

    /// Begins the proof once both connections allow it.
    fn say_hello(&mut self, now: Time) {
        let Some(node) = self.node.filter(|_| self.pilot.registered) else {
            return;
        };
        if self.market.stage == Stage::AwaitingRegistration {
            self.market.stage = Stage::AwaitingNonce;
            self.ask_market(Tag::Hello, RequestBody::Hello { node }, now);
        }
    }

    fn market_message(&mut self, bytes: &[u8], now: Time) {
        match FromRegistry::parse(bytes) {
            Ok(FromRegistry::Push(push)) => self.news.push(News::Push(Box::new(push))),
            Ok(FromRegistry::Reply(Reply { id, body })) => match self.market.waiting.remove(&id) {
                Some((tag, _)) => self.market_reply(tag, body, now),
                None => {
                    self.count("link_unasked_replies");
                    tracing::warn!(registry = %self.config.registry, id, "unasked reply");
                }
            },
            Err(error) => {
                self.count("link_unreadable_replies");
                let head = bounded(&String::from_utf8_lossy(&bytes[..bytes.len().min(120)]));
                tracing::warn!(registry = %self.config.registry, %error, %head, "unreadable");
                // What answers a request fails it; what answers none is left alone.
                let id = serde_json::from_slice::<serde_json::Value>(bytes)
                    .ok()
                    .and_then(|value| value.get("id").and_then(serde_json::Value::as_u64));
                if let Some((tag, _)) = id.and_then(|id| self.market.waiting.remove(&id)) {
                    let reason = format!("unreadable reply: {error}");
                    if matches!(tag, Tag::Hello | Tag::Prove) {
                        self.drop_wire(Wire::Market, reason);
                    } else {
                        self.news.push(News::Failed(tag, reason));
                    }
                }
            }
        }
    }

    fn market_reply(&mut self, tag: Tag, body: ReplyBody, now: Time) {
        match (tag, body) {
            (
                Tag::Hello,
                ReplyBody::Hello {
                    nonce,
                    registry_key,
                },
            ) => {
                if let Err(reason) = self.pin.meet(registry_key) {
                    self.count("link_registry_key_refused");
                    tracing::error!(registry = %self.config.registry, %reason, "key refused");
                    self.news.push(News::Fatal(reason.clone()));
                    self.drop_wire(Wire::Market, reason);
                    return;
                }
                let node = self.node.unwrap_or_default();
                let signature = self.config.identity.sign(&prove_bytes(node, &nonce.0));
                self.market.stage = Stage::AwaitingProof;
                let signature = Base64Bytes(signature.to_vec());
                self.ask_market(Tag::Prove, RequestBody::Prove { signature }, now);
            }
            (Tag::Prove, ReplyBody::Proved { polo }) => {
                self.market.stage = Stage::Ready;
                self.market.keepalive_at = now + self.config.timings.heartbeat;
                self.last_error = None;
                self.news.push(News::Ready { polo });
            }
            (Tag::Hello | Tag::Prove, ReplyBody::Refused(refusal)) => {
                self.count("link_refusals");
                self.drop_wire(Wire::Market, format!("proof refused: {}", refusal.reason));
            }
            (Tag::Hello | Tag::Prove, other) => {
                self.count("link_unreadable_replies");
                self.drop_wire(Wire::Market, format!("proof answered by {}", kind(&other)));
            }
            (tag, body) => self.news.push(News::Reply(tag, body)),
        }
    }
}

/// The name of a reply, for messages about one that does not fit its request.
pub(crate) fn kind(body: &ReplyBody) -> &'static str {
    match body {
        ReplyBody::Hello { .. } => "market_hello_ok",
        ReplyBody::Proved { .. } => "market_prove_ok",
        ReplyBody::Advertised { .. } => "market_advertise_ok",
        ReplyBody::Workers { .. } => "market_resolve_ok",
        ReplyBody::Offered { .. } => "market_offer_ok",
        ReplyBody::Granted { .. } => "market_grant",
        ReplyBody::Settled { .. } => "market_settle_ok",
        ReplyBody::Done {} => "market_done",
        ReplyBody::Standing(_) => "market_standing_ok",
        ReplyBody::Engagements { .. } => "market_engagements_ok",
        ReplyBody::Refused(_) => "market_refused",
    }
}
