//! The index of all workers, as threads share it.
//!
//! Nobody holds the lock for more than so many blocks ([`BLOCKS_A_HOLD`], [`PRESUMED_A_HOLD`]), so
//! that a look-up waits for microseconds; and who has much to change hands it over between two
//! holds to those who wait ([`FleetIndex::write_fairly`]), as a thread that takes a lock again at
//! once gets it before any that has to wake up. Why one lock and no finer ones: docs/adr/0017.

use std::cell::RefCell;

use parking_lot::{RwLock, RwLockWriteGuard};

use crate::routing::{
    Tier,
    block::BlockHash,
    index::{Layers, Reach},
    prefix::{Index, layer},
};

/// Engine blocks applied under one hold of the lock.
pub(super) const BLOCKS_A_HOLD: usize = 32;
/// Blocks of a prompt presumed under one hold.
pub(super) const PRESUMED_A_HOLD: usize = 64;
/// Blocks told to an image under one hold.
pub(super) const TOLD_A_HOLD: usize = 2048;
/// Blocks swept or trimmed under one hold.
pub(super) const TIDIED_A_HOLD: usize = 96;

/// The index under its lock. Taken after a worker's holdings, where both are.
#[derive(Debug)]
pub struct FleetIndex(RwLock<Index>);

/// How far workers have some prompts, by the owners of their rows; kept to be used again.
#[derive(Debug, Default)]
pub(super) struct Depths {
    reach: Reach,
    by_owner: Vec<u32>,
    /// Of one prompt: leading blocks, those in slower tiers at their worth.
    worth: Vec<f64>,
    /// The same of all prompts.
    believed: Vec<f64>,
    /// The same where what reports cannot confirm counts too.
    unconfirmed: Vec<f64>,
    /// Whether anybody has any of that.
    apart: bool,
}

impl Depths {
    /// Leading blocks of all prompts together that an owner has; `confirms` says whether its reports
    /// would confirm them.
    pub(super) fn of(&self, owner: u32, confirms: impl FnOnce() -> bool) -> u32 {
        let sums = if self.apart && !confirms() { &self.unconfirmed } else { &self.believed };
        // Sums of credits may fall short of a whole number by a rounding error.
        (sums.get(owner as usize).copied().unwrap_or_default() + 1e-6) as u32
    }

    /// Adds one more prompt.
    fn add(&mut self, index: &Index, prompt: &[BlockHash], [cpu, storage]: [f64; 2]) {
        self.worth.clear();
        self.worth.resize(index.owners(), 0.0);
        // What a slower tier reaches beyond a faster one counts at the slower one's credit; so each
        // reach counts at its own credit less that of the next slower one in use.
        let in_use = |layer: u8| index.uses(Layers(1 << layer));
        let credits = match (in_use(layer::CPU), in_use(layer::STORAGE)) {
            (false, false) => [1.0, 0.0, 0.0],
            (true, false) => [1.0 - cpu, cpu, 0.0],
            (false, true) => [1.0 - storage, 0.0, storage],
            (true, true) => [1.0 - cpu, cpu - storage, storage],
        };
        for (tier, credit) in Tier::ALL.into_iter().zip(credits) {
            if credit != 0.0 {
                self.look_up(index, prompt, tier.reach());
                for (worth, &depth) in self.worth.iter_mut().zip(&self.by_owner) {
                    *worth += f64::from(depth) * credit;
                }
            }
        }
        add_each(&mut self.believed, &self.worth);
        self.apart |= in_use(layer::UNCONFIRMED);
        if in_use(layer::UNCONFIRMED) {
            self.look_up(index, prompt, Layers(Tier::Gpu.reach().0 | 1 << layer::UNCONFIRMED));
            for (worth, &depth) in self.worth.iter_mut().zip(&self.by_owner) {
                *worth = worth.max(f64::from(depth));
            }
        }
        add_each(&mut self.unconfirmed, &self.worth);
    }

    fn look_up(&mut self, index: &Index, prompt: &[BlockHash], layers: Layers) {
        index.look_up(prompt, layers, &mut self.reach);
        index.by_owner(&self.reach, &mut self.by_owner);
    }
}

fn add_each(sums: &mut Vec<f64>, more: &[f64]) {
    sums.resize(more.len().max(sums.len()), 0.0);
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

thread_local! {
    static DEPTHS: RefCell<Depths> = RefCell::default();
}

impl FleetIndex {
    /// An empty one.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self(RwLock::new(Index::new(bytes_max)))
    }

    /// Asks it something.
    pub(super) fn read<T>(&self, ask: impl FnOnce(&Index) -> T) -> T {
        ask(&self.0.read())
    }

    /// Changes it, for a request that waits for that.
    pub(super) fn write<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        change(&mut self.0.write())
    }

    /// Changes it, for somebody who may have more to change: whoever waits comes first then.
    pub(super) fn write_fairly<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.0.write();
        let result = change(&mut index);
        RwLockWriteGuard::unlock_fair(index);
        result
    }

    /// Looks prompts up for all workers at once; `credits` are the worths of a block in host memory
    /// and of one further away.
    pub(super) fn with_depths<T>(
        &self,
        prompts: &[Vec<BlockHash>],
        credits: [f64; 2],
        then: impl FnOnce(&Depths) -> T,
    ) -> T {
        DEPTHS.with_borrow_mut(|depths| {
            depths.believed.clear();
            depths.unconfirmed.clear();
            depths.apart = false;
            for prompt in prompts {
                self.read(|index| depths.add(index, prompt, credits));
            }
            then(depths)
        })
    }
}
