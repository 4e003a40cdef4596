//! Two nodes, each a Pilot daemon or a ramjet node, with a registry and beacon of their own.
//!
//! Invariants: every address is told to every process and lies on loopback; all that they write
//! lies in one folder, which is thrown away with them.

use std::path::Path;

use serde::Deserialize;
use tempfile::TempDir;

use super::Programs;
use super::link::Link;
use crate::failure::Failure;
use crate::helper::{Foreign, Helper};

/// A port of this machine that nobody listens on: what ignores the settings gets no further.
const NOWHERE: &str = "http://127.0.0.1:9";

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The released daemon.
    Daemon,
    /// `ramjet node`.
    Ramjet,
}

impl Kind {
    /// As reports name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Daemon => "daemon",
            Kind::Ramjet => "ramjet",
        }
    }
}

/// Two registered nodes.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// The local socket of the first.
    pub(crate) asking: Link,
    /// The number of the second.
    pub(crate) answering: u32,
    helpers: [Helper; 3],
    _folder: TempDir,
}

impl Fleet {
    /// Starts a registry, the node that asks and the node that answers.
    ///
    /// # Errors
    /// If one of them does not start, with the end of its log.
    pub(crate) async fn start(programs: &Programs, kinds: [Kind; 2]) -> Result<Self, Failure> {
        // Paths of local sockets are limited to 107 bytes, so the state lives right below the
        // folder for temporary files.
        let folder = tempfile::Builder::new()
            .prefix("peers-pilot-")
            .tempdir()
            .map_err(|error| Failure::at("temporary folder", error))?;
        let (registry, ready) = start_registry(&folder, programs).await?;
        let (first, asking, _) = start_node(kinds[0], "a", &folder, &ready, programs).await?;
        let (second, _, answering) = start_node(kinds[1], "b", &folder, &ready, programs).await?;
        Ok(Fleet {
            asking,
            answering,
            helpers: [first, second, registry],
            _folder: folder,
        })
    }

    /// Ends all three.
    pub(crate) async fn end(self) {
        drop(self.asking);
        for helper in self.helpers {
            helper.end().await;
        }
    }
}

/// What `ramjet registry --json` prints when it is ready.
#[derive(Deserialize)]
struct Ready {
    listen: String,
    beacon: String,
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

/// Starts one node with everything of its own, and waits until it is registered.
async fn start_node(
    kind: Kind,
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
    let (program, arguments) = match kind {
        Kind::Daemon => (
            &programs.daemon,
            daemon_arguments(letter, &home, &socket, ready),
        ),
        Kind::Ramjet => (
            &programs.ramjet,
            ramjet_arguments(letter, &home, &socket, ready),
        ),
    };
    let mut node = Helper::hold(&Foreign {
        program,
        arguments,
        environment: &environment,
        log: &log,
    })?;
    // The socket is there before the registration has ended; a daemon without a number refuses.
    let (link, number) = node
        .until("its registration", async || {
            let mut link = Link::open(&socket).await.ok()?;
            let number = link.info().await.ok()?.node_id;
            (number != 0).then_some((link, number))
        })
        .await?;
    Ok((node, link, number))
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

fn ramjet_arguments(letter: &str, home: &Path, socket: &Path, ready: &Ready) -> Vec<String> {
    let state = home.join("state").display().to_string();
    let owner = format!("peer-{letter}@example.invalid");
    [
        ["node", "--public"],
        ["--registry", &ready.listen],
        ["--beacon", &ready.beacon],
        ["--listen", "127.0.0.1:0"],
        ["--socket", &socket.display().to_string()],
        ["--state", &state],
        ["--owner", &owner],
    ]
    .as_flattened()
    .iter()
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
}
