//! Heartbeats -> members: load, capacity, and workers that join.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    Fleet, Live, Member,
    apply::enter_epoch,
    reported::{RANKS_MAX, Said},
    truth::Source,
};
use crate::{
    config::{ModelsDeclared, WorkerConfig, worker_url},
    routing::WorkerId,
    wire::{
        error_body::shorten,
        report::{Heartbeat, Malformed},
    },
};

/// Why a heartbeat is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// Unknown workers may not join.
    #[error("worker_id: no worker `{0}` in the fleet, and `reports.join` is off")]
    JoinOff(String),
    /// An operator removed it.
    #[error(
        "worker_id: worker `{0}` was removed from the fleet; it may join again after \
         `warmroute workers undrain`, or once its heartbeats have paused for its lease"
    )]
    Removed(String),
    /// Too many have joined.
    #[error("worker_id: {0} workers have joined; `reports.joined_workers_max` allows no more")]
    Full(usize),
    /// A field is wrong.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What became of a heartbeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Beaten {
    /// Whether the worker joined by it.
    pub joined: bool,
    /// Whether we lack batches the worker has sent: it should sync.
    pub resync: bool,
}

impl Fleet {
    /// Applies a heartbeat.
    ///
    /// # Errors
    /// `HeartbeatError`; nothing was changed.
    pub fn heartbeat(&self, beat: &Heartbeat, now: Instant) -> Result<Beaten, HeartbeatError> {
        let until = now + self.lease(beat);
        if self.membership.lock().keeps_out(&beat.worker_id, until) {
            return Err(HeartbeatError::Removed(shorten(&beat.worker_id)));
        }
        if let Some(member) = self.member(&beat.worker_id)
            && (member.lease_until.is_none() || *member.url().text == *url_text(beat))
        {
            let resync = self.refresh(&member, beat, now)?;
            return Ok(Beaten { joined: false, resync });
        }
        let member = self.admit(beat, now)?;
        let resync = self.refresh(&member, beat, now)?;
        Ok(Beaten { joined: true, resync })
    }

    fn refresh(&self, member: &Member, beat: &Heartbeat, now: Instant) -> Result<bool, Malformed> {
        if let Some(until) = &member.lease_until {
            *until.lock() = now + self.lease(beat);
        }
        let mut reported = member.reported.lock();
        reported.at = Some(now);
        reported.due = Some(now + self.lease(beat));
        let rank = reported.rank(beat.rank).ok_or_else(|| too_many_ranks("rank"))?;
        rank.said = Said {
            current_load: beat.current_load,
            kv_blocks_total: beat.kv_blocks_total,
            kv_blocks_used: beat.kv_blocks_used,
            kv_block_tokens: beat.kv_block_tokens,
            model: beat.model.clone(),
        };
        if let Some(epoch) = &beat.epoch {
            enter_epoch(member, beat.rank, rank, epoch, beat.seq.is_none(), now);
        }
        let behind = rank.wants_sync(beat.seq);
        if beat.seq.is_some() && !behind {
            // It goes on where we are.
            member.hears_on(Source::Pushed(beat.rank), now);
        }
        let resync = behind || member.ask_resync.load(Relaxed);
        let ours = member.counts.load().requests;
        let foreign = reported.foreign(ours);
        let capacity = reported.capacity_tokens();
        drop(reported);
        member.set_foreign(foreign);
        if let Some(tokens) = capacity {
            // Half as much again: too small a presumption costs far more than too large a one.
            let blocks = self.live.load().config.index.blocks_of(tokens.saturating_add(tokens / 2));
            member.truth.lock().said_capacity(blocks);
            self.rebound(member);
            while member.belief.settle() {}
        }
        Ok(resync)
    }

    fn lease(&self, beat: &Heartbeat) -> Duration {
        let default =
            self.live.load().config.reports.as_ref().map_or(Duration::from_secs(15), |r| r.lease);
        beat.lease_s.map_or(default, |s| Duration::from_secs(s.clamp(1, 3600)))
    }

    fn admit(&self, beat: &Heartbeat, now: Instant) -> Result<Arc<Member>, HeartbeatError> {
        let id = WorkerId::try_new(&beat.worker_id)
            .map_err(|error| Malformed::new("worker_id", error.to_string()))?;
        let may_join = |live: &Live| live.config.reports.as_ref().is_some_and(|r| r.join);
        if !may_join(&self.live.load()) {
            return Err(HeartbeatError::JoinOff(beat.worker_id.clone()));
        }
        // Resolves a name: not under the lock.
        let url = worker_url("worker_url", &beat.worker_url)
            .map_err(|error| Malformed::new("worker_url", error.problem))?;
        let mut membership = self.membership.lock();
        let live = self.live();
        let config = &live.config;
        let Some(reports) = config.reports.as_ref().filter(|reports| reports.join) else {
            return Err(HeartbeatError::JoinOff(beat.worker_id.clone()));
        };
        if config.upstream_tls.verify && !url.can_be_verified() {
            let problem = "a certificate cannot be checked against an address; name the host";
            return Err(Malformed::new("worker_url", problem).into());
        }
        let members = self.members();
        let others = || members.iter().filter(|member| *member.id() != id);
        if let Some(other) = others().find(|member| member.url().addr == url.addr) {
            let problem = format!("is the address of worker `{}`", other.id());
            return Err(Malformed::new("worker_url", problem).into());
        }
        let joined = others().filter(|member| member.lease_until.is_some()).count();
        if joined >= reports.joined_workers_max {
            return Err(HeartbeatError::Full(joined));
        }
        let models = match &beat.model {
            Some(model) => ModelsDeclared::Listed(vec![model.clone()]),
            None => ModelsDeclared::Learn,
        };
        let worker = WorkerConfig::by_default(id, url, models, config);
        let until = now + self.lease(beat);
        Ok(self.admit_leased(&mut membership, worker, until, now))
    }
}

/// More ranks than are told apart.
pub(super) fn too_many_ranks(field: &str) -> Malformed {
    Malformed::new(field, format!("at most {RANKS_MAX} ranks of a worker are told apart"))
}

fn url_text(beat: &Heartbeat) -> &str {
    beat.worker_url.trim_end_matches('/')
}
