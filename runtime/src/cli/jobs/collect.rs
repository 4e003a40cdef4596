//! Lines once, every answer handed to a printer.
//!
//! The printer puts answers back into the order of the lines. What it may have to hold is bounded
//! here: a line is handed out only while it lies fewer than [`REORDER_LINES_MAX`] lines after the
//! first unprinted one, and while less than [`REORDER_BYTES_MAX`] bytes of answers wait. The first
//! unprinted line has always been handed out before any later one, so this cannot stand still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::channel::Sender;
use ramjet_proto::time::Time;

use super::{Live, Measured, task_of};
use crate::cli::text::Text;
use crate::job::{Answer, Job, Next, Refused, Timing, Verdict};

/// Most lines between the first unprinted one and the last one handed out.
pub const REORDER_LINES_MAX: u64 = 65_536;
/// Most bytes of answers that wait to be printed before no more tasks are handed out.
pub const REORDER_BYTES_MAX: usize = 256 << 20;
/// Answers that travel to the printer together, at most.
const BATCH_ANSWERS_MAX: usize = 512;

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// A result.
    Done,
    /// The handler failed, with a message.
    Failed,
    /// It was not run, for this reason.
    Refused(&'static str),
}

/// Some answers, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    entries: Vec<(u32, Collected, usize)>,
    block: Vec<u8>,
}

impl Batch {
    fn push(&mut self, line: u32, collected: Collected, bytes: &[u8]) {
        self.entries.push((line, collected, bytes.len()));
        self.block.extend_from_slice(bytes);
    }

    /// Its answers: line, what became of it, and the bytes.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Collected, &[u8])> {
        let mut rest = &self.block[..];
        self.entries.iter().map(move |&(line, collected, len)| {
            let (bytes, tail) = rest.split_at(len);
            rest = tail;
            (line, collected, bytes)
        })
    }
}

/// How far the printer is: written by it, read by the job.
#[derive(Debug, Default)]
pub struct Flow {
    first_unprinted: AtomicU64,
    waiting_bytes: AtomicUsize,
}

impl Flow {
    /// Every line before `first_unprinted` is printed, `bytes` of answers with them.
    pub fn printed(&self, first_unprinted: u64, bytes: usize) {
        self.first_unprinted
            .store(first_unprinted, Ordering::Release);
        self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn admits(&self, line: u64) -> bool {
        let ahead = line.saturating_sub(self.first_unprinted.load(Ordering::Acquire));
        ahead < REORDER_LINES_MAX && self.waiting_bytes.load(Ordering::Acquire) < REORDER_BYTES_MAX
    }
}

/// The job.
pub struct Collect {
    text: Arc<Text>,
    lines: std::vec::IntoIter<u32>,
    outstanding: u64,
    worker_drains: bool,
    verdict: Verdict,
    deadline_us: u32,
    batch: Batch,
    flow: Arc<Flow>,
    printer: Sender<Batch>,
    measured: Measured,
    live: Arc<Live>,
    report: Sender<Measured>,
}

/// What a [`Collect`] needs.
pub struct CollectPlan {
    /// Where the lines are.
    pub text: Arc<Text>,
    /// Those to send, in ascending order.
    pub lines: Vec<u32>,
    /// The verdict on every result.
    pub verdict: Verdict,
    /// How long a task may take from its arrival until it runs, in microseconds; 0 for as long as
    /// it likes.
    pub deadline_us: u32,
    /// How far the printer is.
    pub flow: Arc<Flow>,
    /// To the printer. The channel is unbounded; [`Flow`] bounds it.
    pub printer: Sender<Batch>,
    /// For the progress bar.
    pub live: Arc<Live>,
    /// Gets what was measured when the job is dropped.
    pub report: Sender<Measured>,
}

impl Collect {
    /// Sends the lines of `plan`.
    pub fn new(plan: CollectPlan) -> Self {
        debug_assert!(plan.lines.is_sorted());
        Collect {
            text: plan.text,
            lines: plan.lines.into_iter(),
            outstanding: 0,
            worker_drains: false,
            verdict: plan.verdict,
            deadline_us: plan.deadline_us,
            batch: Batch::default(),
            flow: plan.flow,
            printer: plan.printer,
            measured: Measured::default(),
            live: plan.live,
            report: plan.report,
        }
    }

    fn flush(&mut self) {
        if !self.batch.entries.is_empty() {
            // A printer that has ended has told the command why.
            let _ = self.printer.send(std::mem::take(&mut self.batch));
        }
    }
}

impl Job for Collect {
    fn next(&mut self, space: &mut [u8], _now: Time) -> Next {
        // Asked whenever a slot is free, so after every turn that brought answers.
        self.flush();
        // A worker that drains refuses whatever it is sent: the rest is for the next one.
        if self.worker_drains {
            return Next::End;
        }
        let Some(&line) = self.lines.as_slice().first() else {
            return Next::End;
        };
        if !self.flow.admits(u64::from(line)) {
            return Next::Later;
        }
        self.lines.next();
        self.outstanding += 1;
        self.measured.issued += 1;
        task_of(&self.text, line as usize, u64::from(line), space)
    }

    fn deadline_us(&self) -> u32 {
        self.deadline_us
    }

    fn answer(&mut self, token: u64, answer: Answer<'_>, timing: Timing) -> Verdict {
        self.outstanding = self.outstanding.saturating_sub(1);
        let line = u32::try_from(token).expect("tokens are line numbers");
        let (collected, bytes) = match answer {
            Answer::Done(result) => (Collected::Done, result),
            Answer::Failed(why) => (Collected::Failed, why),
            Answer::Refused(refused) => (Collected::Refused(refused.label()), &[][..]),
        };
        self.worker_drains |= matches!(answer, Answer::Refused(Refused::Draining));
        self.flow
            .waiting_bytes
            .fetch_add(bytes.len(), Ordering::AcqRel);
        self.batch.push(line, collected, bytes);
        match (collected, self.verdict) {
            (Collected::Done, Verdict::Accept) => self.measured.accepted += 1,
            (Collected::Done, Verdict::Reject) => self.measured.rejected += 1,
            _ => self.measured.count_fault(token, answer),
        }
        if collected == Collected::Done {
            self.measured.time(timing);
        }
        self.live.note(self.measured.answered(), &self.measured);
        // Nothing more will be asked for once all is handed out: the last answers go one by one.
        if self.batch.entries.len() >= BATCH_ANSWERS_MAX || self.lines.as_slice().is_empty() {
            self.flush();
        }
        self.verdict
    }
}

impl Drop for Collect {
    fn drop(&mut self) {
        self.flush();
        // Nobody waits any more after an interruption.
        let _ = self.report.send(std::mem::take(&mut self.measured));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use crossbeam::channel::{Receiver, unbounded};

    use super::*;
    use crate::cli::text::EmptyLines;

    struct Ends {
        batches: Receiver<Batch>,
        report: Receiver<Measured>,
        flow: Arc<Flow>,
    }

    fn job(lines: u32, chosen: Vec<u32>) -> (Collect, Ends) {
        let block: String = (0..lines).map(|line| format!("{line}\n")).collect();
        let text = Text::of_lines("test", Bytes::from(block), EmptyLines::Keep).expect("short");
        let (printer, batches) = unbounded();
        let (sender, report) = unbounded();
        let flow = Arc::new(Flow::default());
        let job = Collect::new(CollectPlan {
            text: Arc::new(text),
            lines: chosen,
            verdict: Verdict::Accept,
            deadline_us: 7,
            flow: flow.clone(),
            printer,
            live: Arc::default(),
            report: sender,
        });
        (
            job,
            Ends {
                batches,
                report,
                flow,
            },
        )
    }

    #[test]
    fn chosen_lines_are_sent_and_answers_reach_the_printer() {
        let (mut job, ends) = job(5, vec![1, 3, 4]);
        assert_eq!(job.deadline_us(), 7);
        let (mut space, timing) = ([0; 16], Timing::default());
        for token in [1, 3, 4] {
            assert_eq!(
                job.next(&mut space, Time::ZERO),
                Next::Task { len: 1, token }
            );
        }
        job.answer(4, Answer::Done(b"four"), timing);
        assert_eq!(job.next(&mut space, Time::ZERO), Next::End);
        job.answer(1, Answer::Failed(b"why"), timing);
        job.answer(3, Answer::Refused(Refused::Lost), timing);
        drop(job);
        let answers: Vec<_> = ends
            .batches
            .iter()
            .flat_map(|batch| {
                let answers: Vec<_> = batch
                    .iter()
                    .map(|(line, what, bytes)| (line, what, bytes.to_vec()))
                    .collect();
                answers
            })
            .collect();
        assert_eq!(
            answers,
            [
                (4, Collected::Done, b"four".to_vec()),
                (1, Collected::Failed, b"why".to_vec()),
                (3, Collected::Refused("lost"), Vec::new()),
            ]
        );
        let measured = ends.report.recv().expect("sent when dropped");
        assert_eq!(
            (measured.issued, measured.accepted, measured.failed),
            (3, 1, 1)
        );
        assert_eq!(measured.first_fault.as_deref(), Some("task 2: failed: why"));
    }

    #[test]
    fn no_line_is_handed_out_too_far_ahead_of_the_printer() {
        let ahead = u32::try_from(REORDER_LINES_MAX).expect("small");
        let (mut job, ends) = job(ahead + 2, (0..ahead + 2).collect());
        let mut space = [0; 16];
        for _ in 0..ahead {
            assert!(matches!(
                job.next(&mut space, Time::ZERO),
                Next::Task { .. }
            ));
        }
        assert_eq!(job.next(&mut space, Time::ZERO), Next::Later);
        ends.flow.printed(1, 0);
        assert!(matches!(
            job.next(&mut space, Time::ZERO),
            Next::Task { .. }
        ));
        assert_eq!(job.next(&mut space, Time::ZERO), Next::Later);
    }

    #[test]
    fn waiting_bytes_hold_the_source_back_until_they_are_printed() {
        let (mut job, ends) = job(3, vec![0, 1, 2]);
        let mut space = [0; 16];
        job.next(&mut space, Time::ZERO);
        // Results that other lines have left waiting, all but a few bytes of the limit.
        ends.flow
            .waiting_bytes
            .store(REORDER_BYTES_MAX - 3, Ordering::Release);
        job.answer(0, Answer::Done(b"zero"), Timing::default());
        assert_eq!(job.next(&mut space, Time::ZERO), Next::Later);
        ends.flow.printed(1, 4);
        assert_eq!(
            job.next(&mut space, Time::ZERO),
            Next::Task { len: 1, token: 1 }
        );
    }
}
