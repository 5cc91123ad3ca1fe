//! What the cache took in and evicted, until the router has heard of it.
//!
//! The journal mirrors the text of every named block, as a router that lost count is told what is
//! held. It is bounded: a router that does not listen for long loses the events, not the engine's
//! time, and is told the state afterwards.
//!
//! A block that ends inside a character leaves that character to the block behind it, as JSON text
//! cannot be cut there.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::prompt::{Root, Sequence};

use super::wire::{Event, StateBlock};

/// Events not sent yet, and what is held now.
#[derive(Debug)]
pub(crate) struct Journal {
    block_bytes: usize,
    /// Most blocks that may be named in `events`.
    blocks_max: usize,
    events: VecDeque<Event>,
    queued_blocks: usize,
    /// Events were lost; only the state helps.
    overflowed: bool,
    held: HashMap<u64, Held>,
    stored_count: u64,
}

#[derive(Debug)]
struct Held {
    parent: Option<u64>,
    text: Arc<str>,
    root: Arc<Root>,
    /// Grows along every chain, so that sorting by it puts parents first.
    order: u64,
}

impl Journal {
    /// An empty journal of an empty cache; at most `blocks_max` block names wait in it.
    pub(crate) fn new(block_bytes: usize, blocks_max: usize) -> Self {
        Self {
            block_bytes,
            blocks_max,
            events: VecDeque::new(),
            queued_blocks: 0,
            overflowed: false,
            held: HashMap::new(),
            stored_count: 0,
        }
    }

    /// The blocks of `range` of a sequence are in the cache now, some of them perhaps before.
    pub(crate) fn on_stored(&mut self, sequence: &Sequence, range: Range<usize>) {
        if !sequence.root.can_be_reported() {
            return;
        }
        let mut run = Vec::new();
        for index in range {
            let hash = sequence.hashes[index];
            if self.held.contains_key(&hash) {
                self.tell(&std::mem::take(&mut run));
                continue;
            }
            let start = whole_characters(&sequence.bytes, index * self.block_bytes);
            let end = whole_characters(&sequence.bytes, (index + 1) * self.block_bytes);
            self.stored_count += 1;
            let held = Held {
                parent: index.checked_sub(1).map(|parent| sequence.hashes[parent]),
                text: String::from_utf8_lossy(&sequence.bytes[start..end]).into(),
                root: Arc::clone(&sequence.root),
                order: self.stored_count,
            };
            self.held.insert(hash, held);
            run.push(hash);
        }
        self.tell(&run);
    }

    /// The cache evicted these blocks.
    pub(crate) fn on_evicted(&mut self, hashes: &[u64]) {
        let held = hashes.iter().copied();
        let block_hashes: Vec<u64> = held.filter(|hash| self.held.remove(hash).is_some()).collect();
        if !block_hashes.is_empty() {
            self.push(Event::Removed { block_hashes });
        }
    }

    /// The cache dropped everything but what `is_kept` says.
    pub(crate) fn on_cleared(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.held.retain(|hash, _| is_kept(*hash));
        self.forget_queue();
        self.push(Event::Cleared);
        self.tell_all();
    }

    /// Replaces what is queued by events that name everything held, parents first.
    pub(crate) fn restate(&mut self) {
        self.forget_queue();
        self.overflowed = false;
        self.tell_all();
    }

    /// Everything held, parents first. What is queued is part of it, and forgotten.
    pub(crate) fn state(&mut self) -> Vec<StateBlock> {
        self.forget_queue();
        self.overflowed = false;
        let block = |hash: u64| {
            let held = &self.held[&hash];
            let root = held.parent.is_none().then(|| Arc::clone(&held.root));
            StateBlock { hash, parent: held.parent, text: Arc::clone(&held.text), root }
        };
        self.in_order().into_iter().map(block).collect()
    }

    pub(crate) fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// The next events to send: whole ones, until they name `blocks_max` blocks.
    pub(crate) fn take(&mut self, blocks_max: usize) -> Vec<Event> {
        let mut taken = Vec::new();
        let mut block_count = 0;
        while block_count < blocks_max {
            let Some(event) = self.events.pop_front() else { break };
            block_count += event.block_count();
            taken.push(event);
        }
        self.queued_blocks -= block_count;
        taken
    }

    fn forget_queue(&mut self) {
        self.events.clear();
        self.queued_blocks = 0;
    }

    fn in_order(&self) -> Vec<u64> {
        let mut all: Vec<(u64, u64)> =
            self.held.iter().map(|(hash, held)| (held.order, *hash)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, hash)| hash).collect()
    }

    fn tell_all(&mut self) {
        let mut run: Vec<u64> = Vec::new();
        for hash in self.in_order() {
            if run.last() != self.held[&hash].parent.as_ref() {
                self.tell(&std::mem::take(&mut run));
            }
            run.push(hash);
        }
        self.tell(&run);
    }

    /// Queues a `stored` event for a chain of held blocks.
    fn tell(&mut self, chain: &[u64]) {
        let Some(first) = chain.first().map(|hash| &self.held[hash]) else { return };
        let texts = chain.iter().map(|hash| Arc::clone(&self.held[hash].text)).collect();
        let root = first.parent.is_none().then_some(&*first.root);
        let event = Event::stored(chain.to_vec(), first.parent, texts, self.block_bytes, root);
        self.push(event);
    }

    fn push(&mut self, event: Event) {
        if self.overflowed {
            return;
        }
        self.queued_blocks += event.block_count();
        self.events.push_back(event);
        if self.queued_blocks > self.blocks_max {
            self.overflowed = true;
            self.forget_queue();
        }
    }
}

/// The end of the last whole character of `bytes[..end]`. Looks at nothing behind `end`, so that
/// equal blocks have equal texts.
fn whole_characters(bytes: &[u8], end: usize) -> usize {
    let tail = &bytes[end.saturating_sub(4)..end];
    let Some(back) = tail.iter().rev().position(|byte| byte & 0xc0 != 0x80) else { return end };
    let length = match tail[tail.len() - 1 - back] {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    };
    if length > back + 1 { end - back - 1 } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Answer;

    fn sequence(prompt: &str) -> Sequence {
        let root = Arc::new(Root { model: "m".to_owned(), ..Root::default() });
        Sequence::new(&root, prompt.as_bytes(), Answer::words(1, 1, true), 64)
    }

    fn stored(event: &Event) -> (usize, bool, String) {
        let Event::Stored { block_hashes, parent_block_hash, text, model, .. } = event else {
            panic!("not a stored event: {event:?}");
        };
        assert_eq!(parent_block_hash.is_none(), model.is_some(), "only a first block has a root");
        (block_hashes.len(), parent_block_hash.is_some(), text.joined())
    }

    #[test]
    fn a_repeat_says_nothing_and_a_longer_prompt_only_what_is_new() {
        let mut journal = Journal::new(64, 1000);
        journal.on_stored(&sequence(&"a".repeat(128)), 0..2);
        journal.on_stored(&sequence(&"a".repeat(128)), 1..2);
        journal.on_stored(&sequence(&"a".repeat(256)), 2..4);
        let events = journal.take(1000);
        assert_eq!(
            events.iter().map(stored).map(|e| (e.0, e.1)).collect::<Vec<_>>(),
            [(2, false), (2, true)]
        );
        assert!(journal.take(1000).is_empty());
    }

    #[test]
    fn a_cut_character_belongs_to_the_block_behind_it() {
        let mut journal = Journal::new(64, 1000);
        // Three bytes each: only every third block ends where a character does.
        let long = sequence(&"€".repeat(150));
        journal.on_stored(&long, 0..2);
        let events = journal.take(1000);
        assert_eq!((stored(&events[0]).0, stored(&events[0]).2), (2, "€".repeat(42)));
        journal.on_stored(&long, 2..4);
        assert_eq!(stored(&journal.take(1000)[0]), (2, true, "€".repeat(85 - 42)));
        let texts: Vec<_> = journal.state().iter().map(|block| block.text.len()).collect();
        assert_eq!(texts, [63, 63, 66, 63]);
    }

    #[test]
    fn restating_names_every_block_once_parents_first() {
        let mut journal = Journal::new(64, 1000);
        let trunk = "t".repeat(128);
        journal.on_stored(&sequence(&trunk), 0..2);
        for branch in ["x", "y"] {
            journal.on_stored(&sequence(&(trunk.clone() + &branch.repeat(128))), 2..4);
        }
        journal.take(1000);
        journal.restate();
        let mut known = std::collections::HashSet::new();
        for event in journal.take(1000) {
            let Event::Stored { block_hashes, parent_block_hash, .. } = event else {
                panic!("only stored events state what is held");
            };
            assert!(parent_block_hash.is_none_or(|parent| known.contains(&parent)));
            for hash in block_hashes {
                assert!(known.insert(hash), "named twice");
            }
        }
        assert_eq!(known.len(), 6);
    }

    #[test]
    fn the_state_is_what_is_held_and_takes_the_queue_along() {
        let mut journal = Journal::new(64, 1000);
        let long = sequence(&"a".repeat(192));
        journal.on_stored(&long, 0..3);
        journal.on_evicted(&long.hashes[2..3]);
        let state = journal.state();
        let named: Vec<_> = state.iter().map(|block| (block.hash, block.parent)).collect();
        assert_eq!(named, [(long.hashes[0], None), (long.hashes[1], Some(long.hashes[0]))]);
        assert!(state[0].root.is_some() && state[1].root.is_none());
        assert!(journal.take(1000).is_empty());
    }

    #[test]
    fn a_full_journal_drops_all_and_tells_the_state_later() {
        let mut journal = Journal::new(64, 3);
        journal.on_stored(&sequence(&"a".repeat(128)), 0..2);
        journal.on_stored(&sequence(&"b".repeat(128)), 0..2);
        assert!(journal.has_overflowed());
        assert!(journal.take(1000).is_empty());
        journal.on_evicted(&[sequence(&"b".repeat(128)).hashes[1]]);
        journal.restate();
        assert!(!journal.has_overflowed());
        assert_eq!(journal.take(1000).iter().map(|e| stored(e).0).sum::<usize>(), 3);
    }

    #[test]
    fn clearing_says_what_is_kept() {
        let mut journal = Journal::new(64, 1000);
        let long = sequence(&"a".repeat(192));
        journal.on_stored(&long, 0..3);
        let kept = long.hashes[0];
        journal.on_cleared(|hash| hash == kept);
        let events = journal.take(1000);
        assert_eq!(events[0], Event::Cleared);
        assert_eq!(stored(&events[1]).0, 1);
        assert_eq!(events.len(), 2);
    }

    #[test]
    fn characters_are_never_cut() {
        let text = "aé€😀".repeat(40);
        for end in 0..=text.len() {
            let cut = whole_characters(text.as_bytes(), end);
            assert!(text.is_char_boundary(cut) && end - cut < 4);
            assert!(!text.is_char_boundary(end) || cut == end);
        }
    }
}
