//! SIGINT and SIGTERM as messages.
//!
//! The first signal asks the command to end in good order; the second ends the process at once
//! with [`Exit::Interrupted`].

use crossbeam::channel::{Receiver, bounded};
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Exit, Failure};

/// Catches signals from its installation to the end of the process.
pub struct Signals {
    /// Receives one message: the name of the first signal.
    pub received: Receiver<&'static str>,
}

impl Signals {
    /// Takes over SIGINT and SIGTERM. Called once, by commands that have something to put in order.
    ///
    /// # Errors
    /// If the kernel refuses the handler or the thread.
    pub fn install() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::environment(format!("signals could not be caught: {error}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        // Registered here, so that no signal is lost before the thread runs.
        let (mut interrupt, mut terminate) = {
            let _entered = runtime.enter();
            (
                signal(SignalKind::interrupt()).map_err(failed)?,
                signal(SignalKind::terminate()).map_err(failed)?,
            )
        };
        let (sender, received) = bounded(1);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    for signals in 0_u32.. {
                        let name = tokio::select! {
                            _ = interrupt.recv() => "SIGINT",
                            _ = terminate.recv() => "SIGTERM",
                        };
                        if signals > 0 || sender.try_send(name).is_err() {
                            std::process::exit(i32::from(Exit::Interrupted.code()));
                        }
                    }
                });
            })
            .map_err(failed)?;
        Ok(Signals { received })
    }
}
