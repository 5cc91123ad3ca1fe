//! Block hash to place, in 8 bytes a slot: extendible hashing (Fagin et al. 1979) over small Robin
//! Hood tables.
//!
//! A slot keeps 29 bits of the hash and the place, not the hash itself: the run there has it, and
//! whoever looks up reads that run anyway. Segment and slot follow from those bits alone, so the
//! table grows without a look at the runs. The table grows by halving one *segment* of 256 slots at
//! a time, so no store ever waits for a table of millions to be copied; it shrinks by joining two.
//! Hashes are used as they come: they must be as good as random.

use super::super::block::BlockHash;
use super::directory::Directory;
use super::slots::{Slots, heap_bytes};

/// Slots of a segment.
const SLOTS: usize = if cfg!(test) { 16 } else { 256 };
/// Bytes of a segment.
pub(super) const SEGMENT_BYTES: usize = size_of::<[u64; SLOTS]>();
/// Bits that a segment may be cut by beyond what the number of hashes asks for.
const DEEPER_MAX: u32 = 8;
/// A segment that is fuller is cut in two.
const LEN_MAX: usize = SLOTS / 16 * 15;
/// Two halves that have less together are joined.
const JOINED_MAX: usize = SLOTS / 16 * 10;

/// Eight name the slot within a segment, the others the segment, as far as it takes.
const TAG_BITS: u32 = 29;
const DEPTH_BITS: u32 = 11;

/// Most blocks of a run: a place keeps the lowest bits of a block's depth only, and half of them
/// may be moved at once when it is cut.
pub(super) const RUN_MAX: usize = if cfg!(test) { 8 } else { 1 << DEPTH_BITS };

/// Runs there may be.
pub(super) const RUNS_MAX: usize = (1 << (64 - TAG_BITS - DEPTH_BITS)) - 1;

/// Where a block lies: a run, and the lowest 11 bits of the block's depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) run: u32,
    depth: u32,
}

impl Place {
    pub(super) const fn new(run: u32, depth: u32) -> Self {
        Self { run, depth: depth & ((1 << DEPTH_BITS) - 1) }
    }

    /// The offset in its run, which begins at depth `start`.
    pub(super) const fn offset(self, start: u32) -> usize {
        (self.depth.wrapping_sub(start) & ((1 << DEPTH_BITS) - 1)) as usize
    }
}

/// A slot: run + 1, depth, tag; zero if empty.
const fn slot_of(hash: u64, place: Place) -> u64 {
    let tag = hash & ((1 << TAG_BITS) - 1);
    ((place.run as u64 + 1) << (TAG_BITS + DEPTH_BITS)) | ((place.depth as u64) << TAG_BITS) | tag
}

const fn place_of(slot: u64) -> Place {
    let depth = (slot >> TAG_BITS) as u32 & ((1 << DEPTH_BITS) - 1);
    Place { run: (slot >> (TAG_BITS + DEPTH_BITS)) as u32 - 1, depth }
}

const fn home(slot_or_hash: u64) -> usize {
    slot_or_hash as usize & (SLOTS - 1)
}

const SLOT_BITS: u32 = SLOTS.trailing_zeros();

const fn distance(at: usize, slot: u64) -> usize {
    at.wrapping_sub(home(slot)) & (SLOTS - 1)
}

const fn same_tag(slot: u64, hash: u64) -> bool {
    (slot ^ hash) & ((1 << TAG_BITS) - 1) == 0
}

#[derive(Clone, Debug)]
struct Segment {
    slots: Box<[u64; SLOTS]>,
    len: u16,
    /// How many of the bits above the slot's all its hashes share.
    bits: u8,
}

impl Segment {
    fn new(bits: u8) -> Self {
        Self { slots: Box::new([0; SLOTS]), len: 0, bits }
    }

    /// Where a slot is for which `wanted` holds, of those with the tag of `hash`.
    fn find(&self, hash: u64, wanted: impl Fn(u64) -> bool) -> Option<usize> {
        let mut at = home(hash);
        for step in 0..SLOTS {
            let slot = self.slots[at];
            // Robin Hood's order: ours would have taken the place of one nearer its home.
            if slot == 0 || distance(at, slot) < step {
                return None;
            }
            if same_tag(slot, hash) && wanted(slot) {
                return Some(at);
            }
            at = (at + 1) & (SLOTS - 1);
        }
        None
    }

    fn add(&mut self, slot: u64) {
        self.add_from(home(slot), 0, slot);
    }

    /// Puts a slot that has come as far as `at`, `step` behind its home.
    fn add_from(&mut self, mut at: usize, mut step: usize, mut slot: u64) {
        while self.slots[at] != 0 {
            let resident = distance(at, self.slots[at]);
            if resident < step {
                std::mem::swap(&mut self.slots[at], &mut slot);
                step = resident;
            }
            at = (at + 1) & (SLOTS - 1);
            step += 1;
        }
        self.slots[at] = slot;
        self.len += 1;
    }

    /// Adds a slot unless `same` holds for one there with its tag; whether it did.
    fn add_new(&mut self, slot: u64, same: impl Fn(u64) -> bool) -> bool {
        let (mut at, mut step) = (home(slot), 0);
        loop {
            let resident = self.slots[at];
            if resident == 0 || distance(at, resident) < step {
                self.add_from(at, step, slot);
                return true;
            }
            if same_tag(resident, slot) && same(resident) {
                return false;
            }
            at = (at + 1) & (SLOTS - 1);
            step += 1;
        }
    }

    fn remove_at(&mut self, mut at: usize) {
        loop {
            let next = (at + 1) & (SLOTS - 1);
            let slot = self.slots[next];
            if slot == 0 || distance(next, slot) == 0 {
                break;
            }
            self.slots[at] = slot;
            at = next;
        }
        self.slots[at] = 0;
        self.len -= 1;
    }
}

/// The table. Whoever calls it says what hash lies at a place.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// By the bits of a hash above the slot's.
    directory: Directory,
    segments: Slots<Option<Segment>>,
    len: usize,
}

const fn rest(hash: u64) -> usize {
    (hash >> SLOT_BITS) as usize
}

const NAMED: &str = "the directory names segments in use";

impl Table {
    pub(super) fn new() -> Self {
        let mut segments = Slots::default();
        let directory = Directory::new(segments.add(Some(Segment::new(0))));
        Self { directory, segments, len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Heap bytes by capacity.
    pub(super) fn bytes(&self) -> usize {
        self.segments.len() * heap_bytes(SEGMENT_BYTES)
            + self.segments.bytes()
            + self.directory.bytes()
    }

    #[inline]
    fn segment(&self, hash: u64) -> &Segment {
        self.segments.at(self.directory.get(rest(hash))).as_ref().expect(NAMED)
    }

    #[inline]
    fn segment_mut(&mut self, hash: u64) -> &mut Segment {
        self.segments.at_mut(self.directory.get(rest(hash))).as_mut().expect(NAMED)
    }

    /// The first place whose tag is that of `hash`; almost surely the place of `hash`, if any is.
    pub(super) fn guess(&self, hash: u64) -> Option<Place> {
        let segment = self.segment(hash);
        segment.find(hash, |_| true).map(|at| place_of(segment.slots[at]))
    }

    pub(super) fn find(&self, hash: u64, hash_at: impl Fn(Place) -> u64) -> Option<Place> {
        let segment = self.segment(hash);
        let found = segment.find(hash, |slot| hash_at(place_of(slot)) == hash);
        found.map(|at| place_of(segment.slots[at]))
    }

    /// Reads where hashes are or will be, for the cache: one after another the reads would wait for
    /// memory each, here they wait together.
    pub(super) fn warm(&self, blocks: &[BlockHash]) {
        if blocks.len() < 2 {
            return;
        }
        let read = |hash: u64| self.segment(hash).slots[home(hash)];
        let hashes = blocks.iter().map(|block| block.as_u64());
        std::hint::black_box(hashes.map(read).fold(0, u64::wrapping_add));
    }

    /// Makes room for one more hash where this one belongs; false where there are too many with its
    /// tag, as none of an honest chain are.
    pub(super) fn make_room(&mut self, hash: u64) -> bool {
        while usize::from(self.segment(hash).len) >= LEN_MAX {
            // Random hashes make no segment so much deeper than the others.
            let even = (self.len / (LEN_MAX / 4)).max(1).ilog2();
            let bits_max = (even + DEEPER_MAX).min(TAG_BITS - SLOT_BITS);
            if u32::from(self.segment(hash).bits) >= bits_max {
                return false;
            }
            self.cut(hash);
        }
        true
    }

    /// Adds a hash unless it is there, or there is no room for it; whether it did.
    pub(super) fn add(&mut self, hash: u64, place: Place, hash_at: impl Fn(Place) -> u64) -> bool {
        if !self.make_room(hash) {
            return false;
        }
        let same = |slot| hash_at(place_of(slot)) == hash;
        let added = self.segment_mut(hash).add_new(slot_of(hash, place), same);
        self.len += usize::from(added);
        added
    }

    /// Gives a hash that lies at `from` the place `to`.
    pub(super) fn relocate(&mut self, hash: u64, from: Place, to: Place) {
        let segment = self.segment_mut(hash);
        let old = slot_of(hash, from);
        let at = segment.find(hash, |slot| slot == old).expect("a hash at its place");
        segment.slots[at] = slot_of(hash, to);
    }

    /// Removes a hash that lies at `place`.
    pub(super) fn remove(&mut self, hash: u64, place: Place) {
        let segment = self.segment_mut(hash);
        let old = slot_of(hash, place);
        let at = segment.find(hash, |slot| slot == old).expect("a hash at its place");
        segment.remove_at(at);
        let len = usize::from(segment.len);
        self.len -= 1;
        // Not at every removal: it reads the other half.
        if len * 5 < SLOTS * 2 && len.is_multiple_of(SLOTS / 16) {
            self.join(hash);
        }
    }

    /// Cuts the segment of `hash` in two by the next bit of its hashes.
    fn cut(&mut self, hash: u64) {
        let lower = self.segment_mut(hash);
        let bits = lower.bits;
        let next = 1 << (SLOT_BITS + u32::from(bits));
        let old = *lower.slots;
        let mut upper = Segment::new(bits + 1);
        lower.slots.fill(0);
        (lower.len, lower.bits) = (0, bits + 1);
        for slot in old.into_iter().filter(|&slot| slot != 0) {
            if slot & next == 0 { lower.add(slot) } else { upper.add(slot) }
        }
        let id = self.segments.add(Some(upper));
        self.directory.cut(rest(hash | next), bits, id);
    }

    /// Joins the segment of `hash` with its other half while both are sparse.
    fn join(&mut self, hash: u64) {
        loop {
            let bits = self.segment(hash).bits;
            if bits == 0 {
                return;
            }
            let next = 1 << (SLOT_BITS + u32::from(bits) - 1);
            let [low, high] =
                [hash & !next, hash | next].map(|hash| self.directory.get(rest(hash)));
            let [below, above] = [low, high].map(|id| self.segments.at(id).as_ref().expect(NAMED));
            let fits = usize::from(below.len + above.len) <= JOINED_MAX;
            if !fits || below.bits != bits || above.bits != bits {
                return;
            }
            let taken = self.segments.remove(high).expect(NAMED);
            let kept = self.segments.at_mut(low).as_mut().expect(NAMED);
            kept.bits -= 1;
            for &slot in taken.slots.iter().filter(|&&slot| slot != 0) {
                kept.add(slot);
            }
            self.directory.join(rest(hash), bits, low);
        }
    }

    /// Asserts order, counts and the directory; `hash_at` as for the others.
    pub(super) fn check(&self, hash_at: impl Fn(Place) -> u64) {
        let mut len = 0;
        for (entry, id) in self.directory.entries().enumerate() {
            let segment = self.segments.at(id).as_ref().expect(NAMED);
            let shared = entry & ((1 << segment.bits) - 1);
            let first = entry == shared;
            for (at, &slot) in segment.slots.iter().enumerate().filter(|(_, slot)| **slot != 0) {
                let hash = hash_at(place_of(slot));
                assert!(same_tag(slot, hash), "a slot has its hash's tag");
                let bits = (hash >> SLOT_BITS) as usize & ((1 << segment.bits) - 1);
                assert_eq!(bits, shared, "segment");
                let before = segment.slots[at.wrapping_sub(1) & (SLOTS - 1)];
                let step = distance(at, slot);
                let behind = before != 0 && distance(at.wrapping_sub(1), before) + 1 >= step;
                assert!(step == 0 || behind, "Robin Hood's order");
                len += usize::from(first);
            }
        }
        assert_eq!(len, self.len, "hashes counted");
        self.segments.check();
        let used = self.segments.ids().filter_map(|id| self.segments.at(id).as_ref());
        assert_eq!(used.map(|segment| usize::from(segment.len)).sum::<usize>(), len, "lengths");
    }
}
