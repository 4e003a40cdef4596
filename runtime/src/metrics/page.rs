//! A page of metric families.
//!
//! The families are those of the `prometheus` crate, whose encoder writes them. They are filled with
//! values read elsewhere, since what is counted here has its one writer and needs no second count.

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use crate::latency::{BUCKETS, Buckets, bucket_bounds_ns};

/// Label names and values of one series.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

/// Families in the order in which they were added.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    /// An empty page.
    pub fn new() -> Self {
        Page::default()
    }

    /// What only grows: a family with its series. `name` ends in `_total`.
    pub fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        debug_assert!(name.ends_with("_total"), "{name}");
        let metrics = series.into_iter().map(|(labels, value)| {
            let mut counter = Counter::default();
            counter.set_value(value);
            let mut metric = Metric::from_label(pairs(labels));
            metric.set_counter(counter);
            metric
        });
        self.family(name, help, MetricType::COUNTER, metrics.collect());
    }

    /// What is now: a family with its series.
    pub fn gauges<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        let metrics = series.into_iter().map(|(labels, value)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = Metric::from_label(pairs(labels));
            metric.set_gauge(gauge);
            metric
        });
        self.family(name, help, MetricType::GAUGE, metrics.collect());
    }

    /// One counter without labels.
    pub fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.counters(name, help, [(&[] as Labels<'_>, value)]);
    }

    /// One gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, [(&[] as Labels<'_>, value)]);
    }

    /// Times in seconds, by how often they were how long. `name` ends in `_seconds`.
    pub fn times<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'a>, Buckets)>,
    ) {
        debug_assert!(name.ends_with("_seconds"), "{name}");
        let metrics = series.into_iter().map(|(labels, times)| {
            let mut metric = Metric::from_label(pairs(labels));
            metric.set_histogram(histogram(&times));
            metric
        });
        self.family(name, help, MetricType::HISTOGRAM, metrics.collect());
    }

    fn family(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        // A family without a series is none.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }

    /// The families, in the order in which they were added.
    pub fn families(&self) -> &[MetricFamily] {
        &self.families
    }

    /// The page in Prometheus' text format, version 0.0.4.
    ///
    /// # Errors
    /// What the encoder says.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.families)
    }
}

fn pairs(labels: Labels<'_>) -> Vec<LabelPair> {
    let pair = |(name, value): &(&'static str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

fn histogram(times: &Buckets) -> Histogram {
    let mut counted = 0;
    let buckets = bucket_bounds_ns().zip(times.counts).map(|(bound, count)| {
        counted += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(seconds(bound));
        bucket.set_cumulative_count(counted);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counted + times.counts[BUCKETS - 1]);
    histogram.set_sample_sum(seconds(times.sum_ns));
    histogram
}

/// A count as a sample's value.
#[expect(
    clippy::cast_precision_loss,
    reason = "samples are floating-point numbers; a count beyond 2^53 loses its last digits there"
)]
pub fn float(count: u64) -> f64 {
    count as f64
}

/// Nanoseconds as seconds.
pub fn seconds(ns: u64) -> f64 {
    float(ns) / 1e9
}

/// A fact as a sample's value.
pub fn truth(fact: bool) -> f64 {
    if fact { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page::new();
        let mut times = Buckets::default();
        times.counts[0] = 2;
        times.counts[BUCKETS - 1] = 1;
        times.sum_ns = 70_000_002_000;
        page.counters(
            "ramjet_things_total",
            "Things by \"colour\"\\.",
            [
                (&[("colour", "a\"b")] as Labels<'_>, 2.0),
                (&[("colour", "c")], 0.0),
            ],
        );
        page.gauges("ramjet_none", "No series.", []);
        page.times(
            "ramjet_step_seconds",
            "Steps.",
            [(&[] as Labels<'_>, times)],
        );
        let text = page.text().expect("a page");
        for line in [
            "# HELP ramjet_things_total Things by \"colour\"\\\\.",
            "# TYPE ramjet_things_total counter",
            "ramjet_things_total{colour=\"a\\\"b\"} 2",
            "ramjet_things_total{colour=\"c\"} 0",
            "# TYPE ramjet_step_seconds histogram",
            "ramjet_step_seconds_bucket{le=\"0.000001024\"} 2",
            "ramjet_step_seconds_bucket{le=\"68.719476736\"} 2",
            "ramjet_step_seconds_bucket{le=\"+Inf\"} 3",
            "ramjet_step_seconds_sum 70.000002",
            "ramjet_step_seconds_count 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("ramjet_none"), "{text}");
    }
}
