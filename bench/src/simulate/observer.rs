//! What the router believes: the product's own index, load and pace, fed with what a proxy would
//! see and with reports as good or bad as asked for.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;
use warmroute::routing::backlog::Ticket;
use warmroute::routing::capacity::{CapacityEstimate, Sent};
use warmroute::routing::prefix::{EngineBlockId, Holdings, HoldingsParams, Index, Tier};
use warmroute::routing::{Forecast, Load, Pace, PrefillCost, Work, prefill, traffic};

use super::cache::{BlockCache, CacheEvent};
use super::workload::{NAME_BYTES, Request, Workload, name_of};

/// What the router gets to know of caches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Knowledge {
    /// Every event, `late` seconds after it happened.
    Events {
        /// Seconds.
        late: f64,
    },
    /// Events, 0.1 s late, of which a share of the batches is lost; a second after a loss the worker
    /// states all it holds.
    Lossy {
        /// 0 to 1.
        share: f64,
    },
    /// No events: what was sent is presumed to be there, in a cache of so many times its true size.
    Presumed {
        /// Assumed over true capacity.
        factor: f64,
        /// Whether answers say how much was cached.
        feedback: bool,
    },
}

/// A worker as the router sees it when it has to pick.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Leading blocks believed to be held.
    pub matched: usize,
    /// The same in tokens.
    pub hit_tokens: u64,
    /// Requests, uncached prompt tokens waiting, decodes.
    pub load: Load,
    /// The product's forecast.
    pub forecast: Forecast,
    /// Prompt tokens of all its requests, waiting or running.
    pub prompt_tokens: u64,
    /// Prompt tokens, cached or not, of those without a first token.
    pub waiting_prompt_tokens: u64,
    /// Seconds until it would send a first token in truth: for bounds only.
    pub true_answer_s: f64,
    /// Blocks of its index.
    pub held_blocks: usize,
    /// Requests waiting in the engine, as its metrics said when they were polled last.
    pub polled_waiting: usize,
    /// Share of its cache that running requests hold, likewise.
    pub polled_used_share: f64,
}

#[derive(Debug)]
struct Worker {
    holdings: Holdings,
    capacity: CapacityEstimate,
    pace: Pace,
    load: Load,
    prompt_tokens: u64,
    waiting_prompt_tokens: u64,
    /// Events were lost, and the gap not healed yet.
    gap: bool,
    /// When it last stated all it holds: what happened before is in that.
    stated_at: f64,
}

#[derive(Debug, Default, Clone)]
struct Flight {
    worker: usize,
    ticket: Option<Ticket>,
    uncached: u64,
    sent: Option<Sent>,
    decoding: bool,
}

/// The router's side of a fleet.
#[derive(Debug)]
pub struct Observer {
    start: Instant,
    knowledge: Knowledge,
    workers: Vec<Worker>,
    /// What all of them hold.
    index: Index,
    flights: Vec<Flight>,
    /// Prefill costs known beforehand.
    known: Option<Vec<PrefillCost>>,
    upkept: f64,
    params: HoldingsParams,
}

impl Observer {
    /// A router that has not seen anything of `workers` with `capacity` blocks each.
    pub fn new(
        knowledge: Knowledge,
        workers: usize,
        capacity: usize,
        requests: usize,
        known: Option<Vec<PrefillCost>>,
        start: Instant,
    ) -> Self {
        let factor = match knowledge {
            Knowledge::Presumed { factor, .. } => factor,
            _ => 1.0,
        };
        let blocks_max = ((capacity as f64 * factor) as usize).max(1);
        let params = HoldingsParams {
            id_seed: 1,
            blocks_max,
            engine_bytes_max: 1 << 32,
            presumed_ttl: Duration::from_mins(1),
        };
        let reports = !matches!(knowledge, Knowledge::Presumed { .. });
        let mut index = Index::new(1 << 36);
        let mut worker = |at: usize| {
            let mut holdings = Holdings::new(params, &mut index, start);
            holdings.set_confirming(&index, reports, start);
            let mut pace = Pace::new(start);
            if let Some(known) = &known {
                pace.set_cost(known[at]);
            }
            Worker {
                holdings,
                capacity: CapacityEstimate::new(blocks_max),
                pace,
                load: Load::default(),
                prompt_tokens: 0,
                waiting_prompt_tokens: 0,
                gap: false,
                stated_at: f64::NEG_INFINITY,
            }
        };
        let workers = (0..workers).map(&mut worker).collect();
        Self {
            start,
            knowledge,
            workers,
            index,
            flights: vec![Flight::default(); requests],
            known,
            upkept: 0.0,
            params,
        }
    }

    fn at(&self, now: f64) -> Instant {
        self.start + Duration::from_secs_f64(now)
    }

    /// What it sees of every worker when `request` has to be sent.
    pub fn see(&mut self, request: &Request, now: f64, seen: &mut Vec<Seen>) {
        self.upkeep(now);
        let at = self.at(now);
        seen.clear();
        seen.extend(self.workers.iter().map(|worker| {
            let matched = worker.holdings.matched(&self.index, &request.hashes).gpu;
            Seen {
                matched,
                hit_tokens: request.tokens_of(matched),
                load: worker.load,
                forecast: worker.pace.forecast(at),
                prompt_tokens: worker.prompt_tokens,
                waiting_prompt_tokens: worker.waiting_prompt_tokens,
                true_answer_s: 0.0,
                held_blocks: worker.holdings.stats(&self.index).blocks(),
                polled_waiting: 0,
                polled_used_share: 0.0,
            }
        }));
    }

    /// As the product's once a second.
    fn upkeep(&mut self, now: f64) {
        if self.known.is_some() || now < self.upkept {
            return;
        }
        self.upkept = now + 1.0;
        let at = self.at(now);
        let learned: Vec<_> = self.workers.iter().map(|w| ((), w.pace.known(at))).collect();
        for (worker, cost) in self.workers.iter_mut().zip(prefill::believed(&learned)) {
            worker.pace.set_cost(cost);
        }
    }

    /// `request`, the `index`th, is sent to `to`.
    pub fn sent(&mut self, index: usize, request: &Request, to: usize, seen: &[Seen], now: f64) {
        let at = self.at(now);
        let rate = seen.iter().map(|seen| seen.forecast.traffic.requests_per_s).sum();
        let window = traffic::window(seen.len(), rate);
        let worker = &mut self.workers[to];
        let hit = seen[to].hit_tokens;
        let uncached = request.tokens - hit;
        let ticket =
            worker.pace.sent(Work::of(uncached, request.tokens), hit, request.silent, window, at);
        worker.load.requests += 1;
        worker.load.queued_tokens += uncached;
        worker.prompt_tokens += request.tokens;
        worker.waiting_prompt_tokens += request.tokens;
        let sent = matches!(self.knowledge, Knowledge::Presumed { feedback: true, .. })
            .then(|| worker.capacity.sent(&request.hashes));
        worker.holdings.presume(&mut self.index, &request.hashes, at);
        self.flights[index] =
            Flight { worker: to, ticket: Some(ticket), uncached, sent, decoding: false };
    }

    /// Its first token came. Of a request that is not streamed nothing is seen.
    pub fn first_token(&mut self, index: usize, request: &Request, now: f64) {
        if request.silent {
            return;
        }
        let at = self.at(now);
        let flight = &mut self.flights[index];
        let worker = &mut self.workers[flight.worker];
        let Some(ticket) = flight.ticket.take() else { return };
        worker.pace.first_token(ticket, at);
        worker.load.queued_tokens -= flight.uncached;
        worker.waiting_prompt_tokens -= request.tokens;
        worker.load.decodes += 1;
        flight.decoding = true;
    }

    /// Its last token came; `cached` tokens had been there.
    pub fn finished(&mut self, index: usize, request: &Request, cached: u64, now: f64) {
        let at = self.at(now);
        let flight = std::mem::take(&mut self.flights[index]);
        let worker = &mut self.workers[flight.worker];
        if let Some(ticket) = flight.ticket {
            worker.pace.gone(ticket, at);
            worker.load.queued_tokens -= flight.uncached;
            worker.waiting_prompt_tokens -= request.tokens;
        }
        worker.load.requests -= 1;
        worker.load.decodes -= u32::from(flight.decoding);
        worker.prompt_tokens -= request.tokens;
        if let Some(sent) = flight.sent {
            let held = (cached as f64 / request.block_tokens as f64).round() as usize;
            if worker.capacity.answered(&sent, held) {
                let blocks_max = worker.capacity.blocks();
                worker.holdings.set_params(HoldingsParams { blocks_max, ..self.params });
                while worker.holdings.settle(&mut self.index, 1 << 16) {}
            }
            if worker.holdings.prefilled(&mut self.index, &request.hashes) {
                worker.holdings.presume(&mut self.index, &request.hashes, at);
            }
        }
    }

    /// How long after an event the router hears of it; `None` if never.
    pub fn hears_after(&self) -> Option<f64> {
        match self.knowledge {
            Knowledge::Events { late } => Some(late),
            Knowledge::Lossy { .. } => Some(0.1),
            Knowledge::Presumed { .. } => None,
        }
    }

    /// A batch of events, of what happened at `happened`, arrives. Says whether a gap is to be
    /// healed in a second.
    pub fn hear(
        &mut self,
        from: usize,
        workload: &Workload,
        events: &[CacheEvent],
        (happened, now): (f64, f64),
        rng: &mut SmallRng,
    ) -> bool {
        let at = self.at(now);
        let worker = &mut self.workers[from];
        if happened <= worker.stated_at {
            return false;
        }
        if let Knowledge::Lossy { share } = self.knowledge
            && rng.random::<f64>() < share
        {
            // Not heard; the next batch's number will tell.
            return !std::mem::replace(&mut worker.gap, true);
        }
        worker.holdings.expire(&mut self.index, at);
        apply(&mut worker.holdings, &mut self.index, workload, events);
        while self.index.sweep(1 << 16) {}
        false
    }

    /// A worker states all it holds.
    pub fn heal(&mut self, from: usize, workload: &Workload, cache: &BlockCache, now: f64) {
        let worker = &mut self.workers[from];
        worker.gap = false;
        worker.stated_at = now;
        drop(worker.holdings.drop_rank(&mut self.index, 0));
        while self.index.sweep(1 << 16) {}
        let mut blocks: Vec<u32> = cache.blocks().collect();
        // Numbers grow with depth, so parents come first.
        blocks.sort_unstable();
        let events: Vec<_> = blocks.into_iter().map(CacheEvent::Stored).collect();
        apply(&mut worker.holdings, &mut self.index, workload, &events);
    }
}

/// Puts events into the index, chains of stored blocks at once.
fn apply(holdings: &mut Holdings, index: &mut Index, workload: &Workload, events: &[CacheEvent]) {
    let id = |block: u32| EngineBlockId(u64::from(block) + 1);
    for event in events {
        match *event {
            CacheEvent::Stored(block) => {
                let parent = workload.parents[block as usize].map(id);
                let name = name_of(block);
                let one = std::iter::once((id(block), &name[..]));
                holdings.stored(index, 0, Tier::Gpu, workload.root, parent, one, NAME_BYTES);
            }
            CacheEvent::Removed(block) => {
                holdings.removed(index, 0, Tier::Gpu, &[id(block)]);
            }
        }
    }
}

#[cfg(test)]
#[path = "observer_tests.rs"]
mod tests;
