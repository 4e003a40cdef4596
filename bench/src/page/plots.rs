//! Which lines a page draws.

use super::Curve;
use super::chart::{Axis, Chart, Scale, Series};
use super::markup::{round_latency, short};
use crate::ladder::{Ladder, Rung};
use crate::latencies::{Latencies, Point};
use crate::soak::SoakReport;

/// Where a percentile lies on its axis: the distance to 100 % in decades.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).max(1e-12).log10()
}

/// Percentiles that the axis names.
const NAMED: [f64; 7] = [0.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999];

/// Distributions over an axis that stretches the tail.
pub(super) fn distributions<'curve>(
    curves: impl Iterator<Item = (&'curve str, &'curve [Point], bool)>,
) -> Option<String> {
    let series: Vec<Series> = curves
        .enumerate()
        .filter(|(_, (_, points, _))| !points.is_empty())
        .map(|(colour, (name, points, open))| Series {
            name: name.to_owned(),
            points: line_of(points),
            dots: false,
            open,
            colour,
        })
        .collect();
    let places = || series.iter().flat_map(|series| &series.points);
    let end = places().map(|(x, _)| *x).fold(0.0_f64, f64::max).max(2.0);
    if series.is_empty() {
        return None;
    }
    let ticks = NAMED
        .iter()
        .map(|percentile| (nines(*percentile), format!("{percentile} %")));
    let chart = Chart {
        title: "latency by percentile".to_owned(),
        x: Axis {
            label: "percentile".to_owned(),
            scale: Scale::Linear,
            low: 0.0,
            high: end,
            ticks: ticks.filter(|(place, _)| *place <= end).collect(),
        },
        y: Axis::logarithmic("latency", places().map(|(_, y)| *y), round_latency),
        series,
    };
    Some(chart.svg())
}

/// The points of a curve. The longest sample lies at 100 %, which no such axis reaches; it is drawn
/// where one sample of all is left beyond.
fn line_of(points: &[Point]) -> Vec<(f64, f64)> {
    let count = points.last().map_or(1, |last| last.count.max(1));
    let end = (count as f64).log10().max(0.0);
    points
        .iter()
        .map(|point| (nines(point.percentile).min(end), point.us))
        .collect()
}

/// The distributions of a ladder's rungs.
pub(super) fn rungs(ladder: &Ladder) -> Option<String> {
    distributions(
        ladder
            .all()
            .map(|rung| (rung.name.as_str(), rung.curve.as_slice(), !rung.is_valid())),
    )
}

/// The distributions behind cases.
pub(super) fn curves(curves: &[Curve]) -> Option<String> {
    distributions(
        curves
            .iter()
            .map(|curve| (curve.name.as_str(), curve.points.as_slice(), false)),
    )
}

type Percentile = fn(&Latencies) -> Option<f64>;

/// Percentiles over the offered load.
pub(super) fn load(ladder: &Ladder) -> Option<String> {
    let told: [(&str, usize, Percentile); 3] = [
        ("p50", 0, |told| told.p50_us),
        ("p99", 3, |told| told.p99_us),
        ("p99.9", 5, |told| told.p999_us),
    ];
    let place =
        |rung: &Rung, of: Percentile| rung.offered_per_s.zip(rung.latencies.as_ref().and_then(of));
    let mut series: Vec<Series> = told
        .iter()
        .map(|(name, colour, of)| Series {
            name: (*name).to_owned(),
            points: ladder
                .rungs
                .iter()
                .filter_map(|rung| place(rung, *of))
                .collect(),
            dots: true,
            open: ladder.rungs.iter().any(|rung| rung.forced),
            colour: *colour,
        })
        .filter(|series| series.points.len() > 1)
        .collect();
    if series.is_empty() {
        return None;
    }
    let offered = ladder.rungs.iter().filter_map(|rung| rung.offered_per_s);
    let end = ladder
        .capacity_per_s
        .into_iter()
        .chain(offered)
        .fold(0.0, f64::max);
    if let Some(p50) = ladder.unloaded.as_ref().and_then(Rung::p50_us) {
        series.push(Series {
            name: "p50, one outstanding".to_owned(),
            points: vec![(0.0, p50), (end, p50)],
            dots: false,
            open: true,
            colour: 7,
        });
    }
    let values = series
        .iter()
        .flat_map(|series| series.points.iter().map(|(_, us)| *us));
    let chart = Chart {
        title: "latency over offered load".to_owned(),
        x: Axis::from_zero("offered tasks per second", end, short),
        y: Axis::logarithmic("latency", values, round_latency),
        series,
    };
    Some(chart.svg())
}

/// Percentiles over the time of a soak.
pub(super) fn soak_latency(soak: &SoakReport) -> Option<String> {
    type Figure = fn(&crate::soak::SoakInterval) -> Option<f64>;
    let told: [(&str, usize, Figure); 3] = [
        ("p50", 0, |interval| interval.p50_us),
        ("p99", 3, |interval| interval.p99_us),
        ("max", 5, |interval| interval.max_us),
    ];
    let series: Vec<Series> = told
        .iter()
        .map(|(name, colour, of)| Series {
            name: (*name).to_owned(),
            points: over_time(soak, *of),
            dots: true,
            open: false,
            colour: *colour,
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return None;
    }
    let values = series
        .iter()
        .flat_map(|series| series.points.iter().map(|(_, us)| *us));
    let chart = Chart {
        title: "latency over time".to_owned(),
        x: Axis::from_zero("seconds", end_of(soak), |s| format!("{s:.0}")),
        y: Axis::logarithmic("latency", values, round_latency),
        series,
    };
    Some(chart.svg())
}

/// Resident memory over the time of a soak.
pub(super) fn soak_memory(soak: &SoakReport) -> Option<String> {
    let mebibytes = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let points = over_time(soak, |interval| interval.resident_bytes.map(mebibytes));
    let high = points.iter().map(|(_, mib)| *mib).fold(0.0, f64::max);
    if points.is_empty() {
        return None;
    }
    let mut series = vec![Series {
        name: "resident".to_owned(),
        points,
        dots: true,
        open: false,
        colour: 1,
    }];
    let bound = soak.resident.map(|drift| drift.bound / (1 << 20) as f64);
    if let Some(bound) = bound {
        series.push(Series {
            name: "bound".to_owned(),
            points: vec![(0.0, bound), (end_of(soak), bound)],
            dots: false,
            open: true,
            colour: 7,
        });
    }
    let chart = Chart {
        title: "resident memory over time".to_owned(),
        x: Axis::from_zero("seconds", end_of(soak), |s| format!("{s:.0}")),
        y: Axis::from_zero("MiB", bound.unwrap_or(high).max(high), |mib| {
            format!("{mib:.0}")
        }),
        series,
    };
    Some(chart.svg())
}

fn end_of(soak: &SoakReport) -> f64 {
    soak.intervals
        .last()
        .map_or(1.0, |last| last.start_s + last.seconds)
}

fn over_time(
    soak: &SoakReport,
    of: impl Fn(&crate::soak::SoakInterval) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let points = soak.intervals.iter().filter_map(|interval| {
        let middle = interval.start_s + interval.seconds / 2.0;
        Some((middle, of(interval)?))
    });
    points.collect()
}
