//! Modelled engines: what a worker does with its requests, in virtual time.
//!
//! Two kinds. `Fifo` prefills one prompt after the other and decodes beside that: the model of
//! published bounds. `Batching` is what vLLM and SGLang do: see `batching.rs`. Either is pure: it is
//! handed the time and the cache, and gives back how long its step takes and what can be seen of it.

mod batching;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::cache::BlockCache;
use super::workload::Request;
use batching::Sequence;

pub use super::hardware::{Hardware, LLAMA_8B, LLAMA_70B};

/// How an engine goes about its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discipline {
    /// One prefill after the other, decodes beside them; memory of running requests is not counted.
    Fifo,
    /// Continuous batching with chunked prefill.
    Batching {
        /// Tokens a step; at least one.
        budget: u32,
        /// Sequences that run at a time; at least one.
        sequences: usize,
    },
}

/// Something a router can see, or that has to happen later.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sign {
    /// A request's first token comes after so many seconds.
    FirstToken(usize, f64),
    /// Its last.
    Finished(usize, f64),
    /// Its prompt was looked up for the first time: so many tokens were there.
    Prefilled(usize, u64),
}

/// A request that waits.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    request: usize,
    /// Tokens generated before it was sent back.
    generated: u32,
    /// Whether it has been looked up before.
    known: bool,
}

/// The prefill that a `Fifo` engine is at.
#[derive(Debug, Clone, Copy)]
struct Head {
    request: usize,
    since: f64,
    /// At full speed.
    seconds: f64,
}

/// One engine.
#[derive(Debug, Clone)]
pub struct Engine {
    hardware: Hardware,
    discipline: Discipline,
    speed: f64,
    waiting: VecDeque<Waiting>,
    head: Option<Head>,
    running: Vec<Sequence>,
    busy: bool,
    /// How often a sequence was sent back.
    preemptions: u64,
}

impl Engine {
    /// An idle engine, `speed` times as fast as its hardware.
    pub fn new(hardware: Hardware, discipline: Discipline, speed: f64) -> Self {
        Self {
            hardware,
            discipline,
            speed,
            waiting: VecDeque::new(),
            head: None,
            running: Vec::new(),
            busy: false,
            preemptions: 0,
        }
    }

    /// A request comes.
    pub fn push(&mut self, request: usize) {
        self.waiting.push_back(Waiting { request, generated: 0, known: false });
    }

    /// Whether a step is under way.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Requests that wait to be taken up.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How often a sequence was sent back for want of memory.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Seconds of prefill before a new request, as the engine itself knows them.
    pub fn backlog_s(&self, requests: &[Request], cache: &BlockCache, now: f64) -> f64 {
        let of = |waiting: &Waiting| self.own_s(&requests[waiting.request], cache);
        let waiting: f64 = self.waiting.iter().map(of).sum();
        let head =
            self.head.map_or(0.0, |head| (head.seconds - (now - head.since) * self.speed).max(0.0));
        let running = self.running.iter().map(|sequence| sequence.left_s(&self.hardware));
        (waiting + head + running.sum::<f64>()) / self.speed
    }

    /// Seconds until a new request's first token, roughly: `backlog_s` and its own prefill.
    pub fn answer_s(
        &self,
        request: &Request,
        requests: &[Request],
        cache: &BlockCache,
        now: f64,
    ) -> f64 {
        self.backlog_s(requests, cache, now) + self.own_s(request, cache) / self.speed
    }

    /// Prefill of a request against what is cached, at full speed.
    fn own_s(&self, request: &Request, cache: &BlockCache) -> f64 {
        let held = request.tokens_of(cache.matched(&request.blocks));
        self.hardware.prefill_s(request.tokens - held, request.tokens)
    }

    /// Begins a step, if there is anything to do; gives its seconds. No step may be under way.
    pub fn begin(
        &mut self,
        requests: &[Request],
        cache: &mut BlockCache,
        now: f64,
        signs: &mut Vec<Sign>,
    ) -> Option<f64> {
        debug_assert!(!self.busy);
        let seconds = match self.discipline {
            Discipline::Fifo => self.begin_fifo(requests, cache, now, signs)?,
            Discipline::Batching { budget, sequences } => {
                self.begin_batch(requests, cache, budget, sequences, signs)?
            }
        };
        self.busy = true;
        Some(seconds / self.speed)
    }

    /// Ends it.
    pub fn end(&mut self, requests: &[Request], cache: &mut BlockCache, signs: &mut Vec<Sign>) {
        self.busy = false;
        match self.discipline {
            Discipline::Fifo => self.end_fifo(requests, cache, signs),
            Discipline::Batching { .. } => self.end_batch(requests, cache, signs),
        }
    }

    fn begin_fifo(
        &mut self,
        requests: &[Request],
        cache: &mut BlockCache,
        now: f64,
        signs: &mut Vec<Sign>,
    ) -> Option<f64> {
        let Waiting { request: index, .. } = self.waiting.pop_front()?;
        let request = &requests[index];
        let matched = cache.matched(&request.blocks);
        let held = request.tokens_of(matched);
        // What it uses is recent from now on.
        cache.store(&request.blocks[..matched]);
        signs.push(Sign::Prefilled(index, held));
        let seconds = self.hardware.prefill_s(request.tokens - held, request.tokens);
        self.head = Some(Head { request: index, since: now, seconds });
        Some(seconds)
    }

    fn end_fifo(&mut self, requests: &[Request], cache: &mut BlockCache, signs: &mut Vec<Sign>) {
        let Some(Head { request: index, .. }) = self.head.take() else { return };
        let request = &requests[index];
        cache.store(&request.blocks);
        let step = self.hardware.step_s / self.speed;
        signs.push(Sign::FirstToken(index, step));
        signs.push(Sign::Finished(index, step * f64::from(request.output)));
    }
}
