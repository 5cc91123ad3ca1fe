//! `warmroute-bench replay`: a trace over real sockets, under several policies in turn.
//!
//! Every run has cold engines and a router of its own, and plays the same requests; runs of a seed
//! stand beside each other, so that what changes on the machine meanwhile meets all policies. What
//! was computed is taken from the engines, what was felt from the clients, what was believed from
//! the router.

pub mod bed;
pub mod client;
pub mod options;
pub mod play;
pub mod pooled;
pub mod progress;
pub mod prompts;
pub mod results;
pub mod row;
pub mod summary;
pub mod table;
pub mod target;
pub mod watch;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use self::{
    bed::Bed,
    client::Client,
    options::{Point, ReplayOptions},
    play::{Mode, Play},
    pooled::{Kept, pool},
    progress::Progress,
    prompts::{Writing, default_block_bytes},
    results::{FORMAT, Machine, Results, TraceFacts, commit},
    row::Row,
    summary::{Beside, Run},
    target::{Server, Target},
    watch::{Watched, thinned},
};
use crate::trace::Trace;

/// Whatever goes wrong outside a measurement.
pub type Any = Box<dyn std::error::Error + Send + Sync>;

/// The policies of a router of our own, unless told otherwise.
const POLICIES: [&str; 3] = ["round-robin", "least-loaded", "prefix-aware"];

/// Plays all of it; `say` hears what a person should know.
///
/// # Errors
/// An option cannot be, or something does not start. What goes wrong with requests is in the results.
pub async fn replay(options: &ReplayOptions, say: &mut dyn FnMut(&str)) -> Result<Results, Any> {
    options.check()?;
    let targets = target::all(options, &POLICIES)?;
    let program = match &options.target {
        Some(_) => None,
        None => Some(bed::program(options.program.as_ref(), say)?),
    };
    let read = options.read()?;
    std::fs::create_dir_all(&options.out)?;
    let points = options.points()?;
    let mut runs = Vec::new();
    for (point, options) in &points {
        for seed in options.seed..options.seed + options.seeds {
            let trace = Arc::new(options.trace(read.as_ref(), seed)?);
            if program.is_some() {
                check_fit(options, &trace)?;
            }
            for target in &targets {
                runs.push((point.clone(), options, seed, trace.clone(), target));
            }
        }
    }
    let facts = runs.first().map(|(_, _, _, trace, _)| TraceFacts::of(trace)).ok_or("no run")?;
    if facts.name.is_empty() {
        return Err("the trace has no name".into());
    }
    let requests = runs.iter().map(|(_, _, _, trace, _)| trace.requests.len()).sum();
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut progress = Progress::start(requests, runs.len());
    let mut kept = Vec::new();
    for (point, options, seed, trace, target) in runs {
        let name = title(point.as_ref(), seed, &target.name, options.seeds);
        progress.next(&name);
        let setup = Setup { options, seed, trace, target, program: program.as_ref(), began };
        let (rows, beside) =
            setup.run(&progress).await.map_err(|error| format!("{name}: {error}"))?;
        let run = Run::of(&target.name, seed, point, &rows, beside);
        progress.line(&table::line(&run));
        kept.push(Kept { run, rows });
    }
    progress.end();
    let names: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
    let pooled = points.iter().flat_map(|(point, _)| pool(&names, point.as_ref(), &kept)).collect();
    let runs = kept.into_iter().map(|Kept { run, rows }| {
        let rows = options.rows.then_some(rows);
        Run { rows, ..run }
    });
    Ok(Results {
        format: FORMAT.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: commit(),
        began_unix_s: began.as_secs(),
        machine: Machine::here(),
        label: options.label.clone(),
        is_release: program.map(|path| !path.to_string_lossy().contains("debug")),
        settings: settings(options)?,
        trace: facts,
        runs: runs.collect(),
        pooled,
    })
}

/// All options, with what they come to where they were not given.
fn settings(options: &ReplayOptions) -> Result<serde_json::Value, Any> {
    let mut settings = serde_json::to_value(options)?;
    settings["mode"] = serde_json::to_value(options.mode())?;
    if options.mode() == Mode::Closed {
        settings["sessions"] = options.sessions().into();
    }
    Ok(settings)
}

fn title(point: Option<&Point>, seed: u64, target: &str, seeds: u64) -> String {
    let point = point.map_or(String::new(), |p| format!("{}={} ", p.name, p.value));
    let seed = if seeds > 1 { format!(" seed {seed}") } else { String::new() };
    format!("{point}{target}{seed}")
}

/// What a simulated engine can never run it would refuse, request after request.
fn check_fit(options: &ReplayOptions, trace: &Trace) -> Result<(), Any> {
    let writing = writing(options, trace, options.seed, String::new(), None);
    let longest = trace.requests.iter().map(|request| writing.engine_tokens(request)).max();
    let room = options.fleet.kv_blocks * bed::KV_BLOCK_TOKENS;
    match longest {
        Some(longest) if longest > room => Err(format!(
            "--kv-blocks {}: the longest request takes {longest} tokens with its answer, an engine's \
             cache holds {room}; raise it to {} or more (or lower --block-bytes)",
            options.fleet.kv_blocks,
            longest.div_ceil(bed::KV_BLOCK_TOKENS),
        )
        .into()),
        _ => Ok(()),
    }
}

fn writing(
    options: &ReplayOptions,
    trace: &Trace,
    seed: u64,
    model: String,
    salt: Option<String>,
) -> Writing {
    Writing {
        model,
        streams: !options.no_stream,
        ignores_eos: options.ignore_eos,
        answer_scale: options.answer_scale,
        block_bytes: options.block_bytes.unwrap_or_else(|| default_block_bytes(trace)),
        seed,
        salt,
    }
}

/// All that one run needs.
struct Setup<'a> {
    options: &'a ReplayOptions,
    seed: u64,
    trace: Arc<Trace>,
    target: &'a Target,
    program: Option<&'a PathBuf>,
    /// When the replay began, which makes its salts its own.
    began: Duration,
}

impl Setup<'_> {
    async fn run(self, progress: &Progress) -> Result<(Vec<Row>, Beside), Any> {
        let Self { options, seed, target, .. } = self;
        target::reset(&options.resets).await?;
        let bed = match (&target.server, self.program) {
            (Server::Bed, Some(program)) => {
                let (fleet, router) = (&options.fleet, &options.router);
                Some(Bed::start(fleet, router, &target.name, program, &options.out).await?)
            }
            (Server::Bed, None) => return Err("there is no router to start".into()),
            (Server::Url { .. }, _) => None,
        };
        let (url, headers, metrics_url) = match (&target.server, &bed) {
            (Server::Url { url, policy, metrics_url }, _) => {
                let header = |policy: &String| ("x-router-policy".to_owned(), policy.clone());
                (url.clone(), policy.iter().map(header).collect(), metrics_url.clone())
            }
            (Server::Bed, Some(bed)) => (bed.url(), Vec::new(), Some(bed.metrics_url())),
            (Server::Bed, None) => return Err("there is no router".into()),
        };
        let model = match (&options.model, &bed) {
            (Some(model), _) => model.clone(),
            (None, Some(_)) => "sim-model".to_owned(),
            (None, None) => target::first_model(&url).await?,
        };
        let salt = format!("{}-{}-{seed}", self.began.as_nanos(), target.name);
        let salt = options.salted.then_some(salt);
        let watched = Watched { metrics_url, bed: bed.as_ref() };
        let first = watched.first().await;
        let since = Instant::now();
        let play = Play {
            writing: writing(options, &self.trace, seed, model, salt),
            trace: self.trace,
            client: Client::new(&url, headers, Duration::from_secs_f64(options.request_timeout_s))?,
            mode: options.mode(),
            time_scale: options.time_scale,
            sessions: options.sessions(),
            inflight_max: options.inflight_max,
            since,
        };
        let mut looks = Vec::new();
        let rows = tokio::select! {
            rows = play.run(|_| progress.step()) => rows,
            // It looks for ever.
            () = watched.look(first.as_deref(), since, &mut looks) => Vec::new(),
        };
        let router = watched.last(first.as_deref()).await;
        let engines = bed.as_ref().map(Bed::counted).unwrap_or_default();
        Ok((rows, Beside { engines, router, looks: thinned(looks) }))
    }
}
