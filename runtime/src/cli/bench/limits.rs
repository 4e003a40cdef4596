//! What the machine can do without us: the control arms alone.

use std::time::Duration;

use ramjet_bench::arms::{
    self, AesGcm, ArmResult, GsoEcho, MmsgEcho, Payload, RoundTrip, WaitMode,
};
use ramjet_bench::facts::{Quiet, Watch};
use ramjet_bench::report::{CaseReport, Compares};

use super::super::bench_args::{BenchLimitsArgs, DisturbedArgs};
use super::super::exit::Failure;
use super::super::output::Output;
use super::arm_failure;

/// Datagrams: a small task, a middling one, and a full one.
const DATAGRAM_LENS: [usize; 3] = [64, 256, 1_400];
/// Window of the echo arms.
const LIMITS_WINDOW: usize = 1_024;

/// What the machine does without us.
pub(super) fn run(args: &BenchLimitsArgs, output: &mut Output) -> Result<Vec<CaseReport>, Failure> {
    let duration = Duration::from_secs_f64(args.seconds);
    let spinning = format!(
        "one run of {:.1} s, both ends spinning on a core each",
        args.seconds
    );
    let outstanding = format!("one outstanding, {:.1} s", args.seconds);
    let mut cases = Vec::new();
    let mut add = |run: &dyn Fn() -> Result<CaseReport, arms::ArmError>| {
        cases.push(undisturbed(args.disturbed, run)?);
        output.move_bar(cases.len() as u64, String::new);
        Ok::<(), Failure>(())
    };
    let case = |arm: Result<ArmResult, arms::ArmError>, method: &str| {
        arm.map(|arm| CaseReport::of_arm(&arm, method))
    };
    for len in DATAGRAM_LENS {
        for encrypted in [false, true] {
            // A sealed datagram has room for its tag only from the arm's own minimum on.
            let spec = GsoEcho {
                duration,
                ..GsoEcho::new(len, LIMITS_WINDOW, encrypted)
            };
            add(&|| case(arms::gso_echo(&spec), &spinning))?;
        }
        let spec = MmsgEcho {
            duration,
            ..MmsgEcho::new(Payload::bytes(len), LIMITS_WINDOW)
        };
        add(&|| case(arms::mmsg_echo(&spec), &spinning))?;
    }
    for mode in [WaitMode::Spinning, WaitMode::Blocking] {
        let spec = RoundTrip {
            duration,
            ..RoundTrip::new(mode, Payload::bytes(256))
        };
        add(&|| case(arms::udp_round_trip(&spec), &outstanding))?;
    }
    for len in DATAGRAM_LENS {
        let spec = AesGcm {
            duration,
            ..AesGcm::new(len)
        };
        add(&|| arms::aes_gcm(&spec).map(|cost| cipher_case(&cost)))?;
    }
    Ok(cases)
}

/// Runs a case until the machine did nothing else meanwhile, a bounded number of times; then it has
/// no figures, unless by force.
fn undisturbed(
    disturbed: DisturbedArgs,
    run: &dyn Fn() -> Result<CaseReport, arms::ArmError>,
) -> Result<CaseReport, Failure> {
    let mut left = disturbed.retries;
    loop {
        let watch = Watch::begin();
        let case = run().map_err(arm_failure)?;
        let quiet = watch.end();
        if !quiet.disturbed || left == 0 {
            return Ok(judged(case, quiet, disturbed));
        }
        left -= 1;
    }
}

fn judged(mut case: CaseReport, quiet: Quiet, disturbed: DisturbedArgs) -> CaseReport {
    if quiet.disturbed && !disturbed.force {
        case.tasks_per_s = None;
        case.p50_us = None;
        case.p99_us = None;
        case.note = Some(format!(
            "not shown after {} disturbed runs; --force shows it all the same",
            disturbed.retries + 1
        ));
    }
    case.quiet = Some(quiet);
    case
}

/// Sealing and opening one datagram: how often one core can do both in a second.
fn cipher_case(cost: &arms::AesCost) -> CaseReport {
    let both_us = (cost.seal_ns + cost.open_ns) / 1e3;
    CaseReport {
        case: format!("AES-256-GCM seal and open {} B", cost.datagram_len),
        tasks_per_s: Some(1e6 / both_us),
        p50_us: Some(both_us),
        p99_us: None,
        control: None,
        control_name: "none: this is a control".to_owned(),
        compares: Compares::TasksPerS,
        ratio: None,
        ratio_low: None,
        ratio_high: None,
        method: format!(
            "mean of {} datagrams in place: seal {:.0} ns, open {:.0} ns",
            cost.datagrams, cost.seal_ns, cost.open_ns
        ),
        quiet: None,
        worker: None,
        note: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disturbed_figure_is_withheld_unless_forced() {
        let quiet = |disturbed| Quiet {
            wall_ms: 1_000,
            steal_share: Some(0.2),
            foreign_share: None,
            involuntary_switches: 0,
            disturbed,
            reasons: vec!["steal time 20.0 % of the cores".to_owned()],
        };
        let cost = arms::AesCost {
            datagram_len: 64,
            datagrams: 1_000,
            seal_ns: 60.0,
            open_ns: 40.0,
        };
        for (noisy, force, shown) in [
            (false, false, true),
            (true, false, false),
            (true, true, true),
        ] {
            let case = judged(
                cipher_case(&cost),
                quiet(noisy),
                DisturbedArgs { retries: 3, force },
            );
            assert_eq!(case.tasks_per_s.is_some(), shown, "{case:?}");
            assert_eq!(case.note.is_some(), !shown, "{case:?}");
        }
    }
}
