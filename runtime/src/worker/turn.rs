//! The worker loop: one turn is one walk through the ten rooms.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ramjet_proto::fault::DropReason;
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use ramjet_proto::tunnel::{Received, TunnelEvent, Tunnels};
use ramjet_proto::wire::limits::RECEIVED_LEN_MAX;

use super::arena::{ReceiveArena, TRAIN_DATAGRAMS_MAX};
use super::clock;
use super::counters::Counter;
use super::forward::{forward, misdirected, share};
use super::io::{Events, HARVEST_MAX, Incoming, Io, Outgoing};
use super::mailbox::Inbox;
use super::order::FairOrder;
use super::rooms::Rooms;
use super::spin::Spin;
use super::{Idle, WorkerPlan};
use crate::control::vocabulary::{Command, Report, Side};

/// Looks at the ring between two idle turns: about a microsecond, so that timers stay fine.
const SPINS_PER_TURN: usize = 64;
/// Longest sleep, so that the clock's reader is never far behind.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Longest sleep while a job may have new tasks and does not say when.
const JOB_POLL: Duration = Duration::from_micros(500);
/// Commands taken in one turn.
const COMMANDS_PER_TURN: usize = 64;
/// Most trains of one turn, those that arrive in its middle included.
const BATCH_MAX: usize = 4 * HARVEST_MAX;
/// Bytes opened before what they were answered with leaves, in the middle of a batch: while one end
/// works on the next stretch, the other has this one. A quarter of what is on its way, within these
/// bounds: a send costs some microseconds whatever its length, and a train is full at the upper one.
const STRETCH_LEN_MIN: usize = 20 << 10;
const STRETCH_LEN_MAX: usize = 60 << 10;
/// Send trains kept back for key exchanges when a burst fills the rest.
const TRAINS_RESERVED: usize = 8;

/// One worker: what its thread owns. The backend stands before the arenas it shares with the kernel,
/// so that it is dropped first.
pub(super) struct Worker<B: Io> {
    pub(super) io: B,
    pub(super) receive: ReceiveArena,
    pub(super) rooms: Rooms,
    pub(super) tunnels: Tunnels,
    pub(super) inbox: Arc<Inbox>,
    pub(super) peers: Vec<Arc<Inbox>>,
    pub(super) batch: Vec<Incoming>,
    /// In which order a batch is walked.
    pub(super) order: FairOrder,
    /// Arrivals in the middle of a batch, on their way into it.
    pub(super) late: Vec<Incoming>,
    pub(super) index: usize,
    pub(super) idle: Idle,
    pub(super) last_work: Time,
    /// What an adaptive worker has learned of its rests.
    pub(super) spin: Spin,
    pub(super) stop: bool,
}

/// How far the walk is in its stretch, in bytes.
struct Stretch {
    opened: usize,
    len: usize,
}

/// Fresh bytes for keys.
pub(super) fn entropy(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's entropy source");
}

impl<B: Io> Worker<B> {
    /// Turns until told to stop.
    ///
    /// # Errors
    /// What the kernel says when the backend cannot go on.
    pub(super) fn run(&mut self) -> std::io::Result<()> {
        let (mut worked, mut began) = (true, clock::now());
        while !self.stop {
            self.rooms.read_clock();
            let now = self.rooms.at;
            if worked {
                let busy_ns = now.nanos_since(began);
                self.rooms.counters.add(Counter::BusyNs, busy_ns);
            }
            let rested = !worked;
            began = now;
            worked = self.harvest();
            self.walk(now);
            worked |= self.hear_lines();
            worked |= self.read_mail(now);
            // The walk may have taken long.
            let now = now.max(self.rooms.at);
            worked |= self.rooms.pump(now);
            self.run_timers(now);
            self.drop_lines();
            worked |= self.flush(now);
            if worked {
                if rested {
                    self.spin.rested(began.since(self.last_work));
                }
                self.last_work = now;
                self.rooms.counters.add(Counter::Turns, 1);
                // A worker that sleeps at once hands over what it sends as it falls asleep.
                if self.may_spin() {
                    self.io.enter(None)?;
                }
            } else {
                self.rest(now)?;
            }
        }
        Ok(())
    }

    /// Room 1.
    fn harvest(&mut self) -> bool {
        let events = self
            .io
            .harvest(&mut self.receive, &mut self.rooms.send, &mut self.batch);
        self.count(events);
        self.order.arrange(&mut self.batch);
        if events.too_long > 0 {
            self.rooms.outbox.forget_paths(clock::now());
            self.rooms.channels.wake_all(clock::now());
        }
        self.rooms.packing.datagrams_max = self.io.train_datagrams_max();
        !self.batch.is_empty()
    }

    fn count(&self, events: Events) {
        let counters = &self.rooms.counters;
        if events.system_calls > 0 {
            counters.add(Counter::SystemCalls, u64::from(events.system_calls));
        }
        if events.send_failures > 0 {
            counters.drop_send(DropReason::SendFailed, u64::from(events.send_failures));
        }
        if events.out_of_buffers > 0 {
            counters.add(Counter::OutOfBuffers, u64::from(events.out_of_buffers));
        }
        counters.set(Counter::ReceiveBuffers, self.receive.given().into());
        counters.set(Counter::SendTrains, self.rooms.send.given().into());
    }

    /// Rooms 2 to 8, over every datagram of the batch.
    fn walk(&mut self, now: Time) {
        let mut place = 0;
        let arrived: usize = self.batch.iter().map(|incoming| incoming.len).sum();
        let mut stretch = Stretch {
            opened: 0,
            len: (self.rooms.on_the_way().max(arrived) / 4).clamp(STRETCH_LEN_MIN, STRETCH_LEN_MAX),
        };
        while place < self.batch.len() {
            let incoming = self.batch[place];
            self.train(now, &incoming, &mut stretch);
            self.io.release(&mut self.receive, incoming.buffer);
            place += 1;
            if self.rooms.send.free() < TRAINS_RESERVED {
                self.free_trains(now);
            }
        }
        self.batch.clear();
        self.rooms.wake_agents();
    }

    /// In the middle of a batch, more tunnels have something to say than there are trains: sends
    /// what gathered and takes the trains back. What arrives meanwhile joins the batch, as long as
    /// the batch stays bounded.
    fn free_trains(&mut self, now: Time) {
        self.flush(now);
        // An error here shows again at the end of the turn.
        let _ = self.io.enter(None);
        if self.batch.len() > BATCH_MAX - HARVEST_MAX {
            return;
        }
        let mut late = std::mem::take(&mut self.late);
        let events = self
            .io
            .harvest(&mut self.receive, &mut self.rooms.send, &mut late);
        self.count(events);
        self.batch.append(&mut late);
        self.late = late;
    }

    fn train(&mut self, now: Time, incoming: &Incoming, stretch: &mut Stretch) {
        let counters = Arc::clone(&self.rooms.counters);
        // Small datagrams fill a train before they fill its bytes.
        let stretch_len = stretch.len.min(TRAIN_DATAGRAMS_MAX * incoming.segment);
        let end = incoming.offset + incoming.len;
        let mut start = incoming.offset;
        // An empty datagram is still one.
        loop {
            let stop = (start + incoming.segment).min(end);
            counters.add(Counter::DatagramsReceived, 1);
            counters.add(Counter::BytesReceived, (stop - start) as u64);
            if incoming.truncated || stop - start > RECEIVED_LEN_MAX {
                counters.drop_datagram(DropReason::Truncated);
            } else {
                let datagram = &mut self.receive.buffer(incoming.buffer)[start..stop];
                if let Some(owner) = misdirected(datagram, self.index, self.peers.len()) {
                    forward(
                        &self.peers[owner],
                        incoming.source,
                        datagram,
                        &mut self.rooms,
                    );
                } else {
                    share(
                        &self.peers,
                        self.index,
                        incoming.source,
                        datagram,
                        &self.rooms,
                    );
                    open(
                        now,
                        &mut self.tunnels,
                        &mut self.rooms,
                        incoming.source,
                        datagram,
                    );
                }
            }
            stretch.opened += stop - start;
            if stretch.opened >= stretch_len {
                stretch.opened = 0;
                let now = clock::now();
                self.rooms.wake_agents();
                self.rooms.pump(now);
                self.flush(now);
                // An error here shows again at the end of the turn.
                let _ = self.io.enter(None);
            }
            start = stop;
            if start >= end {
                return;
            }
        }
    }

    /// Commands from control, tasks from the pool and from agents, datagrams from the other workers.
    fn read_mail(&mut self, now: Time) -> bool {
        let mut read = self.inbox.was_fed();
        while let Some(mut forwarded) = self.inbox.forwarded.pop() {
            read = true;
            self.rooms.counters.add(Counter::DatagramsReceived, 1);
            let source = forwarded.source;
            open(
                now,
                &mut self.tunnels,
                &mut self.rooms,
                source,
                &mut forwarded.bytes,
            );
        }
        self.rooms.wake_agents();
        while let Some(piece) = self.inbox.pieces.pop() {
            read = true;
            self.rooms.piece(&piece);
        }
        while let Some(job) = self.inbox.finished.pop() {
            read = true;
            // Its pieces were pushed before it.
            while let Some(piece) = self.inbox.pieces.pop() {
                self.rooms.piece(&piece);
            }
            self.rooms.finished(job);
        }
        for _ in 0..COMMANDS_PER_TURN {
            let Some(command) = self.inbox.commands.pop() else {
                break;
            };
            read = true;
            self.obey(now, command);
        }
        self.rooms.reporter.retry();
        if self.rooms.draining == Some(false)
            && self.rooms.running() == 0
            && self.rooms.boxes.away() == 0
        {
            self.rooms.draining = Some(true);
            let report = Report::Drained { worker: self.index };
            self.rooms.reporter.report(&self.rooms.counters, report);
        }
        read
    }

    fn obey(&mut self, now: Time, command: Command) {
        match command {
            Command::Peer {
                node,
                key,
                endpoint,
            } => {
                self.tunnels
                    .peer_key(node, key, endpoint, now, &mut entropy);
            }
            Command::Admit {
                peer,
                channel,
                terms,
            } => {
                if let Some(tunnel) = self.tunnels.find(peer) {
                    self.rooms.admit(now, tunnel, channel, terms);
                }
            }
            Command::Refuse {
                peer,
                channel,
                reason,
            } => {
                if let Some(tunnel) = self.tunnels.find(peer) {
                    self.rooms.refuse_channel(tunnel, channel, reason);
                }
            }
            Command::Engage {
                peer,
                terms,
                grant,
                job,
            } => {
                let tunnel = self.tunnels.connect(peer, now, &mut entropy).ok();
                self.rooms.engage(now, peer, tunnel, terms, grant, job);
            }
            Command::Receipt {
                engagement,
                receipt,
            } => {
                self.rooms.send_receipt(now, engagement, receipt);
            }
            Command::Countersign {
                engagement,
                receipt,
                covered,
            } => {
                self.rooms.send_countersigned(engagement, &receipt, covered);
            }
            Command::Extend {
                engagement,
                tasks,
                expires_at,
            } => {
                self.rooms.extend(engagement, tasks, expires_at);
            }
            Command::Close { engagement, reason } => {
                if let Some(place) = self.rooms.channels.of_either(engagement) {
                    self.rooms.close(now, place, reason);
                }
            }
            Command::Drain => self.rooms.drain(),
            Command::Beat => {
                let report = Report::Beat { worker: self.index };
                self.rooms.reporter.report(&self.rooms.counters, report);
            }
            Command::TakeHistograms(empty) => {
                let histograms = std::mem::replace(&mut self.rooms.histograms, empty);
                let report = Report::Histograms {
                    worker: self.index,
                    histograms,
                };
                self.rooms.reporter.report(&self.rooms.counters, report);
            }
            Command::Stream(command) => self.stream_command(now, command),
            Command::Stop => self.end_streams(now),
        }
    }

    fn run_timers(&mut self, now: Time) {
        if now >= self.tunnels.next_timeout() {
            self.tunnels.handle_timeout(now, &mut entropy);
        }
        while let Some(event) = self.tunnels.poll_event() {
            self.tunnel_event(now, event);
        }
        self.rooms.run_timers(now, &self.tunnels);
        self.rooms.run_stream_timers(now);
    }

    fn tunnel_event(&mut self, now: Time, event: TunnelEvent) {
        match event {
            TunnelEvent::PeerKeyWanted(node) => {
                let report = Report::PeerWanted { node };
                self.rooms.reporter.report(&self.rooms.counters, report);
            }
            TunnelEvent::Established { tunnel, peer } => {
                // The index may have had another tenant.
                let relayed = self.tunnels.is_relayed(tunnel);
                self.rooms.outbox.path(tunnel).reroute(now, relayed);
                self.rooms.channels.wake_tunnel(tunnel, now);
                self.rooms.streams_established(now, tunnel, peer);
            }
            TunnelEvent::Rerouted { tunnel, relayed } => {
                self.rooms.outbox.path(tunnel).reroute(now, relayed);
                self.rooms.channels.wake_tunnel(tunnel, now);
            }
            TunnelEvent::Lost { peer } => {
                self.rooms.peer_lost(peer);
                self.rooms.streams_lost(now, peer);
            }
        }
    }

    /// Rooms 9 and 10: seals what gathered, and sends it with the tunnels' own datagrams.
    pub(super) fn flush(&mut self, now: Time) -> bool {
        let (rooms, io) = (&mut self.rooms, &mut self.io);
        let mut sent = rooms.outbox.flush(
            now,
            &mut self.tunnels,
            &mut rooms.send,
            |send, outgoing| io.submit(send, outgoing),
            &rooms.counters,
        );
        while let Some(train) = rooms.send.take() {
            let space = rooms.send.train(train);
            let Some(transmit) = self.tunnels.poll_transmit(now, space) else {
                rooms.send.free_train(train);
                break;
            };
            sent = true;
            rooms.counters.add(Counter::TrainsSent, 1);
            rooms.counters.add(Counter::DatagramsSent, 1);
            rooms.counters.add(Counter::BytesSent, transmit.len as u64);
            let outgoing = Outgoing {
                train,
                len: transmit.len,
                segment: transmit.len,
                target: transmit.to,
                probe: false,
            };
            self.io.submit(&mut rooms.send, outgoing);
        }
        sent
    }

    /// Whether a turn without work is spent spinning.
    fn may_spin(&self) -> bool {
        match self.idle {
            Idle::Spin => true,
            Idle::Adaptive => self.spin.pays(),
            Idle::Park => false,
        }
    }

    /// Nothing to do: spins or sleeps, as the policy says.
    fn rest(&mut self, now: Time) -> std::io::Result<()> {
        let spins = match self.idle {
            Idle::Spin => true,
            Idle::Adaptive => self.spin.lasts(now.since(self.last_work)),
            Idle::Park => false,
        };
        if spins {
            for _ in 0..SPINS_PER_TURN {
                if self.io.is_ready() || !self.inbox.is_empty() {
                    break;
                }
                std::hint::spin_loop();
            }
            return self.io.enter(None);
        }
        self.inbox.waker.falling_asleep();
        if self.inbox.is_empty() {
            let rooms = &self.rooms;
            let due = self.tunnels.next_timeout();
            let due = due.min(rooms.channels.next_wake()).min(rooms.pacing_due);
            let due = due.min(rooms.streams.next_due(clock::now()));
            let longest = if rooms.polling { JOB_POLL } else { SLEEP_MAX };
            let wait = due.since(clock::now()).min(longest);
            self.rooms.counters.add(Counter::Parks, 1);
            self.io.enter(Some(wait))?;
        } else {
            self.io.enter(None)?;
        }
        self.inbox.waker.awake();
        Ok(())
    }
}

/// Rooms 2 and 3 for one datagram, and on to room 4.
fn open(
    now: Time,
    tunnels: &mut Tunnels,
    rooms: &mut Rooms,
    source: SocketAddr,
    datagram: &mut [u8],
) {
    match tunnels.receive(now, source, datagram, &mut entropy) {
        Received::Packet(opened) => rooms.packet(now, &opened),
        Received::Handled => rooms.counters.add(Counter::DatagramsHandled, 1),
        Received::Dropped(reason) => rooms.counters.drop_datagram(reason),
    }
}

impl<B: Io> Worker<B> {
    /// What a plan and a backend make.
    pub(super) fn new(
        plan: &WorkerPlan,
        io: B,
        receive: ReceiveArena,
        rooms: Rooms,
        tunnels: Tunnels,
        inbox: Arc<Inbox>,
        peers: Vec<Arc<Inbox>>,
    ) -> Self {
        Worker {
            io,
            receive,
            rooms,
            tunnels,
            inbox,
            peers,
            batch: Vec::with_capacity(BATCH_MAX),
            order: FairOrder::default(),
            late: Vec::with_capacity(HARVEST_MAX),
            index: plan.index,
            idle: plan.idle,
            last_work: Time::ZERO,
            spin: Spin::new(),
            stop: false,
        }
    }
}

impl Rooms {
    /// About how many bytes of our own tasks are out, or of their answers.
    fn on_the_way(&self) -> usize {
        self.outstanding * self.frame_len
    }

    /// A renewal: new limits on whichever side we are.
    fn extend(
        &mut self,
        engagement: ramjet_proto::ids::EngagementId,
        tasks: u64,
        expires_at: Time,
    ) {
        use super::channels::End;
        for side in [Side::Requester, Side::Worker] {
            let Some(place) = self.channels.of_engagement(engagement, side) else {
                continue;
            };
            let Some(channel) = self.channels.at_mut(place) else {
                continue;
            };
            channel.terms.tasks = tasks;
            channel.terms.expires_at = expires_at;
            match &mut channel.end {
                End::Request(end) => {
                    if let Some(slots) = &mut end.slots {
                        slots.extend(tasks);
                    }
                }
                End::Serve(end) => {
                    if let Some(slots) = &mut end.slots {
                        slots.extend(tasks, expires_at);
                    }
                }
            }
        }
    }

    /// Takes no new channel and no new task.
    fn drain(&mut self) {
        use super::channels::End;
        self.draining.get_or_insert(false);
        for place in self.channels.places() {
            if let Some(channel) = self.channels.at_mut(place)
                && let End::Serve(end) = &mut channel.end
                && let Some(slots) = &mut end.slots
            {
                slots.drain();
            }
        }
    }

    /// The tunnel to a peer could not be established, or was given up.
    fn peer_lost(&mut self, peer: NodeId) {
        for place in self.channels.places() {
            if self
                .channels
                .at(place)
                .is_some_and(|channel| channel.peer == peer)
            {
                self.end(place, crate::control::vocabulary::CloseReason::Lost);
            }
        }
    }
}
