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
    if !sink.json {
        text(line, &mut waiting);
    } else if serde_json::to_writer(&mut *waiting, line).is_err() {
        waiting.truncate(start);
        return;
    }
    waiting.push(b'\n');
    if start == 0 {
        sink.arrived.notify_one();
    }
}

/// As text, put together by hand: formatting takes four times as long.
fn text(line: &Line<'_>, out: &mut Vec<u8>) {
    let mut out = Text(out);
    out.fixed::<3>(line.ts);
    out.plain(" ").plain(line.id).plain(" ").number(u64::from(line.status));
    out.plain(" ").plain(line.method).plain(" ").plain(line.path);
    out.plain(" worker=").plain(line.worker).plain(" reason=").plain(line.reason);
    out.plain(" matched=").number(line.matched as u64).plain("/").number(line.blocks as u64);
    out.plain(" tries=").number(line.tries as u64).plain(" model=").quoted(line.model);
    out.plain(" in=").number(line.bytes_in).plain(" out=").number(line.bytes_out);
    out.plain(" duration_ms=").fixed::<2>(line.duration_ms);
    if let (Some(chosen), Some(best)) = (line.chosen_tokens, line.best_tokens) {
        out.plain(" chosen_tokens=").number(chosen).plain(" best_tokens=").number(best);
    }
    if let Some(shadow) = line.shadow {
        out.plain(" shadow=").plain(shadow);
    }
    if let (Some(predicted), Some(cached)) = (line.predicted_tokens, line.cached_tokens) {
        out.plain(" predicted_tokens=").number(predicted).plain(" cached_tokens=").number(cached);
    }
    if let Some(ttft) = line.ttft_ms {
        out.plain(" ttft_ms=").fixed::<2>(ttft);
    }
    if let Some(error) = &line.error {
        out.plain(" error=").quoted(error);
    }
}

/// Writes the parts of a line.
struct Text<'a>(&'a mut Vec<u8>);

impl Text<'_> {
    fn plain(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        let mut digits = itoa::Buffer::new();
        self.plain(digits.format(number))
    }

    /// `value`, which is not negative, with `DIGITS` digits behind the point.
    fn fixed<const DIGITS: u32>(&mut self, value: f64) -> &mut Self {
        let unit = 10_u64.pow(DIGITS);
        let scaled = (value * unit as f64).round() as u64;
        self.number(scaled / unit).plain(".");
        let behind = scaled % unit;
        for place in (0..DIGITS).rev() {
            self.0.push(b'0' + (behind / 10_u64.pow(place) % 10) as u8);
        }
        self
    }

    /// In quotes; what could end them or the line is escaped.
    fn quoted(&mut self, text: &str) -> &mut Self {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
            return self.plain("\"").plain(text).plain("\"");
        }
        // Writing to a vector never fails.
        let _ = write!(self.0, "{text:?}");
        self
    }
}

/// Unix time, seconds.
pub fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `text` is to write, said by the standard library's formatting.
    fn formatted(line: &Line<'_>, out: &mut Vec<u8>) -> std::io::Result<()> {
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

    proptest! {
        #[test]
        fn text_is_what_formatting_gives(
            words in prop::collection::vec("[ -~éß\\n\\t\"\\\\]{0,12}", 3),
            numbers in prop::array::uniform10(any::<u64>()),
            times in prop::array::uniform3(0u64..4_000_000_000_000),
            given in prop::array::uniform5(any::<bool>()),
        ) {
            let line = Line {
                ts: times[0] as f64 / 1e3,
                id: "0123456789abcdef0123456789abcdef",
                method: "POST",
                path: "/v1/chat/completions",
                model: &words[0],
                status: numbers[0] as u16,
                worker: "w0",
                reason: "prefix",
                matched: numbers[1] as usize,
                blocks: numbers[2] as usize,
                chosen_tokens: given[0].then_some(numbers[3]),
                best_tokens: given[0].then_some(numbers[4]),
                shadow: given[1].then_some(words[1].as_str()),
                predicted_tokens: given[2].then_some(numbers[5]),
                cached_tokens: given[2].then_some(numbers[6]),
                tries: numbers[7] as usize,
                bytes_in: numbers[8],
                bytes_out: numbers[9],
                ttft_ms: given[3].then_some(times[1] as f64 / 1e2),
                duration_ms: times[2] as f64 / 1e2,
                error: given[4].then(|| words[2].clone()),
            };
            let (mut by_hand, mut model) = (Vec::new(), Vec::new());
            text(&line, &mut by_hand);
            formatted(&line, &mut model).expect("a vector takes all");
            prop_assert_eq!(String::from_utf8(by_hand), String::from_utf8(model));
        }
    }
}
