//! Lines and frames: payloads on their way to a program, and results on their way back.

use crate::port::supervisor::Form;

/// Bytes of a frame's length.
const LENGTH_LEN: usize = 4;

/// What arrived from a program, cut into records.
#[derive(Debug)]
pub(super) struct Records {
    form: Form,
    len_max: usize,
    bytes: Vec<u8>,
    /// Where the next record begins.
    at: usize,
    /// Where the search for its end goes on.
    searched: usize,
    /// Bytes of a frame that is too long that are still to be skipped.
    skip: usize,
    /// The line that is being read is too long.
    overlong: bool,
}

impl Records {
    /// Records of at most `len_max` bytes.
    pub(super) fn new(form: Form, len_max: usize) -> Self {
        Records {
            form,
            len_max,
            bytes: Vec::new(),
            at: 0,
            searched: 0,
            skip: 0,
            overlong: false,
        }
    }

    /// Appends a payload as a record.
    ///
    /// # Errors
    /// Why it cannot be one.
    pub(super) fn append(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        if self.form == Form::Frames {
            let len = u32::try_from(payload.len()).map_err(|_| "the payload is too long")?;
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(payload);
            return Ok(());
        }
        if payload.contains(&b'\n') {
            return Err("the payload holds a newline, and this program reads a task a line");
        }
        out.extend_from_slice(payload);
        out.push(b'\n');
        Ok(())
    }

    /// What a program wrote.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.at == self.bytes.len() {
            self.bytes.clear();
            (self.at, self.searched) = (0, 0);
        } else if self.at > self.bytes.len() / 2 {
            self.bytes.drain(..self.at);
            self.searched = self.searched.saturating_sub(self.at);
            self.at = 0;
        }
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.bytes.extend_from_slice(&bytes[skipped..]);
    }

    /// Whether nothing is left, not even the beginning of a record.
    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len() && self.skip == 0 && !self.overlong
    }

    /// The next record that is whole, or why it is none that can be taken.
    pub(super) fn next(&mut self) -> Option<Result<Vec<u8>, String>> {
        match self.form {
            Form::Frames => self.next_frame(),
            Form::Lines | Form::Port => self.next_line(),
        }
    }

    fn too_long(&self) -> String {
        format!(
            "the program's answer is longer than {} bytes, the limit",
            self.len_max
        )
    }

    fn next_line(&mut self) -> Option<Result<Vec<u8>, String>> {
        let rest = &self.bytes[self.searched..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            if self.bytes.len() - self.at > self.len_max {
                // Its end is still to come; its bytes are not kept.
                self.overlong = true;
                self.at = self.bytes.len();
            }
            return None;
        };
        let end = self.searched + end;
        let line = &self.bytes[self.at..end];
        let record = if self.overlong || line.len() > self.len_max {
            Err(self.too_long())
        } else {
            Ok(line.to_vec())
        };
        self.overlong = false;
        self.at = end + 1;
        self.searched = self.at;
        Some(record)
    }

    fn next_frame(&mut self) -> Option<Result<Vec<u8>, String>> {
        let rest = &self.bytes[self.at..];
        let (length, rest) = rest.split_first_chunk::<LENGTH_LEN>()?;
        let len = u32::from_be_bytes(*length) as usize;
        if len > self.len_max {
            let here = len.min(rest.len());
            self.skip = len - here;
            self.at += LENGTH_LEN + here;
            return Some(Err(self.too_long()));
        }
        let record = rest.get(..len)?.to_vec();
        self.at += LENGTH_LEN + len;
        Some(Ok(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(records: &mut Records) -> Vec<Result<Vec<u8>, String>> {
        std::iter::from_fn(|| records.next()).collect()
    }

    #[test]
    fn lines_are_cut_wherever_they_arrive() {
        let text = b"one\n\nthree\nlonger than ten bytes\nfive\n";
        for piece in 1..=text.len() {
            let mut records = Records::new(Form::Lines, 10);
            let mut found = Vec::new();
            for bytes in text.chunks(piece) {
                records.feed(bytes);
                found.append(&mut all(&mut records));
            }
            assert!(records.is_empty());
            assert_eq!(found.len(), 5, "pieces of {piece}");
            assert_eq!(found[0], Ok(b"one".to_vec()));
            assert_eq!(found[1], Ok(Vec::new()));
            assert!(
                found[3]
                    .as_ref()
                    .is_err_and(|why| why.contains("longer than 10 bytes"))
            );
            assert_eq!(found[4], Ok(b"five".to_vec()));
        }
    }

    #[test]
    fn frames_are_cut_wherever_they_arrive() {
        let mut text = Vec::new();
        let writer = Records::new(Form::Frames, 10);
        for payload in [&b"one"[..], b"", b"longer than ten", b"four\n"] {
            writer.append(payload, &mut text).expect("any bytes");
        }
        assert_eq!(text[..8], [0, 0, 0, 3, b'o', b'n', b'e', 0]);
        for piece in 1..=text.len() {
            let mut records = Records::new(Form::Frames, 10);
            let mut found = Vec::new();
            for bytes in text.chunks(piece) {
                records.feed(bytes);
                found.append(&mut all(&mut records));
            }
            assert!(records.is_empty());
            assert_eq!(found.len(), 4, "pieces of {piece}");
            assert_eq!(found[0], Ok(b"one".to_vec()));
            assert!(found[2].is_err());
            assert_eq!(found[3], Ok(b"four\n".to_vec()));
        }
    }

    #[test]
    fn a_payload_with_a_newline_is_no_line() {
        let records = Records::new(Form::Lines, 10);
        let mut out = Vec::new();
        assert!(records.append(b"a\nb", &mut out).is_err());
        records.append(b"ab", &mut out).expect("a line");
        assert_eq!(out, b"ab\n");
    }

    #[test]
    fn the_beginning_of_a_record_is_not_nothing() {
        let mut records = Records::new(Form::Lines, 4);
        records.feed(b"be");
        assert!(records.next().is_none() && !records.is_empty());
        records.feed(b"gin");
        assert!(records.next().is_none() && !records.is_empty(), "overlong");
    }
}
