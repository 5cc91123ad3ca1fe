//! Continuous batching with chunked prefill, as in vLLM's first-come-first-served scheduler.
//!
//! In every step each running sequence that is past its prompt decodes a token; what remains of the
//! step's tokens goes to prompts in the order in which they came, chunk by chunk. A prompt is taken
//! up when all of it fits the memory that running sequences leave (vLLM: `scheduler_reserve_full_isl`),
//! and blocks are held for all of it from then on. Its blocks can be found by others from the end of
//! the step that computed them. Where decodes outgrow the memory, the sequence that came last is sent
//! back: it waits again before all others, and computes again what has been evicted meanwhile.
//!
//! A sequence larger than the whole memory runs alone in what there is, so that nothing ever hangs;
//! real engines refuse it.

use super::{Engine, Hardware, Sign, Waiting};
use crate::simulate::cache::BlockCache;
use crate::simulate::workload::Request;

/// A request that runs.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    request: usize,
    /// Tokens of the prompt (and of what was generated before it was sent back) still to compute.
    left: u64,
    /// Tokens computed or found.
    context: u64,
    generated: u32,
    /// Whether this step computes some of its prompt.
    advances: bool,
    /// Leading blocks it pins.
    pinned: usize,
    /// Blocks it has beyond those, without a name.
    nameless: usize,
}

impl Sequence {
    /// Seconds of prefill that it still needs.
    pub(super) fn left_s(&self, hardware: &Hardware) -> f64 {
        if self.left == 0 { 0.0 } else { hardware.prefill_s(self.left, self.context + self.left) }
    }

    /// Whether it is past its prompt.
    fn decodes(&self) -> bool {
        self.left == 0
    }

    /// Gives names to the blocks of the prompt that are computed.
    fn name_computed(&mut self, request: &Request, cache: &mut BlockCache) {
        let full = (self.context / request.block_tokens) as usize;
        // The last block is seldom full; traces name it all the same.
        let computed = if self.decodes() { request.blocks.len() } else { full };
        let computed = computed.min(request.blocks.len());
        while self.pinned < computed && self.nameless > 0 {
            cache.name_pinned(request.blocks[self.pinned]);
            cache.give(1);
            self.nameless -= 1;
            self.pinned += 1;
        }
    }
}

impl Engine {
    pub(super) fn begin_batch(
        &mut self,
        requests: &[Request],
        cache: &mut BlockCache,
        budget: u32,
        sequences: usize,
        signs: &mut Vec<Sign>,
    ) -> Option<f64> {
        self.make_room_to_decode(requests, cache);
        let mut budget = u64::from(budget);
        let mut seconds = self.hardware.step_s;
        for sequence in self.running.iter().filter(|sequence| sequence.decodes()) {
            budget = budget.saturating_sub(1);
            seconds += self.hardware.read_s * sequence.context as f64;
        }
        self.admit(requests, cache, budget, sequences, signs);
        if self.running.is_empty() {
            return None;
        }
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.decodes()) {
            let chunk = sequence.left.min(budget);
            if chunk == 0 {
                break;
            }
            budget -= chunk;
            let attended = sequence.context as f64 + chunk as f64 / 2.0;
            seconds += (self.hardware.token_s + self.hardware.pair_s * attended) * chunk as f64;
            sequence.context += chunk;
            sequence.left -= chunk;
            sequence.advances = true;
        }
        Some(seconds)
    }

    /// Takes up requests in the order of their arrival, as long as there is something of the step
    /// left for them.
    fn admit(
        &mut self,
        requests: &[Request],
        cache: &mut BlockCache,
        budget: u64,
        sequences: usize,
        signs: &mut Vec<Sign>,
    ) {
        let mut under_way: u64 = self.running.iter().map(|sequence| sequence.left).sum();
        while self.running.len() < sequences
            && under_way < budget
            && let Some(&Waiting { request: index, generated, known }) = self.waiting.front()
        {
            let request = &requests[index];
            let total = request.tokens + u64::from(generated);
            let matched = cache.matched(&request.blocks);
            let held = request.tokens_of(matched);
            cache.pin(&request.blocks[..matched]);
            let mut needed = request.blocks_for(total).saturating_sub(matched);
            if cache.room() < needed {
                if !self.running.is_empty() {
                    cache.unpin(&request.blocks[..matched]);
                    break;
                }
                // Alone it must run, in what there is.
                needed = cache.room();
            }
            cache.take(needed);
            self.waiting.pop_front();
            if !known {
                signs.push(Sign::Prefilled(index, held));
            }
            // The last token is computed whatever is held: it gives the first of the answer.
            let context = held.min(total - 1);
            under_way += total - context;
            self.running.push(Sequence {
                request: index,
                left: total - context,
                context,
                generated,
                advances: false,
                pinned: matched,
                nameless: needed,
            });
        }
    }

    pub(super) fn end_batch(
        &mut self,
        requests: &[Request],
        cache: &mut BlockCache,
        signs: &mut Vec<Sign>,
    ) {
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            let request = &requests[sequence.request];
            if std::mem::take(&mut sequence.advances) {
                sequence.name_computed(request, cache);
                if sequence.decodes() && sequence.generated == 0 {
                    signs.push(Sign::FirstToken(sequence.request, 0.0));
                }
            }
            if !sequence.decodes() {
                at += 1;
                continue;
            }
            sequence.generated += 1;
            sequence.context += 1;
            if sequence.generated < request.output {
                at += 1;
                continue;
            }
            let sequence = self.running.remove(at);
            signs.push(Sign::Finished(sequence.request, 0.0));
            cache.give(sequence.nameless);
            // Before the prompt's own blocks, as what lies deeper goes first.
            if sequence.pinned == request.blocks.len() {
                cache.store(&request.generated);
            }
            cache.unpin(&request.blocks[..sequence.pinned]);
        }
    }

    /// Every decode has a block for its next token; those that came last are sent back for it.
    fn make_room_to_decode(&mut self, requests: &[Request], cache: &mut BlockCache) {
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &self.running[at];
            let needed = requests[sequence.request].blocks_for(sequence.context + 1);
            if !sequence.decodes() || needed <= sequence.pinned + sequence.nameless {
                at += 1;
                continue;
            }
            if cache.room() > 0 {
                cache.take(1);
                self.running[at].nameless += 1;
                at += 1;
                continue;
            }
            let last = self.running.len() - 1;
            if last == 0 {
                // Nobody else is there: it goes on in the room it has.
                break;
            }
            let back = self.running.remove(last);
            self.preemptions += 1;
            cache.give(back.nameless);
            cache.unpin(&requests[back.request].blocks[..back.pinned]);
            let (request, generated) = (back.request, back.generated);
            self.waiting.push_front(Waiting { request, generated, known: true });
        }
    }
}
