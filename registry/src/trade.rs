//! The market's requests, judged for the log thread: who may ask, what is logged, who is told.
//!
//! A connection speaks for the node it has proven, with the key it has proven it with; when that
//! key is no longer the node's, it must prove again. Whether a worker has a live connection decides
//! whom an offer is told to and whether the gate refuses it at once, never who wins it.

use std::sync::Arc;

use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::{
    Base64Bytes, Diagnosis, EngagementRow, GrantMessage, Push, Query, ReplyBody, RequestBody,
    Standing, WorkerRow,
};
use ramjet_proto::market::terms::FILTERS_MAX;
use ramjet_proto::market::{Offer, SignedReceipt};

use crate::address::{address_text, parse_node};
use crate::book::NOTIFIED_MAX;
use crate::command::{Command, Outcome, Refused, Why};
use crate::desk::{Outbox, framed};
use crate::fault::Count;
use crate::ledger::Ledger;

/// Most rows in an answer.
const ROWS_MAX: u32 = 1_000;
/// Rows in an answer to a query that names no limit.
const ROWS_DEFAULT: u32 = 100;
/// Bytes of the rows of one answer: a frame, less its envelope. Further rows are left out.
const ROWS_LEN_MAX: usize = 1_000_000;

type Answer = Result<ReplyBody, Refused>;

impl Ledger {
    /// The nonce for a registered node.
    pub(crate) fn hello(&self, node: NodeId, nonce: [u8; 32]) -> Answer {
        self.state.directory.node(node)?;
        Ok(ReplyBody::Hello {
            nonce: Base64Bytes(nonce.to_vec()),
            registry_key: self.public_key(),
        })
    }

    /// Verifies a proof, and takes the connection as the node's.
    pub(crate) fn prove(
        &mut self,
        node: NodeId,
        bytes: &[u8],
        signature: &[u8],
        outbox: &Arc<Outbox>,
    ) -> Answer {
        let entry = self.state.directory.node(node)?;
        if !entry.key.verifies(bytes, signature) {
            return Err(Refused::new(
                Why::Signature,
                format!("the nonce is not signed by the registered key of node {node}"),
            ));
        }
        if let Some((proven, _)) = outbox.proven()
            && proven != node
        {
            return Err(Refused::new(
                Why::Invalid,
                format!("this connection is node {proven}'s: open another for node {node}"),
            ));
        }
        let (key, polo) = (entry.key, entry.polo);
        self.desk.connect(node, key, outbox);
        // A new connection has been told of nothing.
        self.desk.forget(node);
        Ok(ReplyBody::Proved { polo })
    }

    /// Answers what needs no proof; `None` if it changes something.
    pub(crate) fn query(&self, now_ms: u64, body: &RequestBody) -> Option<Answer> {
        match body {
            RequestBody::Resolve(query) => Some(self.workers(now_ms, query)),
            RequestBody::Standing { who } => Some(self.standing(who)),
            RequestBody::Engagements { who, limit } => {
                Some(self.engagements(now_ms, who.as_deref(), *limit))
            }
            _ => None,
        }
    }

    /// Judges what changes something.
    pub(crate) fn trade(&mut self, now_ms: u64, body: RequestBody, outbox: &Outbox) -> Answer {
        let node = self.speaker(outbox)?;
        match body {
            RequestBody::Advertise { advertisement, .. } => {
                expect_speaker(node, advertisement.node)?;
                let lease_s = advertisement.lease_s;
                self.log(now_ms, Command::Advertise(advertisement))?;
                self.tell_of_open_offers(now_ms, node);
                Ok(ReplyBody::Advertised { lease_s })
            }
            RequestBody::Offer { offer, .. } => {
                expect_speaker(node, offer.requester)?;
                self.offer(now_ms, offer)
            }
            RequestBody::Accept { terms, .. } => {
                expect_speaker(node, terms.worker)?;
                match self.log(now_ms, Command::Accept(terms))? {
                    Outcome::Granted {
                        engagement,
                        repeated,
                    } => self.granted(engagement, terms.offer, repeated),
                    outcome => unreachable!("an accept came to {outcome:?}"),
                }
            }
            RequestBody::Settle { receipt } => self.settle(now_ms, node, receipt),
            RequestBody::Release { engagement, reason } => {
                let command = Command::Release {
                    engagement,
                    node,
                    reason: reason.clone(),
                };
                match self.log(now_ms, command)? {
                    Outcome::Released { other } => {
                        if let Some(other) = other {
                            self.push(other, framed(&Push::Released { engagement, reason }));
                        }
                        Ok(ReplyBody::Done {})
                    }
                    outcome => unreachable!("a release came to {outcome:?}"),
                }
            }
            RequestBody::Renew {
                engagement,
                tasks,
                duration_s,
            } => {
                let command = Command::Renew {
                    engagement,
                    node,
                    tasks,
                    duration_s,
                };
                match self.log(now_ms, command)? {
                    Outcome::Renewed { worker } => {
                        let grant = self.grant_message(engagement)?;
                        self.push(
                            worker,
                            framed(&Push::Grant {
                                grant: grant.clone(),
                            }),
                        );
                        Ok(ReplyBody::Granted { grant })
                    }
                    outcome => unreachable!("a renewal came to {outcome:?}"),
                }
            }
            RequestBody::Hello { .. }
            | RequestBody::Prove { .. }
            | RequestBody::Resolve(_)
            | RequestBody::Standing { .. }
            | RequestBody::Engagements { .. } => {
                unreachable!("the session and query answer these")
            }
        }
    }

    /// The node this connection speaks for.
    fn speaker(&self, outbox: &Outbox) -> Result<NodeId, Refused> {
        let Some((node, key)) = outbox.proven() else {
            return Err(not_proven());
        };
        if self.state.directory.node(node)?.key == key {
            return Ok(node);
        }
        Err(Refused::new(
            Why::NotProven,
            format!("the key of node {node} was rotated since: prove the connection again"),
        ))
    }

    fn offer(&mut self, now_ms: u64, offer: Offer) -> Answer {
        let id = offer.offer;
        let is_new = self.state.book.offer(id).is_none() && self.state.book.ended(id).is_none();
        if is_new {
            self.state.book.check_offer(&offer, self.state.rules())?;
        }
        let survey = self
            .state
            .survey(&offer, now_ms, |node| self.desk.is_connected(node));
        if is_new && survey.gated() {
            return Err(gate_refusal(&offer, survey.diagnosis));
        }
        match self.log(now_ms, Command::Offer(offer.clone()))? {
            Outcome::Offered => {}
            Outcome::OfferGranted(engagement) => {
                // The requester missed the grant; it is told again.
                let grant = self.grant_message(engagement)?;
                self.push(offer.requester, framed(&Push::Grant { grant }));
                return Ok(ReplyBody::Offered {
                    notified: 0,
                    diagnosis: None,
                });
            }
            outcome => unreachable!("an offer came to {outcome:?}"),
        }
        if is_new {
            self.counters.add(Count::OffersOpened);
        }
        let notify = framed(&Push::Notify {
            requester_polo: survey.diagnosis.requester_polo,
            offer,
        });
        for &worker in survey.reachable.iter().take(NOTIFIED_MAX) {
            if self.desk.notify(id, worker) {
                self.push(worker, notify.clone());
            }
        }
        let notified = self.desk.notified(id);
        let diagnosis = (notified == 0).then_some(survey.diagnosis);
        Ok(ReplyBody::Offered {
            notified,
            diagnosis,
        })
    }

    /// Tells a worker that has come, or says that it is ready, of the open offers it could take.
    pub(crate) fn tell_of_open_offers(&mut self, now_ms: u64, node: NodeId) {
        let state = &self.state;
        let open: Vec<Offer> = state
            .book
            .offers_for(&state.directory, &state.trust, node, now_ms)
            .into_iter()
            .map(|open| open.offer.clone())
            .collect();
        for offer in open {
            if self.desk.notify(offer.offer, node) {
                let requester_polo = self.state.directory.polo(offer.requester);
                self.push(
                    node,
                    framed(&Push::Notify {
                        offer,
                        requester_polo,
                    }),
                );
            }
        }
    }

    /// Tells both ends of a grant, and the others that were told of the offer that it is gone.
    fn granted(&mut self, engagement: EngagementId, offer: OfferId, repeated: bool) -> Answer {
        let grant = self.grant_message(engagement)?;
        if !repeated {
            self.counters.add(Count::Grants);
            let row = self.state.engagements.row(engagement)?;
            let (requester, winner) = (row.requester, row.worker);
            self.push(
                requester,
                framed(&Push::Grant {
                    grant: grant.clone(),
                }),
            );
            self.withdraw(offer, Some(winner));
        }
        Ok(ReplyBody::Granted { grant })
    }

    fn withdraw(&mut self, offer: OfferId, winner: Option<NodeId>) {
        let withdrawn = framed(&Push::Withdrawn { offer });
        for node in self.desk.take_notified(offer) {
            if Some(node) != winner {
                self.push(node, withdrawn.clone());
            }
        }
    }

    fn grant_message(&self, engagement: EngagementId) -> Result<GrantMessage, Refused> {
        let row = self.state.engagements.row(engagement)?;
        let endpoint = |node| {
            self.state
                .directory
                .node(node)
                .map_or_else(|_| String::new(), |n| n.endpoint.clone())
        };
        Ok(GrantMessage {
            grant: Base64Bytes(row.grant(engagement).sign(&self.identity).encode()),
            requester_endpoint: endpoint(row.requester),
            worker_endpoint: endpoint(row.worker),
        })
    }

    fn settle(&mut self, now_ms: u64, node: NodeId, receipt: Base64Bytes) -> Answer {
        let signed = SignedReceipt::decode(&receipt.0)
            .map_err(|fault| Refused::new(Why::Invalid, fault.to_string()))?;
        let row = self.state.engagements.row(signed.receipt.engagement)?;
        if !row.names(node) {
            return Err(Refused::new(
                Why::NotProven,
                format!(
                    "node {node} is no end of engagement {}",
                    signed.receipt.engagement
                ),
            ));
        }
        signed
            .verify(&row.requester_key, &row.worker_key)
            .map_err(|fault| Refused::new(Why::Signature, fault.to_string()))?;
        match self.log(now_ms, Command::Settle { receipt })? {
            Outcome::Settled {
                settlement,
                repeated,
            } => {
                if !repeated {
                    self.counters.add(Count::Settlements);
                    let news = framed(&Push::Settled {
                        settlement: settlement.clone(),
                    });
                    for end in [settlement.requester, settlement.worker] {
                        self.push(end, news.clone());
                    }
                }
                Ok(ReplyBody::Settled {
                    settlement,
                    repeated,
                })
            }
            outcome => unreachable!("a receipt came to {outcome:?}"),
        }
    }

    /// Expires the offers whose deadline has passed, at most a batch of them in one turn.
    pub(crate) fn expire_offers(&mut self, now_ms: u64) {
        for _ in 0..self.conduct.limits.batch_max {
            match self.state.book.next_due() {
                Some((due_ms, offer)) if due_ms <= now_ms => self.expire_offer(now_ms, offer),
                _ => return,
            }
        }
    }

    fn expire_offer(&mut self, now_ms: u64, id: OfferId) {
        let open = self
            .state
            .book
            .offer(id)
            .expect("it is due, so it is open")
            .offer
            .clone();
        let notified = self.desk.notified(id);
        let diagnosis = (notified == 0).then(|| {
            self.state
                .survey(&open, now_ms, |node| self.desk.is_connected(node))
                .diagnosis
        });
        match self.log(now_ms, Command::ExpireOffer { offer: id }) {
            Ok(Outcome::OfferExpired { requester, polo }) => {
                self.counters.add(Count::OffersExpired);
                let expired = Push::Expired {
                    offer: id,
                    polo,
                    notified,
                    diagnosis,
                };
                self.push(requester, framed(&expired));
                self.withdraw(id, None);
            }
            outcome => unreachable!("an offer that is due came to {outcome:?}"),
        }
    }

    fn workers(&self, now_ms: u64, query: &Query) -> Answer {
        let limit = rows(if query.limit == 0 {
            ROWS_DEFAULT
        } else {
            query.limit
        })?;
        if query.filters.len() > FILTERS_MAX {
            return Err(Refused::new(
                Why::Invalid,
                format!("filters: {}, at most {FILTERS_MAX}", query.filters.len()),
            ));
        }
        let mut found = Vec::new();
        for (node, lease) in self.state.book.leases(now_ms) {
            let Ok(entry) = self.state.directory.node(node) else {
                continue;
            };
            let advertisement = &lease.advertisement;
            let task_ready = advertisement.task_ready && self.desk.is_connected(node);
            let wanted = (task_ready || !query.task_ready)
                && query.min_polo.is_none_or(|least| entry.polo >= least)
                && query
                    .filters
                    .iter()
                    .all(|f| f.matches(&advertisement.capabilities));
            if wanted {
                found.push((core::cmp::Reverse(entry.polo), node, task_ready));
            }
        }
        found.sort_unstable();
        let workers = found
            .into_iter()
            .take(limit)
            .filter_map(|(_, node, task_ready)| {
                let entry = self.state.directory.node(node).ok()?;
                let lease = self.state.book.lease(node, now_ms)?;
                Some(WorkerRow {
                    node,
                    address: address_text(node),
                    hostname: Some(entry.hostname.clone()).filter(|name| !name.is_empty()),
                    polo: entry.polo,
                    task_ready,
                    capabilities: lease.advertisement.capabilities.clone(),
                })
            });
        Ok(ReplyBody::Workers {
            workers: fitting(workers),
        })
    }

    fn standing(&self, who: &str) -> Answer {
        let node = self.find(who)?;
        let entry = self.state.directory.node(node)?;
        Ok(ReplyBody::Standing(Standing {
            node,
            address: address_text(node),
            hostname: Some(entry.hostname.clone()).filter(|name| !name.is_empty()),
            polo: entry.polo,
            worked: (entry.worked_engagements, entry.worked_results),
            requested: (entry.requested_engagements, entry.expired_offers),
        }))
    }

    fn engagements(&self, now_ms: u64, who: Option<&str>, limit: u32) -> Answer {
        let limit = rows(limit)?;
        let engagements: Vec<EngagementRow> = match who {
            Some(who) => {
                let node = self.find(who)?;
                let newest = self.state.engagements.newest_of(node).take(limit);
                fitting(newest.map(|(id, row)| row.row(id, now_ms)))
            }
            None => {
                let newest = self.state.engagements.newest().take(limit);
                fitting(newest.map(|(id, row)| row.row(id, now_ms)))
            }
        };
        Ok(ReplyBody::Engagements { engagements })
    }

    /// The node that is meant by a decimal id, an address or a hostname.
    fn find(&self, who: &str) -> Result<NodeId, Refused> {
        let node = parse_node(who).or_else(|| self.state.directory.by_hostname(who));
        let node = node.ok_or_else(|| {
            Refused::new(
                Why::NotFound,
                format!(
                    "{who:?}: not found; give a node id, an address 0:0000.HHHH.LLLL or a \
                         hostname"
                ),
            )
        })?;
        self.state.directory.node(node).map(|_| node)
    }
}

/// The refusal of a request on a connection that has proven no node.
pub fn not_proven() -> Refused {
    Refused::new(
        Why::NotProven,
        "this connection has proven no node: send market_hello and market_prove first",
    )
}

/// Whether a message names the node its connection speaks for.
///
/// # Errors
/// [`Why::NotProven`].
pub fn expect_speaker(proven: NodeId, named: NodeId) -> Result<(), Refused> {
    if proven == named {
        return Ok(());
    }
    Err(Refused::new(
        Why::NotProven,
        format!("this connection is node {proven}'s, and the message names node {named}"),
    ))
}

fn gate_refusal(offer: &Offer, diagnosis: Diagnosis) -> Refused {
    let needed = diagnosis.polo_needed.unwrap_or_default();
    Refused {
        why: Why::Gate,
        reason: format!(
            "your polo is {}, and all {} ready workers with skill {} are above it: {needed} would \
             do, or a worker that widens its gate for you (accept-from); nothing was charged",
            diagnosis.requester_polo, diagnosis.above_gate, offer.skill
        ),
        diagnosis: Some(Box::new(diagnosis)),
    }
}

fn rows(limit: u32) -> Result<usize, Refused> {
    if limit == 0 || limit > ROWS_MAX {
        return Err(Refused::new(
            Why::Invalid,
            format!("limit: {limit}, must be 1 to {ROWS_MAX}"),
        ));
    }
    Ok(limit as usize)
}

/// As many rows as one frame holds.
fn fitting<Row: serde::Serialize>(rows: impl Iterator<Item = Row>) -> Vec<Row> {
    let mut left = ROWS_LEN_MAX;
    rows.take_while(|row| {
        let length = serde_json::to_vec(row).map_or(usize::MAX, |bytes| bytes.len() + 1);
        let fits = length <= left;
        left -= length.min(left);
        fits
    })
    .collect()
}
