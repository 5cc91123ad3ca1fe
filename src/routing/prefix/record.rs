//! What is remembered of one engine block.
//!
//! Engine blocks of tokens begin and end where ours do and complete just one: such a record is 32
//! bytes and nothing on the heap. Only one that lies otherwise has a [`Rest`].

use std::num::{NonZeroU32, NonZeroUsize};

use super::super::block::{BlockHash, Chain};
use super::engine_blocks::EngineBlockId;
use super::record_map::Number;

/// A slot of `EngineBlocks::records`, plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordId(pub(super) Number);

impl RecordId {
    pub(super) fn from_slot(slot: usize) -> Self {
        let id = u32::try_from(slot + 1).ok().and_then(NonZeroU32::new);
        Self(id.expect("2^32 records do not fit in memory"))
    }

    pub(super) const fn slot(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// All that a record is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    pub(super) id: EngineBlockId,
    /// The engine block before, if one of our blocks covers bytes of both.
    pub(super) parent: Option<EngineBlockId>,
    /// Whether it begins inside one of our blocks; its `parent` may have been lost since.
    pub(super) joined: bool,
    /// The size of our blocks that it was cut into; see [`Record::size`].
    pub(super) block_bytes: u16,
    /// Physical copies; zero in a record kept for others. So many and no more are counted.
    pub(super) copies: u16,
    /// Our blocks complete at its end, from the root.
    pub(super) depth: u32,
    /// The chain there; the last of `completed`, if there are any.
    pub(super) chain: Chain,
    /// Bytes after the last of those.
    pub(super) tail: &'a [u8],
    /// Those of them that it completes.
    pub(super) completed: &'a [BlockHash],
}

/// What records of blocks have that do not lie as ours do.
#[derive(Clone, Debug)]
struct Rest {
    parent: Option<EngineBlockId>,
    joined: bool,
    tail: Box<[u8]>,
    completed: Box<[BlockHash]>,
    /// The list of records whose `parent` it is, and its own place in such a list.
    first_child: Option<RecordId>,
    next: Option<RecordId>,
    previous: Option<RecordId>,
}

/// A record; what its parts mean is said at [`Told`].
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) id: EngineBlockId,
    /// The chain at its end, as the name of the block that ends there.
    end: BlockHash,
    rest: Option<Box<Rest>>,
    pub(super) depth: u32,
    pub(super) copies: u16,
    pub(super) block_bytes: u16,
}

const _: () = assert!(size_of::<Record>() == 32, "two a cache line");

impl From<Told<'_>> for Record {
    fn from(told: Told<'_>) -> Self {
        let Told { id, parent, joined, block_bytes, copies, depth, chain, tail, completed } = told;
        let plain = parent.is_none() && !joined && tail.is_empty() && completed.len() == 1;
        let rest = (!plain).then(|| {
            let (tail, completed) = (tail.into(), completed.into());
            let (first_child, next, previous) = (None, None, None);
            Box::new(Rest { parent, joined, tail, completed, first_child, next, previous })
        });
        let end = completed.last().copied().unwrap_or(BlockHash::new(chain.as_u64()));
        Self { id, end, rest, depth, copies, block_bytes }
    }
}

impl Record {
    /// A block size as it is kept: from 64 KiB on (none is that large) all count as one.
    pub(super) fn size(block_bytes: NonZeroUsize) -> u16 {
        u16::try_from(block_bytes.get()).unwrap_or(u16::MAX)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let of = |rest: &Rest| size_of::<Rest>() + rest.tail.len() + size_of_val(&*rest.completed);
        self.rest.as_deref().map_or(0, of)
    }

    pub(super) fn parent(&self) -> Option<EngineBlockId> {
        self.rest.as_ref()?.parent
    }

    pub(super) fn joined(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.joined)
    }

    pub(super) const fn chain(&self) -> Chain {
        Chain::new(self.end.as_u64())
    }

    pub(super) fn tail(&self) -> &[u8] {
        self.rest.as_ref().map_or(&[], |rest| &rest.tail)
    }

    pub(super) fn completed(&self) -> &[BlockHash] {
        self.rest.as_ref().map_or(std::slice::from_ref(&self.end), |rest| &rest.completed)
    }

    pub(super) fn first_child(&self) -> Option<RecordId> {
        self.rest.as_ref()?.first_child
    }

    pub(super) fn next(&self) -> Option<RecordId> {
        self.rest.as_ref()?.next
    }

    pub(super) fn previous(&self) -> Option<RecordId> {
        self.rest.as_ref()?.previous
    }

    /// Whether others can be linked to it.
    pub(super) fn may_be_parent(&self) -> bool {
        self.rest.is_some()
    }

    pub(super) fn set_parent(&mut self, parent: Option<EngineBlockId>) {
        if let Some(rest) = &mut self.rest {
            rest.parent = parent;
        }
    }

    /// Sets the head of its list; returns the one before. Here and below, only records with a rest
    /// are linked to others.
    pub(super) fn set_first_child(&mut self, child: Option<RecordId>) -> Option<RecordId> {
        std::mem::replace(&mut self.rest.as_mut()?.first_child, child)
    }

    /// The same of the one behind it in its list.
    pub(super) fn set_next(&mut self, next: Option<RecordId>) -> Option<RecordId> {
        std::mem::replace(&mut self.rest.as_mut()?.next, next)
    }

    pub(super) fn set_previous(&mut self, previous: Option<RecordId>) {
        if let Some(rest) = &mut self.rest {
            rest.previous = previous;
        }
    }

    /// The last of our blocks complete at its end.
    pub(super) fn above(&self) -> Option<BlockHash> {
        (self.depth > 0).then_some(self.end)
    }

    /// Whether this is the same text in the same place.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let place = |r: &Self| (r.parent(), r.joined(), r.block_bytes, r.depth, r.end);
        place(self) == place(other)
            && self.tail() == other.tail()
            && self.completed() == other.completed()
    }

    /// The same block as another cache is told of it: one copy, linked to none.
    pub(super) fn told_of(mut self, parent: Option<EngineBlockId>) -> Self {
        self.copies = 1;
        self.set_parent(parent);
        self.set_first_child(None);
        self.set_next(None);
        self.set_previous(None);
        self
    }
}
