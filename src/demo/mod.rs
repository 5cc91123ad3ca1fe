//! `warmroute demo`: three policies on the same chats, measured on this machine in a minute.
//!
//! The engines are simulated and the demo says so first of all; the router is this very binary,
//! as a child process with a configuration file, and every byte goes through real sockets. Each
//! policy starts with cold engines and a fresh router, so that no run profits from the one before.

mod router;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use warmroute_engine::load::{self, ClientError, LoadOptions, LoadResult, Trace};
use warmroute_engine::{Engine, EngineHandle, EngineOptions, ReportTo};

use router::{Ports, Router, WorkDir};
use table::Row;

/// In this order; the first is what the others are compared with.
const POLICIES: [&str; 3] = ["round-robin", "least-loaded", "prefix-aware"];
const WORKERS: usize = 4;

/// What can be set on the demo.
#[derive(Debug, Clone, Default)]
pub struct DemoOptions {
    /// Leave the engines and the router of the last policy running until Ctrl-C.
    pub stay: bool,
    /// The router to run; this very program when absent.
    pub router: Option<PathBuf>,
}

/// Why there was no demo, in one line.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The router ended when it should have run.
    #[error("the router ended at once ({status}): {said}")]
    RouterEnded {
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        said: String,
    },
    /// The router runs but takes no traffic.
    #[error("the router was not ready after {seconds} s: {said}")]
    RouterNotReady {
        /// How long it had.
        seconds: u64,
        /// The end of what it printed.
        said: String,
    },
    /// The load could not be played.
    #[error("the load could not be played: {0}")]
    Load(#[from] ClientError),
    /// Somebody pressed Ctrl-C, or sent SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl DemoError {
    /// An error of the operating system, with what was tried.
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Runs the demo; blocks until it is over.
///
/// # Errors
/// Something did not start, or somebody interrupted it; requests that fail are results.
pub fn run(options: DemoOptions) -> Result<(), DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DemoError::system("cannot start an async runtime"))?;
    runtime.block_on(async {
        // Dropping the demo takes its child, its engines and its files with it.
        let running = tokio::select! {
            // First, so that signals are caught before there is anything to leave behind.
            biased;
            end = interrupted() => return end.and(Err(DemoError::Interrupted)),
            outcome = demonstrate(options.stay, options.router) => outcome?,
        };
        if options.stay {
            interrupted().await?;
        }
        running.router.stop()
    })
}

/// What the last policy leaves running. The router goes first, then its workers, then the files.
struct Running {
    router: Router,
    _engines: Vec<EngineHandle>,
    _dir: WorkDir,
}

async fn demonstrate(stay: bool, router: Option<PathBuf>) -> Result<Running, DemoError> {
    let trace = Trace::demo_chat();
    let dir = WorkDir::create()?;
    let program = match router {
        Some(program) => program,
        None => std::env::current_exe().map_err(DemoError::system("cannot find this program"))?,
    };
    print(&table::introduction(&trace, &EngineOptions::demo(), WORKERS))?;
    let mut rows: Vec<Row> = Vec::new();
    let mut last = None;
    for (index, policy) in POLICIES.into_iter().enumerate() {
        if let Some((router, _engines, _)) = last.take() {
            Router::stop(router)?;
        }
        let ports = Ports::free()?;
        let engines = start_engines(ports)?;
        let router = Router::start(&program, &dir, ports, policy, &engines).await?;
        let result = play(&trace, ports, policy, (index + 1, POLICIES.len())).await?;
        rows.push(Row::new(policy, result.summary(), hit_rate(&engines)));
        if let Some(error) = result.records.iter().find_map(|record| record.error.as_ref()) {
            print(&format!("{policy}: a request failed: {error}\n"))?;
        }
        last = Some((router, engines, ports));
    }
    print(&table::render(&rows))?;
    let (router, engines, ports) = last.expect("there is at least one policy");
    let closing = if stay { table::where_to_look(ports) } else { table::closing(ports) };
    print(&closing)?;
    Ok(Running { router, _engines: engines, _dir: dir })
}

/// Cold engines, the first `sim0`.
fn start_engines(ports: Ports) -> Result<Vec<EngineHandle>, DemoError> {
    let start = |index| {
        let report_to = ReportTo::new(format!("http://{}", ports.reports()), worker_id(index));
        Engine::start(EngineOptions { reports: Some(report_to), ..EngineOptions::demo() })
    };
    let engines: io::Result<Vec<_>> = (0..WORKERS).map(start).collect();
    engines.map_err(DemoError::system("cannot start a simulated engine"))
}

fn worker_id(index: usize) -> String {
    format!("sim{index}")
}

async fn play(
    trace: &Trace,
    ports: Ports,
    policy: &'static str,
    (run, runs): (usize, usize),
) -> Result<LoadResult, DemoError> {
    let bar = ProgressBar::new(trace.request_count() as u64);
    let style = ProgressStyle::with_template("{msg:<20} {bar:40} {pos}/{len} requests {elapsed}");
    bar.set_style(style.expect("a constant template"));
    let message = format!("{run}/{runs} {policy}");
    if bar.is_hidden() {
        // No terminal: a line a run says that it is alive.
        let _ = writeln!(io::stderr(), "{message}");
    }
    bar.set_message(message);
    let options = LoadOptions::new(format!("http://{}", ports.listen()));
    let result = load::run(trace, &options, |_| bar.inc(1)).await;
    bar.finish_and_clear();
    Ok(result?)
}

/// By the engines' own counters: what they did, not what anybody believes of it.
fn hit_rate(engines: &[EngineHandle]) -> f64 {
    let stats: Vec<_> = engines.iter().map(EngineHandle::stats).collect();
    let prompt_tokens: u64 = stats.iter().map(|stats| stats.prompt_tokens).sum();
    let cached_tokens: u64 = stats.iter().map(|stats| stats.cached_tokens).sum();
    cached_tokens as f64 / prompt_tokens.max(1) as f64
}

/// Ends when somebody wants the demo to end.
async fn interrupted() -> Result<(), DemoError> {
    let failed = "cannot wait for signals";
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::system(failed))?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed.map_err(DemoError::system(failed)),
        _ = terminate.recv() => Ok(()),
    }
}

fn print(text: &str) -> Result<(), DemoError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(DemoError::system("cannot print"))
}
