//! The task market for programs in other languages: workers and requesters at this node's socket.
//!
//! A worker's skills are bound to the node's reserved places ([`super::external`]); its tasks wait in
//! one queue of its own. A submitted task is an engagement of one: offered, granted and run as any
//! other; its answer stays here until it is fetched, and is accepted as it comes. Tasks that a client
//! had accepted fail when it leaves; those that it had submitted are cancelled, unless their answer
//! is there: then they are settled.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender};
use ramjet_proto::driver::{Command, FRAME_LEN_MAX, MarketCommand, Reply, Submission, TaskEnd};
use ramjet_proto::ids::OfferId;
use ramjet_proto::market::AcceptFrom;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify, mpsc};

use super::client::{Answer, Client};
use super::external::{HANDED_MAX, Handed, PIECES_MAX, RESULT_LEN_MAX, Word, is_piece};
use crate::control::advertise::Speaker;
use crate::control::externals::Offered;
use crate::control::handle::{Ask, EVENTS_MAX, EngageAsk, EventSink};
use crate::control::local_job::{
    LocalAnswer, LocalEnds, LocalOutcome, LocalTask, Verdicts, channel_job,
};
use crate::job::Verdict;
use crate::node::{EngageEvent, EngageOutcome, EngageRequest};

/// Submitted tasks of one client that run or wait to be fetched.
const SUBMITTED_MAX: usize = 64;
/// Tasks that one client has accepted and not completed.
const ACCEPTED_MAX: usize = 256;
/// The capability by which a program says whom its skills serve; it is not advertised.
const ACCEPT_FROM: &str = "accept-from";
/// The capability that names what a program runs.
const SKILLS: &str = "skills";
/// The longest that a client may wait in one command.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Longest result that fits a reply, beside what is said of it.
const RESULT_TOLD_MAX: usize = FRAME_LEN_MAX - 4_096;

/// Where the tasks for one client wait, until it accepts them.
type Queue = (mpsc::Sender<Handed>, Rc<Mutex<mpsc::Receiver<Handed>>>);

/// What a client has to do with the market.
#[derive(Default)]
pub(super) struct Market {
    queue: RefCell<Option<Queue>>,
    /// Places of its skills.
    places: RefCell<Vec<usize>>,
    accepted: RefCell<BTreeMap<u64, Sender<Word>>>,
    submitted: RefCell<BTreeMap<u64, Rc<Submitted>>>,
}

/// One submitted task.
struct Submitted {
    task: u64,
    offer: OfferId,
    /// Who took it, once somebody has.
    worker: RefCell<Value>,
    end: RefCell<Option<(Value, Bytes)>>,
    ended: Notify,
    cancelled: Notify,
}

impl Client {
    /// Does the command of the market that is in `frame`.
    pub(super) async fn market_work(self: Rc<Self>, frame: Bytes) -> Result<Answer, String> {
        let Ok(Command::Market(command)) = Command::parse(&frame) else {
            return Err("not a command of the market".to_owned());
        };
        match command {
            MarketCommand::SetTaskReady { ready } => {
                let set = self.hub.ask(|respond| Ask::TaskReady(ready, respond)).await;
                set.map_err(|error| format!("set_task_ready: {error}"))?;
                Ok(Answer::Json(json!({"task_ready": ready})))
            }
            MarketCommand::SetCapabilities { capabilities } => {
                let set = self.set_capabilities(capabilities).await;
                set.map_err(|error| format!("set_capabilities: {error}"))
            }
            MarketCommand::AcceptTask { timeout_ms } => self.accept_task(timeout_ms).await,
            MarketCommand::CompleteTask { task, end, bytes } => {
                self.complete(task, end, frame.slice_ref(bytes))
            }
            // Has no reply, and is done where it is read.
            MarketCommand::ReportProgress { task, .. } => Err(unknown("report_progress", task)),
            MarketCommand::SubmitTask {
                submission,
                payload,
            } => self.submit(submission, frame.slice_ref(payload)).await,
            MarketCommand::WaitTaskResult { task, timeout_ms } => {
                self.wait_result(task, timeout_ms).await
            }
            MarketCommand::CancelTask { task } => {
                let known = self.market.submitted.borrow().get(&task).cloned();
                let submitted = known.ok_or_else(|| unknown("cancel_task", task))?;
                submitted.cancelled.notify_one();
                Ok(Answer::Json(json!({"task": task})))
            }
        }
    }

    /// Frees what the client had to do with the market. Its tasks have ended.
    pub(super) fn leave_market(&self) {
        // What it accepted, and what waits for it, fails as the channels close.
        self.market.accepted.take();
        self.market.queue.take();
        for submitted in self.market.submitted.take().into_values() {
            if submitted.end.borrow().is_none() {
                submitted.cancelled.notify_one();
            }
        }
        self.unbind_places(&[]);
        if self.market.places.take().is_empty() {
            return;
        }
        let offered = Offered {
            speaker: Speaker::Program(self.number),
            capabilities: BTreeMap::new(),
            skills: Vec::new(),
        };
        let taken = self.hub.handle.put(Ask::Skills(offered, Box::new(|_| {})));
        if let Err(error) = taken {
            tracing::warn!(%error, "skills of a program that left are still advertised");
        }
    }

    // ---- a worker ------------------------------------------------------------------------------

    async fn set_capabilities(
        &self,
        mut capabilities: BTreeMap<String, String>,
    ) -> Result<Answer, String> {
        let accept_from = match capabilities.remove(ACCEPT_FROM) {
            Some(text) => text.parse()?,
            None => AcceptFrom::Gate,
        };
        let names = capabilities.remove(SKILLS).unwrap_or_default();
        let names = names.split(',').map(str::trim);
        let names: Vec<String> = names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let offered = Offered {
            speaker: Speaker::Program(self.number),
            capabilities,
            skills: names
                .iter()
                .map(|name| (name.clone(), accept_from))
                .collect(),
        };
        let places = self
            .hub
            .ask(|respond| Ask::Skills(offered, respond))
            .await?;
        self.unbind_places(&places);
        let tasks = self.queue().0;
        for (place, name) in places.iter().zip(&names) {
            let bound = Some((name.clone(), tasks.clone()));
            self.hub.places.0[*place].bind(bound);
        }
        self.market.places.replace(places);
        Ok(Answer::Json(json!({"skills": names})))
    }

    fn queue(&self) -> Queue {
        let mut queue = self.market.queue.borrow_mut();
        let queue = queue.get_or_insert_with(|| {
            let (tasks, waiting) = mpsc::channel(HANDED_MAX);
            (tasks, Rc::new(Mutex::new(waiting)))
        });
        queue.clone()
    }

    fn unbind_places(&self, kept: &[usize]) {
        for place in self.market.places.borrow().iter() {
            if !kept.contains(place) {
                self.hub.places.0[*place].bind(None);
            }
        }
    }

    async fn accept_task(&self, timeout_ms: u32) -> Result<Answer, String> {
        let limit = Duration::from_millis(u64::from(timeout_ms)).min(WAIT_MAX);
        if self.market.places.borrow().is_empty() {
            return Err("accept_task: this program has no skills; set capabilities first".into());
        }
        let open = self.market.accepted.borrow().len();
        if open >= ACCEPTED_MAX {
            return Err(format!(
                "accept_task: {open} tasks are accepted and not completed, the limit"
            ));
        }
        let (_, waiting) = self.queue();
        let next = async { waiting.lock().await.recv().await };
        let handed = tokio::time::timeout(limit, next).await;
        let Ok(Some(handed)) = handed else {
            return Err(format!(
                "accept_task: no task within {} ms",
                limit.as_millis()
            ));
        };
        let task = self.hub.number_task();
        let Handed {
            skill,
            payload,
            words,
        } = handed;
        self.market.accepted.borrow_mut().insert(task, words);
        let json = json!({"task": task, "skill": skill, "result_len_max": RESULT_LEN_MAX});
        Ok(Answer::Task(json, payload))
    }

    fn complete(&self, task: u64, end: TaskEnd, bytes: Bytes) -> Result<Answer, String> {
        if bytes.len() > RESULT_LEN_MAX {
            let len = bytes.len();
            return Err(format!(
                "complete_task: a result of {len} bytes, at most {RESULT_LEN_MAX}"
            ));
        }
        let words = self.market.accepted.borrow_mut().remove(&task);
        let words = words.ok_or_else(|| unknown("complete_task", task))?;
        words
            .send(Word::End(end, bytes))
            .map_err(|_| format!("complete_task: nobody waits for task {task} any more"))?;
        Ok(Answer::Json(json!({"task": task})))
    }

    /// A piece of progress. There is no reply, so what cannot be said is counted.
    pub(super) fn report(&self, task: u64, bytes: Bytes) {
        let accepted = self.market.accepted.borrow();
        let words = accepted.get(&task);
        let words = words.filter(|words| words.len() < PIECES_MAX && is_piece(&bytes));
        let said = words.is_some_and(|words| words.send(Word::Progress(bytes)).is_ok());
        if !said {
            self.hub.count("driver_progress_dropped");
        }
    }

    // ---- a requester ---------------------------------------------------------------------------

    async fn submit(
        self: &Rc<Self>,
        submission: Submission,
        payload: Bytes,
    ) -> Result<Answer, String> {
        let open = self.market.submitted.borrow().len();
        if open >= SUBMITTED_MAX {
            return Err(format!(
                "submit_task: {open} tasks run or wait to be fetched, the limit; fetch some"
            ));
        }
        let (job, ends) = channel_job(0);
        let (channel, events) = crossbeam::channel::bounded(EVENTS_MAX);
        let wake = Arc::new(Notify::new());
        let request = EngageRequest {
            skill: submission.skill,
            filters: submission.filters,
            min_polo: submission.min_polo.unwrap_or(i64::MIN),
            tasks: 1,
            concurrency: 1,
            duration_s: submission.duration_s,
            accept_deadline_ms: submission.accept_deadline_ms,
            job: Box::new(job),
        };
        let events_sink = EventSink {
            channel,
            wake: Some(Arc::clone(&wake)),
        };
        let verdicts = Some(Arc::clone(&ends.verdicts));
        let asked = self.hub.ask(|respond| {
            Ask::Engage(Box::new(EngageAsk {
                request,
                events: events_sink,
                verdicts,
                respond,
            }))
        });
        let offer = asked
            .await
            .map_err(|error| format!("submit_task: {error}"))?;
        let task = self.hub.number_task();
        let submitted = Rc::new(Submitted {
            task,
            offer,
            worker: RefCell::new(Value::Null),
            end: RefCell::new(None),
            ended: Notify::new(),
            cancelled: Notify::new(),
        });
        let run = Run {
            client: Rc::downgrade(self),
            hub: Rc::clone(&self.hub),
            submitted: Rc::clone(&submitted),
            ends,
            events,
        };
        self.market.submitted.borrow_mut().insert(task, submitted);
        tokio::task::spawn_local(run.follow(payload, wake));
        Ok(Answer::Json(json!({"task": task, "offer": offer})))
    }

    async fn wait_result(&self, task: u64, timeout_ms: u32) -> Result<Answer, String> {
        let limit = Duration::from_millis(u64::from(timeout_ms)).min(WAIT_MAX);
        let known = self.market.submitted.borrow().get(&task).cloned();
        let submitted = known.ok_or_else(|| unknown("wait_task_result", task))?;
        let ended = async {
            while submitted.end.borrow().is_none() {
                submitted.ended.notified().await;
            }
        };
        if tokio::time::timeout(limit, ended).await.is_err() {
            let waited = limit.as_millis();
            return Err(format!(
                "wait_task_result: task {task} has no result after {waited} ms; it goes on"
            ));
        }
        // Told once: of two that wait, one gets it.
        let removed = self.market.submitted.borrow_mut().remove(&task);
        let end = removed.and_then(|submitted| submitted.end.take());
        let (json, bytes) = end.ok_or_else(|| unknown("wait_task_result", task))?;
        Ok(Answer::Task(json, bytes))
    }
}

fn unknown(command: &str, task: u64) -> String {
    format!("{command}: task {task} is none of this program's, or over")
}

/// Follows a submitted task to the end of its engagement.
struct Run {
    client: std::rc::Weak<Client>,
    hub: Rc<super::Hub>,
    submitted: Rc<Submitted>,
    ends: LocalEnds,
    events: Receiver<EngageEvent>,
}

impl Run {
    async fn follow(self, payload: Bytes, wake: Arc<Notify>) {
        let Run {
            client,
            hub,
            submitted,
            ends,
            events,
        } = self;
        let LocalEnds {
            tasks,
            mut answers,
            verdicts,
        } = ends;
        let first = LocalTask {
            token: 0,
            deadline_us: None,
            payload,
        };
        // The queue is empty: there is room for one. The sender goes, so that no other follows.
        let _ = tasks.try_send(first);
        drop(tasks);
        let mut open = true;
        loop {
            while let Ok(answer) = answers.try_recv() {
                submitted.take(&client, &verdicts, answer);
            }
            while let Ok(event) = events.try_recv() {
                if submitted.step(event) {
                    // Every answer was queued before the engagement could end.
                    while let Ok(answer) = answers.try_recv() {
                        submitted.take(&client, &verdicts, answer);
                    }
                    return submitted.close();
                }
            }
            tokio::select! {
                () = wake.notified() => {}
                answer = answers.recv(), if open => match answer {
                    Some(answer) => submitted.take(&client, &verdicts, answer),
                    None => open = false,
                },
                () = submitted.cancelled.notified() => {
                    verdicts.leave();
                    if let Err(error) = hub.handle.put(Ask::Cancel(submitted.offer)) {
                        let offer = submitted.offer;
                        tracing::warn!(%offer, %error, "a cancelled task runs to its end");
                    }
                }
            }
        }
    }
}

impl Submitted {
    /// Takes an answer or a piece of progress.
    fn take(&self, client: &std::rc::Weak<Client>, verdicts: &Verdicts, answer: LocalAnswer) {
        let LocalAnswer {
            outcome, timing, ..
        } = answer;
        verdicts.taken(&outcome);
        let micros = |nanos: u64| nanos / 1_000;
        match outcome {
            LocalOutcome::Done(bytes) => {
                verdicts.judge(Verdict::Accept, timing.busy_ns);
                if bytes.len() > RESULT_TOLD_MAX {
                    let len = bytes.len();
                    let why = format!("a result of {len} bytes, at most {RESULT_TOLD_MAX} fit");
                    return self.over("too_long", Some(why), Bytes::new());
                }
                let mut json = self.json("done");
                json["round_trip_us"] = json!(micros(timing.round_trip_ns));
                json["busy_us"] = json!(micros(timing.busy_ns));
                self.set(json, bytes);
            }
            LocalOutcome::Failed(why) => {
                let why = String::from_utf8_lossy(&why).into_owned();
                self.over("failed", Some(why), Bytes::new());
            }
            LocalOutcome::Refused(refused) => {
                self.over("refused", Some(refused.label().to_owned()), Bytes::new());
            }
            LocalOutcome::Piece(bytes) => {
                let Some(client) = client.upgrade() else {
                    return;
                };
                if client.outbox.has_room() {
                    let (task, bytes) = (self.task, &bytes[..]);
                    client.outbox.push(Reply::Progress { task, bytes });
                } else {
                    client.hub.count("driver_progress_dropped");
                }
            }
        }
    }

    /// One step of the engagement; whether it was the last.
    fn step(&self, event: EngageEvent) -> bool {
        match event {
            EngageEvent::Granted {
                engagement,
                worker,
                worker_address,
                ..
            } => {
                self.worker.replace(json!({
                    "engagement": engagement, "worker": worker, "worker_address": worker_address,
                }));
                false
            }
            EngageEvent::Ended(end) => {
                if self.end.borrow().is_none() {
                    self.unanswered(end.outcome);
                }
                true
            }
            _ => false,
        }
    }

    /// The engagement is over and there was no answer.
    fn unanswered(&self, outcome: EngageOutcome) {
        let (status, why) = match outcome {
            EngageOutcome::Settled | EngageOutcome::Spooled => ("closed", None),
            EngageOutcome::Refused(refusal) => ("refused", Some(refusal.reason)),
            EngageOutcome::Expired { notified, .. } => (
                "expired",
                Some(format!("nobody took it, of {notified} who were told")),
            ),
            EngageOutcome::Closed(reason) => ("closed", Some(reason.label().to_owned())),
            EngageOutcome::NoRegistry(why) => ("no_registry", Some(why)),
        };
        self.over(status, why, Bytes::new());
    }

    fn over(&self, status: &str, reason: Option<String>, bytes: Bytes) {
        let mut json = self.json(status);
        if let Some(reason) = reason {
            json["reason"] = Value::from(reason);
        }
        self.set(json, bytes);
    }

    fn json(&self, status: &str) -> Value {
        let mut json = json!({"task": self.task, "status": status});
        if let (Value::Object(known), Some(members)) =
            (self.worker.borrow().clone(), json.as_object_mut())
        {
            members.extend(known);
        }
        json
    }

    fn set(&self, json: Value, bytes: Bytes) {
        self.end.replace(Some((json, bytes)));
        self.ended.notify_waiters();
    }

    /// Whoever waits and was not told yet is told.
    fn close(&self) {
        self.ended.notify_waiters();
    }
}
