//! The JSON messages between a node and the registry about the market.
//!
//! They share the registry's TCP port and framing (4-byte big-endian length, one JSON object) with
//! the Pilot messages, from which their `market_` prefix sets them apart. A request carries an
//! `id`, and its reply the same `id`; a push carries none. Replies may overtake each other.
//!
//! A connection proves its node once: `market_hello` is answered by a nonce, `market_prove` signs
//! it. Only a proven connection may advertise, offer, accept, settle or release, and only it is
//! pushed to. Queries need no proof.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::terms::{AcceptTerms, Advertisement, Filter, Offer};
use crate::identity::PublicKey;
use crate::ids::{EngagementId, NodeId, OfferId};

/// Longest message either side sends or accepts, in bytes.
pub const MESSAGE_LEN_MAX: usize = 1 << 20;

/// Bytes that travel as standard padded base64 text.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Base64Bytes(pub Vec<u8>);

impl core::fmt::Debug for Base64Bytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Base64Bytes({} bytes)", self.0.len())
    }
}

impl Serialize for Base64Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64
            .decode(text)
            .map(Base64Bytes)
            .map_err(serde::de::Error::custom)
    }
}

/// A request and the number its reply will carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, unique among its requests in flight.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub body: RequestBody,
}

/// What a node asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum RequestBody {
    /// Begins the proof of a node. Answered by [`ReplyBody::Hello`].
    #[serde(rename = "market_hello")]
    Hello {
        /// A registered node.
        node: NodeId,
    },
    /// Ends it: a signature over [`prove_bytes`]. Answered by [`ReplyBody::Proved`].
    #[serde(rename = "market_prove")]
    Prove {
        /// By the node's key.
        signature: Base64Bytes,
    },
    /// Replaces what the node advertises. Answered by [`ReplyBody::Advertised`].
    #[serde(rename = "market_advertise")]
    Advertise {
        /// What it says of itself.
        advertisement: Advertisement,
        /// Over [`Advertisement::signed_bytes`].
        signature: Base64Bytes,
    },
    /// Lists workers. Answered by [`ReplyBody::Workers`]; needs no proof.
    #[serde(rename = "market_resolve")]
    Resolve(Query),
    /// Offers work. Answered by [`ReplyBody::Offered`] or [`ReplyBody::Refused`].
    #[serde(rename = "market_offer")]
    Offer {
        /// What is wanted.
        offer: Offer,
        /// Over [`Offer::signed_bytes`].
        signature: Base64Bytes,
    },
    /// Takes an offer. Answered by [`ReplyBody::Granted`] or [`ReplyBody::Refused`] with
    /// [`RefusalCode::Taken`].
    #[serde(rename = "market_accept")]
    Accept {
        /// Which, and how many slots.
        terms: AcceptTerms,
        /// Over [`AcceptTerms::signed_bytes`].
        signature: Base64Bytes,
    },
    /// Hands in a receipt with both signatures. Answered by [`ReplyBody::Settled`].
    #[serde(rename = "market_settle")]
    Settle {
        /// [`super::SignedReceipt::encode`].
        receipt: Base64Bytes,
    },
    /// Ends an engagement. Answered by [`ReplyBody::Done`]; ending it twice is no error.
    #[serde(rename = "market_release")]
    Release {
        /// Which; the proven node must be one of its ends.
        engagement: EngagementId,
        /// For the record: `finished`, `draining`, `lost` …
        reason: String,
    },
    /// Extends an engagement before it ends; only its requester may. Answered by
    /// [`ReplyBody::Granted`], and the new grant is pushed to the worker.
    #[serde(rename = "market_renew")]
    Renew {
        /// Which.
        engagement: EngagementId,
        /// Tasks to add.
        tasks: u64,
        /// Seconds to add.
        duration_s: u32,
    },
    /// Asks for the standing of a node. Answered by [`ReplyBody::Standing`]; needs no proof.
    #[serde(rename = "market_standing")]
    Standing {
        /// Node id in decimal, address text, or hostname.
        who: String,
    },
    /// Lists the engagements of a node, newest first. Answered by [`ReplyBody::Engagements`].
    #[serde(rename = "market_engagements")]
    Engagements {
        /// Node id, address or hostname; all engagements if absent.
        who: Option<String>,
        /// At most this many rows, 1 to 1,000.
        limit: u32,
    },
}

/// The bytes that [`RequestBody::Prove`] signs.
pub fn prove_bytes(node: NodeId, nonce: &[u8]) -> Vec<u8> {
    super::Canonical::new("ramjet market connection 1")
        .u32(node.0)
        .bytes(nonce)
        .finish()
}

/// Which workers to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Only those that want tasks now (`--capability task-ready`).
    #[serde(default)]
    pub task_ready: bool,
    /// Conditions, all of which must hold.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Least polo.
    #[serde(default)]
    pub min_polo: Option<i64>,
    /// At most this many rows; 0 means 100. At most 1,000.
    #[serde(default)]
    pub limit: u32,
}

/// A reply to the request of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's number.
    pub id: u64,
    /// What is answered.
    #[serde(flatten)]
    pub body: ReplyBody,
}

/// What the registry answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum ReplyBody {
    /// To hello.
    #[serde(rename = "market_hello_ok")]
    Hello {
        /// 32 random bytes to sign.
        nonce: Base64Bytes,
        /// The key under which this registry signs grants.
        registry_key: PublicKey,
    },
    /// To prove.
    #[serde(rename = "market_prove_ok")]
    Proved {
        /// The node's polo now.
        polo: i64,
    },
    /// To advertise.
    #[serde(rename = "market_advertise_ok")]
    Advertised {
        /// Seconds for which it holds.
        lease_s: u32,
    },
    /// To resolve: by polo from the highest, then by node.
    #[serde(rename = "market_resolve_ok")]
    Workers {
        /// One row a worker.
        workers: Vec<WorkerRow>,
    },
    /// To an offer that entered the log.
    #[serde(rename = "market_offer_ok")]
    Offered {
        /// How many workers were notified.
        notified: u32,
        /// Why the others were not, if none was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        diagnosis: Option<Diagnosis>,
    },
    /// To accept (the winner) and to renew.
    #[serde(rename = "market_grant")]
    Granted {
        /// The engagement and its two ends.
        grant: GrantMessage,
    },
    /// To settle. The same receipt handed in again gets the same answer with `repeated`.
    #[serde(rename = "market_settle_ok")]
    Settled {
        /// What it came to.
        settlement: Settlement,
        /// Whether this receipt, or a later one, had been settled before.
        repeated: bool,
    },
    /// To release.
    #[serde(rename = "market_done")]
    Done {},
    /// To standing.
    #[serde(rename = "market_standing_ok")]
    Standing(Standing),
    /// To engagements.
    #[serde(rename = "market_engagements_ok")]
    Engagements {
        /// Newest first.
        engagements: Vec<EngagementRow>,
    },
    /// A request that was understood and refused.
    #[serde(rename = "market_refused")]
    Refused(Refusal),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The kind, for programs. A message that is no request at all is refused as `malformed`.
    pub code: RefusalCode,
    /// For people: what, the value, the bound, what would help.
    pub reason: String,
    /// With [`RefusalCode::Gate`]: both scores and the least that would do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No JSON object of a known shape.
    Malformed,
    /// A field out of its range.
    Invalid,
    /// The connection has not proven a node, or another one than the message names.
    NotProven,
    /// A signature does not verify.
    BadSignature,
    /// No such node, offer or engagement.
    NotFound,
    /// Every capable worker is above the requester's polo, and none has widened its gate for it.
    Gate,
    /// Somebody else's accept came first, or the offer has ended.
    Taken,
    /// The advertisement is older than the one on file.
    Stale,
    /// A receipt contradicts an earlier one or the grant; it is kept as evidence.
    Contradiction,
    /// A limit of this registry is reached; try later.
    Limited,
    /// The registry could not write its log.
    Unavailable,
}

/// Why an offer found nobody to notify: how many workers fell at each step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The requester's polo.
    pub requester_polo: i64,
    /// Workers that advertise the skill and pass the filters.
    pub capable: u32,
    /// Of these, not task-ready or without a live connection.
    pub not_ready: u32,
    /// Of these, below the offer's own `min_polo`.
    pub below_min_polo: u32,
    /// Of these, out of reach by the gate.
    pub above_gate: u32,
    /// The least polo with which the requester would have reached one of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub polo_needed: Option<i64>,
}

/// One worker in an answer to resolve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRow {
    /// The node.
    pub node: NodeId,
    /// Its address text.
    pub address: String,
    /// Its hostname, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its polo.
    pub polo: i64,
    /// Whether it wants tasks now.
    pub task_ready: bool,
    /// All it advertises; `skills` and `model` among them.
    pub capabilities: BTreeMap<String, String>,
}

/// A grant as the registry tells it: the signed bytes, and what each end needs to reach the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantMessage {
    /// [`super::SignedGrant::encode`].
    pub grant: Base64Bytes,
    /// Where the requester was last seen, `ip:port`.
    pub requester_endpoint: String,
    /// Where the worker was last seen, `ip:port`.
    pub worker_endpoint: String,
}

/// What a settled receipt came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// The engagement.
    pub engagement: EngagementId,
    /// The receipt it now stands at.
    pub k: u32,
    /// Accepted results so far.
    pub accepted: u64,
    /// Polo the engagement has earned its worker so far.
    pub earned: i64,
    /// The worker.
    pub worker: NodeId,
    /// The worker's polo before and after this settlement.
    pub worker_polo: (i64, i64),
    /// The requester.
    pub requester: NodeId,
    /// The requester's polo before and after this settlement.
    pub requester_polo: (i64, i64),
    /// Place in the registry's log.
    pub position: u64,
}

/// The standing of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The node.
    pub node: NodeId,
    /// Its address text.
    pub address: String,
    /// Its hostname, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its polo.
    pub polo: i64,
    /// Engagements it worked in, and accepted results in them.
    pub worked: (u64, u64),
    /// Engagements it requested, and offers of its own that expired.
    pub requested: (u64, u64),
}

/// One engagement in a list. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngagementRow {
    /// Its number.
    pub engagement: EngagementId,
    /// Its skill.
    pub skill: String,
    /// Who sends.
    pub requester: NodeId,
    /// Who runs.
    pub worker: NodeId,
    /// `active`, `released` or `expired`.
    pub state: String,
    /// When it was offered and granted.
    pub offered_at_ms: u64,
    /// When the accept was applied.
    pub granted_at_ms: u64,
    /// When it was released, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at_ms: Option<u64>,
    /// The newest settled receipt: 0 if none.
    pub k: u32,
    /// Counters of that receipt.
    pub accepted: u64,
    /// Rejected results.
    pub rejected: u64,
    /// Polo earned.
    pub earned: i64,
}

/// What the registry says unasked on a proven connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Push {
    /// To each worker that may take an offer.
    #[serde(rename = "market_notify")]
    Notify {
        /// What is wanted.
        offer: Offer,
        /// The requester's polo.
        requester_polo: i64,
    },
    /// To the requester whose offer was taken, and to the worker of a renewed engagement.
    #[serde(rename = "market_grant")]
    Grant {
        /// The engagement and its two ends.
        grant: GrantMessage,
    },
    /// To the notified workers that did not get it, and to all of them when it expires.
    #[serde(rename = "market_withdrawn")]
    Withdrawn {
        /// Which offer.
        offer: OfferId,
    },
    /// To the requester: nobody accepted in time.
    #[serde(rename = "market_expired")]
    Expired {
        /// Which offer.
        offer: OfferId,
        /// What it cost and what is left: polo before and after.
        polo: (i64, i64),
        /// How many workers had been notified.
        notified: u32,
        /// Why nobody was notified, if nobody was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        diagnosis: Option<Diagnosis>,
    },
    /// To both ends when a receipt was settled by either.
    #[serde(rename = "market_settled")]
    Settled {
        /// What it came to.
        settlement: Settlement,
    },
    /// To the other end when one released the engagement.
    #[serde(rename = "market_released")]
    Released {
        /// Which.
        engagement: EngagementId,
        /// The reason that was given.
        reason: String,
    },
}

/// Whatever arrives at a node on its market connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromRegistry {
    /// An answer.
    Reply(Reply),
    /// News.
    Push(Push),
}

impl FromRegistry {
    /// Reads one message: a reply if it carries an `id`, else a push.
    ///
    /// # Errors
    /// What serde says of the shape.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let value: serde_json::Value = serde_json::from_slice(json)?;
        if value.get("id").is_some() {
            serde_json::from_value(value).map(FromRegistry::Reply)
        } else {
            serde_json::from_value(value).map(FromRegistry::Push)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_flat_json_with_its_type_and_id() {
        let request = Request {
            id: 4,
            body: RequestBody::Hello { node: NodeId(9) },
        };
        let json = serde_json::to_string(&request).expect("serializes");
        assert_eq!(json, r#"{"id":4,"type":"market_hello","node":9}"#);
        assert_eq!(
            serde_json::from_str::<Request>(&json).expect("parses"),
            request
        );
    }

    #[test]
    fn an_id_sets_a_reply_apart_from_a_push() {
        let reply = r#"{"id":1,"type":"market_done"}"#;
        assert_eq!(
            FromRegistry::parse(reply.as_bytes()).expect("parses"),
            FromRegistry::Reply(Reply {
                id: 1,
                body: ReplyBody::Done {}
            })
        );
        let push = r#"{"type":"market_withdrawn","offer":18446744073709551615}"#;
        assert_eq!(
            FromRegistry::parse(push.as_bytes()).expect("parses"),
            FromRegistry::Push(Push::Withdrawn {
                offer: OfferId(u64::MAX)
            })
        );
    }
}
