//! The market as a state machine over an ordered log of commands.
//!
//! Driving contract: [`State::apply`] is given a command and the time, and either changes the state
//! and advances [`State::position`] by one, or changes nothing at all. Whoever keeps the log
//! appends exactly the commands that advanced the position. The same commands at the same times
//! give the same state, byte for byte ([`State::to_bytes`]).
//!
//! What must have happened before: the signatures of the command were verified against the keys in
//! this state. Absent: clocks, randomness, floats, unordered maps, sockets, and who is connected.

use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::Diagnosis;
use ramjet_proto::market::{AcceptTerms, Gate, Offer};
use ramjet_proto::polo::{self, Occasion};
use ramjet_proto::wire::limits::SLOTS_PER_CHANNEL_MAX;
use serde::{Deserialize, Serialize};

use crate::book::{self, Book, Survey};
use crate::command::{Command, Outcome, Refused, Why};
use crate::config::Rules;
use crate::directory::{self, Directory};
use crate::engagements::{Engagement, Engagements};
use crate::trust::Trust;

mod engagement;

pub use engagement::REASON_LEN_MAX;

/// Everything the market knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    position: u64,
    now_ms: u64,
    rules: Rules,
    /// The nodes.
    pub(crate) directory: Directory,
    /// Who trusts whom.
    pub(crate) trust: Trust,
    /// Leases and offers.
    pub(crate) book: Book,
    /// What was granted and settled.
    pub(crate) engagements: Engagements,
}

impl State {
    /// Position of the last command that changed something; 0 before the first.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The time of that command, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The rules in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The nodes.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Who trusts whom.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Leases and offers.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// What was granted and settled.
    pub fn engagements(&self) -> &Engagements {
        &self.engagements
    }

    /// Table rows: what a snapshot costs.
    pub fn rows(&self) -> usize {
        self.directory.len() + self.trust.rows() + self.book.rows() + self.engagements.len()
    }

    /// The snapshot form.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with text or integer keys, and no floats")
    }

    /// Reads [`Self::to_bytes`].
    ///
    /// # Errors
    /// What serde says of the form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut state: State = serde_json::from_slice(bytes)?;
        state.directory.rebuild();
        state.book.rebuild();
        state.engagements.rebuild();
        Ok(state)
    }

    /// Who could take `offer` now.
    pub fn survey(
        &self,
        offer: &Offer,
        at_ms: u64,
        is_connected: impl Fn(NodeId) -> bool,
    ) -> Survey {
        self.book
            .survey(&self.directory, &self.trust, offer, at_ms, is_connected)
    }

    /// Applies one command at `at_ms`, or at the time of its predecessor if that is later.
    ///
    /// # Errors
    /// [`Refused`]; the state is as before, unless the refusal itself is recorded
    /// ([`Why::Contradiction`]), which advances the position.
    pub fn apply(&mut self, at_ms: u64, command: &Command) -> Result<Outcome, Refused> {
        let at_ms = at_ms.max(self.now_ms);
        match command {
            Command::Rules(rules) => {
                if self.rules != *rules {
                    self.advance(at_ms);
                    self.rules = *rules;
                }
                Ok(Outcome::Done)
            }
            Command::Interrupted => {
                if self.book.open() > 0 {
                    self.advance(at_ms);
                    self.book.interrupt(at_ms);
                }
                Ok(Outcome::Done)
            }
            Command::Advertise(advertisement) => {
                self.directory.node(advertisement.node)?;
                self.book.check_advertise(advertisement)?;
                self.advance(at_ms);
                self.book.advertise(advertisement, at_ms);
                Ok(Outcome::Done)
            }
            Command::Offer(offer) => self.offer(at_ms, offer),
            Command::Accept(terms) => self.accept(at_ms, terms),
            Command::ExpireOffer { offer } => self.expire_offer(at_ms, *offer),
            Command::Settle { receipt } => self.settle(at_ms, receipt),
            Command::Release {
                engagement,
                node,
                reason,
            } => self.release(at_ms, *engagement, *node, reason),
            Command::Renew {
                engagement,
                node,
                tasks,
                duration_s,
            } => self.renew(at_ms, *engagement, *node, *tasks, *duration_s),
            Command::ReportTrust { .. }
            | Command::RevokeTrust { .. }
            | Command::RequestHandshake { .. }
            | Command::CollectHandshakes { .. }
            | Command::RespondHandshake { .. } => self.apply_trust(at_ms, command),
            Command::Register(_)
            | Command::Deregister { .. }
            | Command::Hostname { .. }
            | Command::Visibility { .. }
            | Command::Tags { .. }
            | Command::TaskExec { .. }
            | Command::SetPolo { .. }
            | Command::MovePolo { .. }
            | Command::RotateKey { .. } => self.apply_directory(at_ms, command),
        }
    }

    /// Called once by every command that changes something, before it does and after all checks.
    fn advance(&mut self, at_ms: u64) {
        debug_assert!(at_ms >= self.now_ms, "time runs backwards in the log");
        self.position += 1;
        self.now_ms = at_ms;
    }

    fn apply_directory(&mut self, at_ms: u64, command: &Command) -> Result<Outcome, Refused> {
        match command {
            Command::Register(registration) => {
                self.directory
                    .check_register(registration, self.rules.nodes_max)?;
                if self.directory.is_current(registration) {
                    let node = self.directory.by_key(&registration.key);
                    let node = node.expect("a current registration has a node");
                    return Ok(Outcome::Registered {
                        node,
                        hostname_error: None,
                    });
                }
                self.advance(at_ms);
                return Ok(self.directory.register(registration, at_ms));
            }
            Command::Deregister { node } => {
                // An unknown node is gone already.
                if self.directory.node(*node).is_ok() {
                    self.advance(at_ms);
                    self.directory.deregister(*node);
                    self.book.withdraw(*node);
                }
            }
            Command::Hostname { node, hostname } => {
                self.directory.check_hostname(*node, hostname)?;
                if self.directory.node(*node)?.hostname != *hostname {
                    self.advance(at_ms);
                    self.directory.set_hostname(*node, hostname);
                }
            }
            Command::Tags { node, tags } => {
                let tags = directory::check_tags(tags)?;
                if self.directory.node(*node)?.tags != tags {
                    self.advance(at_ms);
                    self.directory.account(*node).tags = tags;
                }
            }
            Command::Visibility { node, public } => {
                if self.directory.node(*node)?.public != *public {
                    self.advance(at_ms);
                    self.directory.account(*node).public = *public;
                }
            }
            Command::TaskExec { node, enabled } => {
                if self.directory.node(*node)?.task_exec != *enabled {
                    self.advance(at_ms);
                    self.directory.account(*node).task_exec = *enabled;
                }
            }
            Command::SetPolo { node, .. } | Command::MovePolo { node, .. } => {
                let before = self.directory.node(*node)?.polo;
                let after = match command {
                    Command::MovePolo { delta, .. } => before.saturating_add(*delta),
                    Command::SetPolo { polo, .. } => *polo,
                    _ => before,
                };
                if before != after {
                    self.advance(at_ms);
                    self.directory.account(*node).polo = after;
                }
                return Ok(Outcome::Polo(after));
            }
            Command::RotateKey { node, key } => {
                self.directory.check_key(*node, key)?;
                if self.directory.node(*node)?.key != *key {
                    self.advance(at_ms);
                    self.directory.rotate_key(*node, *key, at_ms);
                }
            }
            _ => unreachable!("apply sends the directory's commands only"),
        }
        Ok(Outcome::Done)
    }

    fn apply_trust(&mut self, at_ms: u64, command: &Command) -> Result<Outcome, Refused> {
        match command {
            Command::ReportTrust { node, peer } => {
                self.directory.node(*node)?;
                self.directory.node(*peer)?;
                if !self.trust.opens(*node, *peer) {
                    self.trust.check_report(*node)?;
                    self.advance(at_ms);
                    self.trust.report(*node, *peer);
                }
            }
            Command::RevokeTrust { node, peer } => {
                self.directory.node(*node)?;
                if !self.trust.any(*node, *peer) {
                    return Err(Refused::new(
                        Why::NotFound,
                        format!("trust between node {node} and node {peer}: not found"),
                    ));
                }
                self.advance(at_ms);
                self.trust.revoke(*node, *peer);
            }
            Command::RequestHandshake {
                from,
                to,
                justification,
            } => {
                self.directory.node(*from)?;
                self.directory.node(*to)?;
                self.trust.check_request(*from, *to, justification)?;
                self.advance(at_ms);
                self.trust.request(*from, *to, justification, at_ms);
            }
            Command::CollectHandshakes { node } => {
                self.directory.node(*node)?;
                if self.trust.inbox_is_empty(*node) {
                    return Ok(Outcome::Handshakes(crate::trust::Inbox::default()));
                }
                self.advance(at_ms);
                return Ok(Outcome::Handshakes(self.trust.collect(*node)));
            }
            Command::RespondHandshake { node, peer, accept } => {
                self.directory.node(*node)?;
                self.directory.node(*peer)?;
                if let Err(refused) = self.trust.check_respond(*node, *peer) {
                    // Said again because the reply was lost, it holds already.
                    return if *accept && self.trust.mutual(*node, *peer) {
                        Ok(Outcome::Done)
                    } else {
                        Err(refused)
                    };
                }
                if *accept {
                    self.trust.check_report(*node)?;
                    self.trust.check_report(*peer)?;
                }
                self.advance(at_ms);
                self.trust.respond(*node, *peer, *accept, at_ms);
            }
            _ => unreachable!("apply sends the commands about trust only"),
        }
        Ok(Outcome::Done)
    }

    fn offer(&mut self, at_ms: u64, offer: &Offer) -> Result<Outcome, Refused> {
        self.directory.node(offer.requester)?;
        let id = offer.offer;
        if let Some(open) = self.book.offer(id) {
            return if open.offer == *offer {
                Ok(Outcome::Offered)
            } else {
                Err(Refused::new(
                    Why::Invalid,
                    format!("offer {id} is open with other terms: draw another id"),
                ))
            };
        }
        match self.book.ended(id) {
            Some(ended) if ended.requester != offer.requester => {
                return Err(Refused::new(
                    Why::Invalid,
                    format!("offer {id} was another requester's: draw another id"),
                ));
            }
            Some(ended) => {
                return match ended.engagement {
                    Some(engagement) => Ok(Outcome::OfferGranted(engagement)),
                    None => Err(Refused::new(
                        Why::Taken,
                        format!("offer {id} has expired unaccepted"),
                    )),
                };
            }
            None => {}
        }
        self.book.check_offer(offer, &self.rules)?;
        self.advance(at_ms);
        self.book.open_offer(offer, at_ms);
        Ok(Outcome::Offered)
    }

    fn accept(&mut self, at_ms: u64, terms: &AcceptTerms) -> Result<Outcome, Refused> {
        let id = terms.offer;
        let worker_key = self.directory.node(terms.worker)?.key;
        if let Some(ended) = self.book.ended(id) {
            return match ended.engagement {
                Some(engagement)
                    if self
                        .engagements
                        .row(engagement)
                        .is_ok_and(|row| row.worker == terms.worker) =>
                {
                    Ok(Outcome::Granted {
                        engagement,
                        repeated: true,
                    })
                }
                Some(_) => Err(Refused::new(
                    Why::Taken,
                    format!("offer {id} was taken by another worker first"),
                )),
                None => Err(Refused::new(Why::Taken, format!("offer {id} has expired"))),
            };
        }
        let Some(open) = self.book.offer(id) else {
            return Err(Refused::new(
                Why::NotFound,
                format!("offer {id}: not found"),
            ));
        };
        if at_ms >= open.due_at_ms {
            return Err(Refused::new(
                Why::Taken,
                format!("offer {id} has reached its deadline"),
            ));
        }
        if terms.credits == 0 || terms.credits as usize > SLOTS_PER_CHANNEL_MAX {
            return Err(Refused::new(
                Why::Invalid,
                format!(
                    "credits: {}, must be 1 to {SLOTS_PER_CHANNEL_MAX}",
                    terms.credits
                ),
            ));
        }
        let gate = self.judge_accept(at_ms, terms.worker, &open.offer)?;
        let requester_key = self.directory.node(open.offer.requester)?.key;
        let room = self.engagements.check_room(at_ms, &self.rules)?;

        self.advance(at_ms);
        self.engagements.forget(&room);
        let next = EngagementId(self.engagements.granted() + 1);
        let open = self
            .book
            .end_offer(id, Some(next), self.rules.ended_offers_max);
        let offer = open.offer;
        let engagement = self.engagements.add(Engagement {
            offer: id,
            requester: offer.requester,
            worker: terms.worker,
            requester_key,
            worker_key,
            requester_polo: self.directory.polo(offer.requester),
            worker_polo: self.directory.polo(terms.worker),
            gate,
            tasks: offer.tasks,
            concurrency: offer.concurrency.min(terms.credits),
            offered_at_ms: open.offered_at_ms,
            granted_at_ms: at_ms,
            expires_at_ms: at_ms + u64::from(offer.duration_s) * 1_000,
            skill: offer.skill,
            receipt: None,
            moved_requester: 0,
            moved_worker: 0,
            released: None,
        });
        debug_assert_eq!(engagement, next, "ids are given in the order of the log");
        self.directory
            .account(offer.requester)
            .requested_engagements += 1;
        self.directory.account(terms.worker).worked_engagements += 1;
        Ok(Outcome::Granted {
            engagement,
            repeated: false,
        })
    }

    /// Whether `worker` may take `offer` here and now.
    fn judge_accept(&self, at_ms: u64, worker: NodeId, offer: &Offer) -> Result<Gate, Refused> {
        if worker == offer.requester {
            return Err(Refused::new(
                Why::Invalid,
                format!("node {worker} cannot accept its own offer: work under another identity"),
            ));
        }
        let Some(lease) = self.book.lease(worker, at_ms) else {
            return Err(Refused::new(
                Why::Invalid,
                format!(
                    "node {worker} advertises nothing now: advertise {} first",
                    offer.skill
                ),
            ));
        };
        if !Book::suits(&self.directory, lease, offer) {
            return Err(Refused::new(
                Why::Invalid,
                format!(
                    "node {worker} does not suit offer {}: skill {}, {} filters, min_polo {}",
                    offer.offer,
                    offer.skill,
                    offer.filters.len(),
                    offer.min_polo
                ),
            ));
        }
        book::gate(
            &self.directory,
            &self.trust,
            lease,
            offer.requester,
            &offer.skill,
        )
        .map_err(|polo_needed| {
            let requester_polo = self.directory.polo(offer.requester);
            Refused {
                why: Why::Gate,
                reason: format!(
                    "the requester's polo is {requester_polo} and node {worker}'s is {}: \
                         {polo_needed} would do, or a wider accept-from of the worker",
                    self.directory.polo(worker)
                ),
                diagnosis: Some(Box::new(Diagnosis {
                    requester_polo,
                    capable: 1,
                    above_gate: 1,
                    polo_needed: Some(polo_needed),
                    ..Diagnosis::default()
                })),
            }
        })
    }

    fn expire_offer(&mut self, at_ms: u64, id: OfferId) -> Result<Outcome, Refused> {
        match self.book.offer(id) {
            Some(open) if at_ms >= open.due_at_ms => {}
            _ => {
                return Err(Refused::new(
                    Why::NotFound,
                    format!("offer {id} is not open, or not yet due"),
                ));
            }
        }
        self.advance(at_ms);
        let open = self.book.end_offer(id, None, self.rules.ended_offers_max);
        let requester = open.offer.requester;
        let moved = if open.free {
            0
        } else {
            polo::deltas(self.rules.polo_policy, Occasion::OfferExpired).requester
        };
        let account = self.directory.account(requester);
        let before = account.polo;
        account.polo = before.saturating_add(moved);
        account.expired_offers += 1;
        Ok(Outcome::OfferExpired {
            requester,
            polo: (before, account.polo),
        })
    }
}
