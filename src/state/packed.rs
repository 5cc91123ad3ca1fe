//! What is too much for names: blocks, records and what estimates have learned.
//!
//! A payload is a row of sections, each a tag, its length in 8 bytes and its body; readers pass
//! over tags they do not know, and over what follows in a body what they do. Numbers are little
//! endian, small ones varints (LEB128). A count is believed only as far as there are bytes for it.

use std::time::Duration;

use crate::routing::{
    block::{BlockHash, Chain},
    capacity::CapacityImage,
    prefill::PrefillImage,
    prefix::{
        CacheImage, EngineBlockId, IndexImage, Tier,
        holdings::TierImage,
        image::{RecordImage, RecordsImage, RunImage},
    },
};

/// The bytes are none of ours, though no checksum says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

const CUT: Malformed = Malformed("a section ends early");

/// Appends a section whose body `write` appends.
pub(super) fn section<T>(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 8]);
    let result = write(out);
    let bytes = (out.len() - at - 8) as u64;
    out[at..at + 8].copy_from_slice(&bytes.to_le_bytes());
    result
}

/// The sections of a payload, by tag.
pub(super) struct Sections<'a>(Bytes<'a>);

impl<'a> Sections<'a> {
    pub(super) fn of(payload: &'a [u8]) -> Self {
        Self(Bytes(payload))
    }

    fn read(&mut self) -> Result<(u8, &'a [u8]), Malformed> {
        let tag = self.0.byte()?;
        let bytes = usize::try_from(self.0.long()?).map_err(|_| CUT)?;
        Ok((tag, self.0.take(bytes)?))
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<(u8, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.0.is_empty() {
            return None;
        }
        let section = self.read();
        if section.is_err() {
            self.0 = Bytes(&[]);
        }
        Some(section)
    }
}

/// What is left of a body.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    fn long(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is too large"))
    }

    fn small(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed("a number is too large"))
    }

    /// How many things follow of at least `bytes_each` bytes each.
    fn count(&mut self, bytes_each: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.varint()?).map_err(|_| CUT)?;
        if count > self.0.len() / bytes_each { Err(CUT) } else { Ok(count) }
    }

    fn longs<T>(&mut self, count: usize, of: impl Fn(u64) -> T) -> Result<Vec<T>, Malformed> {
        let (longs, _) = self.take(count.checked_mul(8).ok_or(CUT)?)?.as_chunks();
        Ok(longs.iter().map(|&bytes| of(u64::from_le_bytes(bytes))).collect())
    }

    fn floats(&mut self) -> Result<Vec<f32>, Malformed> {
        let count = self.count(4)?;
        let (floats, _) = self.take(4 * count)?.as_chunks();
        Ok(floats.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }
}

fn long(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn blocks(out: &mut Vec<u8>, blocks: &[BlockHash]) {
    out.reserve(size_of_val(blocks));
    for block in blocks {
        long(out, block.as_u64());
    }
}

/// Runs (length and whether it has a parent, depth, parent), then all blocks.
pub(super) fn index(out: &mut Vec<u8>, image: &IndexImage) {
    varint(out, image.runs.len() as u64);
    varint(out, image.blocks.len() as u64);
    for run in &image.runs {
        varint(out, u64::from(run.blocks) << 1 | u64::from(run.parent.is_some()));
        varint(out, run.depth.into());
        if let Some(parent) = run.parent {
            long(out, parent.as_u64());
        }
    }
    blocks(out, &image.blocks);
}

fn index_from(bytes: &mut Bytes<'_>) -> Result<IndexImage, Malformed> {
    let runs = bytes.count(2)?;
    let blocks = bytes.count(8)?;
    let runs = (0..runs).map(|_| {
        let head = bytes.varint()?;
        let blocks = u32::try_from(head >> 1).map_err(|_| Malformed("a run is too long"))?;
        let depth = bytes.small()?;
        let parent = if head & 1 == 1 { Some(BlockHash::new(bytes.long()?)) } else { None };
        Ok(RunImage { parent, depth, blocks })
    });
    let runs = runs.collect::<Result<_, _>>()?;
    Ok(IndexImage { runs, blocks: bytes.longs(blocks, BlockHash::new)? })
}

pub(super) fn read_index(body: &[u8]) -> Result<IndexImage, Malformed> {
    index_from(&mut Bytes(body))
}

const JOINED: u8 = 1;
const HAS_PARENT: u8 = 1 << 1;
/// Not exactly one copy: their number follows.
const COPIES: u8 = 1 << 2;
/// Blocks of another size than in the record before: it follows.
const SIZE: u8 = 1 << 3;
/// The chain is not the last block that it completes: it follows.
const CHAIN: u8 = 1 << 4;
const TAIL: u8 = 1 << 5;

/// The least bytes of a record: flags, id, depth and blocks completed.
const RECORD_BYTES_MIN: usize = 1 + 8 + 1 + 1;

/// Records, then the blocks they complete, then their tails.
fn records(out: &mut Vec<u8>, image: &RecordsImage) {
    varint(out, image.records.len() as u64);
    varint(out, image.completed.len() as u64);
    varint(out, image.tails.len() as u64);
    let (mut size, mut completed) = (0, &image.completed[..]);
    for record in &image.records {
        let chain = implied_chain(&mut completed, record.completed);
        let flags = [
            (JOINED, record.joined),
            (HAS_PARENT, record.parent.is_some()),
            (COPIES, record.copies != 1),
            (SIZE, record.block_bytes != size),
            (CHAIN, chain != Some(record.chain)),
            (TAIL, record.tail_bytes > 0),
        ];
        let flags = flags.iter().filter(|(_, set)| *set).fold(0, |all, (flag, _)| all | flag);
        out.push(flags);
        long(out, record.id.0);
        varint(out, record.depth.into());
        varint(out, record.completed.into());
        if let Some(parent) = record.parent {
            long(out, parent.0);
        }
        if flags & COPIES != 0 {
            varint(out, record.copies.into());
        }
        if flags & SIZE != 0 {
            varint(out, record.block_bytes.into());
        }
        if flags & CHAIN != 0 {
            long(out, record.chain.as_u64());
        }
        if flags & TAIL != 0 {
            varint(out, record.tail_bytes.into());
        }
        size = record.block_bytes;
    }
    blocks(out, &image.completed);
    out.extend_from_slice(&image.tails);
}

/// The chain after a record's blocks, which are the next `count` of `completed`.
fn implied_chain(completed: &mut &[BlockHash], count: u32) -> Option<Chain> {
    let (own, rest) = completed.split_at(completed.len().min(count as usize));
    *completed = rest;
    own.last().map(|&last| last.into())
}

fn records_from(bytes: &mut Bytes<'_>) -> Result<RecordsImage, Malformed> {
    let count = bytes.count(RECORD_BYTES_MIN)?;
    let completed = bytes.count(8)?;
    let tails = bytes.count(1)?;
    let mut size = 0;
    // With each record, whether its chain is implied.
    let records = (0..count).map(|_| {
        let flags = bytes.byte()?;
        let has = |flag| flags & flag != 0;
        let id = EngineBlockId(bytes.long()?);
        let depth = bytes.small()?;
        let completed = bytes.small()?;
        let parent = if has(HAS_PARENT) { Some(EngineBlockId(bytes.long()?)) } else { None };
        let copies = if has(COPIES) { bytes.small()? } else { 1 };
        if has(SIZE) {
            let wide = |_| Malformed("a block size is too large");
            size = u16::try_from(bytes.varint()?).map_err(wide)?;
        }
        let chain = if has(CHAIN) { bytes.long()? } else { 0 };
        let tail_bytes = if has(TAIL) { bytes.small()? } else { 0 };
        let record = RecordImage {
            id,
            parent,
            joined: has(JOINED),
            block_bytes: size,
            copies,
            depth,
            chain: Chain::new(chain),
            tail_bytes,
            completed,
        };
        Ok((record, !has(CHAIN)))
    });
    let records: Vec<(RecordImage, bool)> = records.collect::<Result<_, _>>()?;
    let completed = bytes.longs(completed, BlockHash::new)?;
    let tails = bytes.take(tails)?.to_vec();
    let mut rest = &completed[..];
    let records = records.into_iter().map(|(mut record, implied)| {
        let chain = implied_chain(&mut rest, record.completed);
        if implied {
            record.chain = chain.ok_or(Malformed("a record without its chain"))?;
        }
        Ok(record)
    });
    Ok(RecordsImage { records: records.collect::<Result<_, _>>()?, tails, completed })
}

/// The rank, the tier, the index and the records.
pub(super) fn cache(out: &mut Vec<u8>, rank: u32, tier: Tier, image: &CacheImage) {
    varint(out, rank.into());
    out.push(tier as u8);
    index(out, &image.index);
    records(out, &image.records);
}

/// `None` for a tier that this version does not know.
pub(super) fn read_cache(body: &[u8]) -> Result<Option<TierImage>, Malformed> {
    let mut bytes = Bytes(body);
    let rank = bytes.small()?;
    let Some(&tier) = Tier::ALL.get(usize::from(bytes.byte()?)) else { return Ok(None) };
    let cache = CacheImage { index: index_from(&mut bytes)?, records: records_from(&mut bytes)? };
    Ok(Some(TierImage { rank, tier, cache }))
}

pub(super) fn presumed(out: &mut Vec<u8>, young_for: Duration, confirming: bool) {
    long(out, young_for.as_secs());
    varint(out, young_for.subsec_nanos().into());
    out.push(confirming.into());
}

pub(super) fn read_presumed(body: &[u8]) -> Result<(Duration, bool), Malformed> {
    let mut bytes = Bytes(body);
    let (secs, nanos) = (bytes.long()?, bytes.small()?);
    if nanos >= 1_000_000_000 {
        return Err(Malformed("a time of too many nanoseconds"));
    }
    Ok((Duration::new(secs, nanos), bytes.byte()? != 0))
}

pub(super) fn capacity(out: &mut Vec<u8>, image: &CapacityImage) {
    long(out, image.configured);
    varint(out, image.size.into());
    varint(out, image.coarseness.into());
    for weights in [&image.hits, &image.misses] {
        varint(out, weights.len() as u64);
        for weight in weights {
            out.extend_from_slice(&weight.to_le_bytes());
        }
    }
    varint(out, image.sampled.len() as u64);
    for &block in &image.sampled {
        long(out, block);
    }
}

pub(super) fn read_capacity(body: &[u8]) -> Result<CapacityImage, Malformed> {
    let mut bytes = Bytes(body);
    let (configured, size, coarseness) = (bytes.long()?, bytes.small()?, bytes.small()?);
    let (hits, misses) = (bytes.floats()?, bytes.floats()?);
    let sampled = bytes.count(8)?;
    let sampled = bytes.longs(sampled, |block| block)?;
    Ok(CapacityImage { configured, size, hits, misses, coarseness, sampled })
}

pub(super) fn prefill(out: &mut Vec<u8>, image: &PrefillImage) {
    varint(out, image.observations.into());
    for number in std::iter::once(&image.log_speed).chain(&image.sums) {
        long(out, number.to_bits());
    }
}

pub(super) fn read_prefill(body: &[u8]) -> Result<PrefillImage, Malformed> {
    let mut bytes = Bytes(body);
    let observations = bytes.small()?;
    let log_speed = f64::from_bits(bytes.long()?);
    let mut sums = [0.0; 9];
    for sum in &mut sums {
        *sum = f64::from_bits(bytes.long()?);
    }
    Ok(PrefillImage { log_speed, observations, sums })
}

/// What format 1.0 knew of it: the logarithm of tokens a second.
pub(super) fn read_rate(body: &[u8]) -> Result<PrefillImage, Malformed> {
    let mut bytes = Bytes(body);
    let log_mean = f64::from_bits(bytes.long()?);
    Ok(match bytes.small()? {
        0 => PrefillImage::default(),
        observations => PrefillImage::of_log_rate(log_mean, observations),
    })
}
