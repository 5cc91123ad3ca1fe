//! Ours: the product's index, which shares runs between all workers, and the trees before it, one a
//! worker.

use std::sync::Mutex;

use crate::{
    index::{Change, Index, Prompt},
    routing::{
        block::BlockHash,
        index::{Holder, Layers, Reach, SharedIndex},
    },
    trees::{Bounds, PrefixIndex},
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

/// The shared index with `LAYERS` layers: as `LEVELS`, or as depths of all workers. With more than one
/// layer a third of the prompts lie in another one, and the union of five is asked, as the product
/// does.
pub struct Shared<const LAYERS: usize, const LEVELS: bool> {
    index: SharedIndex<LAYERS>,
    workers: usize,
}

/// The layer that other prompts lie in.
const OTHER_LAYER: u8 = 3;

impl<const LAYERS: usize, const LEVELS: bool> Shared<LAYERS, LEVELS> {
    /// Whose a prompt's blocks are at a worker.
    pub fn holder(change: Change) -> Holder {
        let other = LAYERS > 1 && change.prompt.is_multiple_of(3);
        Holder { row: change.worker, layer: if other { OTHER_LAYER } else { 0 } }
    }

    /// An index with a row for each worker.
    pub fn of_rows(workers: u32, bytes_max: usize) -> SharedIndex<LAYERS> {
        let mut index = SharedIndex::new(bytes_max);
        for worker in 0..workers {
            let owner = index.add_owner();
            assert_eq!(index.add_row(owner), Some(worker), "rows in order");
        }
        index
    }

    /// Applies a report.
    pub fn apply_one(&mut self, (holder, report): &LayerReport) {
        let Report { parent, depth, ref blocks, stored, .. } = *report;
        if stored {
            let held = self.index.hold(*holder, parent, depth, blocks);
            assert_eq!(held.refused, 0, "no bound");
        } else {
            for block in blocks {
                self.index.release(*holder, std::slice::from_ref(block));
            }
        }
    }
}

/// A report about one layer.
pub type LayerReport = (Holder, Report);

impl<const LAYERS: usize, const LEVELS: bool> Index for Shared<LAYERS, LEVELS> {
    type Change = LayerReport;
    type Query = Vec<BlockHash>;
    type Answer = (Reach, Vec<u32>);

    fn new(workers: u32) -> Self {
        Self { index: Self::of_rows(workers, usize::MAX), workers: workers as usize }
    }

    fn stored(change: Change, prompt: &Prompt) -> LayerReport {
        (Self::holder(change), report(change, prompt, true))
    }

    fn removed(change: Change, prompt: &Prompt) -> LayerReport {
        (Self::holder(change), report(change, prompt, false))
    }

    fn apply(&mut self, changes: Vec<LayerReport>) {
        for change in &changes {
            self.apply_one(change);
        }
    }

    /// With the sweep, which a router does in small parts.
    fn drop_worker(&mut self, worker: u32) {
        for layer in 0..LAYERS as u8 {
            self.index.drop_holder(Holder { row: worker, layer });
        }
        while self.index.sweep(256) {}
    }

    fn query(prompt: &Prompt) -> Vec<BlockHash> {
        prompt.blocks.iter().map(|&block| BlockHash::new(block)).collect()
    }

    fn look_up(&self, query: &mut Vec<BlockHash>, (reach, depths): &mut Self::Answer) {
        self.index.look_up(query, Layers(if LAYERS == 1 { 1 } else { 0b1_1111 }), reach);
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
