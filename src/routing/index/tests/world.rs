//! The index and plain sets side by side: steps that happen to both, and all answers compared.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::super::super::block::BlockHash;
use super::super::{Holder, ImageCursor, Layers, Reach, SLACK_BYTES, SharedIndex, Totals};

pub(super) const ROWS: u32 = 70;
const OWNERS: usize = 7;

pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The chained hash of each block of a path of symbols.
pub(super) fn path(symbols: &[u8]) -> Vec<BlockHash> {
    let chain = |hash: &mut u64, &symbol: &u8| {
        *hash = mix(*hash ^ (u64::from(symbol) + 1).wrapping_mul(0x1234_5678_9abc_def1));
        Some(BlockHash::new(*hash))
    };
    symbols.iter().scan(7_u64, chain).collect()
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Blocks of the path from a share of it on.
    Hold(Holder, Vec<u8>, usize),
    /// Single blocks, the deepest first.
    ReleaseTail(Holder, Vec<u8>, usize),
    /// One block anywhere.
    ReleaseOne(Holder, Vec<u8>),
    ReleaseAll(Holder, Vec<u8>),
    Everybody(Vec<u8>),
    Touch(Holder, Vec<u8>),
    Trim(Holder, u64, usize),
    Retract(Holder, Vec<u8>, usize),
    Drop(Holder),
    /// The row goes back, and its owner gets another one.
    Return(u32),
    Sweep(usize),
    Settle(usize),
    BeginImage(Holder),
    TellPart(usize),
}

fn holder(layers: u8) -> impl Strategy<Value = Holder> {
    let row = prop_oneof![4 => 0..4_u32, 2 => 0..12_u32, 1 => 60..ROWS];
    (row, 0..layers).prop_map(|(row, layer)| Holder { row, layer })
}

fn symbols() -> impl Strategy<Value = Vec<u8>> {
    let few = prop::collection::vec(prop_oneof![5 => Just(0_u8), 1 => Just(1_u8)], 1..24);
    prop_oneof![few, prop::collection::vec(0..2_u8, 1..10)]
}

pub(super) fn prompts() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(symbols(), 6)
}

pub(super) fn steps(layers: u8) -> impl Strategy<Value = Vec<Step>> {
    let holder = move || holder(layers);
    let step = prop_oneof![
        12 => (holder(), symbols(), Just(0)).prop_map(|(h, s, at)| Step::Hold(h, s, at)),
        6 => (holder(), symbols(), 0..24_usize).prop_map(|(h, s, at)| Step::Hold(h, s, at)),
        6 => (holder(), symbols(), 0..24_usize).prop_map(|(h, s, at)| Step::ReleaseTail(h, s, at)),
        6 => (holder(), symbols()).prop_map(|(h, s)| Step::ReleaseOne(h, s)),
        3 => (holder(), symbols()).prop_map(|(h, s)| Step::ReleaseAll(h, s)),
        2 => symbols().prop_map(Step::Everybody),
        3 => (holder(), symbols()).prop_map(|(h, s)| Step::Touch(h, s)),
        3 => (holder(), 0..40_u64, 1..30_usize).prop_map(|(h, max, part)| Step::Trim(h, max, part)),
        3 => (holder(), symbols(), 0..24_usize).prop_map(|(h, s, at)| Step::Retract(h, s, at)),
        2 => holder().prop_map(Step::Drop),
        1 => (0..6_u32).prop_map(Step::Return),
        2 => (0..40_usize).prop_map(Step::Sweep),
        1 => (0..40_usize).prop_map(Step::Settle),
        2 => (0..4_u32).prop_map(|row| Step::BeginImage(Holder { row, layer: 0 })),
        8 => (1..40_usize).prop_map(Step::TellPart),
    ];
    prop::collection::vec(step, 1..60)
}

/// An image under way: what was held all the time, what at any time, and what was told how often.
struct Image {
    holder: Holder,
    cursor: ImageCursor,
    throughout: HashSet<BlockHash>,
    ever: HashSet<BlockHash>,
    told: HashMap<BlockHash, usize>,
}

/// The index and what it should hold. Rows go by what they are called here; `rows` says which of the
/// index's each is.
pub(super) struct World<const LAYERS: usize> {
    pub(super) index: SharedIndex<LAYERS>,
    bytes_max: usize,
    rows: Vec<u32>,
    owners: Vec<u32>,
    held: HashMap<Holder, HashSet<BlockHash>>,
    /// Of every block ever held, the one before and the depth.
    known: HashMap<BlockHash, (Option<BlockHash>, u32)>,
    totals: Vec<Totals>,
    image: Option<Image>,
}

impl<const LAYERS: usize> World<LAYERS> {
    /// Every row lent, to a few owners.
    pub(super) fn new(bytes_max: usize) -> Self {
        let mut index = SharedIndex::new(bytes_max);
        let owners: Vec<u32> = (0..OWNERS).map(|_| index.add_owner()).collect();
        for row in 0..ROWS {
            assert_eq!(index.add_row(owners[row as usize % OWNERS]), Some(row));
        }
        Self {
            index,
            bytes_max,
            rows: (0..ROWS).collect(),
            owners,
            held: HashMap::new(),
            known: HashMap::new(),
            totals: vec![Totals::default(); OWNERS],
            image: None,
        }
    }

    fn real(&self, holder: Holder) -> Holder {
        Holder { row: self.rows[holder.row as usize], ..holder }
    }

    fn holds(&self, holder: Holder, block: BlockHash) -> bool {
        self.held.get(&holder).is_some_and(|blocks| blocks.contains(&block))
    }

    fn depth(&self, row: u32, layers: Layers, blocks: &[BlockHash]) -> usize {
        let held = |block| {
            (0..LAYERS as u8)
                .any(|layer| layers.0 & 1 << layer != 0 && self.holds(Holder { row, layer }, block))
        };
        blocks.iter().take_while(|&&block| held(block)).count()
    }

    fn total(&mut self, holder: Holder) -> &mut Totals {
        &mut self.totals[holder.row as usize % OWNERS]
    }

    /// What is gone from a holder's set though nobody released it: trimmed for the byte bound.
    fn note_trimmed(&mut self) {
        if self.bytes_max == usize::MAX {
            return;
        }
        let sizes: HashMap<Holder, usize> =
            self.held.keys().map(|&h| (h, self.index.blocks_of(self.real(h)) as usize)).collect();
        let most = sizes.values().copied().max().unwrap_or_default();
        let mut lost = Vec::new();
        for (&holder, blocks) in &mut self.held {
            let real = Holder { row: self.rows[holder.row as usize], ..holder };
            let before = blocks.len();
            if !self.index.is_dropped(real) {
                blocks.retain(|&block| self.index.holds(real, block));
            }
            if blocks.len() < before {
                lost.push((holder, before - blocks.len()));
                // Trimmed while it was the largest, 32 blocks at a time; one may have gained 24 since.
                assert!(blocks.len() + 32 + 24 >= most, "{} of {most} trimmed", blocks.len());
            }
        }
        for (holder, blocks) in lost {
            self.total(holder).trimmed += blocks as u64;
        }
    }

    fn hold(&mut self, holder: Holder, symbols: &[u8], at: usize) {
        while self.index.is_dropped(self.real(holder)) {
            self.index.sweep(3);
        }
        let blocks = path(symbols);
        let (above, below) = blocks.split_at(at.min(blocks.len()));
        let mut parent = None;
        for (&block, depth) in blocks.iter().zip(0..) {
            self.known.insert(block, (parent, depth));
            parent = Some(block);
        }
        let real = self.real(holder);
        let result = self.index.hold(real, above.last().copied(), above.len() as u32, below);
        let taken = below.len() - result.refused;
        let held = self.held.entry(holder).or_default();
        let gained = below[..taken].iter().filter(|&&block| held.insert(block)).count();
        self.total(holder).inserted += result.gained as u64;
        if self.bytes_max == usize::MAX {
            assert_eq!((result.gained, result.refused), (gained, 0));
        } else {
            // Some may have been trimmed first.
            assert!(result.gained >= gained);
            self.total(holder).trimmed += (result.gained - gained) as u64;
            assert!(below[..taken].iter().all(|&block| self.index.holds(real, block)));
            self.note_trimmed();
            if let Some(image) = self.image.as_mut().filter(|image| image.holder == holder) {
                // These may have gone and come back.
                if result.gained > gained {
                    image.throughout.retain(|block| !below.contains(block));
                }
            }
        }
    }

    fn release(&mut self, holder: Holder, blocks: &[BlockHash]) {
        let real = self.real(holder);
        let held = self.held.entry(holder).or_default();
        let released = blocks.iter().filter(|&block| held.remove(block)).count();
        assert_eq!(self.index.release(real, blocks), released);
        self.total(holder).removed += released as u64;
        self.note_trimmed();
    }

    /// Which blocks go is for `the_least_recently_used_goes_first`; here, that nothing else does, and
    /// that none goes before one that follows it.
    fn trim(&mut self, holder: Holder, blocks_max: u64, part: usize) {
        let real = self.real(holder);
        let before = self.held.entry(holder).or_default().clone();
        let trimmed = self.index.trim_part(real, blocks_max, part);
        assert_eq!(trimmed, before.len().saturating_sub(blocks_max as usize).min(part));
        let after: HashSet<BlockHash> =
            before.iter().copied().filter(|&block| self.index.holds(real, block)).collect();
        assert_eq!(after.len(), before.len() - trimmed);
        for block in before.iter().filter(|block| after.contains(block)) {
            let parent = self.known[block].0.filter(|parent| before.contains(parent));
            assert!(parent.is_none_or(|parent| after.contains(&parent)), "trimming left a hole");
        }
        self.held.insert(holder, after);
        self.total(holder).trimmed += trimmed as u64;
    }

    fn retract(&mut self, holder: Holder, blocks: &[BlockHash], keep: usize) {
        let depth = self.depth(holder.row, Layers(1 << holder.layer), blocks);
        let real = self.real(holder);
        let retracted = self.index.retract(real, blocks, keep);
        assert!(retracted == 0 || retracted == depth.saturating_sub(keep), "{retracted}");
        if retracted > 0 {
            let held = self.held.get_mut(&holder).expect("it held some");
            blocks[keep..depth].iter().for_each(|block| assert!(held.remove(block)));
            self.total(holder).removed += retracted as u64;
            self.note_trimmed();
        }
    }

    fn forget(&mut self, holder: Holder) {
        let gone = self.held.remove(&holder).unwrap_or_default();
        self.total(holder).removed += gone.len() as u64;
    }

    fn begin_image(&mut self, holder: Holder) {
        let cursor = self.index.begin_image(self.real(holder));
        let held = self.held.get(&holder).cloned().unwrap_or_default();
        let (throughout, ever) = (held.clone(), held);
        self.image = Some(Image { holder, cursor, throughout, ever, told: HashMap::new() });
    }

    /// Tells a part; whether there is more.
    fn tell_part(&mut self, blocks: usize) -> bool {
        let Some(image) = &mut self.image else { return false };
        let mut told = 0;
        let more = self.index.image_part(&mut image.cursor, blocks, |parent, depth, run| {
            let first = self.known[&run[0]];
            assert_eq!((parent, depth), first, "what a run follows");
            for (&block, depth) in run.iter().zip(depth..) {
                assert_eq!(self.known[&block].1, depth, "blocks in a row");
                assert!(image.ever.contains(&block), "never held");
                *image.told.entry(block).or_default() += 1;
                told += 1;
            }
        });
        assert!(told <= blocks + 8, "{told} of {blocks} told");
        if !more {
            let image = self.image.take().expect("it was there");
            for block in image.throughout {
                assert_eq!(image.told.get(&block), Some(&1), "held throughout is told once");
            }
        }
        more
    }

    fn apply(&mut self, step: Step) {
        let dropped = |world: &Self, holder| world.index.is_dropped(world.real(holder));
        match step {
            Step::Hold(holder, symbols, at) => self.hold(holder, &symbols, at),
            Step::ReleaseTail(holder, symbols, at) => {
                let blocks = path(&symbols);
                for &block in blocks[at.min(blocks.len())..].iter().rev() {
                    self.release(holder, &[block]);
                }
            }
            Step::ReleaseOne(holder, symbols) => {
                self.release(holder, &path(&symbols)[symbols.len() - 1..]);
            }
            Step::ReleaseAll(holder, symbols) => self.release(holder, &path(&symbols)),
            Step::Everybody(symbols) => {
                for row in 0..ROWS / 2 {
                    self.hold(Holder { row: row * 2, layer: 0 }, &symbols, 0);
                }
            }
            Step::Touch(holder, symbols) => {
                let blocks = path(&symbols);
                let depth = self.depth(holder.row, Layers(1 << holder.layer), &blocks);
                assert_eq!(self.index.touch(self.real(holder), &blocks), depth);
            }
            Step::Trim(holder, max, part) if !dropped(self, holder) => self.trim(holder, max, part),
            Step::Retract(holder, symbols, keep) => {
                let blocks = path(&symbols);
                self.retract(holder, &blocks, keep.min(blocks.len()));
            }
            Step::Drop(holder) => {
                self.index.drop_holder(self.real(holder));
                self.forget(holder);
            }
            Step::Return(row) => {
                for layer in 0..LAYERS as u8 {
                    self.forget(Holder { row, layer });
                }
                self.index.drop_row(self.rows[row as usize]);
                let owner = self.owners[row as usize % OWNERS];
                self.rows[row as usize] = self.index.add_row(owner).expect("a free row");
                if self.image.as_ref().is_some_and(|image| image.holder.row == row) {
                    self.image = None;
                }
            }
            Step::Sweep(blocks) => {
                self.index.sweep(blocks);
            }
            Step::Settle(blocks) => {
                self.index.settle(blocks);
                self.note_trimmed();
            }
            // One that has told nothing yet, or has come to its end, makes way.
            Step::BeginImage(holder) => match &self.image {
                Some(image) if !image.throughout.is_empty() => {}
                _ => self.begin_image(holder),
            },
            Step::TellPart(blocks) => {
                self.tell_part(blocks);
            }
            Step::Trim(..) => {}
        }
        if let Some(image) = &mut self.image {
            let held = self.held.get(&image.holder).cloned().unwrap_or_default();
            image.throughout.retain(|block| held.contains(block));
            image.ever.extend(held);
        }
    }

    /// Every run names the block before its first one, be that held or not.
    fn check_parents(&self) {
        for id in self.index.runs.ids() {
            let first = self.index.runs.run(id).label()[0];
            assert_eq!(self.index.runs.parent(id), self.known[&first].0, "parent of a run");
        }
    }

    fn compare(&self, prompt: &[u8]) {
        let blocks = path(prompt);
        let (mut reach, mut by_owner) = (Reach::default(), Vec::new());
        let all = (1_u16 << LAYERS) - 1;
        for layers in [1, 2, all as u8, (all & 0b1010_1010) as u8].map(Layers) {
            self.index.look_up(&blocks, layers, &mut reach);
            let mut depths = HashMap::new();
            reach.for_each(|row, depth| {
                assert!(depth > 0, "for nothing");
                assert_eq!(depths.insert(row, depth as usize), None, "a row twice");
            });
            let mut most = vec![0; OWNERS];
            for row in 0..ROWS {
                let expected = self.depth(row, layers, &blocks);
                let real = self.rows[row as usize];
                let depth = depths.remove(&real).unwrap_or_default();
                assert_eq!(depth, expected, "row {row} in {layers:?}");
                assert_eq!(self.index.matched(real, layers, &blocks), expected);
                let owner = self.owners[row as usize % OWNERS] as usize;
                most[owner] = expected.max(most[owner]);
            }
            assert!(depths.is_empty(), "rows of nobody: {depths:?}");
            self.index.by_owner(&reach, &mut by_owner);
            assert!(by_owner.iter().map(|&depth| depth as usize).eq(most));
        }
        for holder in self.held.keys() {
            for &block in &blocks {
                assert_eq!(self.index.holds(self.real(*holder), block), self.holds(*holder, block));
            }
        }
        for block in blocks {
            if self.held.values().any(|held| held.contains(&block)) {
                assert_eq!(self.index.block_before(block), Some(self.known[&block].0));
            }
        }
    }

    /// All that is told in numbers.
    fn compare_counts(&self) {
        for (&owner, totals) in self.owners.iter().zip(&self.totals) {
            assert_eq!(self.index.totals(owner), *totals);
        }
        for layer in 0..LAYERS as u8 {
            let held = |(holder, blocks): (&Holder, &HashSet<_>)| {
                assert_eq!(self.index.blocks_of(self.real(*holder)), blocks.len() as u64);
                holder.layer == layer && !blocks.is_empty()
            };
            if self.held.iter().any(held) {
                assert!(self.index.uses(Layers(1 << layer)));
            }
        }
        let bytes = self.index.stats().bytes;
        // What all hold adds an entry for each of them when it is cut.
        let entries = ROWS as usize * LAYERS * 64;
        assert!(bytes <= self.bytes_max.saturating_add(SLACK_BYTES + entries), "{bytes}");
    }

    /// Plays steps, all compared after each, and at the end to the block.
    pub(super) fn play(mut self, steps: Vec<Step>, prompts: &[Vec<u8>]) {
        for step in steps {
            self.apply(step);
            self.index.check();
            self.check_parents();
            self.compare_counts();
            for prompt in prompts {
                self.compare(prompt);
            }
        }
        let mut parts = 0;
        while self.tell_part(20) {
            parts += 1;
            assert!(parts < 1_000, "an image without end");
        }
        while self.index.settle(7) {
            self.note_trimmed();
        }
        self.note_trimmed();
        self.index.check();
        self.compare_counts();
        let stats = self.index.stats();
        let distinct = self.held.values().flatten().collect::<HashSet<_>>().len();
        assert_eq!(stats.blocks, distinct);
        assert_eq!(stats.held, self.held.values().map(HashSet::len).sum::<usize>() as u64);
        for layer in 0..LAYERS as u8 {
            let held = self.held.iter().any(|(h, blocks)| h.layer == layer && !blocks.is_empty());
            assert_eq!(self.index.uses(Layers(1 << layer)), held);
        }
    }
}
