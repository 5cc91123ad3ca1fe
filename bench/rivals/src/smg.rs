//! smg's chain index: `kv-index`.

use std::sync::Mutex;

use kv_index::{ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock};

use crate::index::{Change, Index, Prompt};

/// The chain index with one lane map a worker.
pub struct Chain {
    index: ChainIndex,
    maps: Vec<Mutex<ChainBlockMap>>,
}

/// A report in the index's own types.
pub enum Report {
    /// Worker, parent and blocks.
    Stored(u32, Option<SequenceHash>, Vec<StoredBlock>),
    /// Worker and blocks, each a report of its own.
    Removed(u32, Vec<SequenceHash>),
}

impl Chain {
    /// Applies a report; those of one worker wait for one another.
    pub fn store(&self, report: Report) {
        match report {
            Report::Stored(worker, parent, blocks) => {
                let mut map = self.maps[worker as usize].lock().expect("not poisoned");
                let stored = self.index.apply_stored(worker, &blocks, parent, &mut map);
                stored.expect("a valid report");
            }
            Report::Removed(worker, blocks) => {
                let mut map = self.maps[worker as usize].lock().expect("not poisoned");
                for block in blocks {
                    self.index.apply_removed(worker, &[block], &mut map);
                }
            }
        }
    }
}

impl Index for Chain {
    type Change = Report;
    type Query = Vec<u64>;
    type Answer = Vec<u32>;

    fn new(workers: u32) -> Self {
        let index = ChainIndex::with_max_workers(workers as usize);
        for worker in 0..workers {
            let id = index.intern_worker(&worker.to_string()).expect("room for all");
            assert_eq!(id, worker, "ids in order");
        }
        Self { index, maps: (0..workers).map(|_| Mutex::default()).collect() }
    }

    fn stored(change: Change, prompt: &Prompt) -> Report {
        let Change { worker, from, to, .. } = change;
        let parent = from.checked_sub(1).map(|at| SequenceHash(prompt.blocks[at]));
        let blocks = prompt.contents[from..to].iter().zip(&prompt.blocks[from..to]);
        let block = |(&content, &block)| StoredBlock {
            seq_hash: SequenceHash(block),
            content_hash: ContentHash(content),
        };
        Report::Stored(worker, parent, blocks.map(block).collect())
    }

    fn removed(change: Change, prompt: &Prompt) -> Report {
        let blocks = prompt.blocks[change.from..change.to].iter().rev();
        Report::Removed(change.worker, blocks.map(|&block| SequenceHash(block)).collect())
    }

    fn apply(&mut self, changes: Vec<Report>) {
        for change in changes {
            self.store(change);
        }
    }

    fn drop_worker(&mut self, worker: u32) {
        let map = self.maps[worker as usize].get_mut().expect("not poisoned");
        self.index.apply_cleared(worker, map);
    }

    fn query(prompt: &Prompt) -> Vec<u64> {
        prompt.contents.clone()
    }

    fn look_up(&self, query: &mut Vec<u64>, answer: &mut Vec<u32>) {
        answer.fill(0);
        let report = |worker: u32, depth| answer[worker as usize] = depth;
        self.index.score_into(query, |&content| content, false, report);
    }

    fn answer(&self) -> Vec<u32> {
        vec![0; self.maps.len()]
    }

    fn depths(&self, answer: &Vec<u32>, depths: &mut [u32]) {
        depths.copy_from_slice(answer);
    }
}
