//! When each channel wants to be looked at: one deadline a place, the earliest on top.
//!
//! A binary heap that knows where each place stands in it, so that a deadline is moved and taken
//! out instead of being left behind: what it holds is the number of channels, whatever they do.
//! Nothing is allocated but for places above all before. Invariant: `at[heap[i].place] == i + 1`.

use ramjet_proto::time::Time;

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: Time,
    place: u32,
}

/// The deadlines.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    heap: Vec<Entry>,
    /// By place: its index in the heap plus one, or 0.
    at: Vec<u32>,
}

impl Deadlines {
    /// The earliest, or [`Time::NEVER`].
    pub(super) fn next(&self) -> Time {
        self.heap.first().map_or(Time::NEVER, |entry| entry.at)
    }

    /// Gives a place its deadline, in place of an earlier or later one; `NEVER` takes it away.
    pub(super) fn set(&mut self, place: u32, at: Time) {
        let known = self.index(place);
        match known {
            None if at == Time::NEVER => {}
            None => {
                if self.at.len() <= place as usize {
                    self.at.resize(place as usize + 1, 0);
                }
                self.heap.push(Entry { at, place });
                self.rise(self.heap.len() - 1);
            }
            Some(_) if at == Time::NEVER => self.remove(place),
            Some(index) => {
                let earlier = at < self.heap[index].at;
                self.heap[index].at = at;
                if earlier {
                    self.rise(index);
                } else {
                    self.sink(index);
                }
            }
        }
    }

    /// Forgets a place.
    pub(super) fn remove(&mut self, place: u32) {
        let Some(index) = self.index(place) else {
            return;
        };
        self.at[place as usize] = 0;
        let last = self.heap.pop().expect("it holds the place");
        if index < self.heap.len() {
            let earlier = last.at < self.heap[index].at;
            self.heap[index] = last;
            if earlier {
                self.rise(index);
            } else {
                self.sink(index);
            }
        }
    }

    /// Takes a place whose deadline has come.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<u32> {
        let first = *self.heap.first().filter(|entry| entry.at <= now)?;
        self.remove(first.place);
        Some(first.place)
    }

    fn index(&self, place: u32) -> Option<usize> {
        let at = *self.at.get(place as usize)?;
        Some(at.checked_sub(1)? as usize)
    }

    /// Notes where the entry at `index` stands.
    fn note(&mut self, index: usize) {
        let place = self.heap[index].place as usize;
        self.at[place] = u32::try_from(index + 1).expect("as many as channels");
    }

    fn rise(&mut self, mut index: usize) {
        while index > 0 {
            let parent = (index - 1) / 2;
            if self.heap[parent].at <= self.heap[index].at {
                break;
            }
            self.heap.swap(parent, index);
            self.note(index);
            index = parent;
        }
        self.note(index);
    }

    fn sink(&mut self, mut index: usize) {
        loop {
            let children = [2 * index + 1, 2 * index + 2];
            let earliest = children
                .into_iter()
                .filter(|child| *child < self.heap.len())
                .min_by_key(|child| self.heap[*child].at);
            let Some(child) = earliest.filter(|child| self.heap[*child].at < self.heap[index].at)
            else {
                break;
            };
            self.heap.swap(child, index);
            self.note(index);
            index = child;
        }
        self.note(index);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_map(
            steps in prop::collection::vec((0_u8..8, 0_u32..12, 0_u64..50), 1..300),
        ) {
            let (mut deadlines, mut map) = (Deadlines::default(), BTreeMap::new());
            for (step, place, at) in steps {
                let at = Time::from_nanos(at);
                match step {
                    0 => {
                        deadlines.remove(place);
                        map.remove(&place);
                    }
                    1 => {
                        deadlines.set(place, Time::NEVER);
                        map.remove(&place);
                    }
                    2 => while let Some(due) = deadlines.pop_due(at) {
                        let expected = map.remove(&due);
                        prop_assert!(expected.is_some_and(|expected| expected <= at));
                        prop_assert!(map.values().all(|other| Some(*other) >= expected));
                    },
                    _ => {
                        deadlines.set(place, at);
                        map.insert(place, at);
                    }
                }
                let earliest = map.values().min().copied().unwrap_or(Time::NEVER);
                prop_assert_eq!(deadlines.next(), earliest);
                prop_assert_eq!(deadlines.heap.len(), map.len());
                for (place, at) in &map {
                    let index = deadlines.index(*place).expect("set");
                    prop_assert_eq!(deadlines.heap[index].at, *at);
                }
            }
        }
    }
}
