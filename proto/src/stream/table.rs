//! The sessions of one worker: by peer and ports, with a deadline for nobody but themselves.
//!
//! A session has a place in a slab and a generation, so that a command that comes late meets the
//! session it is about or none. Packets find it by peer and both ports. Beside each stands a value of
//! the caller. Invariants: at most [`STREAMS_MAX`] sessions, at most [`STREAMS_PER_PORT_MAX`] of them
//! on one port; sessions that only remember (TIME_WAIT) make room for new ones, the oldest first.
//! Absent: who may open a stream; the caller knows.

use core::time::Duration;
use std::collections::{HashMap, VecDeque};

use super::session::{ALLOWANCE_MAX, ALLOWANCE_MIN, Session, State};
use crate::ids::NodeId;
use crate::time::Time;

/// Streams of one worker.
pub const STREAMS_MAX: usize = 4_096;
/// Streams of one port of it.
pub const STREAMS_PER_PORT_MAX: usize = 1_024;
/// Bytes that all of them may keep for their readers.
pub const READ_BYTES_MAX: usize = 256 << 20;
/// Ports to dial from (IANA's dynamic range).
const EPHEMERAL: core::ops::RangeInclusive<u16> = 49_152..=u16::MAX;
/// SYNs taken in a second, and at once: from all, and from one peer.
const SYNS_PER_SECOND: u32 = 10_000;
const SYNS_PER_PEER_SECOND: u32 = 1_000;
/// Peers whose SYNs are counted. They are forgotten together; by then most budgets are full again.
const PEERS_COUNTED_MAX: usize = 4_096;

const _: () = assert!(STREAMS_MAX * ALLOWANCE_MIN <= READ_BYTES_MAX);

/// What names a stream, as seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The other end.
    pub peer: NodeId,
    /// The port here.
    pub local_port: u16,
    /// The port there.
    pub remote_port: u16,
}

/// A place and its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The place.
    pub place: u32,
    /// Changes with each tenant.
    pub generation: u32,
}

/// Why a stream finds no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many SYNs: dropped without an answer.
    Limited,
    /// Too many streams, on this port or in all: answered by RST.
    Full,
}

/// One session with what belongs to it.
#[derive(Debug)]
pub struct Tenant<T> {
    /// What names it.
    pub key: Key,
    /// The session.
    pub session: Session,
    /// The caller's.
    pub own: T,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    tenant: Option<Tenant<T>>,
}

/// A budget that fills with time: the generic cell rate algorithm.
#[derive(Clone, Copy, Debug, Default)]
struct Budget {
    empty_at: Time,
}

impl Budget {
    fn take(&mut self, now: Time, per_second: u32) -> bool {
        let filled = self.empty_at.max(now) + Duration::from_secs(1) / per_second;
        let fits = filled.since(now) <= Duration::from_secs(1);
        if fits {
            self.empty_at = filled;
        }
        fits
    }
}

/// All sessions of a worker.
#[derive(Debug)]
pub struct Streams<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    by_port: HashMap<u16, usize>,
    /// Sessions that only remember, by when they began to.
    remembering: VecDeque<Ticket>,
    next_port: u16,
    syns: Budget,
    syns_by_peer: HashMap<NodeId, Budget>,
}

impl<T> Default for Streams<T> {
    fn default() -> Self {
        Streams {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            by_port: HashMap::new(),
            remembering: VecDeque::new(),
            next_port: *EPHEMERAL.start(),
            syns: Budget::default(),
            syns_by_peer: HashMap::new(),
        }
    }
}

impl<T> Streams<T> {
    /// How many there are, those that only remember included.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that each may keep for its reader now.
    pub fn allowance(&self) -> usize {
        (READ_BYTES_MAX / self.len().max(1)).clamp(ALLOWANCE_MIN, ALLOWANCE_MAX)
    }

    /// Whether a SYN of this peer is within the limits; it is counted.
    pub fn admit_syn(&mut self, now: Time, peer: NodeId) -> bool {
        if self.syns_by_peer.len() >= PEERS_COUNTED_MAX && !self.syns_by_peer.contains_key(&peer) {
            self.syns_by_peer.clear();
        }
        let of_peer = self.syns_by_peer.entry(peer).or_default();
        of_peer.take(now, SYNS_PER_PEER_SECOND) && self.syns.take(now, SYNS_PER_SECOND)
    }

    /// A port to dial this peer's port from that no stream to it uses.
    pub fn free_port(&mut self, peer: NodeId, remote_port: u16) -> Option<u16> {
        for _ in EPHEMERAL {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(*EPHEMERAL.start());
            let key = Key {
                peer,
                local_port: port,
                remote_port,
            };
            if !self.by_key.contains_key(&key) {
                return Some(port);
            }
        }
        None
    }

    /// Adds a session. Its key is not in use.
    ///
    /// # Errors
    /// [`Refusal::Full`]; the session was not added.
    pub fn insert(&mut self, key: Key, session: Session, own: T) -> Result<Ticket, Refusal> {
        debug_assert!(!self.by_key.contains_key(&key), "{key:?} is in use");
        let on_port = self.by_port.get(&key.local_port).copied().unwrap_or(0);
        if on_port >= STREAMS_PER_PORT_MAX || self.len() >= STREAMS_MAX {
            self.forget_oldest(key.local_port, on_port >= STREAMS_PER_PORT_MAX)?;
        }
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    tenant: None,
                });
                u32::try_from(self.slots.len() - 1).expect("below STREAMS_MAX")
            }
        };
        let slot = &mut self.slots[place as usize];
        slot.tenant = Some(Tenant { key, session, own });
        self.by_key.insert(key, place);
        *self.by_port.entry(key.local_port).or_default() += 1;
        Ok(Ticket {
            place,
            generation: slot.generation,
        })
    }

    /// Takes out the session that has only remembered for longest, of one port or of all.
    fn forget_oldest(&mut self, port: u16, of_port: bool) -> Result<(), Refusal> {
        let index = self.remembering.iter().position(|ticket| {
            let tenant = self.tenant(*ticket);
            tenant.is_some_and(|tenant| {
                tenant.session.state() == State::TimeWait
                    && (!of_port || tenant.key.local_port == port)
            })
        });
        let ticket = index
            .and_then(|index| self.remembering.remove(index))
            .ok_or(Refusal::Full)?;
        self.remove(ticket);
        Ok(())
    }

    /// A session has only to remember from now on.
    pub fn remember(&mut self, ticket: Ticket) {
        if self.remembering.len() >= 2 * STREAMS_MAX {
            let live: VecDeque<_> = std::mem::take(&mut self.remembering);
            self.remembering = live
                .into_iter()
                .filter(|ticket| self.tenant(*ticket).is_some())
                .collect();
        }
        self.remembering.push_back(ticket);
    }

    /// The session of a key.
    pub fn find(&self, key: &Key) -> Option<Ticket> {
        let place = *self.by_key.get(key)?;
        Some(self.ticket(place))
    }

    /// The present tenant of a place that has one.
    pub fn at(&self, place: u32) -> Option<Ticket> {
        let slot = self.slots.get(place as usize)?;
        slot.tenant.as_ref().map(|_| self.ticket(place))
    }

    fn ticket(&self, place: u32) -> Ticket {
        Ticket {
            place,
            generation: self.slots[place as usize].generation,
        }
    }

    /// What a ticket stands for, unless it is gone.
    pub fn tenant(&self, ticket: Ticket) -> Option<&Tenant<T>> {
        let slot = self.slots.get(ticket.place as usize)?;
        let tenant = slot.tenant.as_ref();
        tenant.filter(|_| slot.generation == ticket.generation)
    }

    /// What a ticket stands for, unless it is gone.
    pub fn tenant_mut(&mut self, ticket: Ticket) -> Option<&mut Tenant<T>> {
        let slot = self.slots.get_mut(ticket.place as usize)?;
        let tenant = slot.tenant.as_mut();
        tenant.filter(|_| slot.generation == ticket.generation)
    }

    /// Takes a session out.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Tenant<T>> {
        self.tenant(ticket)?;
        let slot = &mut self.slots[ticket.place as usize];
        let tenant = slot.tenant.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(ticket.place);
        self.by_key.remove(&tenant.key);
        if let Some(count) = self.by_port.get_mut(&tenant.key.local_port) {
            *count -= 1;
            if *count == 0 {
                self.by_port.remove(&tenant.key.local_port);
            }
        }
        Some(tenant)
    }

    /// Every session with its ticket.
    pub fn iter(&self) -> impl Iterator<Item = (Ticket, &Tenant<T>)> {
        (0_u32..).zip(&self.slots).filter_map(|(place, slot)| {
            let generation = slot.generation;
            Some((Ticket { place, generation }, slot.tenant.as_ref()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(remote_port: u16) -> Key {
        Key {
            peer: NodeId(2),
            local_port: 7,
            remote_port,
        }
    }

    fn session() -> Session {
        Session::dial(Time::ZERO, 5, Duration::from_secs(1))
    }

    #[test]
    fn a_place_has_one_tenant_after_the_other() {
        let mut streams = Streams::default();
        let first = streams.insert(key(1), session(), 'a').expect("room");
        assert_eq!(streams.find(&key(1)), Some(first));
        assert_eq!(streams.find(&key(2)), None);
        assert_eq!(streams.remove(first).expect("there").own, 'a');
        let second = streams.insert(key(2), session(), 'b').expect("room");
        assert_eq!(second.place, first.place);
        assert!(streams.tenant(first).is_none() && streams.remove(first).is_none());
        assert_eq!(streams.tenant(second).expect("there").own, 'b');
        assert_eq!(streams.at(second.place), Some(second));
        assert_eq!((streams.len(), streams.iter().count()), (1, 1));
    }

    #[test]
    fn a_full_port_refuses_and_others_do_not() {
        let mut streams = Streams::default();
        for port in 0..1_024 {
            streams.insert(key(port), session(), ()).expect("room");
        }
        let full = streams.insert(key(2_000), session(), ());
        assert_eq!(full, Err(Refusal::Full));
        let other = Key {
            local_port: 8,
            ..key(1)
        };
        streams.insert(other, session(), ()).expect("another port");
        assert_eq!(streams.allowance(), READ_BYTES_MAX / 1_025);
    }

    #[test]
    fn ports_to_dial_from_go_round_and_skip_what_is_used() {
        let mut streams = Streams::<()>::default();
        let first = streams.free_port(NodeId(2), 7).expect("a port");
        assert_eq!(first, 49_152);
        let used = Key {
            peer: NodeId(2),
            local_port: 49_153,
            remote_port: 7,
        };
        streams.insert(used, session(), ()).expect("room");
        assert_eq!(streams.free_port(NodeId(2), 7), Some(49_154));
        for _ in 0..u16::MAX - 49_154 {
            streams.free_port(NodeId(2), 7).expect("a port");
        }
        assert_eq!(streams.free_port(NodeId(2), 7), Some(49_152));
    }

    #[test]
    fn syns_are_limited_for_each_peer_and_come_back_with_time() {
        let mut streams = Streams::<()>::default();
        let now = Time::from_nanos(1_000_000_000);
        let taken = (0..2_000)
            .filter(|_| streams.admit_syn(now, NodeId(1)))
            .count();
        assert_eq!(taken, 1_000);
        assert!(streams.admit_syn(now, NodeId(2)), "another peer");
        assert!(streams.admit_syn(now + Duration::from_millis(2), NodeId(1)));
    }
}
