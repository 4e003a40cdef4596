//! `monitoring/`: every name, label and label value that its alerts, its dashboard and its page of
//! names use is on a page that a node or a registry really serves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use super::{after_800_tasks, scrape};

/// What Prometheus adds to every series.
const ADDED: [&str; 3] = ["job", "instance", "le"];
/// What it makes by itself.
const OWN: &str = "up";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring")
}

fn read(name: &str) -> String {
    let path = folder().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Where promtool is, if this host has it.
pub(super) fn promtool() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join("promtool"))
        .find(|file| file.is_file())
}

/// Series names with the values of each of their labels.
struct Exported(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Exported {
    /// By a node and by a registry, once tasks were done.
    fn all() -> (Self, BTreeSet<String>) {
        let (market, worker) = after_800_tasks();
        let pages = [
            scrape(market.metrics),
            scrape(worker.metrics.expect("it serves them")),
        ];
        let mut series: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        let mut names = BTreeSet::new();
        for (name, family) in pages.iter().flat_map(|page| &page.families) {
            names.insert(name.clone());
            for sample in &family.samples {
                let labels = series.entry(sample.name.clone()).or_default();
                for (label, value) in &sample.labels {
                    labels
                        .entry(label.clone())
                        .or_default()
                        .insert(value.clone());
                }
            }
        }
        (Exported(series), names)
    }

    /// Panics unless everything that an expression asks for is there.
    fn check(&self, expression: &str) {
        let mut found = 0;
        let mut rest = expression;
        let mut labels: BTreeSet<&str> = ADDED.into();
        while let Some(start) =
            rest.find(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
        {
            let word = rest[start..]
                .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            let word = word.into_iter().next().unwrap_or("");
            let after = &rest[start + word.len()..];
            let selects = after.starts_with(['{', '['])
                || word.starts_with("ramjet_")
                || word.starts_with("process_");
            // Grafana's variables are no series, and neither is what stands in quotes.
            let variable = rest[..start].ends_with('$');
            if selects && !variable {
                found += 1;
                let known = self.0.get(word);
                assert!(
                    known.is_some() || word == OWN,
                    "{word} is not exported: {expression}"
                );
                labels.extend(known.into_iter().flatten().map(|(label, _)| label.as_str()));
                if let Some(matchers) = after.strip_prefix('{') {
                    let (matchers, after) = matchers.split_once('}').expect("a closing brace");
                    self.check_matchers(word, matchers, expression);
                    rest = after;
                    continue;
                }
            }
            rest = after;
        }
        assert!(found > 0, "no series in {expression}");
        for (at, words) in expression.match_indices(" by (") {
            let grouped = &expression[at + words.len()..];
            let (grouped, _) = grouped.split_once(')').expect("a closing parenthesis");
            for label in grouped.split(',').map(str::trim) {
                assert!(
                    labels.contains(label),
                    "{label} is no label of {expression}"
                );
            }
        }
    }

    fn check_matchers(&self, series: &str, matchers: &str, expression: &str) {
        for matcher in matchers
            .split("\",")
            .filter(|matcher| !matcher.trim().is_empty())
        {
            let at = matcher
                .find(['=', '!'])
                .unwrap_or_else(|| panic!("{matcher}: {expression}"));
            let label = matcher[..at].trim();
            if ADDED.contains(&label) {
                continue;
            }
            let values = self.0.get(series).and_then(|labels| labels.get(label));
            let values =
                values.unwrap_or_else(|| panic!("{series} has no label {label}: {expression}"));
            let wanted = matcher[at..]
                .trim_start_matches(['=', '!', '~', '"'])
                .trim_end_matches('"');
            for value in wanted.split('|') {
                // An event has a series only once it occurred.
                let there = values.contains(value) || label == "event";
                assert!(there, "{series} has no {label} {value:?}: {expression}");
            }
        }
    }
}

/// Every text under this key, however deep.
fn texts<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if name == key => found.push(text),
                    _ => texts(member, key, found),
                }
            }
        }
        Value::Array(members) => members.iter().for_each(|member| texts(member, key, found)),
        _ => {}
    }
}

#[test]
fn alerts_dashboard_and_the_page_of_names_ask_for_what_is_exported() {
    let (exported, names) = Exported::all();

    let rules = YamlLoader::load_from_str(&read("ramjet.rules.yml")).expect("YAML");
    let groups = rules[0]["groups"].as_vec().expect("groups");
    let mut alerts = BTreeSet::new();
    for rule in groups
        .iter()
        .flat_map(|group| group["rules"].as_vec().expect("rules"))
    {
        let name = rule["alert"].as_str().expect("each rule is an alert");
        assert!(alerts.insert(name), "{name} twice");
        exported.check(rule["expr"].as_str().expect("an expression"));
        let severity = rule["labels"]["severity"].as_str();
        assert!(
            matches!(severity, Some("page" | "ticket")),
            "{name}: {severity:?}"
        );
        for words in ["summary", "description"] {
            let words = &rule["annotations"][words];
            assert!(
                matches!(words, Yaml::String(text) if text.len() > 20),
                "{name}: {words:?}"
            );
        }
    }
    assert!(alerts.len() >= 15, "{alerts:?}");

    let board: Value = serde_json::from_str(&read("ramjet-dashboard.json")).expect("JSON");
    let mut expressions = Vec::new();
    texts(&board["panels"], "expr", &mut expressions);
    texts(&board["templating"], "definition", &mut expressions);
    assert!(expressions.len() >= 20, "{} panels", expressions.len());
    for expression in expressions {
        exported.check(expression);
    }
    let panels = board["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");

    let page = read("README.md");
    let listed: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .filter(|name| name.starts_with("ramjet_") || name.starts_with("process_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        listed, names,
        "monitoring/README.md lists every family, and no other"
    );
}

#[test]
fn a_name_that_is_not_exported_is_found() {
    let labels = BTreeMap::from([("reason".to_owned(), BTreeSet::from(["replay".to_owned()]))]);
    let exported = Exported(BTreeMap::from([(
        "ramjet_dropped_total".to_owned(),
        labels,
    )]));
    let is_fine =
        |expression: &str| std::panic::catch_unwind(|| exported.check(expression)).is_ok();
    for fine in [
        "rate(ramjet_dropped_total[5m]) > 1",
        "sum by (instance, reason) (rate(ramjet_dropped_total{job=~\"$job\"}[$__rate_interval]))",
        "ramjet_dropped_total{instance=\"a\", reason=~\"replay\"}",
        "up{job=\"ramjet\"} == 0",
    ] {
        assert!(is_fine(fine), "{fine}");
    }
    for wrong in [
        "rate(ramjet_droped_total[5m])",
        "rate(rmjet_dropped_total[5m])",
        "ramjet_dropped_total{cause=\"replay\"}",
        "ramjet_dropped_total{reason=~\"replay|old\"}",
        "sum by (peer) (rate(ramjet_dropped_total[5m]))",
        "vector(1)",
    ] {
        assert!(!is_fine(wrong), "{wrong}");
    }
}

#[test]
fn promtool_takes_the_alerts() {
    let Some(promtool) = promtool() else {
        eprintln!("no promtool here (Debian: prometheus): its opinion is not asked for");
        return;
    };
    let output = Command::new(promtool)
        .args(["check", "rules"])
        .arg(folder().join("ramjet.rules.yml"))
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
}
