//! The window: CUBIC (RFC 9438) with slow start, moved once a round and only in rounds that it
//! limited, so that time in which nothing was to be sent does not count.

use core::time::Duration;

use super::{WINDOW_INITIAL, WINDOW_MAX, WINDOW_MIN};
use crate::time::Time;
use crate::wire::limits::DATAGRAM_LEN_MAX;

/// What is left after a loss (RFC 9438, 4.6).
const BETA: f64 = 0.7;
/// Growth, in segments a cubic second (RFC 9438, 5.1).
const C: f64 = 0.4;
/// Segments a round trip in the Reno-friendly region (RFC 9438, 4.3).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
const SEGMENT: f64 = DATAGRAM_LEN_MAX as f64;

#[derive(Clone, Copy, Debug)]
struct Curve {
    /// Window at the last loss, in segments.
    peak: f64,
    /// Seconds from the loss until the curve is at its peak again.
    climb_s: f64,
    /// Seconds of limited rounds since the loss.
    elapsed_s: f64,
    /// Where Reno would be, in segments.
    friendly: f64,
}

/// The window and what moved it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cubic {
    bytes: usize,
    /// Slow start ends here.
    threshold: usize,
    curve: Option<Curve>,
    /// Losses of what was sent before this are already paid for.
    cut_at: Option<Time>,
    /// What a cut by a time-out took, while nothing else has shown a loss.
    before: Option<(usize, usize)>,
}

impl Cubic {
    pub(super) fn new() -> Self {
        Cubic {
            bytes: WINDOW_INITIAL,
            threshold: WINDOW_MAX,
            curve: None,
            cut_at: None,
            before: None,
        }
    }

    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A round that the window limited has ended.
    pub(super) fn grow(&mut self, acked: usize, lasted: Duration, round_trip: Duration) {
        if self.bytes < self.threshold {
            self.bytes = (self.bytes + acked.min(self.bytes)).min(WINDOW_MAX);
            return;
        }
        let bytes = self.bytes as f64;
        let segments = bytes / SEGMENT;
        let curve = self.curve.get_or_insert(Curve {
            peak: segments,
            climb_s: 0.0,
            elapsed_s: 0.0,
            friendly: segments,
        });
        curve.elapsed_s += lasted.as_secs_f64();
        curve.friendly += ALPHA * (acked as f64 / bytes).min(1.0);
        let from_peak_s = curve.elapsed_s + round_trip.as_secs_f64() - curve.climb_s;
        let cubic = C * from_peak_s.powi(3) + curve.peak;
        let target = cubic.max(curve.friendly).clamp(segments, 1.5 * segments);
        self.bytes = whole(target * SEGMENT).min(WINDOW_MAX);
    }

    /// Whether the loss of something sent then is one that was not yet paid for.
    pub(super) fn is_news(&self, sent_at: Time) -> bool {
        self.cut_at.is_none_or(|cut_at| sent_at >= cut_at)
    }

    /// Something that was sent then is lost.
    pub(super) fn lose(&mut self, now: Time, sent_at: Time) {
        self.before = None;
        if self.is_news(sent_at) {
            self.cut(now);
        }
    }

    /// Something that was sent then found no answer in time, and may be lost.
    pub(super) fn time_out(&mut self, now: Time, sent_at: Time) {
        if self.is_news(sent_at) {
            let before = (self.bytes, self.threshold);
            self.cut(now);
            self.before = Some(before);
        }
    }

    /// What made the last time-out was not lost.
    pub(super) fn undo(&mut self) {
        if let Some((bytes, threshold)) = self.before.take() {
            self.bytes = self.bytes.max(bytes);
            self.threshold = threshold;
            self.curve = None;
        }
    }

    /// Everything that was sent for a long time is lost.
    pub(super) fn collapse(&mut self, now: Time) {
        self.before = None;
        self.cut(now);
        self.bytes = WINDOW_MIN;
    }

    fn cut(&mut self, now: Time) {
        let segments = self.bytes as f64 / SEGMENT;
        // A window that did not come back to where it was leaves room for others (RFC 9438, 4.7).
        let peak = match self.curve {
            Some(curve) if segments < curve.peak => segments * (1.0 + BETA) / 2.0,
            _ => segments,
        };
        self.bytes = whole(segments * BETA * SEGMENT).max(WINDOW_MIN);
        self.threshold = self.bytes;
        let left = self.bytes as f64 / SEGMENT;
        self.curve = Some(Curve {
            peak,
            climb_s: ((peak - left).max(0.0) / C).cbrt(),
            elapsed_s: 0.0,
            friendly: left,
        });
        self.cut_at = Some(now);
    }
}

/// Bytes of a window that was computed in fractions.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a window is positive and at most 1.5 times WINDOW_MAX; a fraction of a byte is none"
)]
fn whole(bytes: f64) -> usize {
    bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_takes_three_tenths_once_a_round_trip() {
        let mut window = Cubic::new();
        window.bytes = 1_000_000;
        let (sent, now) = (Time::from_nanos(5), Time::from_nanos(1_000));
        window.lose(now, sent);
        assert!(
            (699_000..=700_000).contains(&window.bytes()),
            "{}",
            window.bytes()
        );
        window.lose(now, sent);
        assert!(window.bytes() >= 699_000, "the same flight is paid for");
        window.lose(now + Duration::from_millis(1), now);
        assert!(window.bytes() < 491_000);
        for _ in 0..100 {
            window.lose(Time::from_nanos(u64::MAX), Time::from_nanos(u64::MAX));
        }
        assert_eq!(window.bytes(), WINDOW_MIN);
    }

    #[test]
    fn a_time_out_that_was_none_gives_back_what_it_took() {
        let mut window = Cubic::new();
        window.bytes = 100_000;
        window.time_out(Time::from_nanos(9), Time::from_nanos(1));
        assert!(window.bytes() < 71_000);
        window.undo();
        assert_eq!(window.bytes(), 100_000);
        window.time_out(Time::from_nanos(20), Time::from_nanos(10));
        window.lose(Time::from_nanos(30), Time::from_nanos(25));
        let left = window.bytes();
        window.undo();
        assert_eq!(window.bytes(), left, "a real loss stands");
    }

    #[test]
    fn it_is_back_at_its_peak_after_the_time_of_the_curve() {
        let mut window = Cubic::new();
        window.bytes = 1_400_000;
        window.lose(Time::from_nanos(2), Time::from_nanos(1));
        let round = Duration::from_millis(100);
        // K = cbrt(1,000 * 0.3 / 0.4) = 9.09 s.
        for _ in 0..89 {
            window.grow(window.bytes(), round, round);
        }
        let peak = window.bytes();
        assert!((1_380_000..=1_401_000).contains(&peak), "{peak}");
        for _ in 0..91 {
            window.grow(window.bytes(), round, round);
        }
        assert!(window.bytes() > 1_750_000, "{}", window.bytes());
    }
}
