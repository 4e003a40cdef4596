//! The beacon's header before each datagram of a train whose tunnel is relayed.

use ramjet_proto::wire::beacon::RELAY_HEADER_LEN;

use super::super::arena::SEND_LEN_MAX;

/// Puts `header` before each datagram of a train: `len` bytes in datagrams of `segment` bytes, the
/// last as long as it is. Answers both lengths as they are then, or nothing if that is more than a
/// send carries: the tunnel was direct when the train was filled.
pub(super) fn wrap(
    train: &mut [u8],
    len: usize,
    segment: usize,
    header: [u8; RELAY_HEADER_LEN],
) -> Option<(usize, usize)> {
    let count = len.div_ceil(segment);
    let wrapped_len = len + count * RELAY_HEADER_LEN;
    if wrapped_len > SEND_LEN_MAX {
        return None;
    }
    let wrapped_segment = segment + RELAY_HEADER_LEN;
    // From the last to the first: each moves into space that is free by then.
    for index in (0..count).rev() {
        let from = index * segment;
        let to = index * wrapped_segment;
        train.copy_within(from..len.min(from + segment), to + RELAY_HEADER_LEN);
        train[to..to + RELAY_HEADER_LEN].copy_from_slice(&header);
    }
    Some((wrapped_len, wrapped_segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: [u8; RELAY_HEADER_LEN] = [5, 0, 0, 0, 1, 0, 0, 0, 2];

    #[test]
    fn every_datagram_gets_its_header_and_keeps_its_bytes() {
        for (len, segment) in [(10, 10), (30, 10), (25, 10), (21, 20), (1, 1)] {
            let datagrams: Vec<Vec<u8>> = (0..len)
                .map(|byte| u8::try_from(byte).expect("a few bytes"))
                .collect::<Vec<u8>>()
                .chunks(segment)
                .map(<[u8]>::to_vec)
                .collect();
            let mut train = datagrams.concat();
            train.resize(1_000, 0xFF);
            let (wrapped_len, wrapped_segment) =
                wrap(&mut train, len, segment, HEADER).expect("it fits");
            let wrapped: Vec<&[u8]> = train[..wrapped_len].chunks(wrapped_segment).collect();
            assert_eq!(wrapped.len(), datagrams.len());
            for (wrapped, datagram) in wrapped.iter().zip(&datagrams) {
                assert_eq!(wrapped[..RELAY_HEADER_LEN], HEADER);
                assert_eq!(wrapped[RELAY_HEADER_LEN..], datagram[..]);
            }
        }
    }

    #[test]
    fn more_than_a_send_carries_is_refused() {
        let mut train = vec![0; SEND_LEN_MAX + 100];
        assert_eq!(wrap(&mut train, SEND_LEN_MAX, 1_000, HEADER), None);
        let len = SEND_LEN_MAX - RELAY_HEADER_LEN;
        assert_eq!(
            wrap(&mut train, len, len, HEADER),
            Some((SEND_LEN_MAX, SEND_LEN_MAX))
        );
    }
}
