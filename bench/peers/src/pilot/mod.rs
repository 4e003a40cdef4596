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

mod frames;
mod link;
mod namespace;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::TempDir;

use self::link::Link;
pub(crate) use self::link::Writes;
pub(crate) use self::namespace::{enter, raise_loopback};
use crate::failure::Failure;
use crate::helper::{Foreign, Helper, own_path};
use crate::load::{Load, Measured};
use crate::peer::{Setting, first_line_of};

/// The release that is compared.
pub(crate) const VERSION: &str = "1.18.0";
/// Where the interoperation tests install the release, below the root of the checkout.
const INSTALLED: &str = "interop/.work/pilot-1.18.0";
/// Where the build puts the registry, below the same.
const BUILT: &str = "target/release/ramjet";
/// A port of this machine that nobody listens on: what ignores the settings gets no further.
const NOWHERE: &str = "http://127.0.0.1:9";

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

/// What `ramjet registry --json` prints when it is ready.
#[derive(Deserialize)]
struct Ready {
    listen: String,
    beacon: String,
}

/// Measures the echo with `setting`.
pub(crate) async fn measure(
    writes: Writes,
    setting: &Setting,
    load: &Load,
    programs: &Programs,
) -> Result<Measured, Failure> {
    // Paths of local sockets are limited to 107 bytes, so the state lives right below the folder
    // for temporary files.
    let folder = tempfile::Builder::new()
        .prefix("peers-pilot-")
        .tempdir()
        .map_err(|error| Failure::at("temporary folder", error))?;
    let (registry, ready) = start_registry(&folder, programs).await?;
    let (first, mut link, _) = start_daemon("a", &folder, &ready, programs).await?;
    let (second, _, node) = start_daemon("b", &folder, &ready, programs).await?;
    let measured = link::drive(&mut link, node, setting.connections, writes, load).await;
    let sealed = is_sealed(&mut link, node).await;
    drop(link);
    for helper in [first, second, registry] {
        helper.end().await;
    }
    sealed.and(measured)
}

/// The report says that the tunnel is encrypted, so that has to be seen.
async fn is_sealed(link: &mut Link, node: u32) -> Result<(), Failure> {
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

async fn start_registry(folder: &TempDir, programs: &Programs) -> Result<(Helper, Ready), Failure> {
    let state = folder.path().join("registry");
    let log = folder.path().join("registry.log");
    let (registry, line) = Helper::hold_printing(&Foreign {
        program: &programs.ramjet,
        arguments: [
            "registry",
            "--listen",
            "127.0.0.1:0",
            "--beacon",
            "127.0.0.1:0",
            "--state",
            &state.display().to_string(),
            "--json",
        ]
        .map(str::to_owned)
        .to_vec(),
        environment: &closed_environment(folder.path()),
        log: &log,
    })
    .await?;
    let ready = serde_json::from_str(&line).map_err(|error| {
        Failure::at(
            "ramjet registry",
            format!("its first line {line:?} names no addresses: {error}"),
        )
    })?;
    Ok((registry, ready))
}

/// Starts one daemon with everything of its own, and waits until it is registered.
async fn start_daemon(
    letter: &str,
    folder: &TempDir,
    ready: &Ready,
    programs: &Programs,
) -> Result<(Helper, Link, u32), Failure> {
    let home = folder.path().join(letter);
    std::fs::create_dir(&home).map_err(|error| Failure::at(home.display(), error))?;
    let socket = home.join("ipc");
    let log = home.join("log");
    let mut environment = closed_environment(&home);
    environment.extend([
        ("PILOT_NO_SKILLINJECT", "1".to_owned()),
        ("PILOT_TELEMETRY_URL", String::new()),
        ("PILOT_MOTD_URL", String::new()),
        ("PILOT_REGISTRY", ready.listen.clone()),
        ("PILOT_BEACON", ready.beacon.clone()),
        ("PILOT_SOCKET", socket.display().to_string()),
    ]);
    let mut daemon = Helper::hold(&Foreign {
        program: &programs.daemon,
        arguments: daemon_arguments(letter, &home, &socket, ready),
        environment: &environment,
        log: &log,
    })?;
    // The socket is there before the registration has ended; a daemon without a number refuses.
    let (link, node) = daemon
        .until("its registration", async || {
            let mut link = Link::open(&socket).await.ok()?;
            let node = link.info().await.ok()?.node_id;
            (node != 0).then_some((link, node))
        })
        .await?;
    Ok((daemon, link, node))
}

fn daemon_arguments(letter: &str, home: &Path, socket: &Path, ready: &Ready) -> Vec<String> {
    let identity = home.join("identity.json").display().to_string();
    [
        ["-registry", &ready.listen],
        ["-beacon", &ready.beacon],
        ["-listen", "127.0.0.1:0"],
        ["-socket", &socket.display().to_string()],
        ["-identity", &identity],
        ["-email", &format!("peer-{letter}@example.invalid")],
    ]
    .as_flattened()
    .iter()
    .chain(&[
        "-public",
        "-telemetry-url=",
        "-motd-feed-url=",
        "-no-skillinject",
    ])
    .map(|&word| word.to_owned())
    .collect()
}

/// An environment that leads nowhere but to loopback.
fn closed_environment(home: &Path) -> Vec<(&'static str, String)> {
    let nowhere = || NOWHERE.to_owned();
    vec![
        ("HOME", home.display().to_string()),
        ("HTTP_PROXY", nowhere()),
        ("HTTPS_PROXY", nowhere()),
        ("ALL_PROXY", nowhere()),
        ("NO_PROXY", "127.0.0.1,localhost".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_told_every_address_it_would_otherwise_know() {
        let ready = Ready {
            listen: "127.0.0.1:1".to_owned(),
            beacon: "127.0.0.1:2".to_owned(),
        };
        let words = daemon_arguments("a", Path::new("/h"), Path::new("/h/ipc"), &ready);
        let value = |flag: &str| {
            let at = words.iter().position(|word| word == flag).expect(flag);
            words[at + 1].as_str()
        };
        assert_eq!(value("-registry"), "127.0.0.1:1");
        assert_eq!(value("-beacon"), "127.0.0.1:2");
        assert_eq!(value("-listen"), "127.0.0.1:0");
        assert_eq!(value("-socket"), "/h/ipc");
        assert_eq!(value("-email"), "peer-a@example.invalid");
        for flag in ["-telemetry-url=", "-motd-feed-url=", "-no-skillinject"] {
            assert!(words.iter().any(|word| word == flag), "{flag}");
        }
    }

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
        std::fs::write(&script, "#!/bin/sh\necho 1.9.1\n").expect("a script");
        let mut mode = std::fs::metadata(&script).expect("it exists").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        std::fs::set_permissions(&script, mode).expect("our own file");
        let refused = find(Some(empty.path()), None).expect_err("another version");
        let text = refused.to_string();
        assert!(text.contains("1.9.1") && text.contains(VERSION), "{text}");
    }
}
