//! The tasks of all requesters, and what became of them.
//!
//! Every payload begins with the task's number, which no other task of the generator has: a result
//! that belongs to another task, or another requester, is found out.

use hdrhistogram::Histogram;
use ramjet_proto::time::Time;

use crate::job::{Answer, Job, Next, Timing, Verdict};

/// Bytes of a task's number, and so of the shortest payload.
pub(super) const NUMBER_LEN: usize = 8;
/// Longest round trip that is told apart, in nanoseconds.
const ROUND_TRIP_MAX_NS: u64 = 60_000_000_000;

/// What all requesters count together.
pub(super) struct Tally {
    /// What stands behind the number in every payload.
    pattern: Vec<u8>,
    issued: u64,
    /// Results that were compared and equal.
    pub(super) right: u64,
    /// The first answer that was not what it had to be.
    pub(super) wrong: Option<String>,
    /// Datagrams and frames that were of no use, such as second answers to repeated tasks.
    pub(super) dropped: u64,
    /// Round trips while it is set.
    pub(super) counting: bool,
    pub(super) round_trips: Histogram<u64>,
}

impl Tally {
    pub(super) fn new(payload_len: usize) -> Self {
        assert!(
            payload_len >= NUMBER_LEN,
            "the arguments are checked before"
        );
        Tally {
            pattern: (0..=u8::MAX)
                .cycle()
                .take(payload_len - NUMBER_LEN)
                .collect(),
            issued: 0,
            right: 0,
            wrong: None,
            dropped: 0,
            counting: false,
            round_trips: Histogram::new_with_bounds(100, ROUND_TRIP_MAX_NS, 3)
                .expect("constant bounds"),
        }
    }

    pub(super) fn time(&mut self, round_trip_ns: u64) {
        if self.counting {
            self.round_trips.saturating_record(round_trip_ns);
        }
    }

    fn is_echo(&self, token: u64, result: &[u8]) -> bool {
        result
            .split_first_chunk()
            .is_some_and(|(number, rest)| *number == token.to_be_bytes() && rest == self.pattern)
    }

    fn note(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }
}

/// The job of one requester for one call.
pub(super) struct Echo<'a>(&'a mut Tally);

impl<'a> Echo<'a> {
    pub(super) fn new(tally: &'a mut Tally) -> Self {
        Echo(tally)
    }
}

impl Job for Echo<'_> {
    fn next(&mut self, space: &mut [u8], _now: Time) -> Next {
        let tally = &mut *self.0;
        let token = tally.issued;
        tally.issued += 1;
        let len = NUMBER_LEN + tally.pattern.len();
        space[..NUMBER_LEN].copy_from_slice(&token.to_be_bytes());
        space[NUMBER_LEN..len].copy_from_slice(&tally.pattern);
        Next::Task { len, token }
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, _timing: Timing) -> Verdict {
        let tally = &mut *self.0;
        match answer {
            Answer::Done(result) if tally.is_echo(token, result) => {
                tally.right += 1;
                return Verdict::Accept;
            }
            Answer::Done(result) => tally.note(format!(
                "the result of task {token} has {} bytes and is not its payload",
                result.len()
            )),
            Answer::Failed(why) => {
                let why = String::from_utf8_lossy(why);
                tally.note(format!("task {token} failed: {why}"));
            }
            Answer::Refused(why) => {
                tally.note(format!("task {token} was refused: {}", why.label()))
            }
        }
        Verdict::Reject
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_another_task_or_with_another_byte_is_wrong() {
        let mut tally = Tally::new(64);
        let mut space = [0; 64];
        let timing = Timing::default();
        let mut echo = Echo::new(&mut tally);
        assert_eq!(
            echo.next(&mut space, Time::ZERO),
            Next::Task { len: 64, token: 0 }
        );
        let first = space;
        assert_eq!(
            echo.next(&mut space, Time::ZERO),
            Next::Task { len: 64, token: 1 }
        );
        assert_ne!(first, space);
        assert_eq!(
            echo.answer(0, Answer::Done(&first), timing),
            Verdict::Accept
        );
        assert_eq!(
            echo.answer(1, Answer::Done(&first), timing),
            Verdict::Reject
        );
        for change in [8, 63] {
            let mut changed = space;
            changed[change] ^= 1;
            assert_eq!(
                echo.answer(1, Answer::Done(&changed), timing),
                Verdict::Reject
            );
        }
        assert_eq!(
            echo.answer(1, Answer::Done(&space[..63]), timing),
            Verdict::Reject
        );
        assert_eq!(
            echo.answer(1, Answer::Done(&space), timing),
            Verdict::Accept
        );
        assert_eq!(tally.right, 2);
        assert!(tally.wrong.is_some_and(|wrong| wrong.contains("task 1")));
    }
}
