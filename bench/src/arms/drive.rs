//! Runs a windowed echo over any path: two pinned threads, a window in flight, a checked count.
//!
//! The client injects the window once; from then on every checked reply goes straight back out of
//! the buffer it arrived in, so the window stays full without a queue of its own.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};
use std::{io, os::fd::AsRawFd, os::fd::RawFd};

use hdrhistogram::Histogram;
use socket2::{Domain, Socket, Type};

use super::codec::{self, Codec, End};
use super::{ArmDetails, ArmError, ArmResult, Cores, STALL_LIMIT, WARM_UP};
use crate::ring::{self, Usage};

/// Idle turns between two looks at the clock and one offer of the core to others.
const IDLE_TURNS: u32 = 1024;
/// Bytes of receive buffer that one received train occupies beyond its payload, generously.
const BUFFER_OVERHEAD: usize = 1024;
/// What the arms ask for; the kernel caps it at net.core.rmem_max.
pub(super) const RECEIVE_BUFFER_LEN: usize = 4 << 20;

/// One way of moving datagrams; made and used on one thread.
pub(super) trait EchoPath {
    /// Moves what has arrived through `work` (bytes, segment length), sends back what it keeps.
    fn turn(&mut self, work: &mut impl FnMut(&mut [u8], usize) -> bool) -> io::Result<usize>;

    /// Sends one first train of `train` datagrams, each `datagram_len` long.
    fn inject(
        &mut self,
        peer: SocketAddrV4,
        train: usize,
        datagram_len: usize,
        fill: &mut impl FnMut(&mut [u8]),
    ) -> io::Result<()>;

    /// Calls into the kernel so far.
    fn syscalls(&self) -> u64;
}

/// What both ends agree on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drive {
    pub(super) datagram_len: usize,
    pub(super) window: usize,
    pub(super) train: usize,
    pub(super) encrypted: bool,
    pub(super) duration: Duration,
    pub(super) cores: Cores,
    pub(super) receive_buffer_len: usize,
}

/// What the threads of one run share.
struct Run {
    spec: Drive,
    stop: AtomicBool,
    start: Instant,
}

/// Sets the stop flag when its holder ends, however it ends, so that the other thread ends too.
pub(super) struct StopAtEnd<'run>(pub(super) &'run AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Drive {
    /// Runs the echo, with the window lowered to what the receive buffers hold. `open` builds a
    /// path on the thread that will use it; its last argument is the number of trains that end
    /// injects.
    pub(super) fn run<Path: EchoPath>(
        self,
        offload: bool,
        open: impl Fn(&Self, RawFd, usize) -> Result<Path, ArmError> + Sync,
    ) -> Result<ArmResult, ArmError> {
        let (server, server_address, granted) = self.socket(offload)?;
        let (client, client_address, granted_too) = self.socket(offload)?;
        debug_assert_ne!(server_address, client_address);
        let spec = self.fitted(granted.min(granted_too))?;
        let run = Run {
            spec,
            stop: AtomicBool::new(false),
            start: Instant::now(),
        };
        let trains = spec.window.div_ceil(spec.train);
        let (ready_sender, ready) = mpsc::channel();
        thread::scope(|scope| {
            let (run, open) = (&run, &open);
            let (server, client) = (server.as_raw_fd(), client.as_raw_fd());
            let served = scope.spawn(move || {
                let _stop = StopAtEnd(&run.stop);
                serve(run, &ready_sender, || open(&spec, server, 0))
            });
            let measured = scope.spawn(move || {
                let _stop = StopAtEnd(&run.stop);
                await_ready(&ready)?;
                measure(run, server_address, || open(&spec, client, trains))
            });
            let measured = measured.join().map_err(|_| ArmError::ThreadLost)?;
            let served = served.join().map_err(|_| ArmError::ThreadLost)?;
            // The server's error is the cause where both have one: without it the client only
            // stalls.
            let served = served?;
            let mut result = spec.result(measured?, served);
            if spec.window < self.window {
                result.details.note = Some(format!(
                    "the receive buffers hold a window of {}, {} were asked for: raise \
                    net.core.rmem_max",
                    spec.window, self.window
                ));
            }
            Ok(result)
        })
    }

    /// A socket, its address, and the bytes its receive buffer may hold.
    fn socket(&self, offload: bool) -> Result<(Socket, SocketAddrV4, usize), ArmError> {
        let (socket, address) = loopback_socket(self.receive_buffer_len)?;
        if offload {
            ring::allow_receive_offload(socket.as_raw_fd())
                .map_err(|source| ArmError::kernel("switch on UDP_GRO", source))?;
        }
        let granted = socket
            .recv_buffer_size()
            .map_err(|source| ArmError::kernel("read the receive buffer size", source))?;
        Ok((socket, address, granted))
    }

    /// Lowers the window until all of it fits one receive buffer: what did not fit would be lost,
    /// and a windowed echo never gets a lost datagram back.
    fn fitted(self, granted: usize) -> Result<Self, ArmError> {
        let needed = |train: usize| train * self.datagram_len + BUFFER_OVERHEAD;
        if needed(1) > granted {
            let needed = needed(1);
            return Err(ArmError::WindowOverflow { needed, granted });
        }
        let whole_trains = granted / needed(self.train);
        let window = match whole_trains {
            0 => (granted - BUFFER_OVERHEAD) / self.datagram_len,
            trains => trains * self.train,
        };
        let window = window.min(self.window);
        Ok(Self {
            window,
            train: self.train.min(window),
            ..self
        })
    }

    fn result(&self, measured: Measured, served: Usage) -> ArmResult {
        let elapsed_s = measured.elapsed.as_secs_f64();
        let whole_run = measured.whole_run.max(1);
        ArmResult {
            name: String::new(),
            per_s: as_f64(measured.datagrams) / elapsed_s,
            p50_us: quantile_us(&measured.latency_ns, 0.50),
            p99_us: quantile_us(&measured.latency_ns, 0.99),
            details: ArmDetails {
                path: String::new(),
                encrypted: self.encrypted,
                datagram_len: self.datagram_len,
                window: self.window,
                train: self.train,
                datagrams: measured.datagrams,
                elapsed_ns: nanos(measured.elapsed),
                corrupt: 0,
                client_syscalls: measured.syscalls,
                client_cpu_ns_per_datagram: as_f64(measured.usage.cpu_ns) / as_f64(whole_run),
                server_cpu_ns_per_datagram: as_f64(served.cpu_ns) / as_f64(whole_run),
                involuntary_switches: measured.usage.involuntary_switches
                    + served.involuntary_switches,
                note: None,
            },
        }
    }

    fn codec(&self, end: End) -> Codec {
        if self.encrypted {
            Codec::encrypted(end)
        } else {
            Codec::plain()
        }
    }
}

/// A UDP socket on loopback, on a port the kernel chose, with a large receive buffer.
pub(super) fn loopback_socket(
    receive_buffer_len: usize,
) -> Result<(Socket, SocketAddrV4), ArmError> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)
        .map_err(|source| ArmError::kernel("open a UDP socket", source))?;
    // The kernel caps the size at net.core.rmem_max without an error; callers read back what they
    // got.
    let _ = socket.set_recv_buffer_size(receive_buffer_len);
    let _ = socket.set_send_buffer_size(RECEIVE_BUFFER_LEN);
    let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    socket
        .bind(&any_port.into())
        .map_err(|source| ArmError::kernel("bind a UDP socket to loopback", source))?;
    let address = socket
        .local_addr()
        .map_err(|source| ArmError::kernel("read the port the kernel chose", source))?
        .as_socket_ipv4()
        .ok_or_else(|| ArmError::kernel("read an IPv4 address", io::ErrorKind::Other.into()))?;
    Ok((socket, address))
}

/// Pins the calling thread, or says why it could not.
pub(super) fn pin(core: usize) -> Result<(), ArmError> {
    ring::pin_to_core(core).map_err(|source| ArmError::kernel("pin a thread to its core", source))
}

/// A histogram of nanoseconds up to a minute, three significant digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are constant and valid")
}

/// A quantile of a histogram of nanoseconds, in microseconds.
pub(super) fn quantile_us(latency_ns: &Histogram<u64>, quantile: f64) -> f64 {
    as_f64(latency_ns.value_at_quantile(quantile)) / 1_000.0
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and nanoseconds of a run stay far below 2^53"
)]
pub(super) fn as_f64(count: u64) -> f64 {
    count as f64
}

fn await_ready(ready: &Receiver<()>) -> Result<(), ArmError> {
    // The server either says it is ready or drops its end; the wait also ends for a thread that
    // hangs.
    ready
        .recv_timeout(STALL_LIMIT)
        .map_err(|_| ArmError::Stalled { datagrams: 0 })
}

fn serve<Path: EchoPath>(
    run: &Run,
    ready: &Sender<()>,
    open: impl FnOnce() -> Result<Path, ArmError>,
) -> Result<Usage, ArmError> {
    pin(run.spec.cores.server)?;
    let mut path = open()?;
    let mut codec = run.spec.codec(End::Server);
    let before = ring::thread_usage();
    // A client that is gone has set the stop flag; there is nobody to tell.
    let _ = ready.send(());
    let mut refused = 0_u64;
    let mut idle = 0;
    while !run.stop.load(Ordering::Relaxed) {
        let moved = path
            .turn(&mut |train, segment_len| {
                let whole = train
                    .chunks_mut(segment_len)
                    .all(|datagram| codec.open(datagram) && codec.seal(datagram));
                refused += u64::from(!whole);
                whole
            })
            .map_err(|source| ArmError::kernel("echo a datagram", source))?;
        relax(moved, &mut idle);
    }
    if refused > 0 {
        return Err(ArmError::Corrupt { count: refused });
    }
    Ok(since(before, ring::thread_usage()))
}

/// What the client saw.
struct Measured {
    datagrams: u64,
    whole_run: u64,
    elapsed: Duration,
    latency_ns: Histogram<u64>,
    usage: Usage,
    syscalls: u64,
}

fn measure<Path: EchoPath>(
    run: &Run,
    server: SocketAddrV4,
    open: impl FnOnce() -> Result<Path, ArmError>,
) -> Result<Measured, ArmError> {
    pin(run.spec.cores.client)?;
    let mut path = open()?;
    let before = ring::thread_usage();
    let mut client = Client {
        codec: run.spec.codec(End::Client),
        window: run.spec.window as u64,
        now_ns: 0,
        counting: false,
        datagrams: 0,
        corrupt: 0,
        latency_ns: histogram(),
    };
    let mut whole_run = 0;
    client.inject(run, server, &mut path)?;
    let mut began = Instant::now();
    let mut last_reply = began;
    let mut idle = 0;
    let elapsed = loop {
        let now = Instant::now();
        client.now_ns = nanos(now - run.start);
        let moved = path
            .turn(&mut |train, segment_len| client.take(train, segment_len))
            .map_err(|source| ArmError::kernel("echo a datagram", source))?;
        if client.corrupt > 0 {
            return Err(ArmError::Corrupt {
                count: client.corrupt,
            });
        }
        if moved > 0 {
            last_reply = now;
        } else if now - last_reply > STALL_LIMIT || run.stop.load(Ordering::Relaxed) {
            return Err(ArmError::Stalled {
                datagrams: whole_run + client.datagrams,
            });
        }
        if !client.counting && now - began >= WARM_UP {
            whole_run += client.datagrams;
            client.datagrams = 0;
            client.counting = true;
            began = now;
        } else if client.counting && now - began >= run.spec.duration && client.datagrams > 0 {
            break began.elapsed();
        }
        relax(moved, &mut idle);
    };
    Ok(Measured {
        datagrams: client.datagrams,
        whole_run: whole_run + client.datagrams,
        elapsed,
        latency_ns: client.latency_ns,
        usage: since(before, ring::thread_usage()),
        syscalls: path.syscalls(),
    })
}

/// The client's side of a turn: check, count, stamp, send again.
struct Client {
    codec: Codec,
    window: u64,
    now_ns: u64,
    counting: bool,
    datagrams: u64,
    corrupt: u64,
    latency_ns: Histogram<u64>,
}

impl Client {
    fn inject(
        &mut self,
        run: &Run,
        server: SocketAddrV4,
        path: &mut impl EchoPath,
    ) -> Result<(), ArmError> {
        let spec = run.spec;
        let mut index = 0;
        while index < self.window {
            let left = usize::try_from(self.window - index).unwrap_or(spec.train);
            let stamp_ns = nanos(run.start.elapsed());
            path.inject(
                server,
                spec.train.min(left),
                spec.datagram_len,
                &mut |train| {
                    for datagram in train.chunks_mut(spec.datagram_len) {
                        codec::fill(datagram, index, stamp_ns);
                        let sealed = self.codec.seal(datagram);
                        self.corrupt += u64::from(!sealed);
                        index += 1;
                    }
                },
            )
            .map_err(|source| ArmError::kernel("send the first window", source))?;
        }
        Ok(())
    }

    /// One train: every datagram is checked; one in 64 is compared byte for byte; the latency of
    /// the train is that of its first datagram.
    #[inline]
    fn take(&mut self, train: &mut [u8], segment_len: usize) -> bool {
        let mut sent_ns = None;
        for datagram in train.chunks_mut(segment_len) {
            let opened = self.codec.open(datagram);
            let Some((index, stamp_ns)) = codec::check(datagram, self.window).filter(|_| opened)
            else {
                self.corrupt += 1;
                return false;
            };
            if index.is_multiple_of(64) && !codec::filler_holds(datagram, index) {
                self.corrupt += 1;
                return false;
            }
            sent_ns.get_or_insert(stamp_ns);
            codec::restamp(datagram, index, self.now_ns);
            if !self.codec.seal(datagram) {
                self.corrupt += 1;
                return false;
            }
            self.datagrams += 1;
        }
        if let (true, Some(sent_ns)) = (self.counting, sent_ns) {
            self.latency_ns
                .saturating_record(self.now_ns.saturating_sub(sent_ns).max(1));
        }
        true
    }
}

/// Between turns: nothing while there is work; now and then offers the core to whoever waits for
/// it.
fn relax(moved: usize, idle: &mut u32) {
    if moved > 0 {
        *idle = 0;
        return;
    }
    *idle += 1;
    if idle.is_multiple_of(IDLE_TURNS) {
        thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

pub(super) fn since(before: Usage, after: Usage) -> Usage {
    Usage {
        cpu_ns: after.cpu_ns.saturating_sub(before.cpu_ns),
        involuntary_switches: after
            .involuntary_switches
            .saturating_sub(before.involuntary_switches),
    }
}

#[cfg(test)]
mod tests {
    use super::super::mmsg::BatchPath;
    use super::*;

    fn drive(datagram_len: usize, window: usize, train: usize) -> Drive {
        Drive {
            datagram_len,
            window,
            train,
            encrypted: false,
            duration: Duration::from_millis(10),
            cores: Cores::detect().expect("at least one core is allowed"),
            receive_buffer_len: RECEIVE_BUFFER_LEN,
        }
    }

    #[test]
    fn the_window_is_lowered_to_what_the_buffer_holds() {
        // Datagram length, window, train, granted bytes; window and train that fit.
        let table = [
            (1000, 64, 1, 1 << 20, (64, 1)),
            (1000, 64, 1, 20_240, (10, 1)),
            (1000, 64, 16, 40_000, (32, 16)),
            (1000, 64, 16, 10_000, (8, 8)),
            (1000, 3, 3, 1 << 20, (3, 3)),
        ];
        for (datagram_len, window, train, granted, fits) in table {
            let fitted = drive(datagram_len, window, train)
                .fitted(granted)
                .expect("one fits");
            assert_eq!((fitted.window, fitted.train), fits, "{window} in {granted}");
        }
        assert!(drive(1000, 1, 1).fitted(2000).is_err(), "not one fits");
    }

    #[test]
    fn a_small_receive_buffer_lowers_the_window_and_says_so() {
        let spec = Drive {
            receive_buffer_len: 32 << 10,
            ..drive(1400, 512, 1)
        };
        let result = spec
            .run(false, |spec, fd, _| Ok(BatchPath::open(fd, spec)))
            .expect("a lowered window comes back");
        assert!(result.details.datagrams > 0);
        assert!(result.details.window < 512, "{result:?}");
        assert!(
            result
                .details
                .note
                .is_some_and(|note| note.contains("512 were asked for"))
        );
    }
}
