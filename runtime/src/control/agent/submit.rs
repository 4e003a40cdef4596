//! The submitter's end of the task service of Pilot up to 1.9.
//!
//! A record is kept before the SUBMIT leaves, because the worker's steps may arrive before its
//! answer. Only the node that the task went to may move it, forward only, and is paid for it once.

use std::rc::Rc;
use std::time::Duration;

use ramjet_proto::addr::Address;
use ramjet_proto::agent::PORT_TASKS;
use ramjet_proto::agent::tasks::{
    Output, Results, STATUS_RECEIVED, StatusUpdate, Submit, SubmitReply, TaskMessage, TaskRecord,
    TaskState,
};
use ramjet_proto::ids::NodeId;

use super::Agent;
use super::calls;
use super::files::unix_ms_of;
use super::host::{AgentStream, Host};
use super::task_store::{TaskSide, created_ms};
use super::tasks::{DIAL_LIMIT, note, read_frame};

/// How long a task may wait to be accepted, and an accepted one to be begun, in milliseconds.
const PATIENCE_MS: u64 = 60_000;

impl<H: Host> Agent<H> {
    /// Hands a task to an agent: its record, NEW if it was taken, DECLINED if not.
    ///
    /// # Errors
    /// The description is too long, or the agent cannot be reached or does not answer.
    pub(crate) async fn submit_task(
        &self,
        peer: NodeId,
        description: &str,
    ) -> Result<TaskRecord, String> {
        let own = self.host.node();
        let submit = Submit {
            task_id: self.new_id(),
            task_description: description.to_owned(),
            from_addr: Address::backbone(own).to_string(),
            to_addr: Address::backbone(peer).to_string(),
        };
        let frame = TaskMessage::Submit(submit.clone()).frame()?;
        let task_id = submit.task_id.clone();
        let record = self.record(submit, own, peer);
        // Kept first: the worker's steps may arrive before its answer.
        self.store(move |store| store.add(TaskSide::Submitted, record))
            .await?;
        let asking = async {
            let mut stream = self.host.dial(peer, PORT_TASKS, DIAL_LIMIT).await?;
            stream.write(frame).await?;
            let reply = SubmitReply::read(&read_frame(&mut stream).await?)?;
            tokio::task::spawn_local(stream.close());
            Ok::<_, String>(reply)
        };
        let refusal = match asking.await {
            Ok(reply) if reply.status == STATUS_RECEIVED => None,
            Ok(reply) => Some((TaskState::Declined, reply.message)),
            Err(why) => Some((TaskState::Cancelled, why)),
        };
        let unreached = matches!(refusal, Some((TaskState::Cancelled, _)));
        if let Some((next, why)) = refusal {
            let why = ramjet_proto::agent::bounded(&why, 1_024);
            self.move_submitted(task_id.clone(), next, why.clone())
                .await?;
            if unreached {
                return Err(why);
            }
        }
        self.submitted(&task_id)
    }

    /// A task that this node submitted.
    ///
    /// # Errors
    /// No such task.
    pub(crate) fn submitted(&self, id: &str) -> Result<TaskRecord, String> {
        let record = self.tasks.task(TaskSide::Submitted, id);
        record.ok_or_else(|| {
            let id = ramjet_proto::agent::bounded(id, 80);
            format!("task {id:?} was not submitted here")
        })
    }

    /// Waits until a submitted task is over, or so long: how it stands.
    ///
    /// # Errors
    /// No such task.
    pub(crate) async fn wait_task(&self, id: &str, limit: Duration) -> Result<TaskRecord, String> {
        let over = async {
            loop {
                let news = self.task_news.notified();
                let record = self.submitted(id)?;
                if record.status.is_over() {
                    return Ok(record);
                }
                news.await;
            }
        };
        match tokio::time::timeout(limit, over).await {
            Ok(record) => record,
            Err(_) => self.submitted(id),
        }
    }

    /// Every task of a side.
    pub(crate) fn task_rows(&self, side: TaskSide) -> Vec<TaskRecord> {
        self.tasks.tasks(side)
    }

    /// A submitted task that `peer` may speak of.
    fn task_of(&self, peer: NodeId, id: &str) -> Result<TaskRecord, String> {
        let record = self.submitted(id)?;
        let worker = record.to.parse::<Address>().map(|address| address.node);
        if worker != Ok(peer) {
            return Err(format!(
                "task {id} was submitted to {}, not to node {peer}",
                record.to
            ));
        }
        Ok(record)
    }

    pub(super) async fn take_status(
        &self,
        peer: NodeId,
        update: StatusUpdate,
    ) -> Result<(), String> {
        self.task_of(peer, &update.task_id)?;
        if matches!(update.status, TaskState::Succeeded | TaskState::Completed) {
            // Its results say so.
            return Ok(());
        }
        self.move_submitted(update.task_id, update.status, update.justification)
            .await
    }

    pub(super) async fn move_submitted(
        &self,
        id: String,
        next: TaskState,
        why: String,
    ) -> Result<(), String> {
        let now_ms = self.host.unix_ms();
        let changed = self
            .store(move |store| {
                store.change(TaskSide::Submitted, &id, next, |record| {
                    note(record, next, now_ms, &why);
                })
            })
            .await;
        self.task_news.notify_waiters();
        changed.map(drop)
    }

    pub(super) async fn take_results(&self, peer: NodeId, results: Results) -> Result<(), String> {
        self.task_of(peer, &results.task_id)?;
        let times = results.times;
        let now_ms = self.host.unix_ms();
        let taken = self
            .store(move |store| {
                let next = TaskState::Succeeded;
                let id = results.task_id.clone();
                let record = store.change(TaskSide::Submitted, &id, next, |record| {
                    note(record, next, now_ms, "Results received");
                    record.times = results.times;
                    let (kind, shown) = match &results.output {
                        Output::Text(text) => ("text", text),
                        Output::File { name, .. } => ("file", name),
                    };
                    kind.clone_into(&mut record.result_type);
                    record.results.clone_from(shown);
                })?;
                store.keep_result(&id, &results.output)?;
                Ok(record)
            })
            .await;
        self.task_news.notify_waiters();
        taken?;
        // As daemons do; a registry that wants receipts refuses it, and says so every time.
        if let Err(error) = calls::move_polo(&self.host, peer, times.reward()).await {
            tracing::debug!(%peer, %error, "the registry moves no polo for a task without receipts");
        }
        Ok(())
    }

    /// Gives up what has waited too long, until the node ends.
    pub(super) async fn sweep_tasks(self: Rc<Self>) {
        loop {
            tokio::time::sleep(self.config.pace.sweep).await;
            self.sweep_once().await;
        }
    }

    pub(super) async fn sweep_once(&self) {
        let now_ms = self.host.unix_ms();
        for record in self.tasks.tasks(TaskSide::Submitted) {
            let waited = |since_ms: u64| now_ms.saturating_sub(since_ms) >= PATIENCE_MS;
            let accepted = unix_ms_of(&record.accepted_at);
            let (next, why) = match record.status {
                TaskState::New if waited(created_ms(&record)) => {
                    (TaskState::Cancelled, "not accepted within 1 minute")
                }
                TaskState::Accepted if accepted.is_some_and(waited) => (
                    TaskState::Expired,
                    "receiver did not return results within stall window",
                ),
                _ => continue,
            };
            let id = record.task_id;
            if let Err(why) = self.move_submitted(id, next, why.to_owned()).await {
                tracing::debug!(%why, "the task moved meanwhile");
            }
        }
    }
}
