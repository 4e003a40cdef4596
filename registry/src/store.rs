//! The log on disk: append a batch, snapshot, recover.
//!
//! One redb file holds three tables: `log` (position → entry), `snapshot` (position → state; the
//! newest only) and `meta` (the registry's seed, the format). [`Store::append`] returns after the
//! batch is durable, so whoever answers after it never answers for what is not on disk. A snapshot
//! is written in the transaction of the batch that makes it due, and empties the log.
//!
//! Called by the log thread alone.

use core::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ramjet_proto::identity::Identity;
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
};

use crate::command::Entry;
use crate::config::RegistryError;
use crate::state::State;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const FORMAT: &[u8] = b"ramjet registry 1";
/// The store's file in the state directory.
pub const FILE_NAME: &str = "registry.redb";

/// What the store is on.
#[derive(Clone)]
pub enum Medium {
    /// Nothing: it is gone with the process.
    Memory,
    /// A directory on disk.
    Directory(PathBuf),
    /// Something a test controls; called for each opening.
    Custom(Arc<dyn Fn() -> Box<dyn StorageBackend> + Send + Sync>),
}

impl fmt::Debug for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Medium {
    fn name(&self) -> String {
        match self {
            Medium::Memory => "memory".to_owned(),
            Medium::Directory(directory) => directory.join(FILE_NAME).display().to_string(),
            Medium::Custom(_) => "custom".to_owned(),
        }
    }

    fn fault(&self, error: impl fmt::Display) -> RegistryError {
        RegistryError::Store {
            path: self.name(),
            error: error.to_string(),
        }
    }
}

/// An open log.
#[derive(Debug)]
pub struct Store {
    medium: Medium,
    /// None between a failed commit and a successful recovery.
    database: Option<Database>,
    snapshot_position: u64,
    snapshot_rows: u64,
    snapshot_every: u64,
}

/// What a store holds when it is opened.
#[derive(Debug)]
pub struct Recovered {
    /// Snapshot and log, replayed.
    pub state: State,
    /// The registry's identity, the same since the store was made.
    pub identity: Identity,
}

impl Store {
    /// Opens or makes a store; `fresh_seed` is kept if it has none yet.
    ///
    /// # Errors
    /// [`RegistryError::StateLocked`] and [`RegistryError::Store`].
    pub fn open(
        medium: Medium,
        snapshot_every: u64,
        fresh_seed: [u8; 32],
    ) -> Result<(Self, Recovered), RegistryError> {
        let mut store = Store {
            medium,
            database: None,
            snapshot_position: 0,
            snapshot_rows: 0,
            snapshot_every,
        };
        store.connect()?;
        let seed = store
            .prepare(fresh_seed)
            .map_err(|error| store.medium.fault(error))?;
        let state = store.read()?;
        Ok((
            store,
            Recovered {
                state,
                identity: Identity::from_seed(seed),
            },
        ))
    }

    fn connect(&mut self) -> Result<(), RegistryError> {
        let database = match &self.medium {
            Medium::Memory => Database::builder().create_with_backend(InMemoryBackend::new()),
            Medium::Custom(backend) => Database::builder().create_with_backend(Backend(backend())),
            Medium::Directory(directory) => {
                make_private(directory).map_err(|error| self.medium.fault(error))?;
                Database::create(directory.join(FILE_NAME))
            }
        };
        match (database, &self.medium) {
            (Ok(database), _) => self.database = Some(database),
            (Err(DatabaseError::DatabaseAlreadyOpen), Medium::Directory(directory)) => {
                return Err(RegistryError::StateLocked {
                    path: directory.join(FILE_NAME),
                });
            }
            (Err(error), medium) => return Err(medium.fault(error)),
        }
        Ok(())
    }

    fn database(&self) -> Result<&Database, redb::Error> {
        self.database.as_ref().ok_or(redb::Error::PreviousIo)
    }

    /// Makes the tables and the seed where they are missing, and gives the seed.
    fn prepare(&mut self, fresh_seed: [u8; 32]) -> Result<[u8; 32], redb::Error> {
        let transaction = self.database()?.begin_write()?;
        let seed;
        {
            transaction.open_table(LOG)?;
            transaction.open_table(SNAPSHOT)?;
            let mut meta = transaction.open_table(META)?;
            let format = meta.get("format")?.map(|format| format.value().to_vec());
            match format {
                Some(format) if format != FORMAT => {
                    let format = String::from_utf8_lossy(&format).into_owned();
                    return Err(redb::Error::Corrupted(format!("its format is {format:?}")));
                }
                Some(_) => {}
                None => {
                    meta.insert("format", FORMAT)?;
                }
            }
            let kept = meta.get("seed")?.map(|seed| seed.value().to_vec());
            seed = match kept {
                Some(kept) => kept
                    .try_into()
                    .map_err(|_| redb::Error::Corrupted("the seed is not 32 bytes".to_owned()))?,
                None => {
                    meta.insert("seed", &fresh_seed[..])?;
                    fresh_seed
                }
            };
        }
        transaction.commit()?;
        Ok(seed)
    }

    /// Reads snapshot and log.
    fn read(&mut self) -> Result<State, RegistryError> {
        let (snapshot, entries) = self.tables().map_err(|error| self.medium.fault(error))?;
        let mut state = State::default();
        if let Some((position, bytes)) = snapshot {
            state = State::from_bytes(&bytes)
                .map_err(|error| self.medium.fault(format!("snapshot {position}: {error}")))?;
            self.snapshot_position = position;
            self.snapshot_rows = state.rows() as u64;
        }
        for (position, bytes) in entries {
            let entry: Entry = serde_json::from_slice(&bytes)
                .map_err(|error| self.medium.fault(format!("log entry {position}: {error}")))?;
            // Contradictions are logged, and refused again.
            let _ = state.apply(entry.at_ms, &entry.command);
            if state.position() != position {
                return Err(self.medium.fault(format!(
                    "log entry {position} does not follow position {}",
                    state.position()
                )));
            }
        }
        Ok(state)
    }

    #[expect(
        clippy::type_complexity,
        reason = "two tables as they are, used once above"
    )]
    fn tables(&self) -> Result<(Option<(u64, Vec<u8>)>, Vec<(u64, Vec<u8>)>), redb::Error> {
        let transaction = self.database()?.begin_read()?;
        let snapshot = transaction
            .open_table(SNAPSHOT)?
            .last()?
            .map(|(position, bytes)| (position.value(), bytes.value().to_vec()));
        let mut entries = Vec::new();
        for row in transaction.open_table(LOG)?.iter()? {
            let (position, bytes) = row?;
            entries.push((position.value(), bytes.value().to_vec()));
        }
        Ok((snapshot, entries))
    }

    /// Appends a batch whose last entry brought the state to `state`, durably. True if a snapshot
    /// was taken with it.
    ///
    /// # Errors
    /// The store's word: nothing of the batch counts, and [`Self::recover`] comes next.
    pub fn append(
        &mut self,
        entries: &[(u64, Vec<u8>)],
        state: &State,
    ) -> Result<bool, redb::Error> {
        let pace = self.snapshot_every.max(2 * self.snapshot_rows);
        let is_due = state.position() - self.snapshot_position >= pace;
        let transaction = self.database()?.begin_write()?;
        if is_due {
            transaction.delete_table(LOG)?;
            transaction.open_table(LOG)?;
            let mut snapshots = transaction.open_table(SNAPSHOT)?;
            snapshots.retain(|_, _| false)?;
            snapshots.insert(state.position(), &state.to_bytes()[..])?;
        } else {
            let mut log = transaction.open_table(LOG)?;
            for (position, bytes) in entries {
                log.insert(position, &bytes[..])?;
            }
        }
        transaction.commit()?;
        if is_due {
            self.snapshot_position = state.position();
            self.snapshot_rows = state.rows() as u64;
        }
        Ok(is_due)
    }

    /// After a failed [`Self::append`]: opens the store again and reads the last durable state. It
    /// also writes, so that its success means that the store can be written.
    ///
    /// # Errors
    /// As [`Self::open`]. A store in memory cannot come back.
    pub fn recover(&mut self) -> Result<State, RegistryError> {
        // The lock must be let go before the file can be opened again.
        self.database = None;
        if matches!(self.medium, Medium::Memory) {
            return Err(self
                .medium
                .fault("a store in memory does not outlive a failure"));
        }
        self.connect()?;
        let probe = |database: &Database| -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            transaction.open_table(META)?.insert("format", FORMAT)?;
            transaction.commit()?;
            Ok(())
        };
        let probed = self.database().and_then(probe);
        if let Err(error) = probed {
            self.database = None;
            return Err(self.medium.fault(error));
        }
        self.read()
    }
}

/// A boxed backend, since the store's builder wants a sized one.
#[derive(Debug)]
struct Backend(Box<dyn StorageBackend>);

impl StorageBackend for Backend {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> std::io::Result<()> {
        self.0.close()
    }
}

/// Makes the directory for this user alone: the store holds the registry's seed.
fn make_private(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let file = directory.join(FILE_NAME);
    let mut options = std::fs::OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    options.open(file).map(drop)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use core::sync::atomic::{AtomicBool, Ordering};
    use std::io;
    use std::sync::Mutex;

    use crate::command::{Command, Registration};
    use ramjet_proto::identity::PublicKey;
    use ramjet_proto::ids::NodeId;

    /// A disk that outlives its openings and can be full.
    #[derive(Debug, Default)]
    pub(crate) struct Disk {
        bytes: Mutex<Vec<u8>>,
        full: AtomicBool,
    }

    impl Disk {
        pub(crate) fn set_full(&self, full: bool) {
            self.full.store(full, Ordering::SeqCst);
        }

        fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
            self.bytes.lock().expect("no panic while it is held")
        }

        fn refuse_if_full(&self) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            Ok(())
        }

        pub(crate) fn medium(self: &Arc<Self>) -> Medium {
            let disk = Arc::clone(self);
            Medium::Custom(Arc::new(move || Box::new(Opened(Arc::clone(&disk)))))
        }
    }

    #[derive(Debug)]
    struct Opened(Arc<Disk>);

    impl StorageBackend for Opened {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.bytes().len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let start = usize::try_from(offset).expect("64 bits");
            out.copy_from_slice(&self.0.bytes()[start..start + out.len()]);
            Ok(())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.refuse_if_full()?;
            self.0
                .bytes()
                .resize(usize::try_from(len).expect("64 bits"), 0);
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            self.0.refuse_if_full()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.refuse_if_full()?;
            let start = usize::try_from(offset).expect("64 bits");
            self.0.bytes()[start..start + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    fn command(seed: u8) -> Command {
        Command::Register(Registration {
            key: PublicKey([seed; 32]),
            signed: true,
            endpoint: "127.0.0.1:4000".to_owned(),
            owner: String::new(),
            hostname: String::new(),
            version: String::new(),
            lan_addrs: Vec::new(),
            relay_only: false,
        })
    }

    fn append(store: &mut Store, state: &mut State, seed: u8) -> Result<bool, redb::Error> {
        let command = command(seed);
        state
            .apply(u64::from(seed), &command)
            .expect("a new key registers");
        let entry = Entry {
            at_ms: u64::from(seed),
            command,
        };
        let bytes = serde_json::to_vec(&entry).expect("serializes");
        store.append(&[(state.position(), bytes)], state)
    }

    #[test]
    fn snapshot_and_log_come_back_as_the_same_bytes_and_the_same_identity() {
        let disk = Arc::new(Disk::default());
        let (mut store, recovered) = Store::open(disk.medium(), 5, [1; 32]).expect("a new store");
        let mut state = recovered.state;
        let snapshots: Vec<bool> = (1..=18)
            .map(|seed| append(&mut store, &mut state, seed).expect("room"))
            .collect();
        assert_eq!(
            snapshots.iter().filter(|&&taken| taken).count(),
            2,
            "{snapshots:?}"
        );
        drop(store);
        let (_, again) = Store::open(disk.medium(), 5, [2; 32]).expect("the same store");
        assert_eq!(again.state.to_bytes(), state.to_bytes());
        assert_eq!(again.state, state, "the indices are rebuilt too");
        assert_eq!(again.identity.public(), recovered.identity.public());
    }

    #[test]
    fn a_full_disk_takes_nothing_and_gives_back_the_last_durable_state() {
        let disk = Arc::new(Disk::default());
        let (mut store, recovered) = Store::open(disk.medium(), 1_000, [1; 32]).expect("new");
        let mut state = recovered.state;
        append(&mut store, &mut state, 1).expect("room");
        let durable = state.to_bytes();
        disk.set_full(true);
        append(&mut store, &mut state, 2).expect_err("the disk is full");
        store.recover().expect_err("it is still full");
        disk.set_full(false);
        state = store.recover().expect("there is room again");
        assert_eq!(state.to_bytes(), durable);
        assert!(state.directory().node(NodeId(2)).is_err());
        append(&mut store, &mut state, 2).expect("room");
        drop(store);
        let (_, again) = Store::open(disk.medium(), 1_000, [3; 32]).expect("the same store");
        assert_eq!(again.state.to_bytes(), state.to_bytes());
    }

    #[test]
    fn a_state_directory_has_one_holder() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let medium = Medium::Directory(directory.path().join("state"));
        let held = Store::open(medium.clone(), 10, [1; 32]).expect("new");
        let error = Store::open(medium.clone(), 10, [1; 32]).expect_err("held");
        assert!(
            matches!(error, RegistryError::StateLocked { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("registry.redb"), "{error}");
        drop(held);
        Store::open(medium, 10, [1; 32]).expect("free again");
    }
}
