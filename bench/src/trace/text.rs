//! Text for requests of which only the shape is known: their block ids become words.
//!
//! Equal ids give equal text, different ids differ in their first eight bytes. The words
//! (`words.txt`: 233 everyday English words, in that order, repeats kept) and the rule come with the
//! traces this was written for; `docs/replay.md` has the rule.

use std::{fmt::Write, sync::LazyLock};

use super::draws::{Draws, mix};

static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| include_str!("words.txt").lines().collect());

/// `bytes` bytes for a block id, the last of them a line's end.
pub fn block_text(id: u64, bytes: usize, seed: u64) -> String {
    let mut out = String::with_capacity(bytes + 16);
    let name = id.wrapping_mul(2_654_435_761).wrapping_add(seed) as u32;
    let _ = write!(out, "{name:08x}");
    let mut state = mix((id << 20) ^ seed ^ 0x5_deec_e66d);
    let mut drawn = 0;
    while out.len() < bytes {
        if drawn == 8 {
            state = mix(state);
            drawn = 0;
        }
        out.push(' ');
        out.push_str(WORDS[(state >> (8 * drawn)) as usize % WORDS.len()]);
        drawn += 1;
    }
    out.truncate(bytes.saturating_sub(1));
    out.push('\n');
    out
}

/// The prompt of a request known by its blocks: `block_bytes` for each full one, of the last one the
/// share that its tokens are.
pub fn prompt_text(
    blocks: &[u64],
    block_tokens: u32,
    prompt_tokens: u32,
    block_bytes: usize,
    seed: u64,
) -> String {
    let mut text = String::with_capacity(blocks.len() * block_bytes);
    let Some((last, full)) = blocks.split_last() else { return text };
    for id in full {
        text.push_str(&block_text(*id, block_bytes, seed));
    }
    let left = u64::from(prompt_tokens).saturating_sub(full.len() as u64 * u64::from(block_tokens));
    let share = left.clamp(1, u64::from(block_tokens)) as usize;
    let bytes = (block_bytes * share).div_ceil(block_tokens as usize);
    text.push_str(&block_text(*last, bytes, seed));
    text
}

/// About `bytes` bytes of words.
pub fn words(draws: &mut Draws, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS[draws.below(WORDS.len() as u64) as usize]);
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn follows_the_rule_of_the_traces() {
        assert_eq!(WORDS.len(), 233);
        let text = block_text(1, 64, 1);
        assert_eq!(text, "9e3779b2 were less was many of put many but stream made many en\n");
        let text = block_text(182_789, 64, 1);
        assert_eq!(text, "d07d0a76 are good all too result they world end from called nev\n");
    }

    #[test]
    fn the_last_block_has_its_share() {
        // 93 tokens in blocks of 64: the last block has 29, of 256 bytes 116.
        let text = prompt_text(&[5, 9], 64, 93, 256, 1);
        assert_eq!(text.len(), 256 + 116);
        assert!(text.starts_with(&block_text(5, 256, 1)));
        assert_eq!(prompt_text(&[], 64, 0, 256, 1), "");
        // More tokens than the blocks hold make the last one full, not longer.
        assert_eq!(prompt_text(&[5], 64, 900, 256, 1).len(), 256);
    }

    proptest! {
        #[test]
        fn every_block_has_its_length_and_its_name(
            id in 0_u64..1 << 40, bytes in 1_usize..3000, seed: u64,
        ) {
            let text = block_text(id, bytes, seed);
            prop_assert_eq!(text.len(), bytes);
            prop_assert!(text.ends_with('\n'));
            let other = block_text(id + 1, bytes, seed);
            prop_assert!(bytes < 10 || text[..8] != other[..8]);
        }

        #[test]
        fn common_blocks_make_a_common_prefix(
            common in prop::collection::vec(0_u64..1000, 1..20), tail in 1000_u64..2000,
        ) {
            let longer: Vec<u64> = common.iter().copied().chain([tail]).collect();
            let tokens = |blocks: &[u64]| 16 * blocks.len() as u32;
            let short = prompt_text(&common, 16, tokens(&common), 64, 3);
            let long = prompt_text(&longer, 16, tokens(&longer), 64, 3);
            prop_assert!(long.starts_with(&short));
        }
    }
}
