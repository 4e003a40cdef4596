//! Durations in sixteen bits, so that a RESULT frame tells both of its times in one word.
//!
//! The value is `mantissa << exponent` nanoseconds: eleven bits of mantissa above five of exponent.
//! It reaches 73 minutes and is exact to one part in 1,024, rounded down. Both ends of an
//! engagement sum the decoded values, so their accounts agree to the nanosecond.

/// Longest duration that can be told, in nanoseconds.
pub const MAX_NS: u64 = 2_047 << 31;

/// Encodes a duration, rounding down; what is longer than [`MAX_NS`] is told as that.
#[inline]
pub fn encode(nanos: u64) -> u16 {
    let nanos = nanos.min(MAX_NS);
    let bits = u64::BITS - nanos.leading_zeros();
    let exponent = bits.saturating_sub(11);
    let word = (nanos >> exponent) << 5 | u64::from(exponent);
    u16::try_from(word).expect("eleven bits above five")
}

/// Decodes a duration to nanoseconds.
#[inline]
pub fn decode(word: u16) -> u64 {
    u64::from(word >> 5) << (word & 31)
}

/// Two durations in the auxiliary word of a RESULT: handler time above, waiting time below.
#[inline]
pub fn pack(busy_ns: u64, staged_ns: u64) -> u32 {
    u32::from(encode(busy_ns)) << 16 | u32::from(encode(staged_ns))
}

/// The two durations of [`pack`], in nanoseconds: handler time, waiting time.
#[inline]
pub fn unpack(word: u32) -> (u64, u64) {
    let [b0, b1, b2, b3] = word.to_be_bytes();
    (
        decode(u16::from_be_bytes([b0, b1])),
        decode(u16::from_be_bytes([b2, b3])),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ends_of_the_range_hold() {
        for nanos in [0, 1, 2_047, 2_048, MAX_NS] {
            let told = decode(encode(nanos));
            assert!(
                told <= nanos && nanos - told <= nanos / 1_024,
                "{nanos} told as {told}"
            );
        }
        assert_eq!(decode(encode(u64::MAX)), MAX_NS);
        assert_eq!(unpack(pack(1_000, 77)), (1_000, 77));
    }

    proptest! {
        #[test]
        fn never_longer_and_within_a_thousandth(nanos in 0..=MAX_NS) {
            let told = decode(encode(nanos));
            prop_assert!(told <= nanos);
            prop_assert!(nanos - told <= nanos / 1_024);
        }
    }
}
