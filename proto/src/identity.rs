//! Ed25519 identities: who a node is, to the registry and to every peer.
//!
//! The JSON form is the one that Pilot daemons keep beside their state
//! (`{"private_key": base64 of seed and public key, "public_key": base64}`), so that a host moves
//! between the two without a new identity. Reading and writing the file is the caller's work.

use core::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

/// An Ed25519 signature.
pub type Signature = [u8; 64];

/// An Ed25519 public key. Text form: standard padded base64 of its 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Whether `signature` is this key's signature over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }

    /// Standard padded base64, as in every Pilot message.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0)
    }

    /// Reads [`Self::to_base64`]; `None` if it is not base64 of exactly 32 bytes.
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text).ok()?;
        Some(PublicKey(bytes.try_into().ok()?))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.to_base64())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        PublicKey::from_base64(&text)
            .ok_or_else(|| serde::de::Error::custom("not base64 of a 32-byte Ed25519 public key"))
    }
}

/// Why an identity could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityFault {
    /// Not JSON with the two members.
    NotJson,
    /// A member is not base64 of the right length (64 and 32 bytes).
    BadKey,
    /// The public key does not belong to the private one.
    Mismatch,
}

impl fmt::Display for IdentityFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IdentityFault::NotJson => {
                "not a JSON object with the members private_key and public_key"
            }
            IdentityFault::BadKey => {
                "private_key must be base64 of 64 bytes and public_key base64 of 32"
            }
            IdentityFault::Mismatch => "public_key does not belong to private_key",
        })
    }
}

impl std::error::Error for IdentityFault {}

#[derive(Serialize, Deserialize)]
struct IdentityJson {
    private_key: String,
    public_key: String,
}

/// An Ed25519 key pair.
pub struct Identity {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for Identity {
    /// The public half only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.public)
    }
}

impl Identity {
    /// The identity that grows from 32 bytes of entropy.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        // The length is the only thing this constructor can refuse.
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed of 32 bytes");
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Identity {
            seed,
            pair,
            public: PublicKey(public),
        }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `message` as it is, without a prefix or a hash of its own (RFC 8032, 5.1.6).
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }

    /// The file form.
    pub fn to_json(&self) -> String {
        let mut private = [0; 64];
        private[..32].copy_from_slice(&self.seed);
        private[32..].copy_from_slice(&self.public.0);
        let json = IdentityJson {
            private_key: BASE64.encode(private),
            public_key: self.public.to_base64(),
        };
        serde_json::to_string_pretty(&json).expect("two strings serialize")
    }

    /// Reads the file form.
    ///
    /// # Errors
    /// [`IdentityFault`], by which member is wrong.
    pub fn from_json(text: &str) -> Result<Self, IdentityFault> {
        let json: IdentityJson = serde_json::from_str(text).map_err(|_| IdentityFault::NotJson)?;
        let private = BASE64
            .decode(&json.private_key)
            .map_err(|_| IdentityFault::BadKey)?;
        let public = PublicKey::from_base64(&json.public_key).ok_or(IdentityFault::BadKey)?;
        if private.len() != 64 {
            return Err(IdentityFault::BadKey);
        }
        let mut seed = [0; 32];
        seed.copy_from_slice(&private[..32]);
        let identity = Identity::from_seed(seed);
        if identity.public != public || private[32..] != public.0 {
            return Err(IdentityFault::Mismatch);
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_form_round_trips_and_refuses_a_foreign_public_key() {
        let identity = Identity::from_seed([7; 32]);
        let again = Identity::from_json(&identity.to_json()).expect("own file form");
        assert_eq!(again.public(), identity.public());
        let other = Identity::from_seed([8; 32]);
        let forged = identity
            .to_json()
            .replace(&identity.public().to_base64(), &other.public().to_base64());
        assert_eq!(
            Identity::from_json(&forged).err(),
            Some(IdentityFault::Mismatch)
        );
        assert_eq!(
            Identity::from_json("{}").err(),
            Some(IdentityFault::NotJson)
        );
    }

    #[test]
    fn rfc_8032_vector_2_signs_and_verifies() {
        let seed = hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let identity = Identity::from_seed(seed.try_into().expect("32 bytes"));
        let signature = identity.sign(&[0x72]);
        assert_eq!(
            signature.to_vec(),
            hex(concat!(
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da",
                "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
            ))
        );
        assert!(identity.public().verifies(&[0x72], &signature));
        assert!(!identity.public().verifies(&[0x73], &signature));
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
            .collect()
    }
}
