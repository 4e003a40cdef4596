//! Trust between two nodes: the message of port 444.
//!
//! One JSON object a stream, without a length before it, at most 64 KiB. The signature covers
//! `handshake:<sender>:<receiver>` and nothing else, so the time and the kind of a message are only as
//! good as the tunnel it came over; a captured one is held off by its age and by the set of digests
//! that a receiver keeps.

use core::fmt;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::bounded;
use crate::identity::{Identity, PublicKey};
use crate::ids::NodeId;

/// Longest message, in bytes.
pub const HANDSHAKE_LEN_MAX: usize = 64 << 10;
/// Longest justification and reason, in characters.
pub const JUSTIFICATION_LEN_MAX: usize = 1_024;
/// Oldest message that is taken, in seconds.
pub const AGE_MAX_S: u64 = 300;
/// How far in the future a message may be dated, in seconds.
pub const SKEW_MAX_S: u64 = 30;

/// What a handshake says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandshakeKind {
    /// Please trust me.
    #[serde(rename = "handshake_request")]
    Request,
    /// I trust you.
    #[serde(rename = "handshake_accept")]
    Accept,
    /// I do not.
    #[serde(rename = "handshake_reject")]
    Reject,
    /// I do not any more.
    #[serde(rename = "handshake_revoke")]
    Revoke,
}

/// A message of port 444.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// What it says.
    #[serde(rename = "type")]
    pub kind: HandshakeKind,
    /// Its sender.
    pub node_id: NodeId,
    /// The sender's key, base64.
    #[serde(default)]
    pub public_key: String,
    /// Why, of a request.
    #[serde(default)]
    pub justification: String,
    /// Over `handshake:<sender>:<receiver>`, base64.
    #[serde(default)]
    pub signature: String,
    /// Why, of a rejection.
    #[serde(default)]
    pub reason: String,
    /// When, in seconds since 1970.
    #[serde(default)]
    pub timestamp: u64,
    /// Tells messages of one second apart, which receivers know by their digest; other daemons send
    /// none and ignore it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nonce: String,
}

/// Why a handshake is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFault {
    /// It names another sender than the stream.
    OtherSender(NodeId),
    /// Older than [`AGE_MAX_S`]: its age in seconds.
    Stale(u64),
    /// Dated more than [`SKEW_MAX_S`] ahead: by how many seconds.
    Future(u64),
    /// Its key is not the one that the registry has for its sender, or it has none.
    OtherKey,
    /// The signature is not its sender's over this pair of nodes.
    BadSignature,
}

impl fmt::Display for HandshakeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeFault::OtherSender(node) => {
                write!(f, "it names node {node} as its sender")
            }
            HandshakeFault::Stale(age_s) => {
                write!(f, "it is {age_s} s old, at most {AGE_MAX_S}")
            }
            HandshakeFault::Future(ahead_s) => {
                write!(f, "it is dated {ahead_s} s ahead, at most {SKEW_MAX_S}")
            }
            HandshakeFault::OtherKey => f.write_str("its key is not its sender's at the registry"),
            HandshakeFault::BadSignature => f.write_str("its signature does not verify"),
        }
    }
}

impl Handshake {
    /// A signed message from `sender` to `receiver`, dated `unix_s`.
    /// `nonce` is drawn at random, or empty for a message as other daemons write it.
    pub fn new(
        kind: HandshakeKind,
        identity: &Identity,
        (sender, receiver): (NodeId, NodeId),
        text: &str,
        (unix_s, nonce): (u64, String),
    ) -> Self {
        let text = bounded(text, JUSTIFICATION_LEN_MAX);
        let (justification, reason) = match kind {
            HandshakeKind::Request => (text, String::new()),
            HandshakeKind::Accept | HandshakeKind::Reject | HandshakeKind::Revoke => {
                (String::new(), text)
            }
        };
        Handshake {
            kind,
            node_id: sender,
            public_key: identity.public().to_base64(),
            justification,
            signature: BASE64.encode(identity.sign(challenge(sender, receiver).as_bytes())),
            reason,
            timestamp: unix_s,
            nonce,
        }
    }

    /// Its JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers serialize")
    }

    /// Whether it is from `sender`, whose key at the registry is `key`, to `receiver`, now.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn check(
        &self,
        sender: NodeId,
        key: &PublicKey,
        receiver: NodeId,
        unix_s: u64,
    ) -> Result<(), HandshakeFault> {
        if self.node_id != sender {
            return Err(HandshakeFault::OtherSender(self.node_id));
        }
        let age = unix_s.saturating_sub(self.timestamp);
        if age > AGE_MAX_S {
            return Err(HandshakeFault::Stale(age));
        }
        let ahead = self.timestamp.saturating_sub(unix_s);
        if ahead > SKEW_MAX_S {
            return Err(HandshakeFault::Future(ahead));
        }
        if PublicKey::from_base64(&self.public_key).as_ref() != Some(key) {
            return Err(HandshakeFault::OtherKey);
        }
        let signature = BASE64.decode(&self.signature).unwrap_or_default();
        if !key.verifies(challenge(sender, receiver).as_bytes(), &signature) {
            return Err(HandshakeFault::BadSignature);
        }
        Ok(())
    }
}

fn challenge(sender: NodeId, receiver: NodeId) -> String {
    format!("handshake:{sender}:{receiver}")
}

/// Gathers the one message of a stream.
#[derive(Debug, Default)]
pub struct HandshakeReader {
    bytes: Vec<u8>,
}

/// A message and the digest by which a repeat is known.
pub type Received = (Handshake, [u8; 32]);

impl HandshakeReader {
    /// Takes a chunk; the message once it is whole. What follows it is ignored.
    ///
    /// # Errors
    /// What is wrong with it: the stream carries no message then.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Option<Received>, String> {
        let len = self.bytes.len() + chunk.len();
        if len > HANDSHAKE_LEN_MAX {
            return Err(format!(
                "a handshake of {len} bytes or more, at most {HANDSHAKE_LEN_MAX}"
            ));
        }
        self.bytes.extend_from_slice(chunk);
        let mut values = serde_json::Deserializer::from_slice(&self.bytes).into_iter();
        let mut message: Handshake = match values.next() {
            None => return Ok(None),
            Some(Ok(message)) => message,
            Some(Err(error)) if error.is_eof() => return Ok(None),
            Some(Err(error)) => return Err(format!("a handshake that cannot be read: {error}")),
        };
        let whole = &self.bytes[..values.byte_offset()];
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest::digest(&digest::SHA256, whole).as_ref());
        message.justification = bounded(&message.justification, JUSTIFICATION_LEN_MAX);
        message.reason = bounded(&message.reason, JUSTIFICATION_LEN_MAX);
        Ok(Some((message, sha256)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_777_000_000;

    fn request() -> (Identity, Handshake) {
        let identity = Identity::from_seed([3; 32]);
        let pair = (NodeId(3), NodeId(4));
        let message = Handshake::new(
            HandshakeKind::Request,
            &identity,
            pair,
            "work",
            (NOW, String::new()),
        );
        (identity, message)
    }

    #[test]
    fn a_message_has_every_member_of_a_daemons() {
        let (identity, message) = request();
        let value: serde_json::Value =
            serde_json::from_slice(&message.to_bytes()).expect("own JSON");
        let members: Vec<&str> = value
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            members,
            [
                "justification",
                "node_id",
                "public_key",
                "reason",
                "signature",
                "timestamp",
                "type"
            ]
        );
        assert_eq!(value["type"], "handshake_request");
        assert_eq!(value["node_id"], 3);
        assert_eq!(value["public_key"], identity.public().to_base64());
        let signature = BASE64
            .decode(value["signature"].as_str().expect("text"))
            .expect("base64");
        assert!(identity.public().verifies(b"handshake:3:4", &signature));
    }

    #[test]
    fn only_a_fresh_message_of_its_sender_is_believed() {
        let (identity, message) = request();
        let key = identity.public();
        let check = |message: &Handshake, now| message.check(NodeId(3), &key, NodeId(4), now);
        for now in [NOW - SKEW_MAX_S, NOW, NOW + AGE_MAX_S] {
            assert_eq!(check(&message, now), Ok(()));
        }
        assert_eq!(
            check(&message, NOW + AGE_MAX_S + 1),
            Err(HandshakeFault::Stale(301))
        );
        assert_eq!(
            check(&message, NOW - SKEW_MAX_S - 1),
            Err(HandshakeFault::Future(31))
        );
        assert_eq!(
            message.check(NodeId(9), &key, NodeId(4), NOW),
            Err(HandshakeFault::OtherSender(NodeId(3)))
        );
        assert_eq!(
            message.check(NodeId(3), &key, NodeId(5), NOW),
            Err(HandshakeFault::BadSignature)
        );
        let unsigned = Handshake {
            signature: String::new(),
            ..message.clone()
        };
        assert_eq!(check(&unsigned, NOW), Err(HandshakeFault::BadSignature));
        let keyless = Handshake {
            public_key: String::new(),
            ..message
        };
        assert_eq!(check(&keyless, NOW), Err(HandshakeFault::OtherKey));
    }

    #[test]
    fn what_is_no_handshake_or_too_long_is_named() {
        for text in ["[]", "{}", "x", r#"{"type":"handshake_maybe","node_id":1}"#] {
            let fault = HandshakeReader::default().push(text.as_bytes());
            assert!(fault.is_err(), "{text}");
        }
        let mut reader = HandshakeReader::default();
        let head = format!("{{\"reason\":\"{}", "x".repeat(HANDSHAKE_LEN_MAX - 11));
        assert_eq!(reader.push(head.as_bytes()), Ok(None));
        assert!(reader.push(b"x").is_err_and(|why| why.contains("65537")));
    }

    proptest! {
        #[test]
        fn a_message_in_chunks_is_the_message(cut in 1usize..60, trailing in "[ a-z]{0,9}") {
            let (_, message) = request();
            let mut bytes = message.to_bytes();
            bytes.extend_from_slice(trailing.as_bytes());
            let mut reader = HandshakeReader::default();
            let mut received = None;
            for chunk in bytes.chunks(cut) {
                received = reader.push(chunk).expect("well formed");
                if received.is_some() {
                    break;
                }
            }
            let (received, _) = received.expect("whole");
            prop_assert_eq!(received, message);
        }

        #[test]
        fn any_bytes_are_read_or_named(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let mut reader = HandshakeReader::default();
            for chunk in bytes.chunks(7) {
                if reader.push(chunk).is_err() {
                    break;
                }
            }
        }
    }
}
