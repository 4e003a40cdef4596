//! The load every peer is given, and what is counted of it.
//!
//! A closed loop: so many requests are outstanding, and each reply sends the next one. A reply
//! counts if it arrived between the end of the warm-up and the end of the run; its latency is the
//! time from before the request was handed to the peer's client until its reply had been compared.
//!
//! Invariants: nothing is counted that was not compared with what was sent; a run ends at its
//! deadline plus [`STALL_LIMIT`], whatever the peer does. Absent: how a peer is reached.

use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use tokio::time::{Instant, timeout_at};

use crate::failure::Failure;

/// Fewest payload bytes: the number of the request.
pub(crate) const PAYLOAD_LEN_MIN: usize = NUMBER_LEN;
/// Most payload bytes: what every peer carries in one piece, a QUIC datagram included.
pub(crate) const PAYLOAD_LEN_MAX: usize = 1_100;
/// Most requests outstanding.
pub(crate) const WINDOW_MAX: usize = 4_096;
/// How long a run may be without its last replies.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(5);

const NUMBER_LEN: usize = size_of::<u64>();
/// Longest latency the histogram tells apart from longer ones, in nanoseconds: one minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Digits of meaning of a latency.
const LATENCY_DIGITS: u8 = 3;

/// How much of what, for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Bytes of a request and of its reply.
    pub(crate) payload_len: usize,
    /// Requests outstanding.
    pub(crate) window: usize,
    /// Uncounted time at the head.
    pub(crate) warm_up: Duration,
    /// Counted time.
    pub(crate) run: Duration,
}

/// When counting begins and ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    counting_from: Instant,
    until: Instant,
}

impl Phase {
    /// A run that begins now.
    pub(crate) fn begin(load: &Load) -> Self {
        let counting_from = Instant::now() + load.warm_up;
        Phase {
            counting_from,
            until: counting_from + load.run,
        }
    }

    /// Whether no more requests are to be sent.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// Waits for `work`, at most until the run is overdue.
    pub(crate) async fn bound<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout_at(self.until + STALL_LIMIT, work)
            .await
            .unwrap_or_else(|_| {
                Err(Failure::Environment(format!(
                    "the peer stalled: replies were missing {} s after the end of the run",
                    STALL_LIMIT.as_secs()
                )))
            })
    }
}

/// What a run counted.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Latencies of the counted replies, in nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    /// Requests that were given up as lost, over the whole run; only datagrams are.
    pub(crate) lost: u64,
    phase: Phase,
}

impl Measured {
    /// Nothing yet.
    pub(crate) fn new(phase: Phase) -> Result<Self, Failure> {
        let latencies = Histogram::new_with_bounds(1, LATENCY_NS_MAX, LATENCY_DIGITS)
            .map_err(|error| Failure::at("histogram", error))?;
        Ok(Measured {
            latencies,
            lost: 0,
            phase,
        })
    }

    /// Counts a reply that was compared at `now`, if it falls into the counted time.
    pub(crate) fn record(&mut self, sent: Instant, now: Instant) {
        if now >= self.phase.counting_from && now < self.phase.until {
            let latency = now.saturating_duration_since(sent).as_nanos();
            let latency = u64::try_from(latency).unwrap_or(u64::MAX);
            self.latencies
                .saturating_record(latency.clamp(1, LATENCY_NS_MAX));
        }
    }

    /// Replies counted.
    pub(crate) fn tasks(&self) -> u64 {
        self.latencies.len()
    }

    /// Counted time, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        (self.phase.until - self.phase.counting_from).as_secs_f64()
    }

    /// Replies per second of counted time.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate has no more than four digits of meaning"
    )]
    pub(crate) fn tasks_per_s(&self) -> f64 {
        self.tasks() as f64 / self.seconds()
    }

    /// The latency that `quantile` of the replies did not exceed, in microseconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a latency has no more than three digits of meaning"
    )]
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The longest latency, in microseconds.
    pub(crate) fn max_us(&self) -> f64 {
        self.quantile_us(1.0)
    }
}

/// Payload of request `number`: the number in eight bytes, big-endian, then bytes that count up.
pub(crate) fn payload(number: u64, len: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(len);
    write_payload(number, len, |part| bytes.extend_from_slice(part));
    bytes.freeze()
}

/// Writes the payload of request `number` in parts.
pub(crate) fn write_payload(number: u64, len: usize, mut write: impl FnMut(&[u8])) {
    debug_assert!(len >= PAYLOAD_LEN_MIN, "a payload holds its number");
    write(&number.to_be_bytes());
    let mut left = len.saturating_sub(NUMBER_LEN);
    while left > 0 {
        let part = left.min(FILLING.len());
        write(&FILLING[..part]);
        left -= part;
    }
}

/// The number in the head of a payload, if all of it is what [`write_payload`] writes.
pub(crate) fn number_of(payload: &[u8], len: usize) -> Result<u64, Failure> {
    let number = payload
        .first_chunk()
        .filter(|_| payload.len() == len)
        .map(|head| u64::from_be_bytes(*head))
        .ok_or_else(|| {
            Failure::Wrong(format!(
                "the echo has {} bytes, {len} were sent",
                payload.len()
            ))
        })?;
    let mut rest = &payload[NUMBER_LEN..];
    while !rest.is_empty() {
        let part = rest.len().min(FILLING.len());
        let (now, later) = rest.split_at(part);
        if now != &FILLING[..part] {
            return Err(Failure::Wrong(format!(
                "the echo of request {number} differs from what was sent"
            )));
        }
        rest = later;
    }
    Ok(number)
}

static FILLING: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut value = 0_u8;
    loop {
        bytes[value as usize] = value;
        if value == u8::MAX {
            break bytes;
        }
        value += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_read_back_and_a_changed_one_is_refused() {
        for len in [8, 9, 64, 264, 265, PAYLOAD_LEN_MAX] {
            let bytes = payload(7_000_000_001, len);
            assert_eq!(bytes.len(), len);
            assert_eq!(number_of(&bytes, len).expect("unchanged"), 7_000_000_001);
            let mut changed = bytes.to_vec();
            changed[len - 1] ^= 1;
            match number_of(&changed, len) {
                Ok(number) => assert!(len == 8 && number == 7_000_000_000, "{len}: {number}"),
                Err(Failure::Wrong(text)) => assert!(text.contains("differs"), "{text}"),
                Err(other) => panic!("{other}"),
            }
            assert!(number_of(&bytes[..len - 1], len).is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_replies_of_the_counted_time_count() {
        let load = Load {
            payload_len: 64,
            window: 1,
            warm_up: Duration::from_millis(10),
            run: Duration::from_millis(100),
        };
        let phase = Phase::begin(&load);
        let mut measured = Measured::new(phase).expect("a histogram");
        let start = Instant::now();
        for at_ms in [0, 9, 10, 60, 109, 110, 200] {
            let now = start + Duration::from_millis(at_ms);
            measured.record(now, now + Duration::ZERO);
        }
        assert_eq!(measured.tasks(), 3);
        assert!((measured.tasks_per_s() - 30.0).abs() < 1e-9);
        assert!(!phase.is_over(start + Duration::from_millis(109)));
        assert!(phase.is_over(start + Duration::from_millis(110)));
    }
}
