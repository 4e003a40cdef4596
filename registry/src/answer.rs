//! The answers to Pilot's messages: what may be seen, and the JSON of each reply.
//!
//! A private node's endpoint is told to those whom the node itself trusts and to the other end of
//! an engagement that runs. Nothing is masked: daemons act upon "not found".

use std::net::SocketAddr;

use ramjet_proto::ids::NodeId;
use serde_json::{Value, json};

use crate::address::address_text;
use crate::command::{Command, Outcome, Refused, Why};
use crate::directory::Node;
use crate::pilot::{Ask, Proof};
use crate::state::State;

/// How many of a pair's engagements are looked at, newest first, for one that runs.
const ENGAGEMENTS_LOOKED_AT: usize = 64;

/// Checks a signature against the key on file.
///
/// # Errors
/// [`Why::NotFound`] and [`Why::Signature`].
pub fn verify(state: &State, proof: &Proof) -> Result<(), Refused> {
    let node = state.directory().node(proof.node)?;
    if node
        .key
        .verifies(proof.challenge.as_bytes(), &proof.signature)
    {
        return Ok(());
    }
    Err(Refused::new(
        Why::Signature,
        format!(
            "invalid signature: node {} must sign {:?} with its registered key",
            proof.node, proof.challenge
        ),
    ))
}

/// Whether `asker` may see where `target` is.
pub fn may_see(state: &State, target: NodeId, asker: NodeId, at_ms: u64) -> bool {
    let public = state.directory().node(target).is_ok_and(|node| node.public);
    public
        || target == asker
        || state.trust().opens(target, asker)
        || state
            .engagements()
            .newest_of(target)
            .take(ENGAGEMENTS_LOOKED_AT)
            .any(|(_, row)| row.names(asker) && row.is_active(at_ms))
}

/// Answers what asks and does not change.
///
/// # Errors
/// [`Refused`].
///
/// # Panics
/// If `ask` is a registration or a change: those go through the log.
pub fn query(
    state: &State,
    ask: &Ask,
    at_ms: u64,
    beacon: Option<SocketAddr>,
) -> Result<Value, Refused> {
    let directory = state.directory();
    match ask {
        Ask::Heartbeat(proof) => {
            verify(state, proof)?;
            Ok(json!({"type": "heartbeat_ok", "time": at_ms / 1_000}))
        }
        Ask::Lookup(node) => Ok(lookup(*node, directory.node(*node)?)),
        Ask::Resolve { node, proof } => resolve(state, *node, proof, at_ms),
        Ask::ResolveHostname {
            hostname,
            requester,
        } => resolve_hostname(state, hostname, *requester, at_ms),
        Ask::Punch {
            node_a,
            node_b,
            proof,
        } => punch(state, *node_a, *node_b, proof, at_ms),
        Ask::AuthorizeTaskSubmit {
            submitter,
            receiver,
            min_polo,
            proof,
        } => {
            verify(state, proof)?;
            let own = directory.node(*submitter)?.polo;
            let needed = min_polo.unwrap_or(directory.node(*receiver)?.polo);
            if own >= needed {
                return Ok(json!({"type": "authorize_task_submit_ok", "authorized": true}));
            }
            Ok(json!({
                "type": "authorize_task_submit_ok",
                "authorized": false,
                "reason": "the submitter's polo score is too low",
            }))
        }
        Ask::PoloScore(node) => {
            let polo = directory.node(*node)?.polo;
            Ok(polo_reply("get_polo_score_ok", *node, polo))
        }
        Ask::CheckTrust { node, peer } => {
            let trusted = state.trust().opens(*node, *peer);
            Ok(json!({"type": "check_trust_ok", "trusted": trusted}))
        }
        Ask::ListNetworks | Ask::ListNodes(_) | Ask::NetworkPolicy(_) | Ask::ExprPolicy(_) => {
            networks(state, ask)
        }
        Ask::BeaconList => {
            let own = beacon.filter(|address| !address.ip().is_unspecified());
            let beacons: Vec<Value> = own
                .iter()
                .map(|address| json!({"id": 1, "addr": address.to_string()}))
                .collect();
            Ok(json!({"type": "beacon_list_ok", "beacons": beacons}))
        }
        Ask::Register(_) | Ask::Change { .. } | Ask::UnsignedPolo(_) => {
            unreachable!("changes go through the log")
        }
    }
}

fn resolve(state: &State, node: NodeId, proof: &Proof, at_ms: u64) -> Result<Value, Refused> {
    verify(state, proof)?;
    let target = state.directory().node(node)?;
    if !may_see(state, node, proof.node, at_ms) {
        return Err(Refused::new(
            Why::Private,
            format!("resolve denied: node {node} is private (establish mutual trust first)"),
        ));
    }
    let key_age_ms = at_ms.saturating_sub(target.key_set_at_ms);
    let mut reply = json!({
        "type": "resolve_ok",
        "node_id": node,
        "real_addr": target.endpoint,
        "key_age_days": key_age_ms / 86_400_000,
    });
    if !target.lan_addrs.is_empty() {
        reply["lan_addrs"] = json!(target.lan_addrs);
    }
    if target.relay_only {
        reply["relay_only"] = json!(true);
    }
    Ok(reply)
}

fn resolve_hostname(
    state: &State,
    hostname: &str,
    requester: Option<NodeId>,
    at_ms: u64,
) -> Result<Value, Refused> {
    let unknown = || Refused::new(Why::NotFound, format!("hostname {hostname:?} not found"));
    let id = state
        .directory()
        .by_hostname(hostname)
        .ok_or_else(unknown)?;
    // Daemons do not say who asks; who does is held to what it may see.
    if requester.is_some_and(|requester| !may_see(state, id, requester, at_ms)) {
        return Err(unknown());
    }
    Ok(json!({
        "type": "resolve_hostname_ok",
        "node_id": id,
        "address": address_text(id),
        "public": state.directory().node(id)?.public,
        "hostname": hostname,
    }))
}

fn lookup(id: NodeId, node: &Node) -> Value {
    let mut reply = json!({
        "type": "lookup_ok",
        "node_id": id,
        "address": address_text(id),
        "networks": [0],
        "public_key": node.key.to_base64(),
        "public": node.public,
        "polo_score": node.polo,
    });
    if !node.hostname.is_empty() {
        reply["hostname"] = json!(node.hostname);
    }
    if !node.tags.is_empty() {
        reply["tags"] = json!(node.tags);
    }
    if node.task_exec {
        reply["task_exec"] = json!(true);
    }
    if node.relay_only {
        reply["relay_only"] = json!(true);
    }
    if !node.version.is_empty() {
        reply["version"] = json!(node.version);
    }
    if node.public {
        reply["real_addr"] = json!(node.endpoint);
    }
    reply
}

fn punch(
    state: &State,
    node_a: NodeId,
    node_b: NodeId,
    proof: &Proof,
    at_ms: u64,
) -> Result<Value, Refused> {
    verify(state, proof)?;
    let other = match proof.node {
        node if node == node_a => node_b,
        node if node == node_b => node_a,
        node => {
            return Err(Refused::new(
                Why::Invalid,
                format!("invalid punch: node {node} is neither node {node_a} nor node {node_b}"),
            ));
        }
    };
    let (a, b) = (
        state.directory().node(node_a)?,
        state.directory().node(node_b)?,
    );
    if !may_see(state, other, proof.node, at_ms) {
        return Err(Refused::new(
            Why::Private,
            format!("punch denied: node {other} is private (establish mutual trust first)"),
        ));
    }
    Ok(json!({
        "type": "punch_ok",
        "node_a": node_a,
        "node_a_addr": a.endpoint,
        "node_b": node_b,
        "node_b_addr": b.endpoint,
    }))
}

fn networks(state: &State, ask: &Ask) -> Result<Value, Refused> {
    let unknown = |network: u64| {
        Refused::new(
            Why::NotFound,
            format!("network {network}: not found, there is only 0"),
        )
    };
    match ask {
        Ask::ListNetworks => Ok(json!({
            "type": "list_networks_ok",
            "networks": [{
                "id": 0,
                "name": "backbone",
                "members": state.directory().iter().count(),
                "join_rule": "open",
            }],
        })),
        Ask::NetworkPolicy(0) => Ok(json!({
            "type": "get_network_policy_ok",
            "network_id": 0,
            "max_members": 0,
            "allowed_ports": [],
            "description": "",
        })),
        Ask::ExprPolicy(0) => Err(Refused::new(
            Why::NotFound,
            "network 0: expression policy not found",
        )),
        Ask::ListNodes(0) => Err(Refused::new(
            Why::Unsupported,
            "list_nodes: the nodes of network 0 cannot be listed; look one up by id or hostname",
        )),
        Ask::NetworkPolicy(network) | Ask::ExprPolicy(network) | Ask::ListNodes(network) => {
            Err(unknown(*network))
        }
        _ => unreachable!("query sends the four above only"),
    }
}

fn polo_reply(kind: &str, node: NodeId, polo: i64) -> Value {
    json!({"type": kind, "node_id": node, "address": address_text(node), "polo_score": polo})
}

/// The reply to a registration.
pub fn registered(state: &State, node: NodeId, hostname_error: Option<String>) -> Value {
    let entry = state
        .directory()
        .node(node)
        .expect("it has just registered");
    let mut reply = json!({
        "type": "register_ok",
        "node_id": node,
        "network_id": 0,
        "address": address_text(node),
        "public_key": entry.key.to_base64(),
        "observed_addr": entry.endpoint,
    });
    if !entry.hostname.is_empty() {
        reply["hostname"] = json!(entry.hostname);
    }
    if let Some(error) = hostname_error {
        reply["hostname_error"] = json!(error);
    }
    reply
}

/// The reply to a change that was applied.
///
/// # Panics
/// If `command` is none that a Pilot message asks for.
pub fn changed(state: &State, command: &Command, outcome: Outcome) -> Value {
    match (command, outcome) {
        (Command::Deregister { .. }, _) => json!({"type": "deregister_ok"}),
        (Command::Hostname { node, hostname }, _) => {
            json!({"type": "set_hostname_ok", "node_id": node, "hostname": hostname})
        }
        (Command::Visibility { node, public }, _) => json!({
            "type": "set_visibility_ok",
            "node_id": node,
            "visibility": if *public { "public" } else { "private" },
        }),
        (Command::Tags { node, .. }, _) => {
            let tags = state.directory().node(*node).map(|node| node.tags.clone());
            json!({"type": "set_tags_ok", "node_id": node, "tags": tags.unwrap_or_default()})
        }
        (Command::TaskExec { node, enabled }, _) => {
            json!({"type": "set_task_exec_ok", "node_id": node, "task_exec": enabled})
        }
        (Command::ReportTrust { .. }, _) => json!({"type": "report_trust_ok"}),
        (Command::RevokeTrust { .. }, _) => json!({"type": "revoke_trust_ok"}),
        (Command::RequestHandshake { .. }, _) => {
            json!({"type": "request_handshake_ok", "status": "delivered"})
        }
        (Command::CollectHandshakes { .. }, Outcome::Handshakes(inbox)) => {
            let requests: Vec<Value> = inbox
                .requests
                .iter()
                .map(|request| {
                    json!({
                        "from_node_id": request.from,
                        "justification": request.justification,
                        "timestamp": request.at_ms / 1_000,
                    })
                })
                .collect();
            let responses: Vec<Value> = inbox
                .responses
                .iter()
                .map(|response| {
                    json!({
                        "from_node_id": response.from,
                        "accept": response.accept,
                        "timestamp": response.at_ms / 1_000,
                    })
                })
                .collect();
            json!({"type": "poll_handshakes_ok", "requests": requests, "responses": responses})
        }
        (Command::RespondHandshake { peer, accept, .. }, _) => {
            json!({"type": "respond_handshake_ok", "accept": accept, "peer_id": peer})
        }
        (Command::RotateKey { node, key }, _) => json!({
            "type": "rotate_key_ok",
            "node_id": node,
            "address": address_text(*node),
            "public_key": key.to_base64(),
        }),
        (Command::SetPolo { node, .. }, Outcome::Polo(polo)) => {
            polo_reply("set_polo_score_ok", *node, polo)
        }
        (Command::MovePolo { node, .. }, Outcome::Polo(polo)) => {
            polo_reply("update_polo_score_ok", *node, polo)
        }
        (command, outcome) => unreachable!("{command:?} came to {outcome:?}"),
    }
}
