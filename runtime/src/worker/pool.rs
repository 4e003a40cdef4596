//! Tasks that run off the worker's core.
//!
//! A worker owns a fixed number of job boxes. To hand a task over it fills a free box (the payload
//! is copied once, so that the receive buffer goes back to the kernel) and sends it; a pool thread
//! runs it and returns the same box through the worker's inbox. No box free means that the pool is
//! full, and the task is refused as busy. After the first use of each box nothing is allocated.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use ramjet_proto::engagement::serving::Admitted;
use ramjet_proto::time::Time;
use ramjet_proto::wire::limits::FRAME_PAYLOAD_MAX;

use super::clock;
use super::mailbox::{Inbox, Piece};
use crate::handler::{Handler, Outcome};

/// Job boxes of one worker: tasks that wait or run in the pool for it.
pub const JOBS_PER_WORKER: usize = 256;

/// A task on its way through the pool.
pub struct PoolJob {
    /// The channel it belongs to: place and generation.
    pub channel: (u32, u32),
    /// Proof that it is owed an answer.
    pub admitted: Option<Admitted>,
    /// What to run.
    pub handler: Option<Arc<dyn Handler>>,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Its result, or the reason of a failure.
    pub result: Vec<u8>,
    /// Longest result.
    pub result_len_max: usize,
    /// What became of it; `None` if its deadline passed before it ran.
    pub outcome: Option<Outcome>,
    /// When it started.
    pub started: Time,
    /// Handler time, in nanoseconds.
    pub busy_ns: u64,
    /// Who wants it back.
    pub inbox: Arc<Inbox>,
}

impl std::fmt::Debug for PoolJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PoolJob({} bytes)", self.payload.len())
    }
}

impl PoolJob {
    /// An empty box for one worker.
    pub fn new(inbox: Arc<Inbox>) -> Self {
        PoolJob {
            channel: (0, 0),
            admitted: None,
            handler: None,
            payload: Vec::new(),
            result: Vec::new(),
            result_len_max: 0,
            outcome: None,
            started: Time::ZERO,
            busy_ns: 0,
            inbox,
        }
    }

    fn run(&mut self) {
        self.started = clock::now();
        let deadline = self
            .admitted
            .as_ref()
            .map_or(Time::NEVER, Admitted::deadline);
        let Some(handler) = self.handler.take() else {
            return;
        };
        if self.started > deadline {
            self.outcome = None;
            return;
        }
        self.result.resize(self.result_len_max, 0);
        let task = self
            .admitted
            .as_ref()
            .map(Admitted::task)
            .unwrap_or_default();
        let (inbox, channel) = (&self.inbox, self.channel);
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
        let (payload, result) = (&self.payload, &mut self.result);
        self.outcome = Some(guarded(result, |result| {
            handler.run_reporting(payload, result, &mut progress)
        }));
        self.busy_ns = clock::now().nanos_since(self.started);
    }
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
    jobs: Sender<Box<PoolJob>>,
    threads: Vec<JoinHandle<()>>,
}

fn serve(jobs: &Receiver<Box<PoolJob>>) {
    for mut job in jobs {
        job.run();
        let inbox = Arc::clone(&job.inbox);
        // The queue holds every box of its worker, so there is always room.
        let returned = inbox.finished.push(job).is_ok();
        debug_assert!(returned, "more boxes than the worker has");
        inbox.waker.wake();
    }
}

impl Pool {
    /// Starts the threads; they end when the last [`PoolSender`] and the pool are gone.
    ///
    /// # Errors
    /// What the system says of a new thread.
    pub fn start(threads: usize, workers: usize) -> std::io::Result<Self> {
        let (jobs, queue) = bounded(JOBS_PER_WORKER * workers.max(1));
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
    pub fn sender(&self) -> Sender<Box<PoolJob>> {
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
        let mut job = Box::new(PoolJob::new(Arc::clone(&inbox)));
        job.handler = Some(Arc::new(Panics));
        job.payload.extend_from_slice(b"y");
        job.result_len_max = 64;
        pool.sender().send(job).expect("room");
        pool.join();
        let job = inbox.finished.pop().expect("returned");
        assert_eq!(job.outcome, Some(Outcome::Done(1)));
        assert_eq!(job.result[0], b'y');
    }
}
