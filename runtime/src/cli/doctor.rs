//! `ramjet doctor`: what this host lacks, what it costs, and the command that mends it.
//!
//! It changes nothing unless it is told twice: `--apply` says which settings of the kernel it would
//! change, `--apply --yes` changes them and keeps what was in a record; `--undo` and `--undo --yes`
//! do the same backwards. `--json` prints one array of findings (`id`, `severity`, `what_is`,
//! `better`, `why`, `measured`, `command`, `undo`, `change`), or of outcomes (`change`, `done`, `why`).
//! Exit 5 if there is a problem, or something was not done; with `--strict` 1 if there is advice; else 0.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use ramjet_tuning::{Change, Finding, Outcome, Record, Severity};

use super::exit::{Exit, Failure};
use super::output::{Output, Paint};
use super::probes;

/// Where what was is kept until it is undone.
const RECORD: &str = "/var/lib/ramjet/doctor.json";

/// `ramjet doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Say which settings of the kernel would be changed; change them with --yes
    #[arg(long, conflicts_with = "undo")]
    apply: bool,
    /// Say which changes would be undone; undo them with --yes
    #[arg(long)]
    undo: bool,
    /// Do it, as root
    #[arg(long)]
    yes: bool,
    /// Where --apply keeps what was, for --undo
    #[arg(long, value_name = "FILE", default_value = RECORD, value_hint = ValueHint::FilePath)]
    record: PathBuf,
    /// Exit with 1 if there is advice, too
    #[arg(long)]
    strict: bool,
    /// Only the settings with these names
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Judge the files below another folder than /, as of an image
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = ValueHint::DirPath)]
    root: PathBuf,
}

pub(super) fn run(args: &DoctorArgs, output: &mut Output) -> Result<Exit, Failure> {
    if args.undo {
        return undo(args, output);
    }
    let findings = chosen(args)?;
    if args.apply {
        return apply(args, findings, output);
    }
    if output.json {
        output.object(&findings)?;
    } else {
        let pages: Vec<String> = findings
            .iter()
            .map(|finding| page(finding, output))
            .collect();
        output.data(&pages.join("\n"))?;
    }
    Ok(exit(&findings, args.strict))
}

fn exit(findings: &[Finding], strict: bool) -> Exit {
    match findings.iter().map(|finding| finding.severity).max() {
        Some(Severity::Problem) => Exit::Environment,
        Some(Severity::Advice) if strict => Exit::Failed,
        _ => Exit::Ok,
    }
}

/// The findings that were asked for: what the files say, and on this host what is tried.
fn chosen(args: &DoctorArgs) -> Result<Vec<Finding>, Failure> {
    let mut findings = ramjet_tuning::report(&args.root);
    if args.root == Path::new("/") {
        probes::try_out(&mut findings);
    }
    for name in &args.only {
        if !findings.iter().any(|finding| finding.id == name) {
            let names: Vec<&str> = findings.iter().map(|finding| finding.id).collect();
            return Err(Failure::usage(format!(
                "--only {name}: no such setting; there are {}",
                names.join(", ")
            )));
        }
    }
    findings
        .retain(|finding| args.only.is_empty() || args.only.iter().any(|name| name == finding.id));
    Ok(findings)
}

fn apply(args: &DoctorArgs, findings: Vec<Finding>, output: &mut Output) -> Result<Exit, Failure> {
    let by_hand: Vec<String> = findings
        .iter()
        .filter(|finding| finding.change.is_none())
        .filter_map(|finding| Some(format!("{}: {}", finding.id, finding.command.as_ref()?)))
        .collect();
    let changes: Vec<Change> = findings
        .into_iter()
        .filter_map(|finding| finding.change)
        .collect();
    for command in by_hand {
        output.say(&format!("left to you: {command}"));
    }
    if !args.yes {
        return plan(
            &changes,
            |change| change.command(&change.to),
            "--apply",
            output,
        );
    }
    let outcomes = ramjet_tuning::apply(&args.root, &args.record, changes);
    tell(
        &outcomes.map_err(Failure::environment)?,
        |change| &change.to,
        output,
    )
}

fn undo(args: &DoctorArgs, output: &mut Output) -> Result<Exit, Failure> {
    if !args.yes {
        let record = Record::read(&args.record).map_err(Failure::environment)?;
        return plan(
            &record.changes,
            |change| change.command(&change.from),
            "--undo",
            output,
        );
    }
    let outcomes = ramjet_tuning::undo(&args.root, &args.record);
    tell(
        &outcomes.map_err(Failure::environment)?,
        |change| &change.from,
        output,
    )
}

/// Says what would be done.
fn plan(
    changes: &[Change],
    command: impl Fn(&Change) -> String,
    flag: &str,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if output.json {
        output.object(&changes)?;
    } else if !changes.is_empty() {
        let lines: Vec<String> = changes.iter().map(command).collect();
        output.data(&lines.join("\n"))?;
    }
    output.say(&match changes.len() {
        0 => "nothing to do".to_owned(),
        _ => format!("nothing is changed yet; {flag} --yes, as root, does it"),
    });
    Ok(Exit::Ok)
}

/// Says what was done.
fn tell(
    outcomes: &[Outcome],
    value: impl Fn(&Change) -> &String,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if output.json {
        output.object(&outcomes)?;
    } else if !outcomes.is_empty() {
        let lines: Vec<String> = outcomes
            .iter()
            .map(|outcome| {
                let Change { id, file, .. } = &outcome.change;
                match outcome.done {
                    true => format!("{id:<18} {file} is {}", value(&outcome.change)),
                    false => format!("{id:<18} not done: {}", outcome.why),
                }
            })
            .collect();
        output.data(&lines.join("\n"))?;
    }
    if outcomes.is_empty() {
        output.say("nothing to do");
    }
    let failed = outcomes.iter().any(|outcome| !outcome.done);
    Ok(if failed { Exit::Environment } else { Exit::Ok })
}

/// A finding as people read it; one that is fine takes one line.
fn page(finding: &Finding, output: &Output) -> String {
    let (paint, label) = match finding.severity {
        Severity::Ok => (Paint::Good, "ok"),
        Severity::Advice => (Paint::Bold, "advice"),
        Severity::Problem => (Paint::Bad, "problem"),
    };
    let label = output.paint(paint, &format!("{label:<7}"));
    let mut page = format!("{label} {:<18} {}", finding.id, finding.what_is);
    if finding.severity != Severity::Ok {
        let mut line =
            |name: &str, text: &str| page.push_str(&format!("\n        {name:<7} {text}"));
        line("better", &finding.better);
        line("why", finding.why);
        if let Some(measured) = &finding.measured {
            line("here", measured);
        }
        if let Some(command) = &finding.command {
            line("run", command);
        }
        if let Some(undo) = &finding.undo {
            line("undo", undo);
        }
    }
    if finding.severity == Severity::Ok
        && let Some(measured) = &finding.measured
    {
        page.push_str(&format!(" ({measured})"));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_its_remedy_unless_all_is_fine() {
        let finding = |severity| Finding {
            id: "rmem-max",
            severity,
            what_is: "212992 bytes".to_owned(),
            better: "8 MiB".to_owned(),
            why: "bursts are dropped",
            measured: None,
            command: Some("sysctl -w net.core.rmem_max=8388608".to_owned()),
            undo: None,
            change: None,
        };
        assert_eq!(exit(&[finding(Severity::Advice)], false), Exit::Ok);
        assert_eq!(exit(&[finding(Severity::Advice)], true), Exit::Failed);
        let output = Output::quiet();
        assert_eq!(page(&finding(Severity::Ok), &output).lines().count(), 1);
        let slow = page(&finding(Severity::Advice), &output);
        assert_eq!(
            slow,
            "advice  rmem-max           212992 bytes\n        better  8 MiB\n        why     \
             bursts are dropped\n        run     sysctl -w net.core.rmem_max=8388608"
        );
    }

    #[test]
    fn what_is_tried_stands_behind_what_is_read() {
        let args = DoctorArgs {
            apply: false,
            undo: false,
            strict: false,
            yes: false,
            record: PathBuf::from(RECORD),
            only: Vec::new(),
            root: PathBuf::from("/"),
        };
        let findings = chosen(&args).expect("findings");
        let ids: Vec<&str> = findings.iter().map(|finding| finding.id).collect();
        assert_eq!(
            ids[..4],
            ["kernel", "io_uring_disabled", "io_uring", "udp_offload"]
        );
        let wrong = DoctorArgs {
            only: vec!["rmem".to_owned()],
            ..args
        };
        let error = chosen(&wrong).expect_err("no such name").to_string();
        assert!(
            error.contains("--only rmem") && error.contains("rmem_max"),
            "{error}"
        );
    }
}
