//! One datagram there and back, plain sockets, nothing else in flight.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{hint, io, thread};

use super::drive::{
    RECEIVE_BUFFER_LEN, StopAtEnd, as_f64, histogram, loopback_socket, nanos, pin, quantile_us,
    since,
};
use super::{
    ArmDetails, ArmError, ArmResult, Cores, DATAGRAM_LEN_MAX, Payload, STALL_LIMIT, WARM_UP,
    WaitMode,
};
use crate::ring::{self, Usage};

/// Empty reads between two offers of the core to others.
const EMPTY_READS: u32 = 256;
/// How long a blocked end sleeps before it looks at the stop flag and the clock.
const BLOCKED_LIMIT: Duration = Duration::from_millis(20);

/// What [`udp_round_trip`] runs.
#[derive(Clone, Debug)]
pub struct RoundTrip {
    /// How both ends wait.
    pub mode: WaitMode,
    /// Length of the datagram, from 8 to [`DATAGRAM_LEN_MAX`] bytes.
    pub payload: Payload,
    /// Length of the measured interval.
    pub duration: Duration,
    /// Where the two threads run; detected if absent.
    pub cores: Option<Cores>,
}

impl RoundTrip {
    /// One second of round trips.
    #[must_use]
    pub fn new(mode: WaitMode, payload: Payload) -> Self {
        Self {
            mode,
            payload,
            duration: Duration::from_secs(1),
            cores: None,
        }
    }
}

/// Sends one datagram, waits for its echo, checks every byte of it, and so on until the time is
/// over.
///
/// # Errors
/// [`ArmError`]: a length out of bounds, a refusal of the kernel, a stalled or corrupt run.
pub fn udp_round_trip(spec: &RoundTrip) -> Result<ArmResult, ArmError> {
    ArmError::check("payload length", spec.payload.len(), 8, DATAGRAM_LEN_MAX)?;
    let cores = spec.cores.map_or_else(Cores::detect, Ok)?;
    let (server, client, address) = pair(spec.mode)?;
    let stop = AtomicBool::new(false);
    let (measured, served) = thread::scope(|scope| {
        let served = scope.spawn(|| {
            let _stop = StopAtEnd(&stop);
            serve(spec, cores.server, &server, &stop)
        });
        let measured = scope.spawn(|| {
            let _stop = StopAtEnd(&stop);
            measure(spec, cores.client, &client, address, &stop)
        });
        (measured.join(), served.join())
    });
    let served = served.map_err(|_| ArmError::ThreadLost)??;
    let mut result = measured.map_err(|_| ArmError::ThreadLost)??;
    result.details.involuntary_switches += served.involuntary_switches;
    result.details.server_cpu_ns_per_datagram =
        as_f64(served.cpu_ns) / as_f64(result.details.datagrams.max(1));
    Ok(result)
}

/// Two sockets, and where the server is. Neither is connected: one socket serves all the peers of a
/// node, so the kernel looks the route up for every datagram, here as there.
fn pair(mode: WaitMode) -> Result<(UdpSocket, UdpSocket, SocketAddr), ArmError> {
    let (server, server_address) = loopback_socket(RECEIVE_BUFFER_LEN)?;
    let (client, _) = loopback_socket(RECEIVE_BUFFER_LEN)?;
    let (server, client) = (UdpSocket::from(server), UdpSocket::from(client));
    let configure = |socket: &UdpSocket| match mode {
        WaitMode::Spinning => socket.set_nonblocking(true),
        WaitMode::Blocking => socket.set_read_timeout(Some(BLOCKED_LIMIT)),
    };
    let wrap = |result: io::Result<()>| {
        result.map_err(|source| ArmError::kernel("set up two loopback sockets", source))
    };
    wrap(configure(&server))?;
    wrap(configure(&client))?;
    Ok((server, client, server_address.into()))
}

fn serve(
    spec: &RoundTrip,
    core: usize,
    socket: &UdpSocket,
    stop: &AtomicBool,
) -> Result<Usage, ArmError> {
    pin(core)?;
    let mut buffer = vec![0; spec.payload.len()];
    let before = ring::thread_usage();
    let mut empty = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((len, source)) => {
                let sent = socket.send_to(&buffer[..len], source);
                sent.map_err(|source| ArmError::kernel("send a reply", source))?;
            }
            Err(error) if is_empty(&error) => wait(&mut empty),
            Err(error) => return Err(ArmError::kernel("receive a request", error)),
        }
    }
    Ok(since(before, ring::thread_usage()))
}

fn measure(
    spec: &RoundTrip,
    core: usize,
    socket: &UdpSocket,
    address: SocketAddr,
    stop: &AtomicBool,
) -> Result<ArmResult, ArmError> {
    pin(core)?;
    let mut request: Vec<u8> = (0..=u8::MAX).cycle().take(spec.payload.len()).collect();
    let mut reply = vec![0; spec.payload.len()];
    let mut latency_ns = histogram();
    let (mut datagrams, mut counted) = (0_u64, 0_u64);
    let before = ring::thread_usage();
    let mut began = Instant::now();
    let mut counting = false;
    let elapsed = loop {
        request[..8].copy_from_slice(&datagrams.to_le_bytes());
        let sent = Instant::now();
        let result = socket.send_to(&request, address);
        result.map_err(|source| ArmError::kernel("send a request", source))?;
        let Some(len) = await_reply(socket, &mut reply, sent, stop)? else {
            return Err(ArmError::Stalled { datagrams });
        };
        let answered = Instant::now();
        if reply[..len] != request[..] {
            return Err(ArmError::Corrupt { count: 1 });
        }
        datagrams += 1;
        if counting {
            counted += 1;
            latency_ns.saturating_record(nanos(answered - sent).max(1));
            if answered - began >= spec.duration {
                break answered - began;
            }
        } else if answered - began >= WARM_UP {
            counting = true;
            began = answered;
        }
    };
    let usage = since(before, ring::thread_usage());
    let mode = match spec.mode {
        WaitMode::Spinning => "spinning",
        WaitMode::Blocking => "blocking",
    };
    Ok(ArmResult {
        name: format!("udp_round_trip {} B, {mode}", spec.payload.len()),
        per_s: as_f64(counted) / elapsed.as_secs_f64(),
        p50_us: quantile_us(&latency_ns, 0.50),
        p99_us: quantile_us(&latency_ns, 0.99),
        details: ArmDetails {
            path: format!("sendto and recvfrom, {mode}"),
            datagram_len: spec.payload.len(),
            window: 1,
            train: 1,
            datagrams: counted,
            elapsed_ns: nanos(elapsed),
            client_cpu_ns_per_datagram: as_f64(usage.cpu_ns) / as_f64(datagrams),
            involuntary_switches: usage.involuntary_switches,
            ..ArmDetails::default()
        },
    })
}

/// The length of the reply, or nothing if it did not come or the server is gone.
fn await_reply(
    socket: &UdpSocket,
    reply: &mut [u8],
    sent: Instant,
    stop: &AtomicBool,
) -> Result<Option<usize>, ArmError> {
    let mut empty = 0_u32;
    loop {
        match socket.recv_from(reply) {
            Ok((len, _)) => return Ok(Some(len)),
            Err(error) if is_empty(&error) => {
                wait(&mut empty);
                if stop.load(Ordering::Relaxed) || sent.elapsed() > STALL_LIMIT {
                    return Ok(None);
                }
            }
            Err(error) => return Err(ArmError::kernel("receive a reply", error)),
        }
    }
}

fn is_empty(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

fn wait(empty: &mut u32) {
    *empty = empty.wrapping_add(1);
    if empty.is_multiple_of(EMPTY_READS) {
        thread::yield_now();
    } else {
        hint::spin_loop();
    }
}
