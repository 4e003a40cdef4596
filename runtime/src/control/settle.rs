//! Which receipts still have to reach the registry, and when.
//!
//! A row is one engagement and its newest receipt with both signatures. It is handed in until the
//! registry says that it stands at that receipt or a later one; a lost connection puts what was
//! under way back. Handing in twice is harmless: an engagement settles to its greatest `k`.

use std::collections::BTreeMap;
use std::time::Duration;

use ramjet_proto::ids::EngagementId;
use ramjet_proto::market::SignedReceipt;
use ramjet_proto::time::Time;

/// Settlements under way at a time.
pub(crate) const IN_FLIGHT_MAX: usize = 64;

#[derive(Clone, Debug)]
struct Row {
    whole: SignedReceipt,
    in_flight: Option<u32>,
    not_before: Time,
}

/// The receipts on their way.
#[derive(Debug, Default)]
pub(crate) struct Settler {
    rows: BTreeMap<EngagementId, Row>,
    in_flight: usize,
}

impl Settler {
    /// Wants `whole` settled, not before the moment given. It replaces an earlier receipt of its
    /// engagement.
    pub(crate) fn want(&mut self, whole: SignedReceipt, not_before: Time) {
        let row = self.rows.entry(whole.receipt.engagement).or_insert(Row {
            whole,
            in_flight: None,
            not_before,
        });
        if whole.receipt.k >= row.whole.receipt.k {
            row.whole = whole;
            row.not_before = not_before;
        }
    }

    /// Takes the receipts that are due, marked as under way.
    pub(crate) fn take_due(&mut self, now: Time) -> Vec<SignedReceipt> {
        let mut due = Vec::new();
        for row in self.rows.values_mut() {
            if self.in_flight >= IN_FLIGHT_MAX {
                break;
            }
            if row.in_flight.is_none() && row.not_before <= now {
                row.in_flight = Some(row.whole.receipt.k);
                self.in_flight += 1;
                due.push(row.whole);
            }
        }
        due
    }

    /// The registry says that the engagement stands at `k`. True if nothing newer is wanted.
    pub(crate) fn settled(&mut self, engagement: EngagementId, k: u32) -> bool {
        let Some(row) = self.rows.get_mut(&engagement) else {
            return true;
        };
        if row.in_flight.is_some_and(|in_flight| in_flight <= k) {
            row.in_flight = None;
            self.in_flight -= 1;
        }
        let done = row.whole.receipt.k <= k;
        if done {
            self.forget(engagement);
        }
        done
    }

    /// The settlement under way got no answer, or one that says later: again after `pause`.
    pub(crate) fn put_off(&mut self, engagement: EngagementId, now: Time, pause: Duration) {
        if let Some(row) = self.rows.get_mut(&engagement)
            && row.in_flight.take().is_some()
        {
            self.in_flight -= 1;
            row.not_before = row.not_before.max(now + pause);
        }
    }

    /// The registry is back, or time is short: everything is due now.
    pub(crate) fn hurry(&mut self) {
        for row in self.rows.values_mut() {
            row.not_before = Time::ZERO;
        }
    }

    /// One engagement is due now.
    pub(crate) fn hurry_one(&mut self, engagement: EngagementId) {
        if let Some(row) = self.rows.get_mut(&engagement) {
            row.not_before = Time::ZERO;
        }
    }

    /// Gives an engagement up.
    pub(crate) fn forget(&mut self, engagement: EngagementId) {
        if self
            .rows
            .remove(&engagement)
            .is_some_and(|row| row.in_flight.is_some())
        {
            self.in_flight -= 1;
        }
    }

    /// Engagements whose newest receipt is not settled.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ramjet_proto::market::Receipt;

    fn receipt(engagement: u64, k: u32) -> SignedReceipt {
        SignedReceipt {
            receipt: Receipt {
                engagement: EngagementId(engagement),
                k,
                ..Receipt::default()
            },
            requester_signature: [0; 64],
            worker_signature: [0; 64],
        }
    }

    #[test]
    fn a_lost_answer_puts_the_receipt_back_and_a_settlement_ends_it() {
        let mut settler = Settler::default();
        settler.want(receipt(1, 1), Time::ZERO);
        assert_eq!(settler.take_due(Time::ZERO).len(), 1);
        assert_eq!(settler.take_due(Time::ZERO).len(), 0);
        let pause = Duration::from_secs(1);
        settler.put_off(EngagementId(1), Time::ZERO, pause);
        assert_eq!(settler.take_due(Time::ZERO).len(), 0);
        assert_eq!(settler.take_due(Time::ZERO + pause).len(), 1);
        // A newer receipt while the older is under way stays wanted.
        settler.want(receipt(1, 2), Time::ZERO);
        assert!(!settler.settled(EngagementId(1), 1));
        assert_eq!(settler.take_due(Time::ZERO)[0].receipt.k, 2);
        assert!(settler.settled(EngagementId(1), 2));
        assert_eq!(settler.len(), 0);
    }

    proptest! {
        /// Whatever is lost, repeated or reordered: once the registry answers everything, its
        /// state is the greatest k of each engagement, and nothing is left wanted.
        #[test]
        fn everything_reaches_its_greatest_k(
            steps in prop::collection::vec((0_u8..4, 0_u64..4), 0..200),
        ) {
            let mut settler = Settler::default();
            let mut registry = BTreeMap::new();
            let mut newest = BTreeMap::new();
            let mut under_way: Vec<SignedReceipt> = Vec::new();
            for (step, engagement) in steps {
                match step {
                    0 => {
                        let k = newest.entry(engagement).or_insert(0_u32);
                        *k += 1;
                        settler.want(receipt(engagement, *k), Time::ZERO);
                    }
                    1 => under_way.extend(settler.take_due(Time::ZERO)),
                    2 => if let Some(sent) = under_way.pop() {
                        let (id, k) = (sent.receipt.engagement, sent.receipt.k);
                        let stands = registry.entry(id.0).or_insert(0);
                        *stands = k.max(*stands);
                        settler.settled(id, *stands);
                    },
                    _ => for lost in under_way.drain(..) {
                        settler.put_off(lost.receipt.engagement, Time::ZERO, Duration::ZERO);
                    },
                }
            }
            for lost in under_way.drain(..) {
                settler.put_off(lost.receipt.engagement, Time::ZERO, Duration::ZERO);
            }
            while settler.len() > 0 {
                let due = settler.take_due(Time::ZERO);
                prop_assert!(!due.is_empty(), "wanted, not under way, and never due");
                for sent in due {
                    let stands = registry.entry(sent.receipt.engagement.0).or_insert(0);
                    *stands = sent.receipt.k.max(*stands);
                    settler.settled(sent.receipt.engagement, *stands);
                }
            }
            prop_assert_eq!(registry, newest);
        }
    }
}
