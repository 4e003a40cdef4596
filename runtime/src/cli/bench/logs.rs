//! Histogram files of an open loop.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hdrhistogram::Histogram;
use ramjet_bench::latencies::{Interval, append_interval, distribution_text, write_interval_log};

use super::super::bench_args::LogArgs;
use super::super::exit::Failure;

/// Finds out before the run whether the folders of the files are there.
pub(super) fn check(args: &LogArgs) -> Result<(), Failure> {
    check_folder("hlog", args.hlog.as_deref())?;
    check_folder("hgrm", args.hgrm.as_deref())
}

/// Refuses a file of this flag whose folder does not exist: better before a run than after it.
pub(super) fn check_folder(flag: &str, path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else {
        return Ok(());
    };
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if path.is_dir() || path.file_name().is_none() {
        return Err(Failure::usage(format!(
            "--{flag}: {} is no file",
            path.display()
        )));
    }
    match folder {
        Some(folder) if !folder.is_dir() => Err(Failure::usage(format!(
            "--{flag}: {} is no folder; create it or name another file",
            folder.display()
        ))),
        _ => Ok(()),
    }
}

/// `x.hlog` and `50` make `x-50.hlog`.
pub(super) fn with_suffix(path: &Path, suffix: Option<&str>) -> PathBuf {
    let Some(suffix) = suffix else {
        return path.to_owned();
    };
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}-{suffix}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{suffix}"),
    };
    path.with_file_name(name)
}

/// Writes the log of a run that is over.
pub(super) fn write_hlog(
    path: &Path,
    began: SystemTime,
    comment: &str,
    intervals: &[Interval],
) -> Result<(), Failure> {
    let mut log = Vec::new();
    write_interval_log(&mut log, began, comment, intervals)
        .and_then(|()| std::fs::write(path, log))
        .map_err(|error| unwritten(path, &error))
}

/// A log that is written as its run goes on.
pub(super) struct IntervalLog {
    path: PathBuf,
    file: BufWriter<File>,
}

impl IntervalLog {
    /// Begins one; its times are those after now.
    pub(super) fn create(path: &Path, comment: &str) -> Result<Self, Failure> {
        let begun = File::create(path).and_then(|file| {
            let mut file = BufWriter::new(file);
            write_interval_log(&mut file, SystemTime::now(), comment, [])?;
            Ok(file)
        });
        let file = begun.map_err(|error| unwritten(path, &error))?;
        Ok(IntervalLog {
            path: path.to_owned(),
            file,
        })
    }

    /// Adds one line.
    pub(super) fn write(&mut self, interval: &Interval) -> Result<(), Failure> {
        append_interval(&mut self.file, interval)
            .and_then(|()| self.file.flush())
            .map_err(|error| unwritten(&self.path, &error))
    }
}

pub(super) fn write_hgrm(path: &Path, histogram: &Histogram<u64>) -> Result<(), Failure> {
    std::fs::write(path, distribution_text(histogram)).map_err(|error| unwritten(path, &error))
}

pub(super) fn unwritten(path: &Path, error: &std::io::Error) -> Failure {
    Failure::environment(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_stands_before_the_extension() {
        let table = [
            ("x.hlog", Some("50"), "x-50.hlog"),
            ("/tmp/a.b.hgrm", Some("90"), "/tmp/a.b-90.hgrm"),
            ("plain", Some("10"), "plain-10"),
            ("x.hlog", None, "x.hlog"),
        ];
        for (path, suffix, expected) in table {
            assert_eq!(with_suffix(Path::new(path), suffix), Path::new(expected));
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_before_the_run() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let check = |path: &Path| check_folder("report", Some(path)).map_err(|f| f.message);
        assert_eq!(check(&folder.path().join("new.html")), Ok(()));
        assert_eq!(check(Path::new("here.html")), Ok(()));
        let missing = check(&folder.path().join("no/new.html")).expect_err("no folder");
        assert!(
            missing.contains("--report: ") && missing.contains("is no folder"),
            "{missing}"
        );
        let taken = check(folder.path()).expect_err("a folder");
        assert!(taken.ends_with("is no file"), "{taken}");
    }
}
