//! What operators see: the metrics page and the access log.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{
    Act, Ask, Lb, Metrics, Proto, Reporter, dying, echo, eventually, lb, stored, streaming,
};

/// Values of `reason`, as docs/policies.md lists them.
const REASONS: [&str; 20] = [
    "prefix",
    "spill",
    "no-match",
    "no-prompt",
    "unreadable",
    "round-robin",
    "random",
    "least-loaded",
    "power-of-two",
    "sticky",
    "weighted",
    "session",
    "session-spill",
    "prefix-hash",
    "prefix-hash-spill",
    "retry",
    "local",
    "shed",
    "no-worker",
    "no-model",
];
const REFUSALS: [&str; 2] = ["rejected", "worker-failed"];
const OUTCOMES: [&str; 13] = [
    "applied",
    "heartbeat",
    "repeat",
    "gap",
    "malformed",
    "unsupported",
    "unauthorized",
    "unknown_worker",
    "removed",
    "fleet_full",
    "queue_full",
    "too_large",
    "lost",
];

fn page(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    std::fs::read_to_string(path).expect("a page of the documentation")
}

/// Name and labels of every metric in docs/metrics.md.
fn documented() -> Vec<(String, BTreeSet<String>)> {
    let text = page("metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `warmroute_"));
    let all: Vec<_> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let labels = cells[2].split(',').map(str::trim).filter(|label| !label.is_empty());
            (cells[1].trim_matches('`').to_owned(), labels.map(str::to_owned).collect())
        })
        .collect();
    assert!(all.len() > 25, "docs/metrics.md has another form: {all:?}");
    all
}

/// One sample of the page.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// One metric: what is said of it, and its samples.
#[derive(Debug)]
struct Family {
    kind: String,
    help: String,
    samples: Vec<Sample>,
}

/// Reads the exposition format strictly; panics where the page breaks a rule of it.
fn parse(page: &str) -> BTreeMap<String, Family> {
    assert!(page.ends_with('\n'), "the last line ends too");
    let mut families = BTreeMap::new();
    let mut help: Option<(String, String)> = None;
    let mut current: Option<String> = None;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').expect("HELP name text");
            assert!(help.is_none(), "HELP after HELP: {line}");
            help = Some((name.to_owned(), text.to_owned()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("TYPE name kind");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            let (helped, text) = help.take().unwrap_or_else(|| panic!("no HELP before {line}"));
            assert_eq!(helped, name, "HELP and TYPE belong together");
            let family = Family { kind: kind.to_owned(), help: text, samples: Vec::new() };
            assert!(families.insert(name.to_owned(), family).is_none(), "twice: {line}");
            current = Some(name.to_owned());
        } else {
            assert!(!line.is_empty() && !line.starts_with('#'), "{line:?}");
            let name = current.as_ref().expect("TYPE comes first");
            let sample = sample(line);
            let family = families.get_mut(name).expect("it is there");
            let suffix = sample.name.strip_prefix(name.as_str());
            let suffix = suffix.unwrap_or_else(|| panic!("{line} among those of {name}"));
            let histogram = family.kind == "histogram";
            let fits = if histogram {
                ["_bucket", "_sum", "_count"].contains(&suffix)
            } else {
                suffix.is_empty()
            };
            assert!(fits, "{line} among those of {name}");
            family.samples.push(sample);
        }
    }
    families
}

fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    !text.is_empty() && text.bytes().all(good) && !text.as_bytes()[0].is_ascii_digit()
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("series value");
    let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
    let (name, mut rest) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').expect("a closing brace")),
        None => (series, ""),
    };
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, value) = rest.split_once("=\"").expect("label=\"value\"");
        assert!(is_name(label) && !label.contains(':'), "{line}");
        // The tests' values hold nothing that would have to be escaped.
        let (value, behind) = value.split_once('"').expect("a closing quote");
        assert!(!value.contains('\\'), "{line}");
        assert!(labels.insert(label.to_owned(), value.to_owned()).is_none(), "{line}");
        rest = behind.strip_prefix(',').unwrap_or(behind);
    }
    Sample { name: name.to_owned(), labels, value }
}

/// Bounds with their counts, sum and count.
type Series = (Vec<(f64, f64)>, Option<f64>, Option<f64>);

fn check_histogram(name: &str, family: &Family) {
    let mut series: BTreeMap<_, Series> = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le");
        let (buckets, sum, count) = series.entry(labels).or_default();
        match bound {
            Some(bound) => buckets.push((bound.parse().expect("a bound"), sample.value)),
            None if sample.name.ends_with("_sum") => *sum = Some(sample.value),
            None => *count = Some(sample.value),
        }
    }
    for (labels, (buckets, sum, count)) in series {
        let rising = buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1);
        assert!(rising, "{name} {labels:?}: {buckets:?}");
        let last = buckets.last().expect("a bucket");
        assert!(last.0.is_infinite(), "{name} {labels:?} without +Inf");
        assert_eq!(Some(last.1), count, "{name} {labels:?}");
        assert!(sum.is_some_and(|sum| sum >= 0.0), "{name} {labels:?}");
    }
}

/// With a tokenizer for this model.
fn aligned_model(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer-qwen3-subset");
    format!("models: {{{name}: {{tokenizer: {folder}}}}}")
}

/// Every kind of traffic that a metric counts.
async fn busy() -> Lb {
    let lb = lb()
        .worker(streaming(4).models(&["m"]))
        .worker(echo().models(&["m"]))
        .worker(dying().models(&["m", "dies"]))
        // Never asked before it is gone: its breaker is closed, and no check comes in between.
        .worker(echo().models(&["gone"]))
        .config("health: {interval_ms: 600000}")
        .config(&aligned_model("m"))
        .config("reports: {}\npolicy_override: true\nindex: {block_bytes: 16, bytes_max: 65536}")
        .config("breaker: {failures_in_row_max: 2, cool_down_first_ms: 50}")
        .config("discovery: {file: /no/such/file}\nshadow: {policy: random}")
        .start()
        .await;
    for policy in [
        "round-robin",
        "random",
        "least-loaded",
        "power-of-two",
        "session-affinity",
        "prefix-affinity",
        "sticky-least-loaded",
        "weighted",
        "prefix-aware",
    ] {
        let ask = Ask::stream("hello, whoever you are").header("x-router-policy", policy);
        let _ = lb.ask(&ask).await;
    }
    let _ = lb.ask(&Ask::get("/v1/files")).await;
    let _ = lb.ask(&Ask::get("/health")).await;
    let _ = lb.ask(&Ask::post("/v1/chat/completions", "no JSON")).await;
    lb.ask(&Ask::chat_with("other", "x")).await.assert_error(404, "model_not_found");
    let bad = Ask::chat("x").header("x-router-policy", "best");
    lb.ask(&bad).await.assert_error(400, "unknown_policy");
    for _ in 0..6 {
        let _ = lb.ask(&Ask::chat_with("dies", "x")).await;
    }
    // Nobody listens there any more, but its last check was fine.
    lb.workers[3].kill().await;
    let _ = lb.ask(&Ask::chat_with("gone", "hello")).await;
    let mut reporter = Reporter::new(&lb, "w1");
    let text = "0123456789abcdef".repeat(20);
    reporter.send_well(&[stored(1..=20, None, &text, 16)]).await;
    reporter.send_well(&[json!({"type": "removed", "block_hashes": [20]})]).await;
    reporter.send(&[stored([99], Some(98), "x", 1)]).await;
    let _ = lb.report("/v1/events", &json!({})).await;
    let _ = lb.report("/v1/heartbeat", &json!({"worker_id": "x", "worker_url": ""})).await;
    let beat = json!({"worker_id": "w1", "worker_url": lb.workers[1].url()});
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.status, 200);
    lb.workers[1].set_act(Act::answer(500));
    for _ in 0..3 {
        let _ = lb.ask(&Ask::chat("hello").header("x-router-policy", "round-robin")).await;
    }
    eventually("gauges are up to date", async || {
        let metrics = lb.metrics().await;
        metrics.sum("warmroute_index_blocks", &[("worker", "w1")]) > 0
            && metrics.has("warmroute_parity_state")
            && metrics.sum("warmroute_inflight", &[]) == 0
    })
    .await;
    lb
}

#[tokio::test]
async fn every_documented_metric_is_on_the_page_and_the_page_is_valid() {
    let lb = busy().await;
    let text = lb.metrics_page().await;
    let families = parse(&text);
    let documented = documented();
    for (name, labels) in &documented {
        let family = families.get(name).unwrap_or_else(|| panic!("{name} is not on the page"));
        assert!(!family.samples.is_empty(), "{name} has no series after all kinds of traffic");
        assert!(family.help.len() > 10 && !family.help.contains("TODO"), "{name}: {}", family.help);
        for sample in &family.samples {
            let mut shown: BTreeSet<_> = sample.labels.keys().cloned().collect();
            shown.remove("le");
            assert_eq!(&shown, labels, "labels of {name}");
        }
        let kind = family.kind.as_str();
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        if kind == "histogram" {
            check_histogram(name, family);
        }
        if kind == "counter" {
            assert!(family.samples.iter().all(|sample| sample.value >= 0.0), "{name}");
        }
    }
    for name in families.keys().filter(|name| name.starts_with("warmroute_")) {
        let known = documented.iter().any(|(known, _)| known == name);
        assert!(known, "{name} is not in docs/metrics.md");
    }
    let mut seen = BTreeSet::new();
    for sample in families.values().flat_map(|family| &family.samples) {
        let series = format!("{} {:?}", sample.name, sample.labels);
        assert!(seen.insert(series.clone()), "twice: {series}");
    }
    let values = |name: &str, label: &str| -> BTreeSet<String> {
        let samples = families[name].samples.iter();
        samples.map(|sample| sample.labels[label].clone()).collect()
    };
    let assert_closed = |name: &str, label: &str, known: &[&str]| {
        let shown = values(name, label);
        assert!(shown.iter().all(|value| known.contains(&value.as_str())), "{name}: {shown:?}");
    };
    assert_closed("warmroute_decisions_total", "reason", &[&REASONS[..], &REFUSALS[..]].concat());
    assert_closed("warmroute_reports_total", "outcome", &OUTCOMES);
    assert_closed(
        "warmroute_responses_total",
        "class",
        &["1xx", "2xx", "3xx", "4xx", "5xx", "gone"],
    );
    assert_closed("warmroute_responses_total", "worker", &["w0", "w1", "w2", "w3", "none"]);
    assert_closed("warmroute_breaker_transitions_total", "to", &["closed", "half-open", "open"]);
    assert_closed("warmroute_discovery_lookups_total", "source", &["file"]);
    let results = ["answered", "empty", "failed", "malformed"];
    assert_closed("warmroute_discovery_lookups_total", "result", &results);
    assert_closed("warmroute_retries_total", "cause", &["connect", "stale-connection"]);
    for side in ["prompt", "chosen", "best"] {
        let name = format!("warmroute_regret_{side}_tokens_total");
        assert_closed(&name, "basis", &["believed", "answered"]);
    }
    assert_closed("warmroute_spills_total", "cause", &["saturated", "policy"]);
    assert_closed("warmroute_shadow_decisions_total", "policy", &["random"]);
    assert_closed("warmroute_shadow_decisions_total", "reason", &["random"]);
    assert_closed("warmroute_shadow_decisions_total", "choice", &["same", "other"]);
    assert_closed("warmroute_shadow_cached_tokens_total", "by", &["live", "shadow"]);
    let endpoints = ["chat", "completions", "responses", "messages", "models", "health", "other"];
    assert_closed("warmroute_request_seconds", "endpoint", &endpoints);
    let met = values("warmroute_decisions_total", "reason");
    for reason in [
        "round-robin",
        "random",
        "least-loaded",
        "power-of-two",
        "no-prompt",
        "local",
        "unreadable",
        "no-model",
        "rejected",
        "worker-failed",
        "weighted",
    ] {
        assert!(met.contains(reason), "{reason} among {met:?}");
    }
}

/// The closed sets of the documentation are the ones above.
#[test]
fn the_documentation_lists_the_same_values() {
    let text = page("policies.md");
    let table = text.split("## Reasons").nth(1).expect("a table of reasons");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let shown: BTreeSet<_> = rows
        .flat_map(|row| row.split('|').nth(1).expect("a cell").split(','))
        .map(|cell| cell.trim().trim_matches('`').to_owned())
        .collect();
    let known: BTreeSet<_> = REASONS.iter().chain(&REFUSALS).map(|&text| text.to_owned()).collect();
    assert_eq!(shown, known);
    let text = page("metrics.md");
    let row = text.lines().find(|line| line.contains("warmroute_reports_total")).expect("a row");
    for outcome in OUTCOMES {
        assert!(row.contains(outcome), "{outcome} in {row}");
    }
}

/// Before any traffic only what has labels that are not known yet may lack series.
#[tokio::test]
async fn a_fresh_router_shows_zeros_rather_than_gaps() {
    let lb = lb().worker(echo()).config("reports: {}").start().await;
    let families = parse(&lb.metrics_page().await);
    let first_seen_later = [
        "warmroute_decisions_total",
        "warmroute_request_seconds",
        "warmroute_reports_total",
        "warmroute_breaker_transitions_total",
        "warmroute_parity_state",
        "warmroute_discovery_lookups_total",
        "warmroute_discovery_workers",
        "warmroute_discovery_age_seconds",
        "warmroute_shadow_decisions_total",
        "warmroute_shadow_prompt_tokens_total",
        "warmroute_shadow_cached_tokens_total",
        "warmroute_shadow_first_token_seconds_total",
    ];
    for (name, labels) in documented() {
        let there = families.get(&name).is_some_and(|family| !family.samples.is_empty());
        if !first_seen_later.contains(&name.as_str()) {
            // Some gauges come with the first upkeep.
            let upkeep = labels.contains("worker");
            if upkeep && !there {
                eventually(&format!("{name} is there"), async || lb.metrics().await.has(&name))
                    .await;
            } else {
                assert!(there, "{name} has no series");
            }
        }
    }
    let metrics = lb.metrics().await;
    assert_eq!(metrics.sum("warmroute_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1);
    assert_eq!(metrics.sum("warmroute_workers", &[]), 1);
    assert_eq!(metrics.sum("warmroute_report_age_seconds", &[("worker", "w0")]), -1);
}

#[tokio::test]
async fn scrapes_are_answered_whatever_the_path() {
    let lb = lb().worker(echo()).start().await;
    let page = lb.metrics_page().await;
    assert!(Metrics::parse(&page).has("warmroute_build_info"));
}

const SECRET: &str = "zebra-sunrise";

/// Waits until so many requests are logged: a line may come a moment after its answer.
async fn logs(lb: &Lb, lines: usize) {
    eventually("the request is logged", async || lb.stdout().lines().count() >= lines).await;
}

/// Requests of all kinds whose prompts, systems, tools and queries hold a secret.
async fn logged(format: &str) -> (Lb, Vec<String>) {
    let lb = lb()
        .worker(streaming(3).models(&["m"]))
        .config(&format!("log: {{format: {format}, level: trace}}\nreports: {{}}"))
        .start()
        .await;
    let hidden = json!({"model": "m", "stream": true, "user": SECRET, "tools": [{"type": "function",
        "function": {"name": SECRET}}], "messages": [{"role": "system", "content": SECRET},
        {"role": "user", "content": SECRET.repeat(50)}]});
    let chat = Ask::post("/v1/chat/completions", hidden.to_string());
    assert_eq!(lb.ask(&chat).await.status, 200);
    logs(&lb, 1).await;
    assert_eq!(lb.ask(&chat.clone().over(Proto::H2)).await.status, 200);
    logs(&lb, 2).await;
    let query = Ask::get(&format!("/v1/files?name={SECRET}"));
    assert_eq!(lb.ask(&query).await.status, 200);
    logs(&lb, 3).await;
    let broken = Ask::post("/v1/completions", format!("{{\"prompt\": \"{SECRET}"));
    assert_eq!(lb.ask(&broken).await.status, 200);
    logs(&lb, 4).await;
    lb.ask(&Ask::chat_with("no \"such\"\nmodel", SECRET))
        .await
        .assert_error(404, "model_not_found");
    logs(&lb, 5).await;
    lb.workers[0].set_act(Act::Die);
    lb.ask(&chat).await.assert_error(502, "worker_failed");
    logs(&lb, 6).await;
    lb.workers[0].set_act(Act::CutStream { events: 1 });
    let mut open = lb.open(&chat).await;
    let _ = open.rest().await;
    logs(&lb, 7).await;
    lb.workers[0].set_act(Act::Stream { events: 3, gated: true });
    let left = lb.open(&chat).await;
    lb.workers[0].let_go(1);
    drop(left);
    let text = format!("{SECRET} {}", "x".repeat(200));
    let batch = [stored([1], None, &text, text.len())];
    Reporter::new(&lb, "w0").send_well(&batch).await;
    let _ = lb
        .report(
            "/v1/events",
            &json!({"worker_id": "w0", "epoch": 1, "seq": 1,
        "events": [{"type": "stored", "block_hashes": SECRET, "text": SECRET}]}),
        )
        .await;
    logs(&lb, 8).await;
    lb.idle().await;
    let lines: Vec<_> = lb.stdout().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 8, "one line a request: {lines:#?}");
    assert!(!lb.stdout().contains(SECRET), "a prompt in the access log: {}", lb.stdout());
    assert!(!lb.stderr().contains(SECRET), "a prompt in the log: {}", lb.stderr());
    (lb, lines)
}

/// (status, path, reason, error) of the requests of `logged`, in the order they ended.
const LOGGED: [(u64, &str, &str, &str); 8] = [
    (200, "/v1/chat/completions", "no-match", ""),
    (200, "/v1/chat/completions", "prefix", ""),
    (200, "/v1/files", "no-prompt", ""),
    (200, "/v1/completions", "unreadable", ""),
    (404, "/v1/chat/completions", "no-model", "*"),
    (502, "/v1/chat/completions", "worker-failed", "worker_failed"),
    (200, "/v1/chat/completions", "prefix", "worker_failed"),
    (499, "/v1/chat/completions", "prefix", "*"),
];

#[tokio::test]
async fn the_access_log_as_json_has_its_fields() {
    let (_lb, lines) = logged("json").await;
    let must = [
        "ts",
        "id",
        "method",
        "path",
        "model",
        "status",
        "worker",
        "reason",
        "matched",
        "blocks",
        "tries",
        "bytes_in",
        "bytes_out",
        "duration_ms",
    ];
    for (line, (status, path, reason, error)) in lines.iter().zip(LOGGED) {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        let keys: BTreeSet<_> = json.as_object().expect("an object").keys().cloned().collect();
        for key in must {
            assert!(keys.contains(key), "{key} in {line}");
        }
        for key in &keys {
            let may = ["ttft_ms", "error", "chosen_tokens", "best_tokens"];
            let known = must.contains(&key.as_str()) || may.contains(&key.as_str());
            assert!(known, "{key} in {line}");
        }
        assert_eq!((&json["status"], &json["path"]), (&json!(status), &json!(path)), "{line}");
        assert_eq!(json["reason"], reason, "{line}");
        match error {
            "" => assert!(json.get("error").is_none(), "{line}"),
            "*" => {}
            code => assert_eq!(json["error"], code, "{line}"),
        }
        assert!(json["id"].as_str().is_some_and(|id| id.len() == 32), "{line}");
        assert!(json["ts"].as_f64().is_some_and(|ts| ts > 1.7e9), "{line}");
        assert!(json["duration_ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{line}");
        assert!(json["matched"].as_u64() <= json["blocks"].as_u64(), "{line}");
    }
    let json: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(json[0]["ttft_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{}", lines[0]);
    let unused = |line: &Value| [&line["chosen_tokens"], &line["best_tokens"]].map(Value::as_u64);
    assert_eq!(unused(&json[0]), [Some(0), Some(0)]);
    let [chosen, best] = unused(&json[1]);
    assert!(chosen > Some(0) && chosen == best, "{}", lines[1]);
    assert_eq!([2, 3, 4].map(|at: usize| unused(&json[at])), [[None, None]; 3], "no prompt");
    assert!(json[5].get("ttft_ms").is_none(), "no content, no time to it: {}", lines[5]);
    assert_eq!(json[4]["model"], "no \"such\"\nmodel");
    assert_eq!((&json[4]["worker"], &json[4]["tries"]), (&json!("none"), &json!(0)));
    assert_eq!((&json[0]["worker"], &json[0]["tries"]), (&json!("w0"), &json!(1)));
    assert!(json[0]["bytes_in"].as_u64().is_some_and(|bytes| bytes > 600), "{}", lines[0]);
    assert!(json[0]["bytes_out"].as_u64().is_some_and(|bytes| bytes > 100), "{}", lines[0]);
}

#[tokio::test]
async fn the_access_log_as_text_has_its_fields() {
    let (_lb, lines) = logged("text").await;
    let keys =
        ["worker=", "reason=", "matched=", "tries=", "model=", "in=", "out=", "duration_ms="];
    for (line, (status, path, reason, error)) in lines.iter().zip(LOGGED) {
        let words: Vec<_> = line.split(' ').collect();
        assert!(words[0].parse::<f64>().is_ok_and(|ts| ts > 1.7e9), "{line}");
        assert_eq!(words[1].len(), 32, "{line}");
        assert_eq!(words[2], status.to_string(), "{line}");
        assert!(["GET", "POST"].contains(&words[3]), "{line}");
        assert_eq!(words[4], path, "{line}");
        let mut rest = line.as_str();
        for key in keys {
            let at = rest.find(&format!(" {key}")).unwrap_or_else(|| panic!("{key} in {line}"));
            rest = &rest[at + 1..];
        }
        assert!(line.contains(&format!(" reason={reason} ")), "{line}");
        match error {
            "" => assert!(!line.contains(" error="), "{line}"),
            "*" => {}
            code => assert!(line.ends_with(&format!(" error=\"{code}\"")), "{line}"),
        }
    }
    assert!(lines[0].contains(" ttft_ms="), "{}", lines[0]);
    assert!(lines[0].contains(" chosen_tokens=0 best_tokens=0"), "{}", lines[0]);
    assert!(lines[4].contains(r#"model="no \"such\"\nmodel""#), "{}", lines[4]);
}

/// docs/operations.md: the fields include the error code.
#[tokio::test]
async fn refusals_of_our_own_are_logged_with_their_code() {
    let lb = lb()
        .worker(echo().models(&["m"]))
        .config("log: {format: json}\npolicy_override: true\nlimits: {body_bytes_max: 2000}")
        .start()
        .await;
    lb.ask(&Ask::chat_with("other", "x")).await.assert_error(404, "model_not_found");
    logs(&lb, 1).await;
    let bad = Ask::chat("x").header("x-router-policy", "best");
    lb.ask(&bad).await.assert_error(400, "unknown_policy");
    logs(&lb, 2).await;
    let large = Ask::chat(&"x".repeat(3000));
    lb.ask(&large).await.assert_error(413, "body_too_large");
    logs(&lb, 3).await;
    lb.workers[0].set_healthy(false);
    lb.health_is(0, "unhealthy").await;
    lb.ask(&Ask::chat("x")).await.assert_error(503, "no_worker");
    logs(&lb, 4).await;
    // A line is written after its answer was sent, so the next request's may come before it.
    let mut logged: Vec<_> = lb
        .stdout()
        .lines()
        .map(|line| {
            let json: Value = serde_json::from_str(line).expect("JSON");
            (json["status"].as_u64(), json["error"].as_str().map(str::to_owned))
        })
        .collect();
    logged.sort();
    let expected = [
        (400, "unknown_policy"),
        (404, "model_not_found"),
        (413, "body_too_large"),
        (503, "no_worker"),
    ];
    let expected = expected.map(|(status, code)| (Some(status), Some(code.to_owned())));
    assert_eq!(logged, expected);
}

#[tokio::test]
async fn the_access_log_can_be_off() {
    let lb = lb().worker(echo()).config("log: {access: false}").start().await;
    for _ in 0..3 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
    }
    lb.signal("TERM");
    let mut lb = lb;
    eventually("the process ends", async || lb.exit_status().is_some()).await;
    assert_eq!(lb.stdout(), "");
}
