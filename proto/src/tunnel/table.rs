//! Slots with generations, and the index from node to slot.
//!
//! The index is asked for every datagram: open addressing over a table at most half full, linear
//! probing, the node id multiplied by the golden ratio. Removal shifts the run back, so there are
//! no tombstones and a miss ends at the first gap.

use super::peer::Tunnel;
use crate::ids::NodeId;

/// A tunnel in the table. Stays valid for the peer as long as the tunnel is in the table, across
/// rekeys; afterwards it is stale and finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TunnelHandle {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl TunnelHandle {
    /// The slot, below `tunnels_max`: an index for the caller's own tables.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

struct Slot {
    generation: u32,
    tunnel: Option<Tunnel>,
}

/// The table. Its slots have their place from the start, and are memory once they have been used.
pub(super) struct Table {
    slots: Vec<Slot>,
    /// Slots that were used and are not.
    free: Vec<u32>,
    capacity: usize,
    index: Index,
}

impl Table {
    pub(super) fn new(capacity: usize) -> Self {
        assert!(u32::try_from(capacity).is_ok(), "tunnels_max is below 2^32");
        Table {
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            capacity,
            index: Index::new(capacity),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == self.capacity
    }

    /// The tunnel to `node`.
    pub(super) fn find(&self, node: NodeId) -> Option<TunnelHandle> {
        let index = self.index.find(node)?;
        Some(TunnelHandle {
            index,
            generation: self.slots[index as usize].generation,
        })
    }

    /// The tunnel behind a handle, unless it is stale.
    pub(super) fn tunnel(&self, handle: TunnelHandle) -> Option<&Tunnel> {
        let slot = self.slots.get(handle.index())?;
        slot.tunnel
            .as_ref()
            .filter(|_| slot.generation == handle.generation)
    }

    /// The tunnel behind a handle, unless it is stale.
    pub(super) fn tunnel_mut(&mut self, handle: TunnelHandle) -> Option<&mut Tunnel> {
        let slot = self.slots.get_mut(handle.index())?;
        slot.tunnel
            .as_mut()
            .filter(|_| slot.generation == handle.generation)
    }

    /// Every tunnel with its handle.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TunnelHandle, &Tunnel)> {
        (0_u32..).zip(&self.slots).filter_map(|(index, slot)| {
            Some((
                TunnelHandle {
                    index,
                    generation: slot.generation,
                },
                slot.tunnel.as_ref()?,
            ))
        })
    }

    /// Adds a tunnel.
    ///
    /// # Panics
    /// If the table is full or knows the node: the caller asked before.
    pub(super) fn insert(&mut self, tunnel: Tunnel) -> TunnelHandle {
        assert!(self.find(tunnel.node).is_none());
        assert!(!self.is_full(), "the caller made room");
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                tunnel: None,
            });
            u32::try_from(self.slots.len() - 1).expect("below tunnels_max")
        });
        self.index.insert(tunnel.node, index);
        let slot = &mut self.slots[index as usize];
        assert!(slot.tunnel.is_none());
        slot.tunnel = Some(tunnel);
        TunnelHandle {
            index,
            generation: slot.generation,
        }
    }

    /// Removes a tunnel, if it is still there.
    pub(super) fn remove(&mut self, handle: TunnelHandle) {
        let Some(tunnel) = self.tunnel(handle) else {
            return;
        };
        self.index.remove(tunnel.node);
        let slot = &mut self.slots[handle.index()];
        slot.tunnel = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(handle.index);
    }
}

/// Node to slot. A slot of [`Index::GAP`] marks an empty entry.
struct Index {
    entries: Box<[(u32, u32)]>,
    shift: u32,
}

impl Index {
    const GAP: u32 = u32::MAX;

    fn new(capacity: usize) -> Self {
        let length = (capacity.max(1) * 2).next_power_of_two();
        assert!(length <= 1 << 31);
        Index {
            entries: vec![(0, Index::GAP); length].into_boxed_slice(),
            shift: 32 - length.trailing_zeros(),
        }
    }

    fn home(&self, node: u32) -> usize {
        (node.wrapping_mul(0x9E37_79B1) >> self.shift) as usize
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len() - 1)
    }

    fn find(&self, node: NodeId) -> Option<u32> {
        let mut at = self.home(node.0);
        loop {
            match self.entries[at] {
                (_, Index::GAP) => return None,
                (key, slot) if key == node.0 => return Some(slot),
                _ => at = self.next(at),
            }
        }
    }

    fn insert(&mut self, node: NodeId, slot: u32) {
        assert_ne!(slot, Index::GAP);
        let mut at = self.home(node.0);
        while self.entries[at].1 != Index::GAP {
            at = self.next(at);
        }
        self.entries[at] = (node.0, slot);
    }

    fn remove(&mut self, node: NodeId) {
        let mut gap = self.home(node.0);
        while self.entries[gap].0 != node.0 || self.entries[gap].1 == Index::GAP {
            assert_ne!(
                self.entries[gap].1,
                Index::GAP,
                "the table knows every tunnel it holds"
            );
            gap = self.next(gap);
        }
        let mut at = self.next(gap);
        while self.entries[at].1 != Index::GAP {
            // An entry may fill the gap unless its home lies behind the gap in its run.
            let home = self.home(self.entries[at].0);
            let mask = self.entries.len() - 1;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(gap) & mask) {
                self.entries[gap] = self.entries[at];
                gap = at;
            }
            at = self.next(at);
        }
        self.entries[gap].1 = Index::GAP;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_index_agrees_with_a_map(steps in prop::collection::vec((0_u32..40, 0_u8..3), 1..300)) {
            let mut index = Index::new(16);
            let mut map = BTreeMap::new();
            for (number, kind) in steps {
                // Multiples of a large power of two meet in few homes.
                let node = NodeId(number << 27 | number);
                match map.remove(&node) {
                    Some(slot) if kind > 0 => {
                        prop_assert_eq!(index.find(node), Some(slot));
                        map.insert(node, slot);
                    }
                    Some(_) => index.remove(node),
                    None if map.len() < 16 => {
                        index.insert(node, number);
                        map.insert(node, number);
                    }
                    None => prop_assert_eq!(index.find(node), None),
                }
                for number in 0..40 {
                    let node = NodeId(number << 27 | number);
                    prop_assert_eq!(index.find(node), map.get(&node).copied());
                }
            }
        }
    }

    #[test]
    fn one_tunnel_and_length_one_work() {
        let mut index = Index::new(1);
        index.insert(NodeId(u32::MAX), 0);
        assert_eq!(index.find(NodeId(u32::MAX)), Some(0));
        assert_eq!(index.find(NodeId(0)), None);
        index.remove(NodeId(u32::MAX));
        assert_eq!(index.find(NodeId(u32::MAX)), None);
    }
}
