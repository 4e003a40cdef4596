//! The port against agents: those that do as they should, those that die, and hostile ones.
//!
//! The agents are threads of this process that speak over the real socket; towards the node a thread
//! that drops its connection is a process that was killed. The test stands in the place of the workers
//! (it hands boxes over and takes them back) and of control (it gives places). Every wait has a bound.

mod admitted;
mod death;
mod hostile;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use ramjet_proto::ids::NodeId;
use ramjet_proto::market::AcceptFrom;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::{Batch, Client, Wanted};
use super::hello::Hello;
use super::place::{AGENT_SKILLS_MAX, AgentPlaces};
use super::socket;
use super::wire::Message;
use super::{AgentSkillStatus, AgentsConfig, Control, Offer, Port, RespondPlace, bind};
use crate::handler::{Handler, Outcome};
use crate::worker::boxes::{Ended, Stock, TaskBox};
use crate::worker::mailbox::Inbox;

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Boxes that a test may have out.
const TASKS_MAX: usize = 4_096;

/// Control as the tests need it: the first place that is free, and what it was told of offers.
struct FirstFree(Sender<Offer>);

impl Control for FirstFree {
    fn place(
        &self,
        _skill: String,
        _accept_from: AcceptFrom,
        taken: [bool; AGENT_SKILLS_MAX],
        respond: RespondPlace,
    ) {
        let free = taken.iter().position(|taken| !taken);
        respond(free.ok_or_else(|| "all are taken".to_owned()));
    }

    fn offer(&self, offer: Offer) {
        // The test may have ended.
        let _ = self.0.send(offer);
    }
}

/// A port with its socket, and a worker's inbox.
struct Rig {
    port: Option<Port>,
    places: AgentPlaces,
    offers: Receiver<Offer>,
    inbox: Arc<Inbox>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("agents.sock");
        let config = AgentsConfig {
            socket: Some(path.clone()),
            ..AgentsConfig::none()
        };
        let bound = bind(&config).expect("a free path");
        let places = AgentPlaces::new();
        let (sender, offers) = unbounded();
        let control = Box::new(FirstFree(sender));
        let port = Port::start(config, bound, places.clone(), TASKS_MAX, control);
        Rig {
            port: Some(port.expect("a thread")),
            places,
            offers,
            inbox: Arc::new(Inbox::new(TASKS_MAX).expect("an eventfd")),
            path,
            _folder: folder,
        }
    }

    /// Attaches an agent, which is ready when the port says so.
    fn agent(&self, hello: &Hello) -> Client {
        let mut client = self.attach(hello).expect("welcomed");
        client.send(&Message::Ready).expect("it listens");
        client
    }

    fn attach(&self, hello: &Hello) -> std::io::Result<Client> {
        Client::attach(socket::connect(&self.path)?, hello)
    }

    /// As [`Self::agent`], and waits until its skill is offered.
    fn first_agent(&self, hello: &Hello) -> Client {
        let client = self.agent(hello);
        self.wait_offer(true);
        client
    }

    #[track_caller]
    fn wait_offer(&self, ready: bool) {
        let offer = self.offers.recv_timeout(PATIENCE).expect("told in time");
        assert_eq!(offer, Offer { place: 0, ready });
    }

    /// A task of the skill in the first place, named by its `index`.
    fn hand(&self, index: u32, payload: &[u8]) {
        let mut task = Box::new(TaskBox::new(Stock::Agents, Arc::clone(&self.inbox)));
        task.channel = (index, 0);
        task.peer = NodeId(1 + index % 3);
        task.payload.extend_from_slice(payload);
        let place = &self.places.0[0];
        if let Err((mut task, code, retry_after_us)) = place.hand_over(task) {
            task.ended = Ended::Refused(code, retry_after_us);
            task.home();
        }
        place.wake_agents();
    }

    /// Waits for so many boxes; what became of each, by index. A second answer is a failure.
    #[track_caller]
    fn answers(&self, count: usize) -> BTreeMap<u32, Answer> {
        let until = Instant::now() + PATIENCE;
        let mut found = BTreeMap::new();
        while found.len() < count {
            self.inbox.waker.falling_asleep();
            if self.inbox.finished.is_empty() {
                let left = until.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "{} of {count} answers", found.len());
                let timeout = Timespec {
                    tv_sec: left.as_secs().cast_signed(),
                    tv_nsec: left.subsec_nanos().into(),
                };
                let event = self.inbox.waker.event();
                let _ = poll(&mut [PollFd::new(&**event, PollFlags::IN)], Some(&timeout));
            }
            self.inbox.waker.awake();
            while let Some(task) = self.inbox.finished.pop() {
                let before = found.insert(task.channel.0, Answer::of(&task));
                assert_eq!(before, None, "task {} was answered twice", task.channel.0);
            }
        }
        found
    }

    /// Nothing more comes home: every engine has ended.
    fn end(mut self) {
        self.port.take().expect("it runs").stop();
        assert!(self.inbox.finished.is_empty(), "an answer too many");
    }

    fn status(&self) -> AgentSkillStatus {
        let port = self.port.as_ref().expect("it runs");
        port.statuses().into_iter().next().expect("one skill")
    }

    /// Waits until the status is as it should be.
    #[track_caller]
    fn until(&self, what: &str, right: impl Fn(&AgentSkillStatus) -> bool) -> AgentSkillStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if right(&status) {
                return status;
            }
            assert!(Instant::now() < until, "{what}: {status:#?}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(port) = self.port.take() {
            port.stop();
        }
    }
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Done(Vec<u8>),
    Failed(String),
    Refused(&'static str),
}

impl Answer {
    fn of(task: &TaskBox) -> Self {
        use ramjet_proto::frame::kind::RefusalCode;
        match task.ended {
            Ended::Ran(Outcome::Done(len)) => Answer::Done(task.result[..len].to_vec()),
            Ended::Ran(Outcome::Failed(len)) => {
                Answer::Failed(String::from_utf8_lossy(&task.result[..len]).into_owned())
            }
            Ended::Refused(RefusalCode::Busy, _) => Answer::Refused("busy"),
            Ended::Refused(RefusalCode::Late, _) => Answer::Refused("late"),
            Ended::Refused(RefusalCode::TooBig, _) => Answer::Refused("too_big"),
            Ended::Refused(..) => Answer::Refused("otherwise"),
        }
    }
}

fn hello(max_batch: u32) -> Hello {
    Hello {
        skill: "upper".to_owned(),
        max_batch,
        max_payload: 1_024,
        result_len_max: 1_024,
        ..Hello::default()
    }
}

/// As [`hello`], for a skill whose batches close when they are full and not before.
fn full(max_batch: u32) -> Hello {
    Hello {
        max_wait_us: 10_000_000,
        ..hello(max_batch)
    }
}

/// The next batch.
#[track_caller]
fn batch(client: &mut Client) -> Batch {
    let mut files = [PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN)];
    let patience = Timespec {
        tv_sec: PATIENCE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut files, Some(&patience)), Ok(1), "a packet in time");
    match client.wanted().expect("a packet") {
        Wanted::Batch(batch) => batch,
        other => panic!("{other:?}"),
    }
}

/// Payloads of a batch.
fn payloads(client: &Client, batch: &Batch) -> Vec<Vec<u8>> {
    let payload = |index| {
        let mut payload = Vec::new();
        client.payload(batch, index, &mut payload);
        payload
    };
    (0..batch.tasks.len()).map(payload).collect()
}

/// Answers every task of a batch with its payload in upper case.
fn upper(client: &mut Client, batch: &mut Batch) {
    for (index, payload) in payloads(client, batch).iter().enumerate() {
        let answer = payload.to_ascii_uppercase();
        client.answer(batch, index, 1, &answer).expect("it fits");
    }
    client.done(batch, 1_000).expect("it listens");
}

/// An agent on a thread that answers everything until its node ends.
fn serve(mut client: Client) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while let Ok(Wanted::Batch(mut batch)) = client.wanted() {
            upper(&mut client, &mut batch);
        }
    })
}
