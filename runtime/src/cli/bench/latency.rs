//! One task outstanding: the round trip.

use ramjet_bench::arms::{self, Payload, RoundTrip, WaitMode};
use ramjet_bench::report::{CaseReport, Compares};

use super::super::exit::Failure;
use super::super::jobs::Loaded;
use super::super::output::{Output, micros};
use super::arm_failure;
use super::compared::Pairs;
use super::subject::Spec;

pub(super) fn run(spec: &Spec, output: &mut Output) -> Result<CaseReport, Failure> {
    let control = RoundTrip {
        duration: spec.run,
        cores: spec.cores(),
        ..RoundTrip::new(WaitMode::Spinning, Payload::bytes(spec.payload))
    };
    let figure = |loaded: &Loaded| micros(loaded.measured.quantile_ns(0.5));
    let pairs = Pairs {
        spec,
        name: "latency",
        compares: Compares::P50Us,
    };
    pairs.run(output, figure, || {
        Ok(arms::udp_round_trip(&control).map_err(arm_failure)?.p50_us)
    })
}
