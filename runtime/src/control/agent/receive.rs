//! Files that arrive in chunks: the receiving end of a transfer.
//!
//! A transfer belongs to the stream that began it. Chunks are gathered while a read of the stream is
//! decoded and written together, then acknowledged once. What is broken or out of order is answered
//! by ABORT, and what is here stays for the sender to come back to.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ramjet_proto::agent::bounded;
use ramjet_proto::agent::transfer::{Init, Step, Transfer, TransferId};
use ramjet_proto::ids::NodeId;

use super::Agent;
use super::host::Host;
use super::inbox::Partial;

/// Transfers at a time, over all streams.
pub(super) const TRANSFERS_MAX: usize = 64;

/// The transfers of one stream.
#[derive(Default)]
pub(super) struct Receiving {
    open: HashMap<TransferId, Incoming>,
}

struct Incoming {
    /// Absent while a blocking thread has it.
    partial: Option<Partial>,
    /// Where the gathered chunks end.
    end: u64,
    gathered: Vec<Bytes>,
    /// Holds its place among the transfers of the node.
    _place: Place,
}

/// A transfer that is under way: its sender and id are taken until it is dropped.
struct Place {
    taken: Rc<RefCell<HashSet<(NodeId, TransferId)>>>,
    name: (NodeId, TransferId),
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.borrow_mut().remove(&self.name);
    }
}

impl<H: Host> Agent<H> {
    /// Takes a step of a transfer: what to answer now.
    pub(super) async fn receive(
        &self,
        peer: NodeId,
        transfer: Transfer,
        receiving: &mut Receiving,
    ) -> Vec<Bytes> {
        let Transfer { id, step } = transfer;
        let taken = match step {
            Step::Init(init) => self.begin(peer, id, init, receiving).await.map(Some),
            Step::Chunk { offset, data } => receiving.gather(id, offset, data).map(|()| None),
            Step::Done => {
                let mut answers = self.settle_chunks(receiving).await;
                answers.push(answer(id, self.complete(id, receiving).await));
                return answers;
            }
            Step::Abort(why) => {
                tracing::info!(%peer, %id, %why, "transfer given up by its sender");
                receiving.open.remove(&id);
                Ok(None)
            }
            Step::Ack(_) | Step::InitAck(_) | Step::Complete { .. } => {
                Err("a step of the receiving end".to_owned())
            }
        };
        match taken {
            Ok(Some(offset)) => vec![answer(id, Step::InitAck(offset))],
            Ok(None) => Vec::new(),
            Err(why) => {
                tracing::info!(%peer, %id, %why, "transfer refused");
                receiving.open.remove(&id);
                vec![answer(id, Step::Abort(bounded(&why, 300)))]
            }
        }
    }

    async fn begin(
        &self,
        peer: NodeId,
        id: TransferId,
        init: Init,
        receiving: &mut Receiving,
    ) -> Result<u64, String> {
        if TransferId::of(&init.sha256) != id {
            return Err("the id is not the first half of the content's SHA-256".to_owned());
        }
        let place = {
            let mut taken = self.transfers.borrow_mut();
            if taken.len() >= TRANSFERS_MAX {
                return Err(format!(
                    "{TRANSFERS_MAX} transfers are under way, the limit"
                ));
            }
            if !taken.insert((peer, id)) {
                return Err("this transfer is under way on another stream".to_owned());
            }
            Place {
                taken: Rc::clone(&self.transfers),
                name: (peer, id),
            }
        };
        let inbox = Arc::clone(&self.inbox);
        let resumed = tokio::task::spawn_blocking(move || inbox.resume(peer, id, &init)).await;
        let partial = resumed.unwrap_or_else(|_| Err(SHUTTING_DOWN.to_owned()))?;
        let offset = partial.offset;
        let incoming = Incoming {
            partial: Some(partial),
            end: offset,
            gathered: Vec::new(),
            _place: place,
        };
        receiving.open.insert(id, incoming);
        Ok(offset)
    }

    /// Writes what was gathered: the acknowledgements.
    pub(super) async fn settle_chunks(&self, receiving: &mut Receiving) -> Vec<Bytes> {
        let mut answers = Vec::new();
        let waiting: Vec<TransferId> = receiving
            .open
            .iter()
            .filter(|(_, incoming)| !incoming.gathered.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            let Some(incoming) = receiving.open.get_mut(&id) else {
                continue;
            };
            let gathered = std::mem::take(&mut incoming.gathered);
            let Some(mut partial) = incoming.partial.take() else {
                continue;
            };
            let written = tokio::task::spawn_blocking(move || {
                let appended = partial.append(&gathered);
                (partial, appended)
            })
            .await;
            match written {
                Ok((partial, Ok(()))) => {
                    answers.push(answer(id, Step::Ack(partial.offset)));
                    incoming.partial = Some(partial);
                }
                Ok((_, Err(why))) => {
                    tracing::warn!(%id, %why, "transfer cannot be kept");
                    receiving.open.remove(&id);
                    answers.push(answer(id, Step::Abort(bounded(&why, 300))));
                }
                Err(_) => {
                    receiving.open.remove(&id);
                }
            }
        }
        answers
    }

    async fn complete(&self, id: TransferId, receiving: &mut Receiving) -> Step {
        let failed = |message: String| Step::Complete { ok: false, message };
        let incoming = receiving.open.remove(&id);
        let Some(partial) = incoming.and_then(|mut incoming| incoming.partial.take()) else {
            return failed("no such transfer is under way".to_owned());
        };
        let (inbox, unix_ms) = (Arc::clone(&self.inbox), self.host.unix_ms());
        let finished = tokio::task::spawn_blocking(move || inbox.finish(&partial, unix_ms)).await;
        match finished.unwrap_or_else(|_| Err(SHUTTING_DOWN.to_owned())) {
            Ok(path) => {
                tracing::info!(path = %path.display(), "file received");
                Step::Complete {
                    ok: true,
                    message: String::new(),
                }
            }
            Err(why) => failed(bounded(&why, 300)),
        }
    }
}

const SHUTTING_DOWN: &str = "the node is shutting down";

fn answer(id: TransferId, step: Step) -> Bytes {
    Transfer { id, step }.frame()
}

impl Receiving {
    fn gather(&mut self, id: TransferId, offset: u64, data: Bytes) -> Result<(), String> {
        let Some(incoming) = self.open.get_mut(&id) else {
            return Err("no such transfer is under way".to_owned());
        };
        let end = offset.saturating_add(data.len() as u64);
        if end <= incoming.end {
            // It came before; where it ends is acknowledged again.
            incoming.gathered.push(Bytes::new());
            return Ok(());
        }
        if offset != incoming.end {
            return Err(format!(
                "a chunk at {offset}, where {} was due",
                incoming.end
            ));
        }
        incoming.end = end;
        incoming.gathered.push(data);
        Ok(())
    }
}
