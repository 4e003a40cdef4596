//! Who a peer is and where: from grants, from the registry, or from memory while it is away.

use std::net::SocketAddr;

use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::NodeId;

use super::engagements::Moment;
use super::handle::Respond;
use super::pilot::{PilotAsk, PilotReply};
use super::plane::Plane;
use super::vocabulary::Command;
use crate::node::NodeError;

/// Nodes whose key and endpoint are remembered for when the registry is away.
const DIRECTORY_MAX: usize = 4_096;
/// Reports of trust whose answer is awaited.
const TRUSTS_MAX: usize = 1_024;

impl Plane {
    /// Reports mutual trust with a node.
    pub(crate) fn trust(&mut self, peer: NodeId, respond: Respond<()>, at: Moment) {
        if self.trusts.len() >= TRUSTS_MAX {
            respond(Err(NodeError(format!(
                "{TRUSTS_MAX} reports of trust wait for the registry, the limit; try later"
            ))));
            return;
        }
        self.trusts.push((peer, respond));
        self.link.ask_pilot(PilotAsk::Trust(peer), at.now);
        self.digest(at);
    }

    /// Remembers where a node is and tells its worker.
    pub(crate) fn introduce(&mut self, node: NodeId, key: PublicKey, endpoint: Option<SocketAddr>) {
        if self.directory.len() >= DIRECTORY_MAX && !self.directory.contains_key(&node) {
            // Any one may go: it costs a question to the registry when it is wanted again.
            self.directory.pop_first();
        }
        self.directory.insert(node, (key, endpoint));
        self.command(
            node,
            Command::Peer {
                node,
                key: Some(key),
                endpoint,
            },
        );
    }

    /// A worker wants a node's key: from what we know, or from the registry.
    pub(crate) fn peer_wanted(&mut self, node: NodeId, at: Moment) {
        if node == self.node {
            self.command(
                node,
                Command::Peer {
                    node,
                    key: None,
                    endpoint: None,
                },
            );
            return;
        }
        let known = self.directory.get(&node).copied();
        // A grant's word, or an earlier lookup's, is enough while the registry is away.
        if let Some((key, endpoint)) = known {
            self.command(
                node,
                Command::Peer {
                    node,
                    key: Some(key),
                    endpoint,
                },
            );
            return;
        }
        if self.looking_up.len() < DIRECTORY_MAX && self.looking_up.insert(node) {
            self.link.ask_pilot(PilotAsk::Lookup(node), at.now);
            self.digest(at);
        }
    }

    /// A reply on the Pilot connection.
    pub(crate) fn pilot(&mut self, ask: PilotAsk, reply: Result<PilotReply, String>, at: Moment) {
        match ask {
            PilotAsk::Lookup(node) => {
                self.looking_up.remove(&node);
                match reply {
                    Ok(PilotReply::Found { key, endpoint }) => {
                        self.introduce(node, key, endpoint);
                        if endpoint.is_none() {
                            self.link.ask_pilot(PilotAsk::Resolve(node), at.now);
                        }
                    }
                    Ok(PilotReply::Refused(_)) => {
                        self.count("peers_unknown");
                        self.command(
                            node,
                            Command::Peer {
                                node,
                                key: None,
                                endpoint: None,
                            },
                        );
                    }
                    // The worker asks again while it is wanted.
                    Ok(_) | Err(_) => self.count("lookups_failed"),
                }
            }
            PilotAsk::Resolve(node) => match (reply, self.directory.get(&node)) {
                (Ok(PilotReply::Endpoint(endpoint)), Some((key, _))) => {
                    self.introduce(node, *key, Some(endpoint));
                }
                // A private node that does not trust us: it has to come to us.
                _ => self.count("endpoints_hidden"),
            },
            PilotAsk::Trust(node) => {
                let Some(index) = self.trusts.iter().position(|(peer, _)| *peer == node) else {
                    return;
                };
                let (_, respond) = self.trusts.remove(index);
                respond(match reply {
                    Ok(PilotReply::Done) => Ok(()),
                    Ok(PilotReply::Refused(why) | PilotReply::Unreadable(why)) => {
                        Err(NodeError(format!("trust with node {node}: {why}")))
                    }
                    Ok(other) => Err(NodeError(format!("trust with node {node}: {other:?}"))),
                    Err(why) => Err(NodeError(format!("trust with node {node}: {why}"))),
                });
            }
            PilotAsk::Register
            | PilotAsk::Visibility
            | PilotAsk::Hostname
            | PilotAsk::Heartbeat => {}
        }
    }
}
