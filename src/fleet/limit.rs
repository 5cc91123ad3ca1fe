//! The bound on a worker's requests in flight: found by what is seen of it, or given.

use std::{sync::Arc, time::Instant};

use serde::Serialize;

use super::{Fleet, Member, Picked};
use crate::{
    config::WorkerConfig,
    routing::{
        Candidate, InflightMax, LimitParams, Load,
        limit::{Bounds, Standing, Started},
    },
};

/// What was at a worker when a request was sent there.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    /// Streams that waited for their first token.
    pub waiting: u32,
    /// Requests in flight.
    pub requests: u32,
}

/// A worker's bound, for `/workers`.
#[derive(Debug, Serialize)]
pub struct LimitStatus {
    /// Whether it is found automatically.
    pub auto: bool,
    /// Streams that wait for their first token.
    pub waiting: u32,
    /// Streams that may, by what was learned; none = no bound is known.
    pub waiting_max: Option<u32>,
    /// The same in tokens of prefill.
    pub queued_tokens_max: Option<u64>,
    /// Requests in flight of which the worker refused more.
    pub refused_max: Option<u32>,
}

impl Member {
    fn bounds(&self, params: &LimitParams) -> Bounds {
        self.limit.lock().bounds(params)
    }

    fn standing(&self, load: &Load) -> Standing {
        let waiting = self.counts.waiting().min(load.requests);
        Standing { requests: load.requests, waiting, queued_tokens: load.queued_tokens }
    }

    pub(super) fn ahead(&self, load: &Load) -> Ahead {
        Ahead { waiting: self.counts.waiting(), requests: load.requests }
    }

    /// `Candidate::inflight_max`. Counts when it is reached, as others are asked then.
    pub(super) fn gate(
        &self,
        settings: &WorkerConfig,
        load: &Load,
        params: &LimitParams,
        now: Instant,
    ) -> u32 {
        let gate = match settings.inflight_max {
            InflightMax::Fixed(number) => number,
            InflightMax::Auto => {
                let (bounds, standing) = (self.bounds(params), self.standing(load));
                let share = self.ramp_share(settings, now);
                bounds.gate(&standing, bounds.preferred_max(&standing, share))
            }
        };
        if load.requests >= gate {
            self.metrics.passed_over.inc();
        }
        gate
    }

    /// The same where all have reached it: nobody is turned away for what is only preferred.
    fn last_gate(&self, load: &Load, params: &LimitParams) -> u32 {
        match self.settings().inflight_max {
            InflightMax::Fixed(number) => number,
            InflightMax::Auto => {
                let (bounds, standing) = (self.bounds(params), self.standing(load));
                bounds.gate(&standing, bounds.inflight_max(&standing))
            }
        }
    }

    /// The bound now, and how it comes about.
    pub(super) fn limit_status(&self, params: &LimitParams, now: Instant) -> (u32, LimitStatus) {
        let (load, settings) = (self.load(now), self.settings());
        let (bounds, standing) = (self.bounds(params), self.standing(&load));
        let (auto, most) = match settings.inflight_max {
            InflightMax::Fixed(number) => (false, number),
            InflightMax::Auto => {
                let share = self.ramp_share(&settings, now);
                (true, bounds.preferred_max(&standing, share))
            }
        };
        let Bounds { waiting_max, queued_tokens_max, refused_max, inflight_max, .. } = bounds;
        let status = LimitStatus {
            auto,
            waiting: standing.waiting,
            waiting_max: Some(waiting_max).filter(|max| *max < inflight_max),
            queued_tokens_max: Some(queued_tokens_max).filter(|max| *max < u64::MAX),
            refused_max,
        };
        (most, status)
    }

    /// Regular upkeep of what its bound is found by.
    pub(super) fn limit_ages(&self, params: &LimitParams, now: Instant) {
        let standing = self.standing(&self.load(now));
        self.limit.lock().on_tick(&standing, params, now);
    }
}

impl Fleet {
    /// A stream has got its first token.
    pub fn record_start(&self, picked: &Picked, now: Instant) {
        let member = &picked.member;
        let standing = member.standing(&member.load(now));
        let started = Started {
            waiting_ahead: picked.ahead.waiting,
            tokens: picked.tokens_ahead,
            waited: now.saturating_duration_since(picked.at),
            running: standing.requests - standing.waiting,
        };
        let params = self.live.load().config.auto_limit;
        member.limit.lock().on_start(&started, &params, now);
    }

    /// A worker has taken a request, or refused it as it has enough to do.
    pub fn record_taken(&self, picked: &Picked, taken: bool, now: Instant) {
        let mut limit = picked.member.limit.lock();
        if taken {
            limit.on_accepted(&self.live.load().config.auto_limit);
        } else {
            limit.on_refused(picked.ahead.requests.saturating_add(1), picked.at, now);
        }
    }
}

/// Where no candidate has room by what is preferred, what must be holds.
pub(super) fn relent(candidates: &mut [Candidate], members: &[Arc<Member>], params: &LimitParams) {
    if candidates.iter().all(Candidate::is_saturated) {
        for candidate in candidates {
            candidate.inflight_max = members[candidate.slot].last_gate(&candidate.load, params);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use super::*;
    use crate::{
        clock,
        fleet::{Cause, Domain, Live, PickError, PromptAsk},
        routing::{Policy, PolicyParams, PromptKind, block::Secret},
    };

    /// Two healthy workers, with a queue of ten seconds and 100 in flight at most.
    fn fleet(prefix: &str) -> Fleet {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let yaml = format!(
            "listen: '127.0.0.1:1'\nlimits: {{queue_s: 10, inflight_auto_max: 100}}\nworkers: \
             [{{id: {prefix}-a, url: 'http://127.0.0.1:11', slow_start_s: 10}}, \
             {{id: {prefix}-b, url: 'http://127.0.0.1:12', inflight_max: 3}}]"
        );
        file.write_all(yaml.as_bytes()).expect("writes");
        let config = crate::config::load(file.path()).expect("a configuration");
        let live = Live::new(config.into(), Secret::from_seed(1), None).expect("no tokenizers");
        let fleet = Fleet::new(live, clock::now());
        for member in fleet.members().iter() {
            member.set_health(true);
        }
        fleet
    }

    fn pick(fleet: &Fleet, now: Instant) -> Result<Picked, PickError> {
        let ask = PromptAsk {
            model: None,
            policy: &(Policy::LeastLoaded, PolicyParams::default()),
            prompts: &[],
            domain: Domain::Text,
            tenant: false,
            bytes: 0,
            exact_tokens: None,
            block_tokens: 0,
            kind: PromptKind::NoPrompt,
            tokens: 1,
            streams: true,
            session: None,
            prefix: None,
            tried: &[],
            retry: false,
        };
        fleet.pick(&fleet.live(), &ask, now)
    }

    /// Streams of the first worker begin one a second, each behind ten others.
    fn learn(fleet: &Fleet, now: Instant) -> Instant {
        let first = fleet.members()[0].serial();
        let picks = (0..10).map(|_| pick(fleet, now).expect("room"));
        let picks: Vec<_> = picks.collect();
        let mut picked =
            picks.into_iter().find(|picked| picked.member.serial() == first).expect("its turn");
        picked.guard.first_token(now);
        picked.ahead.waiting = 10;
        for s in 1..40 {
            picked.at = now + Duration::from_secs(s);
            fleet.record_start(&picked, now + Duration::from_secs(s + 11));
        }
        now + Duration::from_mins(1)
    }

    #[test]
    fn what_starts_tell_bounds_who_waits_and_goes_into_the_state() {
        let fleet = fleet("limit-learn");
        let params = fleet.live().config.auto_limit;
        let member = fleet.members()[0].clone();
        assert_eq!(member.limit_status(&params, clock::now()).0, 100);
        let now = learn(&fleet, clock::now());
        let (most, status) = member.limit_status(&params, now);
        assert!((9..20).contains(&most), "{most}: {status:?}");
        assert!(status.auto && status.waiting_max.is_some_and(|max| max <= 14), "{status:?}");
        let mut held: Vec<_> = Vec::new();
        let shed = loop {
            match pick(&fleet, now) {
                Ok(picked) => held.push(picked),
                Err(error) => break error,
            }
        };
        assert_eq!(shed, PickError::Saturated);
        assert_eq!(held.len(), most as usize + 3, "the other takes three");
        assert!(member.metrics.passed_over.get() > 0);
        let other = self::fleet("limit-learn");
        assert!(other.restore(&member.state(now), Cause::HandOver, now));
        let after = other.members()[0].limit_status(&params, now);
        assert!(after.0.abs_diff(most) <= 1, "{after:?}");
    }

    #[test]
    fn who_starts_slowly_is_spared_while_others_have_room_and_only_then() {
        let (fleet, now) = (fleet("limit-slow"), clock::now());
        let member = fleet.members()[0].clone();
        member.start(true, now);
        let params = fleet.live().config.auto_limit;
        let bound = |now| member.limit_status(&params, now).0;
        assert_eq!(bound(now), 10);
        assert_eq!(bound(now + Duration::from_secs(5)), 55);
        assert_eq!(bound(now + Duration::from_secs(10)), 100);
        let held: Vec<_> = (0..13).map(|_| pick(&fleet, now).expect("room")).collect();
        let at = |id: usize| fleet.members()[id].counts.load().requests;
        assert_eq!((at(0), at(1)), (10, 3));
        // Nobody is turned away.
        let more = pick(&fleet, now).expect("room");
        assert_eq!(more.member.id(), member.id());
        drop((held, more));
    }
}
