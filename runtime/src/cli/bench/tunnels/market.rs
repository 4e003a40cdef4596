//! A worker in its process and all its requesters, brought together by the registry.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel;
use ramjet_bench::report::WorkerCost;

use super::super::subject::WARM_UP;
use super::Spec;
use super::fleet::{Fleet, Measured};
use super::process::{WorkerProcess, WorkerSpec};
use super::recruits::{self, Place, Wanted};
use super::requester::Peer;
use super::wire::Wire;

/// A worker and its requesters.
pub(super) struct Market {
    pub(super) worker: WorkerProcess,
    pub(super) fleet: Fleet,
    place: Place,
    name: String,
    pub(super) credits: u32,
    /// What its process held before its first tunnel.
    pub(super) resident_at_start: u64,
}

/// How long it took to bring requesters in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Joined {
    pub(super) connecting: Duration,
    pub(super) engaging: Duration,
}

/// What one run measured, and what the worker counted in it, warm-up included.
pub(super) struct Run {
    pub(super) measured: Measured,
    pub(super) cost: Option<WorkerCost>,
}

impl Market {
    pub(super) fn start(
        spec: &Spec,
        registry: SocketAddr,
        name: String,
        tunnels: usize,
        first: Ipv4Addr,
    ) -> Result<Self, String> {
        let credits = spec.load.credits(tunnels);
        // A process may use the cores of the thread that starts it, and ends with that thread.
        spec.float()?;
        let worker = WorkerProcess::start(&WorkerSpec {
            registry,
            threads: &spec.worker,
            name: &name,
            tunnels,
            credits,
        })?;
        spec.pin()?;
        let wire = Wire::bind().map_err(|error| format!("UDP socket: {error}"))?;
        let port = wire
            .port()
            .map_err(|error| format!("UDP socket: {error}"))?;
        let place = Place {
            registry,
            first,
            port,
        };
        let peer = Peer {
            node: worker.node,
            key: place.key_of(worker.node)?,
            endpoint: worker.listen,
        };
        Ok(Market {
            resident_at_start: worker.resident_bytes()?,
            fleet: Fleet::new(peer, wire, first, spec.load)?,
            worker,
            place,
            name,
            credits,
        })
    }

    /// Brings `count` more requesters in: registered, and their keys exchanged.
    pub(super) fn connect(&mut self, count: usize) -> Result<Duration, String> {
        let before = self.fleet.requesters.len();
        let (place, fleet) = (self.place, &mut self.fleet);
        let recruits = std::thread::scope(|scope| {
            let registering = scope.spawn(|| recruits::register(&place, before, count));
            // Those that are there already stay in touch with the worker meanwhile.
            fleet.rest_while(|| !registering.is_finished())?;
            let stopped = |_| Err("the registering thread stopped by a bug".to_owned());
            registering.join().unwrap_or_else(stopped)
        })?;
        self.fleet.connect(recruits)
    }

    /// Opens an engagement for the last `count` requesters.
    pub(super) fn engage(&mut self, count: usize) -> Result<Duration, String> {
        let from = self.fleet.requesters.len() - count;
        let identities: Vec<_> = self.fleet.requesters[from..]
            .iter()
            .map(|requester| Arc::clone(&requester.identity))
            .collect();
        let (sender, grants) = channel::bounded(64);
        let wanted = Wanted {
            worker: &self.name,
            credits: self.credits,
        };
        let (place, fleet) = (self.place, &mut self.fleet);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                recruits::offer(&place, from, &identities, wanted, &sender);
                drop(sender);
            });
            let opened = fleet.open(&grants, count);
            // Whoever still offers finds nobody to tell.
            drop(grants);
            opened
        })
    }

    /// The first requesters, and enough load for every buffer of the worker to have been used.
    pub(super) fn warm_up(&mut self, count: usize) -> Result<Joined, String> {
        let connecting = self.connect(count)?;
        let engaging = self.engage(count)?;
        self.fleet.deal();
        self.fleet.run(WARM_UP, WARM_UP)?;
        Ok(Joined {
            connecting,
            engaging,
        })
    }

    /// One run. The worker goes on for it, and is stopped again behind it.
    pub(super) fn run(&mut self, spec: &Spec) -> Result<Run, String> {
        self.worker.resume()?;
        let before = self.worker.status()?.counters;
        let measured = self.fleet.run(WARM_UP, spec.run)?;
        let after = self.worker.status()?.counters;
        self.worker.pause()?;
        Ok(Run {
            measured,
            cost: WorkerCost::between(&before, &after),
        })
    }
}
