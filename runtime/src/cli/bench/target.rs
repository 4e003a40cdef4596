//! What is asked of whom: `echo` of a worker in this process, unless a skill, a payload or a market
//! is named.
//!
//! Only results of `echo` are compared with their payloads: of another skill nobody knows what it
//! should answer. Only `echo` in this process is compared with a control arm: a worker elsewhere
//! has another path, another skill other work.

use ramjet_proto::market::terms::is_skill_name;

use super::super::bench_args::TargetArgs;
use super::super::exit::Failure;
use super::super::host;
use super::super::output::Output;
use super::super::settings::Settings;
use super::super::submit;
use super::super::text::{Source, Text};
use crate::node::NodeConfig;
use crate::skills;

const ECHO: &str = "echo";

/// What is asked of whom.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) skill: String,
    /// What each task carries, if that was given.
    pub(super) data: Option<Vec<u8>>,
    /// Who asks, if the worker is not in this process; its threads are still to be set.
    pub(super) remote: Option<NodeConfig>,
}

impl Target {
    /// Made-up bytes for `echo` in this process.
    pub(super) fn own_echo() -> Self {
        Target {
            skill: ECHO.to_owned(),
            data: None,
            remote: None,
        }
    }

    /// What the arguments name.
    pub(super) fn of(
        args: &TargetArgs,
        settings: &Settings,
        output: &Output,
    ) -> Result<Self, Failure> {
        let skill = args.skill.as_deref().unwrap_or(ECHO);
        let text = match (&args.data, &args.data_file) {
            (Some(data), _) => Some(Text::of_payload(
                "--data",
                data.clone().into_bytes().into(),
            )?),
            (None, Some(file)) => Some(Text::read_payload(&Source::of(file))?),
            (None, None) => None,
        };
        let data = text.map(|text| text.line(0).to_vec());
        check(skill, data.as_deref(), args.market.registry.is_some())?;
        let remote = match args.market.registry {
            Some(_) => {
                let registry = host::registry_address(settings)?;
                Some(submit::own_node(settings, registry, output)?)
            }
            None => None,
        };
        Ok(Target {
            skill: skill.to_owned(),
            data,
            remote,
        })
    }

    /// Whether a result must be its payload.
    pub(super) fn is_echo(&self) -> bool {
        self.skill == ECHO
    }

    /// Whether a control arm does the same work over the same path.
    pub(super) fn has_control(&self) -> bool {
        self.is_echo() && self.remote.is_none()
    }
}

/// A twin is a control against itself; without a control there is none.
pub(super) fn check_twin(twin: bool) -> Result<(), Failure> {
    if twin {
        return Err(Failure::usage(
            "--twin: there is no control for this skill or this market; leave it out",
        ));
    }
    Ok(())
}

fn check(skill: &str, data: Option<&[u8]>, remote: bool) -> Result<(), Failure> {
    if !is_skill_name(skill) {
        return Err(Failure::usage(format!(
            "--skill: {skill:?} must be 1 to 64 bytes of [a-z0-9._-]"
        )));
    }
    if !remote {
        skills::handler(skill).map_err(|error| {
            Failure::usage(format!(
                "--skill: {error}; for a worker's own skill name its market with --registry"
            ))
        })?;
    }
    match data {
        Some([]) => Err(Failure::usage(
            "--data: is empty; a task of a benchmark has at least one byte",
        )),
        None if skill != ECHO => Err(Failure::usage(format!(
            "--skill: {skill} wants a payload of its own; give --data TEXT or --data-file FILE"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_asked_is_refused_before_anything_starts() {
        let asked = |skill, data: Option<&str>, remote| {
            check(skill, data.map(str::as_bytes), remote).map_err(|failure| failure.message)
        };
        assert_eq!(asked("echo", None, false), Ok(()));
        assert_eq!(asked("sha256", Some("x"), false), Ok(()));
        assert_eq!(asked("my-model", Some("x"), true), Ok(()));
        for (skill, data, remote, words) in [
            ("Echo", None, false, "must be 1 to 64 bytes"),
            (
                "my-model",
                Some("x"),
                false,
                "name its market with --registry",
            ),
            ("my-model", None, true, "give --data TEXT"),
            ("echo", Some(""), false, "at least one byte"),
        ] {
            let refused = asked(skill, data, remote).expect_err(words);
            assert!(refused.contains(words), "{refused}");
        }
    }
}
