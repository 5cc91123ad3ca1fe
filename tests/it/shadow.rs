//! The shadow policy: it is counted, and never obeyed.

use serde_json::{Value, json};

use crate::support::{Ask, Lb, echo, eventually, ids_prompt, lb, tokens};

/// The shadow's choices that were the live ones too, and the others.
async fn choices(lb: &Lb, policy: &str) -> [i64; 2] {
    let metrics = lb.metrics().await;
    ["same", "other"].map(|choice| {
        let labels = [("policy", policy), ("choice", choice)];
        metrics.sum("warmroute_shadow_decisions_total", &labels)
    })
}

/// Seconds by the live choice and by the shadow's: they are no whole numbers.
async fn seconds(lb: &Lb, policy: &str) -> [f64; 2] {
    let page = lb.metrics_page().await;
    ["live", "shadow"].map(|by| {
        let name = "warmroute_shadow_first_token_seconds_total";
        let series = format!("{name}{{by=\"{by}\",policy=\"{policy}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&series));
        line.unwrap_or_else(|| panic!("no {series}in {page}")).parse().expect("a number")
    })
}

async fn asked(lb: &Lb, ask: &Ask, times: usize) -> Vec<String> {
    let mut workers = Vec::new();
    for _ in 0..times {
        let answer = lb.ask(ask).await;
        assert_eq!(answer.status, 200);
        workers.push(answer.header("x-router-backend").to_owned());
    }
    workers
}

async fn two(config: &str) -> Lb {
    let worker = || echo().yaml("models: [m]");
    lb().worker(worker()).worker(worker()).config(config).start().await
}

#[tokio::test]
async fn round_robin_beside_prefix_aware_disagrees_and_holds_less() {
    let lb = two("shadow: {policy: round-robin}\nlog: {format: json}").await;
    let prompt = ids_prompt("m", &tokens(1, 160));
    let workers = asked(&lb, &prompt, 20).await;
    assert!(workers.iter().all(|worker| worker == &workers[0]), "it is obeyed: {workers:?}");
    eventually("all are counted", async || {
        choices(&lb, "round-robin").await.iter().sum::<i64>() == 20
    })
    .await;
    assert_eq!(choices(&lb, "round-robin").await, [10, 10]);
    let metrics = lb.metrics().await;
    assert_eq!(metrics.sum("warmroute_shadow_prompt_tokens_total", &[]), 3200);
    let cached = |by| metrics.sum("warmroute_shadow_cached_tokens_total", &[("by", by)]);
    // All but the first time the one worker holds it; every other time the shadow is there too.
    assert_eq!(cached("live"), 19 * 160);
    assert!([9 * 160, 10 * 160].contains(&cached("shadow")), "{}", cached("shadow"));
    let [live, shadow] = seconds(&lb, "round-robin").await;
    assert!(0.0 < live && live < shadow, "{live} {shadow}");
    eventually("all are logged", async || lb.stdout().lines().count() == 20).await;
    let mut named: Vec<String> = lb
        .stdout()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["shadow"].to_string())
        .collect();
    named.sort();
    assert_eq!((&*named[9], &*named[10]), ("\"w0\"", "\"w1\""), "{named:?}");
}

/// Were the turn counted up for both, the live one would skip workers; were it only read, the two
/// would agree whatever went before.
#[tokio::test]
async fn the_shadow_has_a_turn_of_its_own() {
    let lb = two("policy: round-robin").await;
    let prompt = ids_prompt("m", &tokens(1, 160));
    assert_eq!(asked(&lb, &prompt, 1).await, ["w0"]);
    lb.reload("shadow: {policy: round-robin}").await;
    let workers = asked(&lb, &prompt, 20).await;
    let turns: Vec<_> = (0..20).map(|turn| if turn % 2 == 0 { "w1" } else { "w0" }).collect();
    assert_eq!(workers, turns);
    eventually("they never agree", async || choices(&lb, "round-robin").await == [0, 20]).await;
    // In the first of these only the shadow's choice held the prompt, in all others both did.
    let [live, shadow] = seconds(&lb, "round-robin").await;
    assert!(live > shadow, "{live} {shadow}");
}

#[tokio::test]
async fn a_request_s_own_policy_does_not_change_the_shadow() {
    let lb = two("policy_override: true\nshadow: {policy: least-loaded}").await;
    for policy in ["random", "weighted", "round-robin"] {
        let ask = ids_prompt("m", &tokens(1, 64)).header("x-router-policy", policy);
        let answer = lb.ask(&ask).await;
        assert_eq!(answer.header("x-router-reason"), policy);
    }
    // A request without a prompt has to go somewhere too.
    assert_eq!(lb.ask(&Ask::get("/v1/files")).await.status, 200);
    eventually("all are counted", async || {
        let metrics = lb.metrics().await;
        let name = "warmroute_shadow_decisions_total";
        let all = metrics.sum(name, &[]);
        assert!(all <= 4);
        all == 4 && metrics.sum(name, &[("reason", "least-loaded")]) == 4
    })
    .await;
}

#[tokio::test]
async fn a_reload_switches_it_on_and_off_and_refuses_what_cannot_be() {
    let lb = two("").await;
    let prompt = ids_prompt("m", &tokens(1, 160));
    asked(&lb, &prompt, 3).await;
    assert!(!lb.metrics().await.has("warmroute_shadow_decisions_total"), "it is off by default");
    let told = lb.reload("shadow: {policy: random}").await;
    assert_eq!((&told["changed"], &told["needs_upgrade"]), (&json!(["shadow.policy"]), &json!([])));
    asked(&lb, &prompt, 4).await;
    let counted = async |policy| choices(&lb, policy).await.iter().sum::<i64>();
    eventually("it is on", async || counted("random").await == 4).await;
    lb.edit("shadow: {policy: best}");
    let refused = lb.admin_post("/reload").await;
    assert_eq!(refused.status, 422, "{refused:?}");
    let why = refused.json()["error"]["message"].to_string();
    assert!(why.contains("shadow.policy: `best`: unknown policy; one of prefix-aware"), "{why}");
    asked(&lb, &prompt, 1).await;
    eventually("it is as before", async || counted("random").await == 5).await;
    lb.reload("shadow: {policy: weighted, policy_params: {hit_weight: 0}}").await;
    asked(&lb, &prompt, 2).await;
    eventually("another is on", async || counted("weighted").await == 2).await;
    lb.reload("shadow: ~").await;
    let workers = asked(&lb, &prompt, 2).await;
    assert_eq!(workers.len(), 2);
    // What is counted of the live choice shows that these have been counted too.
    eventually("all are counted", async || {
        let labels = [("basis", "believed")];
        lb.metrics().await.sum("warmroute_regret_prompt_tokens_total", &labels) == 12 * 160
    })
    .await;
    assert_eq!((counted("random").await, counted("weighted").await), (5, 2));
}
