//! KV events that engines publish -> holdings.

use std::time::Instant;

use super::{
    Applied, Fleet, Member,
    truth::{Source, SourceEvent},
};
use crate::{telemetry::events, wire::event::Event};

impl Fleet {
    /// A batch of a publisher, in order.
    pub fn published(&self, member: &Member, rank: u32, events: &[Event], now: Instant) -> Applied {
        let mut applied = Applied::default();
        member.hears_on(Source::Published(rank), now);
        let model = member.base_model().unwrap_or_default();
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
        let restarted = SourceEvent::Restarted { complete: true };
        member.hears(Source::Published(rank), restarted, now);
    }

    /// A publisher is not listened to any more.
    pub fn publisher_dismissed(member: &Member, rank: u32, now: Instant) {
        member.forgets(Source::Published(rank), now);
    }
}
