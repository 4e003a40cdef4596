//! The nodes: who they are, where they were last seen, what they are called, and their polo.
//!
//! Invariants: a key names one node and a node has one key; a hostname names one node; a node that
//! deregistered keeps its id, key, polo and settings, and gets them back when it registers again.
//! Identity is the key alone: the owner is a label and takes nothing over.

use std::collections::BTreeMap;

use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::NodeId;
use serde::{Deserialize, Serialize};

use crate::address::is_label;
use crate::command::{Outcome, Refused, Registration, Why};

/// Tags of one node.
pub const TAGS_MAX: usize = 10;
/// Longest tag, in bytes.
pub const TAG_LEN_MAX: usize = 32;
/// Longest hostname, in bytes.
pub const HOSTNAME_LEN_MAX: usize = 63;
/// Longest owner label or version text, in bytes.
pub const LABEL_LEN_MAX: usize = 256;
/// Addresses on its own network that are kept of a node: a host with containers names dozens, and
/// any few of them say whether two nodes share a network.
pub const LAN_ADDRS_MAX: usize = 8;
const HOSTNAMES_RESERVED: [&str; 3] = ["backbone", "broadcast", "localhost"];

/// A registered node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its identity.
    pub key: PublicKey,
    /// Whether it has proven its key at a registration; from then on it must at each.
    pub signed: bool,
    /// Whether it is here; a node that deregistered is not found.
    pub registered: bool,
    /// `ip:port`.
    pub endpoint: String,
    /// Addresses on its own network.
    pub lan_addrs: Vec<String>,
    /// Whether it can only be reached over the beacon.
    pub relay_only: bool,
    /// A label.
    pub owner: String,
    /// Its software.
    pub version: String,
    /// Its name, or empty.
    pub hostname: String,
    /// Whether anyone may resolve it.
    pub public: bool,
    /// Its tags.
    pub tags: Vec<String>,
    /// Pilot's flag of a node that serves tasks.
    pub task_exec: bool,
    /// When its key was set.
    pub key_set_at_ms: u64,
    /// Its reputation.
    pub polo: i64,
    /// Engagements it worked in.
    pub worked_engagements: u64,
    /// Accepted results in them.
    pub worked_results: u64,
    /// Engagements it requested.
    pub requested_engagements: u64,
    /// Offers of its own that expired.
    pub expired_offers: u64,
}

/// All nodes, and the indices over them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    nodes: BTreeMap<NodeId, Node>,
    /// The last id given.
    last: u32,
    #[serde(skip)]
    keys: BTreeMap<PublicKey, NodeId>,
    #[serde(skip)]
    hostnames: BTreeMap<String, NodeId>,
}

impl Directory {
    /// Builds the indices after the tables were read.
    pub(crate) fn rebuild(&mut self) {
        self.keys = self
            .nodes
            .iter()
            .map(|(&id, node)| (node.key, id))
            .collect();
        self.hostnames = self
            .nodes
            .iter()
            .filter(|(_, node)| !node.hostname.is_empty())
            .map(|(&id, node)| (node.hostname.clone(), id))
            .collect();
    }

    /// A node that is here.
    ///
    /// # Errors
    /// [`Why::NotFound`].
    pub fn node(&self, id: NodeId) -> Result<&Node, Refused> {
        self.nodes
            .get(&id)
            .filter(|node| node.registered)
            .ok_or_else(|| Refused::no_node(id))
    }

    /// A node that was here at some time: for accounts that outlive its presence.
    pub(crate) fn account(&mut self, id: NodeId) -> &mut Node {
        self.nodes
            .get_mut(&id)
            .expect("engagements and offers name nodes, and nodes are kept")
    }

    pub(crate) fn polo(&self, id: NodeId) -> i64 {
        self.nodes.get(&id).map_or(0, |node| node.polo)
    }

    /// The node of a key.
    pub fn by_key(&self, key: &PublicKey) -> Option<NodeId> {
        self.keys.get(key).copied()
    }

    /// The node of a hostname, if it is here.
    pub fn by_hostname(&self, hostname: &str) -> Option<NodeId> {
        let id = *self.hostnames.get(hostname)?;
        self.nodes[&id].registered.then_some(id)
    }

    /// All nodes that are here, by id.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes
            .iter()
            .filter(|(_, node)| node.registered)
            .map(|(&id, node)| (id, node))
    }

    /// Table rows.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node was ever here.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What registering would change; `None` if nothing, with the id it has.
    pub(crate) fn check_register(
        &self,
        registration: &Registration,
        nodes_max: usize,
    ) -> Result<(), Refused> {
        for (name, text) in [
            ("owner", &registration.owner),
            ("version", &registration.version),
        ] {
            if text.len() > LABEL_LEN_MAX {
                return Err(Refused::new(
                    Why::Invalid,
                    format!(
                        "{name} too long: {} bytes, at most {LABEL_LEN_MAX}",
                        text.len()
                    ),
                ));
            }
        }
        let long = registration
            .lan_addrs
            .iter()
            .any(|address| address.len() > LABEL_LEN_MAX);
        if long {
            return Err(Refused::new(
                Why::Invalid,
                format!("lan_addrs too long: at most {LABEL_LEN_MAX} bytes each"),
            ));
        }
        match self.by_key(&registration.key) {
            Some(id) if self.nodes[&id].signed && !registration.signed => Err(Refused::new(
                Why::Signature,
                format!(
                    "register: a signature is required, because the key of node {id} has \
                     registered with one before"
                ),
            )),
            None if self.nodes.len() >= nodes_max || self.last == u32::MAX => Err(Refused::new(
                Why::Limited,
                format!("too many nodes: {}, at most {nodes_max}", self.nodes.len()),
            )),
            _ => Ok(()),
        }
    }

    /// Whether registering again would leave everything as it is.
    pub(crate) fn is_current(&self, registration: &Registration) -> bool {
        let Some(id) = self.by_key(&registration.key) else {
            return false;
        };
        let node = &self.nodes[&id];
        node.registered
            && node.signed == registration.signed
            && node.endpoint == registration.endpoint
            && node.lan_addrs == registration.lan_addrs
            && node.relay_only == registration.relay_only
            && node.version == registration.version
            && (registration.owner.is_empty() || !node.owner.is_empty())
            && (registration.hostname.is_empty() || node.hostname == registration.hostname)
    }

    pub(crate) fn register(&mut self, registration: &Registration, at_ms: u64) -> Outcome {
        let id = self.by_key(&registration.key).unwrap_or_else(|| {
            self.last += 1;
            NodeId(self.last)
        });
        let node = self.nodes.entry(id).or_insert_with(|| Node {
            key: registration.key,
            signed: false,
            registered: true,
            endpoint: String::new(),
            lan_addrs: Vec::new(),
            relay_only: false,
            owner: String::new(),
            version: String::new(),
            hostname: String::new(),
            public: false,
            tags: Vec::new(),
            task_exec: false,
            key_set_at_ms: at_ms,
            polo: 0,
            worked_engagements: 0,
            worked_results: 0,
            requested_engagements: 0,
            expired_offers: 0,
        });
        node.registered = true;
        node.signed |= registration.signed;
        node.endpoint.clone_from(&registration.endpoint);
        node.lan_addrs.clone_from(&registration.lan_addrs);
        node.relay_only = registration.relay_only;
        node.version.clone_from(&registration.version);
        if node.owner.is_empty() {
            node.owner.clone_from(&registration.owner);
        }
        self.keys.insert(registration.key, id);
        let hostname_error = if registration.hostname.is_empty() {
            None
        } else {
            match self.check_hostname(id, &registration.hostname) {
                Ok(()) => {
                    self.set_hostname(id, &registration.hostname);
                    None
                }
                Err(refused) => Some(refused.reason),
            }
        };
        Outcome::Registered {
            node: id,
            hostname_error,
        }
    }

    pub(crate) fn check_hostname(&self, id: NodeId, hostname: &str) -> Result<(), Refused> {
        self.node(id)?;
        if hostname.is_empty() {
            return Ok(());
        }
        if !is_label(hostname, HOSTNAME_LEN_MAX) || HOSTNAMES_RESERVED.contains(&hostname) {
            return Err(Refused::new(
                Why::Invalid,
                format!(
                    "invalid hostname {hostname:?}: 1 to {HOSTNAME_LEN_MAX} lower-case letters and \
                     digits with inner hyphens, none of {}",
                    HOSTNAMES_RESERVED.join(", ")
                ),
            ));
        }
        match self.hostnames.get(hostname) {
            Some(&holder) if holder != id => Err(Refused::new(
                Why::Taken,
                format!("hostname {hostname:?} is already taken by node {holder}"),
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn set_hostname(&mut self, id: NodeId, hostname: &str) {
        let node = self.nodes.get_mut(&id).expect("checked by check_hostname");
        self.hostnames.remove(&node.hostname);
        hostname.clone_into(&mut node.hostname);
        if !hostname.is_empty() {
            self.hostnames.insert(hostname.to_owned(), id);
        }
    }

    pub(crate) fn check_key(&self, id: NodeId, key: &PublicKey) -> Result<(), Refused> {
        self.node(id)?;
        match self.by_key(key) {
            Some(holder) if holder != id => Err(Refused::new(
                Why::Taken,
                format!("invalid new_public_key: it already belongs to node {holder}"),
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn rotate_key(&mut self, id: NodeId, key: PublicKey, at_ms: u64) {
        let node = self.nodes.get_mut(&id).expect("checked by check_key");
        self.keys.remove(&node.key);
        node.key = key;
        node.key_set_at_ms = at_ms;
        self.keys.insert(key, id);
    }

    pub(crate) fn deregister(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.registered = false;
        }
    }
}

/// The tags without their leading `#`.
///
/// # Errors
/// [`Why::Invalid`]: more than [`TAGS_MAX`], or one that is no label.
pub fn check_tags(tags: &[String]) -> Result<Vec<String>, Refused> {
    if tags.len() > TAGS_MAX {
        return Err(Refused::new(
            Why::Invalid,
            format!("too many tags: {}, at most {TAGS_MAX}", tags.len()),
        ));
    }
    tags.iter()
        .map(|tag| {
            let tag = tag.strip_prefix('#').unwrap_or(tag);
            if is_label(tag, TAG_LEN_MAX) {
                return Ok(tag.to_owned());
            }
            Err(Refused::new(
                Why::Invalid,
                format!(
                    "invalid tag {tag:?}: 1 to {TAG_LEN_MAX} lower-case letters and digits with \
                     inner hyphens"
                ),
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(seed: u8, signed: bool) -> Registration {
        Registration {
            key: PublicKey([seed; 32]),
            signed,
            endpoint: format!("127.0.0.1:{}", 4_000 + u16::from(seed)),
            owner: "someone@example".to_owned(),
            hostname: String::new(),
            version: String::new(),
            lan_addrs: Vec::new(),
            relay_only: false,
        }
    }

    fn register(directory: &mut Directory, registration: &Registration) -> NodeId {
        assert_eq!(directory.check_register(registration, 10), Ok(()));
        match directory.register(registration, 1) {
            Outcome::Registered { node, .. } => node,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_key_is_the_identity_and_the_owner_takes_nothing_over() {
        let mut directory = Directory::default();
        let first = register(&mut directory, &registration(1, false));
        let second = register(&mut directory, &registration(2, false));
        assert_ne!(
            first, second,
            "the same owner with another key is another node"
        );
        assert_eq!(register(&mut directory, &registration(1, false)), first);
        assert_eq!(directory.node(first).expect("here").key, PublicKey([1; 32]));
    }

    #[test]
    fn a_key_that_signed_once_must_sign_again() {
        let mut directory = Directory::default();
        register(&mut directory, &registration(1, true));
        let refused = directory.check_register(&registration(1, false), 10);
        assert_eq!(refused.expect_err("the ratchet holds").why, Why::Signature);
    }

    #[test]
    fn polo_and_settings_outlive_a_deregistration() {
        let mut directory = Directory::default();
        let id = register(&mut directory, &registration(1, true));
        directory.account(id).polo = 7;
        directory.set_hostname(id, "gpu");
        directory.deregister(id);
        assert_eq!(
            directory.node(id).expect_err("gone").reason,
            "node 1: node not found"
        );
        assert_eq!(directory.by_hostname("gpu"), None);
        assert_eq!(register(&mut directory, &registration(1, true)), id);
        assert_eq!(directory.node(id).expect("back").polo, 7);
        assert_eq!(directory.by_hostname("gpu"), Some(id));
    }

    #[test]
    fn a_hostname_names_one_node() {
        let mut directory = Directory::default();
        let first = register(&mut directory, &registration(1, true));
        let second = register(&mut directory, &registration(2, true));
        directory.set_hostname(first, "gpu");
        assert_eq!(directory.check_hostname(first, "gpu"), Ok(()));
        assert_eq!(
            directory
                .check_hostname(second, "gpu")
                .expect_err("taken")
                .why,
            Why::Taken
        );
        assert!(directory.check_hostname(second, "localhost").is_err());
        directory.set_hostname(first, "");
        assert_eq!(directory.check_hostname(second, "gpu"), Ok(()));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut directory = Directory::default();
        for seed in 0..10 {
            register(&mut directory, &registration(seed, true));
        }
        let refused = directory.check_register(&registration(10, true), 10);
        assert_eq!(refused.expect_err("full").why, Why::Limited);
        assert_eq!(directory.check_register(&registration(9, true), 10), Ok(()));
    }
}
