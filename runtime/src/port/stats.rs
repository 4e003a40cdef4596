//! What the node counts and times of each skill that agents run.
//!
//! | stage | from | to | of |
//! |---|---|---|---|
//! | `queue` | the task arrived at the node | its batch closed | each task |
//! | `gather` | the batch closed | it lies in the arena and the agent is told | each batch |
//! | `hand_over` | it could run: told, and the one before it done | it is done, less `run` | each batch |
//! | `run` | the agent's own account of its skill's run | | each batch |
//! | `reply` | done | every answer is in its worker's queue | each batch |
//!
//! The engine of a skill writes, once a batch; whoever asks for the node's status reads.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::batcher::ClosedBy;
use super::wire::Breach;
use crate::latency::Buckets;

/// The stages of a batch, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Queue,
    Gather,
    HandOver,
    Run,
    Reply,
}

const STAGES: [(Stage, &str); 5] = [
    (Stage::Queue, "queue"),
    (Stage::Gather, "gather"),
    (Stage::HandOver, "hand_over"),
    (Stage::Run, "run"),
    (Stage::Reply, "reply"),
];

const CLOSED_BY: [(ClosedBy, &str); 7] = [
    (ClosedBy::Items, "items"),
    (ClosedBy::Work, "work"),
    (ClosedBy::Bytes, "bytes"),
    (ClosedBy::Wait, "wait"),
    (ClosedBy::Deadline, "deadline"),
    (ClosedBy::Retry, "retry"),
    (ClosedBy::Drain, "drain"),
];

/// Longest stage that is told apart: 10 minutes; what is longer counts as that.
const MAX_NS: u64 = 600_000_000_000;

/// What is counted of one skill.
#[derive(Clone, Debug)]
pub(crate) struct SkillStats {
    stages: [Histogram<u64>; STAGES.len()],
    /// The same in coarse buckets, which are quick to copy.
    times: [Buckets; STAGES.len()],
    closed_by: [u64; CLOSED_BY.len()],
    breaches: [u64; Breach::ALL.len()],
    /// Agents attached, and of these ready.
    pub(crate) agents: usize,
    pub(crate) ready: usize,
    /// Tasks that wait, as of the last turn.
    pub(crate) waiting: usize,
    /// Batches that ended.
    pub(crate) batches: u64,
    /// Tasks in them.
    pub(crate) tasks: u64,
    /// Places that they had.
    pub(crate) places: u64,
    /// Tasks by what became of them.
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) late: u64,
    pub(crate) busy: u64,
    pub(crate) too_big: u64,
    /// Tasks that ran and were of no use: their agent died, or they ended after their deadline.
    pub(crate) wasted_tasks: u64,
    /// The time that they took, as far as it is known.
    pub(crate) wasted_ns: u64,
    /// Tasks that were given to another batch because their agent died.
    pub(crate) retried: u64,
    /// Tasks that alone killed an agent.
    pub(crate) poison: u64,
    /// Times that the agent was started again.
    pub(crate) restarts: u64,
    /// Agents that died or were given up with batches, by stall, and by end.
    pub(crate) stalls: u64,
    pub(crate) deaths: u64,
}

impl SkillStats {
    pub(crate) fn new() -> Self {
        let histogram = || Histogram::new_with_bounds(100, MAX_NS, 3).expect("valid bounds");
        SkillStats {
            stages: std::array::from_fn(|_| histogram()),
            times: [Buckets::default(); STAGES.len()],
            closed_by: [0; CLOSED_BY.len()],
            breaches: [0; Breach::ALL.len()],
            agents: 0,
            ready: 0,
            waiting: 0,
            batches: 0,
            tasks: 0,
            places: 0,
            done: 0,
            failed: 0,
            late: 0,
            busy: 0,
            too_big: 0,
            wasted_tasks: 0,
            wasted_ns: 0,
            retried: 0,
            poison: 0,
            restarts: 0,
            stalls: 0,
            deaths: 0,
        }
    }

    pub(crate) fn record(&mut self, stage: Stage, nanos: u64) {
        self.stages[stage as usize].saturating_record(nanos);
        self.times[stage as usize].count(nanos);
    }

    pub(crate) fn closed(&mut self, by: ClosedBy) {
        let index = CLOSED_BY.iter().position(|(known, _)| *known == by);
        self.closed_by[index.expect("every reason is listed")] += 1;
    }

    pub(crate) fn breach(&mut self, breach: Breach) {
        let index = Breach::ALL.iter().position(|known| *known == breach);
        self.breaches[index.expect("every breach is listed")] += 1;
    }

    /// What metrics show of it: copied while the engine waits, so nothing is computed here.
    pub(crate) fn reading(&self, skill: &str) -> SkillReading {
        let closed_by = CLOSED_BY.iter().map(|(_, label)| *label);
        let breaches = Breach::ALL.iter().map(|breach| breach.label());
        let stages = STAGES.iter().map(|(_, label)| *label);
        SkillReading {
            skill: skill.to_owned(),
            now: [self.agents, self.ready, self.waiting],
            tasks: vec![
                ("done", self.done),
                ("failed", self.failed),
                ("late", self.late),
                ("busy", self.busy),
                ("too_big", self.too_big),
            ],
            closed_by: closed_by.zip(self.closed_by).collect(),
            breaches: breaches.zip(self.breaches).collect(),
            stages: stages.zip(self.times).collect(),
            batches: self.batches,
            batch_tasks: self.tasks,
            batch_places: self.places,
            wasted_tasks: self.wasted_tasks,
            wasted_ns: self.wasted_ns,
            retried: self.retried,
            poison: self.poison,
            restarts: self.restarts,
            stalls: self.stalls,
            deaths: self.deaths,
        }
    }

    /// What the node says of it.
    pub(crate) fn status(&self, skill: &str) -> AgentSkillStatus {
        let named = |counts: &[u64], labels: &mut dyn Iterator<Item = &'static str>| {
            let pairs = labels.zip(counts);
            pairs
                .map(|(label, count)| (label.to_owned(), *count))
                .collect()
        };
        let quantiles = |histogram: &Histogram<u64>| {
            [
                histogram.value_at_quantile(0.5),
                histogram.value_at_quantile(0.99),
                histogram.value_at_quantile(0.999),
                histogram.max(),
            ]
            .map(|nanos| Duration::from_nanos(nanos).as_secs_f64() * 1e6)
        };
        let stages = STAGES.iter().zip(&self.stages);
        AgentSkillStatus {
            skill: skill.to_owned(),
            agents: self.agents,
            ready: self.ready,
            waiting: self.waiting,
            batches: self.batches,
            tasks: self.tasks,
            fill: ratio(self.tasks, self.places),
            done: self.done,
            failed: self.failed,
            refused: BTreeMap::from([
                ("late".to_owned(), self.late),
                ("busy".to_owned(), self.busy),
                ("too_big".to_owned(), self.too_big),
            ]),
            closed_by: named(
                &self.closed_by,
                &mut CLOSED_BY.iter().map(|(_, label)| *label),
            ),
            stages_us: stages
                .map(|((_, label), histogram)| ((*label).to_owned(), quantiles(histogram)))
                .collect(),
            wasted_tasks: self.wasted_tasks,
            wasted_us: Duration::from_nanos(self.wasted_ns).as_secs_f64() * 1e6,
            retried: self.retried,
            poison: self.poison,
            restarts: self.restarts,
            stalls: self.stalls,
            deaths: self.deaths,
            breaches: named(
                &self.breaches,
                &mut Breach::ALL.iter().map(|breach| breach.label()),
            ),
        }
    }
}

/// What is counted of one skill, for its metrics.
#[derive(Clone, Debug)]
pub(crate) struct SkillReading {
    pub(crate) skill: String,
    /// Agents attached, of these ready, and tasks that wait.
    pub(crate) now: [usize; 3],
    /// Tasks by what became of them.
    pub(crate) tasks: Vec<(&'static str, u64)>,
    /// Batches by why they closed.
    pub(crate) closed_by: Vec<(&'static str, u64)>,
    /// Breaches of the protocol by reason.
    pub(crate) breaches: Vec<(&'static str, u64)>,
    /// The stages of its batches.
    pub(crate) stages: Vec<(&'static str, Buckets)>,
    /// The rest as in [`SkillStats`].
    pub(crate) batches: u64,
    pub(crate) batch_tasks: u64,
    pub(crate) batch_places: u64,
    pub(crate) wasted_tasks: u64,
    pub(crate) wasted_ns: u64,
    pub(crate) retried: u64,
    pub(crate) poison: u64,
    pub(crate) restarts: u64,
    pub(crate) stalls: u64,
    pub(crate) deaths: u64,
}

/// A part of a whole, 0 while there is none.
#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio for people; counts beyond 2^53 differ in no digit that is shown"
)]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// One skill that agents run, as the node's status shows it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct AgentSkillStatus {
    /// The skill.
    pub skill: String,
    /// Agents that are attached.
    pub agents: usize,
    /// Of these, those that have loaded their model and take batches.
    pub ready: usize,
    /// Tasks that wait for a batch.
    pub waiting: usize,
    /// Batches that ended since the start.
    pub batches: u64,
    /// Tasks in them.
    pub tasks: u64,
    /// How full they were: tasks over places, 0 to 1.
    pub fill: f64,
    /// Tasks answered with a result.
    pub done: u64,
    /// Tasks answered with a reason.
    pub failed: u64,
    /// Tasks refused, by `late`, `busy` and `too_big`.
    pub refused: BTreeMap<String, u64>,
    /// Batches by why they closed: `items`, `work`, `bytes`, `wait`, `deadline`, `retry`, `drain`.
    pub closed_by: BTreeMap<String, u64>,
    /// Stages in microseconds since the start, `queue` to `reply`: p50, p99, p999, max each.
    pub stages_us: BTreeMap<String, [f64; 4]>,
    /// Tasks that ran and were of no use: their agent died, or they ended after their deadline.
    pub wasted_tasks: u64,
    /// The agents' time that they took, in microseconds.
    pub wasted_us: f64,
    /// Tasks that were given to another batch because their agent died.
    pub retried: u64,
    /// Tasks that killed an agent while they were alone with it.
    pub poison: u64,
    /// Times that the node started an agent again.
    pub restarts: u64,
    /// Agents given up because they did not answer in time.
    pub stalls: u64,
    /// Agents that ended without a word.
    pub deaths: u64,
    /// Breaches of the protocol, by reason; each ended a connection.
    pub breaches: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_shown_by_name() {
        let mut stats = SkillStats::new();
        stats.closed(ClosedBy::Wait);
        stats.closed(ClosedBy::Drain);
        stats.breach(Breach::WrongEpoch);
        stats.record(Stage::HandOver, 20_000);
        (stats.tasks, stats.places) = (3, 4);
        let status = stats.status("embed");
        assert_eq!(status.closed_by["wait"], 1);
        assert_eq!(status.closed_by["drain"], 1);
        assert_eq!(status.closed_by.len(), 7);
        assert_eq!(status.breaches["wrong_epoch"], 1);
        assert_eq!(status.breaches.len(), 9);
        assert!((status.fill - 0.75).abs() < 1e-9);
        let p50 = status.stages_us["hand_over"][0];
        assert!((p50 - 20.0).abs() < 0.1, "{p50}");
        assert!(status.stages_us["run"][3].abs() < 1e-9, "nothing ran");
    }
}
