//! Reports -> members. Nothing here trusts a reporter: repeats, gaps, unknown ids and foreign
//! epochs are facts to be counted, never errors of ours.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::MutexGuard;

use super::{
    Fleet, Member,
    reported::{Reported, Said, Sequence},
};
use crate::{
    config::{ModelsDeclared, WorkerConfig, worker_url},
    routing::{
        WorkerId,
        prefix::{Bounds, EngineBlockId, WorkerCache},
    },
    telemetry::events,
    wire::{
        prompt::RootFields,
        report::{Batch, Event, Heartbeat, Malformed, Stored},
    },
};

/// Blocks applied under one hold of a worker's index, so that requests wait for microseconds.
const BLOCKS_A_HOLD: usize = 256;

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Applied {
    /// Whether it was a repeat and ignored.
    pub repeat: bool,
    /// Whether batches are missing before it.
    pub resync: bool,
    /// Engine blocks newly stored.
    pub stored: usize,
    /// Engine blocks that could not be placed: unknown parent, or the bound is reached.
    pub rejected: usize,
    /// Engine blocks removed.
    pub removed: usize,
    /// Removed ids we did not know.
    pub unknown: usize,
    /// Events of a type we do not know.
    pub skipped: usize,
}

/// Why a batch is not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// No such worker.
    #[error(
        "worker_id: no worker `{0}` in the fleet; send a heartbeat first, or add it to `workers`"
    )]
    UnknownWorker(String),
    /// It names something that is not there.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Why a heartbeat is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// Unknown workers may not join.
    #[error("worker_id: no worker `{0}` in the fleet, and `reports.join` is off")]
    JoinOff(String),
    /// Too many have joined.
    #[error("worker_id: {0} workers have joined; `reports.joined_workers_max` allows no more")]
    Full(usize),
    /// A field is wrong.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Fleet {
    /// Applies a heartbeat; true when the worker joined by it.
    ///
    /// # Errors
    /// `HeartbeatError`; nothing was changed.
    pub fn heartbeat(&self, beat: &Heartbeat, now: Instant) -> Result<bool, HeartbeatError> {
        if let Some(member) = self.member(&beat.worker_id)
            && (member.lease_until.is_none() || *member.url().text == *url_text(beat))
        {
            self.refresh(&member, beat, now);
            return Ok(false);
        }
        let member = self.admit(beat, now)?;
        self.refresh(&member, beat, now);
        Ok(true)
    }

    fn refresh(&self, member: &Member, beat: &Heartbeat, now: Instant) {
        if let Some(until) = &member.lease_until {
            *until.lock() = now + self.lease(beat);
        }
        let mut reported = member.reported.lock();
        reported.at = Some(now);
        reported.said = Said {
            current_load: beat.current_load,
            kv_blocks_total: beat.kv_blocks_total,
            kv_blocks_used: beat.kv_blocks_used,
            model: beat.model.clone(),
        };
        if let Some(epoch) = &beat.epoch {
            enter_epoch(member, &mut reported, epoch);
        }
        let ours = member.counts.load().requests;
        member.set_foreign(reported.foreign(beat.current_load, ours));
        drop(reported);
        if let Some(tokens) = capacity_tokens(beat) {
            // Half as much again: too small a presumption costs far more than too large a one.
            let blocks_max = self.config.index.blocks_of(tokens.saturating_add(tokens / 2));
            let bytes_max = self.config.index.tree_bytes_max();
            let engine_bytes_max = self.config.index.engine_bytes_max();
            member.cache.lock().set_bounds(Bounds { blocks_max, bytes_max }, engine_bytes_max);
        }
    }

    fn lease(&self, beat: &Heartbeat) -> Duration {
        let default = self.config.reports.as_ref().map_or(Duration::from_secs(15), |r| r.lease);
        beat.lease_s.map_or(default, |s| Duration::from_secs(s.clamp(1, 3600)))
    }

    fn admit(&self, beat: &Heartbeat, now: Instant) -> Result<Arc<Member>, HeartbeatError> {
        let id = WorkerId::try_new(&beat.worker_id)
            .map_err(|error| Malformed::new("worker_id", error.to_string()))?;
        let Some(reports) = self.config.reports.as_ref().filter(|reports| reports.join) else {
            return Err(HeartbeatError::JoinOff(beat.worker_id.clone()));
        };
        let url = worker_url("worker_url", &beat.worker_url)
            .map_err(|error| Malformed::new("worker_url", error.problem))?;
        if self.config.upstream_tls.verify && !url.can_be_verified() {
            let problem = "a certificate cannot be checked against an address; name the host";
            return Err(Malformed::new("worker_url", problem).into());
        }
        let _changing = self.membership.lock();
        let members = self.members();
        if let Some(other) = members.iter().find(|m| m.id() != &id && m.url().addr == url.addr) {
            let problem = format!("is the address of worker `{}`", other.id());
            return Err(Malformed::new("worker_url", problem).into());
        }
        // The same id from another address: the worker moved; its old self leaves.
        let kept: Vec<_> = members.iter().filter(|m| m.id() != &id).cloned().collect();
        let joined = kept.iter().filter(|member| member.lease_until.is_some()).count();
        if joined >= reports.joined_workers_max {
            return Err(HeartbeatError::Full(joined));
        }
        self.members.store(Arc::new(kept));
        let worker = WorkerConfig {
            id,
            url,
            models: match &beat.model {
                Some(model) => ModelsDeclared::Listed(vec![model.clone()]),
                None => ModelsDeclared::Learn,
            },
            weight: 1.0,
            inflight_max: self.config.limits.inflight_max,
            cache_tokens: self.config.index.cache_tokens,
            health_path: self.config.health.path.clone(),
        };
        let lease = now + self.lease(beat);
        let member = Arc::new(Member::new(worker, &self.config, Some(lease), now));
        self.join(member.clone());
        Ok(member)
    }

    /// Applies a batch of events.
    ///
    /// # Errors
    /// `ApplyError`; the batch counts as not received.
    pub fn apply(&self, batch: &Batch, now: Instant) -> Result<Applied, ApplyError> {
        let member = self.member(&batch.worker_id).ok_or_else(|| {
            ApplyError::UnknownWorker(crate::wire::error_body::shorten(&batch.worker_id))
        })?;
        let model = Self::model_of(&member, batch)?;
        let mut reported = member.reported.lock();
        enter_epoch(&member, &mut reported, &batch.epoch);
        reported.at = Some(now);
        let mut applied = Applied::default();
        match reported.take_seq(batch.seq) {
            Sequence::Repeat => return Ok(Applied { repeat: true, ..applied }),
            Sequence::Next => {}
            Sequence::Gap { expected } => {
                // What is in this batch is true all the same; what is missing only the reporter
                // can say.
                events::report_gap(member.id().as_str(), expected, batch.seq);
                applied.resync = true;
            }
        }
        // `reported` stays locked: batches of one worker are applied one after the other.
        for event in &batch.events {
            self.apply_event(&member, &model, event, &mut applied);
        }
        drop(reported);
        member.metrics.stores.inc_by(applied.stored as u64);
        member.metrics.stores_rejected.inc_by(applied.rejected as u64);
        member.metrics.evictions.inc_by(applied.removed as u64);
        Ok(applied)
    }

    /// The model that stored events are filed under when they name none.
    fn model_of(member: &Member, batch: &Batch) -> Result<String, Malformed> {
        let said = member.reported.lock().said.model.clone();
        if let Some(model) = said.or_else(|| member.first_model()) {
            return Ok(model);
        }
        let unnamed = batch.events.iter().position(|event| {
            matches!(event, Event::Stored(stored) if stored.parent.is_none() && stored.model.is_none())
        });
        match unnamed {
            None => Ok(String::new()),
            Some(at) => Err(Malformed {
                field: format!("events[{at}].model"),
                problem: "the worker's model is not known yet; name it here or in a heartbeat"
                    .to_owned(),
                unsupported: true,
            }),
        }
    }

    fn apply_event(&self, member: &Member, model: &str, event: &Event, applied: &mut Applied) {
        match event {
            Event::Unknown => applied.skipped += 1,
            Event::Cleared => member.cache.lock().cleared(),
            Event::Removed(ids) => {
                for ids in ids.chunks(BLOCKS_A_HOLD) {
                    let ids: Vec<_> = ids.iter().map(|id| EngineBlockId(id.0)).collect();
                    let outcome = member.cache.lock().removed(&ids);
                    applied.removed += outcome.known;
                    applied.unknown += outcome.unknown;
                }
            }
            Event::Stored(stored) => self.apply_stored(member, model, stored, applied),
        }
    }

    fn apply_stored(&self, member: &Member, model: &str, stored: &Stored, applied: &mut Applied) {
        let fields = RootFields {
            model: stored.model.as_deref().unwrap_or(model),
            tenant: stored.tenant.as_deref().unwrap_or("").as_bytes(),
            cache_salt: stored.cache_salt.as_deref().unwrap_or(""),
            lora: stored.lora_name.as_deref().unwrap_or(""),
            tokens: false,
        };
        let root = fields.root(&self.hashing.secret);
        let block_bytes = self.hashing.block_bytes;
        let mut parent = stored.parent.map(|id| EngineBlockId(id.0));
        let mut blocks = stored.blocks().map(|(id, text)| (EngineBlockId(id), text)).peekable();
        while blocks.peek().is_some() {
            let part: Vec<_> = blocks.by_ref().take(BLOCKS_A_HOLD).collect();
            let last = part.last().map(|(id, _)| *id);
            let outcome = member.cache.lock().stored(root, parent, part.into_iter(), block_bytes);
            applied.stored += outcome.engine_blocks;
            applied.rejected += outcome.rejected_engine_blocks;
            parent = last;
        }
    }
}

fn enter_epoch(member: &Member, reported: &mut MutexGuard<'_, Reported>, epoch: &str) {
    if reported.enter_epoch(epoch) {
        let cache: &mut WorkerCache = &mut member.cache.lock();
        let blocks = cache.stats().blocks;
        cache.cleared();
        events::epoch_changed(member.id().as_str(), epoch, blocks);
    }
}

fn url_text(beat: &Heartbeat) -> &str {
    beat.worker_url.trim_end_matches('/')
}

/// Tokens a KV block of vLLM holds unless the worker says otherwise.
const KV_BLOCK_TOKENS: u64 = 16;

fn capacity_tokens(beat: &Heartbeat) -> Option<u64> {
    let block_tokens = beat.kv_block_tokens.unwrap_or(KV_BLOCK_TOKENS);
    beat.kv_blocks_total.filter(|blocks| *blocks > 0).map(|b| b.saturating_mul(block_tokens.max(1)))
}
