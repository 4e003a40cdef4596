//! One connection to the driver socket.
//!
//! ```text
//!  reading ─▶ command ─┬─ done here: bind, send, close ─────────────▶ outbox ─▶ writing
//!                      └─ a task of its own; answers wait for those ─▶
//!                         of the same code that were asked before
//! ```
//!
//! A command that takes time runs beside the others, so that one slow dial does not hold up the
//! streams of a client; what it answers leaves in its turn. Reading stops while the client has
//! [`IN_FLIGHT_MAX`] commands or [`UNSENT_MAX`] bytes under way, or does not read what waits for it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ramjet_proto::addr::{Address, SocketAddress};
use ramjet_proto::driver::{self, Command, MarketCommand, Reply};
use ramjet_proto::ids::ConnectionId;
use serde_json::Value;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::connections::Connection;
use super::market::Market;
use super::outbox::{Outbox, WriteEnd};
use super::{Driver, Hub};
use crate::control::local_stream::{Reader, Writer};
use crate::control::ports::Datagram;

/// Commands of one client that are under way at a time.
pub(super) const IN_FLIGHT_MAX: usize = 32;
/// Bytes of one client on their way to its streams.
pub(super) const UNSENT_MAX: usize = 2 << 20;
/// How often a client that is not read is looked after.
const LOOK: Duration = Duration::from_secs(1);

/// The first bytes of a connection: the length and the code of its first frame.
pub(crate) type FirstFrame = [u8; 5];

/// A connection whose protocol is not known yet.
pub(crate) struct Entrance {
    pub(crate) reader: BufReader<Reader>,
    pub(crate) writer: Writer,
}

impl Entrance {
    /// Waits for the first frame's head; `None` if the client left before. Meanwhile the client gets
    /// the datagrams, for whoever only listens says nothing.
    pub(crate) async fn first(&mut self, driver: &Driver) -> io::Result<Option<FirstFrame>> {
        let Entrance { reader, writer } = self;
        let mut datagrams = driver.hub.datagrams.subscribe();
        let outbox = Outbox::new(driver.hub.timings().client_stall);
        let mut head = FirstFrame::default();
        let read = async {
            match reader.read_exact(&mut head).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
                Err(error) => Err(error),
            }
        };
        let writing = outbox.run(writer);
        tokio::pin!(writing);
        let first = tokio::select! {
            first = read => first?,
            () = relay(&driver.hub, &outbox, &mut datagrams) => false,
            end = &mut writing => return Err(driver.hub.departure("silent", end)),
        };
        // What was begun is written whole: behind a frame that is cut nothing can be read.
        tokio::select! {
            () = outbox.empty() => {}
            end = writing => return Err(driver.hub.departure("silent", end)),
        }
        Ok(first.then_some(head))
    }
}

/// Puts the datagrams that arrive for nobody else before a client.
async fn relay(hub: &Hub, outbox: &Outbox, datagrams: &mut broadcast::Receiver<Datagram>) {
    loop {
        match datagrams.recv().await {
            Ok(datagram) if outbox.has_room() => {
                let source = SocketAddress {
                    address: Address::backbone(datagram.peer),
                    port: datagram.source_port,
                };
                outbox.push(Reply::Datagram {
                    source,
                    port: datagram.port,
                    bytes: &datagram.bytes,
                });
            }
            Ok(_) => hub.count("driver_datagrams_dropped"),
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                hub.count_many("driver_datagrams_dropped", lost);
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

impl Hub {
    /// Why a client is served no longer, counted and as an error for the log.
    fn departure(&self, who: &str, end: WriteEnd) -> io::Error {
        match end {
            WriteEnd::Slow(stall, waiting) => {
                self.count("driver_clients_slow");
                tracing::warn!(
                    who,
                    waiting,
                    ?stall,
                    "driver client dropped: it does not read"
                );
                io::Error::new(io::ErrorKind::TimedOut, "the client does not read")
            }
            WriteEnd::Gone(error) => error,
        }
    }
}

/// One client.
pub(super) struct Client {
    pub(super) number: u32,
    pub(super) hub: Rc<Hub>,
    pub(super) outbox: Outbox,
    /// By code: told when the answer before has left.
    lanes: RefCell<BTreeMap<u8, oneshot::Receiver<()>>>,
    in_flight: Arc<Semaphore>,
    unsent: Arc<Semaphore>,
    tasks: RefCell<JoinSet<()>>,
    dials: RefCell<Vec<AbortHandle>>,
    /// The stream that the last command was for, if it was to send.
    spoke: Cell<Option<ConnectionId>>,
    pub(super) market: Market,
}

/// What a command that takes time comes to.
pub(super) enum Answer {
    /// The JSON of a reply.
    Json(Value),
    /// A datagram was taken.
    Sent,
    /// A task to run, or the result of one.
    Task(Value, Bytes),
    /// A stream is open: it is told, then read.
    Dialed(Box<crate::control::ports::Stream>),
}

impl Driver {
    /// Speaks with a client whose first frame begins with `first`, until it leaves.
    pub(crate) async fn converse(&self, entrance: Entrance, first: FirstFrame) -> io::Result<()> {
        let Entrance {
            mut reader,
            mut writer,
        } = entrance;
        let hub = &self.hub;
        let number = hub.number_client();
        let pid = writer.peer_pid().unwrap_or(0);
        let who = format!("client {number}, process {pid}");
        hub.count("driver_clients");
        let client = Rc::new(Client {
            number,
            hub: Rc::clone(hub),
            outbox: Outbox::new(hub.timings().client_stall),
            lanes: RefCell::default(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            unsent: Arc::new(Semaphore::new(UNSENT_MAX)),
            tasks: RefCell::default(),
            dials: RefCell::default(),
            spoke: Cell::default(),
            market: Market::default(),
        });
        let mut datagrams = hub.datagrams.subscribe();
        let outcome = {
            let serve = async {
                let fault = client.read(&mut reader, first).await;
                if let Some(fault) = fault {
                    hub.count("driver_frames_refused");
                    tracing::info!(who, %fault, "driver client ended");
                    client.error(&fault);
                }
                client.settle().await;
            };
            tokio::select! {
                () = serve => Ok(()),
                () = relay(hub, &client.outbox, &mut datagrams) => Ok(()),
                end = client.outbox.run(&mut writer) => Err(hub.departure(&who, end)),
            }
        };
        client.leave();
        outcome
    }
}

impl Client {
    /// Reads and acts until the client leaves; what it got wrong, if nothing after it can be read.
    async fn read(
        self: &Rc<Self>,
        reader: &mut BufReader<Reader>,
        first: FirstFrame,
    ) -> Option<String> {
        let mut head = first;
        loop {
            let [a, b, c, d, code] = head;
            let len = match driver::frame_len([a, b, c, d]) {
                Ok(len) => len,
                Err(fault) => return Some(fault.to_string()),
            };
            let mut frame = vec![code; len];
            if reader.read_exact(&mut frame[1..]).await.is_err() {
                return None;
            }
            self.take(Bytes::from(frame), reader).await?;
            self.patiently(reader, self.outbox.room()).await?;
            if let Some(connection) = self.dialogue() {
                self.lend(&connection, reader).await?;
            }
            if reader.read_exact(&mut head).await.is_err() {
                return None;
            }
        }
    }

    /// Waits for `what`, but not for ever once the client has left. `None` if it has.
    async fn patiently<T>(
        &self,
        reader: &BufReader<Reader>,
        what: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(what);
        let mut looks = 0;
        loop {
            tokio::select! {
                biased;
                done = &mut what => return Some(done),
                () = tokio::time::sleep(LOOK) => {
                    let left = reader.get_ref().is_at_end().await;
                    looks = if left { looks + 1 } else { 0 };
                    if LOOK * looks >= self.hub.timings().client_linger {
                        self.hub.count("driver_clients_left_unsent");
                        return None;
                    }
                }
            }
        }
    }

    /// Acts on one frame; `None` if the client left while it had to wait.
    async fn take(self: &Rc<Self>, frame: Bytes, reader: &BufReader<Reader>) -> Option<()> {
        let code = frame.first().copied().unwrap_or_default();
        let command = match Command::parse(&frame) {
            Ok(command) => command,
            Err(fault) => {
                self.hub.count("driver_commands_refused");
                if Command::is_answered(code) {
                    self.error(&fault);
                }
                return Some(());
            }
        };
        self.spoke.set(None);
        match command {
            Command::Send { connection, bytes } => {
                let bytes = frame.slice_ref(bytes);
                let wanted = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let unsent = Arc::clone(&self.unsent).acquire_many_owned(wanted);
                // The semaphore is never closed.
                let permit = self.patiently(reader, unsent).await?.ok()?;
                self.send(connection, bytes, permit);
                self.spoke.set(Some(connection));
            }
            Command::Close { connection } => self.close(connection),
            Command::Bind { port } => self.bind(port),
            Command::Unbind { port } => self.unbind(port),
            Command::Market(MarketCommand::ReportProgress { task, bytes }) => {
                self.report(task, frame.slice_ref(bytes));
            }
            Command::CancelDials => {
                for dial in self.dials.take() {
                    dial.abort();
                }
            }
            command => {
                let permit = Arc::clone(&self.in_flight).acquire_owned();
                let permit = self.patiently(reader, permit).await?.ok()?;
                self.begin(&command, &frame, permit);
            }
        }
        Some(())
    }

    /// The stream on which the client has been asking and been answered, and on nothing else.
    fn dialogue(&self) -> Option<Rc<Connection>> {
        let spoke = self.spoke.get();
        let connections = self.hub.connections.borrow();
        let connection = connections.get(&spoke?)?;
        (connection.is_of(self) && connection.rounds.asked()).then(|| Rc::clone(connection))
    }

    /// Whether nothing is under way to the client or from it.
    fn is_quiet(&self, reader: &BufReader<Reader>) -> bool {
        reader.buffer().is_empty()
            && self.outbox.len() == 0
            && self.in_flight.available_permits() == IN_FLIGHT_MAX
            && self.unsent.available_permits() == UNSENT_MAX
    }

    /// Lends the client's socket to the worker of a stream that it is in a dialogue on, until
    /// something else is said. `None` if the client cannot be read any more.
    async fn lend(&self, connection: &Connection, reader: &mut BufReader<Reader>) -> Option<()> {
        // What was said last reaches the worker first.
        tokio::task::yield_now().await;
        if !self.is_quiet(reader) || !connection.is_read() {
            return Some(());
        }
        let socket = reader.get_mut().lend();
        self.outbox.lend();
        let wanted = self.outbox.wanted();
        let rest = connection.lender.lend(socket, connection.id, wanted).await;
        connection.rounds.lent(rest.frames);
        self.outbox.take_back(rest.output);
        reader.get_mut().take_back(rest.input).ok()
    }

    /// Begins a command that takes time.
    fn begin(self: &Rc<Self>, command: &Command<'_>, frame: &Bytes, permit: OwnedSemaphorePermit) {
        let (hub, code) = (Rc::clone(&self.hub), command.code());
        match command {
            Command::Dial { to } => {
                let to = *to;
                let dial = async move { hub.dial(to).await };
                let dial = self.answer(code, permit, dial);
                let mut dials = self.dials.borrow_mut();
                dials.retain(|dial| !dial.is_finished());
                dials.push(dial);
            }
            Command::SendTo { to, bytes } => {
                let (to, bytes, source) = (*to, frame.slice_ref(bytes), self.source_port());
                self.spawn(async move {
                    if hub.send_to(source, to, bytes).await.is_err() {
                        hub.count("driver_datagrams_unsent");
                    }
                    drop(permit);
                });
            }
            Command::SendToConfirmed { to, bytes } => {
                let (to, bytes, source) = (*to, frame.slice_ref(bytes), self.source_port());
                self.answer(code, permit, async move {
                    hub.send_to(source, to, bytes).await.map(|()| Answer::Sent)
                });
            }
            Command::Market(_) => {
                let work = Rc::clone(self).market_work(frame.clone());
                self.answer(code, permit, work);
            }
            Command::Info => self.answer_json(code, permit, async move { hub.info().await }),
            Command::Health => self.answer_json(code, permit, async move { hub.health().await }),
            command => match hub.registry_work(command) {
                Ok(work) => self.answer_json(code, permit, work),
                Err(refusal) => self.answer_json(code, permit, async move { Err(refusal) }),
            },
        }
    }

    fn answer_json(
        self: &Rc<Self>,
        code: u8,
        permit: OwnedSemaphorePermit,
        work: impl Future<Output = Result<Value, String>> + 'static,
    ) {
        self.answer(code, permit, async move { work.await.map(Answer::Json) });
    }

    /// Runs `work` beside what else the client wants; its answer leaves after the answers to the
    /// commands of the same code that came before.
    fn answer(
        self: &Rc<Self>,
        code: u8,
        permit: OwnedSemaphorePermit,
        work: impl Future<Output = Result<Answer, String>> + 'static,
    ) -> AbortHandle {
        let (left, successor) = oneshot::channel();
        let before = self.lanes.borrow_mut().insert(code, successor);
        let client = Rc::clone(self);
        self.spawn(async move {
            let answer = work.await;
            if let Some(before) = before {
                // Given up is as good as answered.
                let _ = before.await;
            }
            client.deliver(code, answer);
            drop((left, permit));
        })
    }

    fn deliver(self: &Rc<Self>, code: u8, answer: Result<Answer, String>) {
        match answer {
            Ok(Answer::Json(value)) => {
                let json = value.to_string();
                if json.len() < driver::FRAME_LEN_MAX {
                    let json = json.as_bytes();
                    self.outbox.push(Reply::Json {
                        command: code,
                        json,
                    });
                } else {
                    let max = driver::FRAME_LEN_MAX - 1;
                    self.error(&format!("an answer of {} bytes, at most {max}", json.len()));
                }
            }
            Ok(Answer::Sent) => self.outbox.push(Reply::Sent),
            Ok(Answer::Task(value, bytes)) => {
                let json = value.to_string();
                self.outbox.push(Reply::Task {
                    command: code,
                    json: json.as_bytes(),
                    bytes: &bytes,
                });
            }
            Ok(Answer::Dialed(stream)) => {
                if let Some(connection) = self.adopt(*stream) {
                    let id = connection.id;
                    self.outbox.push(Reply::Dialed { connection: id });
                    self.attend(connection);
                } else {
                    self.error(&super::connections::full());
                }
            }
            Err(error) => self.error(&error),
        }
    }

    pub(super) fn error(&self, error: &dyn std::fmt::Display) {
        self.outbox.push(Reply::Error {
            text: &error.to_string(),
        });
    }

    /// Runs a task that ends with the client.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let mut tasks = self.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(task)
    }

    /// The port that a client's datagrams come from: its own among the ephemeral ones.
    fn source_port(&self) -> u16 {
        const FIRST: u16 = 49_152;
        let offset = u16::try_from(self.number % u32::from(u16::MAX - FIRST)).unwrap_or(0);
        FIRST + offset
    }

    /// Waits until what the client asked for is answered and written: a program that closes its
    /// half and reads on gets everything, one that is gone is noticed by the first write.
    async fn settle(&self) {
        let answered = async {
            let all = u32::try_from(IN_FLIGHT_MAX).unwrap_or(u32::MAX);
            let _all = self.in_flight.acquire_many(all).await;
            self.outbox.empty().await;
        };
        // Whoever lingers longer has left.
        let _ = tokio::time::timeout(self.hub.timings().client_linger, answered).await;
    }

    /// Frees what the client held: its tasks, ports and streams.
    fn leave(&self) {
        drop(self.tasks.take());
        self.release_all();
        self.leave_market();
    }
}
