//! Nodes that cannot reach each other where the registry says they are: over the beacon's relay, and
//! through holes that it lets them punch.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Ended, Market, Process, Worker};

const TASKS: usize = 2_000;
/// How often a wall looks whether it is to go.
const LOOK: Duration = Duration::from_millis(50);

/// A NAT that lets a node speak with its beacon and nobody else: the beacon sees the node at an
/// address behind which nothing but the beacon is heard.
struct Wall {
    /// What the node takes for its beacon.
    inside: SocketAddr,
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket
        .set_read_timeout(Some(LOOK))
        .expect("a socket option");
    socket
}

/// Receives until told to stop.
fn each_datagram(socket: &UdpSocket, stop: &AtomicBool, mut take: impl FnMut(SocketAddr, &[u8])) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, source)) => take(source, &buffer[..length]),
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
                ),
                "{error}"
            ),
        }
    }
}

impl Wall {
    fn before(beacon: SocketAddr) -> Self {
        let (inner, outer) = (Arc::new(socket()), Arc::new(socket()));
        let inside = inner.local_addr().expect("bound");
        let stop = Arc::new(AtomicBool::new(false));
        let refused = Arc::new(AtomicU64::new(0));
        let node = Arc::new(std::sync::Mutex::new(None));
        let outgoing = {
            let (inner, outer, stop) = (Arc::clone(&inner), Arc::clone(&outer), Arc::clone(&stop));
            let node = Arc::clone(&node);
            thread::spawn(move || {
                each_datagram(&inner, &stop, |source, datagram| {
                    *node.lock().expect("no panic while held") = Some(source);
                    outer.send_to(datagram, beacon).expect("loopback");
                });
            })
        };
        let incoming = {
            let (stop, refused) = (Arc::clone(&stop), Arc::clone(&refused));
            thread::spawn(move || {
                each_datagram(&outer, &stop, |source, datagram| {
                    let node = *node.lock().expect("no panic while held");
                    match node.filter(|_| source == beacon) {
                        Some(node) => {
                            inner.send_to(datagram, node).expect("loopback");
                        }
                        None => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            })
        };
        Wall {
            inside,
            stop,
            refused,
            threads: vec![outgoing, incoming],
        }
    }
}

impl Drop for Wall {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a wall fell");
        }
    }
}

/// A worker and a requester that the registry tells wrong addresses of.
fn misplaced(market: &Market, beacons: [SocketAddr; 2]) -> ([Worker; 2], [UdpSocket; 2]) {
    // Bound, so that nobody answers there and nobody else gets the port.
    let nowhere = [socket(), socket()];
    let endpoints =
        [0, 1].map(|side: usize| nowhere[side].local_addr().expect("bound").to_string());
    let beacons = beacons.map(|beacon| beacon.to_string());
    let worker = market.worker(
        "worker",
        "echo",
        &["--endpoint", &endpoints[0], "--beacon", &beacons[0]],
    );
    let requester = market.node(
        "requester",
        &[
            "--public",
            "--endpoint",
            &endpoints[1],
            "--beacon",
            &beacons[1],
        ],
    );
    ([worker, requester], nowhere)
}

/// Lets the requester have its lines echoed, and checks each.
fn echo(market: &Market, requester: &Worker) -> Value {
    let lines: Vec<String> = (0..TASKS)
        .map(|n| format!("{n} the long way round"))
        .collect();
    let file = market.file("lines.txt", lines.join("\n"));
    let mut command = market.ramjet();
    command
        .args(["submit", "--skill", "echo", "--json", "--lines"])
        .arg(&file)
        .arg("--socket")
        .arg(&requester.socket);
    let ended: Ended = Process::start("submit", &mut command).end().expect(0);
    let (summary, answers) = ended.lines.split_last().expect("a summary");
    assert_eq!(answers.len(), TASKS);
    for (answer, line) in answers.iter().zip(&lines) {
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        assert_eq!(answer["result"], line.as_str());
    }
    let summary: Value = serde_json::from_str(summary).expect("JSON");
    assert_eq!(summary["summary"]["outcome"], "settled", "{summary}");
    summary["summary"].clone()
}

/// What the registry counted until its end.
fn beacon_answered(market: &mut Market) -> u64 {
    let stopped = market.stop_registry().expect(0).json();
    stopped["counters"]["beacon_answered"]
        .as_u64()
        .unwrap_or_else(|| panic!("{stopped}"))
}

#[test]
fn nodes_that_nothing_but_the_beacon_reaches_work_over_its_relay() {
    let mut market = Market::start();
    let walls = [
        Wall::before(market.beacon_addr),
        Wall::before(market.beacon_addr),
    ];
    let (nodes, _nowhere) = misplaced(&market, [walls[0].inside, walls[1].inside]);
    let [worker, requester] = &nodes;
    let summary = echo(&market, requester);
    assert_eq!(summary["accepted"], TASKS);
    assert_eq!(summary["worker"], worker.node);
    assert_eq!(worker.counter("tasks_run"), TASKS as u64);
    // Punches knocked at both walls in vain.
    for wall in &walls {
        assert!(wall.refused.load(Ordering::Relaxed) > 0);
    }
    // Every train of tasks and of results went over the beacon.
    let least = requester.counter("datagrams_received");
    let relayed = beacon_answered(&mut market);
    assert!(
        relayed >= least && least >= 30,
        "{relayed} relayed, {least} received"
    );
}

#[test]
fn nodes_that_only_the_beacon_can_place_punch_through_and_meet_directly() {
    let mut market = Market::start();
    let beacon = market.beacon_addr;
    let (nodes, _nowhere) = misplaced(&market, [beacon, beacon]);
    let [worker, requester] = &nodes;
    let summary = echo(&market, requester);
    assert_eq!(summary["accepted"], TASKS);
    assert_eq!(worker.counter("tasks_run"), TASKS as u64);
    let received = requester.counter("datagrams_received");
    let relayed = beacon_answered(&mut market);
    // Discovery, punches, and what was said until the direct way was found.
    assert!(
        relayed < 40 && received > relayed,
        "{relayed} over the beacon, {received} received"
    );
}
