//! One DNS name of the configuration: which questions it takes, and the workers that follow.
//!
//! Pure, like `question.rs`. A name of addresses is two questions (A, AAAA), a service one (SRV) and
//! two more for each target; each goes its own way, so that a name server which fails for one of them
//! costs nothing of the others. Workers follow from all that is known at a time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use super::question::{Pace, Question, Reply, Step};

/// Most targets of a service; each takes questions of its own.
pub const TARGETS_MAX: usize = 256;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// IPv4 addresses of a name.
    A(Arc<str>),
    /// IPv6 addresses of a name.
    Aaaa(Arc<str>),
    /// Hosts and ports of a service.
    Srv(Arc<str>),
}

impl Ask {
    /// The name asked for.
    pub fn name(&self) -> &str {
        match self {
            Ask::A(name) | Ask::Aaaa(name) | Ask::Srv(name) => name,
        }
    }

    /// The record type, for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Ask::A(_) => "A",
            Ask::Aaaa(_) => "AAAA",
            Ask::Srv(_) => "SRV",
        }
    }
}

/// An SRV record. Sorted by what is preferred.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Lower is used first.
    pub priority: u16,
    /// Host, without the final dot.
    pub target: Arc<str>,
    /// Port, over 0.
    pub port: u16,
    /// Share of the traffic within its priority.
    pub weight: u16,
}

/// A reply to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To `A` and `Aaaa`.
    Addresses(Reply<IpAddr>),
    /// To `Srv`.
    Services(Reply<Service>),
}

/// Which addresses of a host are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Both A and AAAA.
    Any,
    /// A only.
    Ipv4,
    /// AAAA only.
    Ipv6,
}

/// What stands behind a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Addresses: a worker each, at this port.
    Addresses(u16),
    /// A service: a worker for each target.
    Services,
}

/// A worker that a name stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its host's name, where it was found by SRV.
    pub target: Option<Arc<str>>,
    /// Its share relative to the largest of the name, over 0 and at most 1.
    pub share: f64,
}

/// What was heard, once what no worker can use is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Records.
    Records,
    /// That there are none.
    Nothing,
    /// No answer.
    Failure,
}

/// What a reply changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// What it said.
    pub heard: Heard,
    /// Whether the workers may be others than before.
    pub changed: bool,
    /// Records left out, as there were too many.
    pub left_out: usize,
    /// Whether the question has any record that is believed.
    pub known: bool,
}

/// A question and when it is asked next; never while it is under way.
#[derive(Debug)]
struct Tracked<T> {
    question: Question<T>,
    due: Option<Instant>,
}

impl<T: Ord + Clone> Tracked<T> {
    fn new(now: Instant) -> Self {
        Self { question: Question::default(), due: Some(now) }
    }

    fn take_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    fn on_reply(&mut self, reply: Reply<T>, now: Instant, jitter: f64, pace: &Pace) -> Step {
        let step = self.question.on_reply(reply, now, jitter, pace);
        self.due = Some(now + step.wait);
        step
    }
}

/// The state of a name.
#[derive(Debug)]
pub struct Name {
    kind: Kind,
    family: Family,
    pace: Pace,
    root: Arc<str>,
    services: Option<Tracked<Service>>,
    addresses: BTreeMap<Ask, Tracked<IpAddr>>,
    /// The address in use of each target: a host with two of them stays where it is.
    chosen: BTreeMap<Arc<str>, IpAddr>,
}

impl Name {
    /// A name nobody was asked about yet; all its first questions are due.
    pub fn new(name: &str, kind: Kind, family: Family, pace: Pace, now: Instant) -> Self {
        let mut new = Self {
            kind,
            family,
            pace,
            root: name.into(),
            services: (kind == Kind::Services).then(|| Tracked::new(now)),
            addresses: BTreeMap::new(),
            chosen: BTreeMap::new(),
        };
        if kind != Kind::Services {
            for ask in new.asks_of(&new.root) {
                new.addresses.insert(ask, Tracked::new(now));
            }
        }
        new
    }

    /// The questions that are due; they count as under way until their reply.
    pub fn take_due(&mut self, now: Instant) -> Vec<Ask> {
        let mut asks = Vec::new();
        if self.services.as_mut().is_some_and(|tracked| tracked.take_due(now)) {
            asks.push(Ask::Srv(self.root.clone()));
        }
        let due = self
            .addresses
            .iter_mut()
            .filter_map(|(ask, tracked)| tracked.take_due(now).then(|| ask.clone()));
        asks.extend(due);
        asks
    }

    /// When the next question is due; `None` while all are under way.
    pub fn next_due(&self) -> Option<Instant> {
        let services = self.services.iter().filter_map(|tracked| tracked.due);
        services.chain(self.addresses.values().filter_map(|tracked| tracked.due)).min()
    }

    /// Takes in a reply. One to a question that is not asked any more is passed over, as is one of
    /// the wrong kind.
    pub fn on_reply(&mut self, ask: &Ask, answer: Answer, now: Instant, jitter: f64) -> Told {
        let (heard, step, known) = match answer {
            Answer::Services(reply) => {
                let heard = heard(&reply);
                let nothing = Told { heard, changed: false, left_out: 0, known: false };
                let Some(tracked) = self.services.as_mut().filter(|_| ask.kind() == "SRV") else {
                    return nothing;
                };
                let step = tracked.on_reply(reply, now, jitter, &self.pace);
                let known = !tracked.question.known().is_empty();
                let beyond = if step.changed { self.follow_targets(now) } else { 0 };
                (heard, Step { left_out: step.left_out + beyond, ..step }, known)
            }
            Answer::Addresses(reply) => {
                let reply = usable(reply);
                let heard = heard(&reply);
                let nothing = Told { heard, changed: false, left_out: 0, known: false };
                let Some(tracked) = self.addresses.get_mut(ask) else { return nothing };
                // The first reply may decide between two priorities, even when it brings nothing.
                let first = !tracked.question.replied();
                let mut step = tracked.on_reply(reply, now, jitter, &self.pace);
                step.changed |= first;
                (heard, step, !tracked.question.known().is_empty())
            }
        };
        if step.changed {
            self.choose();
        }
        Told { heard, changed: step.changed, left_out: step.left_out, known }
    }

    /// The workers, in a fixed order; `None` while it is open which ones they are (a target's first
    /// reply is still to come), so that what was found before stands.
    pub fn found(&self) -> Option<Vec<Found>> {
        match self.kind {
            Kind::Addresses(port) => {
                let known = self.addresses.values().flat_map(|t| t.question.known());
                let mut addrs: Vec<_> = known.map(|ip| SocketAddr::new(*ip, port)).collect();
                addrs.sort_unstable();
                let found = |addr| Found { addr, target: None, share: 1.0 };
                Some(addrs.into_iter().map(found).collect())
            }
            Kind::Services => self.found_services(),
        }
    }

    /// Whether this is a question of the name, now: targets come and go.
    pub fn asks(&self, ask: &Ask) -> bool {
        matches!(ask, Ask::Srv(_)) || self.addresses.contains_key(ask)
    }

    /// Whether every question has had a reply, good or bad.
    pub fn has_all_replies(&self) -> bool {
        self.services.as_ref().is_none_or(|tracked| tracked.question.replied())
            && self.addresses.values().all(|tracked| tracked.question.replied())
    }

    /// When the oldest answer was given that the workers still follow from; without workers, the
    /// last that was believed. `None` when there was none.
    pub fn good_at(&self) -> Option<Instant> {
        let services =
            self.services.iter().map(|t| (t.question.known().is_empty(), t.question.good_at()));
        let addresses =
            self.addresses.values().map(|t| (t.question.known().is_empty(), t.question.good_at()));
        let all: Vec<_> = services.chain(addresses).collect();
        let in_use = all.iter().filter(|(empty, _)| !empty).filter_map(|(_, at)| *at).min();
        in_use.or_else(|| all.iter().filter_map(|(_, at)| *at).max())
    }

    /// Hosts ordered by priority; of each only its best.
    fn found_services(&self) -> Option<Vec<Found>> {
        let known = self.services.as_ref().map_or(&[][..], |t| t.question.known());
        let mut at = 0;
        while at < known.len() {
            let group: Vec<_> =
                known[at..].iter().take_while(|s| s.priority == known[at].priority).collect();
            at += group.len();
            let mut found: Vec<Found> = Vec::new();
            let max = group.iter().map(|s| s.weight.max(1)).max().unwrap_or(1);
            for service in &group {
                let Some(ip) = self.chosen.get(&service.target) else { continue };
                let addr = SocketAddr::new(*ip, service.port);
                if found.iter().any(|other| other.addr == addr) {
                    continue;
                }
                let share = f64::from(service.weight.max(1)) / f64::from(max);
                found.push(Found { addr, target: Some(service.target.clone()), share });
            }
            if !found.is_empty() {
                return Some(found);
            }
            if group.iter().any(|service| self.is_pending(&service.target)) {
                return None;
            }
        }
        Some(Vec::new())
    }

    fn asks_of(&self, host: &Arc<str>) -> impl Iterator<Item = Ask> + use<> {
        let v4 = (self.family != Family::Ipv6).then(|| Ask::A(host.clone()));
        let v6 = (self.family != Family::Ipv4).then(|| Ask::Aaaa(host.clone()));
        v4.into_iter().chain(v6)
    }

    /// Whether some question about this target has no reply yet; none is asked about those beyond
    /// the bound.
    fn is_pending(&self, target: &Arc<str>) -> bool {
        let mut asks = self.asks_of(target).filter_map(|ask| self.addresses.get(&ask));
        asks.any(|tracked| !tracked.question.replied())
    }

    /// Asks for the addresses of targets that are new, and of none that are gone. Gives how many
    /// targets were too many.
    fn follow_targets(&mut self, now: Instant) -> usize {
        let known = self.services.as_ref().map_or(&[][..], |t| t.question.known());
        let mut targets: Vec<Arc<str>> = Vec::new();
        let mut left_out = 0;
        for service in known {
            if targets.contains(&service.target) {
                continue;
            }
            if targets.len() < TARGETS_MAX {
                targets.push(service.target.clone());
            } else {
                left_out += 1;
            }
        }
        let mut before = std::mem::take(&mut self.addresses);
        for target in &targets {
            for ask in self.asks_of(target) {
                let tracked = before.remove(&ask).unwrap_or_else(|| Tracked::new(now));
                self.addresses.insert(ask, tracked);
            }
        }
        left_out
    }

    /// Picks an address for each target: the one in use as long as it is there, else the first.
    fn choose(&mut self) {
        if self.services.is_none() {
            return;
        }
        let mut known: BTreeMap<Arc<str>, Vec<IpAddr>> = BTreeMap::new();
        // A comes before AAAA, so that IPv4 is preferred.
        for (ask, tracked) in &self.addresses {
            let (Ask::A(host) | Ask::Aaaa(host)) = ask else { continue };
            known.entry(host.clone()).or_default().extend(tracked.question.known());
        }
        self.chosen = known
            .into_iter()
            .filter_map(|(host, ips)| {
                let kept = self.chosen.get(&host).filter(|ip| ips.contains(ip));
                let ip = kept.or_else(|| ips.first()).copied()?;
                Some((host, ip))
            })
            .collect();
    }
}

fn heard<T>(reply: &Reply<T>) -> Heard {
    match reply {
        Reply::Records(records, _) if !records.is_empty() => Heard::Records,
        Reply::Records(..) | Reply::Empty(_) => Heard::Nothing,
        Reply::Failed(_) => Heard::Failure,
    }
}

/// Leaves out addresses no worker can have: 0.0.0.0 (which block lists answer) is this very host.
fn usable(reply: Reply<IpAddr>) -> Reply<IpAddr> {
    let Reply::Records(ips, ttl) = reply else { return reply };
    let fits = |ip: &IpAddr| {
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        !(ip.is_unspecified() || ip.is_multicast() || broadcast)
    };
    Reply::Records(ips.iter().map(IpAddr::to_canonical).filter(fits).collect(), ttl)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const PACE: Pace = Pace {
        interval_min: Duration::from_secs(1),
        interval_max: Duration::from_mins(1),
        empty_grace: Duration::from_secs(30),
    };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ips(texts: &[&str], ttl: u64) -> Answer {
        let ips = texts.iter().map(|text| text.parse().expect("an address")).collect();
        Answer::Addresses(Reply::Records(ips, s(ttl)))
    }

    fn no_ips() -> Answer {
        Answer::Addresses(Reply::Empty(None))
    }

    fn services(list: &[(u16, u16, u16, &str)], ttl: u64) -> Answer {
        let service = |&(priority, weight, port, target): &(u16, u16, u16, &str)| Service {
            priority,
            weight,
            port,
            target: target.into(),
        };
        Answer::Services(Reply::Records(list.iter().map(service).collect(), s(ttl)))
    }

    fn a(name: &str) -> Ask {
        Ask::A(name.into())
    }

    fn aaaa(name: &str) -> Ask {
        Ask::Aaaa(name.into())
    }

    fn srv() -> Ask {
        Ask::Srv("_http._tcp.x".into())
    }

    fn addrs(name: &Name) -> Vec<String> {
        let found = name.found().expect("decided");
        found.iter().map(|found| found.addr.to_string()).collect()
    }

    fn shares(name: &Name) -> Vec<f64> {
        name.found().expect("decided").iter().map(|found| found.share).collect()
    }

    struct Scene {
        name: Name,
        now: Instant,
    }

    impl Scene {
        fn addresses() -> Self {
            let now = crate::clock::now();
            let name = Name::new("x", Kind::Addresses(80), Family::Any, PACE, now);
            Self { name, now }
        }

        fn services(family: Family) -> Self {
            let now = crate::clock::now();
            Self { name: Name::new("_http._tcp.x", Kind::Services, family, PACE, now), now }
        }

        fn hears(&mut self, ask: &Ask, answer: Answer) -> Told {
            self.name.on_reply(ask, answer, self.now, 0.0)
        }
    }

    #[test]
    fn addresses_of_both_families_are_workers() {
        let mut scene = Scene::addresses();
        assert_eq!(scene.name.take_due(scene.now), [a("x"), aaaa("x")]);
        assert_eq!((scene.name.take_due(scene.now), scene.name.next_due()), (vec![], None));
        scene.hears(&a("x"), ips(&["10.0.0.2", "10.0.0.1", "10.0.0.2"], 5));
        scene.hears(&aaaa("x"), ips(&["2001:db8::1", "::ffff:10.0.0.9"], 9));
        assert_eq!(
            addrs(&scene.name),
            ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80", "[2001:db8::1]:80"]
        );
        // Each question at its own time.
        assert_eq!(scene.name.next_due(), Some(scene.now + s(5)));
        assert_eq!(scene.name.take_due(scene.now + s(5)), [a("x")]);
        assert_eq!(scene.name.take_due(scene.now + s(9)), [aaaa("x")]);
    }

    #[test]
    fn one_family_that_fails_costs_nothing_of_the_other() {
        let mut scene = Scene::addresses();
        scene.hears(&a("x"), ips(&["10.0.0.1"], 5));
        scene.hears(&aaaa("x"), Answer::Addresses(Reply::Failed("time-out".to_owned())));
        assert_eq!(addrs(&scene.name), ["10.0.0.1:80"]);
        assert_eq!(scene.name.good_at(), Some(scene.now));
        let before = scene.now;
        scene.now += s(50);
        scene.hears(&aaaa("x"), no_ips());
        assert_eq!(scene.name.good_at(), Some(before), "the answer in use is the one of A");
    }

    #[test]
    fn addresses_that_no_worker_can_have_are_left_out() {
        let mut scene = Scene::addresses();
        let told = scene.hears(&a("x"), ips(&["0.0.0.0", "224.0.0.1", "255.255.255.255"], 5));
        assert_eq!((told.heard, told.known), (Heard::Nothing, false));
        scene.hears(&aaaa("x"), ips(&["::", "ff02::1", "::1"], 5));
        assert_eq!(addrs(&scene.name), ["[::1]:80"]);
    }

    #[test]
    fn targets_of_a_service_are_workers_once_their_address_is_known() {
        let mut scene = Scene::services(Family::Any);
        assert_eq!(scene.name.take_due(scene.now), [srv()]);
        scene.hears(&srv(), services(&[(1, 10, 8000, "b"), (1, 20, 9000, "a")], 5));
        assert_eq!(scene.name.found(), None, "nobody knows their addresses");
        assert_eq!(scene.name.take_due(scene.now), [a("a"), a("b"), aaaa("a"), aaaa("b")]);
        scene.hears(&a("b"), ips(&["10.0.0.2"], 5));
        assert_eq!(addrs(&scene.name), ["10.0.0.2:8000"]);
        scene.hears(&aaaa("a"), ips(&["::1"], 5));
        assert_eq!(addrs(&scene.name), ["[::1]:9000", "10.0.0.2:8000"]);
        assert_eq!(shares(&scene.name), [1.0, 0.5]);
        let found = scene.name.found().expect("decided");
        assert_eq!(found[0].target.as_deref(), Some("a"));
        // A target that leaves is asked for no more.
        scene.hears(&srv(), services(&[(1, 10, 8000, "b")], 5));
        assert_eq!(
            (addrs(&scene.name), shares(&scene.name)),
            (vec!["10.0.0.2:8000".into()], vec![1.0])
        );
        assert_eq!(scene.name.take_due(scene.now + s(900)), [srv(), a("b")]);
        assert!(!scene.hears(&a("a"), ips(&["10.0.0.1"], 5)).changed, "too late");
    }

    #[test]
    fn a_target_stays_at_its_address_while_that_is_there() {
        let mut scene = Scene::services(Family::Ipv4);
        scene.hears(&srv(), services(&[(0, 0, 80, "a")], 5));
        scene.hears(&a("a"), ips(&["10.0.0.2"], 5));
        scene.hears(&a("a"), ips(&["10.0.0.1", "10.0.0.2"], 5));
        assert_eq!(addrs(&scene.name), ["10.0.0.2:80"]);
        scene.hears(&a("a"), ips(&["10.0.0.1", "10.0.0.3"], 5));
        assert_eq!(addrs(&scene.name), ["10.0.0.1:80"]);
    }

    #[test]
    fn a_lower_priority_is_used_only_when_the_higher_has_no_address() {
        let mut scene = Scene::services(Family::Ipv4);
        scene.hears(&srv(), services(&[(2, 1, 80, "spare"), (1, 1, 80, "main")], 5));
        scene.hears(&a("spare"), ips(&["10.0.0.9"], 5));
        assert_eq!(scene.name.found(), None, "main may still answer");
        scene.hears(&a("main"), no_ips());
        assert_eq!(addrs(&scene.name), ["10.0.0.9:80"]);
        scene.hears(&a("main"), ips(&["10.0.0.1"], 5));
        assert_eq!(addrs(&scene.name), ["10.0.0.1:80"]);
        // A new best group takes over only when its address is there.
        let all = [(2, 1, 80, "spare"), (1, 1, 80, "main"), (0, 1, 80, "best")];
        scene.hears(&srv(), services(&all, 5));
        assert_eq!(scene.name.found(), None, "what was found stands");
        scene.hears(&a("best"), Answer::Addresses(Reply::Failed("time-out".to_owned())));
        assert_eq!(addrs(&scene.name), ["10.0.0.1:80"]);
        scene.hears(&a("best"), ips(&["10.0.0.5"], 5));
        assert_eq!(addrs(&scene.name), ["10.0.0.5:80"]);
    }

    #[test]
    fn weights_count_relative_to_the_largest_and_none_is_one() {
        let mut scene = Scene::services(Family::Ipv4);
        let list = [(0, 0, 1, "a"), (0, 4, 2, "a"), (0, 2, 3, "a"), (0, 1, 2, "b")];
        scene.hears(&srv(), services(&list, 5));
        scene.hears(&a("a"), ips(&["10.0.0.1"], 5));
        scene.hears(&a("b"), ips(&["10.0.0.1"], 5));
        assert_eq!(addrs(&scene.name), ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"]);
        assert_eq!(shares(&scene.name), [0.25, 1.0, 0.5]);
        scene.hears(&srv(), services(&[(0, 0, 1, "a"), (0, 0, 2, "a")], 5));
        assert_eq!(shares(&scene.name), [1.0, 1.0]);
    }

    #[test]
    fn too_many_targets_are_left_out() {
        let mut scene = Scene::services(Family::Ipv4);
        let list = (0..300).map(|at| Service {
            priority: 0,
            weight: 0,
            port: 80,
            target: format!("t{at:03}").into(),
        });
        let told = scene.hears(&srv(), Answer::Services(Reply::Records(list.collect(), s(5))));
        assert_eq!((told.left_out, told.known), (44, true));
        assert_eq!(scene.name.take_due(scene.now).len(), TARGETS_MAX);
    }

    fn any_ips() -> impl Strategy<Value = Answer> {
        prop_oneof![
            prop::collection::vec(1_u8..5, 0..4).prop_map(|last| {
                let ips = last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect();
                Answer::Addresses(Reply::Records(ips, s(5)))
            }),
            Just(no_ips()),
            Just(Answer::Addresses(Reply::Failed("time-out".to_owned()))),
        ]
    }

    fn any_services() -> impl Strategy<Value = Answer> {
        let service = (0_u16..3, 0_u16..3, 1_u16..3, 0_usize..4);
        prop_oneof![
            prop::collection::vec(service, 0..6).prop_map(|list| {
                let targets = ["a", "b", "c", "d"];
                let list: Vec<_> =
                    list.iter().map(|&(p, w, port, t)| (p, w, port, targets[t])).collect();
                services(&list, 5)
            }),
            Just(Answer::Services(Reply::Empty(None))),
            Just(Answer::Services(Reply::Failed("time-out".to_owned()))),
        ]
    }

    proptest! {
        /// Whatever comes, in whatever order: no address twice, one priority at a time, an address
        /// only where its target has it, shares in their bounds, and always something to wait for.
        #[test]
        fn workers_follow_from_what_is_known(
            replies in prop::collection::vec(
                prop_oneof![
                    any_services().prop_map(|answer| (srv(), answer)),
                    (0_usize..4, any_ips())
                        .prop_map(|(at, answer)| (a(["a", "b", "c", "d"][at]), answer)),
                ],
                1..40,
            ),
        ) {
            let mut scene = Scene::services(Family::Ipv4);
            scene.name.take_due(scene.now);
            for (ask, answer) in replies {
                scene.now += s(7);
                let before = scene.name.found();
                let told = scene.hears(&ask, answer);
                let due = scene.name.take_due(scene.now);
                prop_assert!(told.changed || before == scene.name.found());
                for ask in due {
                    scene.hears(&ask, no_ips());
                }
                let known = scene.name.services.as_ref().expect("SRV").question.known().to_vec();
                let Some(found) = scene.name.found() else { continue };
                let mut addrs: Vec<_> = found.iter().map(|found| found.addr).collect();
                addrs.sort_unstable();
                addrs.dedup();
                prop_assert_eq!(addrs.len(), found.len());
                let priority = |found: &Found| {
                    let target = found.target.as_ref().expect("by SRV");
                    let of = |s: &&Service| s.target == *target && s.port == found.addr.port();
                    known.iter().filter(of).map(|s| s.priority).collect::<Vec<_>>()
                };
                for one in &found {
                    prop_assert!(one.share > 0.0 && one.share <= 1.0);
                    let target = one.target.as_ref().expect("by SRV");
                    let host = &scene.name.addresses[&Ask::A(target.clone())];
                    prop_assert!(host.question.known().contains(&one.addr.ip()));
                }
                if let Some(first) = found.first() {
                    let common = priority(first);
                    let shared = |p: &u16| found.iter().all(|one| priority(one).contains(p));
                    prop_assert!(common.iter().any(shared), "{found:?} of {known:?}");
                }
            }
        }
    }
}
