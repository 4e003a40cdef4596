//! The program `ramjet-bench-peers`: where it is, what it offers, and one run of it.
//!
//! It is a crate of its own outside the workspace, so that what ramjet is compared with is no
//! dependency of ramjet. It is spoken to by its command line and answers in lines of JSON.
//!
//! Invariants: every call is bounded in time and in what is read; a peer that fails is a reason in
//! words, never a figure.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use serde::{Deserialize, Serialize};

use super::super::subject::WARM_UP;
use crate::cli::bench_args::BenchPeersArgs;
use crate::cli::exit::Failure;

const NAME: &str = "ramjet-bench-peers";
/// Where its own build puts it, below the root of the checkout.
const BUILT: &str = "bench/peers/target/release/ramjet-bench-peers";
/// What builds it.
const BUILD: &str = "cargo build --release --manifest-path bench/peers/Cargo.toml";
/// How long a call may take beyond the time it measures: the start of daemons, trials of settings.
const OVERHEAD_MAX: Duration = Duration::from_secs(90);
/// Most bytes of an answer, and of what is said beside it.
const ANSWER_LEN_MAX: u64 = 1 << 20;

/// A peer as the program lists it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Listed {
    pub(super) peer: String,
    pub(super) version: Option<String>,
    pub(super) encrypted: bool,
    pub(super) reason: Option<String>,
    pub(super) install: String,
}

/// One run of a peer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct PeerRun {
    pub(super) window: u32,
    pub(super) setting: String,
    pub(super) settings: String,
    pub(super) tasks: u64,
    pub(super) lost: u64,
    pub(super) tasks_per_s: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
    pub(super) command: String,
}

/// What a run is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) peer: &'a str,
    pub(super) payload: usize,
    pub(super) window: u32,
    pub(super) run: Duration,
    /// The setting; without one the program tries each and takes the fastest.
    pub(super) setting: Option<&'a str>,
}

/// The program.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    /// Arguments of every call: where the peers' own programs are.
    places: Vec<OsString>,
}

impl Program {
    /// Finds it, or says what builds it.
    pub(super) fn find(args: &BenchPeersArgs) -> Result<Self, Failure> {
        let own = std::env::current_exe()
            .map_err(|error| Failure::environment(format!("the path of ramjet: {error}")))?;
        let path = match &args.binary {
            Some(named) if named.is_file() => named.clone(),
            Some(named) => {
                return Err(Failure::environment(format!(
                    "--binary {}: no such file; build it with `{BUILD}`",
                    named.display()
                )));
            }
            None => find_near(&own).ok_or_else(|| {
                Failure::environment(format!(
                    "{NAME} is neither beside {} nor at {BUILT} above it; build it with \
                     `{BUILD}`, or name it with --binary",
                    own.display()
                ))
            })?,
        };
        let mut places: Vec<OsString> = vec!["--ramjet".into(), own.into()];
        for (flag, place) in [
            ("--pilot-dir", &args.pilot_dir),
            ("--nats-server", &args.nats_server),
        ] {
            if let Some(place) = place {
                places.extend([flag.into(), place.into()]);
            }
        }
        Ok(Program { path, places })
    }

    /// What it offers here.
    pub(super) fn list(&self) -> Result<Vec<Listed>, Failure> {
        let answer = self
            .call(&["list", "--json"].map(str::to_owned), OVERHEAD_MAX)
            .map_err(Failure::environment)?;
        let parse = |line| {
            serde_json::from_str(line).map_err(|error| self.unknown(&format!("{line:?}: {error}")))
        };
        answer.lines().map(parse).collect()
    }

    /// One run, or why there is none.
    pub(super) fn run(&self, asked: &Asked<'_>) -> Result<PeerRun, String> {
        let mut words = [
            "run",
            "--peer",
            asked.peer,
            "--payload",
            &asked.payload.to_string(),
            "--window",
            &asked.window.to_string(),
            "--seconds",
            &asked.run.as_secs_f64().to_string(),
            "--warm-up-ms",
            &WARM_UP.as_millis().to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        if let Some(setting) = asked.setting {
            words.extend(["--setting".to_owned(), setting.to_owned()]);
        }
        let answer = self.call(&words, asked.run + WARM_UP + OVERHEAD_MAX)?;
        parse_run(&answer, asked).map_err(|why| self.unknown(&why).message)
    }

    fn unknown(&self, what: &str) -> Failure {
        Failure::environment(format!(
            "{}: an answer that is not known: {what}; build it anew with `{BUILD}`",
            self.path.display()
        ))
    }

    /// Calls it and returns what it printed, or what it said when it failed.
    fn call(&self, words: &[String], limit: Duration) -> Result<String, String> {
        let name = self.path.display();
        let mut child = Command::new(&self.path)
            .args(words)
            .args(&self.places)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{name}: {error}"))?;
        let printed = child.stdout.take().map(read_all);
        let said = child.stderr.take().map(read_all);
        // Its output ends when it does: whoever it started has outputs of their own.
        let printed = printed.and_then(|all| all.recv_timeout(limit).ok());
        if printed.is_none() {
            // What has ended in the meantime cannot be killed, which is as well.
            let _ = child.kill();
        }
        let status = child.wait().map_err(|error| format!("{name}: {error}"))?;
        match printed {
            Some(text) if status.success() => Ok(text),
            Some(_) => {
                let said = said.and_then(|all| all.recv_timeout(limit).ok());
                let said = said.unwrap_or_default();
                let said = said.trim().trim_start_matches("error: ");
                Err(format!("{said} ({status})"))
            }
            None => Err(format!(
                "{name} {}: no end within {} s",
                words.join(" "),
                limit.as_secs()
            )),
        }
    }
}

/// Beside `own`, or where its build puts it below a folder above `own` or below the current one.
fn find_near(own: &Path) -> Option<PathBuf> {
    let current = std::env::current_dir().ok();
    let above = own.ancestors().skip(1).chain(current.as_deref());
    std::iter::once(own.with_file_name(NAME))
        .chain(above.map(|folder| folder.join(BUILT)))
        .find(|path| path.is_file())
}

/// Reads to the end on a thread of its own.
fn read_all(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = bounded(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth telling.
        let _ = source.take(ANSWER_LEN_MAX).read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// The run in `answer`, if it is one of what was asked for.
fn parse_run(answer: &str, asked: &Asked<'_>) -> Result<PeerRun, String> {
    let run: PeerRun =
        serde_json::from_str(answer).map_err(|error| format!("{answer:?}: {error}"))?;
    let figures = [run.tasks_per_s, run.p50_us];
    if run.window != asked.window || !figures.iter().all(|figure| *figure > 0.0) {
        return Err(format!("{answer:?} is not what was asked for"));
    }
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"peer":"tonic","version":"0.14","setting":"multi-1","settings":"words",
        "tried":[],"encrypted":false,"payload":64,"window":16,"tasks":20,"lost":0,"seconds":2.0,
        "tasks_per_s":10.0,"p50_us":15.5,"p99_us":16.0,"p999_us":17.0,"max_us":18.0,
        "command":"ramjet-bench-peers run"}"#;

    const ASKED: Asked<'_> = Asked {
        peer: "tonic",
        payload: 64,
        window: 16,
        run: Duration::from_secs(2),
        setting: Some("multi-1"),
    };

    /// A program that answers a call by `script`.
    ///
    /// A process of its own writes it. Were it open for writing here, a process that another test
    /// starts at that moment would hold it open as well, and what somebody can write cannot be
    /// started (`execve(2)`, `ETXTBSY`).
    fn scripted(script: &str) -> (tempfile::TempDir, Program) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(NAME);
        let written = Command::new("/bin/sh")
            .args([
                "-ec",
                r#"printf '#!/bin/sh\n%s\n' "$1" > "$0"; chmod 755 "$0""#,
            ])
            .arg(&path)
            .arg(script)
            .status()
            .expect("a shell");
        assert!(written.success(), "{written}");
        let places = vec!["--ramjet".into(), "/r".into()];
        (folder, Program { path, places })
    }

    #[test]
    fn a_line_is_read_and_one_of_another_run_is_refused() {
        let run = parse_run(LINE, &ASKED).expect("a run");
        assert_eq!((run.tasks, run.setting.as_str()), (20, "multi-1"));
        assert!((run.p50_us - 15.5).abs() < 1e-9);
        let other = Asked {
            window: 64,
            ..ASKED
        };
        assert!(parse_run(LINE, &other).is_err());
        let nothing = LINE.replace("\"tasks_per_s\":10.0", "\"tasks_per_s\":0.0");
        assert!(parse_run(&nothing, &ASKED).is_err());
        assert!(parse_run("", &ASKED).is_err());
    }

    #[test]
    fn a_call_hands_over_what_was_asked_and_brings_back_the_answer() {
        let answer = LINE.replace('\n', " ");
        let (folder, program) = scripted(&format!("echo \"$@\" > \"$0.words\"; echo '{answer}'"));
        let run = program.run(&ASKED).expect("a run");
        assert_eq!(run.window, 16);
        let words = std::fs::read_to_string(folder.path().join(format!("{NAME}.words")));
        assert_eq!(
            words.expect("the script wrote it").trim(),
            "run --peer tonic --payload 64 --window 16 --seconds 2 --warm-up-ms 300 \
             --setting multi-1 --ramjet /r"
        );
    }

    #[test]
    fn a_call_that_fails_says_why() {
        let (_folder, program) = scripted("echo 'error: nats-server is absent' >&2; exit 5");
        let why = program.run(&ASKED).expect_err("exit 5");
        assert!(why.starts_with("nats-server is absent ("), "{why}");
        let (_folder, program) = scripted("echo 'no JSON'");
        let why = program.run(&ASKED).expect_err("no JSON");
        assert!(why.contains("no JSON") && why.contains(BUILD), "{why}");
        let (_folder, program) = scripted("exec sleep 60");
        let why = program
            .call(&["run".to_owned()], Duration::from_millis(50))
            .expect_err("it never ends");
        assert!(why.contains("no end within"), "{why}");
    }

    #[test]
    fn the_list_is_read_line_by_line() {
        let (_folder, program) = scripted(
            r#"echo '{"peer":"a","available":true,"version":"1","encrypted":true,
                "reason":null,"install":"-"}' | tr -d '\n'; echo
               echo '{"peer":"b","available":false,"version":null,"encrypted":false,
                "reason":"absent","install":"get b"}' | tr -d '\n'; echo"#,
        );
        let listed = program.list().expect("two peers");
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0].version.as_deref(), Some("1"));
        assert_eq!(listed[1].reason.as_deref(), Some("absent"));
    }

    #[test]
    fn the_program_is_found_beside_ramjet_or_where_it_is_built() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let own = root.path().join("target/release/ramjet");
        let built = root.path().join(BUILT);
        std::fs::create_dir_all(built.parent().expect("it has one")).expect("folders");
        std::fs::create_dir_all(own.parent().expect("it has one")).expect("folders");
        std::fs::write(&built, "").expect("a file");
        assert_eq!(find_near(&own), Some(built));
        let beside = own.with_file_name(NAME);
        std::fs::write(&beside, "").expect("a file");
        assert_eq!(find_near(&own), Some(beside));
    }
}
