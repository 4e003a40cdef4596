//! What a user would pick instead of ramjet, measured with the same load.
//!
//! | file | holds |
//! |---|---|
//! | [`args`], [`failure`], [`report`] | what was typed; exit codes; what is printed |
//! | [`load`], [`lanes`], [`window`] | the load, over calls and over a byte stream |
//! | [`helper`] | the other processes of a run |
//! | [`nodes`] | pairs of daemons and ramjet nodes |
//! | [`peer`] | the peers by name and their settings |
//! | [`tonic_echo`], [`nats`], [`quic`], [`pilot`] | one peer each |
//!
//! Invariants: standard output holds one line of JSON for each run, or nothing: a peer that is
//! absent, of another version or broken ends the program with a code and words, never with a
//! figure. Every packet stays on loopback. Absent: ramjet itself, and any comparison; `ramjet bench
//! peers` makes that.

mod args;
mod failure;
mod helper;
mod lanes;
mod load;
mod nats;
mod nodes;
mod peer;
mod pilot;
mod quic;
mod report;
mod tonic_echo;
mod window;

use std::convert::Infallible;
use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use args::{Arguments, Command, HoldArgs, Inside, ListArgs, NodesArgs, RunArgs, ServeArgs};
use failure::Failure;
use load::{Load, Measured};
use peer::{Peer, Places, Present, ServeAs, Setting, Threads};
use report::{Listed, Report, Tried};

/// The allocator of `ramjet`, so that no peer is slower for want of it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Uncounted and counted time of a trial of a setting.
const TRIAL_WARM_UP: Duration = Duration::from_millis(100);
const TRIAL_RUN: Duration = Duration::from_millis(400);

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let ended = match &arguments.command {
        Command::Run(run_args) => run(run_args),
        Command::Nodes(nodes_args) => nodes(nodes_args),
        Command::List(list_args) => list(list_args),
        Command::Serve(serve_args) => serve(serve_args),
        Command::Hold(hold_args) => hold(hold_args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.code()
        }
    }
}

fn run(args: &RunArgs) -> Result<(), Failure> {
    let present = args.peer.find(&args.places.clone().into())?;
    let named = args.setting.as_deref();
    let named = named.map(|name| args.peer.setting(name)).transpose()?;
    if matches!(args.peer, Peer::Pilot | Peer::PilotPacked) {
        isolate(args.inside)?;
    }
    let load = args.load();
    let (setting, tried) = match named {
        Some(setting) => (setting, Vec::new()),
        None => fastest(&present, &load)?,
    };
    let measured = measure(&present, &setting, &load)?;
    print_line(&Report::new(&present, &setting, tried, &load, &measured))
}

fn nodes(args: &NodesArgs) -> Result<(), Failure> {
    let places: Places = args.places.clone().into();
    let programs = pilot::find(places.pilot.as_deref(), places.ramjet.as_deref())?;
    isolate(args.inside)?;
    let compare = nodes::compare(&programs, args.turns);
    let rows = on_runtime(Threads::Single, compare)?;
    if args.json {
        return rows.iter().try_for_each(print_line);
    }
    print!("{}", nodes::text(&rows, args.turns));
    Ok(())
}

/// Goes where there is no network but loopback, if the kernel has such a place.
fn isolate(inside: Option<Inside>) -> Result<(), Failure> {
    match inside {
        Some(Inside::Namespace) => pilot::raise_loopback(),
        None => {
            let again: Vec<OsString> = std::env::args_os()
                .skip(1)
                .chain(["--inside", "namespace"].map(OsString::from))
                .collect();
            let entered: Option<Infallible> = pilot::enter(&again)?;
            if entered.is_none() {
                eprintln!(
                    "no network namespace here; the daemons' settings alone keep them on loopback"
                );
            }
            Ok(())
        }
    }
}

/// Tries every setting briefly.
fn fastest(present: &Present, load: &Load) -> Result<(Setting, Vec<Tried>), Failure> {
    let trial = Load {
        warm_up: load.warm_up.min(TRIAL_WARM_UP),
        run: load.run.min(TRIAL_RUN),
        ..*load
    };
    let mut tried = Vec::new();
    let mut best: Option<(Setting, f64)> = None;
    for setting in present.peer.settings() {
        // More connections than requests would only differ in name.
        if setting.connections > load.window {
            continue;
        }
        let tasks_per_s = measure(present, setting, &trial)?.tasks_per_s();
        tried.push(Tried {
            setting: setting.name,
            tasks_per_s,
        });
        if best.is_none_or(|(_, rate)| tasks_per_s > rate) {
            best = Some((*setting, tasks_per_s));
        }
    }
    let (setting, _) =
        best.ok_or_else(|| Failure::Usage("no setting suits the window".to_owned()))?;
    Ok((setting, tried))
}

fn measure(present: &Present, setting: &Setting, load: &Load) -> Result<Measured, Failure> {
    let measured = on_runtime(setting.threads, present.measure(setting, load))?;
    if measured.tasks() == 0 {
        return Err(Failure::Environment(format!(
            "{} with {}: no reply within the counted {} s",
            present.peer.name(),
            setting.name,
            measured.seconds()
        )));
    }
    Ok(measured)
}

fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let serve_as = ServeAs {
        connections: args.connections,
        broker: args.broker.clone(),
    };
    on_runtime(args.threads, args.peer.serve(&serve_as))
}

fn hold(args: &HoldArgs) -> Result<(), Failure> {
    helper::hold(&args.program, &args.arguments, &args.log, args.print)
}

/// Does `work` on a runtime of its own, until it is done or a signal comes.
fn on_runtime<T>(
    threads: Threads,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let at = |error: std::io::Error| Failure::at("runtime", error);
    let runtime: Runtime = match threads {
        Threads::Multi => Builder::new_multi_thread(),
        Threads::Single => Builder::new_current_thread(),
    }
    .enable_all()
    .build()
    .map_err(at)?;
    let done = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(at)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(at)?;
        tokio::select! {
            done = work => done,
            _ = interrupt.recv() => Err(Failure::Interrupted),
            _ = terminate.recv() => Err(Failure::Interrupted),
        }
    });
    // A thread that reads the standard input cannot be waited for: the input may stay open.
    runtime.shutdown_background();
    done
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let places: Places = args.places.clone().into();
    for &peer in Peer::value_variants() {
        let found = peer.find(&places);
        let listed = Listed {
            peer: peer.name(),
            available: found.is_ok(),
            version: found.as_ref().ok().map(|present| present.version.clone()),
            encrypted: peer.encrypted(),
            reason: found.err().map(|failure| failure.to_string()),
            install: peer.install(),
        };
        if args.json {
            print_line(&listed)?;
            continue;
        }
        match (&listed.version, &listed.reason) {
            (Some(version), _) => println!("{:<16}{version}", listed.peer),
            (None, reason) => println!(
                "{:<16}absent: {}; install: {}",
                listed.peer,
                reason.as_deref().unwrap_or("unknown"),
                listed.install
            ),
        }
    }
    Ok(())
}

fn print_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|error| Failure::at("JSON", error))?;
    println!("{line}");
    Ok(())
}
