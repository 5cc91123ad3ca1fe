//! The access log: one line a request on stdout, text or JSON, written off the request path.
//!
//! Lines are put into a bounded buffer that one thread writes out every few milliseconds. When stdout
//! does not keep up lines are dropped and counted, as a slow disk must not slow down streams. A queue
//! of lines to a waiting thread (`tracing-appender`) came first: it wakes that thread for every
//! request (ADR 0003). Never a word of a prompt.

use std::{
    io::Write,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::metrics;

/// Bytes of lines that may wait to be written.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// How long lines are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(20);

/// What is said of one request.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// Unix time at the end, seconds.
    pub ts: f64,
    /// Request id.
    pub id: &'a str,
    /// HTTP method.
    pub method: &'a str,
    /// Path without query.
    pub path: &'a str,
    /// Model asked for.
    pub model: &'a str,
    /// Status sent; 499 when the client left first.
    pub status: u16,
    /// Worker that answered, or `none`.
    pub worker: &'a str,
    /// Why it was picked.
    pub reason: &'a str,
    /// Matched blocks.
    pub matched: usize,
    /// Blocks of the prompt.
    pub blocks: usize,
    /// Prompt tokens that worker was believed to hold when it was picked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen_tokens: Option<u64>,
    /// Those that the eligible worker with the longest match was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_tokens: Option<u64>,
    /// Worker that the shadow policy would have picked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<&'a str>,
    /// Prompt tokens we believed cached; only where the answer says how many were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_tokens: Option<u64>,
    /// Prompt tokens the answer says were cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
    /// Attempts made.
    pub tries: usize,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Time to the first content of a stream, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Whole duration, milliseconds.
    pub duration_ms: f64,
    /// Why it failed, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Default)]
struct Sink {
    waiting: Mutex<Vec<u8>>,
    /// Told when `waiting` is no longer empty.
    arrived: Condvar,
    /// Held while writing, so that a flush at the end waits for the thread.
    writing: Mutex<()>,
    json: bool,
}

static SINK: OnceLock<Sink> = OnceLock::new();
/// Whether lines are wanted.
static ON: AtomicBool = AtomicBool::new(false);

/// Starts the access log, or takes it up again.
///
/// # Errors
/// When its thread cannot be started.
pub fn start(json: bool) -> std::io::Result<()> {
    ON.store(true, Relaxed);
    if SINK.set(Sink { json, ..Sink::default() }).is_err() {
        return Ok(());
    }
    std::thread::Builder::new().name("access-log".to_owned()).spawn(write_out).map(drop)
}

/// Writes no more lines, but for those that wait.
pub fn stop() {
    ON.store(false, Relaxed);
}

/// Whether lines are wanted.
pub fn is_on() -> bool {
    ON.load(Relaxed)
}

/// Writes what waits, before the process ends.
pub fn flush() {
    if let Some(sink) = SINK.get() {
        sink.write_waiting(&mut Vec::new());
    }
}

fn write_out() {
    let Some(sink) = SINK.get() else { return };
    let mut lines = Vec::new();
    loop {
        let mut waiting = sink.waiting.lock();
        while waiting.is_empty() {
            sink.arrived.wait(&mut waiting);
        }
        drop(waiting);
        std::thread::sleep(GATHER);
        sink.write_waiting(&mut lines);
    }
}

impl Sink {
    fn write_waiting(&self, lines: &mut Vec<u8>) {
        let _writing = self.writing.lock();
        std::mem::swap(&mut *self.waiting.lock(), lines);
        let mut stdout = std::io::stdout().lock();
        // Nobody is left to tell when stdout is gone.
        let _ = stdout.write_all(lines).and_then(|()| stdout.flush());
        lines.clear();
    }
}

/// Writes one line.
pub fn write(line: &Line<'_>) {
    let Some(sink) = SINK.get() else { return };
    let mut waiting = sink.waiting.lock();
    let start = waiting.len();
    if start > WAITING_BYTES_MAX {
        metrics::ACCESS_LOG_DROPPED.inc();
        return;
    }
    let written = if sink.json {
        serde_json::to_writer(&mut *waiting, line).is_ok()
    } else {
        text(line, &mut *waiting).is_ok()
    };
    if written {
        waiting.push(b'\n');
    } else {
        waiting.truncate(start);
    }
    if start == 0 {
        sink.arrived.notify_one();
    }
}

fn text(line: &Line<'_>, out: &mut impl Write) -> std::io::Result<()> {
    write!(
        out,
        "{:.3} {} {} {} {} worker={} reason={} matched={}/{} tries={} model={:?} in={} out={} \
         duration_ms={:.2}",
        line.ts,
        line.id,
        line.status,
        line.method,
        line.path,
        line.worker,
        line.reason,
        line.matched,
        line.blocks,
        line.tries,
        line.model,
        line.bytes_in,
        line.bytes_out,
        line.duration_ms,
    )?;
    if let (Some(chosen), Some(best)) = (line.chosen_tokens, line.best_tokens) {
        write!(out, " chosen_tokens={chosen} best_tokens={best}")?;
    }
    if let Some(shadow) = line.shadow {
        write!(out, " shadow={shadow}")?;
    }
    if let (Some(predicted), Some(cached)) = (line.predicted_tokens, line.cached_tokens) {
        write!(out, " predicted_tokens={predicted} cached_tokens={cached}")?;
    }
    if let Some(ttft) = line.ttft_ms {
        write!(out, " ttft_ms={ttft:.2}")?;
    }
    if let Some(error) = &line.error {
        write!(out, " error={error:?}")?;
    }
    Ok(())
}

/// Unix time, seconds.
pub fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
