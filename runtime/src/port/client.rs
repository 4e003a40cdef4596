//! The agent's end of the port: attaches, maps the arena, takes batches and answers them.
//!
//! One thread, which waits for its node. What the node says is believed as far as its bounds hold: a
//! batch that does not fit the arena is an error and no panic. Ends when the node does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::arena::Arena;
use super::hello::{Hello, Welcome};
use super::layout::{
    AnswerEntry, HEADER_LEN, Layout, RegionHeader, TASK_ENTRY_LEN, TaskEntry, UNWANTED,
};
use super::socket::{self, Received};
use super::wire::{BatchNote, Message, PACKET_LEN_MAX, decode};

/// A connection that was welcomed.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    arena: Arena,
    epoch: u32,
    welcome: Welcome,
    packet: Vec<u8>,
    out: Vec<u8>,
}

/// What the node wants.
#[derive(Debug)]
pub enum Wanted {
    /// A batch is done.
    Batch(Batch),
    /// Answer what there is, then end.
    Drain,
    /// The node is gone.
    Ended,
}

/// A batch in the arena.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Its number and place.
    pub note: BatchNote,
    /// Its tasks.
    pub tasks: Vec<TaskEntry>,
    base: usize,
    layout: Layout,
    /// Where the next result is put.
    next_result: usize,
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Client {
    /// Says HELLO and waits for the answer.
    ///
    /// # Errors
    /// The node's refusal, what the kernel says, or an answer that is none.
    pub fn attach(socket: OwnedFd, hello: &Hello) -> io::Result<Self> {
        let body = serde_json::to_vec(hello)?;
        let (mut packet, mut out) = (vec![0; PACKET_LEN_MAX], Vec::new());
        Message::Hello(&body).encode(0, &mut out);
        socket::send_waiting(socket.as_fd(), &out)?;
        let (received, file) = socket::receive_with_file(socket.as_fd(), &mut packet)?;
        let Received::Packet(len) = received else {
            return Err(broken("the node closed the connection"));
        };
        let (epoch, message) = decode(&packet[..len]).map_err(|breach| broken(breach.label()))?;
        let welcome: Welcome = match message {
            Message::Welcome(body) => serde_json::from_slice(body)?,
            Message::Refused(why) => return Err(broken(String::from_utf8_lossy(why))),
            _ => return Err(broken("the node answered HELLO with another packet")),
        };
        let file = file.ok_or_else(|| broken("no arena came with WELCOME"))?;
        let regions = welcome.region_len.checked_mul(welcome.regions);
        if regions != Some(welcome.arena_len) {
            return Err(broken("the arena of WELCOME is not its regions"));
        }
        let arena = Arena::open(file, welcome.arena_len)?;
        Ok(Client {
            socket,
            arena,
            epoch,
            welcome,
            packet,
            out,
        })
    }

    /// What the node said.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// To be waited for.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a packet of this connection.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&mut self, message: &Message<'_>) -> io::Result<()> {
        message.encode(self.epoch, &mut self.out);
        socket::send_waiting(self.socket.as_fd(), &self.out)
    }

    /// Waits for what the node wants.
    ///
    /// # Errors
    /// What the kernel says, or a packet that breaks the protocol.
    pub fn wanted(&mut self) -> io::Result<Wanted> {
        let received = loop {
            match socket::receive_waiting(self.socket.as_fd(), &mut self.packet)? {
                Received::Nothing => {}
                received => break received,
            }
        };
        let len = match received {
            Received::Packet(len) => len,
            Received::TooLong => return Err(broken("a packet that is too long")),
            Received::Nothing | Received::Ended => return Ok(Wanted::Ended),
        };
        let packet = &self.packet[..len];
        let (epoch, message) = decode(packet).map_err(|breach| broken(breach.label()))?;
        if epoch != self.epoch {
            return Err(broken("another epoch"));
        }
        match message {
            Message::Batch(note) => self.batch(note).map(Wanted::Batch),
            Message::Drain => Ok(Wanted::Drain),
            _ => Err(broken("a packet that a node does not send")),
        }
    }

    fn batch(&self, note: BatchNote) -> io::Result<Batch> {
        let region_len = self.welcome.region_len;
        if note.region as usize >= self.welcome.regions {
            return Err(broken("a batch in a region that there is not"));
        }
        let base = note.region as usize * region_len;
        let header = RegionHeader::read(&self.arena.read::<HEADER_LEN>(base));
        let header = header.ok_or_else(|| broken("a region without a header"))?;
        if (header.batch, header.epoch) != (note.batch, self.epoch) {
            return Err(broken("a region of another batch"));
        }
        let count = note.tasks as usize;
        let tables = Layout::of(std::iter::repeat_n(0, count), 0);
        let results = note.result_offset as usize;
        let end = results.saturating_add(note.result_len as usize);
        if tables.end() > region_len || end > region_len || results < tables.payloads() {
            return Err(broken("a batch that does not fit its region"));
        }
        let entries = (0..count).map(|index| {
            let at = base + HEADER_LEN + index * TASK_ENTRY_LEN;
            TaskEntry::read(&self.arena.read(at))
        });
        let tasks: Vec<TaskEntry> = entries.collect();
        let fits = |task: &TaskEntry| {
            (task.offset as usize).saturating_add(task.len as usize) <= region_len
        };
        if !tasks.iter().all(fits) {
            return Err(broken("a payload outside its region"));
        }
        let lens = tasks.iter().map(|task| task.len as usize);
        let layout = Layout::of(lens, self.welcome.result_len_max);
        Ok(Batch {
            note,
            tasks,
            base,
            layout,
            next_result: results,
        })
    }

    /// Copies the payload of a task out.
    pub fn payload(&self, batch: &Batch, index: usize, into: &mut Vec<u8>) {
        let task = &batch.tasks[index];
        let offset = batch.base + task.offset as usize;
        self.arena.read_to(offset, task.len as usize, into);
    }

    /// Whether somebody still waits for a task, as of now.
    pub fn is_wanted(&self, batch: &Batch, index: usize) -> bool {
        let at = batch.base + HEADER_LEN + index * TASK_ENTRY_LEN;
        TaskEntry::read(&self.arena.read(at)).flags & UNWANTED == 0
    }

    /// Answers a task: `status` 1 with a result, 2 with a reason; 3 and 4 refuse it.
    ///
    /// # Errors
    /// The bytes find no room among the batch's results.
    pub fn answer(
        &self,
        batch: &mut Batch,
        index: usize,
        status: u32,
        bytes: &[u8],
    ) -> io::Result<()> {
        let end = batch.note.result_offset as usize + batch.note.result_len as usize;
        let offset = batch.next_result;
        if bytes.len() > end - offset || bytes.len() > self.welcome.result_len_max {
            return Err(broken(format!("{} bytes find no room", bytes.len())));
        }
        self.arena.write(batch.base + offset, bytes);
        batch.next_result += bytes.len();
        let entry = AnswerEntry {
            status,
            offset: u32::try_from(offset).map_err(|_| broken("an offset beyond 4 GiB"))?,
            len: u32::try_from(bytes.len()).map_err(|_| broken("a result beyond 4 GiB"))?,
        };
        self.write_answer(batch, index, &entry);
        Ok(())
    }

    /// Writes an answer's entry as it is.
    pub fn write_answer(&self, batch: &Batch, index: usize, entry: &AnswerEntry) {
        let at = batch.base + batch.layout.answer(index);
        self.arena.write(at, &entry.bytes());
    }

    /// The batch is answered.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn done(&mut self, batch: &Batch, run_ns: u64) -> io::Result<()> {
        self.arena.publish();
        self.send(&Message::Done {
            batch: batch.note.batch,
            run_ns,
        })
    }
}
