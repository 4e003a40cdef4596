//! Pilot's own messages, read from JSON.
//!
//! Reading is as lenient as Pilot's registries are: a missing, negative or out-of-range number
//! reads as 0, a missing text as empty, unknown members are ignored. What is asked is then one of
//! [`Ask`]; what it comes to is decided by the log thread (`answer.rs`).
//!
//! A signature is Ed25519 over a short ASCII challenge without nonce or time. That is Pilot's rule
//! and weaker than the market's own: a captured challenge stays good until the key is rotated.

use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::NodeId;
use serde_json::Value;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::command::{Command, Refused, Why};

/// Who signed what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Whose key it must be.
    pub node: NodeId,
    /// The signed text.
    pub challenge: String,
    /// The signature, or whatever was in its place.
    pub signature: Vec<u8>,
}

/// A registration as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterAsk {
    /// `host:port`.
    pub listen_addr: String,
    /// The identity.
    pub key: PublicKey,
    /// What a signature must cover.
    pub challenge: String,
    /// Empty if it is unsigned.
    pub signature: Vec<u8>,
    /// A label.
    pub owner: String,
    /// A wish.
    pub hostname: String,
    /// The peer's software.
    pub version: String,
    /// Addresses on its own network.
    pub lan_addrs: Vec<String>,
    /// Whether it can only be reached over the beacon.
    pub relay_only: bool,
}

/// What a Pilot message asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To come or come back.
    Register(Box<RegisterAsk>),
    /// A change in a node's own name; signed by it.
    Change {
        /// The change.
        command: Command,
        /// Its signature.
        proof: Proof,
    },
    /// A change of polo by anyone.
    UnsignedPolo(Command),
    /// A sign of life.
    Heartbeat(Proof),
    /// Where a node is.
    Resolve {
        /// Which.
        node: NodeId,
        /// The asker's.
        proof: Proof,
    },
    /// Where two nodes are, for one of them.
    Punch {
        /// One.
        node_a: NodeId,
        /// The other.
        node_b: NodeId,
        /// The asker's.
        proof: Proof,
    },
    /// Whether the gate would let `submitter` submit to `receiver`.
    AuthorizeTaskSubmit {
        /// Who submits.
        submitter: NodeId,
        /// Who works.
        receiver: NodeId,
        /// A fixed threshold instead of the receiver's polo.
        min_polo: Option<i64>,
        /// The asker's.
        proof: Proof,
    },
    /// What is known of a node.
    Lookup(NodeId),
    /// Which node has a hostname.
    ResolveHostname {
        /// The name.
        hostname: String,
        /// The asker, if it says so.
        requester: Option<NodeId>,
    },
    /// A node's polo.
    PoloScore(NodeId),
    /// Whether `node` trusts `peer`.
    CheckTrust {
        /// Who.
        node: NodeId,
        /// Whom.
        peer: NodeId,
    },
    /// The networks.
    ListNetworks,
    /// The nodes of a network.
    ListNodes(u64),
    /// The policy of a network.
    NetworkPolicy(u64),
    /// The expression policy of a network.
    ExprPolicy(u64),
    /// The beacons.
    BeaconList,
}

/// Pilot requests about what this registry does not offer, refused by name.
const UNSUPPORTED: [(&str, &str); 12] = [
    ("create_network", "networks beside the backbone"),
    ("join_network", "networks beside the backbone"),
    ("leave_network", "networks beside the backbone"),
    ("invite_to_network", "networks beside the backbone"),
    ("poll_invites", "networks beside the backbone"),
    ("respond_invite", "networks beside the backbone"),
    ("set_key_expiry", "key expiry"),
    ("submit_badge", "badges"),
    ("enroll_recovery", "key recovery"),
    ("recover_identity", "key recovery"),
    ("beacon_register", "foreign beacons"),
    ("subscribe_replication", "standby registries"),
];

/// Reads a message of type `kind`; `None` if the type is unknown.
///
/// # Errors
/// [`Refused`]: a known type that this registry does not offer, or a registration without a key.
pub fn read(kind: &str, message: &Value) -> Option<Result<Ask, Refused>> {
    if let Some((_, what)) = UNSUPPORTED
        .iter()
        .find(|(unsupported, _)| *unsupported == kind)
    {
        return Some(Err(Refused::new(
            Why::Unsupported,
            format!("{kind}: cannot be served, this registry has no {what}"),
        )));
    }
    let fields = Fields(message);
    match kind {
        "register" => return Some(read_register(&fields)),
        "rotate_key" => return Some(read_rotate_key(&fields)),
        _ => {}
    }
    read_query(kind, &fields)
        .or_else(|| read_change(kind, &fields))
        .map(Ok)
}

fn read_query(kind: &str, fields: &Fields<'_>) -> Option<Ask> {
    let node = fields.node("node_id");
    Some(match kind {
        "heartbeat" => Ask::Heartbeat(fields.proof(node, format!("heartbeat:{node}"))),
        "lookup" => Ask::Lookup(node),
        "resolve" => {
            let requester = fields.node("requester_id");
            Ask::Resolve {
                node,
                proof: fields.proof(requester, format!("resolve:{requester}:{node}")),
            }
        }
        "resolve_hostname" => Ask::ResolveHostname {
            hostname: fields.text("hostname"),
            requester: Some(fields.node("requester_id")).filter(|node| node.0 != 0),
        },
        "punch" => {
            let (node_a, node_b) = (fields.node("node_a"), fields.node("node_b"));
            let proof = fields.proof(
                fields.node("requester_id"),
                format!("punch:{node_a}:{node_b}"),
            );
            Ask::Punch {
                node_a,
                node_b,
                proof,
            }
        }
        "authorize_task_submit" => {
            let caller = fields.node("caller_node_id");
            let submitter = fields.node("submitter_node_id");
            let receiver = fields.node("receiver_node_id");
            Ask::AuthorizeTaskSubmit {
                submitter,
                receiver,
                min_polo: fields.0.get("min_polo").and_then(integer),
                proof: fields.proof(
                    caller,
                    format!("authorize_task_submit:{caller}:{submitter}:{receiver}"),
                ),
            }
        }
        "get_polo_score" => Ask::PoloScore(node),
        "check_trust" => Ask::CheckTrust {
            node,
            peer: fields.node("peer_id"),
        },
        "list_networks" => Ask::ListNetworks,
        "list_nodes" => Ask::ListNodes(fields.number("network_id")),
        "get_network_policy" => Ask::NetworkPolicy(fields.number("network_id")),
        "get_expr_policy" => Ask::ExprPolicy(fields.number("network_id")),
        "beacon_list" => Ask::BeaconList,
        _ => return None,
    })
}

fn read_change(kind: &str, fields: &Fields<'_>) -> Option<Ask> {
    let node = fields.node("node_id");
    let peer = fields.node("peer_id");
    let (command, signer, challenge) = match kind {
        "deregister" => (
            Command::Deregister { node },
            node,
            format!("deregister:{node}"),
        ),
        "set_hostname" => {
            let hostname = fields.text("hostname");
            (
                Command::Hostname { node, hostname },
                node,
                format!("set_hostname:{node}"),
            )
        }
        "set_visibility" => {
            let public = fields.flag("public");
            (
                Command::Visibility { node, public },
                node,
                format!("set_visibility:{node}"),
            )
        }
        "set_tags" => {
            let tags = fields.texts("tags");
            (
                Command::Tags { node, tags },
                node,
                format!("set_tags:{node}"),
            )
        }
        "set_task_exec" => {
            let enabled = fields.flag("enabled");
            (
                Command::TaskExec { node, enabled },
                node,
                format!("set_task_exec:{node}"),
            )
        }
        "report_trust" => (
            Command::ReportTrust { node, peer },
            node,
            format!("report_trust:{node}:{peer}"),
        ),
        "revoke_trust" => (
            Command::RevokeTrust { node, peer },
            node,
            format!("revoke_trust:{node}:{peer}"),
        ),
        "request_handshake" => {
            let (from, to) = (fields.node("from_node_id"), fields.node("to_node_id"));
            let justification = fields.text("justification");
            let command = Command::RequestHandshake {
                from,
                to,
                justification,
            };
            (command, from, format!("handshake:{from}:{to}"))
        }
        "poll_handshakes" => (
            Command::CollectHandshakes { node },
            node,
            format!("poll_handshakes:{node}"),
        ),
        "respond_handshake" => {
            let accept = fields.flag("accept");
            let command = Command::RespondHandshake { node, peer, accept };
            (command, node, format!("respond:{node}:{peer}"))
        }
        "set_polo_score" => {
            let polo = fields.0.get("polo_score").and_then(integer).unwrap_or(0);
            return Some(Ask::UnsignedPolo(Command::SetPolo { node, polo }));
        }
        "update_polo_score" => {
            let delta = fields.0.get("delta").and_then(integer).unwrap_or(0);
            return Some(Ask::UnsignedPolo(Command::MovePolo { node, delta }));
        }
        _ => return None,
    };
    Some(Ask::Change {
        command,
        proof: fields.proof(signer, challenge),
    })
}

/// The challenge names the new key, as daemons from 1.9 on sign it: a captured one is of no use.
fn read_rotate_key(fields: &Fields<'_>) -> Result<Ask, Refused> {
    let node = fields.node("node_id");
    let text = fields.text("new_public_key");
    let key = PublicKey::from_base64(&text).ok_or_else(|| {
        Refused::new(
            Why::Invalid,
            "rotate_key: new_public_key is required, as standard base64 of 32 bytes",
        )
    })?;
    let proof = fields.proof(node, format!("rotate:{node}:{text}"));
    Ok(Ask::Change {
        command: Command::RotateKey { node, key },
        proof,
    })
}

fn read_register(fields: &Fields<'_>) -> Result<Ask, Refused> {
    let public_key = fields.text("public_key");
    let key = PublicKey::from_base64(&public_key).ok_or_else(|| {
        Refused::new(
            Why::Invalid,
            "register: public_key is required, as standard base64 of 32 bytes",
        )
    })?;
    let listen_addr = fields.text("listen_addr");
    Ok(Ask::Register(Box::new(RegisterAsk {
        challenge: format!("register:{listen_addr}:{public_key}"),
        key,
        signature: fields.signature(),
        owner: fields.text("owner"),
        hostname: fields.text("hostname"),
        version: fields.text("version"),
        lan_addrs: fields.texts("lan_addrs"),
        relay_only: fields.flag("relay_only"),
        listen_addr,
    })))
}

/// The members of a message, with Pilot's defaults.
struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn number(&self, name: &str) -> u64 {
        self.0
            .get(name)
            .and_then(integer)
            .and_then(|number| number.try_into().ok())
            .unwrap_or(0)
    }

    fn node(&self, name: &str) -> NodeId {
        NodeId(self.number(name).try_into().unwrap_or(0))
    }

    fn text(&self, name: &str) -> String {
        self.0
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let members = self.0.get(name).and_then(Value::as_array);
        members
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    }

    fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Empty if there is none, or none that could verify.
    fn signature(&self) -> Vec<u8> {
        let text = self
            .0
            .get("signature")
            .and_then(Value::as_str)
            .unwrap_or_default();
        // What is there and is no base64 must not pass for an unsigned message.
        BASE64.decode(text).unwrap_or_else(|_| vec![0])
    }

    fn proof(&self, node: NodeId, challenge: String) -> Proof {
        Proof {
            node,
            challenge,
            signature: self.signature(),
        }
    }
}

/// An integer as JSON writers of other languages write it: `7`, `7.0` or `7e0`.
fn integer(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let number = value.as_f64()?;
    // Every integer of this range is exact in a float.
    if number.fract() != 0.0 || number.abs() > 9_007_199_254_740_992.0 {
        return None;
    }
    format!("{number:.0}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_read_as_pilot_reads_them() {
        let message = json!({
            "a": 7, "b": 7.0, "c": -1, "d": 4_294_967_296_u64, "e": "7", "f": null, "g": 7.5,
            "h": 1e300,
        });
        let fields = Fields(&message);
        for (name, expected) in [
            ("a", 7),
            ("b", 7),
            ("c", 0),
            ("d", 0),
            ("e", 0),
            ("f", 0),
            ("g", 0),
            ("h", 0),
            ("i", 0),
        ] {
            assert_eq!(fields.node(name), NodeId(expected), "{name}");
        }
    }

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn challenges_are_those_that_daemons_sign() {
        let message = json!({
            "node_id": 3, "peer_id": 4, "requester_id": 5, "node_a": 5, "node_b": 6,
            "from_node_id": 7, "to_node_id": 8, "caller_node_id": 9, "submitter_node_id": 10,
            "receiver_node_id": 11, "new_public_key": KEY, "signature": "AAAA",
        });
        let table = [
            ("heartbeat", "heartbeat:3"),
            ("set_visibility", "set_visibility:3"),
            ("set_hostname", "set_hostname:3"),
            ("set_tags", "set_tags:3"),
            ("set_task_exec", "set_task_exec:3"),
            ("poll_handshakes", "poll_handshakes:3"),
            ("request_handshake", "handshake:7:8"),
            ("respond_handshake", "respond:3:4"),
            ("report_trust", "report_trust:3:4"),
            ("revoke_trust", "revoke_trust:3:4"),
            ("resolve", "resolve:5:3"),
            ("punch", "punch:5:6"),
            ("deregister", "deregister:3"),
            ("rotate_key", &format!("rotate:3:{KEY}")),
            ("authorize_task_submit", "authorize_task_submit:9:10:11"),
        ];
        for (kind, challenge) in table {
            let ask = read(kind, &message)
                .expect("a known type")
                .expect("well formed");
            let proof = match ask {
                Ask::Change { proof, .. }
                | Ask::Heartbeat(proof)
                | Ask::Resolve { proof, .. }
                | Ask::Punch { proof, .. }
                | Ask::AuthorizeTaskSubmit { proof, .. } => proof,
                other => panic!("{kind} is not signed: {other:?}"),
            };
            assert_eq!(proof.challenge, challenge);
            assert_eq!(proof.signature, [0, 0, 0]);
        }
        assert_eq!(read("make_coffee", &message), None);
        assert!(
            read("rotate_key", &json!({"node_id": 3}))
                .expect("known")
                .is_err()
        );
        assert!(read("join_network", &message).expect("known").is_err());
    }

    #[test]
    fn a_registration_needs_a_key_and_garbage_is_no_missing_signature() {
        let refused = read("register", &json!({"listen_addr": ":1"})).expect("known");
        assert_eq!(refused.expect_err("no key").why, Why::Invalid);
        let key = PublicKey([9; 32]).to_base64();
        for (signature, expected) in [("", 0), ("not base64!", 1)] {
            let message = json!({"listen_addr": ":1", "public_key": key, "signature": signature});
            let ask = read("register", &message)
                .expect("known")
                .expect("has a key");
            let Ask::Register(ask) = ask else {
                panic!("{ask:?}")
            };
            assert_eq!(ask.signature.len(), expected);
            assert_eq!(ask.challenge, format!("register::1:{key}"));
        }
    }
}
