//! What `doctor` tries out on this host rather than reads from it: sockets, a ring, the clock.
//!
//! Each takes at most a tenth of a second, uses loopback alone, and leaves nothing behind. A figure is
//! of this moment and this machine: it shows what a setting is worth here, before and after a change.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use ramjet_tuning::Finding;
use socket2::SockRef;

use crate::worker::{Segmentation, Trains, ring};

/// An address of a block that is for documents: no packet is sent to it, it only chooses the way out.
const AWAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
/// A datagram that every path carries.
const DATAGRAM_LEN: usize = 1_400;
/// A burst such as a megabyte's transfer makes, in datagrams.
const BURST: usize = 2_048;
/// What a worker asks of the kernel for its socket.
const BUFFER_BYTES: usize = 4 << 20;
/// Datagrams in a train, and trains of a measurement.
const TRAIN: usize = 32;
const TRAINS: u32 = 100;
const CLOCK_READS: u32 = 20_000;
/// Wake-ups of a measurement, and how long a thread sleeps before each: long enough for its core to
/// sleep as deep as it may.
const WAKES: usize = 60;
const SLEEP: Duration = Duration::from_millis(1);

/// Adds to the findings about this host what can only be tried, and what was measured of the others.
pub(super) fn try_out(findings: &mut Vec<Finding>) {
    let mut offload = ramjet_tuning::offload_probe(&offload());
    offload.measured = segmentation_gain().ok();
    let ring = ring::probe().map_err(|error| error.to_string());
    // Behind the kernel's release and switch, which say why a ring is refused.
    let switch = findings
        .iter()
        .position(|finding| finding.id == "io_uring_disabled");
    let at = switch.map_or(0, |at| at + 1);
    findings.splice(at..at, [ramjet_tuning::ring_probe(&ring), offload]);
    findings.push(ramjet_tuning::nat_probe(source_address()));
    let wake = wake_up();
    for finding in findings {
        match finding.id {
            "rmem_max" => finding.measured = burst_lost().ok(),
            "clocksource" => finding.measured = Some(clock_read()),
            "idle_states" | "governor" => finding.measured.clone_from(&wake),
            _ => {}
        }
    }
}

fn loopback() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
}

/// Sends and gathers a train on loopback.
fn offload() -> Result<(), String> {
    let Trains { sent, gathered } = Trains::of(Segmentation::Auto);
    match (sent, gathered) {
        (true, true) => Ok(()),
        (false, _) => Err("a train that was sent did not arrive as its datagrams".to_owned()),
        (true, false) => Err("datagrams that were gathered could not be told apart".to_owned()),
    }
}

/// What a datagram costs its sender in a train, beside alone.
fn segmentation_gain() -> io::Result<String> {
    let (sender, receiver) = (loopback()?, loopback()?);
    receiver.set_nonblocking(true)?;
    let state = UdpSocketState::new(UdpSockRef::from(&sender))?;
    let bytes = vec![7; TRAIN * DATAGRAM_LEN];
    let destination = receiver.local_addr()?;
    let mut spent = [Duration::ZERO; 2];
    for _ in 0..TRAINS {
        for (whole, spent) in spent.iter_mut().enumerate() {
            let (piece, segment_size) = if whole == 1 {
                (bytes.len(), Some(DATAGRAM_LEN))
            } else {
                (DATAGRAM_LEN, None)
            };
            let began = Instant::now();
            for contents in bytes.chunks(piece) {
                state.try_send(
                    UdpSockRef::from(&sender),
                    &Transmit {
                        destination,
                        ecn: None,
                        contents,
                        segment_size,
                        src_ip: None,
                    },
                )?;
            }
            *spent += began.elapsed();
            drain(&receiver);
        }
    }
    let each = spent.map(|spent| spent.as_nanos() / u128::from(TRAINS) / TRAIN as u128);
    Ok(format!(
        "{} ns to send a datagram in a train of {TRAIN}, {} ns alone",
        each[1], each[0]
    ))
}

/// Takes what has arrived; how many datagrams that were.
fn drain(receiver: &UdpSocket) -> usize {
    let mut space = [0; DATAGRAM_LEN];
    std::iter::repeat_with(|| receiver.recv(&mut space))
        .take_while(Result::is_ok)
        .count()
}

/// What a socket with the buffer that this host grants loses of a burst.
fn burst_lost() -> io::Result<String> {
    let (sender, receiver) = (loopback()?, loopback()?);
    receiver.set_nonblocking(true)?;
    // As a worker asks; what is granted may be less, which is what is measured.
    let _ = SockRef::from(&receiver).set_recv_buffer_size(BUFFER_BYTES);
    sender.connect(receiver.local_addr()?)?;
    let datagram = [7; DATAGRAM_LEN];
    for _ in 0..BURST {
        sender.send(&datagram)?;
    }
    let lost = BURST - drain(&receiver);
    Ok(format!(
        "{lost} of a burst of {BURST} datagrams of {DATAGRAM_LEN} bytes lost"
    ))
}

/// What a look at the clock takes.
fn clock_read() -> String {
    let began = Instant::now();
    let mut last = began;
    for _ in 0..CLOCK_READS {
        last = std::hint::black_box(Instant::now());
    }
    let each = (last - began).as_nanos() / u128::from(CLOCK_READS);
    format!("{each} ns a reading")
}

/// How long a sleeping thread takes to run after it was woken: the median. `None` without a thread.
fn wake_up() -> Option<String> {
    let (wake, woken) = sync_channel::<Instant>(0);
    let (report, reports) = sync_channel(WAKES);
    let sleeper = std::thread::Builder::new()
        .name("doctor-sleeper".to_owned())
        .spawn(move || {
            for sent in woken {
                if report.send(sent.elapsed()).is_err() {
                    return;
                }
            }
        })
        .ok()?;
    for _ in 0..WAKES {
        std::thread::sleep(SLEEP);
        wake.send(Instant::now()).ok()?;
    }
    drop(wake);
    sleeper.join().ok()?;
    let mut taken: Vec<Duration> = reports.iter().collect();
    taken.sort_unstable();
    let median = taken.get(taken.len() / 2)?;
    let micros = median.as_secs_f64() * 1e6;
    Some(format!("{micros:.0} us until a woken thread runs (median)"))
}

/// The address that this host would send from. Nothing is sent.
fn source_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(AWAY).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_probe_tells_something_of_this_host() {
        let mut findings = ramjet_tuning::report(Path::new("/"));
        try_out(&mut findings);
        let measured = |id: &str| {
            let finding = findings.iter().find(|finding| finding.id == id);
            finding.and_then(|finding| finding.measured.clone())
        };
        for (id, unit) in [
            ("rmem_max", "lost"),
            ("udp_offload", "ns alone"),
            ("clocksource", "ns a reading"),
            ("idle_states", "us until"),
        ] {
            let text = measured(id).unwrap_or_else(|| panic!("{id} was not measured"));
            assert!(text.contains(unit), "{id}: {text}");
        }
        let mut ids: Vec<&str> = findings.iter().map(|finding| finding.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), findings.len(), "no id twice");
    }
}
