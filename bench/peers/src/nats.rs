//! The peer `nats`: request and reply through `nats-server`, with a process on each side of it.
//!
//! The server comes from the system's package. It runs on a port of its own choice, in a folder
//! that is thrown away, with its own defaults: no cipher, no persistence.

use std::path::{Path, PathBuf};

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::helper::{Foreign, Helper, input_ended};
use crate::lanes::{self, Echo};
use crate::load::{Load, Measured};
use crate::peer::{Peer, Setting, first_line_of};

/// Where the package puts the server, for users whose `PATH` leaves it out.
const PACKAGE_PATH: &str = "/usr/sbin/nats-server";
const SUBJECT: &str = "echo";
const GROUP: &str = "responders";

/// The server's file and version, or why there is none.
pub(crate) fn find(named: Option<&Path>) -> Result<(PathBuf, String), Failure> {
    let on_path = || {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders)
            .map(|folder| folder.join("nats-server"))
            .chain([PathBuf::from(PACKAGE_PATH)])
            .find(|path| path.is_file())
    };
    let server = match named {
        Some(path) if path.is_file() => path.to_owned(),
        Some(path) => {
            return Err(Failure::Environment(format!(
                "--nats-server {}: no such file",
                path.display()
            )));
        }
        None => on_path().ok_or_else(|| {
            Failure::Environment(format!(
                "nats-server is neither on PATH nor at {PACKAGE_PATH}"
            ))
        })?,
    };
    let line = first_line_of(&server, &["-v"])?;
    match line.strip_prefix("nats-server: v") {
        Some(version) => Ok((server, version.to_owned())),
        None => Err(Failure::Environment(format!(
            "{} -v says {line:?}, which is no version of nats-server",
            server.display()
        ))),
    }
}

/// What the server writes once it listens.
#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

/// Measures the echo with `setting`.
pub(crate) async fn measure(
    setting: &Setting,
    load: &Load,
    server: &Path,
) -> Result<Measured, Failure> {
    let folder = tempfile::Builder::new()
        .prefix("peers-nats-")
        .tempdir()
        .map_err(|error| Failure::at("temporary folder", error))?;
    let path = folder.path().display().to_string();
    let log = folder.path().join("log");
    let mut broker = Helper::hold(&Foreign {
        program: server,
        arguments: ["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", &path]
            .map(str::to_owned)
            .to_vec(),
        environment: &[("HOME", path.clone())],
        log: &log,
    })?;
    let address = broker
        .until("its port", async || listening(folder.path()))
        .await?;
    let measured = between(setting, load, &address).await;
    broker.end().await;
    measured
}

/// The address in the server's ports file, once that is whole.
fn listening(folder: &Path) -> Option<String> {
    let mut files = std::fs::read_dir(folder).ok()?.flatten();
    let file = files.find(|file| file.path().extension().is_some_and(|end| end == "ports"))?;
    let ports: Ports = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    ports.nats.into_iter().next()
}

async fn between(setting: &Setting, load: &Load, address: &str) -> Result<Measured, Failure> {
    let mut arguments = setting.serve_arguments(Peer::Nats);
    arguments.extend(["--broker".to_owned(), address.to_owned()]);
    let (responder, _) = Helper::serve(&arguments).await?;
    let mut clients = Vec::new();
    for _ in 0..setting.connections {
        clients.push(Lane(connect(address).await?));
    }
    let lanes = clients.iter().cycle().take(load.window).cloned().collect();
    let measured = lanes::drive(lanes, load).await;
    drop(clients);
    responder.end().await;
    measured
}

async fn connect(address: &str) -> Result<Client, Failure> {
    ConnectOptions::new()
        .connect(address)
        .await
        .map_err(|error| Failure::at("NATS client", error))
}

#[derive(Clone)]
struct Lane(Client);

impl Echo for Lane {
    async fn echo(&mut self, payload: Bytes) -> Result<Bytes, Failure> {
        self.0
            .request(SUBJECT, payload)
            .await
            .map(|message| message.payload)
            .map_err(|error| Failure::at("NATS request", error))
    }
}

/// Answers requests over `connections` connections until standard input ends.
pub(crate) async fn serve(address: &str, connections: usize) -> Result<(), Failure> {
    let mut responders = JoinSet::new();
    for _ in 0..connections {
        let client = connect(address).await?;
        let mut requests = client
            .queue_subscribe(SUBJECT, GROUP.to_owned())
            .await
            .map_err(|error| Failure::at("NATS responder", error))?;
        let publisher = client.clone();
        responders.spawn(async move {
            while let Some(request) = requests.next().await {
                let Some(reply) = request.reply else { continue };
                publisher
                    .publish(reply, request.payload)
                    .await
                    .map_err(|error| Failure::at("NATS responder", error))?;
            }
            Ok(())
        });
        // The server takes what a connection says in order: once it has answered a request of this
        // one, it knows of the subscription.
        Lane(client).echo(Bytes::from_static(b"ready?")).await?;
    }
    println!("ready");
    tokio::select! {
        () = input_ended() => Ok(()),
        ended = responders.join_next() => match ended {
            Some(Ok(Err(failure))) => Err(failure),
            _ => Err(Failure::at("NATS responder", "its subscription ended")),
        },
    }
}
