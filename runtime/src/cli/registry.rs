//! `ramjet registry`: the market, until it is stopped.
//!
//! `--json` prints an object when it is ready: `event`, `listen`, `beacon`, `public_key`, `metrics`; and
//! one when it has stopped: `event`, `counters`.

use std::net::SocketAddr;
use std::time::Duration;

use ramjet_registry::RegistryHandle;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::host;
use super::market::{self, reachable};
use super::metrics::{Metrics, Watched};
use super::notify::{self, Watchdog};
use super::output::Output;
use super::reload;
use super::settings::{self as s, Settings};
use super::signals::Signals;
use crate::control::query::RegistryClient;
use crate::events;

/// How often signals and the watchdog are looked at without being woken.
const PAUSE: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, output: &mut Output) -> Result<Exit, Failure> {
    let signals = Signals::install_for_service()?;
    // A folder that was named is the registry's alone; the user's own is shared with a node.
    let folder = match settings.path(s::STATE) {
        Some(folder) => folder,
        None => host::state_folder(settings)?.join(host::REGISTRY_FOLDER),
    };
    let metrics = Metrics::bind(settings)?;
    let registry = market::start_from(settings, market::ALONE, folder)?;
    let metrics = metrics.of_registry(&registry, output)?;
    tell_ready(&registry, &metrics, output)?;
    let status = format!("listens on {}", registry.tcp_addr());
    notify::ready(&status);
    let mut settings = settings.clone();
    let mut watchdog = Watchdog::from_env();
    let mut visitor = Visitor::new(registry.tcp_addr());
    let signal = loop {
        crossbeam::select! {
            recv(signals.received) -> name => break name.unwrap_or("a signal"),
            recv(signals.reloads) -> asked => {
                if asked.is_ok() {
                    reload::registry(&mut settings, &status);
                }
            }
            default(watchdog.pause(PAUSE)) => {}
        }
        watchdog.look(|limit| visitor.visit(limit));
    };
    notify::stopping();
    if output.is_logged() {
        tracing::info!(message_id = events::MARKET_STOPPING, signal, "stopping");
    } else {
        output.say(&format!("{signal}: stopping"));
    }
    market::stop(registry, output)?;
    Ok(Exit::Ok)
}

fn tell_ready(
    registry: &RegistryHandle,
    metrics: &Watched,
    output: &Output,
) -> Result<(), Failure> {
    let (listen, beacon) = (registry.tcp_addr(), registry.beacon_addr());
    let public_key = registry.public_key();
    let beacon_text = beacon.map_or_else(|| "none".to_owned(), |address| address.to_string());
    if output.is_logged() {
        tracing::info!(
            message_id = events::MARKET_READY,
            %listen,
            beacon = beacon_text,
            %public_key,
            "ready"
        );
    } else {
        output.say(&format!(
            "ready registry listen={listen} beacon={beacon_text} public_key={public_key}"
        ));
    }
    if !output.json {
        return Ok(());
    }
    output.object(&json!({
        "event": "ready",
        "listen": listen,
        "beacon": beacon,
        "public_key": public_key,
        "metrics": metrics.url(),
    }))
}

/// Asks the registry what anybody may ask, over the one connection it keeps: the answer passes both
/// of its threads. A connection for each visit would find no place when the registry is full, and a
/// full registry is no dead one.
struct Visitor {
    address: SocketAddr,
    client: Option<RegistryClient>,
}

impl Visitor {
    fn new(listen: SocketAddr) -> Self {
        Visitor {
            address: reachable(listen),
            client: None,
        }
    }

    /// A sign of life of the registry within `limit`.
    fn visit(&mut self, limit: Duration) -> Result<(), String> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => RegistryClient::connect(self.address).map_err(|error| error.0)?,
        };
        client.patience(limit).map_err(|error| error.0)?;
        client.engagements(None, 1).map_err(|error| error.0)?;
        self.client = Some(client);
        Ok(())
    }
}
