//! The words of the log: every change of the registry's state is one of these commands.
//!
//! A command is logged after its signatures were verified and the state has said that it changes
//! something; replaying the log therefore needs no key and refuses nothing. Commands are stored as
//! JSON, so that a later version reads an earlier log as long as it keeps the names.
//!
//! Absent: queries, heartbeats and the liveness of connections, which change no state.

use core::fmt;

use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::{EngagementId, NodeId, OfferId};
use ramjet_proto::market::message::{Base64Bytes, Diagnosis, Refusal, RefusalCode, Settlement};
use ramjet_proto::market::{AcceptTerms, Advertisement, Offer};
use serde::{Deserialize, Serialize};

use crate::config::Rules;
use crate::fault::Count;

/// One entry of the log; its position is its key in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was applied, in milliseconds since the Unix epoch; never before its predecessor.
    pub at_ms: u64,
    /// What was applied.
    pub command: Command,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The configuration's part in the state.
    Rules(Rules),
    /// The registry was silent: open offers start their time again, and expire free of charge.
    Interrupted,
    /// A node comes, or comes back.
    Register(Registration),
    /// A node goes; its polo stays.
    Deregister {
        /// Which.
        node: NodeId,
    },
    /// Names a node; empty takes the name away.
    Hostname {
        /// Which.
        node: NodeId,
        /// The name.
        hostname: String,
    },
    /// Shows or hides a node's endpoint.
    Visibility {
        /// Which.
        node: NodeId,
        /// Whether anyone may resolve it.
        public: bool,
    },
    /// Replaces a node's tags.
    Tags {
        /// Which.
        node: NodeId,
        /// Without `#`.
        tags: Vec<String>,
    },
    /// Pilot's flag of a node that serves tasks; informational.
    TaskExec {
        /// Which.
        node: NodeId,
        /// The flag.
        enabled: bool,
    },
    /// Unsigned Pilot polo, in closed test networks.
    SetPolo {
        /// Which.
        node: NodeId,
        /// The new score.
        polo: i64,
    },
    /// Unsigned Pilot polo, in closed test networks.
    MovePolo {
        /// Which.
        node: NodeId,
        /// The difference.
        delta: i64,
    },
    /// `node` trusts `peer`.
    ReportTrust {
        /// Who trusts.
        node: NodeId,
        /// Whom.
        peer: NodeId,
    },
    /// Ends trust in both directions.
    RevokeTrust {
        /// Who ends it.
        node: NodeId,
        /// With whom.
        peer: NodeId,
    },
    /// Puts a handshake request into an inbox.
    RequestHandshake {
        /// Who asks.
        from: NodeId,
        /// Whom.
        to: NodeId,
        /// For people.
        justification: String,
    },
    /// Empties both inboxes of a node.
    CollectHandshakes {
        /// Which.
        node: NodeId,
    },
    /// Answers a handshake request.
    RespondHandshake {
        /// Who was asked.
        node: NodeId,
        /// Who asked.
        peer: NodeId,
        /// The answer.
        accept: bool,
    },
    /// Replaces a node's key.
    RotateKey {
        /// Which.
        node: NodeId,
        /// The new key.
        key: PublicKey,
    },
    /// Replaces what a node advertises.
    Advertise(Advertisement),
    /// Opens an offer.
    Offer(Offer),
    /// Takes an offer.
    Accept(AcceptTerms),
    /// An offer reached its deadline.
    ExpireOffer {
        /// Which.
        offer: OfferId,
    },
    /// A receipt with both signatures.
    Settle {
        /// Its wire form; kept as evidence of what both ends signed.
        receipt: Base64Bytes,
    },
    /// Ends an engagement.
    Release {
        /// Which.
        engagement: EngagementId,
        /// Who ends it.
        node: NodeId,
        /// Why, for the record.
        reason: String,
    },
    /// Extends an engagement.
    Renew {
        /// Which.
        engagement: EngagementId,
        /// Its requester.
        node: NodeId,
        /// Tasks to add.
        tasks: u64,
        /// Seconds to add.
        duration_s: u32,
    },
}

/// What a node says when it registers, with the endpoint as the registry will tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The identity.
    pub key: PublicKey,
    /// Whether the message carried a valid signature of that key.
    pub signed: bool,
    /// `ip:port`.
    pub endpoint: String,
    /// A label; it gives no right to anything.
    pub owner: String,
    /// A wish; empty if none.
    pub hostname: String,
    /// The peer's software.
    pub version: String,
    /// Addresses on its own network.
    pub lan_addrs: Vec<String>,
    /// Whether it can only be reached over the beacon.
    pub relay_only: bool,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds now; nothing to add.
    Done,
    /// To a registration.
    Registered {
        /// The node's id.
        node: NodeId,
        /// Why the wished hostname was not given.
        hostname_error: Option<String>,
    },
    /// The inboxes, emptied.
    Handshakes(crate::trust::Inbox),
    /// The score after an unsigned change.
    Polo(i64),
    /// To an offer that is open, now or still.
    Offered,
    /// To an offer that was already granted: repeated by a requester that missed the grant.
    OfferGranted(EngagementId),
    /// To an accept that won.
    Granted {
        /// The engagement.
        engagement: EngagementId,
        /// Whether the same worker had won it before.
        repeated: bool,
    },
    /// To a deadline.
    OfferExpired {
        /// Who had offered.
        requester: NodeId,
        /// Its polo before and after.
        polo: (i64, i64),
    },
    /// To a receipt.
    Settled {
        /// What it came to.
        settlement: Settlement,
        /// Whether it, or a later one, was known.
        repeated: bool,
    },
    /// To a release.
    Released {
        /// The other end, if this release was the first.
        other: Option<NodeId>,
    },
    /// To a renewal.
    Renewed {
        /// The worker.
        worker: NodeId,
    },
}

/// Why something was refused: the kind for programs, and the sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The kind.
    pub why: Why,
    /// What, the value, the bound, what would help.
    pub reason: String,
    /// With [`Why::Gate`].
    pub diagnosis: Option<Box<Diagnosis>>,
}

impl Refused {
    /// A refusal without a diagnosis.
    pub fn new(why: Why, reason: impl Into<String>) -> Self {
        Refused {
            why,
            reason: reason.into(),
            diagnosis: None,
        }
    }

    /// No such node; the words are those by which Pilot daemons know to register again.
    pub fn no_node(node: NodeId) -> Self {
        Refused::new(Why::NotFound, format!("node {node}: node not found"))
    }

    /// The form of the market messages.
    pub fn into_message(self) -> Refusal {
        Refusal {
            code: self.why.code(),
            reason: self.reason,
            diagnosis: self.diagnosis.map(|diagnosis| *diagnosis),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The kinds of refusal; see [`RefusalCode`] and the counters of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Two signed statements exclude each other.
    Contradiction,
    /// The polo gate.
    Gate,
    /// A field out of its range.
    Invalid,
    /// A limit is reached.
    Limited,
    /// No message of a known shape.
    Malformed,
    /// Nothing by that name.
    NotFound,
    /// The connection has not proven the node.
    NotProven,
    /// The node is private and has not opened itself to the asker.
    Private,
    /// A signature is missing or wrong.
    Signature,
    /// Older than what is on file.
    Stale,
    /// Somebody else was first, or it has ended.
    Taken,
    /// The log could not be written.
    Unavailable,
    /// This registry does not offer that.
    Unsupported,
}

impl Why {
    /// The code in market messages.
    pub const fn code(self) -> RefusalCode {
        match self {
            Why::Contradiction => RefusalCode::Contradiction,
            Why::Gate => RefusalCode::Gate,
            Why::Invalid | Why::Unsupported => RefusalCode::Invalid,
            Why::Limited => RefusalCode::Limited,
            Why::Malformed => RefusalCode::Malformed,
            Why::NotFound | Why::Private => RefusalCode::NotFound,
            Why::NotProven => RefusalCode::NotProven,
            Why::Signature => RefusalCode::BadSignature,
            Why::Stale => RefusalCode::Stale,
            Why::Taken => RefusalCode::Taken,
            Why::Unavailable => RefusalCode::Unavailable,
        }
    }

    /// Its counter.
    pub const fn count(self) -> Count {
        match self {
            Why::Contradiction => Count::RefusedContradiction,
            Why::Gate => Count::RefusedGate,
            Why::Invalid => Count::RefusedInvalid,
            Why::Limited => Count::RefusedLimited,
            Why::Malformed => Count::MessageMalformed,
            Why::NotFound => Count::RefusedNotFound,
            Why::NotProven => Count::RefusedNotProven,
            Why::Private => Count::RefusedPrivate,
            Why::Signature => Count::RefusedSignature,
            Why::Stale => Count::RefusedStale,
            Why::Taken => Count::RefusedTaken,
            Why::Unavailable => Count::RefusedUnavailable,
            Why::Unsupported => Count::RefusedUnsupported,
        }
    }
}
