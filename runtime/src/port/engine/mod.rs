//! The engine of one skill: a thread between the workers' queue and the agents that run the skill.
//!
//! ```text
//!  workers ─▶ queue ─▶ batcher ─▶ gather ─▶ BATCH ─▶ agent ─▶ DONE ─▶ settle ─▶ workers' inboxes
//! ```
//!
//! It takes tasks from its [`Inlet`], lets the batcher decide, copies a batch into a free region of an
//! agent's arena, tells the agent, and when it is done copies the answers into the boxes and sends them
//! home. An agent has at most one batch running and one staged; everything else waits here.
//!
//! Invariants: a box is in exactly one of the queue, the batcher, a flight; each goes home exactly
//! once; what an agent writes can fail only its own tasks, or end only its own connection. It sleeps on
//! one poll of the inlet's event and the agents' sockets; that no wake-up is lost is the business of
//! `worker/wake.rs`.

mod agent;
mod hear;
mod settle;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use ramjet_proto::engagement::serving::RETRY_AFTER_US;
use ramjet_proto::frame::kind::RefusalCode;
use ramjet_proto::time::Time;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(super) use self::agent::Attached;
use self::agent::{Agent, Batch};
use self::settle::Loss;
use super::batcher::{BatchPolicy, Batcher, Next, Turned, Wanted};
use super::hello::Hello;
use super::place::{Inlet, NOT_READY_RETRY_US, Place};
use super::stats::{SkillStats, Stage};
use super::wire::{Breach, Message, PACKET_LEN_MAX};
use crate::worker::boxes::{Ended, TaskBox};
use crate::worker::clock;
use crate::worker::mailbox::{Inbox, Waker};

/// Tasks taken from the queue in one turn, so that agents are heard in between.
const TAKEN_PER_TURN: usize = 1_024;
/// Longest sleep: what has no event of its own is looked at this often.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How long tasks whose agent died wait for another, while one is expected.
const RETRY_WAIT: Duration = Duration::from_secs(120);
/// How long they wait while none is.
const RETRY_WAIT_UNEXPECTED: Duration = Duration::from_secs(2);
/// From the end of a batch until its answers are on their way, beside what the cost table knows.
const MARGIN: Duration = Duration::from_micros(200);

/// Why an agent is gone that took its leave.
pub(super) const LEFT: &str = "it has left";

/// What the port's thread tells an engine.
#[derive(Debug)]
pub(super) enum Order {
    /// An agent has been welcomed.
    Attach(Box<Attached>),
    /// Whether a further agent is expected: one starts, or will be started again.
    Expect(bool),
    /// Give a connection up; its process has ended.
    Drop(u64),
    /// Hand out no further batch, and tell the agents so.
    Drain,
    /// End.
    Stop,
}

/// What an engine tells the port's thread of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) connection: u64,
    pub(super) event: Event,
}

/// What happened to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It takes batches.
    Ready,
    /// It takes no more, and answers those it has.
    Leaving,
    /// It is gone, and why.
    Gone(String),
}

/// The way to an engine, for the port's thread.
#[derive(Debug)]
pub(super) struct EngineHandle {
    orders: Sender<Order>,
    inlet: Arc<Inlet>,
    thread: JoinHandle<()>,
}

impl EngineHandle {
    pub(super) fn send(&self, order: Order) {
        // Fails only after the engine has ended, and then there is nobody to be told.
        let _ = self.orders.send(order);
        self.inlet.waker.wake();
    }

    /// Ends the engine and waits for it.
    pub(super) fn stop(self) {
        self.send(Order::Stop);
        // An engine that panicked has said so on standard error.
        let _ = self.thread.join();
    }
}

/// Where an engine's news go.
#[derive(Clone, Debug)]
pub(super) struct NewsSender {
    pub(super) queue: Sender<News>,
    pub(super) waker: Arc<Waker>,
    /// Something was sent since the port's thread last looked.
    pub(super) rung: Arc<AtomicBool>,
}

impl NewsSender {
    fn tell(&self, connection: u64, event: Event) {
        // Fails only after the port's thread has ended.
        let _ = self.queue.send(News { connection, event });
        self.rung.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// Everything that an engine owns.
#[expect(clippy::vec_box, reason = "the boxes travel as they are")]
pub(super) struct Engine {
    place: Arc<Place>,
    inlet: Arc<Inlet>,
    orders: Receiver<Order>,
    news: NewsSender,
    stats: Arc<Mutex<SkillStats>>,
    waiting_max: usize,
    batcher: Option<Batcher<Box<TaskBox>>>,
    /// What the agents of now declare.
    hello: Hello,
    agents: Vec<Agent>,
    expected: bool,
    /// Since when no agent takes batches.
    orphaned: Time,
    /// When what waits is next looked through for what is too late.
    expire_at: Time,
    draining: bool,
    stopped: bool,
    /// Which agents have something to say, as of the last poll.
    audible: Vec<bool>,
    /// Where the search for an agent with room begins.
    turn: usize,
    /// Memory of batches that ended.
    spare: Vec<Batch>,
    late: Vec<Box<TaskBox>>,
    poison: Vec<Box<TaskBox>>,
    /// Inboxes that were given boxes and not woken yet.
    touched: Vec<Arc<Inbox>>,
    packet: Vec<u8>,
}

/// Starts the engine of a place.
///
/// # Errors
/// What the system says of a new thread, or of an eventfd.
pub(super) fn start(
    name: &str,
    place: &Arc<Place>,
    tasks_max: usize,
    news: NewsSender,
    stats: Arc<Mutex<SkillStats>>,
) -> std::io::Result<EngineHandle> {
    let inlet = place.inlet(tasks_max)?;
    let (sender, orders) = crossbeam::channel::unbounded();
    let engine = Engine {
        place: Arc::clone(place),
        inlet: Arc::clone(&inlet),
        orders,
        news,
        stats,
        waiting_max: tasks_max,
        batcher: None,
        hello: Hello::default(),
        agents: Vec::new(),
        expected: false,
        orphaned: clock::now(),
        expire_at: Time::ZERO,
        draining: false,
        stopped: false,
        audible: Vec::new(),
        turn: 0,
        spare: Vec::new(),
        late: Vec::new(),
        poison: Vec::new(),
        touched: Vec::new(),
        packet: vec![0; PACKET_LEN_MAX],
    };
    let thread = std::thread::Builder::new()
        .name(format!("ramjet-{name}"))
        .spawn(move || engine.run())?;
    Ok(EngineHandle {
        orders: sender,
        inlet,
        thread,
    })
}

impl Engine {
    fn run(mut self) {
        loop {
            let now = clock::now();
            self.obey(now);
            if self.stopped {
                break;
            }
            self.hear(now);
            let now = clock::now();
            self.take_in(now);
            let mut due = self.dispatch(now);
            due = due.min(self.watch(now));
            self.wake_homes();
            self.tell_stats();
            self.rest(due);
        }
        self.end();
    }

    fn stats(&self) -> MutexGuard<'_, SkillStats> {
        // Counters and histograms are valid whatever happened to a writer.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_stats(&self) {
        let waiting = self.batcher.as_ref().map_or(0, Batcher::waiting);
        let ready = self.ready();
        let mut stats = self.stats();
        stats.waiting = waiting;
        stats.agents = self.agents.len();
        stats.ready = ready;
    }

    /// Agents that take batches.
    fn ready(&self) -> usize {
        self.agents
            .iter()
            .filter(|agent| agent.lane.is_some())
            .count()
    }

    // ---- orders --------------------------------------------------------------------------------

    fn obey(&mut self, now: Time) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Attach(attached) => self.attach(*attached),
                Order::Expect(expected) => self.expected = expected,
                Order::Drop(connection) => {
                    let known = self.agents.iter();
                    let at = known
                        .clone()
                        .position(|agent| agent.connection == connection);
                    if let Some(index) = at {
                        self.lose(index, Loss::Ended, now);
                    }
                }
                Order::Drain => self.drain(now),
                Order::Stop => self.stopped = true,
            }
        }
    }

    fn attach(&mut self, attached: Attached) {
        if self.agents.is_empty() {
            self.rule(&attached.hello);
        }
        let mut agent = Agent::new(attached);
        if self.draining {
            // It ends by itself when it reads this, or is ended with the others.
            let _ = agent.tell(&Message::Drain);
            agent.leaving = true;
        }
        self.agents.push(agent);
    }

    /// The first agent of a skill decides what its batches are. What waits is kept if it runs the same
    /// batches as those before it, and else offered anew.
    fn rule(&mut self, hello: &Hello) {
        let same = self.batcher.is_some() && hello.joins(&self.hello).is_ok();
        self.hello = hello.clone();
        self.place.bound(hello.max_payload, hello.result_len_max);
        if same {
            return;
        }
        let policy = BatchPolicy {
            items_max: hello.max_batch as usize,
            work_max: match hello.max_work {
                0 => u64::MAX,
                work => work,
            },
            wait: hello.wait(),
            bytes_max: hello.region_len(),
            result_len_max: hello.result_len_max,
            waiting_max: self.waiting_max,
            margin: MARGIN,
        };
        let mut homeless = Vec::new();
        if let Some(mut former) = self.batcher.replace(Batcher::new(policy)) {
            former.abandon(&mut homeless);
        }
        for task in homeless {
            self.refuse(task, RefusalCode::Busy, NOT_READY_RETRY_US);
        }
    }

    fn drain(&mut self, now: Time) {
        self.draining = true;
        if let Some(batcher) = &mut self.batcher {
            batcher.drain();
        }
        for index in (0..self.agents.len()).rev() {
            let told = self.agents[index].tell(&Message::Drain);
            self.agents[index].leaving = true;
            if told.is_err() {
                self.lose(index, Loss::Ended, now);
            }
        }
    }

    /// The engine ends: whatever is left goes home.
    fn end(&mut self) {
        let now = clock::now();
        while !self.agents.is_empty() {
            self.lose(0, Loss::Stopped, now);
        }
        let mut left = Vec::new();
        if let Some(batcher) = &mut self.batcher {
            batcher.abandon(&mut left);
        }
        while let Some(task) = self.inlet.tasks.pop() {
            left.push(task);
        }
        for task in left {
            self.refuse(task, RefusalCode::Draining, 0);
        }
        self.place.set_ready(0);
        self.wake_homes();
        self.tell_stats();
    }

    // ---- tasks in ------------------------------------------------------------------------------

    fn take_in(&mut self, now: Time) {
        for _ in 0..TAKEN_PER_TURN {
            let Some(task) = self.inlet.tasks.pop() else {
                return;
            };
            let arrived = match task.arrived() {
                // Handed over by a caller that has no channel.
                Time::ZERO => now,
                arrived => arrived,
            };
            let wanted = Wanted {
                peer: task.peer,
                arrived,
                deadline: task.deadline(),
                work: self.hello.work_of(task.payload.len()),
                payload_len: task.payload.len(),
            };
            self.offer(now, wanted, task);
        }
    }

    fn offer(&mut self, now: Time, wanted: Wanted, task: Box<TaskBox>) {
        let Some(batcher) = &mut self.batcher else {
            self.refuse(task, RefusalCode::Busy, NOT_READY_RETRY_US);
            return;
        };
        match batcher.offer(now, wanted, task) {
            Ok(()) => {}
            Err((Turned::Late, task)) => self.refuse(task, RefusalCode::Late, 0),
            Err((Turned::TooBig, task)) => self.refuse(task, RefusalCode::TooBig, 0),
            Err((Turned::Busy { retry_after_us }, task)) => {
                self.refuse(task, RefusalCode::Busy, retry_after_us);
            }
        }
    }

    // ---- batches out ---------------------------------------------------------------------------

    /// Hands out every batch that closes now; when the next may.
    fn dispatch(&mut self, now: Time) -> Time {
        loop {
            let (handed, due) = self.dispatch_round(now);
            if !handed {
                return due;
            }
        }
    }

    /// One look at every agent with room, those with nothing to do first; whether any was given a
    /// batch, and else when one may be.
    fn dispatch_round(&mut self, now: Time) -> (bool, Time) {
        let mut due = Time::NEVER;
        let Some(batcher) = &mut self.batcher else {
            return (false, due);
        };
        for most in 0..super::hello::REGIONS {
            for tried in 0..self.agents.len() {
                let index = (self.turn + tried) % self.agents.len();
                let agent = &self.agents[index];
                let lane = agent.lane.filter(|_| agent.has_room() && !agent.leaving);
                let Some(lane) = lane.filter(|_| agent.flights.len() == most) else {
                    continue;
                };
                match batcher.next(now, lane) {
                    Next::Empty => {}
                    Next::Wait(until) => due = due.min(until),
                    Next::Close => {
                        self.turn = index + 1;
                        // What closed may have been late, all of it.
                        return (self.hand_over(index, now), now);
                    }
                }
            }
        }
        (false, due)
    }

    /// Takes the batch that closes now and gives it to an agent; whether there was one.
    fn hand_over(&mut self, index: usize, now: Time) -> bool {
        let agent = &mut self.agents[index];
        let (Some(lane), Some(batcher)) = (agent.lane, &mut self.batcher) else {
            return false;
        };
        let mut tasks = self.spare.pop().unwrap_or_default();
        let closed = batcher.take(now, lane, &mut tasks, &mut self.late);
        let mut told = Ok(());
        if let Some(closed) = closed {
            agent.gather(closed, tasks);
            // Read before: the agent may be done before the call returns.
            let sent = clock::now();
            told = agent.tell_batch();
            let runs = agent.flights.len() == 1;
            let flight = agent.flights.back_mut().expect("gathered");
            if runs {
                flight.runs_since = sent;
                agent.alive = sent;
            }
            let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
            stats.closed(closed.by);
            stats.record(Stage::Gather, sent.nanos_since(now));
            for (wanted, _) in &flight.tasks {
                stats.record(Stage::Queue, now.nanos_since(wanted.arrived));
            }
        } else {
            self.spare.push(tasks);
        }
        while let Some(task) = self.late.pop() {
            self.refuse(task, RefusalCode::Late, 0);
        }
        match told {
            Ok(()) => {}
            Err(error) => {
                let loss = match error.kind() {
                    std::io::ErrorKind::WouldBlock => Loss::Breach(Breach::DoesNotRead),
                    _ => Loss::Ended,
                };
                self.lose(index, loss, now);
            }
        }
        closed.is_some()
    }

    // ---- time ----------------------------------------------------------------------------------

    /// Looks for stalls, deadlines that passed, and tasks that nobody will run; when to look again.
    fn watch(&mut self, now: Time) -> Time {
        let mut due = Time::NEVER;
        for index in (0..self.agents.len()).rev() {
            let agent = &mut self.agents[index];
            if agent.flights.is_empty() {
                continue;
            }
            let stall = agent.alive + agent.hello.stall();
            if now >= stall {
                self.lose(index, Loss::Stalled, now);
                continue;
            }
            due = due.min(stall).min(agent.mark_late(now));
        }
        due.min(self.watch_waiting(now))
    }

    /// Sends a box home with a refusal.
    fn refuse(&mut self, mut task: Box<TaskBox>, code: RefusalCode, retry_after_us: u32) {
        let mut stats = self.stats();
        match code {
            RefusalCode::Late => stats.late += 1,
            RefusalCode::TooBig => stats.too_big += 1,
            _ => stats.busy += 1,
        }
        drop(stats);
        let retry_after_us = match code {
            RefusalCode::Busy => retry_after_us.max(RETRY_AFTER_US),
            _ => retry_after_us,
        };
        task.ended = Ended::Refused(code, retry_after_us);
        self.send_home(task);
    }

    fn send_home(&mut self, task: Box<TaskBox>) {
        if !self
            .touched
            .iter()
            .any(|known| Arc::ptr_eq(known, &task.inbox))
        {
            self.touched.push(Arc::clone(&task.inbox));
        }
        task.home();
    }

    fn wake_homes(&mut self) {
        for inbox in self.touched.drain(..) {
            inbox.waker.wake();
        }
    }

    /// Sleeps until something is to be done, and notes which agents have something to say.
    fn rest(&mut self, due: Time) {
        self.inlet.waker.falling_asleep();
        let idle = self.inlet.tasks.is_empty() && self.orders.is_empty();
        let wait = if idle {
            due.since(clock::now()).min(SLEEP_MAX)
        } else {
            Duration::ZERO
        };
        let mut files: Vec<PollFd<'_>> = Vec::with_capacity(1 + self.agents.len());
        files.push(PollFd::new(&**self.inlet.waker.event(), PollFlags::IN));
        for agent in &self.agents {
            files.push(PollFd::from_borrowed_fd(agent.socket(), PollFlags::IN));
        }
        let timeout = Timespec {
            tv_sec: wait.as_secs().cast_signed(),
            tv_nsec: wait.subsec_nanos().into(),
        };
        // A poll that fails is a look: every socket is read without waiting.
        let looked = poll(&mut files, Some(&timeout));
        let rung = looked.is_err() || !files[0].revents().is_empty();
        self.audible.clear();
        let audible = files[1..].iter();
        self.audible
            .extend(audible.map(|file| looked.is_err() || !file.revents().is_empty()));
        self.inlet.waker.awake_after(rung);
    }
}
