//! Records by the engine's name for them, in 8 bytes a slot.
//!
//! Robin Hood linear probing with backward shift (Celis 1986): a removal leaves no tombstone, so
//! churn neither fills the table nor forces a rebuild, and the size is any number of slots, which
//! a map of powers of two (hashbrown) does not offer: that one doubles in the middle of a byte
//! bound, and again when tombstones pile up. A slot keeps half of a key and the record's number; the
//! record has the rest, and whoever looks up reads that anyway. A key's home grows with the key, so
//! a resize streams through both tables in order, and needs no record.

use std::num::NonZeroU32;

/// Number of a record.
pub(super) type Number = NonZeroU32;

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The upper half of the key.
    tag: u32,
    number: Option<Number>,
}

const EMPTY: Slot = Slot { tag: 0, number: None };

const fn tag_of(key: u64) -> u32 {
    (key >> 32) as u32
}

/// A map from keys, which are used as they are and must be as good as random, to records.
#[derive(Clone, Debug, Default)]
pub(super) struct RecordMap {
    slots: Vec<Slot>,
    len: usize,
}

impl RecordMap {
    /// Slots are at most 4/5 full: at 7/8 an insert moves three times as many.
    const fn slots_for(len: usize) -> usize {
        if len == 0 { 0 } else { len + len / 4 + 1 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Heap bytes held; the slots are allocated to the exact number.
    pub(super) const fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    /// Heap bytes of a table just large enough for `len` keys.
    pub(super) const fn bytes_for(len: usize) -> usize {
        Self::slots_for(len) * size_of::<Slot>()
    }

    /// Heap bytes once `len` keys are in: those of now, or of the smallest step up. A step is an
    /// eighth at least, or a table at its bound would be rebuilt for every key.
    pub(super) fn bytes_with(&self, len: usize) -> usize {
        let slots = self.slots.len();
        let needed = Self::slots_for(len);
        if needed <= slots {
            return self.bytes();
        }
        needed.max(slots + slots / 8) * size_of::<Slot>()
    }

    /// Makes room for `len` keys: by a half where `bytes_max` allows, by the smallest step where
    /// it does not.
    pub(super) fn reserve(&mut self, len: usize, bytes_max: usize) {
        let slots = self.slots.len();
        if Self::slots_for(len) > slots {
            let least = self.bytes_with(len) / size_of::<Slot>();
            let most = bytes_max / size_of::<Slot>();
            self.resize((slots + slots / 2).min(most).max(least));
        }
    }

    /// Gives memory back when less than half full, leaving room to grow again.
    pub(super) fn shrink_when_sparse(&mut self) {
        if self.len * 2 < self.slots.len() {
            let wanted = Self::slots_for(self.len + self.len / 4);
            if wanted < self.slots.len() {
                self.resize(wanted);
            }
        }
    }

    /// Gives back all that the present keys do not need.
    pub(super) fn shrink_to_fit(&mut self) {
        self.resize(Self::slots_for(self.len));
    }

    fn resize(&mut self, slots: usize) {
        let mut fresh = Vec::new();
        fresh.reserve_exact(slots);
        fresh.resize(slots, EMPTY);
        let old = std::mem::replace(&mut self.slots, fresh);
        for slot in old.into_iter().filter(|slot| slot.number.is_some()) {
            self.settle(slot);
        }
    }

    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.slots.len() as u64) >> 32) as usize
    }

    const fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    /// How far the key at `at` lies behind its home.
    fn distance(&self, at: usize) -> usize {
        let home = self.home(self.slots[at].tag);
        if at >= home { at - home } else { at + self.slots.len() - home }
    }

    /// The slot with a key's tag whose record is `wanted`.
    fn find(&self, key: u64, wanted: impl Fn(Number) -> bool) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let tag = tag_of(key);
        let mut at = self.home(tag);
        // All slots may be taken by one tag.
        for distance in 0..self.slots.len() {
            let slot = &self.slots[at];
            let number = slot.number?;
            if slot.tag == tag && wanted(number) {
                return Some(at);
            }
            // Robin Hood's order: our key would have taken the place of one nearer its home.
            if self.distance(at) < distance {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// The record with a key; `is` says whether one with its upper half is it.
    pub(super) fn get(&self, key: u64, is: impl Fn(Number) -> bool) -> Option<Number> {
        self.slots[self.find(key, is)?].number
    }

    /// Adds a record whose key is not there; grows when full, so reserve first where a byte bound
    /// holds.
    pub(super) fn add(&mut self, key: u64, number: Number) {
        self.reserve(self.len + 1, usize::MAX);
        self.len += 1;
        self.settle(Slot { tag: tag_of(key), number: Some(number) });
    }

    /// A record that is there has another number now.
    pub(super) fn renumber(&mut self, key: u64, from: Number, to: Number) {
        let at = self.find(key, |number| number == from).expect("a record that is there");
        self.slots[at].number = Some(to);
    }

    /// Puts a slot whose key is not in the table into its place.
    fn settle(&mut self, mut slot: Slot) {
        let mut at = self.home(slot.tag);
        let mut distance = 0;
        while self.slots[at].number.is_some() {
            let resident = self.distance(at);
            if resident < distance {
                std::mem::swap(&mut self.slots[at], &mut slot);
                distance = resident;
            }
            at = self.after(at);
            distance += 1;
        }
        self.slots[at] = slot;
    }

    /// Removes a record that is there.
    pub(super) fn remove(&mut self, key: u64, number: Number) {
        let mut at = self.find(key, |other| other == number).expect("a record that is there");
        let mut next = self.after(at);
        while self.slots[next].number.is_some() && self.distance(next) > 0 {
            self.slots[at] = self.slots[next];
            at = next;
            next = self.after(at);
        }
        self.slots[at] = EMPTY;
        self.len -= 1;
    }

    /// Asserts that every record can be found and that the count is right. Walks all slots.
    pub(super) fn check(&self) {
        let held = || self.slots.iter().filter_map(|slot| Some((slot.tag, slot.number?)));
        assert_eq!(held().count(), self.len, "keys counted");
        for (tag, number) in held() {
            let found = self.get(u64::from(tag) << 32, |other| other == number);
            assert_eq!(found, Some(number), "a key cannot be found");
        }
        assert!(Self::slots_for(self.len) <= self.slots.len(), "table too full");
        assert_eq!(self.slots.len(), self.slots.capacity(), "slots are exact");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::routing::block::mix;

    proptest! {
        /// Keys come from a narrow range of high bits too, so that runs form, and run round the
        /// table's end; some differ in the half that no slot keeps.
        #[test]
        fn it_answers_as_std_does(
            steps in prop::collection::vec((0..4u8, 0..60u64, 0..3u8), 0..300)
        ) {
            let (mut map, mut model) = (RecordMap::default(), HashMap::<u64, Number>::new());
            for (step, (action, key, kind)) in steps.into_iter().enumerate() {
                let key = match kind {
                    0 => !key,
                    1 => mix(key),
                    _ => u64::from(u32::MAX - 1) << 32 | key,
                };
                let number = Number::new(step as u32 + 1).expect("not zero");
                let key_of = |model: &HashMap<u64, Number>, number| {
                    model.iter().find(|(_, other)| **other == number).map(|(key, _)| *key)
                };
                match (action, model.get(&key).copied()) {
                    (0, None) => {
                        map.add(key, number);
                        model.insert(key, number);
                    }
                    (0, Some(old)) => {
                        map.renumber(key, old, number);
                        model.insert(key, number);
                    }
                    (1, Some(old)) => {
                        map.remove(key, old);
                        model.remove(&key);
                    }
                    (2, _) => map.shrink_when_sparse(),
                    _ => {
                        let found = map.get(key, |number| key_of(&model, number) == Some(key));
                        prop_assert_eq!(found, model.get(&key).copied());
                    }
                }
                map.check();
                prop_assert_eq!(map.len(), model.len());
            }
        }
    }
}
