//! One payload until a moment: the closed loop of a benchmark.

use std::collections::BTreeMap;

use bytes::Bytes;
use crossbeam::channel::Sender;
use ramjet_bench::report::WorkerCost;
use ramjet_proto::time::Time;

use super::Measured;
use crate::job::{Answer, Job, Next, Timing, Verdict};

/// The job. Every answer must equal the payload, so the skill is `echo`.
pub struct Load {
    payload: Bytes,
    warm_up_ns: u64,
    run_ns: u64,
    begun: Option<Time>,
    counting_since: Option<(Time, u64)>,
    counted: Option<(u64, u64)>,
    accepted: u64,
    measured: Measured,
    report: Sender<Loaded>,
}

/// What a load measured between its warm-up and its end.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Results that arrived in that time.
    pub results: u64,
    /// That time, in nanoseconds.
    pub elapsed_ns: u64,
    /// Faults of the whole run, and the round trips of that time.
    pub measured: Measured,
    /// What the worker counted, over the whole run: filled in by whoever can ask it.
    pub worker: BTreeMap<String, u64>,
}

impl Loaded {
    /// What a task cost the worker, if it counted.
    pub fn cost(&self) -> Option<WorkerCost> {
        WorkerCost::between(&BTreeMap::new(), &self.worker)
    }
}

impl Load {
    /// Sends `payload` for `warm_up_ns` uncounted, then for `run_ns`. What was measured goes to
    /// `report` when the job is dropped.
    pub fn new(payload: Vec<u8>, warm_up_ns: u64, run_ns: u64, report: Sender<Loaded>) -> Self {
        Load {
            payload: payload.into(),
            warm_up_ns,
            run_ns,
            begun: None,
            counting_since: None,
            counted: None,
            accepted: 0,
            measured: Measured::default(),
            report,
        }
    }
}

impl Job for Load {
    fn next(&mut self, space: &mut [u8], now: Time) -> Next {
        let begun = *self.begun.get_or_insert(now);
        if now.nanos_since(begun) >= self.warm_up_ns {
            let (since, before) = *self.counting_since.get_or_insert((now, self.accepted));
            let elapsed = now.nanos_since(since);
            if elapsed >= self.run_ns {
                // The first look past the end fixes the count; what is outstanding comes in after.
                self.counted
                    .get_or_insert((self.accepted - before, elapsed));
                return Next::End;
            }
        }
        let token = self.measured.issued;
        self.measured.issued += 1;
        match space.get_mut(..self.payload.len()) {
            Some(space) => {
                space.copy_from_slice(&self.payload);
                Next::Task {
                    len: self.payload.len(),
                    token,
                }
            }
            None => Next::Large {
                payload: self.payload.clone(),
                token,
            },
        }
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, timing: Timing) -> Verdict {
        if answer != Answer::Done(&self.payload) {
            self.measured.count_fault(token, answer);
            return Verdict::Reject;
        }
        self.accepted += 1;
        if self.counting_since.is_some() && self.counted.is_none() {
            self.measured.time(timing);
        }
        Verdict::Accept
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.measured.accepted = self.accepted;
        let (results, elapsed_ns) = self.counted.unwrap_or_default();
        let measured = std::mem::take(&mut self.measured);
        // Nobody waits any more after an interruption.
        let _ = self.report.send(Loaded {
            results,
            elapsed_ns,
            measured,
            worker: BTreeMap::new(),
        });
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::unbounded;

    use super::*;

    #[test]
    fn only_what_lies_between_warm_up_and_end_counts() {
        let (sender, report) = unbounded();
        let mut job = Load::new(b"ping".to_vec(), 100, 1_000, sender);
        let (mut space, timing) = (
            [0; 64],
            Timing {
                round_trip_ns: 500,
                ..Timing::default()
            },
        );
        // One task every 50 ns from 10,000 on, answered at once.
        for step in 0.. {
            let now = Time::from_nanos(10_000 + 50 * step);
            match job.next(&mut space, now) {
                Next::Task { len, token } => {
                    assert_eq!(&space[..len], b"ping");
                    assert_eq!(
                        job.answer(token, Answer::Done(b"ping"), timing),
                        Verdict::Accept
                    );
                }
                other => {
                    assert_eq!((other, step), (Next::End, 22));
                    break;
                }
            }
        }
        assert_eq!(
            job.answer(99, Answer::Done(b"pong"), timing),
            Verdict::Reject
        );
        drop(job);
        let loaded = report.recv().expect("sent when dropped");
        assert_eq!((loaded.results, loaded.elapsed_ns), (20, 1_000));
        assert_eq!(
            (loaded.measured.accepted, loaded.measured.rejected),
            (22, 1)
        );
        assert_eq!(loaded.measured.round_trip.len(), 20);
    }
}
