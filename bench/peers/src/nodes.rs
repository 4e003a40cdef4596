//! `nodes`: released daemons and ramjet nodes, in pairs, doing what plain Pilot programs do.
//!
//! ```text
//!   this program ── local socket ── node that asks ══ sealed UDP ══ node that answers
//!                                        └───── ramjet registry ─────┘
//! ```
//!
//! Four pairs (a daemon or a ramjet node on either side) take turns, forwards and backwards, each
//! time with fresh nodes: 64-byte round trips over an established stream, a transfer through the
//! echo service, and acknowledged messages through data exchange. The program is the same for all
//! and speaks Pilot's driver protocol. A pair's figure is the median of its turns; its ratio is the
//! median of the ratios to the pair of daemons in the same turn, above 1 where it is ahead.
//!
//! The round trip stands beside that of the same hops without a node: two threads that block, a local
//! socket before the first and UDP between them. What it takes, sleeping processes cannot undercut.
//!
//! Invariants: while a pair runs, no other is there; a pair that fails ends the run with words.

mod hops;

use std::time::Duration;

use serde::Serialize;

use crate::failure::Failure;
use crate::load::Load;
use crate::pilot::{self, Fleet, Kind, Programs, Writes};

/// Who asks and who answers; the first is what the others are compared with.
const PAIRS: [[Kind; 2]; 4] = [
    [Kind::Daemon, Kind::Daemon],
    [Kind::Ramjet, Kind::Ramjet],
    [Kind::Ramjet, Kind::Daemon],
    [Kind::Daemon, Kind::Ramjet],
];

const ROUND_TRIP: Load = Load {
    payload_len: 64,
    window: 1,
    warm_up: Duration::from_millis(300),
    run: Duration::from_secs(1),
};
/// Messages of 64 bytes, of which 256 are unacknowledged at a time. The receiver keeps each as a file
/// in its inbox, which holds 10,000.
const MESSAGES: u64 = 6_000;
/// Bytes through the echo.
const ECHO_LEN: u64 = 64 << 20;

/// What is measured of a pair, and its unit; whether less is better.
const MEASURES: [(&str, &str, bool); 4] = [
    ("round trip of 64 B, p50", "us", true),
    ("round trip of 64 B, p99", "us", true),
    ("64 MiB through echo", "MB/s", false),
    ("messages of 64 B", "1/s", false),
];

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    measure: &'static str,
    unit: &'static str,
    /// Who asks and who answers.
    pair: String,
    /// Median of the turns.
    figure: f64,
    /// Of each turn.
    turns: Vec<f64>,
    /// Median of the ratios to the pair of daemons, above 1 where this pair is ahead.
    ratio: f64,
}

/// Measures all pairs `turns` times.
///
/// # Errors
/// If a node does not start, or what comes back is wrong.
pub(crate) async fn compare(programs: &Programs, turns: usize) -> Result<Vec<Row>, Failure> {
    let mut figures = vec![Vec::with_capacity(turns); PAIRS.len()];
    let mut hops = Vec::with_capacity(turns);
    for turn in 0..turns {
        let mut order: Vec<usize> = (0..PAIRS.len()).collect();
        if turn % 2 == 1 {
            order.reverse();
        }
        for pair in order {
            figures[pair].push(measure(programs, PAIRS[pair]).await?);
        }
        hops.push(hops::round_trips(&ROUND_TRIP).await?);
    }
    Ok(rows(&figures, &hops))
}

async fn measure(programs: &Programs, kinds: [Kind; 2]) -> Result<[f64; 4], Failure> {
    let mut fleet = Fleet::start(programs, kinds).await?;
    let measured = on(&mut fleet).await;
    fleet.end().await;
    measured.map_err(|failure| {
        let [asks, answers] = kinds.map(Kind::name);
        failure.within(&format!("{asks} to {answers}"))
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate has no more than four digits of meaning"
)]
async fn on(fleet: &mut Fleet) -> Result<[f64; 4], Failure> {
    let node = fleet.answering;
    let link = &mut fleet.asking;
    let trips = pilot::drive(link, node, 1, Writes::Single, &ROUND_TRIP).await?;
    pilot::is_sealed(link, node).await?;
    let echo = pilot::echo(link, node, ECHO_LEN).await?;
    let messages = pilot::messages(link, node, MESSAGES).await?;
    Ok([
        trips.quantile_us(0.5),
        trips.quantile_us(0.99),
        ECHO_LEN as f64 / 1e6 / echo.as_secs_f64(),
        MESSAGES as f64 / messages.as_secs_f64(),
    ])
}

fn rows(figures: &[Vec<[f64; 4]>], hops: &[[f64; 2]]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (at, (measure, unit, less)) in MEASURES.into_iter().enumerate() {
        let daemons: Vec<f64> = figures[0].iter().map(|turn| turn[at]).collect();
        let row =
            |pair: String, turns: Vec<f64>| {
                let ratios = turns.iter().zip(&daemons).map(|(&own, &daemons)| {
                    if less { daemons / own } else { own / daemons }
                });
                Row {
                    measure,
                    unit,
                    pair,
                    figure: median(turns.iter().copied()),
                    ratio: median(ratios),
                    turns,
                }
            };
        for (kinds, turns) in PAIRS.iter().zip(figures) {
            let [asks, answers] = kinds.map(Kind::name);
            let turns = turns.iter().map(|turn| turn[at]).collect();
            rows.push(row(format!("{asks} {answers}"), turns));
        }
        if let Some(turns) = hops.iter().map(|turn| turn.get(at).copied()).collect() {
            rows.push(row("the hops alone".to_owned(), turns));
        }
    }
    rows
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The table for people.
pub(crate) fn text(rows: &[Row], turns: usize) -> String {
    let mut text = format!(
        "pairs of nodes, {turns} turns each, medians; daemons of {}; every process on its defaults, nothing pinned\n\n{:<26}{:<20}{:>14}{:>10}\n",
        pilot::VERSION,
        "measure",
        "asks, answers",
        "figure",
        "ratio"
    );
    for row in rows {
        let figure = format!("{:.1} {}", row.figure, row.unit);
        text.push_str(&format!(
            "{:<26}{:<20}{figure:>14}{:>9.2}x\n",
            row.measure, row.pair, row.ratio
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_the_same_turn_and_above_one_where_the_pair_is_ahead() {
        let daemons = vec![[100.0, 200.0, 10.0, 1_000.0], [200.0, 200.0, 20.0, 1_000.0]];
        let ours = vec![[50.0, 400.0, 30.0, 4_000.0], [50.0, 100.0, 60.0, 2_000.0]];
        let rows = rows(
            &[daemons.clone(), ours, daemons.clone(), daemons],
            &[[10.0, 20.0]; 2],
        );
        let of = |at: usize| {
            let mut of = rows.iter().filter(|row| row.measure == MEASURES[at].0);
            let ours = of.find(|row| row.pair == "ramjet ramjet").expect("a row");
            (ours.figure, ours.ratio)
        };
        assert_eq!(of(0), (50.0, 3.0));
        assert_eq!(of(1), (250.0, 1.25));
        assert_eq!(of(2), (45.0, 3.0));
        assert_eq!(of(3), (3_000.0, 3.0));
        assert_eq!(rows[0].ratio.to_bits(), 1.0_f64.to_bits());
        let alone = rows.iter().filter(|row| row.pair == "the hops alone");
        assert_eq!(alone.count(), 2, "of the round trip only");
        assert!(text(&rows, 2).contains("64 MiB through echo"));
    }
}
