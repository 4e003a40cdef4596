//! The agent port as control has it: its configuration checked, its thread started, its questions.

use ramjet_proto::market::AcceptFrom;

use super::handle::{Ask, ControlHandle};
use super::plane::Plane;
use crate::node::NodeConfig;
use crate::port::{self, AGENT_SKILLS_MAX, AgentPlaces, Control, Offer, Port, RespondPlace};

/// What is wrong with the agents of a configuration.
pub(super) fn check_agents(config: &NodeConfig) -> Result<(), String> {
    let owned = &config.agents.owned;
    let mut names: Vec<&str> = owned.iter().map(|agent| agent.skill.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > AGENT_SKILLS_MAX {
        let count = names.len();
        return Err(format!(
            "agents: {count} skills, at most {AGENT_SKILLS_MAX} may be run by agents"
        ));
    }
    let taken = |name: &&&str| config.skills.iter().any(|skill| skill.name == **name);
    match names.iter().find(taken) {
        Some(name) => Err(format!(
            "agent {name:?}: the node offers a skill of that name itself"
        )),
        None => Ok(()),
    }
}

/// Starts the agent port: the places of its skills stand behind all others, and those of the node's
/// own agents are the first of them.
pub(super) fn start_port(
    config: &mut NodeConfig,
    plane: &mut Plane,
    (bound, places): (port::Bound, AgentPlaces),
    handle: &ControlHandle,
) -> Result<Port, String> {
    config.skills.extend(places.skills());
    let agents = &config.agents;
    for (skill, policy) in agents.owned_skills() {
        plane.place_agents(&skill, policy, [false; AGENT_SKILLS_MAX])?;
    }
    let tasks_max = agents.tasks_max * config.workers;
    Port::start(
        agents.clone(),
        bound,
        places,
        tasks_max,
        Box::new(handle.clone()),
    )
}

/// What the agent port asks, from its own thread.
impl Control for ControlHandle {
    fn place(
        &self,
        skill: String,
        accept_from: AcceptFrom,
        taken: [bool; AGENT_SKILLS_MAX],
        respond: RespondPlace,
    ) {
        // A question that cannot be put is given up by the port in time.
        let asked = self.put(Ask::AgentPlace(skill, accept_from, taken, respond));
        if let Err(error) = asked {
            tracing::warn!(%error, "a skill of agents was given no place");
        }
    }

    fn offer(&self, offer: Offer) {
        if let Err(error) = self.put(Ask::AgentOffer(offer)) {
            tracing::warn!(%error, ?offer, "control does not know whether agents are ready");
        }
    }
}
