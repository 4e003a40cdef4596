//! Metrics pushed to a collector, which the test plays: what arrives is right, also at the end, and a
//! collector that refuses is told once and harms nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use super::PATIENCE;
use crate::harness::{Market, until};

/// Answers each push by the next of `statuses`, the last one for ever, and passes on what was pushed.
fn collector(statuses: &'static [&'static str]) -> (SocketAddr, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    let (pushed, pushes) = channel();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for number in 0.. {
            let (stream, _) = listener.accept().expect("a push");
            let status = statuses[statuses.len().min(number + 1) - 1];
            if pushed.send(take(stream, status)).is_err() {
                return;
            }
        }
    });
    (address, pushes)
}

fn take(mut stream: TcpStream, status: &str) -> Value {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut bytes = Vec::new();
    let (head_len, body_len) = loop {
        let mut piece = [0; 4_096];
        let read = stream.read(&mut piece).expect("more of the head");
        assert!(read > 0, "it closed within the head");
        bytes.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some(end) = text.find("\r\n\r\n") {
            assert!(text.starts_with("post /v1/metrics http/1.1\r\n"), "{text}");
            let field = |name: &str| text[..end].lines().find_map(|line| line.strip_prefix(name));
            assert_eq!(field("content-type: "), Some("application/json"));
            let length = field("content-length: ").expect("a length");
            break (end + 4, length.parse::<usize>().expect("a number"));
        }
    };
    let mut body = bytes.split_off(head_len);
    let read = body.len();
    body.resize(body_len, 0);
    stream.read_exact(&mut body[read..]).expect("the body");
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 3\r\n\r\nno\n");
    stream.write_all(answer.as_bytes()).expect("answered");
    serde_json::from_slice(&body).expect("JSON")
}

/// The sum over the points of a metric.
fn sum(pushed: &Value, name: &str) -> f64 {
    let metrics = &pushed["resourceMetrics"][0]["scopeMetrics"][0]["metrics"];
    let mut metrics = metrics.as_array().expect("metrics").iter();
    let metric = metrics.find(|metric| metric["name"] == name).expect(name);
    let data = ["sum", "gauge"].map(|kind| metric[kind]["dataPoints"].as_array());
    let points = data.into_iter().flatten().flatten();
    points
        .map(|point| point["asDouble"].as_f64().expect("a number"))
        .sum()
}

#[test]
fn a_collector_gets_the_first_and_the_last_of_a_node() {
    let market = Market::start();
    let (address, pushes) = collector(&["503 Service Unavailable", "200 OK"]);
    let url = format!("http://{address}");
    let arguments = ["--accept-from", "anyone", "--metrics-push", &url];
    let worker = market.worker("worker", "echo", &arguments);
    let first = pushes.recv_timeout(PATIENCE).expect("at once");
    let service = &first["resourceMetrics"][0]["resource"]["attributes"][0];
    assert_eq!(service["value"]["stringValue"], "ramjet-node");
    // At once, before it has registered.
    assert_eq!(sum(&first, "ramjet_build_info"), 1.0);
    until("the refusal is told", || {
        let log = worker.process.errors();
        (log.contains("metrics are not taken") && log.contains("HTTP 503")).then_some(())
    });
    let file = market.file("lines.txt", "line\n".repeat(200));
    let lines = ["--lines", file.to_str().expect("text")];
    market.submit("requester", "echo", &lines).expect(0);
    let ended = worker.process.terminate().expect(0);
    // Whatever else was pushed in between, the last has everything.
    let last = pushes.try_iter().last().expect("a push at the end");
    assert_eq!(sum(&last, "ramjet_worker_tasks_run_total"), 200.0);
    assert!(
        ended.errors.contains("metrics are pushed again"),
        "{}",
        ended.errors
    );
}

#[test]
fn a_url_that_is_none_is_refused_before_anything_starts() {
    let market = Market::start();
    for (value, says) in [
        ("127.0.0.1:4318", "http://HOST:PORT/v1/metrics"),
        ("https://127.0.0.1:4318", "only http:// is spoken"),
    ] {
        let mut command = market.node_command("node", &["--metrics-push", value]);
        let refused = crate::harness::Process::start("node", &mut command)
            .end()
            .expect(2);
        assert!(refused.errors.contains(says), "{}", refused.errors);
    }
}
