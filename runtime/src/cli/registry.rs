//! `ramjet registry`: the market, until it is stopped.
//!
//! `--json` prints an object when it is ready: `event`, `listen`, `beacon`, `public_key`; and one when
//! it has stopped: `event`, `counters`.

use serde_json::json;

use super::exit::{Exit, Failure};
use super::host;
use super::market;
use super::notify::{READY, STOPPING, notify};
use super::output::Output;
use super::settings::{self as s, Settings};
use super::signals::Signals;

pub(super) fn run(settings: &Settings, output: &mut Output) -> Result<Exit, Failure> {
    let signals = Signals::install()?;
    // A folder that was named is the registry's alone; the user's own is shared with a node.
    let folder = match settings.path(s::STATE) {
        Some(folder) => folder,
        None => host::state_folder(settings)?.join(host::REGISTRY_FOLDER),
    };
    let registry = market::start_from(settings, market::ALONE, folder)?;
    let beacon = registry.beacon_addr();
    output.say(&format!(
        "ready registry listen={} beacon={} public_key={}",
        registry.tcp_addr(),
        beacon.map_or_else(|| "none".to_owned(), |address| address.to_string()),
        registry.public_key()
    ));
    if output.json {
        output.object(&json!({
            "event": "ready",
            "listen": registry.tcp_addr(),
            "beacon": beacon,
            "public_key": registry.public_key(),
        }))?;
    }
    notify(READY);
    let signal = signals.received.recv().unwrap_or("a signal");
    notify(STOPPING);
    output.say(&format!("{signal}: stopping"));
    market::stop(registry, output)?;
    Ok(Exit::Ok)
}
