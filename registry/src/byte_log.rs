//! Every byte that the registry receives and sends, appended to one file: the evidence for the
//! promise that no payload of a task ever reaches it.
//!
//! Bytes are appended in the order in which they were read or written, without framing of their
//! own, so that a search for a payload sees it even where a read cut it in two: reads and writes of
//! one connection that follow each other undisturbed lie side by side.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::config::RegistryError;
use crate::fault::{Count, Counters};

/// The open file.
#[derive(Debug)]
pub struct ByteLog(Mutex<File>);

impl ByteLog {
    /// Opens the file for appending, and makes it if it is absent.
    ///
    /// # Errors
    /// [`RegistryError::ByteLog`].
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        File::options()
            .append(true)
            .create(true)
            .open(path)
            .map(|file| ByteLog(Mutex::new(file)))
            .map_err(|error| RegistryError::ByteLog {
                path: path.to_owned(),
                error,
            })
    }

    /// Appends bytes; a failure is counted, because evidence with a hole is none.
    pub fn append(&self, bytes: &[u8], counters: &Counters) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(bytes) {
            counters.add(Count::ByteLogFailed);
            tracing::error!(%error, "the byte log could not be written");
        }
    }
}
