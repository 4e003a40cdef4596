//! The identities of the generator at the registry: each registers as a node of its own, and each
//! gets its grant for an offer of its own, from an address of its own.
//!
//! Nothing is shortened: keys are drawn, registrations, proofs, offers and accepts are signed and
//! verified, and the registry matches each offer. A few threads do it side by side, a connection
//! an identity.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};

use crossbeam::channel::Sender;
use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::{NodeId, OfferId};
use ramjet_proto::market::{Filter, Offer};

use super::super::super::identity_file::throw_away;
use crate::control::member::Member;

/// Identities that speak to the registry at a time.
const THREADS: usize = 8;
/// How long an offer may wait for its worker: all others may be before it.
const ACCEPT_DEADLINE_MS: u32 = 120_000;
/// How long an engagement lasts, in seconds: longer than any run.
const DURATION_S: u32 = 86_400;
/// Tasks of one engagement: more than any run.
const TASKS: u64 = 1 << 40;

/// Where the generator is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The registry.
    pub(super) registry: SocketAddr,
    /// The address of the first identity; the others follow.
    pub(super) first: Ipv4Addr,
    /// The port of their tunnels.
    pub(super) port: u16,
}

impl Place {
    fn address(&self, index: usize) -> Ipv4Addr {
        let offset = u32::try_from(index).unwrap_or(u32::MAX);
        Ipv4Addr::from(u32::from(self.first).wrapping_add(offset))
    }

    fn member(&self, index: usize, identity: &Arc<Identity>) -> Result<Member, String> {
        let address = self.address(index);
        let listen = SocketAddr::new(IpAddr::V4(address), self.port);
        Member::register(self.registry, address.into(), listen, Arc::clone(identity))
            .map_err(|error| error.to_string())
    }

    /// What the registry knows of a worker.
    pub(super) fn key_of(&self, worker: NodeId) -> Result<PublicKey, String> {
        let identity = throw_away().map_err(|failure| failure.message)?;
        let mut member = self.member(0, &Arc::new(identity))?;
        let found = member.lookup(worker).map_err(|error| error.to_string())?;
        Ok(found.0)
    }
}

/// An identity that is registered.
pub(super) type Recruit = (NodeId, Arc<Identity>, Ipv4Addr);

/// Registers `count` new identities, the first of them the `from`-th of the generator.
pub(super) fn register(place: &Place, from: usize, count: usize) -> Result<Vec<Recruit>, String> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut recruits = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let enrolled = throw_away()
                .map_err(|failure| failure.message)
                .map(Arc::new)
                .and_then(|identity| Ok((place.member(from + index, &identity)?.node(), identity)));
            match enrolled {
                Ok((node, identity)) => {
                    recruits.push((index, (node, identity, place.address(from + index))));
                }
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(recruits)
    };
    let mut recruits = thread::scope(|scope| {
        let threads: Vec<ScopedJoinHandle<'_, _>> =
            (0..THREADS).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(count);
        for thread in threads {
            let part: Result<Vec<_>, String> = thread
                .join()
                .unwrap_or_else(|_| Err("a registering thread stopped by a bug".to_owned()));
            all.extend(part?);
        }
        Ok::<_, String>(all)
    })?;
    recruits.sort_unstable_by_key(|(index, _)| *index);
    Ok(recruits.into_iter().map(|(_, recruit)| recruit).collect())
}

/// A grant for the identity of this index, and its credits.
pub(super) type Granted = Result<(usize, Box<[u8]>, u32), String>;

/// What all offers say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// The value of the worker's capability `bench`, so that no other worker takes the offers.
    pub(super) worker: &'a str,
    /// Slots.
    pub(super) credits: u32,
}

/// Offers work as each of `recruits`, and sends their grants with their index; the first of them
/// is the `from`-th of the generator. Ends when all are sent or one has failed.
pub(super) fn offer(
    place: &Place,
    from: usize,
    recruits: &[Arc<Identity>],
    wanted: Wanted<'_>,
    grants: &Sender<Granted>,
) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(identity) = recruits.get(index) else {
                        return;
                    };
                    let granted = engage(place, from + index, identity, wanted);
                    // Nobody listens any more once an earlier one has failed.
                    if granted.is_err() {
                        next.store(recruits.len(), Ordering::Relaxed);
                    }
                    if grants.send(granted).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn engage(place: &Place, index: usize, identity: &Arc<Identity>, wanted: Wanted<'_>) -> Granted {
    let mut number = [0; 8];
    aws_lc_rs::rand::fill(&mut number).map_err(|_| "the kernel gave no random bytes".to_owned())?;
    let offer = Offer {
        offer: OfferId(u64::from_be_bytes(number)),
        requester: NodeId(0),
        skill: "echo".to_owned(),
        filters: vec![Filter {
            key: "bench".to_owned(),
            value: wanted.worker.to_owned(),
        }],
        min_polo: i64::MIN,
        tasks: TASKS,
        concurrency: wanted.credits,
        duration_s: DURATION_S,
        accept_deadline_ms: ACCEPT_DEADLINE_MS,
    };
    let mut member = place.member(index, identity)?;
    let grant = member
        .prove()
        .and_then(|()| member.engage(offer))
        .map_err(|error| error.to_string())?;
    Ok((index, grant.encode().into(), wanted.credits))
}
