//! Cuts a prompt into blocks and names each by a chained hash.
//!
//! A block hash commits to every byte before it, so equal hashes at one depth mean equal prefixes
//! and an index needs no text. The chain is `h[i] = XXH3-64(block[i], seed = h[i - 1])` (XXH3 of
//! <https://xxhash.com>, 64 bits), begun at a [`Root`] that a [`Secret`] of ours keys, so that
//! no client can aim a collision. A random one is expected after some 2^32 blocks; it costs a
//! cache miss on a worker, never a wrong answer. A cryptographic hash was turned down: ten times
//! the time per byte, for a name that only our own processes hand on.
//!
//! Only full blocks have a name: engines cache only full blocks too.

use std::fmt;
use std::num::NonZeroUsize;

use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::{Xxh3Builder, xxh3_64_with_seed};

/// The chained name of one block: it stands for the block and all that comes before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(u64);

impl BlockHash {
    /// Takes a hash computed elsewhere; every bit must be as good as random.
    pub const fn new(hash: u64) -> Self {
        Self(hash)
    }

    /// The hash as a number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// Where a chain begins: what has to be equal before two prompts may share a block at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Root(u64);

/// The state of a chain after any number of blocks: the last block's hash, or the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chain(u64);

impl Chain {
    /// Takes the state of a chain as [`as_u64`](Self::as_u64) gave it.
    pub const fn new(state: u64) -> Self {
        Self(state)
    }

    /// The state as a number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl From<Root> for Chain {
    fn from(root: Root) -> Self {
        Self(root.0)
    }
}

impl From<BlockHash> for Chain {
    fn from(block: BlockHash) -> Self {
        Self(block.0)
    }
}

/// The key of every root: per process, handed on to the process that takes its place.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

/// Bytes of a [`Secret`].
pub const SECRET_BYTES: usize = 192;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Stretches a random seed to the 192 bytes that XXH3 takes, by SplitMix64 (Steele, Lea and
    /// Flood, OOPSLA 2014). The seed must not be known to clients.
    pub fn from_seed(seed: u64) -> Self {
        let mut secret = [0; SECRET_BYTES];
        let mut state = seed;
        for word in secret.chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&mix(state).to_le_bytes());
        }
        Self(secret)
    }

    /// Takes a key as [`to_bytes`](Self::to_bytes) gave it.
    pub const fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key itself, for the process that goes on with the same names. Nobody else may see it.
    pub const fn to_bytes(&self) -> [u8; SECRET_BYTES] {
        self.0
    }

    /// The same in every process that shares `passphrase`, which must be hard to guess.
    pub fn from_passphrase(passphrase: &str) -> Self {
        let mut secret = [0; 192];
        for (part, bytes) in (0_u8..).zip(secret.chunks_exact_mut(32)) {
            let mut hash = Sha256::new_with_prefix(b"warmroute block hashes");
            hash.update([part]);
            hash.update(passphrase);
            bytes.copy_from_slice(&hash.finalize());
        }
        Self(secret)
    }

    /// The root for an ordered list of tagged fields (model, adapter, salt, ...).
    ///
    /// Each field is hashed as its tag, its length (8 bytes, little endian) and its bytes, so no
    /// two different lists hash the same bytes.
    pub fn root(&self, fields: &[(u8, &[u8])]) -> Root {
        let mut hash = Xxh3Builder::new().with_secret(self.0).build();
        for (tag, bytes) in fields {
            hash.update(&[*tag]);
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        Root(hash.digest())
    }
}

/// Hashes a prompt that arrives in slices; any cut into slices gives the same blocks.
#[derive(Clone, Debug)]
pub struct BlockHasher {
    chain: Chain,
    block_bytes: NonZeroUsize,
    /// Bytes after the last full block, fewer than `block_bytes`.
    tail: Vec<u8>,
    blocks: Vec<BlockHash>,
    bytes: u64,
}

impl BlockHasher {
    /// Begins a prompt under `root`, in blocks of `block_bytes`.
    pub fn new(root: Root, block_bytes: NonZeroUsize) -> Self {
        Self::resume(root, &[], block_bytes)
    }

    /// [`new`](Self::new), with room for the blocks of `bytes` bytes.
    pub fn with_capacity(root: Root, block_bytes: NonZeroUsize, bytes: usize) -> Self {
        let mut hasher = Self::new(root, block_bytes);
        hasher.blocks.reserve(bytes / block_bytes);
        hasher.tail.reserve(block_bytes.get());
        hasher
    }

    /// Goes on after the blocks that led to `chain`, with the `tail` bytes that followed them.
    ///
    /// [`blocks`](Self::blocks) and [`bytes`](Self::bytes) count from here; should `tail` hold
    /// full blocks, they are hashed and listed first.
    pub fn resume(chain: impl Into<Chain>, tail: &[u8], block_bytes: NonZeroUsize) -> Self {
        let chain = chain.into();
        let mut hasher =
            Self { chain, block_bytes, tail: Vec::new(), blocks: Vec::new(), bytes: 0 };
        hasher.push(tail);
        hasher.bytes = 0;
        hasher
    }

    /// Adds the next bytes of the prompt. Full blocks inside `bytes` are hashed where they lie;
    /// only what begins or ends one is copied.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let block_bytes = self.block_bytes.get();
        if !self.tail.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(block_bytes - self.tail.len()));
            self.tail.extend_from_slice(head);
            bytes = rest;
            if self.tail.len() < block_bytes {
                return;
            }
            let hash = xxh3_64_with_seed(&self.tail, self.chain.0);
            self.tail.clear();
            self.close_block(hash);
        }
        let blocks = bytes.chunks_exact(block_bytes);
        self.tail.extend_from_slice(blocks.remainder());
        for block in blocks {
            self.close_block(xxh3_64_with_seed(block, self.chain.0));
        }
    }

    fn close_block(&mut self, hash: u64) {
        self.chain = Chain(hash);
        self.blocks.push(BlockHash(hash));
    }

    /// The full blocks so far, in order.
    pub fn blocks(&self) -> &[BlockHash] {
        &self.blocks
    }

    /// The bytes after the last full block.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// The last full block's hash, or what the hasher was started from.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// How many bytes were pushed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The full blocks of the whole prompt; the tail has no name.
    pub fn finish(mut self) -> Vec<BlockHash> {
        // Room made for a body of images is given back: a stream holds its blocks to its end.
        if self.blocks.capacity() > 2 * self.blocks.len() {
            self.blocks.shrink_to_fit();
        }
        self.blocks
    }
}

/// SplitMix64's finalizer: a bijection that spreads every input bit over all output bits.
pub(super) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK_BYTES: NonZeroUsize = NonZeroUsize::new(7).expect("not zero");

    fn root() -> Root {
        Secret::from_seed(1).root(&[(1, b"model")])
    }

    fn whole(root: Root, prompt: &[u8]) -> BlockHasher {
        let mut hasher = BlockHasher::new(root, BLOCK_BYTES);
        hasher.push(prompt);
        hasher
    }

    #[test]
    fn processes_with_one_passphrase_name_blocks_alike() {
        let root = |secret: Secret| secret.root(&[(1, b"model")]);
        let of = |passphrase| root(Secret::from_passphrase(passphrase));
        assert_eq!(of("sixteen letters!"), of("sixteen letters!"));
        assert_ne!(of("sixteen letters!"), of("sixteen letters?"));
        let Secret(bytes) = Secret::from_passphrase("sixteen letters!");
        let parts: std::collections::HashSet<_> = bytes.chunks(32).collect();
        assert_eq!(parts.len(), 6, "no part is another's");
    }

    #[test]
    fn only_full_blocks_have_a_name() {
        for (bytes, blocks) in [(0, 0), (6, 0), (7, 1), (13, 1), (14, 2)] {
            let hasher = whole(root(), &vec![b'a'; bytes]);
            assert_eq!(hasher.blocks().len(), blocks);
            assert_eq!(hasher.tail().len(), bytes - 7 * blocks);
            assert_eq!(hasher.bytes(), bytes as u64);
        }
    }

    #[test]
    fn a_block_commits_to_all_before_it() {
        let a = whole(root(), b"1234567abcdefg").finish();
        let b = whole(root(), b"1234568abcdefg").finish();
        let c = whole(Secret::from_seed(2).root(&[(1, b"model")]), b"1234567abcdefg").finish();
        assert!(a[0] != b[0] && a[1] != b[1] && a[0] != c[0] && a[1] != c[1]);
        assert_eq!(a[0].as_u64(), xxh3_64_with_seed(b"1234567", root().0));
        assert_eq!(a[1].as_u64(), xxh3_64_with_seed(b"abcdefg", a[0].as_u64()));
    }

    #[test]
    fn field_boundaries_tags_and_order_change_the_root() {
        let secret = Secret::from_seed(3);
        let roots: [&[(u8, &[u8])]; 7] = [
            &[],
            &[(1, b"ab"), (2, b"c")],
            &[(1, b"a"), (2, b"bc")],
            &[(2, b"ab"), (1, b"c")],
            &[(1, b"c"), (2, b"ab")],
            &[(1, b"abc")],
            &[(1, b"ab"), (2, b"c"), (3, b"")],
        ];
        let roots: std::collections::HashSet<_> =
            roots.iter().map(|fields| secret.root(fields)).collect();
        assert_eq!(roots.len(), 7);
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    proptest! {
        #[test]
        fn any_cut_into_slices_gives_the_same_blocks(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            resume_at in any::<prop::sample::Index>(),
        ) {
            let prompt = slices.concat();
            let expected = whole(root(), &prompt);
            let mut hasher = BlockHasher::new(root(), BLOCK_BYTES);
            for slice in &slices {
                hasher.push(slice);
            }
            prop_assert_eq!(hasher.blocks(), expected.blocks());
            prop_assert_eq!(hasher.tail(), expected.tail());
            prop_assert_eq!(hasher.chain(), expected.chain());
            prop_assert_eq!(hasher.bytes(), prompt.len() as u64);

            let (head, rest) = prompt.split_at(resume_at.index(prompt.len() + 1));
            let head = whole(root(), head);
            let mut resumed = BlockHasher::resume(head.chain(), head.tail(), BLOCK_BYTES);
            resumed.push(rest);
            prop_assert_eq!([head.blocks(), resumed.blocks()].concat(), expected.blocks());
            prop_assert_eq!(resumed.tail(), expected.tail());
        }
    }
}
