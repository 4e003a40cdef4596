//! The tasks that wait: earliest deadline first within a requester, deficit round robin among them.
//!
//! Each requester with waiting tasks stands in one ring. At its turn it is granted a quantum of work
//! units, the mean of what waits, and gives tasks while its deficit holds them; what is left of the
//! deficit is kept as long as it has tasks. When nobody's deficit holds a task for a whole round, as
//! many rounds are granted at once as the nearest needs, so large tasks cost no empty rounds. Over
//! any time in which two requesters both wait, they get the same work within two of the largest
//! tasks.
//!
//! A requester's tasks form a pairing heap by deadline and order of arrival, threaded through the
//! slab that holds them: two tasks of a requester with equal deadlines keep their order. Nothing
//! here allocates once the slab has grown to the most tasks that ever waited.
//!
//! Absent: clocks and costs; the caller judges each task that its turn brings up.

use std::collections::{HashMap, VecDeque};

use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;

use super::{ClosedBy, Wanted};

/// No place of the slab.
const NIL: u32 = u32::MAX;

/// One task that waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) wanted: Wanted,
    pub(super) task: T,
    /// When it was offered.
    pub(super) offered: Time,
    /// How long it was expected to wait when it was offered, in nanoseconds.
    pub(super) expected_wait_ns: u64,
    /// It was let in against the cost table, to test it.
    pub(super) probe: bool,
}

/// A place of the slab, and its links in its requester's heap.
#[derive(Debug)]
struct Place<T> {
    waiting: Option<Waiting<T>>,
    /// Order of arrival, which decides among equal deadlines.
    order: u64,
    /// First child; while free, the next free place.
    child: u32,
    sibling: u32,
    /// Neighbours among all that wait, in order of arrival.
    before: u32,
    after: u32,
}

#[derive(Debug)]
struct Requester {
    peer: NodeId,
    /// The earliest task.
    root: u32,
    tasks: usize,
    work: u64,
    /// Work units it may still give at this turn.
    deficit: u64,
    /// It has had the quantum of this turn.
    granted: bool,
    /// The batch in which its earliest task could not ride.
    passed_over_in: u64,
}

/// What the caller says of the task whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes into the batch.
    Ride,
    /// It will miss its deadline wherever it goes.
    Late,
    /// Not in this batch; its requester's turn passes.
    PassOver,
    /// The batch is closed before it, by this bound.
    Full(ClosedBy),
}

/// What left the queue by a verdict.
#[derive(Debug)]
pub(super) enum Left<T> {
    Riding(Waiting<T>),
    Late(Waiting<T>),
}

/// What one requester has waiting.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    pub(super) tasks: usize,
    pub(super) work: u64,
}

/// All tasks that wait.
#[derive(Debug)]
pub(super) struct Queue<T> {
    places: Vec<Place<T>>,
    free: u32,
    /// Ends of the list of all that wait.
    first: u32,
    last: u32,
    requesters: Vec<Requester>,
    requesters_free: Vec<u32>,
    by_peer: HashMap<NodeId, u32>,
    /// Requesters with tasks, the one whose turn it is first.
    ring: VecDeque<u32>,
    tasks: usize,
    work: u64,
    bytes: usize,
    quantum: u64,
    orders: u64,
    batches: u64,
    /// Earliest arrival and earliest deadline of all that wait; `None`: to be looked for.
    extent: Option<(Time, Time)>,
}

impl<T> Queue<T> {
    pub(super) fn new(waiting_max: usize) -> Self {
        Queue {
            places: Vec::new(),
            free: NIL,
            first: NIL,
            last: NIL,
            requesters: Vec::new(),
            requesters_free: Vec::new(),
            // Twice the entries: a table that is at most half full never grows over its dead ones.
            by_peer: HashMap::with_capacity(waiting_max * 2),
            ring: VecDeque::new(),
            tasks: 0,
            work: 0,
            bytes: 0,
            quantum: 1,
            orders: 0,
            batches: 0,
            extent: Some((Time::NEVER, Time::NEVER)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tasks
    }

    pub(super) fn work(&self) -> u64 {
        self.work
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn requesters(&self) -> usize {
        self.ring.len()
    }

    /// What `peer` has waiting.
    pub(super) fn share(&self, peer: NodeId) -> Share {
        self.by_peer.get(&peer).map_or_else(Share::default, |at| {
            let requester = &self.requesters[*at as usize];
            Share {
                tasks: requester.tasks,
                work: requester.work,
            }
        })
    }

    /// Earliest arrival and earliest deadline of what waits; never, if nothing does.
    pub(super) fn extent(&mut self) -> (Time, Time) {
        if let Some(extent) = self.extent {
            return extent;
        }
        let (mut oldest, mut earliest) = (Time::NEVER, Time::NEVER);
        let mut at = self.first;
        while at != NIL {
            let place = &self.places[at as usize];
            if let Some(waiting) = &place.waiting {
                oldest = oldest.min(waiting.wanted.arrived);
                earliest = earliest.min(waiting.wanted.deadline);
            }
            at = place.after;
        }
        self.extent = Some((oldest, earliest));
        (oldest, earliest)
    }

    pub(super) fn push(&mut self, waiting: Waiting<T>) {
        let wanted = waiting.wanted;
        if let Some((oldest, earliest)) = &mut self.extent {
            *oldest = (*oldest).min(wanted.arrived);
            *earliest = (*earliest).min(wanted.deadline);
        }
        self.tasks += 1;
        self.work += wanted.work;
        self.bytes += wanted.footprint();
        let place = self.place(waiting);
        let at = self.requester(wanted.peer);
        let requester = &self.requesters[at as usize];
        let root = self.meld(requester.root, place);
        let requester = &mut self.requesters[at as usize];
        requester.root = root;
        requester.tasks += 1;
        requester.work += wanted.work;
    }

    /// Begins a batch: whoever was passed over before may give again.
    pub(super) fn begin_batch(&mut self) {
        self.batches += 1;
        let mean = (self.work / (self.tasks.max(1) as u64)).max(1);
        if mean > self.quantum * 2 || mean < self.quantum / 2 {
            self.quantum = mean;
        }
    }

    /// The next task that leaves, as `judge` decides of each whose turn it is.
    ///
    /// # Errors
    /// What bound closed the batch; `None` if nobody has a task that may ride in it.
    pub(super) fn pop(
        &mut self,
        mut judge: impl FnMut(&Waiting<T>) -> Verdict,
    ) -> Result<Left<T>, Option<ClosedBy>> {
        let quantum = self.quantum;
        let mut turns_without = 0;
        while let Some(&at) = self.ring.front() {
            if turns_without == self.ring.len() && !self.grant_rounds(quantum) {
                return Err(None);
            }
            if turns_without >= self.ring.len() {
                turns_without = 0;
            }
            let requester = &mut self.requesters[at as usize];
            if !requester.granted {
                requester.granted = true;
                requester.deficit += quantum;
            }
            let (root, deficit) = (requester.root, requester.deficit);
            let passed_over = requester.passed_over_in == self.batches;
            let Some(waiting) = self.places[root as usize].waiting.as_ref() else {
                unreachable!("a requester in the ring has a task");
            };
            let work = waiting.wanted.work;
            // A late task leaves whether its requester may give or not: it costs nobody's share.
            match judge(waiting) {
                Verdict::Late => return Ok(Left::Late(self.remove_root(at))),
                _ if passed_over || work > deficit => {}
                Verdict::Full(by) => return Err(Some(by)),
                Verdict::PassOver => {
                    self.requesters[at as usize].passed_over_in = self.batches;
                }
                Verdict::Ride => {
                    self.requesters[at as usize].deficit -= work;
                    return Ok(Left::Riding(self.remove_root(at)));
                }
            }
            self.requesters[at as usize].granted = false;
            self.ring.rotate_left(1);
            turns_without += 1;
        }
        Err(None)
    }

    /// Takes out whatever has passed its deadline.
    pub(super) fn expire(&mut self, now: Time, mut each: impl FnMut(Waiting<T>)) {
        for _ in 0..self.ring.len() {
            let Some(&at) = self.ring.front() else {
                return;
            };
            let mut tasks = self.requesters[at as usize].tasks;
            while tasks > 0 && self.key(self.requesters[at as usize].root).0 <= now {
                each(self.remove_root(at));
                tasks -= 1;
            }
            if tasks > 0 {
                self.requesters[at as usize].granted = false;
                self.ring.rotate_left(1);
            }
        }
    }

    /// Gives everything back, in no order.
    pub(super) fn clear(&mut self, mut each: impl FnMut(Waiting<T>)) {
        while let Some(&at) = self.ring.front() {
            each(self.remove_root(at));
        }
    }

    /// After a round in which nobody could give: grants the rounds that the nearest of them still
    /// needs. Whether anybody is left who was not passed over.
    fn grant_rounds(&mut self, quantum: u64) -> bool {
        let missing = |requester: &Requester, work: u64| {
            work.saturating_sub(requester.deficit).div_ceil(quantum)
        };
        let head_work = |requester: &Requester| {
            let waiting = self.places[requester.root as usize].waiting.as_ref();
            waiting.map_or(0, |waiting| waiting.wanted.work)
        };
        let rounds = self
            .ring
            .iter()
            .map(|at| &self.requesters[*at as usize])
            .filter(|requester| requester.passed_over_in != self.batches)
            .map(|requester| missing(requester, head_work(requester)))
            .min();
        let Some(rounds) = rounds else {
            return false;
        };
        // The last of them is granted turn by turn.
        let grant = quantum * rounds.saturating_sub(1);
        for at in &self.ring {
            let requester = &mut self.requesters[*at as usize];
            if requester.passed_over_in != self.batches {
                requester.deficit += grant;
            }
        }
        true
    }

    /// How much each collection holds before it allocates.
    #[cfg(test)]
    pub(super) fn capacities(&self) -> [usize; 5] {
        [
            self.places.capacity(),
            self.requesters.capacity(),
            self.requesters_free.capacity(),
            self.by_peer.capacity(),
            self.ring.capacity(),
        ]
    }

    fn place(&mut self, waiting: Waiting<T>) -> u32 {
        self.orders += 1;
        let place = Place {
            waiting: Some(waiting),
            order: self.orders,
            child: NIL,
            sibling: NIL,
            before: self.last,
            after: NIL,
        };
        let at = if self.free == NIL {
            self.places.push(place);
            index(self.places.len() - 1)
        } else {
            let at = self.free;
            self.free = self.places[at as usize].child;
            self.places[at as usize] = place;
            at
        };
        match self.last {
            NIL => self.first = at,
            last => self.places[last as usize].after = at,
        }
        self.last = at;
        at
    }

    /// Takes a place out of the list of all that wait, and into the list of the free ones.
    fn free_place(&mut self, at: u32) -> Option<Waiting<T>> {
        let place = &mut self.places[at as usize];
        let (before, after) = (place.before, place.after);
        place.child = self.free;
        self.free = at;
        let waiting = place.waiting.take();
        match before {
            NIL => self.first = after,
            before => self.places[before as usize].after = after,
        }
        match after {
            NIL => self.last = before,
            after => self.places[after as usize].before = before,
        }
        waiting
    }

    fn requester(&mut self, peer: NodeId) -> u32 {
        if let Some(at) = self.by_peer.get(&peer) {
            return *at;
        }
        let requester = Requester {
            peer,
            root: NIL,
            tasks: 0,
            work: 0,
            deficit: 0,
            granted: false,
            passed_over_in: 0,
        };
        let at = if let Some(at) = self.requesters_free.pop() {
            self.requesters[at as usize] = requester;
            at
        } else {
            self.requesters.push(requester);
            index(self.requesters.len() - 1)
        };
        self.by_peer.insert(peer, at);
        self.ring.push_back(at);
        at
    }

    /// Takes the earliest task of the requester at the head of the ring.
    fn remove_root(&mut self, at: u32) -> Waiting<T> {
        debug_assert_eq!(self.ring.front(), Some(&at), "it is its turn");
        let root = self.requesters[at as usize].root;
        let children = self.places[root as usize].child;
        let next = self.meld_children(children);
        let Some(waiting) = self.free_place(root) else {
            unreachable!("a requester in the ring has a task");
        };
        let wanted = waiting.wanted;
        self.tasks -= 1;
        self.work -= wanted.work;
        self.bytes -= wanted.footprint();
        self.extent = (self.tasks == 0).then_some((Time::NEVER, Time::NEVER));
        let requester = &mut self.requesters[at as usize];
        requester.root = next;
        requester.tasks -= 1;
        requester.work -= wanted.work;
        if next == NIL {
            debug_assert_eq!((requester.tasks, requester.work), (0, 0));
            self.by_peer.remove(&requester.peer);
            self.ring.pop_front();
            self.requesters_free.push(at);
        }
        waiting
    }

    fn key(&self, at: u32) -> (Time, u64) {
        let place = &self.places[at as usize];
        let deadline = place
            .waiting
            .as_ref()
            .map(|waiting| waiting.wanted.deadline);
        (deadline.unwrap_or(Time::NEVER), place.order)
    }

    /// Joins two heaps; the earlier root becomes the root of both.
    fn meld(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL || right == NIL {
            return if left == NIL { right } else { left };
        }
        let (root, under) = if self.key(left) <= self.key(right) {
            (left, right)
        } else {
            (right, left)
        };
        self.places[under as usize].sibling = self.places[root as usize].child;
        self.places[root as usize].child = under;
        root
    }

    /// The two passes of a pairing heap: pairs from left to right, then all of them from the right.
    fn meld_children(&mut self, mut child: u32) -> u32 {
        let mut pairs = NIL;
        while child != NIL {
            let second = self.places[child as usize].sibling;
            self.places[child as usize].sibling = NIL;
            let mut rest = NIL;
            if second != NIL {
                rest = self.places[second as usize].sibling;
                self.places[second as usize].sibling = NIL;
            }
            let pair = self.meld(child, second);
            // A root has no siblings: its link holds the stack of pairs meanwhile.
            self.places[pair as usize].sibling = pairs;
            pairs = pair;
            child = rest;
        }
        let mut root = NIL;
        while pairs != NIL {
            let next = self.places[pairs as usize].sibling;
            self.places[pairs as usize].sibling = NIL;
            root = self.meld(root, pairs);
            pairs = next;
        }
        root
    }
}

fn index(at: usize) -> u32 {
    // The most that may wait is far below.
    u32::try_from(at).unwrap_or(NIL)
}
