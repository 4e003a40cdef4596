//! `ramjet bench peers`: ramjet beside what one would pick instead, in one run.
//!
//! Each side is swept over the windows once and keeps its best. Then ramjet and the peer alternate
//! in the order A B B A, each at its own best window, and again with one request outstanding. While
//! one side runs, nothing of the other does. A ratio above 1 says that ramjet is ahead: tasks are
//! ramjet's over the peer's, the median latency is the peer's over ramjet's.
//!
//! `--json` prints one object a peer, those that cannot be run included, with the `reason`.
//!
//! Invariants: a ratio comes from pairs of this run and of nothing else; a peer that fails has a
//! reason in its row and no figure, and the others go on; if ramjet fails, all ends.

mod program;
mod report;

use std::time::Duration;

use ramjet_bench::facts::Watch;
use ramjet_bench::pairs::{PairError, PairSummary, interleave};

use self::program::{Asked, Listed, PeerRun, Program};
use self::report::{Compared, Ratio, Report, Swept};
use super::subject::{Spec, measure};
use crate::cli::arg_groups::ThreadArgs;
use crate::cli::bench_args::{BenchPeersArgs, BenchRunArgs};
use crate::cli::exit::{Exit, Failure};
use crate::cli::jobs::Loaded;
use crate::cli::output::{Output, micros, per_second};
use crate::cli::settings::{Settings, suggestion};

/// Longest run of a sweep: it only has to tell windows apart.
const SWEEP_RUN_MAX: Duration = Duration::from_secs(1);

pub(super) fn run(
    args: &BenchPeersArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let program = Program::find(args)?;
    let listed = chosen(program.list()?, &args.peer)?;
    let bench = Bench {
        program,
        windows: windows(&args.windows),
        payload: args.payload,
        run: Duration::from_secs_f64(args.seconds),
        pairs: args.pairs,
        settings,
    };
    let here = listed.iter().filter(|peer| peer.version.is_some()).count();
    let ours = if here > 0 {
        output.say(&format!(
            "sweeping ramjet over {} windows",
            bench.windows.len()
        ));
        Some(bench.sweep_ours()?)
    } else {
        None
    };
    let mut reports = Vec::new();
    for peer in &listed {
        let report = match &ours {
            Some(ours) if peer.version.is_some() => {
                output.say(&format!("{}: sweep, then pairs", peer.peer));
                bench.compare(peer, ours, output)?
            }
            _ => Report::absent(peer, args.payload, &absence(peer)),
        };
        if output.json {
            output.object(&report)?;
        }
        reports.push(report);
    }
    if !output.json {
        output.data(&report::text(&reports))?;
    }
    if reports.iter().any(|report| report.compared.is_some()) {
        return Ok(Exit::Ok);
    }
    Err(Failure::environment(
        "no peer could be run; the rows say why, and what installs each",
    ))
}

/// The windows in ascending order, each once.
fn windows(asked: &[u32]) -> Vec<u32> {
    let mut windows = asked.to_vec();
    windows.sort_unstable();
    windows.dedup();
    windows
}

/// The peers that were asked for: `quinn` names `quinn-stream` and `quinn-datagram`.
fn chosen(listed: Vec<Listed>, asked: &[String]) -> Result<Vec<Listed>, Failure> {
    let names = |name: &str, peer: &Listed| {
        let known = listed.iter().any(|other| other.peer == name);
        peer.peer == name || !known && peer.peer.starts_with(&format!("{name}-"))
    };
    for name in asked {
        if !listed.iter().any(|peer| names(name, peer)) {
            let known: Vec<&str> = listed.iter().map(|peer| peer.peer.as_str()).collect();
            let meant = suggestion(name, known.iter().copied());
            return Err(Failure::usage(format!(
                "--peer {name}: no such peer{meant}; there are {}",
                known.join(", ")
            )));
        }
    }
    let wanted = |peer: &&Listed| asked.is_empty() || asked.iter().any(|name| names(name, peer));
    Ok(listed.iter().filter(wanted).cloned().collect())
}

fn absence(peer: &Listed) -> String {
    let reason = peer.reason.as_deref().unwrap_or("not available");
    format!("{reason}; install: {}", peer.install)
}

/// What all comparisons of a run share.
struct Bench<'a> {
    program: Program,
    windows: Vec<u32>,
    payload: u32,
    run: Duration,
    pairs: u32,
    settings: &'a Settings,
}

/// What ramjet measured over the windows.
struct Ours {
    best: Spec,
    one: Spec,
    sweep: Vec<Swept>,
}

/// Whose failure ended a pair.
enum Fault {
    Ours(Failure),
    Peer(String),
}

impl Bench<'_> {
    fn spec(&self, window: u32, run: Duration) -> Result<Spec, Failure> {
        let args = BenchRunArgs {
            seconds: run.as_secs_f64(),
            pairs: self.pairs,
            payload: Some(self.payload),
            window: Some(window),
            // They are in the settings.
            threads: ThreadArgs::default(),
        };
        Spec::tasks(&args, self.settings)
    }

    fn sweep_run(&self) -> Duration {
        self.run.min(SWEEP_RUN_MAX)
    }

    fn sweep_ours(&self) -> Result<Ours, Failure> {
        let mut sweep = Vec::new();
        for &window in &self.windows {
            let loaded = measure(&self.spec(window, self.sweep_run())?)?;
            sweep.push(Swept {
                window,
                tasks_per_s: tasks_per_s(&loaded),
                p50_us: p50_us(&loaded),
            });
        }
        let best = best_of(&sweep, |swept| swept.tasks_per_s).map_or(1, |swept| swept.window);
        Ok(Ours {
            best: self.spec(best, self.run)?,
            one: self.spec(1, self.run)?,
            sweep,
        })
    }

    /// Sweeps a peer; each run tries the peer's settings and takes the fastest.
    fn sweep(&self, peer: &Listed) -> Result<Vec<PeerRun>, String> {
        let run = |&window| {
            self.program.run(&Asked {
                peer: &peer.peer,
                payload: self.payload as usize,
                window,
                run: self.sweep_run(),
                setting: None,
            })
        };
        self.windows.iter().map(run).collect()
    }

    fn compare(&self, peer: &Listed, ours: &Ours, output: &mut Output) -> Result<Report, Failure> {
        let watch = Watch::begin();
        output.start_bar(2 * u64::from(self.pairs));
        let compared = self.compare_unwatched(peer, ours, output);
        output.end_bar();
        match compared {
            Ok(mut compared) => {
                compared.quiet = Some(watch.end());
                Ok(Report {
                    compared: Some(compared),
                    ..Report::absent(peer, self.payload, "")
                })
            }
            Err(Fault::Peer(why)) => Ok(Report::absent(peer, self.payload, &why)),
            Err(Fault::Ours(failure)) => Err(failure),
        }
    }

    fn compare_unwatched(
        &self,
        peer: &Listed,
        ours: &Ours,
        output: &Output,
    ) -> Result<Compared, Fault> {
        let sweep = self.sweep(peer).map_err(Fault::Peer)?;
        let best = best_of(&sweep, |run| run.tasks_per_s)
            .ok_or_else(|| Fault::Peer("no window was run".to_owned()))?;
        let asked = |run: &PeerRun| Asked {
            peer: &peer.peer,
            payload: self.payload as usize,
            window: run.window,
            run: self.run,
            setting: None,
        };
        let mut done = 0;
        let mut step = || {
            done += 1;
            output.move_bar(done, || peer.peer.clone());
        };
        let mut at_best = Vec::new();
        let tasks = interleave(
            self.pairs as usize,
            || {
                step();
                measure(&ours.best)
                    .map(|loaded| tasks_per_s(&loaded))
                    .map_err(Fault::Ours)
            },
            || {
                self.run_kept(&asked(best), &best.setting, &mut at_best, |run| {
                    run.tasks_per_s
                })
            },
        )
        .map_err(fault_of)?;
        let one = match sweep.iter().find(|run| run.window == 1) {
            Some(run) => run.clone(),
            None => self.first_of_one(peer)?,
        };
        let mut at_one = Vec::new();
        let p50 = interleave(
            self.pairs as usize,
            || self.run_kept(&asked(&one), &one.setting, &mut at_one, |run| run.p50_us),
            || {
                step();
                measure(&ours.one)
                    .map(|loaded| p50_us(&loaded))
                    .map_err(Fault::Ours)
            },
        )
        .map_err(fault_of)?;
        Ok(self.compared(
            ours,
            &sweep,
            [best, &one],
            [&at_best, &at_one],
            [tasks, p50],
        ))
    }

    /// A run of the peer with a setting that was found before; what it measured is kept.
    fn run_kept(
        &self,
        asked: &Asked<'_>,
        setting: &str,
        kept: &mut Vec<PeerRun>,
        figure: impl Fn(&PeerRun) -> f64,
    ) -> Result<f64, Fault> {
        let asked = Asked {
            setting: Some(setting),
            ..*asked
        };
        let run = self.program.run(&asked).map_err(Fault::Peer)?;
        let measured = figure(&run);
        kept.push(run);
        Ok(measured)
    }

    /// One outstanding, where the sweep left it out: it finds the setting.
    fn first_of_one(&self, peer: &Listed) -> Result<PeerRun, Fault> {
        let asked = Asked {
            peer: &peer.peer,
            payload: self.payload as usize,
            window: 1,
            run: self.sweep_run(),
            setting: None,
        };
        self.program.run(&asked).map_err(Fault::Peer)
    }

    fn compared(
        &self,
        ours: &Ours,
        sweep: &[PeerRun],
        [best, one]: [&PeerRun; 2],
        [at_best, at_one]: [&[PeerRun]; 2],
        [tasks, p50]: [PairSummary; 2],
    ) -> Compared {
        let all = at_best.iter().chain(at_one);
        Compared {
            best_window: best.window,
            tasks_per_s: tasks.control_median(),
            p50_us_at_one: p50.subject_median(),
            p99_us: median(at_best.iter().map(|run| run.p99_us)),
            lost: all.map(|run| run.lost).sum(),
            settings: best.settings.clone(),
            settings_at_one: one.settings.clone(),
            commands: [at_best, at_one]
                .into_iter()
                .filter_map(|runs| runs.first().map(|run| run.command.clone()))
                .collect(),
            ramjet_window: ours.best.window,
            ramjet_tasks_per_s: tasks.subject_median(),
            ramjet_p50_us_at_one: p50.control_median(),
            ramjet_sweep: ours.sweep.clone(),
            ratio_tasks: Ratio::of(&tasks),
            ratio_p50: Ratio::of(&p50),
            sweep: sweep.to_vec(),
            method: self.method(ours, best.window),
            quiet: None,
        }
    }

    fn method(&self, ours: &Ours, window: u32) -> String {
        let windows: Vec<String> = self.windows.iter().map(u32::to_string).collect();
        format!(
            "ramjet: {}; peer: the same load from processes of its own on all cores, window \
             {window}, settings below; then both with one outstanding; best windows of {} in one \
             sweep of {:.1} s each; every reply compared with what was sent; ratios with 95 % \
             bootstrap intervals over the pairs",
            ours.best
                .method(&format!("closed loop, window {}", ours.best.window)),
            windows.join(", "),
            self.sweep_run().as_secs_f64(),
        )
    }
}

fn fault_of(error: PairError<Fault>) -> Fault {
    match error {
        PairError::Arm(fault) => fault,
        PairError::TooFew { given } => Fault::Ours(Failure::usage(format!(
            "--pairs {given}: too few for a ratio"
        ))),
        PairError::NotPositive { arm, value } => {
            Fault::Peer(format!("the {arm} of a pair measured {value}"))
        }
        PairError::Disturbed { .. } => {
            Fault::Peer("the machine did something else in too many pairs".to_owned())
        }
    }
}

fn tasks_per_s(loaded: &Loaded) -> f64 {
    per_second(loaded.results, Duration::from_nanos(loaded.elapsed_ns))
}

fn p50_us(loaded: &Loaded) -> f64 {
    micros(loaded.measured.quantile_ns(0.5))
}

/// The first of the runs whose figure no other exceeds.
fn best_of<T>(runs: &[T], figure: impl Fn(&T) -> f64) -> Option<&T> {
    runs.iter().reduce(|best, run| {
        if figure(run) > figure(best) {
            run
        } else {
            best
        }
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(peer: &str, version: Option<&str>) -> Listed {
        Listed {
            peer: peer.to_owned(),
            version: version.map(str::to_owned),
            encrypted: true,
            reason: version.is_none().then(|| "it is absent".to_owned()),
            install: "get it".to_owned(),
        }
    }

    fn all() -> Vec<Listed> {
        [
            "tonic",
            "quinn-stream",
            "quinn-datagram",
            "pilot",
            "pilot-packed",
        ]
        .map(|name| listed(name, Some("1.0")))
        .to_vec()
    }

    fn names(asked: &[&str]) -> Result<Vec<String>, Failure> {
        let asked: Vec<String> = asked.iter().map(|&name| name.to_owned()).collect();
        let chosen = chosen(all(), &asked)?;
        Ok(chosen.into_iter().map(|peer| peer.peer).collect())
    }

    #[test]
    fn peers_are_chosen_by_name_or_by_family() {
        assert_eq!(names(&[]).expect("all").len(), 5);
        assert_eq!(names(&["pilot"]).expect("one"), ["pilot"]);
        assert_eq!(
            names(&["quinn", "tonic"]).expect("three"),
            ["tonic", "quinn-stream", "quinn-datagram"]
        );
        let refused = names(&["tonik"]).expect_err("no such peer");
        assert_eq!(refused.exit, Exit::Usage);
        assert!(
            refused.message.contains("did you mean \"tonic\"?"),
            "{refused}"
        );
    }

    #[test]
    fn windows_are_swept_once_each() {
        assert_eq!(windows(&[64, 1, 64, 16]), [1, 16, 64]);
    }

    fn run(window: u32, tasks_per_s: f64) -> PeerRun {
        PeerRun {
            window,
            setting: "multi-1".to_owned(),
            settings: format!("words of {window}"),
            tasks: 1,
            lost: 2,
            tasks_per_s,
            p50_us: 50.0,
            p99_us: 99.0,
            p999_us: 100.0,
            max_us: 101.0,
            command: format!("run --window {window}"),
        }
    }

    fn compared() -> Compared {
        let sum = |a: f64, b: f64| {
            let pair = interleave(5, || Ok::<_, String>(a), || Ok(b));
            pair.unwrap_or_else(|error| panic!("{error}"))
        };
        let settings = Settings::resolve(Default::default(), [], None).expect("defaults");
        let bench = Bench {
            program: Program::find(&parsed_args()).expect("any file will do"),
            windows: vec![1, 64],
            payload: 64,
            run: Duration::from_secs(2),
            pairs: 5,
            settings: &settings,
        };
        let ours = Ours {
            best: bench.spec(64, bench.run).expect("a spec"),
            one: bench.spec(1, bench.run).expect("a spec"),
            sweep: Vec::new(),
        };
        let sweep = [run(1, 10.0), run(64, 100.0)];
        let best = best_of(&sweep, |run| run.tasks_per_s).expect("two runs");
        assert_eq!(best.window, 64);
        let kept = [[run(64, 100.0)], [run(1, 10.0)]];
        bench.compared(
            &ours,
            &sweep,
            [best, &sweep[0]],
            [&kept[0], &kept[1]],
            [sum(4_000.0, 100.0), sum(50.0, 10.0)],
        )
    }

    fn parsed_args() -> BenchPeersArgs {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            args: BenchPeersArgs,
        }
        let line = ["p", "--binary", "/bin/sh"];
        <Only as clap::Parser>::try_parse_from(line)
            .expect("valid")
            .args
    }

    #[test]
    fn ratios_say_how_far_ramjet_is_ahead() {
        let compared = compared();
        assert!((compared.ratio_tasks.median - 40.0).abs() < 1e-9);
        assert!((compared.ratio_p50.median - 5.0).abs() < 1e-9);
        assert_eq!((compared.best_window, compared.ramjet_window), (64, 64));
        assert_eq!(compared.lost, 4);
        assert!((compared.tasks_per_s - 100.0).abs() < 1e-9);
        assert!((compared.p50_us_at_one - 50.0).abs() < 1e-9);
        assert!((compared.ramjet_p50_us_at_one - 10.0).abs() < 1e-9);
    }
}
