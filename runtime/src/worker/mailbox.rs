//! How a worker and the other threads reach each other: bounded queues and a wake-up.
//!
//! A sender pushes and then wakes the worker if it sleeps; that no wake-up is lost is the business of
//! `wake.rs`, and proven there.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;
use std::thread::JoinHandle;

use crossbeam::queue::ArrayQueue;
use ramjet_proto::frame::TaskId;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use super::boxes::TaskBox;
use super::counters::Counters;
use super::wake::Sleep;
use crate::control::vocabulary::{Command, Report};

/// Commands that may wait for a worker.
const COMMANDS_MAX: usize = 1_024;
/// Reports that may wait for control, of each worker.
const REPORTS_MAX: usize = 4_096;
/// Misdirected datagrams that may wait for their worker.
const FORWARDED_MAX: usize = 256;
/// Pieces of progress that may wait for a worker.
const PIECES_MAX: usize = 1_024;

/// Wakes one sleeping thread.
#[derive(Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
    sleep: Sleep,
}

impl Waker {
    /// For a thread that is awake.
    ///
    /// # Errors
    /// The kernel has no descriptor left for the eventfd.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Waker {
            event: Arc::new(event),
            sleep: Sleep::new(AtomicBool::new(false)),
        })
    }

    /// The eventfd that ends a wait.
    pub fn event(&self) -> &Arc<OwnedFd> {
        &self.event
    }

    /// Something was pushed: wakes the thread if it sleeps.
    pub fn wake(&self) {
        if self.sleep.must_ring() {
            // A full counter means that a wake-up is already on its way.
            let _ = rustix::io::write(&*self.event, &increment());
        }
    }

    /// The thread is about to sleep; it looks at its queues once more after this.
    pub fn falling_asleep(&self) {
        self.sleep.falling_asleep();
    }

    /// The thread is awake; a wake-up that was sent meanwhile is taken back.
    pub fn awake(&self) {
        self.awake_after(true);
    }

    /// As [`Self::awake`], for a thread that knows whether the event was `rung` when it woke: if not,
    /// there is nothing to take back, and what rings meanwhile ends the next wait at once.
    pub fn awake_after(&self, rung: bool) {
        self.sleep.awake();
        if rung {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.event, &mut count);
        }
    }
}

/// An eventfd takes its increment in host order (eventfd(2)).
#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel reads it in host order"
)]
fn increment() -> [u8; 8] {
    1_u64.to_ne_bytes()
}

/// A datagram that reached the wrong worker, on its way to the right one.
#[derive(Debug)]
pub struct Forwarded {
    /// Who sent it.
    pub source: SocketAddr,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A piece of progress on its way from the pool or an agent.
#[derive(Debug)]
pub struct Piece {
    /// The channel of the task: place and generation.
    pub channel: (u32, u32),
    /// The task.
    pub task: TaskId,
    /// What it says.
    pub bytes: Box<[u8]>,
}

/// The queues into one worker.
#[derive(Debug)]
pub struct Inbox {
    /// From control.
    pub commands: ArrayQueue<Command>,
    /// From the pool and from agents: finished tasks.
    pub finished: ArrayQueue<Box<TaskBox>>,
    /// From the pool and from agents: progress of tasks that run.
    pub pieces: ArrayQueue<Piece>,
    /// From the other workers.
    pub forwarded: ArrayQueue<Forwarded>,
    /// Whether a job that had nothing has something now.
    pub fed: AtomicBool,
    /// Wakes it.
    pub waker: Waker,
}

impl Inbox {
    /// Empty queues; `boxes` is the most tasks that the pool and agents may hold for this worker.
    ///
    /// # Errors
    /// The kernel has no descriptor left for the eventfd.
    pub fn new(boxes: usize) -> io::Result<Self> {
        Ok(Inbox {
            commands: ArrayQueue::new(COMMANDS_MAX),
            finished: ArrayQueue::new(boxes),
            pieces: ArrayQueue::new(PIECES_MAX),
            forwarded: ArrayQueue::new(FORWARDED_MAX),
            fed: AtomicBool::new(false),
            waker: Waker::new()?,
        })
    }

    /// Whether anything waits.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
            && self.finished.is_empty()
            && self.pieces.is_empty()
            && self.forwarded.is_empty()
            && !self.fed.load(Ordering::Acquire)
    }

    /// Whether a job has rung since this was last asked. Ask before the jobs are asked for tasks: what
    /// rings after that is told the next time.
    pub fn was_fed(&self) -> bool {
        self.fed.load(Ordering::Relaxed) && self.fed.swap(false, Ordering::AcqRel)
    }
}

/// What a job rings when it has a task again.
impl Wake for Inbox {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.fed.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// Where one worker puts its reports.
#[derive(Clone, Debug)]
pub struct ReportSender {
    queue: Arc<ArrayQueue<Report>>,
    notify: Arc<Notify>,
}

impl ReportSender {
    /// Pushes a report and wakes control.
    ///
    /// # Errors
    /// The report, if the queue is full.
    pub fn push(&self, report: Report) -> Result<(), Report> {
        self.queue.push(report)?;
        self.notify.notify_one();
        Ok(())
    }

    /// Pushes a report that control need not be woken for, unless many gather: it is read with the
    /// next one that wakes it, or when it looks around by itself.
    ///
    /// # Errors
    /// The report, if the queue is full.
    pub fn leave(&self, report: Report) -> Result<(), Report> {
        self.queue.push(report)?;
        if self.queue.len() >= REPORTS_MAX / 4 {
            self.notify.notify_one();
        }
        Ok(())
    }
}

/// Where control takes reports from, of all workers in turn.
#[derive(Debug)]
pub struct ReportReceiver {
    queues: Vec<Arc<ArrayQueue<Report>>>,
    notify: Arc<Notify>,
}

impl ReportReceiver {
    /// The next report, if there is one.
    pub fn pop(&self) -> Option<Report> {
        self.queues.iter().find_map(|queue| queue.pop())
    }

    /// Waits until something was pushed since the last wait.
    pub async fn ready(&self) {
        self.notify.notified().await;
    }
}

/// One queue for each worker, and the one receiver of all.
pub fn reports(workers: usize) -> (Vec<ReportSender>, ReportReceiver) {
    let notify = Arc::new(Notify::new());
    let queues: Vec<_> = (0..workers)
        .map(|_| Arc::new(ArrayQueue::new(REPORTS_MAX)))
        .collect();
    let senders = queues
        .iter()
        .map(|queue| ReportSender {
            queue: Arc::clone(queue),
            notify: Arc::clone(&notify),
        })
        .collect();
    (senders, ReportReceiver { queues, notify })
}

/// The way into a worker's queue of commands, for those who do not hold the worker.
#[derive(Clone, Debug)]
pub struct Mailbox {
    inbox: Arc<Inbox>,
}

impl Mailbox {
    /// Queues a command and wakes the worker.
    ///
    /// # Errors
    /// The command, if 1,024 wait already.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.inbox.commands.push(command)?;
        self.inbox.waker.wake();
        Ok(())
    }
}

/// A running worker, as control holds it.
#[derive(Debug)]
pub struct WorkerHandle {
    pub(super) inbox: Arc<Inbox>,
    pub(super) counters: Arc<Counters>,
    pub(super) thread: JoinHandle<()>,
}

impl WorkerHandle {
    /// Its mailbox.
    pub fn mailbox(&self) -> Mailbox {
        Mailbox {
            inbox: Arc::clone(&self.inbox),
        }
    }

    /// Queues a command and wakes the worker.
    ///
    /// # Errors
    /// The command, if 1,024 wait already.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.inbox.commands.push(command)?;
        self.inbox.waker.wake();
        Ok(())
    }

    /// Counter values by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.counters.snapshot()
    }

    /// What it counts, to be read at any time.
    pub fn shared_counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        // A worker that panicked has reported that it stopped.
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_between_the_look_and_the_sleep_is_kept() {
        let inbox = Inbox::new(4).expect("an eventfd");
        inbox.waker.wake();
        let mut count = [0; 8];
        assert!(
            rustix::io::read(&**inbox.waker.event(), &mut count).is_err(),
            "nobody slept"
        );
        inbox.waker.falling_asleep();
        inbox.waker.wake();
        assert_eq!(rustix::io::read(&**inbox.waker.event(), &mut count), Ok(8));
        inbox.waker.awake();
        inbox.waker.wake();
        assert!(
            rustix::io::read(&**inbox.waker.event(), &mut count).is_err(),
            "awake again"
        );
    }
}
