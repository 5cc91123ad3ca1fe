//! What a holder used least recently: a list for each holder of the runs that it has a part of, the
//! most recently used first.
//!
//! A path is refreshed leaf first and root last, so a run always stands before those that hang from
//! it and the end of the list is a leaf: no search for a victim, no time stamps. As runs are shared,
//! recency is kept by run, not by branch: what a holder has of a run is used as one.

use super::fairness::Tournament;
use super::run::bit_of;
use super::slots::{Slots, heap_bytes};
use super::table::{Place, Table};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    holder: u32,
    run: u32,
    newer: u32,
    older: u32,
    /// The image that told of it last; zero for none.
    told: u32,
}

/// The ends of a holder's list, and how many blocks it holds.
#[derive(Clone, Copy, Debug)]
struct List {
    newest: u32,
    oldest: u32,
    blocks: u64,
    /// The image that is being told, zero for none, and the entry where it goes on: all that it has
    /// not told are from there on.
    image: u32,
    next_told: u32,
}

const EMPTY: List = List { newest: NONE, oldest: NONE, blocks: 0, image: 0, next_told: NONE };

/// All lists.
#[derive(Clone, Debug)]
pub(super) struct Recency {
    entries: Slots<Entry>,
    /// Entry by holder and run.
    by_pair: Table,
    lists: Vec<List>,
    largest: Tournament,
    /// Blocks held by layer; a holder's number is its row times the layers plus its layer.
    by_layer: Vec<u64>,
    /// The last number of an image.
    images: u32,
}

/// What an image tells next.
pub(super) enum Told {
    Run(u32),
    /// Enough passed for now.
    Later,
    End,
}

/// SplitMix64 of a holder and a run: a table's hashes have to be as good as random.
const fn pair(holder: u32, run: u32) -> u64 {
    let value = ((holder as u64) << 32 | run as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn blocks_in(lists: &[List], holder: u32) -> u64 {
    lists.get(holder as usize).map_or(0, |list| list.blocks)
}

impl Recency {
    pub(super) fn new(layers: usize) -> Self {
        Self {
            entries: Slots::default(),
            by_pair: Table::new(),
            lists: Vec::new(),
            largest: Tournament::default(),
            by_layer: vec![0; layers],
            images: 0,
        }
    }

    /// Heap bytes by capacity.
    pub(super) fn bytes(&self) -> usize {
        self.entries.bytes()
            + self.by_pair.bytes()
            + heap_bytes(self.lists.capacity() * size_of::<List>())
            + self.largest.bytes()
            + heap_bytes(self.by_layer.capacity() * size_of::<u64>())
    }

    /// Makes room for holders up to `count`.
    pub(super) fn admit(&mut self, count: usize) {
        if count > self.lists.len() {
            self.lists.resize(count, EMPTY);
            let lists = &self.lists;
            self.largest.admit(count, |holder| blocks_in(lists, holder));
        }
    }

    /// Who holds the most blocks, if anybody holds any; as of the last [`weigh`](Self::weigh) of each.
    pub(super) fn largest(&self) -> Option<u32> {
        self.largest.winner().filter(|&holder| self.blocks(holder) > 0)
    }

    /// Notes how much a holder holds now.
    pub(super) fn weigh(&mut self, holder: u32) {
        let lists = &self.lists;
        self.largest.update(holder, |holder| blocks_in(lists, holder));
    }

    /// Blocks that a holder holds.
    pub(super) fn blocks(&self, holder: u32) -> u64 {
        blocks_in(&self.lists, holder)
    }

    /// Blocks held in a layer, those of dropped holders that are not swept out included.
    pub(super) fn layer_blocks(&self, layer: usize) -> u64 {
        self.by_layer[layer]
    }

    pub(super) fn gained(&mut self, holder: u32, blocks: u32) {
        self.lists[holder as usize].blocks += u64::from(blocks);
        let layers = self.by_layer.len();
        self.by_layer[holder as usize % layers] += u64::from(blocks);
    }

    pub(super) fn lost(&mut self, holder: u32, blocks: u32) {
        self.lists[holder as usize].blocks -= u64::from(blocks);
        let layers = self.by_layer.len();
        self.by_layer[holder as usize % layers] -= u64::from(blocks);
    }

    /// The run that a holder used least recently.
    pub(super) fn oldest(&self, holder: u32) -> Option<u32> {
        let oldest = self.lists.get(holder as usize)?.oldest;
        (oldest != NONE).then(|| self.entry(oldest).run)
    }

    fn entry(&self, id: u32) -> &Entry {
        self.entries.at(id)
    }

    fn entry_mut(&mut self, id: u32) -> &mut Entry {
        self.entries.at_mut(id)
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
        let entries = &self.entries;
        let added = self.by_pair.add(pair(holder, run), Place::new(id, 0), |place| {
            let entry = entries.at(place.run);
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
        let list = &mut self.lists[holder as usize];
        if list.next_told == id {
            list.next_told = newer;
        }
        match newer {
            NONE => self.lists[holder as usize].newest = older,
            newer => self.entry_mut(newer).older = older,
        }
        match older {
            NONE => self.lists[holder as usize].oldest = newer,
            older => self.entry_mut(older).newer = newer,
        }
    }

    fn add(&mut self, holder: u32, run: u32, told: u32) -> u32 {
        let id = self.entries.add(Entry { holder, run, newer: NONE, older: NONE, told });
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
            // What is held only now, the image need not tell.
            None => self.add(holder, run, self.lists[holder as usize].image),
        };
        self.link(id, NONE, self.lists[holder as usize].newest);
    }

    /// Makes runs that hang from one another, the first one first, the most recently used of a
    /// holder, the first of them last.
    pub(super) fn refresh_path(&mut self, holder: u32, runs: &[u32]) {
        let mut at = self.lists[holder as usize].newest;
        let mut is_next = |&run: &u32| {
            let Some(entry) = (at != NONE).then(|| self.entries.at(at)) else { return false };
            at = entry.older;
            entry.run == run
        };
        // An answer often comes before the next prompt.
        if !runs.iter().all(&mut is_next) {
            for &run in runs.iter().rev() {
                self.refresh(holder, run);
            }
        }
    }

    /// A holder has nothing of a run any more.
    pub(super) fn forget(&mut self, holder: u32, run: u32) {
        if let Some(id) = self.find(holder, run) {
            self.unname(id);
            self.unlink(id);
            self.entries.remove(id);
        }
    }

    /// A run of `holder` goes on, or begins, in another: `part`, just above or below it.
    pub(super) fn part(&mut self, holder: u32, run: u32, part: u32, above: bool) {
        let beside = self.find(holder, run).expect("a holder of the run");
        let Entry { newer, older, told, .. } = *self.entry(beside);
        let id = self.add(holder, part, told);
        if above {
            self.link(id, newer, beside);
        } else {
            self.link(id, beside, older);
            let list = &mut self.lists[holder as usize];
            if list.next_told == beside {
                list.next_told = id;
            }
        }
    }

    /// Begins an image of what a holder has, in place of any that has not come to its end; returns
    /// its number.
    pub(super) fn begin_image(&mut self, holder: u32) -> u32 {
        self.images = self.images.checked_add(1).unwrap_or(1);
        let list = &mut self.lists[holder as usize];
        (list.image, list.next_told) = (self.images, list.oldest);
        self.images
    }

    /// The next run that an image has to tell, the least recently used first, of at most `passed`
    /// entries.
    pub(super) fn tell_next(&mut self, holder: u32, image: u32, passed: &mut usize) -> Told {
        while *passed > 0 {
            let list = &mut self.lists[holder as usize];
            if list.image != image {
                return Told::End;
            }
            let next = list.next_told;
            if next == NONE {
                list.image = 0;
                return Told::End;
            }
            *passed -= 1;
            let entry = self.entries.at_mut(next);
            list.next_told = entry.newer;
            if std::mem::replace(&mut entry.told, image) != image {
                return Told::Run(entry.run);
            }
        }
        Told::Later
    }

    /// Whether an image has told one of a holder's runs and not the other.
    pub(super) fn told_apart(&self, holder: u32, runs: [u32; 2]) -> bool {
        let image = self.lists[holder as usize].image;
        let told = |run| self.find(holder, run).map(|id| self.entry(id).told == image);
        image != 0 && told(runs[0]) != told(runs[1])
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
        if list.image != 0 {
            let mut at = list.oldest;
            while at != NONE && at != list.next_told {
                assert_eq!(self.entry(at).told, list.image, "what an image has passed it has told");
                at = self.entry(at).newer;
            }
        }
        order
    }

    /// Asserts the table and the number of entries.
    pub(super) fn check(&self, pairs: usize) {
        self.by_pair.check(|place| {
            let entry = self.entry(place.run);
            pair(entry.holder, entry.run)
        });
        assert_eq!(self.by_pair.len(), pairs, "one entry for each holder of each run");
        assert_eq!(self.entries.len(), pairs, "entries");
        self.entries.check();
        let most = self.lists.iter().map(|list| list.blocks).max().unwrap_or_default();
        assert_eq!(self.largest().map_or(0, |holder| self.blocks(holder)), most, "the largest");
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
