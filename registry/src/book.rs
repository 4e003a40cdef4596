//! The book: what workers advertise, what requesters offer, and which of them match.
//!
//! Everything is ordered: workers are considered by polo from the highest, then by node id; offers
//! by id. Who has a live connection is not known here and comes in as a question.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::Diagnosis;
use ramjet_proto::market::terms::{
    CAPABILITIES_MAX, CAPABILITY_KEY_LEN_MAX, CAPABILITY_VALUE_LEN_MAX,
};
use ramjet_proto::market::{AcceptFrom, Advertisement, Gate, Offer};
use serde::{Deserialize, Serialize};

use crate::command::{Refused, Why};
use crate::config::Rules;
use crate::directory::Directory;
use crate::trust::Trust;

/// Longest lease of an advertisement, in seconds.
pub const LEASE_S_MAX: u32 = 3_600;
/// Workers that are told of one offer, and offers of which one advertisement is told: the first in
/// order; the others stay reachable by a later advertisement.
pub const NOTIFIED_MAX: usize = 1_024;

/// An advertisement and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What was said.
    pub advertisement: Advertisement,
    /// When it lapses.
    pub lapses_at_ms: u64,
}

/// An offer that waits for its accept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenOffer {
    /// What is wanted.
    pub offer: Offer,
    /// When it entered the log.
    pub offered_at_ms: u64,
    /// When it expires.
    pub due_at_ms: u64,
    /// Whether its expiry costs nothing, because the registry was silent while it was open.
    pub free: bool,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedOffer {
    /// Who had offered.
    pub requester: NodeId,
    /// The engagement it became; none if it expired.
    pub engagement: Option<EngagementId>,
}

/// Leases and offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    leases: BTreeMap<NodeId, Lease>,
    offers: BTreeMap<OfferId, OpenOffer>,
    ended: BTreeMap<OfferId, EndedOffer>,
    /// The order in which they ended.
    ended_order: VecDeque<OfferId>,
    #[serde(skip)]
    lapses: BTreeSet<(u64, NodeId)>,
    #[serde(skip)]
    workers: BTreeMap<String, BTreeSet<NodeId>>,
    #[serde(skip)]
    due: BTreeSet<(u64, OfferId)>,
    #[serde(skip)]
    wanted: BTreeMap<String, BTreeSet<OfferId>>,
    #[serde(skip)]
    open_by_requester: BTreeMap<NodeId, usize>,
}

/// Who could take an offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Ready workers within reach: polo from the highest, then node.
    pub reachable: Vec<NodeId>,
    /// Why the others are not.
    pub diagnosis: Diagnosis,
    /// Workers within reach that are not ready now, and may become so.
    pub unready_in_reach: u32,
}

impl Survey {
    /// Whether waiting is pointless: there are ready workers, and the gate keeps all away.
    pub fn gated(&self) -> bool {
        self.reachable.is_empty() && self.unready_in_reach == 0 && self.diagnosis.above_gate > 0
    }
}

/// How `requester` passes the gate of `worker` for `skill`, or the least polo with which it would.
/// One rule for matching and for the accept.
pub fn gate(
    directory: &Directory,
    trust: &Trust,
    lease: &Lease,
    requester: NodeId,
    skill: &str,
) -> Result<Gate, i64> {
    let worker = lease.advertisement.node;
    let (own, asked) = (directory.polo(requester), directory.polo(worker));
    if own >= asked {
        return Ok(Gate::Met);
    }
    match lease
        .advertisement
        .accept_from
        .get(skill)
        .copied()
        .unwrap_or_default()
    {
        AcceptFrom::Anyone => Ok(Gate::Widened),
        AcceptFrom::Trusted if trust.mutual(worker, requester) => Ok(Gate::Widened),
        AcceptFrom::MinPolo(polo) if own >= polo => Ok(Gate::Widened),
        AcceptFrom::MinPolo(polo) => Err(polo.min(asked)),
        AcceptFrom::Gate | AcceptFrom::Trusted => Err(asked),
    }
}

impl Book {
    pub(crate) fn rebuild(&mut self) {
        for (&node, lease) in &self.leases {
            self.lapses.insert((lease.lapses_at_ms, node));
            for skill in lease.advertisement.skills() {
                self.workers
                    .entry(skill.to_owned())
                    .or_default()
                    .insert(node);
            }
        }
        for (&id, open) in &self.offers {
            self.due.insert((open.due_at_ms, id));
            self.wanted
                .entry(open.offer.skill.clone())
                .or_default()
                .insert(id);
            *self
                .open_by_requester
                .entry(open.offer.requester)
                .or_default() += 1;
        }
    }

    /// What a node advertises, while it holds.
    pub fn lease(&self, node: NodeId, at_ms: u64) -> Option<&Lease> {
        self.leases
            .get(&node)
            .filter(|lease| lease.lapses_at_ms > at_ms)
    }

    /// All that holds, by node.
    pub fn leases(&self, at_ms: u64) -> impl Iterator<Item = (NodeId, &Lease)> {
        let held = move |lease: &Lease| lease.lapses_at_ms > at_ms;
        self.leases
            .iter()
            .filter(move |(_, lease)| held(lease))
            .map(|(&node, lease)| (node, lease))
    }

    /// An open offer.
    pub fn offer(&self, id: OfferId) -> Option<&OpenOffer> {
        self.offers.get(&id)
    }

    /// What became of an offer, while that is remembered.
    pub fn ended(&self, id: OfferId) -> Option<&EndedOffer> {
        self.ended.get(&id)
    }

    /// Open offers.
    pub fn open(&self) -> usize {
        self.offers.len()
    }

    /// The next deadline and its offer.
    pub fn next_due(&self) -> Option<(u64, OfferId)> {
        self.due.first().copied()
    }

    /// Table rows, for the pace of snapshots.
    pub(crate) fn rows(&self) -> usize {
        self.leases.len() + self.offers.len() + self.ended.len() / 8
    }

    pub(crate) fn check_advertise(&self, advertisement: &Advertisement) -> Result<(), Refused> {
        if let Some(reason) = advertisement.refusal() {
            return Err(Refused::new(Why::Invalid, reason));
        }
        if advertisement.accept_from.len() > CAPABILITIES_MAX {
            return Err(Refused::new(
                Why::Invalid,
                format!(
                    "accept_from: {} skills, at most {CAPABILITIES_MAX}",
                    advertisement.accept_from.len()
                ),
            ));
        }
        if advertisement.lease_s == 0 || advertisement.lease_s > LEASE_S_MAX {
            return Err(Refused::new(
                Why::Invalid,
                format!(
                    "lease_s: {}, must be 1 to {LEASE_S_MAX}",
                    advertisement.lease_s
                ),
            ));
        }
        match self.leases.get(&advertisement.node) {
            Some(lease) if lease.advertisement.sequence >= advertisement.sequence => {
                Err(Refused::new(
                    Why::Stale,
                    format!(
                        "sequence {} is not above {}, the one on file",
                        advertisement.sequence, lease.advertisement.sequence
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn advertise(&mut self, advertisement: &Advertisement, at_ms: u64) {
        while let Some(&(lapses_at_ms, node)) = self.lapses.first() {
            if lapses_at_ms > at_ms {
                break;
            }
            self.withdraw(node);
        }
        let node = advertisement.node;
        self.withdraw(node);
        let lapses_at_ms = at_ms + u64::from(advertisement.lease_s) * 1_000;
        for skill in advertisement.skills() {
            self.workers
                .entry(skill.to_owned())
                .or_default()
                .insert(node);
        }
        self.lapses.insert((lapses_at_ms, node));
        self.leases.insert(
            node,
            Lease {
                advertisement: advertisement.clone(),
                lapses_at_ms,
            },
        );
    }

    /// Forgets what a node advertised.
    pub(crate) fn withdraw(&mut self, node: NodeId) {
        let Some(lease) = self.leases.remove(&node) else {
            return;
        };
        self.lapses.remove(&(lease.lapses_at_ms, node));
        for skill in lease.advertisement.skills() {
            if let Some(nodes) = self.workers.get_mut(skill) {
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.workers.remove(skill);
                }
            }
        }
    }

    pub(crate) fn check_offer(&self, offer: &Offer, rules: &Rules) -> Result<(), Refused> {
        let long = offer.filters.iter().any(|filter| {
            filter.key.len() > CAPABILITY_KEY_LEN_MAX
                || filter.value.len() > CAPABILITY_VALUE_LEN_MAX
        });
        if let Some(reason) = offer.refusal() {
            return Err(Refused::new(Why::Invalid, reason));
        }
        if long {
            return Err(Refused::new(
                Why::Invalid,
                format!(
                    "a filter is too long: at most {CAPABILITY_KEY_LEN_MAX} bytes of key and \
                     {CAPABILITY_VALUE_LEN_MAX} of value"
                ),
            ));
        }
        let own = self
            .open_by_requester
            .get(&offer.requester)
            .copied()
            .unwrap_or(0);
        for (open, open_max, whose) in [
            (own, rules.offers_per_requester, "of this requester"),
            (self.offers.len(), rules.offers_max, "in all"),
        ] {
            if open >= open_max {
                return Err(Refused::new(
                    Why::Limited,
                    format!("too many open offers {whose}: {open}, at most {open_max}"),
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn open_offer(&mut self, offer: &Offer, at_ms: u64) {
        let due_at_ms = at_ms + u64::from(offer.accept_deadline_ms);
        self.due.insert((due_at_ms, offer.offer));
        self.wanted
            .entry(offer.skill.clone())
            .or_default()
            .insert(offer.offer);
        *self.open_by_requester.entry(offer.requester).or_default() += 1;
        let open = OpenOffer {
            offer: offer.clone(),
            offered_at_ms: at_ms,
            due_at_ms,
            free: false,
        };
        self.offers.insert(offer.offer, open);
    }

    /// Ends an open offer and remembers what became of it.
    pub(crate) fn end_offer(
        &mut self,
        id: OfferId,
        engagement: Option<EngagementId>,
        ended_max: usize,
    ) -> OpenOffer {
        let open = self.offers.remove(&id).expect("the caller found it open");
        self.due.remove(&(open.due_at_ms, id));
        if let Some(offers) = self.wanted.get_mut(&open.offer.skill) {
            offers.remove(&id);
            if offers.is_empty() {
                self.wanted.remove(&open.offer.skill);
            }
        }
        let requester = open.offer.requester;
        let left = self
            .open_by_requester
            .get_mut(&requester)
            .expect("counted when it opened");
        *left -= 1;
        if *left == 0 {
            self.open_by_requester.remove(&requester);
        }
        self.ended.insert(
            id,
            EndedOffer {
                requester,
                engagement,
            },
        );
        self.ended_order.push_back(id);
        while self.ended_order.len() > ended_max {
            if let Some(oldest) = self.ended_order.pop_front() {
                self.ended.remove(&oldest);
            }
        }
        open
    }

    /// Starts the time of every open offer again, free of charge.
    pub(crate) fn interrupt(&mut self, at_ms: u64) {
        self.due.clear();
        for (&id, open) in &mut self.offers {
            open.free = true;
            open.due_at_ms = at_ms + u64::from(open.offer.accept_deadline_ms);
            self.due.insert((open.due_at_ms, id));
        }
    }

    /// Whether a worker may take an offer, but for the gate: it is another node, advertises the
    /// skill, passes the filters and has the polo that is asked.
    pub(crate) fn suits(directory: &Directory, lease: &Lease, offer: &Offer) -> bool {
        Self::is_capable(lease, offer) && directory.polo(lease.advertisement.node) >= offer.min_polo
    }

    fn is_capable(lease: &Lease, offer: &Offer) -> bool {
        let advertisement = &lease.advertisement;
        advertisement.node != offer.requester
            && advertisement.skills().any(|skill| skill == offer.skill)
            && offer
                .filters
                .iter()
                .all(|filter| filter.matches(&advertisement.capabilities))
    }

    /// Who could take `offer` now.
    pub fn survey(
        &self,
        directory: &Directory,
        trust: &Trust,
        offer: &Offer,
        at_ms: u64,
        is_connected: impl Fn(NodeId) -> bool,
    ) -> Survey {
        let mut survey = Survey::default();
        let diagnosis = &mut survey.diagnosis;
        diagnosis.requester_polo = directory.polo(offer.requester);
        let mut reachable = Vec::new();
        for &node in self.workers.get(&offer.skill).into_iter().flatten() {
            let Some(lease) = self.lease(node, at_ms) else {
                continue;
            };
            if !Self::is_capable(lease, offer) || directory.node(node).is_err() {
                continue;
            }
            diagnosis.capable += 1;
            let polo = directory.polo(node);
            let reach = gate(directory, trust, lease, offer.requester, &offer.skill);
            if !lease.advertisement.task_ready || !is_connected(node) {
                diagnosis.not_ready += 1;
                survey.unready_in_reach += u32::from(reach.is_ok() && polo >= offer.min_polo);
            } else if polo < offer.min_polo {
                diagnosis.below_min_polo += 1;
            } else {
                match reach {
                    Ok(_) => reachable.push((core::cmp::Reverse(polo), node)),
                    Err(needed) => {
                        diagnosis.above_gate += 1;
                        let least = diagnosis
                            .polo_needed
                            .map_or(needed, |least| least.min(needed));
                        diagnosis.polo_needed = Some(least);
                    }
                }
            }
        }
        reachable.sort_unstable();
        survey.reachable = reachable.into_iter().map(|(_, node)| node).collect();
        survey
    }

    /// The open offers that `node` could take now, at most [`NOTIFIED_MAX`].
    pub fn offers_for(
        &self,
        directory: &Directory,
        trust: &Trust,
        node: NodeId,
        at_ms: u64,
    ) -> Vec<&OpenOffer> {
        let Some(lease) = self
            .lease(node, at_ms)
            .filter(|lease| lease.advertisement.task_ready)
        else {
            return Vec::new();
        };
        lease
            .advertisement
            .skills()
            .filter_map(|skill| self.wanted.get(skill))
            .flatten()
            .map(|id| &self.offers[id])
            .filter(|open| {
                open.due_at_ms > at_ms
                    && Self::suits(directory, lease, &open.offer)
                    && gate(
                        directory,
                        trust,
                        lease,
                        open.offer.requester,
                        &open.offer.skill,
                    )
                    .is_ok()
            })
            .take(NOTIFIED_MAX)
            .collect()
    }
}
