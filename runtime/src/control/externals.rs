//! Skills that programs of the host run: which of the reserved places is whose.
//!
//! Workers know a skill by its index in a list that is fixed when they start. The last
//! [`EXTERNAL_SKILLS_MAX`] places of that list are reserved for programs; their names are the
//! plane's, given when a program sets its capabilities and taken back when it leaves. A place is
//! given away again only once no engagement is served from it, so that no task reaches a program
//! that never offered its skill.

use std::collections::BTreeMap;

use ramjet_proto::market::AcceptFrom;
use ramjet_proto::market::terms::is_skill_name;

use super::engagements::Moment;
use super::handle::Respond;
use super::plane::Plane;
use crate::node::NodeError;

/// Places for skills of programs.
pub(crate) const EXTERNAL_SKILLS_MAX: usize = 16;

/// What a program says that it can do; replaces what it said before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offered {
    /// The program, as the driver numbers it.
    pub(crate) client: u32,
    /// Key to value, without its skills.
    pub(crate) capabilities: BTreeMap<String, String>,
    /// What it runs, and for whom beyond the gate.
    pub(crate) skills: Vec<(String, AcceptFrom)>,
}

/// Whose the reserved places are, the last of the plane's skills.
#[derive(Debug, Default)]
pub(crate) struct Externals {
    owners: Vec<Option<u32>>,
}

impl Plane {
    /// Reserves the places, behind the node's own skills.
    pub(crate) fn reserve_externals(&mut self) {
        self.externals.owners = vec![None; EXTERNAL_SKILLS_MAX];
        let free = (String::new(), AcceptFrom::Gate);
        let count = self.config.skills.len() + EXTERNAL_SKILLS_MAX;
        self.config.skills.resize(count, free);
    }

    /// The names of all skills that are offered now.
    pub(crate) fn skill_names(&self) -> impl Iterator<Item = &str> {
        let names = self.config.skills.iter().map(|(name, _)| name.as_str());
        names.filter(|name| !name.is_empty())
    }

    /// A program says what it can do; answered by the place of each of its skills, in their order.
    pub(crate) fn offer_skills(
        &mut self,
        offered: Offered,
        respond: Respond<Vec<usize>>,
        at: Moment,
    ) {
        let places = self.place(&offered);
        let outcome = places.and_then(|places| {
            let client = offered.client;
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
    fn place(&self, offered: &Offered) -> Result<Vec<(usize, String, AcceptFrom)>, String> {
        let first = self.config.skills.len() - self.externals.owners.len();
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
            let owner = owner.and_then(|place| self.externals.owners[place]);
            let place = match here {
                Some(index) if owner == Some(offered.client) => index - first,
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
        let first = self.config.skills.len() - self.externals.owners.len();
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
