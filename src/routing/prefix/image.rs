//! What holders and caches hold, told apart from how they hold it, so that it can be stored and
//! held again: by another process, or by a later version that keeps it in another way.
//!
//! An image is content, not a dump: the runs of blocks and the records of engine blocks, in the
//! order that matters. It is flat (a few vectors, whatever the number of runs). Images may come
//! from a file: every image can be restored, garbage in it is dropped, and the bounds hold.

use super::super::block::{BlockHash, Chain};
use super::super::index::{Holder, ImageCursor};
use super::engine_blocks::{EngineBlockId, EngineBlocks};
use super::record::{Record, RecordId, Told};
use super::{Index, WorkerCache};

/// No block lies deeper; a prompt of so many blocks fits no request. Depths can then not overflow.
const DEPTH_MAX: u32 = 1 << 30;

/// A run of blocks, each but the first the child of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunImage {
    /// The block before the first, held or not; none at depth 0.
    pub parent: Option<BlockHash>,
    /// Blocks before the first, from the root.
    pub depth: u32,
    /// How many of [`IndexImage::blocks`] it has.
    pub blocks: u32,
}

/// What one holder has in the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexImage {
    /// The runs, the least recently used first.
    pub runs: Vec<RunImage>,
    /// The blocks of all runs, one run after the other.
    pub blocks: Vec<BlockHash>,
}

impl IndexImage {
    /// The runs that can be one, each with its blocks.
    fn sound_runs(&self) -> impl Iterator<Item = (RunImage, &[BlockHash])> {
        let mut rest = &self.blocks[..];
        self.runs.iter().filter_map(move |&run| {
            let (blocks, behind) = rest.split_at(rest.len().min(run.blocks as usize));
            rest = behind;
            let end = u64::from(run.depth) + blocks.len() as u64;
            let sound = !blocks.is_empty()
                && run.parent.is_some() == (run.depth > 0)
                && end <= u64::from(DEPTH_MAX);
            sound.then_some((run, blocks))
        })
    }
}

impl IndexImage {
    /// Adds about `blocks` more blocks of what the holder of a cursor has; whether there is more.
    pub fn tell_part(
        &mut self,
        index: &mut Index,
        cursor: &mut ImageCursor,
        blocks: usize,
    ) -> bool {
        index.image_part(cursor, blocks, |parent, depth, blocks| {
            self.runs.push(RunImage { parent, depth, blocks: blocks.len() as u32 });
            self.blocks.extend_from_slice(blocks);
        })
    }

    /// Lets `holder` hold what this tells of, the least recently used first. O(blocks).
    pub fn restore(&self, index: &mut Index, holder: Holder) {
        for (run, blocks) in self.sound_runs() {
            index.hold(holder, run.parent, run.depth, blocks);
        }
    }
}

/// An engine block, as a [`WorkerCache`] remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordImage {
    /// The engine's name for it.
    pub id: EngineBlockId,
    /// The engine block before, if one of our blocks covers bytes of both.
    pub parent: Option<EngineBlockId>,
    /// Whether it begins inside one of our blocks.
    pub joined: bool,
    /// Bytes of our blocks that it was cut into; 65,535 for all sizes from there on.
    pub block_bytes: u16,
    /// Physical copies; zero where it is gone and only others still need it.
    pub copies: u32,
    /// Our blocks complete at its end, from the root.
    pub depth: u32,
    /// The chain there.
    pub chain: Chain,
    /// How many of [`RecordsImage::tails`] follow the last of those.
    pub tail_bytes: u32,
    /// How many of [`RecordsImage::completed`] it completes.
    pub completed: u32,
}

/// What a [`WorkerCache`] remembers of the engine's blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordsImage {
    /// The records; of those with one parent, the one linked last comes last.
    pub records: Vec<RecordImage>,
    /// The tails of all records, one after the other.
    pub tails: Vec<u8>,
    /// The blocks completed by all records, one after the other.
    pub completed: Vec<BlockHash>,
}

impl RecordsImage {
    fn push(&mut self, record: &Record) {
        self.records.push(RecordImage {
            id: record.id,
            parent: record.parent(),
            joined: record.joined(),
            block_bytes: record.block_bytes,
            copies: record.copies.into(),
            depth: record.depth,
            chain: record.chain(),
            tail_bytes: record.tail().len() as u32,
            completed: record.completed().len() as u32,
        });
        self.tails.extend_from_slice(record.tail());
        self.completed.extend_from_slice(record.completed());
    }

    /// The records that can be one.
    fn sound_records(&self) -> impl Iterator<Item = Record> {
        let (mut tails, mut completed) = (&self.tails[..], &self.completed[..]);
        self.records.iter().filter_map(move |image| {
            let (tail, behind) = tails.split_at(tails.len().min(image.tail_bytes as usize));
            tails = behind;
            let (own, behind) = completed.split_at(completed.len().min(image.completed as usize));
            completed = behind;
            let whole =
                tail.len() == image.tail_bytes as usize && own.len() == image.completed as usize;
            let size = image.block_bytes;
            let sound = whole
                && (tail.len() < usize::from(size) || size == u16::MAX)
                && own.len() <= image.depth as usize
                && image.depth <= DEPTH_MAX;
            sound.then(|| {
                Record::from(Told {
                    id: image.id,
                    parent: image.parent.filter(|&parent| parent != image.id),
                    joined: image.joined,
                    block_bytes: image.block_bytes,
                    copies: image.copies.try_into().unwrap_or(u16::MAX),
                    depth: image.depth,
                    chain: image.chain,
                    tail,
                    completed: own,
                })
            })
        })
    }
}

impl EngineBlocks {
    fn image(&self) -> RecordsImage {
        let mut image = RecordsImage {
            records: Vec::with_capacity(self.records.len()),
            // Where engine blocks end with ours, as with tokens, there are none.
            tails: Vec::new(),
            completed: Vec::with_capacity(self.records.len()),
        };
        for record in self.records.iter().filter(|record| record.next().is_none()) {
            // A list is told from its end, as it grows at its head.
            let mut sibling = Some(record);
            while let Some(record) = sibling {
                image.push(record);
                sibling = record.previous().map(|at| &self[at]);
            }
        }
        image
    }

    /// Tells `gone` the blocks of ours that what is left out leaves without an engine block.
    fn restore(
        bytes_max: usize,
        id_seed: u64,
        image: &RecordsImage,
        mut gone: impl FnMut(BlockHash),
    ) -> Self {
        let mut blocks = Self::new(bytes_max, id_seed);
        blocks.reserve_for(image.records.len(), image.tails.len() + size_of_val(&*image.completed));
        for record in image.sound_records() {
            if blocks.find(record.id).is_some() {
                continue;
            }
            if blocks.fits(&record) {
                blocks.push(record);
            } else {
                record.completed().iter().for_each(|&block| gone(block));
            }
        }
        blocks.link_all(gone);
        let idle = |record: &&Record| record.copies == 0 && record.first_child().is_none();
        let idle: Vec<_> = blocks.records.iter().filter(idle).map(|record| record.id).collect();
        for id in idle {
            if let Some(at) = blocks.find(id) {
                blocks.free(at);
            }
        }
        if blocks.records.len() < image.records.len() {
            blocks.records.shrink_to_fit();
            blocks.by_id.shrink_to_fit();
        }
        blocks
    }

    /// Puts every record into its parent's list. Where there is no such parent, it is as if that
    /// had been forgotten: what both lay under is not held.
    fn link_all(&mut self, mut gone: impl FnMut(BlockHash)) {
        self.cut_circles();
        let mut lost = Vec::new();
        for at in (0..self.records.len()).map(RecordId::from_slot) {
            if self[at].parent().is_some_and(|parent| self.find_parent(parent).is_none()) {
                lost.push(at);
            }
            self.link(at);
        }
        for at in lost {
            match self[at].completed().first() {
                Some(&joint) => gone(joint),
                None => self.joints_after(at).iter().for_each(|&(_, joint, _)| gone(joint)),
            }
        }
    }

    /// Cuts the link of one record of every circle of parents.
    fn cut_circles(&mut self) {
        // By slot: the walk that passed it first.
        let mut passed = vec![0_u32; self.records.len()];
        for slot in 0..self.records.len() {
            let walk = slot as u32 + 1;
            let mut at = RecordId::from_slot(slot);
            while passed[at.slot()] == 0 {
                passed[at.slot()] = walk;
                let Some(parent) = self[at].parent().and_then(|parent| self.find(parent)) else {
                    break;
                };
                if passed[parent.slot()] == walk {
                    self[at].set_parent(None);
                    break;
                }
                at = parent;
            }
        }
    }
}

/// What one tier holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheImage {
    /// The blocks of ours.
    pub index: IndexImage,
    /// The engine blocks.
    pub records: RecordsImage,
}

impl WorkerCache {
    /// The engine blocks. O(records).
    pub fn image(&self) -> RecordsImage {
        self.engine_blocks.image()
    }

    /// Has again what an image tells of, within the bound. Tells `gone` the blocks of ours that
    /// were completed by records that are left out.
    pub fn restore(
        engine_bytes_max: usize,
        id_seed: u64,
        image: &RecordsImage,
        gone: impl FnMut(BlockHash),
    ) -> Self {
        Self { engine_blocks: EngineBlocks::restore(engine_bytes_max, id_seed, image, gone) }
    }
}
