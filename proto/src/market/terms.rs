//! What a worker advertises, what a requester offers, and what a worker accepts.

use core::fmt;
use core::str::FromStr;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Canonical;
use crate::ids::{NodeId, OfferId};
use crate::wire::limits::SKILL_LEN_MAX;

/// Most keys in one capability map.
pub const CAPABILITIES_MAX: usize = 32;
/// Longest capability key, in bytes.
pub const CAPABILITY_KEY_LEN_MAX: usize = 64;
/// Longest capability value, in bytes.
pub const CAPABILITY_VALUE_LEN_MAX: usize = 1_024;
/// Most filters in one offer or query.
pub const FILTERS_MAX: usize = 16;
/// Longest time an offer may wait for an accept, in milliseconds.
pub const ACCEPT_DEADLINE_MS_MAX: u32 = 300_000;
/// Longest engagement, in seconds.
pub const DURATION_S_MAX: u32 = 86_400;

/// Whom a worker serves beyond the polo gate. It can only widen.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum AcceptFrom {
    /// Requesters whose polo is at least the worker's.
    #[default]
    Gate,
    /// Also peers in mutual Pilot trust with the worker.
    Trusted,
    /// Also anyone with at least this polo.
    MinPolo(i64),
    /// Anyone.
    Anyone,
}

impl fmt::Display for AcceptFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AcceptFrom::Gate => f.write_str("gate"),
            AcceptFrom::Trusted => f.write_str("trusted"),
            AcceptFrom::MinPolo(polo) => write!(f, "min-polo={polo}"),
            AcceptFrom::Anyone => f.write_str("anyone"),
        }
    }
}

impl FromStr for AcceptFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gate" => Ok(AcceptFrom::Gate),
            "trusted" => Ok(AcceptFrom::Trusted),
            "anyone" => Ok(AcceptFrom::Anyone),
            _ => text
                .strip_prefix("min-polo=")
                .and_then(|polo| polo.parse().ok())
                .map(AcceptFrom::MinPolo)
                .ok_or_else(|| format!("{text:?} is none of gate, trusted, min-polo=N, anyone")),
        }
    }
}

/// One condition of discovery: the capability `key` must hold `value`. A capability whose value is
/// a comma list holds each of its members; members are compared without surrounding blanks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Filter {
    /// The capability's key: `skills`, `languages`, `model`, or any other.
    pub key: String,
    /// The value or list member it must hold.
    pub value: String,
}

impl Filter {
    /// Whether `capabilities` satisfies this filter.
    pub fn matches(&self, capabilities: &BTreeMap<String, String>) -> bool {
        capabilities.get(&self.key).is_some_and(|value| {
            value == &self.value || value.split(',').any(|member| member.trim() == self.value)
        })
    }
}

impl FromStr for Filter {
    type Err = String;

    /// Reads `key=value`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok(Filter {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(format!("{text:?} is not key=value, as in skills=echo")),
        }
    }
}

/// Whether `skill` may name a skill: 1 to 64 bytes of `[a-z0-9._-]`.
pub fn is_skill_name(skill: &str) -> bool {
    !skill.is_empty()
        && skill.len() <= SKILL_LEN_MAX
        && skill
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

/// What a worker says of itself. Soft state at the registry: it lapses `lease_s` after the last
/// advertisement, and a later `sequence` replaces an earlier one whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advertisement {
    /// The node that advertises.
    pub node: NodeId,
    /// Greater than that of every earlier advertisement: milliseconds since the Unix epoch.
    pub sequence: u64,
    /// Whether it wants tasks now.
    pub task_ready: bool,
    /// What it can do. `skills` is a comma list of skill names.
    pub capabilities: BTreeMap<String, String>,
    /// Whom it serves, by skill; a skill that is not listed is served by the gate.
    pub accept_from: BTreeMap<String, AcceptFrom>,
    /// Seconds for which this holds.
    pub lease_s: u32,
}

impl Advertisement {
    /// The bytes its node signs.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut canonical = Canonical::new("ramjet advertisement 1")
            .u32(self.node.0)
            .u64(self.sequence)
            .u8(u8::from(self.task_ready))
            .u32(self.lease_s)
            .u32(u32::try_from(self.capabilities.len()).unwrap_or(u32::MAX));
        for (key, value) in &self.capabilities {
            canonical = canonical.text(key).text(value);
        }
        for (skill, accept_from) in &self.accept_from {
            canonical = canonical.text(skill).text(&accept_from.to_string());
        }
        canonical.finish()
    }

    /// The skills in the `skills` capability.
    pub fn skills(&self) -> impl Iterator<Item = &str> {
        self.capabilities
            .get("skills")
            .into_iter()
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .filter(|skill| !skill.is_empty())
    }

    /// What is wrong with it, if anything: the field, its value and the bound.
    pub fn refusal(&self) -> Option<String> {
        if self.capabilities.len() > CAPABILITIES_MAX {
            return Some(format!(
                "capabilities: {} keys, at most {CAPABILITIES_MAX}",
                self.capabilities.len()
            ));
        }
        for (key, value) in &self.capabilities {
            if key.is_empty() || key.len() > CAPABILITY_KEY_LEN_MAX {
                return Some(format!(
                    "capability key of {} bytes, must be 1 to {CAPABILITY_KEY_LEN_MAX}",
                    key.len()
                ));
            }
            if value.len() > CAPABILITY_VALUE_LEN_MAX {
                return Some(format!(
                    "capability {key}: {} bytes, at most {CAPABILITY_VALUE_LEN_MAX}",
                    value.len()
                ));
            }
        }
        if let Some(skill) = self.skills().find(|skill| !is_skill_name(skill)) {
            return Some(format!(
                "skill {skill:?} must be 1 to {SKILL_LEN_MAX} bytes of [a-z0-9._-]"
            ));
        }
        if let Some(skill) = self.accept_from.keys().find(|skill| !is_skill_name(skill)) {
            return Some(format!(
                "accept_from names {skill:?}, which is no skill name"
            ));
        }
        None
    }
}

/// What a requester wants: an engagement of so many tasks of one skill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Drawn at random by the requester.
    pub offer: OfferId,
    /// Who offers.
    pub requester: NodeId,
    /// The skill wanted.
    pub skill: String,
    /// Further conditions on the worker's capabilities.
    pub filters: Vec<Filter>,
    /// Least polo of the worker.
    pub min_polo: i64,
    /// Most tasks the engagement may carry, from 1.
    pub tasks: u64,
    /// Tasks outstanding at a time, from 1 to the slots of a channel.
    pub concurrency: u32,
    /// How long the engagement may last, in seconds.
    pub duration_s: u32,
    /// How long the offer waits for an accept, in milliseconds; then it expires and costs 1.
    pub accept_deadline_ms: u32,
}

impl Offer {
    /// The bytes its requester signs.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut canonical = Canonical::new("ramjet offer 1")
            .u64(self.offer.0)
            .u32(self.requester.0)
            .text(&self.skill)
            .i64(self.min_polo)
            .u64(self.tasks)
            .u32(self.concurrency)
            .u32(self.duration_s)
            .u32(self.accept_deadline_ms)
            .u32(u32::try_from(self.filters.len()).unwrap_or(u32::MAX));
        for filter in &self.filters {
            canonical = canonical.text(&filter.key).text(&filter.value);
        }
        canonical.finish()
    }

    /// What is wrong with it, if anything: the field, its value and the bound.
    pub fn refusal(&self) -> Option<String> {
        let slots = crate::wire::limits::SLOTS_PER_CHANNEL_MAX;
        if !is_skill_name(&self.skill) {
            return Some(format!(
                "skill {:?} must be 1 to {SKILL_LEN_MAX} bytes of [a-z0-9._-]",
                self.skill
            ));
        }
        if self.filters.len() > FILTERS_MAX {
            return Some(format!(
                "filters: {}, at most {FILTERS_MAX}",
                self.filters.len()
            ));
        }
        if self.tasks == 0 {
            return Some("tasks: 0, must be at least 1".to_owned());
        }
        if self.concurrency == 0 || self.concurrency as usize > slots {
            return Some(format!(
                "concurrency: {}, must be 1 to {slots}",
                self.concurrency
            ));
        }
        if self.duration_s == 0 || self.duration_s > DURATION_S_MAX {
            return Some(format!(
                "duration_s: {}, must be 1 to {DURATION_S_MAX}",
                self.duration_s
            ));
        }
        if self.accept_deadline_ms == 0 || self.accept_deadline_ms > ACCEPT_DEADLINE_MS_MAX {
            return Some(format!(
                "accept_deadline_ms: {}, must be 1 to {ACCEPT_DEADLINE_MS_MAX}",
                self.accept_deadline_ms
            ));
        }
        None
    }
}

/// What a worker signs to take an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptTerms {
    /// The offer.
    pub offer: OfferId,
    /// The worker.
    pub worker: NodeId,
    /// Slots it grants, from 1; the grant holds the smaller of this and the offer's concurrency.
    pub credits: u32,
}

impl AcceptTerms {
    /// The bytes the worker signs.
    pub fn signed_bytes(&self) -> Vec<u8> {
        Canonical::new("ramjet accept 1")
            .u64(self.offer.0)
            .u32(self.worker.0)
            .u32(self.credits)
            .finish()
    }
}
