//! Several attempts at the same lines: what an attempt has left, and whether there is another one.
//!
//! A worker that was lost is replaced as often as the user said. One that drains (a restart, an upgrade)
//! has told what it did not run, so that is offered again without being asked for.

use super::jobs::{DRAINING, Measured};
use super::printer::Attempt;
use crate::control::vocabulary::CloseReason;
use crate::node::EngageOutcome;

/// Workers that drain under one run, one after another, at most: a worker that is restarted over and
/// over is no help.
pub(super) const DRAINS_MAX: u32 = 100;

/// Lines of an attempt that have no answer: those that came back unrun, and those never handed out.
pub(super) fn unfinished(offered: &[u32], issued: u64, attempt: Attempt) -> Vec<u32> {
    let issued = usize::try_from(issued)
        .unwrap_or(usize::MAX)
        .min(offered.len());
    let mut lines = attempt.not_run;
    lines.extend_from_slice(&offered[issued..]);
    lines
}

/// Whether the worker went away in good order and left what it had not run: it, or another one, will
/// take the rest, and nobody needs to be asked whether that is wanted.
pub(super) fn worker_drained(outcome: &EngageOutcome, measured: &Measured) -> bool {
    matches!(outcome, EngageOutcome::Closed(CloseReason::Draining))
        || measured.refused.contains_key(DRAINING)
}

/// Whether another worker could do what this one left.
pub(super) fn worth_another(outcome: &EngageOutcome) -> bool {
    matches!(
        outcome,
        EngageOutcome::Closed(_) | EngageOutcome::Settled | EngageOutcome::Spooled
    )
}

/// Adds the counts of a further attempt. What came back unrun was not the end of its line.
pub(super) fn add(total: &mut Measured, attempt: &Measured) {
    total.issued += attempt.issued;
    total.accepted += attempt.accepted;
    total.rejected += attempt.rejected;
    total.failed += attempt.failed;
    total.repeated += attempt.repeated;
    total.busy_ns += attempt.busy_ns;
    total.refused.clone_from(&attempt.refused);
    total
        .round_trip
        .add(&attempt.round_trip)
        .expect("same bounds");
    if total.first_fault.is_none() {
        total.first_fault.clone_from(&attempt.first_fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_an_answer_are_those_unrun_and_those_never_handed_out() {
        let offered = [2, 3, 5, 7, 11];
        let attempt = Attempt {
            not_run: vec![2, 5],
        };
        assert_eq!(unfinished(&offered, 3, attempt), [2, 5, 7, 11]);
        assert!(unfinished(&offered, 5, Attempt::default()).is_empty());
    }

    #[test]
    fn a_worker_that_drains_leaves_lines_for_another() {
        let mut measured = Measured::default();
        let lost = EngageOutcome::Closed(CloseReason::Lost);
        let drained = EngageOutcome::Closed(CloseReason::Draining);
        assert!(worker_drained(&drained, &measured));
        assert!(!worker_drained(&lost, &measured));
        measured.refused.insert(DRAINING, 3);
        assert!(worker_drained(&EngageOutcome::Settled, &measured));
        assert!(worth_another(&EngageOutcome::Settled));
    }
}
