//! SIGHUP: the settings file is read again, and what can be changed while the service runs is.
//!
//! Invariants: a file that is wrong changes nothing, and the log says why; a setting that was changed
//! but holds from the next start only is named in the log, each time it is found. Flags and the
//! environment stay what they were: they belong to the process.

use super::exit::Failure;
use super::host::{self, ServeDefaults};
use super::settings::{self as s, SETTINGS, Setting, Settings};
use super::{log, notify, read_config};
use crate::events;
use crate::handler::Skill;
use crate::node::{Node, Reloaded};

/// What a node can change while it runs.
const OF_NODE: &[Setting] = &[s::ACCEPT_FROM, s::CAPABILITY, s::LOG, s::TASK_READY];
/// What a registry can.
const OF_REGISTRY: &[Setting] = &[s::LOG];

/// Reads the settings of a node again; those that hold from now on replace `settings`.
pub(super) fn node(node: &Node, settings: &mut Settings, defaults: &ServeDefaults, status: &str) {
    notify::reloading();
    let outcome = read_again(settings).and_then(|fresh| {
        let reloaded = of_node(settings, &fresh, defaults)?;
        log::reload(&fresh)?;
        node.reload(reloaded).map_err(Failure::from)?;
        Ok(fresh)
    });
    settle(settings, outcome, OF_NODE);
    notify::ready(status);
}

/// Reads the settings of a registry again.
pub(super) fn registry(settings: &mut Settings, status: &str) {
    notify::reloading();
    let outcome = read_again(settings).and_then(|fresh| {
        log::reload(&fresh)?;
        Ok(fresh)
    });
    settle(settings, outcome, OF_REGISTRY);
    notify::ready(status);
}

fn read_again(settings: &Settings) -> Result<Settings, Failure> {
    match settings.file() {
        Some(path) => settings.with_file(path, &read_config(path)?),
        None => Err(Failure::usage(
            "there is no settings file to read again; start with --config FILE",
        )),
    }
}

/// The part of a node's settings that can change, checked as at its start. Skills that the node does
/// not offer yet have no place in it.
fn of_node(
    running: &Settings,
    fresh: &Settings,
    defaults: &ServeDefaults,
) -> Result<Reloaded, Failure> {
    let describe = |settings: &Settings| {
        host::checked_serving(settings, host::registry_address(settings)?, defaults)
    };
    let offered = describe(running)?.skills;
    let config = describe(fresh)?;
    let policies = config.skills.iter().filter(|skill| {
        let known = |offered: &Skill| offered.name == skill.name;
        offered.iter().any(known)
    });
    Ok(Reloaded {
        task_ready: config.task_ready,
        accept_from: policies
            .map(|skill| (skill.name.clone(), skill.accept_from))
            .collect(),
        capabilities: config.capabilities,
    })
}

fn settle(settings: &mut Settings, outcome: Result<Settings, Failure>, changeable: &[Setting]) {
    let fresh = match outcome {
        Ok(fresh) => fresh,
        Err(failure) => {
            tracing::error!(
                message_id = events::RELOAD_REFUSED,
                error = %failure,
                "settings are wrong and were not taken"
            );
            return;
        }
    };
    let changed: Vec<&str> = SETTINGS
        .iter()
        .filter(|setting| settings.texts(**setting) != fresh.texts(**setting))
        .map(|setting| setting.name)
        .collect();
    let holds = |name: &&&str| changeable.iter().any(|setting| setting.name == **name);
    let taken: Vec<&str> = changed.iter().filter(holds).copied().collect();
    tracing::info!(
        message_id = events::RELOADED,
        taken = taken.join(" "),
        "settings were read again"
    );
    for name in changed.iter().filter(|name| !holds(name)) {
        tracing::warn!(
            message_id = events::RESTART_NEEDED,
            setting = name,
            "changed in the file; it holds from the next start only"
        );
    }
    settings.keep(fresh, changeable);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ramjet_proto::market::AcceptFrom;

    use super::super::settings::Layer;
    use super::*;

    const DEFAULTS: ServeDefaults = ServeDefaults {
        skills: &[],
        accept_from: AcceptFrom::Gate,
        task_ready: false,
    };

    fn settings(file: &str) -> Settings {
        let file = format!("state = '/tmp/s'\nskill = 'echo'\n{file}");
        let flags = Layer::default().set(s::LOG, &Some("warn".to_owned()));
        Settings::resolve(flags, [], Some((Path::new("t.toml"), &file))).expect("TOML")
    }

    #[test]
    fn what_can_change_is_kept_and_the_rest_waits_for_the_next_start() {
        let mut running = settings("credits = 4\ntask-ready = false\n");
        let fresh = "state = '/tmp/s'\nskill = ['echo', 'sha256']\ncredits = 9\ntask-ready = true\n\
                     [capability]\nmodel = 'm'\n";
        let fresh = running.with_file(Path::new("t.toml"), fresh).expect("TOML");
        let reloaded = of_node(&running, &fresh, &DEFAULTS).expect("valid");
        assert!(reloaded.task_ready);
        assert_eq!(reloaded.capabilities["model"], "m");
        assert_eq!(reloaded.accept_from["echo"], AcceptFrom::Gate);
        assert_eq!(reloaded.accept_from.len(), 1, "sha256 is not offered yet");
        settle(&mut running, Ok(fresh), OF_NODE);
        assert_eq!(running.text(s::TASK_READY).as_deref(), Some("true"));
        assert_eq!(running.text(s::CREDITS).as_deref(), Some("4"), "as it runs");
        assert_eq!(running.text(s::LOG).as_deref(), Some("warn"), "flags stay");
    }

    #[test]
    fn a_wrong_file_changes_nothing() {
        let running = settings("task-ready = true\n");
        let error = running
            .with_file(Path::new("t.toml"), "task-raedy = true")
            .expect_err("no such key");
        assert!(error.message.contains("task-ready"), "{error}");
        let wrong = running
            .with_file(
                Path::new("t.toml"),
                "skill = 'echo'\naccept-from = 'sha256=anyone'",
            )
            .expect("TOML");
        assert!(
            of_node(&running, &wrong, &DEFAULTS).is_err(),
            "a skill that is not offered"
        );
        let mut kept = running.clone();
        settle(&mut kept, Err(error), OF_NODE);
        assert_eq!(kept.text(s::TASK_READY), running.text(s::TASK_READY));
    }
}
