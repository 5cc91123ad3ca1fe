//! `warmroute-bench` as people run it: small replays over real sockets, and what they leave.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;
use warmroute_bench::replay::{results::Results, row::Row, summary::Run};
use warmroute_engine::{Engine, EngineHandle, EngineOptions};

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmroute-bench"));
    command.args(arguments).output().expect("warmroute-bench runs")
}

/// Runs a replay that must succeed, and reads what it left.
fn replay(folder: &Path, arguments: &[&str]) -> (Results, String) {
    let out = folder.to_str().expect("a name of letters");
    let all = [&["replay", "--out", out], arguments].concat();
    let output = bench(&all);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(folder.join("report.html")).expect("a page");
    assert!(page.matches("<svg ").count() >= 3 && page.ends_with("</body></html>\n"));
    // Nothing from elsewhere, and no script.
    assert!(["<script", "src=", "href="].iter().all(|text| !page.contains(text)));
    (Results::read(&folder.join("results.json")).expect("results"), said)
}

/// The product's binary, which a test of the whole workspace has built already.
fn router() -> PathBuf {
    let test = std::env::current_exe().expect("our own path");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps");
    let router = folder.join("warmroute");
    if !router.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let mut build = Command::new(cargo);
        build.args(["build", "--bin", "warmroute"]).current_dir(root);
        assert!(build.status().expect("cargo runs").success());
    }
    router
}

fn engine(options: EngineOptions) -> EngineHandle {
    Engine::start(options).expect("an engine")
}

fn rows(run: &Run) -> &[Row] {
    run.rows.as_deref().expect("--rows")
}

/// Every request of the trace is there once, answered or with what went wrong.
fn assert_accounted(run: &Run, requests: usize) {
    let places: Vec<usize> = rows(run).iter().map(|row| row.request).collect();
    assert_eq!(places, (0..requests).collect::<Vec<_>>(), "{}", run.policy);
    let failed = run.errors.values().sum::<u64>() as usize;
    assert_eq!((run.requests, run.answered + failed), (requests, requests));
    for row in rows(run) {
        assert_eq!(row.is_answered(), row.error.is_none(), "{row:?}");
        assert!(row.error.is_some() || (row.ttft_ms <= row.total_ms && row.ttft_ms.is_some()));
    }
}

#[test]
fn policies_are_played_through_routers_of_our_own() {
    let folder = TempDir::new().expect("a folder");
    let router = router();
    let other = engine(EngineOptions::default());
    let baseline = format!("bare={}", other.url());
    let arguments = [
        "--router",
        router.to_str().expect("letters"),
        "--policies",
        "round-robin,prefix-aware",
        "--baseline-url",
        &baseline,
        "--limit",
        "40",
        "--time-scale",
        "0.2",
        "--engines",
        "2",
        "--prefill-tokens-per-s",
        "40000",
        "--rows",
        "--label",
        "a test",
    ];
    let (results, said) = replay(folder.path(), &arguments);
    let names: Vec<_> = results.runs.iter().map(|run| run.policy.as_str()).collect();
    assert_eq!(names, ["round-robin", "prefix-aware", "bare"], "{said}");
    for run in &results.runs {
        assert_accounted(run, 40);
        assert_eq!(run.answered, 40, "{:?}", run.errors);
    }
    for run in &results.runs[..2] {
        // Client and engines tell the same of the cache, and the router knew.
        assert_eq!(run.hit_rate, run.engines_hit_rate);
        assert_eq!(run.workers.iter().map(|worker| worker.requests).sum::<u64>(), 40);
        assert!(rows(run).iter().all(|row| row.worker.is_some() && row.reason.is_some()));
        let beliefs = run.router.as_ref().expect("metrics").beliefs;
        assert!(beliefs.actual as u64 == run.cached_tokens, "{beliefs:?}");
        assert!(
            run.looks.iter().any(|look| look.beliefs.is_some() && look.engine_loads.len() == 2)
        );
    }
    let [robin, aware, _] = &results.runs[..] else { panic!("three runs") };
    assert!(aware.cached_tokens > robin.cached_tokens);
    assert_eq!(robin.reasons.keys().collect::<Vec<_>>(), ["round-robin"]);
    let compared = results.pooled[1].ttft_ratio.expect("compared with the first");
    assert!(compared.p50.low <= compared.p50.high);
    assert_eq!(results.settings["mode"], "open");
    assert!(said.contains("ratio of p50 and p95"), "{said}");

    // A report of two files: the same policies stand side by side.
    let file = folder.path().join("results.json");
    let page = folder.path().join("both/page.html");
    let (file, page) = (file.to_str().expect("letters"), page.to_str().expect("letters"));
    let output = bench(&["report", file, file, "--out", page, "--title", "<both>"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("prefix-aware (a test)") && page.contains("<h1>&lt;both&gt;</h1>"));
}

#[test]
fn a_closed_loop_sweeps_and_carries_real_answers() {
    let folder = TempDir::new().expect("a folder");
    let engine = engine(EngineOptions::instant());
    let arguments = [
        "--target",
        &engine.url(),
        "--workload",
        "chat",
        "--conversations",
        "5",
        "--turns",
        "3",
        "--system-bytes",
        "1000",
        "--sweep",
        "sessions=1,5",
        "--time-scale",
        "0.01",
        "--salted",
        "--seeds",
        "2",
        "--rows",
    ];
    let (results, _) = replay(folder.path(), &arguments);
    assert_eq!(results.settings["mode"], "closed");
    let points = results.runs.iter().map(|run| (run.point.clone().map(|p| p.value), run.seed));
    let expected = [(Some(1.0), 1), (Some(1.0), 2), (Some(5.0), 1), (Some(5.0), 2)];
    assert_eq!(points.collect::<Vec<_>>(), expected);
    for run in &results.runs {
        assert_accounted(run, 15);
        assert_eq!(run.answered, 15, "{:?}", run.errors);
        for row in rows(run).iter().filter(|row| row.turn > 0) {
            // The engine holds the turn before with the answer it gave itself (24 tokens at least):
            // only if that came back does a hit end less than a block before its end. Its last
            // token is not computed, and another may be shared with the prompt.
            let before = rows(run)
                .iter()
                .find(|before| before.session == row.session && before.turn + 1 == row.turn)
                .expect("a turn before");
            let held = before.prompt_tokens.zip(before.answer_tokens).map(|(a, b)| a + b);
            assert!(row.cached_tokens.expect("said") + 16 + 2 > held.expect("said"), "{row:?}");
        }
    }
    // Salted, so that one session at a time meets the common prompt cold once in every run.
    let cold = |run: &Run| rows(run).iter().filter(|row| row.cached_tokens == Some(0)).count();
    assert_eq!(results.runs[..2].iter().map(cold).collect::<Vec<_>>(), [1, 1]);
    assert!(folder.path().join("slope-p95.svg").exists());
    assert_eq!(results.pooled.len(), 2);
    assert!(results.pooled.iter().all(|pooled| pooled.seeds == 2 && pooled.requests == 30));
}

#[test]
fn what_fails_is_counted_and_ends_its_session() {
    let folder = TempDir::new().expect("a folder");
    // The first turns fit in, later ones do not.
    let engine = engine(EngineOptions { max_model_len: 1_500, ..EngineOptions::instant() });
    let arguments = [
        "--target",
        &engine.url(),
        "--mode",
        "closed",
        "--time-scale",
        "0.01",
        "--rows",
        "--no-stream",
        "--model",
        "sim-model",
        "--policies",
        "a,b",
        "--reset-url",
        &engine.url(),
        "--sample",
        "0.5",
    ];
    let (results, said) = replay(folder.path(), &arguments);
    let [first, second] = &results.runs[..] else { panic!("two runs") };
    assert_eq!(first.requests, results.trace.requests);
    for run in [first, second] {
        assert_accounted(run, results.trace.requests);
        let unsent = run.errors["not sent: a turn before it failed"];
        let refused = rows(run).iter().filter(|row| row.status == Some(400)).count() as u64;
        assert!(refused > 0 && unsent > 0 && run.answered > 0, "{:?}", run.errors);
        let sent = rows(run).iter().filter(|row| row.sent_s.is_some()).count() as u64;
        assert_eq!(sent + unsent, run.requests as u64);
    }
    // Emptied in between, so that the second run was as cold as the first.
    let apart = first.cached_tokens.abs_diff(second.cached_tokens);
    assert!(
        apart * 20 < first.prompt_tokens,
        "{} and {}",
        first.cached_tokens,
        second.cached_tokens
    );
    assert!(said.contains("failed"), "{said}");
}

#[test]
fn an_open_loop_never_waits_and_never_holds_more_than_its_bound() {
    let folder = TempDir::new().expect("a folder");
    let engine = engine(EngineOptions::default());
    engine.pause();
    let arguments = [
        "replay",
        "--out",
        folder.path().to_str().expect("letters"),
        "--target",
        &engine.url(),
        "--limit",
        "30",
        "--time-scale",
        "0.05",
        "--inflight-max",
        "3",
        "--request-timeout-s",
        "1",
        "--rows",
    ];
    let output = bench(&arguments);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("no answer"), "{said}");
    let results = Results::read(&folder.path().join("results.json")).expect("results");
    let run = &results.runs[0];
    assert_accounted(run, 30);
    assert_eq!(run.errors["not sent: 3 requests in flight"], 27);
    assert_eq!(run.errors["no whole answer in time"], 3);
    assert!(run.ttft_ms.is_none() && run.elapsed_s < 5.0, "{run:?}");
}

#[test]
fn traces_are_written_and_mistakes_are_told() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("letters").to_owned();
    let packed = path("rag.jsonl.zst");
    let output = bench(&["trace", "--workload", "rag", "--conversations", "9", "--out", &packed]);
    assert!(output.status.success(), "{output:?}");
    let trace = warmroute_bench::trace::file::read(Path::new(&packed)).expect("a trace");
    assert_eq!((trace.name.as_str(), trace.requests.len()), ("rag", 9));

    std::fs::write(path("bad.jsonl"), "{\"t\":0}\n").expect("writes");
    let bad = path("bad.jsonl");
    let out = path("out");
    let refused = [
        (vec!["--trace", &bad, "--target", "http://127.0.0.1:9"], "bad.jsonl:1: missing field"),
        (vec!["--time-scale", "0"], "--time-scale 0: give a number above 0"),
        (vec!["--sweep", "colour=1,2"], "--sweep colour: not one of those"),
        (vec!["--policies", "a,a", "--target", "http://127.0.0.1:9"], "`a` is named twice"),
        (vec!["--target", "ftp://x"], "is not an http://host:port URL"),
        (vec!["--mode", "open", "--sessions", "3"], "--sessions with --mode open"),
        (vec!["--router", "/nowhere"], "--router /nowhere: no such file"),
    ];
    for (arguments, text) in refused {
        let output = bench(&[&["replay", "--out", &out], &arguments[..]].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && said.contains(text), "{arguments:?}: {said}");
    }
    let router = router();
    let router = router.to_str().expect("letters");
    let small = ["replay", "--out", &out, "--kv-blocks", "50", "--router", router];
    let said = String::from_utf8_lossy(&bench(&small).stdout).into_owned();
    assert!(said.contains("--kv-blocks 50: the longest request takes"), "{said}");
    std::fs::write(path("old.json"), "{\"format\":\"warmroute-replay/0\"}").expect("writes");
    let said = String::from_utf8_lossy(&bench(&["report", &path("old.json")]).stdout).into_owned();
    assert!(said.contains("format warmroute-replay/0, this program reads"), "{said}");
}
