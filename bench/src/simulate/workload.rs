//! What is sent: a trace's requests, at another load and another draw of its arrivals.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use warmroute::routing::block::{BlockHash, BlockHasher, Root, Secret};

use super::hardware::Hardware;
use crate::trace::Trace;

/// Bytes that stand for a block in the router's index: its number.
pub const NAME_BYTES: NonZeroUsize = NonZeroUsize::new(8).expect("not zero");

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Arrival, seconds.
    pub at: f64,
    /// Conversation.
    pub session: u64,
    /// Prompt tokens; at least one.
    pub tokens: u64,
    /// Tokens of a full block; at least one.
    pub block_tokens: u64,
    /// Tokens of the answer; at least one.
    pub output: u32,
    /// Whether its answer is not streamed: the router sees its end only.
    pub silent: bool,
    /// Blocks, numbered from 0; equal numbers are equal blocks with all that precedes them.
    pub blocks: Vec<u32>,
    /// The same in the router's index.
    pub hashes: Vec<BlockHash>,
    /// Blocks of the conversation's next prompt that this answer fills.
    pub generated: Vec<u32>,
}

impl Request {
    /// Tokens in leading blocks.
    pub fn tokens_of(&self, blocks: usize) -> u64 {
        (blocks as u64 * self.block_tokens).min(self.tokens)
    }

    /// Blocks that hold so many tokens.
    pub fn blocks_for(&self, tokens: u64) -> usize {
        tokens.div_ceil(self.block_tokens) as usize
    }
}

/// A trace made ready.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Name of the trace.
    pub name: String,
    /// In order of arrival.
    pub requests: Vec<Request>,
    /// Distinct blocks.
    pub blocks: usize,
    /// Each block's parent, if it has one.
    pub parents: Vec<Option<u32>>,
    /// Root of the router's block names.
    pub root: Root,
    /// Mean distance of the stamps, where arrivals are real but stamped in ticks.
    pub tick_s: Option<f64>,
}

/// One line of a trace.
#[derive(Debug, Clone)]
pub struct Line {
    /// Arrival, seconds.
    pub t: f64,
    /// Conversation.
    pub session: String,
    /// Prompt tokens.
    pub tokens: u64,
    /// Answer tokens.
    pub output: u32,
    /// Tokens a block.
    pub block_tokens: u64,
    /// Blocks by the trace's own numbers.
    pub blocks: Vec<u64>,
}

/// A trace that cannot be simulated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    trace: String,
    /// From 1.
    request: usize,
    problem: &'static str,
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { trace, request, problem } = self;
        write!(f, "{trace}: request {request} {problem}: docs/replay.md says what block ids mean")
    }
}

impl std::error::Error for Unusable {}

impl Workload {
    /// Makes a trace ready.
    ///
    /// # Errors
    /// [`Unusable`]: an equal block id stands for different prefixes, or blocks and tokens do not
    /// agree.
    pub fn of(trace: &Trace) -> Result<Self, Unusable> {
        let lines: Vec<Line> = trace
            .requests
            .iter()
            .enumerate()
            .map(|(at, request)| Line {
                t: request.t,
                // Nobody continues a request that names no session.
                session: request
                    .session
                    .as_ref()
                    .map_or_else(|| format!("#{at}"), |s| format!("={s}")),
                tokens: u64::from(request.prompt_tokens),
                output: request.max_tokens,
                block_tokens: u64::from(request.block_tokens),
                blocks: request.blocks.to_vec(),
            })
            .collect();
        Self::try_new(&trace.name, &lines)
    }

    /// Makes lines ready.
    ///
    /// # Errors
    /// [`Unusable`]: an equal block id stands for different prefixes, or blocks and tokens do not
    /// agree.
    pub fn try_new(name: &str, lines: &[Line]) -> Result<Self, Unusable> {
        let root = Secret::from_seed(7).root(&[]);
        let mut numbers: HashMap<u64, u32> = HashMap::new();
        let mut sessions: HashMap<&str, u64> = HashMap::new();
        let mut parents: Vec<Option<u32>> = Vec::new();
        let mut requests = Vec::with_capacity(lines.len());
        for (at, line) in lines.iter().enumerate() {
            let unusable = |problem| Unusable { trace: name.into(), request: at + 1, problem };
            let mut parent = None;
            let mut hasher = BlockHasher::new(root, NAME_BYTES);
            let mut blocks = Vec::with_capacity(line.blocks.len());
            for &block in &line.blocks {
                let next = numbers.len() as u32;
                let number = *numbers.entry(block).or_insert(next);
                if number == next {
                    parents.push(parent);
                } else if parents[number as usize] != parent {
                    return Err(unusable("has a block behind another one than before"));
                }
                hasher.push(&name_of(number));
                blocks.push(number);
                parent = Some(number);
            }
            let block_tokens = line.block_tokens.max(1);
            // Tokens that were estimated from bytes may miss the edge of the last block.
            let fit = line.tokens.clamp(
                (blocks.len() as u64).saturating_sub(1) * block_tokens + 1,
                (blocks.len() as u64).max(1) * block_tokens,
            );
            if blocks.is_empty() || fit.abs_diff(line.tokens) > block_tokens {
                return Err(unusable("has more or fewer blocks than its tokens fill"));
            }
            let fresh = sessions.len() as u64;
            requests.push(Request {
                at: line.t,
                session: *sessions.entry(&line.session).or_insert(fresh),
                tokens: fit,
                block_tokens,
                output: line.output.max(1),
                silent: false,
                blocks,
                hashes: hasher.finish(),
                generated: Vec::new(),
            });
        }
        let tick_s = tick_s(&requests);
        let blocks = numbers.len();
        let mut workload = Self { name: name.into(), requests, blocks, parents, root, tick_s };
        workload.find_generated();
        Ok(workload)
    }

    /// Which blocks of its next prompt an answer leaves behind.
    fn find_generated(&mut self) {
        let mut last: HashMap<u64, usize> = HashMap::new();
        for at in 0..self.requests.len() {
            let session = self.requests[at].session;
            if let Some(before) = last.insert(session, at) {
                let (earlier, later) = (&self.requests[before], &self.requests[at]);
                let own = earlier.blocks.len();
                let full = (earlier.tokens + u64::from(earlier.output)) / earlier.block_tokens;
                let shared = earlier.blocks.iter().zip(&later.blocks).take_while(|(a, b)| a == b);
                // The last block is seldom full, so it need not be the same.
                if shared.count() + 1 >= own && later.blocks.len() >= own {
                    let from = own.saturating_sub(1);
                    let to = (full as usize).min(later.blocks.len());
                    let generated = later.blocks.get(from..to).unwrap_or_default().to_vec();
                    self.requests[before].generated = generated;
                }
            }
        }
    }

    /// Arrivals drawn anew: conversations begin at other moments of the same span, with the same
    /// pauses in them. Where arrivals are `real`, all stay, within `real` seconds.
    #[must_use]
    pub fn redrawn(&self, real: Option<f64>, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut workload = self.clone();
        if let Some(tick) = real {
            for request in &mut workload.requests {
                request.at += rng.random::<f64>() * tick;
            }
        } else {
            let mut starts: HashMap<u64, f64> = HashMap::new();
            for request in &self.requests {
                starts.entry(request.session).or_insert(request.at);
            }
            let first = starts.values().copied().fold(f64::INFINITY, f64::min);
            let last = starts.values().copied().fold(0.0, f64::max);
            let mut shifts: HashMap<u64, f64> = HashMap::new();
            for request in &mut workload.requests {
                let shift = shifts.entry(request.session).or_insert_with(|| {
                    first + rng.random::<f64>() * (last - first) - starts[&request.session]
                });
                request.at += *shift;
            }
        }
        workload.requests.sort_by(|a, b| a.at.total_cmp(&b.at));
        workload
    }

    /// A `share` of the requests, drawn by `seed`, is not streamed.
    pub fn silence(&mut self, share: f64, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x51e7);
        for request in &mut self.requests {
            request.silent = rng.random::<f64>() < share;
        }
    }

    /// Time stretched or shrunk so that a fleet of `capacity` workers without any cache would be
    /// busy with prefills for `load` of it.
    pub fn scale_to(&mut self, hardware: &Hardware, capacity: f64, load: f64) {
        let work: f64 = self.requests.iter().map(|r| hardware.prefill_s(r.tokens, r.tokens)).sum();
        let first = self.requests.first().map_or(0.0, |request| request.at);
        let span = self.requests.last().map_or(0.0, |request| request.at) - first;
        let factor = work / (capacity * load * span.max(1e-9));
        for request in &mut self.requests {
            request.at = (request.at - first) * factor;
        }
    }

    /// Mean prompt length.
    pub fn mean_tokens(&self) -> f64 {
        let tokens: u64 = self.requests.iter().map(|request| request.tokens).sum();
        tokens as f64 / self.requests.len().max(1) as f64
    }
}

/// Arrivals are ticks where fewer than half of their stamps are distinct.
fn tick_s(requests: &[Request]) -> Option<f64> {
    let steps = requests.windows(2).filter(|pair| pair[0].at < pair[1].at).count();
    let span = requests.last()?.at - requests.first()?.at;
    (steps > 0 && 2 * (steps + 1) < requests.len()).then(|| span / steps as f64)
}

/// What stands for a block.
pub fn name_of(block: u32) -> [u8; 8] {
    u64::from(block).to_le_bytes()
}

#[cfg(test)]
#[path = "workload_tests.rs"]
mod tests;
