//! Key exchanges received, and nodes whose key the registry must tell first.
//!
//! A node that we do not know costs an entry in a small waiting list and one question to the
//! registry a second; it gets a tunnel when its announcement has verified, or when the registry
//! vouches for a node that seals datagrams to us under a key we do not hold.

use core::time::Duration;
use std::net::SocketAddr;

use super::exchange::{Exchange, Purpose};
use super::handshake::{LocalKey, verify};
use super::keys::own_prefix;
use super::peer::{Known, Tunnel};
use super::relay::Ways;
use super::{Entropy, Received, TunnelEvent, TunnelHandle, Tunnels};
use crate::fault::DropReason;
use crate::identity::PublicKey;
use crate::ids::NodeId;
use crate::time::Time;
use crate::wire::datagram::Announcement;

/// Nodes that wait for the registry's word.
pub(super) const WAITING_MAX: usize = 256;
/// Between two questions about one node.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long the registry's "unknown" is believed.
const UNKNOWN_FOR: Duration = Duration::from_secs(3);
/// A tunnel that was used this recently is not evicted.
const EVICT_AFTER: Duration = Duration::from_secs(60);
/// Silence of a live peer after which the registry's word about its address is believed.
const STALE_ENDPOINT_AFTER: Duration = Duration::from_secs(30);

/// A node that wants to speak and whose key is not known.
pub(super) struct Waiting {
    node: NodeId,
    /// Where it was heard; `None` if relayed.
    source: Option<SocketAddr>,
    announcement: Option<Announcement>,
    asked_at: Time,
    /// The registry does not know it either.
    unknown: bool,
}

impl Tunnels {
    /// The registry's word on a node: its key and, if known, its address. `None`: the registry
    /// does not know it, and what waited for it is given up.
    pub fn peer_key(
        &mut self,
        node: NodeId,
        key: Option<PublicKey>,
        endpoint: Option<SocketAddr>,
        now: Time,
        entropy: Entropy<'_>,
    ) {
        let position = self.waiting.iter().position(|waiting| waiting.node == node);
        let Some(key) = key else {
            if let Some(position) = position {
                self.waiting[position].unknown = true;
                self.waiting[position].announcement = None;
                self.waiting[position].asked_at = now;
            }
            if let Some(handle) = self.table.find(node) {
                self.give_up_unless_live(handle);
            }
            return;
        };
        if let Some(handle) = self.table.find(node) {
            let peer = self
                .table
                .tunnel_mut(handle)
                .expect("the index knows only tunnels");
            peer.identity = Some(key);
            peer.asks = 0;
            // What goes over the beacon leaves the address free for another try.
            let stale = peer.live.is_none()
                || peer.reach.relayed
                || now.since(peer.heard_at) >= STALE_ENDPOINT_AFTER;
            if stale && endpoint.is_some() {
                peer.endpoint = endpoint;
            } else if endpoint.is_some() && peer.endpoint != endpoint && peer.exchange.is_none() {
                // A peer that started anew on another port says nothing at the old one. What it
                // answers moves the tunnel; the word alone does not.
                peer.elsewhere = endpoint;
                peer.exchange = Some(Exchange::new(Purpose::Follow, now));
            }
            if peer.wanted
                && !peer
                    .exchange
                    .is_some_and(|open| open.purpose == Purpose::Dial)
            {
                peer.exchange = Some(Exchange::new(Purpose::Dial, now));
            }
            self.serve(handle, now, &mut *entropy);
        }
        let Some(position) = position else { return };
        let source = self.waiting[position].source;
        if let Some(announcement) = self.waiting[position].announcement.take() {
            // Its verdict has nobody to be counted by: the datagram was handled when it came.
            let _ = self.verified(&announcement, &key, source, endpoint, now, entropy);
        } else if self.table.find(node).is_none() && !self.table.is_full() {
            let handle = self.add(node, key, endpoint.or(source), now, entropy);
            let known = source.and(endpoint.or(source));
            let ways = self.ways(node, known, endpoint);
            self.answer(handle, ways, true, now);
        }
        // The entry stays while its question is fresh, so that the same question is not asked
        // again at once on behalf of whoever plays that node.
        self.waiting[position].unknown = false;
    }

    /// A key announcement.
    pub(super) fn announcement(
        &mut self,
        announcement: &Announcement,
        source: Option<SocketAddr>,
        now: Time,
        entropy: Entropy<'_>,
    ) -> Received<'static> {
        let node = announcement.sender;
        if node == self.node {
            return Received::Dropped(DropReason::FromSelf);
        }
        if !self.sources.take(source, node, now) {
            return Received::Dropped(DropReason::KeyExchangeLimited);
        }
        let known = self
            .table
            .find(node)
            .and_then(|handle| self.table.tunnel(handle)?.identity);
        let Some(identity) = known else {
            return self.introduced(node, source, Some(*announcement), now);
        };
        if announcement.identity != identity.0 {
            // The node may have changed its key at the registry: ask, and refuse until told.
            if self
                .introduce(node, source, Some(*announcement), now)
                .is_err()
            {
                return Received::Dropped(DropReason::KeyExchangeLimited);
            }
            return Received::Dropped(DropReason::WrongIdentity);
        }
        match self.verified(announcement, &identity, source, None, now, entropy) {
            Ok(()) => Received::Handled,
            Err(reason) => Received::Dropped(reason),
        }
    }

    /// A key request: answered by an announcement, to where the peer was authenticated if it is.
    pub(super) fn request(
        &mut self,
        node: NodeId,
        source: Option<SocketAddr>,
        now: Time,
    ) -> Received<'static> {
        if node == self.node {
            return Received::Dropped(DropReason::FromSelf);
        }
        if !self.sources.take(source, node, now) {
            return Received::Dropped(DropReason::KeyExchangeLimited);
        }
        let Some(handle) = self.table.find(node) else {
            return self.introduced(node, source, None, now);
        };
        let peer = self
            .table
            .tunnel(handle)
            .expect("the index knows only tunnels");
        let endpoint = peer.endpoint;
        let known = if peer.live.is_some() {
            source.and(endpoint)
        } else {
            source
        };
        let ways = self.ways(node, known, endpoint);
        if self.answer(handle, ways, false, now) {
            Received::Handled
        } else {
            Received::Dropped(DropReason::KeyExchangeLimited)
        }
    }

    /// Acts on an announcement whose Ed25519 key is the registry's.
    fn verified(
        &mut self,
        announcement: &Announcement,
        identity: &PublicKey,
        source: Option<SocketAddr>,
        endpoint: Option<SocketAddr>,
        now: Time,
        entropy: Entropy<'_>,
    ) -> Result<(), DropReason> {
        verify(announcement, identity)?;
        let handle = match self.table.find(announcement.sender) {
            Some(handle) => handle,
            None => {
                self.make_room(now)?;
                self.add(announcement.sender, *identity, endpoint, now, &mut *entropy)
            }
        };
        let ours = self.node;
        let peer = self.table.tunnel_mut(handle).expect("found or added");
        match peer.known(&announcement.key) {
            Known::Retired => Err(DropReason::Replay),
            Known::Live => {
                // The peer may have lost its session, or this is an echo. A ping before the
                // announcement lets a peer that has it see that no further answer is owed.
                let heard = now.since(peer.heard_at) < HEARD_RECENTLY;
                if (peer.rotating.is_none() && heard) || !peer.may_answer(now) {
                    return Err(DropReason::Duplicate);
                }
                let endpoint = peer.endpoint;
                let known = source.and(endpoint.or(source));
                let ways = self.ways(announcement.sender, known, endpoint);
                self.send_pings(handle, None, now);
                self.ping_live(handle, ways, now);
                self.announce(handle, ways, false, now);
                Ok(())
            }
            Known::Candidate => {
                if !peer.may_answer(now) {
                    return Err(DropReason::Duplicate);
                }
                let endpoint = peer.endpoint;
                let ways = self.ways(announcement.sender, source, endpoint);
                self.announce(handle, ways, false, now);
                self.send_pings(handle, None, now);
                Ok(())
            }
            Known::New => {
                let mut random = [0; 4];
                entropy(&mut random);
                let prefix = own_prefix(random, ours, announcement.sender);
                peer.add_candidate(announcement.key, prefix, source, now)?;
                // An exchange of ours has told the peer our key, or will; otherwise the peer is
                // not to be supposed to know it.
                let owed = match peer
                    .exchange
                    .get_or_insert(Exchange::new(Purpose::Answer, now))
                {
                    Exchange {
                        purpose: Purpose::Answer,
                        ..
                    } => peer.may_answer_request(now),
                    _ => peer.may_answer(now),
                };
                let endpoint = peer.endpoint;
                if owed {
                    let ways = self.ways(announcement.sender, source, endpoint);
                    self.announce(handle, ways, false, now);
                }
                self.send_pings(handle, None, now);
                self.reschedule(handle, now);
                Ok(())
            }
        }
    }

    /// Sends our announcement for an answer, if the peer's allowance permits; with a key request if
    /// we lack the peer's key.
    pub(super) fn answer(
        &mut self,
        handle: TunnelHandle,
        ways: Ways,
        request: bool,
        now: Time,
    ) -> bool {
        let Some(peer) = self.table.tunnel_mut(handle) else {
            return false;
        };
        if !peer.may_answer_request(now) {
            return false;
        }
        if peer.exchange.is_none() && peer.live.is_none() {
            peer.exchange = Some(Exchange::new(Purpose::Answer, now));
        }
        self.announce(handle, ways, request, now);
        self.reschedule(handle, now);
        true
    }

    fn introduced(
        &mut self,
        node: NodeId,
        source: Option<SocketAddr>,
        announcement: Option<Announcement>,
        now: Time,
    ) -> Received<'static> {
        match self.introduce(node, source, announcement, now) {
            Ok(()) => Received::Handled,
            Err(reason) => Received::Dropped(reason),
        }
    }

    /// Remembers that a node wants to speak, and asks the registry about it.
    pub(super) fn introduce(
        &mut self,
        node: NodeId,
        source: Option<SocketAddr>,
        announcement: Option<Announcement>,
        now: Time,
    ) -> Result<(), DropReason> {
        let known = self.waiting.iter_mut().find(|waiting| waiting.node == node);
        if let Some(waiting) = known {
            let pause = if waiting.unknown {
                UNKNOWN_FOR
            } else {
                ASK_AGAIN
            };
            let patient = now.since(waiting.asked_at) < pause;
            if waiting.unknown && patient {
                return Err(DropReason::UnknownPeer);
            }
            if announcement.is_some() {
                waiting.announcement = announcement;
                waiting.source = source;
            }
            if !patient {
                waiting.unknown = false;
                waiting.asked_at = now;
                self.ask(node);
            }
            return Ok(());
        }
        let waiting = Waiting {
            node,
            source,
            announcement,
            asked_at: now,
            unknown: false,
        };
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push(waiting);
        } else {
            // An entry whose question is old makes room, and for an announcement also one that
            // was made for a datagram that anybody could have written.
            let stale = |entry: &Waiting| now.since(entry.asked_at) >= ASK_AGAIN;
            let humble = |entry: &Waiting| entry.announcement.is_none() && announcement.is_some();
            let oldest = self
                .waiting
                .iter_mut()
                .filter(|entry| stale(entry) || humble(entry))
                .min_by_key(|entry| entry.asked_at);
            *oldest.ok_or(DropReason::KeyExchangeLimited)? = waiting;
        }
        self.ask(node);
        Ok(())
    }

    /// Asks the registry for a node's key.
    pub(super) fn ask(&mut self, node: NodeId) {
        // Questions are repeated by those who wait; only they may be left out.
        if self.events.len() < self.events_max {
            self.events.push_back(TunnelEvent::PeerKeyWanted(node));
        }
    }

    /// Makes room for one tunnel: a tunnel that never had a session and that nobody asked for
    /// goes first, then the least recently used one of those idle for a minute.
    pub(super) fn make_room(&mut self, now: Time) -> Result<(), DropReason> {
        if !self.table.is_full() {
            return Ok(());
        }
        let embryo = |peer: &Tunnel| !peer.wanted && peer.live.is_none();
        let idle = |peer: &Tunnel| now.since(peer.used_at) > EVICT_AFTER && !peer.wanted;
        let victim = self
            .table
            .iter()
            .filter(|(_, peer)| embryo(peer) || idle(peer))
            .min_by_key(|(_, peer)| (!embryo(peer), peer.used_at))
            .map(|(handle, _)| handle)
            .ok_or(DropReason::TunnelsFull)?;
        self.lose(victim);
        Ok(())
    }

    /// Adds a tunnel with a fresh key of ours; the caller has made room.
    pub(super) fn add(
        &mut self,
        node: NodeId,
        identity: impl Into<Option<PublicKey>>,
        endpoint: Option<SocketAddr>,
        now: Time,
        entropy: Entropy<'_>,
    ) -> TunnelHandle {
        let local = LocalKey::new(&self.identity, self.node, now, entropy);
        let mut tunnel = Tunnel::new(node, local, now);
        tunnel.identity = identity.into();
        tunnel.endpoint = endpoint;
        self.table.insert(tunnel)
    }
}

/// A peer that was heard within this time holds our key.
const HEARD_RECENTLY: Duration = Duration::from_secs(1);
