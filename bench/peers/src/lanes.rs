//! The load over clients that answer a call with its reply: one lane for each request outstanding.
//!
//! A lane asks, waits, compares and asks again, as a program that calls the client would do from so
//! many tasks of its runtime. Every lane is a task of its own, so that the runtime may spread them.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::load::{Load, Measured, Phase, payload};

/// Replies a lane keeps before it takes the lock: a lock of 512 outstanding tasks would otherwise
/// be part of what is measured.
const KEPT_MAX: usize = 64;

/// A client that answers a call with its reply.
pub(crate) trait Echo: Send + 'static {
    /// Sends `payload` and returns what came back for it.
    fn echo(&mut self, payload: Bytes) -> impl Future<Output = Result<Bytes, Failure>> + Send;
}

/// Keeps every lane of `lanes` busy for the time of `load`.
pub(crate) async fn drive<E: Echo>(lanes: Vec<E>, load: &Load) -> Result<Measured, Failure> {
    let phase = Phase::begin(load);
    let measured = Arc::new(Mutex::new(Measured::new(phase)?));
    let mut tasks = JoinSet::new();
    for (lane, client) in (0_u64..).zip(lanes) {
        let work = run_lane(client, lane, load.payload_len, phase, Arc::clone(&measured));
        tasks.spawn(work);
    }
    phase
        .bound(async {
            while let Some(ended) = tasks.join_next().await {
                ended.map_err(|error| Failure::at("a lane", error))??;
            }
            Ok(())
        })
        .await?;
    let measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(measured.clone())
}

async fn run_lane<E: Echo>(
    mut client: E,
    lane: u64,
    payload_len: usize,
    phase: Phase,
    measured: Arc<Mutex<Measured>>,
) -> Result<(), Failure> {
    let mut kept: Vec<(Instant, Instant)> = Vec::with_capacity(KEPT_MAX);
    let keep = |kept: &mut Vec<(Instant, Instant)>| {
        let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
        for (sent, now) in kept.drain(..) {
            measured.record(sent, now);
        }
    };
    let mut number = lane << 40;
    loop {
        let sent = Instant::now();
        if phase.is_over(sent) {
            break;
        }
        let request = payload(number, payload_len);
        let reply = client.echo(request.clone()).await?;
        if reply != request {
            return Err(Failure::Wrong(format!(
                "the echo of request {number} differs from what was sent"
            )));
        }
        kept.push((sent, Instant::now()));
        if kept.len() == KEPT_MAX {
            keep(&mut kept);
        }
        number += 1;
    }
    keep(&mut kept);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// Answers after a time of its own, and knows how many calls were open at once.
    #[derive(Clone, Default)]
    struct Fake {
        open: Arc<AtomicUsize>,
        open_max: Arc<AtomicUsize>,
        broken: bool,
        mute: bool,
    }

    impl Echo for Fake {
        async fn echo(&mut self, payload: Bytes) -> Result<Bytes, Failure> {
            let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
            self.open_max.fetch_max(open, Ordering::SeqCst);
            let delay = if self.mute { 3_600_000 } else { 1 };
            tokio::time::sleep(Duration::from_millis(delay)).await;
            self.open.fetch_sub(1, Ordering::SeqCst);
            Ok(if self.broken {
                payload.slice(1..)
            } else {
                payload
            })
        }
    }

    const LOAD: Load = Load {
        payload_len: 64,
        window: 4,
        warm_up: Duration::from_millis(100),
        run: Duration::from_millis(1_000),
    };

    async fn run(fake: &Fake) -> Result<Measured, Failure> {
        drive(vec![fake.clone(); LOAD.window], &LOAD).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_is_full_and_every_reply_of_the_run_counts() {
        let fake = Fake::default();
        let measured = run(&fake).await.expect("a true echo");
        assert_eq!(fake.open_max.load(Ordering::SeqCst), 4);
        assert_eq!(fake.open.load(Ordering::SeqCst), 0);
        // Four lanes, a reply each millisecond, one second.
        assert!(
            (3_990..=4_010).contains(&measured.tasks()),
            "{}",
            measured.tasks()
        );
        let p50_us = measured.quantile_us(0.5);
        assert!((999.0..1_003.0).contains(&p50_us), "{p50_us}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_echo_and_a_missing_one_give_no_figure() {
        let broken = Fake {
            broken: true,
            ..Fake::default()
        };
        let wrong = run(&broken).await.expect_err("a changed echo");
        assert!(matches!(&wrong, Failure::Wrong(_)), "{wrong}");
        let mute = Fake {
            mute: true,
            ..Fake::default()
        };
        let stalled = run(&mute).await.expect_err("no echo").to_string();
        assert!(stalled.contains("stalled"), "{stalled}");
    }
}
