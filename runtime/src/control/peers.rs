//! Who a peer is and where: from grants, from the registry, or from memory while it is away.

use std::net::SocketAddr;

use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::NodeId;
use serde_json::Value;

use super::engagements::Moment;
use super::handle::Respond;
use super::pilot::{Call, PilotAsk, PilotReply};
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

    /// Passes a call on to the registry.
    pub(crate) fn call(&mut self, call: &Call, respond: Respond<Value>, at: Moment) {
        let number = self.next_call;
        self.next_call += 1;
        self.calls.insert(number, respond);
        self.link.call_pilot(number, call, at.now);
        self.digest(at);
    }

    /// Remembers where a node is and tells its worker. A private node's address, once told, is not
    /// forgotten because a lookup hides it.
    pub(crate) fn introduce(&mut self, node: NodeId, key: PublicKey, endpoint: Option<SocketAddr>) {
        let told = self.directory.get(&node).and_then(|(_, told)| *told);
        let endpoint = endpoint.or(told);
        if self.directory.len() >= DIRECTORY_MAX && !self.directory.contains_key(&node) {
            // Any one may go: it costs a question to the registry when it is wanted again.
            if let Some((forgotten, _)) = self.directory.pop_first() {
                self.fresh.remove(&forgotten);
            }
        }
        self.directory.insert(node, (key, endpoint));
        self.fresh.insert(node);
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
            if self.fresh.remove(&node) {
                return;
            }
            // Asked for again: what we know did not do, or the node has moved.
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
                        self.fresh.remove(&node);
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
                    self.fresh.remove(&node);
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
            PilotAsk::Call(number) => {
                let Some(respond) = self.calls.remove(&number) else {
                    return;
                };
                respond(match reply {
                    Ok(PilotReply::Value(value)) => Ok(value),
                    Ok(PilotReply::Refused(why) | PilotReply::Unreadable(why)) | Err(why) => {
                        Err(NodeError(why))
                    }
                    Ok(other) => Err(NodeError(format!("unfitting reply: {other:?}"))),
                });
            }
            PilotAsk::Register
            | PilotAsk::Visibility
            | PilotAsk::Hostname
            | PilotAsk::Heartbeat => {}
        }
    }
}
