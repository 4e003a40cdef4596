//! The registry's key, kept from the first time it is seen.
//!
//! A grant is only as good as the key it is checked against. An operator may name the key; else the
//! first one seen is kept in `registry.key` in the state directory, and another one later is
//! refused until a person removes that file.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use ramjet_proto::identity::PublicKey;

const FILE: &str = "registry.key";

/// The key that grants must be signed with.
pub(crate) struct Pin {
    key: Option<PublicKey>,
    /// Where a first key is kept; `None` if the operator named it or the node is throw-away.
    file: Option<PathBuf>,
}

impl Pin {
    /// The operator's key, else the one kept in `state`.
    ///
    /// # Errors
    /// The file and what is wrong with it.
    pub(crate) fn load(named: Option<PublicKey>, state: Option<&PathBuf>) -> Result<Pin, String> {
        let Some(state) = state.filter(|_| named.is_none()) else {
            return Ok(Pin {
                key: named,
                file: None,
            });
        };
        let file = state.join(FILE);
        let key = match fs::read_to_string(&file) {
            Ok(text) => Some(PublicKey::from_base64(text.trim()).ok_or_else(|| {
                format!(
                    "{}: not the base64 of a 32-byte key; remove it to trust the registry anew",
                    file.display()
                )
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        Ok(Pin {
            key,
            file: Some(file),
        })
    }

    /// The key, once it is known.
    pub(crate) fn key(&self) -> Option<PublicKey> {
        self.key
    }

    /// Compares the key that a registry shows, keeping the first.
    ///
    /// # Errors
    /// Both keys and what to do, or why the first could not be kept.
    pub(crate) fn meet(&mut self, shown: PublicKey) -> Result<(), String> {
        match self.key {
            Some(key) if key == shown => Ok(()),
            Some(key) => Err(match &self.file {
                Some(file) => format!(
                    "its key is {shown}, not {key} as kept in {}; remove that file if the \
                     registry was set up anew",
                    file.display()
                ),
                None => format!("its key is {shown}, not {key}; name the right key or registry"),
            }),
            None => {
                if let Some(file) = &self.file {
                    keep(file, shown).map_err(|error| format!("{}: {error}", file.display()))?;
                }
                self.key = Some(shown);
                Ok(())
            }
        }
    }
}

/// Writes the file whole or not at all.
fn keep(file: &PathBuf, key: PublicKey) -> io::Result<()> {
    let partial = file.with_extension("key.new");
    let mut writer = fs::File::create(&partial)?;
    writeln!(writer, "{key}")?;
    writer.sync_all()?;
    fs::rename(partial, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_is_kept_and_another_is_refused() {
        let state = tempfile::tempdir().expect("a directory");
        let path = state.path().to_path_buf();
        let (first, second) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let mut pin = Pin::load(None, Some(&path)).expect("nothing kept yet");
        assert_eq!(pin.key(), None);
        assert_eq!(pin.meet(first), Ok(()));
        let mut again = Pin::load(None, Some(&path)).expect("kept");
        assert_eq!(again.key(), Some(first));
        let refusal = again.meet(second).expect_err("another key");
        assert!(refusal.contains(FILE), "{refusal}");
        let mut named = Pin::load(Some(second), Some(&path)).expect("the operator's word");
        assert_eq!(named.meet(second), Ok(()));
        fs::write(path.join(FILE), "rubbish").expect("writable");
        assert!(Pin::load(None, Some(&path)).is_err());
    }
}
