//! `ramjet status`: what the local node does.
//!
//! `--json` prints the node's status as one object.

use super::access;
use super::exit::{Exit, Failure};
use super::host;
use super::output::{Output, grouped, printable, table};
use super::settings::Settings;
use crate::node::{AgentSkillStatus, Status};

pub(super) fn run(settings: &Settings, output: &mut Output) -> Result<Exit, Failure> {
    let status = access::connect(&host::socket_path(settings)?)?.status()?;
    if output.json {
        output.object(&status)?;
    } else {
        output.data(&page(&status))?;
    }
    Ok(Exit::Ok)
}

/// The status as people read it.
fn page(status: &Status) -> String {
    let (registry, reached) = status.registry;
    let polo = status
        .polo
        .map_or("not heard yet".to_owned(), |polo| polo.to_string());
    let (workers, io, idle) = &status.workers;
    let skills = if status.skills.is_empty() {
        "none".to_owned()
    } else {
        status.skills.join(", ")
    };
    let uptime = humantime::format_duration(std::time::Duration::from_secs(status.uptime_s));
    let facts = [
        ("node", format!("{} at {}", status.node, status.address)),
        (
            "hostname",
            status.hostname.clone().unwrap_or_else(|| "none".to_owned()),
        ),
        ("listens", status.listen.to_string()),
        (
            "registry",
            format!(
                "{registry}, {}",
                if reached { "reached" } else { "not reached" }
            ),
        ),
        ("polo", polo),
        (
            "skills",
            format!(
                "{skills}{}",
                if status.task_ready {
                    ", task-ready"
                } else {
                    ""
                }
            ),
        ),
        ("workers", format!("{workers}, {io}, {idle}")),
        ("up", uptime.to_string()),
        ("receipts", format!("{} wait to be settled", status.spooled)),
    ];
    let mut page: Vec<String> = facts
        .iter()
        .map(|(name, fact)| format!("{name:<10}{}", printable(fact)))
        .collect();
    page.extend(status.agents.iter().map(agents));
    if !status.engagements.is_empty() {
        let rows: Vec<_> = status
            .engagements
            .iter()
            .map(|row| {
                vec![
                    row.engagement.to_string(),
                    row.side.to_string(),
                    row.peer.to_string(),
                    row.skill.clone(),
                    grouped(row.done),
                    grouped(row.accepted),
                    row.k.to_string(),
                ]
            })
            .collect();
        let header = [
            "ENGAGEMENT",
            "SIDE",
            "PEER",
            "SKILL",
            "DONE",
            "ACCEPTED",
            "RECEIPT",
        ];
        page.extend([String::new(), table(&header, &rows)]);
    }
    let latencies: Vec<_> = status
        .latency_us
        .iter()
        .filter(|(_, values)| values[3] > 0.0)
        .map(|(name, values)| {
            let values = values.iter().map(|value| format!("{value:.1}"));
            std::iter::once(name.clone()).chain(values).collect()
        })
        .collect();
    if !latencies.is_empty() {
        page.extend([
            String::new(),
            table(&["LATENCY µs", "P50", "P99", "P99.9", "MAX"], &latencies),
        ]);
    }
    let counters: Vec<_> = status
        .counters
        .iter()
        .filter(|(_, value)| **value > 0)
        .map(|(name, value)| vec![name.clone(), grouped(*value)])
        .collect();
    if !counters.is_empty() {
        page.extend([String::new(), table(&["COUNTER", "VALUE"], &counters)]);
    }
    page.join("\n")
}

/// One skill that agents run, in a line.
fn agents(skill: &AgentSkillStatus) -> String {
    let run = skill.stages_us.get("run").map_or(0.0, |values| values[0]);
    printable(&format!(
        "{:<10}{}: {} of {} ready, {} tasks wait, {} done, {} failed, batches {:.0} % full, run \
         {run:.1} µs, {} restarts",
        "agents",
        skill.skill,
        skill.ready,
        skill.agents,
        grouped(skill.waiting as u64),
        grouped(skill.done),
        grouped(skill.failed),
        skill.fill * 100.0,
        grouped(skill.restarts),
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ramjet_proto::ids::NodeId;

    use super::*;

    #[test]
    fn the_page_shows_what_is_known_and_leaves_zeros_away() {
        let status = Status {
            node: NodeId(4),
            address: "0:0000.0000.0004".to_owned(),
            hostname: None,
            listen: ([127, 0, 0, 1], 5_000).into(),
            registry: (([127, 0, 0, 1], 9_000).into(), false),
            polo: Some(-2),
            task_ready: true,
            skills: vec!["echo".to_owned()],
            workers: (1, "uring".into(), "adaptive".into()),
            uptime_s: 61,
            spooled: 3,
            counters: BTreeMap::from([
                ("dropped_replay".to_owned(), 2_000),
                ("dropped_bad_tag".to_owned(), 0),
            ]),
            latency_us: BTreeMap::from([
                ("handler".to_owned(), [1.0, 2.0, 3.0, 4.0]),
                ("round_trip".to_owned(), [0.0; 4]),
            ]),
            engagements: Vec::new(),
            agents: vec![AgentSkillStatus {
                skill: "embed".to_owned(),
                agents: 2,
                ready: 1,
                waiting: 1_024,
                done: 2_048,
                restarts: 3,
                fill: 0.961,
                stages_us: BTreeMap::from([("run".to_owned(), [1_800.0, 0.0, 0.0, 2_100.0])]),
                ..AgentSkillStatus::default()
            }],
        };
        let page = page(&status);
        for line in [
            "node      4 at 0:0000.0000.0004",
            "registry  127.0.0.1:9000, not reached",
            "polo      -2",
            "skills    echo, task-ready",
            "workers   1, uring, adaptive",
            "up        1m 1s",
            "receipts  3 wait to be settled",
            "agents    embed: 1 of 2 ready, 1,024 tasks wait, 2,048 done, 0 failed, batches 96 % full, \
             run 1800.0 µs, 3 restarts",
            "handler     1.0  2.0  3.0    4.0",
            "dropped_replay  2,000",
        ] {
            assert!(
                page.lines().any(|found| found == line),
                "{line:?} in\n{page}"
            );
        }
        assert!(
            !page.contains("bad_tag") && !page.contains("round_trip"),
            "{page}"
        );
    }
}
