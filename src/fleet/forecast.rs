//! What is forecast of the workers' work: what a pick prices by.

use std::{sync::Arc, time::Instant};

use super::Member;
use crate::routing::{Forecast, Load, Work, prefill};

impl Member {
    /// Its load and its work, with what other routers sent it.
    pub(super) fn prospect(&self, now: Instant) -> (Load, Forecast) {
        let mut load = self.load(now);
        let mut forecast = {
            let pace = self.pace.lock();
            // Of those that answer whole no first token says that they decode.
            load.decodes = load.decodes.saturating_add(pace.running(now));
            pace.forecast(now)
        };
        let peers = self.peer_load(now);
        if peers != Load::default() {
            let theirs = Work::of_counts(peers.waiting(), peers.queued_tokens);
            forecast.backlog_s += forecast.cost.seconds(&theirs);
        }
        (load, forecast)
    }
}

/// Makes what has been learned of each what is believed of it, beside those that serve the same
/// model: workers of different models are not meant to be alike.
pub(super) fn believe(members: &[Arc<Member>], now: Instant) {
    let known = |member: &Arc<Member>| (member.first_model(), member.pace.lock().known(now));
    let learned: Vec<_> = members.iter().map(known).collect();
    for (member, cost) in members.iter().zip(prefill::believed(&learned)) {
        member.pace.lock().set_cost(cost);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock, config,
        fleet::{
            Fleet, Live,
            inflight::{Dispatch, InflightGuard},
        },
        routing::{PrefillCost, block::Secret},
    };

    fn fleet(workers: &[(&str, &str)], now: Instant) -> Fleet {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.yaml");
        let worker = |(nth, (id, model)): (usize, &(&str, &str))| {
            format!("  - {{id: {id}, url: 'http://127.0.0.1:{}', models: [{model}]}}\n", nth + 1)
        };
        let workers: String = workers.iter().enumerate().map(worker).collect();
        let yaml = format!("listen: 127.0.0.1:8080\nworkers:\n{workers}");
        std::fs::write(&path, yaml).expect("writes");
        let config = Arc::new(config::load(&path).expect("a configuration"));
        Fleet::new(Live::new(config, Secret::from_seed(1), None).expect("no tokenizer"), now)
    }

    fn sent(member: &Member, tokens: u64, streams: bool, now: Instant) -> InflightGuard {
        let window = Duration::from_secs(9);
        let dispatch = Dispatch { tokens, uncached_tokens: tokens, streams, window };
        let (counts, metrics) = (member.counts.clone(), member.metrics.clone());
        InflightGuard::new(counts, metrics, member.pace.clone(), &dispatch, now)
    }

    #[test]
    fn what_other_routers_sent_waits_too() {
        let now = clock::now();
        let fleet = fleet(&[("prospect-a", "m")], now);
        let member = fleet.member("prospect-a").expect("a member");
        let _own = sent(&member, 4_000, true, now);
        let own_s = member.prospect(now).1.backlog_s;
        let theirs = Load { requests: 3, queued_tokens: 8_000, decodes: 1 };
        member.hear_load("router-b", theirs, now + Duration::from_secs(1), now);
        let (load, forecast) = member.prospect(now);
        let cost = PrefillCost::default();
        let peers_s = forecast.backlog_s - own_s;
        assert!(
            (peers_s - 2.0 * cost.request_s - 8_000.0 * cost.token_s).abs() < 1e-9,
            "{peers_s}"
        );
        assert_eq!((load.requests, load.decodes), (4, 1));
    }

    #[test]
    fn who_shows_no_first_token_waits_and_then_decodes() {
        let now = clock::now();
        let fleet = fleet(&[("prospect-b", "m")], now);
        let member = fleet.member("prospect-b").expect("a member");
        let first = sent(&member, 4_000, false, now);
        assert_eq!(member.prospect(now).0.decodes, 0);
        let later = now + Duration::from_mins(1);
        assert_eq!(member.prospect(later).0.decodes, 1);
        let _second = sent(&member, 4_000, false, later);
        let (load, forecast) = member.prospect(later);
        assert_eq!((load.requests, load.decodes), (2, 1));
        assert!((0.5..0.6).contains(&forecast.backlog_s), "the second's: {}", forecast.backlog_s);
        drop(first);
        assert_eq!(member.prospect(later).0.decodes, 0);
    }

    #[test]
    fn a_slow_start_is_not_held_against_a_worker_that_gets_nothing_since() {
        let mut now = clock::now();
        let fleet = fleet(&[("unsure-a", "x"), ("unsure-b", "x")], now);
        let members = fleet.members();
        let observe = |member: &Member, factor: f64, now: &mut Instant| {
            let mut guard = sent(member, 4_000, true, *now);
            let took = PrefillCost::default().seconds(&Work::of(4_000, 4_000)) * factor;
            *now += Duration::from_secs_f64(took);
            guard.first_token(*now);
            drop(guard);
            *now += Duration::from_secs(1);
        };
        for _ in 0..9 {
            observe(&members[0], 1.0, &mut now);
            observe(&members[1], 2.0, &mut now);
        }
        let ratio = |now: Instant| {
            believe(&members, now);
            let rates = [0, 1].map(|nth: usize| members[nth].prospect(now).1.cost.tokens_per_s());
            rates[0] / rates[1]
        };
        assert!(ratio(now) > 1.8, "{}", ratio(now));
        for _ in 0..150 {
            observe(&members[0], 1.0, &mut now);
            now += Duration::from_secs(15);
        }
        assert!((ratio(now) - 1.0).abs() < 1e-9, "{}", ratio(now));
        // It is as slow as it was: that is seen again.
        for _ in 0..6 {
            observe(&members[1], 2.0, &mut now);
        }
        assert!(ratio(now) > 1.5, "{}", ratio(now));
    }

    #[test]
    fn workers_of_one_model_are_believed_beside_one_another_and_no_others() {
        let mut now = clock::now();
        let workers = [("pool-a", "x"), ("pool-b", "x"), ("pool-c", "y"), ("pool-d", "x")];
        let fleet = fleet(&workers, now);
        let members = fleet.members();
        for (member, factor) in members.iter().zip([1.0, 1.1, 5.0]) {
            for _ in 0..9 {
                let mut guard = sent(member, 4_000, true, now);
                let work = Work::of(4_000, 4_000);
                now += Duration::from_secs_f64(PrefillCost::default().seconds(&work) * factor);
                guard.first_token(now);
                drop(guard);
                now += Duration::from_secs(1);
            }
        }
        believe(&members, now);
        let rate = |nth: usize| members[nth].prospect(now).1.cost.tokens_per_s();
        let known = PrefillCost::default().tokens_per_s();
        assert!((rate(0) / known * 1.05 - 1.0).abs() < 0.02, "{} {known}", rate(0));
        assert_eq!([rate(1), rate(3)].map(f64::to_bits), [rate(0); 2].map(f64::to_bits));
        assert!((rate(2) / known * 5.0 - 1.0).abs() < 0.05, "{} {known}", rate(2));
    }
}
