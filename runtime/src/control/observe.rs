//! What a node says of itself when it is asked: counters, latencies, rows.
//!
//! Latencies are taken from the workers when somebody asks: each swaps its full histograms for
//! empty ones, and they are added up here, off the workers' cores.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ramjet_proto::time::Time;

use super::engagements::{Moment, RequestState, ServeState};
use super::handle::Respond;
use super::plane::Plane;
use super::vocabulary::{Command, Totals};
use crate::latency::{Histograms, LatencyBuckets};
use crate::node::{EngagementStatus, Status};
use crate::port::{AgentSkillStatus, SkillReading};

/// How long a worker's histograms are waited for; then the answer is made without them.
const PATIENCE: Duration = Duration::from_millis(500);
/// Questions that wait for one collection.
const LOOKS_MAX: usize = 1_024;

/// A question that needs the workers' histograms.
pub(crate) enum Look {
    Status(Respond<Status>),
    Histograms(Respond<Histograms>),
    Latencies(Respond<LatencyBuckets>),
}

/// The collection of histograms.
pub(crate) struct Observer {
    total: Histograms,
    /// The same, kept apart since whoever monitors asks often, and a copy of all is 0.75 MB.
    buckets: LatencyBuckets,
    /// Emptied ones, to be lent to workers again: 0.75 MB each.
    #[expect(clippy::vec_box, reason = "the boxes travel in commands and reports")]
    spare: Vec<Box<Histograms>>,
    workers: usize,
    missing: BTreeSet<usize>,
    until: Time,
    looks: Vec<Look>,
}

impl Observer {
    pub(crate) fn new(workers: usize) -> Self {
        Observer {
            total: Histograms::new(),
            buckets: LatencyBuckets::default(),
            spare: Vec::new(),
            workers,
            missing: BTreeSet::new(),
            until: Time::ZERO,
            looks: Vec::new(),
        }
    }

    /// A worker's full histograms.
    pub(crate) fn take(&mut self, worker: usize, mut histograms: Box<Histograms>) {
        self.total.add(&histograms);
        self.buckets.add(&histograms);
        histograms.reset();
        if self.spare.len() < self.workers {
            self.spare.push(histograms);
        }
        self.missing.remove(&worker);
    }

    /// Whether no worker owes an answer.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.missing.is_empty()
    }

    /// Gives up on workers that do not answer.
    pub(crate) fn tick(&mut self, now: Time) {
        if now >= self.until {
            self.missing.clear();
        }
    }

    /// The questions that can be answered now.
    pub(crate) fn take_looks(&mut self) -> Vec<Look> {
        if self.missing.is_empty() {
            std::mem::take(&mut self.looks)
        } else {
            Vec::new()
        }
    }

    /// All workers' latencies since start.
    pub(crate) fn total(&self) -> &Histograms {
        &self.total
    }

    /// The same in buckets.
    pub(crate) fn buckets(&self) -> LatencyBuckets {
        self.buckets
    }
}

/// What the shell alone knows.
pub(crate) struct Surroundings {
    pub(crate) registry: std::net::SocketAddr,
    pub(crate) listen: std::net::SocketAddr,
    pub(crate) hostname: Option<String>,
    pub(crate) io: &'static str,
    pub(crate) idle: &'static str,
    pub(crate) uptime_s: u64,
    pub(crate) worker_counters: BTreeMap<String, u64>,
    pub(crate) agents: Vec<AgentSkillStatus>,
}

/// What control knows of the node by itself: cheap to tell, and no worker is asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vitals {
    pub(crate) registered: bool,
    pub(crate) registry_reached: bool,
    pub(crate) polo: Option<i64>,
    pub(crate) task_ready: bool,
    /// Receipts that wait to be settled.
    pub(crate) spooled: usize,
    /// Running engagements, as requester and as worker.
    pub(crate) requesting: usize,
    pub(crate) serving: usize,
    /// Events since the start, by name.
    pub(crate) events: BTreeMap<&'static str, u64>,
    /// The skills that agents run.
    pub(crate) agents: Vec<SkillReading>,
}

impl Plane {
    /// What the plane knows by itself.
    pub(crate) fn vitals(&self) -> Vitals {
        let requesting = self.requesting.values().filter(|row| {
            let over = matches!(row.state, RequestState::Over { .. });
            row.granted.is_some() && !over
        });
        let serving = self.serving.values();
        let serving = serving.filter(|row| matches!(row.state, ServeState::Open { .. }));
        Vitals {
            registered: self.node.0 != 0,
            registry_reached: self.link.is_ready(),
            polo: self.polo,
            task_ready: self.config.task_ready && self.closed_for_work().is_none(),
            spooled: self.spool.waiting(),
            requesting: requesting.count(),
            serving: serving.count(),
            events: self.counters().collect(),
            agents: Vec::new(),
        }
    }

    /// Takes a question that needs the workers' histograms. `running` workers are asked for them.
    pub(crate) fn observe(&mut self, look: Look, at: Moment) {
        if self.observer.looks.len() >= LOOKS_MAX {
            let refusal = crate::node::NodeError(format!(
                "{LOOKS_MAX} questions wait for the workers, the limit; ask again"
            ));
            match look {
                Look::Status(respond) => respond(Err(refusal)),
                Look::Histograms(respond) => respond(Err(refusal)),
                Look::Latencies(respond) => respond(Err(refusal)),
            }
            return;
        }
        self.observer.looks.push(look);
        // Workers run once the node is numbered; a collection under way serves this one too.
        if !self.observer.missing.is_empty() || self.node.0 == 0 || self.stopping {
            return;
        }
        self.observer.until = at.now + PATIENCE;
        for worker in 0..self.config.workers {
            self.observer.missing.insert(worker);
            let empty = self.observer.spare.pop().unwrap_or_default();
            self.command_worker(worker, Command::TakeHistograms(empty));
        }
    }

    /// The status as of now.
    pub(crate) fn status(&self, around: Surroundings) -> Status {
        let mut counters = around.worker_counters;
        for (name, count) in self.counters() {
            *counters.entry(format!("control_{name}")).or_default() += count;
        }
        let total = self.observer.total();
        let latency_us = BTreeMap::from([
            ("round_trip".to_owned(), quantiles(&total.round_trip)),
            ("handler".to_owned(), quantiles(&total.handler)),
            ("staged".to_owned(), quantiles(&total.staged)),
        ]);
        Status {
            node: self.node,
            address: self.address.clone(),
            hostname: around.hostname,
            listen: around.listen,
            registry: (around.registry, self.link.is_ready()),
            polo: self.polo,
            task_ready: self.config.task_ready && self.closed_for_work().is_none(),
            skills: self.skill_names().map(str::to_owned).collect(),
            workers: (self.config.workers, around.io.into(), around.idle.into()),
            uptime_s: around.uptime_s,
            spooled: self.spool.waiting(),
            counters,
            latency_us,
            engagements: self.rows(),
            agents: around.agents,
        }
    }

    fn rows(&self) -> Vec<EngagementStatus> {
        let requesting = self.requesting.values().filter_map(|row| {
            let granted = row.granted.as_ref()?;
            let over = matches!(row.state, RequestState::Over { .. });
            let totals = row.judged();
            (!over).then(|| EngagementStatus {
                engagement: granted.engagement,
                side: "requester".into(),
                peer: granted.worker,
                skill: row.offer.skill.clone(),
                done: answered(&totals),
                accepted: totals.accepted,
                k: granted.account.whole_k(),
            })
        });
        let serving = self.serving.values().filter_map(|row| {
            let signed = row.account.whole();
            matches!(row.state, ServeState::Open { .. }).then(|| EngagementStatus {
                engagement: row.grant.engagement,
                side: "worker".into(),
                peer: row.grant.requester,
                skill: row.grant.skill.clone(),
                done: answered(&row.totals),
                accepted: signed.map_or(0, |whole| whole.receipt.accepted),
                k: row.account.whole_k(),
            })
        });
        requesting.chain(serving).collect()
    }
}

fn answered(totals: &Totals) -> u64 {
    totals
        .done
        .saturating_add(totals.failed)
        .saturating_add(totals.expired)
        .saturating_add(totals.refused)
}

/// p50, p99, p999 and the maximum, in microseconds.
fn quantiles(histogram: &hdrhistogram::Histogram<u64>) -> [f64; 4] {
    [
        histogram.value_at_quantile(0.5),
        histogram.value_at_quantile(0.99),
        histogram.value_at_quantile(0.999),
        histogram.max(),
    ]
    .map(|nanos| Duration::from_nanos(nanos).as_secs_f64() * 1e6)
}
