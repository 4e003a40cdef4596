//! Every decision of the control thread, as a state machine without input or output.
//!
//! Feed it: [`Plane::ask`] (callers), [`Plane::report`] (workers), [`Plane::arrival`] (registry),
//! [`Plane::tick`] (time). Then drain it, in this order: [`Plane::commit`], which makes staged
//! receipts durable and only then releases the commands that send them; [`Plane::take_commands`];
//! [`Plane::take_orders`]. What it decides is in `requester`, `accounting`,
//! `serving`, `peers` and `shutdown`.
//!
//! Invariants: no command that carries a receipt is released before the receipt is durable; every
//! offer and every question that was taken gets exactly one end or answer; tables are bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::AcceptFrom;
use ramjet_proto::market::message::{Base64Bytes, Push, RefusalCode, ReplyBody, RequestBody};
use ramjet_proto::time::Time;

use super::ControlTimings;
use super::advertise::Advertiser;
use super::engagements::{Accepting, Moment, Requesting, Serving};
use super::externals::Externals;
use super::handle::{Ask, Respond, Said};
use super::link::{Link, News, Tag, kind};
use super::observe::{Look, Observer};
use super::pulse::Pulse;
use super::settle::Settler;
use super::shutdown::Drain;
use super::spool::Spool;
use super::transport::{Arrival, Order, Wire};
use super::vocabulary::{Command, Report, Side};
use crate::events;
use crate::node::NodeError;
use crate::worker::owner_of;

/// Pause before a release or settlement that got no answer is tried again.
pub(crate) const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// What the plane must know of the node's configuration.
pub(crate) struct PlaneConfig {
    pub(crate) identity: Arc<Identity>,
    /// Name and policy of each skill, by its index.
    pub(crate) skills: Vec<(String, AcceptFrom)>,
    pub(crate) task_ready: bool,
    pub(crate) credits: u32,
    pub(crate) engagements_max: usize,
    pub(crate) unsigned_max: u64,
    pub(crate) workers: usize,
    pub(crate) timings: ControlTimings,
    /// Lends entropy for offer ids.
    pub(crate) entropy: fn() -> u64,
}

/// The release of an engagement that the registry has not confirmed.
struct Release {
    reason: String,
    ask_at: Time,
}

/// The state of the control thread.
pub(crate) struct Plane {
    pub(crate) config: PlaneConfig,
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) polo: Option<i64>,
    pub(crate) link: Link,
    pub(crate) spool: Spool,
    pub(crate) settler: Settler,
    pub(crate) advertiser: Advertiser,
    pub(crate) requesting: BTreeMap<OfferId, Requesting>,
    pub(crate) by_engagement: BTreeMap<EngagementId, OfferId>,
    pub(crate) serving: BTreeMap<EngagementId, Serving>,
    /// When a row of `serving` is due: no tick before looks at any of them. Whoever makes one due
    /// earlier says so here.
    pub(crate) serving_due: Time,
    pub(crate) accepting: BTreeMap<OfferId, Accepting>,
    pub(crate) externals: Externals,
    pub(crate) observer: Observer,
    pub(crate) pulse: Pulse,
    pub(crate) drain: Option<Drain>,
    /// Workers whose thread has ended.
    pub(crate) ended: BTreeSet<usize>,
    /// Set when the workers have been told to stop.
    pub(crate) stopping: bool,
    /// Why this node cannot go on, if so.
    pub(crate) fatal: Option<String>,
    /// Why the registry cannot serve this node, if so: a person has to act.
    pub(crate) registry_fault: Option<String>,
    releases: BTreeMap<EngagementId, Release>,
    pub(crate) directory: BTreeMap<NodeId, (PublicKey, Option<SocketAddr>)>,
    /// Those of the directory that no worker has asked for since they were learned.
    pub(crate) fresh: BTreeSet<NodeId>,
    pub(crate) looking_up: BTreeSet<NodeId>,
    pub(crate) trusts: Vec<(NodeId, Respond<()>)>,
    /// Calls whose reply is awaited, by number; the link bounds how many.
    pub(crate) calls: BTreeMap<u64, Respond<serde_json::Value>>,
    pub(crate) next_call: u64,
    commands: Vec<(usize, Command)>,
    /// Commands that carry a receipt: released by [`Self::commit`].
    deferred: Vec<(usize, Command)>,
    counters: BTreeMap<&'static str, u64>,
}

impl Plane {
    /// A plane whose spool may hold unsettled receipts from an earlier life.
    pub(crate) fn new(
        config: PlaneConfig,
        link: Link,
        mut spool: Spool,
        advertiser: Advertiser,
    ) -> Self {
        let mut settler = Settler::default();
        let mut useless = Vec::new();
        for (engagement, entry) in spool.entries() {
            match entry.unsettled() {
                Some(whole) => settler.want(*whole, Time::ZERO),
                // Its engagement ended with the process that made it; if the worker has
                // countersigned meanwhile, the worker settles.
                None => useless.push(engagement),
            }
        }
        for engagement in useless {
            spool.remove(engagement);
        }
        let observer = Observer::new(config.workers);
        Plane {
            config,
            node: NodeId(0),
            address: String::new(),
            polo: None,
            link,
            spool,
            settler,
            advertiser,
            requesting: BTreeMap::new(),
            by_engagement: BTreeMap::new(),
            serving: BTreeMap::new(),
            serving_due: Time::NEVER,
            accepting: BTreeMap::new(),
            externals: Externals::default(),
            observer,
            pulse: Pulse::default(),
            drain: None,
            ended: BTreeSet::new(),
            stopping: false,
            fatal: None,
            registry_fault: None,
            releases: BTreeMap::new(),
            directory: BTreeMap::new(),
            fresh: BTreeSet::new(),
            looking_up: BTreeSet::new(),
            trusts: Vec::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            commands: Vec::new(),
            deferred: Vec::new(),
            counters: BTreeMap::new(),
        }
    }

    // ---- what feeds it ----

    /// A caller's question.
    pub(crate) fn ask(&mut self, ask: Ask, at: Moment) {
        match ask {
            Ask::Engage(ask) => self.engage(*ask, at),
            Ask::Cancel(offer) => self.cancel(offer, at),
            Ask::Resolve(query, respond) => {
                self.question(Tag::Workers(respond), RequestBody::Resolve(query), at);
            }
            Ask::Standing(who, respond) => {
                self.question(Tag::Standing(respond), RequestBody::Standing { who }, at);
            }
            Ask::Engagements(who, limit, respond) => {
                let body = RequestBody::Engagements { who, limit };
                self.question(Tag::Engagements(respond), body, at);
            }
            Ask::Trust(peer, respond) => self.trust(peer, respond, at),
            Ask::Call(call, respond) => self.call(&call, respond, at),
            Ask::Remember(said, respond) => self.remember(said, respond, at),
            Ask::Skills(offered, respond) => self.offer_skills(offered, respond, at),
            Ask::AgentPlace(name, accept_from, taken, respond) => {
                respond(self.place_agents(&name, accept_from, taken));
            }
            Ask::AgentOffer(offer) => self.offer_agents(offer, at),
            Ask::TaskReady(ready, respond) => self.set_task_ready(ready, respond, at),
            Ask::Status(respond) => self.observe(Look::Status(respond), at),
            Ask::Histograms(respond) => self.observe(Look::Histograms(respond), at),
            Ask::Latencies(respond) => self.observe(Look::Latencies(respond), at),
            Ask::Beat(respond) => self.feel_pulse(respond),
            Ask::Reload(reloaded, respond) => self.reload(*reloaded, respond, at),
            Ask::Shutdown(respond) => self.shut_down(respond, at),
            #[cfg(test)]
            Ask::Ports(_) => unreachable!("the shell takes it"),
            Ask::Agent(_) | Ask::Card(_) | Ask::Vitals(_) => {
                unreachable!("the thread answers these itself")
            }
        }
    }

    /// Remembers what a local program had the node say.
    fn remember(&mut self, said: Said, respond: Respond<()>, at: Moment) {
        if let Said::TaskExec(enabled) = said {
            self.config.task_ready = enabled && self.skill_names().next().is_some();
            self.advertiser.hurry(at.now);
        }
        self.link.say(said);
        respond(Ok(()));
    }

    fn question(&mut self, tag: Tag, body: RequestBody, at: Moment) {
        self.link.ask_market(tag, body, at.now);
        self.digest(at);
    }

    /// What a worker reports.
    pub(crate) fn report(&mut self, report: Report, at: Moment) {
        match report {
            Report::PeerWanted { node } => self.peer_wanted(node, at),
            Report::OpenWanted {
                peer,
                channel,
                grant,
            } => {
                self.open_wanted(peer, channel, &grant, at);
            }
            Report::Opened {
                engagement,
                credits,
            } => self.opened(engagement, credits),
            Report::FirstResult { engagement } => self.first_result(engagement),
            Report::Progress {
                engagement,
                side: Side::Requester,
                totals,
                receipt_due,
            } => {
                self.progress(engagement, totals, receipt_due, at);
            }
            Report::Progress {
                engagement,
                side: Side::Worker,
                totals,
                ..
            } => {
                self.served(engagement, totals);
            }
            Report::Receipt {
                engagement,
                side: Side::Requester,
                receipt,
                ..
            } => {
                self.countersigned(engagement, &receipt, at);
            }
            Report::Receipt {
                engagement,
                side: Side::Worker,
                receipt,
                totals,
            } => {
                self.receipt(engagement, &receipt, totals);
            }
            Report::JobDone {
                engagement,
                totals,
                job,
            } => self.job_done(engagement, totals, job, at),
            Report::Closed {
                engagement,
                side: Side::Requester,
                reason,
                totals,
                job,
            } => {
                self.closed(engagement, reason, totals, job, at);
            }
            Report::Closed {
                engagement,
                side: Side::Worker,
                reason,
                totals,
                ..
            } => {
                self.serve_closed(engagement, reason, totals, at);
            }
            Report::Drained { worker } => self.drained(worker, at),
            Report::Histograms { worker, histograms } => self.observer.take(worker, histograms),
            Report::Beat { worker } => self.pulse.beats(worker),
            Report::Stopped { worker, error } => self.worker_stopped(worker, error, at),
            Report::Stream(_) => unreachable!("the thread keeps these for its ports"),
        }
    }

    /// What the transport brings.
    pub(crate) fn arrival(&mut self, wire: Wire, arrival: Arrival, at: Moment) {
        self.link.arrival(wire, arrival, at.now);
        self.digest(at);
    }

    /// Time passes: call it at least every 100 ms, or every second while [`Self::is_steady`].
    pub(crate) fn tick(&mut self, at: Moment) {
        self.link.tick(at.now);
        self.digest(at);
        self.tick_requesting(at);
        self.tick_serving(at);
        self.tick_link(at);
        self.observer.tick(at.now);
        self.tick_drain(at);
    }

    /// Whether nothing is under way that a moment decides on: engagements run or there are none, and
    /// the registry has been told everything.
    pub(crate) fn is_steady(&self) -> bool {
        self.drain.is_none()
            && !self.stopping
            && self.link.is_ready()
            && self.accepting.is_empty()
            && self.releases.is_empty()
            && self.observer.is_at_rest()
            && self.requesting.values().all(Requesting::is_running)
    }

    /// Acts on whatever the link has to say, until it has nothing more to say.
    pub(crate) fn digest(&mut self, at: Moment) {
        loop {
            let news = self.link.take_news();
            if news.is_empty() {
                return;
            }
            for item in news {
                self.news(item, at);
            }
        }
    }

    // ---- what drains it ----

    /// Makes staged receipts durable, then releases the commands that carry them and hands in
    /// what is to be settled. If the disk fails, all of it stays and is tried again; the reason is
    /// returned for the log.
    pub(crate) fn commit(&mut self, at: Moment) -> Result<(), String> {
        if self.spool.is_staged()
            && let Err(fault) = self.spool.commit()
        {
            self.count("spool_faults");
            return Err(fault.to_string());
        }
        self.commands.append(&mut self.deferred);
        self.send_settlements(at);
        Ok(())
    }

    /// Commands, each with the worker it is for.
    pub(crate) fn take_commands(&mut self) -> Vec<(usize, Command)> {
        std::mem::take(&mut self.commands)
    }

    /// Orders for the transport.
    pub(crate) fn take_orders(&mut self) -> Vec<(Wire, Order)> {
        self.link.take_orders()
    }

    /// Events by name since the start.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = self.counters.iter().chain(self.link.counters());
        all.map(|(name, count)| (*name, *count))
    }

    // ---- what the two halves use ----

    pub(crate) fn count(&mut self, name: &'static str) {
        *self.counters.entry(name).or_default() += 1;
    }

    pub(crate) fn worker_of(&self, peer: NodeId) -> usize {
        owner_of(peer, self.config.workers)
    }

    /// A command for the worker that owns the tunnel to `peer`.
    pub(crate) fn command(&mut self, peer: NodeId, command: Command) {
        self.commands.push((self.worker_of(peer), command));
    }

    /// A command that must wait until the spool is durable.
    pub(crate) fn command_after_commit(&mut self, peer: NodeId, command: Command) {
        self.deferred.push((self.worker_of(peer), command));
    }

    /// A command for one worker, by its place.
    pub(crate) fn command_worker(&mut self, worker: usize, command: Command) {
        self.commands.push((worker, command));
    }

    /// A command for every worker.
    pub(crate) fn command_all(&mut self, command: impl Fn() -> Command) {
        for worker in 0..self.config.workers {
            self.commands.push((worker, command()));
        }
    }

    /// Wants the engagement released at the registry, now or when it is back.
    pub(crate) fn release(&mut self, engagement: EngagementId, reason: &str, at: Moment) {
        self.releases.insert(
            engagement,
            Release {
                reason: reason.to_owned(),
                ask_at: at.now,
            },
        );
        self.tick_releases(at);
    }

    /// Whether releases are still to be confirmed.
    pub(crate) fn is_releasing(&self) -> bool {
        !self.releases.is_empty()
    }

    /// Hands in what is due. Only [`Self::commit`] calls it: what is handed in is durable.
    fn send_settlements(&mut self, at: Moment) {
        if !self.link.is_ready() {
            return;
        }
        for whole in self.settler.take_due(at.now) {
            let engagement = whole.receipt.engagement;
            if let Some(serving) = self.serving.get_mut(&engagement) {
                serving.settle_at = at.now + self.config.timings.settle;
            }
            let receipt = Base64Bytes(whole.encode().to_vec());
            let body = RequestBody::Settle { receipt };
            self.link.ask_market(Tag::Settle(engagement), body, at.now);
        }
        self.digest(at);
    }

    /// Takes an engagement out of the spool once nothing of it is wanted any more.
    pub(crate) fn tidy_spool(&mut self, engagement: EngagementId) {
        let requesting = self
            .by_engagement
            .get(&engagement)
            .and_then(|offer| self.requesting.get(offer))
            .is_some_and(Requesting::is_live);
        let done = self
            .spool
            .entry(engagement)
            .is_some_and(|entry| entry.unsettled().is_none());
        if done && !requesting && !self.serving.contains_key(&engagement) {
            self.spool.remove(engagement);
        }
    }

    /// Why no further engagement may be made now.
    pub(crate) fn closed_for_work(&self) -> Option<String> {
        if self.drain.is_some() {
            return Some("the node is shutting down".to_owned());
        }
        self.fatal.clone().or_else(|| self.spool.refusal())
    }

    // ---- the registry's news ----

    fn news(&mut self, news: News, at: Moment) {
        match news {
            News::Registered { node, address } => {
                (self.node, self.address) = (node, address);
            }
            News::Ready { polo } => self.ready(polo, at),
            News::Away(reason) => {
                self.count("registry_losses");
                let message_id = events::REGISTRY_LOST;
                tracing::warn!(message_id, %reason, "registry away; granted engagements go on");
            }
            News::Fatal(reason) => {
                self.count("registry_fatal");
                tracing::error!(%reason, "the registry cannot serve this node");
                self.registry_fault = Some(reason);
            }
            News::Reply(tag, body) => self.reply(tag, body, at),
            News::Failed(tag, reason) => self.failed(tag, reason, at),
            News::Push(push) => self.push(*push, at),
            News::Pilot(ask, reply) => self.pilot(ask, reply, at),
        }
    }

    /// The registry is there (again): say who we are, and ask again what was left open.
    fn ready(&mut self, polo: i64, at: Moment) {
        self.registry_fault = None;
        self.polo = Some(polo);
        let message_id = events::REGISTRY_REACHED;
        tracing::info!(message_id, node = %self.node, polo, "registry ready");
        self.advertiser.hurry(at.now);
        self.settler.hurry();
        for release in self.releases.values_mut() {
            release.ask_at = at.now;
        }
        for row in self.requesting.values_mut() {
            row.ask_at = at.now;
        }
        self.tick_link(at);
        self.send_offers(at);
    }

    fn tick_link(&mut self, at: Moment) {
        if !self.link.is_ready() {
            return;
        }
        self.send_advertisement(at);
        self.tick_releases(at);
    }

    fn send_advertisement(&mut self, at: Moment) {
        let task_ready = self.config.task_ready && self.closed_for_work().is_none();
        if let Some(advertisement) = self.advertiser.take_due(self.node, task_ready, at) {
            let signature = self.config.identity.sign(&advertisement.signed_bytes());
            let signature = Base64Bytes(signature.to_vec());
            let body = RequestBody::Advertise {
                advertisement,
                signature,
            };
            self.link.ask_market(Tag::Advertise, body, at.now);
        }
    }

    fn tick_releases(&mut self, at: Moment) {
        if !self.link.is_ready() {
            return;
        }
        for (engagement, release) in &mut self.releases {
            if release.ask_at <= at.now {
                release.ask_at = Time::NEVER;
                let body = RequestBody::Release {
                    engagement: *engagement,
                    reason: release.reason.clone(),
                };
                self.link
                    .ask_market(Tag::Release(*engagement), body, at.now);
            }
        }
    }

    fn reply(&mut self, tag: Tag, body: ReplyBody, at: Moment) {
        match (tag, body) {
            (Tag::Advertise, ReplyBody::Advertised { lease_s }) => {
                self.advertiser.taken(lease_s, at.now);
            }
            (Tag::Advertise, ReplyBody::Refused(refusal)) => {
                self.count("advertisements_refused");
                tracing::warn!(code = ?refusal.code, reason = %refusal.reason, "advertisement refused");
                self.advertiser.not_taken(at.now);
            }
            (Tag::Offer(offer), body) => self.offer_reply(offer, body, at),
            (Tag::Accept(offer), body) => self.accept_reply(offer, body, at),
            (Tag::Settle(_), ReplyBody::Settled { settlement, .. }) => {
                self.settled(&settlement, at);
            }
            (Tag::Settle(engagement), ReplyBody::Refused(refusal)) => {
                let later = [
                    RefusalCode::Limited,
                    RefusalCode::Unavailable,
                    RefusalCode::NotProven,
                ];
                if later.contains(&refusal.code) {
                    self.settler.put_off(engagement, at.now, RETRY);
                } else {
                    self.settlement_refused(engagement, &refusal, at);
                }
            }
            (Tag::Release(engagement), ReplyBody::Done {}) => {
                self.releases.remove(&engagement);
            }
            (Tag::Release(engagement), ReplyBody::Refused(refusal)) => {
                self.count("releases_refused");
                tracing::warn!(%engagement, reason = %refusal.reason, "release refused");
                self.releases.remove(&engagement);
            }
            (Tag::Keepalive, ReplyBody::Standing(standing)) => self.polo = Some(standing.polo),
            (Tag::Keepalive, ReplyBody::Refused(_)) => {}
            (Tag::Workers(respond), ReplyBody::Workers { workers }) => respond(Ok(workers)),
            (Tag::Standing(respond), ReplyBody::Standing(standing)) => respond(Ok(standing)),
            (Tag::Engagements(respond), ReplyBody::Engagements { engagements }) => {
                respond(Ok(engagements));
            }
            (tag, ReplyBody::Refused(refusal)) => self.failed(tag, refusal.reason, at),
            (tag, other) => {
                self.count("link_unfitting_replies");
                self.failed(tag, format!("answered by {}", kind(&other)), at);
            }
        }
    }

    /// A request got no usable reply. What may be repeated is put back.
    fn failed(&mut self, tag: Tag, reason: String, at: Moment) {
        match tag {
            Tag::Hello | Tag::Prove | Tag::Keepalive => {}
            Tag::Advertise => self.advertiser.not_taken(at.now),
            Tag::Offer(offer) => {
                if let Some(row) = self.requesting.get_mut(&offer) {
                    row.ask_at = at.now + RETRY;
                }
            }
            // The grant may have been made all the same; its requester will present it.
            Tag::Accept(offer) => {
                self.count("accepts_unanswered");
                if let Some(accepting) = self.accepting.get_mut(&offer) {
                    accepting.unanswered = true;
                }
            }
            Tag::Settle(engagement) => self.settler.put_off(engagement, at.now, RETRY),
            Tag::Release(engagement) => {
                if let Some(release) = self.releases.get_mut(&engagement) {
                    release.ask_at = at.now + RETRY;
                }
            }
            Tag::Workers(respond) => respond(Err(NodeError(reason))),
            Tag::Standing(respond) => respond(Err(NodeError(reason))),
            Tag::Engagements(respond) => respond(Err(NodeError(reason))),
        }
    }

    fn push(&mut self, push: Push, at: Moment) {
        match push {
            Push::Notify {
                offer,
                requester_polo,
            } => self.notified(&offer, requester_polo, at),
            Push::Grant { grant } => self.granted(&grant, at),
            Push::Withdrawn { offer } => {
                self.accepting.remove(&offer);
            }
            Push::Expired {
                offer,
                polo,
                notified,
                diagnosis,
            } => {
                self.expired(offer, polo, notified, diagnosis, at);
            }
            Push::Settled { settlement } => self.settled(&settlement, at),
            Push::Released { engagement, reason } => {
                self.released(engagement, &reason, at);
            }
        }
    }
}
