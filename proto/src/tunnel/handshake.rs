//! Key announcements and the derivation of session keys.
//!
//! A node announces an X25519 key under its Ed25519 identity. The signature covers `auth`, the
//! node id and the key; nothing in it is fresh and nothing names the receiver, so an announcement
//! proves only that the node once held the key. What is believed on its word is decided in
//! `peer`.
//!
//! The session key is HKDF-SHA256 of the X25519 secret with an empty salt and the bare string
//! `pilot-tunnel-v1`, as in every released daemon.

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{aead, hkdf};

use super::Entropy;
use super::keys::{NonceCounter, SessionKey};
use crate::fault::DropReason;
use crate::identity::{Identity, PublicKey};
use crate::ids::NodeId;
use crate::time::Time;
use crate::wire::datagram::{self, ANNOUNCEMENT_LEN, Announcement, REQUEST_LEN};

const INFO: &[u8] = b"pilot-tunnel-v1";

/// An X25519 key of ours, made for one peer, with the counter of everything that is sealed under
/// it and the announcement that tells it.
pub(super) struct LocalKey {
    private: PrivateKey,
    announcement: Announcement,
    pub(super) counter: NonceCounter,
    pub(super) since: Time,
}

impl LocalKey {
    pub(super) fn new(identity: &Identity, ours: NodeId, now: Time, entropy: Entropy<'_>) -> Self {
        let mut seed = [0; 32];
        entropy(&mut seed);
        let private = PrivateKey::from_private_key(&X25519, &seed).expect("any 32 bytes are a key");
        let public = private
            .compute_public_key()
            .expect("every private key has a public one");
        let mut key = [0; 32];
        key.copy_from_slice(public.as_ref());
        let announcement = Announcement {
            sender: ours,
            key,
            identity: identity.public().0,
            signature: identity.sign(&signed_bytes(ours, &key)),
        };
        LocalKey {
            private,
            announcement,
            counter: NonceCounter::default(),
            since: now,
        }
    }

    /// The announcement, a whole datagram.
    pub(super) fn announcement(&self) -> [u8; ANNOUNCEMENT_LEN] {
        self.announcement.to_bytes()
    }

    /// The key request that goes with it, a whole datagram.
    pub(super) fn request(&self) -> [u8; REQUEST_LEN] {
        datagram::request(self.announcement.sender, self.announcement.key)
    }

    /// The session key with a peer's X25519 key; `None` if that is a point of low order.
    pub(super) fn session_key(&self, remote: &[u8; 32]) -> Option<SessionKey> {
        let remote = UnparsedPublicKey::new(&X25519, remote);
        agree(&self.private, remote, Unspecified, |secret| {
            let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(secret);
            let material = pseudorandom.expand(&[INFO], &aead::AES_256_GCM)?;
            Ok(SessionKey::new(aead::UnboundKey::from(material)))
        })
        .ok()
    }
}

/// Whether `announcement` was made by the holder of `identity`, the registry's key for its sender.
///
/// # Errors
/// [`DropReason::WrongIdentity`], [`DropReason::BadSignature`].
pub(super) fn verify(announcement: &Announcement, identity: &PublicKey) -> Result<(), DropReason> {
    if announcement.identity != identity.0 {
        return Err(DropReason::WrongIdentity);
    }
    let signed = signed_bytes(announcement.sender, &announcement.key);
    if identity.verifies(&signed, &announcement.signature) {
        Ok(())
    } else {
        Err(DropReason::BadSignature)
    }
}

fn signed_bytes(sender: NodeId, key: &[u8; 32]) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[..4].copy_from_slice(b"auth");
    bytes[4..8].copy_from_slice(&sender.0.to_be_bytes());
    bytes[8..].copy_from_slice(key);
    bytes
}
