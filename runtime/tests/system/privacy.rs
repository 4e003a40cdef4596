//! What is seen by those who must not see a payload: the registry, and the network between nodes.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::harness::Market;

/// In every payload, and by `echo` in every result.
const MARKER: &str = "confidential-9f2c71d4e6";

/// A search for one of several byte strings.
struct Searched(Vec<Vec<u8>>);

impl Searched {
    /// The marker as it is, in hexadecimal, and in base64 at each of the three places where it may
    /// begin within a group; there without the characters that its neighbours decide too.
    fn forms_of(marker: &str) -> Self {
        let hexadecimal: String = marker.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![
            marker.as_bytes().to_vec(),
            hexadecimal.to_uppercase().into_bytes(),
            hexadecimal.into_bytes(),
        ];
        for before in 0..3 {
            let mut bytes = vec![0; before];
            bytes.extend_from_slice(marker.as_bytes());
            let text = BASE64.encode(&bytes);
            let whole = bytes.len() / 3 * 4;
            let first = if before == 0 { 0 } else { 4 };
            forms.push(text.as_bytes()[first..whole].to_vec());
        }
        Searched(forms)
    }

    fn occurs_in(&self, bytes: &[u8]) -> bool {
        self.0
            .iter()
            .any(|form| bytes.windows(form.len()).any(|window| window == form))
    }
}

/// Passes datagrams on between a node and whoever sends to the node's advertised address.
struct Relay {
    address: SocketAddr,
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    towards_node: AtomicU64,
    datagrams: Mutex<Vec<Vec<u8>>>,
}

/// How long a relay waits for a datagram until it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

impl Relay {
    /// A relay whose address is known before its node is: the sockets are bound here.
    fn bind() -> (UdpSocket, UdpSocket) {
        let bind = || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
            socket.set_read_timeout(Some(LOOK)).expect("set");
            socket
        };
        (bind(), bind())
    }

    /// Passes on what comes to `outside` to `node`, and what `node` answers to who sent last.
    fn start((outside, inside): (UdpSocket, UdpSocket), node: SocketAddr) -> Self {
        let address = outside.local_addr().expect("bound");
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let peer = Arc::new(Mutex::new(None));
        let clone = |socket: &UdpSocket| socket.try_clone().expect("another descriptor");
        let towards_node = Arc::clone(&seen);
        let last = Arc::clone(&peer);
        let (from, to) = (clone(&outside), clone(&inside));
        let inwards = pump(Arc::clone(&stop), from, move |datagram, source| {
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
            towards_node.towards_node.fetch_add(1, Ordering::Relaxed);
            towards_node.keep(datagram);
            // A full buffer loses it, as a network would.
            let _ = to.send_to(datagram, node);
        });
        let from_node = Arc::clone(&seen);
        let outwards = pump(Arc::clone(&stop), inside, move |datagram, _| {
            from_node.keep(datagram);
            let peer = *peer.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(peer) = peer {
                let _ = outside.send_to(datagram, peer);
            }
        });
        Relay {
            address,
            seen,
            stop,
            threads: vec![inwards, outwards],
        }
    }

    fn datagrams(&self) -> Vec<Vec<u8>> {
        self.seen
            .datagrams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Seen {
    fn keep(&self, datagram: &[u8]) {
        self.datagrams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(datagram.to_vec());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn pump(
    stop: Arc<AtomicBool>,
    socket: UdpSocket,
    mut pass: impl FnMut(&[u8], SocketAddr) + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut space = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((len, source)) = socket.recv_from(&mut space) {
                pass(&space[..len], source);
            }
        }
    })
}

#[test]
fn neither_the_registry_nor_the_network_sees_a_payload_or_a_result() {
    let market = Market::start();
    let sockets = Relay::bind();
    let advertised = sockets.0.local_addr().expect("bound").to_string();
    let worker = market.worker("worker", "echo", &["--endpoint", &advertised]);
    let relay = Relay::start(sockets, worker.listen);
    assert_eq!(relay.address.to_string(), advertised);

    // Some of them longer than a datagram, so that the parts are looked at too.
    let lines: Vec<String> = (0..2_000)
        .map(|index| match index % 100 {
            0 => format!("{index} {}", format!("{MARKER} ").repeat(200)),
            _ => format!("{index} {MARKER}"),
        })
        .collect();
    let file = market.file("lines.txt", lines.join("\n"));
    let file = file.to_str().expect("text");
    let ended = market
        .submit("requester", "echo", &["--lines", file])
        .expect(0);
    assert!(
        ended.lines == lines,
        "every result came back, through the relay"
    );

    let searched = Searched::forms_of(MARKER);
    assert!(
        searched.occurs_in(lines[5].as_bytes()),
        "the search finds it where it is"
    );
    assert!(
        searched.occurs_in(BASE64.encode(&lines[5]).as_bytes()),
        "in base64 too"
    );

    let datagrams = relay.datagrams();
    let of_kind = |magic: &[u8]| {
        datagrams
            .iter()
            .filter(|bytes| bytes.starts_with(magic))
            .count()
    };
    let payload: usize = lines.iter().map(String::len).sum();
    let sealed: usize = datagrams
        .iter()
        .filter(|bytes| bytes.starts_with(b"PILS"))
        .map(Vec::len)
        .sum();
    assert!(of_kind(b"PILA") >= 2, "both announced their keys here");
    assert!(
        sealed >= 2 * payload,
        "{sealed} sealed bytes for {payload} there and back"
    );
    assert_eq!(of_kind(b"PILT"), 0, "nothing travels in plaintext");
    let received = worker.counter("datagrams_received");
    let passed = relay.seen.towards_node.load(Ordering::Relaxed);
    assert!(
        received <= passed,
        "the worker received {received}, the relay passed {passed} to it"
    );
    for datagram in &datagrams {
        assert!(
            !searched.occurs_in(datagram),
            "the marker is in {:02x?}",
            datagram
        );
    }

    let bytes = std::fs::read(market.byte_log()).expect("the registry keeps a byte log");
    assert!(!searched.occurs_in(&bytes), "the registry saw the marker");
    let contains = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    for part in [
        &b"market_offer"[..],
        b"market_settle",
        b"\"skill\":\"echo\"",
    ] {
        assert!(
            contains(part),
            "{:?} is in the log, so it is one",
            String::from_utf8_lossy(part)
        );
    }
}
