//! Which ranges arrived beyond a gap, as the payload of an ACK: `SACK`, a count, and as many pairs
//! of sequence numbers, half-open.
//!
//! Other daemons send and read at most four ranges; ramjet nodes send each other up to
//! [`RANGES_MAX`].

use super::{extend, wire_of};

/// Ranges between ramjet nodes.
pub(super) const RANGES_MAX: usize = 32;
/// Ranges to other daemons.
pub(super) const RANGES_FOREIGN_MAX: usize = 4;
/// The mark. A segment of data must not begin with it.
pub(super) const MAGIC: [u8; 4] = *b"SACK";

const HEADER_LEN: usize = MAGIC.len() + 1;
const RANGE_LEN: usize = 8;
/// Longest payload of this kind.
pub(super) const SACK_LEN_MAX: usize = HEADER_LEN + RANGES_MAX * RANGE_LEN;

/// Half-open, in sequence numbers that do not wrap.
pub(super) type Range = (u64, u64);

/// Writes the ranges to the front of `out`; how many bytes.
pub(super) fn write(ranges: &[Range], out: &mut [u8; SACK_LEN_MAX]) -> usize {
    let ranges = &ranges[..ranges.len().min(RANGES_MAX)];
    out[..MAGIC.len()].copy_from_slice(&MAGIC);
    out[MAGIC.len()] = u8::try_from(ranges.len()).expect("at most RANGES_MAX");
    let pairs = out[HEADER_LEN..].chunks_exact_mut(RANGE_LEN);
    for (pair, (left, right)) in pairs.zip(ranges) {
        pair[..4].copy_from_slice(&wire_of(*left).to_be_bytes());
        pair[4..].copy_from_slice(&wire_of(*right).to_be_bytes());
    }
    HEADER_LEN + ranges.len() * RANGE_LEN
}

/// Reads ranges that lie within what we have sent and the peer has not acknowledged. Anything else
/// is no SACK but a user's data that begins alike.
pub(super) fn read(
    payload: &[u8],
    acknowledged: u64,
    next: u64,
    ranges: &mut [Range; RANGES_MAX],
) -> Option<usize> {
    let (count, rest) = payload.strip_prefix(&MAGIC)?.split_first()?;
    let count = usize::from(*count);
    if count == 0 || count > RANGES_MAX || rest.len() < count * RANGE_LEN {
        return None;
    }
    let pairs = rest.chunks_exact(RANGE_LEN).take(count);
    for (range, pair) in ranges.iter_mut().zip(pairs) {
        let (left, right) = pair.split_first_chunk::<4>()?;
        let left = extend(acknowledged, u32::from_be_bytes(*left));
        let right = extend(acknowledged, u32::from_be_bytes(*right.first_chunk::<4>()?));
        if left >= right || right > next {
            return None;
        }
        *range = (left, right);
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let high = 1 << 33;
        let ranges = [(high - 50, high - 20), (high - 2, high + 7)];
        let mut out = [0; SACK_LEN_MAX];
        let len = write(&ranges[..1], &mut out);
        assert_eq!(&out[..len], b"SACK\x01\xff\xff\xff\xce\xff\xff\xff\xec");
        let mut read_back = [(0, 0); RANGES_MAX];
        assert_eq!(read(&out[..len], high - 60, high, &mut read_back), Some(1));
        assert_eq!(read_back[0], ranges[0]);
        let len = write(&ranges, &mut out);
        assert_eq!(
            read(&out[..len], high - 60, high + 10, &mut read_back),
            Some(2)
        );
        assert_eq!(read_back[1], ranges[1]);
    }

    #[test]
    fn data_that_begins_alike_is_data() {
        let mut ranges = [(0, 0); RANGES_MAX];
        for data in [
            &b"SACK"[..],
            b"SACK\x00",
            b"SACK\x01\0\0\0\x64\0\0\0",
            b"SACK\x21\0\0\0\x64\0\0\0\x96",
            b"SACKCLOTH and ashes, and more of them",
            b"SACK\x01\0\0\0\x96\0\0\0\x64",
        ] {
            assert_eq!(read(data, 90, 200, &mut ranges), None, "{data:?}");
        }
        let beyond = b"SACK\x01\0\0\0\x64\0\0\0\x96";
        assert_eq!(read(beyond, 90, 149, &mut ranges), None);
        assert_eq!(read(beyond, 90, 150, &mut ranges), Some(1));
    }
}
