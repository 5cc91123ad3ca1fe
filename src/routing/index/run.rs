//! A run of blocks, and who holds which part of it.
//!
//! Few holders are a list of *spans*, exact to the block, holes included. Where many hold all of a
//! run, they are bits of a set instead, and only those who hold a part of it stay in the list. A
//! list that gets long is the owner's sign to cut the run where most spans end.

use super::super::block::BlockHash;
use super::slots::heap_bytes;
use smallvec::SmallVec;

/// More spans than this ask for a cut.
pub(super) const SPANS_MAX: usize = if cfg!(test) { 5 } else { 8 };
/// From so many holders of the whole run on they are a set.
const SET_MIN: usize = SPANS_MAX / 2 + 1;
/// A set of so few becomes spans again.
const SET_SPARSE: u32 = if cfg!(test) { 1 } else { 2 };

/// The blocks `from..to` of a run, held by `holder`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) holder: u32,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// The holders of a whole run: for each layer that any is in, a set of rows. Layers without holders
/// cost nothing, and those of a layer lie together, as a look-up reads them.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    /// Layers that there are words for.
    layers: u8,
    /// Words a layer.
    width: u32,
    words: Box<[u64]>,
    pub(super) count: u32,
}

/// Word and bit of a holder in a set. A holder's number is its row times `LAYERS` plus its layer.
pub(super) const fn bit_of<const LAYERS: usize>(holder: u32) -> (usize, u64) {
    let (row, layer) = (holder as usize / LAYERS, holder as usize % LAYERS);
    (row / 64 * LAYERS + layer, 1 << (row % 64))
}

impl Whole {
    /// Where the words of a layer begin, which has some.
    const fn first(&self, layer: usize) -> usize {
        let below = self.layers & ((1 << layer) - 1);
        below.count_ones() as usize * self.width as usize
    }

    /// The rows that hold it in a layer, 64 a word.
    pub(super) fn rows(&self, layer: usize) -> &[u64] {
        if self.layers & 1 << layer == 0 {
            return &[];
        }
        &self.words[self.first(layer)..][..self.width as usize]
    }

    pub(super) fn has<const LAYERS: usize>(&self, holder: u32) -> bool {
        let (row, layer) = (holder as usize / LAYERS, holder as usize % LAYERS);
        self.rows(layer).get(row / 64).is_some_and(|word| word & 1 << (row % 64) != 0)
    }

    fn word_mut<const LAYERS: usize>(&mut self, holder: u32) -> (&mut u64, u64) {
        let (row, layer) = (holder as usize / LAYERS, holder as usize % LAYERS);
        let at = self.first(layer) + row / 64;
        (&mut self.words[at], 1 << (row % 64))
    }

    /// Adds a holder that is not in it.
    fn add<const LAYERS: usize>(&mut self, holder: u32) {
        let (row, layer) = (holder as usize / LAYERS, holder as usize % LAYERS);
        if self.layers & 1 << layer == 0 || row / 64 >= self.width as usize {
            self.widen::<LAYERS>(self.layers | 1 << layer, self.width.max(row as u32 / 64 + 1));
        }
        let (word, bit) = self.word_mut::<LAYERS>(holder);
        *word |= bit;
        self.count += 1;
    }

    fn remove<const LAYERS: usize>(&mut self, holder: u32) {
        let (word, bit) = self.word_mut::<LAYERS>(holder);
        *word &= !bit;
        self.count -= 1;
    }

    /// Makes room for more layers or rows.
    fn widen<const LAYERS: usize>(&mut self, layers: u8, width: u32) {
        let mut words = Vec::with_capacity(layers.count_ones() as usize * width as usize);
        for layer in (0..LAYERS).filter(|layer| layers & 1 << layer != 0) {
            let end = words.len() + width as usize;
            words.extend_from_slice(self.rows(layer));
            words.resize(end, 0);
        }
        (self.layers, self.width, self.words) = (layers, width, words.into_boxed_slice());
    }

    /// Heap bytes, its own included.
    fn bytes(&self) -> usize {
        heap_bytes(size_of::<Self>()) + heap_bytes(size_of_val(&*self.words))
    }

    pub(super) fn holders<const LAYERS: usize>(&self) -> impl Iterator<Item = u32> {
        (0..LAYERS).flat_map(move |layer| {
            self.rows(layer).iter().enumerate().flat_map(move |(word, &bits)| {
                let rest = |&bits: &u64| Some(bits & bits.wrapping_sub(1));
                let left = std::iter::successors(Some(bits), rest);
                left.take_while(|&bits| bits != 0).map(move |bits| {
                    let row = word * 64 + bits.trailing_zeros() as usize;
                    (row * LAYERS + layer) as u32
                })
            })
        })
    }
}

/// A run: what a look-up reads of it is one cache line, spans of a single holder included.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
pub(super) struct Run {
    /// The blocks; zeros behind them are room to grow.
    label: Box<[BlockHash]>,
    /// The last of them.
    pub(super) last: BlockHash,
    len: u32,
    /// Blocks before the first.
    pub(super) start: u32,
    pub(super) spans: SmallVec<[Span; 1]>,
    pub(super) whole: Option<Box<Whole>>,
}

impl Run {
    pub(super) fn new(start: u32, label: Box<[BlockHash]>) -> Self {
        let mut run = Self { start, len: label.len() as u32, label, ..Self::default() };
        run.last = run.label.last().copied().unwrap_or_default();
        run
    }

    /// Zero in a slot that is free.
    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn label(&self) -> &[BlockHash] {
        &self.label[..self.len()]
    }

    /// Heap bytes by capacity, as the allocator rounds them.
    pub(super) fn bytes(&self) -> usize {
        let spans = if self.spans.spilled() { self.spans.capacity() } else { 0 };
        let whole = self.whole.as_ref().map_or(0, |whole| whole.bytes());
        heap_bytes(size_of_val(&*self.label)) + heap_bytes(spans * size_of::<Span>()) + whole
    }

    /// Gives the run these blocks in place of its own, with `room` for so many.
    pub(super) fn relabel(&mut self, parts: [&[BlockHash]; 2], room: usize) {
        let mut label = Vec::with_capacity(room);
        for part in parts {
            label.extend_from_slice(part);
        }
        self.len = label.len() as u32;
        self.last = label.last().copied().unwrap_or_default();
        label.resize(room, BlockHash::default());
        self.label = label.into_boxed_slice();
    }

    /// Appends blocks; their holders are to be added.
    pub(super) fn extend(&mut self, blocks: &[BlockHash]) {
        let len = self.len() + blocks.len();
        if len > self.label.len() {
            let old = std::mem::take(&mut self.label);
            self.relabel([&old[..self.len()], blocks], len + len / 8);
            return;
        }
        let from = self.len();
        self.label[from..len].copy_from_slice(blocks);
        self.len = len as u32;
        self.last = blocks.last().copied().unwrap_or(self.last);
    }

    /// Drops the blocks from `len` on, which nobody holds.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = len as u32;
        self.last = self.label[len - 1];
        if len + len / 2 < self.label.len() {
            let old = std::mem::take(&mut self.label);
            self.relabel([&old[..len], &[]], len);
        }
        // Who holds all that is left may have held less than all before; a set of those did not.
        self.tidy_spans();
    }

    fn tidy_spans(&mut self) {
        if self.spans.spilled() && self.spans.len() <= 1 {
            self.spans.shrink_to_fit();
        }
    }

    fn is_full(&self, span: &Span) -> bool {
        span.from == 0 && span.to == self.len
    }

    /// How far a holder has the run without a gap from block `at` on; `at` if it has not that.
    pub(super) fn held_to<const LAYERS: usize>(&self, holder: u32, at: u32) -> u32 {
        if self.whole.as_ref().is_some_and(|whole| whole.has::<LAYERS>(holder)) {
            return self.len;
        }
        let mut spans = self.spans.iter().filter(|span| span.holder == holder);
        spans.find(|span| (span.from..span.to).contains(&at)).map_or(at, |span| span.to)
    }

    /// The deepest part without a gap that a holder has; empty if it has none.
    pub(super) fn last_span<const LAYERS: usize>(&self, holder: u32) -> (u32, u32) {
        if self.whole.as_ref().is_some_and(|whole| whole.has::<LAYERS>(holder)) {
            return (0, self.len);
        }
        let spans = self.spans.iter().filter(|span| span.holder == holder);
        spans.map(|span| (span.from, span.to)).max().unwrap_or_default()
    }

    /// The parts without a gap that a holder has.
    pub(super) fn parts_of<const LAYERS: usize>(&self, holder: u32) -> SmallVec<[(u32, u32); 2]> {
        if self.whole.as_ref().is_some_and(|whole| whole.has::<LAYERS>(holder)) {
            return SmallVec::from_slice(&[(0, self.len)]);
        }
        let spans = self.spans.iter().filter(|span| span.holder == holder);
        spans.map(|span| (span.from, span.to)).collect()
    }

    /// All that have a part of it, in order.
    pub(super) fn holders<const LAYERS: usize>(&self) -> SmallVec<[u32; 8]> {
        let spans = self.spans.iter().map(|span| span.holder);
        let whole = self.whole.iter().flat_map(|whole| whole.holders::<LAYERS>());
        let mut holders: SmallVec<[u32; 8]> = spans.chain(whole).collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// Adds `from..to` to what a holder has; returns by how many blocks that is more.
    pub(super) fn add<const LAYERS: usize>(&mut self, holder: u32, from: u32, to: u32) -> u32 {
        if self.whole.as_ref().is_some_and(|whole| whole.has::<LAYERS>(holder)) {
            return 0;
        }
        let mut span = Span { holder, from, to };
        let mut had = 0;
        // What touches it is joined with it: a holder's spans lie apart.
        self.spans.retain(|other| {
            let joins = other.holder == holder && other.from <= span.to && span.from <= other.to;
            if joins {
                had += other.to.min(to).saturating_sub(other.from.max(from));
                span.from = span.from.min(other.from);
                span.to = span.to.max(other.to);
            }
            !joins
        });
        match &mut self.whole {
            Some(whole) if span.from == 0 && span.to == self.len => whole.add::<LAYERS>(holder),
            _ => self.spans.push(span),
        }
        self.tidy_spans();
        to - from - had
    }

    /// Takes `from..to` out of what a holder has; returns how many blocks that are.
    pub(super) fn subtract<const LAYERS: usize>(&mut self, holder: u32, from: u32, to: u32) -> u32 {
        if let Some(whole) = &mut self.whole
            && whole.has::<LAYERS>(holder)
        {
            whole.remove::<LAYERS>(holder);
            let count = whole.count;
            self.spans.push(Span { holder, from: 0, to: self.len });
            if count <= SET_SPARSE {
                self.unpack::<LAYERS>();
            }
        }
        let (mut lost, mut rest) = (0, SmallVec::<[Span; 2]>::new());
        self.spans.retain(|span| {
            if span.holder != holder || span.from >= to || from >= span.to {
                return true;
            }
            lost += span.to.min(to) - span.from.max(from);
            if span.from < from {
                rest.push(Span { to: from, ..*span });
            }
            if span.to > to {
                rest.push(Span { from: to, ..*span });
            }
            false
        });
        self.spans.extend(rest);
        self.tidy_spans();
        lost
    }

    /// Makes a set into spans.
    pub(super) fn unpack<const LAYERS: usize>(&mut self) {
        if let Some(whole) = self.whole.take() {
            let to = self.len;
            self.spans.extend(whole.holders::<LAYERS>().map(|holder| Span { holder, from: 0, to }));
        }
    }

    /// Makes many holders of the whole run into a set; returns whether the list is short enough.
    pub(super) fn pack<const LAYERS: usize>(&mut self) -> bool {
        if self.spans.len() > SPANS_MAX || self.whole.is_some() {
            let full = self.spans.iter().filter(|span| self.is_full(span)).count();
            if full >= SET_MIN || self.whole.is_some() {
                let mut whole = self.whole.take().unwrap_or_default();
                let len = self.len;
                self.spans.retain(|span| {
                    let full = span.from == 0 && span.to == len;
                    if full {
                        whole.add::<LAYERS>(span.holder);
                    }
                    !full
                });
                self.whole = Some(whole);
                self.tidy_spans();
            }
        }
        self.spans.len() <= SPANS_MAX
    }

    /// Where to cut a run with too many spans: the middle one of their ends inside it.
    pub(super) fn cut_at(&self) -> Option<u32> {
        let ends = self.spans.iter().flat_map(|span| [span.from, span.to]);
        let mut ends: Vec<_> = ends.filter(|&end| end > 0 && end < self.len).collect();
        ends.sort_unstable();
        ends.get(ends.len() / 2).copied()
    }

    /// The parts of `from..to` that nobody holds, in order.
    pub(super) fn gaps(&self, from: u32, to: u32) -> SmallVec<[(u32, u32); 2]> {
        let mut gaps = SmallVec::new();
        if self.whole.as_ref().is_some_and(|whole| whole.count > 0) {
            return gaps;
        }
        let mut spans: SmallVec<[(u32, u32); 8]> =
            self.spans.iter().map(|span| (span.from, span.to)).collect();
        spans.sort_unstable();
        let mut at = from;
        for (start, end) in spans {
            if start > at && at < to {
                gaps.push((at, start.min(to)));
            }
            at = at.max(end);
        }
        if at < to {
            gaps.push((at, to));
        }
        gaps
    }
}
