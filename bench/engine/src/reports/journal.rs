//! What the cache took in and evicted, until the router has heard of it.
//!
//! The journal mirrors the text of every named block, as a router that lost count is told all of
//! it again. It is bounded: a router that does not listen for long loses the events, not the
//! engine's time, and is told the whole state afterwards.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use crate::prompt::{Root, Sequence};

/// An event as it stands in the body of `POST /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Blocks of one chain, parents first; `text` is all their bytes.
    Stored {
        block_hashes: Vec<u64>,
        parent_block_hash: Option<u64>,
        text: String,
        block_size: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_salt: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        lora_name: Option<String>,
    },
    Removed {
        block_hashes: Vec<u64>,
    },
    Cleared,
}

impl Event {
    fn block_count(&self) -> usize {
        match self {
            Self::Stored { block_hashes, .. } | Self::Removed { block_hashes } => {
                block_hashes.len()
            }
            Self::Cleared => 1,
        }
    }
}

/// Events not sent yet, and what is needed to state everything again.
#[derive(Debug)]
pub(crate) struct Journal {
    block_bytes: usize,
    /// Most blocks that may be named in `events`.
    blocks_max: usize,
    events: VecDeque<Event>,
    queued_blocks: usize,
    /// Events were lost; only a new statement of everything helps.
    overflowed: bool,
    held: HashMap<u64, Held>,
    stored_count: u64,
}

#[derive(Debug)]
struct Held {
    parent: Option<u64>,
    bytes: Box<[u8]>,
    root: Arc<Root>,
    /// Grows along every chain, so that sorting by it puts parents first.
    order: u64,
    /// Whether an event has named it. Not so while it ends inside a character whose other half
    /// is not there yet: JSON text cannot say that.
    announced: bool,
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
                self.announce(&std::mem::take(&mut run));
                continue;
            }
            let start = index * self.block_bytes;
            self.stored_count += 1;
            let held = Held {
                parent: index.checked_sub(1).map(|parent| sequence.hashes[parent]),
                bytes: sequence.bytes[start..start + self.block_bytes].into(),
                root: Arc::clone(&sequence.root),
                order: self.stored_count,
                announced: false,
            };
            self.held.insert(hash, held);
            run.push(hash);
        }
        self.announce(&run);
    }

    /// The cache evicted these blocks.
    pub(crate) fn on_evicted(&mut self, hashes: &[u64]) {
        let gone = hashes.iter().filter_map(|hash| Some((*hash, self.held.remove(hash)?)));
        let block_hashes: Vec<u64> =
            gone.filter(|(_, held)| held.announced).map(|(hash, _)| hash).collect();
        if !block_hashes.is_empty() {
            self.push(Event::Removed { block_hashes });
        }
    }

    /// The cache dropped everything but what `is_kept` says.
    pub(crate) fn on_cleared(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.held.retain(|hash, _| is_kept(*hash));
        self.forget_queue();
        self.push(Event::Cleared);
        self.announce_all();
    }

    /// Replaces what is queued by a statement of everything held, parents first.
    pub(crate) fn restate(&mut self) {
        self.forget_queue();
        self.overflowed = false;
        self.announce_all();
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
        for held in self.held.values_mut() {
            held.announced = false;
        }
    }

    fn announce_all(&mut self) {
        let mut all: Vec<(u64, u64)> =
            self.held.iter().map(|(hash, held)| (held.order, *hash)).collect();
        all.sort_unstable();
        let mut run: Vec<u64> = Vec::new();
        for (_, hash) in all {
            if run.last() != self.held[&hash].parent.as_ref() {
                self.announce(&std::mem::take(&mut run));
            }
            run.push(hash);
        }
        self.announce(&run);
    }

    /// Queues a `stored` event for a chain of held blocks, with those before it that could not be
    /// announced so far, and without those at its end that cannot be now.
    fn announce(&mut self, run: &[u64]) {
        let Some(first) = run.first() else { return };
        let mut chain: VecDeque<u64> = run.iter().copied().collect();
        let mut parent = self.held[first].parent;
        while let Some(before) = parent.filter(|hash| !self.is_announced(*hash)) {
            chain.push_front(before);
            parent = self.held.get(&before).and_then(|held| held.parent);
        }
        let bytes: Vec<u8> = chain.iter().flat_map(|hash| self.held[hash].bytes.to_vec()).collect();
        let block_count = whole_blocks(&bytes, self.block_bytes);
        if block_count == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&bytes[..block_count * self.block_bytes]).into_owned();
        let block_hashes: Vec<u64> = chain.into_iter().take(block_count).collect();
        for hash in &block_hashes {
            self.held.get_mut(hash).expect("the chain is held").announced = true;
        }
        let root = Arc::clone(&self.held[&block_hashes[0]].root);
        let root = parent.is_none().then_some(root);
        self.push(Event::Stored {
            block_hashes,
            parent_block_hash: parent,
            text,
            block_size: self.block_bytes,
            model: root.as_ref().map(|root| root.model.clone()),
            cache_salt: root.as_ref().and_then(|root| root.cache_salt.clone()),
            lora_name: root.as_ref().and_then(|root| root.lora_name.clone()),
        });
    }

    fn is_announced(&self, hash: u64) -> bool {
        self.held.get(&hash).is_none_or(|held| held.announced)
    }

    fn push(&mut self, event: Event) {
        if self.overflowed {
            return;
        }
        self.queued_blocks += event.block_count();
        self.events.push_back(event);
        if self.queued_blocks > self.blocks_max {
            self.overflowed = true;
            self.events.clear();
            self.queued_blocks = 0;
        }
    }
}

/// How many leading blocks of `bytes` together are valid UTF-8, ends included.
fn whole_blocks(bytes: &[u8], block_bytes: usize) -> usize {
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // A character is cut at the end, not broken in the middle.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return 0,
    };
    let mut block_count = valid.len() / block_bytes;
    while !valid.is_char_boundary(block_count * block_bytes) {
        block_count -= 1;
    }
    block_count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Answer;

    fn sequence(prompt: &str) -> Sequence {
        let root = Arc::new(Root { model: "m".to_owned(), ..Root::default() });
        Sequence::new(&root, prompt.as_bytes(), Answer::words(1, 1, true), 64)
    }

    fn stored(event: &Event) -> (usize, bool, &str) {
        let Event::Stored { block_hashes, parent_block_hash, text, model, .. } = event else {
            panic!("not a stored event: {event:?}");
        };
        assert_eq!(parent_block_hash.is_none(), model.is_some(), "only a first block has a root");
        assert_eq!(text.len(), block_hashes.len() * 64);
        (block_hashes.len(), parent_block_hash.is_some(), text)
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
    fn a_cut_character_is_announced_once_it_is_whole() {
        let mut journal = Journal::new(64, 1000);
        // Three bytes each: only every third block ends where a character does.
        let long = sequence(&"€".repeat(150));
        journal.on_stored(&long, 0..2);
        assert!(journal.take(1000).is_empty());
        journal.on_stored(&long, 2..4);
        journal.on_evicted(&[long.hashes[3]]);
        let events = journal.take(1000);
        assert_eq!(events.len(), 1, "an unannounced block goes in silence");
        assert_eq!(stored(&events[0]).0, 3);
        assert_eq!(stored(&events[0]).2, "€".repeat(64));
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
    fn a_full_journal_drops_all_and_restates_later() {
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
}
