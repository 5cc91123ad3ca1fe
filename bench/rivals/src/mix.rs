//! Nine look-ups to one store of sixteen blocks, by one thread or more at once.

use crossbeam_utils::sync::ShardedLock;
use parking_lot::{RwLock, RwLockWriteGuard};

use crate::{
    dynamo,
    index::{Change, Index, Prompt},
    ours,
    routing::block::BlockHash,
    smg,
};

/// An index that threads share as its router shares it.
pub trait Mixed: Sync {
    /// The index.
    type Index: Index;
    /// Shares a filled one.
    fn share(index: Self::Index) -> Self;
    /// Looks a prompt up.
    fn look_up(
        &self,
        query: &mut <Self::Index as Index>::Query,
        answer: &mut <Self::Index as Index>::Answer,
    );
    /// Applies a store.
    fn store(&self, change: <Self::Index as Index>::Change);
    /// A place for answers.
    fn answer(&self) -> <Self::Index as Index>::Answer;
}

/// Runs `ops` operations on each of `threads` threads; the workers of stores differ by thread.
pub fn run<M: Mixed>(mixed: &M, queries: &[Prompt], workers: u32, threads: u32, ops: u32)
where
    <M::Index as Index>::Query: Clone,
{
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let queries: Vec<_> = queries.iter().map(M::Index::query).collect();
                let mut answer = mixed.answer();
                for op in 0..ops {
                    if op % 10 == 9 {
                        let worker = (op / 10 * threads + thread) % workers;
                        let seed = (u64::from(thread) << 32 | u64::from(op)) << 8;
                        let contents = (0..16).map(|at| crate::workload::mix(seed + at)).collect();
                        let prompt = crate::workload::prompt(contents);
                        let change = Change { worker, prompt: 0, from: 0, to: 16 };
                        mixed.store(M::Index::stored(change, &prompt));
                    } else {
                        let at = crate::workload::mix(u64::from(op * threads + thread));
                        let mut query = queries[at as usize % queries.len()].clone();
                        mixed.look_up(&mut query, &mut answer);
                    }
                }
            });
        }
    });
}

impl Mixed for dynamo::Compressed {
    type Index = Self;
    fn share(index: Self) -> Self {
        index
    }
    fn look_up(&self, query: &mut <Self as Index>::Query, answer: &mut <Self as Index>::Answer) {
        Index::look_up(self, query, answer);
    }
    fn store(&self, change: <Self as Index>::Change) {
        self.send(change);
    }
    fn answer(&self) -> <Self as Index>::Answer {
        Index::answer(self)
    }
}

/// smg's index with a lock for each worker's lane map: readers take none.
pub struct SharedChain(smg::Chain);

impl Mixed for SharedChain {
    type Index = smg::Chain;
    fn share(index: smg::Chain) -> Self {
        Self(index)
    }
    fn look_up(&self, query: &mut Vec<u64>, answer: &mut Vec<u32>) {
        self.0.look_up(query, answer);
    }
    fn store(&self, change: smg::Report) {
        self.0.store(change);
    }
    fn answer(&self) -> Vec<u32> {
        self.0.answer()
    }
}

impl Mixed for ours::Trees {
    type Index = Self;
    fn share(index: Self) -> Self {
        index
    }
    fn look_up(&self, query: &mut <Self as Index>::Query, answer: &mut Vec<u32>) {
        Index::look_up(self, query, answer);
    }
    fn store(&self, change: ours::Report) {
        self.apply_one(change);
    }
    fn answer(&self) -> Vec<u32> {
        Index::answer(self)
    }
}

type Levels = ours::Shared<8, true>;

/// Ours as the product shares it: readers share the lock's one word, and if it is `FAIR` who reports
/// hands it over to whoever waits.
pub struct OneLock<const FAIR: bool>(RwLock<Levels>);

impl<const FAIR: bool> Mixed for OneLock<FAIR> {
    type Index = Levels;
    fn share(index: Levels) -> Self {
        Self(RwLock::new(index))
    }
    fn look_up(&self, query: &mut Vec<BlockHash>, answer: &mut <Levels as Index>::Answer) {
        self.0.read().look_up(query, answer);
    }
    fn store(&self, change: ours::LayerReport) {
        let mut index = self.0.write();
        index.apply_one(&change);
        if FAIR {
            RwLockWriteGuard::unlock_fair(index);
        }
    }
    fn answer(&self) -> <Levels as Index>::Answer {
        self.0.read().answer()
    }
}

/// Ours under a lock of eight words, of which a reader takes one and a writer all.
pub struct EightLocks(ShardedLock<Levels>);

impl Mixed for EightLocks {
    type Index = Levels;
    fn share(index: Levels) -> Self {
        Self(ShardedLock::new(index))
    }
    fn look_up(&self, query: &mut Vec<BlockHash>, answer: &mut <Levels as Index>::Answer) {
        self.0.read().expect("not poisoned").look_up(query, answer);
    }
    fn store(&self, change: ours::LayerReport) {
        self.0.write().expect("not poisoned").apply_one(&change);
    }
    fn answer(&self) -> <Levels as Index>::Answer {
        self.0.read().expect("not poisoned").answer()
    }
}
