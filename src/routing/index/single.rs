//! Questions about one row, and what is taken back from one.

use super::super::block::BlockHash;
use super::run::Run;
use super::table::Place;
use super::walk::common_in;
use super::{Holder, Layers, Path, SharedIndex};

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// How many leading blocks of a prompt a row holds in some of `layers`, together. O(runs
    /// passed).
    pub fn matched(&self, row: u32, layers: Layers, blocks: &[BlockHash]) -> usize {
        self.follow_row(row, layers, blocks).0
    }

    /// The block before one that somebody holds; none before a first one.
    ///
    /// # Errors
    /// `None` if nobody holds `block`.
    pub fn block_before(&self, block: BlockHash) -> Option<Option<BlockHash>> {
        let place = self.find(block)?;
        let run = self.runs.run(place.run);
        match place.offset(run.start) {
            0 => Some(self.runs.parent(place.run)),
            at => Some(Some(run.label()[at - 1])),
        }
    }

    /// Whether `holder` holds a block, be it reachable or behind a hole.
    pub fn holds(&self, holder: Holder, block: BlockHash) -> bool {
        let Some(holder) = self.alive(holder) else { return false };
        self.find(block).is_some_and(|place| {
            let run = self.runs.run(place.run);
            let at = place.offset(run.start) as u32;
            run.held_to::<LAYERS>(holder, at) > at
        })
    }

    /// Takes back what was only expected: `holder` holds `blocks[keep..]` no more, as far as it held
    /// them, unless it holds more of the same run behind them. Returns how many it held.
    ///
    /// What hangs from them in another run is not seen (a run does not know its children): it waits
    /// behind a hole until the blocks are held again.
    pub fn retract(&mut self, holder: Holder, blocks: &[BlockHash], keep: usize) -> usize {
        let Holder { row, layer } = holder;
        let (matched, last) = self.follow_row(row, Layers(1 << layer), blocks);
        let Some((place, number)) = last.zip(self.alive(holder)) else { return 0 };
        if matched <= keep {
            return 0;
        }
        let run = self.runs.run(place.run);
        let end = place.offset(run.start) as u32 + 1;
        if run.held_to::<LAYERS>(number, end) > end {
            return 0;
        }
        self.release(holder, &blocks[keep..matched])
    }

    /// What `holder` holds of a prompt. O(runs passed).
    pub fn path(&self, holder: Holder, blocks: &[BlockHash]) -> Path {
        let mut path = Path::default();
        let layers = Layers(1 << holder.layer);
        (path.held, _) = self.walk_row(holder.row, layers, blocks, |run| path.runs.push(run));
        path
    }

    /// How far a row has a prompt in some of `layers`, and where the last block of that lies.
    fn follow_row(&self, row: u32, layers: Layers, blocks: &[BlockHash]) -> (usize, Option<Place>) {
        self.walk_row(row, layers, blocks, |_| ())
    }

    fn walk_row(
        &self,
        row: u32,
        layers: Layers,
        blocks: &[BlockHash],
        mut pass: impl FnMut(u32),
    ) -> (usize, Option<Place>) {
        let layers = self.holding(row, layers);
        let (mut above, mut at) = (None, 0);
        while at < blocks.len() && layers != Layers(0) {
            let Some(place) = self.follow(above, blocks[at]) else { break };
            let run = self.runs.run(place.run);
            let from = place.offset(run.start);
            let to = Self::union_from(run, row, layers, from as u32) as usize;
            if run.start as usize + from != at || to == from {
                break;
            }
            let count = common_in(&run.label()[from..to], &blocks[at..]);
            at += count;
            pass(place.run);
            above = Some(Place::new(place.run, at as u32 - 1));
        }
        (at, above)
    }

    /// Those of `layers` in which a row holds anything.
    fn holding(&self, row: u32, layers: Layers) -> Layers {
        let holds = |layer: &usize| self.blocks_of(Holder { row, layer: *layer as u8 }) > 0;
        Layers(layers.iter::<LAYERS>().filter(holds).fold(0, |set, layer| set | 1 << layer))
    }

    /// How far a row holds a run from `at` on in any of `layers`, none of them dropped.
    fn union_from(run: &Run, row: u32, layers: Layers, mut at: u32) -> u32 {
        let alone = layers.0.is_power_of_two();
        loop {
            let before = at;
            for layer in layers.iter::<LAYERS>() {
                at = run.held_to::<LAYERS>(row * LAYERS as u32 + layer as u32, at);
            }
            if alone || at == before || at as usize == run.len() {
                return at;
            }
        }
    }
}
