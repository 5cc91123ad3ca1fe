//! What `warmroute-bench replay` can be told.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    Any,
    bed::{Fleet, RouterSettings},
    play::Mode,
};
use crate::trace::{
    Trace, arrivals, file,
    synth::{Size, Workload, draw},
};

/// When stamps are spread over their tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// If fewer than half of the stamps are distinct
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

/// Where requests come from.
#[derive(Debug, Clone, Serialize, Deserialize, Args)]
pub struct Source {
    /// Trace file, .jsonl or .jsonl.zst; default: a small bundled one
    #[arg(long, conflicts_with = "workload")]
    pub trace: Option<PathBuf>,
    /// A workload drawn from the seed instead
    #[arg(long)]
    pub workload: Option<Workload>,
    /// Conversations of a workload (requests where it has no turns); default: 48 or four times
    /// `--sessions` (480 requests)
    #[arg(long)]
    pub conversations: Option<usize>,
    /// Requests of a conversation of a workload
    #[arg(long, default_value_t = 6)]
    pub turns: u32,
    /// Bytes of the common prompt of a workload
    #[arg(long, default_value_t = 6_144)]
    pub system_bytes: usize,
    /// Requests a second of a workload in the open loop
    #[arg(long, default_value_t = 8.0)]
    pub rate: f64,
    /// Only the first so many requests
    #[arg(long)]
    pub limit: Option<usize>,
    /// Only this share of the sessions, drawn by the seed
    #[arg(long)]
    pub sample: Option<f64>,
    /// Spread arrivals that are stamped in ticks over their tick
    #[arg(long, default_value = "auto")]
    pub spread: Spread,
}

/// Plays a trace over real sockets, under several policies in turn.
#[derive(Debug, Clone, Serialize, Deserialize, Args)]
pub struct ReplayOptions {
    #[command(flatten)]
    #[serde(flatten)]
    #[expect(missing_docs, reason = "it would become the help of all its options")]
    pub source: Source,
    /// Who sets the pace; default: open, or closed where `--sessions` is given or swept
    #[arg(long)]
    pub mode: Option<Mode>,
    /// Multiplies all times of the trace: 0.5 plays it twice as fast
    #[arg(long, default_value_t = 1.0)]
    pub time_scale: f64,
    /// Sessions open at once in the closed loop [default: 16]
    #[arg(long)]
    pub sessions: Option<usize>,
    /// Requests in flight at once in the open loop; one more is an error
    #[arg(long, default_value_t = 1_024)]
    pub inflight_max: usize,
    /// Ask for whole answers instead of streams; TTFT is then the time of the whole answer
    #[arg(long)]
    pub no_stream: bool,
    /// Ask for answers of exactly the length that the trace gives (`ignore_eos`)
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub ignore_eos: bool,
    /// Multiplies the length of answers
    #[arg(long, default_value_t = 1.0)]
    pub answer_scale: f64,
    /// Bytes of a block of a trace without text [default: 4 a token, at most 256]
    #[arg(long)]
    pub block_bytes: Option<usize>,
    /// A request not answered in full within so many seconds has failed
    #[arg(long, default_value_t = 300.0)]
    pub request_timeout_s: f64,
    /// Policies, played in turn; the first is what others are compared with [default: round-robin,
    /// least-loaded,prefix-aware]
    #[arg(long, value_delimiter = ',')]
    pub policies: Vec<String>,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seeds, one after the other: all policies with the first, then all with the second
    #[arg(long, default_value_t = 1)]
    pub seeds: u64,
    /// Play once for each value: sessions, time-scale, rate, turns, system-bytes, conversations,
    /// engines, kv-blocks, prefill-tokens-per-s, slow-worker or answer-scale
    #[arg(long, value_name = "NAME=V,V...")]
    pub sweep: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    #[expect(missing_docs, reason = "it would become the help of all its options")]
    pub fleet: Fleet,
    #[command(flatten)]
    #[serde(flatten)]
    #[expect(missing_docs, reason = "it would become the help of all its options")]
    pub router: RouterSettings,
    /// The router; default: the one built beside this program
    #[arg(long = "router", value_name = "PATH")]
    pub program: Option<PathBuf>,
    /// Send here (http://host:port) instead of to a router and engines of our own. With
    /// `--policies` each is asked for by X-Router-Policy (`policy_override: true`), else there is one
    /// run
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,
    /// Metrics listener of the warmroute at `--target`
    #[arg(long, value_name = "URL")]
    pub metrics_url: Option<String>,
    /// A further server to compare with, such as another router; repeatable
    #[arg(long = "baseline-url", value_name = "NAME=URL")]
    pub baselines: Vec<String>,
    /// Engines whose caches are emptied (POST /reset_prefix_cache) before each run; repeatable
    #[arg(long = "reset-url", value_name = "URL")]
    pub resets: Vec<String>,
    /// Give every run a `cache_salt` of its own, so that it meets caches without its prompts
    #[arg(long)]
    pub salted: bool,
    /// The model asked for [default: sim-model, or the first that the target names]
    #[arg(long)]
    pub model: Option<String>,
    /// What the report calls this
    #[arg(long)]
    pub label: Option<String>,
    /// Keep a row for each request in the results
    #[arg(long)]
    pub rows: bool,
    /// Folder for results.json, report.html and logs
    #[arg(long, default_value = "target/replay")]
    pub out: PathBuf,
}

impl ReplayOptions {
    /// Who sets the pace.
    pub fn mode(&self) -> Mode {
        let swept = self.sweep.as_deref().is_some_and(|sweep| sweep.starts_with("sessions="));
        let closed = self.sessions.is_some() || swept;
        self.mode.unwrap_or(if closed { Mode::Closed } else { Mode::Open })
    }

    /// Sessions open at once in the closed loop.
    pub fn sessions(&self) -> usize {
        self.sessions.unwrap_or(16)
    }

    /// What the values are checked for before anything starts.
    ///
    /// # Errors
    /// Names option, value, problem and remedy.
    pub fn check(&self) -> Result<(), Any> {
        let fleet = &self.fleet;
        let positive = [
            ("--time-scale", self.time_scale),
            ("--answer-scale", self.answer_scale),
            ("--request-timeout-s", self.request_timeout_s),
            ("--rate", self.source.rate),
            ("--prefill-tokens-per-s", fleet.prefill_tokens_per_s),
            ("--slow-worker", fleet.slow_worker),
        ];
        if let Some((name, value)) = positive.iter().find(|(_, value)| !is_positive(*value)) {
            return Err(format!("{name} {value}: give a number above 0, at most 1e9").into());
        }
        let not_negative =
            [("--decode-step-ms", fleet.decode_step_ms), ("--attention-ns", fleet.attention_ns)];
        if let Some((name, value)) = not_negative.iter().find(|(_, v)| !(0.0..=1e9).contains(v)) {
            return Err(format!("{name} {value}: give 0 or more").into());
        }
        if self.source.sample.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            return Err("--sample: give a share above 0 and at most 1".into());
        }
        let counts = [
            ("--engines", fleet.engines, 256),
            ("--kv-blocks", fleet.kv_blocks, 1 << 24),
            ("--sessions", self.sessions(), 100_000),
            ("--inflight-max", self.inflight_max, 100_000),
            ("--conversations", self.source.conversations.unwrap_or(1), 10_000_000),
            ("--turns", self.source.turns as usize, 10_000),
            ("--limit", self.source.limit.unwrap_or(1), usize::MAX),
            ("--seeds", self.seeds as usize, 1_000),
            ("--block-bytes", self.block_bytes.unwrap_or(16), 1 << 20),
        ];
        if let Some((name, value, most)) = counts.iter().find(|(_, v, most)| *v == 0 || v > most) {
            return Err(format!("{name} {value}: give 1 to {most}").into());
        }
        if self.metrics_url.is_some() && self.target.is_none() {
            return Err("--metrics-url without --target: a router of our own has its own".into());
        }
        if self.mode() == Mode::Open && self.sessions.is_some() {
            return Err(
                "--sessions with --mode open: the trace says when requests come; use --mode \
                        closed or leave it out"
                    .into(),
            );
        }
        Ok(())
    }

    /// The values of the swept option with these options for each; one without a value if nothing is
    /// swept.
    ///
    /// # Errors
    /// The name or a value is none.
    pub fn points(&self) -> Result<Vec<(Option<Point>, Self)>, Any> {
        let Some(sweep) = &self.sweep else { return Ok(vec![(None, self.clone())]) };
        let (name, values) = sweep
            .split_once('=')
            .ok_or_else(|| format!("--sweep {sweep}: give NAME=VALUE,VALUE..."))?;
        let point = |text: &str| {
            let value: f64 =
                text.trim().parse().map_err(|_| format!("--sweep {sweep}: {text} is no number"))?;
            let mut options = self.clone();
            options.mode = Some(self.mode());
            options.set(name, value)?;
            options.check()?;
            Ok((Some(Point { name: name.to_owned(), value }), options))
        };
        values.split(',').map(point).collect()
    }

    fn set(&mut self, name: &str, value: f64) -> Result<(), String> {
        if !is_positive(value) {
            return Err(format!("--sweep {name}: {value} is no number above 0"));
        }
        let count = value as usize;
        match name {
            "sessions" => self.sessions = Some(count),
            "time-scale" => self.time_scale = value,
            "rate" => self.source.rate = value,
            "turns" => self.source.turns = count as u32,
            "system-bytes" => self.source.system_bytes = count,
            "conversations" => self.source.conversations = Some(count),
            "engines" => self.fleet.engines = count,
            "kv-blocks" => self.fleet.kv_blocks = count,
            "prefill-tokens-per-s" => self.fleet.prefill_tokens_per_s = value,
            "slow-worker" => self.fleet.slow_worker = value,
            "answer-scale" => self.answer_scale = value,
            _ => return Err(format!("--sweep {name}: not one of those that --help names")),
        }
        Ok(())
    }

    /// The trace file, or the bundled one; `None` where every seed draws its own.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> Result<Option<Trace>, Any> {
        Ok(match (&self.source.trace, self.source.workload) {
            (Some(path), _) => Some(file::read(path)?),
            (None, Some(_)) => None,
            (None, None) => Some(Trace::bundled()),
        })
    }

    /// The requests of a seed, out of what was read.
    ///
    /// # Errors
    /// Nothing is left of it.
    pub fn trace(&self, read: Option<&Trace>, seed: u64) -> Result<Trace, Any> {
        let source = &self.source;
        let mut trace = match (read, source.workload) {
            (Some(trace), _) => trace.clone(),
            (None, Some(workload)) => draw(workload, &self.size(workload), seed),
            (None, None) => return Err("there is neither a trace nor a workload".into()),
        };
        if let Some(share) = source.sample {
            trace = trace.sampled(share, seed);
        }
        if let Some(limit) = source.limit {
            trace = trace.limited(limit);
        }
        let spreads = match source.spread {
            Spread::Auto => arrivals::is_ticked(&trace.requests),
            Spread::On => true,
            Spread::Off => false,
        };
        if spreads {
            arrivals::spread(&mut trace.requests, seed);
        }
        if trace.requests.is_empty() {
            return Err("no request is left: raise --sample".into());
        }
        Ok(trace)
    }

    fn size(&self, workload: Workload) -> Size {
        let has_turns = matches!(workload, Workload::Chat | Workload::Tools);
        let usual = match self.mode() {
            _ if !has_turns => 480,
            Mode::Closed => 48.max(4 * self.sessions()),
            Mode::Open => 48,
        };
        Size {
            conversations: self.source.conversations.unwrap_or(usual),
            turns: self.source.turns,
            system_bytes: self.source.system_bytes,
            rate: self.source.rate,
        }
    }
}

fn is_positive(value: f64) -> bool {
    value > 0.0 && value <= 1e9
}

/// A value of what is swept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The option.
    pub name: String,
    /// Its value.
    pub value: f64,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        options: ReplayOptions,
    }

    fn options(arguments: &[&str]) -> ReplayOptions {
        Flags::parse_from([&["replay"], arguments].concat()).options
    }

    #[test]
    fn sessions_close_the_loop() {
        assert_eq!(options(&[]).mode(), Mode::Open);
        assert_eq!(options(&["--sessions", "3"]).mode(), Mode::Closed);
        assert_eq!(options(&["--sweep", "sessions=1,2"]).mode(), Mode::Closed);
        assert_eq!(options(&["--sweep", "rate=1,2"]).mode(), Mode::Open);
        assert_eq!(options(&["--sessions", "3", "--mode", "closed"]).sessions(), 3);
    }

    #[test]
    fn every_name_that_help_tells_can_be_swept() {
        let names = [
            "sessions",
            "time-scale",
            "rate",
            "turns",
            "system-bytes",
            "conversations",
            "engines",
            "kv-blocks",
            "prefill-tokens-per-s",
            "slow-worker",
            "answer-scale",
        ];
        for name in names {
            let swept = options(&["--sweep", &format!("{name}=2,3")]);
            let points = swept.points().expect(name);
            let values = points.iter().map(|(point, _)| point.as_ref().map(|p| p.value));
            assert_eq!(values.collect::<Vec<_>>(), [Some(2.0), Some(3.0)]);
            let set = serde_json::to_value(&points[1].1).expect("JSON");
            assert_eq!(set[name.replace('-', "_")].as_f64(), Some(3.0), "{name}");
        }
        assert!(options(&["--sweep", "sessions"]).points().is_err());
        assert!(options(&["--sweep", "engines=0"]).points().is_err());
        assert!(options(&["--sweep", "engines=1000"]).points().is_err());
    }

    #[test]
    fn a_ticked_trace_is_spread_unless_told_otherwise() {
        let read = Trace::bundled();
        let mut ticked = read.clone();
        for request in &mut ticked.requests {
            request.t = (request.t / 3.0).floor() * 3.0;
        }
        let distinct = |trace: &Trace| {
            1 + trace.requests.windows(2).filter(|pair| pair[0].t < pair[1].t).count()
        };
        let spread = options(&[]).trace(Some(&ticked), 1).expect("a trace");
        assert!(distinct(&spread) > 200, "{}", distinct(&spread));
        let kept = options(&["--spread", "off"]).trace(Some(&ticked), 1).expect("a trace");
        assert_eq!(kept, ticked);
        assert_eq!(options(&[]).trace(Some(&read), 1).expect("a trace"), read);
        let few = options(&["--limit", "7"]).trace(Some(&read), 1).expect("a trace");
        assert_eq!(few.requests.len(), 7);
    }
}
