//! A closed loop without a control: of a remote worker, or of a skill that no control arm does.

use std::time::Duration;

use ramjet_bench::ladder::Rung;
use ramjet_bench::latencies::curve;
use ramjet_bench::page::Curve;
use ramjet_bench::report::{CaseReport, Compares};
use ramjet_bench::schedule::Arrivals;

use super::super::bench_args::DisturbedArgs;
use super::super::exit::{Exit, Failure};
use super::super::output::Output;
use super::Figures;
use super::open_loop::Load;
use super::subject::{Spec, Subject, WARM_UP};
use crate::latency::Histograms;

/// Runs it as often as there would be pairs; figures are medians over the runs that count.
pub(super) fn run(
    spec: &Spec,
    name: &str,
    compares: Compares,
    disturbed: DisturbedArgs,
    output: &mut Output,
) -> Result<Figures, Failure> {
    let subject = Subject::start(spec, spec.window)?;
    let ran = runs(spec, &subject, disturbed, output);
    output.end_bar();
    let stopped = subject.stop();
    let (rungs, points) = ran?;
    stopped?;
    let told: Vec<&Rung> = rungs
        .iter()
        .filter(|rung| rung.is_valid() || rung.forced)
        .collect();
    let Some(last) = rungs.last().filter(|_| !told.is_empty()) else {
        let reasons = rungs
            .last()
            .map_or_else(String::new, |rung| rung.invalid.join("; "));
        return Err(Failure::new(
            Exit::Failed,
            format!(
                "none of {} runs counts; the last one: {reasons}",
                rungs.len()
            ),
        ));
    };
    let median = |of: &dyn Fn(&Rung) -> Option<f64>| {
        let mut values: Vec<f64> = told.iter().filter_map(|rung| of(rung)).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let case = CaseReport {
        case: format!("{name} {} window {}", spec.what(), spec.window),
        tasks_per_s: median(&|rung| rung.achieved_per_s),
        p50_us: median(&Rung::p50_us),
        p99_us: median(&|rung| rung.latencies.as_ref()?.p99_us),
        control: None,
        control_name: "none: nothing here does the same work over the same path".to_owned(),
        compares,
        ratio: None,
        ratio_low: None,
        ratio_high: None,
        method: method(spec, told.len()),
        quiet: last.quiet.clone(),
        worker: None,
        note: (told.len() < rungs.len()).then(|| {
            let left_out = rungs.len() - told.len();
            format!("{left_out} of {} runs left out", rungs.len())
        }),
    };
    Ok(Figures {
        curves: vec![Curve {
            name: case.case.clone(),
            points,
        }],
        cases: vec![case],
        ..Figures::default()
    })
}

fn method(spec: &Spec, runs: usize) -> String {
    format!(
        "closed loop, up to {} outstanding, {}, encrypted, {}; median of {runs} runs of {:.1} s \
         each after {} ms warm-up",
        spec.window,
        spec.what(),
        spec.placement(),
        spec.run.as_secs_f64(),
        WARM_UP.as_millis(),
    )
}

type Points = Vec<ramjet_bench::latencies::Point>;

fn runs(
    spec: &Spec,
    subject: &Subject,
    disturbed: DisturbedArgs,
    output: &mut Output,
) -> Result<(Vec<Rung>, Points), Failure> {
    let load = Load {
        name: "closed loop".to_owned(),
        share: None,
        rate: None,
        arrivals: Arrivals::Fixed,
        seed: 0,
        window: spec.window,
        length: spec.run,
        interval: Duration::from_secs(1),
    };
    let (mut rungs, mut all) = (Vec::new(), Histograms::new().round_trip);
    output.start_bar(spec.pairs as u64);
    while rungs.len() < spec.pairs {
        let (rung, ran) = load.rung(spec, subject, disturbed, None)?;
        if rung.is_valid() || rung.forced {
            all.add(&ran.latency).expect("same bounds");
        }
        rungs.push(rung);
        output.move_bar(rungs.len() as u64, String::new);
    }
    Ok((rungs, curve(&all)))
}
