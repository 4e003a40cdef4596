//! Whether every worker still turns: each is asked for a sign of life, and answers in its next turn.
//!
//! The question goes through the control thread, the worker's queue and its loop, and the answer the
//! same way back, so an answer in time says that all of them move. Nothing is asked unless somebody
//! asks (a supervisor's watchdog). Absent: a clock. Who asks decides how long it waits.

use std::collections::BTreeSet;

use super::handle::Respond;
use super::plane::Plane;
use super::vocabulary::Command;
use crate::node::NodeError;

/// Whose sign is awaited, and by whom.
#[derive(Default)]
pub(crate) struct Pulse {
    missing: BTreeSet<usize>,
    waiting: Option<Respond<()>>,
}

impl Pulse {
    /// A worker gave its sign.
    pub(crate) fn beats(&mut self, worker: usize) {
        self.missing.remove(&worker);
        if self.missing.is_empty()
            && let Some(respond) = self.waiting.take()
        {
            respond(Ok(()));
        }
    }
}

impl Plane {
    /// Asks every worker for a sign. One that owes a sign since an earlier question is the answer.
    pub(crate) fn feel_pulse(&mut self, respond: Respond<()>) {
        if !self.pulse.missing.is_empty() {
            let silent: Vec<String> = self.pulse.missing.iter().map(usize::to_string).collect();
            return respond(Err(NodeError(format!(
                "worker {} gave no sign of life since it was asked before",
                silent.join(", ")
            ))));
        }
        // Workers run once the node is numbered; until then there is nobody to ask.
        if self.node.0 == 0 || self.stopping {
            return respond(Ok(()));
        }
        for worker in (0..self.config.workers).filter(|worker| !self.ended.contains(worker)) {
            self.pulse.missing.insert(worker);
        }
        if self.pulse.missing.is_empty() {
            return respond(Err(NodeError("every worker has ended".to_owned())));
        }
        self.pulse.waiting = Some(respond);
        for worker in self.pulse.missing.clone() {
            self.command_worker(worker, Command::Beat);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_answer_waits_for_the_last_worker() {
        let (sender, answers) = mpsc::channel();
        let mut pulse = Pulse {
            missing: BTreeSet::from([0, 1]),
            waiting: Some(Box::new(move |answer| {
                sender.send(answer).expect("the test listens");
            })),
        };
        pulse.beats(1);
        assert!(answers.try_recv().is_err(), "worker 0 has not answered");
        pulse.beats(0);
        assert_eq!(answers.try_recv(), Ok(Ok(())));
    }
}
