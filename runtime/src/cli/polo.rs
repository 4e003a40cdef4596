//! `ramjet polo WHO`: the standing of a node.
//!
//! `--json` prints one object: `node`, `address`, `hostname`, `polo`, `worked` and `requested`.

use super::access::{self, Access};
use super::args::PoloArgs;
use super::exit::{Exit, Failure};
use super::host;
use super::output::{Output, counted, printable};
use super::settings::Settings;

pub(super) fn run(
    args: &PoloArgs,
    settings: &Settings,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut access = Access::open(settings)?;
    let who = match &args.who {
        Some(who) => who.clone(),
        None => local_node(settings)?,
    };
    let standing = access.standing(&who)?;
    if output.json {
        output.object(&standing)?;
        return Ok(Exit::Ok);
    }
    output.data(&standing.polo.to_string())?;
    let name = standing
        .hostname
        .map(|name| format!(" ({})", printable(&name)));
    output.say(&format!(
        "node {} at {}{}: worked in {} with {}; requested {}, of its offers {} expired",
        standing.node,
        printable(&standing.address),
        name.unwrap_or_default(),
        counted(standing.worked.0, "engagement", "engagements"),
        counted(standing.worked.1, "accepted result", "accepted results"),
        counted(standing.requested.0, "engagement", "engagements"),
        standing.requested.1,
    ));
    Ok(Exit::Ok)
}

/// The number of the node that serves the local socket.
fn local_node(settings: &Settings) -> Result<String, Failure> {
    match access::route(settings, &[host::SOCKET_FILE])? {
        access::Route::Socket(path) => Ok(access::connect(&path)?.status()?.node.to_string()),
        access::Route::Registry(_) => Err(Failure::usage(
            "polo: whose? A registry alone does not know who asks; name a node number, an address \
             or a hostname",
        )),
    }
}
