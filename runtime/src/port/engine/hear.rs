//! What agents say: packets in, and what they mean.
//!
//! A packet that is not in its place is a breach, which ends the agent's connection.

use ramjet_proto::time::Time;

use super::settle::Loss;
use super::{Engine, Event};
use crate::port::socket::{self, Received};
use crate::port::wire::{Breach, Message, decode};
use crate::worker::mailbox::Piece;

/// Packets read from one agent in one turn.
const PACKETS_PER_TURN: usize = 64;

impl Engine {
    pub(super) fn hear(&mut self, now: Time) {
        for index in (0..self.agents.len()).rev() {
            if self.audible.get(index).copied().unwrap_or(false) {
                self.hear_one(index, now);
            }
        }
        self.audible.clear();
    }

    fn hear_one(&mut self, index: usize, now: Time) {
        let mut packet = std::mem::take(&mut self.packet);
        for _ in 0..PACKETS_PER_TURN {
            let received = socket::receive(self.agents[index].socket(), &mut packet);
            let heard = match received {
                Ok(Received::Nothing) => break,
                Ok(Received::Packet(len)) => self.packet(index, &packet[..len], now),
                Ok(Received::TooLong) => Err(Loss::Breach(Breach::TooLong)),
                Ok(Received::Ended) | Err(_) => Err(Loss::Ended),
            };
            match heard {
                Ok(true) => {}
                // A batch is over: there is rarely more, and the next poll tells.
                Ok(false) => break,
                Err(loss) => {
                    self.lose(index, loss, now);
                    break;
                }
            }
        }
        self.packet = packet;
    }

    /// One packet; whether to look for more at once.
    fn packet(&mut self, index: usize, packet: &[u8], now: Time) -> Result<bool, Loss> {
        let (epoch, message) = decode(packet).map_err(Loss::Breach)?;
        let agent = &mut self.agents[index];
        if epoch != agent.epoch {
            return Err(Loss::Breach(Breach::WrongEpoch));
        }
        match message {
            Message::Ready => self.agent_ready(index),
            Message::Done { batch, run_ns } => {
                self.running(index, batch)?;
                self.settle(index, run_ns, now);
                self.close_if_left(index)?;
                return Ok(false);
            }
            Message::Failed { batch, reason } => {
                self.running(index, batch)?;
                self.batch_failed(index, reason, now);
                self.close_if_left(index)?;
                return Ok(false);
            }
            Message::Progress {
                batch,
                index: task,
                bytes,
            } => {
                self.running(index, batch)?;
                self.progress(index, task, bytes)?;
            }
            Message::Alive { batch } => {
                self.running(index, batch)?;
                self.agents[index].alive = now;
            }
            Message::Bye => {
                self.leave(index);
                self.close_if_left(index)?;
            }
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Refused(_)
            | Message::Batch(_)
            | Message::Drain => return Err(Loss::Breach(Breach::UnknownKind)),
        }
        Ok(true)
    }

    /// Whether this batch is the one that the agent runs.
    fn running(&self, index: usize, batch: u64) -> Result<(), Loss> {
        let flights = &self.agents[index].flights;
        match flights.iter().position(|flight| flight.number == batch) {
            Some(0) => Ok(()),
            Some(_) => Err(Loss::Breach(Breach::OutOfOrder)),
            None => Err(Loss::Breach(Breach::UnknownBatch)),
        }
    }

    fn agent_ready(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        let Some(batcher) = &mut self.batcher else {
            return;
        };
        if agent.lane.is_some() || agent.leaving {
            return;
        }
        agent.lane = Some(batcher.add_lane());
        let connection = agent.connection;
        let ready = self.ready();
        self.place.set_ready(ready);
        self.stats().ready = ready;
        self.news.tell(connection, Event::Ready);
    }

    /// The agent takes no further batch; it answers those it has.
    fn leave(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        agent.leaving = true;
        let connection = agent.connection;
        if let Some(lane) = agent.lane.take() {
            if let Some(batcher) = &mut self.batcher {
                batcher.remove_lane(lane);
            }
            self.lanes_changed();
            self.news.tell(connection, Event::Leaving);
        }
    }

    /// An agent that said BYE and has answered everything is let go.
    fn close_if_left(&self, index: usize) -> Result<(), Loss> {
        let agent = &self.agents[index];
        if agent.leaving && agent.lane.is_none() && agent.flights.is_empty() {
            return Err(Loss::Left);
        }
        Ok(())
    }

    fn progress(&mut self, index: usize, task: u32, bytes: &[u8]) -> Result<(), Loss> {
        if bytes.len() > ramjet_proto::wire::limits::FRAME_PAYLOAD_MAX {
            return Err(Loss::Breach(Breach::TooLong));
        }
        let flight = self.agents[index].flights.front().expect("it runs");
        let Some((_, task)) = flight.tasks.get(task as usize) else {
            return Err(Loss::Breach(Breach::UnknownBatch));
        };
        let Some(admitted) = &task.admitted else {
            return Ok(());
        };
        let piece = Piece {
            channel: task.channel,
            task: admitted.task(),
            bytes: bytes.into(),
        };
        // One that finds no room is lost, as any piece may be.
        let _ = task.inbox.pieces.push(piece);
        task.inbox.waker.wake();
        Ok(())
    }
}
