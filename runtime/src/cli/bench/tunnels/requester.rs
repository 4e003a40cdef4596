//! One requester node of the generator, without its socket: a tunnel, a channel, and what it owes.
//!
//! It is a whole requester of the protocol: it exchanges keys, opens its channel with its own grant,
//! learns what its path carries, repeats what was lost, tells verdicts, pings when it is idle and
//! keeps its tunnel alive; its frames are packed by a worker's own outbox. What the control thread of
//! a node adds, receipts, is left out: the worker is told to need none.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::engagement::FrameSink;
use ramjet_proto::engagement::congestion::Congestion;
use ramjet_proto::engagement::requesting::{Progressed, Requesting};
use ramjet_proto::frame::kind::{FROM_WORKER, Kind};
use ramjet_proto::frame::path::{CONFIRM_EVERY, PathSearch};
use ramjet_proto::frame::{Frame, Head, TASK_PORT, Train};
use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::{ChannelId, NodeId};
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{Received, TunnelConfig, TunnelEvent, TunnelHandle, Tunnels};
use ramjet_proto::wire::header::Protocol;
use ramjet_proto::wire::limits::DATAGRAM_LEN_MAX;

use super::echo::{Echo, Tally};
use super::wire::{Arrived, Wire};
use crate::worker::arena::{Pages, SendArena};
use crate::worker::counters::Counters;
use crate::worker::io::Outgoing;
use crate::worker::outbox::{Outbox, Packing, TunnelSink};

/// The only engagement of each requester.
const CHANNEL: ChannelId = ChannelId(0);
/// Silence after which the worker is asked whether it is there, as a node does.
const PING_EVERY: Duration = Duration::from_secs(15);
/// First repeat of OPEN; doubled each time, up to eight times as long.
const OPEN_AGAIN: Duration = Duration::from_millis(250);
/// Key exchanges that the only peer may begin in a second.
const KEY_EXCHANGES_PER_SECOND: u32 = 8;

/// The worker, as the registry tells of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) key: PublicKey,
    pub(super) endpoint: SocketAddr,
}

/// Fresh bytes for keys.
fn entropy(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's entropy source");
}

/// What all requesters of a generator share. One of them at a time puts its frames into the outbox
/// and flushes them before the next does.
pub(super) struct Shared {
    wire: Wire,
    pub(super) tally: Tally,
    outbox: Outbox,
    send: SendArena,
    packing: Packing,
    counters: Counters,
    /// Space for a datagram of a tunnel's own.
    scratch: Vec<u8>,
}

impl Shared {
    pub(super) fn new(wire: Wire, tally: Tally) -> Result<Self, String> {
        let packing = Packing {
            datagrams_max: wire.segments_max(),
            frames_max: u16::MAX,
        };
        let send = SendArena::new(Pages::Normal)
            .map_err(|error| format!("memory for send buffers: {error}"))?;
        Ok(Shared {
            wire,
            tally,
            // Every requester has one tunnel, the first of its table.
            outbox: Outbox::new(1, usize::MAX),
            send,
            packing,
            counters: Counters::new(),
            scratch: vec![0; DATAGRAM_LEN_MAX],
        })
    }

    /// What has arrived, at most a batch.
    pub(super) fn receive(&mut self, arrived: &mut Vec<Arrived>) -> Result<(), String> {
        self.wire
            .receive(arrived)
            .map_err(|error| format!("UDP socket: {error}"))
    }

    /// A place for the frames of one requester, whose path carries what it has found out.
    fn sink(&mut self, tunnel: TunnelHandle, path: PathSearch) -> (TunnelSink<'_>, &mut Tally) {
        *self.outbox.path(tunnel) = path;
        let sink = self.outbox.sink(&mut self.send, tunnel, self.packing);
        (sink, &mut self.tally)
    }

    /// Seals what gathered and sends it from `source`.
    fn flush(&mut self, now: Time, tunnels: &mut Tunnels, source: Ipv4Addr) {
        let wire = &self.wire;
        let submit = |send: &mut SendArena, outgoing: Outgoing| {
            let bytes = &send.train(outgoing.train)[..outgoing.len];
            // What is lost is repeated, as on any path.
            let _ = wire.send(source, outgoing.target, bytes, outgoing.segment);
            send.free_train(outgoing.train);
        };
        self.outbox
            .flush(now, tunnels, &mut self.send, submit, &self.counters);
    }
}

/// What became of a requester in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Its tunnel came up.
    pub(super) established: bool,
    /// Its channel was opened.
    pub(super) opened: bool,
    /// Tasks that got their answer.
    pub(super) answered: u32,
}

/// The channel, from the grant to the end.
#[expect(
    clippy::large_enum_variant,
    reason = "all but a moment of its life it is open"
)]
enum Channel {
    None,
    Opening {
        grant: Box<[u8]>,
        credits: u32,
        due: Time,
        sends: u32,
    },
    Open {
        slots: Requesting,
        /// What the only tunnel may carry.
        congestion: Congestion,
    },
}

/// One requester.
pub(super) struct Requester {
    pub(super) node: NodeId,
    pub(super) identity: Arc<Identity>,
    pub(super) address: Ipv4Addr,
    tunnels: Tunnels,
    tunnel: Option<TunnelHandle>,
    path: PathSearch,
    /// While the tunnel is silent, its path is looked at again no sooner than this.
    path_again: Time,
    channel: Channel,
    last_heard: Time,
    ping_due: Time,
    /// The deadline that is in the generator's timers.
    pub(super) scheduled: Time,
    /// Answers since a turn was last given back, and turns that are out.
    pub(super) answers: u32,
    pub(super) turns_out: u32,
}

impl Requester {
    pub(super) fn new(node: NodeId, identity: Arc<Identity>, address: Ipv4Addr) -> Self {
        let tunnels = Tunnels::new(TunnelConfig {
            node,
            identity: Arc::clone(&identity),
            tunnels_max: 1,
            key_exchanges_per_second: KEY_EXCHANGES_PER_SECOND,
            beacon: None,
        });
        Requester {
            node,
            identity,
            address,
            tunnels,
            tunnel: None,
            path: PathSearch::new(usize::MAX),
            path_again: Time::ZERO,
            channel: Channel::None,
            last_heard: Time::ZERO,
            ping_due: Time::NEVER,
            scheduled: Time::NEVER,
            answers: 0,
            turns_out: 0,
        }
    }

    /// Begins the key exchange.
    pub(super) fn connect(
        &mut self,
        now: Time,
        peer: &Peer,
        shared: &mut Shared,
    ) -> Result<(), String> {
        let tunnel = self
            .tunnels
            .connect(peer.node, now, &mut entropy)
            .map_err(|reason| format!("no tunnel to node {}: {reason:?}", peer.node))?;
        self.tunnel = Some(tunnel);
        self.settle(now, peer, shared, &mut Step::default())
    }

    /// Presents a grant, as soon as the tunnel is up.
    pub(super) fn open(
        &mut self,
        now: Time,
        grant: Box<[u8]>,
        credits: u32,
        peer: &Peer,
        shared: &mut Shared,
    ) -> Result<(), String> {
        self.channel = Channel::Opening {
            grant,
            credits,
            due: now,
            sends: 0,
        };
        self.run_timers(now, peer, shared).map(drop)
    }

    /// Tasks without an answer.
    pub(super) fn outstanding(&self) -> u32 {
        match &self.channel {
            Channel::Open { slots, .. } => slots.outstanding(),
            _ => 0,
        }
    }

    /// Tasks that were sent more than once.
    pub(super) fn repeated(&self) -> u64 {
        match &self.channel {
            Channel::Open { slots, .. } => slots.totals().repeated,
            _ => 0,
        }
    }

    /// Sends up to `count` tasks in one go; how many.
    pub(super) fn burst(&mut self, now: Time, count: usize, shared: &mut Shared) -> usize {
        let (Channel::Open { slots, congestion }, Some(tunnel)) = (&mut self.channel, self.tunnel)
        else {
            return 0;
        };
        let mut sent = 0;
        while sent < count {
            let (mut sink, tally) = shared.sink(tunnel, self.path);
            let more = slots.pump(
                now,
                congestion,
                &mut sink,
                &mut Echo::new(tally),
                count - sent,
            );
            shared.flush(now, &mut self.tunnels, self.address);
            sent += more;
            if more == 0 {
                break;
            }
        }
        sent
    }

    /// The datagram of a train from the worker that begins at `start`.
    pub(super) fn receive(
        &mut self,
        now: Time,
        arrived: &Arrived,
        start: usize,
        shared: &mut Shared,
        step: &mut Step,
    ) -> Result<(), String> {
        let Shared {
            wire,
            tally,
            outbox,
            send,
            packing,
            ..
        } = shared;
        let datagram = wire.datagram(arrived, start);
        let from = arrived.from;
        match self.tunnels.receive(now, from, datagram, &mut entropy) {
            Received::Packet(opened) => {
                let header = &opened.header;
                if header.protocol != Protocol::Datagram || header.destination.port != TASK_PORT {
                    return Err(format!("a packet for port {}", header.destination.port));
                }
                self.last_heard = now;
                *outbox.path(opened.tunnel) = self.path;
                let mut sink = outbox.sink(send, opened.tunnel, *packing);
                for frame in Train::open(opened.payload).map_err(|why| format!("{why:?}"))? {
                    let frame = frame.map_err(|why| format!("{why:?}"))?;
                    match frame.kind {
                        Kind::Probe => {
                            let head = Head::channel(Kind::ProbeAck, CHANNEL, frame.auxiliary);
                            sink.send(head, &[]);
                        }
                        Kind::ProbeAck => {
                            // One that comes late says nothing.
                            let _ = self.path.acknowledged(now, frame.auxiliary);
                        }
                        _ => self.channel.frame(now, &frame, &mut sink, tally, step)?,
                    }
                }
                if step.opened {
                    self.path.begin(now);
                }
                Ok(())
            }
            Received::Handled => Ok(()),
            Received::Dropped(_) => {
                tally.dropped += 1;
                Ok(())
            }
        }
    }

    /// After datagrams or timers: sends what waits, and takes the tunnel's events.
    pub(super) fn settle(
        &mut self,
        now: Time,
        peer: &Peer,
        shared: &mut Shared,
        step: &mut Step,
    ) -> Result<(), String> {
        while let Some(event) = self.tunnels.poll_event() {
            match event {
                TunnelEvent::PeerKeyWanted(node) => {
                    let known = (node == peer.node).then_some(peer.key);
                    let endpoint = Some(peer.endpoint);
                    self.tunnels
                        .peer_key(node, known, endpoint, now, &mut entropy);
                }
                TunnelEvent::Established { .. } => {
                    step.established = true;
                    self.last_heard = now;
                    self.ping_due = now + PING_EVERY;
                }
                // It has no beacon.
                TunnelEvent::Rerouted { .. } => {}
                TunnelEvent::Lost { .. } => {
                    return Err(format!(
                        "the tunnel of node {} from {} was lost: the worker at {} does not answer",
                        self.node, self.address, peer.endpoint
                    ));
                }
            }
        }
        shared.flush(now, &mut self.tunnels, self.address);
        while let Some(transmit) = self.tunnels.poll_transmit(now, &mut shared.scratch) {
            let datagram = &shared.scratch[..transmit.len];
            // Key exchanges and keepalives are repeated too.
            let _ = shared
                .wire
                .send(self.address, transmit.to, datagram, transmit.len);
        }
        Ok(())
    }

    /// When [`Self::run_timers`] wants to be called.
    pub(super) fn deadline(&self) -> Time {
        let channel = match &self.channel {
            Channel::None => Time::NEVER,
            Channel::Opening { due, .. } => *due,
            Channel::Open { slots, .. } => slots
                .next_timeout()
                .min(self.ping_due)
                .min(self.path.due().max(self.path_again)),
        };
        self.tunnels.next_timeout().min(channel)
    }

    /// Does what is due.
    pub(super) fn run_timers(
        &mut self,
        now: Time,
        peer: &Peer,
        shared: &mut Shared,
    ) -> Result<Step, String> {
        if now >= self.tunnels.next_timeout() {
            self.tunnels.handle_timeout(now, &mut entropy);
        }
        if let Some(tunnel) = self.tunnel {
            self.run_channel_timers(now, tunnel, shared)?;
        }
        let mut step = Step::default();
        self.settle(now, peer, shared, &mut step)?;
        Ok(step)
    }

    fn run_channel_timers(
        &mut self,
        now: Time,
        tunnel: TunnelHandle,
        shared: &mut Shared,
    ) -> Result<(), String> {
        let (mut sink, _) = shared.sink(tunnel, self.path);
        match &mut self.channel {
            Channel::None => return Ok(()),
            Channel::Opening {
                grant,
                credits,
                due,
                sends,
            } => {
                if now >= *due {
                    if self.tunnels.is_established(tunnel) {
                        sink.send(Head::channel(Kind::Open, CHANNEL, *credits), grant);
                    }
                    *due = now + OPEN_AGAIN * (1 << (*sends).min(3));
                    *sends += 1;
                }
                return Ok(());
            }
            Channel::Open { slots, congestion } => {
                if now >= slots.next_timeout() {
                    let repeated = slots.totals().repeated;
                    slots.handle_timeout(now, congestion, &mut sink);
                    if slots.totals().repeated > repeated {
                        self.path.suspect();
                    }
                }
                if slots.is_lost(now) {
                    return Err(format!("the worker stopped answering node {}", self.node));
                }
            }
        }
        let silent = now.since(self.last_heard);
        if now >= self.ping_due {
            if silent >= PING_EVERY {
                sink.send(Head::channel(Kind::Ping, CHANNEL, 0), &[]);
            }
            self.ping_due = now + PING_EVERY;
        }
        if now >= self.path.due() {
            if silent >= CONFIRM_EVERY {
                self.path_again = now + CONFIRM_EVERY;
            } else if let Some(length) = self.path.next_probe(now) {
                shared.outbox.probe(&mut shared.send, tunnel, length);
            }
        }
        Ok(())
    }
}

impl Channel {
    fn frame(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        sink: &mut TunnelSink<'_>,
        tally: &mut Tally,
        step: &mut Step,
    ) -> Result<(), String> {
        match (frame.kind, &mut *self) {
            (Kind::Opened, Channel::Opening { credits, .. }) => {
                let granted = frame.auxiliary.min(*credits);
                *self = Channel::Open {
                    slots: Requesting::new(CHANNEL, granted, u64::MAX, now),
                    congestion: Congestion::new(now),
                };
                step.opened = true;
                Ok(())
            }
            // OPEN was repeated, and both were answered.
            (Kind::Opened | Kind::Pong, _) => Ok(()),
            (Kind::Ping, _) => {
                sink.send(Head::channel(Kind::Pong, CHANNEL, 0), &[]);
                Ok(())
            }
            (Kind::Close, _) if frame.flags & FROM_WORKER != 0 => Err(format!(
                "the worker closed a channel, reason {}",
                frame.auxiliary
            )),
            (_, Channel::Open { slots, congestion }) => {
                let answered = slots.answer(now, congestion, frame, sink, &mut Echo::new(tally));
                match answered {
                    Ok(Progressed::Answered(round_trip_ns)) => {
                        tally.time(round_trip_ns);
                        step.answered += 1;
                    }
                    Ok(Progressed::Noted) => {}
                    Err(_) => tally.dropped += 1,
                }
                Ok(())
            }
            _ => Err(format!("{:?} before the channel was open", frame.kind)),
        }
    }
}
