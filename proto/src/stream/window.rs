//! The congestion window of a stream to another daemon: NewReno (RFC 5681, RFC 6582) in bytes.
//!
//! At most [`SEGMENTS_FOREIGN_MAX`] segments may be out to such a peer in any case, so the window is
//! what a path with less room than that takes.

use super::{SEGMENT_LEN_FOREIGN, SEGMENTS_FOREIGN_MAX};

/// Ten segments (RFC 6928), or a little more: what other daemons begin with, 40 KiB.
const INITIAL: usize = 40 << 10;
const LEAST: usize = 2 * SEGMENT_LEN_FOREIGN;
const MOST: usize = SEGMENTS_FOREIGN_MAX * SEGMENT_LEN_FOREIGN;

#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    bytes: usize,
    threshold: usize,
    /// Bytes acknowledged since the window last grew by a segment.
    acknowledged: usize,
}

impl Window {
    pub(super) fn new() -> Self {
        Window {
            bytes: INITIAL,
            threshold: MOST,
            acknowledged: 0,
        }
    }

    /// Bytes that may be in flight.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many bytes arrived, outside of a recovery.
    pub(super) fn grow(&mut self, len: usize) {
        if self.bytes < self.threshold {
            self.bytes += len;
        } else {
            self.acknowledged += len;
            if self.acknowledged >= self.bytes {
                self.acknowledged -= self.bytes;
                self.bytes += SEGMENT_LEN_FOREIGN;
            }
        }
        self.bytes = self.bytes.min(MOST);
    }

    /// Something is lost: once for each flight.
    pub(super) fn lose(&mut self) {
        self.bytes = (self.bytes / 2).max(LEAST);
        self.threshold = self.bytes;
        self.acknowledged = 0;
    }

    /// Nothing was heard for a time-out.
    pub(super) fn collapse(&mut self) {
        self.lose();
        self.bytes = LEAST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_halves_and_grows_by_a_segment() {
        let mut window = Window::new();
        window.grow(INITIAL);
        assert_eq!(window.bytes(), 2 * INITIAL);
        window.lose();
        assert_eq!(window.bytes(), INITIAL);
        window.grow(INITIAL - 1);
        assert_eq!(window.bytes(), INITIAL);
        window.grow(1);
        assert_eq!(window.bytes(), INITIAL + SEGMENT_LEN_FOREIGN);
        window.collapse();
        assert_eq!(window.bytes(), LEAST);
        for _ in 0..1_000 {
            window.grow(MOST);
        }
        assert_eq!(window.bytes(), MOST);
    }
}
