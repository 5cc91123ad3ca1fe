//! A modelled engine's KV cache: whole blocks, the least recently used evicted first.
//!
//! A prompt's deeper blocks are older than its first ones, as in real engines, so what is held of a
//! prompt is a prefix of it. Blocks of running sequences are pinned. Equal blocks are held once, as
//! in SGLang; vLLM keeps both of two that were computed at the same time until one is evicted.

const NONE: u32 = u32::MAX;

/// Something that happened to a block, for the router's ears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheEvent {
    /// It can be found from now on.
    Stored(u32),
    /// It cannot any more.
    Removed(u32),
}

#[derive(Debug, Clone)]
struct Slot {
    block: u32,
    before: u32,
    after: u32,
    pins: u32,
}

/// The cache.
#[derive(Debug, Clone)]
pub struct BlockCache {
    capacity: usize,
    /// Block to slot.
    places: Vec<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The least recently used, and the most.
    oldest: u32,
    newest: u32,
    named: usize,
    evictable: usize,
    /// Blocks in use without a name.
    nameless: usize,
    /// What happened since it was last taken.
    pub events: Vec<CacheEvent>,
}

impl BlockCache {
    /// An empty cache of `capacity` blocks, for blocks numbered below `blocks`.
    pub fn new(capacity: usize, blocks: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            places: vec![NONE; blocks],
            slots: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
            named: 0,
            evictable: 0,
            nameless: 0,
            events: Vec::new(),
        }
    }

    /// Leading blocks of a prompt that are there.
    pub fn matched(&self, blocks: &[u32]) -> usize {
        blocks.partition_point(|&block| self.places[block as usize] != NONE)
    }

    /// Blocks that could be had at once.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.named + self.nameless) + self.evictable
    }

    /// Every block that is there.
    pub fn blocks(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.places.len() as u32).filter(|&block| self.places[block as usize] != NONE)
    }

    /// Takes `count` blocks without a name, evicting for them; there must be room.
    pub fn take(&mut self, count: usize) {
        self.nameless += count;
        self.shrink();
    }

    /// Gives back blocks without a name, of those that were taken.
    pub fn give(&mut self, count: usize) {
        debug_assert!(count <= self.nameless, "{count} of {} given back", self.nameless);
        self.nameless = self.nameless.saturating_sub(count);
    }

    /// Share of the memory that running sequences hold, 0 to 1.
    pub fn used_share(&self) -> f64 {
        let used = self.named - self.evictable + self.nameless;
        (used as f64 / self.capacity as f64).min(1.0)
    }

    /// Keeps leading blocks that are there from being evicted, until `unpin`.
    pub fn pin(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let place = self.places[block as usize];
            let slot = &mut self.slots[place as usize];
            slot.pins += 1;
            if slot.pins == 1 {
                self.unlink(place);
                self.evictable -= 1;
            }
        }
    }

    /// Ends `pin`: they are the most recently used now, the first of them last to go.
    pub fn unpin(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            let place = self.places[block as usize];
            let slot = &mut self.slots[place as usize];
            slot.pins -= 1;
            if slot.pins == 0 {
                self.link(place);
                self.evictable += 1;
            }
        }
    }

    /// Gives names to a prompt's blocks, as its use just ended; makes room for those that are new.
    pub fn store(&mut self, blocks: &[u32]) {
        for &block in blocks {
            let place = self.places[block as usize];
            if place == NONE {
                self.add(block);
                self.evictable += 1;
            } else if self.slots[place as usize].pins == 0 {
                self.unlink(place);
            }
        }
        for &block in blocks.iter().rev() {
            let place = self.places[block as usize];
            if self.slots[place as usize].pins == 0 {
                self.link(place);
            }
        }
        self.shrink();
    }

    /// Gives a name to a block in use. Says whether it was new: one that another sequence computed
    /// meanwhile is there already.
    pub fn name_pinned(&mut self, block: u32) -> bool {
        let place = self.places[block as usize];
        if place != NONE {
            self.pin(&[block]);
            return false;
        }
        let place = self.add(block);
        self.slots[place as usize].pins = 1;
        true
    }

    /// Walks everything; what holds always is asserted.
    #[cfg(test)]
    pub fn check(&self) {
        let mut listed = 0;
        let (mut at, mut before) = (self.oldest, NONE);
        while at != NONE {
            let slot = &self.slots[at as usize];
            assert_eq!((slot.before, slot.pins), (before, 0), "links of {}", slot.block);
            assert_eq!(self.places[slot.block as usize], at, "place of {}", slot.block);
            (before, at) = (at, slot.after);
            listed += 1;
        }
        assert_eq!((self.newest, self.evictable), (before, listed), "ends of the list");
        let places = self.places.iter().filter(|place| **place != NONE);
        let pinned = places.clone().filter(|place| self.slots[**place as usize].pins > 0).count();
        assert_eq!((self.named, listed + pinned), (places.count(), self.named), "names");
        assert_eq!(self.slots.len(), self.named + self.free.len(), "slots");
    }

    /// Whether nothing is in use.
    #[cfg(test)]
    pub fn is_at_rest(&self) -> bool {
        self.nameless == 0 && self.evictable == self.named
    }

    fn add(&mut self, block: u32) -> u32 {
        let slot = Slot { block, before: NONE, after: NONE, pins: 0 };
        let place = if let Some(place) = self.free.pop() {
            self.slots[place as usize] = slot;
            place
        } else {
            self.slots.push(slot);
            self.slots.len() as u32 - 1
        };
        self.places[block as usize] = place;
        self.named += 1;
        self.events.push(CacheEvent::Stored(block));
        place
    }

    fn shrink(&mut self) {
        while self.named + self.nameless > self.capacity && self.oldest != NONE {
            let place = self.oldest;
            self.unlink(place);
            self.evictable -= 1;
            self.named -= 1;
            let block = self.slots[place as usize].block;
            self.places[block as usize] = NONE;
            self.free.push(place);
            self.events.push(CacheEvent::Removed(block));
        }
    }

    fn link(&mut self, place: u32) {
        let before = self.newest;
        let slot = &mut self.slots[place as usize];
        (slot.before, slot.after) = (before, NONE);
        match before {
            NONE => self.oldest = place,
            before => self.slots[before as usize].after = place,
        }
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let Slot { before, after, .. } = self.slots[place as usize];
        match before {
            NONE => self.oldest = after,
            before => self.slots[before as usize].after = after,
        }
        match after {
            NONE => self.newest = before,
            after => self.slots[after as usize].before = before,
        }
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
