//! The task service of Pilot up to 1.9 on port 1003: its streams, and the worker's end.
//!
//! A SUBMIT passes the gate, is answered, and goes its way on a blocking thread; each step is told to
//! the submitter on a stream of its own, in order. The submitter's end is in `submit`.
//!
//! A daemon of 1.9 writes its record only after our answer, by another program, and ignores what
//! arrives earlier; so the first step is told after a pause.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::addr::Address;
use ramjet_proto::agent::PORT_TASKS;
use ramjet_proto::agent::framing::{Frame, FrameReader};
use ramjet_proto::agent::request::{TaskRequest, TaskStatus};
use ramjet_proto::agent::tasks::{
    Output, RESULT_TEXT_LEN_MAX, Results, STATUS_RECEIVED, STATUS_REFUSED, StatusUpdate, Submit,
    SubmitReply, TASK_FRAME_LEN_MAX, TaskMessage, TaskRecord, TaskState, TaskTimes,
};
use ramjet_proto::ids::NodeId;
use tokio::sync::mpsc;

use super::Agent;
use super::calls;
use super::files::rfc3339;
use super::host::{AgentListener, AgentStream, Host, deliver};
use super::requests::millis;
use super::task_store::{TaskSide, created_ms};
use crate::handler::Skill;

/// Streams at a time; a further one is reset.
const STREAMS_MAX: usize = 64;
/// How long a stream may take to bring its frame, or an answer to come.
const FRAME_LIMIT: Duration = Duration::from_secs(30);
/// How long a peer is dialed.
pub(super) const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// How long a peer may take to end the stream of a message that it has read.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// The name of a result that is no text.
const RESULT_FILE_NAME: &str = "result.bin";

// ---- streams -------------------------------------------------------------------------------------

impl<H: Host> Agent<H> {
    /// Serves port 1003 until the node ends.
    pub(super) async fn serve_tasks(self: Rc<Self>, mut listener: H::Listener) {
        let open = Rc::new(());
        while let Some(stream) = listener.accept().await {
            if Rc::strong_count(&open) > STREAMS_MAX {
                continue;
            }
            let (agent, place) = (Rc::clone(&self), Rc::clone(&open));
            tokio::task::spawn_local(async move {
                let peer = stream.peer();
                if let Err(why) = agent.take_task(stream).await {
                    tracing::info!(%peer, %why, "task message not taken");
                }
                drop(place);
            });
        }
    }

    async fn take_task(self: &Rc<Self>, mut stream: H::Stream) -> Result<(), String> {
        let peer = stream.peer();
        let frame = read_frame(&mut stream).await?;
        match TaskMessage::read(&frame) {
            Ok(TaskMessage::Submit(submit)) => {
                let task_id = submit.task_id.clone();
                let taken = self.take_submit(peer, submit).await;
                let (status, message) = match &taken {
                    Ok(_) => (
                        STATUS_RECEIVED,
                        format!("Task received with status {}", TaskState::New),
                    ),
                    Err(why) => (STATUS_REFUSED, why.clone()),
                };
                let reply = SubmitReply {
                    task_id: task_id.clone(),
                    status,
                    message,
                };
                let replied = stream.write(reply.frame()).await;
                if let Ok(work) = taken {
                    let agent = Rc::clone(self);
                    tokio::task::spawn_local(async move { agent.work(peer, task_id, work).await });
                }
                replied?;
            }
            Ok(TaskMessage::Status(update)) => self.take_status(peer, update).await?,
            Ok(TaskMessage::Results(results)) => self.take_results(peer, results).await?,
            Err(fault) => {
                if fault.submit {
                    let reply = SubmitReply {
                        task_id: fault.task_id,
                        status: STATUS_REFUSED,
                        message: fault.reason.clone(),
                    };
                    stream.write(reply.frame()).await?;
                    tokio::task::spawn_local(stream.close());
                }
                return Err(fault.reason);
            }
        }
        // All that mattered has been read or written.
        tokio::task::spawn_local(stream.close());
        Ok(())
    }

    /// Sends one message on a stream of its own.
    async fn send_task(&self, peer: NodeId, message: &TaskMessage) -> Result<(), String> {
        let frame = message.frame()?;
        let sending = async {
            let stream = self.host.dial(peer, PORT_TASKS, DIAL_LIMIT).await?;
            deliver(stream, frame, END_PATIENCE).await
        };
        let sent = tokio::time::timeout(DIAL_LIMIT + FRAME_LIMIT, sending).await;
        sent.unwrap_or_else(|_| Err(format!("node {peer}: no answer within {FRAME_LIMIT:?}")))
    }

    /// Work on the records, on a blocking thread.
    pub(super) async fn store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&super::task_store::TaskStore) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let tasks = Arc::clone(&self.tasks);
        let done = tokio::task::spawn_blocking(move || work(&tasks)).await;
        done.unwrap_or_else(|_| Err("the node is shutting down".to_owned()))
    }
}

pub(super) async fn read_frame(stream: &mut impl AgentStream) -> Result<Frame, String> {
    let mut reader = FrameReader::new(TASK_FRAME_LEN_MAX);
    let reading = async {
        loop {
            if let Some(frame) = reader.next_frame().map_err(|fault| fault.to_string())? {
                return Ok(frame);
            }
            match stream.read().await? {
                Some(chunk) => reader.push(&chunk),
                None => return Err("the stream ended before its frame".to_owned()),
            }
        }
    };
    let read = tokio::time::timeout(FRAME_LIMIT, reading).await;
    read.unwrap_or_else(|_| Err(format!("no frame within {FRAME_LIMIT:?}")))
}

// ---- worker --------------------------------------------------------------------------------------

/// What a received task asks, and of which skill; the text says why it is declined.
type Work = Result<(TaskRequest, String), String>;

impl<H: Host> Agent<H> {
    /// Takes a task or refuses it.
    async fn take_submit(&self, peer: NodeId, submit: Submit) -> Result<Work, String> {
        if let Ok(from) = submit.from_addr.parse::<Address>()
            && from.node != peer
        {
            // Results go to who asked, never to a third node.
            let from = from.node;
            return Err(format!(
                "from_addr names node {from}, but node {peer} submits"
            ));
        }
        let work = self.understand(&submit.task_description);
        match &work {
            Ok((_, skill)) => {
                let skill = self.executor.skill(skill).ok_or("no such skill")?;
                self.pass_gate(peer, skill).await?;
            }
            Err(_) => calls::authorize(&self.host, peer, None)
                .await?
                .map_err(|reason| format!("Task rejected by polo gate: {reason}"))?,
        }
        let record = self.record(submit, peer, self.host.node());
        self.store(move |store| store.add(TaskSide::Received, record))
            .await?;
        Ok(work)
    }

    /// Which skill a description means: the one it names, else the only one.
    fn understand(&self, description: &str) -> Work {
        let only = self.executor.only_skill();
        match TaskRequest::read_description(description) {
            Some(Err(why)) => Err(why),
            Some(Ok(request)) if self.executor.skill(&request.skill).is_some() => {
                let skill = request.skill.clone();
                Ok((request, skill))
            }
            Some(Ok(request)) if only.is_none() || description.trim_start().starts_with('{') => {
                Err(self.no_skill(&request.skill))
            }
            Some(Ok(_)) | None => match only {
                Some(skill) => Ok((whole(skill, description), skill.name.clone())),
                None => Err(format!(
                    "no skill named: begin the description with the skill and a colon, as in \
                     \"skill: text\"; this node offers {}",
                    self.executor.names()
                )),
            },
        }
    }

    pub(super) fn record(&self, submit: Submit, from: NodeId, to: NodeId) -> TaskRecord {
        TaskRecord {
            task_id: submit.task_id,
            task_description: submit.task_description,
            created_at: rfc3339(self.host.unix_ms()),
            status: TaskState::New,
            status_justification: String::new(),
            from: Address::backbone(from).to_string(),
            to: Address::backbone(to).to_string(),
            accepted_at: String::new(),
            staged_at: String::new(),
            execute_started_at: String::new(),
            completed_at: String::new(),
            times: TaskTimes::default(),
            result_type: String::new(),
            results: String::new(),
        }
    }

    /// Takes a task all its way and tells its submitter each step.
    async fn work(self: Rc<Self>, peer: NodeId, id: String, work: Work) {
        let (steps, told) = mpsc::unbounded_channel();
        let teller = tokio::task::spawn_local(Rc::clone(&self).tell_steps(peer, told));
        tokio::time::sleep(self.config.pace.record).await;
        let admitted = work.and_then(|work| Ok((work, self.executor.admit()?)));
        let ((request, skill), place) = match admitted {
            Ok(admitted) => admitted,
            Err(why) => {
                self.step(&steps, &id, TaskState::Declined, &why).await;
                return;
            }
        };
        self.step(&steps, &id, TaskState::Accepted, "Task accepted")
            .await;
        let Some(skill) = self.executor.skill(&skill) else {
            return;
        };
        let payload = request.payload();
        let ran = self
            .executor
            .run(place, skill, payload, request.timeout, async || {
                let why = "Task execution started";
                self.step(&steps, &id, TaskState::Executing, why).await;
            })
            .await;
        let times = TaskTimes {
            idle_ms: self.task_times(&id).idle_ms,
            staged_ms: millis(ran.staged),
            busy_ms: millis(ran.busy),
        };
        let why = match ran.status {
            TaskStatus::Completed(bytes) => {
                match self.results(&id, bytes, times) {
                    Ok(results) => {
                        // The teller says whether it arrived.
                        let _ = steps.send(TaskMessage::Results(results));
                        drop(steps);
                        let told = teller.await.unwrap_or(Err("shutting down".to_owned()));
                        self.finish(&id, times, told).await;
                        return;
                    }
                    Err(why) => why,
                }
            }
            TaskStatus::Failed(why) => format!("skill {} failed: {why}", skill.name),
            TaskStatus::Refused(why) => why,
        };
        self.step(&steps, &id, TaskState::Cancelled, &why).await;
    }

    fn task_times(&self, id: &str) -> TaskTimes {
        let record = self.tasks.task(TaskSide::Received, id);
        record.map(|record| record.times).unwrap_or_default()
    }

    fn results(&self, id: &str, bytes: Vec<u8>, times: TaskTimes) -> Result<Results, String> {
        let output = match String::from_utf8(bytes) {
            Ok(text) if text.len() <= RESULT_TEXT_LEN_MAX => Output::Text(text),
            Ok(text) => file(text.into_bytes()),
            Err(error) => file(error.into_bytes()),
        };
        let results = Results {
            task_id: id.to_owned(),
            output,
            completed_at: rfc3339(self.host.unix_ms()),
            times,
        };
        // Its bounds are checked where it is written.
        TaskMessage::Results(results.clone()).frame()?;
        Ok(results)
    }

    /// Notes a step of a received task and has it told.
    async fn step(
        &self,
        steps: &mpsc::UnboundedSender<TaskMessage>,
        id: &str,
        next: TaskState,
        why: &str,
    ) {
        let (now_ms, task, why) = (self.host.unix_ms(), id.to_owned(), why.to_owned());
        let justification = why.clone();
        let changed = self
            .store(move |store| {
                store.change(TaskSide::Received, &task, next, |record| {
                    note(record, next, now_ms, &why);
                })
            })
            .await;
        if let Err(why) = changed {
            tracing::warn!(%why, "task not noted");
        }
        // The receiver ends after the sender.
        let _ = steps.send(TaskMessage::Status(StatusUpdate {
            task_id: id.to_owned(),
            status: next,
            justification,
        }));
    }

    async fn finish(&self, id: &str, times: TaskTimes, told: Result<(), String>) {
        let (now_ms, task) = (self.host.unix_ms(), id.to_owned());
        let (next, why) = match told {
            Ok(()) => (TaskState::Succeeded, "Results sent".to_owned()),
            Err(why) => (TaskState::Expired, format!("results not delivered: {why}")),
        };
        let changed = self
            .store(move |store| {
                store.change(TaskSide::Received, &task, next, |record| {
                    note(record, next, now_ms, &why);
                    record.times = times;
                })
            })
            .await;
        if let Err(why) = changed {
            tracing::warn!(%why, "task not noted");
        }
    }

    /// Tells a submitter every step, in order, each until it arrives or is given up. Whether the
    /// last one arrived.
    async fn tell_steps(
        self: Rc<Self>,
        peer: NodeId,
        mut steps: mpsc::UnboundedReceiver<TaskMessage>,
    ) -> Result<(), String> {
        let mut last = Ok(());
        while let Some(message) = steps.recv().await {
            last = self.send_task(peer, &message).await;
            for pause in self.config.pace.again {
                if last.is_ok() {
                    break;
                }
                tokio::time::sleep(pause).await;
                last = self.send_task(peer, &message).await;
            }
            if let Err(why) = &last {
                tracing::warn!(%peer, %why, "a task's step is not told");
            }
        }
        last
    }

    /// What a former life of this node left open is given up, and its submitters are told.
    pub(super) async fn give_up(self: Rc<Self>, left: Vec<TaskRecord>) {
        self.wait_registered().await;
        for record in left {
            let Ok(from) = record.from.parse::<Address>() else {
                continue;
            };
            let (steps, told) = mpsc::unbounded_channel();
            let why = "the worker has restarted";
            self.step(&steps, &record.task_id, TaskState::Cancelled, why)
                .await;
            tokio::task::spawn_local(Rc::clone(&self).tell_steps(from.node, told));
        }
    }
}

/// A task for a skill that its description does not name.
fn whole(skill: &Skill, description: &str) -> TaskRequest {
    TaskRequest {
        task_id: None,
        skill: skill.name.clone(),
        description: description.to_owned(),
        params: None,
        timeout: ramjet_proto::agent::request::TIMEOUT_DEFAULT,
    }
}

fn file(content: Vec<u8>) -> Output {
    Output::File {
        name: RESULT_FILE_NAME.to_owned(),
        content: content.into(),
    }
}

/// The times and words of a step.
pub(super) fn note(record: &mut TaskRecord, next: TaskState, now_ms: u64, why: &str) {
    let now = rfc3339(now_ms);
    why.clone_into(&mut record.status_justification);
    match next {
        TaskState::Accepted => {
            record.times.idle_ms = now_ms.saturating_sub(created_ms(record));
            record.accepted_at.clone_from(&now);
            record.staged_at = now;
        }
        TaskState::Executing => record.execute_started_at = now,
        TaskState::New => {}
        TaskState::Declined
        | TaskState::Completed
        | TaskState::Succeeded
        | TaskState::Cancelled
        | TaskState::Expired => record.completed_at = now,
    }
}
