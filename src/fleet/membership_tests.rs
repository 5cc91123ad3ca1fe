//! Membership by example and under any sequence of changes.

use std::{collections::HashSet, fmt::Write as _, io::Write, sync::Weak, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    clock,
    config::Config,
    fleet::{
        Health, HeartbeatError, RemoveError, UnknownWorker,
        inflight::{Dispatch, InflightGuard},
        operate::REMOVED_MAX,
    },
    routing::{BreakerState, InflightMax, Outcome, block::Secret},
    wire::report::{self, Heartbeat},
};

const BASE: &str = "listen: \"127.0.0.1:1\"\nreports: {listen: \"127.0.0.1:2\", join: true}\n";

fn config(yaml: &str) -> Config {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    write!(file, "{BASE}{yaml}").expect("writes");
    crate::config::load(file.path()).expect("a configuration")
}

fn live(yaml: &str) -> Live {
    let secret = Secret::from_seed(1);
    Live::new(Arc::new(config(yaml)), secret, None).expect("no tokenizers")
}

/// Workers by `id:port` and more YAML.
fn workers(list: &[(&str, u16, &str)]) -> Vec<WorkerConfig> {
    let mut yaml = "workers:\n".to_owned();
    for (id, port, more) in list {
        let url = format!("http://127.0.0.1:{port}");
        writeln!(yaml, "  - {{id: {id}, url: \"{url}\", {more}}}").expect("a string");
    }
    config(if list.is_empty() { "" } else { &yaml }).workers
}

fn fleet() -> (Fleet, Instant) {
    let now = clock::now();
    (Fleet::new(live(""), now), now)
}

fn ids(fleet: &Fleet) -> Vec<String> {
    fleet.members().iter().map(|member| member.id().to_string()).collect()
}

fn of(fleet: &Fleet, id: &str) -> Arc<Member> {
    fleet.member(id).expect("a member")
}

fn names(ids: &[WorkerId]) -> Vec<&str> {
    ids.iter().map(WorkerId::as_str).collect()
}

fn beat(id: &str, port: u16, lease_s: u64) -> Heartbeat {
    let json = serde_json::json!({
        "worker_id": id, "worker_url": format!("http://127.0.0.1:{port}"), "lease_s": lease_s,
    });
    report::parse(json.to_string().as_bytes()).expect("a heartbeat")
}

#[test]
fn who_stays_is_the_same_member_with_other_settings() {
    let (fleet, now) = fleet();
    let first = workers(&[("stay-a", 11, ""), ("stay-b", 12, "")]);
    let changed = fleet.set_workers(&Origin::Static, first, now);
    assert_eq!(names(&changed.joined), ["stay-a", "stay-b"]);
    let member = of(&fleet, "stay-a");
    member.set_drained(true);
    let more = "weight: 3, inflight_max: 7, models: [m], health_path: /h, kv_events: off, \
                slow_start_s: 1, cache_tokens: 3200";
    let second = workers(&[("stay-b", 12, ""), ("stay-a", 11, more)]);
    let changed = fleet.set_workers(&Origin::Static, second.clone(), now);
    assert_eq!(names(&changed.changed), ["stay-a"]);
    assert!(changed.joined.is_empty() && changed.left.is_empty());
    let after = of(&fleet, "stay-a");
    assert!(Arc::ptr_eq(&member, &after) && after.is_drained());
    assert_eq!(**after.settings(), second[1]);
    assert!(after.serves(Some("m")) && !after.serves(Some("n")));
    assert_eq!(after.truth.lock().budget(), 100, "3,200 tokens of 4 bytes in blocks of 128");
    assert_eq!(fleet.set_workers(&Origin::Static, second, now), Changed::default());
}

#[test]
fn another_address_is_another_worker_and_the_old_one_goes_when_its_requests_do() {
    let (fleet, now) = fleet();
    fleet.set_workers(&Origin::File, workers(&[("move-a", 11, "")]), now);
    let old = of(&fleet, "move-a");
    let window = Duration::from_secs(1);
    let dispatch = Dispatch { tokens: 10, uncached_tokens: 10, streams: true, window };
    let (counts, metrics) = (old.counts.clone(), old.metrics.clone());
    let guard = InflightGuard::new(counts, metrics, old.pace.clone(), &dispatch, now);
    let changed = fleet.set_workers(&Origin::File, workers(&[("move-a", 12, "")]), now);
    assert_eq!((names(&changed.left), names(&changed.joined)), (vec!["move-a"], vec!["move-a"]));
    let new = of(&fleet, "move-a");
    assert_ne!(old.serial(), new.serial());
    assert_eq!((old.load(now).requests, new.load(now).requests), (1, 0));
    // What the old one still says is heard by nobody.
    let gauge = metrics::INFLIGHT.with_label_values(&["move-a"]);
    assert_eq!(gauge.get(), 0);
    drop(guard);
    assert_eq!((old.load(now).requests, gauge.get()), (0, 0));
    let weak: Weak<_> = Arc::downgrade(&old);
    drop(old);
    assert!(weak.upgrade().is_none(), "nobody keeps a member that left");
}

#[test]
fn an_id_or_address_belongs_to_the_first_until_it_leaves() {
    let (fleet, now) = fleet();
    fleet.set_workers(&Origin::Static, workers(&[("a", 11, "")]), now);
    let others = workers(&[("a", 21, ""), ("b", 11, ""), ("c", 13, "")]);
    let changed = fleet.set_workers(&Origin::File, others, now);
    assert_eq!(names(&changed.joined), ["c"]);
    assert_eq!(names(&changed.skipped), ["a", "b"]);
    assert!(matches!(fleet.heartbeat(&beat("d", 11, 5), now), Err(HeartbeatError::Malformed(_))));
    let mut twice = workers(&[("e", 15, "")]);
    twice.extend(workers(&[("e", 16, "")]));
    for _ in 0..2 {
        let changed = fleet.set_workers(&Origin::Dns("n".into()), twice.clone(), now);
        assert_eq!(names(&changed.skipped), ["e"], "the second of a name");
        assert_eq!(of(&fleet, "e").url().addr.port(), 15);
    }
    fleet.set_workers(&Origin::Dns("n".into()), Vec::new(), now);
    fleet.set_workers(&Origin::Static, Vec::new(), now);
    assert_eq!(ids(&fleet), ["c", "a", "b"], "those that waited are in");
    assert_eq!(*of(&fleet, "a").origin(), Origin::File);
    // A worker that has a lease is in nobody's way for longer than that.
    assert!(fleet.heartbeat(&beat("d", 14, 5), now).expect("joins").joined);
    let changed = fleet.set_workers(&Origin::Static, workers(&[("d", 14, "")]), now);
    assert_eq!(names(&changed.skipped), ["d"]);
    fleet.upkeep(now + Duration::from_secs(6));
    assert_eq!(*of(&fleet, "d").origin(), Origin::Static);
}

#[test]
fn a_removed_worker_stays_out_while_its_origin_names_it() {
    let (fleet, now) = fleet();
    let both = workers(&[("a", 11, ""), ("b", 12, "")]);
    fleet.set_workers(&Origin::Static, both.clone(), now);
    let gone = fleet.remove("a", now).expect("is there").expect("was there");
    assert_eq!(gone.id().as_str(), "a");
    assert!(fleet.remove("a", now).expect("known").is_none());
    for _ in 0..2 {
        let changed = fleet.set_workers(&Origin::Static, both.clone(), now);
        assert_eq!(changed, Changed::default());
        fleet.set_workers(&Origin::File, workers(&[("a", 19, "")]), now);
        assert_eq!(ids(&fleet), ["b"]);
    }
    fleet.set_workers(&Origin::File, Vec::new(), now);
    // Undrained, it is back at once: its origin has named it all the time.
    let back = fleet.undrain("a", now).expect("was removed").expect("is back");
    assert_ne!(back.serial(), gone.serial());
    fleet.remove("a", now).expect("is there");
    fleet.set_workers(&Origin::Static, workers(&[("b", 12, "")]), now);
    assert!(fleet.removed().is_empty(), "its origin stopped naming it");
    fleet.set_workers(&Origin::Static, both, now);
    assert_eq!(ids(&fleet), ["b", "a"]);
    assert_eq!(fleet.undrain("none", now).err(), Some(UnknownWorker::new("none")));
    assert!(matches!(fleet.remove("none", now), Err(RemoveError::Unknown(_))));
    assert!(fleet.drain("none", now).is_err());
}

#[test]
fn a_removed_worker_does_not_beat_itself_back() {
    let (fleet, now) = fleet();
    let after = |seconds| now + Duration::from_secs(seconds);
    fleet.heartbeat(&beat("a", 11, 5), now).expect("joins");
    fleet.remove("a", now).expect("is there");
    for second in [1, 5, 9] {
        fleet.upkeep(after(second));
        let said = fleet.heartbeat(&beat("a", 11, 5), after(second));
        assert_eq!(said, Err(HeartbeatError::Removed("a".to_owned())));
    }
    // Another origin wants it too by now: it gets it as soon as the removal is lifted.
    fleet.set_workers(&Origin::Static, workers(&[("a", 11, "")]), after(9));
    assert!(ids(&fleet).is_empty());
    fleet.upkeep(after(14));
    assert_eq!(*of(&fleet, "a").origin(), Origin::Static);
    fleet.set_workers(&Origin::Static, Vec::new(), after(14));
    // It paused for its lease, or an operator lets it.
    fleet.upkeep(after(14));
    assert!(fleet.heartbeat(&beat("a", 11, 5), after(14)).expect("joins").joined);
    fleet.remove("a", after(14)).expect("is there");
    assert!(fleet.undrain("a", after(14)).expect("was removed").is_none());
    assert!(fleet.heartbeat(&beat("a", 11, 5), after(14)).expect("joins").joined);
}

#[test]
fn removed_workers_are_bounded() {
    let (fleet, now) = fleet();
    fleet.set_workers(&Origin::Static, workers(&[("a", 11, "")]), now);
    for nth in 0..REMOVED_MAX {
        let id = WorkerId::try_new(&format!("x{nth}")).expect("an id");
        let removed = Removed { origin: Origin::File, named_until: None };
        fleet.membership.lock().removed.insert(id, removed);
    }
    assert_eq!(fleet.remove("a", now).err(), Some(RemoveError::Full));
    assert_eq!(ids(&fleet), ["a"]);
}

#[test]
fn a_reload_reaches_every_member() {
    let now = clock::now();
    let fleet = Fleet::new(live("workers: [{id: live-s, url: \"http://127.0.0.1:11\"}]"), now);
    fleet.set_workers(&Origin::File, workers(&[("live-f", 12, "inflight_max: 3")]), now);
    fleet.heartbeat(&beat("live-l", 13, 60), now).expect("joins");
    let next = "limits: {inflight_max: 9}\nbreaker: {failures_in_row_max: 1}\n\
                health: {path: /up}\nindex: {cache_tokens: 3200}\nslow_start_s: 3\nkv_events: off\n\
                workers: [{id: live-s, url: \"http://127.0.0.1:11\"}]";
    fleet.set_live(live(next), now);
    for (id, inflight_max) in [("live-s", 9), ("live-f", 3), ("live-l", 9)] {
        let member = of(&fleet, id);
        member.set_health(true);
        let settings = member.settings();
        assert_eq!(settings.inflight_max, InflightMax::Fixed(inflight_max), "{id}");
        assert_eq!((&*settings.health_path, settings.slow_start.as_secs()), ("/up", 3), "{id}");
        assert_eq!(member.truth.lock().budget(), 100, "{id}");
    }
    let member = of(&fleet, "live-l");
    fleet.record_outcome(&member, Outcome::Failure, now, now);
    assert_eq!(member.breaker.lock().state(now), BreakerState::Open, "by the new breaker");
    assert_eq!(fleet.set_workers(&Origin::Static, config(next).workers, now), Changed::default());
}

/// Passes its first health check at `now`.
fn comes_up(fleet: &Fleet, id: &str, now: Instant) -> Arc<Member> {
    let member = of(fleet, id);
    member.set_health(true);
    fleet.begins_to_serve(&member, now);
    member
}

fn weight(member: &Member, now: Instant) -> f64 {
    (member.weight(&member.settings(), now) * 1000.0).round() / 1000.0
}

fn exactly(share: f64) -> impl Fn(f64) -> bool {
    move |weight| (weight - share).abs() < 1e-9
}

#[test]
fn who_comes_to_others_that_serve_starts_slowly() {
    let (fleet, t0) = fleet();
    let list =
        [("ramp-a", 11, ""), ("ramp-b", 12, ""), ("ramp-c", 13, "weight: 2, slow_start_s: 20")];
    fleet.set_workers(&Origin::Static, workers(&list), t0);
    let at = |seconds| t0 + Duration::from_secs(seconds);
    let whole = exactly(1.0);
    // Within a round of checks of the first, all begin together.
    let a = comes_up(&fleet, "ramp-a", t0);
    let b = comes_up(&fleet, "ramp-b", at(3));
    assert!(whole(weight(&a, at(3))) && whole(weight(&b, at(3))));
    let c = comes_up(&fleet, "ramp-c", at(100));
    for (second, share) in [(100, 0.2), (110, 1.1), (120, 2.0), (500, 2.0)] {
        assert!(exactly(share)(weight(&c, at(second))), "{second}: {}", weight(&c, at(second)));
    }
    // Undrained, and readmitted by the breaker.
    fleet.drain("ramp-b", at(200)).expect("is there");
    fleet.undrain("ramp-b", at(300)).expect("is there");
    assert!(exactly(0.55)(weight(&b, at(305))));
    fleet.undrain("ramp-b", at(305)).expect("is there");
    assert!(whole(weight(&b, at(310))), "undrained twice it does not begin again");
    for _ in 0..3 {
        fleet.record_outcome(&a, Outcome::Failure, at(400), at(400));
    }
    assert!(a.breaker.lock().try_probe(at(402)));
    fleet.record_outcome(&a, Outcome::Success, at(402), at(402));
    assert!(exactly(0.1)(weight(&a, at(402))));
}

#[test]
fn where_nobody_served_everybody_begins_at_full_weight() {
    let (fleet, t0) = fleet();
    fleet.set_workers(&Origin::Static, workers(&[("all-a", 11, ""), ("all-b", 12, "")]), t0);
    let at = |seconds| t0 + Duration::from_secs(seconds);
    for id in ["all-a", "all-b"] {
        comes_up(&fleet, id, t0);
        fleet.drain(id, at(50)).expect("is there");
    }
    for id in ["all-a", "all-b"] {
        fleet.undrain(id, at(60)).expect("is there");
        assert!(exactly(1.0)(weight(&of(&fleet, id), at(60))), "{id}");
    }
    assert_eq!(of(&fleet, "all-a").health(), Health::Healthy);
}

/// What may happen to a fleet of workers `w0..w5` at ports 40 to 43.
#[derive(Debug, Clone)]
enum Step {
    Set(usize, Vec<(u8, u8)>),
    Beat(u8, u8),
    Remove(u8),
    Undrain(u8),
    Drain(u8),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let worker = || (0..6_u8, 0..4_u8);
    let step = prop_oneof![
        (0..3_usize, prop::collection::vec(worker(), 0..5)).prop_map(|(o, w)| Step::Set(o, w)),
        worker().prop_map(|(id, port)| Step::Beat(id, port)),
        (0..6_u8).prop_map(Step::Remove),
        (0..6_u8).prop_map(Step::Undrain),
        (0..6_u8).prop_map(Step::Drain),
        (1..8_u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn membership_is_what_the_origins_want_less_what_stands_against_it(steps in steps()) {
        let (fleet, mut now) = fleet();
        let origins = [Origin::Static, Origin::File, Origin::Dns("d".into())];
        let template = workers(&[("w0", 40, "")]).remove(0);
        let worker = |(id, port): (u8, u8)| {
            let mut worker = template.clone();
            worker.id = WorkerId::try_new(&format!("p{id}")).expect("an id");
            worker.url.text = format!("http://127.0.0.1:{}", 40 + u16::from(port)).into();
            worker.url.addr.set_port(40 + u16::from(port));
            worker
        };
        for step in steps {
            let before = fleet.members();
            let mut removed_now = None;
            match step {
                Step::Set(origin, list) => {
                    let list = list.into_iter().map(worker).collect();
                    fleet.set_workers(&origins[origin], list, now);
                }
                Step::Beat(id, port) => {
                    let _ = fleet.heartbeat(&beat(&format!("p{id}"), 40 + u16::from(port), 5), now);
                }
                Step::Remove(id) => {
                    let _ = fleet.remove(&format!("p{id}"), now);
                    removed_now = Some(format!("p{id}"));
                }
                Step::Undrain(id) => drop(fleet.undrain(&format!("p{id}"), now)),
                Step::Drain(id) => drop(fleet.drain(&format!("p{id}"), now)),
                Step::Pass(seconds) => {
                    now += Duration::from_secs(seconds);
                    fleet.upkeep(now);
                }
            }
            let members = fleet.members();
            let ids: HashSet<_> = members.iter().map(|m| m.id().clone()).collect();
            let addrs: HashSet<_> = members.iter().map(|m| m.url().addr).collect();
            prop_assert_eq!((ids.len(), addrs.len()), (members.len(), members.len()));
            let removed = fleet.removed();
            prop_assert!(removed.iter().all(|id| !ids.contains(id)));
            let membership = fleet.membership.lock();
            let mut wanted = HashSet::new();
            for (origin, list) in &membership.wanted {
                let mut seen = HashSet::new();
                for worker in list.iter().filter(|worker| seen.insert(&worker.id)) {
                    let key = (origin.clone(), worker.id.clone(), worker.url.addr);
                    let taken = ids.contains(&worker.id) || addrs.contains(&worker.url.addr);
                    prop_assert!(taken || removed.contains(&worker.id), "left out: {:?}", key);
                    wanted.insert(key);
                }
            }
            for member in members.iter().filter(|m| *m.origin() != Origin::Lease) {
                let key = (member.origin().clone(), member.id().clone(), member.url().addr);
                prop_assert!(wanted.contains(&key), "not wanted: {:?}", key);
            }
            // Nobody is replaced by an equal.
            for old in before.iter().filter(|old| Some(old.id().to_string()) != removed_now) {
                let same = |m: &&Arc<Member>| {
                    m.id() == old.id() && m.url() == old.url() && m.origin() == old.origin()
                };
                if let Some(new) = members.iter().find(same) && old.lease_until.is_none() {
                    prop_assert_eq!(new.serial(), old.serial());
                }
            }
        }
    }
}
