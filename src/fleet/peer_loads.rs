//! The work that other routers have given one worker, by their own account.
//!
//! A router that falls silent is believed for a moment only: what it told has an end.

use std::{sync::Arc, time::Instant};

use crate::routing::Load;

/// Routers whose load is counted, at most.
const ROUTERS_MAX: usize = 64;

/// What each of them told last. Only those with any load have an entry.
#[derive(Debug, Default)]
pub(super) struct PeerLoads {
    told: Vec<Told>,
}

#[derive(Debug)]
struct Told {
    from: Arc<str>,
    load: Load,
    until: Instant,
}

impl PeerLoads {
    /// `from` has this much there, believed until `until`; it replaces what it told before.
    pub(super) fn tell(&mut self, from: &str, load: Load, until: Instant, now: Instant) {
        self.expire(now);
        self.told.retain(|told| *told.from != *from);
        if load != Load::default() && self.told.len() < ROUTERS_MAX {
            self.told.push(Told { from: from.into(), load, until });
        }
    }

    /// Forgets what is believed no more.
    pub(super) fn expire(&mut self, now: Instant) {
        self.told.retain(|told| told.until > now);
    }

    /// Of all routers together.
    pub(super) fn sum(&self, now: Instant) -> Load {
        let believed = self.told.iter().filter(|told| told.until > now);
        believed.fold(Load::default(), |sum, Told { load, .. }| Load {
            requests: sum.requests.saturating_add(load.requests),
            queued_tokens: sum.queued_tokens.saturating_add(load.queued_tokens),
            decodes: sum.decodes.saturating_add(load.decodes),
        })
    }

    /// Whether there is nothing to sum up, now or later.
    pub(super) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }
}

/// A worker's whole load: ours, what peers told, and `foreign` requests, which the worker itself
/// counted beyond ours. Those of the peers are among them, so the larger count holds.
///
/// What only the worker knows of is taken for running, as it says no more about it.
pub(super) fn whole(ours: Load, peers: Load, foreign: u32) -> Load {
    let nobodys = foreign.saturating_sub(peers.requests);
    let extra = peers.requests.saturating_add(nobodys);
    Load {
        requests: ours.requests.saturating_add(extra),
        queued_tokens: ours.queued_tokens.saturating_add(peers.queued_tokens),
        decodes: ours.decodes.saturating_add(peers.decodes).saturating_add(nobodys),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use proptest::prelude::*;

    use super::*;

    fn load(requests: u32, queued_tokens: u64, decodes: u32) -> Load {
        Load { requests, queued_tokens, decodes }
    }

    #[test]
    fn routers_add_up_replace_what_they_said_and_fall_silent() {
        let t0 = crate::clock::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let mut loads = PeerLoads::default();
        loads.tell("a", load(3, 100, 1), at(1000), t0);
        loads.tell("b", load(2, 50, 2), at(2000), t0);
        assert_eq!(loads.sum(t0), load(5, 150, 3));
        loads.tell("a", load(1, 10, 0), at(1000), t0);
        assert_eq!(loads.sum(t0), load(3, 60, 2));
        assert_eq!(loads.sum(at(1000)), load(2, 50, 2), "a is silent");
        assert_eq!(loads.sum(at(2000)), Load::default());
        loads.tell("b", Load::default(), at(9000), at(2000));
        assert!(loads.is_empty());
    }

    #[test]
    fn no_request_counts_twice() {
        let ours = load(4, 100, 2);
        assert_eq!(whole(ours, Load::default(), 3), load(7, 100, 5), "as before there were peers");
        assert_eq!(whole(ours, load(5, 70, 1), 3), load(9, 170, 3), "all foreign ones are peers'");
        assert_eq!(whole(ours, load(5, 70, 1), 8), load(12, 170, 6), "three are nobody's");
        let most = load(u32::MAX, u64::MAX, u32::MAX);
        assert_eq!(whole(most, most, u32::MAX), most);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_who_was_heard_last(
            said in prop::collection::vec((0u8..6, 0u32..9, 0u64..1000, 0u64..100), 0..60),
        ) {
            let t0 = crate::clock::now();
            let mut loads = PeerLoads::default();
            let mut model: HashMap<u8, (Load, u64)> = HashMap::new();
            for (step, (from, requests, life, queued)) in said.into_iter().enumerate() {
                let now = step as u64 * 50;
                let at = |ms| t0 + Duration::from_millis(ms);
                let told = load(requests, queued, 0);
                loads.tell(&from.to_string(), told, at(now + life), at(now));
                model.insert(from, (told, now + life));
                let want = model.values().filter(|(_, until)| *until > now);
                let want = want.fold((0, 0), |sum, (l, _)| (sum.0 + l.requests, sum.1 + l.queued_tokens));
                let sum = loads.sum(at(now));
                prop_assert_eq!((sum.requests, sum.queued_tokens), want);
                prop_assert!(loads.told.len() <= 6);
            }
        }
    }

    #[test]
    fn routers_are_bounded() {
        let now = crate::clock::now();
        let mut loads = PeerLoads::default();
        for from in 0..1000 {
            loads.tell(&from.to_string(), load(1, 0, 0), now + Duration::from_secs(1), now);
        }
        assert_eq!(loads.sum(now).requests as usize, ROUTERS_MAX);
    }
}
