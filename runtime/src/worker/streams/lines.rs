//! Lines: sockets of driver clients, lent to the worker of the one stream that they speak on.
//!
//! ```text
//!   lent:      client ◀────────────▶ worker ◀──▶ tunnel
//!   otherwise: client ◀──▶ control ◀──▶ worker ◀──▶ tunnel
//! ```
//!
//! A program that asks and waits for the answer crosses the control thread twice in a round trip, and is
//! asleep each time: on hosts with few cores these wakes are most of what it waits for. So control lends
//! the socket of such a program, and takes it back as soon as anything but this stream is spoken of.
//!
//! A worker acts on whole `Send` frames of its stream and on nothing else. Whatever it cannot do at once
//! ends the loan, and control goes on from there: another command, a fault, a frame longer than
//! [`LINE_LEN`], more than [`UNSENT_MAX`] that did not leave, a client that reads too slowly, the end of
//! the client or of the stream. Absent: any waiting.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;

use bytes::Bytes;
use ramjet_proto::driver::{Command, Reply, STREAM_BYTES_MAX, frame_len};
use ramjet_proto::stream::{State, Ticket};

use super::{Own, Service, ticket};
use crate::control::vocabulary::{Line, LineRest, Report, StreamId, StreamReport};
use crate::worker::counters::Counter;
use crate::worker::io::Io;
use crate::worker::rooms::Rooms;
use crate::worker::turn::Worker;

/// Bytes read at once from a client; frames that are longer are control's.
const LINE_LEN: usize = 16 << 10;
/// Bytes of a client that may wait for room on the path.
const UNSENT_MAX: usize = 64 << 10;
/// Length of a frame, before it.
const PREFIX_LEN: usize = 4;

/// A line that is here.
#[derive(Debug)]
pub(super) struct Lent {
    line: Line,
    /// What the client said; the first `filled` bytes are.
    input: Box<[u8]>,
    filled: usize,
    /// What it is to be told.
    output: Vec<u8>,
    frames: u64,
}

/// What came of a look at a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// More may come.
    Goes,
    /// Control is to go on.
    Ends,
}

impl Lent {
    fn new(line: Line) -> Self {
        Lent {
            line,
            input: vec![0; LINE_LEN].into_boxed_slice(),
            filled: 0,
            output: Vec::new(),
            frames: 0,
        }
    }

    /// Reads what the client says and gives it to `send`, which takes the bytes of a frame or refuses them.
    fn read(&mut self, mut send: impl FnMut(&[u8]) -> bool) -> Look {
        loop {
            let space = &mut self.input[self.filled..];
            let len = space.len();
            match (&*self.line.socket).read(space) {
                // The end: control sees it too.
                Ok(0) => return Look::Ends,
                Ok(read) => {
                    self.filled += read;
                    if self.act(&mut send) == Look::Ends {
                        return Look::Ends;
                    }
                    if read < len {
                        return Look::Goes;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Look::Goes,
                Err(_) => return Look::Ends,
            }
        }
    }

    /// Acts on the whole frames that are here.
    fn act(&mut self, send: &mut impl FnMut(&[u8]) -> bool) -> Look {
        let (mut at, mut look) = (0, Look::Goes);
        while let Some(&prefix) = self.input[at..self.filled].first_chunk::<PREFIX_LEN>() {
            let Ok(len) = frame_len(prefix) else {
                look = Look::Ends;
                break;
            };
            let frame = at + PREFIX_LEN;
            if len > LINE_LEN - PREFIX_LEN {
                look = Look::Ends;
                break;
            }
            let Some(bytes) = self.input[frame..self.filled].get(..len) else {
                break;
            };
            match Command::parse(bytes) {
                Ok(Command::Send { connection, bytes })
                    if connection == self.line.connection && send(bytes) => {}
                _ => {
                    look = Look::Ends;
                    break;
                }
            }
            at = frame + len;
            self.frames += 1;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        look
    }

    /// Tells the client what arrived.
    fn write(&mut self, bytes: &[u8]) -> Look {
        let connection = self.line.connection;
        for bytes in bytes.chunks(STREAM_BYTES_MAX) {
            Reply::Received { connection, bytes }.append(&mut self.output);
            self.frames += 1;
        }
        loop {
            match (&*self.line.socket).write(&self.output) {
                Ok(written) if written == self.output.len() => {
                    self.output.clear();
                    return Look::Goes;
                }
                Ok(written) => {
                    self.output.drain(..written);
                    return Look::Ends;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It reads too slowly, or is gone: control sees which.
                Err(_) => return Look::Ends,
            }
        }
    }

    fn rest(self) -> LineRest {
        LineRest {
            input: self.input[..self.filled].to_vec(),
            output: self.output,
            frames: self.frames,
        }
    }
}

impl<B: Io> Worker<B> {
    /// Control lends a line.
    pub(super) fn take_line(&mut self, stream: StreamId, line: Line) {
        let ticket = ticket(stream);
        let backed_up = self.rooms.reporter.is_backed_up();
        let tenant = self.rooms.streams.table.tenant_mut(ticket);
        let tenant = tenant.filter(|tenant| {
            let own = &tenant.own;
            let open = tenant.session.state() == State::Established;
            let free = own.service == Service::Control && own.line.is_none();
            open && free && own.told == line.heard && !backed_up
        });
        if let Some(tenant) = tenant
            && self.io.watch(line.socket.as_fd(), ticket.place)
        {
            tenant.own.line = Some(Box::new(Lent::new(line)));
            self.rooms.counters.add(Counter::LinesLent, 1);
            return;
        }
        let rest = LineRest::default();
        let report = Report::Stream(StreamReport::Returned { stream, rest });
        self.rooms.reporter.report(&self.rooms.counters, report);
    }

    /// Hears the clients that have said something; whether any has.
    pub(in crate::worker) fn hear_lines(&mut self) -> bool {
        let mut heard = false;
        while let Some(place) = self.io.next_readable() {
            let Some(ticket) = self.rooms.streams.table.at(place) else {
                continue;
            };
            heard |= self.rooms.hear_line(ticket);
            let tenant = self.rooms.streams.table.tenant(ticket);
            if let Some(lent) = tenant.and_then(|tenant| tenant.own.line.as_deref()) {
                self.io.watch(lent.line.socket.as_fd(), place);
            }
        }
        heard
    }

    /// No longer watches the lines that went back.
    pub(in crate::worker) fn drop_lines(&mut self) {
        while let Some(place) = self.rooms.streams.returned.pop() {
            self.io.unwatch(place);
        }
    }
}

impl Rooms {
    /// Reads the line of a stream; whether it has one.
    fn hear_line(&mut self, ticket: Ticket) -> bool {
        let Some(tenant) = self.streams.table.tenant_mut(ticket) else {
            return false;
        };
        let (session, own) = (&mut tenant.session, &mut tenant.own);
        let Some(lent) = own.line.as_deref_mut() else {
            return false;
        };
        let look = lent.read(|bytes| {
            let takes = session.state() == State::Established
                && session.unsent() + bytes.len() <= UNSENT_MAX;
            if takes {
                session.write(Bytes::copy_from_slice(bytes));
                own.unbilled += bytes.len();
            }
            takes
        });
        self.streams.activate(ticket);
        if look == Look::Ends {
            self.return_line(ticket);
        }
        true
    }

    /// Tells a client by its line, if it has one, what arrived.
    pub(super) fn tell_line(&mut self, ticket: Ticket) {
        let Some(tenant) = self.streams.table.tenant_mut(ticket) else {
            return;
        };
        let Some(lent) = tenant.own.line.as_deref_mut() else {
            return;
        };
        let bytes = tenant.session.take_inbound();
        tenant.session.consumed(bytes.len());
        self.counters
            .add(Counter::StreamBytesReceived, bytes.len() as u64);
        if lent.write(&bytes) == Look::Ends {
            self.return_line(ticket);
        }
    }

    /// Gives the line of a stream back, if it has one.
    pub(super) fn return_line(&mut self, ticket: Ticket) {
        let tenant = self.streams.table.tenant_mut(ticket);
        let Some(lent) = tenant.and_then(|tenant| tenant.own.line.take()) else {
            return;
        };
        self.streams.returned.push(ticket.place);
        self.counters.add(Counter::LineFrames, lent.frames);
        let stream = self.streams.id(ticket);
        let rest = lent.rest();
        let report = StreamReport::Returned { stream, rest };
        self.reporter.report(&self.counters, Report::Stream(report));
    }
}

impl Own {
    /// Of so many bytes that left, those that control gave us.
    pub(super) fn bill(&mut self, sent: usize) -> usize {
        let own = sent.min(self.unbilled);
        self.unbilled -= own;
        sent - own
    }
}
