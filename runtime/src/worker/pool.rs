//! The pool: threads that run handlers off the worker's core.
//!
//! A worker fills a job box ([`super::boxes`]) and sends it; a pool thread runs it and returns the
//! same box through the worker's inbox. The queue holds every box there is, so it never fills.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use ramjet_proto::engagement::serving::Admitted;
use ramjet_proto::frame::kind::RefusalCode;
use ramjet_proto::wire::limits::FRAME_PAYLOAD_MAX;

use super::boxes::{Ended, POOL_BOXES, TaskBox};
use super::clock;
use super::mailbox::Piece;
use crate::handler::{Handler, Outcome};

/// Runs the task of a box.
fn run(job: &mut TaskBox) {
    job.started = clock::now();
    let Some(handler) = job.handler.take() else {
        return;
    };
    if job.started > job.deadline() {
        job.ended = Ended::Refused(RefusalCode::Late, 0);
        return;
    }
    job.result.resize(job.result_len_max, 0);
    let task = job
        .admitted
        .as_ref()
        .map(Admitted::task)
        .unwrap_or_default();
    let (inbox, channel) = (&job.inbox, job.channel);
    let mut progress = |bytes: &[u8]| {
        let piece = Piece {
            channel,
            task,
            bytes: bytes.into(),
        };
        let taken = bytes.len() <= FRAME_PAYLOAD_MAX && inbox.pieces.push(piece).is_ok();
        inbox.waker.wake();
        taken
    };
    let (payload, result) = (&job.payload, &mut job.result);
    job.ended = Ended::Ran(guarded(result, |result| {
        handler.run_reporting(payload, result, &mut progress)
    }));
    job.busy_ns = clock::now().nanos_since(job.started);
}

/// Runs a handler so that its panic fails this task only.
pub fn run_guarded(handler: &dyn Handler, payload: &[u8], result: &mut [u8]) -> Outcome {
    guarded(result, |result| handler.run(payload, result))
}

fn guarded(result: &mut [u8], run: impl FnOnce(&mut [u8]) -> Outcome) -> Outcome {
    const PANICKED: &[u8] = b"the handler panicked";
    let len_max = result.len();
    let ran = catch_unwind(AssertUnwindSafe(|| run(result)));
    match ran {
        Ok(Outcome::Done(len)) if len <= len_max => Outcome::Done(len),
        Ok(Outcome::Failed(len)) if len <= len_max => Outcome::Failed(len),
        _ => {
            let len = PANICKED.len().min(len_max);
            result[..len].copy_from_slice(&PANICKED[..len]);
            Outcome::Failed(len)
        }
    }
}

/// The threads, and the way to them.
#[derive(Debug)]
pub struct Pool {
    jobs: Sender<Box<TaskBox>>,
    threads: Vec<JoinHandle<()>>,
}

fn serve(jobs: &Receiver<Box<TaskBox>>) {
    for mut job in jobs {
        run(&mut job);
        let inbox = Arc::clone(&job.inbox);
        job.home();
        inbox.waker.wake();
    }
}

impl Pool {
    /// Starts the threads; they end when the last [`PoolSender`] and the pool are gone.
    ///
    /// # Errors
    /// What the system says of a new thread.
    pub fn start(threads: usize, workers: usize) -> std::io::Result<Self> {
        let (jobs, queue) = bounded(POOL_BOXES * workers.max(1));
        let threads = (0..threads)
            .map(|index| {
                let queue = queue.clone();
                std::thread::Builder::new()
                    .name(format!("ramjet-pool-{index}"))
                    .spawn(move || serve(&queue))
            })
            .collect::<Result<_, _>>()?;
        Ok(Pool { jobs, threads })
    }

    /// A way into the pool for one worker.
    pub fn sender(&self) -> Sender<Box<TaskBox>> {
        self.jobs.clone()
    }

    /// Waits for the threads; the workers must have ended before.
    pub fn join(self) {
        drop(self.jobs);
        for thread in self.threads {
            // Handlers are guarded, so a thread ends only by an empty queue.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::boxes::Stock;
    use crate::worker::mailbox::Inbox;

    struct Panics;

    impl Handler for Panics {
        fn result_len_max(&self, _payload_len: usize) -> usize {
            64
        }

        fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome {
            if payload.is_empty() {
                panic!("on purpose");
            }
            result[0] = payload[0];
            Outcome::Done(payload.len())
        }
    }

    #[test]
    fn a_panic_or_an_overlong_result_fails_the_one_task() {
        let mut result = [0; 64];
        let outcome = run_guarded(&Panics, b"", &mut result);
        assert_eq!(outcome, Outcome::Failed(20));
        assert_eq!(&result[..20], b"the handler panicked");
        assert_eq!(run_guarded(&Panics, b"x", &mut result), Outcome::Done(1));
        assert!(matches!(
            run_guarded(&Panics, &[1; 65], &mut result),
            Outcome::Failed(_)
        ));
    }

    #[test]
    fn a_box_comes_back_to_its_worker() {
        let inbox = Arc::new(Inbox::new(1).expect("an eventfd"));
        let pool = Pool::start(1, 1).expect("a thread");
        let mut job = Box::new(TaskBox::new(Stock::Pool, Arc::clone(&inbox)));
        job.handler = Some(Arc::new(Panics));
        job.payload.extend_from_slice(b"y");
        job.result_len_max = 64;
        pool.sender().send(job).expect("room");
        pool.join();
        let job = inbox.finished.pop().expect("returned");
        assert_eq!(job.ended, Ended::Ran(Outcome::Done(1)));
        assert_eq!(job.result[0], b'y');
    }
}
