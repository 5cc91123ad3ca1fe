//! The load generator against engines without a router.

use std::time::Duration;

use warmroute_engine::load::{self, LoadOptions, Session, Trace, Turn};
use warmroute_engine::{Engine, EngineHandle, EngineOptions};

fn small_trace() -> Trace {
    let turn = |number: usize| Turn {
        think_ms: 0,
        user: format!("This is what user {number} says. ").repeat(8),
        max_tokens: 5,
    };
    let session = |number: usize| Session {
        id: format!("s{number}"),
        start_ms: 0,
        turns: (0..3).map(|_| turn(number)).collect(),
    };
    Trace { system: "Be brief. ".repeat(60), sessions: (0..6).map(session).collect() }
}

fn fleet(options: &EngineOptions) -> (Vec<EngineHandle>, LoadOptions) {
    let start = |_| Engine::start(options.clone()).expect("a free port");
    let engines: Vec<_> = (0..4).map(start).collect();
    let urls = engines.iter().map(EngineHandle::url).collect();
    (engines, LoadOptions { urls, ..LoadOptions::new("") })
}

#[tokio::test]
async fn measures_what_the_engines_count() {
    let (engines, options) = fleet(&EngineOptions::instant());
    let mut heard = 0;
    let result = load::run(&small_trace(), &options, |_| heard += 1).await.expect("good URLs");
    let summary = result.summary();
    assert_eq!((summary.requests, summary.errors, heard), (18, 0, 18));
    let sum = |count: fn(&EngineHandle) -> u64| engines.iter().map(count).sum::<u64>();
    let prompt_tokens = sum(|engine| engine.stats().prompt_tokens);
    let cached_tokens = sum(|engine| engine.stats().cached_tokens);
    let hit_rate = cached_tokens as f64 / prompt_tokens as f64;
    assert!((summary.hit_rate - hit_rate).abs() < 1e-9);
    assert!(summary.hit_rate > 0.3, "{summary:?}");
    assert!(result.records.iter().all(|record| record.completion_tokens == 5));
    assert!(result.records.iter().all(|record| record.first_token <= Some(record.total)));
}

#[tokio::test]
async fn a_role_is_not_a_first_token() {
    let slow = EngineOptions { decode_step_ms: 60.0, ..EngineOptions::default() };
    let (_engines, options) = fleet(&slow);
    let result = load::run(&small_trace(), &options, |_| ()).await.expect("good URLs");
    for record in &result.records {
        assert!(record.first_token >= Some(Duration::from_millis(60)), "{record:?}");
    }
}

#[tokio::test]
async fn an_error_ends_its_session_and_is_counted() {
    let (mut engines, mut options) = fleet(&EngineOptions::instant());
    options.urls.truncate(1);
    let url = options.urls[0].clone();
    engines.remove(0).kill();
    let result = load::run(&small_trace(), &options, |_| ()).await.expect("good URLs");
    assert_eq!((result.records.len(), result.summary().errors), (6, 6));
    let error = result.records[0].error.clone().expect("it failed");
    assert!(error.contains("cannot connect"), "{error}");
    let urls = vec![url.replace("http", "ftp")];
    assert!(load::run(&small_trace(), &LoadOptions { urls, ..options }, |_| ()).await.is_err());
}
