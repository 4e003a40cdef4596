//! Places in the workers' list of skills for skills that agents run.
//!
//! The list is fixed when the workers start; the last [`AGENT_SKILLS_MAX`] of it are these. A worker
//! pushes a box into the place's queue, and wakes the engine that reads it once a turn; nothing here
//! locks. A place that nobody runs, or whose agents are not ready, refuses at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use ramjet_proto::frame::kind::RefusalCode;
use ramjet_proto::market::AcceptFrom;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wire::REASON_LEN_MAX;
use crate::handler::{Handler, Outcome, Placement, Skill};
use crate::worker::boxes::{Ended, Stock, TaskBox};
use crate::worker::mailbox::{Inbox, Waker};

/// Skills of agents at a time.
pub(crate) const AGENT_SKILLS_MAX: usize = 16;
/// When a requester may come again that found no agent ready: 100 ms, in microseconds.
pub(super) const NOT_READY_RETRY_US: u32 = 100_000;
/// Tasks of a place's queue that come from elsewhere than the workers' boxes.
const BESIDE_MAX: usize = 1_024;
/// Longest sleep of a caller that waits for its one task, between two looks.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The way into one engine.
#[derive(Debug)]
pub(super) struct Inlet {
    pub(super) tasks: ArrayQueue<Box<TaskBox>>,
    pub(super) waker: Waker,
}

/// One place.
#[derive(Debug, Default)]
pub(crate) struct Place {
    inlet: OnceLock<Arc<Inlet>>,
    /// Agents that take batches.
    ready: AtomicUsize,
    payload_len_max: AtomicUsize,
    result_len_max: AtomicUsize,
}

impl Place {
    /// The queue of the place, made when its first engine starts; `tasks` is how many the workers may
    /// have out.
    ///
    /// # Errors
    /// The kernel has no descriptor left.
    pub(super) fn inlet(&self, tasks: usize) -> std::io::Result<Arc<Inlet>> {
        if let Some(inlet) = self.inlet.get() {
            return Ok(Arc::clone(inlet));
        }
        let made = Arc::new(Inlet {
            tasks: ArrayQueue::new(tasks + BESIDE_MAX),
            waker: Waker::new()?,
        });
        Ok(Arc::clone(self.inlet.get_or_init(|| made)))
    }

    /// What the agents take, from now on.
    pub(super) fn bound(&self, payload_len_max: usize, result_len_max: usize) {
        self.payload_len_max
            .store(payload_len_max, Ordering::Relaxed);
        self.result_len_max.store(result_len_max, Ordering::Relaxed);
    }

    /// How many agents take batches.
    pub(super) fn set_ready(&self, agents: usize) {
        self.ready.store(agents, Ordering::Release);
    }

    /// Waits for the one task that was handed over with this inbox.
    fn wait(inbox: &Inbox) -> Box<TaskBox> {
        loop {
            inbox.waker.falling_asleep();
            let back = inbox.finished.pop();
            if back.is_none() {
                let event = inbox.waker.event();
                // A wait that fails is a look.
                let _ = poll(&mut [PollFd::new(&**event, PollFlags::IN)], Some(&LOOK));
            }
            inbox.waker.awake();
            if let Some(back) = back {
                return back;
            }
        }
    }
}

impl Handler for Place {
    fn placement(&self) -> Placement {
        Placement::Agents
    }

    fn result_len_max(&self, _payload_len: usize) -> usize {
        // A reason finds room, however short results are, and before any agent has said.
        self.result_len_max
            .load(Ordering::Relaxed)
            .max(REASON_LEN_MAX)
    }

    /// For callers that have a thread to wait on: hands the task over and waits for its answer.
    fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome {
        let fail = |result: &mut [u8], why: &str| {
            let len = why.len().min(result.len());
            result[..len].copy_from_slice(&why.as_bytes()[..len]);
            Outcome::Failed(len)
        };
        let Ok(inbox) = Inbox::new(1) else {
            return fail(result, "no descriptor is left to wait with");
        };
        let inbox = Arc::new(inbox);
        let mut task = Box::new(TaskBox::new(Stock::Agents, Arc::clone(&inbox)));
        task.payload.extend_from_slice(payload);
        task.result_len_max = result.len();
        let refused = |code: RefusalCode| match code {
            RefusalCode::Busy => "busy: no agent takes the task now; try later",
            RefusalCode::TooBig => "too big for the agents of this skill",
            _ => "refused by the agents of this skill",
        };
        if let Err((_, code, _)) = self.hand_over(task) {
            return fail(result, refused(code));
        }
        self.wake_agents();
        let back = Place::wait(&inbox);
        match back.ended {
            Ended::Ran(Outcome::Done(len)) if len <= result.len() => {
                result[..len].copy_from_slice(&back.result[..len]);
                Outcome::Done(len)
            }
            Ended::Ran(Outcome::Done(_)) => {
                fail(result, "the result is longer than agents declared")
            }
            Ended::Ran(Outcome::Failed(len)) => {
                let len = len.min(result.len());
                result[..len].copy_from_slice(&back.result[..len]);
                Outcome::Failed(len)
            }
            Ended::Refused(code, _) => fail(result, refused(code)),
        }
    }

    fn hand_over(&self, task: Box<TaskBox>) -> Result<(), (Box<TaskBox>, RefusalCode, u32)> {
        if self.ready.load(Ordering::Acquire) == 0 {
            return Err((task, RefusalCode::Busy, NOT_READY_RETRY_US));
        }
        if task.payload.len() > self.payload_len_max.load(Ordering::Relaxed) {
            return Err((task, RefusalCode::TooBig, 0));
        }
        let Some(inlet) = self.inlet.get() else {
            return Err((task, RefusalCode::Busy, NOT_READY_RETRY_US));
        };
        let pushed = inlet.tasks.push(task);
        pushed.map_err(|task| (task, RefusalCode::Busy, NOT_READY_RETRY_US))
    }

    fn wake_agents(&self) {
        if let Some(inlet) = self.inlet.get() {
            inlet.waker.wake();
        }
    }
}

/// The places of a node, in the order in which the plane numbers them.
#[derive(Clone, Debug)]
pub(crate) struct AgentPlaces(pub(super) Arc<[Arc<Place>]>);

impl AgentPlaces {
    pub(crate) fn new() -> Self {
        AgentPlaces((0..AGENT_SKILLS_MAX).map(|_| Arc::default()).collect())
    }

    /// The agents' skills of these names as callers beside the workers know them: each stands where the
    /// plane puts it, which gives places in the order of the names' first mention.
    pub(crate) fn named(&self, skills: impl Iterator<Item = (String, AcceptFrom)>) -> Vec<Skill> {
        let mut found: Vec<Skill> = Vec::new();
        for (name, accept_from) in skills {
            if found.iter().all(|skill| skill.name != name) {
                let handler = Arc::clone(&self.0[found.len()]) as Arc<dyn Handler>;
                found.push(Skill {
                    name,
                    accept_from,
                    handler,
                });
            }
        }
        found
    }

    /// The places as skills for the workers' list. Their names are for nobody to ask for.
    pub(crate) fn skills(&self) -> impl Iterator<Item = Skill> {
        self.0.iter().enumerate().map(|(index, place)| Skill {
            name: format!("agents-{index}"),
            accept_from: AcceptFrom::Gate,
            handler: Arc::clone(place) as Arc<dyn Handler>,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(payload: &[u8]) -> Box<TaskBox> {
        let inbox = Arc::new(Inbox::new(1).expect("an eventfd"));
        let mut task = Box::new(TaskBox::new(Stock::Agents, inbox));
        task.payload.extend_from_slice(payload);
        task
    }

    #[test]
    fn a_place_refuses_until_its_agents_are_ready_and_what_they_do_not_take() {
        let place = Place::default();
        let inlet = place.inlet(4).expect("an eventfd");
        place.bound(3, 8);
        let code = |outcome: Result<(), (Box<TaskBox>, RefusalCode, u32)>| {
            outcome.map_err(|(_, code, retry_after_us)| (code, retry_after_us))
        };
        let busy = Err((RefusalCode::Busy, NOT_READY_RETRY_US));
        assert_eq!(code(place.hand_over(task(b"abc"))), busy);
        place.set_ready(1);
        assert_eq!(code(place.hand_over(task(b"abc"))), Ok(()));
        let too_big = Err((RefusalCode::TooBig, 0));
        assert_eq!(code(place.hand_over(task(b"abcd"))), too_big);
        assert_eq!(inlet.tasks.len(), 1);
        assert_eq!(place.result_len_max(100), REASON_LEN_MAX);
    }

    #[test]
    fn a_caller_with_a_thread_waits_for_its_answer() {
        let place = Arc::new(Place::default());
        let inlet = place.inlet(4).expect("an eventfd");
        place.bound(8, 8);
        place.set_ready(1);
        let caller = Arc::clone(&place);
        let waiting = std::thread::spawn(move || {
            let mut result = vec![0; 8];
            (caller.run(b"abc", &mut result), result)
        });
        let mut task = loop {
            match inlet.tasks.pop() {
                Some(task) => break task,
                None => std::thread::yield_now(),
            }
        };
        task.result.extend_from_slice(b"ABC");
        task.ended = Ended::Ran(Outcome::Done(3));
        let inbox = Arc::clone(&task.inbox);
        task.home();
        inbox.waker.wake();
        let (outcome, result) = waiting.join().expect("an answer");
        assert_eq!((outcome, &result[..3]), (Outcome::Done(3), &b"ABC"[..]));
    }
}
