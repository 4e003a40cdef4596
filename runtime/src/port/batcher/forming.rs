//! When a batch closes, and who rides in it.
//!
//! A batch closes when it is full; when its oldest task has waited long enough; or when its
//! earliest deadline leaves no more time than such a batch is predicted to take. While the lane has a
//! batch running, the last two wait until shortly before that one ends: a batch that is staged earlier
//! would start no sooner, and be less full.
//!
//! A task that could not even ride first in a batch is late and leaves. One that could, but not in
//! this batch, waits for the next, and so does its requester.

use std::time::Duration;

use ramjet_proto::time::Time;

use super::costs::CostTable;
use super::lanes::{Flight, Place};
use super::queue::{Left, Verdict, Waiting};
use super::{BatchPolicy, Batcher, Closed, ClosedBy, Half, Lane, Next, Wanted};

/// How long before the running batch ends the next is staged, beside what that end is uncertain
/// by: gathering a batch and handing it over.
const STAGE_LEAD: Duration = Duration::from_micros(200);
/// A batch that must close for its earliest deadline is asked for this much too early, beside an
/// eighth of what it is predicted to take, so that a late timer does not make it miss.
const DEADLINE_LEAD: Duration = Duration::from_micros(250);

/// The batch that is being formed.
struct Forming {
    place: Place,
    items: usize,
    work: u64,
    footprint: usize,
    earliest: Time,
    oldest: Time,
    probe: Option<Time>,
    /// The bound that closed it; `None` as long as it has room.
    full: Option<ClosedBy>,
}

impl Forming {
    fn new(place: Place) -> Self {
        Forming {
            place,
            items: 0,
            work: 0,
            footprint: 0,
            earliest: Time::NEVER,
            oldest: Time::NEVER,
            probe: None,
            full: None,
        }
    }

    /// When the batch's answers would be on their way, if it were so large.
    fn answered(&self, items: usize, work: u64, policy: &BatchPolicy, costs: &CostTable) -> Time {
        let predicted = Duration::from_nanos(costs.predicted_ns(items, work));
        self.place.start + predicted + policy.margin
    }

    fn judge<T>(
        &self,
        now: Time,
        waiting: &Waiting<T>,
        policy: &BatchPolicy,
        costs: &CostTable,
    ) -> Verdict {
        let wanted = &waiting.wanted;
        let hopeful = waiting.probe && wanted.deadline > now;
        let alone = self.answered(1, wanted.work, policy, costs);
        if wanted.deadline != Time::NEVER && !hopeful && alone > wanted.deadline {
            return Verdict::Late;
        }
        let (items, work) = (self.items + 1, self.work + wanted.work);
        let footprint = self.footprint + wanted.footprint();
        let together = self.answered(items, work, policy, costs);
        if items > policy.items_max {
            Verdict::Full(ClosedBy::Items)
        } else if work > policy.work_max {
            Verdict::Full(ClosedBy::Work)
        } else if policy.region_bytes(items, footprint) > policy.bytes_max {
            Verdict::Full(ClosedBy::Bytes)
        } else if self.items > 0 && self.earliest != Time::NEVER && together > self.earliest {
            Verdict::Full(ClosedBy::Deadline)
        } else if self.items > 0 && wanted.deadline != Time::NEVER && together > wanted.deadline {
            Verdict::PassOver
        } else {
            Verdict::Ride
        }
    }

    fn add(&mut self, wanted: &Wanted) {
        self.items += 1;
        self.work += wanted.work;
        self.footprint += wanted.footprint();
        self.earliest = self.earliest.min(wanted.deadline);
        self.oldest = self.oldest.min(wanted.arrived);
    }
}

impl<T> Batcher<T> {
    /// What `lane`, which has a free place, should do now.
    pub(crate) fn next(&mut self, now: Time, lane: Lane) -> Next {
        let Some(place) = self.lanes.place(now, lane) else {
            return Next::Empty;
        };
        match self.reason(now, place) {
            Ok(_) => Next::Close,
            Err(next) => next,
        }
    }

    /// Takes the batch that closes now on `lane`, into `batch`, and what is too late for any into
    /// `late`. `None` if nothing closes, or all that would have ridden were late.
    pub(crate) fn take(
        &mut self,
        now: Time,
        lane: Lane,
        batch: &mut Vec<(Wanted, T)>,
        late: &mut Vec<T>,
    ) -> Option<Closed> {
        let place = self.lanes.place(now, lane)?;
        let by = self.reason(now, place).ok()?;
        let mut forming = Forming::new(place);
        if by == ClosedBy::Retry {
            self.form_retry(&mut forming, batch, late);
        } else {
            self.form(now, &mut forming, batch, late);
        }
        if forming.items == 0 {
            return None;
        }
        let ticket = self.lanes.fly(lane, |ticket| Flight {
            ticket,
            items: forming.items,
            work: forming.work,
            taken: now,
            expected_ns: self.costs.expected_ns(forming.items, forming.work),
            predicted_ns: self.costs.predicted_ns(forming.items, forming.work),
            probe: forming.probe,
        });
        Some(Closed {
            ticket,
            by: forming.full.unwrap_or(by),
            work: forming.work,
            bytes: self.policy.region_bytes(forming.items, forming.footprint),
            earliest_deadline: forming.earliest,
            oldest_arrival: forming.oldest,
        })
    }

    /// Why a batch closes now at `place`, or what to do instead.
    fn reason(&mut self, now: Time, place: Place) -> Result<ClosedBy, Next> {
        if !self.retries.is_empty() {
            return Ok(ClosedBy::Retry);
        }
        if self.queue.len() == 0 {
            return Err(Next::Empty);
        }
        if self.draining {
            return Ok(ClosedBy::Drain);
        }
        if !place.idle && self.lanes.any_idle() {
            return Err(Next::Wait(place.start));
        }
        let policy = &self.policy;
        if self.queue.len() >= policy.items_max {
            return Ok(ClosedBy::Items);
        }
        if self.queue.work() >= policy.work_max {
            return Ok(ClosedBy::Work);
        }
        if self
            .policy
            .region_bytes(self.queue.len(), self.queue.bytes())
            >= policy.bytes_max
        {
            return Ok(ClosedBy::Bytes);
        }
        let (oldest, earliest) = self.queue.extent();
        let predicted_ns = self.predicted_ns(self.queue.len(), self.queue.work());
        let lead = Duration::from_nanos(predicted_ns.saturating_add(predicted_ns / 8))
            + self.policy.margin
            + DEADLINE_LEAD;
        let last = match earliest {
            Time::NEVER => Time::NEVER,
            earliest => earliest.before(lead),
        };
        let waited = oldest + self.policy.wait;
        let stage = if place.idle {
            now
        } else {
            let early = STAGE_LEAD + Duration::from_nanos(place.uncertain_ns);
            place.start.before(early)
        };
        let due = waited.min(last).max(stage);
        if due > now {
            return Err(Next::Wait(due));
        }
        Ok(if last <= waited {
            ClosedBy::Deadline
        } else {
            ClosedBy::Wait
        })
    }

    fn form(
        &mut self,
        now: Time,
        forming: &mut Forming,
        batch: &mut Vec<(Wanted, T)>,
        late: &mut Vec<T>,
    ) {
        self.queue.begin_batch();
        loop {
            let (policy, costs) = (&self.policy, &self.costs);
            let judge = |waiting: &Waiting<T>| forming.judge(now, waiting, policy, costs);
            match self.queue.pop(judge) {
                Err(full) => {
                    forming.full = full;
                    break;
                }
                Ok(Left::Late(waiting)) => {
                    self.slip.saw(&waiting, now);
                    late.push(waiting.task);
                }
                Ok(Left::Riding(waiting)) => {
                    self.slip.saw(&waiting, forming.place.start);
                    forming.add(&waiting.wanted);
                    forming.probe = waiting.probe.then_some(waiting.wanted.deadline);
                    batch.push((waiting.wanted, waiting.task));
                }
            }
        }
    }

    /// The first half that was to be run once more. What cannot ride in it for its deadlines, but
    /// could alone, becomes a half of its own.
    fn form_retry(
        &mut self,
        forming: &mut Forming,
        batch: &mut Vec<(Wanted, T)>,
        late: &mut Vec<T>,
    ) {
        let Some(half) = self.retries.pop_front() else {
            return;
        };
        let mut rest = Half::new();
        for (wanted, task) in half {
            let end = |items, work| forming.answered(items, work, &self.policy, &self.costs);
            let earliest = forming.earliest.min(wanted.deadline);
            let together = end(forming.items + 1, forming.work + wanted.work);
            if wanted.deadline != Time::NEVER && end(1, wanted.work) > wanted.deadline {
                late.push(task);
            } else if earliest != Time::NEVER && together > earliest {
                rest.push((wanted, task));
            } else {
                forming.add(&wanted);
                batch.push((wanted, task));
            }
        }
        if !rest.is_empty() {
            self.retries.push_front(rest);
        }
    }
}
