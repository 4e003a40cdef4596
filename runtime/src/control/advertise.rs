//! What a node says of itself, and when it says it again.
//!
//! An advertisement replaces the former whole, and lapses after its lease; it is renewed after a
//! third of it, and at once when something changed or the registry came back.

use std::collections::BTreeMap;
use std::time::Duration;

use ramjet_proto::ids::NodeId;
use ramjet_proto::market::{AcceptFrom, Advertisement};
use ramjet_proto::time::Time;

use super::engagements::Moment;
use super::externals::Offered;
use crate::handler::Skill;

/// Pause after an advertisement that the registry did not take.
const RETRY: Duration = Duration::from_secs(1);

/// Who says what the node can do, beside its operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Speaker {
    /// A program at the driver socket, as the driver numbers it.
    Program(u32),
    /// The agents of a place of the port.
    Agents(usize),
}

/// What somebody can do: capabilities beside `skills`, and skills with their policies.
#[derive(Clone, Debug, Default)]
struct Said {
    capabilities: BTreeMap<String, String>,
    skills: Vec<(String, AcceptFrom)>,
}

/// The advertisement of one node.
pub(crate) struct Advertiser {
    own: Said,
    /// What programs of the host and agents say.
    external: BTreeMap<Speaker, Said>,
    /// All of it together.
    capabilities: BTreeMap<String, String>,
    accept_from: BTreeMap<String, AcceptFrom>,
    lease_s: u32,
    sequence: u64,
    due_at: Time,
    /// The registry holds capabilities of this node.
    has_spoken: bool,
}

impl Advertiser {
    /// The configured capabilities, and `skills` from the skills themselves.
    pub(crate) fn new(
        skills: &[Skill],
        capabilities: &BTreeMap<String, String>,
        lease_s: u32,
    ) -> Self {
        let own = Said {
            capabilities: capabilities.clone(),
            skills: skills
                .iter()
                .map(|skill| (skill.name.clone(), skill.accept_from))
                .collect(),
        };
        let mut advertiser = Advertiser {
            own,
            external: BTreeMap::new(),
            capabilities: BTreeMap::new(),
            accept_from: BTreeMap::new(),
            lease_s,
            sequence: 0,
            due_at: Time::ZERO,
            has_spoken: false,
        };
        advertiser.join();
        advertiser
    }

    /// A program of the host says what it can do, or, without anything, no more.
    ///
    /// # Errors
    /// What all of it together would break, and the bound; then nothing has changed.
    pub(crate) fn external(&mut self, offered: Offered) -> Result<(), String> {
        let Offered {
            speaker,
            capabilities,
            skills,
        } = offered;
        let said = Said {
            capabilities,
            skills,
        };
        let before = self.external.clone();
        if said.capabilities.is_empty() && said.skills.is_empty() {
            self.external.remove(&speaker);
        } else {
            self.external.insert(speaker, said);
        }
        self.join();
        match self.refusal() {
            None => Ok(()),
            Some(refusal) => {
                self.external = before;
                self.join();
                Err(refusal)
            }
        }
    }

    /// The operator changes the node's own capabilities, and whom its own skills serve; a skill that
    /// is not named keeps its policy.
    ///
    /// # Errors
    /// As [`Self::external`].
    pub(crate) fn configure(
        &mut self,
        capabilities: BTreeMap<String, String>,
        accept_from: &BTreeMap<String, AcceptFrom>,
    ) -> Result<(), String> {
        let before = self.own.clone();
        self.own.capabilities = capabilities;
        for (name, policy) in &mut self.own.skills {
            if let Some(changed) = accept_from.get(name) {
                *policy = *changed;
            }
        }
        self.join();
        match self.refusal() {
            None => Ok(()),
            Some(refusal) => {
                self.own = before;
                self.join();
                Err(refusal)
            }
        }
    }

    /// Puts together what everybody says. What the operator configured stands.
    fn join(&mut self) {
        let all = || self.external.values().chain([&self.own]);
        let mut capabilities: BTreeMap<String, String> =
            all().flat_map(|said| said.capabilities.clone()).collect();
        let skills = || [&self.own].into_iter().chain(self.external.values());
        let names: Vec<&str> = skills()
            .flat_map(|said| said.skills.iter().map(|(name, _)| name.as_str()))
            .collect();
        if !names.is_empty() {
            capabilities.insert("skills".to_owned(), names.join(","));
        }
        self.accept_from = skills().flat_map(|said| said.skills.clone()).collect();
        self.capabilities = capabilities;
    }

    /// What is wrong with what it would say.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.advertisement(NodeId(0), false).refusal()
    }

    fn advertisement(&self, node: NodeId, task_ready: bool) -> Advertisement {
        Advertisement {
            node,
            sequence: self.sequence,
            task_ready,
            capabilities: self.capabilities.clone(),
            accept_from: self.accept_from.clone(),
            lease_s: self.lease_s,
        }
    }

    /// The advertisement to send now, if one is due. A node without capabilities has nothing to
    /// say and says nothing, but once: that it has none any more.
    pub(crate) fn take_due(
        &mut self,
        node: NodeId,
        task_ready: bool,
        at: Moment,
    ) -> Option<Advertisement> {
        let silent = self.capabilities.is_empty();
        if at.now < self.due_at || silent && !self.has_spoken {
            return None;
        }
        self.has_spoken = !silent;
        // A clock that was set back must not make the next one look older.
        self.sequence = at.unix_ms.max(self.sequence + 1);
        self.due_at = at.now + self.renewal(self.lease_s);
        Some(self.advertisement(node, task_ready))
    }

    /// Something changed, or the registry is back.
    pub(crate) fn hurry(&mut self, now: Time) {
        self.due_at = now;
    }

    /// The registry took it for so long.
    pub(crate) fn taken(&mut self, lease_s: u32, now: Time) {
        self.due_at = now + self.renewal(lease_s);
    }

    /// The registry did not take it.
    pub(crate) fn not_taken(&mut self, now: Time) {
        self.due_at = now + RETRY;
    }

    fn renewal(&self, lease_s: u32) -> Duration {
        (Duration::from_secs(u64::from(lease_s)) / 3).max(RETRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, unix_ms: u64) -> Moment {
        Moment {
            now: Time::from_nanos(seconds * 1_000_000_000),
            unix_ms,
        }
    }

    #[test]
    fn it_is_renewed_after_a_third_and_its_sequence_never_goes_back() {
        let capabilities = BTreeMap::from([("model".to_owned(), "m".to_owned())]);
        let mut advertiser = Advertiser::new(&[], &capabilities, 60);
        let first = advertiser
            .take_due(NodeId(3), true, at(0, 1_000))
            .expect("due at once");
        assert_eq!(
            (first.node, first.task_ready, first.sequence),
            (NodeId(3), true, 1_000)
        );
        assert_eq!(advertiser.take_due(NodeId(3), true, at(19, 20_000)), None);
        let second = advertiser
            .take_due(NodeId(3), true, at(20, 500))
            .expect("after a third");
        assert_eq!(second.sequence, 1_001);
        advertiser.hurry(at(21, 0).now);
        let third = advertiser
            .take_due(NodeId(3), false, at(21, 600))
            .expect("hurried");
        assert!(!third.task_ready && third.sequence == 1_002);
        let mut silent = Advertiser::new(&[], &BTreeMap::new(), 60);
        assert_eq!(silent.take_due(NodeId(3), true, at(0, 0)), None);
    }
}
