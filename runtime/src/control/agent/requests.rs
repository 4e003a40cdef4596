//! Tasks that plain agents send as JSON messages, and the answers to those of our own.
//!
//! A request passes the gate of its skill, runs on a blocking thread, and its result goes back as a
//! JSON message on a new stream to the sender's port 1001, with `reply_to` if the request had an id.
//! Every request that was acknowledged gets a result, if only one that says why it did not run.
//! Nothing of this moves polo: it has no receipts.

use std::rc::Rc;
use std::time::Duration;

use ramjet_proto::agent::exchange::{Ack, Message, MessageKind, Tags};
use ramjet_proto::agent::request::{TaskRequest, TaskResult, TaskStatus};
use ramjet_proto::ids::NodeId;
use ramjet_proto::market::AcceptFrom;
use tokio::sync::oneshot;

use super::Agent;
use super::calls;
use super::host::Host;
use crate::handler::Skill;

/// Requests of our own that wait for their result.
const WAITING_MAX: usize = 1_024;

/// A request of our own that waits for its result.
pub(super) struct Waiting {
    peer: NodeId,
    task_id: String,
    result: oneshot::Sender<TaskResult>,
}

impl<H: Host> Agent<H> {
    /// Whether `peer` may hand this skill a task: the registry's gate, widened as the operator says.
    ///
    /// # Errors
    /// Why not, and what would help.
    pub(super) async fn pass_gate(&self, peer: NodeId, skill: &Skill) -> Result<(), String> {
        let min_polo = match skill.accept_from {
            AcceptFrom::Anyone => return Ok(()),
            AcceptFrom::Trusted if self.book.borrow().trusts(peer) => return Ok(()),
            AcceptFrom::MinPolo(min_polo) => Some(min_polo),
            AcceptFrom::Gate | AcceptFrom::Trusted => None,
        };
        let mut verdict = calls::authorize(&self.host, peer, None).await?;
        if verdict.is_err() && min_polo.is_some() {
            verdict = calls::authorize(&self.host, peer, min_polo).await?;
        }
        verdict.map_err(|reason| format!("Task rejected by polo gate: {reason}"))
    }

    /// Runs a request and sends its result.
    pub(super) async fn run_request(
        self: &Rc<Self>,
        peer: NodeId,
        request: Result<TaskRequest, String>,
        reply_to: Option<String>,
    ) {
        let task_id = match &request {
            Ok(TaskRequest {
                task_id: Some(id), ..
            }) => id.clone(),
            _ => self.new_id(),
        };
        let result = match request {
            Ok(request) => self.execute(peer, task_id, request).await,
            Err(why) => refusal(task_id, "", why),
        };
        let content = result.to_json().to_string();
        let tags = Tags {
            message_id: Some(self.new_id()),
            reply_to,
        };
        let mut pauses = self.config.pace.again.into_iter();
        loop {
            let message = Message::new(MessageKind::Json, content.clone());
            let why = match self.send(peer, message, tags.clone()).await {
                Ok(Ack::Taken { .. }) => return,
                Ok(Ack::Refused { reason, .. }) => {
                    tracing::warn!(%peer, %reason, "result refused");
                    return;
                }
                Err(why) => why,
            };
            let Some(pause) = pauses.next() else {
                tracing::warn!(%peer, %why, "result not delivered");
                return;
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn execute(&self, peer: NodeId, task_id: String, request: TaskRequest) -> TaskResult {
        let Some(skill) = self.executor.skill(&request.skill) else {
            let why = self.no_skill(&request.skill);
            return refusal(task_id, &request.skill, why);
        };
        let admitted = match self.pass_gate(peer, skill).await {
            Ok(()) => self.executor.admit(),
            Err(why) => Err(why),
        };
        let place = match admitted {
            Ok(place) => place,
            Err(why) => return refusal(task_id, &request.skill, why),
        };
        let (payload, timeout) = (request.payload(), request.timeout);
        let started = async || {};
        let ran = self
            .executor
            .run(place, skill, payload, timeout, started)
            .await;
        TaskResult {
            task_id,
            skill: request.skill,
            status: ran.status,
            staged_ms: millis(ran.staged),
            busy_ms: millis(ran.busy),
        }
    }

    /// What to say of a skill that is not here.
    pub(super) fn no_skill(&self, name: &str) -> String {
        let names = self.executor.names();
        let name = ramjet_proto::agent::bounded(name, 80);
        match names.as_str() {
            "" => format!("no skill {name:?}: this node offers none"),
            names => format!("no skill {name:?}: this node offers {names}"),
        }
    }

    /// Has a peer do a task and waits for the result.
    ///
    /// # Errors
    /// The peer cannot be reached, does not take the message, or does not answer in time.
    pub(crate) async fn request_task(
        self: &Rc<Self>,
        peer: NodeId,
        mut request: TaskRequest,
    ) -> Result<TaskResult, String> {
        let message_id = self.new_id();
        let task_id = request.task_id.get_or_insert_with(|| self.new_id()).clone();
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting.borrow_mut();
            waiting.retain(|_, row| !row.result.is_closed());
            if waiting.len() >= WAITING_MAX {
                return Err(format!(
                    "{WAITING_MAX} requests wait for results, the limit"
                ));
            }
            let row = Waiting {
                peer,
                task_id,
                result: sender,
            };
            waiting.insert(message_id.clone(), row);
        }
        let message = Message::new(MessageKind::Json, request.to_json().to_string());
        let tags = Tags {
            message_id: Some(message_id.clone()),
            reply_to: None,
        };
        let sent = self.send(peer, message, tags).await;
        let outcome = match sent {
            Ok(Ack::Taken { .. }) => {
                // Its way there and back is not the task's time.
                let limit = request.timeout + super::send::DIAL_LIMIT;
                match tokio::time::timeout(limit, receiver).await {
                    Ok(Ok(result)) => Ok(result),
                    _ => Err(format!("node {peer}: no result within {limit:?}")),
                }
            }
            Ok(Ack::Refused { reason, .. }) => Err(format!("node {peer}: {reason}")),
            Err(why) => Err(why),
        };
        self.waiting.borrow_mut().remove(&message_id);
        outcome
    }

    /// Gives a result to whoever waits for it; false if nobody does. A peer that does not know tags
    /// names the task only.
    pub(super) fn hand_over(&self, peer: NodeId, tags: &Tags, result: TaskResult) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let by_tag = tags.reply_to.clone().filter(|id| waiting.contains_key(id));
        let by_task = || {
            let row = waiting
                .iter()
                .find(|(_, row)| row.task_id == result.task_id);
            row.map(|(id, _)| id.clone())
        };
        let Some(id) = by_tag.or_else(by_task) else {
            return false;
        };
        if waiting.get(&id).is_none_or(|row| row.peer != peer) {
            return false;
        }
        waiting
            .remove(&id)
            .is_some_and(|row| row.result.send(result).is_ok())
    }
}

fn refusal(task_id: String, skill: &str, why: String) -> TaskResult {
    TaskResult {
        task_id,
        skill: ramjet_proto::agent::bounded(skill, 80),
        status: TaskStatus::Refused(why),
        staged_ms: 0,
        busy_ms: 0,
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
