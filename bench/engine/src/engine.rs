//! One engine: a thread with its own runtime, a listener, and the loop that lets time pass.
//!
//! The thread makes an engine as easy to start from a plain test as from an async one, and makes
//! `kill` honest: the runtime is dropped with all its connections, as when a process dies.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::batch::{Batch, Step};
use crate::http::{self, Desk};
use crate::options::EngineOptions;
use crate::reports::{self, Journal};

/// How far behind its own clock a busy machine may fall before the engine forgets about it.
const LAG_MAX: Duration = Duration::from_millis(50);
/// How long `stop` waits for running requests.
const STOP_AFTER: Duration = Duration::from_secs(5);

/// Starts simulated engines.
#[derive(Debug)]
pub struct Engine;

/// A running engine. Dropping it kills it.
#[derive(Debug)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    end: watch::Sender<End>,
    thread: Option<JoinHandle<()>>,
}

/// What an engine has done since its start, and what it is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// HTTP requests that asked for a generation and were accepted.
    pub requests: u64,
    /// Sequences answered in full.
    pub finished: u64,
    /// Sequences whose client left before that.
    pub cancelled: u64,
    /// Prompt tokens looked up in the cache.
    pub prompt_tokens: u64,
    /// Those of them that were there.
    pub cached_tokens: u64,
    /// Prompt tokens computed.
    pub prefilled_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Blocks the cache had to evict.
    pub evicted_blocks: u64,
    /// Sequences running now.
    pub running: usize,
    /// Sequences waiting now.
    pub waiting: usize,
    /// Blocks of running sequences.
    pub kv_blocks_used: usize,
    /// Blocks with cached content, running or not.
    pub kv_blocks_cached: usize,
    /// Blocks in all.
    pub kv_blocks_total: usize,
    /// Event batches the router accepted.
    pub reports_accepted: u64,
    /// Event batches or heartbeats it did not.
    pub reports_failed: u64,
    /// Syncs with the router that were brought to their end.
    pub syncs: u64,
    /// New epochs since the start: the router asked, or too much was lost, and no sync was possible.
    pub resyncs: u64,
}

/// What all tasks of one engine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: EngineOptions,
    pub(crate) url: String,
    /// The batch and who waits for its tokens. Never held across an await.
    desk: Mutex<Desk>,
    /// There may be something to do for the step loop.
    wake: Notify,
    paused: AtomicBool,
    healthy: AtomicBool,
    /// Open connections.
    pub(crate) connections: AtomicUsize,
    /// Reports are held back.
    pub(crate) is_mute: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    /// Accept no more, let what runs finish.
    WhenIdle,
    Now,
}

impl Engine {
    /// Binds 127.0.0.1 and serves until the handle is stopped, killed or dropped.
    ///
    /// # Errors
    /// The port is taken, or the system gives no thread.
    pub fn start(options: EngineOptions) -> std::io::Result<EngineHandle> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, options.port)))?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let routers = options.reports.as_ref().map_or(0, |report_to| 1 + report_to.also.len());
        // Twice the cache, so that a statement of everything always fits.
        let blocks_max = 2 * options.kv_blocks + 1024;
        let journal = |_| Journal::new(options.block_bytes(), blocks_max);
        let journals = (0..routers).map(journal).collect();
        let shared = Arc::new(Shared {
            desk: Mutex::new(Desk::new(Batch::new(&options, journals))),
            wake: Notify::new(),
            paused: AtomicBool::new(false),
            healthy: AtomicBool::new(true),
            connections: AtomicUsize::new(0),
            is_mute: AtomicBool::new(false),
            options,
            url,
        });
        let (end, ended) = watch::channel(End::NotYet);
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("sim-engine".to_owned())
            .spawn(move || runtime.block_on(live(served, listener, ended)))?;
        Ok(EngineHandle { shared, end, thread: Some(thread) })
    }
}

impl EngineHandle {
    /// Base URL, `http://127.0.0.1:{port}`.
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.shared.url.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0)
    }

    /// Counters and gauges of this moment.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats()
    }

    /// Empties the cache of all that no running request needs.
    pub fn clear_cache(&self) {
        self.shared.desk().batch.clear_cache();
    }

    /// Hangs the engine: connections and `/health` stay, nothing is generated.
    pub fn pause(&self) {
        self.shared.paused.store(true, Ordering::SeqCst);
    }

    /// Ends a `pause`; requests go on where they were.
    pub fn resume(&self) {
        self.shared.paused.store(false, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }

    /// Stops all reports, heartbeats too, as when a sidecar dies. What happens in the cache is
    /// remembered as far as the journal's bound allows.
    pub fn pause_reports(&self) {
        self.shared.is_mute.store(true, Ordering::SeqCst);
    }

    /// Ends a `pause_reports`.
    pub fn resume_reports(&self) {
        self.shared.is_mute.store(false, Ordering::SeqCst);
    }

    /// Sets what `/health` says: 200 or 503. Nothing else changes.
    pub fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, Ordering::SeqCst);
    }

    /// Closes the listener and all connections at once, as a crash does.
    pub fn kill(mut self) {
        self.end(End::Now);
    }

    /// Kills the engine and starts it again on the same port, with a cold cache and a new epoch.
    ///
    /// # Errors
    /// Somebody else took the port, or the system gives no thread.
    pub fn restart(self) -> std::io::Result<Self> {
        let options = EngineOptions { port: self.port(), ..self.shared.options.clone() };
        self.kill();
        Engine::start(options)
    }

    /// Closes the listener, lets running requests finish for up to five seconds, then ends.
    pub fn stop(mut self) {
        self.end(End::WhenIdle);
    }

    fn end(&mut self, end: End) {
        self.end.send_replace(end);
        if let Some(thread) = self.thread.take() {
            // A panic in the engine's thread has already been printed there.
            drop(thread.join());
        }
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.end(End::Now);
    }
}

impl Shared {
    pub(crate) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::SeqCst)
    }

    pub(crate) fn stats(&self) -> EngineStats {
        let desk = self.desk();
        let (totals, gauges) = (desk.batch.totals(), desk.batch.gauges());
        EngineStats {
            requests: desk.requests,
            finished: totals.finished,
            cancelled: totals.cancelled,
            prompt_tokens: totals.prompt_tokens,
            cached_tokens: totals.cached_tokens,
            prefilled_tokens: totals.prefilled_tokens,
            output_tokens: totals.output_tokens,
            evicted_blocks: totals.evicted_blocks,
            running: gauges.running,
            waiting: gauges.waiting,
            kv_blocks_used: gauges.used_blocks,
            kv_blocks_cached: gauges.named_blocks,
            kv_blocks_total: self.options.kv_blocks,
            reports_accepted: desk.reports_accepted,
            reports_failed: desk.reports_failed,
            syncs: desk.syncs,
            resyncs: desk.resyncs,
        }
    }

    /// How long a step takes on the hardware that is simulated.
    fn step_time(&self, step: &Step) -> Duration {
        let options = &self.options;
        let seconds = options.decode_step_ms / 1e3
            + step.prefill_tokens as f64 / options.prefill_tokens_per_s
            + step.decodes as f64 * options.decode_sequence_us / 1e6
            + step.attention_pairs * options.attention_ns / 1e9;
        Duration::try_from_secs_f64(seconds / options.speed).unwrap_or_default()
    }
}

/// Nanoseconds since 1970, for names that must differ between two starts.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

async fn live(shared: Arc<Shared>, listener: TcpListener, mut ended: watch::Receiver<End>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    tokio::spawn(step_loop(Arc::clone(&shared)));
    if let Some(report_to) = shared.options.reports.clone() {
        reports::spawn(&shared, &report_to);
    }
    tokio::select! {
        () = http::accept(&shared, &listener) => {}
        _ = ended.wait_for(|end| *end != End::NotYet) => {}
    }
    drop(listener);
    let is_idle = || {
        let gauges = shared.desk().batch.gauges();
        gauges.running + gauges.waiting == 0
    };
    let drained = async {
        while !is_idle() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // What was generated last is still on its way into the sockets.
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    tokio::select! {
        _ = tokio::time::timeout(STOP_AFTER, drained) => {}
        _ = ended.wait_for(|end| *end == End::Now) => {}
    }
}

async fn step_loop(shared: Arc<Shared>) {
    let mut step_end = Instant::now();
    loop {
        let step = if shared.paused.load(Ordering::SeqCst) {
            None
        } else {
            shared.desk().batch.begin_step()
        };
        let Some(step) = step else {
            shared.wake.notified().await;
            step_end = Instant::now();
            continue;
        };
        // Counting from the planned end of the step before, a late wake-up is made good.
        let earliest = Instant::now().checked_sub(LAG_MAX).unwrap_or(step_end);
        step_end = step_end.max(earliest) + shared.step_time(&step);
        if step_end > Instant::now() {
            tokio::time::sleep_until(step_end).await;
        } else {
            tokio::task::yield_now().await;
        }
        while shared.paused.load(Ordering::SeqCst) {
            shared.wake.notified().await;
            step_end = Instant::now();
        }
        shared.desk().end_step(&step);
    }
}
