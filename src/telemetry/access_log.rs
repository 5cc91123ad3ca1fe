//! The access log: one line a request on stdout, text or JSON, written off the request path.
//!
//! Lines go through a bounded queue; when stdout does not keep up they are dropped and counted,
//! as a slow disk must not slow down streams. Never a word of a prompt.

use std::{
    io::Write,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::metrics;

/// Lines that may wait to be written.
const LINES_MAX: usize = 65_536;

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

struct Sink {
    writer: NonBlocking,
    dropped: ErrorCounter,
    json: bool,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Starts the access log; the guard flushes it when dropped.
pub fn start(json: bool) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .finish(std::io::stdout());
    let dropped = writer.error_counter();
    let _ = SINK.set(Sink { writer, dropped, json });
    guard
}

/// Whether anybody listens.
pub fn is_on() -> bool {
    SINK.get().is_some()
}

/// Writes one line.
pub fn write(line: &Line<'_>) {
    let Some(sink) = SINK.get() else { return };
    let mut bytes = Vec::with_capacity(320);
    let formatted = if sink.json {
        serde_json::to_writer(&mut bytes, line).is_ok()
    } else {
        text(line, &mut bytes).is_ok()
    };
    if formatted {
        bytes.push(b'\n');
        let _ = sink.writer.clone().write_all(&bytes);
        let dropped = sink.dropped.dropped_lines() as u64;
        let known = metrics::ACCESS_LOG_DROPPED.get();
        metrics::ACCESS_LOG_DROPPED.inc_by(dropped.saturating_sub(known));
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
