//! Session keys and nonces; the only importer of the AEAD.
//!
//! Both directions of a tunnel use one AES-256-GCM key, so the two ends must never draw the same
//! nonce. A nonce is a 4-byte prefix, drawn at random for each session, and a counter. The top bit
//! of the prefix says which end of the tunnel draws it: two ramjet nodes therefore never collide,
//! and against other implementations the chance stays that of two random prefixes. The counter
//! belongs to our X25519 key and so runs on across every session that is made with it: even if one
//! of them were forgotten and made again, no nonce of it would return.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

use crate::ids::NodeId;
use crate::wire::limits::TAG_LEN;

/// Prefix and counter, as they stand in a sealed datagram.
pub(super) type NonceBytes = ([u8; 4], u64);

/// An AES-256-GCM key. The additional data is the sender's node id.
pub(super) struct SessionKey(LessSafeKey);

impl SessionKey {
    pub(super) fn new(key: UnboundKey) -> Self {
        SessionKey(LessSafeKey::new(key))
    }

    /// Encrypts in place and answers the tag.
    pub(super) fn seal(&self, nonce: NonceBytes, sender: NodeId, text: &mut [u8]) -> [u8; TAG_LEN] {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce_of(nonce), aad_of(sender), text)
            .expect("AES-GCM refuses only texts of 64 GiB and more");
        let mut bytes = [0; TAG_LEN];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Decrypts in place and answers the plaintext, or `None` if the tag does not verify, in which
    /// case the ciphertext is lost.
    pub(super) fn open<'b>(
        &self,
        nonce: NonceBytes,
        sender: NodeId,
        text_and_tag: &'b mut [u8],
    ) -> Option<&'b mut [u8]> {
        let (text, tag) =
            text_and_tag.split_at_mut_checked(text_and_tag.len().checked_sub(TAG_LEN)?)?;
        self.0
            .open_in_place_separate_tag(nonce_of(nonce), aad_of(sender), tag, text)
            .ok()
    }

    /// Decrypts into `out`, whose length is that of the plaintext, and leaves the ciphertext as it
    /// is. `false` if the tag does not verify.
    pub(super) fn open_apart(
        &self,
        nonce: NonceBytes,
        sender: NodeId,
        text_and_tag: &[u8],
        out: &mut [u8],
    ) -> bool {
        let Some((text, tag)) = text_and_tag.split_at_checked(out.len()) else {
            return false;
        };
        self.0
            .open_separate_gather(nonce_of(nonce), aad_of(sender), text, tag, out)
            .is_ok()
    }
}

fn nonce_of((prefix, counter): NonceBytes) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&prefix);
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn aad_of(sender: NodeId) -> Aad<[u8; 4]> {
    Aad::from(sender.0.to_be_bytes())
}

/// The prefix that `ours` uses towards `theirs`, from four random bytes.
pub(super) fn own_prefix(mut random: [u8; 4], ours: NodeId, theirs: NodeId) -> [u8; 4] {
    random[0] = random[0] & 0x7F | if ours > theirs { 0x80 } else { 0 };
    random
}

/// The counter of one of our X25519 keys; each value is handed out once, from 1.
#[derive(Debug, Default)]
pub(super) struct NonceCounter(u64);

impl NonceCounter {
    /// The next nonce under `prefix`.
    pub(super) fn next(&mut self, prefix: [u8; 4]) -> NonceBytes {
        self.0 = self
            .0
            .checked_add(1)
            .expect("rotation comes 2^36 times earlier");
        (prefix, self.0)
    }

    /// A counter that has handed out `used` values.
    #[cfg(test)]
    pub(super) fn after(used: u64) -> Self {
        NonceCounter(used)
    }

    /// How many were handed out.
    pub(super) fn used(&self) -> u64 {
        self.0
    }
}
