//! How long a datagram the path to a peer carries: datagram packetization-layer path MTU discovery
//! (RFC 8899), over the few lengths of [`PATH_LENS`].
//!
//! | state | sends | on PROBE_ACK of that length | after [`PROBES_MAX`] unanswered |
//! |---|---|---|---|
//! | searching | a PROBE of the next length, every [`PROBE_EVERY`] | uses that length, searches on | holds what it has |
//! | holding the base | nothing; searches again after [`SEARCH_AGAIN`] | | |
//! | holding more | nothing, until a loss is suspected; then a PROBE of the length in use, at most every [`CONFIRM_EVERY`] | holds on | back to the base: the path has changed |
//!
//! What is answered was carried: traffic confirms the length in use (RFC 8899, 4.3), and thousands of
//! tunnels that are in use now and then cost no probe.
//!
//! Who drives it: for a tunnel to another ramjet node, [`PathSearch::next_probe`] whenever
//! [`PathSearch::due`] has passed and the tunnel is in use, [`PathSearch::acknowledged`] for each
//! PROBE_ACK, [`PathSearch::suspect`] whenever something had to be repeated. The caller sends with fragmentation forbidden, or the answer means nothing. Absent:
//! ICMP, which an off-path attacker can forge.

use core::time::Duration;

use crate::fault::DropReason;
use crate::time::Time;
use crate::wire::limits::PATH_LENS;

/// Between a probe and the next try, if no answer comes.
pub const PROBE_EVERY: Duration = Duration::from_millis(200);
/// Unanswered probes of one length before it is given up (RFC 8899, MAX_PROBES).
pub const PROBES_MAX: u8 = 3;
/// How often a length above the base is confirmed at the most.
pub const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// When a search that ended is begun again (RFC 8899, PMTU_RAISE_TIMER).
pub const SEARCH_AGAIN: Duration = Duration::from_secs(600);

/// What is known of the path to one peer.
#[derive(Clone, Copy, Debug)]
pub struct PathSearch {
    /// Place in [`PATH_LENS`] of the length in use.
    held: u8,
    /// Probes of the current length without an answer.
    unanswered: u8,
    /// Whether the last probe was of the next length, not of the one in use.
    raising: bool,
    /// Place in [`PATH_LENS`] of the longest length to try.
    top: u8,
    /// Whether something had to be repeated since the length in use was confirmed.
    suspected: bool,
    /// Whether the beacon relays what is sent: then the base is all there is.
    relayed: bool,
    due: Time,
}

impl PathSearch {
    /// Not begun; will not try datagrams longer than `len_max`.
    pub fn new(len_max: usize) -> Self {
        let longer = PATH_LENS.iter().skip(1).filter(|len| **len <= len_max);
        PathSearch {
            held: 0,
            unanswered: 0,
            raising: true,
            top: u8::try_from(longer.count()).expect("a few lengths"),
            suspected: false,
            relayed: false,
            due: Time::NEVER,
        }
    }

    /// Begins to search: the peer is known to understand PROBE.
    pub fn begin(&mut self, now: Time) {
        if self.due == Time::NEVER && self.top > 0 {
            self.due = now;
        }
    }

    /// Forgets what was found: the path may be another. A search that was begun begins again.
    pub fn restart(&mut self, now: Time) {
        let begun = self.due != Time::NEVER;
        *self = PathSearch {
            held: 0,
            unanswered: 0,
            raising: true,
            top: self.top,
            suspected: false,
            relayed: self.relayed,
            due: if begun { now } else { Time::NEVER },
        };
    }

    /// The path is another from now on. Over the beacon nothing beyond the base is tried: it is the
    /// beacon that would cut longer datagrams in pieces, and fragments count as lost.
    pub fn reroute(&mut self, now: Time, relayed: bool) {
        self.restart(now);
        self.relayed = relayed;
    }

    /// Whether the beacon relays what is sent.
    pub fn is_relayed(&self) -> bool {
        self.relayed
    }

    /// Longest datagram that may be sent, in bytes of UDP payload.
    pub fn len(&self) -> usize {
        PATH_LENS[usize::from(self.held)]
    }

    /// Whether a datagram may hold nothing: never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// When [`Self::next_probe`] has something to say; [`Time::NEVER`] before [`Self::begin`], and
    /// while nothing speaks against the length in use.
    pub fn due(&self) -> Time {
        if self.relayed {
            return Time::NEVER;
        }
        let settled = self.held > 0 && !self.raising && self.unanswered == 0;
        if settled && !self.suspected {
            Time::NEVER
        } else {
            self.due
        }
    }

    /// Something had to be repeated: the path may carry less than it did.
    pub fn suspect(&mut self) {
        self.suspected = true;
    }

    /// The length of the probe to send now, if one is due. Unanswered probes have their effect here.
    pub fn next_probe(&mut self, now: Time) -> Option<usize> {
        if self.due() == Time::NEVER || now < self.due {
            return None;
        }
        if self.unanswered >= PROBES_MAX {
            self.unanswered = 0;
            if !self.raising {
                // What was carried is carried no more: a route has changed.
                self.held = 0;
            }
            self.raising = false;
            self.suspected = false;
            self.due = now + self.pause();
            return None;
        }
        // From the base there is nothing to confirm.
        self.raising |= self.held == 0;
        self.unanswered += 1;
        self.due = now + PROBE_EVERY;
        let place = usize::from(self.held) + usize::from(self.raising);
        PATH_LENS.get(place).copied()
    }

    fn pause(&self) -> Duration {
        if self.held == 0 {
            SEARCH_AGAIN
        } else {
            CONFIRM_EVERY
        }
    }

    /// A PROBE of this length arrived at the other end.
    ///
    /// # Errors
    /// [`DropReason::Stale`] if no such probe is out.
    pub fn acknowledged(&mut self, now: Time, length: u32) -> Result<(), DropReason> {
        let place = usize::from(self.held) + usize::from(self.raising);
        let expected = PATH_LENS
            .get(place)
            .is_some_and(|len| *len == length as usize);
        if self.unanswered == 0 || !expected {
            return Err(DropReason::Stale);
        }
        self.unanswered = 0;
        self.suspected = false;
        if self.raising {
            self.held += 1;
            self.raising = self.held < self.top;
        }
        self.due = if self.raising {
            now
        } else {
            now + self.pause()
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::PATH_LEN_MAX;

    /// A path that carries up to `limit` bytes, walked for `time`; the probes sent.
    fn walk(search: &mut PathSearch, from: Time, time: Duration, limit: usize) -> Vec<usize> {
        let mut probes = Vec::new();
        let mut now = from;
        while now < from + time {
            if let Some(length) = search.next_probe(now) {
                probes.push(length);
                if length <= limit {
                    let length = u32::try_from(length).expect("short");
                    search.acknowledged(now, length).expect("expected");
                }
            }
            now = search.due().max(now + Duration::from_millis(1));
        }
        probes
    }

    #[test]
    fn a_path_that_loses_nothing_is_not_asked_again() {
        let mut search = PathSearch::new(PATH_LEN_MAX);
        search.begin(Time::ZERO);
        let hour = Duration::from_secs(3_600);
        let probes = walk(&mut search, Time::ZERO, hour, 65_000);
        assert_eq!(probes, PATH_LENS[1..]);
        assert_eq!(search.due(), Time::NEVER);
        search.suspect();
        let later = Time::ZERO + hour;
        assert!(search.due() <= later);
        // The confirmation answers the suspicion; the next one waits its time.
        assert_eq!(walk(&mut search, later, hour, 65_000), [PATH_LEN_MAX]);
        search.suspect();
        let again = later + CONFIRM_EVERY;
        assert_eq!(search.due(), again);
    }

    #[test]
    fn it_finds_what_the_path_carries() {
        for (limit, found) in [(1_400, 0), (9_000, 1), (65_000, 2)] {
            let mut search = PathSearch::new(usize::MAX);
            assert_eq!(search.next_probe(Time::NEVER), None, "not begun");
            search.begin(Time::ZERO);
            let probes = walk(&mut search, Time::ZERO, Duration::from_secs(3), limit);
            assert_eq!(search.len(), PATH_LENS[found], "{probes:?}");
        }
    }

    #[test]
    fn a_path_that_shrinks_sends_it_back_to_the_base() {
        let mut search = PathSearch::new(usize::MAX);
        search.begin(Time::ZERO);
        walk(&mut search, Time::ZERO, Duration::from_secs(1), 65_000);
        assert_eq!(search.len(), PATH_LENS[2]);
        let later = Time::ZERO + Duration::from_secs(1);
        search.suspect();
        walk(&mut search, later, Duration::from_secs(7), 1_400);
        assert_eq!(search.len(), PATH_LENS[0]);
        let much_later = later + SEARCH_AGAIN + Duration::from_secs(10);
        walk(&mut search, much_later, Duration::from_secs(3), 9_000);
        assert_eq!(search.len(), PATH_LENS[1]);
    }

    #[test]
    fn it_tries_no_longer_than_it_may() {
        for (len_max, found) in [(1_400, 0), (10_000, 1)] {
            let mut search = PathSearch::new(len_max);
            search.begin(Time::ZERO);
            let probes = walk(&mut search, Time::ZERO, Duration::from_secs(3), 65_000);
            assert_eq!(search.len(), PATH_LENS[found], "{probes:?}");
            assert!(probes.iter().all(|length| *length <= len_max), "{probes:?}");
        }
    }

    #[test]
    fn a_restart_searches_again_if_it_had_begun() {
        let mut search = PathSearch::new(usize::MAX);
        search.restart(Time::ZERO);
        assert_eq!(search.due(), Time::NEVER);
        search.begin(Time::ZERO);
        walk(&mut search, Time::ZERO, Duration::from_secs(1), 65_000);
        let later = Time::ZERO + Duration::from_secs(1);
        search.restart(later);
        assert_eq!((search.len(), search.due()), (PATH_LENS[0], later));
    }

    #[test]
    fn over_the_beacon_nothing_is_tried() {
        let mut search = PathSearch::new(usize::MAX);
        search.begin(Time::ZERO);
        let minute = Duration::from_secs(60);
        walk(&mut search, Time::ZERO, minute, 65_000);
        let later = Time::ZERO + minute;
        search.reroute(later, true);
        assert!(search.is_relayed());
        assert_eq!(search.len(), PATH_LENS[0]);
        search.suspect();
        assert!(walk(&mut search, later, minute, 65_000).is_empty());
        search.reroute(later, false);
        assert_eq!(walk(&mut search, later, minute, 65_000), PATH_LENS[1..]);
    }

    #[test]
    fn an_answer_to_no_probe_changes_nothing() {
        let mut search = PathSearch::new(usize::MAX);
        assert_eq!(
            search.acknowledged(Time::ZERO, 8_900),
            Err(DropReason::Stale)
        );
        search.begin(Time::ZERO);
        assert_eq!(search.next_probe(Time::ZERO), Some(PATH_LENS[1]));
        assert_eq!(
            search.acknowledged(Time::ZERO, 16_368),
            Err(DropReason::Stale)
        );
        assert_eq!(search.len(), PATH_LENS[0]);
    }
}
