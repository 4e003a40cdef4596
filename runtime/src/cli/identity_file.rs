//! The file that an identity lives in: mode 0600, created whole or not at all.
//!
//! Invariants: a file that others could read is never used, and never changed either: its owner is
//! told the command that mends it. Two processes that create the same file at once end up with the
//! same identity: the file appears by a link, which only one of them can make.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ramjet_proto::identity::Identity;

use super::exit::Failure;

/// Name of the identity in a state folder.
pub const IDENTITY_FILE: &str = "identity.json";
/// Name of the identity among the credentials that systemd passes.
pub const IDENTITY_CREDENTIAL: &str = "identity";
/// Longest identity file that is read, in bytes; one of ours has about 190.
const IDENTITY_LEN_MAX: u64 = 4_096;

/// Where an identity came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An existing file.
    File(PathBuf),
    /// A file that was created for it.
    Created(PathBuf),
    /// A credential of systemd.
    Credential(PathBuf),
    /// Nowhere: it is forgotten with the process.
    ThrowAway,
}

/// An identity that is forgotten with the process.
///
/// # Errors
/// If the kernel has no entropy.
pub fn throw_away() -> Result<Identity, Failure> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed)
        .map_err(|_| Failure::environment("identity: the kernel gave no random bytes"))?;
    Ok(Identity::from_seed(seed))
}

/// The identity of a node: the file that was named, else the credential `identity` in
/// `credentials` (systemd's `$CREDENTIALS_DIRECTORY`), else `identity.json` in `state`. Files are
/// created if they are missing, credentials are not.
///
/// # Errors
/// If it cannot be read or created, others could read it, or it is no identity.
pub fn of_node(
    named: Option<&Path>,
    credentials: Option<&Path>,
    state: &Path,
) -> Result<(Identity, Source), Failure> {
    if let Some(path) = named {
        return load_or_create(path);
    }
    if let Some(path) = credentials.map(|folder| folder.join(IDENTITY_CREDENTIAL)) {
        // systemd mounts credentials for this service alone and says so by an access list, which
        // shows as group permissions: the mode means nothing here.
        match read(&path, Reader::AnyMode) {
            Ok(identity) => return Ok((identity, Source::Credential(path))),
            Err(ReadError::Missing) => {}
            Err(ReadError::Refused(failure)) => return Err(failure),
        }
    }
    create_folder(state)?;
    load_or_create(&state.join(IDENTITY_FILE))
}

/// The identity in `path`, which is created if it is missing.
///
/// # Errors
/// As [`of_node`].
pub fn load_or_create(path: &Path) -> Result<(Identity, Source), Failure> {
    match read(path, Reader::OwnerOnly) {
        Ok(identity) => return Ok((identity, Source::File(path.to_owned()))),
        Err(ReadError::Missing) => {}
        Err(ReadError::Refused(failure)) => return Err(failure),
    }
    let identity = throw_away()?;
    match create(path, &identity) {
        Ok(()) => Ok((identity, Source::Created(path.to_owned()))),
        // Another process was first; its identity is ours too.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            match read(path, Reader::OwnerOnly) {
                Ok(identity) => Ok((identity, Source::File(path.to_owned()))),
                Err(ReadError::Refused(failure)) => Err(failure),
                Err(ReadError::Missing) => Err(Failure::environment(format!(
                    "identity: {} came and went while it was read; start again",
                    path.display()
                ))),
            }
        }
        Err(error) => Err(Failure::environment(format!(
            "identity: {} could not be created: {error}; name a folder that this user may write \
             to with --state or --identity",
            path.display()
        ))),
    }
}

/// Creates a state folder and those above it; new ones are for their owner alone (0700).
///
/// # Errors
/// If it cannot be created.
pub fn create_folder(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| {
            Failure::environment(format!(
                "state: the folder {} could not be created: {error}; name another one with --state",
                folder.display()
            ))
        })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    OwnerOnly,
    AnyMode,
}

enum ReadError {
    Missing,
    Refused(Failure),
}

fn read(path: &Path, reader: Reader) -> Result<Identity, ReadError> {
    let shown = path.display();
    let refuse = |message: String| Err(ReadError::Refused(Failure::usage(message)));
    let unreadable = |error: std::io::Error| {
        ReadError::Refused(Failure::environment(format!(
            "identity: {shown} could not be read: {error}"
        )))
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(ReadError::Missing),
        Err(error) => return Err(unreadable(error)),
    };
    // Asked of the open file, so that it cannot be swapped in between.
    let metadata = file.metadata().map_err(unreadable)?;
    let mode = metadata.permissions().mode() & 0o777;
    if !metadata.is_file() {
        return refuse(format!("identity: {shown} is no regular file"));
    }
    if reader == Reader::OwnerOnly && mode & 0o077 != 0 {
        return refuse(format!(
            "identity: {shown} has mode {mode:04o}, so others could read the private key; run: \
             chmod 600 {shown}"
        ));
    }
    if metadata.len() > IDENTITY_LEN_MAX {
        return refuse(format!(
            "identity: {shown} has {} bytes, at most {IDENTITY_LEN_MAX}; it is no identity file",
            metadata.len()
        ));
    }
    let mut text = String::new();
    file.take(IDENTITY_LEN_MAX)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    Identity::from_json(&text).or_else(|fault| {
        refuse(format!(
            "identity: {shown}: {fault}; move it away for a new identity, whose polo starts at 0"
        ))
    })
}

/// Writes beside `path`, flushes, and links into place: `AlreadyExists` if somebody was first.
fn create(path: &Path, identity: &Identity) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut suffix = [0; 8];
    aws_lc_rs::rand::fill(&mut suffix).map_err(|_| std::io::Error::other("no random bytes"))?;
    let beside = folder.join(format!(".identity-{:016x}", u64::from_be_bytes(suffix)));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(identity.to_json().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::hard_link(&beside, path)?;
        File::open(folder)?.sync_all()
    })();
    // Gone in every case; what matters is whether the link was made.
    let _ = std::fs::remove_file(&beside);
    written
}

#[cfg(test)]
mod tests {
    use super::super::exit::Exit;
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path)
            .expect("exists")
            .permissions()
            .mode()
            & 0o777
    }

    #[test]
    fn an_identity_is_created_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let state = folder.path().join("a/b");
        let (first, source) = of_node(None, None, &state).expect("created");
        let path = state.join(IDENTITY_FILE);
        assert_eq!(source, Source::Created(path.clone()));
        assert_eq!((mode(&path), mode(&state)), (0o600, 0o700));
        let (second, source) = of_node(None, None, &state).expect("read");
        assert_eq!(source, Source::File(path));
        assert_eq!(first.public(), second.public());
        let files = std::fs::read_dir(&state).expect("folder").count();
        assert_eq!(files, 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("id.json");
        load_or_create(&path).expect("created");
        for open in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(open)).expect("mode");
            let failure = load_or_create(&path).expect_err("too open");
            assert_eq!(failure.exit, Exit::Usage);
            assert!(
                failure
                    .message
                    .ends_with(&format!("run: chmod 600 {}", path.display())),
                "{}",
                failure.message
            );
            assert_eq!(mode(&path), open, "left as it was");
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).expect("mode");
        load_or_create(&path).expect("read-only is fine");
    }

    #[test]
    fn a_named_file_wins_over_the_credential_over_the_state_folder() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let named = folder.path().join("named.json");
        let credentials = folder.path().join("credentials");
        std::fs::create_dir(&credentials).expect("folder");
        let state = folder.path().join("state");
        // Without the credential the state folder serves.
        let (of_state, _) = of_node(None, Some(&credentials), &state).expect("created");
        let credential = credentials.join(IDENTITY_CREDENTIAL);
        let other = throw_away().expect("entropy");
        std::fs::write(&credential, other.to_json()).expect("written");
        std::fs::set_permissions(&credential, PermissionsExt::from_mode(0o440)).expect("mode");
        let (found, source) = of_node(None, Some(&credentials), &state).expect("credential");
        assert_eq!(source, Source::Credential(credential));
        assert_eq!(found.public(), other.public());
        assert_ne!(found.public(), of_state.public());
        let (found, source) = of_node(Some(&named), Some(&credentials), &state).expect("named");
        assert_eq!(source, Source::Created(named));
        assert_ne!(found.public(), other.public());
    }

    #[test]
    fn what_is_no_identity_is_refused_and_kept() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("id.json");
        let table = [
            ("{}", "not a JSON object with"),
            (&"x".repeat(5_000), "has 5000 bytes"),
        ];
        for (text, expected) in table {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("mode");
            let failure = load_or_create(&path).expect_err("no identity");
            assert!(failure.message.contains(expected), "{}", failure.message);
            assert_eq!(std::fs::read_to_string(&path).expect("still there"), text);
        }
    }

    #[test]
    fn many_that_create_at_once_get_the_same_identity() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("id.json");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| load_or_create(&path).expect("created").0.public()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }
}
