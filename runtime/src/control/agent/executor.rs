//! Runs a skill's handler for a task that came as a message.
//!
//! Handlers block, so they run on the runtime's blocking threads: at most so many at a time, and so
//! many wait. A task that waits beyond its time does not run; one that runs beyond it goes on, holds
//! its place until it ends, and its result is dropped.

use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::agent::bounded;
use ramjet_proto::agent::request::TaskStatus;
use ramjet_proto::wire::limits::TASK_LEN_MAX;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::handler::{Outcome, Skill};
use crate::worker::pool::run_guarded;

/// Tasks that run or wait.
const TASKS_MAX: usize = 1_024;

/// The skills and their threads.
pub(super) struct Executor {
    skills: Arc<[Skill]>,
    threads: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// A place among the tasks that run or wait.
pub(super) struct Place {
    _permit: tokio::sync::OwnedSemaphorePermit,
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ran {
    pub(super) status: TaskStatus,
    /// Until it ran.
    pub(super) staged: Duration,
    /// While it ran.
    pub(super) busy: Duration,
}

impl Executor {
    /// An executor that runs at most `threads` tasks at a time.
    pub(super) fn new(skills: Arc<[Skill]>, threads: usize) -> Self {
        Executor {
            skills,
            threads: Arc::new(Semaphore::new(threads.max(1))),
            places: Arc::new(Semaphore::new(TASKS_MAX)),
        }
    }

    pub(super) fn skill(&self, name: &str) -> Option<&Skill> {
        self.skills.iter().find(|skill| skill.name == name)
    }

    /// The one skill of a node that has one.
    pub(super) fn only_skill(&self) -> Option<&Skill> {
        match &self.skills[..] {
            [skill] => Some(skill),
            _ => None,
        }
    }

    /// The names of the skills, for people.
    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self
            .skills
            .iter()
            .map(|skill| skill.name.as_str())
            .collect();
        names.join(", ")
    }

    /// A place for a task.
    ///
    /// # Errors
    /// Too many run or wait.
    pub(super) fn admit(&self) -> Result<Place, String> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place
            .map(|permit| Place { _permit: permit })
            .map_err(|_| format!("busy: {TASKS_MAX} tasks run or wait, the limit; try later"))
    }

    /// Runs a task that has its place; `started` is called when it begins.
    pub(super) async fn run(
        &self,
        place: Place,
        skill: &Skill,
        payload: Vec<u8>,
        timeout: Duration,
        started: impl AsyncFnOnce(),
    ) -> Ran {
        let arrived = Instant::now();
        let refused = |why: String| Ran {
            status: TaskStatus::Refused(why),
            staged: arrived.elapsed(),
            busy: Duration::ZERO,
        };
        let result_len_max = skill.handler.result_len_max(payload.len());
        if payload.len() > TASK_LEN_MAX || result_len_max > TASK_LEN_MAX {
            return refused(format!(
                "too big: a task of {} bytes may be answered by {result_len_max}, at most \
                 {TASK_LEN_MAX}",
                payload.len()
            ));
        }
        let acquire = Arc::clone(&self.threads).acquire_owned();
        let Ok(Ok(thread)) = tokio::time::timeout(timeout, acquire).await else {
            return refused(format!("late: it did not run within {timeout:?}"));
        };
        let staged = arrived.elapsed();
        started().await;
        let began = Instant::now();
        let handler = Arc::clone(&skill.handler);
        let running = tokio::task::spawn_blocking(move || {
            let mut result = vec![0; result_len_max];
            let outcome = run_guarded(&*handler, &payload, &mut result);
            drop((thread, place));
            (outcome, result)
        });
        let left = timeout.saturating_sub(staged);
        let ran = tokio::time::timeout(left, running).await;
        let busy = began.elapsed();
        let status = match ran {
            Ok(Ok((Outcome::Done(len), mut result))) => {
                result.truncate(len);
                TaskStatus::Completed(result)
            }
            Ok(Ok((Outcome::Failed(len), result))) => {
                TaskStatus::Failed(bounded(&String::from_utf8_lossy(&result[..len]), 1_024))
            }
            Ok(Err(_)) => TaskStatus::Failed("the handler panicked".to_owned()),
            Err(_) => TaskStatus::Failed(format!("it ran longer than {timeout:?}")),
        };
        Ran {
            status,
            staged,
            busy,
        }
    }
}
