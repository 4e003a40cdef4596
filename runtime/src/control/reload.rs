//! What changes while a node runs: whether it wants tasks, what it says it can do, and for whom.
//!
//! Invariants: all of a change is taken or none of it; engagements that run keep the terms they were
//! made on. The registry is told at once, as after every other change of what the node says.

use super::engagements::Moment;
use super::handle::Respond;
use super::plane::Plane;
use crate::node::{NodeError, Reloaded};

impl Plane {
    /// Takes a change, or says what is wrong with it.
    pub(crate) fn reload(&mut self, reloaded: Reloaded, respond: Respond<()>, at: Moment) {
        respond(self.try_reload(reloaded, at).map_err(NodeError));
    }

    fn try_reload(&mut self, reloaded: Reloaded, at: Moment) -> Result<(), String> {
        if self.drain.is_some() {
            return Err("the node is shutting down; nothing is changed any more".to_owned());
        }
        let own = self.first_of_programs();
        for name in reloaded.accept_from.keys() {
            if !self.config.skills[..own]
                .iter()
                .any(|(known, _)| known == name)
            {
                return Err(format!(
                    "accept-from: {name:?} is not offered by this node; a skill is added by a restart"
                ));
            }
        }
        if reloaded.task_ready && self.skill_names().next().is_none() {
            return Err("task-ready: this node offers no skill".to_owned());
        }
        self.advertiser
            .configure(reloaded.capabilities, &reloaded.accept_from)?;
        for (name, policy) in &mut self.config.skills[..own] {
            if let Some(changed) = reloaded.accept_from.get(name) {
                *policy = *changed;
            }
        }
        self.config.task_ready = reloaded.task_ready;
        self.advertiser.hurry(at.now);
        Ok(())
    }
}
