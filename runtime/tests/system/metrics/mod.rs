//! Metrics: what is on the pages is right, in Prometheus' format, and what the alerts and the
//! dashboard ask for.

mod monitoring;
mod page;
mod push;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Market, Process, Worker, counter, ramjet, until};
use page::{Page, Type};

/// The longest that one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server answers to these bytes, until it closes.
fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    answer
}

/// Head and body of `GET /metrics`.
fn fetch(address: SocketAddr) -> (String, String) {
    let answer = exchange(address, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

fn scrape(address: SocketAddr) -> Page {
    let (head, body) = fetch(address);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let format = "content-type: text/plain; version=0.0.4";
    assert!(head.to_ascii_lowercase().contains(format), "{head}");
    Page::read(&body)
}

/// A market in which a worker did 500 tasks itself and 300 by an agent, and that worker.
fn after_800_tasks() -> (Market, Worker) {
    let market = Market::start();
    let arguments = ["--agent", "tr=lines:tr a-z A-Z", "--accept-from", "anyone"];
    let metrics = ["--metrics", "127.0.0.1:0"];
    let worker = market.worker("worker", "echo", &[&arguments[..], &metrics].concat());
    until("the agent is ready", || {
        (worker.status()["agents"][0]["ready"] == 1).then_some(())
    });
    // The registry hears of the agent's skill only after the node itself.
    until("the agent's skill is listed", || {
        let rows = market.run(&["resolve", "--json", "--filter", "skills=tr"]);
        let rows = rows.json();
        let mut rows = rows.as_array()?.iter();
        rows.any(|row| row["node"] == worker.node).then_some(())
    });
    for (skill, tasks) in [("echo", 500), ("tr", 300)] {
        let lines: Vec<String> = (0..tasks).map(|line| format!("line {line}")).collect();
        let file = market.file("lines.txt", lines.join("\n"));
        let lines = ["--lines", file.to_str().expect("text")];
        market.submit("requester", skill, &lines).expect(0);
    }
    (market, worker)
}

#[test]
fn the_page_of_a_node_says_what_its_status_says() {
    let (_market, worker) = after_800_tasks();
    let page = scrape(worker.metrics.expect("it serves them"));
    let status = worker.status();
    let tasks = page.sum("ramjet_worker_tasks_run_total");
    assert_eq!(tasks, 800.0);
    assert_eq!(tasks, counter(&status, "tasks_run") as f64);
    for stage in ["queue", "handler"] {
        let count = page.one("ramjet_task_stage_seconds_count", &[("stage", stage)]);
        assert_eq!(count, 800.0, "{stage}");
        let sum = page.one("ramjet_task_stage_seconds_sum", &[("stage", stage)]);
        assert!(sum > 0.0 && sum < 800.0 * 90.0, "{stage}: {sum} s");
    }
    assert_eq!(page.one("ramjet_task_round_trip_seconds_count", &[]), 0.0);
    for fact in ["registered", "registry_reached", "task_ready", "control_up"] {
        assert_eq!(page.one(&format!("ramjet_node_{fact}"), &[]), 1.0, "{fact}");
    }
    assert_eq!(page.one("ramjet_node_failed", &[]), 0.0);
    let polo = status["polo"].as_i64().expect("a number");
    assert_eq!(page.one("ramjet_node_polo", &[]), polo as f64);
    let connects = page.one(
        "ramjet_control_events_total",
        &[("event", "link_market_connects")],
    );
    assert_eq!(
        connects,
        counter(&status, "control_link_market_connects") as f64
    );
    // The laws of docs/ARCHITECTURE.md, section 5, hold on the page too.
    let worker = |what: &str| page.sum(&format!("ramjet_worker_{what}_total"));
    assert_eq!(
        worker("datagrams_received"),
        worker("datagrams_delivered") + worker("datagrams_handled") + worker("datagrams_dropped")
    );
    assert_eq!(
        page.sum("ramjet_dropped_total"),
        worker("datagrams_dropped") + worker("frames_dropped") + worker("sends_dropped")
    );
    assert!(page.sum("ramjet_worker_busy_seconds_total") > 0.0);
    assert!(page.one("process_resident_memory_bytes", &[]) > 1e6);
    assert!(page.one("process_cpu_seconds_total", &[]) > 0.0);
    let started = page.one("process_start_time_seconds", &[]);
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs_f64();
    assert!(
        started <= now + 1.0 && started > now - 600.0,
        "{started} of {now}"
    );
}

#[test]
fn the_page_of_a_node_says_what_its_agents_did() {
    let (_market, worker) = after_800_tasks();
    let page = scrape(worker.metrics.expect("it serves them"));
    let of_skill = [("skill", "tr")];
    let value = |what: &str| page.one(&format!("ramjet_agent{what}"), &of_skill);
    assert_eq!((value("s"), value("s_ready")), (1.0, 1.0));
    assert_eq!(value("_tasks_waiting"), 0.0);
    assert_eq!(value("_batch_tasks_total"), 300.0);
    let batches = value("_batches_total");
    assert!((1.0..=300.0).contains(&batches), "{batches}");
    assert!(value("_batch_places_total") >= 300.0);
    assert_eq!(page.sum("ramjet_agent_batches_closed_total"), batches);
    let with = |label, labelled| [("skill", "tr"), (label, labelled)];
    let done = page.one("ramjet_agent_tasks_total", &with("outcome", "done"));
    assert_eq!(done, 300.0);
    for (stage, count) in [("queue", 300.0), ("gather", batches), ("run", batches)] {
        let counted = page.one("ramjet_agent_stage_seconds_count", &with("stage", stage));
        assert_eq!(counted, count, "{stage}");
    }
    for nothing in [
        "deaths",
        "stalls",
        "restarts",
        "wasted_tasks",
        "poison_tasks",
    ] {
        assert_eq!(value(&format!("_{nothing}_total")), 0.0, "{nothing}");
    }
    assert_eq!(page.sum("ramjet_agent_breaches_total"), 0.0);
}

#[test]
fn the_page_of_a_registry_says_what_it_counted() {
    let (mut market, _worker) = after_800_tasks();
    let page = scrape(market.metrics);
    let value = |what: &str| page.one(&format!("ramjet_registry_{what}"), &[]);
    assert_eq!(value("offers_opened_total"), 2.0);
    assert_eq!(value("grants_total"), 2.0);
    assert_eq!(value("nodes_on_file"), 2.0);
    assert_eq!(value("engagements_on_file"), 2.0);
    assert_eq!(
        page.sum("ramjet_registry_refused_total"),
        value("requests_refused_total")
    );
    assert_eq!(page.sum("ramjet_registry_message_faults_total"), 0.0);
    let mut stream = TcpStream::connect(market.registry_addr).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"\0\0\0\x03{\"a").expect("sent");
    stream.shutdown(Shutdown::Write).expect("open until now");
    stream.read_to_end(&mut Vec::new()).expect("it closes");
    // A page may be a tenth of a second old.
    until("the fault is counted", || {
        let not_json = [("reason", "not_json")];
        let page = scrape(market.metrics);
        let count = page.one("ramjet_registry_message_faults_total", &not_json);
        (count > 0.0).then_some(())
    });
    let ended = market.stop_registry().expect(0).json();
    assert_eq!(ended["counters"]["message_not_json"], 1);
}

#[test]
fn names_labels_and_helps_follow_the_rules() {
    let (market, worker) = after_800_tasks();
    let allowed = BTreeSet::from([
        "worker",
        "stage",
        "reason",
        "event",
        "side",
        "outcome",
        "skill",
        "version",
        "architecture",
        "profile",
        "le",
    ]);
    for address in [market.metrics, worker.metrics.expect("it serves them")] {
        let page = scrape(address);
        assert!(page.families.len() > 20, "{} families", page.families.len());
        for (name, family) in &page.families {
            assert!(
                name.starts_with("ramjet_") || name.starts_with("process_"),
                "{name}"
            );
            assert!(
                family.help.ends_with('.') && family.help.len() > 10,
                "{name}: {}",
                family.help
            );
            assert_eq!(
                name.ends_with("_total"),
                family.kind == Type::Counter,
                "{name}"
            );
            let parts: Vec<&str> = name.split('_').collect();
            for unit in ["ns", "us", "ms", "milliseconds", "kb", "mb"] {
                assert!(!parts.contains(&unit), "{name}: base units only");
            }
            for unit in ["bytes", "seconds"] {
                let last = parts.iter().rposition(|part| *part != "total");
                let at = parts.iter().position(|part| *part == unit);
                assert!(at.is_none() || at == last, "{name}: the unit comes last");
            }
            for (labels, _) in family
                .samples
                .iter()
                .map(|sample| (&sample.labels, sample.value))
            {
                for label in labels.keys() {
                    assert!(allowed.contains(label.as_str()), "{name}: label {label}");
                }
            }
        }
    }
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let Some(promtool) = monitoring::promtool() else {
        eprintln!("no promtool here (Debian: prometheus): its opinion is not asked for");
        return;
    };
    let (market, worker) = after_800_tasks();
    for address in [market.metrics, worker.metrics.expect("it serves them")] {
        let mut child = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(fetch(address).1.as_bytes()).expect("read");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.trim().is_empty(), "{said}");
    }
}

#[test]
fn only_the_page_is_served_and_only_to_whoever_asks_for_it() {
    let (_market, worker) = after_800_tasks();
    let address = worker.metrics.expect("it serves them");
    let status = |request: &str| {
        let answer = exchange(address, request);
        answer.split(' ').nth(1).unwrap_or("").to_owned()
    };
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "404");
    assert_eq!(status("GET /metrics/ HTTP/1.1\r\nHost: a\r\n\r\n"), "404");
    assert_eq!(status("GET /metrics?name=x HTTP/1.0\r\n\r\n"), "200");
    assert_eq!(
        status("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
        "405"
    );
    assert_eq!(status("\x16\x03\x01 is no HTTP\r\n\r\n"), "400");
    let head = exchange(address, "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let long = format!(
        "GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(64 << 10)
    );
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // It may stop reading and close before everything was sent.
    let _ = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "a head has a limit");
    // Idle connections hold no one up: the page comes while others say nothing.
    let silent: Vec<TcpStream> = (0..8)
        .map(|_| TcpStream::connect(address).expect("it listens"))
        .collect();
    assert!(scrape(address).families.len() > 20);
    drop(silent);
}

#[test]
fn metrics_are_off_unless_asked_for_and_a_wrong_address_is_told() {
    let market = Market::start();
    let plain = market.node("plain", &[]);
    assert_eq!(plain.metrics, None);
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for (value, code) in [(address.as_str(), 5), ("everywhere", 2)] {
        let arguments = ["--metrics", value];
        let ended = Process::start("node", &mut market.node_command("other", &arguments)).end();
        let ended = ended.expect(code);
        assert!(ended.errors.contains(value), "{}", ended.errors);
    }
}

#[test]
fn what_metrics_cost_is_measured_beside_the_same_without_them() {
    let home = tempfile::tempdir().expect("a folder");
    let mut command = ramjet(home.path());
    command.args([
        "bench",
        "tasks",
        "--control",
        "metrics",
        "--json",
        "--force",
    ]);
    command.args([
        "--seconds",
        "0.05",
        "--pairs",
        "5",
        "--retries",
        "0",
        "--idle",
        "park",
    ]);
    let ended = Process::start("bench", &mut command).end().expect(0);
    let case = ended.json();
    let name = case["case"].as_str().expect("text");
    assert!(name.contains("scraped every second"), "{case}");
    let control = case["control_name"].as_str().expect("text");
    assert!(control.contains("no metrics served"), "{case}");
    assert!(
        case["tasks_per_s"].as_f64().expect("a number") > 0.0,
        "{case}"
    );
}
