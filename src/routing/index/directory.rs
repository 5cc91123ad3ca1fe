//! Segment by the low bits of what is left of a hash, in pages that are copied only where they come
//! to differ: doubling the directory of a table of millions adds empty pages and copies nothing.
//!
//! A page that is not there reads as the one without its highest bit: no segment tells the two
//! apart yet.

use super::slots::heap_bytes;

/// Bits within a page.
const PAGE_BITS: u8 = if cfg!(test) { 2 } else { 9 };
const PAGE: usize = 1 << PAGE_BITS;

/// Most bits there can be.
const BITS_MAX: usize = 32;

#[derive(Clone, Debug)]
pub(super) struct Directory {
    pages: Vec<Option<Box<[u32; PAGE]>>>,
    pages_in_use: usize,
    bits: u8,
    /// Segments by how many bits tell their hashes from those of others.
    by_bits: [u32; BITS_MAX],
}

/// The page that `page` reads as while it is not there.
const fn upper(page: usize) -> usize {
    page & !(1 << page.ilog2())
}

impl Directory {
    /// One segment for all.
    pub(super) fn new(segment: u32) -> Self {
        let mut by_bits = [0; BITS_MAX];
        by_bits[0] = 1;
        Self {
            pages: vec![Some(Box::new([segment; PAGE]))],
            pages_in_use: 1,
            bits: PAGE_BITS,
            by_bits,
        }
    }

    fn page(&self, mut page: usize) -> &[u32; PAGE] {
        loop {
            match &self.pages[page] {
                Some(page) => return page,
                None => page = upper(page),
            }
        }
    }

    /// The segment of what is left of a hash.
    #[inline]
    pub(super) fn get(&self, rest: usize) -> u32 {
        let entry = rest & ((1 << self.bits) - 1);
        self.page(entry >> PAGE_BITS)[entry & (PAGE - 1)]
    }

    /// Writes the segment of all that has the lowest `bits` bits of `rest`.
    fn set(&mut self, rest: usize, bits: u8, segment: u32) {
        let step = 1 << bits;
        for entry in (rest & (step - 1)..1 << self.bits).step_by(step) {
            let page = entry >> PAGE_BITS;
            if self.pages[page].is_none() {
                // What it reads as is written too, or else comes to differ from it.
                if page & (1 << page.ilog2()) >= step >> PAGE_BITS {
                    continue;
                }
                self.pages[page] = Some(Box::new(*self.page(page)));
                self.pages_in_use += 1;
            }
            if let Some(page) = &mut self.pages[page] {
                page[entry & (PAGE - 1)] = segment;
            }
        }
    }

    /// A segment of `bits` bits has been cut in two: all that has the lowest bits of `rest`, one more
    /// than before, is in `segment`.
    pub(super) fn cut(&mut self, rest: usize, bits: u8, segment: u32) {
        if bits == self.bits {
            self.bits += 1;
            self.pages.resize_with(1 << (self.bits - PAGE_BITS), || None);
        }
        self.by_bits[usize::from(bits)] -= 1;
        self.by_bits[usize::from(bits) + 1] += 2;
        self.set(rest, bits + 1, segment);
    }

    /// Two segments of `bits` bits have been joined into `segment`.
    pub(super) fn join(&mut self, rest: usize, bits: u8, segment: u32) {
        self.by_bits[usize::from(bits)] -= 2;
        self.by_bits[usize::from(bits) - 1] += 1;
        self.set(rest, bits - 1, segment);
        while self.bits > PAGE_BITS && self.by_bits[usize::from(self.bits)] == 0 {
            self.bits -= 1;
            let rest = self.pages.drain(1 << (self.bits - PAGE_BITS)..);
            self.pages_in_use -= rest.flatten().count();
            if self.pages.len() * 4 <= self.pages.capacity() {
                self.pages.shrink_to(self.pages.len() * 2);
            }
        }
    }

    /// Heap bytes by capacity.
    pub(super) fn bytes(&self) -> usize {
        self.pages_in_use * heap_bytes(size_of::<[u32; PAGE]>())
            + heap_bytes(self.pages.capacity() * size_of::<Option<Box<[u32; PAGE]>>>())
    }

    /// Every entry in order; asserts the counts.
    pub(super) fn entries(&self) -> impl Iterator<Item = u32> {
        assert_eq!(self.pages.iter().flatten().count(), self.pages_in_use, "pages counted");
        assert_eq!(self.pages.len(), 1 << (self.bits - PAGE_BITS), "pages");
        (0..1 << self.bits).map(|entry| self.get(entry))
    }
}
