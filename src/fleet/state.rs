//! What is known of the workers, for another process: the successor, or the next one after a crash.
//!
//! Of each worker a whole is taken under its locks, so that what is held, how far its reports were
//! applied, and how far that is trusted fit together. It is copied there and written elsewhere.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    Fleet, Health, Member, Origin,
    member::{ModelEntryOrName, Models},
    reported::{RankReports, Said},
};
use crate::{
    config::{ModelsDeclared, WorkerConfig, worker_url},
    kv_events::{Position, Print, Resume},
    routing::{Breaker, Limit, WorkerId, prefix::Holdings},
    state::{PublishedState, RankState, StateHeader, WorkerState},
    telemetry::access_log::unix_s,
    wire::models,
};

/// How long a removed worker is kept out whose heartbeats may have ceased meanwhile.
const KEPT_OUT_FOR: Duration = Duration::from_mins(1);

/// How state came to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// From a process that still lives: nothing was missed.
    HandOver,
    /// From a file.
    Snapshot {
        /// How old it is.
        away: Duration,
    },
}

impl Cause {
    pub(super) fn away(self) -> Duration {
        match self {
            Self::HandOver => Duration::ZERO,
            Self::Snapshot { away } => away,
        }
    }
}

impl Member {
    /// Whether what it publishes is followed.
    pub fn has_publishers(&self) -> bool {
        !self.published.lock().followed.is_empty()
    }

    /// All that is known of it.
    pub fn state(&self, now: Instant) -> WorkerState {
        let mut state = WorkerState {
            id: self.id().to_string(),
            url: self.url().text.to_string(),
            origin: self.origin().to_string(),
            health: self.health() as u8,
            drained: self.is_drained(),
            pushes: self.pushes(),
            models: models_of(&self.models()),
            breaker: self.breaker.lock().image(now),
            limit: self.limit.lock().image(),
            prefill: self.pace.lock().image(),
            ..WorkerState::default()
        };
        let until = self.lease_until.as_ref().map(|until| *until.lock());
        state.lease_left = until.map(|until| until.saturating_duration_since(now));
        // In the order that all take them in; what is applied, and how far, fits together.
        let reported = self.reported.lock();
        let published = self.published.lock();
        let truth = self.truth.lock();
        state.ranks =
            reported.ranks.iter().map(|(rank, reports)| rank_of(*rank, reports)).collect();
        state.published =
            published.followed.iter().map(|(rank, at)| published_of(*rank, at)).collect();
        state.truth = truth.image(now);
        drop(truth);
        (state.holdings, state.unconfirmed) = self.belief.image(now);
        drop((published, reported));
        state
    }

    fn restore(&self, state: &WorkerState, fleet: &Fleet, cause: Cause, now: Instant) {
        let (away, crashed) = (cause.away(), cause != Cause::HandOver);
        let live = fleet.live();
        if let Some(models) = models_from(state).filter(|_| self.learns_models()) {
            self.restore_models(models);
        }
        *self.breaker.lock() = Breaker::restore(live.config.breaker, &state.breaker, away, now);
        *self.limit.lock() = Limit::restore(&state.limit);
        self.pace.lock().restore(state.prefill, now);
        self.set_drained(state.drained);
        self.set_pushes(state.pushes);
        if let (Some(until), Some(left)) = (&self.lease_until, state.lease_left) {
            *until.lock() = now + left.saturating_sub(away);
        }
        {
            let mut reported = self.reported.lock();
            let mut published = self.published.lock();
            let mut truth = self.truth.lock();
            reported.ranks = state.ranks.iter().map(reports_of).collect();
            published.followed =
                state.published.iter().filter_map(|state| resume_of(state, !crashed)).collect();
            let said = state.ranks.iter().any(|rank| rank.kv_blocks_total.is_some());
            truth.restore(&state.truth, said, cause, now);
            let params = super::truth::holdings_params(&live.config.index, truth.budget());
            let images = (&state.holdings, &state.unconfirmed);
            self.belief.replace(|index| Holdings::restore(params, index, images, away, now));
            self.metrics.trust.set(truth.state().as_gauge());
            // Where a report would say it too, one is missing.
            self.ask_resync.store(reported.ranks.values().any(|rank| rank.missing), Relaxed);
        }
        match state.health {
            1 => fleet.restore_health(self, Health::Healthy, now),
            2 => fleet.restore_health(self, Health::Unhealthy, now),
            _ => {}
        }
    }
}

impl Fleet {
    /// What precedes the workers' states.
    pub fn state_header(&self) -> StateHeader {
        let live = self.live();
        StateHeader {
            product: env!("CARGO_PKG_VERSION").to_owned(),
            made_at_unix_ms: (unix_s() * 1000.0) as u64,
            hashing: live.hashing.fingerprint(),
            secret: live.hashing.secret.clone(),
        }
    }

    /// The workers that were removed, as states.
    pub fn removed_states(&self) -> Vec<WorkerState> {
        let state = |(id, origin): (WorkerId, Origin)| WorkerState {
            id: id.to_string(),
            origin: origin.to_string(),
            removed: true,
            ..WorkerState::default()
        };
        self.removed_by_origin().into_iter().map(state).collect()
    }

    /// Lets workers that neither the configuration nor a heartbeat named be members until their
    /// origin names its workers again. To be called before any state is restored.
    pub fn expect(&self, states: &[WorkerState], now: Instant) {
        let mut named: Vec<(Origin, Vec<WorkerConfig>)> = Vec::new();
        for state in states {
            let Some(origin) = Origin::parse(&state.origin) else { continue };
            if state.removed {
                if let Ok(id) = WorkerId::try_new(&state.id) {
                    self.keep_out(&id, origin, now + KEPT_OUT_FOR, now);
                }
                continue;
            }
            if !matches!(origin, Origin::File | Origin::Dns(_)) {
                continue;
            }
            let Some(worker) = self.config_of(state) else { continue };
            match named.iter_mut().find(|(known, _)| *known == origin) {
                Some((_, workers)) => workers.push(worker),
                None => named.push((origin, vec![worker])),
            }
        }
        for (origin, workers) in named {
            self.set_workers(&origin, workers, now);
        }
    }

    /// Takes up what was known of a worker, in the place of all that is known of it here; false when
    /// it is no member (any more) under this name and address.
    pub fn restore(&self, state: &WorkerState, cause: Cause, now: Instant) -> bool {
        if state.removed {
            return false;
        }
        let member = self.member(&state.id).or_else(|| self.bring_back(state, cause, now));
        let same = |member: &Arc<Member>| *member.url().text == *state.url;
        let Some(member) = member.filter(same) else {
            tracing::info!(worker = state.id, url = state.url, "no worker any more: forgotten");
            return false;
        };
        member.restore(state, self, cause, now);
        true
    }

    /// What is left of a state where blocks have other names than before.
    pub fn without_blocks(state: &mut WorkerState) {
        let WorkerState { ranks, published, truth, holdings, unconfirmed, .. } = state;
        // As if its reports had never been heard: they come again from their beginning, or by sync.
        ranks.clear();
        published.clear();
        (*truth, *holdings, *unconfirmed) = Default::default();
    }

    /// Whether every publisher that was followed before is subscribed to.
    pub fn publishers_wait(&self) -> bool {
        self.members().iter().all(|member| {
            let published = member.published.lock();
            published.followed.keys().all(|rank| published.waiting.contains(rank))
        })
    }

    /// A worker that had joined by heartbeat.
    fn bring_back(&self, state: &WorkerState, cause: Cause, now: Instant) -> Option<Arc<Member>> {
        let left = state.lease_left?.saturating_sub(cause.away());
        let live = self.live();
        let joins = live.config.reports.as_ref().is_some_and(|reports| reports.join);
        if left.is_zero() || !joins || Origin::parse(&state.origin) != Some(Origin::Lease) {
            return None;
        }
        Some(self.readmit(self.config_of(state)?, now + left, now))
    }

    /// What a worker's settings are until its origin says more.
    fn config_of(&self, state: &WorkerState) -> Option<WorkerConfig> {
        let id = WorkerId::try_new(&state.id).ok()?;
        let url = worker_url("url", &state.url).ok()?;
        let models = state.ranks.iter().find_map(|rank| rank.model.clone());
        let models =
            models.map_or(ModelsDeclared::Learn, |model| ModelsDeclared::Listed(vec![model]));
        Some(WorkerConfig::by_default(id, url, models, &self.live().config))
    }
}

fn models_of(models: &Models) -> Option<Vec<(String, Option<String>)>> {
    let Models::Known(known) = models else { return None };
    let json = |model: &ModelEntryOrName| {
        let json = model.entry.as_ref().map(|entry| entry.json.get().to_owned());
        (model.id.clone(), json)
    };
    Some(known.iter().map(json).collect())
}

fn models_from(state: &WorkerState) -> Option<Vec<ModelEntryOrName>> {
    let entry = |(id, json): &(String, Option<String>)| ModelEntryOrName {
        id: id.clone(),
        entry: json.as_ref().and_then(|json| models::entry(json)),
    };
    Some(state.models.as_ref()?.iter().map(entry).collect())
}

fn rank_of(rank: u32, reports: &RankReports) -> RankState {
    let RankReports { epoch, next_seq, gaps, missing, said, .. } = reports.clone();
    let Said { current_load, kv_blocks_total, kv_blocks_used, kv_block_tokens, model } = said;
    RankState {
        rank,
        epoch,
        next_seq,
        gaps,
        missing,
        current_load,
        kv_blocks_total,
        kv_blocks_used,
        kv_block_tokens,
        model,
    }
}

fn reports_of(state: &RankState) -> (u32, RankReports) {
    let RankState { rank, epoch, next_seq, gaps, missing, current_load, .. } = state.clone();
    let RankState { kv_blocks_total, kv_blocks_used, kv_block_tokens, model, .. } = state.clone();
    let said = Said { current_load, kv_blocks_total, kv_blocks_used, kv_block_tokens, model };
    let snapshot_part = None;
    (rank, RankReports { epoch, next_seq, gaps, missing, snapshot_part, said })
}

fn published_of(rank: u32, at: &Resume) -> PublishedState {
    let Position { next, last, complete } = at.position;
    PublishedState { rank, next: Some(next), last_print: last.map(Print::to_u64), complete }
}

fn resume_of(state: &PublishedState, unbroken: bool) -> Option<(u32, Resume)> {
    let last = state.last_print.map(Print::from_u64);
    let position = Position { next: state.next?, last, complete: state.complete };
    Some((state.rank, Resume { position, unbroken }))
}
