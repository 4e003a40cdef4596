//! The lines of files, held once.
//!
//! A [`Text`] is one block of bytes and a span for each line; tasks are written from it without a
//! copy of their own, and a line that is too long for a datagram is a slice of the same block.
//!
//! Line ends are `\n` and `\r\n`; the last line needs none. Limits: [`TEXT_LEN_MAX`] bytes,
//! [`LINES_MAX`] lines, [`TASK_LEN_MAX`] bytes a line; what is beyond is refused by file and line.

use std::io::Read;
use std::path::PathBuf;

use bytes::Bytes;
use ramjet_proto::wire::limits::TASK_LEN_MAX;

use super::exit::Failure;

/// Most bytes in all: 1 GiB, so that a place in it is 32 bits.
pub const TEXT_LEN_MAX: usize = 1 << 30;
/// Most lines in all.
pub const LINES_MAX: usize = 1 << 26;

/// Where lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl Source {
    /// Reads `-` as standard input.
    pub fn of(path: &std::path::Path) -> Self {
        if path.as_os_str() == "-" {
            Source::Stdin
        } else {
            Source::File(path.to_owned())
        }
    }

    fn name(&self) -> String {
        match self {
            Source::File(path) => path.display().to_string(),
            Source::Stdin => "standard input".to_owned(),
        }
    }

    /// Appends its bytes to `block`, up to one more than [`TEXT_LEN_MAX`] in all.
    fn read_into(&self, block: &mut Vec<u8>) -> std::io::Result<()> {
        let room = (TEXT_LEN_MAX + 1).saturating_sub(block.len()) as u64;
        match self {
            Source::File(path) => std::fs::File::open(path)?.take(room).read_to_end(block)?,
            Source::Stdin => std::io::stdin().lock().take(room).read_to_end(block)?,
        };
        Ok(())
    }
}

/// What to do with an empty line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyLines {
    /// It is a task with an empty payload, so that results stand in the lines of their tasks.
    Keep,
    /// It is no task.
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

/// Lines, held once.
#[derive(Clone, Debug)]
pub struct Text {
    block: Bytes,
    spans: Vec<Span>,
}

impl Text {
    /// The lines of `bytes`, which errors call `name`.
    ///
    /// # Errors
    /// A limit that is passed, by name and line.
    pub fn of_lines(name: &str, bytes: Bytes, empty: EmptyLines) -> Result<Self, Failure> {
        let mut spans = Vec::new();
        split(name, &bytes, 0, empty, &mut spans)?;
        Ok(Text {
            block: bytes,
            spans,
        })
    }

    /// The lines of all `sources`, one after the other.
    ///
    /// # Errors
    /// A source that cannot be read, or a limit that is passed, by name and line.
    pub fn read(sources: &[Source], empty: EmptyLines) -> Result<Self, Failure> {
        let (mut block, mut spans) = (Vec::new(), Vec::new());
        for source in sources {
            let start = block.len();
            source.read_into(&mut block).map_err(|error| {
                Failure::usage(format!("{} could not be read: {error}", source.name()))
            })?;
            split(&source.name(), &block, start, empty, &mut spans)?;
        }
        Ok(Text {
            block: block.into(),
            spans,
        })
    }

    /// One payload, whatever bytes it holds.
    ///
    /// # Errors
    /// If it is longer than a task may be.
    pub fn of_payload(name: &str, payload: Bytes) -> Result<Self, Failure> {
        if payload.len() > TASK_LEN_MAX {
            return Err(Failure::usage(format!(
                "{name}: {} bytes, a task has at most {TASK_LEN_MAX}; split it",
                payload.len()
            )));
        }
        let spans = vec![Span {
            start: 0,
            len: narrow(payload.len()),
        }];
        Ok(Text {
            block: payload,
            spans,
        })
    }

    /// The whole of `source` as one payload.
    ///
    /// # Errors
    /// If it cannot be read, or is longer than a task may be.
    pub fn read_payload(source: &Source) -> Result<Self, Failure> {
        let mut payload = Vec::new();
        source.read_into(&mut payload).map_err(|error| {
            Failure::usage(format!("{} could not be read: {error}", source.name()))
        })?;
        Text::of_payload(&source.name(), payload.into())
    }

    /// How many lines.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The line at `index`, without its end.
    pub fn line(&self, index: usize) -> &[u8] {
        let Span { start, len } = self.spans[index];
        &self.block[start as usize..][..len as usize]
    }

    /// The same as a share of the block.
    pub fn share(&self, index: usize) -> Bytes {
        let Span { start, len } = self.spans[index];
        self.block
            .slice(start as usize..start as usize + len as usize)
    }

    /// Bytes in all lines, without their ends.
    pub fn payload_len(&self) -> u64 {
        self.spans.iter().map(|span| u64::from(span.len)).sum()
    }
}

/// Callers have checked [`TEXT_LEN_MAX`], which is below 2^32.
fn narrow(place: usize) -> u32 {
    u32::try_from(place).expect("within TEXT_LEN_MAX")
}

fn split(
    name: &str,
    block: &[u8],
    start: usize,
    empty: EmptyLines,
    spans: &mut Vec<Span>,
) -> Result<(), Failure> {
    if block.len() > TEXT_LEN_MAX {
        return Err(Failure::usage(format!(
            "{name}: more than {TEXT_LEN_MAX} bytes of text in all; submit it in parts"
        )));
    }
    let mut line_start = start;
    let mut number = 0_u64;
    while line_start < block.len() {
        number += 1;
        let rest = &block[line_start..];
        let end = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(rest.len());
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        if line.len() > TASK_LEN_MAX {
            return Err(Failure::usage(format!(
                "{name}: line {number} has {} bytes, a task has at most {TASK_LEN_MAX}; split it",
                line.len()
            )));
        }
        if !line.is_empty() || empty == EmptyLines::Keep {
            if spans.len() == LINES_MAX {
                return Err(Failure::usage(format!(
                    "{name}: line {number} is beyond the {LINES_MAX} lines of one engagement; \
                     submit it in parts"
                )));
            }
            spans.push(Span {
                start: narrow(line_start),
                len: narrow(line.len()),
            });
        }
        line_start += end + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static [u8], empty: EmptyLines) -> Vec<Vec<u8>> {
        let text = Text::of_lines("test", Bytes::from_static(text), empty).expect("within limits");
        (0..text.len())
            .map(|index| {
                assert_eq!(text.line(index), &text.share(index)[..]);
                text.line(index).to_vec()
            })
            .collect()
    }

    #[test]
    fn line_ends_and_empty_lines() {
        let table: [(&[u8], &[&str], &[&str]); 7] = [
            (b"", &[], &[]),
            (b"\n", &[""], &[]),
            (b"a\nb\n", &["a", "b"], &["a", "b"]),
            (b"a\nb", &["a", "b"], &["a", "b"]),
            (b"a\r\n\r\nb\r\n", &["a", "", "b"], &["a", "b"]),
            (b"a\n\n\nb", &["a", "", "", "b"], &["a", "b"]),
            (b"a\rb\r\r\n", &["a\rb\r"], &["a\rb\r"]),
        ];
        for (text, kept, skipped) in table {
            let expect = |lines: &[&str]| -> Vec<Vec<u8>> {
                lines.iter().map(|line| line.as_bytes().to_vec()).collect()
            };
            assert_eq!(lines(text, EmptyLines::Keep), expect(kept), "{text:?}");
            assert_eq!(lines(text, EmptyLines::Skip), expect(skipped), "{text:?}");
        }
    }

    #[test]
    fn files_follow_each_other_and_keep_their_last_line() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let paths = ["one", "two"].map(|name| folder.path().join(name));
        std::fs::write(&paths[0], "a\nb").expect("written");
        std::fs::write(&paths[1], "c\n").expect("written");
        let sources: Vec<_> = paths.iter().map(|path| Source::of(path)).collect();
        let text = Text::read(&sources, EmptyLines::Keep).expect("within limits");
        let lines: Vec<_> = (0..text.len()).map(|index| text.line(index)).collect();
        assert_eq!(lines, [b"a", b"b", b"c"]);
        assert_eq!(text.payload_len(), 3);
    }

    #[test]
    fn a_huge_line_is_refused_by_file_and_line() {
        let mut bytes = b"short\n".to_vec();
        bytes.resize(bytes.len() + TASK_LEN_MAX + 1, b'x');
        let error = Text::of_lines("big.txt", bytes.clone().into(), EmptyLines::Keep)
            .expect_err("too long");
        assert_eq!(
            error.message,
            "big.txt: line 2 has 16777217 bytes, a task has at most 16777216; split it"
        );
        bytes.pop();
        let text = Text::of_lines("big.txt", bytes.into(), EmptyLines::Keep).expect("just fits");
        assert_eq!(text.line(1).len(), TASK_LEN_MAX);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Text::read(&[Source::File("/no/such/file".into())], EmptyLines::Keep)
            .expect_err("missing");
        assert!(
            error.message.starts_with("/no/such/file could not be read"),
            "{}",
            error.message
        );
        assert_eq!(Source::of(std::path::Path::new("-")), Source::Stdin);
    }

    #[test]
    fn a_payload_keeps_its_line_ends() {
        let text = Text::of_payload("data", Bytes::from_static(b"a\nb\r\n")).expect("short");
        assert_eq!((text.len(), text.line(0)), (1, &b"a\nb\r\n"[..]));
    }
}
