//! What others sent and this node keeps: messages in `inbox`, files in `received`.
//!
//! ```text
//!  inbox/<KIND>-YYYYMMDD-HHMMSS.mmm-<6 digits>.json
//!  received/<base>-YYYYMMDD-HHMMSS.mmm-<6 digits><extension>
//!  received/.partial/<node>-<transfer id>
//! ```
//!
//! The layout is Pilot's, below the node's state directory. Both folders have a quota; what would go
//! beyond it is refused by name, and nothing that is kept makes room. Others may delete files here
//! whenever they like: a quota that seems full is counted anew. Every call blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ramjet_proto::addr::Address;
use ramjet_proto::agent::exchange::{Message, MessageKind, Tags};
use ramjet_proto::agent::transfer::{Init, TransferId};
use ramjet_proto::ids::NodeId;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use super::files::{Durable, make_folder, named, rfc3339, stamp, write_at, write_whole};

/// How much a folder may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) bytes_max: u64,
    pub(super) files_max: u64,
}

/// Messages: what Pilot's daemons keep.
pub(super) const INBOX_QUOTA: Quota = Quota {
    bytes_max: 256 << 20,
    files_max: 10_000,
};
/// Files.
pub(super) const RECEIVED_QUOTA: Quota = Quota {
    bytes_max: 2 << 30,
    files_max: 10_000,
};

/// A message that arrived.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) from: NodeId,
    pub(super) message: Message,
    pub(super) tags: Tags,
    pub(super) received_at_ms: u64,
}

/// The folders, or nothing if the node keeps no state.
#[derive(Debug)]
pub(super) struct Inbox {
    folders: Option<Folders>,
}

#[derive(Debug)]
struct Folders {
    inbox: Shelf,
    received: Shelf,
}

/// A folder with a quota.
#[derive(Debug)]
struct Shelf {
    path: PathBuf,
    quota: Quota,
    usage: Mutex<Usage>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    bytes: u64,
    files: u64,
    /// Tells names of the same millisecond apart.
    next: u32,
}

/// Where files are that are not whole, below `received`.
const PARTIALS: &str = ".partial";
/// Files that are not whole.
const PARTIALS_MAX: u64 = 64;
/// For how long their sender may come back.
const PARTIAL_AGE_MAX: Duration = Duration::from_secs(86_400);

const NO_STATE: &str = "this node keeps nothing: it runs without a state directory";

impl Inbox {
    /// Opens the folders below `state`, making them if need be.
    ///
    /// # Errors
    /// The path and what the system says.
    pub(super) fn open(state: Option<&Path>) -> Result<Self, String> {
        let Some(state) = state else {
            return Ok(Inbox { folders: None });
        };
        let folders = Folders {
            inbox: Shelf::open(state.join("inbox"), INBOX_QUOTA)?,
            received: Shelf::open(state.join("received"), RECEIVED_QUOTA)?,
        };
        let partials = folders.received.path.join(PARTIALS);
        make_folder(&partials)?;
        drop_stale(&partials);
        Ok(Inbox {
            folders: Some(folders),
        })
    }

    fn folders(&self) -> Result<&Folders, String> {
        self.folders.as_ref().ok_or_else(|| NO_STATE.to_owned())
    }

    /// Keeps a message or a file: where.
    ///
    /// # Errors
    /// The quota, or what the system says.
    pub(super) fn keep(&self, letter: &Letter) -> Result<PathBuf, String> {
        self.keep_in(letter, None)
    }

    /// As [`Self::keep`], one after the other.
    pub(super) fn keep_all(&self, letters: &[Letter]) -> Vec<Result<PathBuf, String>> {
        // Opened for each batch: somebody may have put another folder there meanwhile.
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let open = |folders: &Folders| rustix::fs::open(&folders.inbox.path, flags, Mode::empty());
        let inbox = self.folders.as_ref().and_then(|folders| open(folders).ok());
        let inbox = inbox.as_ref().map(AsFd::as_fd);
        letters
            .iter()
            .map(|letter| self.keep_in(letter, inbox))
            .collect()
    }

    /// Keeps a letter; a message in `inbox`, if that is open.
    fn keep_in(&self, letter: &Letter, inbox: Option<BorrowedFd<'_>>) -> Result<PathBuf, String> {
        let folders = self.folders()?;
        let message = &letter.message;
        if message.kind == MessageKind::File {
            let path = folders.received.place(
                message.content.len(),
                |stamp, number| file_name(&message.name, stamp, number),
                letter.received_at_ms,
            )?;
            return folders.received.write(path, &message.content);
        }
        let text = letter_json(letter).to_string();
        let path = folders.inbox.place(
            text.len(),
            |stamp, number| format!("{}-{stamp}-{number:06}.json", message.kind.name()),
            letter.received_at_ms,
        )?;
        match inbox.zip(path.file_name().map(Path::new)) {
            Some((inbox, name)) => {
                let written = write_at(inbox, name, text.as_bytes(), Durable::Moved);
                written.map_err(|error| named(&path, &error))?;
                Ok(path)
            }
            None => folders.inbox.write(path, text.as_bytes()),
        }
    }

    /// Begins or continues to receive a file: where, and from which offset.
    ///
    /// # Errors
    /// The quota, or what the system says.
    pub(super) fn resume(
        &self,
        from: NodeId,
        id: TransferId,
        init: &Init,
    ) -> Result<Partial, String> {
        let folders = self.folders()?;
        folders.received.fits(init.size)?;
        let partials = folders.received.path.join(PARTIALS);
        let path = partials.join(format!("{from}-{id}"));
        if !path.exists() {
            let begun = count(&partials).map_err(|error| named(&partials, &error))?;
            let bytes_max = folders.received.quota.bytes_max;
            if begun.files >= PARTIALS_MAX || begun.bytes.saturating_add(init.size) > bytes_max {
                return Err(format!(
                    "{} files of {} bytes in all are begun and not whole, at most {PARTIALS_MAX} \
                     and {bytes_max}; they are dropped after a day",
                    begun.files, begun.bytes
                ));
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| named(&path, &error))?;
        let mut offset = file.metadata().map_err(|error| named(&path, &error))?.len();
        if offset > init.size {
            file.set_len(0).map_err(|error| named(&path, &error))?;
            offset = 0;
        }
        Ok(Partial {
            file,
            path,
            offset,
            init: init.clone(),
        })
    }

    /// Moves a file that is whole to its place, if its content is what was announced: where.
    ///
    /// # Errors
    /// The content differs, and what arrived is dropped; or what the system says.
    pub(super) fn finish(&self, partial: &Partial, unix_ms: u64) -> Result<PathBuf, String> {
        let folders = self.folders()?;
        let Partial {
            path, offset, init, ..
        } = partial;
        if *offset != init.size {
            return Err(format!("{offset} of {} bytes are here", init.size));
        }
        if sha256_of(path).map_err(|error| named(path, &error))? != init.sha256 {
            let _ = fs::remove_file(path);
            return Err("the content's SHA-256 is not the announced one".to_owned());
        }
        let len = usize::try_from(init.size).map_err(|_| "too long for this machine".to_owned())?;
        let place = folders.received.place(
            len,
            |stamp, number| file_name(&init.name, stamp, number),
            unix_ms,
        )?;
        fs::rename(path, &place).map_err(|error| named(&place, &error))?;
        Ok(place)
    }
}

/// A file that is being received.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    /// Bytes that are here.
    pub(super) offset: u64,
    pub(super) init: Init,
}

impl Partial {
    /// Adds what follows what is here.
    ///
    /// # Errors
    /// More than was announced, or what the system says.
    pub(super) fn append(&mut self, pieces: &[Bytes]) -> Result<(), String> {
        for piece in pieces {
            let end = self.offset + piece.len() as u64;
            if end > self.init.size {
                return Err(format!(
                    "a chunk ends at {end}, beyond the announced {} bytes",
                    self.init.size
                ));
            }
            let written = self.file.write_all(piece);
            written.map_err(|error| named(&self.path, &error))?;
            self.offset = end;
        }
        Ok(())
    }
}

impl Shelf {
    fn open(path: PathBuf, quota: Quota) -> Result<Self, String> {
        make_folder(&path)?;
        let usage = count(&path).map_err(|error| named(&path, &error))?;
        Ok(Shelf {
            path,
            quota,
            usage: Mutex::new(usage),
        })
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        // Three numbers that are valid one by one.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for a file of so many bytes and names it.
    fn place(
        &self,
        len: usize,
        name: impl Fn(&str, u32) -> String,
        unix_ms: u64,
    ) -> Result<PathBuf, String> {
        self.fits(len as u64)?;
        let mut usage = self.usage();
        usage.bytes += len as u64;
        usage.files += 1;
        usage.next = (usage.next + 1) % 1_000_000;
        Ok(self.path.join(name(&stamp(unix_ms), usage.next)))
    }

    /// Whether so many bytes have room.
    fn fits(&self, len: u64) -> Result<(), String> {
        let mut usage = self.usage();
        let full = |usage: &Usage| {
            usage.bytes.saturating_add(len) > self.quota.bytes_max
                || usage.files >= self.quota.files_max
        };
        if !full(&usage) {
            return Ok(());
        }
        // Others delete here without saying so.
        let counted = count(&self.path).map_err(|error| named(&self.path, &error))?;
        (usage.bytes, usage.files) = (counted.bytes, counted.files);
        if !full(&usage) {
            return Ok(());
        }
        let (
            Quota {
                bytes_max,
                files_max,
            },
            Usage { bytes, files, .. },
        ) = (self.quota, *usage);
        Err(format!(
            "quota: {files} of {files_max} files and {bytes} of {bytes_max} bytes are kept, \
             {len} more do not fit"
        ))
    }

    fn write(&self, path: PathBuf, bytes: &[u8]) -> Result<PathBuf, String> {
        write_whole(&path, bytes, Durable::Moved)?;
        Ok(path)
    }
}

/// Drops what nobody continues.
fn drop_stale(partials: &Path) {
    for entry in fs::read_dir(partials).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| modified.elapsed().ok());
        if age.is_some_and(|age| age > PARTIAL_AGE_MAX) {
            // It takes room until the next start, no more.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn count(path: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    for entry in fs::read_dir(path)? {
        let metadata = entry?.metadata();
        // Deleted meanwhile, or a folder.
        if let Ok(metadata) = metadata
            && metadata.is_file()
        {
            usage.files += 1;
            usage.bytes = usage.bytes.saturating_add(metadata.len());
        }
    }
    Ok(usage)
}

/// `report.pdf` as `report-<stamp>-<number>.pdf`, at most 255 bytes.
fn file_name(name: &str, stamp: &str, number: u32) -> String {
    let (base, extension) = match name.rfind('.') {
        Some(dot) if dot > 0 && name.len() - dot <= 32 => name.split_at(dot),
        _ => (name, ""),
    };
    let suffix = format!("-{stamp}-{number:06}{extension}");
    let mut end = base.len().min(255 - suffix.len());
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &base[..end])
}

fn letter_json(letter: &Letter) -> Value {
    let Letter {
        from,
        message,
        tags,
        received_at_ms,
    } = letter;
    let mut value = json!({
        "type": message.kind.name(),
        "from": Address::backbone(*from).to_string(),
        "bytes": message.content.len(),
        "received_at": rfc3339(*received_at_ms),
    });
    let Some(members) = value.as_object_mut() else {
        return value;
    };
    let mut set = |name: &str, value: Value| members.insert(name.to_owned(), value);
    match core::str::from_utf8(&message.content) {
        Ok(text) => {
            set("data_encoding", Value::from("utf8"));
            set("data", Value::from(text))
        }
        Err(_) => {
            set("data_encoding", Value::from("base64"));
            set("data_b64", Value::from(BASE64.encode(&message.content)));
            set(
                "data",
                Value::from(String::from_utf8_lossy(&message.content)),
            )
        }
    };
    for (name, id) in [
        ("message_id", &tags.message_id),
        ("reply_to", &tags.reply_to),
    ] {
        if let Some(id) = id {
            set(name, Value::from(id.as_str()));
        }
    }
    value
}

/// The digest of a file.
pub(super) fn sha256_of(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut space = vec![0; 256 << 10];
    loop {
        let len = file.read(&mut space)?;
        if len == 0 {
            break;
        }
        context.update(&space[..len]);
    }
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(context.finish().as_ref());
    Ok(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(kind: MessageKind, name: &str, content: &[u8]) -> Letter {
        Letter {
            from: NodeId(0x0001_0002),
            message: Message {
                kind,
                name: name.to_owned(),
                content: content.to_vec().into(),
            },
            tags: Tags {
                message_id: Some("m-1".to_owned()),
                reply_to: None,
            },
            received_at_ms: 1_518_563_312_007,
        }
    }

    #[test]
    fn messages_are_kept_as_daemons_keep_them() {
        let state = tempfile::tempdir().expect("a folder");
        let inbox = Inbox::open(Some(state.path())).expect("opened");
        let kept = inbox
            .keep(&letter(MessageKind::Text, "", "grüß dich".as_bytes()))
            .expect("kept");
        assert_eq!(
            kept,
            state
                .path()
                .join("inbox/TEXT-20180213-230832.007-000001.json")
        );
        let value: Value = serde_json::from_slice(&fs::read(&kept).expect("there")).expect("JSON");
        assert_eq!(
            value,
            json!({
                "type": "TEXT", "from": "0:0000.0001.0002", "data": "grüß dich", "bytes": 11,
                "received_at": "2018-02-13T23:08:32.007Z", "message_id": "m-1",
                "data_encoding": "utf8",
            })
        );
        let kept = inbox
            .keep(&letter(MessageKind::Binary, "", b"\xff\x00"))
            .expect("kept");
        let value: Value = serde_json::from_slice(&fs::read(&kept).expect("there")).expect("JSON");
        assert_eq!(value["data_b64"], "/wA=");
        let kept = inbox
            .keep(&letter(MessageKind::File, "a.tar.gz", b"xyz"))
            .expect("kept");
        assert_eq!(
            kept,
            state
                .path()
                .join("received/a.tar-20180213-230832.007-000001.gz")
        );
        assert_eq!(fs::read(kept).expect("there"), b"xyz");
    }

    #[test]
    fn a_batch_is_kept_in_the_folder_that_stands_there_now() {
        let state = tempfile::tempdir().expect("a folder");
        let inbox = Inbox::open(Some(state.path())).expect("opened");
        let folder = state.path().join("inbox");
        let batch = [
            letter(MessageKind::Text, "", b"one"),
            letter(MessageKind::File, "a.txt", b"two"),
            letter(MessageKind::Text, "", b"three"),
        ];
        let whole = |kept: &[Result<PathBuf, String>]| {
            let paths = kept.iter().map(|kept| kept.as_ref().expect("kept"));
            paths
                .filter(|path| path.starts_with(&folder) && path.is_file())
                .count()
        };
        assert_eq!(whole(&inbox.keep_all(&batch)), 2);
        // An operator moves it away and puts an empty one there.
        fs::rename(&folder, state.path().join("old")).expect("moved");
        fs::create_dir(&folder).expect("made");
        assert_eq!(whole(&inbox.keep_all(&batch)), 2);
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 2);
        // Nothing stands there: what is lost is said by name.
        fs::remove_dir_all(&folder).expect("removed");
        let kept = inbox.keep_all(&batch);
        let lost = kept[0].as_ref().expect_err("no folder");
        assert!(lost.contains("inbox/TEXT-"), "{lost}");
        assert!(kept[1].is_ok());
    }

    #[test]
    fn names_stay_in_their_folder_and_their_bound() {
        let stamp = "20180213-230832.007";
        for (name, expected) in [
            ("plain", "plain-20180213-230832.007-000003"),
            (".hidden", ".hidden-20180213-230832.007-000003"),
        ] {
            assert_eq!(file_name(name, stamp, 3), expected);
        }
        for name in ["ä".repeat(127), format!("{}.txt", "x".repeat(251))] {
            let long = file_name(&name, stamp, 3);
            assert!(long.len() <= 255 && !long.contains('/'), "{long}");
        }
    }

    #[test]
    fn a_full_shelf_refuses_by_name_and_counts_what_others_deleted() {
        let state = tempfile::tempdir().expect("a folder");
        let path = state.path().join("shelf");
        let quota = Quota {
            bytes_max: 10,
            files_max: 2,
        };
        let shelf = Shelf::open(path.clone(), quota).expect("opened");
        let name = |stamp: &str, number: u32| format!("{stamp}-{number}");
        let put = |bytes: &[u8]| {
            let place = shelf.place(bytes.len(), name, 0)?;
            shelf.write(place, bytes)
        };
        put(b"four").expect("room");
        assert!(put(b"seven..").is_err_and(|why| why.contains("4 of 10 bytes")));
        let second = put(b"4444").expect("room");
        assert!(put(b"").is_err_and(|why| why.contains("2 of 2 files")));
        fs::remove_file(second).expect("deleted");
        put(b"again").expect("room again");
        let again = Shelf::open(path, quota).expect("opened");
        let usage = *again.usage();
        assert_eq!((usage.files, usage.bytes), (2, 9));
    }

    #[test]
    fn a_file_in_chunks_resumes_and_is_checked() {
        let state = tempfile::tempdir().expect("a folder");
        let inbox = Inbox::open(Some(state.path())).expect("opened");
        let content = b"the content of a file".repeat(10);
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest::digest(&digest::SHA256, &content).as_ref());
        let init = Init {
            size: content.len() as u64,
            sha256,
            chunk_len: 64,
            name: "f.txt".to_owned(),
        };
        let (id, from) = (TransferId::of(&sha256), NodeId(7));
        let mut first = inbox.resume(from, id, &init).expect("begun");
        first
            .append(&[content[..100].to_vec().into()])
            .expect("written");
        drop(first);
        let mut second = inbox.resume(from, id, &init).expect("resumed");
        assert_eq!(second.offset, 100);
        assert!(inbox.finish(&second, 0).is_err(), "not whole");
        second
            .append(&[
                content[100..150].to_vec().into(),
                content[150..].to_vec().into(),
            ])
            .expect("written");
        assert!(second.append(&[Bytes::from_static(b"x")]).is_err());
        let kept = inbox.finish(&second, 0).expect("whole");
        assert_eq!(fs::read(kept).expect("there"), content);
        let mut other = inbox.resume(from, id, &init).expect("begun anew");
        assert_eq!(other.offset, 0);
        other
            .append(&[vec![0; content.len()].into()])
            .expect("written");
        assert!(
            inbox
                .finish(&other, 0)
                .is_err_and(|why| why.contains("SHA-256"))
        );
        assert_eq!(inbox.resume(from, id, &init).expect("anew").offset, 0);
    }

    #[test]
    fn without_a_state_directory_nothing_is_kept() {
        let inbox = Inbox::open(None).expect("opened");
        let error = inbox.keep(&letter(MessageKind::Text, "", b"x"));
        assert!(error.is_err_and(|why| why.contains("state directory")));
    }
}
