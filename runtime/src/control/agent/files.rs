//! Files of the services in the state directory: how they are written, and how times name them.
//!
//! A file is written beside its place and moved there, so that whoever reads the directory sees
//! whole files only. What must survive the machine's fall is synced as well. These calls block:
//! they are made on the blocking threads, never on the control thread.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// Whether a file must outlive the machine's fall, or the process's only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    Synced,
    Moved,
}

/// Writes `bytes` to `path`, whole or not at all.
///
/// # Errors
/// The path and what the system says.
pub(super) fn write_whole(path: &Path, bytes: &[u8], durable: Durable) -> Result<(), String> {
    write_at(CWD, path, bytes, durable).map_err(|error| named(path, &error))
}

/// As [`write_whole`], to `name` in a folder that is open: for many files, which spares the walk along
/// their path, twice for each.
///
/// # Errors
/// What the system says.
pub(super) fn write_at(
    folder: BorrowedFd<'_>,
    name: &Path,
    bytes: &[u8],
    durable: Durable,
) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut beside = name.as_os_str().to_owned();
    // Hidden from whoever lists the directory by extension, and distinct for each writer.
    beside.push(format!(
        ".{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let written = rustix::fs::openat(folder, &beside, flags, Mode::from_raw_mode(0o666))
        .map_err(io::Error::from)
        .and_then(|file| {
            let mut file = File::from(file);
            file.write_all(bytes)?;
            match durable {
                Durable::Synced => file.sync_all(),
                Durable::Moved => Ok(()),
            }
        })
        .and_then(|()| Ok(rustix::fs::renameat(folder, &beside, folder, name)?));
    if written.is_err() {
        // What is left of it is of no use to anybody.
        let _ = rustix::fs::unlinkat(folder, &beside, AtFlags::empty());
    }
    written
}

/// Makes a directory that only its owner may enter.
///
/// # Errors
/// The path and what the system says.
pub(super) fn make_folder(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| named(path, &error))
}

/// A path and what was wrong with it.
pub(super) fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn rfc3339(unix_ms: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms.min(LATEST_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

/// Milliseconds since 1970 of an RFC 3339 time in UTC.
pub(super) fn unix_ms_of(text: &str) -> Option<u64> {
    let time = humantime::parse_rfc3339(text).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// `YYYYMMDD-HHMMSS.mmm` in UTC, as in the names of kept messages.
pub(super) fn stamp(unix_ms: u64) -> String {
    rfc3339(unix_ms)
        .chars()
        .filter_map(|character| match character {
            '-' | ':' | 'Z' => None,
            'T' => Some('-'),
            other => Some(other),
        })
        .collect()
}

/// The last millisecond of the year 9999, the last that RFC 3339 can write.
const LATEST_MS: u64 = 253_402_300_799_999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_both_forms_and_read_again() {
        let unix_ms = 1_518_563_312_007;
        assert_eq!(rfc3339(unix_ms), "2018-02-13T23:08:32.007Z");
        assert_eq!(stamp(unix_ms), "20180213-230832.007");
        assert_eq!(unix_ms_of(&rfc3339(unix_ms)), Some(unix_ms));
        assert_eq!(unix_ms_of("2018-02-13T23:08:32Z"), Some(1_518_563_312_000));
        assert_eq!(stamp(u64::MAX), "99991231-235959.999");
        assert_eq!(unix_ms_of("yesterday"), None);
    }

    #[test]
    fn a_file_is_whole_or_its_place_is_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        for durable in [Durable::Synced, Durable::Moved] {
            write_whole(&path, b"one", durable).expect("written");
            write_whole(&path, b"two", durable).expect("written over");
        }
        assert_eq!(fs::read(&path).expect("there"), b"two");
        let nowhere = folder.path().join("missing/a.json");
        let error = write_whole(&nowhere, b"x", Durable::Moved).expect_err("no folder");
        assert!(error.contains("missing/a.json"), "{error}");
        let left: Vec<_> = fs::read_dir(folder.path()).expect("listed").collect();
        assert_eq!(left.len(), 1, "nothing is left beside it");
    }
}
