//! The type that a worker drives: connect, receive, poll.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::exchange::{Exchange, Purpose};
use super::introduce::{WAITING_MAX, Waiting};
use super::limit::SourceLimits;
use super::outbox::Outbox;
use super::relay::{Punches, Route};
use super::table::Table;
use super::timers::Timers;
use super::{Entropy, Received, Transmit, TunnelConfig, TunnelEvent, TunnelHandle};
use crate::fault::DropReason;
use crate::identity::Identity;
use crate::ids::NodeId;
use crate::time::Time;
use crate::wire::beacon::BeaconMessage;
use crate::wire::datagram::{Datagram, PUNCH};
use crate::wire::limits::RECEIVED_LEN_MAX;

use core::time::Duration;

/// Between two discover messages: the beacon forgets after ten minutes, NAT tables earlier.
const DISCOVER_EVERY: Duration = Duration::from_secs(60);
/// Punches for one command.
const PUNCHES: usize = 3;

/// Every tunnel of one worker.
///
/// Feed it with [`receive`](Tunnels::receive), [`connect`](Tunnels::connect),
/// [`peer_key`](Tunnels::peer_key) and [`handle_timeout`](Tunnels::handle_timeout); seal with
/// [`seal`](Tunnels::seal). After a batch of these, drain
/// [`poll_transmit`](Tunnels::poll_transmit) and [`poll_event`](Tunnels::poll_event) until both
/// answer `None`, then wait until [`next_timeout`](Tunnels::next_timeout) at most.
///
/// All tables are allocated by [`new`](Tunnels::new). Key exchanges allocate their keys; receiving
/// and sealing packets allocates nothing.
pub struct Tunnels {
    pub(super) node: NodeId,
    pub(super) identity: Arc<Identity>,
    pub(super) table: Table,
    pub(super) outbox: Outbox,
    pub(super) events: VecDeque<TunnelEvent>,
    pub(super) events_max: usize,
    pub(super) timers: Timers,
    pub(super) sources: SourceLimits,
    pub(super) waiting: Vec<Waiting>,
    /// Plaintext of a datagram whose session is yet to be found.
    pub(super) scratch: Box<[u8]>,
    pub(super) beacon: BeaconLink,
}

/// The beacon, and what it told.
pub(super) struct BeaconLink {
    pub(super) address: Option<SocketAddr>,
    pub(super) punches: Punches,
    discover_at: Time,
    observed: Option<SocketAddr>,
}

impl BeaconLink {
    /// Whether there is one.
    pub(super) fn is_some(&self) -> bool {
        self.address.is_some()
    }

    pub(super) fn next_discover(&self) -> Time {
        if self.address.is_some() {
            self.discover_at
        } else {
            Time::NEVER
        }
    }
}

impl Tunnels {
    /// Allocates every table.
    ///
    /// # Panics
    /// If `tunnels_max` is 0 or 2^30 and more: configuration is checked before.
    pub fn new(config: TunnelConfig) -> Self {
        assert!(config.tunnels_max > 0);
        assert!(config.tunnels_max < 1 << 30);
        let events_max = 1_024 + 2 * config.tunnels_max;
        Tunnels {
            node: config.node,
            identity: config.identity,
            table: Table::new(config.tunnels_max),
            outbox: Outbox::default(),
            events: VecDeque::with_capacity(events_max),
            events_max,
            timers: Timers::with_capacity(config.tunnels_max),
            sources: SourceLimits::new(config.key_exchanges_per_second),
            waiting: Vec::with_capacity(WAITING_MAX),
            scratch: vec![0; RECEIVED_LEN_MAX].into_boxed_slice(),
            beacon: BeaconLink {
                address: config.beacon,
                punches: Punches::default(),
                discover_at: Time::ZERO,
                observed: None,
            },
        }
    }

    /// Wants a session with `node`: returns the handle at once. The key exchange starts when the
    /// registry's key and an address are known; [`TunnelEvent::Established`] or
    /// [`TunnelEvent::Lost`] tells how it ended. A tunnel that is up already is left as it is.
    ///
    /// # Errors
    /// [`DropReason::FromSelf`] for our own node, [`DropReason::TunnelsFull`].
    pub fn connect(
        &mut self,
        node: NodeId,
        now: Time,
        entropy: Entropy<'_>,
    ) -> Result<TunnelHandle, DropReason> {
        if node == self.node {
            return Err(DropReason::FromSelf);
        }
        let handle = match self.table.find(node) {
            Some(handle) => handle,
            None => {
                self.make_room(now)?;
                self.add(node, None, None, now, &mut *entropy)
            }
        };
        let peer = self.table.tunnel_mut(handle).expect("found or added");
        peer.used_at = now;
        if peer.live.is_none() && !peer.wanted {
            peer.wanted = true;
            peer.asks = 0;
            peer.exchange = Some(Exchange::new(Purpose::Dial, now));
            self.serve(handle, now, entropy);
        }
        Ok(handle)
    }

    /// The tunnel to `node`, whether or not it is up.
    pub fn find(&self, node: NodeId) -> Option<TunnelHandle> {
        self.table.find(node)
    }

    /// The node at the other end; `None` if the handle is stale.
    pub fn peer(&self, tunnel: TunnelHandle) -> Option<NodeId> {
        Some(self.table.tunnel(tunnel)?.node)
    }

    /// Whether packets can be sealed.
    pub fn is_established(&self, tunnel: TunnelHandle) -> bool {
        self.table
            .tunnel(tunnel)
            .is_some_and(|peer| peer.live.is_some())
    }

    /// The peer's own address: where it was authenticated last, or the registry's word. Where to send
    /// is [`Self::route`]'s to say.
    pub fn endpoint(&self, tunnel: TunnelHandle) -> Option<SocketAddr> {
        self.table.tunnel(tunnel)?.endpoint
    }

    /// The address at which the beacon saw us last.
    pub fn observed_endpoint(&self) -> Option<SocketAddr> {
        self.beacon.observed
    }

    /// Every tunnel: its peer, where that is, and whether a session is up.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, Option<SocketAddr>, bool)> {
        let tunnels = self.table.iter();
        tunnels.map(|(_, tunnel)| (tunnel.node, tunnel.endpoint, tunnel.live.is_some()))
    }

    /// How many tunnels the table holds.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether the table holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One datagram from `source`, decrypted in place. (Rooms 2 and 3.)
    pub fn receive<'b>(
        &mut self,
        now: Time,
        source: SocketAddr,
        datagram: &'b mut [u8],
        entropy: Entropy<'_>,
    ) -> Received<'b> {
        match Datagram::parse(datagram) {
            Ok(Datagram::Sealed(sealed)) => self.open_sealed(now, Some(source), sealed, entropy),
            Ok(Datagram::Announcement(announcement)) => {
                self.announcement(&announcement, Some(source), now, entropy)
            }
            Ok(Datagram::Request(node)) => self.request(node, Some(source), now),
            Ok(Datagram::Plaintext) => Received::Dropped(DropReason::Plaintext),
            // It has opened a hole in somebody's NAT by arriving; there is nothing in it.
            Ok(Datagram::Punch) => Received::Handled,
            Ok(Datagram::Beacon(message)) if self.beacon.address == Some(source) => {
                self.beacon_message(now, message, entropy)
            }
            Ok(Datagram::Beacon(_)) => Received::Dropped(DropReason::BadBeacon),
            Err(reason) => Received::Dropped(reason),
        }
    }

    /// The next datagram of the tunnels' own to send, written to `out`; `None` when there is no
    /// more now. `out` holds at least [`DATAGRAM_LEN_MAX`](crate::wire::limits::DATAGRAM_LEN_MAX)
    /// bytes.
    ///
    /// # Panics
    /// If `out` is too short for the datagram.
    pub fn poll_transmit(&mut self, now: Time, out: &mut [u8]) -> Option<Transmit> {
        self.discover(now);
        self.outbox.pop(out)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<TunnelEvent> {
        self.events.pop_front()
    }

    // ---- beacon --------------------------------------------------------------------------------

    fn beacon_message<'b>(
        &mut self,
        now: Time,
        message: &'b mut [u8],
        entropy: Entropy<'_>,
    ) -> Received<'b> {
        match BeaconMessage::parse(message) {
            Ok(BeaconMessage::DiscoverReply { observed }) => {
                self.beacon.observed = Some(observed);
                Received::Handled
            }
            Ok(BeaconMessage::PunchCommand { to }) => {
                let punch = Route::direct(to);
                let queued = (0..PUNCHES).all(|_| self.outbox.push(punch, &PUNCH));
                self.try_commanded(to, now);
                if queued {
                    Received::Handled
                } else {
                    Received::Dropped(DropReason::NoSendBuffer)
                }
            }
            Ok(BeaconMessage::Deliver { datagram, .. }) => self.relayed(now, datagram, entropy),
            // Whoever waits for a handshake asks the registry in its own time.
            Ok(BeaconMessage::Notice { .. }) => Received::Handled,
            Ok(_) => Received::Dropped(DropReason::BadBeacon),
            Err(reason) => Received::Dropped(reason),
        }
    }

    /// A datagram that the beacon passed on: as any other, but nobody's endpoint is learned.
    fn relayed<'b>(
        &mut self,
        now: Time,
        datagram: &'b mut [u8],
        entropy: Entropy<'_>,
    ) -> Received<'b> {
        match Datagram::parse(datagram) {
            Ok(Datagram::Sealed(sealed)) => self.open_sealed(now, None, sealed, entropy),
            Ok(Datagram::Announcement(announcement)) => {
                self.announcement(&announcement, None, now, entropy)
            }
            Ok(Datagram::Request(node)) => self.request(node, None, now),
            Ok(Datagram::Plaintext) => Received::Dropped(DropReason::Plaintext),
            Ok(Datagram::Punch | Datagram::Beacon(_)) => Received::Dropped(DropReason::BadBeacon),
            Err(reason) => Received::Dropped(reason),
        }
    }

    /// Tells the beacon where we are, when it is time.
    pub(super) fn discover(&mut self, now: Time) {
        let Some(beacon) = self
            .beacon
            .address
            .filter(|_| now >= self.beacon.discover_at)
        else {
            return;
        };
        self.beacon.discover_at = now + DISCOVER_EVERY;
        let message = BeaconMessage::Discover { node: self.node };
        self.outbox.push_with(Route::direct(beacon), |space| {
            message.write(space).expect("5 bytes fit")
        });
    }

    /// Asks the beacon to make us and `target` punch; whether the question is on its way.
    pub(super) fn send_punch_request(&mut self, target: NodeId) -> bool {
        let Some(beacon) = self.beacon.address else {
            return false;
        };
        let message = BeaconMessage::PunchRequest {
            requester: self.node,
            target,
        };
        self.outbox.push_with(Route::direct(beacon), |space| {
            message.write(space).expect("9 bytes fit")
        })
    }
}
