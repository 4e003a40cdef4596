//! The account of one engagement, as each end keeps it: pure rules over receipts.
//!
//! A requester signs cumulative receipts, each naming the hash of the one before, and has at most
//! one without a countersignature under way: a newer one replaces it. A worker countersigns a
//! receipt that follows the last one and claims no more than the worker has made; if it claims
//! less, that is the requester's word, and only what it signs for is earned.
//!
//! Absent: the spool, the wire and the clock. Callers write a receipt to the spool before it leaves.

use std::fmt;

use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::EngagementId;
use ramjet_proto::market::{RECEIPT_LEN, Receipt, SignedReceipt};

use super::vocabulary::Totals;

/// Tasks that a receipt accounts for: what a countersignature releases from the unsigned limit.
pub(crate) fn covered(receipt: &Receipt) -> u64 {
    receipt
        .accepted
        .saturating_add(receipt.rejected)
        .saturating_add(receipt.failed)
        .saturating_add(receipt.expired)
}

/// Why a receipt was not accepted by the end it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReceiptRefusal {
    /// Not the bytes of a receipt.
    Malformed,
    /// A signature does not verify: whose.
    BadSignature(&'static str),
    /// It names another engagement.
    WrongEngagement(EngagementId),
    /// Older than the newest one: both numbers.
    Stale { k: u32, newest: u32 },
    /// A counter shrank, or two receipts share a number and differ.
    Contradiction { k: u32, newest: u32 },
    /// It is the next one but does not name the hash of the last.
    BrokenChain { k: u32 },
    /// It claims more than this worker has made: which counter, the claim and what was made.
    MoreThanMade {
        what: &'static str,
        claimed: u64,
        made: u64,
    },
    /// A countersignature for a receipt that was never sent.
    NeverSent { k: u32 },
}

impl ReceiptRefusal {
    /// The name of its counter.
    pub(crate) fn counter(&self) -> &'static str {
        match self {
            ReceiptRefusal::Malformed => "receipt_malformed",
            ReceiptRefusal::BadSignature(_) => "receipt_bad_signature",
            ReceiptRefusal::WrongEngagement(_) => "receipt_wrong_engagement",
            ReceiptRefusal::Stale { .. } => "receipt_stale",
            ReceiptRefusal::Contradiction { .. } => "receipt_contradiction",
            ReceiptRefusal::BrokenChain { .. } => "receipt_broken_chain",
            ReceiptRefusal::MoreThanMade { .. } => "receipt_more_than_made",
            ReceiptRefusal::NeverSent { .. } => "receipt_never_sent",
        }
    }
}

impl fmt::Display for ReceiptRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReceiptRefusal::Malformed => f.write_str("not a receipt"),
            ReceiptRefusal::BadSignature(whose) => {
                write!(f, "the {whose}'s signature does not verify")
            }
            ReceiptRefusal::WrongEngagement(named) => write!(f, "it names engagement {named}"),
            ReceiptRefusal::Stale { k, newest } => write!(f, "k {k} is before {newest}"),
            ReceiptRefusal::Contradiction { k, newest } => {
                write!(f, "k {k} contradicts the signed k {newest}")
            }
            ReceiptRefusal::BrokenChain { k } => {
                write!(
                    f,
                    "k {k} does not name the hash of k {}",
                    k.saturating_sub(1)
                )
            }
            ReceiptRefusal::MoreThanMade {
                what,
                claimed,
                made,
            } => {
                write!(f, "it claims {what} {claimed}, this worker made {made}")
            }
            ReceiptRefusal::NeverSent { k } => write!(f, "k {k} was never sent"),
        }
    }
}

/// The requester's side of one account.
#[derive(Clone, Debug)]
pub(crate) struct RequesterAccount {
    engagement: EngagementId,
    worker_key: PublicKey,
    /// The newest receipt signed here, countersigned or not.
    newest: Option<Receipt>,
    /// The newest with both signatures.
    whole: Option<SignedReceipt>,
}

impl RequesterAccount {
    pub(crate) fn new(engagement: EngagementId, worker_key: PublicKey) -> Self {
        RequesterAccount {
            engagement,
            worker_key,
            newest: None,
            whole: None,
        }
    }

    /// The newest receipt with both signatures.
    pub(crate) fn whole(&self) -> Option<&SignedReceipt> {
        self.whole.as_ref()
    }

    /// The number of the newest receipt with both signatures, 0 if there is none.
    pub(crate) fn whole_k(&self) -> u32 {
        self.whole.map_or(0, |whole| whole.receipt.k)
    }

    /// The number of the newest receipt signed here, 0 if there is none.
    pub(crate) fn newest_k(&self) -> u32 {
        self.newest.map_or(0, |newest| newest.k)
    }

    /// Whether the newest receipt still lacks its countersignature.
    pub(crate) fn in_flight(&self) -> bool {
        self.newest_k() > self.whole_k()
    }

    /// The receipt that `totals` ask for; `None` if the newest one already says as much.
    pub(crate) fn next(&self, totals: &Totals) -> Option<Receipt> {
        let newest = self.newest.unwrap_or_default();
        // Reports overtake nothing, but a counter that went back must not make a receipt that
        // every other party would refuse: the greater of both stands.
        let receipt = Receipt {
            engagement: self.engagement,
            k: newest.k.checked_add(1)?,
            accepted: totals.accepted.max(newest.accepted),
            rejected: totals.rejected.max(newest.rejected),
            failed: totals.failed.max(newest.failed),
            expired: totals.expired.max(newest.expired),
            busy_ns: totals.busy_ns.max(newest.busy_ns),
            staged_ns: totals.staged_ns.max(newest.staged_ns),
            previous: self.newest.map_or([0; 32], |newest| newest.hash()),
        };
        (covered(&receipt) > covered(&newest)).then_some(receipt)
    }

    /// Signs `receipt`, which [`Self::next`] made: from now on it is the newest.
    pub(crate) fn sign(&mut self, receipt: Receipt, requester: &Identity) -> SignedReceipt {
        assert!(
            receipt.k == self.newest_k() + 1,
            "receipts of an engagement are signed in order"
        );
        self.newest = Some(receipt);
        receipt.sign(requester)
    }

    /// Takes a countersigned receipt; `Ok(None)` if it, or a later one, is already here. One that a
    /// newer receipt has replaced meanwhile is still the newest with both signatures.
    ///
    /// # Errors
    /// Why it is not one of ours, countersigned.
    pub(crate) fn countersigned(
        &mut self,
        bytes: &[u8; RECEIPT_LEN],
        requester_key: &PublicKey,
    ) -> Result<Option<SignedReceipt>, ReceiptRefusal> {
        let signed = SignedReceipt::decode(bytes).map_err(|_| ReceiptRefusal::Malformed)?;
        let k = signed.receipt.k;
        if signed.receipt.engagement != self.engagement {
            return Err(ReceiptRefusal::WrongEngagement(signed.receipt.engagement));
        }
        if k == 0 || k > self.newest_k() {
            return Err(ReceiptRefusal::NeverSent { k });
        }
        // Our own signature proves that an older, replaced receipt is one we once sent.
        if signed.verify_requester(requester_key).is_err() {
            return Err(ReceiptRefusal::BadSignature("requester"));
        }
        if signed.verify(requester_key, &self.worker_key).is_err() {
            return Err(ReceiptRefusal::BadSignature("worker"));
        }
        if k <= self.whole_k() {
            return Ok(None);
        }
        self.whole = Some(signed);
        Ok(Some(signed))
    }
}

/// What a worker does with a receipt that is in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Examined {
    /// New: countersign it, spool it, send it back.
    Fresh(SignedReceipt),
    /// The one it countersigned last: send that back again.
    Repeated(SignedReceipt),
}

/// The worker's side of one account.
#[derive(Clone, Debug)]
pub(crate) struct WorkerAccount {
    engagement: EngagementId,
    requester_key: PublicKey,
    whole: Option<SignedReceipt>,
}

impl WorkerAccount {
    pub(crate) fn new(engagement: EngagementId, requester_key: PublicKey) -> Self {
        WorkerAccount {
            engagement,
            requester_key,
            whole: None,
        }
    }

    /// The newest receipt with both signatures.
    pub(crate) fn whole(&self) -> Option<&SignedReceipt> {
        self.whole.as_ref()
    }

    /// The number of the newest receipt with both signatures, 0 if there is none.
    pub(crate) fn whole_k(&self) -> u32 {
        self.whole.map_or(0, |whole| whole.receipt.k)
    }

    /// Judges a receipt against the last one and against what this worker has made.
    ///
    /// # Errors
    /// Why it is refused.
    pub(crate) fn examine(
        &self,
        bytes: &[u8; RECEIPT_LEN],
        made: &Totals,
    ) -> Result<Examined, ReceiptRefusal> {
        let signed = SignedReceipt::decode(bytes).map_err(|_| ReceiptRefusal::Malformed)?;
        let receipt = &signed.receipt;
        if receipt.engagement != self.engagement {
            return Err(ReceiptRefusal::WrongEngagement(receipt.engagement));
        }
        if signed.verify_requester(&self.requester_key).is_err() {
            return Err(ReceiptRefusal::BadSignature("requester"));
        }
        if let Some(whole) = &self.whole {
            let (k, newest) = (receipt.k, whole.receipt.k);
            if *receipt == whole.receipt {
                return Ok(Examined::Repeated(*whole));
            }
            if k < newest {
                return Err(ReceiptRefusal::Stale { k, newest });
            }
            if !receipt.follows(&whole.receipt) {
                return Err(ReceiptRefusal::Contradiction { k, newest });
            }
            if k == newest + 1 && receipt.previous != whole.receipt.hash() {
                return Err(ReceiptRefusal::BrokenChain { k });
            }
        } else if receipt.k == 0 || (receipt.k == 1 && receipt.previous != [0; 32]) {
            return Err(ReceiptRefusal::BrokenChain { k: receipt.k });
        }
        within(receipt, made)?;
        Ok(Examined::Fresh(signed))
    }

    /// Countersigns `fresh`, which [`Self::examine`] found in order: from now on it is the newest.
    pub(crate) fn countersign(&mut self, fresh: SignedReceipt, worker: &Identity) -> SignedReceipt {
        assert!(
            fresh.receipt.k > self.whole_k(),
            "only a fresh receipt is countersigned"
        );
        let whole = fresh.countersign(worker);
        self.whole = Some(whole);
        whole
    }
}

/// Whether a receipt claims no more than was made.
fn within(receipt: &Receipt, made: &Totals) -> Result<(), ReceiptRefusal> {
    let judged = receipt.accepted.saturating_add(receipt.rejected);
    let claims = [
        ("accepted and rejected", judged, made.done),
        ("failed", receipt.failed, made.failed),
        ("expired", receipt.expired, made.expired),
        ("busy_ns", receipt.busy_ns, made.busy_ns),
        ("staged_ns", receipt.staged_ns, made.staged_ns),
    ];
    for (what, claimed, made) in claims {
        if claimed > made {
            return Err(ReceiptRefusal::MoreThanMade {
                what,
                claimed,
                made,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ENGAGEMENT: EngagementId = EngagementId(5);

    fn ends() -> (Identity, Identity) {
        (Identity::from_seed([1; 32]), Identity::from_seed([2; 32]))
    }

    fn accounts() -> (RequesterAccount, WorkerAccount) {
        let (requester, worker) = ends();
        let ours = RequesterAccount::new(ENGAGEMENT, worker.public());
        (ours, WorkerAccount::new(ENGAGEMENT, requester.public()))
    }

    fn totals(accepted: u64, failed: u64) -> Totals {
        Totals {
            done: accepted,
            accepted,
            failed,
            busy_ns: accepted * 10,
            staged_ns: accepted,
            ..Totals::default()
        }
    }

    #[test]
    fn a_worker_signs_for_less_than_it_made_but_never_for_more() {
        let (requester, worker) = ends();
        let (mut ours, mut theirs) = accounts();
        let receipt = ours.next(&totals(10, 2)).expect("work to sign for");
        let half = ours.sign(receipt, &requester).encode();
        let short = totals(9, 2);
        assert_eq!(
            theirs.examine(&half, &short),
            Err(ReceiptRefusal::MoreThanMade {
                what: "accepted and rejected",
                claimed: 10,
                made: 9
            })
        );
        let busy = Totals {
            busy_ns: 99,
            ..totals(10, 2)
        };
        assert_eq!(
            theirs.examine(&half, &busy),
            Err(ReceiptRefusal::MoreThanMade {
                what: "busy_ns",
                claimed: 100,
                made: 99
            })
        );
        let Ok(Examined::Fresh(fresh)) = theirs.examine(&half, &totals(11, 2)) else {
            panic!("less than was made is the requester's word");
        };
        let whole = theirs.countersign(fresh, &worker);
        assert_eq!(
            theirs.examine(&half, &totals(11, 2)),
            Ok(Examined::Repeated(whole))
        );
        let taken = ours.countersigned(&whole.encode(), &requester.public());
        assert_eq!(taken, Ok(Some(whole)));
        assert_eq!(
            ours.countersigned(&whole.encode(), &requester.public()),
            Ok(None)
        );
        assert_eq!(ours.next(&totals(10, 2)), None, "nothing new to sign for");
    }

    #[test]
    fn contradictions_and_forgeries_are_told_apart() {
        let (requester, worker) = ends();
        let (mut ours, mut theirs) = accounts();
        let made = totals(100, 0);
        let first = ours.next(&totals(10, 0)).expect("work");
        let half = ours.sign(first, &requester);
        let Ok(Examined::Fresh(fresh)) = theirs.examine(&half.encode(), &made) else {
            panic!("in order")
        };
        theirs.countersign(fresh, &worker);
        let second = ours.next(&totals(20, 0)).expect("work");
        let forged = second.sign(&worker).encode();
        assert_eq!(
            theirs.examine(&forged, &made),
            Err(ReceiptRefusal::BadSignature("requester"))
        );
        let shrunk = Receipt {
            accepted: 9,
            ..second
        }
        .sign(&requester)
        .encode();
        assert_eq!(
            theirs.examine(&shrunk, &made),
            Err(ReceiptRefusal::Contradiction { k: 2, newest: 1 })
        );
        let twin = Receipt {
            accepted: 11,
            ..first
        }
        .sign(&requester)
        .encode();
        assert_eq!(
            theirs.examine(&twin, &made),
            Err(ReceiptRefusal::Contradiction { k: 1, newest: 1 })
        );
        let unchained = Receipt {
            previous: [9; 32],
            ..second
        }
        .sign(&requester)
        .encode();
        assert_eq!(
            theirs.examine(&unchained, &made),
            Err(ReceiptRefusal::BrokenChain { k: 2 })
        );
        let other = EngagementId(6);
        let foreign = Receipt {
            engagement: other,
            ..second
        }
        .sign(&requester)
        .encode();
        assert_eq!(
            theirs.examine(&foreign, &made),
            Err(ReceiptRefusal::WrongEngagement(other))
        );
        // The worker cannot countersign what it was never sent, nor forge the requester's half.
        let invented = second.sign(&requester).countersign(&worker).encode();
        let key = requester.public();
        assert_eq!(
            ours.countersigned(&invented, &key),
            Err(ReceiptRefusal::NeverSent { k: 2 })
        );
        let forged = Receipt {
            accepted: 90,
            ..first
        }
        .sign(&worker)
        .countersign(&worker)
        .encode();
        assert_eq!(
            ours.countersigned(&forged, &key),
            Err(ReceiptRefusal::BadSignature("requester"))
        );
        assert_eq!(
            ours.countersigned(&half.encode(), &key),
            Err(ReceiptRefusal::BadSignature("worker"))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever is lost or repeated between the two ends: both agree on the newest receipt
        /// with both signatures once one more exchange gets through, and it never claims more
        /// than was made nor less than an earlier one.
        #[test]
        fn both_ends_come_to_the_same_account(
            steps in prop::collection::vec((0_u64..50, 0_u64..5, any::<bool>(), any::<bool>()), 1..12),
        ) {
            let (requester, worker) = ends();
            let key = requester.public();
            let (mut ours, mut theirs) = accounts();
            let mut so_far = Totals::default();
            let mut sent: Option<SignedReceipt> = None;
            let mut last = Receipt::default();
            let final_step = (1, 0, true, true);
            for (accepted, failed, arrives, returns) in steps.into_iter().chain([final_step]) {
                so_far = totals(so_far.accepted + accepted, so_far.failed + failed);
                if let Some(receipt) = ours.next(&so_far) {
                    sent = Some(ours.sign(receipt, &requester));
                }
                let Some(half) = sent.filter(|_| arrives) else { continue };
                let whole = match theirs.examine(&half.encode(), &so_far) {
                    Ok(Examined::Fresh(fresh)) => theirs.countersign(fresh, &worker),
                    Ok(Examined::Repeated(whole)) => whole,
                    Err(refusal) => panic!("{refusal}"),
                };
                prop_assert!(whole.receipt == last || whole.receipt.k > last.k);
                prop_assert!(covered(&whole.receipt) >= covered(&last));
                last = whole.receipt;
                if returns {
                    prop_assert!(ours.countersigned(&whole.encode(), &key).is_ok());
                }
            }
            prop_assert!(!ours.in_flight());
            prop_assert_eq!(ours.whole(), theirs.whole());
            prop_assert_eq!(covered(&last), so_far.accepted + so_far.failed);
        }
    }
}
