//! When verdicts are told: with the slot's next task, or in time on their own.

use core::time::Duration;

use super::congestion::Congestion;
use super::job::{Answer, Job, Next, Timing, Verdict};
use super::requesting::Requesting;
use super::serving::{Admitted, Answered, Serving};
use super::tests::{CHANNEL, Collected, Owned, limits, view};
use crate::frame::kind::Kind;
use crate::time::Time;

/// An empty task whenever it is asked; every result is right.
struct Empty;

impl Job for Empty {
    fn next(&mut self, _space: &mut [u8], _now: Time) -> Next {
        Next::Task { len: 0, token: 0 }
    }

    fn answer(&mut self, _token: u64, _answer: Answer<'_>, _timing: Timing) -> Verdict {
        Verdict::Accept
    }
}

/// Both ends of a channel of one slot and two tasks.
struct Ends {
    now: Time,
    requesting: Requesting,
    path: Congestion,
    serving: Serving,
    out: Collected,
}

impl Ends {
    fn new() -> Self {
        let now = Time::from_nanos(1);
        Ends {
            now,
            requesting: Requesting::new(CHANNEL, 1, 2, now),
            path: Congestion::new(now),
            serving: Serving::new(CHANNEL, limits(1, 2)),
            out: Collected::default(),
        }
    }

    /// The next task goes out and is admitted.
    fn task(&mut self) -> Admitted {
        let (now, out) = (self.now, &mut self.out);
        let begun = self
            .requesting
            .pump(now, &mut self.path, out, &mut Empty, 1);
        assert_eq!(begun, 1);
        let task = self.sent().pop().expect("a task");
        let admitted = self.serving.admit(now, &view(&task), &mut self.out);
        admitted.expect("new").expect("runs")
    }

    /// The frames of the answer to it arrive, a second later.
    fn answered(&mut self, frames: &[Owned]) {
        self.now = self.now + Duration::from_secs(1);
        for frame in frames {
            let (now, out) = (self.now, &mut self.out);
            let taken = self
                .requesting
                .answer(now, &mut self.path, &view(frame), out, &mut Empty);
            taken.expect("for an outstanding task");
        }
        assert_eq!(self.requesting.outstanding(), 0);
    }

    /// What the requester's timers send after this long.
    fn timers(&mut self, after: Duration) -> Vec<Owned> {
        self.now = self.now + after;
        self.requesting
            .handle_timeout(self.now, &mut self.path, &mut self.out);
        self.sent()
    }

    fn sent(&mut self) -> Vec<Owned> {
        std::mem::take(&mut self.out.frames)
    }

    /// Nothing goes out until `due` after the answer, and then one verdict.
    fn expect_verdict(&mut self, due: Duration) {
        // The time-out of the task is behind, and finds that it has its answer.
        let silent = due - Duration::from_millis(1);
        assert_eq!(self.timers(silent), []);
        let at = self.requesting.next_timeout();
        assert_eq!(at, self.now + Duration::from_millis(1));
        let told = self.timers(Duration::from_millis(1));
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0.kind(), Kind::Verdict);
        assert_eq!(self.serving.verdict(&view(&told[0])), Ok(()));
        assert_eq!(self.serving.totals().accepted, 1);
        assert_eq!(self.requesting.next_timeout(), Time::NEVER);
    }
}

#[test]
fn a_verdict_that_no_task_carries_is_told_after_half_a_second() {
    let mut ends = Ends::new();
    let admitted = ends.task();
    let head = ends
        .serving
        .answer(admitted, Answered::Done, 0, ends.now, b"short");
    ends.answered(&[(head, b"short".to_vec())]);
    ends.expect_verdict(Duration::from_millis(500));
}

#[test]
fn a_verdict_on_a_long_result_is_told_soon_for_the_worker_keeps_it() {
    let mut ends = Ends::new();
    let admitted = ends.task();
    let result = vec![7; 3_000];
    ends.serving
        .answer_long(admitted, Answered::Done, 0, ends.now, result, &mut ends.out);
    let mut path = Congestion::new(ends.now);
    ends.serving
        .pump_parts(ends.now, &mut path, &mut ends.out, 16);
    let parts = ends.sent();
    assert_eq!(parts.len(), 3);
    ends.answered(&parts);
    ends.sent();
    ends.expect_verdict(Duration::from_millis(20));
}

#[test]
fn a_verdict_that_a_task_carries_leaves_nothing_to_tell() {
    let mut ends = Ends::new();
    let admitted = ends.task();
    let head = ends
        .serving
        .answer(admitted, Answered::Done, 0, ends.now, b"");
    ends.answered(&[(head, Vec::new())]);
    assert_eq!(ends.timers(Duration::from_millis(499)), []);
    ends.task();
    assert_eq!(ends.serving.totals().accepted, 1, "judged by the task");
    assert_eq!(ends.timers(Duration::from_millis(2)), []);
}

#[test]
fn verdicts_are_told_at_once_when_the_job_is_over() {
    let mut ends = Ends::new();
    let admitted = ends.task();
    let head = ends
        .serving
        .answer(admitted, Answered::Done, 0, ends.now, b"");
    ends.answered(&[(head, Vec::new())]);
    ends.requesting.end();
    let (now, out) = (ends.now, &mut ends.out);
    ends.requesting
        .pump(now, &mut ends.path, out, &mut Empty, 1);
    let told = ends.timers(Duration::ZERO);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0.kind(), Kind::Verdict);
}
