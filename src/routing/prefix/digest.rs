//! A short summary of which engine blocks a worker holds, to compare with the worker's own.
//!
//! A sum per bucket of ids: bucket and summand both come from the id by one fixed function, so two
//! sides that hold the same ids in the same number of copies get the same sums, in whatever order
//! the blocks came, and a bucket whose sums differ says where to look. XOR in place of the sum was
//! turned down: two copies would cancel out.

use super::super::block::mix;
use super::EngineBlockId;

/// Buckets that a digest can have at most.
pub const BUCKETS_MAX: usize = 4096;

/// Which engine blocks are held, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Engine blocks held, each counted once.
    pub blocks: u64,
    /// Per bucket the wrapping sum of [`mix_id`] times copies.
    pub sums: Vec<u64>,
}

impl Digest {
    pub(super) fn of(copies: impl Iterator<Item = (EngineBlockId, u32)>, buckets: usize) -> Self {
        let mut digest = Self { blocks: 0, sums: vec![0; 1 << bits(buckets)] };
        for (id, copies) in copies {
            let mixed = mix_id(id.0);
            let sum = &mut digest.sums[bucket_of(mixed, buckets)];
            *sum = sum.wrapping_add(mixed.wrapping_mul(u64::from(copies)));
            digest.blocks += 1;
        }
        digest
    }
}

/// One step of `SplitMix64` from the state `id`: adds the golden ratio, then mixes.
pub const fn mix_id(id: u64) -> u64 {
    mix(id.wrapping_add(0x9e37_79b9_7f4a_7c15))
}

/// The bucket of a mixed id: its top bits. A number of buckets that is no power of two up to
/// [`BUCKETS_MAX`] counts as the next lower one (zero as one).
pub const fn bucket_of(mixed: u64, buckets: usize) -> usize {
    // Two shifts, as one by 64 is none.
    (mixed >> 1 >> (63 - bits(buckets))) as usize
}

const fn bits(buckets: usize) -> u32 {
    match buckets {
        0 => 0,
        BUCKETS_MAX.. => BUCKETS_MAX.ilog2(),
        _ => buckets.ilog2(),
    }
}
