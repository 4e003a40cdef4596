//! SIGINT, SIGTERM and, for services, SIGHUP as messages.
//!
//! The first signal asks the command to end in good order; the second ends the process at once
//! with [`Exit::Interrupted`]. SIGHUP asks a service to read its settings again; it ends any other
//! command, as it always does.

use crossbeam::channel::{Receiver, bounded, never};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{Exit, Failure};

/// Catches signals from its installation to the end of the process.
pub struct Signals {
    /// Receives one message: the name of the first signal that asks for the end.
    pub received: Receiver<&'static str>,
    /// Receives a message for every SIGHUP, or fewer if they come faster than they are read.
    pub reloads: Receiver<()>,
}

impl Signals {
    /// Takes over SIGINT and SIGTERM. Called once, by commands that have something to put in order.
    ///
    /// # Errors
    /// If the kernel refuses the handler or the thread.
    pub fn install() -> Result<Self, Failure> {
        Signals::take_over(false)
    }

    /// The same and SIGHUP, for services that can read their settings again.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn install_for_service() -> Result<Self, Failure> {
        Signals::take_over(true)
    }

    fn take_over(service: bool) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::environment(format!("signals could not be caught: {error}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        // Registered here, so that no signal is lost before the thread runs.
        let (mut interrupt, mut terminate, mut hangup) = {
            let _entered = runtime.enter();
            let hangup = service.then(|| signal(SignalKind::hangup())).transpose();
            (
                signal(SignalKind::interrupt()).map_err(failed)?,
                signal(SignalKind::terminate()).map_err(failed)?,
                hangup.map_err(failed)?,
            )
        };
        let (sender, received) = bounded(1);
        let (reload, reloads) = bounded(1);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let mut ended = false;
                    loop {
                        let name = tokio::select! {
                            _ = interrupt.recv() => "SIGINT",
                            _ = terminate.recv() => "SIGTERM",
                            () = next(hangup.as_mut()) => {
                                // One that waits is as good as two.
                                let _ = reload.try_send(());
                                continue;
                            }
                        };
                        if ended || sender.try_send(name).is_err() {
                            std::process::exit(i32::from(Exit::Interrupted.code()));
                        }
                        ended = true;
                    }
                });
            })
            .map_err(failed)?;
        let reloads = if service { reloads } else { never() };
        Ok(Signals { received, reloads })
    }
}

/// The next of a signal that may not be caught.
async fn next(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
