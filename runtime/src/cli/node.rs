//! `ramjet node`: a worker, until it is stopped.
//!
//! It starts without its registry and registers when it is there: on a host that boots, the two may
//! come up in any order. One line on standard error, and with `--json` one object on standard
//! output, says when it is ready: `event`, `node`, `address`, `listen`, `socket`.

use std::time::Duration;

use ramjet_proto::ids::NodeId;
use ramjet_proto::market::AcceptFrom;
use serde_json::json;

use super::args::NodeArgs;
use super::exit::{Exit, Failure};
use super::host::{self, ServeDefaults};
use super::identity_file::{self, Source};
use super::notify::{READY, STOPPING, notify};
use super::output::Output;
use super::settings::{self as s, Settings};
use super::signals::Signals;
use crate::node::{Node, NodeConfig};
use crate::worker::plan::{PlanLimits, plan};

/// A node offers what it is told to offer, by the article's gate.
const DEFAULTS: ServeDefaults = ServeDefaults {
    skills: &[],
    accept_from: AcceptFrom::Gate,
    task_ready: false,
};

/// How long one look at the registration lasts before signals are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Looks without a registration until the operator is told what is being waited for: 3 s.
const LOOKS_IN_SILENCE: u32 = 15;

pub(super) fn run(
    args: &NodeArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let signals = Signals::install()?;
    let registry = host::registry_address(settings)?;
    host::check_serving(settings, registry, &DEFAULTS)?;
    let state = host::state_folder(settings)?;
    let named = settings.path(s::IDENTITY);
    let credentials = host::credentials();
    let (identity, source) =
        identity_file::of_node(named.as_deref(), credentials.as_deref(), &state)?;
    tell_identity(&source, output);
    let config = host::serving_node(settings, registry, identity, &DEFAULTS)?;
    identity_file::create_folder(&state)?;
    tell_limits(&config, output);
    let socket = config.socket.clone();
    let node = Node::start_waiting(config)?;
    if !wait_registered(&node, registry, &signals, output)? {
        return stop(&node, "a signal", output);
    }
    for trusted in &args.trust {
        node.trust(NodeId(*trusted))?;
    }
    output.say(&format!(
        "ready node={} address={} listen={}",
        node.node_id(),
        node.address(),
        node.listen_addr()
    ));
    if output.json {
        output.object(&json!({
            "event": "ready",
            "node": node.node_id(),
            "address": node.address(),
            "listen": node.listen_addr(),
            "socket": socket,
        }))?;
    }
    notify(READY);
    let signal = signals.wait_beside(&[&node])?;
    stop(&node, signal, output)
}

/// Waits for the first registration; false if a signal came first.
fn wait_registered(
    node: &Node,
    registry: std::net::SocketAddr,
    signals: &Signals,
    output: &Output,
) -> Result<bool, Failure> {
    for look in 0_u32.. {
        let missing = match node.wait_registered(LOOK) {
            Ok(_) => return Ok(true),
            Err(error) => error,
        };
        if !signals.received.is_empty() {
            break;
        }
        if look == LOOKS_IN_SILENCE {
            output.say(&format!(
                "waiting for the registry at {registry}: {missing}"
            ));
        }
    }
    Ok(false)
}

/// Says what the node may take in memory: one line for each kind, and the sum.
pub(super) fn tell_limits(config: &NodeConfig, output: &Output) {
    const MIB: usize = 1 << 20;
    let lines = plan(&PlanLimits {
        workers: config.workers,
        tunnels: config.tunnels_max,
        engagements: config.engagements_max,
        credits: usize::try_from(config.credits).unwrap_or(usize::MAX),
    });
    let mut sum = 0_usize;
    for line in &lines {
        sum = sum.saturating_add(line.bytes());
        let (count, what, mib) = (line.count, line.what, line.bytes().div_ceil(MIB));
        output.say(&format!("limit: {count} {what}, at most {mib} MiB"));
    }
    output.say(&format!(
        "limit: all of it at most {} MiB",
        sum.div_ceil(MIB)
    ));
}

/// Says where a new identity was put: it is what polo belongs to.
pub(super) fn tell_identity(source: &Source, output: &Output) {
    if let Source::Created(path) = source {
        output.say(&format!(
            "created the identity {}; its polo is yours, so keep it",
            path.display()
        ));
    }
}

/// Drains and stops a node.
pub(super) fn stop(node: &Node, signal: &str, output: &Output) -> Result<Exit, Failure> {
    notify(STOPPING);
    output.say(&format!(
        "{signal}: finishing what runs; once more ends at once"
    ));
    node.shutdown()?;
    Ok(Exit::Ok)
}

/// Starts a node and waits until it is registered.
pub(super) fn start(config: NodeConfig) -> Result<Node, Failure> {
    Ok(Node::start(config)?)
}
