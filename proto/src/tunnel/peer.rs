//! One tunnel: its keys, its sessions, what confirms and what retires them.
//!
//! A session is the key of one of our X25519 keys with one of the peer's, and up to five exist:
//!
//! | session | ours | theirs | seals | opens | becomes |
//! |---|---|---|---|---|---|
//! | live | current | confirmed | all traffic | yes | previous, when another is confirmed |
//! | previous | superseded | superseded | no | for 5 s | nothing |
//! | rotating | announced | confirmed | pings | once | live |
//! | candidate (2) | announced or current | announced | pings | once | live, or forgotten after 10 s |
//!
//! The first datagram that opens under a rotating or candidate session confirms it. Since that
//! takes a key that only the peer holds *now*, a recorded announcement can add a candidate and
//! nothing else: it moves neither traffic nor the endpoint. A key of the peer that was confirmed
//! and superseded is remembered as retired and refused from then on, so that a session whose
//! datagrams were recorded is never created again; the list of retired keys is per key of ours,
//! and when it is full our key is rotated.

use core::time::Duration;
use std::net::SocketAddr;

use super::exchange::{Exchange, Purpose};
use super::handshake::LocalKey;
use super::keys::{NonceCounter, SessionKey};
use super::limit::{Bucket, Rate};
use super::relay::Reach;
use super::replay::ReplayWindow;
use crate::fault::DropReason;
use crate::identity::PublicKey;
use crate::ids::NodeId;
use crate::time::Time;
use crate::wire::datagram::Sealed;
use crate::wire::limits::TAG_LEN;

/// How long datagrams that were sealed before a rekey are still opened.
pub(super) const PREVIOUS_FOR: Duration = Duration::from_secs(5);
/// How long an announced key waits for the first datagram under it.
pub(super) const CANDIDATE_FOR: Duration = Duration::from_secs(10);
/// Datagrams under one key of ours, far below the 2^32 that AES-GCM allows.
pub(super) const ROTATE_PACKETS: u64 = 1 << 28;
/// Age of one key of ours.
pub(super) const ROTATE_AFTER: Duration = Duration::from_secs(2 * 60 * 60);
/// A tunnel without packets of the caller for this long may have no deadline but its rotation.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(15);
/// Announcements that one peer can draw from us beyond our own schedule.
const ANSWERS: Rate = Rate::new(Duration::from_secs(1), 4);
/// An announcement this fresh need not be repeated for an answer.
const ANSWER_SPACING: Duration = Duration::from_millis(50);
/// Nonce prefixes of the peer under one session before our key is rotated …
const PREFIXES_ROTATE: usize = 4;
/// … and before another is refused.
const PREFIXES_MAX: usize = 8;
/// Superseded keys of the peer that are remembered for one key of ours.
const RETIRED_MAX: usize = 8;

/// Sessions that exist at a time: see the table above.
const SESSIONS_MAX: usize = 5;
/// What the cipher library allocates for an AES-256-GCM key or an X25519 key, rounded up.
const KEY_OBJECT_LEN_MAX: usize = 1_024;

/// What one tunnel may take in memory: itself, both keys of ours, and every session with every window.
pub(super) const TUNNEL_LEN_MAX: usize = size_of::<Tunnel>()
    + 2 * KEY_OBJECT_LEN_MAX
    + RETIRED_MAX * 32
    + SESSIONS_MAX
        * (size_of::<Session>()
            + KEY_OBJECT_LEN_MAX
            + PREFIXES_MAX * size_of::<([u8; 4], ReplayWindow)>());

/// A key shared with the peer and what was received under it.
pub(super) struct Session {
    pub(super) key: SessionKey,
    /// Of our nonces.
    pub(super) prefix: [u8; 4],
    /// The peer's X25519 key.
    pub(super) remote: [u8; 32],
    /// Where the announcement came from, if it came directly; nothing to go by once the session is
    /// live.
    pub(super) endpoint: Option<SocketAddr>,
    /// Made with the announced key of ours instead of the current one.
    of_next: bool,
    /// When it was created or superseded.
    pub(super) since: Time,
    windows: Vec<([u8; 4], ReplayWindow)>,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Live,
    Previous,
    Rotating,
    Candidate(usize),
}

/// What is known of an announced key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It was confirmed and superseded.
    Retired,
    /// The live session uses it.
    Live,
    /// A candidate uses it.
    Candidate,
    /// Nothing.
    New,
}

/// A tunnel to one node.
pub(super) struct Tunnel {
    pub(super) node: NodeId,
    /// The registry's key for the node.
    pub(super) identity: Option<PublicKey>,
    /// Where the peer was authenticated last, or where the registry says it is.
    pub(super) endpoint: Option<SocketAddr>,
    /// Where else the registry says a peer with a session is, while it is looked for there.
    pub(super) elsewhere: Option<SocketAddr>,
    pub(super) reach: Reach,
    pub(super) live: Option<Box<Session>>,
    pub(super) previous: Option<Box<Session>>,
    pub(super) rotating: Option<Box<Session>>,
    pub(super) candidates: [Option<Box<Session>>; 2],
    local: LocalKey,
    next: Option<LocalKey>,
    retired: Vec<[u8; 32]>,
    pub(super) exchange: Option<Exchange>,
    /// The caller asked for a session that is not up yet.
    pub(super) wanted: bool,
    answers: Bucket,
    announced_at: Option<Time>,
    /// When something of the peer was authenticated last.
    pub(super) heard_at: Time,
    /// When something was sealed for it last.
    pub(super) sent_at: Time,
    /// When a packet of the caller passed last, either way.
    pub(super) used_at: Time,
    /// Datagrams that did not open, since the last that did.
    pub(super) failures: u32,
    /// When the registry was asked for the peer's key last.
    pub(super) asked_at: Option<Time>,
    /// Questions to the registry without an answer.
    pub(super) asks: u32,
    /// Earliest next rotation.
    pub(super) rotate_at: Time,
    must_rotate: bool,
    /// The deadline that is in the timers.
    pub(super) scheduled: Time,
}

impl Tunnel {
    pub(super) fn new(node: NodeId, local: LocalKey, now: Time) -> Self {
        Tunnel {
            node,
            identity: None,
            endpoint: None,
            elsewhere: None,
            reach: Reach::new(now),
            live: None,
            previous: None,
            rotating: None,
            candidates: [None, None],
            local,
            next: None,
            retired: Vec::new(),
            exchange: None,
            wanted: false,
            answers: Bucket::default(),
            announced_at: None,
            heard_at: now,
            sent_at: now,
            used_at: now,
            failures: 0,
            asked_at: None,
            asks: 0,
            rotate_at: now,
            must_rotate: false,
            scheduled: Time::NEVER,
        }
    }

    // ---- opening -------------------------------------------------------------------------------

    /// Decrypts a datagram in place and says under which session, and whether its counter is the
    /// newest there. The plaintext stands at the front of the body.
    pub(super) fn open(
        &mut self,
        sealed: &mut Sealed<'_>,
        scratch: &mut [u8],
    ) -> Result<(Place, bool), DropReason> {
        for (place, session) in [
            (Place::Live, &mut self.live),
            (Place::Previous, &mut self.previous),
        ] {
            let Some(session) = session else { continue };
            let known = session
                .windows
                .iter_mut()
                .find(|(prefix, _)| *prefix == sealed.prefix);
            if let Some((prefix, window)) = known {
                window.check(sealed.counter)?;
                let nonce = (*prefix, sealed.counter);
                return match session.key.open(nonce, sealed.sender, sealed.body) {
                    Some(_) => Ok((place, window.commit(sealed.counter))),
                    None => Err(DropReason::BadTag),
                };
            }
        }
        self.open_new_prefix(sealed, scratch)
    }

    /// A prefix that no window knows: every session is tried, on a copy.
    fn open_new_prefix(
        &mut self,
        sealed: &mut Sealed<'_>,
        scratch: &mut [u8],
    ) -> Result<(Place, bool), DropReason> {
        let nonce = (sealed.prefix, sealed.counter);
        let length = sealed
            .body
            .len()
            .checked_sub(TAG_LEN)
            .ok_or(DropReason::TooShort)?;
        let plaintext = scratch.get_mut(..length).ok_or(DropReason::TooLong)?;
        let [first, second] = &mut self.candidates;
        let mut any = false;
        for (place, session) in [
            (Place::Rotating, &mut self.rotating),
            (Place::Candidate(0), first),
            (Place::Candidate(1), second),
            (Place::Live, &mut self.live),
            (Place::Previous, &mut self.previous),
        ] {
            let Some(session) = session else { continue };
            any = true;
            if !session
                .key
                .open_apart(nonce, sealed.sender, sealed.body, plaintext)
            {
                continue;
            }
            // The peer counts anew under another prefix, again and again: without a window for
            // each, what was recorded under the first would be fresh under the last.
            self.must_rotate |= session.windows.len() >= PREFIXES_ROTATE;
            if session.windows.len() == PREFIXES_MAX {
                return Err(DropReason::OutsideWindow);
            }
            let mut window = ReplayWindow::new();
            let newest = window.commit(sealed.counter);
            // A second prefix is rare, and a window is the largest part of a session.
            session.windows.reserve_exact(1);
            session.windows.push((sealed.prefix, window));
            sealed.body[..length].copy_from_slice(plaintext);
            // One chance in 2^32, and one too many: both ends count under one prefix.
            self.must_rotate |= session.prefix == sealed.prefix;
            return Ok((place, newest));
        }
        Err(if any {
            DropReason::BadTag
        } else {
            DropReason::NoSession
        })
    }

    /// Makes the session at `place` the live one; answers whether there was none before.
    pub(super) fn confirm(&mut self, place: Place, now: Time) -> bool {
        let session = match place {
            Place::Rotating => self.rotating.take(),
            Place::Candidate(index) => self.candidates[index].take(),
            Place::Live | Place::Previous => None,
        };
        let mut session = session.expect("a session was opened at this place");
        if session.of_next {
            self.local = self.next.take().expect("the session was made with it");
            self.rotating = None;
            self.retired.clear();
            self.must_rotate = false;
            self.rotate_at = now;
        }
        for candidate in &mut self.candidates {
            // Made with a key of ours that is no longer told to anybody.
            candidate.take_if(|candidate| candidate.of_next != session.of_next);
            if let Some(candidate) = candidate {
                candidate.of_next = false;
            }
        }
        session.of_next = false;
        let remote = session.remote;
        let Some(mut old) = self.live.replace(session) else {
            return true;
        };
        if old.remote != remote {
            self.retire(old.remote);
        }
        old.since = now;
        self.previous = Some(old);
        false
    }

    fn retire(&mut self, remote: [u8; 32]) {
        if self.retired.len() == RETIRED_MAX {
            self.retired.remove(0);
        }
        self.retired.push(remote);
        self.must_rotate |= self.retired.len() == RETIRED_MAX;
    }

    // ---- announcements -------------------------------------------------------------------------

    /// What is known of a key that the peer announces.
    pub(super) fn known(&self, remote: &[u8; 32]) -> Known {
        let uses = |session: &Option<Box<Session>>| {
            session
                .as_ref()
                .is_some_and(|session| session.remote == *remote)
        };
        if self.retired.contains(remote) {
            Known::Retired
        } else if uses(&self.live) {
            Known::Live
        } else if self.candidates.iter().any(uses) {
            Known::Candidate
        } else {
            Known::New
        }
    }

    /// Adds a candidate session for a key that the peer announced, in place of the older one if
    /// there are two.
    ///
    /// # Errors
    /// [`DropReason::BadSignature`] if the key is a point of low order.
    pub(super) fn add_candidate(
        &mut self,
        remote: [u8; 32],
        prefix: [u8; 4],
        endpoint: Option<SocketAddr>,
        now: Time,
    ) -> Result<(), DropReason> {
        let session = Session {
            key: self
                .announced()
                .session_key(&remote)
                .ok_or(DropReason::BadSignature)?,
            prefix,
            remote,
            endpoint,
            of_next: self.next.is_some(),
            since: now,
            windows: Vec::new(),
        };
        let [first, second] = &mut self.candidates;
        let since = |session: &Option<Box<Session>>| session.as_ref().map(|session| session.since);
        let place = if since(first) <= since(second) {
            first
        } else {
            second
        };
        *place = Some(Box::new(session));
        Ok(())
    }

    /// Whether a key of ours has served its time, or must go for a better reason, and nothing
    /// stands against announcing another now.
    pub(super) fn rotation_due(&self, now: Time) -> bool {
        let worn = self.must_rotate
            || self.next.is_some()
            || self.local.counter.used() >= ROTATE_PACKETS
            || now.since(self.local.since) >= ROTATE_AFTER;
        worn && now >= self.rotate_at && self.live.is_some() && self.is_quiet()
    }

    /// No key exchange is under way.
    fn is_quiet(&self) -> bool {
        self.exchange.is_none() && self.candidates.iter().all(Option::is_none)
    }

    /// Begins to replace our key, or goes on if the last attempt was not answered: a key that was
    /// announced once is never forgotten, because the peer may have taken it.
    pub(super) fn rotate(&mut self, fresh: impl FnOnce() -> (LocalKey, [u8; 4]), now: Time) {
        if self.next.is_none() {
            let (next, prefix) = fresh();
            let live = self.live.as_ref().expect("only a live session is rotated");
            if let Some(key) = next.session_key(&live.remote) {
                self.rotating = Some(Box::new(Session {
                    key,
                    prefix,
                    remote: live.remote,
                    endpoint: None,
                    of_next: true,
                    since: now,
                    windows: Vec::new(),
                }));
                self.next = Some(next);
            }
        }
        self.exchange = Some(Exchange::new(Purpose::Rotate, now));
    }

    /// The key of ours that the peer should know: the newest.
    pub(super) fn announced(&self) -> &LocalKey {
        self.next.as_ref().unwrap_or(&self.local)
    }

    /// Notes that our key was announced.
    pub(super) fn note_announced(&mut self, now: Time) {
        self.announced_at = Some(now);
    }

    /// Whether another announcement may be sent for an answer to an announcement.
    pub(super) fn may_answer(&mut self, now: Time) -> bool {
        let fresh = self
            .announced_at
            .is_some_and(|at| now.since(at) < ANSWER_SPACING);
        !fresh && self.may_answer_request(now)
    }

    /// Whether another announcement may be sent for an answer to a request, whose sender may have
    /// lost the one just sent.
    pub(super) fn may_answer_request(&mut self, now: Time) -> bool {
        self.answers.take(ANSWERS, now)
    }

    /// A datagram opened under the live session: an exchange that was waiting for this is over.
    pub(super) fn settle(&mut self) {
        if self.next.is_none() {
            self.exchange = None;
        }
    }

    // ---- sealing -------------------------------------------------------------------------------

    /// A session that seals, and the counter to seal with.
    pub(super) fn sealing(&mut self, place: Place) -> Option<(&Session, &mut NonceCounter)> {
        let session = match place {
            Place::Live => self.live.as_deref(),
            Place::Rotating => self.rotating.as_deref(),
            Place::Candidate(index) => self.candidates[index].as_deref(),
            // Superseded: the peer may have forgotten it.
            Place::Previous => None,
        }?;
        let ours = if session.of_next {
            self.next.as_mut()?
        } else {
            &mut self.local
        };
        Some((session, &mut ours.counter))
    }

    /// Drops what has waited too long.
    pub(super) fn expire(&mut self, now: Time) {
        self.previous
            .take_if(|session| now.since(session.since) >= PREVIOUS_FOR);
        for candidate in &mut self.candidates {
            candidate.take_if(|session| now.since(session.since) >= CANDIDATE_FOR);
        }
    }

    /// Whether anything speaks for keeping the tunnel.
    pub(super) fn is_needed(&self) -> bool {
        self.wanted
            || self.live.is_some()
            || self.exchange.is_some()
            || self.candidates.iter().any(Option::is_some)
    }

    /// Notes that a packet of the caller passes; answers whether the tunnel had been idle, so that
    /// its deadlines are to be reckoned anew.
    pub(super) fn note_used(&mut self, now: Time) -> bool {
        let idle = now.since(self.used_at) >= IDLE_AFTER;
        self.used_at = now;
        idle
    }

    /// Whether a packet just made a rotation due.
    pub(super) fn is_worn(&self, now: Time) -> bool {
        (self.must_rotate || self.local.counter.used() >= ROTATE_PACKETS) && self.rotation_due(now)
    }

    /// When our key will have served its time.
    pub(super) fn rotation_at(&self) -> Option<Time> {
        let worn = self.must_rotate || self.next.is_some();
        let at = if worn {
            self.rotate_at
        } else {
            self.local.since + ROTATE_AFTER
        };
        (self.live.is_some() && self.is_quiet()).then(|| at.max(self.rotate_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn local(seed: u8, now: Time) -> LocalKey {
        LocalKey::new(
            &Identity::from_seed([1; 32]),
            NodeId(1),
            now,
            &mut |space| space.fill(seed),
        )
    }

    fn public(seed: u8) -> [u8; 32] {
        let bytes = local(seed, Time::ZERO).announcement();
        bytes[8..40].try_into().expect("32 bytes")
    }

    /// A tunnel whose peer has confirmed the key made of `seed`.
    fn live(seed: u8) -> Tunnel {
        let mut tunnel = Tunnel::new(NodeId(2), local(100, Time::ZERO), Time::ZERO);
        confirm(&mut tunnel, seed);
        tunnel
    }

    fn confirm(tunnel: &mut Tunnel, seed: u8) {
        assert_eq!(tunnel.known(&public(seed)), Known::New);
        tunnel
            .add_candidate(public(seed), [seed; 4], None, Time::ZERO)
            .expect("a sound key");
        assert_eq!(tunnel.known(&public(seed)), Known::Candidate);
        tunnel.confirm(Place::Candidate(0), Time::ZERO);
        assert_eq!(tunnel.known(&public(seed)), Known::Live);
    }

    #[test]
    fn a_key_is_worn_by_packets_and_by_age() {
        let mut tunnel = live(1);
        assert!(!tunnel.rotation_due(Time::ZERO));
        tunnel.local.counter = NonceCounter::after(ROTATE_PACKETS - 1);
        assert!(!tunnel.is_worn(Time::ZERO));
        let (session, counter) = tunnel.sealing(Place::Live).expect("live");
        counter.next(session.prefix);
        assert!(tunnel.is_worn(Time::ZERO));

        let old = live(1);
        assert!(!old.rotation_due(Time::ZERO + ROTATE_AFTER / 2));
        assert!(old.rotation_due(Time::ZERO + ROTATE_AFTER));
        assert_eq!(old.rotation_at(), Some(Time::ZERO + ROTATE_AFTER));
    }

    #[test]
    fn a_rotation_is_confirmed_under_the_same_key_of_the_peer() {
        let mut tunnel = live(1);
        let before = tunnel.announced().announcement();
        tunnel.rotate(|| (local(101, Time::ZERO), [7; 4]), Time::ZERO);
        assert_ne!(tunnel.announced().announcement(), before);
        assert!(
            !tunnel.rotation_due(Time::ZERO + ROTATE_AFTER),
            "one at a time"
        );
        assert!(!tunnel.confirm(Place::Rotating, Time::ZERO));
        assert_eq!(tunnel.known(&public(1)), Known::Live);
        assert_eq!(tunnel.sealing(Place::Live).expect("live").1.used(), 0);
        assert!(tunnel.sealing(Place::Previous).is_none());
        assert!(tunnel.previous.is_some());
        tunnel.expire(Time::ZERO + PREVIOUS_FOR);
        assert!(tunnel.previous.is_none());
    }

    #[test]
    fn a_superseded_key_of_the_peer_never_comes_back() {
        let mut tunnel = live(1);
        for seed in 2..8 {
            confirm(&mut tunnel, seed);
            for retired in 1..seed {
                assert_eq!(tunnel.known(&public(retired)), Known::Retired);
            }
            assert!(!tunnel.rotation_due(Time::ZERO));
        }
        // The list is full at eight: our key goes before one of them is forgotten.
        confirm(&mut tunnel, 8);
        confirm(&mut tunnel, 9);
        assert!(tunnel.rotation_due(Time::ZERO));
        assert_eq!(tunnel.known(&public(1)), Known::Retired);
    }

    #[test]
    fn the_older_of_two_candidates_makes_room() {
        let mut tunnel = live(1);
        for (seed, second) in [(2, 1), (3, 2), (4, 3)] {
            let now = Time::ZERO + Duration::from_secs(second);
            tunnel
                .add_candidate(public(seed), [0; 4], None, now)
                .expect("a sound key");
        }
        assert_eq!(tunnel.known(&public(2)), Known::New);
        assert_eq!(tunnel.known(&public(3)), Known::Candidate);
        assert_eq!(tunnel.known(&public(4)), Known::Candidate);
        let low_order = tunnel.add_candidate([0; 32], [0; 4], None, Time::ZERO);
        assert_eq!(low_order, Err(DropReason::BadSignature));
    }
}
