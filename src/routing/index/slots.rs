//! Values by number, in chunks that never move: growing copies nothing, a number is used again, the
//! lowest first, and a chunk without values goes back to the allocator.

/// Values of a chunk: a word of bits says which there are.
const CHUNK: usize = 64;

/// What an allocator takes for so many bytes: sizes are rounded up to classes, four to a doubling
/// (so does mimalloc; others waste less).
pub(super) const fn heap_bytes(bytes: usize) -> usize {
    if bytes <= 64 {
        return bytes.next_multiple_of(16);
    }
    bytes.next_multiple_of(1 << ((bytes - 1).ilog2() - 2))
}

/// The values. A free number reads as `T`'s default.
#[derive(Clone, Debug)]
pub(super) struct Slots<T> {
    /// Empty where nothing lies in it.
    chunks: Vec<Box<[T]>>,
    /// The numbers that are free, by chunk.
    free: Vec<u64>,
    /// Chunks before have none.
    open: usize,
    in_use: usize,
    len: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), open: 0, in_use: 0, len: 0 }
    }
}

/// The chunk that a number lies in.
pub(super) const fn chunk_of(id: u32) -> usize {
    id as usize / CHUNK
}

impl<T: Default> Slots<T> {
    #[inline]
    pub(super) fn at(&self, id: u32) -> &T {
        &self.chunks[chunk_of(id)][id as usize % CHUNK]
    }

    #[inline]
    pub(super) fn at_mut(&mut self, id: u32) -> &mut T {
        &mut self.chunks[chunk_of(id)][id as usize % CHUNK]
    }

    /// How many values there are.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Puts a value under the lowest number that is free. Amortised O(1); at most a pass over a bit a
    /// number.
    pub(super) fn add(&mut self, value: T) -> u32 {
        while self.free.get(self.open) == Some(&0) {
            self.open += 1;
        }
        if self.open == self.chunks.len() {
            self.chunks.push(Box::default());
            self.free.push(u64::MAX);
        }
        let chunk = &mut self.chunks[self.open];
        if chunk.is_empty() {
            *chunk = std::iter::repeat_with(T::default).take(CHUNK).collect();
            self.in_use += 1;
        }
        let at = self.free[self.open].trailing_zeros() as usize;
        self.free[self.open] &= !(1 << at);
        chunk[at] = value;
        self.len += 1;
        (self.open * CHUNK + at) as u32
    }

    /// Takes a value out, whose number is free then.
    pub(super) fn remove(&mut self, id: u32) -> T {
        let chunk = chunk_of(id);
        let value = std::mem::take(self.at_mut(id));
        self.free[chunk] |= 1 << (id as usize % CHUNK);
        self.open = self.open.min(chunk);
        self.len -= 1;
        if self.free[chunk] == u64::MAX {
            self.chunks[chunk] = Box::default();
            self.in_use -= 1;
        }
        value
    }

    /// Chunks there is memory for.
    pub(super) const fn chunks_in_use(&self) -> usize {
        self.in_use
    }

    /// Whether there is memory for a chunk.
    pub(super) fn is_in_use(&self, chunk: usize) -> bool {
        self.chunks.get(chunk).is_some_and(|chunk| !chunk.is_empty())
    }

    /// The numbers of all values.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        let numbers = 0..(self.chunks.len() * CHUNK) as u32;
        numbers.filter(|&id| self.free[chunk_of(id)] & 1 << (id as usize % CHUNK) == 0)
    }

    /// Heap bytes by capacity, without what values own.
    pub(super) fn bytes(&self) -> usize {
        self.in_use * heap_bytes(CHUNK * size_of::<T>())
            + heap_bytes(self.chunks.capacity() * size_of::<Box<[T]>>())
            + heap_bytes(self.free.capacity() * size_of::<u64>())
    }

    /// Asserts the counts.
    pub(super) fn check(&self) {
        assert_eq!(self.ids().count(), self.len, "values counted");
        let in_use = self.chunks.iter().filter(|chunk| !chunk.is_empty()).count();
        assert_eq!(in_use, self.in_use, "chunks counted");
        for (chunk, &free) in self.chunks.iter().zip(&self.free) {
            assert_eq!(chunk.is_empty(), free == u64::MAX, "a chunk without values is gone");
        }
        assert!(self.free[..self.open.min(self.free.len())].iter().all(|&free| free == 0));
    }
}

/// Numbers of a chunk.
pub(super) const fn per_chunk() -> usize {
    CHUNK
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_rounded_to_four_classes_a_doubling() {
        let sizes = [0, 1, 16, 64, 65, 81, 128, 129, 1000, 1024, 1025, 8000, 8192];
        let taken = [0, 16, 16, 64, 80, 96, 128, 160, 1024, 1024, 1280, 8192, 8192];
        assert_eq!(sizes.map(heap_bytes), taken);
    }

    proptest! {
        #[test]
        fn they_are_as_a_map_is(steps in prop::collection::vec((any::<bool>(), 0..400_usize), 1..600)) {
            let (mut slots, mut model) = (Slots::<u64>::default(), std::collections::BTreeMap::new());
            for (at, (add, which)) in steps.into_iter().enumerate() {
                if add || model.is_empty() {
                    let lowest = (0..600).find(|id| !model.contains_key(id)).expect("a free one");
                    prop_assert_eq!(slots.add(at as u64 + 1), lowest);
                    model.insert(lowest, at as u64 + 1);
                } else {
                    let id = *model.keys().nth(which % model.len()).expect("one of them");
                    prop_assert_eq!(Some(slots.remove(id)), model.remove(&id));
                }
                slots.check();
                prop_assert!(model.iter().all(|(&id, value)| slots.at(id) == value));
                prop_assert_eq!(slots.ids().collect::<Vec<_>>(), model.keys().copied().collect::<Vec<_>>());
            }
        }
    }
}
