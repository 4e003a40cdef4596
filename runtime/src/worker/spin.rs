//! How long an adaptive worker spins, and whether it pays to.
//!
//! A spin that work ends saves a wake-up, some 15 to 40 µs of latency. A spin that ends in sleep anyway has
//! burnt a core, and on a host with more busy threads than cores it has kept the thread from running that
//! would have brought the work. So what came of each rest is remembered: work that comes within a spin's
//! length counts for spinning, work that comes later counts twice against it. Two of three rests must end
//! soon for spinning to go on.
//!
//! Two ends that both sleep see rests of two wake-ups, and would never learn that both could spin. So a
//! worker that sleeps tries spinning again every 64 rests: one late rest ends the try, and if the other end
//! is all that was waited for, both are spinning some twenty rests later.
//!
//! The length is that of the classic argument (Karlin, Li, Manasse, Owicki: "Empirical studies of competitive
//! spinning", SOSP 1991): about what sleeping and waking cost, so that a wrong guess costs twice the right one.

use core::time::Duration;

/// How long a worker spins after its last work.
const SPIN_FOR: Duration = Duration::from_micros(50);
/// Best score. From the best, four rests in a row that last too long end spinning.
const SCORE_MAX: u8 = 15;
/// Spinning pays from this score on.
const PAYS_FROM: u8 = 8;
const LATE: u8 = 2;
/// A worker that sleeps tries spinning again after so many rests …
const TRY_AFTER: u8 = 64;
/// … from this score, which one late rest ends.
const TRY_FROM: u8 = PAYS_FROM + 1;

/// What came of the last rests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spin {
    score: u8,
    /// Rests since it last paid.
    asleep: u8,
}

impl Spin {
    /// Nothing has been learned: spinning is tried.
    pub(super) const fn new() -> Self {
        Spin {
            score: SCORE_MAX,
            asleep: 0,
        }
    }

    /// A rest has ended in work, so long after the work before it.
    pub(super) fn rested(&mut self, idle: Duration) {
        self.score = if idle < SPIN_FOR {
            (self.score + 1).min(SCORE_MAX)
        } else {
            self.score.saturating_sub(LATE)
        };
        self.asleep = if self.pays() { 0 } else { self.asleep + 1 };
        if self.asleep == TRY_AFTER {
            *self = Spin {
                score: TRY_FROM,
                asleep: 0,
            };
        }
    }

    /// Whether rests have been ending soon enough.
    pub(super) const fn pays(self) -> bool {
        self.score >= PAYS_FROM
    }

    /// Whether to go on spinning, so long after the last work.
    pub(super) fn lasts(self, idle: Duration) -> bool {
        self.pays() && idle < SPIN_FOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(8);
    const LONG: Duration = Duration::from_micros(90);

    fn after(rests: impl IntoIterator<Item = Duration>) -> Spin {
        let mut spin = Spin::new();
        rests.into_iter().for_each(|idle| spin.rested(idle));
        spin
    }

    #[test]
    fn spinning_is_tried_and_bounded() {
        let spin = Spin::new();
        assert!(spin.lasts(Duration::ZERO) && spin.lasts(SPIN_FOR - Duration::from_nanos(1)));
        assert!(!spin.lasts(SPIN_FOR));
    }

    #[test]
    fn long_rests_end_it_and_short_ones_bring_it_back() {
        assert!(after([LONG; 3]).pays());
        assert!(!after([LONG; 4]).lasts(Duration::ZERO));
        let mut spin = after([LONG; 20]);
        for _ in 0..PAYS_FROM {
            assert!(!spin.pays());
            spin.rested(SOON);
        }
        assert!(spin.pays());
    }

    #[test]
    fn two_of_three_rests_must_end_soon() {
        let often = (0..999).map(|rest| if rest % 4 == 0 { LONG } else { SOON });
        assert!(after(often).pays());
        let mut seldom = Spin::new();
        let spins = (0..9_999).filter(|rest| {
            seldom.rested(if rest % 2 == 0 { LONG } else { SOON });
            seldom.pays()
        });
        assert!(spins.count() < 999, "but for tries");
    }

    #[test]
    fn a_try_that_fails_costs_one_rest() {
        let mut spin = after([LONG; 10]);
        let spins = (0..9_999).filter(|_| {
            spin.rested(LONG);
            spin.pays()
        });
        assert!((9_999 / 80..=9_999 / 60).contains(&spins.count()));
    }

    /// One task between two workers, each of which waits for the other one.
    #[test]
    fn two_ends_that_sleep_find_that_both_could_spin() {
        const WORK: Duration = Duration::from_micros(5);
        const WAKE: Duration = Duration::from_micros(35);
        let mut ends = [after([LONG; 10]), after([LONG; 40])];
        let mut rests = 0;
        while !ends.iter().all(|end| end.pays()) {
            let wakes = ends.map(|end| if end.pays() { Duration::ZERO } else { WAKE });
            let rest = WORK + wakes[0] + wakes[1];
            ends.iter_mut().for_each(|end| end.rested(rest));
            rests += 1;
            assert!(rests < 100);
        }
        for _ in 0..999 {
            ends.iter_mut().for_each(|end| end.rested(WORK));
            assert!(ends.iter().all(|end| end.pays()));
        }
    }
}
