//! The command line.
//!
//! | part | holds |
//! |---|---|
//! | [`args`], [`arg_groups`], [`agent_args`], [`bench_args`], [`settings`] | what was typed; what it means |
//! | [`exit`], [`output`] | exit codes and failures; data and talk |
//! | [`host`], [`market`], [`access`] | what starts; the registry inside; whom to ask |
//! | [`identity_file`], [`signals`], [`notify`] | key file, signals, systemd |
//! | [`text`], [`jobs`], [`printer`], [`engage`] | lines, tasks, answers in order, timeline |
//! | `demo`, `up`, `node`, … | one file a command |
//!
//! Invariants: standard output holds data and nothing else; every failure names what to do next and
//! ends in one of the exit codes of [`exit`]. Absent: protocol. The command line calls the public
//! interface of the library, as any other program would.

pub mod access;
mod agent;
pub mod agent_args;
pub mod arg_groups;
pub mod args;
mod bench;
pub mod bench_args;
mod demo;
mod descriptors;
mod doctor;
pub mod engage;
mod engagements;
pub mod exit;
pub mod host;
pub mod identity_file;
pub mod jobs;
pub mod market;
mod node;
pub mod notify;
pub mod output;
mod polo;
pub mod printer;
mod registry;
mod resolve;
pub mod settings;
pub mod signals;
mod status;
mod submit;
pub mod text;
mod up;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};
use exit::{Exit, Failure};
use output::{Color, Output, Paint};
use settings::{Settings, VARIABLE_PREFIX};

/// Longest settings file, in bytes.
const CONFIG_LEN_MAX: u64 = 1 << 20;

/// Runs the command that `arguments` (the program's name first) describe.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors and go to standard output.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
            let _ = error.print();
            return ExitCode::from(exit.code());
        }
    };
    let mut output = Output::new(cli.common.json, Color::Auto);
    match prepare(&cli, &mut output).and_then(|settings| dispatch(&cli, &settings, &mut output)) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            output.end_bar();
            if !failure.message.is_empty() {
                let label = output.paint(Paint::Bad, "error:");
                output.say(&format!("{label} {}", failure.message));
                if output.json {
                    // If this fails too there is nobody left to tell.
                    let _ = output.object(&failure.to_json());
                }
            }
            ExitCode::from(failure.exit.code())
        }
    }
}

fn prepare(cli: &Cli, output: &mut Output) -> Result<Settings, Failure> {
    let environment = std::env::vars_os().filter_map(|(name, value)| {
        Some((
            name.into_string().ok()?,
            value.to_string_lossy().into_owned(),
        ))
    });
    let file = config_file(cli.common.config.as_deref())?;
    let file = file
        .as_ref()
        .map(|(path, text)| (path.as_path(), text.as_str()));
    let settings = Settings::resolve(cli.layer(), environment, file)?;
    let colors = [
        ("auto", Color::Auto),
        ("always", Color::Always),
        ("never", Color::Never),
    ];
    if let Some(color) = settings.choice(settings::COLOR, &colors)? {
        *output = Output::new(cli.common.json, color);
    }
    start_log(
        &settings,
        matches!(
            cli.command,
            Command::Up(_) | Command::Registry(_) | Command::Node(_)
        ),
    )?;
    Ok(settings)
}

/// The settings file: what was named, which must exist, else the first of the usual ones that does.
fn config_file(named: Option<&Path>) -> Result<Option<(PathBuf, String)>, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let named = named
        .map(Path::to_owned)
        .or_else(|| variable(&format!("{VARIABLE_PREFIX}CONFIG")).map(PathBuf::from));
    let usual = || {
        let user = variable("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".config")));
        user.map(|folder| folder.join("ramjet/ramjet.toml"))
            .into_iter()
            .chain([PathBuf::from("/etc/ramjet/ramjet.toml")])
            .find(|path| path.is_file())
    };
    let Some(path) = named.or_else(usual) else {
        return Ok(None);
    };
    let refuse = |why: String| Failure::usage(format!("config: {}: {why}", path.display()));
    let metadata = std::fs::metadata(&path).map_err(|error| refuse(error.to_string()))?;
    if metadata.len() > CONFIG_LEN_MAX {
        return Err(refuse(format!(
            "{} bytes, at most {CONFIG_LEN_MAX}",
            metadata.len()
        )));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| refuse(error.to_string()))?;
    Ok(Some((path, text)))
}

/// Services tell what they do; commands that answer a question speak when something is wrong.
fn start_log(settings: &Settings, service: bool) -> Result<(), Failure> {
    let default = if service { "info" } else { "warn" };
    let filter = settings
        .parsed(settings::LOG, |text| {
            EnvFilter::try_new(text).map_err(|error| error.to_string())
        })?
        .pop()
        .unwrap_or_else(|| EnvFilter::new(default));
    // A second initialisation happens only where a test calls twice; the first one stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
    Ok(())
}

fn dispatch(cli: &Cli, settings: &Settings, output: &mut Output) -> Result<Exit, Failure> {
    match &cli.command {
        Command::Demo(args) => demo::run(args, settings, output),
        Command::Up(args) => up::run(args, settings, output),
        Command::Registry(_) => registry::run(settings, output),
        Command::Node(args) => node::run(args, settings, output),
        Command::Resolve(args) => resolve::run(args, settings, output),
        Command::Submit(args) => submit::run(args, settings, output),
        Command::Message(args) => agent::message(args, settings, output),
        Command::File(args) => agent::file(args, settings, output),
        Command::Trust(args) => agent::trust(args, settings, output),
        Command::Task(args) => agent::task(args, settings, output),
        Command::Polo(args) => polo::run(args, settings, output),
        Command::Status(_) => status::run(settings, output),
        Command::Engagements(args) => engagements::run(args, settings, output),
        Command::Bench(args) => bench::run(args, settings, output),
        Command::Doctor(args) => doctor::run(args, output),
    }
}
