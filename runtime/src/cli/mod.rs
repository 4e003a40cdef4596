//! The command line.
//!
//! | part | holds |
//! |---|---|
//! | [`args`], [`arg_groups`], [`agent_args`], [`bench_args`], [`settings`] | what was typed; what it means |
//! | [`exit`], [`output`] | exit codes and failures; data and talk |
//! | [`host`], [`agents`], [`market`], [`access`] | what starts, and its agents; the registry inside; whom to ask |
//! | [`identity_file`], [`signals`], [`notify`], `log`, `reload` | key file, signals, systemd, the log, SIGHUP |
//! | [`text`], [`jobs`], [`printer`], [`engage`], `attempts` | lines, tasks, answers in order, timeline, another worker |
//! | `demo`, `up`, `node`, … | one file a command |
//!
//! Invariants: standard output holds data and nothing else; every failure names what to do next and
//! ends in one of the exit codes of [`exit`]. Absent: protocol. The command line calls the public
//! interface of the library, as any other program would.

pub mod access;
mod agent;
pub mod agent_args;
pub mod agents;
pub mod arg_groups;
pub mod args;
mod attempts;
mod bench;
pub mod bench_args;
mod demo;
mod descriptors;
mod doctor;
pub mod engage;
mod engagements;
pub mod exit;
mod generate;
pub mod host;
pub mod identity_file;
pub mod jobs;
mod log;
pub mod market;
mod metrics;
mod node;
pub mod notify;
pub mod output;
mod polo;
pub mod printer;
mod probes;
mod registry;
mod reload;
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

use args::{Cli, Command};
use exit::{Exit, Failure};
use output::{Color, Output};
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
    if let Command::AgentRun(args) = &cli.command {
        // Between a node and its agent: it has no settings, and no output but what goes wrong.
        return match crate::port::launch::run(&args.launch()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(Exit::Failed.code())
            }
        };
    }
    let mut output = Output::new(cli.common.json, Color::Auto);
    match prepare(&cli, &mut output).and_then(|settings| dispatch(&cli, &settings, &mut output)) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            output.end_bar();
            if !failure.message.is_empty() {
                output.fault(&failure.message);
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
    let service = matches!(
        cli.command,
        Command::Up(_) | Command::Registry(_) | Command::Node(_)
    );
    let form = log::start(&settings, service)?;
    if form != log::Form::Text {
        output.talk_in_log();
    }
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
    match named.or_else(usual) {
        Some(path) => read_config(&path).map(|text| Some((path, text))),
        None => Ok(None),
    }
}

/// The text of a settings file.
fn read_config(path: &Path) -> Result<String, Failure> {
    let refuse = |why: String| Failure::usage(format!("config: {}: {why}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
    if metadata.len() > CONFIG_LEN_MAX {
        return Err(refuse(format!(
            "{} bytes, at most {CONFIG_LEN_MAX}",
            metadata.len()
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    Ok(text)
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
        Command::AgentRun(_) => Err(Failure::usage(
            "agent-run: it is run before any other command",
        )),
        Command::Generate { folder } => generate::run(folder),
    }
}
