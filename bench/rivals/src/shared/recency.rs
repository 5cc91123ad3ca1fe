//! What a holder used least recently: a list for each holder of the runs that it has a part of, the
//! most recently used first.
//!
//! A path is refreshed leaf first and root last, so a run always stands before those that hang from
//! it and the end of the list is a leaf: no search for a victim, no time stamps. As runs are shared,
//! recency is kept by run, not by branch: what a holder has of a run is used as one.

use super::run::bit_of;
use super::table::{Place, Table};

const CHUNK: usize = 256;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    holder: u32,
    run: u32,
    newer: u32,
    older: u32,
}

const FREE: Entry = Entry { holder: NONE, run: NONE, newer: NONE, older: NONE };

/// The ends of a holder's list, and how many blocks it holds.
#[derive(Clone, Copy, Debug)]
struct List {
    newest: u32,
    oldest: u32,
    blocks: u64,
}

const EMPTY: List = List { newest: NONE, oldest: NONE, blocks: 0 };

/// All lists. Entries lie in chunks that never move.
#[derive(Clone, Debug)]
pub(super) struct Recency {
    chunks: Vec<Box<[Entry]>>,
    free: Vec<u32>,
    /// Entry by holder and run.
    by_pair: Table,
    lists: Vec<List>,
}

/// SplitMix64 of a holder and a run: a table's hashes have to be as good as random.
const fn pair(holder: u32, run: u32) -> u64 {
    let value = ((holder as u64) << 32 | run as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn entry_in(chunks: &[Box<[Entry]>], id: u32) -> &Entry {
    &chunks[id as usize / CHUNK][id as usize % CHUNK]
}

impl Recency {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), by_pair: Table::new(), lists: Vec::new() }
    }

    /// Heap bytes by capacity.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<Entry>()
            + self.chunks.capacity() * size_of::<Box<[Entry]>>()
            + self.free.capacity() * size_of::<u32>()
            + self.by_pair.bytes()
            + self.lists.capacity() * size_of::<List>()
    }

    /// Makes room for holders up to `count`.
    pub(super) fn admit(&mut self, count: usize) {
        if count > self.lists.len() {
            self.lists.resize(count, EMPTY);
        }
    }

    /// Blocks that a holder holds.
    pub(super) fn blocks(&self, holder: u32) -> u64 {
        self.lists.get(holder as usize).map_or(0, |list| list.blocks)
    }

    pub(super) fn gained(&mut self, holder: u32, blocks: u32) {
        self.lists[holder as usize].blocks += u64::from(blocks);
    }

    pub(super) fn lost(&mut self, holder: u32, blocks: u32) {
        self.lists[holder as usize].blocks -= u64::from(blocks);
    }

    /// The run that a holder used least recently.
    pub(super) fn oldest(&self, holder: u32) -> Option<u32> {
        let oldest = self.lists.get(holder as usize)?.oldest;
        (oldest != NONE).then(|| self.entry(oldest).run)
    }

    fn entry(&self, id: u32) -> &Entry {
        entry_in(&self.chunks, id)
    }

    fn entry_mut(&mut self, id: u32) -> &mut Entry {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    fn find(&self, holder: u32, run: u32) -> Option<u32> {
        let hash_at = |place: Place| {
            let entry = self.entry(place.run);
            pair(entry.holder, entry.run)
        };
        self.by_pair.find(pair(holder, run), hash_at).map(|place| place.run)
    }

    fn name(&mut self, id: u32) {
        let Entry { holder, run, .. } = *self.entry(id);
        let chunks = &self.chunks;
        let added = self.by_pair.add(pair(holder, run), Place::new(id, 0), |place| {
            let entry = entry_in(chunks, place.run);
            pair(entry.holder, entry.run)
        });
        assert!(added, "a holder has a run once");
    }

    fn unname(&mut self, id: u32) {
        let Entry { holder, run, .. } = *self.entry(id);
        self.by_pair.remove(pair(holder, run), Place::new(id, 0));
    }

    /// Puts an entry between two that are neighbours.
    fn link(&mut self, id: u32, newer: u32, older: u32) {
        let holder = self.entry(id).holder as usize;
        (self.entry_mut(id).newer, self.entry_mut(id).older) = (newer, older);
        match newer {
            NONE => self.lists[holder].newest = id,
            newer => self.entry_mut(newer).older = id,
        }
        match older {
            NONE => self.lists[holder].oldest = id,
            older => self.entry_mut(older).newer = id,
        }
    }

    fn unlink(&mut self, id: u32) {
        let Entry { holder, newer, older, .. } = *self.entry(id);
        match newer {
            NONE => self.lists[holder as usize].newest = older,
            newer => self.entry_mut(newer).older = older,
        }
        match older {
            NONE => self.lists[holder as usize].oldest = newer,
            older => self.entry_mut(older).newer = newer,
        }
    }

    fn add(&mut self, holder: u32, run: u32) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            let first = (self.chunks.len() * CHUNK) as u32;
            self.chunks.push(vec![FREE; CHUNK].into_boxed_slice());
            self.free.extend((first + 1..first + CHUNK as u32).rev());
            first
        });
        *self.entry_mut(id) = Entry { holder, run, ..FREE };
        self.name(id);
        id
    }

    /// A holder has something of a run.
    pub(super) fn admit_run(&mut self, holder: u32, run: u32) {
        if self.find(holder, run).is_none() {
            self.refresh(holder, run);
        }
    }

    /// Makes a run the most recently used of a holder.
    pub(super) fn refresh(&mut self, holder: u32, run: u32) {
        let id = match self.find(holder, run) {
            Some(id) if self.lists[holder as usize].newest == id => return,
            Some(id) => {
                self.unlink(id);
                id
            }
            None => self.add(holder, run),
        };
        self.link(id, NONE, self.lists[holder as usize].newest);
    }

    /// A holder has nothing of a run any more.
    pub(super) fn forget(&mut self, holder: u32, run: u32) {
        if let Some(id) = self.find(holder, run) {
            self.unname(id);
            self.unlink(id);
            *self.entry_mut(id) = FREE;
            self.free.push(id);
        }
    }

    /// A run of `holder` goes on, or begins, in another: `part`, just above or below it.
    pub(super) fn part(&mut self, holder: u32, run: u32, part: u32, above: bool) {
        let beside = self.find(holder, run).expect("a holder of the run");
        let id = self.add(holder, part);
        let Entry { newer, older, .. } = *self.entry(beside);
        if above { self.link(id, newer, beside) } else { self.link(id, beside, older) }
    }

    /// What a holder has of a run lies in another now.
    pub(super) fn rename(&mut self, holder: u32, run: u32, to: u32) {
        let id = self.find(holder, run).expect("a holder of the run");
        self.unname(id);
        self.entry_mut(id).run = to;
        self.name(id);
    }

    /// The runs of a holder, the most recently used first; asserts that both directions agree.
    pub(super) fn order(&self, holder: u32) -> Vec<u32> {
        let Some(list) = self.lists.get(holder as usize) else { return Vec::new() };
        let (mut order, mut newer, mut at) = (Vec::new(), NONE, list.newest);
        while at != NONE {
            let entry = self.entry(at);
            assert_eq!((entry.newer, entry.holder), (newer, holder), "links disagree");
            order.push(entry.run);
            newer = at;
            at = entry.older;
        }
        assert_eq!(list.oldest, newer, "the list's end");
        order
    }

    /// Asserts the table and the number of entries.
    pub(super) fn check(&self, pairs: usize) {
        self.by_pair.check(|place| {
            let entry = self.entry(place.run);
            pair(entry.holder, entry.run)
        });
        assert_eq!(self.by_pair.len(), pairs, "one entry for each holder of each run");
        assert_eq!(self.chunks.len() * CHUNK - self.free.len(), pairs, "free entries");
    }

    /// Holders there are lists for.
    pub(super) fn holders(&self) -> u32 {
        self.lists.len() as u32
    }
}

/// Whether a word-and-bit set has a holder.
pub(super) fn set_has<const LAYERS: usize>(set: &[u64], holder: u32) -> bool {
    let (word, bit) = bit_of::<LAYERS>(holder);
    set.get(word).is_some_and(|word| word & bit != 0)
}
