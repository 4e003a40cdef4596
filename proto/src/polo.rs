//! The one rule by which reputation moves.
//!
//! Everything is a function of the cumulative account of one engagement: settling it once or in
//! many steps comes to the same polo, because each step moves the difference of two totals. The
//! arithmetic is integer with [`FRACTION_BITS`] fractional bits, so that every machine agrees on
//! every rounding; nothing here can overflow for any input.
//!
//! ```text
//!  reward     = round((1 + log2(1 + busy minutes)) × efficiency), at least 1, if a task was accepted
//!  efficiency = 1 − idle − staged, at least 0.4
//!  idle       = 0.3 × min(1, seconds from offer to accept / 60)
//!  staged     = 0.3 × min(1, mean seconds a task waited before it ran / 600)
//! ```
//!
//! The source of the formula is the public article on the task marketplace; upstream's 1.9.1 code
//! computes the same reward and differs in what else it moves, which is what [`Policy`] chooses.

use serde::{Deserialize, Serialize};

/// Fractional bits of logarithm and efficiency.
const FRACTION_BITS: u32 = 40;
const ONE: u128 = 1 << FRACTION_BITS;
/// Fractional bits of the mantissa while its logarithm is taken. A product of two mantissas below
/// 2 must fit 128 bits.
const MANTISSA_BITS: u32 = 62;
const _: () = assert!(2 * (MANTISSA_BITS + 1) <= 128);

const MINUTE_NS: u128 = 60_000_000_000;
/// Idle time that costs the whole share: one minute.
const IDLE_FULL_MS: u64 = 60_000;
/// Mean staged time that costs the whole share: ten minutes.
const STAGED_FULL_NS: u128 = 600_000_000_000;

/// Whose rule moves polo besides the reward.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Policy {
    /// The article: success leaves the requester as it is; an offer that nobody accepts costs its
    /// requester 1.
    #[default]
    #[serde(rename = "article")]
    Article,
    /// Upstream's code up to 1.9: success costs the requester 1, an expired task costs the worker
    /// 1, and an offer that nobody accepts costs nothing. The unit is the engagement.
    #[serde(rename = "pilot-1.9")]
    Pilot19,
}

impl core::fmt::Display for Policy {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Policy::Article => "article",
            Policy::Pilot19 => "pilot-1.9",
        })
    }
}

impl core::str::FromStr for Policy {
    type Err = String;

    /// Reads what [`core::fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "article" => Ok(Policy::Article),
            "pilot-1.9" => Ok(Policy::Pilot19),
            _ => Err(format!(
                "polo policy {text:?} is none of article, pilot-1.9"
            )),
        }
    }
}

/// The cumulative account of one engagement, as far as polo depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Results that the requester accepted.
    pub accepted: u64,
    /// Tasks whose deadline passed at the worker.
    pub expired: u64,
    /// Handler time of the accepted results, in nanoseconds.
    pub busy_ns: u64,
    /// Time the accepted tasks waited at the worker before they ran, in nanoseconds, summed.
    pub staged_ns: u64,
    /// Time from the offer to its accept, in milliseconds.
    pub idle_ms: u64,
}

/// What an occasion does to the polo of both ends, in all and not since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deltas {
    /// To the requester.
    pub requester: i64,
    /// To the worker.
    pub worker: i64,
}

/// An occasion on which polo moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// An offer reached its deadline without an accept. There is no worker.
    OfferExpired,
    /// An engagement stands at this account.
    Engagement {
        /// The account so far.
        account: Account,
        /// Whether the requester met the gate. An engagement of a widened gate moves nothing.
        gate_met: bool,
    },
}

/// The whole rule: what `occasion` comes to under `policy`.
pub fn deltas(policy: Policy, occasion: Occasion) -> Deltas {
    match (policy, occasion) {
        (Policy::Article, Occasion::OfferExpired) => Deltas {
            requester: -1,
            worker: 0,
        },
        (Policy::Pilot19, Occasion::OfferExpired)
        | (
            _,
            Occasion::Engagement {
                gate_met: false, ..
            },
        ) => Deltas::default(),
        (
            Policy::Article,
            Occasion::Engagement {
                account,
                gate_met: true,
            },
        ) => Deltas {
            requester: 0,
            worker: reward(&account),
        },
        (
            Policy::Pilot19,
            Occasion::Engagement {
                account,
                gate_met: true,
            },
        ) => Deltas {
            requester: -i64::from(account.accepted > 0),
            worker: reward(&account) - i64::from(account.expired > 0),
        },
    }
}

/// The worker's reward for an engagement that stands at `account`: 0 without an accepted result,
/// else 1 to 30.
pub fn reward(account: &Account) -> i64 {
    if account.accepted == 0 {
        return 0;
    }
    let growth = ONE + log2_one_plus_minutes(account.busy_ns);
    let product = growth * efficiency(account);
    let rounded = (product + (1 << (2 * FRACTION_BITS - 1))) >> (2 * FRACTION_BITS);
    i64::try_from(rounded)
        .expect("the logarithm of 2^64 nanoseconds in minutes is below 29")
        .max(1)
}

/// 1 − idle − staged, at least 0.4, with [`FRACTION_BITS`].
fn efficiency(account: &Account) -> u128 {
    let idle =
        u128::from(account.idle_ms.min(IDLE_FULL_MS)) * 3 * ONE / (10 * u128::from(IDLE_FULL_MS));
    let mean_ns = u128::from(account.staged_ns) / u128::from(account.accepted.max(1));
    let staged = mean_ns.min(STAGED_FULL_NS) * 3 * ONE / (10 * STAGED_FULL_NS);
    (ONE - idle - staged).max(ONE * 4 / 10)
}

/// log2(1 + busy minutes) with [`FRACTION_BITS`]: the exponent is the place of the highest bit, and
/// each squaring of the mantissa yields one more bit of the fraction.
fn log2_one_plus_minutes(busy_ns: u64) -> u128 {
    let ratio = ((MINUTE_NS + u128::from(busy_ns)) << MANTISSA_BITS) / MINUTE_NS;
    let exponent = ratio.ilog2() - MANTISSA_BITS;
    let mut mantissa = ratio >> exponent;
    let mut log = u128::from(exponent);
    for _ in 0..FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> MANTISSA_BITS;
        log <<= 1;
        if mantissa >> (MANTISSA_BITS + 1) != 0 {
            mantissa >>= 1;
            log |= 1;
        }
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: u64 = 60_000_000_000;

    fn account(busy_minutes: u64, idle_s: u64, staged_s: u64) -> Account {
        Account {
            accepted: 1,
            expired: 0,
            busy_ns: busy_minutes * MINUTE,
            staged_ns: staged_s * 1_000_000_000,
            idle_ms: idle_s * 1_000,
        }
    }

    /// The formula in floating point: the oracle, never the rule.
    fn oracle(account: &Account) -> f64 {
        let minutes = account.busy_ns as f64 / MINUTE as f64;
        let idle = 0.3 * (account.idle_ms as f64 / 60_000.0).min(1.0);
        let mean_s = account.staged_ns as f64 / account.accepted as f64 / 1e9;
        let staged = 0.3 * (mean_s / 600.0).min(1.0);
        (1.0 + (1.0 + minutes).log2()) * (1.0 - idle - staged).max(0.4)
    }

    #[test]
    fn the_published_examples_hold() {
        // Busy minutes, idle seconds, mean staged seconds, reward: the article's examples, then
        // the check values observed with upstream's code.
        let table = [
            (1, 0, 0, 2),
            (10, 0, 0, 4),
            (30, 0, 0, 6),
            (10, 30, 300, 3),
            (0, 0, 0, 1),
            (3, 0, 0, 3),
            (7, 0, 0, 4),
            (15, 0, 0, 5),
            (31, 0, 0, 6),
            (3, 30, 0, 3),
            (7, 60, 600, 2),
            (31, 5, 60, 6),
            (0, 3_600, 36_000, 1),
        ];
        for (busy, idle, staged, expected) in table {
            assert_eq!(
                reward(&account(busy, idle, staged)),
                expected,
                "{busy} {idle} {staged}"
            );
        }
    }

    #[test]
    fn halves_round_up_and_the_extremes_do_not_overflow() {
        // (1 + log2(2)) × (1 − 0.25) is 1.5 exactly.
        assert_eq!(reward(&account(1, 50, 0)), 2);
        let most = Account {
            accepted: u64::MAX,
            expired: u64::MAX,
            busy_ns: u64::MAX,
            staged_ns: u64::MAX,
            idle_ms: u64::MAX,
        };
        assert_eq!(reward(&Account { idle_ms: 0, ..most }), 29);
        assert_eq!(reward(&most), 20);
        assert_eq!(
            reward(&Account {
                accepted: 1,
                ..most
            }),
            12
        );
        assert_eq!(
            reward(&Account {
                accepted: 0,
                ..most
            }),
            0
        );
    }

    #[test]
    fn each_policy_moves_what_its_source_says() {
        let occasion = |accepted, expired, gate_met| Occasion::Engagement {
            account: Account {
                accepted,
                expired,
                ..account(10, 0, 0)
            },
            gate_met,
        };
        let both = |requester, worker| Deltas { requester, worker };
        assert_eq!(deltas(Policy::Article, occasion(5, 2, true)), both(0, 4));
        assert_eq!(deltas(Policy::Article, occasion(0, 2, true)), both(0, 0));
        assert_eq!(deltas(Policy::Article, Occasion::OfferExpired), both(-1, 0));
        assert_eq!(deltas(Policy::Pilot19, occasion(5, 0, true)), both(-1, 4));
        assert_eq!(deltas(Policy::Pilot19, occasion(5, 2, true)), both(-1, 3));
        assert_eq!(deltas(Policy::Pilot19, occasion(0, 2, true)), both(0, -1));
        assert_eq!(deltas(Policy::Pilot19, Occasion::OfferExpired), both(0, 0));
        for policy in [Policy::Article, Policy::Pilot19] {
            assert_eq!(deltas(policy, occasion(5, 2, false)), both(0, 0));
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert!("polo".parse::<Policy>().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn fixed_point_agrees_with_floating_point(
            busy_bits in 0u32..64, busy in any::<u64>(),
            accepted in 1u64..1_000_000,
            staged_bits in 0u32..62, staged in any::<u64>(),
            idle_ms in 0u64..120_000,
        ) {
            let account = Account {
                accepted,
                expired: 0,
                busy_ns: busy >> busy_bits,
                staged_ns: staged >> staged_bits,
                idle_ms,
            };
            let exact = oracle(&account);
            // Within a millionth of a half the two may round apart.
            prop_assume!(((exact - exact.floor()) - 0.5).abs() > 1e-6);
            #[expect(clippy::cast_possible_truncation, reason = "at most 30")]
            let expected = (exact.round() as i64).max(1);
            prop_assert_eq!(reward(&account), expected);
        }

        #[test]
        fn more_work_never_earns_less(busy in any::<u64>(), more in any::<u64>()) {
            let less = Account { accepted: 1, busy_ns: busy, ..Account::default() };
            let longer = Account { busy_ns: busy.saturating_add(more), ..less };
            prop_assert!(reward(&longer) >= reward(&less));
        }
    }
}
