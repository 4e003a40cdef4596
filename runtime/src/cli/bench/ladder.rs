//! Latency at stated rates: one with `--rate`, or six shares of the capacity with `--ladder`.
//!
//! All runs are engagements of the same two nodes, in one invocation: first the capacity (closed
//! loop at several windows), then one task outstanding, then the rates from the lowest.

use std::time::Duration;

use ramjet_bench::ladder::{CapacityTrial, Ladder, Rung, SHARES};
use ramjet_bench::schedule::Arrivals;

use super::super::bench_args::{BenchLatencyArgs, LogArgs};
use super::super::exit::{Exit, Failure};
use super::super::output::{Output, rate};
use super::super::settings::Settings;
use super::logs;
use super::open_loop::{Load, Ran};
use super::subject::{Spec, Subject, WARM_UP};
use super::target::Target;

/// Windows of the search for the capacity.
const WINDOWS: [u32; 3] = [256, 1_024, 4_096];
/// A wider window must be this much better to be taken: it costs latency.
const WIDER_MUST_GAIN: f64 = 1.03;
/// Length of a run of the search.
const TRIAL: Duration = Duration::from_millis(700);
/// Length of the run with one task outstanding.
const UNLOADED: Duration = Duration::from_secs(2);
/// Length of an interval of the logs.
const INTERVAL: Duration = Duration::from_secs(1);
/// Window where neither capacity nor flag names one.
const WINDOW_DEFAULT: u32 = 1_024;

pub(super) fn run(
    args: &BenchLatencyArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Ladder, Failure> {
    logs::check(&args.logs)?;
    let target = Target::of(&args.target, settings, output)?;
    let spec = Spec::of(&args.run, settings, 64, WINDOW_DEFAULT)?.aimed(target);
    let windows = match (args.run.window, args.ladder && args.capacity.is_none()) {
        (Some(window), _) => vec![window],
        (None, true) => WINDOWS.to_vec(),
        (None, false) => vec![WINDOW_DEFAULT],
    };
    let subject = Subject::start(
        &spec,
        windows.iter().copied().max().unwrap_or(WINDOW_DEFAULT),
    )?;
    let climb = Climb {
        args,
        spec: &spec,
        subject: &subject,
    };
    let ladder = climb.run(&windows, output);
    output.end_bar();
    let stopped = subject.stop();
    let ladder = ladder?;
    stopped?;
    Ok(ladder)
}

struct Climb<'a> {
    args: &'a BenchLatencyArgs,
    spec: &'a Spec,
    subject: &'a Subject,
}

impl Climb<'_> {
    fn run(&self, windows: &[u32], output: &mut Output) -> Result<Ladder, Failure> {
        let args = self.args;
        let trials = match (args.ladder, args.capacity) {
            (true, None) => self.search(windows, output)?,
            _ => Vec::new(),
        };
        let best = best_of(&trials);
        let capacity_per_s = args.capacity.or(best.map(|trial| trial.tasks_per_s));
        let window = best.map_or(windows[0], |trial| trial.window);
        let loads = self.loads(capacity_per_s, window);
        output.start_bar(loads.len() as u64 + 1);
        let (unloaded, _) = self
            .unloaded()
            .rung(self.spec, self.subject, args.disturbed, None)?;
        let mut rungs = Vec::new();
        for load in &loads {
            output.move_bar(rungs.len() as u64 + 1, || load.name.clone());
            let (rung, ran) =
                load.rung(self.spec, self.subject, args.disturbed, unloaded.p50_us())?;
            self.write_logs(load, &rung, &ran)?;
            rungs.push(rung);
        }
        Ok(Ladder {
            payload: self.spec.payload,
            window,
            arrivals: args.arrivals.arrivals.into(),
            seed: args.arrivals.seed,
            capacity_per_s,
            capacity_trials: trials,
            unloaded: Some(unloaded),
            rungs,
            method: self.method(window),
        })
    }

    /// Closed loop at each window.
    fn search(&self, windows: &[u32], output: &mut Output) -> Result<Vec<CapacityTrial>, Failure> {
        let trial = |window: &u32| {
            let load = Load {
                name: format!("capacity, window {window}"),
                window: *window,
                length: TRIAL,
                ..self.unloaded()
            };
            let (rung, _) = load.rung(self.spec, self.subject, self.args.disturbed, None)?;
            let Some(tasks_per_s) = rung.achieved_per_s else {
                return Err(Failure::new(
                    Exit::Failed,
                    format!(
                        "the capacity was not measured: {}. Run it again when the machine is \
                         quiet, state one with --capacity, or take it as it is with --force",
                        rung.invalid.join("; ")
                    ),
                ));
            };
            output.say(&format!(
                "capacity with window {window}: {}",
                rate(tasks_per_s)
            ));
            Ok(CapacityTrial {
                window: *window,
                tasks_per_s,
            })
        };
        windows.iter().map(trial).collect()
    }

    fn unloaded(&self) -> Load {
        Load {
            name: "one outstanding".to_owned(),
            share: None,
            rate: None,
            arrivals: Arrivals::Fixed,
            seed: 0,
            window: 1,
            length: UNLOADED.min(self.args.length),
            interval: INTERVAL,
        }
    }

    fn loads(&self, capacity_per_s: Option<f64>, window: u32) -> Vec<Load> {
        let arrivals = self.args.arrivals;
        let load = |name: String, share, per_s| Load {
            name,
            share,
            rate: Some(per_s),
            arrivals: arrivals.arrivals.into(),
            seed: arrivals.seed,
            window,
            length: self.args.length,
            ..self.unloaded()
        };
        match (capacity_per_s, self.args.rate) {
            (Some(capacity), None) => SHARES
                .iter()
                .map(|share| {
                    let name = format!("{:.0} %", share * 100.0);
                    load(name, Some(*share), share * capacity)
                })
                .collect(),
            (_, stated) => stated
                .map(|per_s| load(rate(per_s), None, per_s))
                .into_iter()
                .collect(),
        }
    }

    fn write_logs(&self, load: &Load, rung: &Rung, ran: &Ran) -> Result<(), Failure> {
        let LogArgs { hlog, hgrm } = &self.args.logs;
        if !rung.is_valid() && !rung.forced {
            return Ok(());
        }
        let suffix = load.share.map(|share| format!("{:.0}", share * 100.0));
        let suffix = suffix.as_deref();
        if let Some(path) = hlog {
            let path = logs::with_suffix(path, suffix);
            let comment = format!("ramjet bench latency, load {}", rung.name);
            logs::write_hlog(&path, ran.began, &comment, &ran.intervals)?;
        }
        if let Some(path) = hgrm {
            logs::write_hgrm(&logs::with_suffix(path, suffix), &ran.latency)?;
        }
        Ok(())
    }

    fn method(&self, window: u32) -> String {
        let arrivals = match self.args.arrivals.arrivals.into() {
            Arrivals::Poisson => format!("poisson arrivals, seed {}", self.args.arrivals.seed),
            Arrivals::Fixed => "arrivals at a fixed interval".to_owned(),
        };
        let spec = self.spec;
        format!(
            "open loop, {arrivals}, up to {window} outstanding, {}, encrypted, {}; {:.1} s a \
             rate after {} ms warm-up. Latency runs from the intended send to the answer. LAG: how \
             late the generator was where the requester had nothing else to do, which is part of \
             the latency. STALLED: for which share of the time other threads held the cores of the \
             measured ones. LATE: sent over 1 ms after its moment. A percentile needs 10 samples \
             beyond it.",
            spec.what(),
            spec.placement(),
            self.args.length.as_secs_f64(),
            WARM_UP.as_millis(),
        )
    }
}

/// The trial to take: the narrowest that is about as good as the best.
fn best_of(trials: &[CapacityTrial]) -> Option<CapacityTrial> {
    trials.iter().copied().reduce(|taken, wider| {
        if wider.tasks_per_s > taken.tasks_per_s * WIDER_MUST_GAIN {
            wider
        } else {
            taken
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wider_window_is_taken_only_for_a_gain() {
        let trials = |rates: [f64; 3]| -> Vec<CapacityTrial> {
            let trials = WINDOWS.iter().zip(rates);
            let trial = |(window, tasks_per_s): (&u32, f64)| CapacityTrial {
                window: *window,
                tasks_per_s,
            };
            trials.map(trial).collect()
        };
        for (rates, window) in [
            ([1e6, 1.02e6, 1.03e6], 256),
            ([1e6, 1.5e6, 1.4e6], 1_024),
            ([1e6, 1.5e6, 1.7e6], 4_096),
        ] {
            assert_eq!(
                best_of(&trials(rates)).map(|best| best.window),
                Some(window)
            );
        }
        assert!(best_of(&[]).is_none());
    }
}
