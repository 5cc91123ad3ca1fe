//! What the demo prints.

use std::fmt::Write;
use std::time::Duration;

use warmroute_engine::EngineOptions;
use warmroute_engine::load::{Summary, Trace};

use super::router::Ports;

/// One policy's results.
#[derive(Debug, Clone)]
pub(super) struct Row {
    policy: &'static str,
    summary: Summary,
    /// By the engines' own counters.
    hit_rate: f64,
}

impl Row {
    pub(super) fn new(policy: &'static str, summary: Summary, hit_rate: f64) -> Self {
        Self { policy, summary, hit_rate }
    }
}

/// Says what is real here and what is not.
pub(super) fn introduction(trace: &Trace, engine: &EngineOptions, workers: usize) -> String {
    format!(
        "The {workers} engines of this demo are SIMULATED: no model, no GPU, and nonsense for \
         answers.\nThey cache, evict and batch like real ones, and take as long as {prefill} \
         prefill tokens a second\nand {step} ms a decode step make it; each holds {blocks} KV \
         blocks of {tokens} tokens. The router is this\nprogram, and all traffic goes through \
         real sockets. So believe the comparison, not the speeds.\n\n{sessions} chats, {requests} \
         requests, a common system prompt of {system:.1} KB; every policy starts cold.\n\n",
        prefill = engine.prefill_tokens_per_s,
        step = engine.decode_step_ms,
        blocks = engine.kv_blocks,
        tokens = engine.block_tokens,
        sessions = trace.sessions.len(),
        requests = trace.request_count(),
        system = trace.system.len() as f64 / 1e3,
    )
}

/// The results; ratios are to the first row.
pub(super) fn render(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<14}{:>30}{:>11}{:>10}{:>8}\n{:<14}{:>9}{:>9}{:>9}{:>14}{:>10}{:>8}   {}\n",
        "",
        "time to first token, ms   ",
        "cache",
        "requests",
        "",
        "policy",
        "p50",
        "p95",
        "p99",
        "hit rate",
        "a second",
        "errors",
        "to round-robin: p50, p95"
    );
    let Some(base) = rows.first().map(|row| row.summary.first_token) else { return text };
    for row in rows {
        let Row { policy, summary, hit_rate } = row;
        let first = summary.first_token;
        writeln!(
            text,
            "{policy:<14}{:>9}{:>9}{:>9}{:>12.1} %{:>10.1}{:>8}   {}, {}",
            first.p50.as_millis(),
            first.p95.as_millis(),
            first.p99.as_millis(),
            hit_rate * 100.0,
            summary.requests_per_s,
            summary.errors,
            ratio(first.p50, base.p50),
            ratio(first.p95, base.p95),
        )
        .expect("a String takes all that is written to it");
    }
    text
}

/// How to get something to look at.
pub(super) fn closing(ports: Ports) -> String {
    format!(
        "\nOne run each: times differ by a quarter or so between two demos.\n\
         Metrics were at http://{metrics}/metrics, the fleet at http://{admin}/workers;\n\
         `warmroute demo --stay` leaves router and engines running, to look at these and at its\n\
         X-Router-Backend and X-Router-Reason headers.\n",
        metrics = ports.metrics(),
        admin = ports.admin(),
    )
}

/// Where to look while everything still runs.
pub(super) fn where_to_look(ports: Ports) -> String {
    format!(
        "\nEngines and router (prefix-aware) stay until Ctrl-C.\n\
         metrics  http://{metrics}/metrics\nworkers  http://{admin}/workers\n\n\
         curl -i http://{listen}/v1/chat/completions -H 'content-type: application/json' \\\n  \
         -d '{{\"model\": \"sim-model\", \"messages\": [{{\"role\": \"user\", \"content\": \
         \"When does the boat to Vayle leave?\"}}]}}'\n\n\
         X-Router-Backend names the worker, X-Router-Reason says why.\n",
        metrics = ports.metrics(),
        admin = ports.admin(),
        listen = ports.listen(),
    )
}

fn ratio(time: Duration, base: Duration) -> String {
    if base.is_zero() {
        return "-".to_owned();
    }
    format!("{:.2}x", time.as_secs_f64() / base.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use warmroute_engine::load::Percentiles;

    use super::*;

    #[test]
    fn rows_are_compared_with_the_first_one() {
        let row = |policy, p50| {
            let p50 = Duration::from_millis(p50);
            let first_token = Percentiles { p50, p95: p50 * 2, p99: p50 * 3 };
            Row::new(policy, Summary { first_token, errors: 1, ..Summary::default() }, 0.5)
        };
        let text = render(&[row("round-robin", 400), row("prefix-aware", 100)]);
        let last = text.lines().last().expect("a row");
        let words: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(
            words,
            ["prefix-aware", "100", "200", "300", "50.0", "%", "0.0", "1", "0.25x,", "0.25x"]
        );
    }

    #[test]
    fn says_that_the_engines_are_simulated() {
        let text = introduction(&Trace::demo_chat(), &EngineOptions::demo(), 4);
        assert!(text.contains("SIMULATED"), "{text}");
    }
}
