//! The peer `pilot`: the released Pilot daemon, driven over its local socket.
//!
//! ```text
//!   this program ── local socket ── daemon a ══ sealed UDP ══ daemon b, its echo service (port 7)
//!                                       └──── ramjet registry ────┘
//! ```
//!
//! Two daemons register at a registry of this run, one dials the echo service of the other, and the
//! load goes over that stream. The client is Rust, so that no interpreter is part of the figure.
//!
//! Invariants: nothing leaves this machine. The daemons are told every address they would otherwise
//! know themselves, telemetry and news are off, the home folder is thrown away, and all of it runs
//! in a network namespace that holds nothing but loopback, where the kernel allows one.

mod fleet;
mod frames;
mod link;
mod measures;
mod namespace;

use std::path::{Path, PathBuf};

pub(crate) use self::fleet::{Fleet, Kind};
use self::link::Link;
pub(crate) use self::link::{Writes, drive};
pub(crate) use self::measures::{echo, messages};
pub(crate) use self::namespace::{enter, raise_loopback};
use crate::failure::Failure;
use crate::helper::own_path;
use crate::load::{Load, Measured};
use crate::peer::{Setting, first_line_of};

/// The release that is compared.
pub(crate) const VERSION: &str = "1.18.0";
/// Where the interoperation tests install the release, below the root of the checkout.
const INSTALLED: &str = "interop/.work/pilot-1.18.0";
/// Where the build puts the registry, below the same.
const BUILT: &str = "target/release/ramjet";

/// What a run needs on disk.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    daemon: PathBuf,
    ramjet: PathBuf,
}

/// Finds the daemon and the registry, or says what is missing.
pub(crate) fn find(pilot: Option<&Path>, ramjet: Option<&Path>) -> Result<Programs, Failure> {
    let daemon = find_daemon(pilot)?;
    let line = first_line_of(&daemon, &["-version"])?;
    if line != VERSION {
        return Err(Failure::Environment(format!(
            "{} is version {line:?}; {VERSION} is compared",
            daemon.display()
        )));
    }
    let ramjet = match ramjet {
        Some(path) if path.is_file() => path.to_owned(),
        Some(path) => {
            return Err(Failure::Environment(format!(
                "--ramjet {}: no such file",
                path.display()
            )));
        }
        None => beside_or_above("ramjet", BUILT).ok_or_else(|| {
            Failure::Environment(
                "the daemons register at `ramjet registry`, and there is no ramjet beside this \
                 program; build it with `cargo build --release` or name it with --ramjet"
                    .to_owned(),
            )
        })?,
    };
    Ok(Programs { daemon, ramjet })
}

fn find_daemon(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let Some(folder) = named.map(Path::to_owned).or_else(|| above(INSTALLED)) else {
        return Err(Failure::Environment(format!(
            "the Pilot daemon is not installed: there is no {INSTALLED} above this program, and \
             --pilot-dir names no other place"
        )));
    };
    ["pilotprotocol/bin/pilot-daemon", "pilot-daemon"]
        .iter()
        .map(|file| folder.join(file))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            Failure::Environment(format!(
                "--pilot-dir {}: holds no pilotprotocol/bin/pilot-daemon",
                folder.display()
            ))
        })
}

/// `name` beside this program, else `path` below one of the folders above it.
fn beside_or_above(name: &str, path: &str) -> Option<PathBuf> {
    let beside = own_path().ok()?.with_file_name(name);
    Some(beside)
        .filter(|file| file.is_file())
        .or_else(|| above(path))
}

/// `path` below the current folder, or below one of the folders above this program.
fn above(path: &str) -> Option<PathBuf> {
    let own = own_path().ok()?;
    let current = std::env::current_dir().ok();
    current
        .iter()
        .map(PathBuf::as_path)
        .chain(own.ancestors().skip(1))
        .map(|folder| folder.join(path))
        .find(|found| found.exists())
}

/// Measures the echo with `setting`.
pub(crate) async fn measure(
    writes: Writes,
    setting: &Setting,
    load: &Load,
    programs: &Programs,
) -> Result<Measured, Failure> {
    let mut fleet = Fleet::start(programs, [Kind::Daemon; 2]).await?;
    let node = fleet.answering;
    let load_on = &mut fleet.asking;
    let measured = drive(load_on, node, setting.connections, writes, load).await;
    let sealed = is_sealed(&mut fleet.asking, node).await;
    fleet.end().await;
    sealed.and(measured)
}

/// The report says that the tunnel is encrypted, so that has to be seen.
pub(crate) async fn is_sealed(link: &mut Link, node: u32) -> Result<(), Failure> {
    let tunnels = link.info().await?.peer_list.unwrap_or_default();
    let sealed = tunnels
        .iter()
        .any(|tunnel| tunnel.node_id == node && tunnel.encrypted);
    sealed.then_some(()).ok_or_else(|| {
        Failure::Environment(format!(
            "the Pilot daemon has no encrypted tunnel to node {node}: {tunnels:?}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let empty = tempfile::tempdir().expect("a temporary folder");
        let refused = find(Some(empty.path()), None).expect_err("no daemon in it");
        let text = refused.to_string();
        assert!(
            text.contains("--pilot-dir") && text.contains("pilot-daemon"),
            "{text}"
        );
        let script = empty.path().join("pilot-daemon");
        // Written by a process of its own: a file that is open for writing in a process that
        // starts another one at that moment cannot be started (`execve(2)`, `ETXTBSY`).
        let written = std::process::Command::new("/bin/sh")
            .args([
                "-ec",
                r#"printf '#!/bin/sh\necho 1.9.1\n' > "$0"; chmod 755 "$0""#,
            ])
            .arg(&script)
            .status()
            .expect("a shell");
        assert!(written.success(), "{written}");
        let refused = find(Some(empty.path()), None).expect_err("another version");
        let text = refused.to_string();
        assert!(text.contains("1.9.1") && text.contains(VERSION), "{text}");
    }
}
