//! Asks a stream for the usage its client did not ask for, and keeps that from the client.
//!
//! In streams, engines tell how much of a prompt was cached only to those who ask by
//! `stream_options.include_usage`. [`ask`] adds that to a request, and [`Strip`] takes the one
//! event more that comes of it out of the answer. Both leave all other bytes as they are.
//!
//! What the client can still tell (vLLM 0.32): `system_fingerprint` moves from the last event with
//! a choice to the event taken out. An engine may write `"usage":null` into the other events
//! (OpenAI does, vLLM does not); that is left, as clients must know it. llama.cpp needs no asking:
//! its last event carries `timings` in any case, and would lose them to the event taken out.

use bytes::{Bytes, BytesMut};

use super::{json::Reader, usage::names_usage};

/// A longer event is no usage event: those of real engines have a few hundred bytes.
const EVENT_BYTES_MAX: usize = 64 << 10;

const ASKED: &str = r#"{"include_usage":true}"#;

/// The body of a chat or completion request, asking for usage at the end of the stream.
///
/// `None` where nothing is to be changed: no JSON object, no `"stream":true`, usage already asked
/// for, or `stream_options` of a form whose meaning is the engine's to say. Also where the client
/// asks for `continuous_usage_stats` without `include_usage`: engines then send neither, and would
/// both. Of a key that comes twice, the last counts, as engines read it.
pub fn ask(body: &Bytes) -> Option<Bytes> {
    let text = simdutf8::basic::from_utf8(body).ok()?;
    let (mut stream, mut options) = (false, None);
    let mut reader = Reader::new(text);
    let read = reader.object(|key, reader| {
        let value = reader.value()?;
        match key {
            "stream" => stream = value == "true",
            "stream_options" => options = Some(value),
            _ => {}
        }
        Ok(())
    });
    read.ok()?;
    if !stream {
        return None;
    }
    let Some(options) = options else {
        let inside = text.find('{')? + 1;
        return Some(splice(body, inside, inside, &format!(r#""stream_options":{ASKED},"#)));
    };
    let at = offset_in(text, options)?;
    match options {
        "null" => Some(splice(body, at, at + 4, ASKED)),
        object if object.starts_with('{') => ask_in(body, text, object),
        _ => None,
    }
}

/// As [`ask`], for a body that has the object `options`.
fn ask_in(body: &Bytes, text: &str, options: &str) -> Option<Bytes> {
    let (mut is_empty, mut asked, mut continuous) = (true, None, false);
    let read = Reader::new(options).object(|key, reader| {
        let value = reader.value()?;
        is_empty = false;
        match key {
            "include_usage" => asked = Some(value),
            "continuous_usage_stats" => continuous = !matches!(value, "false" | "null"),
            _ => {}
        }
        Ok(())
    });
    read.ok()?;
    if continuous {
        return None;
    }
    let Some(asked) = asked else {
        let inside = offset_in(text, options)? + 1;
        let comma = if is_empty { "" } else { "," };
        return Some(splice(body, inside, inside, &format!(r#""include_usage":true{comma}"#)));
    };
    let at = offset_in(text, asked)?;
    matches!(asked, "false" | "null").then(|| splice(body, at, at + asked.len(), "true"))
}

/// Where in `text` the slice `part` of it begins.
fn offset_in(text: &str, part: &str) -> Option<usize> {
    let at = (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    (text.get(at..at + part.len())? == part).then_some(at)
}

fn splice(body: &Bytes, from: usize, to: usize, new: &str) -> Bytes {
    let mut spliced = BytesMut::with_capacity(body.len() - (to - from) + new.len());
    spliced.extend_from_slice(&body[..from]);
    spliced.extend_from_slice(new.as_bytes());
    spliced.extend_from_slice(&body[to..]);
    spliced.freeze()
}

/// Takes the usage event out of a stream of server-sent events cut anywhere.
///
/// An event that has begun is held until it ends, or grows past 64 KiB; all else goes on at once.
/// Lines end by LF or CRLF. One that ends by a lone CR, which no engine sends, is taken for the
/// middle of an event.
#[derive(Clone, Debug, Default)]
pub struct Strip {
    /// The event that has begun.
    held: BytesMut,
    /// Whether it grew too long, and its rest is passed on.
    passing: bool,
    line: Line,
    stripped: usize,
}

/// What has come of the present line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Nothing,
    CarriageReturn,
    Something,
}

impl Strip {
    /// Events taken out.
    pub fn stripped(&self) -> usize {
        self.stripped
    }

    /// What of the stream up to here goes on and has not gone.
    pub fn feed(&mut self, chunk: &Bytes) -> Bytes {
        let mut out = Out::new(chunk);
        let mut from = 0;
        while let Some(len) = self.event_end(&chunk[from..]) {
            let to = from + len;
            if self.passing {
                out.push(from, to);
                self.passing = false;
            } else if self.held.is_empty() {
                if is_usage(&chunk[from..to]) {
                    self.stripped += 1;
                } else {
                    out.push(from, to);
                }
            } else {
                self.held.extend_from_slice(&chunk[from..to]);
                if is_usage(&self.held) {
                    self.stripped += 1;
                } else {
                    out.push_held(&self.held);
                }
                self.held.clear();
            }
            from = to;
        }
        let begun = chunk.len() - from;
        if self.passing || self.held.len() + begun > EVENT_BYTES_MAX {
            out.push_held(&self.held);
            self.held = BytesMut::new();
            out.push(from, chunk.len());
            self.passing = true;
        } else {
            self.held.extend_from_slice(&chunk[from..]);
        }
        out.finish()
    }

    /// The stream is over: what was held of an event that did not end.
    pub fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held).freeze()
    }

    /// How many of these bytes belong to the present event, if it ends among them.
    fn event_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(len) = memchr::memchr(b'\n', &bytes[at..]) {
            self.extend_line(&bytes[at..at + len]);
            at += len + 1;
            if std::mem::take(&mut self.line) != Line::Something {
                return Some(at);
            }
        }
        self.extend_line(&bytes[at..]);
        None
    }

    fn extend_line(&mut self, more: &[u8]) {
        self.line = match (self.line, more) {
            (line, []) => line,
            (Line::Nothing, [b'\r']) => Line::CarriageReturn,
            _ => Line::Something,
        };
    }
}

/// Whether an event is the one that tells only the usage: no choices, and a usage.
fn is_usage(event: &[u8]) -> bool {
    if event.len() > EVENT_BYTES_MAX || !names_usage(event) {
        return false;
    }
    let mut data =
        event.split(|&byte| byte == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
    let (Some(payload), None) = (data.next(), data.next()) else { return false };
    let Ok(payload) = std::str::from_utf8(payload) else { return false };
    let (mut no_choices, mut has_usage) = (false, false);
    for member in sonic_rs::to_object_iter(payload.trim_ascii()) {
        let Ok((key, value)) = member else { return false };
        let value = value.as_raw_str();
        match &*key {
            "choices" => {
                let inside = value.strip_prefix('[').and_then(|value| value.strip_suffix(']'));
                no_choices = inside.is_some_and(|inside| inside.trim_ascii().is_empty());
            }
            "usage" => has_usage = value.starts_with('{'),
            _ => {}
        }
    }
    no_choices && has_usage
}

/// What goes on: a part of the chunk as it is, or else pieces joined.
struct Out<'a> {
    chunk: &'a Bytes,
    from: usize,
    to: usize,
    joined: BytesMut,
}

impl<'a> Out<'a> {
    fn new(chunk: &'a Bytes) -> Self {
        Self { chunk, from: 0, to: 0, joined: BytesMut::new() }
    }

    fn push(&mut self, from: usize, to: usize) {
        if self.to != from {
            self.join();
            self.from = from;
        }
        self.to = to;
    }

    fn push_held(&mut self, held: &[u8]) {
        self.join();
        self.joined.extend_from_slice(held);
    }

    fn join(&mut self) {
        self.joined.extend_from_slice(&self.chunk[self.from..self.to]);
        self.from = self.to;
    }

    fn finish(mut self) -> Bytes {
        if self.joined.is_empty() {
            return self.chunk.slice(self.from..self.to);
        }
        self.join();
        self.joined.freeze()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn asked(body: &str) -> Option<String> {
        let asked = ask(&Bytes::copy_from_slice(body.as_bytes()))?;
        Some(String::from_utf8(asked.to_vec()).expect("UTF-8 as before"))
    }

    #[test]
    fn asks_with_the_least_change() {
        for (body, expected) in [
            (r#"{"stream":true}"#, r#"{"stream_options":{"include_usage":true},"stream":true}"#),
            (
                " { \n\"a\": [1 , 2], \"stream\" : true }\n",
                " {\"stream_options\":{\"include_usage\":true}, \n\"a\": [1 , 2], \"stream\" : true }\n",
            ),
            (
                r#"{"stream":true,"stream_options":null}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"stream":true,"stream_options": { }}"#,
                r#"{"stream":true,"stream_options": {"include_usage":true }}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"x":{"include_usage":true}}}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true,"x":{"include_usage":true}}}"#,
            ),
            (
                r#"{"stream_options":{"include_usage" : false,"x":1},"stream":true}"#,
                r#"{"stream_options":{"include_usage" : true,"x":1},"stream":true}"#,
            ),
            (
                r#"{"stream":false,"stream":true,"tool":{"stream_options":{"include_usage":true}}}"#,
                r#"{"stream_options":{"include_usage":true},"stream":false,"stream":true,"tool":{"stream_options":{"include_usage":true}}}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":true},"stream":true,"stream_options":{"include_usage":true,"include_usage":null}}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true,"stream_options":{"include_usage":true,"include_usage":true}}"#,
            ),
        ] {
            assert_eq!(asked(body).as_deref(), Some(expected), "{body}");
            assert_eq!(asked(expected), None, "asking twice: {expected}");
        }
    }

    #[test]
    fn leaves_alone_what_it_should() {
        for body in [
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":"yes"}}"#,
            r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#,
            r#"{"stream":true,"stream_options":[]}"#,
            r#"{"stream":true,"stream":false}"#,
            r#"{"stream":"true"}"#,
            r#"{"a":{"stream":true}}"#,
            r#"{"stream":true"#,
            r#"[{"stream":true}]"#,
            "\"stream\"",
            "{}",
            "",
        ] {
            assert_eq!(asked(body), None, "{body}");
        }
        assert_eq!(ask(&Bytes::from_static(b"{\"stream\":true,\"x\":\"\xff\"}")), None);
    }

    const USAGE: &str =
        r#"data: {"id":"c","choices":[],"usage":{"prompt_tokens":30,"total_tokens":35}}"#;
    const NULL_USAGE: &str =
        r#"data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":null}"#;

    fn strip<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut strip = Strip::default();
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&strip.feed(&Bytes::copy_from_slice(chunk)));
        }
        out.extend_from_slice(&strip.finish());
        out
    }

    #[test]
    fn takes_out_the_usage_event_of_real_engines() {
        let llama = r#"data: {"choices":[],"created":1,"id":"x","usage":{"completion_tokens":5,"prompt_tokens":29,"prompt_tokens_details":{"cached_tokens":24}},"timings":{"cache_n":24,"prompt_n":5}}"#;
        let sglang = r#"data: {"id":"x","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":29,"prompt_tokens_details":{"cached_tokens":24},"reasoning_tokens":0}}"#;
        let vllm = r#"data: {"id":"chatcmpl-a60598d305aadc69","object":"chat.completion.chunk","created":1795252248,"model":"tiny-qwen3","choices":[],"usage":{"prompt_tokens":30,"total_tokens":35,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":0,"created_cache_tokens":0}},"system_fingerprint":"vllm-0.32.0-e058ce84"}"#;
        for usage in [llama, sglang, vllm, USAGE, r#"data:{"choices" : [ ],"usage": {}}"#] {
            for end in ["\n\n", "\r\n\r\n"] {
                let before = format!(": hello{end}{NULL_USAGE}{end}");
                let after = format!("data: [DONE]{end}");
                let stream = format!("{before}{usage}{end}{after}");
                for cut in 1..stream.len() {
                    let out = strip(stream.as_bytes().chunks(cut));
                    assert_eq!(out, format!("{before}{after}").as_bytes(), "cut {cut}: {stream}");
                }
            }
        }
    }

    #[test]
    fn leaves_all_other_events() {
        let long =
            format!(r#"data: {{"choices":[],"usage":{{"x":"{}"}}}}"#, "x".repeat(EVENT_BYTES_MAX));
        for event in [
            r#"data: {"choices":[],"usage":null}"#,
            r#"data: {"choices":[]}"#,
            r#"data: {"choices":[{"text":"\"choices\":[],\"usage\":{}"}]}"#,
            r#"data: {"choices":[{"choices":[],"usage":{}}],"usage":{"prompt_tokens":1}}"#,
            r#"data: {"x":{"choices":[],"usage":{}}}"#,
            r#"data: {"choices":[],"usage":{}"#,
            r#"{"choices":[],"usage":{}}"#,
            "data: {\"choices\":[],\ndata: \"usage\":{}}",
            "event: error\ndata: {\"error\":{}}",
            &long,
        ] {
            let stream = format!("{event}\n\n{event}\r\n\r\n{event}");
            for cut in [1, 7, 1000, EVENT_BYTES_MAX, stream.len()] {
                assert!(strip(stream.as_bytes().chunks(cut)) == stream.as_bytes(), "{event}");
            }
        }
    }

    #[test]
    fn a_chunk_of_whole_events_is_passed_without_a_copy() {
        let chunk = Bytes::from(format!("{NULL_USAGE}\n\n{USAGE}\n\n"));
        let out = Strip::default().feed(&chunk);
        assert_eq!(out, format!("{NULL_USAGE}\n\n"));
        assert_eq!(out.as_ptr(), chunk.as_ptr());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z\"\\\\{}:, ]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let key = prop_oneof![
                Just("stream".to_owned()),
                Just("stream_options".to_owned()),
                Just("include_usage".to_owned()),
                "[a-z\"\\\\]{0,4}",
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn includes_usage(body: &Map<String, Value>) -> bool {
        body.get("stream_options").and_then(|options| options.get("include_usage"))
            == Some(&Value::Bool(true))
    }

    proptest! {
        #[test]
        fn asking_changes_nothing_else(body in json(), stream in any::<bool>(), pretty in any::<bool>()) {
            let mut body = body;
            if let (Some(body), true) = (body.as_object_mut(), stream) {
                body.insert("stream".into(), true.into());
            }
            let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) };
            let Some(asked) = asked(&text.expect("JSON")) else { return Ok(()) };
            let mut asked: Map<String, Value> = serde_json::from_str(&asked).expect("JSON as before");
            prop_assert!(includes_usage(&asked));
            let before = body.as_object_mut().expect("only objects are changed");
            prop_assert!(!includes_usage(before));
            let options = asked.get_mut("stream_options").and_then(Value::as_object_mut);
            options.expect("an object").remove("include_usage");
            match before.get_mut("stream_options") {
                Some(Value::Object(options)) => drop(options.remove("include_usage")),
                _ => drop(before.insert("stream_options".into(), Map::new().into())),
            }
            prop_assert_eq!(&asked, &*before);
        }

        #[test]
        fn arbitrary_bodies_do_no_harm(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ask(&Bytes::from(body));
        }

        /// Any events, cut anywhere: exactly the usage events are missing, and nothing waits longer
        /// than for the end of its event.
        #[test]
        fn the_cuts_do_not_matter(
            events in prop::collection::vec((prop::sample::select(vec![
                USAGE, NULL_USAGE, "data: [DONE]", ": ping", "event: x\ndata: {}", "data", "\r", "x\ry", "",
            ]), any::<bool>()), 0..8),
            unended in prop::sample::select(vec!["", "data: {", USAGE, "data: x\r"]),
            cut in 1usize..200,
        ) {
            let (mut stream, mut expected, mut ends) = (String::new(), String::new(), vec![(0, 0)]);
            for (event, crlf) in events {
                let event = format!("{event}{}", if crlf { "\r\n\r\n" } else { "\n\n" });
                stream += &event;
                if !event.starts_with(USAGE) {
                    expected += &event;
                }
                ends.push((stream.len(), expected.len()));
            }
            stream += unended;
            let mut strip = Strip::default();
            let (mut fed, mut out) = (0, Vec::new());
            for chunk in stream.as_bytes().chunks(cut) {
                fed += chunk.len();
                out.extend_from_slice(&strip.feed(&Bytes::copy_from_slice(chunk)));
                let due = ends.iter().rfind(|(end, _)| *end <= fed).expect("the first is 0").1;
                prop_assert!(out.len() >= due && out.len() <= expected.len() + unended.len());
            }
            out.extend_from_slice(&strip.finish());
            prop_assert_eq!(out, (expected + unended).into_bytes());
        }
    }
}
