//! The fleet as operators see it: `/workers` and the gauges that are read rather than counted.

use std::time::Instant;

use serde::Serialize;

use super::{
    Fleet, Health, LimitStatus, Models,
    reported::{RankReports, Reported, Said},
};
use crate::{
    routing::{LimitParams, prefix::Index},
    telemetry::{
        events,
        metrics::{self, BREAKER_STATES},
    },
};

/// One worker, for `/workers`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are the JSON's, described in docs/operations.md")]
pub struct WorkerStatus {
    pub id: String,
    pub url: String,
    pub origin: String,
    pub joined: bool,
    pub drained: bool,
    pub health: &'static str,
    pub breaker: &'static str,
    pub takes_traffic: bool,
    pub models: Vec<String>,
    pub models_known: bool,
    pub weight: f64,
    pub weight_now: f64,
    pub inflight: u32,
    pub inflight_max: u32,
    pub limit: LimitStatus,
    pub queued_tokens: u64,
    pub decodes: u32,
    pub peers_inflight: u32,
    pub peers_queued_tokens: u64,
    pub prefill_tokens_per_s: f64,
    pub backlog_s: f64,
    pub prefill: PrefillStatus,
    pub trust: &'static str,
    pub index: IndexStatus,
    pub predictions: PredictionStatus,
    pub reports: ReportStatus,
}

/// What prefill is believed to cost at a worker, and whether that is its own.
#[derive(Debug, Serialize)]
pub struct PrefillStatus {
    pub learned: bool,
    /// How far what was learned is still relied on, from 0 to 1.
    pub sure: f64,
    pub request_s: f64,
    pub token_s: f64,
    pub pair_s: f64,
}

/// A worker's prefix index.
#[derive(Debug, Serialize)]
pub struct IndexStatus {
    pub blocks: usize,
    pub confirmed_blocks: [usize; 3],
    pub presumed_blocks: usize,
    pub budget_blocks: usize,
    pub bytes: usize,
    pub inserted_total: u64,
    pub trimmed_total: u64,
    pub removed_total: u64,
}

/// What answers said of what we predicted.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the JSON's names carry the unit")]
pub struct PredictionStatus {
    pub predicted_tokens: u64,
    pub actual_tokens: u64,
    pub stale_tokens: u64,
    pub missed_tokens: u64,
}

/// A worker's pushed reports; those of its first data-parallel rank, and of the others.
#[derive(Debug, Serialize)]
pub struct ReportStatus {
    pub age_s: Option<f64>,
    #[serde(flatten)]
    pub rank: RankStatus,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub further_ranks: Vec<RankStatus>,
}

/// One rank's reports.
#[derive(Debug, Default, Serialize)]
pub struct RankStatus {
    pub rank: u32,
    pub epoch: Option<String>,
    pub next_seq: Option<u64>,
    pub gaps: u64,
    pub missing: bool,
    pub said: Said,
}

impl ReportStatus {
    fn of(reported: &Reported, now: Instant) -> Self {
        let rank = |(rank, reports): (&u32, &RankReports)| RankStatus {
            rank: *rank,
            epoch: reports.epoch.clone(),
            next_seq: reports.next_seq,
            gaps: reports.gaps,
            missing: reports.missing,
            said: reports.said.clone(),
        };
        let mut ranks = reported.ranks.iter().map(rank);
        Self {
            age_s: reported.at.map(|at| now.saturating_duration_since(at).as_secs_f64()),
            rank: ranks.next().unwrap_or_default(),
            further_ranks: ranks.collect(),
        }
    }
}

impl Fleet {
    /// Every worker.
    pub fn status(&self, now: Instant) -> Vec<WorkerStatus> {
        let params = self.live.load().config.auto_limit;
        self.members().iter().map(|member| status(member, &params, now)).collect()
    }

    /// One worker.
    pub fn status_of(&self, id: &str, now: Instant) -> Option<WorkerStatus> {
        let params = self.live.load().config.auto_limit;
        self.member(id).map(|member| status(&member, &params, now))
    }

    pub(super) fn set_gauges(&self, now: Instant) {
        let live = self.live.load();
        let params = live.config.auto_limit;
        let members = self.members();
        let index = self.index.read(Index::stats);
        metrics::INDEX_SHARED_BYTES.set(index.bytes as i64);
        metrics::INDEX_SHARED_BYTES_MAX.set(Self::index_bytes_max(&live, members.len()) as i64);
        metrics::INDEX_DISTINCT_BLOCKS.set(index.blocks as i64);
        metrics::INDEX_HELD_BLOCKS.set(index.held as i64);
        metrics::INDEX_RUNS.set(index.runs as i64);
        for member in members.iter() {
            let (status, metrics) = (status(member, &params, now), &member.metrics);
            metrics.index_bytes.set(status.index.bytes as i64);
            metrics.index_blocks.set(status.index.blocks as i64);
            for (counter, total) in [
                (&metrics.index_inserted, status.index.inserted_total),
                (&metrics.index_trimmed, status.index.trimmed_total),
            ] {
                counter.inc_by(total.saturating_sub(counter.get()));
            }
            let confirmed = status.index.confirmed_blocks;
            let held = [confirmed[0], confirmed[1], confirmed[2], status.index.presumed_blocks];
            for (gauge, blocks) in metrics.holdings.iter().zip(held) {
                gauge.set(blocks as i64);
            }
            metrics.cache_budget.set(status.index.budget_blocks as i64);
            metrics.report_age.set(status.reports.age_s.map_or(-1, |age| age as i64));
            let state = BREAKER_STATES.iter().position(|state| *state == status.breaker);
            metrics.breaker_state.set(state.unwrap_or_default() as i64);
            metrics.weight.set(status.weight_now);
            metrics.inflight_max.set(i64::from(status.inflight_max));
            metrics.backlog.set(status.backlog_s);
            metrics.prefill_rate.set(status.prefill_tokens_per_s);
            let PrefillStatus { request_s, token_s, pair_s, .. } = status.prefill;
            for (gauge, cost) in metrics.prefill_cost.iter().zip([request_s, token_s, pair_s]) {
                gauge.set(cost);
            }
        }
    }
}

fn status(member: &super::Member, params: &LimitParams, now: Instant) -> WorkerStatus {
    let load = member.counts.load();
    let peer_load = member.peer_load(now);
    let breaker = events::state_name(member.breaker.lock().state(now));
    let health = member.health();
    let (trust, budget_blocks) = {
        let truth = member.truth.lock();
        (truth.state().as_str(), truth.budget())
    };
    let index = member.belief.stats();
    let reports = ReportStatus::of(&member.reported.lock(), now);
    let models = member.models();
    let settings = member.settings();
    let drained = member.is_drained();
    let (inflight_max, limit) = member.limit_status(params, now);
    let (cost, backlog_s, known) = {
        let pace = member.pace.lock();
        (pace.cost(), pace.forecast(now).backlog_s, pace.known(now))
    };
    WorkerStatus {
        id: member.id().to_string(),
        url: member.url().text.to_string(),
        origin: member.origin().to_string(),
        joined: member.lease_until.is_some(),
        drained,
        health: match health {
            Health::Unknown => "unknown",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        },
        breaker,
        takes_traffic: health == Health::Healthy && breaker != "open" && !drained,
        models: match &*models {
            Models::Known(known) => known.iter().map(|model| model.id.clone()).collect(),
            Models::Any => vec!["*".to_owned()],
            Models::Unknown => Vec::new(),
        },
        models_known: !matches!(&*models, Models::Unknown),
        weight: settings.weight,
        weight_now: member.weight(&settings, now),
        inflight: load.requests,
        inflight_max,
        limit,
        queued_tokens: load.queued_tokens,
        decodes: load.decodes,
        peers_inflight: peer_load.requests,
        peers_queued_tokens: peer_load.queued_tokens,
        prefill_tokens_per_s: cost.tokens_per_s(),
        backlog_s,
        prefill: PrefillStatus {
            learned: known.is_some(),
            sure: known.map_or(0.0, |known| known.sure),
            request_s: cost.request_s,
            token_s: cost.token_s,
            pair_s: cost.pair_s,
        },
        trust,
        index: IndexStatus {
            blocks: index.blocks(),
            confirmed_blocks: index.tiers.map(|tier| tier.blocks),
            presumed_blocks: index.presumed_blocks + index.unconfirmed_blocks,
            budget_blocks,
            bytes: member.belief.bytes(&index),
            inserted_total: index.inserted_total,
            trimmed_total: index.trimmed_total,
            removed_total: index.removed_total,
        },
        predictions: PredictionStatus {
            predicted_tokens: member.metrics.predicted_tokens.get(),
            actual_tokens: member.metrics.actual_tokens.get(),
            stale_tokens: member.metrics.stale_tokens.get(),
            missed_tokens: member.metrics.missed_tokens.get(),
        },
        reports,
    }
}
