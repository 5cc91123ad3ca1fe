//! From a request to a worker: candidates, match, policy, and the marks the pick leaves.

use std::{
    cell::RefCell,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use smallvec::{SmallVec, smallvec};

use super::{
    Account, Fleet, Health, Live, Member,
    feedback::Prediction,
    inflight::{Dispatch, InflightGuard},
    is_tried,
    limit::{self, Ahead},
    truth::Domain,
};
use crate::{
    config::Config,
    routing::{
        self, Admission, Ask, Candidate, Policy, PolicyParams, PromptKind, Reason, Shed, WorkerId,
        block::BlockHash, capacity::Sent, prefix::Matched, traffic,
    },
    telemetry::{events, metrics},
};

thread_local! {
    static CANDIDATES: RefCell<Vec<Candidate>> = RefCell::default();
}

/// What a pick is asked with.
#[derive(Debug)]
pub struct PromptAsk<'a> {
    /// Model asked for.
    pub model: Option<&'a str>,
    /// Policy and its constants.
    pub policy: &'a (Policy, PolicyParams),
    /// Blocks of each prompt; empty without any.
    pub prompts: &'a [Vec<BlockHash>],
    /// What the blocks are named by.
    pub domain: Domain,
    /// Whether the prompt is some tenant's own.
    pub tenant: bool,
    /// Canonical bytes of all prompts.
    pub bytes: u64,
    /// Prompt tokens, where they are known.
    pub exact_tokens: Option<u64>,
    /// Tokens a block, where they are.
    pub block_tokens: usize,
    /// Whether there is a prompt, and whether it could be read.
    pub kind: PromptKind,
    /// Estimated prompt tokens.
    pub tokens: u64,
    /// Whether it asks for a stream, so that its first token will be seen.
    pub streams: bool,
    /// Session, hashed.
    pub session: Option<u64>,
    /// System prompt, hashed.
    pub prefix: Option<u64>,
    /// Workers that must not be picked again.
    pub tried: &'a [WorkerId],
    /// Whether an attempt has failed before.
    pub retry: bool,
}

/// A worker was picked; while this lives the request counts as its load.
#[derive(Debug)]
pub struct Picked {
    /// The worker.
    pub member: Arc<Member>,
    /// Why.
    pub reason: Reason,
    /// Blocks it is believed to hold.
    pub matched_blocks: usize,
    /// Blocks the prompt has.
    pub total_blocks: usize,
    /// What it is counted as.
    pub account: Account,
    /// What was believed of its cache.
    pub prediction: Prediction,
    /// What the answer will tell of its capacity.
    pub sent: Option<Sent>,
    /// Prefill tokens before the first token: those queued there before, and this prompt's own.
    pub tokens_ahead: u64,
    /// What was there before it.
    pub ahead: Ahead,
    /// Keeps the count.
    pub guard: InflightGuard,
    /// Whether this request is the breaker's probe.
    pub probe: bool,
    /// Whether the worker's reports would confirm that it holds the prompt.
    pub confirms: bool,
    /// When it was picked.
    pub at: Instant,
}

/// Why nobody was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickError {
    /// Nobody serves the model.
    UnknownModel,
    /// All that serve it are out (or were tried).
    NoWorker,
    /// All that serve it are at their limit.
    Saturated,
}

impl Fleet {
    /// Picks a worker and marks its index and load.
    ///
    /// # Errors
    /// `PickError`; nothing was marked.
    pub fn pick(
        &self,
        live: &Live,
        ask: &PromptAsk<'_>,
        now: Instant,
    ) -> Result<Picked, PickError> {
        // A large fleet's candidates fill hundreds of KiB: kept for the next pick of this thread.
        let mut candidates = CANDIDATES.take();
        let picked = self.pick_of(&mut candidates, live, ask, now);
        candidates.clear();
        CANDIDATES.set(candidates);
        if picked.is_ok() {
            let took = crate::clock::now().saturating_duration_since(now);
            metrics::DECISION_SECONDS.observe(took.as_secs_f64());
        }
        picked
    }

    fn pick_of(
        &self,
        candidates: &mut Vec<Candidate>,
        live: &Live,
        ask: &PromptAsk<'_>,
        now: Instant,
    ) -> Result<Picked, PickError> {
        let members = self.members.load();
        if !self.serves(ask.model) {
            return Err(PickError::UnknownModel);
        }
        let question = self.question(ask);
        self.find_candidates(candidates, &members, ask, &live.config, now);
        let picked = loop {
            limit::relent(candidates, &members, &live.config.auto_limit);
            let decision =
                routing::pick(ask.policy.0, &ask.policy.1, &question, candidates, &mut rand::rng())
                    .map_err(|shed| match shed {
                        Shed::NoCandidate => PickError::NoWorker,
                        Shed::Saturated => PickError::Saturated,
                    })?;
            let member = &members[decision.slot];
            // It may have been drained, or its probe taken, since the candidates were made.
            if let Some(probe) = claim(member, now) {
                break (member.clone(), decision, probe);
            }
            candidates.retain(|candidate| candidate.slot != decision.slot);
        };
        let (member, decision, probe) = picked;
        let account = self.account(live, &question, candidates, &decision, &members);
        let picked = mark(member, ask, &decision, account, probe, window_of(candidates), now);
        self.tell_presumed(&picked, ask.prompts, ask.domain, ask.tenant);
        events::decided(picked.reason);
        Ok(picked)
    }

    fn question(&self, ask: &PromptAsk<'_>) -> Ask {
        Ask {
            kind: ask.kind,
            blocks: blocks_of(ask.prompts),
            tokens: ask.tokens,
            session: ask.session,
            prefix: ask.prefix,
            turn: self.turn.fetch_add(1, Relaxed),
            retry: ask.retry,
        }
    }

    /// All that may be asked now, with how far each has the prompts.
    fn find_candidates(
        &self,
        candidates: &mut Vec<Candidate>,
        members: &[Arc<Member>],
        ask: &PromptAsk<'_>,
        config: &Config,
        now: Instant,
    ) {
        self.index.with_depths(ask.prompts, config.index.credits, |depths| {
            let eligible = |(_, member): &(usize, &Arc<Member>)| {
                member.health() == Health::Healthy
                    && !member.is_drained()
                    && !is_tried(ask.tried, member.id())
                    && member.serves(ask.model)
                    && member.breaker.lock().admits(now) != Admission::Refuse
            };
            let candidate = |(slot, member): (usize, &Arc<Member>)| {
                let confirms = || member.truth.lock().confirms(ask.domain, ask.tenant);
                let settings = member.settings();
                let (load, forecast) = member.prospect(now);
                Candidate {
                    slot,
                    key: member.id().key(),
                    weight: member.weight(&settings, now),
                    matched_blocks: depths.of(member.belief.owner(), confirms),
                    load,
                    inflight_max: member.gate(&settings, &load, &config.auto_limit, now),
                    forecast,
                }
            };
            candidates.extend(members.iter().enumerate().filter(eligible).map(candidate));
        });
    }

    /// Takes back what a pick put into the worker's index: the request never got there.
    pub fn take_back(&self, picked: &Picked, prompts: &[Vec<BlockHash>]) {
        for prompt in prompts {
            let keep = picked.prediction.blocks.min(prompt.len());
            picked.member.belief.retract(prompt, keep);
            self.tell_taken_back(picked, prompt, keep);
        }
    }
}

fn blocks_of(prompts: &[Vec<BlockHash>]) -> u32 {
    u32::try_from(prompts.iter().map(Vec::len).sum::<usize>()).unwrap_or(u32::MAX)
}

/// Whether the pick stands: `Some(is_probe)`, or `None` when the worker is drained or the one probe
/// is already under way.
fn claim(member: &Member, now: Instant) -> Option<bool> {
    if member.is_drained() {
        return None;
    }
    let mut breaker = member.breaker.lock();
    match breaker.admits(now) {
        Admission::Admit => Some(false),
        Admission::AdmitProbe => breaker.try_probe(now).then_some(true),
        Admission::Refuse => None,
    }
}

/// How long averages are to reach back at the rate of all that were candidates.
fn window_of(candidates: &[Candidate]) -> Duration {
    let rates = candidates.iter().map(|candidate| candidate.forecast.traffic.requests_per_s);
    traffic::window(candidates.len(), rates.sum())
}

fn mark(
    member: Arc<Member>,
    ask: &PromptAsk<'_>,
    decision: &routing::Decision,
    account: Account,
    probe: bool,
    window: Duration,
    now: Instant,
) -> Picked {
    let total_blocks = blocks_of(ask.prompts);
    let matched = decision.matched_blocks.min(total_blocks);
    let share = f64::from(matched) / f64::from(total_blocks.max(1));
    let uncached = (ask.tokens as f64 * (1.0 - share)).round() as u64;
    let mut sent = None;
    let mut confirms = true;
    let mut prediction = Prediction {
        total_blocks: total_blocks as usize,
        bytes: ask.bytes,
        tokens: ask.exact_tokens,
        tokens_a_block: ask.block_tokens,
        prompts: ask.prompts.len(),
        domain: Some(ask.domain),
        ..Prediction::default()
    };
    if !ask.prompts.is_empty() {
        confirms = {
            let mut truth = member.truth.lock();
            prediction.engine_block_tokens = truth.block_tokens;
            if let [prompt] = ask.prompts {
                sent = truth.sent(prompt);
            }
            truth.confirms(ask.domain, ask.tenant)
        };
        // Presumed held at once, so that a burst with one prefix stays together.
        let send = |prompt: &Vec<BlockHash>| member.belief.send(prompt, confirms, now);
        let matched: SmallVec<[Matched; 1]> = if let [prompt] = ask.prompts {
            smallvec![send(prompt)]
        } else {
            // None of them is there yet when the others are looked up.
            let held = |prompt: &Vec<BlockHash>| member.belief.matched(prompt, confirms);
            let matched = ask.prompts.iter().map(held).collect();
            for prompt in ask.prompts {
                send(prompt);
            }
            matched
        };
        (prediction.blocks, prediction.confirmed) = Prediction::sum(&matched);
    }
    member.metrics.matched_blocks.inc_by(u64::from(matched));
    member.metrics.prompt_blocks.inc_by(u64::from(total_blocks));
    let load = member.load(now);
    let (tokens_ahead, ahead) = (load.queued_tokens.saturating_add(uncached), member.ahead(&load));
    let dispatch =
        Dispatch { tokens: ask.tokens, uncached_tokens: uncached, streams: ask.streams, window };
    let (counts, metrics) = (member.counts.clone(), member.metrics.clone());
    let guard = InflightGuard::new(counts, metrics, member.pace.clone(), &dispatch, now);
    Picked {
        reason: decision.reason,
        matched_blocks: matched as usize,
        total_blocks: total_blocks as usize,
        account,
        prediction,
        sent,
        tokens_ahead,
        ahead,
        guard,
        probe,
        confirms,
        at: now,
        member,
    }
}
