//! What the engine holds, for comparison with what the router believes: digests, buckets, parts.

use super::wire::{BUCKETS, StateBlock, Step, SyncBlock};

/// A part of a snapshot stays below this, whatever its text is escaped to.
const PART_BYTES_MAX: usize = 4_000_000;
/// A byte of text in JSON takes at most `\u0000`.
const ESCAPED: usize = 6;
/// Names, numbers and punctuation of one block.
const FRAME_BYTES: usize = 192;

/// The state at one moment, parents first.
#[derive(Debug)]
pub(super) struct State(pub(super) Vec<StateBlock>);

impl State {
    /// Sums of what is held, by bucket.
    pub(super) fn digest(&self) -> Step {
        let mut sums = vec![0_u64; BUCKETS];
        for block in &self.0 {
            let sum = &mut sums[bucket(block.hash)];
            *sum = sum.wrapping_add(mixed(block.hash));
        }
        Step::Digest { buckets: BUCKETS, blocks: self.0.len(), sums }
    }

    /// All blocks of some buckets; `None` where they do not fit one message.
    pub(super) fn buckets(&self, list: &[usize]) -> Option<Step> {
        let named = |block: &&StateBlock| list.contains(&bucket(block.hash));
        let bytes: usize = self.0.iter().filter(named).map(json_bytes_max).sum();
        let blocks = || self.0.iter().filter(named).map(SyncBlock::from).collect();
        (bytes <= PART_BYTES_MAX).then(|| Step::Buckets {
            of: BUCKETS,
            list: list.to_vec(),
            blocks: blocks(),
        })
    }

    /// Where the parts of a snapshot end; at least one.
    pub(super) fn parts(&self) -> Vec<std::ops::Range<usize>> {
        let mut parts = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (at, block) in self.0.iter().enumerate() {
            let more = json_bytes_max(block);
            if bytes + more > PART_BYTES_MAX && at > start {
                parts.push(start..at);
                (start, bytes) = (at, 0);
            }
            bytes += more;
        }
        parts.push(start..self.0.len());
        parts
    }

    /// One part of a snapshot.
    pub(super) fn snapshot(&self, part: usize, last: bool, range: std::ops::Range<usize>) -> Step {
        let blocks = self.0[range].iter().map(SyncBlock::from).collect();
        Step::Snapshot { part, last, blocks }
    }
}

/// The finalizer of splitmix64, over the name of a block.
fn mixed(hash: u64) -> u64 {
    let z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn bucket(hash: u64) -> usize {
    (mixed(hash) >> 56) as usize
}

fn json_bytes_max(block: &StateBlock) -> usize {
    let root = block.root.as_ref().map_or(0, |root| {
        let optional = [&root.cache_salt, &root.lora_name];
        let bytes = optional.into_iter().flatten().map(String::len).sum::<usize>();
        root.model.len() + bytes
    });
    FRAME_BYTES + ESCAPED * (block.text.len() + root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(blocks: u64, text: &str) -> State {
        let block = |hash: u64| StateBlock {
            hash,
            parent: hash.checked_sub(1),
            text: text.into(),
            root: None,
        };
        State((0..blocks).map(block).collect())
    }

    #[test]
    fn a_digest_sums_what_is_in_each_bucket() {
        // Reference values of splitmix64 from seed 0.
        assert_eq!(mixed(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(bucket(0), 0xe2);
        let Step::Digest { buckets: 256, blocks: 5000, sums } = state(5000, "x").digest() else {
            panic!("a digest of 256 buckets");
        };
        let total = (0..5000).map(mixed).fold(0, u64::wrapping_add);
        assert_eq!(sums.iter().copied().fold(0, u64::wrapping_add), total);
        assert!(sums.iter().all(|sum| *sum != 0));
    }

    #[test]
    fn buckets_hold_exactly_what_is_theirs() {
        let state = state(1000, "x");
        let all: Vec<usize> = (0..BUCKETS).collect();
        let mut count = 0;
        for list in all.chunks(7) {
            let Some(Step::Buckets { blocks, .. }) = state.buckets(list) else { panic!("fits") };
            count += blocks.len();
        }
        assert_eq!(count, 1000);
    }

    #[test]
    fn parts_are_small_and_whole() {
        assert_eq!(state(0, "").parts(), vec![0..0; 1]);
        let state = state(30_000, &"\u{1}".repeat(64));
        assert!(state.buckets(&(0..BUCKETS).collect::<Vec<_>>()).is_none());
        let parts = state.parts();
        assert!(parts.len() > 1 && parts.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(parts.last().expect("not empty").end, 30_000);
        for (at, range) in parts.iter().enumerate() {
            let json = serde_json::to_vec(&state.snapshot(at, false, range.clone()));
            assert!(json.expect("plain data").len() < 4 << 20);
        }
    }
}
