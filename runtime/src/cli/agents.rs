//! From settings to the agents of a node: what it starts, where others attach, whom they serve.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ramjet_proto::market::AcceptFrom;

use super::exit::Failure;
use super::host::{checked_socket, state_folder};
use super::settings::{self as s, Settings};
use crate::node::{AgentsConfig, OwnedAgent};
use crate::port::{MEMORY_MAX_DEFAULT, TASKS_MAX_DEFAULT};
use crate::skills;

/// Name of the socket where agents attach.
pub const AGENT_SOCKET_FILE: &str = "agents.sock";

/// Where agents attach: what was set, `none` for nowhere, else `agents.sock` in the state folder.
///
/// # Errors
/// As [`socket_path`].
pub fn agent_socket_path(settings: &Settings) -> Result<Option<PathBuf>, Failure> {
    match settings.text(s::AGENT_SOCKET).as_deref() {
        Some("none") => Ok(None),
        Some(path) => checked_socket(s::AGENT_SOCKET, PathBuf::from(path)).map(Some),
        None => {
            let path = state_folder(settings)?.join(AGENT_SOCKET_FILE);
            checked_socket(s::AGENT_SOCKET, path).map(Some)
        }
    }
}

/// The agents of a node. `policies` are those of skills that are not built in.
pub(super) fn agents_of(
    settings: &Settings,
    built_in: &[String],
    accept_from: AcceptFrom,
    policies: BTreeMap<String, AcceptFrom>,
) -> Result<AgentsConfig, Failure> {
    let owned: Vec<OwnedAgent> = settings.parsed(s::AGENT, |text| {
        let agent: OwnedAgent = text.parse()?;
        if built_in.contains(&agent.skill) {
            let skill = &agent.skill;
            return Err(format!("names {skill:?}, which --skill offers already"));
        }
        find_program(&agent.command[0])?;
        Ok(agent)
    })?;
    let socket = agent_socket_path(settings)?;
    let mut offered: Vec<&str> = built_in.iter().map(String::as_str).collect();
    offered.extend(owned.iter().map(|agent| agent.skill.as_str()));
    for name in policies.keys() {
        let meant = s::suggestion(name, offered.iter().copied());
        let known = offered.contains(&name.as_str());
        let built_in = skills::NAMES.contains(&name.as_str());
        // An agent that attaches later may bring it, unless it looks like a slip.
        if !known && (built_in || !meant.is_empty() || socket.is_none()) {
            let offers = match offered.is_empty() {
                true => "nothing".to_owned(),
                false => offered.join(", "),
            };
            return Err(Failure::usage(format!(
                "accept-from: {name:?} is not offered by this node; it offers {offers}{meant}"
            )));
        }
    }
    const MIB: usize = 1 << 20;
    let memory_mib = settings.number(s::AGENT_MEMORY, 1..=1_usize << 20)?;
    let tasks_max = settings.number(s::AGENT_TASKS_MAX, 1..=1_usize << 20)?;
    Ok(AgentsConfig {
        socket,
        owned,
        accept_from,
        policies,
        tasks_max: tasks_max.unwrap_or(TASKS_MAX_DEFAULT),
        memory_max: memory_mib.map_or(MEMORY_MAX_DEFAULT, |mib| mib * MIB),
        ..AgentsConfig::none()
    })
}

/// Looks for a program as the kernel would be asked for it: a path, or a name along PATH.
fn find_program(name: &str) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |path: &Path| {
        let file = std::fs::metadata(path);
        file.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let found = if name.contains('/') {
        runs(Path::new(name))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| runs(&folder.join(name)))
    };
    if found {
        Ok(())
    } else {
        Err(format!(
            "names the program {name:?}, which cannot be run; check its path"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Layer;
    use super::*;
    use crate::port::Form;

    fn agents(file: &str) -> Result<AgentsConfig, Failure> {
        let file = format!("state = '/tmp/s'\n{file}");
        let settings = Settings::resolve(Layer::default(), [], Some((Path::new("f"), &file)));
        let settings = settings.expect("known keys");
        let policies = BTreeMap::from([("tr".to_owned(), AcceptFrom::Anyone)]);
        let built_in = ["echo".to_owned()];
        agents_of(&settings, &built_in, AcceptFrom::Gate, policies)
    }

    #[test]
    fn agents_are_read_from_a_list_or_a_table() {
        let listed = agents("agent = ['tr=lines:tr a-z A-Z', 'copy=frames:cat']").expect("valid");
        assert_eq!(
            listed.socket.as_deref(),
            Some(Path::new("/tmp/s/agents.sock"))
        );
        assert_eq!(listed.owned.len(), 2);
        assert_eq!(listed.owned[0].command, ["tr", "a-z", "A-Z"]);
        assert_eq!(listed.owned[1].form, Form::Frames);
        let policies = ["tr", "copy", "later"].map(|skill| listed.policy(skill));
        assert_eq!(
            policies,
            [AcceptFrom::Anyone, AcceptFrom::Gate, AcceptFrom::Gate]
        );
        let table = "agent-memory = 16\nagent-tasks-max = 5\n[agent]\ntr = 'lines:tr a-z A-Z'\n";
        let table = agents(table).expect("valid");
        assert_eq!(table.owned, listed.owned[..1]);
        assert_eq!((table.memory_max, table.tasks_max), (16 << 20, 5));
        let none = agents("agent-socket = 'none'\nagent = 'tr=cat'").expect("valid");
        assert_eq!((none.socket.is_none(), none.is_used()), (true, true));
    }

    #[test]
    fn agents_that_cannot_be_are_refused_by_name() {
        let table = [
            (
                "agent = 'echo=cat'",
                "names \"echo\", which --skill offers already",
            ),
            (
                "agent = 'x=no-such-program'",
                "the program \"no-such-program\", which cannot be run",
            ),
            ("agent = 'x=/etc/passwd'", "cannot be run"),
            ("agent = 'x'", "is not NAME=COMMAND"),
            (
                "agent-socket = 'none'",
                "\"tr\" is not offered by this node; it offers echo",
            ),
            ("agent = 'trr=cat'", "did you mean \"trr\"?"),
            ("agent-memory = 0", "from 1 to 1048576"),
            ("agent-tasks-max = 'x'", "no whole number"),
        ];
        for (file, expected) in table {
            let error = agents(file).expect_err(file);
            assert!(
                error.message.contains(expected),
                "{file}: {}",
                error.message
            );
        }
        let long = format!("agent-socket = '/tmp/{}'", "x".repeat(95));
        let error = agents(&long).expect_err("too long");
        assert!(
            error.message.contains("--agent-socket"),
            "{}",
            error.message
        );
    }
}
