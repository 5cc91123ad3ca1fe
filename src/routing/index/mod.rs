//! Which worker holds which blocks, for all workers at once: every run of blocks is stored once,
//! with who holds it.
//!
//! To its users it is a tree a worker (a *holder*: what a worker holds in one *layer*, say in its
//! GPU cache, or by presumption). Each adds and removes its own blocks, holes included, and a
//! look-up says how far each row of holders has a prompt; no holder sees another. Underneath they
//! share runs of blocks: since a block hash commits to all before it, a run equals a prompt's blocks
//! if its last does, a child may hang from any block of a run for one entry in a table, and most
//! prompts need no cut of what is there.
//!
//! It is a belief, as each of the trees is: a wrong entry costs a cache miss. What was asked for and
//! what was measured: docs/adr/0017.
//!
//! The parts: `table` with `directory` (block hash to place), `run` (a run and who holds it), `runs`
//! in `slots`, `shape` (cutting and joining runs), `recency` (what a holder used last), `fairness`
//! (who holds the most), `bound` (trimming), `rows` (whose rows are lent), `sweep` (forgetting a
//! holder), `walk` (the look-up), `single` (questions about one row), `image` (telling all).

mod bound;
mod directory;
mod fairness;
mod image;
mod recency;
mod rows;
mod run;
mod runs;
mod shape;
mod single;
mod slots;
mod sweep;
mod table;
mod walk;

#[cfg(test)]
mod tests;

pub use self::bound::SLACK_BYTES;
pub use self::image::ImageCursor;
use self::recency::{Recency, set_has};
use self::rows::Rows;
pub use self::rows::Totals;
use self::run::Run;
use self::runs::Runs;
use self::slots::heap_bytes;
use self::table::{Place, RUN_MAX, Table};
pub use self::walk::Reach;
use self::walk::common_in;
use super::block::BlockHash;
use smallvec::SmallVec;

/// An extended run with more spans than this gets a child instead: its other holders would become
/// holders of a part.
const EXTENDED_SPANS_MAX: usize = 4;

/// Blocks whose slots are read ahead.
const WARMED: usize = 32;

/// Some layers of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers(pub u8);

impl Layers {
    const fn has(self, layer: usize) -> bool {
        self.0 & 1 << layer != 0
    }

    fn iter<const LAYERS: usize>(self) -> impl Iterator<Item = usize> {
        (0..LAYERS).filter(move |&layer| self.has(layer))
    }
}

/// Who holds: a row (a worker), and one of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Below [`ROWS_MAX`].
    pub row: u32,
    /// Below the index's number of layers.
    pub layer: u8,
}

/// Rows there may be.
pub const ROWS_MAX: u32 = 1 << 16;

/// What a hold changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Blocks that the holder did not hold before.
    pub gained: usize,
    /// Blocks at the end that were not taken: the byte bound, or two hashes collide.
    pub refused: usize,
}

/// What a holder holds of a prompt, and by which runs, the first one first.
#[derive(Clone, Debug, Default)]
pub struct Path {
    /// Leading blocks that it holds.
    pub held: usize,
    runs: SmallVec<[u32; 14]>,
}

/// Sizes of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Distinct blocks.
    pub blocks: usize,
    /// Blocks held, each once a holder.
    pub held: u64,
    /// Runs.
    pub runs: usize,
    /// Heap bytes by capacity, each allocation rounded up to a size class as the allocator does.
    pub bytes: usize,
}

/// The index. `LAYERS` is at most 8.
#[derive(Clone, Debug)]
pub struct SharedIndex<const LAYERS: usize> {
    runs: Runs,
    /// Every block.
    places: Table,
    /// The first block of every run; apart, as a look-up needs no others and a small table stays
    /// in the cache.
    heads: Table,
    recency: Recency,
    rows: Rows,
    /// Holders dropped and not swept out yet, as a set; see [`run::bit_of`].
    dead: Vec<u64>,
    /// The same, the next to be swept last.
    dropped: Vec<u32>,
    held: u64,
    bytes_max: usize,
}

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// An empty index. `bytes_max` bounds [`Stats::bytes`], by no more than [`SLACK_BYTES`] over it:
    /// what is over is trimmed.
    pub fn new(bytes_max: usize) -> Self {
        const { assert!(LAYERS > 0 && LAYERS <= 8) };
        let (places, heads) = (Table::new(), Table::new());
        let runs = Runs::default();
        Self {
            runs,
            places,
            heads,
            recency: Recency::new(LAYERS),
            rows: Rows::default(),
            dead: Vec::new(),
            dropped: Vec::new(),
            held: 0,
            bytes_max,
        }
    }

    /// Sizes, in O(1). What a dropped holder held counts until it is swept out.
    pub fn stats(&self) -> Stats {
        let (blocks, runs) = (self.places.len(), self.runs.len());
        Stats { blocks, held: self.held, runs, bytes: self.bytes() }
    }

    fn bytes(&self) -> usize {
        let tables = self.places.bytes() + self.heads.bytes() + self.recency.bytes();
        let dropped =
            heap_bytes(self.dead.capacity() * 8) + heap_bytes(self.dropped.capacity() * 4);
        tables + self.runs.bytes() + self.rows.bytes() + dropped
    }

    /// `holder` holds these blocks, of which the first has `depth` blocks before it and follows
    /// `parent` (none at depth 0). Nobody need hold the parent: blocks may wait behind a hole.
    ///
    /// O(runs passed + new blocks); up to 1,024 blocks more are moved where a run is cut or joined,
    /// and a few for each new one are trimmed where the byte bound is reached. What that does not
    /// make room for is refused.
    ///
    /// # Panics
    ///
    /// If `holder` is out of bounds, or was dropped and is not swept out.
    pub fn hold(
        &mut self,
        holder: Holder,
        parent: Option<BlockHash>,
        depth: u32,
        blocks: &[BlockHash],
    ) -> Held {
        let holder = self.admit(holder);
        let held = self.hold_bounded(holder, parent, depth, blocks);
        self.recency.weigh(holder);
        held
    }

    /// Holds blocks; what there is no room for is refused.
    fn hold_part(
        &mut self,
        holder: u32,
        parent: Option<BlockHash>,
        depth: u32,
        blocks: &[BlockHash],
    ) -> Held {
        let mut held = Held::default();
        // The run and offset of the block before the next.
        let mut above =
            parent.filter(|_| depth > 0).and_then(|parent| self.place_at(parent, depth - 1));
        let mut at = 0;
        while at < blocks.len() {
            let here = depth + at as u32;
            let parent = if at > 0 { Some(blocks[at - 1]) } else { parent };
            let found = self.follow(above, blocks[at]);
            let (run, from, count) = if let Some(place) = found {
                let run = self.runs.run(place.run);
                let from = place.offset(run.start);
                if run.start + from as u32 != here {
                    break;
                }
                (place.run, from, common_in(&run.label()[from..], &blocks[at..]))
            } else {
                let Some(new) = self.append(above, parent, here, &blocks[at..]) else { break };
                new
            };
            let to = from + count;
            let more = self.runs.edit(run, |run| run.add::<LAYERS>(holder, from as u32, to as u32));
            if more > 0 {
                self.recency.gained(holder, more);
                self.rows.totals_mut::<LAYERS>(holder).inserted += u64::from(more);
                self.recency.admit_run(holder, run);
            }
            held.gained += more as usize;
            at += count;
            let changed = if self.runs.run(run).spans.len() > run::SPANS_MAX {
                self.relieve(run);
                true
            } else {
                from == 0 && self.join_above(run)
            };
            above = if changed {
                self.place_at(blocks[at - 1], depth + at as u32 - 1)
            } else {
                Some(Place::new(run, here + count as u32 - 1))
            };
        }
        self.held += held.gained as u64;
        held.refused = blocks.len() - at;
        if at > 0 {
            self.refresh_path(holder, blocks[at - 1], depth + at as u32 - 1);
        }
        held
    }

    /// Marks what `holder` has of a prompt as just used; returns how many leading blocks that is.
    pub fn touch(&mut self, holder: Holder, blocks: &[BlockHash]) -> usize {
        let path = self.path(holder, blocks);
        self.touch_path(holder, &path);
        path.held
    }

    /// The same by a path that was just taken; nothing was changed in between.
    pub fn touch_path(&mut self, holder: Holder, path: &Path) {
        if let Some(holder) = self.alive(holder).filter(|_| path.held > 0) {
            self.recency.refresh_path(holder, &path.runs);
        }
    }

    /// Blocks that `holder` holds, be they reachable or not; zero once it is dropped.
    pub fn blocks_of(&self, holder: Holder) -> u64 {
        self.alive(holder).map_or(0, |holder| self.recency.blocks(holder))
    }

    /// Whether anybody holds anything in one of `layers`. O(1).
    pub fn uses(&self, layers: Layers) -> bool {
        let mut held = layers.iter::<LAYERS>().map(|layer| self.recency.layer_blocks(layer));
        held.any(|blocks| blocks > 0)
    }

    /// `holder` holds these blocks no more; they may come in any order. What it holds behind them
    /// stays. Returns how many it held.
    pub fn release(&mut self, holder: Holder, blocks: &[BlockHash]) -> usize {
        let Some(holder) = self.alive(holder) else { return 0 };
        let (mut at, mut released, runs) = (0, 0, self.runs.len());
        while at < blocks.len() {
            let Some(place) = self.find(blocks[at]) else {
                at += 1;
                continue;
            };
            let run = self.runs.run(place.run);
            let from = place.offset(run.start);
            let label = &run.label()[from..];
            let count = label.iter().zip(&blocks[at..]).take_while(|(a, b)| a == b).count();
            at += count;
            released += self.subtract(place.run, holder, from as u32, (from + count) as u32);
        }
        if released == 0 {
            return 0;
        }
        self.held -= released as u64;
        self.rows.totals_mut::<LAYERS>(holder).removed += released as u64;
        self.recency.weigh(holder);
        // A hole makes two runs of one.
        if self.runs.len() > runs {
            self.make_room(0, 8 * blocks.len());
        }
        released
    }

    fn number(&self, holder: Holder) -> Option<u32> {
        let known = (holder.row as usize) < self.rows.len() && usize::from(holder.layer) < LAYERS;
        known.then_some(holder.row * LAYERS as u32 + u32::from(holder.layer))
    }

    /// The number of a holder that was not dropped.
    fn alive(&self, holder: Holder) -> Option<u32> {
        self.number(holder).filter(|&holder| !self.is_dead(holder))
    }

    /// The number of a holder that may hold.
    fn admit(&self, holder: Holder) -> u32 {
        let holder = self.number(holder).expect("a row that was added");
        assert!(!self.is_dead(holder), "a dropped holder has to be swept out");
        holder
    }

    fn is_dead(&self, holder: u32) -> bool {
        set_has::<LAYERS>(&self.dead, holder)
    }

    /// Makes the runs from the root to a block the most recently used of `holder`, the first one
    /// last, as far up as it holds them without a gap.
    fn refresh_path(&mut self, holder: u32, mut block: BlockHash, mut depth: u32) {
        while let Some(place) = self.place_at(block, depth) {
            let run = self.runs.run(place.run);
            let at = place.offset(run.start) as u32;
            if run.held_to::<LAYERS>(holder, at) == at {
                return;
            }
            self.recency.refresh(holder, place.run);
            let Some(parent) = self.runs.parent(place.run) else { return };
            (block, depth) = (parent, run.start - 1);
        }
    }

    fn hash_at(runs: &Runs, place: Place) -> u64 {
        let run = runs.run(place.run);
        // A place of another hash with the same tag is a place all the same.
        run.label()[place.offset(run.start)].as_u64()
    }

    fn find(&self, block: BlockHash) -> Option<Place> {
        self.places.find(block.as_u64(), |place| Self::hash_at(&self.runs, place))
    }

    fn place_at(&self, block: BlockHash, depth: u32) -> Option<Place> {
        self.find(block).filter(|place| {
            let start = self.runs.run(place.run).start;
            start + place.offset(start) as u32 == depth
        })
    }

    /// Where `block` lies, which comes after `above`.
    fn follow(&self, above: Option<Place>, block: BlockHash) -> Option<Place> {
        if let Some(above) = above {
            let run = self.runs.run(above.run);
            let next = above.offset(run.start) + 1;
            if run.label().get(next) == Some(&block) {
                return Some(Place::new(above.run, run.start + next as u32));
            }
        }
        self.find(block)
    }

    /// Adds blocks, the first of which is not there, behind `above` or as a new run; returns run,
    /// offset and how many. Ends before a block that is there, as it waits behind a hole.
    fn append(
        &mut self,
        above: Option<Place>,
        parent: Option<BlockHash>,
        depth: u32,
        blocks: &[BlockHash],
    ) -> Option<(u32, usize, usize)> {
        let extended = above.map(|above| above.run).filter(|&id| {
            let run = self.runs.run(id);
            let at_end = run.start + run.len() as u32 == depth;
            let few = run.whole.is_none() && run.spans.len() <= EXTENDED_SPANS_MAX;
            at_end && few && run.len() < RUN_MAX
        });
        let from = extended.map_or(0, |id| self.runs.run(id).len());
        let room = self.room(blocks.len().min(RUN_MAX - from), extended.is_none());
        let blocks = &blocks[..room];
        let &first = blocks.first().filter(|first| self.places.make_room(first.as_u64()))?;
        let id = if let Some(id) = extended {
            self.runs.edit(id, |run| run.extend(blocks));
            id
        } else {
            self.runs.add(Run::new(depth, blocks.into()), parent.unwrap_or_default())
        };
        let mut new = 0;
        while new < blocks.len() {
            if new % WARMED == 0 {
                self.places.warm(&blocks[new..blocks.len().min(new + WARMED)]);
            }
            let place = Place::new(id, depth + new as u32);
            if !self
                .places
                .add(blocks[new].as_u64(), place, |place| Self::hash_at(&self.runs, place))
            {
                // It waits behind the hole that is filled here (or stands twice among these).
                self.runs.edit(id, |run| run.truncate(from + new));
                break;
            }
            new += 1;
        }
        if extended.is_none() {
            let first_of = |place: Place| self.runs.run(place.run).label()[0].as_u64();
            self.heads.add(first.as_u64(), Place::new(id, depth), first_of);
        }
        Some((id, from, new))
    }
}
