//! What is printed: one object a line.

use serde::Serialize;

use crate::load::{Load, Measured};
use crate::peer::{Present, Setting, Threads};

/// A setting that was tried, and its rate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tried {
    /// Its name.
    pub(crate) setting: &'static str,
    /// Its rate in the trial.
    pub(crate) tasks_per_s: f64,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    peer: &'static str,
    version: String,
    setting: &'static str,
    settings: String,
    tried: Vec<Tried>,
    encrypted: bool,
    payload: usize,
    window: usize,
    tasks: u64,
    lost: u64,
    seconds: f64,
    tasks_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    command: String,
}

impl Report {
    /// The report of `measured`.
    pub(crate) fn new(
        present: &Present,
        setting: &Setting,
        tried: Vec<Tried>,
        load: &Load,
        measured: &Measured,
    ) -> Self {
        let tenth = |value: f64| (value * 10.0).round() / 10.0;
        Report {
            peer: present.peer.name(),
            version: present.version.clone(),
            setting: setting.name,
            settings: words(present, setting, &tried),
            tried,
            encrypted: present.peer.encrypted(),
            payload: load.payload_len,
            window: load.window,
            tasks: measured.tasks(),
            lost: measured.lost,
            seconds: measured.seconds(),
            tasks_per_s: tenth(measured.tasks_per_s()),
            p50_us: tenth(measured.quantile_us(0.5)),
            p99_us: tenth(measured.quantile_us(0.99)),
            p999_us: tenth(measured.quantile_us(0.999)),
            max_us: tenth(measured.max_us()),
            command: command(present, setting, load),
        }
    }
}

/// What was chosen and why.
fn words(present: &Present, setting: &Setting, tried: &[Tried]) -> String {
    let threads = match setting.threads {
        Threads::Multi => "a thread for each core in each process",
        Threads::Single => "one thread in each process",
    };
    let mut words = format!(
        "{}; {}: {threads}, window over {}",
        present.peer.words(),
        setting.name,
        present.peer.spread(setting)
    );
    if !tried.is_empty() {
        let rates: Vec<String> = tried
            .iter()
            .map(|one| format!("{} {:.0}/s", one.setting, one.tasks_per_s))
            .collect();
        words.push_str(&format!("; the fastest of {}", rates.join(", ")));
    }
    words
}

/// The command that repeats the run.
fn command(present: &Present, setting: &Setting, load: &Load) -> String {
    format!(
        "ramjet-bench-peers run --peer {} --setting {} --payload {} --window {} --seconds {} \
         --warm-up-ms {}",
        present.peer.name(),
        setting.name,
        load.payload_len,
        load.window,
        load.run.as_secs_f64(),
        load.warm_up.as_millis()
    )
}

/// Whether a peer is here.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Listed {
    /// Its name.
    pub(crate) peer: &'static str,
    /// Whether it can be run.
    pub(crate) available: bool,
    /// Its version, if it is here.
    pub(crate) version: Option<String>,
    /// Whether what travels is sealed.
    pub(crate) encrypted: bool,
    /// Why it cannot be run.
    pub(crate) reason: Option<String>,
    /// What makes it available.
    pub(crate) install: &'static str,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::load::Phase;
    use crate::peer::{Peer, Places};

    #[tokio::test(start_paused = true)]
    async fn a_report_is_one_line_with_the_agreed_members() {
        let load = Load {
            payload_len: 64,
            window: 16,
            warm_up: Duration::from_millis(300),
            run: Duration::from_secs(2),
        };
        let phase = Phase::begin(&load);
        let mut measured = Measured::new(phase).expect("a histogram");
        let sent = tokio::time::Instant::now() + Duration::from_secs(1);
        measured.record(sent, sent + Duration::from_micros(150));
        let present = Peer::Tonic.find(&Places::default()).expect("built in");
        let setting = Peer::Tonic.setting("multi-2").expect("it has one");
        let tried = vec![Tried {
            setting: "multi-2",
            tasks_per_s: 7.0,
        }];
        let report = Report::new(&present, &setting, tried, &load, &measured);
        let line = serde_json::to_string(&report).expect("plain data");
        assert!(!line.contains('\n'));
        let object: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(object["peer"], "tonic");
        assert_eq!(object["encrypted"], false);
        assert_eq!(
            (&object["payload"], &object["window"]),
            (&64.into(), &16.into())
        );
        assert_eq!((&object["tasks"], &object["lost"]), (&1.into(), &0.into()));
        assert_eq!(object["seconds"], 2.0);
        assert_eq!(object["tasks_per_s"], 0.5);
        for quantile in ["p50_us", "p99_us", "p999_us", "max_us"] {
            let us = object[quantile].as_f64().expect(quantile);
            assert!((149.9..=150.2).contains(&us), "{quantile}: {us}");
        }
        let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
        assert!(text("version").starts_with("0."), "{line}");
        assert!(text("settings").contains("2 connections"), "{line}");
        assert!(
            text("settings").contains("the fastest of multi-2 7/s"),
            "{line}"
        );
        assert_eq!(
            text("command"),
            "ramjet-bench-peers run --peer tonic --setting multi-2 --payload 64 --window 16 \
             --seconds 2 --warm-up-ms 300"
        );
    }
}
