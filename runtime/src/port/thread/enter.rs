//! How a connection becomes an agent: HELLO, a place for its skill, the arena, WELCOME.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ramjet_proto::time::Time;
use rustix::process::Signal;

use super::{Mail, Member, PortThread, Row};
use crate::port::arena::Arena;
use crate::port::engine::{self, Attached, Order};
use crate::port::hello::Hello;
use crate::port::place::AGENT_SKILLS_MAX;
use crate::port::socket::{self, Received};
use crate::port::stats::SkillStats;
use crate::port::wire::{Breach, Message, PACKET_LEN_MAX, decode};

/// Connections at a time, of all skills.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection of somebody else's process may take to say HELLO.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// How long control may take to give a place.
const PLACE_LIMIT: Duration = Duration::from_secs(10);

/// Where a connection stands before it is an agent.
pub(super) enum Stage {
    /// Its HELLO is awaited.
    Hello,
    /// Control is asked for a place.
    Place(Box<Hello>),
}

/// A connection that is not an agent yet.
pub(super) struct Entering {
    pub(super) connection: u64,
    pub(super) socket: OwnedFd,
    /// Of which process of the node's own.
    pub(super) owner: Option<usize>,
    pub(super) stage: Stage,
    pub(super) until: Time,
}

impl PortThread {
    pub(super) fn accept(&mut self, now: Time) {
        let Some(listener) = &self.listener else {
            return;
        };
        let mut accepted = Vec::new();
        loop {
            match listener.accept() {
                Ok(Some(socket)) => accepted.push(socket),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "the agent socket cannot accept");
                    break;
                }
            }
        }
        for socket in accepted {
            let agents: usize = self.rows.values().map(|row| row.agents.len()).sum();
            let allowed = socket::check_peer(socket.as_fd()).and_then(|()| {
                if agents + self.entering.len() < CONNECTIONS_MAX {
                    Ok(())
                } else {
                    Err(format!("{CONNECTIONS_MAX} agents are attached, the limit"))
                }
            });
            match allowed {
                Ok(()) => self.enter(socket, None, now + HELLO_LIMIT),
                Err(why) => refuse(&socket, &why),
            }
        }
    }

    pub(super) fn enter(&mut self, socket: OwnedFd, owner: Option<usize>, until: Time) {
        self.connections += 1;
        self.entering.push(Entering {
            connection: self.connections,
            socket,
            owner,
            stage: Stage::Hello,
            until,
        });
    }

    /// Reads what those say that are not agents yet, and gives up those that say nothing for too long.
    pub(super) fn hear(&mut self, now: Time) {
        let mut packet = vec![0; PACKET_LEN_MAX];
        for index in (0..self.entering.len()).rev() {
            let entering = &self.entering[index];
            let late = now >= entering.until;
            let heard = match entering.stage {
                Stage::Place(_) if late => Err("control gave no place in time".to_owned()),
                // What it says meanwhile is for the engine.
                Stage::Place(_) => continue,
                Stage::Hello => match socket::receive(entering.socket.as_fd(), &mut packet) {
                    Ok(Received::Nothing) if late => Err("no HELLO in time".to_owned()),
                    Ok(Received::Nothing) => continue,
                    Ok(Received::Packet(len)) => read_hello(&packet[..len]),
                    Ok(Received::TooLong) => Err(Breach::TooLong.label().to_owned()),
                    Ok(Received::Ended) | Err(_) => {
                        // Nobody is there to be told.
                        let gone = self.entering.swap_remove(index);
                        self.abandoned(&gone);
                        continue;
                    }
                },
            };
            match heard {
                Ok(hello) => self.hello(index, hello, now),
                Err(why) => self.turn_away(index, &why),
            }
        }
    }

    /// A HELLO that can be: asks for the place of its skill.
    fn hello(&mut self, index: usize, hello: Hello, now: Time) {
        let entering = &mut self.entering[index];
        if let Some(owner) = entering.owner {
            let skill = &self.processes[owner].agent.skill;
            if *skill != hello.skill {
                let why = format!(
                    "it was started for the skill {skill:?} and says that it runs {:?}",
                    hello.skill
                );
                self.turn_away(index, &why);
                return;
            }
        }
        let place = self
            .rows
            .iter()
            .find(|(_, row)| row.skill == hello.skill)
            .map(|(place, _)| *place);
        let connection = entering.connection;
        let accept_from = self.config.policy(&hello.skill);
        let skill = hello.skill.clone();
        let entering = &mut self.entering[index];
        entering.stage = Stage::Place(Box::new(hello));
        entering.until = now + PLACE_LIMIT;
        if let Some(place) = place {
            self.placed(connection, Ok(place));
            return;
        }
        let taken = self.taken();
        let mail = self.mail_sender.clone();
        self.control.place(
            skill,
            accept_from,
            taken,
            Box::new(move |placed| mail.send(Mail::Placed(connection, placed))),
        );
    }

    /// Places that may not be given to another skill: those with agents, and those of owned ones.
    fn taken(&self) -> [bool; AGENT_SKILLS_MAX] {
        std::array::from_fn(|place| {
            self.rows.get(&place).is_some_and(|row| {
                let mut owned = self.processes.iter();
                !row.agents.is_empty() || owned.any(|process| process.agent.skill == row.skill)
            })
        })
    }

    /// A place was given, or not.
    pub(super) fn placed(&mut self, connection: u64, placed: Result<usize, String>) {
        let known = self.entering.iter();
        let at = known
            .clone()
            .position(|entering| entering.connection == connection);
        let Some(index) = at else { return };
        let Stage::Place(hello) = &self.entering[index].stage else {
            return;
        };
        let hello = hello.as_ref().clone();
        let welcomed = placed.and_then(|place| {
            let (arena, epoch) = self.welcome(index, place, &hello)?;
            Ok((place, arena, epoch))
        });
        let (place, arena, epoch) = match welcomed {
            Ok(welcomed) => welcomed,
            Err(why) => {
                self.turn_away(index, &why);
                return;
            }
        };
        tracing::info!(
            skill = hello.skill,
            connection,
            pid = hello.pid,
            sdk = hello.sdk,
            max_batch = hello.max_batch,
            "an agent has attached"
        );
        let entered = self.entering.swap_remove(index);
        let row = self.rows.get_mut(&place).expect("welcomed to it");
        let member = Member {
            ready: false,
            owner: entered.owner,
            arena_len: arena.len(),
        };
        row.agents.insert(connection, member);
        row.hello = Some(hello.clone());
        row.engine.send(Order::Attach(Box::new(Attached {
            connection,
            socket: entered.socket,
            arena,
            epoch,
            hello,
        })));
        self.tell(place);
    }

    /// Makes the arena of an agent and tells it.
    fn welcome(
        &mut self,
        index: usize,
        place: usize,
        hello: &Hello,
    ) -> Result<(Arena, u32), String> {
        self.row(place, &hello.skill)?;
        let row = self.rows.get(&place).expect("just made");
        if let Some(others) = &row.hello {
            hello.joins(others)?;
        }
        let welcome = hello.welcome(self.node);
        let members = self.rows.values().flat_map(|row| row.agents.values());
        let held: usize = members.map(|member| member.arena_len).sum();
        let wanted = held.saturating_add(welcome.arena_len);
        if wanted > self.config.memory_max {
            return Err(format!(
                "its arena of {} bytes would make {wanted} of all agents, at most {}; lower \
                 max_batch, max_payload or result_len_max, or raise --agent-memory",
                welcome.arena_len, self.config.memory_max
            ));
        }
        let arena = Arena::create(welcome.arena_len)
            .map_err(|error| format!("an arena of {} bytes: {error}", welcome.arena_len))?;
        self.epochs = self.epochs.wrapping_add(1).max(1);
        let epoch = self.epochs;
        let body = serde_json::to_vec(&welcome).map_err(|error| error.to_string())?;
        let mut packet = Vec::new();
        Message::Welcome(&body).encode(epoch, &mut packet);
        let entering = &self.entering[index];
        socket::send_with_file(entering.socket.as_fd(), &packet, arena.file())
            .map_err(|error| format!("WELCOME could not be sent: {error}"))?;
        Ok((arena, epoch))
    }

    /// The row of a place: made at its first agent, and taken over by another skill once it is free.
    pub(super) fn row(&mut self, place: usize, skill: &str) -> Result<(), String> {
        if let Some(row) = self.rows.get_mut(&place) {
            if row.skill != skill {
                row.skill = skill.to_owned();
                let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
                roster.insert(place, (skill.to_owned(), Arc::clone(&row.stats)));
                *row.stats.lock().unwrap_or_else(PoisonError::into_inner) = SkillStats::new();
            }
            return Ok(());
        }
        let stats = Arc::new(Mutex::new(SkillStats::new()));
        let known = self.places.0.get(place).ok_or("no such place")?;
        let engine = engine::start(
            &format!("agents-{place}"),
            known,
            self.tasks_max,
            self.news_sender.clone(),
            Arc::clone(&stats),
        )
        .map_err(|error| format!("its engine cannot start: {error}"))?;
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        roster.insert(place, (skill.to_owned(), Arc::clone(&stats)));
        drop(roster);
        let row = Row {
            skill: skill.to_owned(),
            engine,
            stats,
            hello: None,
            agents: BTreeMap::new(),
            offered: false,
        };
        self.rows.insert(place, row);
        Ok(())
    }

    /// Says why, and closes; a process of the node's own ends with it.
    fn turn_away(&mut self, index: usize, why: &str) {
        let gone = self.entering.swap_remove(index);
        refuse(&gone.socket, why);
        self.abandoned(&gone);
    }

    fn abandoned(&mut self, gone: &Entering) {
        if let Some(owner) = gone.owner {
            self.processes[owner].signal(Signal::KILL);
        }
    }
}

fn read_hello(packet: &[u8]) -> Result<Hello, String> {
    match decode(packet) {
        Ok((0, Message::Hello(body))) => Hello::read(body),
        Ok((_, Message::Hello(_))) => Err(format!("{}: HELLO has epoch 0", Breach::WrongEpoch)),
        Ok(_) => Err("the first packet is no HELLO".to_owned()),
        Err(breach) => Err(format!("the first packet is no HELLO: {breach}")),
    }
}

/// Says why an agent is not taken, to it and in the log.
fn refuse(socket: &OwnedFd, why: &str) {
    tracing::warn!(why, "an agent is refused");
    let mut packet = Vec::new();
    Message::Refused(why.as_bytes()).encode(0, &mut packet);
    // Nobody may be there any more.
    let _ = socket::send(socket.as_fd(), &packet);
}
