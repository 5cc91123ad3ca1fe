//! A trust state, told so that it can be stored and gone on with.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::before;
use super::{Rank, SOURCES_MAX, Source, TrustParams, TrustState};

/// What is known of one source. Stored by the names of its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceImage {
    /// The number of its rank.
    pub rank: u32,
    /// Whether all its history was here.
    pub whole: bool,
    /// How long it had been lost, if it was.
    pub lost_for: Option<Duration>,
    /// See [`TrustState::wants_proof`].
    pub proven: bool,
}

/// What a [`TrustState`] knows; its parameters are not part of it. Stored by the names of its
/// fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrustImage {
    /// The worker's sources.
    pub sources: Vec<SourceImage>,
    /// Whether there were more than are told apart.
    pub crowded: bool,
    /// Whether the worker's port was found closed since it was last healthy.
    pub refused: bool,
    /// How long ago beliefs were dropped last.
    pub dropped_for: Option<Duration>,
    /// Right predictions in a row.
    pub right: u32,
    /// The hits among them.
    pub right_hits: u32,
    /// Certain hits in a row that were none.
    pub cold: u32,
    /// The latest predictions, the newest in the lowest bit; 1 is a stale one.
    pub stale: u64,
}

impl TrustState {
    /// What is known.
    pub fn image(&self, now: Instant) -> TrustImage {
        let ago = |then| now.saturating_duration_since(then);
        let sources = self.sources.iter().map(|source| SourceImage {
            rank: source.rank.0,
            whole: source.whole,
            lost_for: source.lost_at.map(ago),
            proven: source.proven,
        });
        TrustImage {
            sources: sources.collect(),
            crowded: self.crowded,
            refused: self.refused,
            dropped_for: self.dropped_at.map(ago),
            right: self.right,
            right_hits: self.right_hits,
            cold: self.cold,
            stale: self.stale,
        }
    }

    /// Goes on from an image taken `away` ago.
    ///
    /// After a crash nobody listened meanwhile, so every source counts as lost (since now, if it
    /// was not before) and unproven: its history stays whole, but only what it says next can show
    /// that it is the same engine. In a hand-over all stays as it was. Of several sources with one
    /// rank the first counts.
    pub fn restore(
        params: TrustParams,
        image: &TrustImage,
        after_crash: bool,
        away: Duration,
        now: Instant,
    ) -> Self {
        let then = |ago: Duration| before(now, ago.saturating_add(away));
        let mut state = Self {
            crowded: image.crowded,
            refused: image.refused,
            dropped_at: image.dropped_for.map(then),
            right: image.right,
            right_hits: image.right_hits,
            cold: image.cold,
            stale: image.stale,
            ..Self::new(params)
        };
        for told in &image.sources {
            let rank = Rank(told.rank);
            if state.sources.iter().any(|source| source.rank == rank) {
                continue;
            }
            if state.sources.len() == SOURCES_MAX {
                state.crowded = true;
                break;
            }
            let lost_at = told.lost_for.map(then).or(after_crash.then_some(now));
            let proven = told.proven && !after_crash;
            state.sources.push(Source { rank, whole: told.whole, lost_at, proven });
        }
        state
    }
}
