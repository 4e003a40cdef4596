//! What an agent says when it attaches, what of it is allowed, and what it is told.
//!
//! A HELLO that cannot be is refused with the member, its value and the bound, for people to read.
//! How large the arena of a connection is follows from it here.

use std::time::Duration;

use ramjet_proto::ids::NodeId;
use ramjet_proto::market::terms::is_skill_name;
use ramjet_proto::wire::limits::{FRAME_PAYLOAD_MAX, TASK_LEN_MAX};
use serde::{Deserialize, Serialize};

use super::layout::{REGION_OVERHEAD, task_room};

/// Most tasks of a batch.
pub const BATCH_TASKS_MAX: u32 = 4_096;
/// Longest that the oldest task of a batch may wait for others.
const WAIT_US_MAX: u64 = 10_000_000;
/// Longest time without a sign of life that an agent may ask for.
const STALL_S_MAX: u32 = 86_400;
/// Batches of one agent at a time: one runs, one is staged.
pub const REGIONS: usize = 2;
/// Bytes that the payloads of a batch are given room for, unless one payload may be longer.
const PAYLOADS_LEN: usize = 8 << 20;
/// Bytes that the results of a batch are given room for, unless one result may be longer.
const RESULTS_LEN: usize = 16 << 20;
/// Characters that are kept of an agent's name for itself.
const SDK_CHARS_MAX: usize = 64;
/// Arenas are whole pages.
const PAGE: usize = 4_096;

/// How a task's work units are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Each task is one.
    #[default]
    Items,
    /// Each byte of its payload is one.
    Bytes,
}

/// HELLO: what an agent runs, and how.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Hello {
    /// The skill.
    pub skill: String,
    /// Most tasks of a batch.
    pub max_batch: u32,
    /// How long the oldest task of a batch may wait for others, in microseconds.
    pub max_wait_us: u64,
    /// Most work units of a batch; 0 for no bound.
    pub max_work: u64,
    /// Longest result, in bytes.
    pub result_len_max: usize,
    /// Above 0: every result has exactly this many bytes.
    pub result_stride: usize,
    /// Whether a task may be run again after an agent died over it.
    pub idempotent: bool,
    /// Seconds without a sign of life after which a batch is given up.
    pub stall_s: u32,
    /// The library that the agent uses, for people.
    pub sdk: String,
    /// Its process, for people.
    pub pid: u32,
    /// Longest payload, in bytes.
    pub max_payload: usize,
    /// How work units are counted.
    pub work: Work,
}

impl Default for Hello {
    fn default() -> Self {
        Hello {
            skill: String::new(),
            max_batch: 1,
            max_wait_us: 0,
            max_work: 0,
            result_len_max: 64 << 10,
            result_stride: 0,
            idempotent: false,
            stall_s: 30,
            sdk: String::new(),
            pid: 0,
            max_payload: 1 << 20,
            work: Work::Items,
        }
    }
}

/// WELCOME: what the agent is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Welcome {
    /// The node, or 0 if it has no number yet.
    pub node: NodeId,
    /// The skill.
    pub name: String,
    /// Bytes of the arena.
    pub arena_len: usize,
    /// Bytes of each region.
    pub region_len: usize,
    /// Regions.
    pub regions: usize,
    /// Most tasks of a batch.
    pub max_batch: u32,
    /// Longest result.
    pub result_len_max: usize,
    /// Longest piece of progress.
    pub progress_len_max: usize,
}

impl Hello {
    /// Reads a HELLO and checks every member.
    ///
    /// # Errors
    /// What cannot be: the member, its value, the bound.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        let mut hello: Hello =
            serde_json::from_slice(body).map_err(|error| format!("HELLO is no JSON: {error}"))?;
        if hello.result_stride > 0 {
            hello.result_len_max = hello.result_stride;
        }
        if !is_skill_name(&hello.skill) {
            return Err(format!(
                "skill {:?} must be 1 to 64 of [a-z0-9._-]",
                hello.skill
            ));
        }
        let ranges = [
            (
                "max_batch",
                u64::from(hello.max_batch),
                1,
                BATCH_TASKS_MAX.into(),
            ),
            ("max_wait_us", hello.max_wait_us, 0, WAIT_US_MAX),
            (
                "result_len_max",
                hello.result_len_max as u64,
                1,
                TASK_LEN_MAX as u64,
            ),
            (
                "max_payload",
                hello.max_payload as u64,
                1,
                TASK_LEN_MAX as u64,
            ),
            ("stall_s", u64::from(hello.stall_s), 1, STALL_S_MAX.into()),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(format!("{name} is {value}, must be {least} to {most}"));
            }
        }
        // Shown to people, and kept as long as the agent is there.
        hello.sdk = hello.sdk.chars().take(SDK_CHARS_MAX).collect();
        Ok(hello)
    }

    /// Whether an agent may join others of the same skill, which run the same batches.
    ///
    /// # Errors
    /// The member in which they differ, and both values.
    pub fn joins(&self, others: &Hello) -> Result<(), String> {
        let members = [
            (
                "max_batch",
                u64::from(self.max_batch),
                u64::from(others.max_batch),
            ),
            ("max_wait_us", self.max_wait_us, others.max_wait_us),
            ("max_work", self.max_work, others.max_work),
            (
                "max_payload",
                self.max_payload as u64,
                others.max_payload as u64,
            ),
            (
                "result_len_max",
                self.result_len_max as u64,
                others.result_len_max as u64,
            ),
            (
                "result_stride",
                self.result_stride as u64,
                others.result_stride as u64,
            ),
        ];
        for (name, mine, theirs) in members {
            if mine != theirs {
                return Err(format!(
                    "{name} is {mine}, but {theirs} with the agents that run {:?} already; all of \
                     them must declare the same",
                    self.skill
                ));
            }
        }
        if self.work != others.work {
            return Err(format!(
                "work differs from the agents that run {:?} already; all of them must declare the \
                 same",
                self.skill
            ));
        }
        Ok(())
    }

    /// Bytes of one region: room for a whole batch of ordinary tasks, or for one of the longest.
    pub fn region_len(&self) -> usize {
        let tasks = self.max_batch as usize;
        let payloads = tasks.saturating_mul(self.max_payload);
        let payloads = payloads.min(PAYLOADS_LEN.max(self.max_payload));
        let results = tasks.saturating_mul(self.result_len_max);
        let results = results.min(RESULTS_LEN.max(self.result_len_max));
        // Each payload is rounded up to 8.
        let len = REGION_OVERHEAD + tasks * (task_room(0) + 8) + payloads + results;
        len.next_multiple_of(PAGE)
    }

    /// How long the oldest task of a batch may wait for others.
    pub fn wait(&self) -> Duration {
        Duration::from_micros(self.max_wait_us)
    }

    /// Time without a sign of life after which a batch is given up.
    pub fn stall(&self) -> Duration {
        Duration::from_secs(self.stall_s.into())
    }

    /// Work units of a task.
    pub fn work_of(&self, payload_len: usize) -> u64 {
        match self.work {
            Work::Items => 1,
            Work::Bytes => payload_len as u64,
        }
    }

    /// What the agent is told.
    pub fn welcome(&self, node: NodeId) -> Welcome {
        let region_len = self.region_len();
        Welcome {
            node,
            name: self.skill.clone(),
            arena_len: REGIONS * region_len,
            region_len,
            regions: REGIONS,
            max_batch: self.max_batch,
            result_len_max: self.result_len_max,
            progress_len_max: FRAME_PAYLOAD_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Layout;
    use super::*;

    #[test]
    fn what_is_missing_has_a_default_and_what_is_unknown_is_ignored() {
        let hello = Hello::read(br#"{"skill":"embed","colour":"blue"}"#).expect("valid");
        let expected = Hello {
            skill: "embed".to_owned(),
            ..Hello::default()
        };
        assert_eq!(hello, expected);
        assert_eq!((hello.max_batch, hello.stall_s), (1, 30));
        let strided = Hello::read(br#"{"skill":"embed","result_stride":1536,"work":"bytes"}"#);
        let strided = strided.expect("valid");
        assert_eq!(strided.result_len_max, 1_536);
        assert_eq!((strided.work_of(7), hello.work_of(7)), (7, 1));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name_value_and_bound() {
        let table = [
            ("no", "HELLO is no JSON"),
            (r#"{"skill":"No"}"#, r#"skill "No" must be 1 to 64"#),
            (
                r#"{"skill":"x","max_batch":0}"#,
                "max_batch is 0, must be 1 to 4096",
            ),
            (r#"{"skill":"x","max_batch":4097}"#, "max_batch is 4097"),
            (r#"{"skill":"x","max_batch":-1}"#, "HELLO is no JSON"),
            (r#"{"skill":"x","max_wait_us":10000001}"#, "max_wait_us is"),
            (r#"{"skill":"x","result_len_max":0}"#, "result_len_max is 0"),
            (r#"{"skill":"x","max_payload":16777217}"#, "max_payload is"),
            (
                r#"{"skill":"x","stall_s":0}"#,
                "stall_s is 0, must be 1 to 86400",
            ),
            (r#"{"skill":"x","work":"tokens"}"#, "HELLO is no JSON"),
        ];
        for (body, expected) in table {
            let refusal = Hello::read(body.as_bytes()).expect_err(body);
            assert!(refusal.contains(expected), "{body}: {refusal}");
        }
    }

    #[test]
    fn a_region_holds_a_whole_batch_or_one_of_the_longest_tasks() {
        for (max_batch, max_payload, result_len_max) in [
            (1, 1, 1),
            (1, TASK_LEN_MAX, TASK_LEN_MAX),
            (256, 1_024, 4_096),
            (4_096, 63, 8),
            (4_096, TASK_LEN_MAX, TASK_LEN_MAX),
        ] {
            let hello = Hello {
                max_batch,
                max_payload,
                result_len_max,
                ..Hello::default()
            };
            let len = hello.region_len();
            let one = Layout::of([max_payload].into_iter(), result_len_max);
            assert!(one.end() <= len, "{one:?} in {len}");
            if max_batch as usize * max_payload.max(result_len_max) <= PAYLOADS_LEN {
                let lens = std::iter::repeat_n(max_payload, max_batch as usize);
                let all = Layout::of(lens, result_len_max);
                assert!(all.end() <= len, "{all:?} in {len}");
            }
            assert!(u32::try_from(len).is_ok(), "offsets are 32 bits");
        }
    }

    #[test]
    fn agents_of_one_skill_declare_the_same() {
        let first = Hello {
            skill: "embed".to_owned(),
            ..Hello::default()
        };
        let other = Hello {
            stall_s: 5,
            pid: 7,
            ..first.clone()
        };
        assert_eq!(other.joins(&first), Ok(()));
        let longer = Hello {
            max_payload: 9,
            ..first.clone()
        };
        let refusal = longer.joins(&first).expect_err("differs");
        assert!(
            refusal.starts_with("max_payload is 9, but 1048576 with the agents"),
            "{refusal}"
        );
        let counted = Hello {
            work: Work::Bytes,
            ..first.clone()
        };
        assert!(counted.joins(&first).is_err());
    }
}
