//! The Pilot messages that a node sends its registry, and what it reads from the replies.
//!
//! Requests and replies of one connection pair up by order. Every request of a registered node is
//! signed with its identity over a constant text (`heartbeat:7`), as Pilot registries demand. A
//! reply with an `error` member is a refusal, whatever its type.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::NodeId;
use serde_json::{Value, json};

/// What the node asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PilotAsk {
    Register,
    Visibility,
    Hostname,
    Heartbeat,
    /// The key of a node, and its endpoint if it is public.
    Lookup(NodeId),
    /// The endpoint of a node that has to let us see it.
    Resolve(NodeId),
    Trust(NodeId),
    /// A message that its asker wrote: the call's number, for the way back.
    Call(u64),
}

/// A request to the registry that its asker words itself, and whose reply it reads itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The message with its `type`, without a signature.
    pub(crate) message: Value,
    /// The text that the node signs, if the registry wants it signed.
    pub(crate) challenge: Option<String>,
}

/// Who asks.
pub(crate) struct Asker<'a> {
    pub(crate) identity: &'a Identity,
    /// 0 until it is registered.
    pub(crate) node: NodeId,
    pub(crate) listen: SocketAddr,
    pub(crate) owner: &'a str,
    pub(crate) hostname: Option<&'a str>,
    pub(crate) public: bool,
}

impl Asker<'_> {
    /// The JSON of a worded request.
    pub(crate) fn call(&self, call: &Call) -> Vec<u8> {
        let mut message = call.message.clone();
        if let (Some(challenge), Some(members)) = (&call.challenge, message.as_object_mut()) {
            members.insert("signature".to_owned(), Value::from(self.sign(challenge)));
        }
        message.to_string().into_bytes()
    }

    /// The JSON of one request; nothing for a [`PilotAsk::Call`], whose words are with its asker.
    pub(crate) fn message(&self, ask: PilotAsk) -> Vec<u8> {
        let node = self.node;
        let value = match ask {
            PilotAsk::Register => {
                let key = self.identity.public().to_base64();
                let listen = self.listen.to_string();
                json!({
                    "type": "register", "listen_addr": listen, "public_key": key,
                    "owner": self.owner,
                    "version": concat!("ramjet-", env!("CARGO_PKG_VERSION")),
                    "signature": self.sign(&format!("register:{listen}:{key}")),
                })
            }
            PilotAsk::Visibility => json!({
                "type": "set_visibility", "node_id": node, "public": self.public,
                "signature": self.sign(&format!("set_visibility:{node}")),
            }),
            PilotAsk::Hostname => json!({
                "type": "set_hostname", "node_id": node,
                "hostname": self.hostname.unwrap_or_default(),
                "signature": self.sign(&format!("set_hostname:{node}")),
            }),
            PilotAsk::Heartbeat => json!({
                "type": "heartbeat", "node_id": node,
                "signature": self.sign(&format!("heartbeat:{node}")),
            }),
            PilotAsk::Lookup(peer) => json!({"type": "lookup", "node_id": peer}),
            PilotAsk::Resolve(peer) => json!({
                "type": "resolve", "node_id": peer, "requester_id": node,
                "signature": self.sign(&format!("resolve:{node}:{peer}")),
            }),
            PilotAsk::Trust(peer) => json!({
                "type": "report_trust", "node_id": node, "peer_id": peer,
                "signature": self.sign(&format!("report_trust:{node}:{peer}")),
            }),
            PilotAsk::Call(_) => return Vec::new(),
        };
        value.to_string().into_bytes()
    }

    fn sign(&self, challenge: &str) -> String {
        BASE64.encode(self.identity.sign(challenge.as_bytes()))
    }
}

/// A reply as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PilotReply {
    Registered {
        node: NodeId,
        address: String,
    },
    /// The key and, if the node shows it, the endpoint.
    Found {
        key: PublicKey,
        endpoint: Option<SocketAddr>,
    },
    Endpoint(SocketAddr),
    /// The node can only be reached over the beacon.
    RelayOnly,
    Done,
    /// The whole reply to a [`Call`].
    Value(Value),
    /// The registry's own words.
    Refused(String),
    /// Not a reply to what was asked: what is wrong with it.
    Unreadable(String),
}

/// Reads the reply to `ask`.
pub(crate) fn read(ask: PilotAsk, message: &[u8]) -> PilotReply {
    let value: Value = match serde_json::from_slice(message) {
        Ok(value) => value,
        Err(error) => return PilotReply::Unreadable(format!("not JSON: {error}")),
    };
    if !value.is_object() {
        return PilotReply::Unreadable("not a JSON object".to_owned());
    }
    if let Some(error) = value.get("error") {
        let text = error
            .as_str()
            .map_or_else(|| error.to_string(), str::to_owned);
        return PilotReply::Refused(bounded(&text));
    }
    match ask {
        PilotAsk::Register => registered(&value),
        PilotAsk::Lookup(_) => found(&value),
        PilotAsk::Resolve(_) if is_relay_only(&value) => PilotReply::RelayOnly,
        PilotAsk::Resolve(_) => match endpoint(&value, "real_addr") {
            Some(endpoint) => PilotReply::Endpoint(endpoint),
            None => PilotReply::Unreadable("resolve without a real_addr of ip:port".to_owned()),
        },
        PilotAsk::Visibility | PilotAsk::Hostname | PilotAsk::Heartbeat | PilotAsk::Trust(_) => {
            PilotReply::Done
        }
        PilotAsk::Call(_) => PilotReply::Value(value),
    }
}

fn registered(value: &Value) -> PilotReply {
    let node = value
        .get("node_id")
        .and_then(Value::as_u64)
        .and_then(|id| u32::try_from(id).ok());
    match (node, value.get("address").and_then(Value::as_str)) {
        (Some(node), Some(address)) if node != 0 => PilotReply::Registered {
            node: NodeId(node),
            address: bounded(address),
        },
        _ => PilotReply::Unreadable("registration without a node_id and an address".to_owned()),
    }
}

fn found(value: &Value) -> PilotReply {
    let key = value
        .get("public_key")
        .and_then(Value::as_str)
        .and_then(PublicKey::from_base64);
    match key {
        Some(key) => PilotReply::Found {
            key,
            endpoint: endpoint(value, "real_addr").filter(|_| !is_relay_only(value)),
        },
        None => PilotReply::Unreadable("lookup without a 32-byte public_key".to_owned()),
    }
}

fn is_relay_only(value: &Value) -> bool {
    value.get("relay_only").and_then(Value::as_bool) == Some(true)
}

fn endpoint(value: &Value, member: &str) -> Option<SocketAddr> {
    value.get(member)?.as_str()?.parse().ok()
}

/// At most 300 characters of what somebody else wrote, for logs and errors.
pub(crate) fn bounded(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(identity: &Identity) -> Asker<'_> {
        Asker {
            identity,
            node: NodeId(7),
            listen: "127.0.0.1:4000".parse().expect("an address"),
            owner: "somebody",
            hostname: Some("worker-1"),
            public: true,
        }
    }

    #[test]
    fn requests_carry_the_signature_over_their_challenge() {
        let identity = Identity::from_seed([1; 32]);
        let key = identity.public().to_base64();
        let rows = [
            (
                PilotAsk::Register,
                "register",
                format!("register:127.0.0.1:4000:{key}"),
            ),
            (
                PilotAsk::Visibility,
                "set_visibility",
                "set_visibility:7".to_owned(),
            ),
            (
                PilotAsk::Hostname,
                "set_hostname",
                "set_hostname:7".to_owned(),
            ),
            (PilotAsk::Heartbeat, "heartbeat", "heartbeat:7".to_owned()),
            (
                PilotAsk::Resolve(NodeId(9)),
                "resolve",
                "resolve:7:9".to_owned(),
            ),
            (
                PilotAsk::Trust(NodeId(9)),
                "report_trust",
                "report_trust:7:9".to_owned(),
            ),
        ];
        for (ask, kind, challenge) in rows {
            let message = asker(&identity).message(ask);
            let value: Value = serde_json::from_slice(&message).expect("own JSON");
            assert_eq!(value["type"], kind);
            let signature = value["signature"].as_str().expect("a signature");
            let signature = BASE64.decode(signature).expect("base64");
            assert!(
                identity.public().verifies(challenge.as_bytes(), &signature),
                "{kind}"
            );
        }
    }

    #[test]
    fn replies_are_read_or_named_unreadable() {
        let ok =
            br#"{"type":"register_ok","node_id":7,"network_id":0,"address":"0:0000.0000.0007"}"#;
        assert_eq!(
            read(PilotAsk::Register, ok),
            PilotReply::Registered {
                node: NodeId(7),
                address: "0:0000.0000.0007".to_owned()
            }
        );
        let refused = br#"{"type":"error","error":"node 7: node not found"}"#;
        assert_eq!(
            read(PilotAsk::Heartbeat, refused),
            PilotReply::Refused("node 7: node not found".to_owned())
        );
        for garbage in [
            &b"\xff\x00"[..],
            b"[]",
            b"{}",
            br#"{"node_id":0,"address":"x"}"#,
        ] {
            let reply = read(PilotAsk::Register, garbage);
            assert!(matches!(reply, PilotReply::Unreadable(_)), "{reply:?}");
        }
        let private = read(
            PilotAsk::Resolve(NodeId(1)),
            br#"{"type":"resolve_ok","real_addr":1}"#,
        );
        let relayed = br#"{"type":"resolve_ok","real_addr":"10.0.0.1:4000","relay_only":true}"#;
        assert_eq!(
            read(PilotAsk::Resolve(NodeId(1)), relayed),
            PilotReply::RelayOnly
        );
        assert!(matches!(private, PilotReply::Unreadable(_)));
    }
}
