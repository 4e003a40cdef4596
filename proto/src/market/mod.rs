//! The market: what requesters, workers and the registry say to each other about work.
//!
//! | part | holds |
//! |---|---|
//! | [`terms`] | offers, accepts, capabilities: what a requester wants and a worker can do |
//! | [`grant`] | the registry's signed permission for one engagement |
//! | [`receipt`] | the cumulative account of one engagement, signed by both ends |
//! | [`message`] | the JSON messages between a node and the registry |
//!
//! Whatever is signed has one binary form: a domain string, then fixed-width big-endian fields and
//! length-prefixed text, in the order in which the struct lists them. The signature covers exactly
//! those bytes.

pub mod grant;
pub mod message;
pub mod receipt;
pub mod terms;

pub use grant::{GRANT_LEN_MAX, Gate, Grant, SignedGrant};
pub use receipt::{RECEIPT_LEN, Receipt, SignedReceipt};
pub use terms::{AcceptFrom, AcceptTerms, Advertisement, Filter, Offer};

/// Appends fields in the canonical binary form.
#[derive(Default)]
pub(crate) struct Canonical(Vec<u8>);

impl Canonical {
    pub(crate) fn new(domain: &str) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(domain.as_bytes());
        bytes.push(0);
        Canonical(bytes)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn i64(self, value: i64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Text of up to 65,535 bytes, its length before it; what is longer is cut, and therefore does
    /// not verify at the other end.
    pub(crate) fn text(self, text: &str) -> Self {
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.bytes(&length.to_be_bytes())
            .bytes(&text.as_bytes()[..usize::from(length)])
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes fields off the front of a byte slice; `None` once it runs out.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }
}
