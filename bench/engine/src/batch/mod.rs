//! Continuous batching with chunked prefill, as a pure state machine.
//!
//! It knows neither clock nor socket: `begin_step` says what the next step computes, the caller
//! waits for as long as that takes, `end_step` says which tokens came out of it. A request can be
//! cancelled at any point, also between the two.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::cache::{BlockCache, Hold};
use crate::options::{EngineOptions, TOKEN_BYTES};
use crate::prompt::Sequence;
use crate::reports::Journal;

/// Names a submitted sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(u64);

/// All sequences of one engine, with its cache.
#[derive(Debug)]
pub(crate) struct Batch {
    max_batched_tokens: usize,
    max_num_seqs: usize,
    block_tokens: usize,
    cache: BlockCache,
    waiting: VecDeque<(SequenceId, Sequence)>,
    running: Vec<Running>,
    next_id: u64,
    totals: Totals,
    /// What a router is to be told; `None` when nobody listens.
    /// One for each router that is told.
    journals: Vec<Journal>,
}

#[derive(Debug)]
struct Running {
    id: SequenceId,
    sequence: Sequence,
    hold: Hold,
    cached_tokens: usize,
    /// Prompt tokens whose KV is there.
    computed: usize,
    generated: usize,
    /// Full blocks that have a name.
    named_blocks: usize,
}

/// What one step computes.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// Who takes part; a decode has no prefill tokens.
    work: Vec<(SequenceId, usize)>,
    pub(crate) prefill_tokens: usize,
    pub(crate) decodes: usize,
    /// Pairs of a prefilled token and a token of context before it.
    pub(crate) attention_pairs: f64,
}

/// A token that came out of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: SequenceId,
    /// Its place in the answer, from 0.
    pub(crate) index: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) last: bool,
}

/// Sums since start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Prompt tokens of admitted sequences, looked up in the cache.
    pub(crate) prompt_tokens: u64,
    /// Those of them that were there.
    pub(crate) cached_tokens: u64,
    /// Prompt tokens computed.
    pub(crate) prefilled_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) finished: u64,
    pub(crate) cancelled: u64,
    pub(crate) evicted_blocks: u64,
}

/// What is there right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gauges {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) used_blocks: usize,
    pub(crate) named_blocks: usize,
}

impl Batch {
    /// An empty batch.
    pub(crate) fn new(options: &EngineOptions, journals: Vec<Journal>) -> Self {
        Self {
            max_batched_tokens: options.max_batched_tokens.max(1),
            max_num_seqs: options.max_num_seqs.max(1),
            block_tokens: options.block_tokens,
            cache: BlockCache::new(options.kv_blocks),
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_id: 0,
            totals: Totals::default(),
            journals,
        }
    }

    /// Queues a sequence; the caller has checked that it fits into an empty cache.
    pub(crate) fn submit(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back((id, sequence));
        id
    }

    /// Drops a sequence that nobody waits for any more; false if it is over already.
    pub(crate) fn cancel(&mut self, id: SequenceId) -> bool {
        let queued = self.waiting.len();
        self.waiting.retain(|(waiting, _)| *waiting != id);
        let position = self.running.iter().position(|running| running.id == id);
        if let Some(position) = position {
            let running = self.running.remove(position);
            self.cache.release(running.hold);
        }
        let cancelled = position.is_some() || self.waiting.len() < queued;
        self.totals.cancelled += u64::from(cancelled);
        cancelled
    }

    /// Plans a step: decodes first, then prefills in order of arrival, then new sequences as far
    /// as budget, slots and blocks go. `None` when there is nothing to do.
    pub(crate) fn begin_step(&mut self) -> Option<Step> {
        let mut step = Step::default();
        let mut budget = self.max_batched_tokens;
        for running in self.running.iter().filter(|running| running.is_decoding()) {
            if budget == 0 {
                break;
            }
            budget -= 1;
            step.decodes += 1;
            step.work.push((running.id, 0));
        }
        for running in self.running.iter().filter(|running| !running.is_decoding()) {
            budget -= step.add_prefill(running, budget);
        }
        while budget > 0 && self.running.len() < self.max_num_seqs {
            let Some(admitted) = self.admit_next() else { break };
            budget -= step.add_prefill(admitted, budget);
        }
        (!step.work.is_empty()).then_some(step)
    }

    /// Takes in what a step computed and gives the tokens it produced.
    pub(crate) fn end_step(&mut self, step: &Step) -> Vec<Token> {
        let mut tokens = Vec::new();
        for &(id, prefilled) in &step.work {
            // A sequence cancelled during the step is gone.
            let Some(position) = self.running.iter().position(|running| running.id == id) else {
                continue;
            };
            let running = &mut self.running[position];
            running.computed += prefilled;
            self.totals.prefilled_tokens += prefilled as u64;
            let token = running.next_token();
            name_full_blocks(running, &mut self.cache, &mut self.journals);
            self.totals.output_tokens += u64::from(token.is_some());
            if token.is_some_and(|token| token.last) {
                let running = self.running.remove(position);
                self.cache.release(running.hold);
                self.totals.finished += 1;
            }
            tokens.extend(token);
        }
        tokens
    }

    /// Empties the cache of all that no running sequence needs.
    pub(crate) fn clear_cache(&mut self) {
        self.cache.clear();
        for journal in &mut self.journals {
            let cache = &self.cache;
            journal.on_cleared(|hash| cache.contains(hash));
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn gauges(&self) -> Gauges {
        Gauges {
            running: self.running.len(),
            waiting: self.waiting.len(),
            used_blocks: self.cache.used(),
            named_blocks: self.cache.named(),
        }
    }

    /// What the router `at` has yet to be told.
    pub(crate) fn journal(&mut self, at: usize) -> Option<&mut Journal> {
        self.journals.get_mut(at)
    }

    /// Moves the head of the queue into the batch. First come, first served: one that does not
    /// fit holds up those behind it.
    fn admit_next(&mut self) -> Option<&Running> {
        let (_, sequence) = self.waiting.front()?;
        let (hit_max, block_count) = (sequence.hit_blocks_max(), sequence.block_count());
        let admission = self.cache.admit(&sequence.hashes, hit_max, block_count)?;
        let (id, sequence) = self.waiting.pop_front()?;
        self.totals.evicted_blocks += admission.evicted.len() as u64;
        for journal in &mut self.journals {
            journal.on_evicted(&admission.evicted);
        }
        let cached_tokens = admission.hit_blocks * self.block_tokens;
        self.totals.prompt_tokens += sequence.prompt_tokens() as u64;
        self.totals.cached_tokens += cached_tokens as u64;
        self.running.push(Running {
            id,
            sequence,
            hold: admission.hold,
            cached_tokens,
            computed: cached_tokens,
            generated: 0,
            named_blocks: admission.hit_blocks,
        });
        self.running.last()
    }
}

impl Running {
    fn is_decoding(&self) -> bool {
        self.computed >= self.sequence.prompt_tokens()
    }

    /// The end of its prefill gives a sequence its first token, every decode one more.
    fn next_token(&mut self) -> Option<Token> {
        if !self.is_decoding() {
            return None;
        }
        let index = self.generated;
        self.generated += 1;
        let last = self.generated >= self.sequence.answer.tokens;
        Some(Token { id: self.id, index, cached_tokens: self.cached_tokens, last })
    }

    /// Bytes whose KV is there: the newest token's is computed when it is decoded from.
    fn held_bytes(&self) -> usize {
        let answered = self.generated.saturating_sub(1) * TOKEN_BYTES;
        let bytes = (self.computed * TOKEN_BYTES).min(self.sequence.prompt_bytes) + answered;
        bytes.min(self.sequence.bytes.len())
    }
}

impl Step {
    /// Gives `running` a chunk of at most `budget` tokens; returns its size.
    fn add_prefill(&mut self, running: &Running, budget: usize) -> usize {
        let chunk = (running.sequence.prompt_tokens() - running.computed).min(budget);
        if chunk > 0 {
            self.prefill_tokens += chunk;
            self.attention_pairs += chunk as f64 * (running.computed as f64 + chunk as f64 / 2.0);
            self.work.push((running.id, chunk));
        }
        chunk
    }
}

fn name_full_blocks(running: &mut Running, cache: &mut BlockCache, journals: &mut [Journal]) {
    let first = running.named_blocks;
    let full = running.held_bytes() / running.sequence.block_bytes;
    for &hash in &running.sequence.hashes[first..full] {
        cache.fill(&mut running.hold, hash);
    }
    running.named_blocks = full;
    for journal in journals {
        journal.on_stored(&running.sequence, first..full);
    }
}
