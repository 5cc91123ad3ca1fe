//! Since when the fleet serves, and who begins slowly because of it.

use std::time::{Duration, Instant};

use super::{Fleet, Member};
use crate::{routing::starts_slowly, telemetry::events};

impl Fleet {
    /// A member takes requests from now on that did not before: slowly, where others serve.
    pub(super) fn begins_to_serve(&self, member: &Member, now: Instant) {
        let members = self.members.load();
        let mut others = members.iter().filter(|other| other.serial() != member.serial());
        let others_serve = others.any(|other| other.serves_now(now));
        let mut since = self.serving_since.lock();
        let others_since = since.filter(|_| others_serve);
        let slowly = starts_slowly(others_since, self.start_together(), now);
        member.start(slowly, now);
        if member.serves_now(now) {
            *since = Some(others_since.unwrap_or(now));
        }
        drop(since);
        let over = member.settings().slow_start;
        if slowly && !over.is_zero() {
            events::starts_slowly(member.id().as_str(), over);
        }
    }

    /// Notes whether anybody serves now.
    pub(super) fn look_who_serves(&self, now: Instant) {
        let serves = self.members.load().iter().any(|member| member.serves_now(now));
        let mut since = self.serving_since.lock();
        *since = if serves { since.or(Some(now)) } else { None };
    }

    /// Within this time of the first, all workers that are up have passed their checks: they began
    /// together.
    fn start_together(&self) -> Duration {
        let health = &self.live.load().config.health;
        let rounds = u32::try_from(health.healthy_after).unwrap_or(u32::MAX);
        (health.interval + health.timeout).saturating_mul(rounds)
    }
}
