//! Who holds the most: a knockout tournament over the holders.
//!
//! A change costs the matches above the holder as far as their winners change, so most often one or
//! two, and the largest is known at any time without a pass over all.

/// The winners of all matches; the final is at 1, the winner of two holders at half their place.
#[derive(Clone, Debug, Default)]
pub(super) struct Tournament {
    winners: Vec<u32>,
    /// A power of two, at least as many as there are holders.
    places: usize,
}

impl Tournament {
    /// Makes room for holders up to `count`, all of which play again.
    pub(super) fn admit(&mut self, count: usize, size_of: impl Fn(u32) -> u64 + Copy) {
        if count <= self.places {
            return;
        }
        self.places = count.next_power_of_two().max(2);
        self.winners = vec![0; self.places];
        for node in (1..self.places).rev() {
            self.winners[node] = self.match_at(node, size_of);
        }
    }

    fn match_at(&self, node: usize, size_of: impl Fn(u32) -> u64) -> u32 {
        let [left, right] = [2 * node, 2 * node + 1].map(|child| {
            let holder = child.checked_sub(self.places);
            holder.map_or_else(|| self.winners[child], |holder| holder as u32)
        });
        if size_of(right) > size_of(left) { right } else { left }
    }

    /// A holder's size has changed.
    pub(super) fn update(&mut self, holder: u32, size_of: impl Fn(u32) -> u64 + Copy) {
        let mut node = (self.places + holder as usize) >> 1;
        while node > 0 {
            let winner = self.match_at(node, size_of);
            // A match that another won, and wins again, changes none above it.
            if winner == self.winners[node] && winner != holder {
                return;
            }
            self.winners[node] = winner;
            node /= 2;
        }
    }

    /// The largest; meaningless without holders.
    pub(super) fn winner(&self) -> Option<u32> {
        self.winners.get(1).copied()
    }

    /// Heap bytes by capacity.
    pub(super) fn bytes(&self) -> usize {
        super::slots::heap_bytes(self.winners.capacity() * size_of::<u32>())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_wins(changes in prop::collection::vec((0..40_u32, 0..20_u64), 1..200)) {
            let (mut sizes, mut tournament) = (Vec::<u64>::new(), Tournament::default());
            for (holder, size) in changes {
                if holder as usize >= sizes.len() {
                    sizes.resize(holder as usize + 1, 0);
                }
                let of = |sizes: &[u64], at: u32| sizes.get(at as usize).copied().unwrap_or_default();
                tournament.admit(sizes.len(), |at| of(&sizes, at));
                sizes[holder as usize] = size;
                tournament.update(holder, |at| of(&sizes, at));
                let winner = tournament.winner().expect("somebody");
                prop_assert_eq!(of(&sizes, winner), *sizes.iter().max().expect("somebody"));
            }
        }
    }
}
