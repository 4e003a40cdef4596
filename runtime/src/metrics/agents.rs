//! The families of the skills that agents run: one series for each skill.

use super::page::{Labels, Page, float, seconds};
use crate::port::SkillReading;

/// A count of a skill: its family, what it means, and where it stands.
type Told = (&'static str, &'static str, fn(&SkillReading) -> f64);

const LEVELS: [Told; 3] = [
    (
        "ramjet_agents",
        "Agents that are attached, by skill.",
        |skill| float(skill.now[0] as u64),
    ),
    (
        "ramjet_agents_ready",
        "Agents that have loaded their model and take batches, by skill.",
        |skill| float(skill.now[1] as u64),
    ),
    (
        "ramjet_agent_tasks_waiting",
        "Tasks that wait for a batch, by skill.",
        |skill| float(skill.now[2] as u64),
    ),
];

const COUNTS: [Told; 10] = [
    (
        "ramjet_agent_batches_total",
        "Batches that ended, by skill.",
        |skill| float(skill.batches),
    ),
    (
        "ramjet_agent_batch_tasks_total",
        "Tasks in the batches that ended, by skill.",
        |skill| float(skill.batch_tasks),
    ),
    (
        "ramjet_agent_batch_places_total",
        "Places in the batches that ended, by skill: tasks over places is how full they were.",
        |skill| float(skill.batch_places),
    ),
    (
        "ramjet_agent_wasted_tasks_total",
        "Tasks that ran for nothing, by skill: their agent died, or they ended too late.",
        |skill| float(skill.wasted_tasks),
    ),
    (
        "ramjet_agent_wasted_seconds_total",
        "The agents' time that those tasks took, by skill.",
        |skill| seconds(skill.wasted_ns),
    ),
    (
        "ramjet_agent_retried_tasks_total",
        "Tasks given to another batch because their agent died, by skill.",
        |skill| float(skill.retried),
    ),
    (
        "ramjet_agent_poison_tasks_total",
        "Tasks that were alone with an agent when it died, by skill.",
        |skill| float(skill.poison),
    ),
    (
        "ramjet_agent_restarts_total",
        "Times that the node started an agent again, by skill.",
        |skill| float(skill.restarts),
    ),
    (
        "ramjet_agent_stalls_total",
        "Agents given up because they did not answer in time, by skill.",
        |skill| float(skill.stalls),
    ),
    (
        "ramjet_agent_deaths_total",
        "Agents that ended without a word, by skill.",
        |skill| float(skill.deaths),
    ),
];

/// A count of a skill that is told apart by reasons: family, help, label, and the counts.
type ToldBy = (
    &'static str,
    &'static str,
    &'static str,
    fn(&SkillReading) -> &[(&'static str, u64)],
);

const BY_REASON: [ToldBy; 3] = [
    (
        "ramjet_agent_tasks_total",
        "Tasks by skill and by what became of them: answered or refused.",
        "outcome",
        |skill| &skill.tasks,
    ),
    (
        "ramjet_agent_batches_closed_total",
        "Batches by skill and by why they closed.",
        "reason",
        |skill| &skill.closed_by,
    ),
    (
        "ramjet_agent_breaches_total",
        "Breaches of the agent port's protocol, by skill and reason; each ended a connection.",
        "reason",
        |skill| &skill.breaches,
    ),
];

pub(super) fn write(skills: &[SkillReading], page: &mut Page) {
    let names: Vec<_> = skills
        .iter()
        .map(|skill| [("skill", skill.skill.as_str())])
        .collect();
    let each = |value: fn(&SkillReading) -> f64| {
        let values = skills.iter().map(value);
        let series = names.iter().map(|labels| &labels[..] as Labels<'_>);
        series.zip(values).collect::<Vec<_>>()
    };
    for (name, help, value) in LEVELS {
        page.gauges(name, help, each(value));
    }
    for (name, help, value) in COUNTS {
        page.counters(name, help, each(value));
    }
    for (name, help, label, counts) in BY_REASON {
        let series: Vec<_> = skills
            .iter()
            .flat_map(|skill| {
                let labels = move |reason| [("skill", skill.skill.as_str()), (label, reason)];
                let counts = counts(skill).iter();
                counts.map(move |(reason, count)| (labels(*reason), float(*count)))
            })
            .collect();
        let series = series.iter().map(|(labels, count)| (&labels[..], *count));
        page.counters(name, help, series);
    }
    let stages: Vec<_> = skills
        .iter()
        .flat_map(|skill| {
            let labels = move |stage| [("skill", skill.skill.as_str()), ("stage", stage)];
            let stages = skill.stages.iter();
            stages.map(move |(stage, times)| (labels(*stage), *times))
        })
        .collect();
    page.times(
        "ramjet_agent_stage_seconds",
        "Time by skill and stage: queue of each task; gather, hand_over, run and reply of each batch.",
        stages.iter().map(|(labels, times)| (&labels[..], *times)),
    );
}
