//! Workers that a watched file or the DNS names: they join and leave without an edit of the
//! configuration, and stay when their source fails.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    Ask, DEADLINE, Lb, NameServer, Says, Worker, alias, echo, eventually, free_port, ips, lb,
    services, streaming_gated,
};

const BLOCKS: &str = "index: {block_bytes: 32}";

async fn fleet(lb: &Lb) -> Vec<Value> {
    let all = lb.admin("/workers").await.json();
    all["workers"].as_array().expect("a list").clone()
}

async fn ids(lb: &Lb) -> Vec<String> {
    let id = |worker: &Value| worker["id"].as_str().expect("an id").to_owned();
    let mut ids: Vec<_> = fleet(lb).await.iter().map(id).collect();
    ids.sort_unstable();
    ids
}

async fn worker(lb: &Lb, id: &str) -> Value {
    fleet(lb).await.into_iter().find(|worker| worker["id"] == id).unwrap_or_default()
}

/// The fleet becomes these, and all of them take traffic.
async fn becomes(lb: &Lb, expected: &[&str]) {
    eventually(&format!("the fleet is {expected:?}"), async || {
        ids(lb).await == expected
            && fleet(lb).await.iter().all(|worker| worker["takes_traffic"] == true)
    })
    .await;
}

async fn lookups(lb: &Lb, source: &str, result: &str) -> i64 {
    let labels = [("source", source), ("result", result)];
    lb.metrics().await.sum("warmroute_discovery_lookups_total", &labels)
}

/// The source ends so many looks more in this way.
async fn looks(lb: &Lb, source: &str, result: &str, more: i64) {
    let until = lookups(lb, source, result).await + more;
    let what = format!("{more} more looks at {source} are {result}");
    eventually(&what, async || lookups(lb, source, result).await >= until).await;
}

fn lines(lb: &Lb, part: &str) -> usize {
    lb.stderr().lines().filter(|line| line.contains(part)).count()
}

/// Puts a prompt into the index of the only worker that can take it.
async fn warms(lb: &Lb, worker_id: &str) -> u64 {
    for nth in 0..20 {
        let answer = lb.ask(&Ask::chat(&format!("{nth} {}", "word or two ".repeat(40)))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let blocks = blocks(lb, worker_id).await;
    assert!(blocks > 0, "20 requests, and none went to {worker_id}");
    blocks
}

async fn blocks(lb: &Lb, id: &str) -> u64 {
    worker(lb, id).await["index"]["blocks"].as_u64().unwrap_or_default()
}

// ---- the file

struct WorkersFile(PathBuf);

impl WorkersFile {
    /// Replaced by rename, as it should be.
    fn becomes(&self, workers: &[&Worker]) {
        let entry =
            |worker: &&Worker| format!("- {{id: {}, url: \"{}\"}}\n", worker.id, worker.url());
        let text: String = workers.iter().map(entry).collect();
        let new = self.0.with_extension("new");
        fs::write(&new, if text.is_empty() { "[]" } else { &text }).expect("writes");
        fs::rename(&new, &self.0).expect("renames");
    }

    /// Written in place.
    fn is_overwritten(&self, text: &str) {
        fs::write(&self.0, text).expect("writes");
    }
}

fn watching(path: &Path) -> String {
    format!("discovery: {{file: \"{}\"}}", path.display())
}

#[tokio::test]
async fn workers_of_a_file_come_and_go_with_it() {
    let scene = lb();
    let file = WorkersFile(scene.folder().join("workers.yaml"));
    let lb = scene.config(&watching(&file.0)).config(BLOCKS).start().await;
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
    looks(&lb, "file", "failed", 2).await;
    assert_eq!(lines(&lb, "source fails"), 1, "one line for one reason: {}", lb.stderr());
    let age = lb.metrics().await.sum("warmroute_discovery_age_seconds", &[("source", "file")]);
    assert_eq!(age, -1);

    let (a, b) = (echo().start("a".to_owned()).await, echo().start("b".to_owned()).await);
    file.becomes(&[&a]);
    becomes(&lb, &["a"]).await;
    let warm = warms(&lb, "a").await;
    file.becomes(&[&b, &a]);
    becomes(&lb, &["a", "b"]).await;
    assert_eq!(blocks(&lb, "a").await, warm, "what is known of a worker that stays is kept");
    let page = lb.metrics().await;
    assert_eq!(page.sum("warmroute_discovery_workers", &[("source", "file")]), 2);

    file.becomes(&[&b]);
    becomes(&lb, &["b"]).await;
    let before = a.request_count();
    for _ in 0..10 {
        let answer = lb.ask(&Ask::chat("hello")).await;
        assert_eq!(answer.header("x-router-backend"), "b");
    }
    assert_eq!(a.request_count(), before);
    file.becomes(&[]);
    becomes(&lb, &[]).await;
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
}

#[tokio::test]
async fn a_file_that_turns_bad_or_vanishes_leaves_the_fleet_as_it_was() {
    let scene = lb();
    let file = WorkersFile(scene.folder().join("workers.yaml"));
    let (a, b) = (echo().start("a".to_owned()).await, echo().start("b".to_owned()).await);
    file.becomes(&[&a]);
    let lb = scene.config(&watching(&file.0)).config(BLOCKS).start().await;
    becomes(&lb, &["a"]).await;
    let warm = warms(&lb, "a").await;
    let entry = |url: &str| format!("- {{id: b, url: \"{url}\"}}");
    for (nth, bad) in [
        "{{{{".to_owned(),
        String::new(),
        "workers: []".to_owned(),
        "- {id: b}".to_owned(),
        format!("{}\n- {{id: c, url: 'http", entry(b.url())),
        format!("{}\n- {{id: b, url: '{}'}}", entry(b.url()), a.url()),
        entry("http://no-such-host.invalid:1"),
        entry(&format!("{}/v1", b.url())),
    ]
    .iter()
    .enumerate()
    {
        file.is_overwritten(bad);
        looks(&lb, "file", "malformed", 2).await;
        assert_eq!(ids(&lb).await, ["a"], "{bad}");
        assert_eq!(lines(&lb, "source fails"), nth + 1, "one line for each: {}", lb.stderr());
    }
    fs::remove_file(&file.0).expect("removes");
    looks(&lb, "file", "failed", 2).await;
    fs::create_dir(&file.0).expect("a folder in its place");
    looks(&lb, "file", "failed", 2).await;
    fs::remove_dir(&file.0).expect("removes");
    assert_eq!((ids(&lb).await, blocks(&lb, "a").await), (vec!["a".to_owned()], warm));
    assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);

    file.becomes(&[&a]);
    looks(&lb, "file", "answered", 2).await;
    assert_eq!(lines(&lb, "source is good again"), 1);
    assert_eq!(blocks(&lb, "a").await, warm + 1, "the same worker");
    file.becomes(&[&a, &b]);
    becomes(&lb, &["a", "b"]).await;
}

#[tokio::test]
async fn a_folder_of_symlinks_may_be_swapped_as_kubernetes_does() {
    use std::os::unix::fs::symlink;
    let scene = lb();
    let folder = scene.folder().to_owned();
    let (a, b) = (echo().start("a".to_owned()).await, echo().start("b".to_owned()).await);
    for (version, worker) in [("v1", &a), ("v2", &b)] {
        fs::create_dir(folder.join(version)).expect("a folder");
        WorkersFile(folder.join(version).join("workers.yaml")).becomes(&[worker]);
    }
    symlink("v1", folder.join("..data")).expect("a link");
    symlink("..data/workers.yaml", folder.join("workers.yaml")).expect("a link");
    let lb = scene.config(&watching(&folder.join("workers.yaml"))).start().await;
    becomes(&lb, &["a"]).await;
    symlink("v2", folder.join("..data_tmp")).expect("a link");
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("swaps");
    becomes(&lb, &["b"]).await;
}

// ---- DNS

/// Workers on one port of several loopback addresses.
async fn on_one_port(hosts: &[u8]) -> (u16, Vec<Worker>) {
    let port = free_port();
    let mut workers = Vec::new();
    for host in hosts {
        let addr = SocketAddr::from(([127, 0, 0, *host], port));
        workers.push(echo().at(addr).start(format!("at-{host}")).await);
    }
    (port, workers)
}

fn resolving(dns: &NameServer, entry: &str) -> String {
    format!(
        "discovery: {{dns: [{entry}], nameservers: [\"{}\"], dns_empty_grace_s: 1}}",
        dns.addr()
    )
}

#[tokio::test]
async fn workers_of_a_name_come_and_go_with_its_addresses() {
    let dns = NameServer::start().await;
    let (port, _workers) = on_one_port(&[2, 3, 4]).await;
    dns.a("vllm.internal", ips(&["127.0.0.3", "127.0.0.2", "127.0.0.3"], 1));
    let entry = format!("{{name: vllm.internal, port: {port}, weight: 3, models: [m]}}");
    let lb = lb().config(&resolving(&dns, &entry)).config(BLOCKS).start().await;
    let id = |host: u8| format!("vllm-127.0.0.{host}-{port}");
    becomes(&lb, &[&id(2), &id(3)]).await;
    let two = worker(&lb, &id(2)).await;
    assert_eq!((&two["weight"], &two["models"][0]), (&3.0.into(), &"m".into()));
    assert_eq!(two["url"], format!("http://127.0.0.2:{port}"));

    let source = format!("dns:vllm.internal:{port}");
    let ask = Ask::chat_with("m", &"word or two ".repeat(40));
    let answer = lb.ask(&ask).await;
    let warm_id = answer.header("x-router-backend").to_owned();
    let warm = blocks(&lb, &warm_id).await;
    assert!(warm > 0);
    // Another order is no change.
    dns.a("vllm.internal", ips(&["127.0.0.2", "127.0.0.3"], 1));
    looks(&lb, &source, "answered", 2).await;
    assert_eq!(lines(&lb, "workers of source changed"), 1);
    dns.a("vllm.internal", ips(&["127.0.0.4", "127.0.0.2", "127.0.0.3"], 1));
    becomes(&lb, &[&id(2), &id(3), &id(4)]).await;
    assert_eq!(blocks(&lb, &warm_id).await, warm, "what is known of a worker that stays is kept");
    let stays = if warm_id == id(2) { "127.0.0.2" } else { "127.0.0.3" };
    dns.a("vllm.internal", ips(&[stays], 1));
    becomes(&lb, &[&warm_id]).await;
    assert_eq!(blocks(&lb, &warm_id).await, warm);
    let metrics = lb.metrics().await;
    assert_eq!(metrics.sum("warmroute_discovery_workers", &[("source", &source)]), 1);
    let age = metrics.sum("warmroute_discovery_age_seconds", &[("source", &source)]);
    assert!((0..=2).contains(&age), "{age}");
    assert_eq!(lines(&lb, "source fails"), 0, "no AAAA beside an A is fine: {}", lb.stderr());
}

#[tokio::test]
async fn a_family_that_fails_does_not_hold_up_the_other() {
    let dns = NameServer::start().await;
    dns.a("v.lan", Says::Silence);
    dns.aaaa("v.lan", ips(&["2001:db8::1", "::ffff:127.0.0.9"], 1));
    let lb = lb().config(&resolving(&dns, "{name: v.lan, port: 9}")).start().await;
    eventually("they are in the fleet", async || {
        ids(&lb).await == ["v-127.0.0.9-9", "v-2001:db8::1-9"]
    })
    .await;
    assert_eq!(worker(&lb, "v-2001:db8::1-9").await["url"], "http://[2001:db8::1]:9");
}

#[tokio::test]
async fn a_request_in_flight_survives_the_end_of_its_address() {
    let dns = NameServer::start().await;
    let addr = SocketAddr::from(([127, 0, 0, 2], free_port()));
    let streaming = streaming_gated(3).at(addr).start("s".to_owned()).await;
    dns.a("v.lan", ips(&["127.0.0.2"], 1));
    let entry = format!("{{name: v.lan, port: {}}}", addr.port());
    let lb = lb().config(&resolving(&dns, &entry)).start().await;
    becomes(&lb, &[&format!("v-{}-{}", addr.ip(), addr.port())]).await;
    let mut open = lb.open(&Ask::stream("hello")).await;
    dns.a("v.lan", Says::NxDomain);
    becomes(&lb, &[]).await;
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
    streaming.let_go(3);
    let (events, end) = open.rest().await;
    assert_eq!((events.len(), end), (4, Ok(())), "{events:?}");
}

#[tokio::test]
async fn failures_keep_the_workers_and_so_do_empty_answers_for_a_while() {
    let dns = NameServer::start().await;
    let (port, _workers) = on_one_port(&[2]).await;
    dns.a("v.lan", ips(&["127.0.0.2"], 1));
    // Nobody else's word counts, and the grace is longer than the test.
    let entry = format!("{{name: v.lan, port: {port}, family: ipv4}}");
    let config = resolving(&dns, &entry);
    let lb = lb()
        .config(&config)
        .config("discovery: {dns_empty_grace_s: 3600, dns_interval_max_s: 1}")
        .start()
        .await;
    let (id, source) = (format!("v-127.0.0.2-{port}"), format!("dns:v.lan:{port}"));
    becomes(&lb, &[&id]).await;
    for (says, result) in [
        (Says::ServFail, "failed"),
        (Says::NxDomain, "empty"),
        (Says::NoRecords, "empty"),
        (ips(&["0.0.0.0"], 1), "empty"),
        (Says::Garbage, "failed"),
        (Says::Silence, "failed"),
    ] {
        dns.a("v.lan", says.clone());
        looks(&lb, &source, result, if result == "failed" { 1 } else { 3 }).await;
        assert_eq!(ids(&lb).await, [&*id], "{says:?}");
    }
    eventually("the age of what we know shows it", async || {
        lb.metrics().await.sum("warmroute_discovery_age_seconds", &[("source", &source)]) >= 10
    })
    .await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
    dns.a("v.lan", ips(&["127.0.0.2"], 1));
    looks(&lb, &source, "answered", 1).await;
    assert_eq!(lines(&lb, "source is good again"), 1, "{}", lb.stderr());
    let said = lines(&lb, "source fails");
    assert!((3..=5).contains(&said), "one line for a reason: {said}\n{}", lb.stderr());
}

#[tokio::test]
async fn an_empty_answer_is_believed_when_it_goes_on() {
    let dns = NameServer::start().await;
    let (port, _workers) = on_one_port(&[2]).await;
    dns.a("v.lan", ips(&["127.0.0.2"], 1));
    let entry = format!("{{name: v.lan, port: {port}}}");
    let lb = lb().config(&resolving(&dns, &entry)).start().await;
    let id = format!("v-127.0.0.2-{port}");
    becomes(&lb, &[&id]).await;
    let asked = dns.asked_a("v.lan").len();
    dns.a("v.lan", Says::NoRecords);
    becomes(&lb, &[]).await;
    assert!(dns.asked_a("v.lan").len() >= asked + 3, "once is not enough");
    dns.a("v.lan", ips(&["127.0.0.2"], 1));
    becomes(&lb, &[&id]).await;
}

/// Pauses between the questions for a name, once there were so many.
async fn pauses(dns: &NameServer, name: &str, count: usize) -> Vec<Duration> {
    eventually("it is asked", async || dns.asked_a(name).len() > count).await;
    dns.asked_a(name).windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test]
async fn the_ttl_says_when_to_ask_again_within_the_bounds() {
    let dns = NameServer::start().await;
    dns.a("three.lan", ips(&["127.0.0.2"], 3));
    dns.a("none.lan", ips(&["127.0.0.3"], 0));
    dns.a("long.lan", ips(&["127.0.0.4"], 3600));
    dns.a("alias.lan", alias("target.lan", 2));
    dns.a("target.lan", ips(&["127.0.0.5"], 3600));
    let names = ["three", "none", "long", "alias"]
        .map(|name| format!("{{name: {name}.lan, port: 9, family: ipv4}}"));
    let lb = lb()
        .config(&resolving(&dns, &names.join(", ")))
        .config("discovery: {dns_interval_max_s: 4}")
        .start()
        .await;
    // Jitter makes it up to a tenth longer; the rest is a busy machine's.
    for (name, count, wait) in
        [("none.lan", 3, 1), ("alias.lan", 2, 2), ("three.lan", 2, 3), ("long.lan", 2, 4)]
    {
        for pause in pauses(&dns, name, count).await {
            let least = Duration::from_secs(wait);
            assert!(pause + Duration::from_millis(50) >= least, "{name}: {pause:?}");
            assert!(pause <= least.mul_f64(1.1) + DEADLINE / 10, "{name}: {pause:?}");
        }
    }
    assert_eq!(ids(&lb).await.len(), 4);
}

#[tokio::test]
async fn truncated_answers_are_asked_for_over_tcp() {
    let dns = NameServer::start().await;
    dns.truncates();
    let list: Vec<_> = (0..300).map(|at| format!("127.1.{}.{}", at / 200, at % 200 + 1)).collect();
    dns.a("many.lan", ips(&list.iter().map(String::as_str).collect::<Vec<_>>(), 60));
    let lb = lb()
        .config(&resolving(&dns, "{name: many.lan, port: 9, family: ipv4}"))
        .config("health: {interval_ms: 60000}")
        .start()
        .await;
    eventually("all are in the fleet", async || ids(&lb).await.len() == 300).await;
    assert!(dns.over_tcp() > 0);
}

#[tokio::test]
async fn a_name_server_that_is_not_there_yet_is_waited_for() {
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (port, _workers) = on_one_port(&[2]).await;
    let config = format!(
        "discovery: {{dns: [{{name: v.lan, port: {port}}}], nameservers: [\"{addr}\"], \
         dns_interval_max_s: 1}}"
    );
    let lb = lb().config(&config).start().await;
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
    looks(&lb, &format!("dns:v.lan:{port}"), "failed", 1).await;
    let dns = NameServer::start_at(addr).await;
    dns.a("v.lan", ips(&["127.0.0.2"], 1));
    becomes(&lb, &[&format!("v-127.0.0.2-{port}")]).await;
}

#[tokio::test]
async fn a_service_brings_hosts_ports_and_weights() {
    let dns = NameServer::start().await;
    let a = echo().at(SocketAddr::from(([127, 0, 0, 2], free_port()))).start("a".to_owned()).await;
    let b = echo().at(SocketAddr::from(([127, 0, 0, 3], free_port()))).start("b".to_owned()).await;
    let port = |worker: &Worker| worker.url().rsplit_once(':').expect("a port").1.to_owned();
    let (a_port, b_port) = (port(&a), port(&b));
    let number = |port: &str| port.parse::<u16>().expect("a port");
    let service = "_http._tcp.v.lan";
    let both = [(1, 20, number(&a_port), "GPU1.lan"), (1, 10, number(&b_port), "gpu2.lan")];
    dns.srv(service, services(&both, 1));
    dns.a("gpu1.lan", ips(&["127.0.0.2"], 1));
    dns.a("gpu2.lan", ips(&["127.0.0.3"], 1));
    let entry = format!("{{name: {service}, weight: 2, id_prefix: eu}}");
    let lb = lb().config(&resolving(&dns, &entry)).config(BLOCKS).start().await;
    let (a_id, b_id) = (format!("eu-gpu1.lan-{a_port}"), format!("eu-gpu2.lan-{b_port}"));
    becomes(&lb, &[&a_id, &b_id]).await;
    assert_eq!(worker(&lb, &a_id).await["weight"], 2.0);
    assert_eq!(worker(&lb, &b_id).await["weight"], 1.0);

    // One target is gone, one fails: the one that fails stays.
    dns.a("gpu2.lan", Says::ServFail);
    dns.srv(service, services(&both[1..], 1));
    becomes(&lb, &[&b_id]).await;
    looks(&lb, &format!("dns:{service}"), "failed", 1).await;
    assert_eq!(ids(&lb).await, [&*b_id]);

    // A spare is used only without the others.
    let spare = (9, 0, number(&a_port), "gpu1.lan");
    dns.srv(service, services(&[both[1], spare], 1));
    looks(&lb, &format!("dns:{service}"), "answered", 4).await;
    assert_eq!(ids(&lb).await, [&*b_id]);
    dns.a("gpu2.lan", Says::NxDomain);
    becomes(&lb, &[&a_id]).await;

    // The host moves: another engine, another cache.
    warms(&lb, &a_id).await;
    let moved = echo().at(SocketAddr::from(([127, 0, 0, 4], number(&a_port))));
    let moved = moved.start("moved".to_owned()).await;
    dns.a("gpu1.lan", ips(&["127.0.0.4"], 1));
    eventually("it is where the name says", async || {
        worker(&lb, &a_id).await["url"] == moved.url()
    })
    .await;
    assert_eq!(blocks(&lb, &a_id).await, 0);
    becomes(&lb, &[&a_id]).await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
    assert_eq!(moved.request_count(), 1);
}
