//! The peers by name: how each may be set, whether it is here, and one run of it.
//!
//! A peer has a small set of settings, each of them what its own documentation recommends or a
//! choice it leaves open: how many threads its runtime has, over how many connections the window is
//! spread. Which one is fastest depends on the window and on the machine, so a run without a named
//! setting tries each of them briefly and takes the best.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::failure::Failure;
use crate::load::{Load, Measured};
use crate::pilot::{self, Writes};
use crate::quic::{self, Carrier};
use crate::{nats, tonic_echo};

/// How long a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks whether it has.
const VERSION_LOOK: Duration = Duration::from_millis(5);
/// Longest answer to the question for a version, in bytes.
const VERSION_LEN_MAX: u64 = 4_096;

/// What a user would pick instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// gRPC unary calls
    Tonic,
    /// Request and reply through a NATS server
    Nats,
    /// QUIC, a stream for each request
    #[value(alias = "quinn")]
    QuinnStream,
    /// QUIC, a datagram for each request; lost ones are not sent again
    QuinnDatagram,
    /// The released Pilot daemon, its echo service, a write for each request
    Pilot,
    /// The same, but the program puts requests that are ready together into one write
    PilotPacked,
}

/// Threads of a process that runs on tokio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Threads {
    /// As many as the machine has cores
    Multi,
    /// One
    Single,
}

/// A way to set a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Its name, unique among those of the peer.
    pub(crate) name: &'static str,
    /// Threads of our processes.
    pub(crate) threads: Threads,
    /// Connections, or streams of the Pilot daemon, that share the window.
    pub(crate) connections: usize,
}

const fn setting(name: &'static str, threads: Threads, connections: usize) -> Setting {
    Setting {
        name,
        threads,
        connections,
    }
}

const SPREAD: [Setting; 5] = [
    setting("multi-1", Threads::Multi, 1),
    setting("multi-2", Threads::Multi, 2),
    setting("multi-4", Threads::Multi, 4),
    setting("single-1", Threads::Single, 1),
    setting("single-2", Threads::Single, 2),
];
const ONE_CONNECTION: [Setting; 2] = [
    setting("multi-1", Threads::Multi, 1),
    setting("single-1", Threads::Single, 1),
];
const STREAMS: [Setting; 2] = [
    setting("streams-1", Threads::Single, 1),
    setting("streams-4", Threads::Single, 4),
];

impl Setting {
    /// The arguments of `serve` for the other side.
    pub(crate) fn serve_arguments(&self, peer: Peer) -> Vec<String> {
        [
            "--peer",
            peer.name(),
            "--threads",
            match self.threads {
                Threads::Multi => "multi",
                Threads::Single => "single",
            },
            "--connections",
            &self.connections.to_string(),
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// Where the programs are that do not come with this one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// File of `nats-server`.
    pub(crate) nats_server: Option<PathBuf>,
    /// Folder with the Pilot release.
    pub(crate) pilot: Option<PathBuf>,
    /// File of `ramjet`, for its registry.
    pub(crate) ramjet: Option<PathBuf>,
}

/// A peer that is here.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    /// Which one.
    pub(crate) peer: Peer,
    /// Versions of its parts.
    pub(crate) version: String,
    programs: Programs,
}

#[derive(Clone, Debug)]
enum Programs {
    BuiltIn,
    NatsServer(PathBuf),
    Pilot(pilot::Programs),
}

impl Peer {
    /// The name on the command line and in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Peer::Tonic => "tonic",
            Peer::Nats => "nats",
            Peer::QuinnStream => "quinn-stream",
            Peer::QuinnDatagram => "quinn-datagram",
            Peer::Pilot => "pilot",
            Peer::PilotPacked => "pilot-packed",
        }
    }

    /// Whether what travels is sealed.
    pub(crate) const fn encrypted(self) -> bool {
        match self {
            Peer::Tonic | Peer::Nats => false,
            Peer::QuinnStream | Peer::QuinnDatagram | Peer::Pilot | Peer::PilotPacked => true,
        }
    }

    /// What makes it available.
    pub(crate) const fn install(self) -> &'static str {
        match self {
            Peer::Tonic | Peer::QuinnStream | Peer::QuinnDatagram => "nothing: it is built in",
            Peer::Nats => "apt-get install nats-server",
            Peer::Pilot | Peer::PilotPacked => "interop/run --version 1.18.0",
        }
    }

    /// The ways it may be set.
    pub(crate) const fn settings(self) -> &'static [Setting] {
        match self {
            Peer::Tonic | Peer::Nats | Peer::QuinnStream => &SPREAD,
            Peer::QuinnDatagram => &ONE_CONNECTION,
            Peer::Pilot | Peer::PilotPacked => &STREAMS,
        }
    }

    /// The setting of that name.
    pub(crate) fn setting(self, name: &str) -> Result<Setting, Failure> {
        let settings = self.settings();
        let found = settings.iter().find(|setting| setting.name == name);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = settings.iter().map(|setting| setting.name).collect();
            Failure::Usage(format!(
                "--setting {name}: {} has {}",
                self.name(),
                names.join(", ")
            ))
        })
    }

    /// What is chosen for it whatever the setting, and why.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Peer::Tonic => {
                "unary gRPC over plaintext HTTP/2, TCP_NODELAY on both sides, as tonic sets it, \
                 and 4,096 concurrent streams a connection where hyper's 200 would cut the window"
            }
            Peer::Nats => {
                "requester and responder on the server's defaults: plaintext, no persistence, \
                 TCP_NODELAY, replies to one inbox of the client, responders in a queue group"
            }
            Peer::QuinnStream => {
                "a bidirectional stream for each request, TLS 1.3, GSO and GRO as quinn finds \
                 them, 4,096 streams where the default 100 would cut the window, and streams sent in the \
                 order of writing, as quinn advises for many small ones"
            }
            Peer::QuinnDatagram => {
                "a QUIC datagram for each request, unreliable: a lost one is counted and not sent \
                 again; TLS 1.3, GSO and GRO as quinn finds them, room for a full window"
            }
            Peer::Pilot => {
                "the daemon's echo service on port 7, two daemons with their defaults, encrypted \
                 tunnel, driven in Rust over the local socket, a write for each request as for \
                 every other peer"
            }
            Peer::PilotPacked => {
                "as pilot, but the program itself puts requests that are ready together into one \
                 write of up to 4,096 bytes, which no other peer here is given"
            }
        }
    }

    /// What the window is spread over.
    pub(crate) fn spread(self, setting: &Setting) -> String {
        let connections = setting.connections;
        let plural = if connections == 1 { "" } else { "s" };
        match self {
            Peer::Pilot | Peer::PilotPacked => format!("{connections} stream{plural}"),
            _ => format!("{connections} connection{plural}"),
        }
    }

    /// Finds what it needs, or says what is missing.
    pub(crate) fn find(self, places: &Places) -> Result<Present, Failure> {
        let (version, programs) = match self {
            Peer::Tonic => (env!("VERSION_TONIC").to_owned(), Programs::BuiltIn),
            Peer::QuinnStream | Peer::QuinnDatagram => (
                concat!(
                    env!("VERSION_QUINN"),
                    " (rustls ",
                    env!("VERSION_RUSTLS"),
                    ")"
                )
                .to_owned(),
                Programs::BuiltIn,
            ),
            Peer::Nats => {
                let (server, version) = nats::find(places.nats_server.as_deref())?;
                let client = env!("VERSION_ASYNC_NATS");
                (
                    format!("{version} (async-nats {client})"),
                    Programs::NatsServer(server),
                )
            }
            Peer::Pilot | Peer::PilotPacked => {
                let pilot = places.pilot.as_deref();
                let programs = pilot::find(pilot, places.ramjet.as_deref())?;
                (pilot::VERSION.to_owned(), Programs::Pilot(programs))
            }
        };
        Ok(Present {
            peer: self,
            version,
            programs,
        })
    }

    /// Answers as the other side of the echo until standard input ends.
    pub(crate) async fn serve(self, setting: &ServeAs) -> Result<(), Failure> {
        match (self, &setting.broker) {
            (Peer::Tonic, _) => tonic_echo::serve().await,
            (Peer::QuinnStream | Peer::QuinnDatagram, _) => quic::serve().await,
            (Peer::Nats, Some(broker)) => nats::serve(broker, setting.connections).await,
            (Peer::Nats, None) => Err(Failure::Usage("nats serves at a --broker".to_owned())),
            (Peer::Pilot | Peer::PilotPacked, _) => Err(Failure::Usage(
                "the Pilot daemon has an echo service of its own".to_owned(),
            )),
        }
    }
}

/// What the other side must know.
#[derive(Clone, Debug)]
pub(crate) struct ServeAs {
    /// Connections to the broker.
    pub(crate) connections: usize,
    /// Address of the broker.
    pub(crate) broker: Option<String>,
}

impl Present {
    /// One run with `setting`.
    pub(crate) async fn measure(
        &self,
        setting: &Setting,
        load: &Load,
    ) -> Result<Measured, Failure> {
        match (&self.programs, self.peer) {
            (Programs::NatsServer(server), _) => nats::measure(setting, load, server).await,
            (Programs::Pilot(programs), Peer::PilotPacked) => {
                pilot::measure(Writes::Packed, setting, load, programs).await
            }
            (Programs::Pilot(programs), _) => {
                pilot::measure(Writes::Single, setting, load, programs).await
            }
            (Programs::BuiltIn, Peer::QuinnStream) => {
                quic::measure(Carrier::Stream, setting, load).await
            }
            (Programs::BuiltIn, Peer::QuinnDatagram) => {
                quic::measure(Carrier::Datagram, setting, load).await
            }
            (Programs::BuiltIn, _) => tonic_echo::measure(setting, load).await,
        }
    }
}

/// The first line that `program` prints, in an environment that leads it nowhere.
pub(crate) fn first_line_of(program: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let at = |error: &dyn std::fmt::Display| Failure::at(program.display(), error);
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| at(&error))?;
    let deadline = Instant::now() + VERSION_LIMIT;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        thread::sleep(VERSION_LOOK);
    }
    // What has ended cannot be killed, which is as well.
    let _ = child.kill();
    let _ = child.wait();
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(VERSION_LEN_MAX)
            .read_to_string(&mut text)
            .map_err(|error| at(&error))?;
    }
    let line = text.lines().next().unwrap_or_default().trim();
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_names_of_their_own_and_an_unknown_one_is_refused() {
        for peer in Peer::value_variants() {
            let mut names: Vec<&str> = peer.settings().iter().map(|s| s.name).collect();
            for name in &names {
                assert_eq!(peer.setting(name).expect("its own").name, *name);
            }
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all, "{peer:?}");
            let refused = peer
                .setting("fast")
                .expect_err("no such setting")
                .to_string();
            assert!(
                refused.contains(peer.name()) && refused.contains(peer.settings()[0].name),
                "{refused}"
            );
            let name = peer.to_possible_value().expect("none is hidden");
            assert_eq!(name.get_name(), peer.name());
        }
    }

    #[test]
    fn a_program_that_is_absent_or_another_one_is_no_peer() {
        let places = Places {
            nats_server: Some(PathBuf::from("/nonexistent/nats-server")),
            ..Places::default()
        };
        let absent = Peer::Nats.find(&places).expect_err("absent").to_string();
        assert!(
            absent.contains("/nonexistent/nats-server: no such file"),
            "{absent}"
        );
        let places = Places {
            nats_server: Some(PathBuf::from("/bin/echo")),
            ..Places::default()
        };
        let other = Peer::Nats.find(&places).expect_err("echo").to_string();
        assert!(other.contains("no version of nats-server"), "{other}");
        assert!(Peer::Tonic.find(&Places::default()).is_ok());
    }
}
