//! The table of engagements that run over this worker's tunnels.
//!
//! A channel has a place in a slab and a generation, so that a late completion of the pool meets the
//! channel it belongs to or none. Frames find it by tunnel, side and channel number; commands find
//! it by engagement. A node never engages itself, yet two nodes may be each other's requester, so the
//! side is part of the name. Each channel may have a deadline, at which its timers run.

use std::collections::HashMap;

use ramjet_proto::engagement::Totals;
use ramjet_proto::engagement::requesting::Requesting;
use ramjet_proto::engagement::serving::Serving;
use ramjet_proto::ids::{ChannelId, EngagementId, NodeId};
use ramjet_proto::market::RECEIPT_LEN;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::TunnelHandle;
use ramjet_proto::wire::limits::CHANNELS_PER_TUNNEL_MAX;

use super::deadlines::Deadlines;
use crate::control::vocabulary::{ChannelTerms, CloseReason, Side};
use crate::job::Job;

/// Engagements that one worker carries at a time: as many as a node may be told to serve.
pub const CHANNELS_MAX: usize = 65_536;

/// A receipt that is sent again until it is countersigned.
pub struct PendingReceipt {
    /// The frame payload.
    pub bytes: Box<[u8; RECEIPT_LEN]>,
    /// When to send it (again).
    pub due: Time,
    /// How often it was sent.
    pub sends: u32,
}

/// Where a requester's end stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// OPEN is out.
    Opening,
    /// Tasks flow.
    Open,
    /// Every task has its answer; the job is with control, which has its last receipts signed.
    Answered,
    /// CLOSE is out.
    Closing(CloseReason),
}

/// A requester's end.
pub struct RequestEnd {
    /// Where it stands.
    pub state: RequestState,
    /// The grant, for OPEN.
    pub grant: Box<[u8]>,
    /// What to send; with control once everything is answered.
    pub job: Option<Box<dyn Job>>,
    /// The slots, once open.
    pub slots: Option<Requesting>,
    /// When OPEN, CLOSE or, while tasks flow, PING is looked at again.
    pub handshake_due: Time,
    /// How often OPEN or CLOSE has gone out.
    pub handshakes: u32,
    /// The newest receipt without a countersignature.
    pub receipt: Option<PendingReceipt>,
    /// Answers covered by receipts that were asked for.
    pub receipts_cover: u64,
    /// Answers the worker will send without a receipt.
    pub unsigned_max: u64,
    /// Whether control knows of the first result.
    pub first_result_told: bool,
}

/// A worker's end.
pub struct ServeEnd {
    /// The slots; `None` until control admits the channel.
    pub slots: Option<Serving>,
}

/// One end or the other.
pub enum End {
    /// We send tasks.
    Request(RequestEnd),
    /// We run them.
    Serve(ServeEnd),
}

/// One engagement on this worker.
pub struct Channel {
    /// Its name at the registry; of a channel not yet admitted, what its grant claims.
    pub engagement: EngagementId,
    /// The other end.
    pub peer: NodeId,
    /// The way there.
    pub tunnel: TunnelHandle,
    /// Its name in the tunnel.
    pub channel: ChannelId,
    /// What control decided.
    pub terms: ChannelTerms,
    /// Our end.
    pub end: End,
    /// When the other end was last heard.
    pub last_heard: Time,
    /// When control next hears how it stands; never while nothing has changed at a worker's end.
    pub report_due: Time,
    /// What control last heard.
    pub reported: Totals,
    /// Its deadline among all of them.
    wake_at: Time,
    /// Whether it is on the list of those with something to send.
    pub active: bool,
    generation: u32,
}

impl Channel {
    /// Which end we are.
    pub fn side(&self) -> Side {
        match self.end {
            End::Request(_) => Side::Requester,
            End::Serve(_) => Side::Worker,
        }
    }

    /// What it has come to.
    pub fn totals(&self) -> Totals {
        match &self.end {
            End::Request(end) => end.slots.as_ref().map(|slots| *slots.totals()),
            End::Serve(end) => end.slots.as_ref().map(|slots| *slots.totals()),
        }
        .unwrap_or_default()
    }
}

type ByNumber = Box<[u32; CHANNELS_PER_TUNNEL_MAX]>;

/// All channels of a worker.
pub struct Channels {
    places: Vec<Option<Box<Channel>>>,
    free: Vec<u32>,
    by_engagement: HashMap<(EngagementId, Side), u32>,
    /// By tunnel index and side: place plus one of each channel number.
    by_number: Vec<[Option<ByNumber>; 2]>,
    deadlines: Deadlines,
    next_generation: u32,
}

fn side_index(side: Side) -> usize {
    match side {
        Side::Requester => 0,
        Side::Worker => 1,
    }
}

impl Channels {
    /// No channels, for so many tunnels.
    pub fn new(tunnels_max: usize) -> Self {
        Channels {
            places: Vec::new(),
            free: Vec::new(),
            by_engagement: HashMap::new(),
            by_number: (0..tunnels_max).map(|_| [None, None]).collect(),
            deadlines: Deadlines::default(),
            next_generation: 1,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives an admitted channel the name of its engagement; false if another channel has it.
    pub fn name(&mut self, place: u32) -> bool {
        let Some(channel) = self.at(place) else {
            return false;
        };
        let key = (channel.engagement, channel.side());
        *self.by_engagement.entry(key).or_insert(place) == place
    }

    /// The place of a frame's channel.
    pub fn find(&self, tunnel: TunnelHandle, side: Side, channel: ChannelId) -> Option<u32> {
        let numbers = self.by_number[tunnel.index()][side_index(side)].as_ref()?;
        let place = numbers.get(usize::from(channel.0))?.checked_sub(1)?;
        // The index may have had another tenant.
        (self.at(place)?.tunnel == tunnel).then_some(place)
    }

    /// The place of an engagement.
    pub fn of_engagement(&self, engagement: EngagementId, side: Side) -> Option<u32> {
        self.by_engagement.get(&(engagement, side)).copied()
    }

    /// The place of an engagement on whichever side it has.
    pub fn of_either(&self, engagement: EngagementId) -> Option<u32> {
        self.of_engagement(engagement, Side::Requester)
            .or_else(|| self.of_engagement(engagement, Side::Worker))
    }

    /// The channel at a place.
    pub fn at(&self, place: u32) -> Option<&Channel> {
        self.places.get(place as usize)?.as_deref()
    }

    /// The channel at a place.
    pub fn at_mut(&mut self, place: u32) -> Option<&mut Channel> {
        self.places.get_mut(place as usize)?.as_deref_mut()
    }

    /// Place and generation, for a ticket.
    pub fn ticket(&self, place: u32) -> Option<(u32, u32)> {
        self.at(place).map(|channel| (place, channel.generation))
    }

    /// The channel of a ticket, if it is still there.
    pub fn redeem(&mut self, ticket: (u32, u32)) -> Option<&mut Channel> {
        self.at_mut(ticket.0)
            .filter(|channel| channel.generation == ticket.1)
    }

    /// A channel number that is free in this tunnel for a requester.
    pub fn free_number(&self, tunnel: TunnelHandle) -> Option<ChannelId> {
        let numbers = self.by_number[tunnel.index()][side_index(Side::Requester)].as_ref();
        (0..CHANNELS_PER_TUNNEL_MAX)
            .filter_map(|number| u16::try_from(number).ok().map(ChannelId))
            .find(|channel| {
                numbers.is_none_or(|numbers| numbers[usize::from(channel.0)] == 0)
                    || self.find(tunnel, Side::Requester, *channel).is_none()
            })
    }

    /// Adds a channel; `None` if the table is full, its number too high, or its engagement here
    /// already.
    pub fn insert(&mut self, mut channel: Channel) -> Option<u32> {
        let side = channel.side();
        let number = usize::from(channel.channel.0);
        if self.len() >= CHANNELS_MAX || number >= CHANNELS_PER_TUNNEL_MAX {
            return None;
        }
        // What a requester claims before control has seen its grant must not stand in the way of
        // whoever the engagement belongs to: such a channel gets its name when it is admitted.
        let claimed = matches!(&channel.end, End::Serve(ServeEnd { slots: None }));
        let key = (channel.engagement, side);
        if !claimed && self.by_engagement.contains_key(&key) {
            return None;
        }
        channel.generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let numbers = self.by_number[channel.tunnel.index()][side_index(side)]
            .get_or_insert_with(|| Box::new([0; CHANNELS_PER_TUNNEL_MAX]));
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).expect("at most CHANNELS_MAX")
        });
        numbers[number] = place + 1;
        if !claimed {
            self.by_engagement.insert(key, place);
        }
        self.places[place as usize] = Some(Box::new(channel));
        Some(place)
    }

    /// Takes a channel out.
    pub fn remove(&mut self, place: u32) -> Option<Box<Channel>> {
        let channel = self.places.get_mut(place as usize)?.take()?;
        let side = channel.side();
        if let Some(numbers) = &mut self.by_number[channel.tunnel.index()][side_index(side)] {
            let number = &mut numbers[usize::from(channel.channel.0)];
            if *number == place + 1 {
                *number = 0;
            }
        }
        let key = (channel.engagement, side);
        if self.by_engagement.get(&key) == Some(&place) {
            self.by_engagement.remove(&key);
        }
        self.deadlines.remove(place);
        self.free.push(place);
        Some(channel)
    }

    /// Runs the channel's timers at `at` or earlier.
    pub fn wake(&mut self, place: u32, at: Time) {
        if let Some(channel) = self.at_mut(place)
            && at < channel.wake_at
        {
            channel.wake_at = at;
            self.deadlines.set(place, at);
        }
    }

    /// Whether an engagement of ours, or one that we serve, runs in a tunnel.
    pub fn has_admitted(&self, tunnel: TunnelHandle) -> bool {
        let admitted = |channel: &Channel| match &channel.end {
            End::Request(end) => end.slots.is_some(),
            End::Serve(end) => end.slots.is_some(),
        };
        (0..CHANNELS_PER_TUNNEL_MAX)
            .filter_map(|number| u16::try_from(number).ok().map(ChannelId))
            .flat_map(|number| [(number, Side::Requester), (number, Side::Worker)])
            .filter_map(|(number, side)| self.find(tunnel, side, number))
            .any(|place| self.at(place).is_some_and(admitted))
    }

    /// Wakes every channel in a tunnel: it has just come up, or its path says more.
    pub fn wake_tunnel(&mut self, tunnel: TunnelHandle, at: Time) {
        for number in (0..CHANNELS_PER_TUNNEL_MAX).filter_map(|number| u16::try_from(number).ok()) {
            for side in [Side::Requester, Side::Worker] {
                if let Some(place) = self.find(tunnel, side, ChannelId(number)) {
                    self.wake(place, at);
                }
            }
        }
    }

    /// Wakes every channel.
    pub fn wake_all(&mut self, at: Time) {
        for place in self.places() {
            self.wake(place, at);
        }
    }

    /// When the next channel wants to be looked at.
    pub fn next_wake(&self) -> Time {
        self.deadlines.next()
    }

    /// Takes a channel whose deadline has come; it has none until it is given one.
    pub fn pop_due(&mut self, now: Time) -> Option<u32> {
        let place = self.deadlines.pop_due(now)?;
        if let Some(channel) = self.at_mut(place) {
            channel.wake_at = Time::NEVER;
        }
        Some(place)
    }

    /// The places in use.
    pub fn places(&self) -> impl Iterator<Item = u32> + use<> {
        0..u32::try_from(self.places.len()).expect("at most CHANNELS_MAX")
    }
}

/// A channel before it is placed.
pub fn channel(
    terms: ChannelTerms,
    peer: NodeId,
    tunnel: TunnelHandle,
    number: ChannelId,
    end: End,
    now: Time,
) -> Channel {
    Channel {
        engagement: terms.engagement,
        peer,
        tunnel,
        channel: number,
        terms,
        end,
        last_heard: now,
        report_due: Time::NEVER,
        reported: Totals::default(),
        wake_at: Time::NEVER,
        active: false,
        generation: 0,
    }
}
