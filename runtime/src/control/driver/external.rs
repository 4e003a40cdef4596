//! Handlers outside the process: a task on its way to a program, and its answer on the way back.
//!
//! A pool thread runs a [`Place`] and waits for the program: tasks go through a bounded queue to the
//! control thread, where `AcceptTask` takes them; what the program says comes back through a channel
//! of the task's own. A program that leaves drops its ends of both, and the task fails by name. So
//! as many tasks run in programs at a time as the pool has threads.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use crossbeam::channel::{Sender, unbounded};
use ramjet_proto::driver::{FRAME_LEN_MAX, TaskEnd};
use ramjet_proto::market::AcceptFrom;
use ramjet_proto::wire::limits::FRAME_PAYLOAD_MAX;
use tokio::sync::mpsc;

use crate::control::externals::EXTERNAL_SKILLS_MAX;
use crate::handler::{Handler, Outcome, Placement, Skill};

/// Longest result of a program: the space that every task of its is lent.
pub(super) const RESULT_LEN_MAX: usize = 256 << 10;
/// Longest payload that is handed to a program: a frame, less what stands beside the payload.
pub(super) const PAYLOAD_LEN_MAX: usize = FRAME_LEN_MAX - 1_024;
/// Tasks that wait for a program to accept them.
pub(super) const HANDED_MAX: usize = 256;
/// Pieces of progress that wait for a pool thread; more are dropped.
pub(super) const PIECES_MAX: usize = 64;
/// Threads of the pool, if nothing else of the node wants more.
pub(crate) const THREADS_MIN: usize = 4;

/// A task that a program may accept.
pub(super) struct Handed {
    pub(super) skill: String,
    pub(super) payload: Bytes,
    /// What the program says of it; dropping it says that it has left.
    pub(super) words: Sender<Word>,
}

/// What a program says of a task.
pub(super) enum Word {
    Progress(Bytes),
    End(TaskEnd, Bytes),
}

/// One of the places for skills that programs run.
#[derive(Default)]
pub(super) struct Place {
    bound: Mutex<Option<(String, mpsc::Sender<Handed>)>>,
}

impl Place {
    /// Gives the place's tasks to a program, or to none.
    pub(super) fn bind(&self, to: Option<(String, mpsc::Sender<Handed>)>) {
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    fn bound(&self) -> Option<(String, mpsc::Sender<Handed>)> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.clone()
    }

    /// Waits for the program; its result, or why there is none.
    fn ask(
        &self,
        payload: &[u8],
        progress: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Bytes, String> {
        if payload.len() > PAYLOAD_LEN_MAX {
            let len = payload.len();
            return Err(format!(
                "a payload of {len} bytes, at most {PAYLOAD_LEN_MAX} reach a program"
            ));
        }
        let left = || "the program that ran this skill has left".to_owned();
        let (skill, tasks) = self.bound().ok_or_else(left)?;
        let (words, said) = unbounded();
        let handed = Handed {
            skill,
            payload: Bytes::copy_from_slice(payload),
            words,
        };
        tasks.try_send(handed).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                format!("{HANDED_MAX} tasks wait for the program, its limit")
            }
            mpsc::error::TrySendError::Closed(_) => left(),
        })?;
        drop(tasks);
        loop {
            match said.recv().map_err(|_| left())? {
                Word::Progress(piece) => {
                    // One that finds no room is lost, as any piece may be.
                    let _ = progress(&piece);
                }
                Word::End(TaskEnd::Done, result) => return Ok(result),
                Word::End(TaskEnd::Failed, why) => {
                    return Err(String::from_utf8_lossy(&why).into_owned());
                }
            }
        }
    }
}

impl Handler for Place {
    fn placement(&self) -> Placement {
        Placement::Pool
    }

    fn result_len_max(&self, _payload_len: usize) -> usize {
        RESULT_LEN_MAX
    }

    fn run(&self, payload: &[u8], result: &mut [u8]) -> Outcome {
        self.run_reporting(payload, result, &mut |_| true)
    }

    fn run_reporting(
        &self,
        payload: &[u8],
        result: &mut [u8],
        progress: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Outcome {
        match self.ask(payload, progress) {
            Ok(bytes) => Outcome::Done(fill(result, &bytes)),
            Err(why) => Outcome::Failed(fill(result, why.as_bytes())),
        }
    }
}

/// Copies what fits, which is all of what was checked when it came.
fn fill(space: &mut [u8], bytes: &[u8]) -> usize {
    let len = bytes.len().min(space.len());
    space[..len].copy_from_slice(&bytes[..len]);
    len
}

/// The places of a node, in the order in which the plane numbers them.
#[derive(Clone)]
pub(crate) struct Places(pub(super) Arc<[Arc<Place>]>);

impl Places {
    pub(crate) fn new() -> Self {
        Places((0..EXTERNAL_SKILLS_MAX).map(|_| Arc::default()).collect())
    }

    /// The places as skills for the workers' list. Their names are for nobody to ask for.
    pub(crate) fn skills(&self) -> impl Iterator<Item = Skill> {
        self.0.iter().enumerate().map(|(index, place)| Skill {
            name: format!("external-{index}"),
            accept_from: AcceptFrom::Gate,
            handler: Arc::clone(place) as Arc<dyn Handler>,
        })
    }
}

/// Whether a piece of progress may be said.
pub(super) fn is_piece(bytes: &[u8]) -> bool {
    bytes.len() <= FRAME_PAYLOAD_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> (Arc<Place>, mpsc::Receiver<Handed>) {
        let place = Arc::new(Place::default());
        let (tasks, queue) = mpsc::channel(HANDED_MAX);
        place.bind(Some(("sum".to_owned(), tasks)));
        (place, queue)
    }

    fn failure(place: &Place, payload: &[u8]) -> String {
        let mut space = vec![0; RESULT_LEN_MAX];
        match place.run(payload, &mut space) {
            Outcome::Failed(len) => String::from_utf8_lossy(&space[..len]).into_owned(),
            Outcome::Done(len) => panic!("done with {len} bytes"),
        }
    }

    #[test]
    fn a_task_goes_to_the_program_and_its_answer_comes_back() {
        let (place, mut queue) = bound();
        let runner = Arc::clone(&place);
        let running = std::thread::spawn(move || {
            let mut space = vec![0; RESULT_LEN_MAX];
            let mut pieces = Vec::new();
            let outcome = runner.run_reporting(b"2 and 2", &mut space, &mut |piece| {
                pieces.push(piece.to_vec());
                true
            });
            (outcome, space, pieces)
        });
        let handed = queue.blocking_recv().expect("a task");
        assert_eq!(
            (&handed.skill[..], &handed.payload[..]),
            ("sum", &b"2 and 2"[..])
        );
        let say = |word| handed.words.send(word).expect("it listens");
        say(Word::Progress(Bytes::from_static(b"half")));
        say(Word::End(TaskEnd::Done, Bytes::from_static(b"4")));
        let (outcome, space, pieces) = running.join().expect("an answer");
        assert_eq!(outcome, Outcome::Done(1));
        assert_eq!(
            (&space[..1], &pieces[..]),
            (&b"4"[..], &[b"half".to_vec()][..])
        );
    }

    #[test]
    fn a_program_that_is_not_there_or_leaves_fails_the_task() {
        let nobody = Place::default();
        assert!(failure(&nobody, b"x").contains("has left"));
        let (place, queue) = bound();
        drop(queue);
        assert!(failure(&place, b"x").contains("has left"));
        let (place, mut queue) = bound();
        let runner = Arc::clone(&place);
        let running = std::thread::spawn(move || failure(&runner, b"x"));
        drop(queue.blocking_recv().expect("a task"));
        assert!(running.join().expect("an answer").contains("has left"));
    }

    #[test]
    fn a_payload_beyond_a_frame_is_refused_by_its_length() {
        let (place, _queue) = bound();
        let why = failure(&place, &vec![0; PAYLOAD_LEN_MAX + 1]);
        assert_eq!(
            why,
            "a payload of 1047553 bytes, at most 1047552 reach a program"
        );
    }
}
