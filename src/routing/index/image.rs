//! What a holder holds, told in parts, so that no lock has to be held for all of it.
//!
//! Between two parts anything may change. What is held from the first part to the last is told just
//! once; what comes or goes meanwhile may be told or not. Each run's entry in its holder's list of
//! recency says which image told it last, and the list where the image goes on: entries that move to
//! the list's new end are met there, parts of a run that is cut are as the whole was, and two runs
//! of which one has been told are not joined. An image that is abandoned leaves these marks, which
//! mean nothing to the next.

use super::super::block::BlockHash;
use super::recency::Told;
use super::{Holder, SharedIndex};

/// Blocks that telling a run costs beside its own.
const RUN_COST: usize = 16;

/// How far an image of one holder has come. A second image of the same holder ends the first.
#[derive(Clone, Debug)]
pub struct ImageCursor {
    holder: Holder,
    /// Zero for an image of nothing.
    image: u32,
    /// Entries that a part may pass: more where it passed none but told ones, so that there is an
    /// end however many are used meanwhile.
    patience: usize,
}

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// Begins to tell what `holder` holds. O(1).
    pub fn begin_image(&mut self, holder: Holder) -> ImageCursor {
        const PATIENCE: usize = 1024;
        let image = self.alive(holder).map_or(0, |holder| self.recency.begin_image(holder));
        ImageCursor { holder, image, patience: PATIENCE }
    }

    /// Tells about `blocks` more blocks, about the least recently used first: to `each` the block
    /// before, its depth, and blocks that follow one another. Returns whether there is more to tell.
    ///
    /// O(`blocks`), and at most one run (2,048 blocks) over it.
    pub fn image_part(
        &mut self,
        cursor: &mut ImageCursor,
        blocks: usize,
        mut each: impl FnMut(Option<BlockHash>, u32, &[BlockHash]),
    ) -> bool {
        let Some(holder) = self.alive(cursor.holder).filter(|_| cursor.image != 0) else {
            return false;
        };
        let (mut left, mut passed) = (blocks, cursor.patience);
        while left > 0 {
            let id = match self.recency.tell_next(holder, cursor.image, &mut passed) {
                Told::Run(id) => id,
                Told::End => return false,
                Told::Later => {
                    if left == blocks {
                        cursor.patience *= 2;
                    }
                    return true;
                }
            };
            let run = self.runs.run(id);
            let mut told = 0;
            for (from, to) in run.parts_of::<LAYERS>(holder) {
                let above = (from as usize).checked_sub(1).map(|above| run.label()[above]);
                let parent = above.or_else(|| self.runs.parent(id));
                each(parent, run.start + from, &run.label()[from as usize..to as usize]);
                told += (to - from) as usize;
            }
            left = left.saturating_sub(told + RUN_COST);
        }
        true
    }
}
