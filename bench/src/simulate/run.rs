//! One run: a workload, a fleet, a router, in virtual time.
//!
//! A queue of events; of two at the same time the one that was put in first comes first. Everything
//! that is drawn comes from the seed, so a run can be repeated exactly.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use warmroute::routing::PrefillCost;

use super::cache::{BlockCache, CacheEvent};
use super::engine::{Discipline, Engine, Hardware, Sign};
use super::observer::{Knowledge, Observer, Seen};
use super::policies::{End, Needs, Router, Sight};
use super::workload::Workload;

/// A fleet.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// What it runs on.
    pub hardware: Hardware,
    /// How its engines work.
    pub discipline: Discipline,
    /// Relative speed of each worker.
    pub speeds: Vec<f64>,
    /// Tokens of cache a worker.
    pub cache_tokens: usize,
    /// How its caches are shared: not at all, by all, or without end.
    pub sharing: Sharing,
    /// What the router gets to know.
    pub knowledge: Knowledge,
    /// Whether the router knows prefill costs beforehand.
    pub costs_known: bool,
}

/// How caches are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Each has its own.
    Own,
    /// One pool of all their sizes.
    Pool,
    /// One pool without an end.
    Infinite,
}

/// What came of one request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fate {
    /// Worker.
    pub worker: u32,
    /// Seconds to the first token.
    pub ttft: f64,
    /// Seconds to the last.
    pub total: f64,
    /// Prompt tokens.
    pub tokens: u64,
    /// Those found cached.
    pub cached: u64,
    /// Those predicted to be.
    pub predicted: u64,
}

#[derive(Debug, Clone)]
enum Event {
    Arrival(usize),
    StepEnd(usize),
    FirstToken(usize),
    Finished(usize),
    Heard { worker: usize, happened: f64, events: Vec<CacheEvent> },
    Healed(usize),
}

struct Timed {
    at: f64,
    number: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest: the earliest, and of those the first that was put in.
        other.at.total_cmp(&self.at).then(other.number.cmp(&self.number))
    }
}

struct Run<'a> {
    workload: &'a Workload,
    engines: Vec<Engine>,
    caches: Vec<BlockCache>,
    shared: bool,
    observer: Observer,
    events: BinaryHeap<Timed>,
    number: u64,
    fates: Vec<Fate>,
    signs: Vec<Sign>,
    rng: SmallRng,
    discipline: Discipline,
    cache_tokens: usize,
    /// What each engine's metrics said: requests waiting, share of memory in use.
    polled: Vec<(usize, f64)>,
    polled_at: f64,
}

/// How often a router that polls metrics does so, seconds: llm-d's refresh interval.
const POLL_S: f64 = 0.05;

/// Sends a workload through a fleet.
pub fn run(workload: &Workload, fleet: &Fleet, router: &mut dyn Router, seed: u64) -> Vec<Fate> {
    let block_tokens = workload.requests.first().map_or(1, |request| request.block_tokens);
    let count = fleet.speeds.len();
    let own = (fleet.cache_tokens / block_tokens as usize).max(1);
    let sizes = match fleet.sharing {
        Sharing::Own => vec![own; count],
        Sharing::Pool => vec![own * count],
        Sharing::Infinite => vec![usize::MAX / 2],
    };
    let hardware = &fleet.hardware;
    let cost = PrefillCost {
        request_s: hardware.request_s,
        token_s: hardware.token_s,
        pair_s: hardware.pair_s,
    };
    let known = || fleet.speeds.iter().map(|speed| cost.times(1.0 / speed)).collect();
    let known = fleet.costs_known.then(known);
    let start = Instant::now();
    let requests = workload.requests.len();
    let mut run = Run {
        workload,
        engines: fleet
            .speeds
            .iter()
            .map(|speed| Engine::new(fleet.hardware, fleet.discipline, *speed))
            .collect(),
        caches: sizes.iter().map(|size| BlockCache::new(*size, workload.blocks)).collect(),
        shared: fleet.sharing != Sharing::Own,
        observer: Observer::new(fleet.knowledge, count, own, requests, known, start),
        events: BinaryHeap::new(),
        number: 0,
        fates: vec![Fate::default(); requests],
        signs: Vec::new(),
        rng: SmallRng::seed_from_u64(seed),
        discipline: fleet.discipline,
        cache_tokens: fleet.cache_tokens.max(1),
        polled: Vec::new(),
        polled_at: f64::NEG_INFINITY,
    };
    for (at, request) in workload.requests.iter().enumerate() {
        run.at(request.at, Event::Arrival(at));
    }
    let mut seen = Vec::new();
    while let Some(Timed { at: now, event, .. }) = run.events.pop() {
        match event {
            Event::Arrival(index) => run.arrive(index, router, &mut seen, now),
            Event::StepEnd(worker) => run.step_end(worker, now),
            Event::FirstToken(index) => {
                let request = &workload.requests[index];
                run.fates[index].ttft = now - request.at;
                run.observer.first_token(index, request, now);
                if !request.silent {
                    router.first_token(index, run.fates[index].worker as usize);
                }
            }
            Event::Finished(index) => {
                let request = &workload.requests[index];
                run.fates[index].total = now - request.at;
                let fate = run.fates[index];
                run.observer.finished(index, request, fate.cached, now);
                let worker = fate.worker as usize;
                router.finished(&End { index, request, worker, decode_s: fate.total - fate.ttft });
            }
            Event::Heard { worker, happened, events } => {
                run.hear(worker, &events, (happened, now));
            }
            Event::Healed(worker) => {
                run.observer.heal(worker, workload, &run.caches[worker], now);
            }
        }
    }
    run.fates
}

impl Run<'_> {
    fn at(&mut self, at: f64, event: Event) {
        self.number += 1;
        self.events.push(Timed { at, number: self.number, event });
    }

    fn cache_of(&self, worker: usize) -> usize {
        if self.shared { 0 } else { worker }
    }

    fn arrive(&mut self, index: usize, router: &mut dyn Router, seen: &mut Vec<Seen>, now: f64) {
        let request = &self.workload.requests[index];
        self.observer.see(request, now, seen);
        match router.needs() {
            Needs::Nothing => {}
            Needs::Truth => {
                for (worker, seen) in seen.iter_mut().enumerate() {
                    let cache = &self.caches[self.cache_of(worker)];
                    let engine = &self.engines[worker];
                    seen.true_answer_s =
                        engine.answer_s(request, &self.workload.requests, cache, now);
                }
            }
            Needs::Metrics => {
                self.poll(seen, now);
                for (seen, polled) in seen.iter_mut().zip(&self.polled) {
                    (seen.polled_waiting, seen.polled_used_share) = *polled;
                }
            }
        }
        let sight = Sight { index, request, now, workers: seen };
        let chosen = router.pick(&sight, &mut self.rng);
        let predicted = seen[chosen].hit_tokens;
        self.observer.sent(index, request, chosen, seen, now);
        let fate = &mut self.fates[index];
        (fate.worker, fate.tokens, fate.predicted) = (chosen as u32, request.tokens, predicted);
        self.engines[chosen].push(index);
        self.start(chosen, now);
    }

    /// Reads the engines' metrics, if the last time was long enough ago.
    fn poll(&mut self, seen: &[Seen], now: f64) {
        if now < self.polled_at + POLL_S {
            return;
        }
        self.polled_at = now;
        self.polled.clear();
        for (worker, seen) in seen.iter().enumerate() {
            let used = match self.discipline {
                Discipline::Batching { .. } => self.caches[self.cache_of(worker)].used_share(),
                // This engine keeps no account of it: prompts under way, over its size.
                Discipline::Fifo => (seen.prompt_tokens as f64 / self.cache_tokens as f64).min(1.0),
            };
            self.polled.push((self.engines[worker].waiting(), used));
        }
    }

    fn hear(&mut self, worker: usize, events: &[CacheEvent], (happened, now): (f64, f64)) {
        let times = (happened, now);
        if self.observer.hear(worker, self.workload, events, times, &mut self.rng) {
            self.at(now + 1.0, Event::Healed(worker));
        }
    }

    fn start(&mut self, worker: usize, now: f64) {
        if self.engines[worker].is_busy() {
            return;
        }
        let cache = self.cache_of(worker);
        let (requests, mut signs) = (&self.workload.requests, std::mem::take(&mut self.signs));
        let seconds =
            self.engines[worker].begin(requests, &mut self.caches[cache], now, &mut signs);
        self.take(&mut signs, now);
        self.signs = signs;
        self.tell(worker, now);
        if let Some(seconds) = seconds {
            self.at(now + seconds, Event::StepEnd(worker));
        }
    }

    fn step_end(&mut self, worker: usize, now: f64) {
        let cache = self.cache_of(worker);
        let (requests, mut signs) = (&self.workload.requests, std::mem::take(&mut self.signs));
        self.engines[worker].end(requests, &mut self.caches[cache], &mut signs);
        self.take(&mut signs, now);
        self.signs = signs;
        self.tell(worker, now);
        self.start(worker, now);
    }

    fn take(&mut self, signs: &mut Vec<Sign>, now: f64) {
        for sign in signs.drain(..) {
            match sign {
                Sign::FirstToken(index, after) => self.at(now + after, Event::FirstToken(index)),
                Sign::Finished(index, after) => self.at(now + after, Event::Finished(index)),
                Sign::Prefilled(index, cached) => self.fates[index].cached = cached,
            }
        }
    }

    /// Events of a cache go to the router.
    fn tell(&mut self, worker: usize, now: f64) {
        let cache = self.cache_of(worker);
        if self.caches[cache].events.is_empty() {
            return;
        }
        let events = std::mem::take(&mut self.caches[cache].events);
        match self.observer.hears_after() {
            None => {}
            Some(_) if self.shared => {}
            Some(late) if late <= 0.0 => self.hear(worker, &events, (now, now)),
            Some(late) => {
                self.at(now + late, Event::Heard { worker, happened: now, events });
            }
        }
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
