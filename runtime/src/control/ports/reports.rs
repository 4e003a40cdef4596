//! What the control thread does with the ports: it starts them, and hands over what workers report.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

use super::stream::StreamState;
use super::{ACCEPTS_MAX, DATAGRAMS_MAX, Datagram, Inner, Ports, Stream, Way};
use crate::control::vocabulary::{
    Command, ConnectionRow, DatagramFault, DialFault, PeerRow, StreamCommand, StreamEnd, StreamId,
    StreamReport,
};
use crate::worker::mailbox::Mailbox;

impl Ports {
    /// Of a node with so many workers, none of which runs yet.
    pub(crate) fn new(workers: usize) -> Self {
        Ports {
            inner: Rc::new(Inner {
                workers: RefCell::new((0..workers).map(|_| Way::default()).collect()),
                tables: RefCell::default(),
                datagrams_dropped: Cell::new(0),
                accepts_dropped: Cell::new(0),
                waiting: Notify::new(),
                next: Cell::new(1),
            }),
        }
    }

    /// The workers run: what waited for them goes.
    pub(crate) fn start(&self, mailboxes: impl IntoIterator<Item = Mailbox>) {
        for (way, mailbox) in self.inner.workers.borrow_mut().iter_mut().zip(mailboxes) {
            way.mailbox = Some(mailbox);
        }
        self.flush();
    }

    /// Sends what waits for room in the workers' queues; whether all of it went.
    pub(crate) fn flush(&self) -> bool {
        let mut all = true;
        for way in self.inner.workers.borrow_mut().iter_mut() {
            let Some(mailbox) = &way.mailbox else {
                continue;
            };
            while let Some(command) = way.backlog.pop_front() {
                match mailbox.send(Command::Stream(command)) {
                    Ok(()) => {}
                    Err(Command::Stream(command)) => {
                        way.backlog.push_front(command);
                        all = false;
                        break;
                    }
                    Err(_) => unreachable!("a mailbox gives back what it was given"),
                }
            }
        }
        all
    }

    /// Waits until something waits for room in a worker's queue.
    pub(crate) async fn waits(&self) {
        self.inner.waiting.notified().await;
    }

    /// A worker's thread has ended, and everything on it.
    pub(crate) fn worker_ended(&self, worker: usize) {
        if let Some(way) = self.inner.workers.borrow_mut().get_mut(worker) {
            way.ended = true;
            way.backlog.clear();
        }
        let mut tables = self.inner.tables.borrow_mut();
        let of_worker = |stream: &StreamId| usize::from(stream.worker) == worker;
        let streams: Vec<_> = tables.streams.extract_if(|id, _| of_worker(id)).collect();
        let dials: Vec<_> = tables
            .dials
            .extract_if(|_, dialing| dialing.worker == worker)
            .collect();
        let sends: Vec<_> = tables
            .sends
            .extract_if(|_, (owner, _)| *owner == worker)
            .collect();
        tables.questions.clear();
        drop(tables);
        for (_, stream) in streams {
            stream.ended(StreamEnd::Down);
        }
        for (_, dialing) in dials {
            // Whoever dialed may have given up.
            let _ = dialing.answer.send(Err(DialFault::Down));
        }
        for (_, (_, answer)) in sends {
            let _ = answer.send(Some(DatagramFault::Down));
        }
    }

    /// What a worker reports about streams and datagrams.
    pub(crate) fn report(&self, report: StreamReport) {
        match report {
            StreamReport::Dialed {
                dial,
                stream,
                local_port,
            } => self.dialed(dial, stream, local_port),
            StreamReport::DialFailed { dial, fault } => {
                let dialing = self.inner.tables.borrow_mut().dials.remove(&dial);
                if let Some(dialing) = dialing {
                    let _ = dialing.answer.send(Err(fault));
                }
            }
            StreamReport::Accepted {
                stream,
                peer,
                local_port,
                remote_port,
            } => {
                self.accepted(StreamState::new(stream, peer, local_port, remote_port));
            }
            StreamReport::Data { stream, bytes } => {
                if let Some(state) = self.stream(stream) {
                    state.arrived(self, bytes);
                }
            }
            StreamReport::Sent { stream, len } => {
                if let Some(state) = self.stream(stream) {
                    state.sent(len);
                }
            }
            StreamReport::Returned { stream, rest } => {
                if let Some(state) = self.stream(stream) {
                    state.returned(rest);
                }
            }
            StreamReport::Ended { stream, end } => {
                let state = self.inner.tables.borrow_mut().streams.remove(&stream);
                if let Some(state) = state {
                    state.ended(end);
                }
            }
            StreamReport::DatagramSent { token, fault } => {
                let answer = self.inner.tables.borrow_mut().sends.remove(&token);
                if let Some((_, answer)) = answer {
                    let _ = answer.send(fault);
                }
            }
            StreamReport::Datagram {
                peer,
                source_port,
                port,
                bytes,
            } => {
                let datagram = Datagram {
                    peer,
                    source_port,
                    port,
                    bytes,
                };
                self.datagram(datagram);
            }
            StreamReport::Rows {
                token,
                connections,
                peers,
            } => self.take_rows(token, connections, peers),
        }
    }

    fn accepted(&self, state: StreamState) {
        let local_port = state.local_port;
        let stream = self.adopt(state);
        let tables = self.inner.tables.borrow();
        let listener = tables.listeners.get(&local_port).cloned();
        drop(tables);
        if let Some(listener) = listener
            && listener.push(stream, ACCEPTS_MAX).is_err()
        {
            // Too many wait: it was dropped and so reset, as every daemon does.
            let dropped = &self.inner.accepts_dropped;
            dropped.set(dropped.get() + 1);
        }
    }

    fn dialed(&self, dial: u64, stream: StreamId, local_port: u16) {
        let dialing = self.inner.tables.borrow_mut().dials.remove(&dial);
        let Some(dialing) = dialing else {
            // Given up meanwhile.
            self.tell(usize::from(stream.worker), StreamCommand::Reset { stream });
            return;
        };
        let state = StreamState::new(stream, dialing.peer, local_port, dialing.port);
        let stream = self.adopt(state);
        // Dropped, and so reset, if whoever dialed has given up.
        let _ = dialing.answer.send(Ok(stream));
    }

    fn adopt(&self, state: StreamState) -> Stream {
        let state = Rc::new(state);
        let mut tables = self.inner.tables.borrow_mut();
        tables.streams.insert(state.id, Rc::clone(&state));
        Stream::new(self.clone(), state)
    }

    fn stream(&self, id: StreamId) -> Option<Rc<StreamState>> {
        self.inner.tables.borrow().streams.get(&id).cloned()
    }

    fn datagram(&self, datagram: Datagram) {
        let waiting = self.inner.tables.borrow().bound_for(datagram.port).cloned();
        let taken = waiting.is_some_and(|waiting| waiting.push(datagram, DATAGRAMS_MAX).is_ok());
        if !taken {
            let dropped = &self.inner.datagrams_dropped;
            dropped.set(dropped.get() + 1);
        }
    }

    fn take_rows(&self, token: u64, connections: Vec<ConnectionRow>, peers: Vec<PeerRow>) {
        let mut tables = self.inner.tables.borrow_mut();
        let Some(question) = tables.questions.get_mut(&token) else {
            return;
        };
        question.connections.extend(connections);
        question.peers.extend(peers);
        question.missing -= 1;
        if question.missing == 0
            && let Some(question) = tables.questions.remove(&token)
        {
            let _ = question.answer.send((question.connections, question.peers));
        }
    }
}
