//! Cutting and joining runs.
//!
//! A run is cut where a block in it is gone for all, and where its list of spans gets too long. Two
//! runs that follow one another and have few holders are joined again. Of two parts the smaller one
//! gets the new id (or loses its own), as its blocks' places change with it.

use super::super::block::BlockHash;
use super::run::{Run, SPANS_MAX, Span};
use super::table::{Place, RUN_MAX};
use super::{SharedIndex, WARMED};

/// Joined runs have no more spans than this; far enough below [`SPANS_MAX`] not to be cut at once.
const JOINED_SPANS_MAX: usize = SPANS_MAX / 2;

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// Brings a run's list of spans below its bound, by a set or by cuts.
    pub(super) fn relieve(&mut self, run: u32) {
        let mut todo = vec![run];
        while let Some(run) = todo.pop() {
            if self.runs.edit(run, Run::pack::<LAYERS>) {
                continue;
            }
            let at = self.runs.run(run).cut_at().expect("all that hold the whole run are in a set");
            let (upper, lower) = self.split(run, at);
            todo.extend([upper, lower]);
        }
    }

    /// Takes blocks from a holder, and those that nobody holds then from their run; returns how
    /// many it had.
    pub(super) fn subtract(&mut self, id: u32, holder: u32, from: u32, to: u32) -> usize {
        let lost = self.runs.edit(id, |run| run.subtract::<LAYERS>(holder, from, to)) as usize;
        if lost == 0 {
            return 0;
        }
        let out = self.note_lost(id, holder, lost as u32);
        let run = self.runs.run(id);
        let gaps = run.gaps(from, to);
        match gaps[..] {
            [] if run.spans.len() > SPANS_MAX => self.relieve(id),
            [] if out => {
                self.join_above(id);
            }
            [] => {}
            // By far the most: an engine evicts from the end.
            [(from, to)] if to as usize == run.len() => self.cut(id, from, to),
            _ => self.cut_all(id, &gaps),
        }
        lost
    }

    /// A holder has lost blocks of a run; whether it has none of it any more.
    pub(super) fn note_lost(&mut self, id: u32, holder: u32, blocks: u32) -> bool {
        self.recency.lost(holder, blocks);
        let (from, to) = self.runs.run(id).last_span::<LAYERS>(holder);
        if from == to {
            self.recency.forget(holder, id);
        }
        from == to
    }

    /// Drops several parts of a run, which nobody holds, and tidies what is left of it.
    pub(super) fn cut_all(&mut self, id: u32, gaps: &[(u32, u32)]) {
        let run = self.runs.run(id);
        // Names outlive cuts, ids do not.
        let named = |&(from, to): &(u32, u32)| (run.label()[from as usize], to - from);
        let cuts: Vec<_> = gaps.iter().map(named).collect();
        let ends = gaps.iter().map(|&(_, to)| to as usize).filter(|&to| to < run.len());
        let parts: Vec<_> = std::iter::once(0).chain(ends).map(|at| run.label()[at]).collect();
        for (block, count) in cuts {
            let place = self.find(block).expect("a block of the run");
            let from = place.offset(self.runs.run(place.run).start) as u32;
            self.cut(place.run, from, from + count);
        }
        for part in parts {
            let Some(place) = self.find(part) else { continue };
            if self.runs.run(place.run).spans.len() > SPANS_MAX {
                self.relieve(place.run);
            } else {
                self.join_above(place.run);
            }
        }
    }

    /// Drops the blocks `from..to` of a run, which nobody holds.
    fn cut(&mut self, mut run: u32, from: u32, to: u32) {
        if (to as usize) < self.runs.run(run).len() {
            run = self.split(run, to).0;
        }
        let (from, at) = (from as usize, self.runs.run(run));
        let start = at.start;
        let mut depth = start + from as u32;
        for blocks in at.label()[from..].chunks(WARMED) {
            self.places.warm(blocks);
            for block in blocks {
                self.places.remove(block.as_u64(), Place::new(run, depth));
                depth += 1;
            }
        }
        if from == 0 {
            self.heads.remove(at.label()[0].as_u64(), Place::new(run, start));
            self.runs.remove(run);
        } else {
            self.runs.edit(run, |run| run.truncate(from));
        }
    }

    /// Cuts a run in two before `at`, which lies inside; returns the upper and the lower part.
    pub(super) fn split(&mut self, id: u32, at: u32) -> (u32, u32) {
        let run = self.runs.run(id);
        let (start, len, offset) = (run.start, run.len(), at as usize);
        assert!(0 < offset && offset < len, "a split leaves both sides something");
        let (first, below) = (run.label()[0], run.label()[offset]);
        let boundary = run.label()[offset - 1];
        let upper_stays = offset > len / 2;
        let moved = if upper_stays { &run.label()[offset..] } else { &run.label()[..offset] };
        let kept = if upper_stays { &run.label()[..offset] } else { &run.label()[offset..] };
        let moved_start = if upper_stays { start + at } else { start };
        let kept_start = if upper_stays { start } else { start + at };
        let mut fresh = Run::new(moved_start, moved.into());
        fresh.whole.clone_from(&run.whole);
        let part = |span: &Span, upper: bool| {
            let (from, to) = if upper {
                (span.from, span.to.min(at))
            } else {
                (span.from.saturating_sub(at), span.to.saturating_sub(at))
            };
            (from < to).then_some(Span { holder: span.holder, from, to })
        };
        fresh.spans = run.spans.iter().filter_map(|span| part(span, !upper_stays)).collect();
        let kept: Box<[BlockHash]> = kept.into();
        let parent = self.runs.parent(id).unwrap_or_default();
        let new = self.runs.add(fresh, if upper_stays { boundary } else { parent });
        self.runs.edit(id, |run| {
            run.relabel([&kept, &[]], kept.len());
            run.start = kept_start;
            run.spans = run.spans.iter().filter_map(|span| part(span, upper_stays)).collect();
        });
        for holder in self.runs.run(new).holders::<LAYERS>() {
            let (from, to) = self.runs.run(id).last_span::<LAYERS>(holder);
            if from == to {
                self.recency.rename(holder, id, new);
            } else {
                self.recency.part(holder, id, new, !upper_stays);
            }
        }
        let (upper, lower) = if upper_stays { (id, new) } else { (new, id) };
        if !upper_stays {
            self.runs.set_parent(id, boundary);
            self.heads.relocate(first.as_u64(), Place::new(id, start), Place::new(new, start));
        }
        let runs = &self.runs;
        let first_of = |place: Place| runs.run(place.run).label()[0].as_u64();
        self.heads.add(below.as_u64(), Place::new(lower, start + at), first_of);
        self.move_places(id, new);
        for part in [upper, lower] {
            self.runs.edit(part, |run| {
                run.pack::<LAYERS>();
            });
        }
        (upper, lower)
    }

    /// The blocks of `to` were those of `from` so far.
    fn move_places(&mut self, from: u32, to: u32) {
        let run = self.runs.run(to);
        for (&block, depth) in run.label().iter().zip(run.start..) {
            self.places.relocate(block.as_u64(), Place::new(from, depth), Place::new(to, depth));
        }
    }

    /// Joins a run with the one that it follows, if that ends there and both have few holders;
    /// whether it did.
    pub(super) fn join_above(&mut self, lower: u32) -> bool {
        let run = self.runs.run(lower);
        if run.whole.is_some() || run.spans.len() > JOINED_SPANS_MAX || run.len() == RUN_MAX {
            return false;
        }
        let Some(parent) = self.runs.parent(lower) else { return false };
        let Some(upper) = self.place_at(parent, run.start - 1).map(|place| place.run) else {
            return false;
        };
        let above = self.runs.run(upper);
        let (middle, len) = (above.len(), above.len() + run.len());
        let ends_there = above.start + middle as u32 == run.start;
        if !ends_there || above.whole.is_some() || len > RUN_MAX {
            return false;
        }
        let mut spans = above.spans.clone();
        for span in &run.spans {
            let shifted =
                Span { from: span.from + middle as u32, to: span.to + middle as u32, ..*span };
            let touching = spans.iter_mut().find(|other| {
                other.holder == span.holder && other.to == shifted.from && span.from == 0
            });
            match touching {
                Some(other) => other.to = shifted.to,
                None => spans.push(shifted),
            }
        }
        if spans.len() > JOINED_SPANS_MAX {
            return false;
        }
        let (holders, under) = (above.holders::<LAYERS>(), run.holders::<LAYERS>());
        let told_apart = |&&holder: &&u32| self.recency.told_apart(holder, [upper, lower]);
        if under.iter().filter(|holder| holders.contains(holder)).any(|h| told_apart(&h)) {
            return false;
        }
        let label = [above.label(), run.label()].concat();
        let (first, below) = (label[0], label[middle]);
        let (start, below_start) = (above.start, run.start);
        let (kept, gone) = if middle * 2 >= len { (upper, lower) } else { (lower, upper) };
        let moved = if kept == upper { &label[middle..] } else { &label[..middle] };
        let moved_start = if kept == upper { below_start } else { start };
        for (&block, depth) in moved.iter().zip(moved_start..) {
            self.places.relocate(block.as_u64(), Place::new(gone, depth), Place::new(kept, depth));
        }
        self.heads.remove(below.as_u64(), Place::new(lower, below_start));
        if kept == lower {
            self.heads.relocate(first.as_u64(), Place::new(upper, start), Place::new(lower, start));
        }
        // Where a holder has parts of both, it has used them when it used the upper one.
        for &holder in &under {
            if holders.contains(&holder) {
                self.recency.forget(holder, lower);
            } else if kept == upper {
                self.recency.rename(holder, lower, upper);
            }
        }
        if kept == lower {
            for holder in holders {
                self.recency.rename(holder, upper, lower);
            }
        }
        let parent = self.runs.parent(upper).unwrap_or_default();
        self.runs.remove(gone);
        self.runs.set_parent(kept, parent);
        self.runs.edit(kept, |run| {
            run.relabel([&label, &[]], len);
            run.start = start;
            run.spans = spans;
        });
        true
    }
}

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// Asserts every invariant, the byte count included.
    pub fn check(&self) {
        self.check_parts();
        for holder in 0..self.recency.holders() {
            self.check_order(holder);
        }
    }

    /// As [`check`](Self::check), but for the order of recency, which takes hashes to be chained.
    pub fn check_parts(&self) {
        self.runs.check();
        self.places.check(|place| Self::hash_at(&self.runs, place));
        let first_of = |place: Place| self.runs.run(place.run).label()[0].as_u64();
        self.heads.check(first_of);
        let (mut blocks, mut held, mut pairs) = (0, 0, 0);
        for id in self.runs.ids() {
            let run = self.runs.run(id);
            let len = run.len() as u32;
            assert!(run.len() <= RUN_MAX, "run bound");
            assert_eq!(run.label().last(), Some(&run.last), "last block");
            let head = self.heads.find(run.label()[0].as_u64(), first_of);
            assert_eq!(head, Some(Place::new(id, run.start)), "head of a run");
            for (&block, depth) in run.label().iter().zip(run.start..) {
                assert_eq!(self.find(block), Some(Place::new(id, depth)), "place of a block");
            }
            assert!(run.gaps(0, len).is_empty(), "a block that nobody holds");
            assert!(run.spans.len() <= SPANS_MAX, "span bound");
            let mut spans = run.spans.to_vec();
            spans.sort_unstable();
            for pair in spans.windows(2) {
                let apart = pair[0].holder != pair[1].holder || pair[0].to < pair[1].from;
                assert!(apart, "a holder's spans lie apart");
            }
            for span in &spans {
                assert!(span.from < span.to && span.to <= len, "a span lies in its run");
                let whole = run.whole.as_ref();
                assert!(!whole.is_some_and(|w| w.has::<LAYERS>(span.holder)), "held twice");
                held += u64::from(span.to - span.from);
            }
            if let Some(whole) = &run.whole {
                let count = whole.holders::<LAYERS>().count();
                assert_eq!(count, whole.count as usize, "holders counted");
                assert!(count > 0, "a set without holders");
                held += count as u64 * u64::from(len);
            }
            blocks += run.len();
            pairs += run.holders::<LAYERS>().len();
        }
        self.recency.check(pairs);
        assert_eq!(blocks, self.places.len(), "blocks counted");
        assert_eq!(self.runs.len(), self.heads.len(), "heads counted");
        assert_eq!(held, self.held, "held blocks counted");
    }

    /// Asserts that a holder's runs are in order, each before those that hang from it.
    fn check_order(&self, holder: u32) {
        let order = self.recency.order(holder);
        let rank: std::collections::HashMap<_, _> = order.iter().copied().zip(0..).collect();
        let mut blocks = 0;
        for &id in &order {
            let run = self.runs.run(id);
            let mut at = 0;
            while at < run.len() as u32 {
                let to = run.held_to::<LAYERS>(holder, at);
                blocks += u64::from(to - at);
                at = to.max(at + 1);
            }
            let parent = self.runs.parent(id).filter(|_| run.held_to::<LAYERS>(holder, 0) > 0);
            let above = parent.and_then(|parent| self.place_at(parent, run.start - 1));
            let Some(place) = above else { continue };
            let above = self.runs.run(place.run);
            let at = place.offset(above.start) as u32;
            if above.held_to::<LAYERS>(holder, at) > at {
                assert!(rank[&place.run] < rank[&id], "a parent is more recent than its child");
            }
        }
        assert_eq!(self.recency.blocks(holder), blocks, "blocks of a holder");
    }
}
