//! Programs that know nothing of ramjet: one task in, one result out, over pipes.
//!
//! | form | in | out |
//! |---|---|---|
//! | `lines` | payload, newline | result, newline |
//! | `frames` | u32 big-endian length, payload | the same |
//!
//! Results come in the order of the tasks. The adapter is an agent like any other: a batch is written to
//! the program's standard input while its standard output is read, so that neither pipe fills. Programs
//! that write lines hold them back as long as they write into a pipe, so the output of `lines` is a
//! terminal, without echo and without any change to bytes.
//!
//! Invariants: what the program writes answers the task that it stands for, or ends the adapter: a
//! program that writes more than was asked, ends, or closes its output is not spoken to again. Too little
//! is noticed by the node, as a stall.

mod program;
mod records;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use self::program::Program;
use self::records::Records;
use super::client::{Batch, Client, Wanted};
use super::hello::{Hello, Work};
use super::supervisor::Form;
use super::wire::Message;

/// Most tasks that are written to a program before its first result is waited for.
const BATCH_MAX: u32 = 256;
/// Longest payload that a program is given.
const PAYLOAD_LEN_MAX: usize = 1 << 20;
/// Longest result that is taken from it.
const RESULT_LEN_MAX: usize = 64 << 10;
/// An answer's status: done, and failed.
const DONE: u32 = 1;
const FAILED: u32 = 2;

/// Attaches to the node on standard input and runs `command` for its tasks, until the node ends.
///
/// # Errors
/// What ended it otherwise, for people.
pub fn run(form: Form, skill: &str, command: &[OsString]) -> Result<(), String> {
    let failed = |error: String| format!("{}: {error}", command[0].to_string_lossy());
    let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3)
        .map_err(|error| failed(error.to_string()))?;
    let mut program = Program::start(form, command).map_err(failed)?;
    let hello = Hello {
        skill: skill.to_owned(),
        max_batch: BATCH_MAX,
        max_payload: PAYLOAD_LEN_MAX,
        result_len_max: RESULT_LEN_MAX,
        sdk: format!("ramjet {form}", form = form.label()),
        pid: std::process::id(),
        work: Work::Items,
        ..Hello::default()
    };
    let of_node = |error: std::io::Error| failed(format!("the node: {error}"));
    let mut client = Client::attach(socket, &hello).map_err(of_node)?;
    client.send(&Message::Ready).map_err(of_node)?;
    let mut records = Records::new(form, RESULT_LEN_MAX);
    loop {
        wait(&client, &mut program, &mut records).map_err(failed)?;
        match client.wanted().map_err(of_node)? {
            Wanted::Batch(mut batch) => {
                run_batch(&mut client, &mut program, &mut records, &mut batch).map_err(failed)?;
            }
            Wanted::Drain | Wanted::Ended => return Ok(()),
        }
    }
}

/// Waits until the node wants something. A program that speaks unasked, or ends, is at fault.
fn wait(client: &Client, program: &mut Program, records: &mut Records) -> Result<(), String> {
    loop {
        let mut files = [
            PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(program.output(), PollFlags::IN),
        ];
        match poll(&mut files, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        let (wanted, spoke) = (files[0].revents(), files[1].revents());
        if !spoke.is_empty() {
            program.read(records)?;
            if !records.is_empty() {
                return Err("it wrote more than it was asked".to_owned());
            }
        }
        if !wanted.is_empty() {
            return Ok(());
        }
    }
}

fn run_batch(
    client: &mut Client,
    program: &mut Program,
    records: &mut Records,
    batch: &mut Batch,
) -> Result<(), String> {
    let began = Instant::now();
    let (mut input, mut payload) = (Vec::new(), Vec::new());
    // Those that are given to the program, in order.
    let mut asked = Vec::with_capacity(batch.tasks.len());
    let of_node = |error: std::io::Error| format!("the node: {error}");
    for index in 0..batch.tasks.len() {
        client.payload(batch, index, &mut payload);
        match records.append(&payload, &mut input) {
            Ok(()) => asked.push(index),
            Err(why) => client
                .answer(batch, index, FAILED, why.as_bytes())
                .map_err(of_node)?,
        }
    }
    let mut written = 0;
    let mut answered = 0;
    while answered < asked.len() {
        let node_ended = program.exchange(client.as_fd(), &input, &mut written, records)?;
        if node_ended {
            return Err("its node has ended".to_owned());
        }
        while let Some(record) = records.next() {
            let Some(index) = asked.get(answered) else {
                return Err("it wrote more than it was asked".to_owned());
            };
            answered += 1;
            let (status, bytes) = match &record {
                Ok(bytes) => (DONE, &bytes[..]),
                Err(why) => (FAILED, why.as_bytes()),
            };
            let answer = client.answer(batch, *index, status, bytes);
            answer.map_err(of_node)?;
        }
    }
    if written < input.len() || !records.is_empty() {
        return Err("it wrote more than it was asked".to_owned());
    }
    let run_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    client.done(batch, run_ns).map_err(of_node)
}
