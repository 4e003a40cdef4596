//! The grant: the registry's signed permission for one engagement between two named keys.
//!
//! It travels in the registry's push to both ends (base64) and in the OPEN frame (raw), and the
//! worker checks it again before it runs anything. Layout, after the domain string
//! `ramjet grant 1\0` which is signed but not sent:
//!
//! ```text
//!  engagement u64 | offer u64 | requester u32 | worker u32 | requester key 32 | worker key 32 |
//!  requester polo i64 | worker polo i64 | gate u8 | tasks u64 | concurrency u32 |
//!  offered at u64 | granted at u64 | expires at u64 | skill length u8 | skill | signature 64
//! ```

use core::fmt;

use serde::{Deserialize, Serialize};

use super::terms::is_skill_name;
use super::{Canonical, Fields};
use crate::identity::{Identity, PublicKey, Signature};
use crate::ids::{EngagementId, NodeId, OfferId};
use crate::wire::limits::SKILL_LEN_MAX;

const DOMAIN: &str = "ramjet grant 1";
const FIXED_LEN: usize = 8 + 8 + 4 + 4 + 32 + 32 + 8 + 8 + 1 + 8 + 4 + 8 + 8 + 8 + 1;
/// Longest encoded grant.
pub const GRANT_LEN_MAX: usize = FIXED_LEN + SKILL_LEN_MAX + 64;

/// How the requester passed the gate, as judged at the accept's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Gate {
    /// Its polo was at least the worker's.
    Met = 0,
    /// It was below, and the worker widened its gate for it: work for it earns no polo.
    Widened = 1,
}

/// One engagement, as the registry matched it. Times are milliseconds since the Unix epoch, by the
/// registry's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Number of the engagement.
    pub engagement: EngagementId,
    /// The offer it came from.
    pub offer: OfferId,
    /// Who sends tasks.
    pub requester: NodeId,
    /// Who runs them.
    pub worker: NodeId,
    /// The requester's identity.
    pub requester_key: PublicKey,
    /// The worker's identity.
    pub worker_key: PublicKey,
    /// The requester's polo at the match.
    pub requester_polo: i64,
    /// The worker's polo at the match.
    pub worker_polo: i64,
    /// How the gate was passed.
    pub gate: Gate,
    /// Most tasks it may carry.
    pub tasks: u64,
    /// Most tasks outstanding at a time: the channel's slots.
    pub concurrency: u32,
    /// When the offer entered the log.
    pub offered_at_ms: u64,
    /// When the accept entered the log.
    pub granted_at_ms: u64,
    /// When it ends.
    pub expires_at_ms: u64,
    /// The skill.
    pub skill: String,
}

impl Grant {
    fn body(&self) -> Vec<u8> {
        let skill_len = u8::try_from(self.skill.len()).expect("checked by is_skill_name");
        Canonical::default()
            .u64(self.engagement.0)
            .u64(self.offer.0)
            .u32(self.requester.0)
            .u32(self.worker.0)
            .bytes(&self.requester_key.0)
            .bytes(&self.worker_key.0)
            .i64(self.requester_polo)
            .i64(self.worker_polo)
            .u8(self.gate as u8)
            .u64(self.tasks)
            .u32(self.concurrency)
            .u64(self.offered_at_ms)
            .u64(self.granted_at_ms)
            .u64(self.expires_at_ms)
            .u8(skill_len)
            .bytes(self.skill.as_bytes())
            .finish()
    }

    /// Signs it as the registry.
    ///
    /// # Panics
    /// If the skill is no skill name: the registry checks offers before it grants them.
    pub fn sign(self, registry: &Identity) -> SignedGrant {
        assert!(is_skill_name(&self.skill), "a grant for {:?}", self.skill);
        let signature = registry.sign(&signed(&self.body()));
        SignedGrant {
            grant: self,
            signature,
        }
    }
}

fn signed(body: &[u8]) -> Vec<u8> {
    Canonical::new(DOMAIN).bytes(body).finish()
}

/// A grant and the registry's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedGrant {
    /// What is granted.
    pub grant: Grant,
    /// Ed25519 by the registry over the domain string and the body.
    pub signature: Signature,
}

/// Why an encoded grant was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantFault {
    /// Truncated, trailing bytes, or a field out of its range.
    Malformed,
    /// The signature is not the registry's.
    BadSignature,
}

impl fmt::Display for GrantFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GrantFault::Malformed => "the grant is malformed",
            GrantFault::BadSignature => "the grant is not signed by this registry",
        })
    }
}

impl std::error::Error for GrantFault {}

impl SignedGrant {
    /// The wire form: at most [`GRANT_LEN_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.grant.body();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads the wire form. It checks form, not truth: call [`Self::verify`] next.
    ///
    /// # Errors
    /// [`GrantFault::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, GrantFault> {
        Self::parse(bytes).ok_or(GrantFault::Malformed)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let grant = Grant {
            engagement: EngagementId(fields.u64()?),
            offer: OfferId(fields.u64()?),
            requester: NodeId(fields.u32()?),
            worker: NodeId(fields.u32()?),
            requester_key: PublicKey(fields.array()?),
            worker_key: PublicKey(fields.array()?),
            requester_polo: fields.i64()?,
            worker_polo: fields.i64()?,
            gate: match fields.u8()? {
                0 => Gate::Met,
                1 => Gate::Widened,
                _ => return None,
            },
            tasks: fields.u64()?,
            concurrency: fields.u32()?,
            offered_at_ms: fields.u64()?,
            granted_at_ms: fields.u64()?,
            expires_at_ms: fields.u64()?,
            skill: {
                let length = fields.u8()?;
                let skill = core::str::from_utf8(fields.take(usize::from(length))?).ok()?;
                is_skill_name(skill).then(|| skill.to_owned())?
            },
        };
        let signature = fields.array()?;
        fields
            .0
            .is_empty()
            .then_some(SignedGrant { grant, signature })
    }

    /// Checks the registry's signature.
    ///
    /// # Errors
    /// [`GrantFault::BadSignature`].
    pub fn verify(&self, registry: &PublicKey) -> Result<(), GrantFault> {
        if registry.verifies(&signed(&self.grant.body()), &self.signature) {
            Ok(())
        } else {
            Err(GrantFault::BadSignature)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            engagement: EngagementId(7),
            offer: OfferId(0x0102_0304_0506_0708),
            requester: NodeId(2),
            worker: NodeId(1),
            requester_key: PublicKey([2; 32]),
            worker_key: PublicKey([1; 32]),
            requester_polo: -3,
            worker_polo: 12,
            gate: Gate::Widened,
            tasks: 100_000,
            concurrency: 1_024,
            offered_at_ms: 1,
            granted_at_ms: 2,
            expires_at_ms: 3,
            skill: "langid".to_owned(),
        }
    }

    #[test]
    fn a_grant_survives_the_wire_and_every_flipped_bit_is_seen() {
        let registry = Identity::from_seed([9; 32]);
        let signed = grant().sign(&registry);
        let bytes = signed.encode();
        assert!(bytes.len() <= GRANT_LEN_MAX);
        let again = SignedGrant::decode(&bytes).expect("own encoding");
        assert_eq!(again, signed);
        assert_eq!(again.verify(&registry.public()), Ok(()));
        for index in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[index] ^= 0x10;
            let seen =
                SignedGrant::decode(&flipped).and_then(|grant| grant.verify(&registry.public()));
            assert!(seen.is_err(), "byte {index}");
        }
        for length in 0..bytes.len() {
            assert_eq!(
                SignedGrant::decode(&bytes[..length]),
                Err(GrantFault::Malformed)
            );
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(SignedGrant::decode(&longer), Err(GrantFault::Malformed));
    }
}
