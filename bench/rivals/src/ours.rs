//! Ours: the trees of the product, one a worker (`src/routing/prefix`, compiled in as it stands), and
//! the proposed index that shares runs between them.

use std::sync::Mutex;

use crate::{
    index::{Change, Index, Prompt},
    routing::{
        block::BlockHash,
        prefix::{Bounds, PrefixIndex},
    },
    shared::{Holder, Layers, Reach, SharedIndex},
};

const UNBOUNDED: Bounds = Bounds { blocks_max: usize::MAX, bytes_max: usize::MAX };

/// One tree a worker, each behind a lock of its own.
pub struct Trees(Vec<Mutex<PrefixIndex>>);

/// A report: worker, parent, blocks; stored, or else removed one by one.
pub struct Report {
    worker: u32,
    parent: Option<BlockHash>,
    depth: u32,
    blocks: Vec<BlockHash>,
    stored: bool,
}

fn report(change: Change, prompt: &Prompt, stored: bool) -> Report {
    let Change { worker, from, to, .. } = change;
    let mut blocks: Vec<_> = prompt.blocks[from..to].iter().map(|&b| BlockHash::new(b)).collect();
    if !stored {
        blocks.reverse();
    }
    let parent = from.checked_sub(1).map(|at| BlockHash::new(prompt.blocks[at]));
    Report { worker, parent, depth: from as u32, blocks, stored }
}

impl Trees {
    /// Applies a report under the worker's lock.
    pub fn apply_one(&self, Report { worker, parent, blocks, stored, .. }: Report) {
        let mut tree = self.0[worker as usize].lock().expect("not poisoned");
        if stored {
            tree.insert_after(parent, &blocks).expect("the parent is held");
        } else {
            for block in blocks {
                tree.remove(block);
            }
        }
    }
}

impl Index for Trees {
    type Change = Report;
    type Query = Vec<BlockHash>;
    type Answer = Vec<u32>;

    fn new(workers: u32) -> Self {
        Self((0..workers).map(|_| Mutex::new(PrefixIndex::new(UNBOUNDED))).collect())
    }

    fn stored(change: Change, prompt: &Prompt) -> Report {
        report(change, prompt, true)
    }

    fn removed(change: Change, prompt: &Prompt) -> Report {
        report(change, prompt, false)
    }

    fn apply(&mut self, changes: Vec<Report>) {
        for change in changes {
            self.apply_one(change);
        }
    }

    fn drop_worker(&mut self, worker: u32) {
        self.0[worker as usize].get_mut().expect("not poisoned").clear();
    }

    fn query(prompt: &Prompt) -> Vec<BlockHash> {
        prompt.blocks.iter().map(|&block| BlockHash::new(block)).collect()
    }

    fn look_up(&self, query: &mut Vec<BlockHash>, answer: &mut Vec<u32>) {
        for (tree, depth) in self.0.iter().zip(answer) {
            *depth = tree.lock().expect("not poisoned").matched_blocks(query) as u32;
        }
    }

    fn answer(&self) -> Vec<u32> {
        vec![0; self.0.len()]
    }

    fn depths(&self, answer: &Vec<u32>, depths: &mut [u32]) {
        depths.copy_from_slice(answer);
    }
}

/// The shared index with one layer; answers as depths of all workers, or as `LEVELS`.
pub struct Shared<const LEVELS: bool> {
    index: SharedIndex<1>,
    workers: usize,
}

/// A report with plain hashes.
pub struct PlainReport {
    holder: Holder,
    parent: Option<u64>,
    depth: u32,
    blocks: Vec<u64>,
    stored: bool,
}

fn plain(change: Change, prompt: &Prompt, stored: bool) -> PlainReport {
    let Report { worker, parent, depth, blocks, stored } = report(change, prompt, stored);
    let blocks = blocks.into_iter().map(BlockHash::as_u64).collect();
    let holder = Holder { row: worker, layer: 0 };
    PlainReport { holder, parent: parent.map(BlockHash::as_u64), depth, blocks, stored }
}

impl<const LEVELS: bool> Shared<LEVELS> {
    /// Applies a report.
    pub fn apply_one(&mut self, report: &PlainReport) {
        let PlainReport { holder, parent, depth, ref blocks, stored } = *report;
        if stored {
            let held = self.index.hold(holder, parent, depth, blocks);
            assert_eq!(held.refused, 0, "no bound");
        } else {
            for block in blocks {
                self.index.release(holder, std::slice::from_ref(block));
            }
        }
    }
}

impl<const LEVELS: bool> Index for Shared<LEVELS> {
    type Change = PlainReport;
    type Query = Vec<u64>;
    type Answer = (Reach, Vec<u32>);

    fn new(workers: u32) -> Self {
        Self { index: SharedIndex::new(usize::MAX), workers: workers as usize }
    }

    fn stored(change: Change, prompt: &Prompt) -> PlainReport {
        plain(change, prompt, true)
    }

    fn removed(change: Change, prompt: &Prompt) -> PlainReport {
        plain(change, prompt, false)
    }

    fn apply(&mut self, changes: Vec<PlainReport>) {
        for change in &changes {
            self.apply_one(change);
        }
    }

    /// With the sweep, which a router does in small parts.
    fn drop_worker(&mut self, worker: u32) {
        self.index.drop_holder(Holder { row: worker, layer: 0 });
        while self.index.sweep(256) {}
    }

    fn query(prompt: &Prompt) -> Vec<u64> {
        prompt.blocks.clone()
    }

    fn look_up(&self, query: &mut Vec<u64>, (reach, depths): &mut Self::Answer) {
        self.index.look_up(query, Layers(1), reach);
        if !LEVELS {
            depths.fill(0);
            reach.for_each(|row, depth| depths[row as usize] = depth);
        }
    }

    fn answer(&self) -> Self::Answer {
        (Reach::default(), vec![0; self.workers])
    }

    fn depths(&self, (reach, _): &Self::Answer, depths: &mut [u32]) {
        depths.fill(0);
        reach.for_each(|row, depth| depths[row as usize] = depth);
    }
}
