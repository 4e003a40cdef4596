//! A strict reader of Prometheus' text format, version 0.0.4: what a page must not do, fails.

use std::collections::{BTreeMap, BTreeSet};

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug)]
pub(super) struct Sample {
    /// The family's name, for a histogram with `_bucket`, `_sum` or `_count`.
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

#[derive(Debug)]
pub(super) struct Family {
    pub(super) kind: Type,
    pub(super) help: String,
    pub(super) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(super) struct Page {
    pub(super) families: BTreeMap<String, Family>,
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_lowercase())
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

impl Page {
    /// Reads a page, or panics at the first line that should not be.
    pub(super) fn read(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line ends too");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let (mut current, mut help) = (String::new(), None);
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, words) = rest.split_once(' ').expect("a text");
                help = Some((name.to_owned(), words.to_owned()));
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                let (helped, help) = help.take().expect("HELP before TYPE");
                assert_eq!(helped, name);
                assert!(is_name(name), "{name}");
                let kind = match kind {
                    "counter" => Type::Counter,
                    "gauge" => Type::Gauge,
                    "histogram" => Type::Histogram,
                    other => panic!("{name}: type {other}"),
                };
                name.clone_into(&mut current);
                let samples = Vec::new();
                let family = Family {
                    kind,
                    help,
                    samples,
                };
                assert!(
                    families.insert(current.clone(), family).is_none(),
                    "{name} twice"
                );
            } else {
                let sample = sample(line);
                let family = families.get_mut(&current).expect("TYPE before samples");
                let suffix = sample
                    .name
                    .strip_prefix(&current)
                    .unwrap_or_else(|| panic!("{line}"));
                let fits = match family.kind {
                    Type::Histogram => ["_bucket", "_sum", "_count"].contains(&suffix),
                    Type::Counter | Type::Gauge => suffix.is_empty(),
                };
                assert!(fits, "{line} in {current}");
                assert!(family.kind == Type::Gauge || sample.value >= 0.0, "{line}");
                family.samples.push(sample);
            }
        }
        let page = Page { families };
        page.check();
        page
    }

    fn check(&self) {
        for (name, family) in &self.families {
            assert!(!family.samples.is_empty(), "{name} has no series");
            let mut known = BTreeSet::new();
            for sample in &family.samples {
                let series = (&sample.name, &sample.labels);
                assert!(known.insert(series), "{name}: {series:?} twice");
            }
            if family.kind == Type::Histogram {
                check_histogram(name, family);
            }
        }
    }

    /// Every value of a series name, `_bucket`, `_sum` and `_count` included.
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        let samples = self.families.values().flat_map(|family| &family.samples);
        samples.filter(move |sample| sample.name == name)
    }

    /// The sum over all series of a name.
    #[track_caller]
    pub(super) fn sum(&self, name: &str) -> f64 {
        assert!(self.values(name).count() > 0, "no {name}");
        self.values(name).map(|sample| sample.value).sum()
    }

    /// The one series of a name with exactly these labels.
    #[track_caller]
    pub(super) fn one(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: BTreeMap<String, String> = labels
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect();
        let found = self.values(name).find(|sample| sample.labels == labels);
        found
            .unwrap_or_else(|| panic!("no {name} {labels:?}"))
            .value
    }
}

/// Buckets grow with their bounds and end with all.
fn check_histogram(name: &str, family: &Family) {
    let mut series = BTreeMap::<_, Vec<(f64, f64)>>::new();
    let without_bound = |sample: &Sample| {
        let labels = sample.labels.iter().filter(|(label, _)| *label != "le");
        labels
            .map(|(label, value)| (label.clone(), value.clone()))
            .collect::<Vec<_>>()
    };
    for sample in family
        .samples
        .iter()
        .filter(|sample| sample.name.ends_with("_bucket"))
    {
        let bound = sample.labels["le"].replace("+Inf", "inf");
        let bucket = (bound.parse().expect("a number"), sample.value);
        series
            .entry(without_bound(sample))
            .or_default()
            .push(bucket);
    }
    for sample in family
        .samples
        .iter()
        .filter(|sample| sample.name.ends_with("_count"))
    {
        let buckets = &series[&without_bound(sample)];
        assert!(
            buckets.is_sorted_by(|one, other| one.0 < other.0 && one.1 <= other.1),
            "{name}"
        );
        assert_eq!(
            buckets.last(),
            Some(&(f64::INFINITY, sample.value)),
            "{name}"
        );
    }
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
    let (name, rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest, line),
        None => (BTreeMap::new(), rest),
    };
    let value = value.trim_start();
    let value = value
        .parse()
        .unwrap_or_else(|error| panic!("{error}: {line}"));
    Sample {
        name: name.to_owned(),
        labels,
        value,
    }
}

/// Labels up to their closing brace, and what follows it.
fn labels<'a>(mut rest: &'a str, line: &str) -> (BTreeMap<String, String>, &'a str) {
    let mut labels = BTreeMap::new();
    loop {
        let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        assert!(is_name(label), "{line}");
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (at, letter) in after.char_indices() {
            match (escaped, letter) {
                (true, 'n') => value.push('\n'),
                (true, '\\' | '"') => value.push(letter),
                (true, _) => panic!("{line}"),
                (false, '"') => {
                    end = Some(at);
                    break;
                }
                (false, '\\') => {}
                (false, _) => value.push(letter),
            }
            escaped = !escaped && letter == '\\';
        }
        let end = end.unwrap_or_else(|| panic!("{line}"));
        assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
        rest = &after[end + 1..];
        match rest.as_bytes().first() {
            Some(b',') => rest = &rest[1..],
            Some(b'}') => return (labels, &rest[1..]),
            _ => panic!("{line}"),
        }
    }
}
