//! `ramjet up`: one host for real.
//!
//! A registry, a worker, and a requester for the programs of this host, in one process. The
//! requester has an identity of its own, since no node makes an engagement with itself; the two
//! trust each other, and the worker serves whom it trusts, so that what is submitted here is done
//! here on the second day too, when the worker has earned polo and the requester has none.
//!
//! `--json` prints an object when it is ready: `event`, `registry`, `public_key`, `worker`,
//! `requester`, `socket`, `requester_socket`; and one when it has stopped: `event`, and the
//! registry's `counters`.

use ramjet_proto::market::AcceptFrom;
use serde_json::json;

use super::args::UpArgs;
use super::exit::{Exit, Failure};
use super::host::{self, ServeDefaults, Threads};
use super::identity_file;
use super::market::{self, reachable};
use super::node::{start, tell_draining, tell_identity, watch};
use super::notify;
use super::output::Output;
use super::settings::{self as s, Settings};
use super::signals::Signals;
use crate::node::{Node, NodeConfig};
use crate::skills;
use crate::worker::{Idle, IoKind, IoOptions};

/// A host that is brought up offers all it has to itself.
const DEFAULTS: ServeDefaults = ServeDefaults {
    skills: &skills::NAMES,
    accept_from: AcceptFrom::Trusted,
    task_ready: true,
};
/// The requester's identity in the state folder.
const REQUESTER_IDENTITY_FILE: &str = "requester.json";
/// The requester's spool in the state folder.
const REQUESTER_FOLDER: &str = "requester";

pub(super) fn run(
    _args: &UpArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let signals = Signals::install()?;
    host::check_serving(
        settings,
        market::listen_address(settings, market::BESIDE_A_NODE)?,
        &DEFAULTS,
    )?;
    let state = host::state_folder(settings)?;
    identity_file::create_folder(&state)?;
    let named = settings.path(s::IDENTITY);
    let credentials = host::credentials();
    let (identity, source) =
        identity_file::of_node(named.as_deref(), credentials.as_deref(), &state)?;
    tell_identity(&source, output);
    let (requester_identity, _) =
        identity_file::load_or_create(&state.join(REQUESTER_IDENTITY_FILE))?;
    // Both nodes are described before anything starts, so that a wrong setting starts nothing.
    let listen = market::listen_address(settings, market::BESIDE_A_NODE)?;
    let mut worker = host::serving_node(settings, listen, identity, &DEFAULTS)?;
    let mut requester = host::bare_node(
        listen,
        requester_identity,
        requester_threads(worker.io, worker.io_options),
    );
    requester.socket = Some(host::requester_socket_path(settings)?);
    requester.state = Some(state.join(REQUESTER_FOLDER));
    identity_file::create_folder(&state.join(REQUESTER_FOLDER))?;
    super::node::tell_limits(&worker, output);

    let registry = market::start_from(
        settings,
        market::BESIDE_A_NODE,
        state.join(host::REGISTRY_FOLDER),
    )?;
    for config in [&mut worker, &mut requester] {
        config.registry = reachable(registry.tcp_addr());
        config.registry_key = Some(registry.public_key());
    }
    let sockets = (worker.socket.clone(), requester.socket.clone());
    let (worker, requester) = start_both(worker, requester)?;
    output.say(&format!(
        "ready registry={} worker={} address={} listen={} requester={}",
        registry.tcp_addr(),
        worker.node_id(),
        worker.address(),
        worker.listen_addr(),
        requester.node_id()
    ));
    if output.json {
        output.object(&json!({
            "event": "ready",
            "registry": registry.tcp_addr(),
            "beacon": registry.beacon_addr(),
            "public_key": registry.public_key(),
            "worker": {
                "node": worker.node_id(),
                "address": worker.address(),
                "listen": worker.listen_addr(),
            },
            "requester": {
                "node": requester.node_id(),
                "address": requester.address(),
                "listen": requester.listen_addr(),
            },
            "socket": sockets.0,
            "requester_socket": sockets.1,
        }))?;
    }
    notify::ready("serves");
    let signal = watch(&[&worker, &requester], &signals, || {})?;
    tell_draining(signal, output);
    // The requester first: it has the last receipts to sign.
    let stopped = [requester.shutdown(), worker.shutdown()];
    let told = market::stop(registry, output);
    for result in stopped {
        result?;
    }
    told?;
    Ok(Exit::Ok)
}

/// Starts two nodes and makes each trust the other.
pub(super) fn start_both(
    worker: NodeConfig,
    requester: NodeConfig,
) -> Result<(Node, Node), Failure> {
    let worker = start(worker)?;
    let started = start(requester).and_then(|requester| {
        worker.trust(requester.node_id())?;
        requester.trust(worker.node_id())?;
        Ok(requester)
    });
    match started {
        Ok(requester) => Ok((worker, requester)),
        Err(failure) => {
            // Why it could not start matters; how the other one stopped adds nothing to it.
            let _ = worker.shutdown();
            Err(failure)
        }
    }
}

/// A requester for the programs of a host sleeps while there is nothing to do.
fn requester_threads(io: IoKind, io_options: IoOptions) -> Threads {
    Threads {
        workers: 1,
        cores: Vec::new(),
        io,
        io_options,
        idle: Idle::Park,
    }
}
