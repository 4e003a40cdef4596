//! Garbage on both ports in the middle of a run: the run ends well, and every piece is counted by
//! its reason.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};

use serde_json::Value;

use crate::harness::{Market, PATIENCE, Process, Worker, counter, until};

/// How often each kind of garbage is sent.
const TIMES: u64 = 20;
/// Enough that the run cannot end while its output is not read; see `crash`.
const LINES: usize = 100_000;

/// A datagram from a sender that the registry has numbered, or has not.
fn from(magic: &[u8; 4], sender: u32, len: usize) -> Vec<u8> {
    let mut datagram = magic.to_vec();
    datagram.extend_from_slice(&sender.to_be_bytes());
    datagram.resize(len, 0xA5);
    datagram
}

/// What a node must not act upon, and the reason under which it is counted.
fn datagrams(requester: u32) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("dropped_unknown_magic", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("dropped_unknown_magic", vec![0xFF; 1_400]),
        ("dropped_too_short", b"PIL".to_vec()),
        ("dropped_too_short", Vec::new()),
        ("dropped_too_short", from(b"PILS", 1, 69)),
        ("dropped_too_short", from(b"PILA", 1, 135)),
        ("dropped_plaintext", from(b"PILT", 1, 60)),
        ("dropped_no_session", from(b"PILS", 77_777, 200)),
        ("dropped_bad_tag", from(b"PILS", requester, 200)),
        ("dropped_bad_beacon", vec![0x02; 30]),
    ]
}

/// Throws every kind at the node, until each was counted by its reason [`TIMES`] times or more: how
/// often each reason was given. The kernel may lose some, since the node has a run to do.
fn throw_at_node(worker: &Worker, requester: u32) -> Vec<(&'static str, u64)> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let mut given: Vec<(&str, u64)> = Vec::new();
    for (reason, datagram) in datagrams(requester) {
        let before = worker.counter(reason);
        let mut times = 0;
        until(reason, || {
            for _ in 0..TIMES {
                socket.send_to(&datagram, worker.listen).expect("sent");
            }
            times += TIMES;
            (worker.counter(reason) >= before + TIMES).then_some(())
        });
        match given.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, all)) => *all += times,
            None => given.push((reason, times)),
        }
    }
    given
}

/// Writes bytes to the registry and reads until it closes, or has answered `answers` frames.
fn throw_at_registry(registry: SocketAddr, bytes: &[u8], answers: usize) {
    let mut stream = TcpStream::connect(registry).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.write_all(bytes).expect("written");
    for _ in 0..answers {
        let mut len = [0; 4];
        stream.read_exact(&mut len).expect("an answer");
        let mut answer = vec![0; usize::try_from(u32::from_be_bytes(len)).expect("32 bits")];
        stream.read_exact(&mut answer).expect("the whole answer");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        let refusals = ["error", "market_refused"];
        assert!(
            refusals.iter().any(|kind| answer["type"] == *kind),
            "{answer}"
        );
    }
    stream.shutdown(Shutdown::Write).expect("open until now");
    let mut rest = Vec::new();
    // A registry that closes on unread bytes resets the connection, which is its right.
    let _ = stream.read_to_end(&mut rest);
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short");
    [&len.to_be_bytes()[..], payload].concat()
}

/// What the registry must not act upon, how many answers it owes, and the name of its counter.
fn messages() -> Vec<(&'static str, Vec<u8>, usize)> {
    vec![
        (
            "frame_http",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            1,
        ),
        ("frame_too_long", vec![0xFE; 64], 1),
        ("frame_empty", vec![0; 4], 1),
        ("frame_truncated", b"\0\0\0\x20{\"type\"".to_vec(), 0),
        ("message_not_utf8", frame(&[0xC3, 0x28]), 1),
        ("message_not_json", frame(b"{\"type\":"), 1),
        ("message_no_type", frame(b"[1,2]"), 1),
        (
            "message_unknown_type",
            frame(b"{\"type\":\"drop_tables\"}"),
            1,
        ),
        (
            "message_malformed",
            frame(b"{\"id\":1,\"type\":\"market_hello\",\"node\":\"x\"}"),
            1,
        ),
    ]
}

#[test]
fn garbage_on_both_ports_disturbs_no_run_and_is_counted_by_reason() {
    let mut market = Market::start();
    let worker = market.worker(
        "worker",
        "echo",
        &["--beacon", &market.beacon_addr.to_string()],
    );
    let lines: Vec<String> = (0..LINES)
        .map(|index| format!("line {index} of a run"))
        .collect();
    let file = market.file("lines.txt", lines.join("\n"));
    let mut command = market.submit_command("requester", "echo");
    let run = Process::start("submit", command.arg("--lines").arg(file));
    assert_eq!(run.line().as_deref(), Some(&*lines[0]));

    let row = &market.engagements(worker.node)[0];
    let requester = u32::try_from(row["requester"].as_u64().expect("a number")).expect("32 bits");
    let given = throw_at_node(&worker, requester);
    for (_, bytes, answers) in messages() {
        for _ in 0..TIMES {
            throw_at_registry(market.registry_addr, &bytes, answers);
        }
    }

    let ended = run.end().expect(0);
    assert!(
        ended.lines == lines[1..],
        "every line came back, once and in order"
    );
    let status = worker.status();
    for (reason, times) in given {
        assert!(
            counter(&status, reason) <= times,
            "{reason}: at most {times} in {status}"
        );
    }
    assert_eq!(counter(&status, "tasks_run"), LINES as u64);
    let sum = [
        "datagrams_delivered",
        "datagrams_handled",
        "datagrams_dropped",
    ]
    .map(|name| counter(&status, name))
    .iter()
    .sum::<u64>();
    assert_eq!(
        counter(&status, "datagrams_received"),
        sum,
        "no datagram is lost to sight"
    );
    assert_eq!(market.polo(worker.node), 1);

    let stopped = market.stop_registry().expect(0).json();
    assert_eq!(stopped["event"], "stopped");
    for (name, _, _) in messages() {
        assert_eq!(counter(&stopped, name), TIMES, "{name}");
    }
}
