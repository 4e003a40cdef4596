//! The datagram of the windowed echoes, and the proof that it came back whole.
//!
//! ```text
//!  0        12       20       28                          len-24   len-16      len
//!  | nonce  | index  | stamp  | filler ...................| proof  | tag        |
//!           |<------------- sealed when encrypted ---------------->|
//! ```
//!
//! `index` names the datagram within the window, `stamp` is the client's clock at the send in
//! nanoseconds, `proof` is a mix of index and stamp. All numbers are little-endian. Without
//! encryption the nonce and the tag are carried unused, so both variants move the same bytes.
//!
//! Invariant: one `Codec` seals with one key and a nonce that only grows, so no nonce repeats under
//! a key.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const WORD: usize = 8;
const INDEX_AT: usize = NONCE_LEN;
const STAMP_AT: usize = INDEX_AT + WORD;

pub(super) const DATAGRAM_LEN_MIN: usize = STAMP_AT + WORD + WORD + TAG_LEN;

/// Which end of the pair a codec serves; it seals with its own key and opens with the other's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    Client,
    Server,
}

/// Seals what it sends and opens what it receives, in place.
pub(super) struct Codec {
    sealing: Option<(LessSafeKey, u64)>,
    opening: Option<LessSafeKey>,
}

impl Codec {
    /// A codec that leaves the bytes alone.
    pub(super) fn plain() -> Self {
        Self {
            sealing: None,
            opening: None,
        }
    }

    /// A codec over AES-256-GCM with the two fixed keys of the arm: the traffic never leaves this
    /// process, so the keys protect nothing and only the cost is real.
    pub(super) fn encrypted(end: End) -> Self {
        let (own, peer) = match end {
            End::Client => (0xC1, 0x5E),
            End::Server => (0x5E, 0xC1),
        };
        Self {
            sealing: Some((key(own), 0)),
            opening: Some(key(peer)),
        }
    }

    /// Opens one datagram in place; false if the tag does not hold.
    #[inline]
    pub(super) fn open(&self, datagram: &mut [u8]) -> bool {
        let Some(opening) = &self.opening else {
            return true;
        };
        let Some((nonce, sealed)) = datagram.split_first_chunk_mut::<NONCE_LEN>() else {
            return false;
        };
        let nonce = Nonce::assume_unique_for_key(*nonce);
        opening.open_in_place(nonce, Aad::empty(), sealed).is_ok()
    }

    /// Seals one datagram in place under the next nonce; false only if the cipher refuses the
    /// length.
    #[inline]
    pub(super) fn seal(&mut self, datagram: &mut [u8]) -> bool {
        let Some((sealing, counter)) = &mut self.sealing else {
            return true;
        };
        *counter += 1;
        let mut nonce = [0; NONCE_LEN];
        nonce[..WORD].copy_from_slice(&counter.to_le_bytes());
        let Some((head, rest)) = datagram.split_first_chunk_mut::<NONCE_LEN>() else {
            return false;
        };
        let Some((body, tag_space)) = rest.split_last_chunk_mut::<TAG_LEN>() else {
            return false;
        };
        *head = nonce;
        let nonce = Nonce::assume_unique_for_key(nonce);
        match sealing.seal_in_place_separate_tag(nonce, Aad::empty(), body) {
            Ok(tag) => {
                tag_space.copy_from_slice(tag.as_ref());
                true
            }
            Err(_) => false,
        }
    }
}

/// Writes a whole opened datagram: index, stamp, filler and proof.
///
/// The datagram must hold at least [`DATAGRAM_LEN_MIN`] bytes; the arms check that before they
/// start.
pub(super) fn fill(datagram: &mut [u8], index: u64, stamp_ns: u64) {
    let filler = index.to_le_bytes()[0] ^ 0xA5;
    datagram[INDEX_AT..].fill(filler);
    datagram[INDEX_AT..STAMP_AT].copy_from_slice(&index.to_le_bytes());
    restamp(datagram, index, stamp_ns);
}

/// Stamps an opened datagram for its next journey.
#[inline]
pub(super) fn restamp(datagram: &mut [u8], index: u64, stamp_ns: u64) {
    let proof_at = datagram.len() - TAG_LEN - WORD;
    datagram[STAMP_AT..STAMP_AT + WORD].copy_from_slice(&stamp_ns.to_le_bytes());
    datagram[proof_at..proof_at + WORD].copy_from_slice(&proof(index, stamp_ns).to_le_bytes());
}

/// Reads an opened datagram back: index and stamp, or nothing if it is not one that was sent.
#[inline]
pub(super) fn check(datagram: &[u8], window: u64) -> Option<(u64, u64)> {
    if datagram.len() < DATAGRAM_LEN_MIN {
        return None;
    }
    let proof_at = datagram.len() - TAG_LEN - WORD;
    let index = word(datagram, INDEX_AT)?;
    let stamp_ns = word(datagram, STAMP_AT)?;
    let proven = word(datagram, proof_at)? == proof(index, stamp_ns);
    (proven && index < window).then_some((index, stamp_ns))
}

/// Whether every filler byte of an opened datagram is the one that was sent.
pub(super) fn filler_holds(datagram: &[u8], index: u64) -> bool {
    let filler = index.to_le_bytes()[0] ^ 0xA5;
    let filled = &datagram[STAMP_AT + WORD..datagram.len() - TAG_LEN - WORD];
    filled.iter().all(|&byte| byte == filler)
}

fn word(datagram: &[u8], at: usize) -> Option<u64> {
    let bytes = datagram.get(at..)?.first_chunk::<WORD>()?;
    Some(u64::from_le_bytes(*bytes))
}

/// Ties index and stamp together, so that a reply made of two datagrams' halves does not pass.
fn proof(index: u64, stamp_ns: u64) -> u64 {
    (index ^ stamp_ns.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn key(fill: u8) -> LessSafeKey {
    let unbound = UnboundKey::new(&AES_256_GCM, &[fill; 32]).expect("32 bytes are an AES-256 key");
    LessSafeKey::new(unbound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_what_the_other_end_sealed() {
        let mut client = Codec::encrypted(End::Client);
        let mut server = Codec::encrypted(End::Server);
        let mut datagram = vec![0; DATAGRAM_LEN_MIN + 9];
        fill(&mut datagram, 7, 1234);
        assert!(client.seal(&mut datagram));
        assert_eq!(
            check(&datagram, 8),
            None,
            "sealed bytes do not read as a datagram"
        );

        let mut tampered = datagram.clone();
        tampered[NONCE_LEN + 3] ^= 1;
        assert!(!server.open(&mut tampered));

        assert!(server.open(&mut datagram));
        assert_eq!(check(&datagram, 8), Some((7, 1234)));
        assert!(filler_holds(&datagram, 7));
        assert!(server.seal(&mut datagram));
        assert!(client.open(&mut datagram));
        assert_eq!(check(&datagram, 8), Some((7, 1234)));
    }

    #[test]
    fn a_changed_datagram_does_not_pass_the_check() {
        let mut datagram = vec![0; DATAGRAM_LEN_MIN + 4];
        fill(&mut datagram, 3, 99);
        assert_eq!(check(&datagram, 4), Some((3, 99)));
        assert_eq!(check(&datagram, 3), None, "index outside the window");
        let last_of_proof = datagram.len() - TAG_LEN - 1;
        for at in [INDEX_AT, STAMP_AT, last_of_proof] {
            let mut changed = datagram.clone();
            changed[at] ^= 0x40;
            assert_eq!(check(&changed, 4), None, "byte {at} changed");
        }
        let mut changed = datagram.clone();
        changed[STAMP_AT + WORD] ^= 1;
        assert!(!filler_holds(&changed, 3));
        assert_eq!(check(&datagram[..DATAGRAM_LEN_MIN - 1], 4), None);
    }
}
