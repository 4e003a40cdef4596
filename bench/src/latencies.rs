//! What a histogram of latencies says: percentiles, a curve, and the two log formats of
//! HdrHistogram.
//!
//! Histograms count nanoseconds; what is told is in microseconds. A percentile is told only where
//! at least [`TAIL_SAMPLES_MIN`] samples lie beyond it: a 99.99th percentile of a thousand tasks
//! would be their maximum under another name. The maximum is always told.
//!
//! Absent: what was measured, and any average of percentiles.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriter, IntervalLogWriterBuilder, Tag};
use serde::Serialize;

/// Samples that must lie beyond a percentile for it to be told.
pub const TAIL_SAMPLES_MIN: u64 = 10;

/// Steps of a curve for each halving of the distance to 100 %.
const STEPS_PER_HALVING: u32 = 5;

/// The percentiles that are told, in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latencies {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50_us: Option<f64>,
    /// 90th percentile.
    pub p90_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
    /// 99.9th percentile.
    pub p999_us: Option<f64>,
    /// 99.99th percentile.
    pub p9999_us: Option<f64>,
    /// The longest.
    pub max_us: f64,
}

impl Latencies {
    /// What the histogram says; nothing of an empty one.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let told = |share: f64| {
            let beyond = histogram.len() as f64 * (1.0 - share);
            // Half a sample of slack for the rounding of `1.0 - share`.
            // A bucket's upper edge may lie beyond the longest sample.
            (beyond + 0.5 >= TAIL_SAMPLES_MIN as f64)
                .then(|| micros(histogram.value_at_quantile(share).min(histogram.max())))
        };
        Some(Self {
            count: histogram.len(),
            p50_us: told(0.5),
            p90_us: told(0.9),
            p99_us: told(0.99),
            p999_us: told(0.999),
            p9999_us: told(0.9999),
            max_us: micros(histogram.max()),
        })
    }
}

/// One point of a percentile curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Percentile, 0 to 100.
    pub percentile: f64,
    /// Latency below or at which that share of the samples lies, in microseconds.
    pub us: f64,
    /// Samples at or below it.
    pub count: u64,
}

/// The curve of a histogram, from its least to its longest sample, ever finer towards 100 %.
#[must_use]
pub fn curve(histogram: &Histogram<u64>) -> Vec<Point> {
    let mut count = 0;
    histogram
        .iter_quantiles(STEPS_PER_HALVING)
        .map(|step| {
            count += step.count_since_last_iteration();
            Point {
                percentile: step.quantile_iterated_to() * 100.0,
                us: micros(step.value_iterated_to()),
                count,
            }
        })
        .collect()
}

/// The percentile distribution as text, in the form that HdrHistogram's plotters read (`.hgrm`),
/// values in microseconds.
#[must_use]
pub fn distribution_text(histogram: &Histogram<u64>) -> String {
    let mut out = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    for point in curve(histogram) {
        let share = point.percentile / 100.0;
        let inverse = if share < 1.0 {
            format!("{:>14.2}", 1.0 / (1.0 - share))
        } else {
            format!("{:>14}", "inf")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:>12.3} {share:>14.12} {:>10} {inverse}",
            point.us, point.count
        );
    }
    let _ = write!(
        out,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n#[Max     = {:>12.3}, Total count    \
         = {:>12}]\n#[Buckets = {:>12}, SubBuckets     = {:>12}]\n",
        histogram.mean() / 1e3,
        histogram.stdev() / 1e3,
        micros(histogram.max()),
        histogram.len(),
        histogram.buckets(),
        sub_buckets(histogram.sigfig()),
    );
    out
}

/// Counters of a bucket at so many significant digits: the next power of two.
fn sub_buckets(digits: u8) -> u32 {
    (2 * 10_u32.pow(u32::from(digits))).next_power_of_two()
}

/// Latencies of one stretch of a run.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Its start after the start of the run.
    pub start: Duration,
    /// Its length.
    pub length: Duration,
    /// Latencies in nanoseconds of the tasks answered in it.
    pub latency: Histogram<u64>,
}

/// Writes an interval log of HdrHistogram (`.hlog`, version 2, compressed), values in nanoseconds.
/// `began` is the start of the run; without intervals it is the head of a log that
/// [`append_interval`] goes on with.
///
/// # Errors
/// What `out` says.
pub fn write_interval_log<'interval>(
    out: &mut impl io::Write,
    began: SystemTime,
    comment: &str,
    intervals: impl IntoIterator<Item = &'interval Interval>,
) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(comment)
        .with_start_time(began)
        .with_base_time(began)
        .begin_log_with(out, &mut serializer)?;
    for interval in intervals {
        write_interval(&mut log, interval)?;
    }
    Ok(())
}

/// Adds a line to an interval log that [`write_interval_log`] began.
///
/// # Errors
/// What `out` says.
pub fn append_interval(out: &mut impl io::Write, interval: &Interval) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    // A writer without comments and times begins without a head.
    let mut log = IntervalLogWriterBuilder::new().begin_log_with(out, &mut serializer)?;
    write_interval(&mut log, interval)
}

fn write_interval<Out: io::Write>(
    log: &mut IntervalLogWriter<'_, '_, Out, V2DeflateSerializer>,
    interval: &Interval,
) -> io::Result<()> {
    let written = log.write_histogram(
        &interval.latency,
        interval.start,
        interval.length,
        None::<Tag<'_>>,
    );
    written.map_err(|error| io::Error::other(format!("interval log: {error:?}")))
}

/// Nanoseconds as microseconds.
pub(crate) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    fn histogram(values: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(100, 60_000_000_000, 3).expect("bounds");
        for value in values {
            histogram.record(value).expect("within bounds");
        }
        histogram
    }

    #[test]
    fn a_percentile_with_too_few_samples_beyond_it_is_not_told() {
        let thousand = Latencies::of(&histogram((1..=1_000).map(|us| us * 1_000))).expect("some");
        let near =
            |told: Option<f64>, us: f64| told.is_some_and(|told| (told / us - 1.0).abs() < 0.002);
        assert!(near(thousand.p50_us, 500.0), "{thousand:?}");
        assert!(near(thousand.p99_us, 990.0), "{thousand:?}");
        assert_eq!((thousand.p999_us, thousand.p9999_us), (None, None));
        assert!(near(Some(thousand.max_us), 1_000.0), "{thousand:?}");
        assert_eq!(Latencies::of(&histogram([])), None);
        let one = Latencies::of(&histogram([5_000])).expect("one");
        assert_eq!((one.count, one.p50_us), (1, None));
    }

    #[test]
    fn the_curve_rises_to_the_longest_and_counts_all() {
        let points = curve(&histogram((1..=10_000).map(|us| us * 1_000)));
        assert!(points.windows(2).all(|two| two[0].us <= two[1].us));
        assert!(
            points
                .windows(2)
                .all(|two| two[0].percentile <= two[1].percentile)
        );
        let last = points.last().expect("points");
        assert!((last.percentile - 100.0).abs() < 1e-9, "{last:?}");
        assert_eq!(last.count, 10_000);
        assert!(points.len() > 30, "{}", points.len());
    }

    #[test]
    fn the_distribution_has_the_form_that_plotters_read() {
        let text = distribution_text(&histogram([1_000, 2_000, 3_000]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
        );
        let last = lines
            .iter()
            .rfind(|line| line.ends_with("inf"))
            .expect("100 %");
        let fields: Vec<&str> = last.split_whitespace().collect();
        assert_eq!((fields[1], fields[2]), ("1.000000000000", "3"), "{text}");
        assert!(text.contains("Total count    =            3"), "{text}");
    }

    #[test]
    fn the_interval_log_is_read_back_by_its_library() {
        let intervals: Vec<Interval> = [[1_000_u64, 2_000], [3_000, 9_000_000]]
            .into_iter()
            .zip(0..)
            .map(|(values, second)| Interval {
                start: Duration::from_secs(second),
                length: Duration::from_secs(1),
                latency: histogram(values),
            })
            .collect();
        let mut log = Vec::new();
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        write_interval_log(&mut log, began, "one\ntwo", &intervals[..1]).expect("memory");
        append_interval(&mut log, &intervals[1]).expect("memory");
        let mut read = Vec::new();
        for entry in IntervalLogIterator::new(&log) {
            if let Ok(LogEntry::Interval(interval)) = entry {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(interval.encoded_histogram())
                    .expect("base64");
                let histogram: Histogram<u64> = Deserializer::new()
                    .deserialize(&mut &bytes[..])
                    .expect("own");
                read.push((interval.start_timestamp(), histogram.len(), histogram.max()));
            }
        }
        assert_eq!(read.len(), 2);
        assert_eq!(read[1].0, Duration::from_secs(1));
        assert_eq!(read[1].1, 2);
        assert!(read[1].2.abs_diff(9_000_000) < 10_000, "{read:?}");
    }
}
