//! The IO shell: sockets, threads, the clock, and the handle by which a program holds a registry.
//!
//! Two threads. `registry-io` runs all sockets on one tokio runtime. `registry-log` owns state and
//! store, and waits for jobs or for the next deadline: while it writes to disk, jobs gather, and
//! the next turn commits them together. The only clock of the crate is read here.

use core::time::Duration;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime};

use ramjet_proto::identity::PublicKey;
use ramjet_proto::ids::NodeId;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

use crate::beacon;
use crate::byte_log::ByteLog;
use crate::config::{Config, Limits, RegistryError};
use crate::fault::{Count, Counters};
use crate::ledger::{Conduct, Job, Ledger, pilot_error};
use crate::session::{self, Shared};
use crate::store::{Medium, Store};

/// Wall time that does not jump: the time at the start, and what a monotonic clock counted since.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    origin_ms: u64,
}

impl Clock {
    fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let origin_ms = since_epoch.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX / 2)
        });
        Clock {
            origin: Instant::now(),
            origin_ms,
        }
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(self) -> u64 {
        let elapsed_ms = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
        self.origin_ms + elapsed_ms
    }

    fn until(self, at_ms: u64) -> Duration {
        Duration::from_millis(at_ms.saturating_sub(self.now_ms()))
    }
}

/// Notices that wait for the beacon; those that do not fit are found by the nodes' own polls.
const NOTICES_MAX: usize = 1_024;

/// The registry: see [`Registry::start`].
#[derive(Debug)]
pub struct Registry;

/// A running registry. Dropping it stops the registry as [`RegistryHandle::shutdown`] does.
#[derive(Debug)]
pub struct RegistryHandle {
    tcp_addr: SocketAddr,
    beacon_addr: Option<SocketAddr>,
    public_key: PublicKey,
    counters: Arc<Counters>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl RegistryHandle {
    /// Where TCP listens.
    pub fn tcp_addr(&self) -> SocketAddr {
        self.tcp_addr
    }

    /// Where the beacon listens, if there is one.
    pub fn beacon_addr(&self) -> Option<SocketAddr> {
        self.beacon_addr
    }

    /// The key under which this registry signs grants; the same for the life of its store.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// All counters and levels by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let values = self.counters.snapshot();
        values
            .into_iter()
            .map(|(label, value)| (label.to_owned(), value))
            .collect()
    }

    /// The counters themselves, to be read at any time, also once the registry has stopped.
    pub fn shared_counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Stops listening, ends all connections, and waits until what was queued is in the log.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for RegistryHandle {
    fn drop(&mut self) {
        // The receivers are gone only if the threads are.
        let _ = self.stop.send(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a registry thread ended by a panic");
            }
        }
    }
}

impl Registry {
    /// Starts a registry on threads of its own; it listens when this returns.
    ///
    /// # Errors
    /// [`RegistryError`], by what is in the way.
    pub fn start(config: Config) -> Result<RegistryHandle, RegistryError> {
        check_limits(&config.limits)?;
        let mut limits = config.limits;
        limits.rules.polo_policy = config.polo_policy;
        let bind_fault = |what, address| {
            move |error| RegistryError::Bind {
                what,
                address,
                error,
            }
        };
        let listener = TcpListener::bind(config.listen)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(bind_fault("TCP", config.listen))?;
        let tcp_addr = listener
            .local_addr()
            .map_err(bind_fault("TCP", config.listen))?;
        let (beacon, beacon_addr) = match config.beacon {
            None => (None, None),
            Some(address) => {
                let socket = UdpSocket::bind(address)
                    .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
                    .map_err(bind_fault("beacon UDP", address))?;
                let bound = socket
                    .local_addr()
                    .map_err(bind_fault("beacon UDP", address))?;
                (Some(socket), Some(bound))
            }
        };
        let byte_log = config.byte_log.as_deref().map(ByteLog::open).transpose()?;
        let medium = config.state_dir.map_or(Medium::Memory, Medium::Directory);
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed)
            .map_err(|_| RegistryError::Thread(io::Error::other("the kernel gives no entropy")))?;

        let clock = Clock::start();
        let counters = Arc::new(Counters::default());
        let (store, recovered) = Store::open(medium, limits.snapshot_every, seed)?;
        let (notices, noticed) = mpsc::channel(NOTICES_MAX);
        let conduct = Conduct {
            allow_unsigned_polo: config.allow_unsigned_polo,
            beacon: beacon_addr,
            notices: beacon_addr.map(|_| notices),
            limits: limits.clone(),
        };
        let ledger = Ledger::new(
            store,
            recovered.state,
            recovered.identity,
            conduct,
            Arc::clone(&counters),
            clock.now_ms(),
        )?;
        let public_key = ledger.public_key();
        let (jobs, queue) = mpsc::channel(limits.log_queue);
        let (stop, stopped) = watch::channel(false);
        let shared = Shared {
            counters: Arc::clone(&counters),
            incoming: Arc::new(Semaphore::new(limits.incoming_bytes >> 10)),
            byte_log,
            jobs,
            limits,
        };
        let log_thread = spawn("registry-log", move |runtime| {
            keep_log(&runtime, ledger, queue, clock)
        })?;
        let mut handle = RegistryHandle {
            tcp_addr,
            beacon_addr,
            public_key,
            counters,
            stop,
            threads: vec![log_thread],
        };
        // Where this fails, dropping the handle and the jobs ends the log thread.
        let io_thread = spawn("registry-io", move |runtime| {
            let beacon = beacon.map(|socket| (socket, noticed));
            serve(&runtime, shared, listener, beacon, stopped, clock);
        })?;
        // The log thread ends after the last session, so it is waited for last.
        handle.threads.insert(0, io_thread);
        Ok(handle)
    }
}

fn check_limits(limits: &Limits) -> Result<(), RegistryError> {
    let needs = [
        ("connections_max", limits.connections_max, 1),
        (
            "in_flight_per_connection",
            limits.in_flight_per_connection,
            1,
        ),
        (
            "messages_per_second",
            limits.messages_per_second as usize,
            1,
        ),
        ("messages_burst", limits.messages_burst as usize, 1),
        ("log_queue", limits.log_queue, 1),
        ("batch_max", limits.batch_max, 1),
        // One message of the greatest length must fit.
        ("incoming_bytes", limits.incoming_bytes, 2 << 20),
        (
            "outgoing_bytes_per_connection",
            limits.outgoing_bytes_per_connection,
            2 << 20,
        ),
        ("engagements_max", limits.rules.engagements_max, 1),
    ];
    match needs.into_iter().find(|&(_, value, least)| value < least) {
        None => Ok(()),
        Some((name, _, 1)) => Err(RegistryError::Limit {
            name,
            bound: "at least 1",
        }),
        Some((name, _, _)) => Err(RegistryError::Limit {
            name,
            bound: "at least 2 MiB",
        }),
    }
}

fn spawn(
    name: &str,
    work: impl FnOnce(Runtime) + Send + 'static,
) -> Result<JoinHandle<()>, RegistryError> {
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(RegistryError::Thread)?;
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| work(runtime))).is_err() {
                // Half a registry would take connections and answer nobody: its supervisor starts
                // a whole one, which recovers from the log.
                tracing::error!("a bug stopped the registry; its message is on standard error");
                std::process::abort();
            }
        })
        .map_err(RegistryError::Thread)
}

/// The log thread: a turn for what is queued, or for the next deadline.
fn keep_log(runtime: &Runtime, mut ledger: Ledger, mut queue: mpsc::Receiver<Job>, clock: Clock) {
    let batch_max = ledger.batch_max();
    runtime.block_on(async {
        loop {
            let mut jobs = Vec::new();
            let waiting = queue.recv_many(&mut jobs, batch_max);
            let received = match ledger.next_due_ms() {
                Some(due_ms) => timeout(clock.until(due_ms), waiting).await.ok(),
                None => Some(waiting.await),
            };
            ledger.turn(clock.now_ms(), jobs);
            if received == Some(0) {
                return;
            }
        }
    });
}

fn serve(
    runtime: &Runtime,
    shared: Shared,
    listener: TcpListener,
    beacon: Option<(UdpSocket, mpsc::Receiver<NodeId>)>,
    mut stopped: watch::Receiver<bool>,
    clock: Clock,
) {
    let shared = Arc::new(shared);
    runtime.block_on(async {
        let served = async {
            if let Some((socket, notices)) = beacon {
                let socket = tokio::net::UdpSocket::from_std(socket)?;
                tokio::spawn(beacon::serve(Arc::clone(&shared), socket, notices, clock));
            }
            accept(&shared, tokio::net::TcpListener::from_std(listener)?).await
        };
        tokio::select! {
            ended = served => {
                let ended: io::Result<()> = ended;
                if let Err(error) = ended {
                    tracing::error!(%error, "the registry's sockets failed");
                }
            }
            _ = stopped.changed() => {}
        }
    });
    // Dropping the runtime ends the sessions, and with them the log thread's queue.
}

async fn accept(shared: &Arc<Shared>, listener: tokio::net::TcpListener) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(shared.limits.connections_max));
    for id in 0.. {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a peer that has gone: others must still be served.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            shared.counters.add(Count::ConnectionsRefused);
            let reason = format!(
                "too many connections: at most {}, try again later",
                shared.limits.connections_max
            );
            // A fresh socket takes this much without waiting.
            let _ = stream.try_write(&pilot_error(&reason));
            continue;
        };
        shared.counters.add(Count::ConnectionsOpened);
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            session::serve(Arc::clone(&shared), stream, peer, id).await;
            shared.counters.add(Count::ConnectionsClosed);
            drop(place);
        });
    }
    Ok(())
}
