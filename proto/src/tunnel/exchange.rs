//! When an announcement is repeated, and when the peer is given up.
//!
//! | purpose | announcements | then | exhausted |
//! |---|---|---|---|
//! | dial | 8, after 100 ms doubling to 4 s | 2 key requests, 4 s apart | the tunnel is lost |
//! | rotate | the same | the same | the new key is forgotten, the old one stays |
//! | answer | one repetition after 250 ms | nothing | nothing: the dialer repeats |
//! | follow | 5, after 100 ms doubling | nothing | nothing: the peer is where it was |
//!
//! While the peer's key is unknown, a key request goes with every announcement from the third on:
//! a peer that holds our key already does not answer its repetition, but answers a request. The
//! first second stays within the five frames that current daemons accept from one address.

use core::time::Duration;

use crate::time::Time;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(4);
const ANSWER_PAUSE: Duration = Duration::from_millis(250);
const ANNOUNCEMENTS: u32 = 8;
const NUDGES: u32 = 2;
const FOLLOWS: u32 = 5;
const REQUESTS_FROM: u32 = 3;

/// Why keys are exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The caller wants a session.
    Dial,
    /// A fresh key of ours replaces one that has been used for long.
    Rotate,
    /// The peer announced a key.
    Answer,
    /// The registry says that a peer with a session is somewhere else.
    Follow,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Announce our key.
    Announce {
        /// With a key request, if the peer's key is unknown.
        request: bool,
    },
    /// Ask for the peer's key only.
    Nudge,
    /// There is no further step.
    Exhausted,
}

/// An exchange that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    pub(super) purpose: Purpose,
    /// When the next step is due.
    pub(super) next_at: Time,
    steps: u32,
}

impl Exchange {
    /// An exchange whose first step is due at once; an answer has been sent once already.
    pub(super) fn new(purpose: Purpose, now: Time) -> Self {
        match purpose {
            Purpose::Dial | Purpose::Rotate | Purpose::Follow => Exchange {
                purpose,
                next_at: now,
                steps: 0,
            },
            Purpose::Answer => Exchange {
                purpose,
                next_at: now + ANSWER_PAUSE,
                steps: 0,
            },
        }
    }

    /// Takes the step that is due and schedules the next.
    pub(super) fn step(&mut self, now: Time) -> Step {
        self.steps += 1;
        if self.purpose == Purpose::Answer {
            self.next_at = now + ANSWER_PAUSE;
            return if self.steps == 1 {
                Step::Announce { request: true }
            } else {
                Step::Exhausted
            };
        }
        if self.purpose == Purpose::Follow && self.steps > FOLLOWS {
            return Step::Exhausted;
        }
        let doublings = (self.steps - 1).min(16);
        self.next_at = now + (FIRST_PAUSE * (1 << doublings)).min(PAUSE_MAX);
        if self.steps <= ANNOUNCEMENTS {
            Step::Announce {
                request: self.steps >= REQUESTS_FROM,
            }
        } else if self.steps <= ANNOUNCEMENTS + NUDGES {
            Step::Nudge
        } else {
            Step::Exhausted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_doubles_its_pauses_and_ends() {
        let mut exchange = Exchange::new(Purpose::Dial, Time::ZERO);
        let mut times_ms = Vec::new();
        loop {
            let now = exchange.next_at;
            times_ms.push(now.as_nanos() / 1_000_000);
            if exchange.step(now) == Step::Exhausted {
                break;
            }
        }
        assert_eq!(
            times_ms,
            [
                0, 100, 300, 700, 1_500, 3_100, 6_300, 10_300, 14_300, 18_300, 22_300
            ]
        );
    }

    #[test]
    fn a_peer_is_looked_for_elsewhere_for_a_while_only() {
        let mut exchange = Exchange::new(Purpose::Follow, Time::ZERO);
        let mut times_ms = Vec::new();
        while exchange.step(exchange.next_at) != Step::Exhausted {
            times_ms.push(exchange.next_at.as_nanos() / 1_000_000);
        }
        assert_eq!(times_ms, [100, 300, 700, 1_500, 3_100]);
    }

    #[test]
    fn an_answer_is_repeated_once() {
        let mut exchange = Exchange::new(Purpose::Answer, Time::ZERO);
        assert_eq!(exchange.next_at, Time::ZERO + ANSWER_PAUSE);
        assert_eq!(
            exchange.step(exchange.next_at),
            Step::Announce { request: true }
        );
        assert_eq!(exchange.step(exchange.next_at), Step::Exhausted);
    }
}
