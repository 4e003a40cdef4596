//! How batches end: answered, failed, or lost with their agent.

use std::time::Duration;

use ramjet_proto::engagement::serving::RETRY_AFTER_US;
use ramjet_proto::frame::kind::RefusalCode;
use ramjet_proto::time::Time;

use super::agent::{Agent, Flight};
use super::{Engine, Event, LEFT, RETRY_WAIT, RETRY_WAIT_UNEXPECTED};
use crate::handler::Outcome;
use crate::port::layout::{AnswerEntry, AnswerStatus};
use crate::port::place::NOT_READY_RETRY_US;
use crate::port::stats::Stage;
use crate::port::wire::Breach;
use crate::worker::boxes::{Ended, TaskBox};
use crate::worker::clock;

/// Why an agent is no longer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Its end of the connection is closed.
    Ended,
    /// It gave no sign of life for too long.
    Stalled,
    /// It broke the protocol.
    Breach(Breach),
    /// It said BYE and has answered everything.
    Left,
    /// The node ends.
    Stopped,
}

impl Loss {
    /// What the tasks are told that it ran.
    fn reason(self) -> &'static str {
        match self {
            Loss::Ended | Loss::Left => "the agent died while it ran this task",
            Loss::Stalled => "the agent stalled while it ran this task",
            Loss::Breach(_) => "the agent broke the protocol while it ran this task",
            Loss::Stopped => "the node ended while an agent ran this task",
        }
    }
}

/// Reads one answer into the box; what is wrong with it fails the one task.
fn read_answer(agent: &Agent, flight: &Flight, index: usize, task: &mut TaskBox) {
    let base = agent.base(flight.region);
    let entry = AnswerEntry::read(&agent.arena.read(base + flight.layout.answer(index)));
    let hello = &agent.hello;
    match entry.check(&flight.layout, hello.result_len_max) {
        Ok((AnswerStatus::Done, offset, len)) => {
            if hello.result_stride > 0 && len != hello.result_stride {
                task.fail("the agent's answer has not the length it declared");
                return;
            }
            agent.arena.read_to(base + offset, len, &mut task.result);
            task.ended = Ended::Ran(Outcome::Done(len));
        }
        Ok((AnswerStatus::Failed, offset, len)) => {
            agent.arena.read_to(base + offset, len, &mut task.result);
            task.ended = Ended::Ran(Outcome::Failed(len));
        }
        Ok((AnswerStatus::Late, ..)) => task.ended = Ended::Refused(RefusalCode::Late, 0),
        Ok((AnswerStatus::Busy, ..)) => {
            task.ended = Ended::Refused(RefusalCode::Busy, RETRY_AFTER_US);
        }
        Ok((AnswerStatus::Unanswered, ..)) => task.fail("the agent did not answer this task"),
        Err(why) => task.fail(why),
    }
}

impl Engine {
    /// The running batch of an agent is done: its answers go home.
    pub(super) fn settle(&mut self, index: usize, run_ns: u64, now: Time) {
        let agent = &mut self.agents[index];
        let Some(mut flight) = agent.flights.pop_front() else {
            return;
        };
        let mut tasks = std::mem::take(&mut flight.tasks);
        for (place, (_, task)) in tasks.iter_mut().enumerate() {
            read_answer(agent, &flight, place, task);
        }
        agent.flights.push_front(flight);
        let flight = agent.land(now).expect("just put back");
        if let Some(batcher) = &mut self.batcher {
            batcher.ended(now, flight.closed.ticket);
        }
        let count = tasks.len() as u64;
        let places = u64::from(self.hello.max_batch);
        let on_it_ns = now.nanos_since(flight.runs_since);
        // Its own account cannot be longer than the time it had.
        let run_ns = run_ns.min(on_it_ns);
        let share_ns = run_ns / count.max(1);
        let (mut done, mut failed, mut late, mut busy, mut wasted) = (0, 0, 0, 0, 0);
        for (wanted, mut task) in tasks.drain(..) {
            task.started = flight.runs_since;
            task.busy_ns = share_ns;
            match task.ended {
                Ended::Ran(Outcome::Done(_)) => {
                    done += 1;
                    wasted += u64::from(now > wanted.deadline);
                }
                Ended::Ran(Outcome::Failed(_)) => failed += 1,
                Ended::Refused(RefusalCode::Late, _) => late += 1,
                Ended::Refused(..) => busy += 1,
            }
            self.send_home(task);
        }
        self.spare.push(tasks);
        self.wake_homes();
        let replied = clock::now();
        let mut stats = self.stats();
        stats.batches += 1;
        stats.tasks += count;
        stats.places += places;
        stats.done += done;
        stats.failed += failed;
        stats.late += late;
        stats.busy += busy;
        stats.wasted_tasks += wasted;
        stats.wasted_ns += wasted * share_ns;
        stats.record(Stage::HandOver, on_it_ns - run_ns);
        stats.record(Stage::Run, run_ns);
        stats.record(Stage::Reply, replied.nanos_since(now));
    }

    /// The agent says that the whole running batch failed.
    pub(super) fn batch_failed(&mut self, index: usize, reason: &[u8], now: Time) {
        let Some(flight) = self.agents[index].land(now) else {
            return;
        };
        if let Some(batcher) = &mut self.batcher {
            batcher.failed(now, flight.closed.ticket);
        }
        let reason = String::from_utf8_lossy(reason);
        let mut stats = self.stats();
        stats.batches += 1;
        stats.tasks += flight.tasks.len() as u64;
        stats.places += u64::from(self.hello.max_batch);
        drop(stats);
        for (_, mut task) in flight.tasks {
            task.started = flight.runs_since;
            self.fail(task, &reason);
        }
        self.wake_homes();
    }

    fn fail(&mut self, mut task: Box<TaskBox>, reason: &str) {
        task.fail(reason);
        self.stats().failed += 1;
        self.send_home(task);
    }

    /// An agent is gone, or is given up: its connection closes, and its batches are taken back.
    pub(super) fn lose(&mut self, index: usize, loss: Loss, now: Time) {
        let mut agent = self.agents.swap_remove(index);
        if index < self.audible.len() {
            self.audible.swap_remove(index);
        }
        if let (Some(lane), Some(batcher)) = (agent.lane.take(), &mut self.batcher) {
            batcher.remove_lane(lane);
        }
        let flights = std::mem::take(&mut agent.flights);
        let held = flights.len();
        let (agents, ready) = (self.agents.len(), self.ready());
        let mut stats = self.stats();
        (stats.agents, stats.ready) = (agents, ready);
        match loss {
            Loss::Ended if !agent.leaving || held > 0 => stats.deaths += 1,
            Loss::Stalled => stats.stalls += 1,
            Loss::Breach(breach) => stats.breach(breach),
            Loss::Ended | Loss::Left | Loss::Stopped => {}
        }
        drop(stats);
        let why = match loss {
            Loss::Ended if agent.leaving && held == 0 => LEFT.to_owned(),
            Loss::Ended => format!("its connection ended with {held} batches on their way"),
            Loss::Stalled => format!("no sign of life for {} s", agent.hello.stall_s),
            Loss::Breach(breach) => format!("it broke the protocol: {breach}"),
            Loss::Left => LEFT.to_owned(),
            Loss::Stopped => "the node ends".to_owned(),
        };
        let (connection, idempotent) = (agent.connection, agent.hello.idempotent);
        // Closes the connection: nothing that the agent still writes is read.
        drop(agent);
        for (place, flight) in flights.into_iter().enumerate() {
            if place == 0 && flight.told {
                self.take_back(flight, idempotent, loss, now);
            } else if let Some(batcher) = &mut self.batcher {
                // Agents run batches in order, so what stood behind the running one has not begun.
                batcher.put_back(flight.tasks);
            }
        }
        self.lanes_changed();
        self.wake_homes();
        self.news.tell(connection, Event::Gone(why));
    }

    /// The batch that an agent ran when it was lost: run once more in halves where that is allowed,
    /// else failed.
    fn take_back(&mut self, flight: Flight, idempotent: bool, loss: Loss, now: Time) {
        let alone = flight.tasks.len() == 1;
        let wasted_ns = now.nanos_since(flight.runs_since);
        let mut again = Vec::with_capacity(flight.tasks.len());
        let mut stats = self.stats();
        stats.wasted_tasks += flight.tasks.len() as u64;
        stats.wasted_ns += wasted_ns;
        drop(stats);
        for (wanted, mut task) in flight.tasks {
            task.started = flight.runs_since;
            if idempotent && loss != Loss::Stopped && wanted.deadline > now {
                again.push((wanted, task));
            } else {
                self.fail(task, loss.reason());
            }
        }
        if again.len() == 1 && !alone {
            // The others were too late for it. It is not known to be what killed the agent.
            self.stats().retried += 1;
            if let Some(batcher) = &mut self.batcher {
                batcher.put_back(again);
            }
        } else if let Some(batcher) = &mut self.batcher {
            let count = again.len() as u64;
            let mut poison = std::mem::take(&mut self.poison);
            batcher.retry(&mut again, &mut poison);
            let mut stats = self.stats();
            stats.retried += count - poison.len() as u64;
            stats.poison += poison.len() as u64;
            drop(stats);
            for task in poison.drain(..) {
                self.fail(task, loss.reason());
            }
            self.poison = poison;
        }
    }

    /// An agent has left or is lost. Without any, what has not run is refused: its requester comes
    /// again. What is to be run once more waits for the next agent.
    pub(super) fn lanes_changed(&mut self) {
        let ready = self.ready();
        self.place.set_ready(ready);
        if ready > 0 {
            return;
        }
        self.orphaned = clock::now();
        let mut unrun = Vec::new();
        if let Some(batcher) = &mut self.batcher {
            batcher.dismiss(&mut unrun);
        }
        for task in unrun {
            self.refuse(task, RefusalCode::Busy, NOT_READY_RETRY_US);
        }
    }

    /// Looks through what waits: for what is too late, since the agents may be busy for long; and,
    /// without any agent, for what has waited too long for one. When to look again.
    pub(super) fn watch_waiting(&mut self, now: Time) -> Time {
        let orphaned = self.ready() == 0;
        let Some(batcher) = &mut self.batcher else {
            return Time::NEVER;
        };
        if batcher.waiting() == 0 {
            return Time::NEVER;
        }
        if now < self.expire_at {
            return self.expire_at;
        }
        self.expire_at = now + EXPIRE_EVERY;
        let patience = if self.expected {
            RETRY_WAIT
        } else {
            RETRY_WAIT_UNEXPECTED
        };
        let mut given_up = Vec::new();
        if orphaned && now >= self.orphaned + patience {
            batcher.abandon(&mut given_up);
        } else {
            batcher.expire(now, &mut given_up);
        }
        for task in given_up {
            if task.started != Time::ZERO {
                // It was with an agent that died.
                self.fail(task, Loss::Ended.reason());
            } else if now >= task.deadline() {
                self.refuse(task, RefusalCode::Late, 0);
            } else {
                self.refuse(task, RefusalCode::Busy, NOT_READY_RETRY_US);
            }
        }
        self.wake_homes();
        self.expire_at
    }
}

/// How often what waits is looked through for what is too late: so late is a refusal at the most.
const EXPIRE_EVERY: Duration = Duration::from_millis(5);
