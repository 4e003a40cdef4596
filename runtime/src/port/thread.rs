//! The port's thread: who attaches, to which skill, and the processes of the node's own agents.
//!
//! It accepts connections, reads the HELLO of each, has control give the skill a place, makes the
//! arena, and hands the welcomed agent to the engine of its skill. It starts, restarts and ends owned
//! processes. Nothing of a task passes here.
//!
//! Invariants: a connection is in exactly one of `entering` and an engine; an owned process has at most
//! one connection; control is told that a skill is there exactly while an agent of it takes batches.

mod enter;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use self::enter::{Entering, Stage};
use super::engine::{self, EngineHandle, Event, News, NewsSender, Order};
use super::hello::Hello;
use super::place::AgentPlaces;
use super::socket::Listener;
use super::stats::SkillStats;
use super::supervisor::Process;
use super::{AgentsConfig, Control, Offer};
use crate::worker::clock;
use crate::worker::mailbox::Waker;

/// How long a process of the node's own may take: interpreters and libraries load before it.
const HELLO_LIMIT_OWNED: Duration = Duration::from_secs(600);
/// How long agents may take to end after SIGTERM.
const TERM_LIMIT: Duration = Duration::from_secs(5);
/// Longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What the port's thread is told.
pub(super) enum Mail {
    /// Control gave a skill a place, or says why not.
    Placed(u64, Result<usize, String>),
    /// The node has its number.
    Node(NodeId),
    /// The node ends.
    Stop,
}

/// The ways to the port's thread.
#[derive(Clone)]
pub(super) struct MailSender {
    queue: Sender<Mail>,
    waker: Arc<Waker>,
    rung: Arc<AtomicBool>,
}

impl MailSender {
    pub(super) fn send(&self, mail: Mail) {
        // Fails only after the thread has ended.
        let _ = self.queue.send(mail);
        self.rung.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// What others may read of the skills: name and counts of each place in use.
pub(super) type Roster = Arc<Mutex<BTreeMap<usize, (String, Arc<Mutex<SkillStats>>)>>>;

/// What `look` makes of every skill that agents run.
pub(super) fn each<T>(roster: &Roster, look: impl Fn(&str, &SkillStats) -> T) -> Vec<T> {
    let roster = roster.lock().unwrap_or_else(PoisonError::into_inner);
    roster
        .values()
        .map(|(name, stats)| {
            let stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
            look(name, &stats)
        })
        .collect()
}

/// A skill that agents run.
struct Row {
    skill: String,
    engine: EngineHandle,
    stats: Arc<Mutex<SkillStats>>,
    /// What its agents declare; `None` without any.
    hello: Option<Hello>,
    /// Connections: whether each takes batches, of which process, and its arena's bytes.
    agents: BTreeMap<u64, Member>,
    /// What control was last told.
    offered: bool,
}

struct Member {
    ready: bool,
    owner: Option<usize>,
    arena_len: usize,
}

/// The thread's own.
pub(super) struct PortThread {
    config: AgentsConfig,
    places: AgentPlaces,
    control: Box<dyn Control>,
    listener: Option<Listener>,
    node: NodeId,
    tasks_max: usize,
    rows: BTreeMap<usize, Row>,
    roster: Roster,
    entering: Vec<Entering>,
    processes: Vec<Process>,
    mail: Receiver<Mail>,
    mail_sender: MailSender,
    news: Receiver<News>,
    news_sender: NewsSender,
    rung: Arc<AtomicBool>,
    waker: Arc<Waker>,
    connections: u64,
    epochs: u32,
    stopping: bool,
}

/// What starts the thread.
pub(super) struct Seed {
    pub(super) config: AgentsConfig,
    pub(super) places: AgentPlaces,
    pub(super) control: Box<dyn Control>,
    pub(super) listener: Option<Listener>,
    /// Boxes of all workers together.
    pub(super) tasks_max: usize,
    pub(super) roster: Roster,
}

impl PortThread {
    /// The thread's state, and the way to it.
    ///
    /// # Errors
    /// The kernel has no descriptor left.
    pub(super) fn new(seed: Seed) -> std::io::Result<(Self, MailSender)> {
        let waker = Arc::new(Waker::new()?);
        let rung = Arc::new(AtomicBool::new(false));
        let (queue, mail) = crossbeam::channel::unbounded();
        let mail_sender = MailSender {
            queue,
            waker: Arc::clone(&waker),
            rung: Arc::clone(&rung),
        };
        let (queue, news) = crossbeam::channel::unbounded();
        let news_sender = NewsSender {
            queue,
            waker: Arc::clone(&waker),
            rung: Arc::clone(&rung),
        };
        let launcher = &seed.config.launcher;
        let owned = seed.config.owned.iter();
        let processes = owned
            .map(|agent| Process::new(agent.clone(), launcher))
            .collect();
        let thread = PortThread {
            places: seed.places,
            control: seed.control,
            listener: seed.listener,
            node: NodeId(0),
            tasks_max: seed.tasks_max,
            rows: BTreeMap::new(),
            roster: seed.roster,
            entering: Vec::new(),
            processes,
            config: seed.config,
            mail,
            mail_sender: mail_sender.clone(),
            news,
            news_sender,
            rung,
            waker,
            connections: 0,
            epochs: 0,
            stopping: false,
        };
        Ok((thread, mail_sender))
    }

    pub(super) fn run(mut self) {
        self.make_owned_rows();
        loop {
            let now = clock::now();
            self.rung.store(false, Ordering::Release);
            self.read_mail();
            if self.stopping {
                break;
            }
            self.read_news(now);
            self.accept(now);
            self.hear(now);
            self.reap(now);
            self.start_due(now);
            let due = self.due(now);
            self.rest(due);
        }
        self.end();
    }

    /// The node's own agents are shown before the first of them attaches: those that cannot start are
    /// what an operator looks for.
    fn make_owned_rows(&mut self) {
        let mut skills: Vec<String> = Vec::new();
        for (skill, _) in self.config.owned_skills() {
            if !skills.contains(&skill) {
                skills.push(skill);
            }
        }
        // In the order in which control gave them their places.
        for (place, skill) in skills.iter().enumerate() {
            if let Err(error) = self.row(place, skill) {
                tracing::error!(skill, error, "a skill of agents cannot be run");
            }
        }
    }

    // ---- what it is told -----------------------------------------------------------------------

    fn read_mail(&mut self) {
        while let Ok(mail) = self.mail.try_recv() {
            match mail {
                Mail::Placed(connection, placed) => self.placed(connection, placed),
                Mail::Node(node) => self.node = node,
                Mail::Stop => self.stopping = true,
            }
        }
    }

    fn read_news(&mut self, now: Time) {
        while let Ok(News { connection, event }) = self.news.try_recv() {
            let found = self
                .rows
                .iter_mut()
                .find(|(_, row)| row.agents.contains_key(&connection));
            let Some((&place, row)) = found else { continue };
            let member = row.agents.get_mut(&connection).expect("just found");
            let owner = member.owner;
            match event {
                Event::Ready => {
                    member.ready = true;
                    tracing::info!(skill = row.skill, connection, "an agent is ready");
                    if let Some(owner) = owner {
                        self.processes[owner].ready(now);
                    }
                }
                Event::Leaving => member.ready = false,
                Event::Gone(why) => {
                    row.agents.remove(&connection);
                    if row.agents.is_empty() {
                        row.hello = None;
                    }
                    if why == engine::LEFT {
                        tracing::info!(skill = row.skill, connection, "an agent has left");
                    } else {
                        tracing::warn!(skill = row.skill, connection, why, "an agent is gone");
                    }
                    if let Some(owner) = owner.filter(|_| why != engine::LEFT) {
                        // What it may still be doing, nobody waits for.
                        self.processes[owner].signal(Signal::KILL);
                    }
                }
            }
            self.tell(place);
        }
    }

    /// Tells control whether the skill is there, and the engine whether an agent is expected.
    fn tell(&mut self, place: usize) {
        let Some(row) = self.rows.get_mut(&place) else {
            return;
        };
        let ready = row.agents.values().any(|member| member.ready);
        if ready != row.offered {
            row.offered = ready;
            self.control.offer(Offer { place, ready });
        }
        let skill = &row.skill;
        let owned = self
            .processes
            .iter()
            .any(|process| process.agent.skill == *skill && process.start_at != Time::NEVER);
        row.engine
            .send(Order::Expect(owned || !row.agents.is_empty()));
    }

    // ---- processes -----------------------------------------------------------------------------

    fn start_due(&mut self, now: Time) {
        for index in 0..self.processes.len() {
            let process = &mut self.processes[index];
            if process.is_running() || now < process.start_at || self.stopping {
                continue;
            }
            let skill = process.agent.skill.clone();
            match process.start(now) {
                Ok(socket) => {
                    tracing::info!(skill, pid = process.id(), "agent started");
                    self.enter(socket, Some(index), now + HELLO_LIMIT_OWNED);
                }
                Err(error) => tracing::warn!(skill, error, "agent cannot be started"),
            }
        }
    }

    /// Looks which processes have ended: their connections end with them.
    fn reap(&mut self, now: Time) {
        for index in 0..self.processes.len() {
            let process = &mut self.processes[index];
            let pid = process.id();
            let Some(ended) = process.reap(now) else {
                continue;
            };
            let skill = process.agent.skill.clone();
            tracing::warn!(
                skill,
                pid,
                how = ended.how,
                restart_in = ?ended.pause,
                "agent ended"
            );
            self.entering
                .retain(|entering| entering.owner != Some(index));
            for row in self.rows.values_mut() {
                if row.skill == skill {
                    let mut stats = row.stats.lock().unwrap_or_else(PoisonError::into_inner);
                    stats.restarts += 1;
                }
                for (connection, member) in &row.agents {
                    if member.owner == Some(index) {
                        row.engine.send(Order::Drop(*connection));
                    }
                }
            }
        }
    }

    // ---- time ----------------------------------------------------------------------------------

    fn due(&self, now: Time) -> Time {
        let starts = self.processes.iter();
        let starts = starts.filter(|process| !process.is_running());
        let starts = starts.map(|process| process.start_at);
        let limits = self.entering.iter().map(|entering| entering.until);
        starts.chain(limits).fold(now + SLEEP_MAX, Time::min)
    }

    fn rest(&mut self, due: Time) {
        self.waker.falling_asleep();
        if !self.rung.load(Ordering::Acquire) {
            let mut files = vec![PollFd::new(&**self.waker.event(), PollFlags::IN)];
            if let Some(listener) = &self.listener {
                files.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
            }
            for process in &self.processes {
                if let Some(pidfd) = process.pidfd() {
                    files.push(PollFd::new(pidfd, PollFlags::IN));
                }
            }
            for entering in &self.entering {
                if matches!(entering.stage, Stage::Hello) {
                    files.push(PollFd::new(&entering.socket, PollFlags::IN));
                }
            }
            let wait = due.since(clock::now());
            let timeout = Timespec {
                tv_sec: wait.as_secs().cast_signed(),
                tv_nsec: wait.subsec_nanos().into(),
            };
            // A poll that fails is a look: nothing below waits.
            let _ = poll(&mut files, Some(&timeout));
        }
        self.waker.awake();
    }

    /// The node ends: agents are told, asked to end, and then ended.
    fn end(mut self) {
        self.listener = None;
        self.entering.clear();
        for row in self.rows.values() {
            row.engine.send(Order::Drain);
        }
        for process in &mut self.processes {
            process.retire();
            process.signal(Signal::TERM);
        }
        let until = clock::now() + TERM_LIMIT;
        loop {
            let now = clock::now();
            for process in &mut self.processes {
                let _ = process.reap(now);
            }
            if now >= until || !self.processes.iter().any(Process::is_running) {
                break;
            }
            self.rung.store(false, Ordering::Release);
            self.rest(until);
        }
        // What is left is killed as it is dropped.
        for process in &self.processes {
            if process.is_running() {
                let skill = &process.agent.skill;
                tracing::warn!(skill, "agent does not end after SIGTERM; it is killed");
            }
        }
        self.processes.clear();
        for (_, row) in std::mem::take(&mut self.rows) {
            row.engine.stop();
        }
    }
}
