//! The receipt: what an engagement has come to so far, signed by both ends.
//!
//! Counters are cumulative, `k` counts the receipts of an engagement from 1, and each names the
//! hash of its predecessor. The state that an engagement settles to is its receipt with the
//! greatest `k`, whatever was lost, repeated or reordered on the way. Layout (220 bytes), after the
//! domain string `ramjet receipt 1\0` which is signed but not sent:
//!
//! ```text
//!  engagement u64 | k u32 | accepted u64 | rejected u64 | failed u64 | expired u64 |
//!  busy nanoseconds u64 | staged nanoseconds u64 | SHA-256 of receipt k-1 32 |
//!  requester's signature 64 | worker's signature 64 (zero until it countersigns)
//! ```
//!
//! The time an offer lay idle is not in it: both times are in the registry's own log.

use core::fmt;

use aws_lc_rs::digest::{SHA256, digest};

use super::{Canonical, Fields};
use crate::identity::{Identity, PublicKey, Signature};
use crate::ids::EngagementId;

const DOMAIN: &str = "ramjet receipt 1";
const BODY_LEN: usize = 8 + 4 + 4 * 8 + 2 * 8 + 32;
/// Length of an encoded receipt with both signatures.
pub const RECEIPT_LEN: usize = BODY_LEN + 64 + 64;

/// The cumulative account of one engagement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The engagement.
    pub engagement: EngagementId,
    /// Counts the receipts of the engagement from 1.
    pub k: u32,
    /// Results the requester holds and accepted.
    pub accepted: u64,
    /// Results the requester holds and rejected: they earn nothing.
    pub rejected: u64,
    /// Tasks whose handler failed.
    pub failed: u64,
    /// Tasks that the worker refused because their deadline had passed.
    pub expired: u64,
    /// Handler time of the accepted results, in nanoseconds.
    pub busy_ns: u64,
    /// Time the accepted tasks waited at the worker before they ran, in nanoseconds.
    pub staged_ns: u64,
    /// SHA-256 of the signed bytes of receipt `k - 1`; zero for the first.
    pub previous: [u8; 32],
}

impl Receipt {
    fn body(&self) -> Vec<u8> {
        Canonical::default()
            .u64(self.engagement.0)
            .u32(self.k)
            .u64(self.accepted)
            .u64(self.rejected)
            .u64(self.failed)
            .u64(self.expired)
            .u64(self.busy_ns)
            .u64(self.staged_ns)
            .bytes(&self.previous)
            .finish()
    }

    /// The bytes both ends sign.
    pub fn signed_bytes(&self) -> Vec<u8> {
        Canonical::new(DOMAIN).bytes(&self.body()).finish()
    }

    /// SHA-256 of [`Self::signed_bytes`]: what the next receipt names as `previous`.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &self.signed_bytes()).as_ref());
        hash
    }

    /// Whether this receipt may follow `earlier`: same engagement, greater `k`, no counter smaller.
    pub fn follows(&self, earlier: &Receipt) -> bool {
        self.engagement == earlier.engagement
            && self.k > earlier.k
            && self.accepted >= earlier.accepted
            && self.rejected >= earlier.rejected
            && self.failed >= earlier.failed
            && self.expired >= earlier.expired
            && self.busy_ns >= earlier.busy_ns
            && self.staged_ns >= earlier.staged_ns
    }

    /// Signs it as the requester; the worker's half stays empty.
    pub fn sign(self, requester: &Identity) -> SignedReceipt {
        let requester_signature = requester.sign(&self.signed_bytes());
        SignedReceipt {
            receipt: self,
            requester_signature,
            worker_signature: [0; 64],
        }
    }
}

/// A receipt and its signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedReceipt {
    /// The account.
    pub receipt: Receipt,
    /// The requester's signature: it holds these results.
    pub requester_signature: Signature,
    /// The worker's signature over the same bytes; zero until it countersigns.
    pub worker_signature: Signature,
}

/// Why an encoded receipt was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptFault {
    /// Not [`RECEIPT_LEN`] bytes.
    Malformed,
    /// The requester's signature does not verify.
    BadRequesterSignature,
    /// The worker's signature does not verify.
    BadWorkerSignature,
}

impl fmt::Display for ReceiptFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReceiptFault::Malformed => "the receipt is malformed",
            ReceiptFault::BadRequesterSignature => "the requester's signature does not verify",
            ReceiptFault::BadWorkerSignature => "the worker's signature does not verify",
        })
    }
}

impl std::error::Error for ReceiptFault {}

impl SignedReceipt {
    /// Adds the worker's signature.
    pub fn countersign(mut self, worker: &Identity) -> Self {
        self.worker_signature = worker.sign(&self.receipt.signed_bytes());
        self
    }

    /// The wire form.
    pub fn encode(&self) -> [u8; RECEIPT_LEN] {
        let mut bytes = [0; RECEIPT_LEN];
        bytes[..BODY_LEN].copy_from_slice(&self.receipt.body());
        bytes[BODY_LEN..BODY_LEN + 64].copy_from_slice(&self.requester_signature);
        bytes[BODY_LEN + 64..].copy_from_slice(&self.worker_signature);
        bytes
    }

    /// Reads the wire form. It checks form, not truth.
    ///
    /// # Errors
    /// [`ReceiptFault::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ReceiptFault> {
        Self::parse(bytes).ok_or(ReceiptFault::Malformed)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let receipt = Receipt {
            engagement: EngagementId(fields.u64()?),
            k: fields.u32()?,
            accepted: fields.u64()?,
            rejected: fields.u64()?,
            failed: fields.u64()?,
            expired: fields.u64()?,
            busy_ns: fields.u64()?,
            staged_ns: fields.u64()?,
            previous: fields.array()?,
        };
        let requester_signature = fields.array()?;
        let worker_signature = fields.array()?;
        fields.0.is_empty().then_some(SignedReceipt {
            receipt,
            requester_signature,
            worker_signature,
        })
    }

    /// Checks the requester's signature.
    ///
    /// # Errors
    /// [`ReceiptFault::BadRequesterSignature`].
    pub fn verify_requester(&self, requester: &PublicKey) -> Result<(), ReceiptFault> {
        let signed = self.receipt.signed_bytes();
        if requester.verifies(&signed, &self.requester_signature) {
            Ok(())
        } else {
            Err(ReceiptFault::BadRequesterSignature)
        }
    }

    /// Checks both signatures.
    ///
    /// # Errors
    /// The fault of the first that fails.
    pub fn verify(&self, requester: &PublicKey, worker: &PublicKey) -> Result<(), ReceiptFault> {
        self.verify_requester(requester)?;
        if worker.verifies(&self.receipt.signed_bytes(), &self.worker_signature) {
            Ok(())
        } else {
            Err(ReceiptFault::BadWorkerSignature)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_survives_the_wire_and_needs_both_keys() {
        let (requester, worker) = (Identity::from_seed([1; 32]), Identity::from_seed([2; 32]));
        let receipt = Receipt {
            engagement: EngagementId(3),
            k: 2,
            accepted: 50,
            busy_ns: 1_000,
            ..Receipt::default()
        };
        let half = receipt.sign(&requester);
        assert_eq!(
            half.verify(&requester.public(), &worker.public()),
            Err(ReceiptFault::BadWorkerSignature)
        );
        let whole = half.countersign(&worker);
        let again = SignedReceipt::decode(&whole.encode()).expect("own encoding");
        assert_eq!(again, whole);
        assert_eq!(again.verify(&requester.public(), &worker.public()), Ok(()));
        assert_eq!(
            again.verify(&worker.public(), &requester.public()),
            Err(ReceiptFault::BadRequesterSignature)
        );
    }

    #[test]
    fn no_counter_may_shrink() {
        let first = Receipt {
            k: 1,
            accepted: 5,
            busy_ns: 9,
            ..Receipt::default()
        };
        let more = Receipt {
            k: 2,
            accepted: 6,
            busy_ns: 9,
            ..Receipt::default()
        };
        let less = Receipt {
            k: 3,
            accepted: 5,
            busy_ns: 9,
            ..Receipt::default()
        };
        assert!(more.follows(&first));
        assert!(!less.follows(&more));
        assert!(!first.follows(&first));
    }
}
