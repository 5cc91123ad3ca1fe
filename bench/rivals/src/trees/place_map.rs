//! Block hash to place, as the trees keep it.

/// What a [`PlaceMap`] keeps under a hash: a slot number, and a number whose meaning is the user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Below `u32::MAX`, which marks an empty slot.
    pub(super) id: u32,
    pub(super) depth: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    place: Place,
}

const EMPTY: Slot = Slot { key: 0, place: Place { id: u32::MAX, depth: 0 } };

impl Slot {
    const fn is_empty(&self) -> bool {
        self.place.id == u32::MAX
    }
}

/// A map from hashes (keys are used as they are, without hashing them again) to places.
///
/// Robin Hood linear probing with backward shift (Celis 1986): a removal leaves no tombstone, so
/// churn neither fills the table nor forces a rebuild, and the size is any number of 16-byte slots,
/// which a map of powers of two (hashbrown) does not offer: that one doubles in the middle of a
/// byte bound, and again when tombstones pile up. A key's home grows with the key, so a resize
/// streams through both tables in order.
#[derive(Clone, Debug, Default)]
pub(super) struct PlaceMap {
    slots: Vec<Slot>,
    len: usize,
}

impl PlaceMap {
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
        for slot in old.into_iter().filter(|slot| !slot.is_empty()) {
            self.settle(slot);
        }
    }

    fn home(&self, key: u64) -> usize {
        ((u128::from(key) * self.slots.len() as u128) >> 64) as usize
    }

    const fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    /// How far the key at `at` lies behind its home.
    fn distance(&self, at: usize) -> usize {
        let home = self.home(self.slots[at].key);
        if at >= home { at - home } else { at + self.slots.len() - home }
    }

    fn find(&self, key: u64) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.home(key);
        let mut distance = 0;
        loop {
            let slot = &self.slots[at];
            if slot.is_empty() {
                return None;
            }
            if slot.key == key {
                return Some(at);
            }
            // Robin Hood's order: our key would have taken the place of one nearer its home.
            if self.distance(at) < distance {
                return None;
            }
            at = self.after(at);
            distance += 1;
        }
    }

    pub(super) fn get(&self, key: u64) -> Option<Place> {
        self.find(key).map(|at| self.slots[at].place)
    }

    /// Sets or replaces what lies under `key`; grows when full, so reserve first where a byte
    /// bound holds.
    pub(super) fn set(&mut self, key: u64, place: Place) {
        match self.find(key) {
            Some(at) => self.slots[at].place = place,
            None => self.settle_new(key, place),
        }
    }

    /// As [`set`](Self::set), but leaves a key that is there alone, and says so by false.
    pub(super) fn add(&mut self, key: u64, place: Place) -> bool {
        let new = self.find(key).is_none();
        if new {
            self.settle_new(key, place);
        }
        new
    }

    fn settle_new(&mut self, key: u64, place: Place) {
        debug_assert!(place.id < u32::MAX, "marks an empty slot");
        self.reserve(self.len + 1, usize::MAX);
        self.len += 1;
        self.settle(Slot { key, place });
    }

    /// Puts a slot whose key is not in the table into its place.
    fn settle(&mut self, mut slot: Slot) {
        let mut at = self.home(slot.key);
        let mut distance = 0;
        while !self.slots[at].is_empty() {
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

    pub(super) fn remove(&mut self, key: u64) -> Option<Place> {
        let mut at = self.find(key)?;
        let place = self.slots[at].place;
        let mut next = self.after(at);
        while !self.slots[next].is_empty() && self.distance(next) > 0 {
            self.slots[at] = self.slots[next];
            at = next;
            next = self.after(at);
        }
        self.slots[at] = EMPTY;
        self.len -= 1;
        Some(place)
    }

    /// Asserts that every key can be found and that the count is right. Walks all slots.
    pub(super) fn check(&self) {
        let held = self.slots.iter().filter(|slot| !slot.is_empty());
        assert_eq!(held.clone().count(), self.len, "keys counted");
        assert!(held.clone().all(|slot| self.find(slot.key).is_some()), "a key cannot be found");
        assert!(Self::slots_for(self.len) <= self.slots.len(), "table too full");
        assert_eq!(self.slots.len(), self.slots.capacity(), "slots are exact");
    }
}
