//! How a worker falls asleep without missing what is pushed meanwhile.
//!
//! ```text
//!  sender                          worker
//!  1 push                          1 asleep := true
//!  2 fence                         2 fence
//!  3 if asleep, ring the event     3 if the queues are empty, wait for the event
//! ```
//!
//! Of the two fences one comes first in their single total order: either the sender sees the worker
//! asleep, or the worker sees the push (C++20, 32.4.4, sequentially consistent fences). The test below
//! tries every order of the two, under the rules of the memory model, with loom.

use std::sync::atomic::{AtomicBool, Ordering, fence};

/// A shared flag, and the fence that goes with it: the memory's own, or the model checker's.
pub(super) trait Flag {
    fn set(&self, value: bool);
    fn is_set(&self) -> bool;
    fn fence();
}

impl Flag for AtomicBool {
    fn set(&self, value: bool) {
        self.store(value, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.load(Ordering::Relaxed)
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Whether a worker sleeps.
#[derive(Debug)]
pub(super) struct Sleep<F = AtomicBool> {
    asleep: F,
}

impl<F: Flag> Sleep<F> {
    /// It is awake.
    pub(super) fn new(asleep: F) -> Self {
        Sleep { asleep }
    }

    /// A sender has pushed: whether it must ring the event.
    pub(super) fn must_ring(&self) -> bool {
        F::fence();
        self.asleep.is_set()
    }

    /// The worker is about to sleep; it looks at its queues once more after this.
    pub(super) fn falling_asleep(&self) {
        self.asleep.set(true);
        F::fence();
    }

    /// The worker is awake.
    pub(super) fn awake(&self) {
        self.asleep.set(false);
    }
}

#[cfg(test)]
mod tests {
    use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::*;

    impl Flag for AtomicBool {
        fn set(&self, value: bool) {
            self.store(value, Ordering::Relaxed);
        }

        fn is_set(&self) -> bool {
            self.load(Ordering::Relaxed)
        }

        fn fence() {
            fence(Ordering::SeqCst);
        }
    }

    /// An eventfd: a counter that a wait takes whole.
    struct Event {
        count: Mutex<u32>,
        rung: Condvar,
    }

    impl Event {
        fn ring(&self) {
            *self.count.lock().expect("not poisoned") += 1;
            self.rung.notify_one();
        }

        fn wait(&self) {
            let mut count = self.count.lock().expect("not poisoned");
            while *count == 0 {
                count = self.rung.wait(count).expect("not poisoned");
            }
            *count = 0;
        }
    }

    struct Shared {
        /// A queue at its weakest: what is pushed is published by a release and read by an acquire.
        pushed: AtomicU32,
        event: Event,
        sleep: Sleep<AtomicBool>,
    }

    /// A worker that sleeps until it has seen what `senders` pushed once each. A wake-up that is lost
    /// leaves it waiting for ever, which loom reports as a deadlock.
    fn worker_sees_all(senders: u32) {
        let shared = Arc::new(Shared {
            pushed: AtomicU32::new(0),
            event: Event {
                count: Mutex::new(0),
                rung: Condvar::new(),
            },
            sleep: Sleep::new(AtomicBool::new(false)),
        });
        let threads: Vec<_> = (0..senders)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.pushed.fetch_add(1, Ordering::Release);
                    if shared.sleep.must_ring() {
                        shared.event.ring();
                    }
                })
            })
            .collect();
        while shared.pushed.load(Ordering::Acquire) < senders {
            shared.sleep.falling_asleep();
            if shared.pushed.load(Ordering::Acquire) < senders {
                shared.event.wait();
            }
            shared.sleep.awake();
        }
        for thread in threads {
            thread.join().expect("a sender");
        }
    }

    #[test]
    fn no_order_of_push_and_sleep_loses_the_wake_up() {
        loom::model(|| worker_sees_all(1));
    }

    #[test]
    fn nor_of_two_senders() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| worker_sees_all(2));
    }
}
