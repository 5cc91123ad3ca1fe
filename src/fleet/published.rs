//! KV events that engines publish -> holdings.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{
    Applied, Fleet, Member,
    truth::{Source, SourceEvent},
};
use crate::{
    kv_events::{Position, Resume},
    telemetry::events,
    wire::event::Event,
};

/// How far the publishers of a worker have been followed.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// By rank; none before the first batch of a life of the engine.
    pub followed: BTreeMap<u32, Resume>,
    /// Ranks that are subscribed, and wait until state has been handed over.
    pub waiting: BTreeSet<u32>,
}

impl Member {
    /// A publisher's source is subscribed and waits for its turn.
    pub fn awaits_publisher(&self, rank: u32) {
        self.published.lock().waiting.insert(rank);
    }

    /// Where a publisher's source goes on.
    pub fn resumes_publisher(&self, rank: u32) -> Option<Resume> {
        self.published.lock().followed.get(&rank).copied()
    }
}

impl Fleet {
    /// A batch of a publisher, in order; `position` is the one behind it.
    pub fn published(
        &self,
        member: &Member,
        rank: u32,
        position: Position,
        events: &[Event],
        now: Instant,
    ) -> Applied {
        let mut applied = Applied::default();
        // Before: it looks at what the worker reported, whose lock comes first.
        let model = member.base_model().unwrap_or_default();
        // Held while the batch is applied, so that what is kept of both fits together.
        let mut published = member.published.lock();
        published.followed.insert(rank, Resume { position, unbroken: true });
        member.hears_on(Source::Published(rank), now);
        self.apply_events(member, Source::Published(rank), &model, events, &mut applied, now);
        applied
    }

    /// A publisher is connected; `complete` when all it ever said is known.
    pub fn publisher_connected(member: &Member, rank: u32, complete: bool, now: Instant) {
        member.hears(Source::Published(rank), SourceEvent::Connected { complete }, now);
    }

    /// A publisher is gone.
    pub fn publisher_lost(member: &Member, rank: u32, now: Instant) {
        member.hears(Source::Published(rank), SourceEvent::Lost, now);
    }

    /// Batches of a publisher are lost for good.
    pub fn publisher_gap(member: &Member, rank: u32, expected: u64, got: u64, now: Instant) {
        member.metrics.gaps.inc();
        events::publisher_gap(member.id().as_str(), rank, expected, got);
        member.hears(Source::Published(rank), SourceEvent::Gap, now);
    }

    /// Another life of the engine behind a publisher: its cache is empty.
    pub fn publisher_restarted(member: &Member, rank: u32, now: Instant) {
        // What was said since then is told next.
        member.published.lock().followed.remove(&rank);
        let restarted = SourceEvent::Restarted { complete: true };
        member.hears(Source::Published(rank), restarted, now);
    }

    /// A publisher is not listened to any more.
    pub fn publisher_dismissed(member: &Member, rank: u32, now: Instant) {
        member.published.lock().followed.remove(&rank);
        member.forgets(Source::Published(rank), now);
    }
}
