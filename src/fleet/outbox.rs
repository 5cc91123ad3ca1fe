//! What we come to presume, told to whoever must presume it too: the other routers of the fleet, or
//! the process that takes over from this one.
//!
//! Telling is fire and forget. A listener that is too slow loses what it has no room for, and a
//! request never waits for one. While nobody listens, nothing is copied and no lock is taken.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use super::{Fleet, Member, Picked, truth::Domain};
use crate::routing::{Load, WorkerId, block::BlockHash};

/// Blocks of one prompt that are told of or heard, at most: 8 MiB of text. What lies behind them is
/// left out; a prefix of what is presumed is true as well.
pub const BLOCKS_MAX: usize = 1 << 16;

/// A prompt went to a worker, which will hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presumption {
    /// The worker.
    pub worker: WorkerId,
    /// Whether its reports would confirm it, as the teller sees it.
    pub confirms: bool,
    /// What the blocks are named by.
    pub domain: Domain,
    /// Whether the prompt is some tenant's own.
    pub tenant: bool,
    /// The prompt, from its first block on.
    pub blocks: Arc<[BlockHash]>,
}

/// Something that happened to what we presume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A prompt was sent.
    Presumed(Presumption),
    /// It never got there.
    TakenBack {
        /// What was told before.
        presumption: Presumption,
        /// Leading blocks that were believed held before, and are still.
        keep: usize,
    },
}

/// The receiving end of what a fleet tells.
#[derive(Debug)]
pub struct Listening {
    /// In the order in which it happened, as far as one request is concerned.
    pub said: Receiver<Said>,
    dropped: Arc<AtomicU64>,
}

impl Listening {
    /// How much was dropped since the last call, as there was no room for it.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Relaxed)
    }
}

/// Who listens. A listener that is dropped is forgotten when something is told next.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    listeners: ArcSwap<Vec<Listener>>,
}

#[derive(Debug, Clone)]
struct Listener {
    said: Sender<Said>,
    /// Lives as long as the receiving end.
    dropped: Weak<AtomicU64>,
}

impl Outbox {
    fn listen(&self, room: usize) -> Listening {
        let (sender, said) = bounded(room);
        let dropped = Arc::<AtomicU64>::default();
        let listener = Listener { said: sender, dropped: Arc::downgrade(&dropped) };
        self.listeners.rcu(|all| {
            let mut all = Vec::clone(all);
            all.push(listener.clone());
            all
        });
        Listening { said, dropped }
    }

    fn anybody_listens(&self) -> bool {
        !self.listeners.load().is_empty()
    }

    fn tell(&self, said: &Said) {
        let mut somebody_left = false;
        for listener in self.listeners.load().iter() {
            match listener.said.try_send(said.clone()) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    if let Some(dropped) = listener.dropped.upgrade() {
                        dropped.fetch_add(1, Relaxed);
                    }
                }
                Err(TrySendError::Disconnected(_)) => somebody_left = true,
            }
        }
        if somebody_left {
            self.listeners.rcu(|all| {
                let stays = all.iter().filter(|listener| listener.dropped.strong_count() > 0);
                stays.cloned().collect::<Vec<_>>()
            });
        }
    }
}

impl Fleet {
    /// Tells all that is presumed from now on. What finds no room among the `room` that wait is
    /// dropped and counted.
    pub fn listen(&self, room: usize) -> Listening {
        self.outbox.listen(room)
    }

    /// Takes in what another process told. It is not told on. Of an unknown worker nothing is
    /// taken; true when it is known.
    pub fn hear(&self, said: &Said, now: Instant) -> bool {
        let (Said::Presumed(presumption) | Said::TakenBack { presumption, .. }) = said;
        let Some(member) = self.member(presumption.worker.as_str()) else { return false };
        let blocks = &presumption.blocks[..presumption.blocks.len().min(BLOCKS_MAX)];
        match said {
            Said::Presumed(_) => hear_presumed(&member, presumption, blocks, now),
            Said::TakenBack { keep, .. } => {
                let keep = (*keep).min(blocks.len());
                member.belief.retract(blocks, keep);
            }
        }
        true
    }

    /// The load that the router `from` has put on the workers: all of it, so that a worker not
    /// named has none. It counts until `until`, or until `from` says otherwise. Unknown workers are
    /// passed over.
    pub fn hear_loads(&self, from: &str, loads: &[(WorkerId, Load)], until: Instant, now: Instant) {
        let loads: HashMap<&WorkerId, Load> = loads.iter().map(|(id, load)| (id, *load)).collect();
        for member in self.members().iter() {
            let load = loads.get(member.id()).copied().unwrap_or_default();
            member.hear_load(from, load, until, now);
        }
    }

    /// As [`hear_loads`](Self::hear_loads), but of the workers named alone: the others' stands.
    pub fn hear_changed_loads(
        &self,
        from: &str,
        loads: &[(WorkerId, Load)],
        until: Instant,
        now: Instant,
    ) {
        for (id, load) in loads {
            if let Some(member) = self.member(id.as_str()) {
                member.hear_load(from, *load, until, now);
            }
        }
    }

    pub(super) fn tell_presumed(
        &self,
        picked: &Picked,
        prompts: &[Vec<BlockHash>],
        domain: Domain,
        tenant: bool,
    ) {
        if !self.outbox.anybody_listens() {
            return;
        }
        for blocks in prompts.iter().filter(|blocks| !blocks.is_empty()) {
            let presumption = presumption(picked, blocks, domain, tenant);
            self.outbox.tell(&Said::Presumed(presumption));
        }
    }

    pub(super) fn tell_taken_back(&self, picked: &Picked, blocks: &[BlockHash], keep: usize) {
        if blocks.is_empty() || !self.outbox.anybody_listens() {
            return;
        }
        let domain = picked.prediction.domain.unwrap_or(Domain::Text);
        let presumption = presumption(picked, blocks, domain, false);
        self.outbox.tell(&Said::TakenBack { presumption, keep });
    }
}

fn presumption(picked: &Picked, blocks: &[BlockHash], domain: Domain, tenant: bool) -> Presumption {
    Presumption {
        worker: picked.member.id().clone(),
        confirms: picked.confirms,
        domain,
        tenant,
        blocks: blocks[..blocks.len().min(BLOCKS_MAX)].into(),
    }
}

fn hear_presumed(member: &Member, said: &Presumption, blocks: &[BlockHash], now: Instant) {
    let confirms = {
        let mut truth = member.truth.lock();
        // It fills the worker's cache as our own prompts do.
        truth.sent(blocks);
        truth.confirms(said.domain, said.tenant)
    };
    if confirms {
        member.belief.send(blocks, true, now);
    }
    // Also where only the teller knows yet that the worker's reports will never confirm it.
    if !confirms || !said.confirms {
        member.belief.send(blocks, false, now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock, config,
        fleet::Live,
        routing::{
            Policy, PolicyParams, PromptKind,
            block::{BlockHash, Secret},
        },
    };

    fn fleet() -> Fleet {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.yaml");
        let workers = "workers: [{id: w0, url: 'http://127.0.0.1:1'}, \
                       {id: w1, url: 'http://127.0.0.1:2'}]";
        std::fs::write(&path, format!("listen: 127.0.0.1:8080\n{workers}")).expect("writes");
        let config = Arc::new(config::load(&path).expect("a configuration"));
        let live = Live::new(config, Secret::from_seed(1), None).expect("no tokenizer");
        let fleet = Fleet::new(live, clock::now());
        for member in fleet.members().iter() {
            member.set_health(true);
        }
        fleet
    }

    fn prompt(seed: u64, blocks: u64) -> Vec<BlockHash> {
        // As good as random, as hashes are.
        let name = |at: u64| (seed << 32 | at).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..blocks).map(|at| BlockHash::new(name(at) ^ name(at) >> 32)).collect()
    }

    fn pick(fleet: &Fleet, prompts: &[Vec<BlockHash>]) -> Picked {
        let ask = crate::fleet::PromptAsk {
            model: None,
            policy: &(Policy::PrefixAware, PolicyParams::default()),
            prompts,
            domain: Domain::Text,
            tenant: false,
            bytes: 4096,
            exact_tokens: None,
            block_tokens: 0,
            kind: PromptKind::Prompt,
            tokens: 1024,
            streams: true,
            session: None,
            prefix: None,
            tried: &[],
            retry: false,
        };
        fleet.pick(&fleet.live(), &ask, clock::now()).expect("a worker")
    }

    #[test]
    fn what_one_fleet_tells_another_presumes() {
        let (a, b) = (fleet(), fleet());
        let (to_b, to_a) = (a.listen(8), b.listen(8));
        let prompts = [prompt(7, 32)];
        let picked = pick(&a, &prompts);
        let said = to_b.said.try_recv().expect("told");
        assert!(b.hear(&said, clock::now()));
        assert!(to_a.said.try_recv().is_err(), "what was heard is not told on");
        let there = pick(&b, &prompts);
        assert_eq!(there.member.id(), picked.member.id());
        assert_eq!((there.matched_blocks, there.total_blocks), (32, 32));
    }

    #[test]
    fn what_is_taken_back_here_is_there() {
        let (a, b) = (fleet(), fleet());
        let to_b = a.listen(8);
        let before = [prompt(7, 10)];
        let picked = pick(&a, &before);
        drop(picked);
        let mut longer = prompt(7, 10);
        longer.extend(prompt(8, 20));
        let prompts = [longer];
        let picked = pick(&a, &prompts);
        assert_eq!(picked.matched_blocks, 10);
        a.take_back(&picked, &prompts);
        let id = picked.member.id().clone();
        drop(picked);
        for said in to_b.said.try_iter() {
            b.hear(&said, clock::now());
        }
        for fleet in [&a, &b] {
            let member = fleet.member(id.as_str()).expect("known");
            assert_eq!(member.belief.matched(&prompts[0], true).gpu, 10);
        }
    }

    #[test]
    fn a_full_listener_loses_and_counts_and_one_that_left_is_forgotten() {
        let fleet = fleet();
        assert!(!fleet.outbox.anybody_listens());
        let (slow, gone) = (fleet.listen(2), fleet.listen(2));
        drop(gone);
        for seed in 0..5 {
            drop(pick(&fleet, &[prompt(seed, 3)]));
        }
        assert_eq!((slow.said.len(), slow.take_dropped(), slow.take_dropped()), (2, 3, 0));
        assert_eq!(fleet.outbox.listeners.load().len(), 1);
        drop(slow);
        drop(pick(&fleet, &[prompt(9, 3)]));
        assert!(!fleet.outbox.anybody_listens());
    }

    #[test]
    fn nothing_is_taken_of_a_worker_nobody_knows() {
        let fleet = fleet();
        let presumption = Presumption {
            worker: WorkerId::try_new("stranger").expect("fits"),
            confirms: true,
            domain: Domain::Text,
            tenant: false,
            blocks: prompt(1, 3).into(),
        };
        assert!(!fleet.hear(&Said::Presumed(presumption), clock::now()));
        let stranger = WorkerId::try_new("stranger").expect("fits");
        let now = clock::now();
        let load = Load { requests: 5, ..Load::default() };
        fleet.hear_loads("a", &[(stranger, load)], now + Duration::from_secs(1), now);
        assert!(fleet.members().iter().all(|member| member.load(now) == Load::default()));
    }

    #[test]
    fn what_reports_would_never_confirm_is_kept_apart() {
        let fleet = fleet();
        let member = fleet.member("w0").expect("known");
        let hear = |confirms, seed| {
            let presumption = Presumption {
                worker: member.id().clone(),
                confirms,
                domain: Domain::Text,
                tenant: false,
                blocks: prompt(seed, 5).into(),
            };
            assert!(fleet.hear(&Said::Presumed(presumption), clock::now()));
        };
        hear(true, 1);
        assert_eq!(member.belief.stats().unconfirmed_blocks, 0);
        hear(false, 2);
        assert_eq!(member.belief.stats().unconfirmed_blocks, 5);
        assert_eq!(member.belief.stats().presumed_blocks, 10);
    }

    #[test]
    fn a_peers_load_turns_picks_away_until_it_is_silent() {
        let fleet = fleet();
        let [w0, w1] = ["w0", "w1"].map(|id| WorkerId::try_new(id).expect("fits"));
        let t0 = clock::now();
        let load = Load { requests: 3, queued_tokens: 50_000, decodes: 0 };
        let until = t0 + Duration::from_hours(1);
        fleet.hear_loads("a", &[(w0.clone(), load)], until, t0);
        fleet.hear_loads("b", &[(w0.clone(), load)], until, t0);
        let member = fleet.member("w0").expect("known");
        assert_eq!(member.load(t0).requests, 6);
        for seed in 0..4 {
            assert_eq!(pick(&fleet, &[prompt(seed, 4)]).member.id().as_str(), "w1");
        }
        fleet.hear_changed_loads("a", &[(w1, load)], until, t0);
        assert_eq!(member.load(t0).requests, 6, "which stands");
        assert_eq!(fleet.member("w1").expect("known").load(t0).requests, 3);
        fleet.hear_loads("a", &[], until, t0);
        assert_eq!(member.load(t0).requests, 3, "a has let go");
        fleet.upkeep(until);
        assert_eq!(member.load(until), Load::default(), "b was silent");
        assert_eq!(member.peer_load(t0), Load::default(), "and is forgotten");
    }
}
