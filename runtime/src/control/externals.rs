//! Skills that programs of the host run: which of the reserved places is whose.
//!
//! Workers know a skill by its index in a list that is fixed when they start. Behind the node's own
//! skills stand [`EXTERNAL_SKILLS_MAX`] places for programs at the driver socket, and behind them
//! those of the agent port ([`crate::port`]). Their names are the plane's: given to a program when it
//! sets its capabilities and taken back when it leaves; given to agents when the first of a skill
//! attaches, and kept while they come and go, for what is granted meanwhile. A place is given away
//! again only once no engagement is served from it, so that no task reaches a program that never
//! offered its skill.

use std::collections::BTreeMap;

use ramjet_proto::market::AcceptFrom;
use ramjet_proto::market::terms::is_skill_name;

use super::advertise::Speaker;
use super::engagements::Moment;
use super::handle::Respond;
use super::plane::Plane;
use crate::node::NodeError;
use crate::port::{AGENT_SKILLS_MAX, Offer};

/// Places for skills of programs.
pub(crate) const EXTERNAL_SKILLS_MAX: usize = 16;

/// What a program says that it can do; replaces what it said before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offered {
    /// Who says so.
    pub(crate) speaker: Speaker,
    /// Key to value, without its skills.
    pub(crate) capabilities: BTreeMap<String, String>,
    /// What it runs, and for whom beyond the gate.
    pub(crate) skills: Vec<(String, AcceptFrom)>,
}

/// Whose the reserved places are, the last of the plane's skills.
#[derive(Debug, Default)]
pub(crate) struct Externals {
    owners: Vec<Option<u32>>,
    /// Whether the skill of each place of agents is offered now.
    agents: Vec<bool>,
}

impl Plane {
    /// Reserves the places, behind the node's own skills: for programs, and for agents.
    pub(crate) fn reserve_externals(&mut self, programs: bool, agents: bool) {
        let places = |wanted: bool, count: usize| if wanted { count } else { 0 };
        self.externals.owners = vec![None; places(programs, EXTERNAL_SKILLS_MAX)];
        self.externals.agents = vec![false; places(agents, AGENT_SKILLS_MAX)];
        let free = (String::new(), AcceptFrom::Gate);
        let reserved = self.externals.owners.len() + self.externals.agents.len();
        let count = self.config.skills.len() + reserved;
        self.config.skills.resize(count, free);
    }

    fn first_of_agents(&self) -> usize {
        self.config.skills.len() - self.externals.agents.len()
    }

    /// How many of the skills, from the first, are the node's own: those of programs follow.
    pub(crate) fn first_of_programs(&self) -> usize {
        self.first_of_agents() - self.externals.owners.len()
    }

    /// Whether a skill, by its index, has somebody to run it: only agents may be away.
    pub(crate) fn is_offered(&self, skill: usize) -> bool {
        let place = skill.checked_sub(self.first_of_agents());
        place.is_none_or(|place| self.externals.agents[place])
    }

    /// The names of all skills that are offered now.
    pub(crate) fn skill_names(&self) -> impl Iterator<Item = &str> {
        let skills = self.config.skills.iter().enumerate();
        skills
            .filter(|(index, (name, _))| !name.is_empty() && self.is_offered(*index))
            .map(|(_, (name, _))| name.as_str())
    }

    // ---- agents --------------------------------------------------------------------------------

    /// The place of a skill that agents run: the one it has, or a free one that is not `taken`. It
    /// is offered once [`Self::offer_agents`] says so.
    pub(crate) fn place_agents(
        &mut self,
        name: &str,
        accept_from: AcceptFrom,
        taken: [bool; AGENT_SKILLS_MAX],
    ) -> Result<usize, String> {
        let first = self.first_of_agents();
        if !is_skill_name(name) {
            return Err(format!("skill {name:?}, must be 1 to 64 of [a-z0-9._-]"));
        }
        let mut skills = self.config.skills.iter();
        if let Some(index) = skills.position(|(known, _)| known == name) {
            return index.checked_sub(first).ok_or_else(|| {
                format!("skill {name:?} is offered already, by this node or a program")
            });
        }
        let is_free = |place: &usize| {
            let served = self.serving.values();
            !taken[*place]
                && !self.externals.agents[*place]
                && !served
                    .map(|row| row.skill)
                    .any(|skill| skill == first + place)
        };
        let free = (0..self.externals.agents.len()).filter(is_free);
        // One that nobody ever had first: who had another may come back.
        let unused = |place: &usize| !self.config.skills[first + place].0.is_empty();
        let place = free.min_by_key(unused).ok_or_else(|| {
            format!(
                "skill {name:?} finds no place: {AGENT_SKILLS_MAX} skills of agents are offered or \
                 still served, the limit"
            )
        })?;
        self.config.skills[first + place] = (name.to_owned(), accept_from);
        Ok(place)
    }

    /// Whether offers for the skill of a place of agents are taken from now on.
    pub(crate) fn offer_agents(&mut self, offer: Offer, at: Moment) {
        let Offer { place, ready } = offer;
        let skill = self.config.skills[self.first_of_agents() + place].clone();
        self.externals.agents[place] = ready;
        let offered = Offered {
            speaker: Speaker::Agents(place),
            capabilities: BTreeMap::new(),
            skills: if ready { vec![skill] } else { Vec::new() },
        };
        if let Err(refusal) = self.advertiser.external(offered) {
            tracing::warn!(refusal, "a skill of agents is not advertised");
        }
        self.advertiser.hurry(at.now);
    }

    // ---- programs at the driver socket ---------------------------------------------------------

    /// A program says what it can do; answered by the place of each of its skills, in their order.
    pub(crate) fn offer_skills(
        &mut self,
        offered: Offered,
        respond: Respond<Vec<usize>>,
        at: Moment,
    ) {
        let Speaker::Program(client) = offered.speaker else {
            return respond(Err(NodeError("only a program may say this".to_owned())));
        };
        let places = self.place(client, &offered);
        let outcome = places.and_then(|places| {
            self.advertiser.external(offered)?;
            self.give(client, &places);
            self.advertiser.hurry(at.now);
            Ok(places.into_iter().map(|(place, _, _)| place).collect())
        });
        respond(outcome.map_err(NodeError));
    }

    /// Whether the node wants tasks from now on.
    pub(crate) fn set_task_ready(&mut self, ready: bool, respond: Respond<()>, at: Moment) {
        if ready && self.skill_names().next().is_none() {
            let refusal = "this node offers no skill; set capabilities with skills first";
            return respond(Err(NodeError(refusal.to_owned())));
        }
        self.config.task_ready = ready;
        self.advertiser.hurry(at.now);
        respond(Ok(()));
    }

    /// A place for each skill: those that the program has already, and free ones.
    fn place(
        &self,
        client: u32,
        offered: &Offered,
    ) -> Result<Vec<(usize, String, AcceptFrom)>, String> {
        let first = self.first_of_programs();
        let mut places: Vec<(usize, String, AcceptFrom)> = Vec::new();
        for (name, accept_from) in &offered.skills {
            if !is_skill_name(name) {
                return Err(format!("skill {name:?}, must be 1 to 64 of [a-z0-9._-]"));
            }
            if places.iter().any(|(_, earlier, _)| earlier == name) {
                return Err(format!("skill {name:?} is named twice"));
            }
            let here = self
                .config
                .skills
                .iter()
                .position(|(known, _)| known == name);
            let owner = here.and_then(|index| index.checked_sub(first));
            let owner = owner.and_then(|place| *self.externals.owners.get(place)?);
            let place = match here {
                Some(index) if owner == Some(client) => index - first,
                Some(_) => {
                    return Err(format!(
                        "skill {name:?} is offered already, by this node or another program"
                    ));
                }
                None => self.free_place(first, &places).ok_or_else(|| {
                    format!(
                        "skill {name:?} finds no place: {EXTERNAL_SKILLS_MAX} skills of programs \
                         are offered or still served, the limit"
                    )
                })?,
            };
            places.push((place, name.clone(), *accept_from));
        }
        Ok(places)
    }

    fn free_place(&self, first: usize, taken: &[(usize, String, AcceptFrom)]) -> Option<usize> {
        (0..self.externals.owners.len()).find(|place| {
            let index = first + place;
            let is_free = self.externals.owners[*place].is_none();
            is_free
                && !taken.iter().any(|(earlier, _, _)| earlier == place)
                && !self.serving.values().any(|row| row.skill == index)
        })
    }

    /// Carries out [`Self::place`]: what else the program had is taken from it.
    fn give(&mut self, client: u32, places: &[(usize, String, AcceptFrom)]) {
        let first = self.first_of_programs();
        for (place, owner) in self.externals.owners.iter_mut().enumerate() {
            let kept = places.iter().any(|(given, _, _)| *given == place);
            if *owner == Some(client) && !kept {
                *owner = None;
                self.config.skills[first + place] = (String::new(), AcceptFrom::Gate);
            }
        }
        for (place, name, accept_from) in places {
            self.externals.owners[*place] = Some(client);
            self.config.skills[first + *place] = (name.clone(), *accept_from);
        }
    }
}
