//! Results in the order of their lines.
//!
//! A printer runs on a thread of its own: a slow reader of standard output then slows the source of
//! tasks, by [`Flow`], and nothing else. Every line is printed exactly once, in order.
//!
//! As text a result takes one line: a line feed or carriage return inside it is written as `\n` or
//! `\r` and a backslash as `\\` only where one of these occurs. A line without a result is empty,
//! and the reason goes to standard error. As JSON, see [`object`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crossbeam::channel::{Receiver, Sender};
use serde_json::json;

use super::exit::Failure;
use super::jobs::{Batch, Collected, DRAINING, Flow};
use super::output::{Output, stdout_failure};

/// Failed lines that are told one by one on standard error; the rest is counted.
const FAULTS_TOLD_MAX: u64 = 20;

/// The answer to one line, as it waits.
type Answer = (Collected, Vec<u8>);

/// What one attempt at the lines has left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// Lines that came back without having been run, in order.
    pub not_run: Vec<u32>,
}

/// Puts answers into order and writes them.
pub struct Printer<W: Write> {
    out: BufWriter<W>,
    as_json: bool,
    flow: Arc<Flow>,
    next: u32,
    waiting: BTreeMap<u32, Answer>,
    faults_told: u64,
    output: Output,
}

impl<W: Write> Printer<W> {
    /// Begins at line 0.
    pub fn new(out: W, flow: Arc<Flow>, output: Output) -> Self {
        Printer {
            out: BufWriter::new(out),
            as_json: output.json,
            flow,
            next: 0,
            waiting: BTreeMap::new(),
            faults_told: 0,
            output,
        }
    }

    /// Takes the answers of one attempt until the job is gone, and prints what is due. Lines that
    /// were not run wait for the next attempt if there is one; after a worker that drains there
    /// always is.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn run(&mut self, batches: &Receiver<Batch>, again: bool) -> Result<Attempt, Failure> {
        let mut attempt = Attempt::default();
        while let Ok(batch) = batches.recv() {
            for (line, collected, bytes) in batch.iter() {
                match collected {
                    Collected::Refused(reason) if again || reason == DRAINING => {
                        attempt.not_run.push(line);
                    }
                    _ => {
                        self.waiting.insert(line, (collected, bytes.to_vec()));
                    }
                }
            }
            self.print_due().map_err(stdout_failure)?;
            if batches.is_empty() {
                self.out.flush().map_err(stdout_failure)?;
            }
        }
        self.out.flush().map_err(stdout_failure)?;
        attempt.not_run.sort_unstable();
        Ok(attempt)
    }

    /// Says that the lines from `first` on will have no answer any more, for `reason`, and prints
    /// what waits behind them: every line up to `lines`.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn give_up(&mut self, lines: u32, reason: &'static str) -> Result<u64, Failure> {
        let mut given_up = 0;
        while self.next < lines {
            if !self.waiting.contains_key(&self.next) {
                self.waiting
                    .insert(self.next, (Collected::Refused(reason), Vec::new()));
                given_up += 1;
            }
            self.print_due().map_err(stdout_failure)?;
        }
        self.out.flush().map_err(stdout_failure)?;
        Ok(given_up)
    }

    fn print_due(&mut self) -> std::io::Result<()> {
        let (mut bytes, before) = (0, self.next);
        while let Some((collected, answer)) = self.waiting.remove(&self.next) {
            self.print(self.next, collected, &answer)?;
            bytes += answer.len();
            self.next += 1;
        }
        if self.next != before {
            self.flow.printed(u64::from(self.next), bytes);
        }
        Ok(())
    }

    fn print(&mut self, line: u32, collected: Collected, bytes: &[u8]) -> std::io::Result<()> {
        if self.as_json {
            let mut object = object(collected, bytes);
            object.insert("line".to_owned(), (u64::from(line) + 1).into());
            serde_json::to_writer(&mut self.out, &object)?;
            return self.out.write_all(b"\n");
        }
        match collected {
            Collected::Done => self.out.write_all(&one_line(bytes))?,
            Collected::Failed => self.tell(line, &String::from_utf8_lossy(bytes)),
            Collected::Refused(reason) => self.tell(line, &format!("not run ({reason})")),
        }
        self.out.write_all(b"\n")
    }

    fn tell(&mut self, line: u32, why: &str) {
        self.faults_told += 1;
        let why = super::output::printable(why);
        match self.faults_told {
            ..=FAULTS_TOLD_MAX => self.output.say(&format!("line {}: {why}", line + 1)),
            told if told == FAULTS_TOLD_MAX + 1 => {
                self.output
                    .say("further lines without a result are counted, not listed");
            }
            _ => {}
        }
    }
}

/// Runs a printer on its own thread over several attempts: each attempt's batches come in through
/// `attempts` and what it has left goes out through `left`. The thread ends, and gives the printer
/// back, when `attempts` does.
pub fn spawn<W: Write + Send + 'static>(
    mut printer: Printer<W>,
    attempts: Receiver<(Receiver<Batch>, bool)>,
    left: Sender<Attempt>,
    failed: Sender<Failure>,
) -> std::thread::JoinHandle<Printer<W>> {
    std::thread::spawn(move || {
        for (batches, again) in attempts {
            match printer.run(&batches, again) {
                Ok(attempt) => {
                    // The command has ended for another reason.
                    let _ = left.send(attempt);
                }
                Err(failure) => {
                    let _ = failed.send(failure);
                    break;
                }
            }
        }
        printer
    })
}

/// An answer as members of a JSON object: `result`, or `result_base64` if it is no UTF-8;
/// `failed` with the handler's message; or `refused` with the reason.
pub fn object(collected: Collected, bytes: &[u8]) -> serde_json::Map<String, serde_json::Value> {
    let (key, value) = match (collected, std::str::from_utf8(bytes)) {
        (Collected::Done, Ok(text)) => ("result", json!(text)),
        (Collected::Done, Err(_)) => ("result_base64", json!(BASE64.encode(bytes))),
        (Collected::Failed, _) => ("failed", json!(String::from_utf8_lossy(bytes))),
        (Collected::Refused(reason), _) => ("refused", json!(reason)),
    };
    serde_json::Map::from_iter([(key.to_owned(), value)])
}

/// `bytes` without line ends.
fn one_line(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Cow::Borrowed(bytes);
    }
    let mut line = Vec::with_capacity(bytes.len() + 8);
    for byte in bytes {
        match byte {
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\\' => line.extend_from_slice(b"\\\\"),
            _ => line.push(*byte),
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use crossbeam::channel::unbounded;
    use ramjet_proto::time::Time;

    use super::super::jobs::{Collect, CollectPlan};
    use super::super::output::Color;
    use super::super::text::{EmptyLines, Text};
    use super::*;
    use crate::job::{self, Job, Refused, Timing, Verdict};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
        }
    }

    /// Answers of one attempt, as a job would hand them on.
    fn attempt(answers: &[(u64, job::Answer<'_>)]) -> Receiver<Batch> {
        let block: String = (0..100).map(|line| format!("{line}\n")).collect();
        let text = Text::of_lines("test", block.into(), EmptyLines::Keep).expect("short");
        let (printer, batches) = unbounded();
        let mut job = Collect::new(CollectPlan {
            text: Arc::new(text),
            lines: (0..100).collect(),
            verdict: Verdict::Accept,
            deadline_us: 0,
            flow: Arc::default(),
            printer,
            live: Arc::default(),
            report: unbounded().0,
        });
        for (token, answer) in answers {
            job.next(&mut [0; 16], Time::ZERO);
            job.answer(*token, *answer, Timing::default());
        }
        batches
    }

    fn printer(json: bool) -> (Printer<Sink>, Sink) {
        let sink = Sink::default();
        let output = Output::new(json, Color::Never);
        (Printer::new(sink.clone(), Arc::default(), output), sink)
    }

    #[test]
    fn answers_are_printed_in_the_order_of_their_lines() {
        let (mut printer, sink) = printer(false);
        let batches = attempt(&[
            (2, job::Answer::Done(b"two\nlines\\")),
            (0, job::Answer::Done(b"zero\\")),
            (3, job::Answer::Failed(b"why")),
            (1, job::Answer::Done(b"")),
            (5, job::Answer::Done(b"five")),
        ]);
        printer.run(&batches, false).expect("a sink");
        assert_eq!(sink.text(), "zero\\\n\ntwo\\nlines\\\\\n\n");
        // Line 4 never comes: what waits behind it is printed all the same.
        assert_eq!(printer.give_up(6, "lost").expect("a sink"), 1);
        assert_eq!(sink.text(), "zero\\\n\ntwo\\nlines\\\\\n\n\nfive\n");
    }

    #[test]
    fn lines_that_were_not_run_wait_for_the_next_attempt() {
        let (mut printer, sink) = printer(true);
        let lost = job::Answer::Refused(Refused::Lost);
        let first = attempt(&[
            (0, job::Answer::Done(b"zero")),
            (2, lost),
            (1, lost),
            (3, job::Answer::Done(&[0xff])),
        ]);
        let left = printer.run(&first, true).expect("a sink");
        assert_eq!(
            left,
            Attempt {
                not_run: vec![1, 2]
            }
        );
        let second = attempt(&[(1, job::Answer::Failed(b"no")), (2, lost)]);
        assert_eq!(
            printer.run(&second, false).expect("a sink"),
            Attempt::default()
        );
        assert_eq!(
            sink.text(),
            concat!(
                "{\"line\":1,\"result\":\"zero\"}\n",
                "{\"failed\":\"no\",\"line\":2}\n",
                "{\"line\":3,\"refused\":\"lost\"}\n",
                "{\"line\":4,\"result_base64\":\"/w==\"}\n",
            )
        );
    }

    #[test]
    fn a_reader_that_went_away_ends_the_printer() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let output = Output::new(false, Color::Never);
        let printer = Printer::new(Closed, Arc::default(), output);
        let (attempts, attempts_in) = unbounded();
        let (failed, failures) = unbounded();
        let thread = spawn(printer, attempts_in, unbounded().0, failed);
        attempts
            .send((attempt(&[(0, job::Answer::Done(b"zero"))]), false))
            .expect("waits");
        let failure = failures.recv().expect("it failed");
        assert_eq!(failure.exit, super::super::exit::Exit::Interrupted);
        thread.join().expect("no panic");
    }
}
