//! What real engines were recorded to say passes through us unchanged, and so do their requests.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use crate::support::{Ask, Lb, RawAnswer, lb};

const REQUEST: &[u8] = b"### REQUEST\n";
const RESPONSE: &[u8] = b"\n### RESPONSE (raw bytes, chunked framing kept)\n";

/// Of one connection, and not the next one's business.
const HOP_BY_HOP: [&str; 4] = ["connection", "transfer-encoding", "keep-alive", "te"];
/// Ours to say.
const OURS: [&str; 4] = ["x-router-backend", "x-router-reason", "x-router-matched", "x-request-id"];

/// A recorded exchange.
struct Fixture {
    name: String,
    request: Message,
    /// As it stood on the wire.
    response_bytes: Vec<u8>,
    response: Message,
}

/// A request or response, taken apart.
#[derive(Debug)]
struct Message {
    first_line: String,
    headers: Vec<(String, String)>,
    /// Without chunks.
    body: Vec<u8>,
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

impl Message {
    fn parse(bytes: &[u8]) -> Self {
        let end = find(bytes, b"\r\n\r\n").expect("a header block");
        let mut message = Self::parse_head(std::str::from_utf8(&bytes[..end]).expect("ASCII"));
        message.body = bytes[end + 4..].to_vec();
        if message.header("transfer-encoding") == Some("chunked") {
            message.body = dechunked(&message.body);
        }
        message
    }

    fn parse_head(head: &str) -> Self {
        let mut lines = head.trim_end().split("\r\n");
        let first_line = lines.next().expect("a first line").to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').expect("a header");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self { first_line, headers: lines.map(header).collect(), body: Vec::new() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// What must arrive unchanged, sorted. Pingora says the date itself, also where the worker did.
    fn end_to_end(&self, but: &[&str]) -> Vec<(String, String)> {
        let passes =
            |name: &str| ![&HOP_BY_HOP[..], &OURS[..], &["date"], but].concat().contains(&name);
        let mut headers: Vec<_> =
            self.headers.iter().filter(|(name, _)| passes(name)).cloned().collect();
        headers.sort();
        headers
    }

    fn part(&self, nth: usize) -> &str {
        self.first_line.split(' ').nth(nth).expect("a first line of three parts")
    }

    fn status(&self) -> u16 {
        self.part(1).parse().expect("a status")
    }

    fn is_stream(&self) -> bool {
        self.header("content-type").is_some_and(|value| value.starts_with("text/event-stream"))
    }

    fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = find(bytes, b"\r\n").expect("a chunk size");
        let size = std::str::from_utf8(&bytes[..end]).expect("ASCII");
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        bytes = &bytes[end + 2..];
        body.extend_from_slice(&bytes[..size]);
        bytes = &bytes[size + 2..];
        if size == 0 {
            return body;
        }
    }
}

fn folder(engine: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(engine)
}

fn fixtures(engine: &str) -> Vec<Fixture> {
    let mut files: Vec<_> = std::fs::read_dir(folder(engine))
        .expect("tests/fixtures")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    files.iter().map(|file| read(file)).collect()
}

fn read(file: &Path) -> Fixture {
    let bytes = std::fs::read(file).expect("readable");
    let bytes = bytes.strip_prefix(REQUEST).expect("begins with the request");
    let at = find(bytes, RESPONSE).expect("has a response");
    let response_bytes = bytes[at + RESPONSE.len()..].to_vec();
    Fixture {
        name: file.file_name().expect("a name").to_string_lossy().replace(".http.txt", ""),
        request: Message::parse(&bytes[..at]),
        response: Message::parse(&response_bytes),
        response_bytes,
    }
}

/// A worker that answers recorded bytes: its health and models always, else what it was told to.
struct Replayer {
    addr: SocketAddr,
    state: Arc<Mutex<Replay>>,
    task: AbortHandle,
}

struct Replay {
    health: Vec<u8>,
    models: Vec<u8>,
    next: Vec<u8>,
    piece_bytes: usize,
    seen: Vec<Message>,
}

impl Drop for Replayer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Replayer {
    async fn start(engine: &str) -> Self {
        let recorded =
            |name: &str| read(&folder(engine).join(format!("{name}.http.txt"))).response_bytes;
        let state = Arc::new(Mutex::new(Replay {
            health: recorded("health"),
            models: recorded("models"),
            next: Vec::new(),
            piece_bytes: usize::MAX,
            seen: Vec::new(),
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(replay(stream, shared.clone()));
            }
        });
        Self { addr, state, task: task.abort_handle() }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn will_say(&self, fixture: &Fixture, piece_bytes: usize) {
        let mut state = self.state.lock();
        state.next.clone_from(&fixture.response_bytes);
        state.piece_bytes = piece_bytes;
    }

    fn take_seen(&self) -> Vec<Message> {
        std::mem::take(&mut self.state.lock().seen)
    }
}

/// One request a connection, as all recordings say `Connection: close`.
async fn replay(mut stream: TcpStream, state: Arc<Mutex<Replay>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    let request = loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        let Some(head_end) = find(&bytes, b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&bytes[..head_end]).expect("ASCII");
        let head = Message::parse_head(head);
        assert_eq!(head.header("transfer-encoding"), None, "the length was known");
        let length = head.header("content-length").map_or(0, |text| text.parse().expect("length"));
        if bytes.len() >= head_end + 4 + length {
            break Message::parse(&bytes);
        }
    };
    let (response, piece_bytes) = {
        let mut state = state.lock();
        match &*request.first_line {
            "GET /health HTTP/1.1" => (state.health.clone(), usize::MAX),
            "GET /v1/models HTTP/1.1" => (state.models.clone(), usize::MAX),
            _ => {
                state.seen.push(request);
                (state.next.clone(), state.piece_bytes)
            }
        }
    };
    for piece in response.chunks(piece_bytes) {
        stream.write_all(piece).await?;
        if piece_bytes < response.len() {
            // Lets the piece leave by itself.
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    stream.shutdown().await
}

async fn scene(replayer: &Replayer, worker: &str) -> Lb {
    let config = "health: {models_interval_ms: 60000}\nindex: {block_bytes: 32}";
    lb().config(config).external("w0", &replayer.url(), worker).start().await
}

/// Those that we answer ourselves.
fn is_local(request: &Message) -> bool {
    request.part(0) == "GET" && ["/health", "/v1/models"].contains(&request.part(1))
}

fn asked(fixture: &Fixture) -> Ask {
    let method = Method::from_bytes(fixture.request.part(0).as_bytes()).expect("a method");
    let mut ask = Ask::new(method, fixture.request.part(1), fixture.request.body.clone());
    for (name, value) in &fixture.request.headers {
        if !["host", "content-length", "connection"].contains(&name.as_str()) {
            ask = ask.header(name, value);
        }
    }
    ask
}

/// The recorded request as it stood on the wire.
async fn exchange(lb: &Lb, fixture: &Fixture) -> RawAnswer {
    let mut raw = lb.raw().await;
    let headers = fixture.request.headers.iter();
    let mut lines = vec![fixture.request.first_line.clone()];
    lines.extend(headers.map(|(name, value)| format!("{name}: {value}")));
    let mut bytes = (lines.join("\r\n") + "\r\n\r\n").into_bytes();
    bytes.extend_from_slice(&fixture.request.body);
    raw.send(bytes).await;
    raw.answer().await
}

fn assert_arrived_unchanged(name: &str, replayer: &Replayer, sent: &Message) {
    let mut seen = replayer.take_seen();
    assert_eq!(seen.len(), 1, "{name}: {seen:?}");
    let seen = seen.remove(0);
    assert_eq!(seen.part(0), sent.part(0), "{name}");
    assert_eq!(seen.part(1), sent.part(1), "{name}");
    assert!(seen.body == sent.body, "{name}: another body arrived");
    let but = ["host", "content-length"];
    assert_eq!(seen.end_to_end(&but), sent.end_to_end(&but), "{name}: headers at the worker");
    assert_eq!(seen.headers.iter().filter(|(name, _)| name == "x-request-id").count(), 1);
}

async fn ttfts(lb: &Lb) -> i64 {
    lb.metrics().await.sum("warmroute_ttft_seconds_count", &[])
}

/// Whether any event of a stream carries something of the answer, as its JSON says.
fn has_content(response: &Message) -> bool {
    let filled = |value: &Value| match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    let text = String::from_utf8_lossy(&response.body);
    let events = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let mut events = events.filter_map(|data| serde_json::from_str::<Value>(data.trim()).ok());
    events.any(|event| {
        let kind = event["type"].as_str().unwrap_or_default();
        let choices = event["choices"].as_array().cloned().unwrap_or_default();
        let of_choices = choices.iter().any(|choice| {
            let delta = &choice["delta"];
            [&choice["text"], &delta["content"], &delta["reasoning_content"], &delta["tool_calls"]]
                .into_iter()
                .any(filled)
        });
        let of_response = kind.strip_prefix("response.").and_then(|kind| kind.rsplit('.').next());
        (of_response == Some("delta") && filled(&event["delta"]))
            || of_choices
            || (kind.is_empty() && filled(&event["content"]))
    })
}

/// Bytes of the canonical text of each prompt, where it is of a form simple enough to say here;
/// otherwise whether there is a prompt at all.
enum Prompts {
    Bytes(Vec<usize>),
    Some,
    None,
    Unreadable,
}

fn prompts(request: &Message) -> Prompts {
    let endpoint = request.part(1).split('?').next().unwrap_or_default();
    let known =
        ["/v1/chat/completions", "/v1/completions", "/completion", "/v1/responses", "/v1/messages"];
    if request.part(0) != "POST" || !known.contains(&endpoint) {
        return Prompts::None;
    }
    let Some(body) = request.json() else { return Prompts::Unreadable };
    match endpoint {
        "/v1/chat/completions" => {
            let Some(messages) = body["messages"].as_array() else { return Prompts::Unreadable };
            let bytes = |message: &Value| {
                let (role, content) = (message["role"].as_str(), message["content"].as_str());
                let texts = role.expect("a role").len() + content.expect("text").len();
                texts + "<|im_start|>\n<|im_end|>\n".len()
            };
            let all: usize = messages.iter().map(bytes).sum();
            Prompts::Bytes(vec![all + "<|im_start|>assistant\n".len()])
        }
        "/v1/completions" | "/completion" => match &body["prompt"] {
            Value::String(text) => Prompts::Bytes(vec![text.len()]),
            // Blocks of 16 token ids, where those of text have 32 bytes.
            Value::Array(list) if list[0].is_number() => Prompts::Bytes(vec![2 * list.len()]),
            Value::Array(lists) => {
                let bytes = |one: &Value| {
                    one.as_str()
                        .map_or_else(|| 2 * one.as_array().expect("token ids").len(), str::len)
                };
                Prompts::Bytes(lists.iter().map(bytes).collect())
            }
            _ => Prompts::Unreadable,
        },
        _ => Prompts::Some,
    }
}

fn assert_routed_as_prompt(name: &str, fixture: &Fixture, reason: &str, matched: &str) {
    let total: usize = matched.split_once('/').expect("n/m").1.parse().expect("a number");
    let by_prompt = ["prefix", "no-match"].contains(&reason);
    match prompts(&fixture.request) {
        Prompts::Bytes(bytes) => {
            let blocks: usize = bytes.iter().map(|bytes| bytes / 32).sum();
            assert!(by_prompt, "{name}: {reason}");
            assert_eq!(total, blocks, "{name}: blocks of prompts of {bytes:?} bytes");
        }
        Prompts::Some => assert!(by_prompt && total > 0, "{name}: {reason} {matched}"),
        Prompts::None => assert_eq!((reason, total), ("no-prompt", 0), "{name}"),
        Prompts::Unreadable => assert_eq!((reason, total), ("unreadable", 0), "{name}"),
    }
}

async fn replays_unchanged(engine: &str, worker: &str, streams_at_least: usize) {
    let replayer = Replayer::start(engine).await;
    let lb = scene(&replayer, worker).await;
    let mut streams = 0;
    for fixture in fixtures(engine) {
        let name = &fixture.name;
        if is_local(&fixture.request) || name.starts_with("err_model_404") {
            continue;
        }
        let stream = fixture.response.is_stream();
        streams += usize::from(stream);
        // A stream may be cut anywhere on its way.
        for piece_bytes in if stream { &[usize::MAX, 23][..] } else { &[usize::MAX][..] } {
            replayer.will_say(&fixture, *piece_bytes);
            let before = ttfts(&lb).await;
            let answer = exchange(&lb, &fixture).await;
            let message = Message::parse_head(&answer.head);
            assert_eq!(answer.status, fixture.response.status(), "{name}");
            assert!(answer.body == fixture.response.body, "{name}: another body came back");
            assert_eq!(message.end_to_end(&[]), fixture.response.end_to_end(&[]), "{name}");
            for ours in OURS {
                assert!(message.header(ours).is_some(), "{name} without {ours}");
            }
            for once in ["date", "x-request-id", "content-type"] {
                let count = message.headers.iter().filter(|(name, _)| name == once).count();
                assert!(count <= 1, "{name}: {count} times {once}");
            }
            assert_arrived_unchanged(name, &replayer, &fixture.request);
            let header = |name| answer.header(name).expect("one of ours");
            let (reason, matched) = (header("x-router-reason"), header("x-router-matched"));
            assert_routed_as_prompt(name, &fixture, reason, matched);
            let counted = ttfts(&lb).await - before;
            let expected = i64::from(stream && has_content(&fixture.response));
            assert_eq!(counted, expected, "{name}: times to first token counted");
        }
        // And over HTTP/2, where framing and connection headers are others.
        replayer.will_say(&fixture, usize::MAX);
        let answer = lb.ask(&asked(&fixture).h2()).await;
        assert_eq!((answer.status, &answer.broken), (fixture.response.status(), &None), "{name}");
        assert!(answer.body == fixture.response.body, "{name}: another body came back by h2");
        let headers = answer.headers.iter();
        let headers = headers.map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let message =
            Message { first_line: String::new(), headers: headers.collect(), body: Vec::new() };
        assert_eq!(message.end_to_end(&[]), fixture.response.end_to_end(&[]), "{name} by h2");
        assert_arrived_unchanged(name, &replayer, &fixture.request);
    }
    assert!(streams >= streams_at_least, "only {streams} streams");
    lb.idle().await;
}

/// Models are learned from the recordings too, so every recorded request is for a known one.
#[tokio::test]
async fn vllm_is_passed_on_unchanged() {
    replays_unchanged("vllm-0.32.0", "{}", 8).await;
}

/// llama.cpp takes any model name; the recordings name several.
#[tokio::test]
async fn llama_cpp_is_passed_on_unchanged() {
    replays_unchanged("llama.cpp", "models: [\"*\"]", 4).await;
}

#[tokio::test]
async fn recorded_models_are_learned_and_shown_as_they_are() {
    for engine in ["vllm-0.32.0", "llama.cpp"] {
        let replayer = Replayer::start(engine).await;
        let lb = scene(&replayer, "{}").await;
        let recorded = read(&folder(engine).join("models.http.txt")).response.json();
        let entries = recorded.expect("JSON")["data"].clone();
        let shown = lb.ask(&Ask::get("/v1/models")).await.json();
        assert_eq!(shown["object"], "list");
        assert_eq!(shown["data"], entries, "{engine}");
        for entry in entries.as_array().expect("a list") {
            let id = entry["id"].as_str().expect("an id");
            let escaped = id.replace('/', "%2F");
            let one = lb.ask(&Ask::get(&format!("/v1/models/{escaped}"))).await.json();
            assert_eq!(&one, entry, "{engine}");
        }
        assert_eq!(lb.ask(&Ask::get("/health")).await.status, 200, "{engine}");
        assert!(replayer.take_seen().is_empty(), "{engine}: answered by us");
    }
}

#[tokio::test]
async fn an_unknown_model_is_refused_by_us_in_the_words_clients_know() {
    let replayer = Replayer::start("vllm-0.32.0").await;
    let lb = scene(&replayer, "{}").await;
    let recorded = read(&folder("vllm-0.32.0").join("err_model_404.http.txt"));
    let answer = lb.ask(&asked(&recorded)).await;
    assert_eq!(answer.status, recorded.response.status());
    answer.assert_error(404, "model_not_found");
    let theirs = recorded.response.json().expect("JSON");
    assert_eq!(answer.json()["error"]["param"], json!("model"), "as theirs: {theirs}");
    assert!(replayer.take_seen().is_empty());
}
