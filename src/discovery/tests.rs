//! Sources that start, are swapped and stop, against a sink that takes notes.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::{
    DiscoveryConfig, DnsWatch, Pace, Sink, Source, Tasks,
    names::{Answer, Ask},
    question::Reply,
};
use crate::{
    clock,
    config::{self, WorkerConfig},
};

const PACE: Pace = Pace {
    interval_min: Duration::from_secs(1),
    interval_max: Duration::from_mins(1),
    empty_grace: Duration::ZERO,
};

/// Ids of the workers it was told of, call by call; and what it has from before.
#[derive(Default)]
struct Notes(Mutex<Vec<(Source, Vec<String>)>>, BTreeSet<Source>);

impl Sink for Notes {
    fn set_workers(&self, source: &Source, workers: Vec<WorkerConfig>) {
        let ids = workers.iter().map(|worker| worker.id.to_string()).collect();
        self.0.lock().push((source.clone(), ids));
    }

    fn sources(&self) -> BTreeSet<Source> {
        self.1.clone()
    }
}

impl Notes {
    fn take(&self) -> Vec<Vec<String>> {
        self.0.lock().drain(..).map(|(_, ids)| ids).collect()
    }

    async fn next(&self) -> (Source, Vec<String>) {
        let first = async {
            loop {
                let first = self.0.lock().pop();
                match first {
                    Some(first) => return first,
                    None => sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(Duration::from_secs(15), first).await.expect("it is told")
    }
}

fn read(discovery: &str) -> DiscoveryConfig {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("warmroute.yaml");
    let text = format!("listen: 127.0.0.1:1\ndiscovery: {discovery}");
    std::fs::write(&path, text).expect("writes");
    config::load(&path).expect("valid").discovery.expect("a section")
}

struct Scene {
    watch: DnsWatch,
    notes: Arc<Notes>,
}

fn scene(name: &str, replaces: bool) -> Scene {
    let notes = Arc::new(Notes::default());
    let source = read(&format!("{{dns: [{{name: {name}, port: 80}}]}}")).dns.remove(0);
    Scene { watch: DnsWatch::new(source, PACE, notes.clone(), replaces), notes }
}

impl Scene {
    /// What the fleet is told after this answer.
    fn hears(&mut self, ask: &Ask, reply: Reply<IpAddr>) -> Vec<Vec<String>> {
        self.watch.on_answer(ask, Answer::Addresses(reply), clock::now(), 0.0);
        self.notes.take()
    }
}

fn ips(last: &[u8]) -> Reply<IpAddr> {
    let ips = last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect();
    Reply::Records(ips, Duration::from_secs(5))
}

#[test]
fn the_fleet_is_told_of_changes_only() {
    let mut scene = scene("told.lan", false);
    let (a, aaaa) = (Ask::A("told.lan".into()), Ask::Aaaa("told.lan".into()));
    assert!(scene.hears(&a, Reply::Empty(None)).is_empty(), "no worker is what it has");
    assert_eq!(scene.hears(&a, ips(&[1])), [["told-10.0.0.1-80"]], "without waiting for AAAA");
    assert!(scene.hears(&aaaa, Reply::Failed("time-out".to_owned())).is_empty());
    assert!(scene.hears(&a, ips(&[1, 1])).is_empty());
    assert_eq!(scene.hears(&a, ips(&[2, 1])), [["told-10.0.0.1-80", "told-10.0.0.2-80"]]);
    assert!(scene.hears(&a, Reply::Empty(None)).is_empty());
    assert!(scene.hears(&a, Reply::Empty(None)).is_empty());
    assert_eq!(scene.hears(&a, Reply::Empty(None)), [Vec::<String>::new()]);
}

#[test]
fn a_watch_that_replaces_another_leaves_its_workers_until_it_knows_better() {
    let mut scene = scene("swap.lan", true);
    let (a, aaaa) = (Ask::A("swap.lan".into()), Ask::Aaaa("swap.lan".into()));
    assert!(scene.hears(&a, ips(&[1])).is_empty(), "AAAA may have the others");
    assert!(scene.hears(&a, Reply::Failed("time-out".to_owned())).is_empty());
    assert_eq!(scene.hears(&aaaa, Reply::Empty(None)), [["swap-10.0.0.1-80"]]);
    let mut scene = self::scene("swap.lan", true);
    for ask in [&a, &aaaa, &a, &aaaa] {
        assert!(scene.hears(ask, Reply::Empty(None)).is_empty(), "nobody knows anything");
    }
    assert_eq!(scene.hears(&a, ips(&[1])), [["swap-10.0.0.1-80"]]);
}

#[tokio::test]
async fn a_source_that_is_dropped_takes_its_workers_along_and_one_that_is_swapped_does_not() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("workers.yaml");
    std::fs::write(&path, "- {id: a, url: 'http://127.0.0.1:1'}").expect("writes");
    let notes = Arc::new(Notes::default());
    let mut tasks = Tasks::new(notes.clone());
    let file = |interval: u64| read(&format!("{{file: {path:?}, file_interval_s: {interval}}}"));
    tasks.follow(Some(&file(1)));
    assert_eq!(notes.next().await, (Source::File, vec!["a".to_owned()]));
    // The same once more starts nothing; another interval starts a new task, which says the same.
    tasks.follow(Some(&file(1)));
    assert!(notes.take().is_empty());
    tasks.follow(Some(&file(2)));
    assert_eq!(notes.next().await, (Source::File, vec!["a".to_owned()]));
    tasks.follow(None);
    assert_eq!(notes.next().await, (Source::File, Vec::new()));
    assert!(tasks.running.is_empty());
}

#[tokio::test]
async fn workers_handed_over_leave_when_nobody_is_asked_for_them_any_more() {
    let dns = |key: &str| Source::Dns(key.into());
    let before = BTreeSet::from([dns("stays.invalid:80"), dns("gone.invalid:80"), Source::File]);
    let notes = Arc::new(Notes(Mutex::default(), before));
    let mut tasks = Tasks::new(notes.clone());
    tasks.follow(Some(&read("{dns: [{name: stays.invalid, port: 80}]}")));
    let mut told: Vec<_> = notes.0.lock().drain(..).collect();
    told.sort();
    assert_eq!(told, [(Source::File, vec![]), (dns("gone.invalid:80"), vec![])]);
}
