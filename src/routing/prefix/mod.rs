//! What workers' caches are believed to hold.
//!
//! It is a belief, not a fact: a wrong one costs a cache miss on the worker, never a wrong answer.
//! To its users it is a compressed radix tree a worker; the trees of all workers share their runs of
//! blocks in one [`Index`] (see [`super::index`]), so that one walk says how far each of them has a
//! prompt. A worker's [`Holdings`] are rows of it (one for each engine behind its address) with a
//! [`layer`] for each kind of belief, and what the engine called the blocks.
//!
//! The parts: `engine_blocks` (a worker's reports in its own block ids) of `record`s in a
//! `record_map`, `worker_cache` (what they
//! mean for the index), [`holdings`] (what one worker holds in all its caches), [`image`] (the same,
//! told to others), and `digest`, which compares it with what the worker says.

mod digest;
mod engine_blocks;
pub mod holdings;
pub mod image;
mod record;
mod record_map;
mod worker_cache;

#[cfg(test)]
mod image_tests;
#[cfg(test)]
mod model;
#[cfg(test)]
mod solo;
#[cfg(test)]
mod tests;

pub use digest::{BUCKETS_MAX, Digest, bucket_of, mix_id};
pub use engine_blocks::{
    EngineBlockId, EngineBlocks, EngineStats, Rejection, RemovedOutcome, StoredOutcome,
};
pub use holdings::{
    Forgotten, Holdings, HoldingsImage, HoldingsParams, HoldingsStats, Matched, Telling, Tier,
    TierStats,
};
pub use image::{CacheImage, IndexImage};
pub use worker_cache::{Tree, WorkerCache};

use super::index::SharedIndex;

/// What a row of the index tells apart.
pub mod layer {
    /// In the accelerator's memory, by the engine's own word.
    pub const GPU: u8 = 0;
    /// In the host's memory.
    pub const CPU: u8 = 1;
    /// On disk or further away.
    pub const STORAGE: u8 = 2;
    /// Presumed: two generations, and two more that are being swept.
    pub const PRESUMED: [u8; 4] = [3, 4, 5, 6];
    /// Sent there, and beyond what its reports can speak of.
    pub const UNCONFIRMED: u8 = 7;
    /// How many there are.
    pub const COUNT: usize = 8;
    /// As bits: what makes a block ready for use.
    pub const BELIEVED: u8 = 1 << GPU | 0b111_1000;
}

/// The index of a fleet.
pub type Index = SharedIndex<{ layer::COUNT }>;
