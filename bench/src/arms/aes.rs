//! What AES-256-GCM costs here, with no network at all.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::codec::{self, Codec, End};
use super::drive::{as_f64, nanos};
use super::{ArmError, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN};
use serde::Serialize;

/// Datagrams sealed, then opened, between two looks at the clock.
const ROUND: usize = 64;

/// What [`aes_gcm`] runs.
#[derive(Clone, Copy, Debug)]
pub struct AesGcm {
    /// Length of the datagram, nonce and tag included, from [`DATAGRAM_LEN_MIN`] to
    /// [`DATAGRAM_LEN_MAX`] bytes.
    pub datagram_len: usize,
    /// How long to measure.
    pub duration: Duration,
}

impl AesGcm {
    /// A fifth of a second, on one core.
    #[must_use]
    pub fn new(datagram_len: usize) -> Self {
        Self {
            datagram_len,
            duration: Duration::from_millis(200),
        }
    }
}

/// Cost of the cipher per datagram.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AesCost {
    /// Length of the datagram, nonce and tag included, in bytes.
    pub datagram_len: usize,
    /// Median cost of sealing one datagram, in nanoseconds.
    pub seal_ns: f64,
    /// Median cost of opening one datagram, in nanoseconds.
    pub open_ns: f64,
    /// Datagrams sealed and opened.
    pub datagrams: u64,
}

/// Seals and opens datagrams in place on the calling thread and checks each one.
///
/// # Errors
/// [`ArmError::OutOfBounds`] for the length, [`ArmError::Corrupt`] if an opened datagram is not the
/// one that was sealed.
pub fn aes_gcm(spec: &AesGcm) -> Result<AesCost, ArmError> {
    ArmError::check(
        "datagram length",
        spec.datagram_len,
        DATAGRAM_LEN_MIN,
        DATAGRAM_LEN_MAX,
    )?;
    let mut sealing = Codec::encrypted(End::Client);
    let opening = Codec::encrypted(End::Server);
    let mut datagrams = vec![0; spec.datagram_len * ROUND];
    for (index, datagram) in (0..).zip(datagrams.chunks_exact_mut(spec.datagram_len)) {
        codec::fill(datagram, index, 0);
    }
    let mut seals_ns = Vec::new();
    let mut opens_ns = Vec::new();
    let start = Instant::now();
    while start.elapsed() < spec.duration || seals_ns.is_empty() {
        let before = Instant::now();
        let mut whole = true;
        for datagram in datagrams.chunks_exact_mut(spec.datagram_len) {
            whole &= sealing.seal(black_box(datagram));
        }
        let sealed = Instant::now();
        for datagram in datagrams.chunks_exact_mut(spec.datagram_len) {
            whole &= opening.open(black_box(datagram));
        }
        let opened = Instant::now();
        for (index, datagram) in (0..).zip(datagrams.chunks_exact(spec.datagram_len)) {
            whole &= codec::check(datagram, ROUND as u64) == Some((index, 0));
        }
        if !whole {
            return Err(ArmError::Corrupt { count: 1 });
        }
        seals_ns.push(as_f64(nanos(sealed - before)) / as_f64(ROUND as u64));
        opens_ns.push(as_f64(nanos(opened - sealed)) / as_f64(ROUND as u64));
    }
    Ok(AesCost {
        datagram_len: spec.datagram_len,
        seal_ns: crate::pairs::median(&mut seals_ns),
        open_ns: crate::pairs::median(&mut opens_ns),
        datagrams: (seals_ns.len() * ROUND) as u64,
    })
}
