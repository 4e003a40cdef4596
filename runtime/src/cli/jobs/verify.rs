//! Lines over and over, every result compared with the one expected.

use std::sync::Arc;

use crossbeam::channel::Sender;
use ramjet_proto::time::Time;

use super::{Live, Measured, task_of};
use crate::cli::exit::Failure;
use crate::cli::text::Text;
use crate::handler::{Handler, Outcome};
use crate::job::{Answer, Job, Next, Timing, Verdict};

/// The result expected for each line: computed here, before the run, by the same skill.
#[derive(Clone, Debug)]
pub struct Expected {
    block: Vec<u8>,
    ends: Vec<usize>,
}

impl Expected {
    /// Runs `handler` on every line.
    ///
    /// # Errors
    /// A line that the skill cannot do, by number.
    pub fn of(text: &Text, handler: &dyn Handler) -> Result<Self, Failure> {
        let (mut block, mut ends) = (Vec::new(), Vec::with_capacity(text.len()));
        for index in 0..text.len() {
            let line = text.line(index);
            let start = block.len();
            block.resize(start + handler.result_len_max(line.len()), 0);
            match handler.run(line, &mut block[start..]) {
                Outcome::Done(len) => block.truncate(start + len),
                Outcome::Failed(len) => {
                    let why = String::from_utf8_lossy(&block[start..start + len]);
                    return Err(Failure::usage(format!(
                        "task {}, {:?}: {why}",
                        index + 1,
                        String::from_utf8_lossy(&line[..line.len().min(40)])
                    )));
                }
            }
            ends.push(block.len());
        }
        Ok(Expected { block, ends })
    }

    fn of_line(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.block[start..self.ends[index]]
    }
}

/// The job.
pub struct Verify {
    text: Arc<Text>,
    expected: Expected,
    tasks: u64,
    issued: u64,
    /// One bit a task: whether it has its answer.
    answered: Vec<u64>,
    measured: Measured,
    live: Arc<Live>,
    report: Sender<Measured>,
}

impl Verify {
    /// Goes through the lines of `text` until `tasks` tasks have been handed out. `text` has at
    /// least one line. What was measured goes to `report` when the job is dropped.
    pub fn new(
        text: Arc<Text>,
        expected: Expected,
        tasks: u64,
        live: Arc<Live>,
        report: Sender<Measured>,
    ) -> Self {
        assert!(!text.is_empty(), "there is a line to go through");
        let words = usize::try_from(tasks.div_ceil(64)).expect("a billion tasks at most");
        let answered = vec![0; words];
        let measured = Measured::default();
        Verify {
            text,
            expected,
            tasks,
            issued: 0,
            answered,
            measured,
            live,
            report,
        }
    }

    /// Line of a task; `None` for a token that was never handed out.
    fn line_of(&self, token: u64) -> Option<usize> {
        let line = usize::try_from(token % self.text.len() as u64).ok()?;
        (token < self.issued).then_some(line)
    }

    /// Marks the task as answered; false if it was.
    fn mark(&mut self, token: u64) -> bool {
        let Some(word) = usize::try_from(token / 64)
            .ok()
            .and_then(|at| self.answered.get_mut(at))
        else {
            return false;
        };
        let bit = 1 << (token % 64);
        let first = *word & bit == 0;
        *word |= bit;
        first
    }
}

impl Job for Verify {
    fn next(&mut self, space: &mut [u8], _now: Time) -> Next {
        let token = self.issued;
        if token == self.tasks {
            return Next::End;
        }
        self.issued += 1;
        let line = self.line_of(token).expect("handed out now");
        task_of(&self.text, line, token, space)
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, timing: Timing) -> Verdict {
        let line = self.line_of(token);
        let Some(line) = line.filter(|_| self.mark(token)) else {
            self.measured.repeated += 1;
            return Verdict::Reject;
        };
        let verdict = match answer {
            Answer::Done(result) => {
                self.measured.time(timing);
                if result == self.expected.of_line(line) {
                    Verdict::Accept
                } else {
                    Verdict::Reject
                }
            }
            Answer::Failed(_) | Answer::Refused(_) => Verdict::Reject,
        };
        match verdict {
            Verdict::Accept => self.measured.accepted += 1,
            Verdict::Reject => self.measured.count_fault(token, answer),
        }
        self.live.note(self.measured.answered(), &self.measured);
        verdict
    }
}

impl Drop for Verify {
    fn drop(&mut self) {
        self.measured.issued = self.issued;
        // Nobody waits any more after an interruption.
        let _ = self.report.send(std::mem::take(&mut self.measured));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use crossbeam::channel::{Receiver, unbounded};

    use super::*;
    use crate::cli::text::EmptyLines;
    use crate::job::Refused;
    use crate::skills::{Langid, Sha256};

    fn job(lines: &'static [u8], tasks: u64) -> (Verify, Receiver<Measured>) {
        let text = Text::of_lines("test", Bytes::from_static(lines), EmptyLines::Skip);
        let text = Arc::new(text.expect("short"));
        let expected = Expected::of(&text, &Sha256).expect("sha256 takes anything");
        let (sender, receiver) = unbounded();
        (
            Verify::new(text, expected, tasks, Arc::default(), sender),
            receiver,
        )
    }

    fn result(payload: &[u8]) -> Vec<u8> {
        let mut space = vec![0; Sha256.result_len_max(payload.len())];
        assert_eq!(Sha256.run(payload, &mut space), Outcome::Done(64));
        space
    }

    #[test]
    fn lines_are_gone_through_until_there_are_enough_tasks() {
        let (mut job, report) = job(b"a\nbb\n\nccc\n", 5);
        let timing = Timing {
            round_trip_ns: 2_000,
            busy_ns: 1_000,
            ..Timing::default()
        };
        let mut space = [0; 64];
        for (token, line) in (0..).zip(["a", "bb", "ccc", "a", "bb"]) {
            let next = job.next(&mut space, Time::ZERO);
            assert_eq!(
                next,
                Next::Task {
                    len: line.len(),
                    token
                }
            );
            assert_eq!(&space[..line.len()], line.as_bytes());
            let answer = result(line.as_bytes());
            assert_eq!(
                job.answer(token, Answer::Done(&answer), timing),
                Verdict::Accept
            );
        }
        assert_eq!(job.next(&mut space, Time::ZERO), Next::End);
        drop(job);
        let measured = report.recv().expect("sent when dropped");
        assert_eq!(
            (measured.issued, measured.accepted, measured.answered()),
            (5, 5, 5)
        );
        assert_eq!(measured.busy_ns, 5_000);
        assert_eq!(measured.round_trip.len(), 5);
        assert_eq!(measured.first_fault, None);
    }

    #[test]
    fn a_wrong_result_a_failure_and_a_second_answer_are_told_apart() {
        let (mut job, report) = job(b"a\nb\nc\nd\n", 4);
        let mut space = [0; 64];
        for _ in 0..4 {
            job.next(&mut space, Time::ZERO);
        }
        let (good, timing) = (result(b"a"), Timing::default());
        assert_eq!(job.answer(0, Answer::Done(&good), timing), Verdict::Accept);
        assert_eq!(job.answer(0, Answer::Done(&good), timing), Verdict::Reject);
        assert_eq!(job.answer(1, Answer::Done(&good), timing), Verdict::Reject);
        job.answer(2, Answer::Failed(b"no"), timing);
        job.answer(3, Answer::Refused(Refused::Late), timing);
        job.answer(4, Answer::Done(&good), timing);
        drop(job);
        let measured = report.recv().expect("sent when dropped");
        assert_eq!(
            (measured.accepted, measured.rejected, measured.failed),
            (1, 1, 1)
        );
        assert_eq!(measured.refused.get("late"), Some(&1));
        assert_eq!(measured.repeated, 2);
        assert_eq!(
            measured.first_fault.as_deref(),
            Some("task 2: another result than the one expected")
        );
    }

    #[test]
    fn a_line_longer_than_the_space_is_shared() {
        let (mut job, _report) = job(b"0123456789\n", 1);
        let mut space = [0; 9];
        assert_eq!(
            job.next(&mut space, Time::ZERO),
            Next::Large {
                payload: Bytes::from_static(b"0123456789"),
                token: 0
            }
        );
    }

    #[test]
    fn a_line_that_the_skill_cannot_do_is_named_before_the_run() {
        let lines = Bytes::from_static(b"fine\n\xff\n");
        let text = Text::of_lines("test", lines, EmptyLines::Skip).expect("short");
        let error = Expected::of(&text, &Langid).expect_err("no UTF-8");
        assert!(error.message.starts_with("task 2, "), "{}", error.message);
        assert!(
            error.message.ends_with("langid takes text in UTF-8"),
            "{}",
            error.message
        );
    }
}
