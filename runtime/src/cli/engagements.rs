//! `ramjet engagements`: what was matched, newest first.
//!
//! `--json` prints one array of rows as the registry keeps them.

use ramjet_proto::market::message::EngagementRow;

use super::access::Access;
use super::args::EngagementsArgs;
use super::exit::{Exit, Failure};
use super::output::{Output, grouped, table};
use super::settings::Settings;

pub(super) fn run(
    args: &EngagementsArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let rows = Access::open(settings)?.engagements(args.who.as_deref(), args.limit)?;
    if output.json {
        output.object(&rows)?;
        return Ok(Exit::Ok);
    }
    if rows.is_empty() {
        output.say("no engagement yet");
        return Ok(Exit::Ok);
    }
    let header = [
        "ENGAGEMENT",
        "SKILL",
        "REQUESTER",
        "WORKER",
        "STATE",
        "ACCEPTED",
        "REJECTED",
        "EARNED",
        "GRANTED",
    ];
    let rows: Vec<_> = rows.iter().map(row).collect();
    output.data(&table(&header, &rows))?;
    Ok(Exit::Ok)
}

fn row(row: &EngagementRow) -> Vec<String> {
    let granted = std::time::UNIX_EPOCH + std::time::Duration::from_millis(row.granted_at_ms);
    vec![
        row.engagement.to_string(),
        row.skill.clone(),
        row.requester.to_string(),
        row.worker.to_string(),
        row.state.clone(),
        grouped(row.accepted),
        grouped(row.rejected),
        row.earned.to_string(),
        humantime::format_rfc3339_millis(granted).to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use ramjet_proto::ids::{EngagementId, NodeId};

    use super::*;

    #[test]
    fn a_row_shows_its_engagement() {
        let cells = row(&EngagementRow {
            engagement: EngagementId(7),
            skill: "echo".to_owned(),
            requester: NodeId(2),
            worker: NodeId(1),
            state: "released".to_owned(),
            offered_at_ms: 0,
            granted_at_ms: 86_400_123,
            released_at_ms: None,
            k: 3,
            accepted: 12_345,
            rejected: 0,
            earned: 1,
        });
        assert_eq!(
            cells,
            [
                "7",
                "echo",
                "2",
                "1",
                "released",
                "12,345",
                "0",
                "1",
                "1970-01-02T00:00:00.123Z"
            ]
        );
    }
}
