//! Aim: to show that the automatic bound is not seen by a fleet that keeps up, bounds the wait of one
//! that does not, and costs no throughput.
//!
//! Method: engines that batch continuously (steps of a fixed part, chunked prefill and a share a
//! decode; a bounded batch, the rest waits in order), random arrivals, virtual time, one seed. What
//! a fleet can do is measured by drowning it, so that loads are relative to that.

use std::collections::VecDeque;

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;
use crate::routing::{
    Ask, Candidate, Forecast, Load, Policy, PolicyParams, Work, pick, prefill::PrefillModel,
    worker::WorkerId,
};

/// Prefilled and decoded in one step, tokens.
const STEP_TOKENS: u64 = 2048;

/// An engine, as its flags describe it.
#[derive(Clone, Copy)]
struct Build {
    /// Requests in a batch.
    slots: usize,
    /// Fixed part of a step, seconds.
    step_s: f64,
    /// Share of a decode, seconds.
    decode_s: f64,
    prefill_tokens_per_s: f64,
}

const GPU: Build =
    Build { slots: 64, step_s: 0.008, decode_s: 0.0001, prefill_tokens_per_s: 8_000.0 };
const BIG: Build =
    Build { slots: 256, step_s: 0.010, decode_s: 0.0001, prefill_tokens_per_s: 20_000.0 };
/// A small machine: four at a time, a second for a hundred tokens.
const SLOW: Build = Build { slots: 4, step_s: 0.08, decode_s: 0.005, prefill_tokens_per_s: 300.0 };

#[derive(Clone, Copy)]
struct Request {
    at: f64,
    uncached: u64,
    answer: u64,
    streams: bool,
}

struct Run {
    id: usize,
    prefill_left: u64,
    answer_left: u64,
}

enum Event {
    First,
    End,
}

struct Engine {
    build: Build,
    /// Divides the time of every step; 0 hangs.
    speed: f64,
    waiting: VecDeque<Run>,
    running: Vec<Run>,
    /// When the step under way ends, and the prefill in it by place in `running`.
    step: Option<(f64, Vec<(usize, u64)>)>,
    clock: f64,
}

impl Engine {
    fn new(build: Build) -> Self {
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Self { build, speed: 1.0, waiting, running, step: None, clock: 0.0 }
    }

    fn begin(&mut self) {
        while self.running.len() < self.build.slots {
            let Some(run) = self.waiting.pop_front() else { break };
            self.running.push(run);
        }
        if self.running.is_empty() || self.speed <= 0.0 {
            return;
        }
        let decodes = self.running.iter().filter(|run| run.prefill_left == 0).count();
        let mut budget = STEP_TOKENS.saturating_sub(decodes as u64);
        let mut prefills = Vec::new();
        for (at, run) in self.running.iter().enumerate().filter(|(_, run)| run.prefill_left > 0) {
            let tokens = run.prefill_left.min(budget);
            budget -= tokens;
            prefills.push((at, tokens));
        }
        let prefilled: u64 = prefills.iter().map(|(_, tokens)| tokens).sum();
        let Build { step_s, decode_s, prefill_tokens_per_s, .. } = self.build;
        let took = step_s + decode_s * decodes as f64 + prefilled as f64 / prefill_tokens_per_s;
        self.step = Some((self.clock + took / self.speed, prefills));
    }

    /// Goes on until `until`; tells what happened and when.
    fn advance(&mut self, until: f64, events: &mut Vec<(f64, usize, Event)>) {
        loop {
            if self.step.is_none() {
                self.begin();
            }
            match self.step.take() {
                Some((end, prefills)) if end <= until => {
                    self.clock = end;
                    let mut first = vec![false; self.running.len()];
                    let mut decodes: Vec<_> =
                        self.running.iter().map(|run| run.prefill_left == 0).collect();
                    for (at, tokens) in prefills {
                        self.running[at].prefill_left -= tokens;
                        if self.running[at].prefill_left == 0 {
                            (first[at], decodes[at]) = (true, true);
                        }
                    }
                    for (at, run) in self.running.iter_mut().enumerate() {
                        if first[at] {
                            events.push((end, run.id, Event::First));
                        }
                        if decodes[at] {
                            run.answer_left = run.answer_left.saturating_sub(1);
                            if run.answer_left == 0 {
                                events.push((end, run.id, Event::End));
                            }
                        }
                    }
                    self.running.retain(|run| run.prefill_left > 0 || run.answer_left > 0);
                }
                step => {
                    self.step = step;
                    self.clock = self.clock.max(until);
                    return;
                }
            }
        }
    }
}

/// One worker as the router sees it.
struct Worker {
    engine: Engine,
    limit: Limit,
    model: PrefillModel,
    standing: Standing,
    decodes: u32,
}

/// What was sent and has not ended.
#[derive(Clone, Copy)]
struct Sent {
    at: f64,
    uncached: u64,
    streams: bool,
    ahead: u32,
    tokens: u64,
    begun: bool,
}

impl Worker {
    fn new(build: Build) -> Self {
        Self {
            engine: Engine::new(build),
            limit: Limit::new(),
            model: PrefillModel::new(),
            standing: Standing::default(),
            decodes: 0,
        }
    }

    fn candidate(&self, slot: usize, params: Option<&LimitParams>) -> Candidate {
        let Standing { requests, queued_tokens, waiting, .. } = self.standing;
        let cost = self.model.learned().unwrap_or_default();
        let backlog_s = cost.seconds(&Work::of_counts(waiting, queued_tokens));
        let gate = |params| {
            let bounds = self.limit.bounds(params);
            bounds.gate(&self.standing, bounds.preferred_max(&self.standing, 1.0))
        };
        Candidate {
            slot,
            key: WorkerId::try_new(&format!("w{slot}")).unwrap().key(),
            weight: 1.0,
            matched_blocks: 0,
            load: Load { requests, queued_tokens, decodes: self.decodes },
            inflight_max: params.map_or(FIXED, gate),
            forecast: Forecast { cost, backlog_s, ..Forecast::default() },
        }
    }

    fn take(&mut self, id: usize, request: &Request) -> Sent {
        let standing = &mut self.standing;
        let sent = Sent {
            at: request.at,
            uncached: request.uncached,
            streams: request.streams,
            ahead: standing.waiting,
            tokens: standing.queued_tokens + request.uncached,
            begun: false,
        };
        standing.requests += 1;
        standing.waiting += u32::from(request.streams);
        standing.queued_tokens += request.uncached;
        let (prefill_left, answer_left) = (request.uncached.max(1), request.answer.max(1));
        self.engine.waiting.push_back(Run { id, prefill_left, answer_left });
        sent
    }

    fn begins(&mut self, sent: &mut Sent, waited: f64, params: &LimitParams, now: Instant) {
        sent.begun = true;
        self.standing.waiting -= 1;
        self.standing.queued_tokens -= sent.uncached;
        self.decodes += 1;
        let waited = Duration::from_secs_f64(waited);
        self.model.observe(&Work::of_counts(sent.ahead + 1, sent.tokens), waited);
        let started = Started {
            waiting_ahead: sent.ahead,
            tokens: sent.tokens,
            waited,
            running: self.standing.requests - self.standing.waiting,
        };
        self.limit.on_start(&started, params, now);
    }

    fn ends(&mut self, sent: &Sent) {
        self.standing.requests -= 1;
        if sent.begun {
            self.decodes -= 1;
        } else {
            self.standing.queued_tokens -= sent.uncached;
        }
    }
}

/// What held before: a bound for all.
const FIXED: u32 = 1024;

#[derive(Clone, Copy)]
struct Bed {
    policy: Policy,
    /// `None`: a fixed bound.
    params: Option<LimitParams>,
    workers: usize,
    build: Build,
}

#[derive(Debug, Default)]
struct Outcome {
    sent: usize,
    /// When requests were refused, and when workers with too much were passed over.
    shed: Vec<f64>,
    passed_over: Vec<f64>,
    ended: usize,
    /// Time to first token of each that began, by when it arrived.
    ttft: Vec<(f64, f64)>,
    /// Requests in flight at the first worker and its bound, once a second.
    first: Vec<(u32, u32)>,
}

impl Outcome {
    fn ttft_at(&self, share: f64, from: f64, to: f64) -> f64 {
        let within = self.ttft.iter().filter(|(at, _)| (from..to).contains(at));
        let mut times: Vec<_> = within.map(|(_, ttft)| *ttft).collect();
        times.sort_by(f64::total_cmp);
        let at = (times.len() as f64 * share) as usize;
        times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or(0.0)
    }
}

/// Runs `traffic` and `after_s` more; `change` may alter the engines once a second.
#[expect(clippy::disallowed_methods, reason = "an instant to start from")]
fn run(
    bed: Bed,
    traffic: &[Request],
    after_s: f64,
    mut change: impl FnMut(f64, &mut Engine, usize),
) -> Outcome {
    let t0 = Instant::now();
    let at = |s: f64| t0 + Duration::from_secs_f64(s);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut out = Outcome::default();
    let params = bed.params.unwrap_or_else(auto);
    let mut workers: Vec<_> = (0..bed.workers).map(|_| Worker::new(bed.build)).collect();
    let mut sent: Vec<Option<Sent>> = vec![None; traffic.len()];
    let end = traffic.last().map_or(0.0, |request| request.at) + after_s;
    let mut second = 0.0;
    let mut arrivals = traffic.iter().enumerate().peekable();
    let mut events = Vec::new();
    loop {
        let next = arrivals.peek().map_or(end, |(_, request)| request.at);
        let now = next.min(second).min(end);
        for worker in &mut workers {
            worker.engine.advance(now, &mut events);
            for (when, id, event) in events.drain(..) {
                let request = sent[id].as_mut().expect("it was sent");
                match event {
                    Event::First => {
                        let waited = when - request.at;
                        out.ttft.push((request.at, waited));
                        if request.streams {
                            worker.begins(request, waited, &params, at(when));
                        }
                    }
                    Event::End => {
                        worker.ends(request);
                        sent[id] = None;
                        out.ended += 1;
                    }
                }
            }
        }
        if now >= end {
            return out;
        }
        if now >= second {
            second += 1.0;
            for (slot, worker) in workers.iter_mut().enumerate() {
                change(now, &mut worker.engine, slot);
                worker.limit.on_tick(&worker.standing, &params, at(now));
            }
            let Worker { limit, standing, .. } = &workers[0];
            out.first.push((standing.requests, limit.bounds(&params).inflight_max(standing)));
            continue;
        }
        let Some((id, request)) = arrivals.next() else { continue };
        out.sent += 1;
        let candidate = |(slot, worker): (usize, &Worker)| {
            worker.candidate(slot, bed.params.is_some().then_some(&params))
        };
        let candidates: Vec<_> = workers.iter().enumerate().map(candidate).collect();
        if candidates.iter().any(Candidate::is_saturated) {
            out.passed_over.push(request.at);
        }
        let (tokens, turn) = (request.uncached, id as u64);
        let ask = Ask { tokens, turn, session: Some(1), ..Ask::default() };
        match pick(bed.policy, &PolicyParams::default(), &ask, &candidates, &mut rng) {
            Ok(decision) => sent[id] = Some(workers[decision.slot].take(id, request)),
            Err(_) => out.shed.push(request.at),
        }
    }
}

/// Draws what one request asks for: uncached tokens, tokens of the answer, whether it streams.
type Draw = fn(&mut SmallRng) -> (u64, u64, bool);

/// Chats of which most is cached: what bounds them is the batch.
fn chats(rng: &mut SmallRng) -> (u64, u64, bool) {
    (rng.random_range(10..300), rng.random_range(30..400), true)
}

/// All cached, to the last token.
fn cached(rng: &mut SmallRng) -> (u64, u64, bool) {
    (1, rng.random_range(30..400), true)
}

/// From a hundred to thirty thousand tokens, short answers: what bounds them is the prefill.
fn documents(rng: &mut SmallRng) -> (u64, u64, bool) {
    let tokens = 100.0 * 300_f64.powf(rng.random());
    (tokens as u64, rng.random_range(10..100), true)
}

/// Chats, and one document in fifty.
fn mixed(rng: &mut SmallRng) -> (u64, u64, bool) {
    if rng.random_bool(0.02) { documents(rng) } else { chats(rng) }
}

/// Half of the chats are not streamed.
fn half_streamed(rng: &mut SmallRng) -> (u64, u64, bool) {
    let (uncached, answer, _) = chats(rng);
    (uncached, answer, rng.random())
}

/// Requests at random, so many a second.
fn arrivals(draw: Draw, rate: f64, from: f64, to: f64) -> Vec<Request> {
    let mut rng = SmallRng::seed_from_u64(3);
    let (mut now, mut requests) = (from, Vec::new());
    loop {
        now += -(1.0 - rng.random::<f64>()).ln() / rate;
        if now >= to {
            return requests;
        }
        let (uncached, answer, streams) = draw(&mut rng);
        requests.push(Request { at: now, uncached, answer, streams });
    }
}

/// Requests a second that one engine of this kind ends when it is drowned.
fn capacity(build: Build, draw: Draw) -> f64 {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut engine = Engine::new(build);
    for id in 0..4_000 {
        let (uncached, answer_left, _) = draw(&mut rng);
        engine.waiting.push_back(Run { id, prefill_left: uncached.max(1), answer_left });
    }
    let mut events = Vec::new();
    let (mut ended, mut until) = (0, 0.0);
    while ended < 2_000 {
        until += 1.0;
        engine.advance(until, &mut events);
        ended += events.drain(..).filter(|(.., event)| matches!(event, Event::End)).count();
    }
    ended as f64 / until
}

const BEDS: [(&str, Build, Draw); 8] = [
    ("chats", GPU, chats),
    ("cached", GPU, cached),
    ("documents", GPU, documents),
    ("mixed", GPU, mixed),
    ("half streamed", GPU, half_streamed),
    ("chats, big", BIG, chats),
    ("mixed, big", BIG, mixed),
    ("chats, slow", SLOW, chats),
];

const QUEUE_S: f64 = 30.0;

fn auto() -> LimitParams {
    LimitParams::try_new(Duration::from_secs_f64(QUEUE_S), 1024).unwrap()
}

/// Two workers under `load` times what they can do, for as long as 2,000 requests take them.
fn under(load: f64, params: Option<LimitParams>, build: Build, draw: Draw) -> (Outcome, f64) {
    let can = 2.0 * capacity(build, draw);
    let length = (2_000.0 / can).max(120.0);
    let bed = Bed { policy: Policy::PrefixAware, params, workers: 2, build };
    let out = run(bed, &arrivals(draw, can * load, 0.0, length), 0.0, |_, _, _| {});
    let done = out.ended as f64 / length / can;
    (out, done)
}

#[test]
fn a_fleet_that_keeps_up_never_sees_it() {
    for (name, build, draw) in BEDS {
        // With eight places, more than seconds of queue come and go by chance at 0.8.
        let busy = if build.slots == SLOW.slots { 0.6 } else { 0.8 };
        for load in [0.3, busy] {
            let (out, _) = under(load, Some(auto()), build, draw);
            assert!(out.sent > 200, "{name}: no traffic");
            assert_eq!((&out.passed_over, &out.shed), (&vec![], &vec![]), "{name} at {load}");
        }
    }
}

#[test]
fn a_fleet_that_does_not_keep_up_works_on_and_answers_in_time() {
    for (name, build, draw) in BEDS {
        let (out, done) = under(1.5, Some(auto()), build, draw);
        let (fixed, done_fixed) = under(1.5, None, build, draw);
        assert!(done > 0.97 * done_fixed, "{name}: {done} of {done_fixed}");
        // Twenty seconds may be one answer's time on the slow machine.
        let bound = if build.slots == SLOW.slots { 3.0 * QUEUE_S } else { 1.6 * QUEUE_S };
        let (late, late_fixed) = (out.ttft_at(0.99, 0.0, 1e9), fixed.ttft_at(0.99, 0.0, 1e9));
        assert!(late < bound, "{name}: {late}, {late_fixed} with a fixed bound");
    }
}

/// The tests above can fail: a fixed bound lets a queue of minutes grow.
#[test]
fn a_fixed_bound_does_not() {
    let (out, _) = under(1.5, None, GPU, documents);
    assert!(out.ttft_at(0.99, 0.0, 1e9) > 4.0 * QUEUE_S);
}

/// All go to the worker that one session hashes to, as long as it has room.
#[test]
fn others_get_what_one_has_too_much_of_and_nobody_is_refused() {
    let can = capacity(GPU, documents);
    let traffic = arrivals(documents, 3.0 * can * 0.7, 0.0, 600.0);
    let bed = |params| Bed { policy: Policy::SessionAffinity, params, workers: 3, build: GPU };
    let out = run(bed(Some(auto())), &traffic, 0.0, |_, _, _| {});
    assert!(out.shed.is_empty(), "{:?}", out.shed);
    assert!(!out.passed_over.is_empty(), "no herd");
    let (late, done) = (out.ttft_at(0.99, 0.0, 1e9), out.ended);
    assert!(late < 1.5 * QUEUE_S, "{late}");
    let fixed = run(bed(None), &traffic, 0.0, |_, _, _| {});
    assert!(fixed.ttft_at(0.99, 0.0, 1e9) > 4.0 * QUEUE_S && fixed.ended < done);
}

#[test]
fn it_recovers_when_engines_are_fast_again() {
    for (name, build, draw) in [("chats", GPU, chats as Draw), ("documents", GPU, documents)] {
        let can = 2.0 * capacity(build, draw);
        let traffic = arrivals(draw, can * 0.6, 0.0, 600.0);
        let bed = Bed { policy: Policy::PrefixAware, params: Some(auto()), workers: 2, build };
        let out = run(bed, &traffic, 0.0, |now, engine, _| {
            engine.speed = if (60.0..240.0).contains(&now) { 0.2 } else { 1.0 };
        });
        let shed_from = |from| out.shed.iter().filter(|at| **at >= from).count();
        assert!(shed_from(0.0) > 100, "{name}: three times too slow");
        // A queue of 30 seconds at a fifth of the speed is worked off by then.
        assert_eq!(shed_from(270.0), 0, "{name}");
        let seen = out.passed_over.iter().filter(|at| **at >= 270.0).count();
        assert_eq!(seen, 0, "{name}");
        assert!(out.ttft_at(0.99, 300.0, 1e9) < 10.0, "{name}");
    }
}

#[test]
fn a_worker_that_hangs_gets_no_more_until_it_goes_on() {
    let can = 3.0 * capacity(GPU, chats);
    let traffic = arrivals(chats, can * 0.5, 0.0, 400.0);
    let bed = |params| Bed { policy: Policy::RoundRobin, params, workers: 3, build: GPU };
    let hang = |now: f64, engine: &mut Engine, slot: usize| {
        let hangs = slot == 0 && (60.0..200.0).contains(&now);
        engine.speed = if hangs { 0.0 } else { 1.0 };
    };
    let out = run(bed(Some(auto())), &traffic, 0.0, hang);
    let most = |out: &Outcome| out.first.iter().map(|(requests, _)| *requests).max().unwrap_or(0);
    let per_s = can * 0.5 / 3.0;
    let (most_auto, most_fixed) = (most(&out), most(&run(bed(None), &traffic, 0.0, hang)));
    assert!(f64::from(most_auto) < 64.0 + per_s * 1.3 * QUEUE_S, "{most_auto} at {per_s} a second");
    assert!(f64::from(most_fixed) > per_s * 100.0, "{most_fixed}");
    assert!(out.shed.is_empty(), "the others had room");
    assert!(out.passed_over.iter().all(|at| *at < 260.0), "it serves again");
}

/// What an overload taught must not turn away a burst that is served in time.
#[test]
fn a_burst_that_is_served_in_time_is_taken_at_once() {
    for (name, draw) in [("chats", chats as Draw), ("cached", cached), ("documents", documents)] {
        let can = 2.0 * capacity(GPU, draw);
        let mut traffic = arrivals(draw, can * 1.5, 0.0, 200.0);
        let mut burst = arrivals(draw, can * 1e6, 300.0, 300.0 + 20.0 / 1e6);
        traffic.append(&mut burst);
        let bed = Bed { policy: Policy::LeastLoaded, params: Some(auto()), workers: 2, build: GPU };
        let out = run(bed, &traffic, 60.0, |_, _, _| {});
        assert!(!out.shed.is_empty(), "{name}: no overload");
        let refused = out.shed.iter().filter(|at| **at >= 300.0).count();
        assert_eq!(refused, 0, "{name}: served within {} s", out.ttft_at(1.0, 300.0, 1e9));
    }
}

/// The first requests wait for kernels to be compiled; soon there is no trace of it.
#[test]
fn a_cold_start_leaves_no_trace() {
    let can = 2.0 * capacity(GPU, chats);
    let traffic = arrivals(chats, can * 0.6, 0.0, 120.0);
    let bed = Bed { policy: Policy::PrefixAware, params: Some(auto()), workers: 2, build: GPU };
    for (stall_s, shed_max) in [(5.0, 0), (10.0, 0), (20.0, traffic.len() / 50)] {
        let out = run(bed, &traffic, 0.0, |now, engine, _| {
            engine.speed = if now < stall_s { 0.0 } else { 1.0 };
        });
        assert!(out.shed.len() <= shed_max, "{} after {stall_s} s", out.shed.len());
        assert!(out.passed_over.iter().all(|at| *at < 4.0 * stall_s), "{:?}", out.passed_over);
        assert!(out.first.last().is_some_and(|(_, bound)| *bound > 500), "{:?}", out.first);
    }
}

/// `cargo test --release -- --ignored --nocapture limit::simulation::table`: ADR 0015 shows a part.
#[test]
#[ignore = "prints a table"]
fn table() {
    for (name, build, draw) in BEDS {
        for load in [0.3, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0] {
            for params in [None, Some(auto())] {
                let can = 4.0 * capacity(build, draw);
                let length = (20_000.0 / can).clamp(300.0, 3000.0);
                let traffic = arrivals(draw, can * load, 0.0, length);
                let bed = Bed { policy: Policy::PrefixAware, params, workers: 4, build };
                let out = run(bed, &traffic, 0.0, |_, _, _| {});
                println!(
                    "{name:13} {load:4.2} {:5} sent {:6} shed {:6} done {:5.3} ttft p50 {:6.2} p99 {:7.2}",
                    params.map_or("1024", |_| "auto"),
                    out.sent,
                    out.shed.len(),
                    out.ended as f64 / length / can,
                    out.ttft_at(0.5, 0.0, 1e9),
                    out.ttft_at(0.99, 0.0, 1e9),
                );
            }
        }
    }
}
