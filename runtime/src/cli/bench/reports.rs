//! From the figures of a command to its report files.

use std::path::Path;
use std::time::SystemTime;

use ramjet_bench::facts::{MachineFacts, Quiet};
use ramjet_bench::page::Report;

use super::super::bench_args::ReportArgs;
use super::super::exit::Failure;
use super::super::output::Output;
use super::Figures;
use super::logs::{check_folder, unwritten};

/// Finds out before the run whether the folders of the files are there.
pub(super) fn check(args: &ReportArgs) -> Result<(), Failure> {
    check_folder("report", args.report.as_deref())?;
    check_folder("report-json", args.report_json.as_deref())
}

/// Writes the files that were asked for.
pub(super) fn write(
    args: &ReportArgs,
    title: &str,
    machine: MachineFacts,
    quiet: Quiet,
    figures: Figures,
    output: &Output,
) -> Result<(), Failure> {
    if args.report.is_none() && args.report_json.is_none() {
        return Ok(());
    }
    let report = Report {
        title: format!("ramjet bench: {title}"),
        command: command_line(std::env::args_os().map(|word| word.to_string_lossy().into_owned())),
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine,
        quiet: Some(quiet),
        cases: figures
            .cases
            .into_iter()
            .chain(figures.tunnels.into_iter().map(|report| report.case))
            .chain(figures.registry.map(|report| report.case))
            .collect(),
        curves: figures.curves,
        ladder: figures.ladder,
        soak: figures.soak,
    };
    let put = |path: &Path, text: &str| -> Result<(), Failure> {
        std::fs::write(path, text).map_err(|error| unwritten(path, &error))?;
        output.say(&format!("wrote {}", path.display()));
        Ok(())
    };
    if let Some(path) = &args.report {
        put(path, &report.html())?;
    }
    if let Some(path) = &args.report_json {
        let text = report
            .json()
            .map_err(|error| Failure::environment(format!("{}: {error}", path.display())))?;
        put(path, &text)?;
    }
    Ok(())
}

/// The words as a shell would take them; the program by its name alone.
fn command_line(words: impl Iterator<Item = String>) -> String {
    let plain = |word: &str| {
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
        !word.is_empty() && word.chars().all(safe)
    };
    let quoted = words.enumerate().map(|(place, word)| {
        let word = match (place, Path::new(&word).file_name()) {
            (0, Some(name)) => name.to_string_lossy().into_owned(),
            _ => word,
        };
        if plain(&word) {
            word
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_typed_again() {
        let words = [
            "/opt/bin/ramjet",
            "bench",
            "--report",
            "my file's.html",
            "--rate=5",
            "",
        ];
        assert_eq!(
            command_line(words.into_iter().map(str::to_owned)),
            "ramjet bench --report 'my file'\\''s.html' --rate=5 ''"
        );
    }
}
