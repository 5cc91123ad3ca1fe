//! `/metrics` under vLLM's names.

use std::fmt::{Display, Write};

use crate::engine::Shared;

/// vLLM's buckets for the time to first token, which do for whole requests too.
const SECONDS: [f64; 19] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
];

/// Counts of observations in the buckets of [`SECONDS`].
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [u64; SECONDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    pub(super) fn observe(&mut self, seconds: f64) {
        self.count += 1;
        self.sum += seconds;
        for (bucket, bound) in self.buckets.iter_mut().zip(SECONDS) {
            *bucket += u64::from(seconds <= bound);
        }
    }
}

/// The whole page.
pub(super) fn render(shared: &Shared) -> String {
    let stats = shared.stats();
    let usage = stats.kv_blocks_used as f64 / stats.kv_blocks_total.max(1) as f64;
    let block_size = shared.options.block_tokens;
    let mut page = Page { text: String::new(), model: &shared.options.model };
    page.sample("gauge", "num_requests_running", "", stats.running);
    page.sample("gauge", "num_requests_waiting", "", stats.waiting);
    page.sample("gauge", "kv_cache_usage_perc", "", usage);
    page.sample("counter", "prefix_cache_queries_total", "", stats.prompt_tokens);
    page.sample("counter", "prefix_cache_hits_total", "", stats.cached_tokens);
    page.sample("counter", "num_preemptions_total", "", 0);
    page.sample("counter", "prompt_tokens_total", "", stats.prompt_tokens);
    page.sample("counter", "prompt_tokens_cached_total", "", stats.cached_tokens);
    page.sample("counter", "generation_tokens_total", "", stats.output_tokens);
    page.sample("counter", "request_success_total", "", stats.finished);
    let info = format!(",block_size=\"{block_size}\",num_gpu_blocks=\"{}\"", stats.kv_blocks_total);
    page.sample("gauge", "cache_config_info", &info, 1);
    let desk = shared.desk();
    page.histogram("time_to_first_token_seconds", &desk.first_token_seconds);
    page.histogram("e2e_request_latency_seconds", &desk.whole_seconds);
    page.text
}

struct Page<'a> {
    text: String,
    model: &'a str,
}

impl Page<'_> {
    fn sample(&mut self, kind: &str, name: &str, labels: &str, value: impl Display) {
        self.kind(kind, name);
        self.line(name, labels, value);
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        self.kind("histogram", name);
        let bucket = format!("{name}_bucket");
        for (bound, count) in SECONDS.iter().zip(histogram.buckets) {
            self.line(&bucket, &format!(",le=\"{bound:?}\""), count);
        }
        self.line(&bucket, ",le=\"+Inf\"", histogram.count);
        self.line(&format!("{name}_count"), "", histogram.count);
        self.line(&format!("{name}_sum"), "", histogram.sum);
    }

    fn kind(&mut self, kind: &str, name: &str) {
        writeln!(self.text, "# HELP vllm:{name} Simulated.\n# TYPE vllm:{name} {kind}")
            .expect("a String takes all that is written to it");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let model = self.model;
        writeln!(self.text, "vllm:{name}{{engine=\"0\",model_name=\"{model}\"{labels}}} {value}")
            .expect("a String takes all that is written to it");
    }
}
