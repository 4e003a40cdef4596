//! One task outstanding: the round trip.

use ramjet_bench::arms::{self, Payload, RoundTrip, WaitMode};
use ramjet_bench::report::Compares;

use super::super::bench_args::BenchLatencyArgs;
use super::super::exit::Failure;
use super::super::jobs::Loaded;
use super::super::output::{Output, micros};
use super::super::settings::Settings;
use super::compared::Pairs;
use super::subject::Spec;
use super::target::{Target, check_twin};
use super::{Figures, alone, arm_failure};
use crate::worker::Idle;

pub(super) fn run(
    args: &BenchLatencyArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Figures, Failure> {
    if args.logs.hlog.is_some() || args.logs.hgrm.is_some() {
        return Err(Failure::usage(
            "--hlog and --hgrm: histogram files belong to an open loop; add --rate N or --ladder",
        ));
    }
    let target = Target::of(&args.target, settings, output)?;
    let spec = &Spec::latency(&args.run, settings)?.aimed(target);
    if !spec.target.has_control() {
        check_twin(args.twin)?;
        return alone::run(spec, "latency", Compares::P50Us, args.disturbed, output);
    }
    // What sleeps is held to what sleeps.
    let (mode, control_name) = match spec.worker.idle {
        Idle::Park => (
            WaitMode::Blocking,
            "raw UDP round trip, blocking, no protocol, no cipher",
        ),
        Idle::Spin | Idle::Adaptive => (
            WaitMode::Spinning,
            "raw UDP round trip, spinning, no protocol, no cipher",
        ),
    };
    let control = RoundTrip {
        duration: spec.run,
        cores: spec.cores(),
        ..RoundTrip::new(mode, Payload::bytes(spec.payload))
    };
    let figure = |loaded: &Loaded| micros(loaded.measured.quantile_ns(0.5));
    let pairs = Pairs {
        spec,
        name: "latency",
        compares: Compares::P50Us,
        control_name,
        disturbed: args.disturbed,
        twin: args.twin,
    };
    pairs.run(output, figure, || {
        Ok(arms::udp_round_trip(&control).map_err(arm_failure)?.p50_us)
    })
}
