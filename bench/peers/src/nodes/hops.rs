//! The hops of a round trip between two nodes, without the nodes.
//!
//! ```text
//!   this thread ── local socket ── a thread ── UDP ── a thread that echoes
//! ```
//!
//! Both threads block in the kernel between two datagrams, as a process does that does not burn a
//! core while it waits; four of them are woken for each round trip. Nothing is sealed, framed or
//! acknowledged.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream as BlockingStream;
use std::time::Duration;
use std::{io, thread};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::load::{Load, Measured, Phase, number_of, payload};

/// How long a thread waits for a datagram before it ends.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Median and 99th percentile of the round trips of `load`, in microseconds.
///
/// # Errors
/// What the system says of sockets and threads.
pub(super) async fn round_trips(load: &Load) -> Result<[f64; 2], Failure> {
    let at = |error: io::Error| Failure::at("the hops alone", error);
    let (near, far) = BlockingStream::pair().map_err(at)?;
    near.set_nonblocking(true).map_err(at)?;
    let [there, here] = sockets().map_err(at)?;
    let len = load.payload_len;
    let echo = thread::spawn(move || echo(&there, len));
    let relay = thread::spawn(move || relay(far, &here, len));
    let mut stream = UnixStream::from_std(near).map_err(at)?;
    let phase = Phase::begin(load);
    let mut measured = Measured::new(phase)?;
    let trips = async {
        let mut back = vec![0; len];
        let mut number = 0;
        while !phase.is_over(Instant::now()) {
            let sent = Instant::now();
            stream.write_all(&payload(number, len)).await.map_err(at)?;
            stream.read_exact(&mut back).await.map_err(at)?;
            if number_of(&back, len)? != number {
                return Err(Failure::Wrong("another datagram came back".to_owned()));
            }
            measured.record(sent, Instant::now());
            number += 1;
        }
        // The empty datagram ends the threads.
        drop(stream);
        Ok(())
    };
    phase.bound(trips).await?;
    for thread in [echo, relay] {
        let ended = thread.join();
        ended
            .map_err(|_| Failure::Environment("a thread of the hops alone panicked".to_owned()))?
            .map_err(at)?;
    }
    Ok([measured.quantile_us(0.5), measured.quantile_us(0.99)])
}

fn sockets() -> io::Result<[UdpSocket; 2]> {
    let one = UdpSocket::bind("127.0.0.1:0")?;
    let other = UdpSocket::bind("127.0.0.1:0")?;
    for (socket, peer) in [(&one, &other), (&other, &one)] {
        socket.connect(peer.local_addr()?)?;
        socket.set_read_timeout(Some(SILENCE_MAX))?;
    }
    Ok([one, other])
}

/// Sends back what comes, until something empty does.
fn echo(socket: &UdpSocket, len: usize) -> io::Result<()> {
    let mut datagram = vec![0; len];
    loop {
        match socket.recv(&mut datagram)? {
            0 => return Ok(()),
            read => socket.send(&datagram[..read])?,
        };
    }
}

/// Carries what comes from the local socket to the other and its echo back, until the stream ends.
fn relay(mut stream: BlockingStream, socket: &UdpSocket, len: usize) -> io::Result<()> {
    let mut bytes = vec![0; len];
    loop {
        match stream.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return socket.send(&[]).map(drop);
            }
            Err(error) => return Err(error),
        }
        socket.send(&bytes)?;
        let read = socket.recv(&mut bytes)?;
        stream.write_all(&bytes[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_hops_are_measured_and_end() {
        let load = Load {
            payload_len: 64,
            window: 1,
            warm_up: Duration::from_millis(5),
            run: Duration::from_millis(50),
        };
        let [p50, p99] = round_trips(&load).await.expect("loopback");
        assert!(p50 > 0.0 && p99 >= p50, "{p50} {p99}");
    }
}
