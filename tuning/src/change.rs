//! Changing what a finding lacks, and changing it back.
//!
//! A [`Change`] is one file of the kernel, the value it has and the value it should have. [`apply`]
//! writes it and puts what was into a [`Record`] on disk first, so that [`undo`] restores exactly that,
//! also after a restart of the host's operator. Invariants: nothing is written that is not in the
//! record; a value that somebody has changed since is left alone and said; a change that is there
//! already is not recorded again, so applying twice and undoing once restores the first state.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// One setting of the kernel, by the file that holds it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The finding that it mends.
    pub id: String,
    /// The file, below `/proc/sys` or `/sys`.
    pub file: String,
    /// What it holds.
    pub from: String,
    /// What it should hold.
    pub to: String,
}

impl Change {
    /// The command that writes `value`, run as root.
    #[must_use]
    pub fn command(&self, value: &str) -> String {
        match self.file.strip_prefix("/proc/sys/") {
            Some(key) => format!("sysctl -w {}={value}", key.replace('/', ".")),
            None => format!("echo {value} > {}", self.file),
        }
    }
}

/// What [`apply`] has changed and [`undo`] has not changed back.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// In the order in which they were made.
    pub changes: Vec<Change>,
}

/// What became of one change.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Outcome {
    /// The change.
    pub change: Change,
    /// Whether it was made, or would be.
    pub done: bool,
    /// Why not; empty if it was.
    pub why: String,
}

impl Record {
    /// Reads the record; an absent one is empty.
    ///
    /// # Errors
    /// The file and what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| format!("{}: no record of changes: {error}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Writes the record beside its place and moves it there; an empty one is removed.
    fn write(&self, path: &Path) -> Result<(), String> {
        let at = |error: io::Error| format!("{}: {error}", path.display());
        if self.changes.is_empty() {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(error)),
                _ => Ok(()),
            };
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(at)?;
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let json = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        fs::write(&beside, json)
            .and_then(|()| fs::File::open(&beside)?.sync_all())
            .and_then(|()| fs::rename(&beside, path))
            .map_err(at)
    }
}

/// Makes `changes` below `root` (`/` for this host) and keeps what was in the record at `path`.
///
/// # Errors
/// The record cannot be read or written; then nothing more is changed.
pub fn apply(root: &Path, path: &Path, changes: Vec<Change>) -> Result<Vec<Outcome>, String> {
    let mut record = Record::read(path)?;
    let mut outcomes = Vec::with_capacity(changes.len());
    for change in changes {
        let before = record.clone();
        match record
            .changes
            .iter_mut()
            .find(|made| made.file == change.file)
        {
            // What was before the first change is what goes back.
            Some(made) => made.to.clone_from(&change.to),
            None => record.changes.push(change.clone()),
        }
        // Before the change: what was is known even if this process ends in the next instant.
        record.write(path)?;
        let written = write_value(root, &change.file, &change.to);
        if written.is_err() {
            record = before;
            record.write(path)?;
        }
        outcomes.push(outcome(change, written));
    }
    Ok(outcomes)
}

/// Changes everything in the record at `path` back, the last change first.
///
/// # Errors
/// The record cannot be read or written.
pub fn undo(root: &Path, path: &Path) -> Result<Vec<Outcome>, String> {
    let mut record = Record::read(path)?;
    let mut left = Vec::new();
    let mut outcomes = Vec::with_capacity(record.changes.len());
    for change in record.changes.drain(..).rev() {
        let restored = match read_value(root, &change.file) {
            Ok(now) if now == change.to => write_value(root, &change.file, &change.from),
            Ok(now) if now == change.from => Ok(()),
            Ok(now) => Err(format!(
                "somebody has set it to {now} since, so it is left alone"
            )),
            Err(why) => Err(why),
        };
        if restored.is_err() {
            left.insert(0, change.clone());
        }
        outcomes.push(outcome(change, restored));
    }
    Record { changes: left }.write(path)?;
    Ok(outcomes)
}

fn outcome(change: Change, done: Result<(), String>) -> Outcome {
    Outcome {
        change,
        done: done.is_ok(),
        why: done.err().unwrap_or_default(),
    }
}

/// The file below `root`.
fn below(root: &Path, file: &str) -> PathBuf {
    root.join(file.trim_start_matches('/'))
}

/// What the file holds now: its text, or of a list of choices the one in brackets.
fn read_value(root: &Path, file: &str) -> Result<String, String> {
    let path = below(root, file);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(value_of(&text).to_owned())
}

/// Writes a value and looks whether the kernel has taken it.
fn write_value(root: &Path, file: &str, value: &str) -> Result<(), String> {
    let path = below(root, file);
    fs::write(&path, value).map_err(|error| {
        let help = match error.kind() {
            io::ErrorKind::PermissionDenied => "; run it as root",
            _ => "",
        };
        format!("{}: {error}{help}", path.display())
    })?;
    let now = read_value(root, file)?;
    if now == value {
        return Ok(());
    }
    Err(format!("{}: the kernel keeps {now}", path.display()))
}

/// The value in the text of a file: all of it, or the word in brackets of a list of choices.
pub(crate) fn value_of(text: &str) -> &str {
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(choice, _)| choice);
    chosen.unwrap_or_else(|| text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/proc/sys/net/core/rmem_max";

    fn host() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("proc/sys/net/core");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("rmem_max"), "212992\n").expect("a file");
        let record = root.path().join("var/record.json");
        (root, record)
    }

    fn change(to: &str) -> Change {
        Change {
            id: "rmem_max".to_owned(),
            file: FILE.to_owned(),
            from: "212992".to_owned(),
            to: to.to_owned(),
        }
    }

    #[test]
    fn what_was_changed_twice_goes_back_to_what_it_was() {
        let (root, record) = host();
        for to in ["4194304", "8388608"] {
            let made = apply(root.path(), &record, vec![change(to)]).expect("a record");
            assert!(made.iter().all(|outcome| outcome.done), "{made:?}");
            assert_eq!(read_value(root.path(), FILE).as_deref(), Ok(to));
        }
        fs::write(below(root.path(), FILE), "1").expect("a file");
        let back = undo(root.path(), &record).expect("a record");
        assert!(
            !back[0].done && back[0].why.contains("set it to 1"),
            "{back:?}"
        );
        fs::write(below(root.path(), FILE), "8388608").expect("a file");
        let back = undo(root.path(), &record).expect("a record");
        assert!(back[0].done, "{back:?}");
        assert_eq!(read_value(root.path(), FILE).as_deref(), Ok("212992"));
        assert!(!record.exists(), "nothing is left to undo");
        assert!(undo(root.path(), &record).expect("no record").is_empty());
    }

    #[test]
    fn a_change_that_fails_is_not_recorded() {
        let (root, record) = host();
        let absent = Change {
            file: "/sys/kernel/absent/switch".to_owned(),
            ..change("1")
        };
        let made = apply(root.path(), &record, vec![absent]).expect("a record");
        assert!(
            !made[0].done && made[0].why.contains("absent/switch"),
            "{made:?}"
        );
        assert!(!record.exists());
        fs::create_dir_all(record.parent().expect("a folder")).expect("a folder");
        fs::write(&record, "[").expect("a file");
        let error = apply(root.path(), &record, vec![change("1")]).expect_err("no record");
        assert!(error.contains("no record of changes"), "{error}");
        assert_eq!(
            read_value(root.path(), FILE).as_deref(),
            Ok("212992"),
            "untouched"
        );
    }

    #[test]
    fn a_command_is_what_an_operator_would_type() {
        assert_eq!(change("1").command("7"), "sysctl -w net.core.rmem_max=7");
        let pages = Change {
            file: "/sys/kernel/mm/transparent_hugepage/enabled".to_owned(),
            ..change("madvise")
        };
        let expected = "echo never > /sys/kernel/mm/transparent_hugepage/enabled";
        assert_eq!(pages.command("never"), expected);
        assert_eq!(value_of("always [madvise] never\n"), "madvise");
    }
}
