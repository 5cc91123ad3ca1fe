//! The fleet as operators see it: `/workers` and the gauges that are read rather than counted.

use std::time::Instant;

use serde::Serialize;

use super::{Fleet, Health, Models, reported::Said};
use crate::telemetry::{events, metrics};

/// One worker, for `/workers`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are the JSON's, described in docs/operations.md")]
pub struct WorkerStatus {
    pub id: String,
    pub url: String,
    pub joined: bool,
    pub health: &'static str,
    pub breaker: &'static str,
    pub takes_traffic: bool,
    pub models: Vec<String>,
    pub models_known: bool,
    pub weight: f64,
    pub inflight: u32,
    pub inflight_max: u32,
    pub queued_tokens: u64,
    pub decodes: u32,
    pub prefill_tokens_per_s: f64,
    pub index: IndexStatus,
    pub reports: ReportStatus,
}

/// A worker's prefix index.
#[derive(Debug, Serialize)]
pub struct IndexStatus {
    pub blocks: usize,
    pub bytes: usize,
    pub inserted_total: u64,
    pub trimmed_total: u64,
    pub removed_total: u64,
}

/// A worker's reports.
#[derive(Debug, Serialize)]
pub struct ReportStatus {
    pub epoch: Option<String>,
    pub next_seq: Option<u64>,
    pub gaps: u64,
    pub age_s: Option<f64>,
    pub said: Said,
}

impl Fleet {
    /// Every worker.
    pub fn status(&self, now: Instant) -> Vec<WorkerStatus> {
        self.members().iter().map(|member| status(member, now)).collect()
    }

    pub(super) fn set_gauges(&self, now: Instant) {
        for status in self.status(now) {
            let label = &[status.id.as_str()];
            metrics::INDEX_BYTES.with_label_values(label).set(status.index.bytes as i64);
            metrics::INDEX_BLOCKS.with_label_values(label).set(status.index.blocks as i64);
            for (vec, total) in [
                (&*metrics::INDEX_INSERTED, status.index.inserted_total),
                (&*metrics::INDEX_TRIMMED, status.index.trimmed_total),
            ] {
                let counter = vec.with_label_values(label);
                counter.inc_by(total.saturating_sub(counter.get()));
            }
            let age = status.reports.age_s.map_or(-1, |age| age as i64);
            metrics::REPORT_AGE_SECONDS.with_label_values(label).set(age);
            let breaker = match status.breaker {
                "closed" => 0,
                "half-open" => 1,
                _ => 2,
            };
            metrics::BREAKER_STATE.with_label_values(label).set(breaker);
        }
    }
}

fn status(member: &super::Member, now: Instant) -> WorkerStatus {
    let load = member.counts.load();
    let breaker = events::state_name(member.breaker.lock().state(now));
    let health = member.health();
    let index = member.cache.lock().stats();
    let reported = member.reported.lock().clone();
    let models = member.models();
    WorkerStatus {
        id: member.id().to_string(),
        url: member.url().text.to_string(),
        joined: member.lease_until.is_some(),
        health: match health {
            Health::Unknown => "unknown",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        },
        breaker,
        takes_traffic: health == Health::Healthy && breaker != "open",
        models: match &*models {
            Models::Known(known) => known.iter().map(|model| model.id.clone()).collect(),
            Models::Any => vec!["*".to_owned()],
            Models::Unknown => Vec::new(),
        },
        models_known: !matches!(&*models, Models::Unknown),
        weight: member.config.weight,
        inflight: load.requests,
        inflight_max: member.config.inflight_max,
        queued_tokens: load.queued_tokens,
        decodes: load.decodes,
        prefill_tokens_per_s: member.comparable_rate(),
        index: IndexStatus {
            blocks: index.blocks,
            bytes: index.bytes,
            inserted_total: index.inserted_total,
            trimmed_total: index.trimmed_total,
            removed_total: index.removed_total,
        },
        reports: ReportStatus {
            epoch: reported.epoch,
            next_seq: reported.next_seq,
            gaps: reported.gaps,
            age_s: reported.at.map(|at| now.saturating_duration_since(at).as_secs_f64()),
            said: reported.said,
        },
    }
}
