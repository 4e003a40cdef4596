//! A job whose tasks and judgements come from another process.
//!
//! The worker thread asks [`ChannelJob`] for tasks and gives it answers; both pass through bounded
//! queues to the connection's task on the control thread, which moves them over the local socket.
//! The job never blocks: without a task it says `Waiting` and is rung for by [`Verdicts::ring`] after each
//! change on the connection's side that may let it go on. It hands out no more tasks than the queue of
//! answers has room for.
//!
//! A verdict has to be given when the answer arrives, but the client's judgement comes later. So
//! the job says `Accept` to the worker thread, and [`Verdicts`] keeps what the client said; the
//! receipts count only that. [`Next::End`] is said once every result has its judgement.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use bytes::Bytes;
use ramjet_proto::time::Time;
use tokio::sync::mpsc;

use super::vocabulary::Totals;
use crate::job::{Answer, Job, Next, Refused, Timing, Verdict};

/// Tasks and answers of one local engagement that wait in the node, each way.
pub(crate) const WINDOW_MAX: usize = 1_024;
/// Bytes of answers that wait for a client before no further task is handed out.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A task from the client.
pub(crate) struct LocalTask {
    pub(crate) token: u64,
    /// Its own deadline, if it has one; else that of its engagement.
    pub(crate) deadline_us: Option<u32>,
    pub(crate) payload: Bytes,
}

/// What became of a task, for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LocalOutcome {
    Done(Bytes),
    Failed(Bytes),
    Refused(Refused),
    /// Not the answer yet: one piece of progress.
    Piece(Bytes),
}

impl LocalOutcome {
    fn len(&self) -> u64 {
        match self {
            LocalOutcome::Done(bytes)
            | LocalOutcome::Failed(bytes)
            | LocalOutcome::Piece(bytes) => bytes.len() as u64,
            LocalOutcome::Refused(_) => 0,
        }
    }
}

/// An answer, or a piece of progress, for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalAnswer {
    pub(crate) token: u64,
    pub(crate) outcome: LocalOutcome,
    pub(crate) timing: Timing,
}

/// What the client has judged so far: written by its connection, read when receipts are made.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    accepted: AtomicU64,
    rejected: AtomicU64,
    accepted_busy_ns: AtomicU64,
    /// Results handed to the queue, and bytes of them not yet taken from it.
    results: AtomicU64,
    waiting_bytes: AtomicU64,
    gone: AtomicBool,
    pieces_lost: AtomicU64,
    /// Wakes the worker thread that has the job.
    waker: OnceLock<Waker>,
}

impl Verdicts {
    /// The connection has changed something that the job may wait for: a task, a judgement, room for
    /// answers, the end.
    pub(crate) fn ring(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    /// The client judged one result.
    pub(crate) fn judge(&self, verdict: Verdict, busy_ns: u64) {
        match verdict {
            Verdict::Accept => {
                self.accepted_busy_ns.fetch_add(busy_ns, Ordering::Relaxed);
                self.accepted.fetch_add(1, Ordering::Release);
            }
            Verdict::Reject => {
                self.rejected.fetch_add(1, Ordering::Release);
            }
        }
        self.ring();
    }

    /// The connection took an answer off the queue.
    pub(crate) fn taken(&self, outcome: &LocalOutcome) {
        self.waiting_bytes
            .fetch_sub(outcome.len(), Ordering::Relaxed);
        self.ring();
    }

    /// The client is gone: nothing further will be judged.
    pub(crate) fn leave(&self) {
        self.gone.store(true, Ordering::Release);
        self.ring();
    }

    /// Pieces of progress that were dropped because the client did not read.
    pub(crate) fn pieces_lost(&self) -> u64 {
        self.pieces_lost.load(Ordering::Relaxed)
    }

    fn is_judged(&self) -> bool {
        let judged = self.accepted.load(Ordering::Acquire) + self.rejected.load(Ordering::Acquire);
        judged >= self.results.load(Ordering::Acquire)
    }

    /// The totals as the client's judgement has them: only what it accepted counts as accepted.
    pub(crate) fn adjust(&self, totals: Totals) -> Totals {
        let accepted = self.accepted.load(Ordering::Acquire).min(totals.accepted);
        let rejected = self
            .rejected
            .load(Ordering::Acquire)
            .min(totals.accepted - accepted);
        let busy_ns = self
            .accepted_busy_ns
            .load(Ordering::Relaxed)
            .min(totals.busy_ns);
        // How long each task waited is known only in sum; the accepted ones bear their share.
        let share = u128::from(totals.staged_ns) * u128::from(accepted)
            / u128::from(totals.accepted.max(1));
        Totals {
            accepted,
            rejected: totals.rejected + rejected,
            busy_ns,
            staged_ns: u64::try_from(share).unwrap_or(totals.staged_ns),
            ..totals
        }
    }
}

/// The worker thread's end.
pub(crate) struct ChannelJob {
    tasks: mpsc::Receiver<LocalTask>,
    answers: mpsc::Sender<LocalAnswer>,
    verdicts: Arc<Verdicts>,
    /// Of a task that says nothing of its own.
    usual_deadline_us: u32,
    /// Of the task that was handed out last.
    deadline_us: u32,
    /// Tasks handed out and not answered.
    outstanding: usize,
}

/// The connection's end.
pub(crate) struct LocalEnds {
    pub(crate) tasks: mpsc::Sender<LocalTask>,
    pub(crate) answers: mpsc::Receiver<LocalAnswer>,
    pub(crate) verdicts: Arc<Verdicts>,
}

/// Makes a job and the ends that feed it.
pub(crate) fn channel_job(deadline_us: u32) -> (ChannelJob, LocalEnds) {
    let (task_sender, tasks) = mpsc::channel(WINDOW_MAX);
    let (answers, answer_receiver) = mpsc::channel(WINDOW_MAX);
    let verdicts = Arc::new(Verdicts::default());
    let job = ChannelJob {
        tasks,
        answers,
        verdicts: Arc::clone(&verdicts),
        usual_deadline_us: deadline_us,
        deadline_us,
        outstanding: 0,
    };
    (
        job,
        LocalEnds {
            tasks: task_sender,
            answers: answer_receiver,
            verdicts,
        },
    )
}

/// Nothing until the connection rings.
const WAITING: Next = Next::Waiting { until: Time::NEVER };

impl Job for ChannelJob {
    fn next(&mut self, space: &mut [u8], _now: Time) -> Next {
        if self.verdicts.gone.load(Ordering::Acquire) {
            return Next::End;
        }
        let waiting = self.verdicts.waiting_bytes.load(Ordering::Relaxed);
        // Every task handed out has a place in the queue of answers.
        if self.outstanding >= self.answers.capacity() || waiting > ANSWER_BYTES_MAX {
            return WAITING;
        }
        match self.tasks.try_recv() {
            Ok(LocalTask {
                token,
                deadline_us,
                payload,
            }) => {
                self.outstanding += 1;
                self.deadline_us = deadline_us.unwrap_or(self.usual_deadline_us);
                match space.get_mut(..payload.len()) {
                    Some(space) => {
                        space.copy_from_slice(&payload);
                        Next::Task {
                            len: payload.len(),
                            token,
                        }
                    }
                    None => Next::Large { payload, token },
                }
            }
            Err(mpsc::error::TryRecvError::Empty) => WAITING,
            Err(mpsc::error::TryRecvError::Disconnected) => {
                if self.outstanding == 0 && self.verdicts.is_judged() {
                    Next::End
                } else {
                    WAITING
                }
            }
        }
    }

    fn attach(&mut self, waker: Waker) {
        // A job is attached once.
        let _ = self.verdicts.waker.set(waker);
    }

    fn deadline_us(&self) -> u32 {
        self.deadline_us
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, timing: Timing) -> Verdict {
        self.outstanding = self.outstanding.saturating_sub(1);
        let outcome = match answer {
            Answer::Done(result) => {
                self.verdicts.results.fetch_add(1, Ordering::Release);
                LocalOutcome::Done(Bytes::copy_from_slice(result))
            }
            Answer::Failed(why) => LocalOutcome::Failed(Bytes::copy_from_slice(why)),
            Answer::Refused(refused) => LocalOutcome::Refused(refused),
        };
        self.verdicts
            .waiting_bytes
            .fetch_add(outcome.len(), Ordering::Relaxed);
        if self
            .answers
            .try_send(LocalAnswer {
                token,
                outcome,
                timing,
            })
            .is_err()
        {
            // Room was kept for every task handed out, so the client is gone.
            self.verdicts.leave();
        }
        Verdict::Accept
    }

    fn progress(&mut self, token: u64, piece: &[u8]) {
        if self.answers.capacity() <= self.outstanding {
            self.verdicts.pieces_lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let outcome = LocalOutcome::Piece(Bytes::copy_from_slice(piece));
        self.verdicts
            .waiting_bytes
            .fetch_add(outcome.len(), Ordering::Relaxed);
        if self
            .answers
            .try_send(LocalAnswer {
                token,
                outcome,
                timing: Timing::default(),
            })
            .is_err()
        {
            self.verdicts.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_its_own_deadline_or_that_of_its_engagement() {
        let (mut job, ends) = channel_job(70);
        let mut space = [0; 8];
        assert_eq!(job.deadline_us(), 70);
        for (token, deadline_us) in [(1, Some(9)), (2, None), (3, Some(0))] {
            let task = LocalTask {
                token,
                deadline_us,
                payload: Bytes::new(),
            };
            assert!(ends.tasks.try_send(task).is_ok());
        }
        let told = [1, 2, 3].map(|token| {
            assert_eq!(
                job.next(&mut space, Time::ZERO),
                Next::Task { len: 0, token }
            );
            job.deadline_us()
        });
        assert_eq!(told, [9, 70, 0]);
    }

    #[test]
    fn a_job_ends_once_every_result_is_judged_and_counts_what_was_accepted() {
        let (mut job, mut ends) = channel_job(0);
        let mut space = [0; 8];
        assert_eq!(job.next(&mut space, Time::ZERO), WAITING);
        for (token, payload) in [(1, &b"small"[..]), (2, b"larger than the space")] {
            let payload = Bytes::from_static(payload);
            assert!(
                ends.tasks
                    .try_send(LocalTask {
                        token,
                        deadline_us: None,
                        payload
                    })
                    .is_ok()
            );
        }
        assert_eq!(
            job.next(&mut space, Time::ZERO),
            Next::Task { len: 5, token: 1 }
        );
        assert_eq!(&space[..5], b"small");
        let large = Bytes::from_static(b"larger than the space");
        assert_eq!(
            job.next(&mut space, Time::ZERO),
            Next::Large {
                payload: large,
                token: 2
            }
        );
        drop(std::mem::replace(&mut ends.tasks, mpsc::channel(1).0));
        let timing = Timing {
            round_trip_ns: 9,
            busy_ns: 100,
            ..Timing::default()
        };
        assert_eq!(job.answer(1, Answer::Done(b"one"), timing), Verdict::Accept);
        assert_eq!(job.answer(2, Answer::Done(b"two"), timing), Verdict::Accept);
        assert_eq!(
            job.next(&mut space, Time::ZERO),
            WAITING,
            "nothing is judged yet"
        );
        let first = ends.answers.try_recv().expect("an answer");
        assert_eq!((first.token, first.timing), (1, timing));
        ends.verdicts.judge(Verdict::Accept, 100);
        assert_eq!(job.next(&mut space, Time::ZERO), WAITING);
        ends.verdicts.judge(Verdict::Reject, 100);
        assert_eq!(job.next(&mut space, Time::ZERO), Next::End);
        let totals = Totals {
            done: 2,
            accepted: 2,
            busy_ns: 200,
            staged_ns: 50,
            ..Totals::default()
        };
        let adjusted = ends.verdicts.adjust(totals);
        assert_eq!((adjusted.accepted, adjusted.rejected), (1, 1));
        assert_eq!((adjusted.busy_ns, adjusted.staged_ns), (100, 25));
    }

    #[test]
    fn no_task_is_handed_out_without_a_place_for_its_answer() {
        let (mut job, mut ends) = channel_job(0);
        let mut space = [0; 8];
        for token in 0..WINDOW_MAX as u64 {
            assert!(
                ends.tasks
                    .try_send(LocalTask {
                        token,
                        deadline_us: None,
                        payload: Bytes::new()
                    })
                    .is_ok()
            );
            assert_eq!(
                job.next(&mut space, Time::ZERO),
                Next::Task { len: 0, token }
            );
        }
        let task = LocalTask {
            token: 5_000,
            deadline_us: None,
            payload: Bytes::new(),
        };
        assert!(ends.tasks.try_send(task).is_ok());
        assert_eq!(job.next(&mut space, Time::ZERO), WAITING);
        job.answer(0, Answer::Refused(Refused::Late), Timing::default());
        assert_eq!(
            job.next(&mut space, Time::ZERO),
            WAITING,
            "its answer is not read yet"
        );
        let answer = ends.answers.try_recv().expect("the answer");
        assert_eq!(answer.outcome, LocalOutcome::Refused(Refused::Late));
        assert_eq!(
            job.next(&mut space, Time::ZERO),
            Next::Task {
                len: 0,
                token: 5_000
            }
        );
        ends.verdicts.leave();
        assert_eq!(
            job.next(&mut space, Time::ZERO),
            Next::End,
            "the client is gone"
        );
    }
}
