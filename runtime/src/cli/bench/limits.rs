//! What the machine can do without us: the control arms alone.

use std::time::Duration;

use ramjet_bench::arms::{
    self, AesGcm, ArmResult, GsoEcho, MmsgEcho, Payload, RoundTrip, WaitMode,
};
use ramjet_bench::report::{CaseReport, Compares};

use super::super::bench_args::BenchLimitsArgs;
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
    let method = format!(
        "one run of {:.1} s, both ends spinning on a core each",
        args.seconds
    );
    let mut cases = Vec::new();
    let mut add = |arm: Result<ArmResult, arms::ArmError>, method: &str| {
        cases.push(CaseReport::of_arm(&arm.map_err(arm_failure)?, method));
        output.move_bar(cases.len() as u64, String::new);
        Ok::<(), Failure>(())
    };
    for len in DATAGRAM_LENS {
        for encrypted in [false, true] {
            // A sealed datagram has room for its tag only from the arm's own minimum on.
            let spec = GsoEcho {
                duration,
                ..GsoEcho::new(len, LIMITS_WINDOW, encrypted)
            };
            add(arms::gso_echo(&spec), &method)?;
        }
        let spec = MmsgEcho {
            duration,
            ..MmsgEcho::new(Payload::bytes(len), LIMITS_WINDOW)
        };
        add(arms::mmsg_echo(&spec), &method)?;
    }
    for mode in [WaitMode::Spinning, WaitMode::Blocking] {
        let spec = RoundTrip {
            duration,
            ..RoundTrip::new(mode, Payload::bytes(256))
        };
        add(
            arms::udp_round_trip(&spec),
            &format!("one outstanding, {:.1} s", args.seconds),
        )?;
    }
    for len in DATAGRAM_LENS {
        let cost = arms::aes_gcm(&AesGcm {
            duration,
            ..AesGcm::new(len)
        })
        .map_err(arm_failure)?;
        cases.push(cipher_case(&cost));
    }
    Ok(cases)
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
        note: None,
    }
}
