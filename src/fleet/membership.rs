//! Who belongs to the fleet, on whose word.
//!
//! Every member has an origin, and each origin but the leases says at once who all its workers are.
//! What it wants is kept: a worker that cannot join now, as another origin's has its id or its
//! address, joins when that one leaves. A member that stays is the same member, with all that is
//! believed of it; one with another address is another worker.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use super::{Fleet, Live, Member, operate::Removed};
use crate::{
    config::{Config, WorkerConfig},
    routing::WorkerId,
    telemetry::{events, metrics},
};

/// Who says that a worker belongs to the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The configuration.
    Static,
    /// A file of workers.
    File,
    /// The addresses of this name.
    Dns(Arc<str>),
    /// Its own heartbeats.
    Lease,
}

impl Origin {
    /// Reads what `Display` wrote.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "static" => Some(Self::Static),
            "file" => Some(Self::File),
            "lease" => Some(Self::Lease),
            _ => Some(Self::Dns(text.strip_prefix("dns:")?.into())),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static => f.write_str("static"),
            Self::File => f.write_str("file"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Lease => f.write_str("lease"),
        }
    }
}

/// What became of an origin's workers. One whose address is another both left and joined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// New members.
    pub joined: Vec<WorkerId>,
    /// Members no more.
    pub left: Vec<WorkerId>,
    /// Members that have other settings.
    pub changed: Vec<WorkerId>,
    /// Not members: their id or address is taken.
    pub skipped: Vec<WorkerId>,
}

/// What the origins want, and what stands against it.
#[derive(Debug, Default)]
pub(super) struct Membership {
    /// The workers of each origin but the leases.
    wanted: Vec<(Origin, Vec<WorkerConfig>)>,
    pub(super) removed: HashMap<WorkerId, Removed>,
    /// Workers not admitted, each told of once.
    skipped: HashSet<(Origin, WorkerId)>,
}

impl Membership {
    fn want(&mut self, origin: &Origin, workers: Vec<WorkerConfig>) {
        self.removed.retain(|id, removed| {
            let named = removed.origin != *origin || workers.iter().any(|worker| worker.id == *id);
            if !named {
                events::removal_lifted(id.as_str(), "its origin has stopped naming it");
            }
            named
        });
        match self.wanted.iter_mut().find(|(known, _)| known == origin) {
            Some((_, known)) => *known = workers,
            None => self.wanted.push((origin.clone(), workers)),
        }
        self.wanted.retain(|(_, workers)| !workers.is_empty());
    }

    /// Whether this worker is kept out; its heartbeat is heard until `named_until`.
    pub(super) fn keeps_out(&mut self, id: &str, named_until: Instant) -> bool {
        let Ok(id) = WorkerId::try_new(id) else { return false };
        let Some(removed) = self.removed.get_mut(&id) else { return false };
        if let Some(until) = &mut removed.named_until {
            *until = named_until;
        }
        true
    }

    /// Lets removed workers come back whose heartbeats have ceased; whether there were any.
    fn forget_silent(&mut self, now: Instant) -> bool {
        let before = self.removed.len();
        self.removed.retain(|id, removed| {
            let named = removed.named_until.is_none_or(|until| until > now);
            if !named {
                events::removal_lifted(id.as_str(), "its heartbeats have ceased");
            }
            named
        });
        self.removed.len() < before
    }
}

/// What one look at the membership did.
#[derive(Default)]
pub(super) struct Moves {
    joined: Vec<Arc<Member>>,
    left: Vec<(Arc<Member>, &'static str)>,
    changed: Vec<Arc<Member>>,
    skipped: Vec<(Origin, WorkerId)>,
}

impl Moves {
    /// The part that is one origin's.
    fn of(&self, origin: &Origin) -> Changed {
        let mine = |member: &&Arc<Member>| member.origin() == origin;
        let id = |member: &Arc<Member>| member.id().clone();
        let skipped = self.skipped.iter().filter(|(other, ..)| other == origin);
        Changed {
            joined: self.joined.iter().filter(mine).map(id).collect(),
            left: self.left.iter().map(|(member, _)| member).filter(mine).map(id).collect(),
            changed: self.changed.iter().filter(mine).map(id).collect(),
            skipped: skipped.map(|(_, id)| id.clone()).collect(),
        }
    }

    pub(super) fn tell(&self) {
        for (member, why) in &self.left {
            let origin = member.origin().to_string();
            events::left(member.id().as_str(), &member.url().text, &origin, why);
        }
        for member in &self.joined {
            let origin = member.origin().to_string();
            events::joined(member.id().as_str(), &member.url().text, &origin);
        }
        for member in &self.changed {
            events::settings_changed(member.id().as_str(), &member.origin().to_string());
        }
    }
}

impl Fleet {
    /// Makes the workers of one origin be exactly these. Those that are members already, under the
    /// same id and address, stay what they are and take over changed settings. Requests in flight
    /// at those that leave finish. (Leases are made by heartbeats alone: for them nothing happens.)
    pub fn set_workers(
        &self,
        origin: &Origin,
        workers: Vec<WorkerConfig>,
        now: Instant,
    ) -> Changed {
        if *origin == Origin::Lease {
            return Changed::default();
        }
        let mut membership = self.membership.lock();
        membership.want(origin, workers);
        let moves = self.reconcile(&mut membership, |_| None, now);
        moves.tell();
        moves.of(origin)
    }

    /// The first members; nothing is logged of them.
    pub(super) fn seed(&self, workers: Vec<WorkerConfig>, now: Instant) {
        let mut membership = self.membership.lock();
        membership.want(&Origin::Static, workers);
        self.reconcile(&mut membership, |_| None, now);
    }

    /// Takes another configuration into force. What follows from it for every member is changed at
    /// once: breakers, bounds of the indexes, and what its origin left to the defaults. The static
    /// workers themselves are another matter: see [`Fleet::set_workers`].
    pub fn set_live(&self, live: Live, now: Instant) {
        let mut membership = self.membership.lock();
        let before = self.live.swap(Arc::new(live));
        let live = self.live.load_full();
        for (_, workers) in &mut membership.wanted {
            for worker in workers {
                follow_defaults(worker, &before.config, &live.config);
            }
        }
        for member in self.members.load().iter() {
            let mut worker = WorkerConfig::clone(&member.settings());
            follow_defaults(&mut worker, &before.config, &live.config);
            self.settle(member, worker, &before.config);
            member.breaker.lock().set_params(live.config.breaker, now);
            self.rebound(member);
        }
        // Models or aliases may be others: nothing of that is a member's own.
    }

    /// Gives a member other settings; true when they are others.
    fn settle(&self, member: &Member, worker: WorkerConfig, before: &Config) -> bool {
        let config = &self.live.load().config;
        let was = before.index.blocks_of(member.settings().cache_tokens);
        let blocks = config.index.blocks_of(worker.cache_tokens);
        let changed = member.set_settings(worker);
        // What its heartbeats say of its cache is better than what anybody else does.
        if was != blocks && member.reported.lock().capacity_tokens().is_none() {
            member.truth.lock().said_capacity(blocks);
            self.rebound(member);
        }
        changed
    }

    /// Members whose lease is over leave; removed workers that nobody names any more are forgotten.
    pub(super) fn lapse_leases(&self, now: Instant) {
        let mut membership = self.membership.lock();
        let forgot = membership.forget_silent(now);
        let lapsed =
            |member: &Member| member.lease_until.as_ref().is_some_and(|until| *until.lock() <= now);
        if forgot || self.members.load().iter().any(|member| lapsed(member)) {
            let why = |member: &Member| lapsed(member).then_some("its lease lapsed");
            self.reconcile(&mut membership, why, now).tell();
        }
    }

    /// Admits a worker by its heartbeat, in the place of the leased one of its name. Another origin
    /// may have a worker of that name by then, which is given back instead.
    pub(super) fn admit_leased(
        &self,
        membership: &mut Membership,
        worker: WorkerConfig,
        until: Instant,
        now: Instant,
    ) -> Arc<Member> {
        let moved = |member: &Member| (*member.id() == worker.id).then_some("it moved");
        self.reconcile(membership, moved, now).tell();
        if let Some(member) = self.member(worker.id.as_str()) {
            return member;
        }
        let config = &self.live.load().config;
        let member = Arc::new(Member::new(
            worker,
            config,
            Origin::Lease,
            Some(until),
            self.index.clone(),
            now,
        ));
        let mut members = Vec::clone(&self.members.load());
        members.push(member.clone());
        self.publish(members, now);
        Moves { joined: vec![member.clone()], ..Moves::default() }.tell();
        member
    }

    /// Does `what` unless the worker has left, and before it does.
    pub fn while_member(&self, member: &Member, what: impl FnOnce()) {
        let _changing = self.membership.lock();
        if self.members.load().iter().any(|other| other.serial() == member.serial()) {
            what();
        }
    }

    /// Makes the members what the origins want. `leaves` says why a leased or removed one goes.
    pub(super) fn reconcile(
        &self,
        membership: &mut Membership,
        leaves: impl Fn(&Member) -> Option<&'static str>,
        now: Instant,
    ) -> Moves {
        let live = self.live.load_full();
        let Membership { wanted, removed, skipped } = membership;
        let mut moves = Moves::default();
        let mut by_name: HashMap<(&Origin, &WorkerId), &WorkerConfig> = HashMap::new();
        for (origin, workers) in wanted.iter() {
            for worker in workers {
                by_name.entry((origin, &worker.id)).or_insert(worker);
            }
        }
        let mut members = Vec::new();
        for member in self.members.load().iter() {
            let why = leaves(member).or_else(|| {
                if *member.origin() == Origin::Lease {
                    return None;
                }
                match by_name.get(&(member.origin(), member.id())) {
                    None => Some("its origin names it no more"),
                    Some(worker) if worker.url != *member.url() => Some("it moved"),
                    Some(worker) => {
                        if self.settle(member, WorkerConfig::clone(worker), &live.config) {
                            moves.changed.push(member.clone());
                        }
                        None
                    }
                }
            });
            match why {
                None => members.push(member.clone()),
                Some(why) => {
                    // Before another may take the name.
                    metrics::forget_worker(member.id().as_str());
                    moves.left.push((member.clone(), why));
                }
            }
        }
        let mut ids: HashSet<WorkerId> = members.iter().map(|m| m.id().clone()).collect();
        let mut addrs: HashMap<SocketAddr, WorkerId> =
            members.iter().map(|m| (m.url().addr, m.id().clone())).collect();
        let stays: HashSet<(Origin, WorkerId)> =
            members.iter().map(|m| (m.origin().clone(), m.id().clone())).collect();
        let mut not_admitted = HashSet::new();
        for (origin, workers) in wanted.iter() {
            for worker in workers {
                let key = (origin.clone(), worker.id.clone());
                if stays.contains(&key) && by_name.get(&(origin, &worker.id)) == Some(&worker)
                    || removed.contains_key(&worker.id)
                {
                    continue;
                }
                // Of those an origin lists under one name the first counts.
                let first =
                    by_name.get(&(origin, &worker.id)).is_some_and(|w| std::ptr::eq(*w, worker));
                let taken = ids.get(&worker.id).or_else(|| addrs.get(&worker.url.addr));
                if let Some(by) = taken.or((!first).then_some(&worker.id)) {
                    if !skipped.contains(&key) {
                        let (id, url) = (worker.id.as_str(), &worker.url.text);
                        events::not_admitted(id, url, &origin.to_string(), by.as_str());
                    }
                    not_admitted.insert(key);
                    moves.skipped.push((origin.clone(), worker.id.clone()));
                    continue;
                }
                ids.insert(worker.id.clone());
                addrs.insert(worker.url.addr, worker.id.clone());
                let (worker, config) = (worker.clone(), &live.config);
                let member = Arc::new(Member::new(
                    worker,
                    config,
                    origin.clone(),
                    None,
                    self.index.clone(),
                    now,
                ));
                members.push(member.clone());
                moves.joined.push(member);
            }
        }
        *skipped = not_admitted;
        if !(moves.joined.is_empty() && moves.left.is_empty()) {
            self.publish(members, now);
        }
        moves
    }

    fn publish(&self, members: Vec<Arc<Member>>, now: Instant) {
        metrics::WORKERS.set(members.len() as i64);
        self.members.store(Arc::new(members));
        self.look_who_serves(now);
    }
}

/// What a worker's origin left to the defaults follows them. (A value that is the default's by
/// chance follows too, until its origin is next heard.)
fn follow_defaults(worker: &mut WorkerConfig, before: &Config, now: &Config) {
    fn follow<T: PartialEq + Clone>(value: &mut T, before: &T, now: &T) {
        if value == before {
            value.clone_from(now);
        }
    }
    follow(&mut worker.inflight_max, &before.limits.inflight_max, &now.limits.inflight_max);
    follow(&mut worker.cache_tokens, &before.index.cache_tokens, &now.index.cache_tokens);
    follow(&mut worker.health_path, &before.health.path, &now.health.path);
    follow(&mut worker.kv_events, &before.kv_events, &now.kv_events);
    follow(&mut worker.slow_start, &before.slow_start, &now.slow_start);
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
