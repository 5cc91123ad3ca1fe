//! Rows on loan, and whose they are.
//!
//! An *owner* (a worker) has rows, one for each engine behind its address. A row that is given back
//! is masked at once and lent again once it is swept out. What is told of an owner outlives its rows.

use super::slots::heap_bytes;
use super::walk::Reach;
use super::{Holder, ROWS_MAX, SharedIndex};

/// Of nobody.
const NONE: u32 = u32::MAX;

/// What became of an owner's blocks, in all its rows and layers, since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Blocks that were held.
    pub inserted: u64,
    /// Blocks taken from it to keep a bound.
    pub trimmed: u64,
    /// Blocks released or dropped.
    pub removed: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// Owner by row.
    owners: Vec<u32>,
    /// Rows that hold nothing and are nobody's.
    free: Vec<u32>,
    /// Rows given back that are not swept out.
    returned: Vec<u32>,
    /// By owner.
    totals: Vec<Totals>,
    free_owners: Vec<u32>,
}

impl Rows {
    /// Rows ever lent.
    pub(super) const fn len(&self) -> usize {
        self.owners.len()
    }

    /// Heap bytes by capacity.
    pub(super) fn bytes(&self) -> usize {
        let rows = [&self.owners, &self.free, &self.returned, &self.free_owners];
        let rows: usize =
            rows.iter().map(|rows| heap_bytes(rows.capacity() * size_of::<u32>())).sum();
        rows + heap_bytes(self.totals.capacity() * size_of::<Totals>())
    }

    /// The totals of a holder's owner, who is there.
    pub(super) fn totals_mut<const LAYERS: usize>(&mut self, holder: u32) -> &mut Totals {
        let owner = self.owners[holder as usize / LAYERS];
        &mut self.totals[owner as usize]
    }

    fn of(&self, owner: u32) -> impl Iterator<Item = u32> {
        let rows = (0..).zip(&self.owners).filter(move |&(_, &of)| of == owner);
        rows.map(|(row, _)| row)
    }
}

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// A number for somebody who will have rows; to be given back by [`drop_owner`](Self::drop_owner).
    pub fn add_owner(&mut self) -> u32 {
        if let Some(owner) = self.rows.free_owners.pop() {
            self.rows.totals[owner as usize] = Totals::default();
            return owner;
        }
        self.rows.totals.push(Totals::default());
        self.rows.totals.len() as u32 - 1
    }

    /// Gives back an owner's number and all its rows. O(rows).
    pub fn drop_owner(&mut self, owner: u32) {
        for row in self.rows.of(owner).collect::<Vec<_>>() {
            self.drop_row(row);
        }
        self.rows.free_owners.push(owner);
    }

    /// A row that holds nothing; none where [`ROWS_MAX`] are lent or wait to be swept out.
    pub fn add_row(&mut self, owner: u32) -> Option<u32> {
        let row = self.rows.free.pop().or_else(|| {
            let row = self.rows.len() as u32;
            (row < ROWS_MAX).then(|| {
                self.rows.owners.push(NONE);
                self.dead.resize(self.rows.len().div_ceil(64) * LAYERS, 0);
                self.recency.admit(self.rows.len() * LAYERS);
                row
            })
        })?;
        self.rows.owners[row as usize] = owner;
        Some(row)
    }

    /// Gives a row back: all that its holders hold is forgotten, at once for look-ups.
    pub fn drop_row(&mut self, row: u32) {
        for layer in 0..LAYERS as u8 {
            self.drop_holder(Holder { row, layer });
        }
        self.rows.owners[row as usize] = NONE;
        self.rows.returned.push(row);
        self.lend_again();
    }

    /// Lends rows again that have been swept out.
    pub(super) fn lend_again(&mut self) {
        let mut returned = std::mem::take(&mut self.rows.returned);
        returned.retain(|&row| {
            let mut layers = 0..LAYERS as u8;
            let dead = layers.any(|layer| self.is_dropped(Holder { row, layer }));
            if !dead {
                self.rows.free.push(row);
            }
            dead
        });
        self.rows.returned = returned;
    }

    /// Owners there are places for: numbers are below.
    pub fn owners(&self) -> usize {
        self.rows.totals.len()
    }

    /// What became of an owner's blocks.
    pub fn totals(&self, owner: u32) -> Totals {
        self.rows.totals[owner as usize]
    }

    /// What a look-up found, by owner: the most blocks that any row of each holds. `depths` gets a
    /// place for every owner.
    pub fn by_owner(&self, reach: &Reach, depths: &mut Vec<u32>) {
        depths.clear();
        depths.resize(self.rows.totals.len(), 0);
        reach.for_each(|row, depth| {
            let owner = self.rows.owners[row as usize] as usize;
            if let Some(most) = depths.get_mut(owner) {
                *most = depth.max(*most);
            }
        });
    }
}
