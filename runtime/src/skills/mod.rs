//! The skills built in.
//!
//! | skill | payload | result |
//! |---|---|---|
//! | `echo` | any bytes | the same bytes |
//! | `sha256` | any bytes | their SHA-256, 64 lower-case hex digits |
//! | `langid` | text in UTF-8 | compact JSON: language, script, confidence, whether it is reliable |
//!
//! Invariant: a skill is a pure function of its payload, so a requester that has the same build can
//! check every result; `demo` does. None allocates more than its library does.

mod echo;
mod langid;
mod sha256;

use std::sync::Arc;

use ramjet_proto::market::AcceptFrom;

use crate::handler::{Handler, Skill};

pub use echo::Echo;
pub use langid::{LANGID_PAYLOAD_READ_MAX, Langid};
pub use sha256::Sha256;

/// The names of the skills built in.
pub const NAMES: [&str; 3] = ["echo", "langid", "sha256"];

/// A skill that is not built in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownSkill(pub String);

impl std::fmt::Display for UnknownSkill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "there is no built-in skill {:?}; there are {}",
            self.0,
            NAMES.join(", ")
        )
    }
}

impl std::error::Error for UnknownSkill {}

/// The handler of the built-in skill `name`.
///
/// # Errors
/// [`UnknownSkill`], which lists those that there are.
pub fn handler(name: &str) -> Result<Arc<dyn Handler>, UnknownSkill> {
    match name {
        "echo" => Ok(Arc::new(Echo)),
        "langid" => Ok(Arc::new(Langid)),
        "sha256" => Ok(Arc::new(Sha256)),
        _ => Err(UnknownSkill(name.to_owned())),
    }
}

/// The built-in skill `name`, serving `accept_from`.
///
/// # Errors
/// [`UnknownSkill`], which lists those that there are.
pub fn built_in(name: &str, accept_from: AcceptFrom) -> Result<Skill, UnknownSkill> {
    Ok(Skill {
        name: name.to_owned(),
        accept_from,
        handler: handler(name)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::Outcome;

    /// Runs one task in a space of exactly the promised length.
    pub(super) fn run(handler: &dyn Handler, payload: &[u8]) -> Result<String, String> {
        let mut space = vec![0xaa; handler.result_len_max(payload.len())];
        let outcome = handler.run(payload, &mut space);
        let text = |len: usize| String::from_utf8(space[..len].to_vec()).expect("text");
        match outcome {
            Outcome::Done(len) => Ok(text(len)),
            Outcome::Failed(len) => Err(text(len)),
        }
    }

    #[test]
    fn every_listed_name_is_a_skill_and_an_unknown_one_lists_them() {
        for name in NAMES {
            assert!(ramjet_proto::market::terms::is_skill_name(name));
            assert_eq!(built_in(name, AcceptFrom::Gate).expect("listed").name, name);
        }
        let error = built_in("langld", AcceptFrom::Gate).expect_err("not listed");
        assert_eq!(
            error.to_string(),
            r#"there is no built-in skill "langld"; there are echo, langid, sha256"#
        );
    }
}
