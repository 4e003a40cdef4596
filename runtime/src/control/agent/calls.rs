//! The requests that the services put to the registry, and what they read from the replies.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ramjet_proto::addr::Address;
use ramjet_proto::agent::bounded;
use ramjet_proto::agent::handshake::JUSTIFICATION_LEN_MAX;
use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::NodeId;
use serde_json::{Value, json};

use super::host::Host;
use crate::control::pilot::Call;

/// What the registry says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) key: PublicKey,
    pub(super) public: bool,
}

/// What waited for us at the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Relayed {
    /// Who asks for trust, and why.
    pub(super) requests: Vec<(NodeId, String)>,
    /// Who answered our request, and whether with yes.
    pub(super) responses: Vec<(NodeId, bool)>,
}

fn signed(message: Value, challenge: String) -> Call {
    Call {
        message,
        challenge: Some(challenge),
    }
}

fn unsigned(message: Value) -> Call {
    Call {
        message,
        challenge: None,
    }
}

/// The key of a node, and whether anyone may see it.
pub(super) async fn lookup(host: &impl Host, node: NodeId) -> Result<Known, String> {
    let reply = host
        .call(unsigned(json!({"type": "lookup", "node_id": node})))
        .await?;
    let key = reply
        .get("public_key")
        .and_then(Value::as_str)
        .and_then(PublicKey::from_base64)
        .ok_or_else(|| format!("registry: node {node} has no 32-byte public_key"))?;
    Ok(Known {
        key,
        public: reply
            .get("public")
            .and_then(Value::as_bool)
            .unwrap_or(false),
    })
}

/// The node that `who` names: a number, an address, or a hostname.
pub(super) async fn find(host: &impl Host, who: &str) -> Result<NodeId, String> {
    let number = who.parse::<u32>().ok().map(NodeId);
    let address = || who.parse::<Address>().ok().map(|address| address.node);
    if let Some(node) = number.or_else(address) {
        return Ok(node);
    }
    let call = unsigned(json!({
        "type": "resolve_hostname", "hostname": who, "requester_id": host.node(),
    }));
    let reply = host.call(call).await?;
    node_of(&reply, "node_id")
        .ok_or_else(|| format!("registry: {:?} names no node", bounded(who, 80)))
}

fn node_of(value: &Value, member: &str) -> Option<NodeId> {
    let number = value.get(member)?.as_u64()?;
    u32::try_from(number).ok().filter(|id| *id != 0).map(NodeId)
}

/// `report_trust` or `revoke_trust`.
pub(super) async fn trust(host: &impl Host, peer: NodeId, trusted: bool) -> Result<(), String> {
    let kind = if trusted {
        "report_trust"
    } else {
        "revoke_trust"
    };
    let node = host.node();
    let message = json!({"type": kind, "node_id": node, "peer_id": peer});
    let reply = host
        .call(signed(message, format!("{kind}:{node}:{peer}")))
        .await;
    reply.map(drop)
}

/// Leaves a request for trust at the registry.
pub(super) async fn request_handshake(
    host: &impl Host,
    peer: NodeId,
    justification: &str,
) -> Result<(), String> {
    let node = host.node();
    let message = json!({
        "type": "request_handshake", "from_node_id": node, "to_node_id": peer,
        "justification": bounded(justification, JUSTIFICATION_LEN_MAX),
    });
    let reply = host
        .call(signed(message, format!("handshake:{node}:{peer}")))
        .await;
    reply.map(drop)
}

/// Answers a request for trust that came over the registry.
pub(super) async fn respond_handshake(
    host: &impl Host,
    peer: NodeId,
    accept: bool,
) -> Result<(), String> {
    let node = host.node();
    let message = json!({
        "type": "respond_handshake", "node_id": node, "peer_id": peer, "accept": accept,
    });
    let reply = host
        .call(signed(message, format!("respond:{node}:{peer}")))
        .await;
    reply.map(drop)
}

/// Takes what waits for us at the registry.
pub(super) async fn poll_handshakes(host: &impl Host) -> Result<Relayed, String> {
    let node = host.node();
    let message = json!({"type": "poll_handshakes", "node_id": node});
    let reply = host
        .call(signed(message, format!("poll_handshakes:{node}")))
        .await?;
    let rows = |member: &str| {
        let rows = reply.get(member).and_then(Value::as_array);
        rows.map(Vec::as_slice).unwrap_or_default()
    };
    Ok(Relayed {
        requests: rows("requests")
            .iter()
            .filter_map(|row| {
                let justification = row.get("justification").and_then(Value::as_str);
                let justification = bounded(justification.unwrap_or(""), JUSTIFICATION_LEN_MAX);
                Some((node_of(row, "from_node_id")?, justification))
            })
            .collect(),
        responses: rows("responses")
            .iter()
            .filter_map(|row| Some((node_of(row, "from_node_id")?, row.get("accept")?.as_bool()?)))
            .collect(),
    })
}

/// Whether `submitter` may hand tasks to us: with at least `min_polo`, else with at least our own.
/// The refusal's words otherwise.
pub(super) async fn authorize(
    host: &impl Host,
    submitter: NodeId,
    min_polo: Option<i64>,
) -> Result<Result<(), String>, String> {
    let node = host.node();
    let mut message = json!({
        "type": "authorize_task_submit", "caller_node_id": node,
        "submitter_node_id": submitter, "receiver_node_id": node,
    });
    if let (Some(min_polo), Some(members)) = (min_polo, message.as_object_mut()) {
        members.insert("min_polo".to_owned(), Value::from(min_polo));
    }
    let challenge = format!("authorize_task_submit:{node}:{submitter}:{node}");
    let reply = host.call(signed(message, challenge)).await?;
    if reply.get("authorized").and_then(Value::as_bool) == Some(true) {
        return Ok(Ok(()));
    }
    let reason = reply.get("reason").and_then(Value::as_str);
    Ok(Err(bounded(reason.unwrap_or("not authorized"), 200)))
}

/// Moves the polo of a node as daemons up to 1.9 do. A registry that wants receipts refuses it.
pub(super) async fn move_polo(host: &impl Host, node: NodeId, delta: i64) -> Result<(), String> {
    let message = json!({"type": "update_polo_score", "node_id": node, "delta": delta});
    host.call(unsigned(message)).await.map(drop)
}

/// A key as Pilot's files write it.
pub(super) fn key_text(key: &PublicKey) -> String {
    BASE64.encode(key.0)
}
