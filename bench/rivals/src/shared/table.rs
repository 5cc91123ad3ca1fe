//! Block hash to place, in 8 bytes a slot: extendible hashing (Fagin et al. 1979) over small Robin
//! Hood tables.
//!
//! A slot keeps 29 bits of the hash and the place, not the hash itself: the run there has it, and
//! whoever looks up reads that run anyway. Segment and slot follow from those bits alone, so the
//! table grows without a look at the runs. The table grows by halving one *segment* of 256 slots at
//! a time, so no store ever waits for a table of millions to be copied; it shrinks by joining two.
//! Hashes are used as they come: they must be as good as random.

/// Slots of a segment.
const SLOTS: usize = if cfg!(test) { 16 } else { 256 };
/// A segment that is fuller is cut in two.
const LEN_MAX: usize = SLOTS / 16 * 15;
/// Two halves that have less together are joined.
const JOINED_MAX: usize = SLOTS / 16 * 6;

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

const CHUNK: usize = 256;

/// Segments by id, in chunks that never move.
#[derive(Clone, Debug, Default)]
struct Segments {
    chunks: Vec<Box<[Option<Segment>]>>,
    free: Vec<u32>,
    len: usize,
}

impl Segments {
    fn get(&self, id: u32) -> &Segment {
        let slot = &self.chunks[id as usize / CHUNK][id as usize % CHUNK];
        slot.as_ref().expect("the directory names segments in use")
    }

    fn get_mut(&mut self, id: u32) -> &mut Segment {
        let slot = &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK];
        slot.as_mut().expect("the directory names segments in use")
    }

    fn add(&mut self, segment: Segment) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            if self.len == self.chunks.len() * CHUNK {
                self.chunks.push(std::iter::repeat_with(|| None).take(CHUNK).collect());
            }
            self.len as u32
        });
        self.chunks[id as usize / CHUNK][id as usize % CHUNK] = Some(segment);
        self.len += 1;
        id
    }

    fn take(&mut self, id: u32) -> Segment {
        self.len -= 1;
        self.free.push(id);
        let slot = &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK];
        slot.take().expect("the directory names segments in use")
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<[u64; SLOTS]>()
            + self.chunks.len() * CHUNK * size_of::<Option<Segment>>()
            + self.chunks.capacity() * size_of::<Box<[Option<Segment>]>>()
            + self.free.capacity() * size_of::<u32>()
    }
}

/// The table. Whoever calls it says what hash lies at a place.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Segment by the `bits` bits of a hash that lie above the slot's.
    directory: Vec<u32>,
    bits: u8,
    segments: Segments,
    len: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        let mut segments = Segments::default();
        let directory = vec![segments.add(Segment::new(0))];
        Self { directory, bits: 0, segments, len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Heap bytes by capacity.
    pub(super) fn bytes(&self) -> usize {
        self.segments.bytes() + self.directory.capacity() * size_of::<u32>()
    }

    const fn entry(&self, hash: u64) -> usize {
        (hash >> SLOT_BITS) as usize & ((1 << self.bits) - 1)
    }

    fn segment(&self, hash: u64) -> &Segment {
        self.segments.get(self.directory[self.entry(hash)])
    }

    fn segment_mut(&mut self, hash: u64) -> &mut Segment {
        self.segments.get_mut(self.directory[self.entry(hash)])
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
    pub(super) fn warm(&self, hashes: &[u64]) {
        let read = |&hash: &u64| self.segment(hash).slots[home(hash)];
        std::hint::black_box(hashes.iter().map(read).fold(0, u64::wrapping_add));
    }

    /// Adds a hash unless it is there; whether it did.
    pub(super) fn add(&mut self, hash: u64, place: Place, hash_at: impl Fn(Place) -> u64) -> bool {
        loop {
            let segment = self.segment_mut(hash);
            if usize::from(segment.len) < LEN_MAX {
                let same = |slot| hash_at(place_of(slot)) == hash;
                let added = segment.add_new(slot_of(hash, place), same);
                self.len += usize::from(added);
                return added;
            }
            self.cut(hash);
        }
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
        let len = segment.len;
        self.len -= 1;
        if usize::from(len) * 4 < SLOTS {
            self.join(hash);
        }
    }

    /// The directory entries that lead to hashes with the lowest `bits` bits of `entry`.
    fn entries(&self, entry: usize, bits: u8) -> impl Iterator<Item = usize> + use<> {
        let step = 1 << bits;
        (entry & (step - 1)..1 << self.bits).step_by(step)
    }

    /// Cuts the segment of `hash` in two by the next bit of its hashes.
    fn cut(&mut self, hash: u64) {
        let bits = self.segment(hash).bits;
        if bits == self.bits {
            assert!(u32::from(bits) + SLOT_BITS < TAG_BITS, "hashes are not random");
            self.directory.extend_from_within(..);
            self.bits += 1;
        }
        let next = 1 << (SLOT_BITS + u32::from(bits));
        let [mut lower, mut upper] = [Segment::new(bits + 1), Segment::new(bits + 1)];
        for &slot in self.segment(hash).slots.iter().filter(|&&slot| slot != 0) {
            if slot & next == 0 { lower.add(slot) } else { upper.add(slot) }
        }
        *self.segment_mut(hash) = lower;
        let id = self.segments.add(upper);
        let above = self.entry(hash & !next | next);
        for entry in self.entries(above, bits + 1) {
            self.directory[entry] = id;
        }
    }

    /// Joins the segment of `hash` with its other half while both are sparse.
    fn join(&mut self, hash: u64) {
        loop {
            let bits = self.segment(hash).bits;
            if bits == 0 {
                return;
            }
            let next = 1 << (SLOT_BITS + u32::from(bits) - 1);
            let low = self.directory[self.entry(hash & !next)];
            let high = self.directory[self.entry(hash | next)];
            let (below, above) = (self.segments.get(low), self.segments.get(high));
            let fits = usize::from(below.len + above.len) <= JOINED_MAX;
            if !fits || below.bits != bits || above.bits != bits {
                return;
            }
            let taken = self.segments.take(high);
            let kept = self.segments.get_mut(low);
            kept.bits -= 1;
            for &slot in taken.slots.iter().filter(|&&slot| slot != 0) {
                kept.add(slot);
            }
            for entry in self.entries(self.entry(hash), bits - 1) {
                self.directory[entry] = low;
            }
        }
    }

    /// Asserts order, counts and the directory; `hash_at` as for the others.
    pub(super) fn check(&self, hash_at: impl Fn(Place) -> u64) {
        let mut len = 0;
        for (entry, &id) in self.directory.iter().enumerate() {
            let segment = self.segments.get(id);
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
        let used = || self.segments.chunks.iter().flatten().flatten();
        assert_eq!(used().count(), self.segments.len, "segments");
        assert_eq!(used().map(|segment| usize::from(segment.len)).sum::<usize>(), len, "lengths");
    }
}
