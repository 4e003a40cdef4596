//! The replay window: which counters were accepted under one nonce prefix.
//!
//! A ring of 64-bit words (as in RFC 6479): bit `c mod 64` of word `c / 64 mod WORDS` stands for
//! counter `c`. Moving forward clears whole words, so one word of the ring is always in arrears
//! and the window is one word shorter than the ring.
//!
//! [`ReplayWindow::check`] is asked before decryption, to save it, and changes nothing;
//! [`ReplayWindow::commit`] is called after decryption has proved who sent the counter.

use crate::fault::DropReason;

/// 2,048 bits: a segmentation-offload batch is 64 datagrams, and several may overtake each other
/// between receive queues.
const WORDS: usize = 32;
/// Counters below the highest one that are still told apart.
pub(super) const WINDOW: u64 = (WORDS as u64 - 1) * 64;

const _: () = assert!(WINDOW >= 1_024);

/// The window of one prefix.
#[derive(Clone, Debug)]
pub(super) struct ReplayWindow {
    highest: u64,
    words: [u64; WORDS],
}

impl ReplayWindow {
    /// A window in which nothing was accepted yet; the first counter may be any.
    pub(super) fn new() -> Self {
        ReplayWindow {
            highest: 0,
            words: [0; WORDS],
        }
    }

    /// Whether `counter` may be accepted.
    pub(super) fn check(&self, counter: u64) -> Result<(), DropReason> {
        if counter > self.highest {
            return Ok(());
        }
        if self.highest - counter >= WINDOW {
            return Err(DropReason::OutsideWindow);
        }
        let (word, bit) = position(counter);
        if self.words[word] & bit == 0 {
            Ok(())
        } else {
            Err(DropReason::Replay)
        }
    }

    /// Marks `counter` as accepted; answers whether it is the highest so far.
    pub(super) fn commit(&mut self, counter: u64) -> bool {
        debug_assert!(self.check(counter).is_ok());
        let (word, bit) = position(counter);
        let newest = counter > self.highest;
        if newest {
            let passed = (counter / 64 - self.highest / 64).min(WORDS as u64);
            for step in 0..passed {
                self.words[position((counter / 64 - step) * 64).0] = 0;
            }
            self.highest = counter;
        }
        self.words[word] |= bit;
        newest
    }
}

fn position(counter: u64) -> (usize, u64) {
    let word = usize::try_from(counter / 64 % WORDS as u64).expect("below WORDS");
    (word, 1 << (counter % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    /// The same promise, kept in a set that forgets nothing.
    #[derive(Default)]
    struct Model {
        accepted: BTreeSet<u64>,
    }

    impl Model {
        fn check(&self, counter: u64) -> Result<(), DropReason> {
            let highest = self.accepted.last().copied().unwrap_or(0);
            if counter > highest {
                Ok(())
            } else if highest - counter >= WINDOW {
                Err(DropReason::OutsideWindow)
            } else if self.accepted.contains(&counter) {
                Err(DropReason::Replay)
            } else {
                Ok(())
            }
        }
    }

    fn agree(counters: impl IntoIterator<Item = u64>) {
        let (mut window, mut model) = (ReplayWindow::new(), Model::default());
        for counter in counters {
            let verdict = window.check(counter);
            assert_eq!(verdict, model.check(counter), "counter {counter}");
            if verdict.is_ok() {
                let newest = model
                    .accepted
                    .last()
                    .is_none_or(|&highest| counter > highest);
                // Counter 0 is never the highest of a fresh window.
                assert_eq!(window.commit(counter), newest && counter > 0);
                model.accepted.insert(counter);
            }
        }
    }

    #[test]
    fn edges_of_the_window_agree_with_the_model() {
        agree([1, 1, 0, 0, 64, 63, 65, WINDOW, WINDOW + 1, 1, 2, 3]);
        agree([
            u64::MAX,
            u64::MAX,
            u64::MAX - WINDOW,
            u64::MAX - WINDOW + 1,
            1,
        ]);
        agree([
            WINDOW * 5,
            WINDOW * 4 + 1,
            WINDOW * 4,
            WINDOW * 5 - 1,
            WINDOW * 9,
            WINDOW * 5,
        ]);
        agree((1..=5_000).rev());
        agree((1..=5_000).chain(1..=5_000));
    }

    #[test]
    fn a_reordered_train_of_1_024_is_accepted_once_each() {
        let mut window = ReplayWindow::new();
        for counter in (1..=1_024).rev() {
            assert_eq!(window.check(counter), Ok(()));
            window.commit(counter);
        }
        assert!((1..=1_024).all(|counter| window.check(counter) == Err(DropReason::Replay)));
    }

    proptest! {
        #[test]
        fn any_sequence_agrees_with_the_model(
            steps in prop::collection::vec((0_u64..6, 0_u64..3_000), 1..400)
        ) {
            let mut at = 2_000_u64;
            agree(steps.into_iter().map(|(kind, distance)| {
                at = match kind {
                    0 => at + distance * 3,
                    1 => at.saturating_sub(distance),
                    2 => at,
                    _ => at + 1,
                };
                at
            }));
        }
    }
}
