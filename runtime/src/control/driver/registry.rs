//! Commands that the registry answers, or that need nothing but the node's key.
//!
//! A change that the registry took is remembered by the node, so that it says the same when it
//! registers again. The registry's own words are passed on behind the command's name, as a daemon
//! does.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ramjet_proto::addr::Address;
use ramjet_proto::driver::{Command, NetworkCommand};
use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::NodeId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Hub;
use crate::control::handle::{Ask, Respond, Said};
use crate::control::local;
use crate::control::pilot::{Call, bounded};

/// An answer under way.
pub(super) type Work = Pin<Box<dyn Future<Output = Result<Value, String>>>>;

/// Longest text that is passed on to the registry.
const TEXT_LEN_MAX: usize = 1_024;
/// The sub-command of managed networks that asks for a policy, and its way to say so.
const POLICY: u8 = 5;
const POLICY_GET: u8 = 0;
/// What a signed request begins with.
const ENVELOPE_KIND: &str = "pilot-req-v1";
/// How old a signed request may be, or ahead, unless its checker says otherwise.
const SKEW_S: u64 = 300;

impl Hub {
    /// Begins a command of this file; for any other, the error of one that is not served.
    pub(super) fn registry_work(self: &Rc<Self>, command: &Command<'_>) -> Result<Work, String> {
        let hub = Rc::clone(self);
        let name = command.name();
        Ok(match command {
            Command::ResolveHostname { hostname } => {
                let hostname = text(name, hostname)?;
                Box::pin(async move { hub.resolve_hostname(&hostname).await })
            }
            Command::SetHostname { hostname } => {
                let hostname = text(name, hostname)?;
                Box::pin(async move { hub.set_hostname(hostname).await })
            }
            Command::SetVisibility { public } => {
                let public = *public;
                Box::pin(async move { hub.set_visibility(public).await })
            }
            Command::SetTags { tags } => {
                let tags = tags.clone();
                Box::pin(async move { hub.set_tags(tags).await })
            }
            Command::SetTaskExec { enabled } => {
                let enabled = *enabled;
                Box::pin(async move { hub.set_task_exec(enabled).await })
            }
            Command::Handshake(command) => self.trust_work(command)?,
            Command::Deregister => Box::pin(async move {
                let message = json!({"type": "deregister", "node_id": hub.node(name)?});
                hub.signed(name, message, "").await
            }),
            Command::PoloScore => Box::pin(async move { hub.polo_score().await }),
            Command::Network(command) => hub.network_work(*command)?,
            Command::PreferDirect { node } => {
                let node = *node;
                Box::pin(async move { hub.prefer_direct(node).await })
            }
            Command::SubmitBadge { json } | Command::EnrollRecovery { json } => {
                let message = object(name, json)?;
                Box::pin(async move { hub.pass_on(name, message).await })
            }
            Command::SignEnvelope { json } => {
                let wanted = parsed(name, json)?;
                Box::pin(async move { hub.sign_envelope(&wanted) })
            }
            Command::VerifyEnvelope { json } => {
                let signed: Signed = parsed(name, json)?;
                Box::pin(async move { hub.verify_envelope(&signed).await })
            }
            // Networks with a policy are none of this node's, so none holds in any.
            Command::Managed {
                sub: POLICY,
                arguments: [POLICY_GET, high, low],
            } => {
                let network = u16::from_be_bytes([*high, *low]);
                Box::pin(async move {
                    Ok(json!({
                        "type": "managed_policy_ok", "network_id": network, "engine": "none",
                    }))
                })
            }
            Command::SetWebhook { url: "" } => Box::pin(async { Ok(json!({"webhook": ""})) }),
            other => return Err(refusal(other)),
        })
    }

    /// The node's number.
    pub(super) fn node(&self, command: &str) -> Result<NodeId, String> {
        match self.handle.node_id() {
            NodeId(0) => Err(format!(
                "{command}: the node is not registered yet; ask again when its registry is reached"
            )),
            node => Ok(node),
        }
    }

    /// Puts a question to the control loop and waits for its answer.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(Respond<T>) -> Ask,
    ) -> Result<T, String> {
        local::put(&self.handle, question)
            .await
            .map_err(|error| error.0)
    }

    /// Puts a request to the registry; its refusal comes behind the command's name.
    pub(super) async fn call(
        &self,
        command: &str,
        message: Value,
        challenge: Option<String>,
    ) -> Result<Value, String> {
        let call = Box::new(Call { message, challenge });
        let reply = self.ask(|respond| Ask::Call(call, respond)).await;
        reply.map_err(|error| format!("{command}: registry: {error}"))
    }

    /// As [`Self::call`], signed over the type, the node, and what else the challenge names.
    pub(super) async fn signed(
        &self,
        command: &str,
        message: Value,
        more: &str,
    ) -> Result<Value, String> {
        let node = self.node(command)?;
        let kind = message.get("type").and_then(Value::as_str);
        let challenge = format!("{}:{node}{more}", kind.unwrap_or_default());
        self.call(command, message, Some(challenge)).await
    }

    async fn remember(&self, said: Said) -> Result<(), String> {
        self.ask(|respond| Ask::Remember(said, respond)).await
    }

    async fn resolve_hostname(&self, hostname: &str) -> Result<Value, String> {
        let name = "resolve_hostname";
        let message = json!({
            "type": name, "hostname": hostname, "requester_id": self.node(name)?,
        });
        self.call(name, message, None).await
    }

    async fn set_hostname(&self, hostname: String) -> Result<Value, String> {
        let name = "set_hostname";
        let node = self.node(name)?;
        let message = json!({"type": name, "node_id": node, "hostname": hostname});
        let reply = self.signed(name, message, "").await?;
        self.remember(Said::Hostname(hostname)).await?;
        Ok(reply)
    }

    async fn set_visibility(&self, public: bool) -> Result<Value, String> {
        let name = "set_visibility";
        let message = json!({"type": name, "node_id": self.node(name)?, "public": public});
        let reply = self.signed(name, message, "").await?;
        self.remember(Said::Public(public)).await?;
        self.agent.set_public(public);
        Ok(reply)
    }

    async fn set_tags(&self, tags: Vec<String>) -> Result<Value, String> {
        let name = "set_tags";
        let message = json!({"type": name, "node_id": self.node(name)?, "tags": tags});
        let reply = self.signed(name, message, "").await?;
        self.remember(Said::Tags(tags)).await?;
        Ok(reply)
    }

    /// The flag of daemons up to 1.9.1. A node with skills also wants market tasks by it, or no more.
    async fn set_task_exec(&self, enabled: bool) -> Result<Value, String> {
        let name = "set_task_exec";
        let message = json!({"type": name, "node_id": self.node(name)?, "enabled": enabled});
        let reply = self.signed(name, message, "").await?;
        self.remember(Said::TaskExec(enabled)).await?;
        Ok(reply)
    }

    async fn polo_score(&self) -> Result<Value, String> {
        let name = "get_polo_score";
        let node = self.node(name)?;
        let message = json!({"type": name, "node_id": node, "caller_node_id": node});
        let reply = self.signed(name, message, "").await?;
        let polo = reply.get("polo_score").and_then(Value::as_i64);
        let polo = polo.ok_or_else(|| format!("{name}: registry: a reply without a score"))?;
        Ok(json!({"polo_score": polo}))
    }

    fn network_work(self: &Rc<Self>, command: NetworkCommand<'_>) -> Result<Work, String> {
        let node = self.node("network")?;
        let (name, message, more) = match command {
            NetworkCommand::List => ("network list", json!({"type": "list_networks"}), None),
            NetworkCommand::Members { network } => {
                let message = json!({"type": "list_nodes", "network_id": network});
                ("network members", message, None)
            }
            NetworkCommand::Join { network, token } => {
                let token = text("network join", token)?;
                let message = json!({
                    "type": "join_network", "node_id": node, "network_id": network, "token": token,
                });
                ("network join", message, Some(format!(":{network}")))
            }
            NetworkCommand::Leave { network } => {
                let message = json!({
                    "type": "leave_network", "node_id": node, "network_id": network,
                });
                ("network leave", message, Some(format!(":{network}")))
            }
            NetworkCommand::PollInvites => {
                let message = json!({"type": "poll_invites", "node_id": node});
                ("network poll-invites", message, Some(String::new()))
            }
            NetworkCommand::RespondInvite { network, accept } => {
                let message = json!({
                    "type": "respond_invite", "node_id": node, "network_id": network,
                    "accept": accept,
                });
                (
                    "network respond-invite",
                    message,
                    Some(format!(":{network}")),
                )
            }
            NetworkCommand::Invite {
                network,
                node: target,
            } => {
                let message = json!({
                    "type": "invite_to_network", "inviter_id": node, "network_id": network,
                    "target_node_id": target,
                });
                let challenge = format!("invite:{node}:{network}:{target}");
                let hub = Rc::clone(self);
                return Ok(Box::pin(async move {
                    hub.call("network invite", message, Some(challenge)).await
                }));
            }
        };
        let hub = Rc::clone(self);
        Ok(Box::pin(async move {
            match more {
                Some(more) => hub.signed(name, message, &more).await,
                None => hub.call(name, message, None).await,
            }
        }))
    }

    /// Badges and recovery commitments are the registry's business alone.
    async fn pass_on(&self, name: &'static str, mut message: Value) -> Result<Value, String> {
        let node = self.node(name)?;
        let member = match name {
            "submit_badge" => "badge",
            _ => "enrollment",
        };
        let covered = message.get(member).and_then(Value::as_str);
        let covered = covered.ok_or_else(|| format!("{name}: the text {member:?} is missing"))?;
        let more = format!(":{covered}");
        message["type"] = Value::from(name);
        message["node_id"] = json!(node);
        self.signed(name, message, &more).await
    }

    /// Says what is known of the way to a node. The tunnel takes a direct one by itself whenever
    /// there is one, so there is nothing to prefer.
    async fn prefer_direct(&self, node: NodeId) -> Result<Value, String> {
        let name = "prefer_direct";
        let own = self.node(name)?;
        let (_, peers) = self.ports.rows().await;
        let row = peers.iter().find(|row| row.node == node);
        let message = json!({"type": "resolve", "node_id": node, "requester_id": own});
        let challenge = format!("resolve:{own}:{node}");
        let resolved = self.call(name, message, Some(challenge)).await;
        Ok(json!({
            "node_id": node,
            "had_tunnel": row.is_some(),
            "was_relay_active": row.is_some_and(|row| row.relay),
            "was_relay_pinned": false,
            "pila_pushed": false,
            "resolve_error": resolved.err().unwrap_or_default(),
        }))
    }
}

// ---- signed requests -------------------------------------------------------------------------------

/// What is to be signed.
#[derive(Deserialize)]
struct Wanted {
    #[serde(default)]
    audience: String,
    #[serde(default)]
    body_hash: String,
}

/// What is to be checked.
#[derive(Deserialize)]
struct Signed {
    #[serde(default)]
    envelope: String,
    #[serde(default)]
    signature: String,
    #[serde(default)]
    max_skew_secs: u64,
    #[serde(default)]
    check_standing: bool,
}

/// The fields of an envelope: `kind|address|unix seconds|nonce|body hash|audience`, the address as
/// 12 hex digits.
struct Envelope {
    address: Address,
    unix_s: u64,
}

impl Envelope {
    fn parse(envelope: &str) -> Result<Self, String> {
        let fields: Vec<&str> = envelope.split('|').collect();
        let [kind, address, unix_s, _nonce, _hash, _audience] = fields[..] else {
            return Err(format!("{} fields, must be 6", fields.len()));
        };
        if kind != ENVELOPE_KIND {
            let kind = bounded(kind);
            return Err(format!("of kind {kind:?}, must be {ENVELOPE_KIND:?}"));
        }
        let digits = address.len() == 12 && address.bytes().all(|b| b.is_ascii_hexdigit());
        let address = u64::from_str_radix(address, 16).ok().filter(|_| digits);
        let address = address.ok_or("its address is not 12 hex digits")?;
        let [_, _, address @ ..] = address.to_be_bytes();
        Ok(Envelope {
            address: Address::from_bytes(address),
            unix_s: unix_s.parse().map_err(|_| "its time is no number")?,
        })
    }
}

impl Hub {
    fn sign_envelope(&self, wanted: &Wanted) -> Result<Value, String> {
        let name = "sign_envelope";
        let node = self.node(name)?;
        let Wanted {
            audience,
            body_hash,
        } = wanted;
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-".contains(&c);
        if audience.is_empty() || audience.len() > 255 || !audience.bytes().all(plain) {
            let audience = bounded(audience);
            return Err(format!(
                "{name}: audience {audience:?}, must be 1 to 255 of [a-z0-9.-]"
            ));
        }
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if body_hash.len() != 64 || !body_hash.bytes().all(hex) {
            let hash = bounded(body_hash);
            return Err(format!(
                "{name}: body_hash {hash:?}, must be 64 lower-case hex digits"
            ));
        }
        let address = Address::backbone(node);
        let [a, b, c, d, e, f] = address.to_bytes();
        let digits = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        let mut nonce = [0; 8];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| format!("{name}: no randomness"))?;
        let nonce = u64::from_be_bytes(nonce);
        let unix_s = unix_s();
        let envelope =
            format!("{ENVELOPE_KIND}|{digits:012x}|{unix_s}|{nonce:016x}|{body_hash}|{audience}");
        let signature = BASE64.encode(self.identity.sign(envelope.as_bytes()));
        Ok(json!({
            "type": "sign_envelope_ok", "address": address, "envelope": envelope,
            "signature": signature,
        }))
    }

    async fn verify_envelope(&self, signed: &Signed) -> Result<Value, String> {
        let invalid = |reason: String| {
            Ok(json!({"type": "verify_envelope_ok", "valid": false, "reason": reason}))
        };
        let envelope = match Envelope::parse(&signed.envelope) {
            Ok(envelope) => envelope,
            Err(why) => return invalid(format!("envelope: {why}")),
        };
        let skew = match signed.max_skew_secs {
            0 => SKEW_S,
            skew => skew,
        };
        let off = unix_s().abs_diff(envelope.unix_s);
        if off > skew {
            return invalid(format!("{off} s off this node's clock, at most {skew}"));
        }
        let node = envelope.address.node;
        let message = json!({"type": "lookup", "node_id": node});
        let known = match self.call("verify_envelope", message, None).await {
            Ok(known) => known,
            Err(why) => return invalid(why),
        };
        let key = known.get("public_key").and_then(Value::as_str);
        let key = key.and_then(PublicKey::from_base64);
        let signature = BASE64.decode(&signed.signature).unwrap_or_default();
        let verifies = key.is_some_and(|key| key.verifies(signed.envelope.as_bytes(), &signature));
        if !verifies {
            return invalid("the signature is not the node's over this envelope".to_owned());
        }
        let mut answer = json!({
            "type": "verify_envelope_ok", "valid": true, "verified_via": "registry",
            "node_id": node, "address": envelope.address, "trusted": self.trusts(node),
        });
        if signed.check_standing {
            answer["network_member"] = Value::from(true);
        }
        Ok(answer)
    }
}

/// Seconds since 1970.
pub(super) fn unix_s() -> u64 {
    crate::worker::clock::unix_ms() / 1_000
}

/// A text of a client, of a length that may be passed on.
pub(super) fn text(command: &str, text: &str) -> Result<String, String> {
    if text.len() > TEXT_LEN_MAX {
        let len = text.len();
        return Err(format!(
            "{command}: a text of {len} bytes, at most {TEXT_LEN_MAX}"
        ));
    }
    Ok(text.to_owned())
}

fn parsed<T: for<'a> Deserialize<'a>>(command: &str, json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| format!("{command}: JSON: {error}"))
}

fn object(command: &str, json: &[u8]) -> Result<Value, String> {
    parsed(command, json).and_then(|value: Value| match value {
        Value::Object(_) => Ok(value),
        _ => Err(format!("{command}: JSON that is no object")),
    })
}

/// Why a command that can be read is not served.
fn refusal(command: &Command<'_>) -> String {
    let name = command.name();
    match command {
        Command::Managed { .. } => "managed: no active managed networks".to_owned(),
        Command::Broadcast { network, .. } => {
            format!("{name}: denied to network {network}: this node has no admin token")
        }
        Command::RotateKey => format!(
            "{name}: a running node keeps its key, which its polo belongs to; \
             stop it and give it another --identity"
        ),
        Command::SetWebhook { .. } => {
            format!("{name}: this node posts no events; only an empty URL is taken")
        }
        _ => format!("{name}: not served here"),
    }
}
