//! Reads out of an answer how much of its prompt the worker had cached.
//!
//! Every byte of every answer passes here, so nothing is kept and nothing is parsed twice: a small
//! machine follows the JSON's nesting and notes the few numbers that stand at a known path. Only
//! true keys count, at the top level or in the `response` or `message` an event wraps: text that
//! spells `"usage":{..}` is inside a string, where a quote is always escaped, and a tool's argument
//! or schema called `usage` lies deeper. So the result depends neither on where the answer was cut
//! nor on where in it the usage stands. Head and tail windows were turned down: they need the
//! machine all the same, as a window that opens in mid-string cannot tell text from keys.
//!
//! In a stream, whole lines without `"usage"` or `"timings"` are passed over by search alone, and
//! everywhere what is nested below a key that leads nowhere (`choices`) is passed over by counting
//! brackets.
//!
//! What engines send (recorded, or read in their sources): OpenAI's `usage` (vLLM, SGLang,
//! llama.cpp); Responses' and Anthropic's `usage`, the latter with `input_tokens` *less* what was
//! cached (vLLM 0.32, SGLang, llama.cpp); llama.cpp's `timings`, on its own endpoints and in its
//! streams even where no usage was asked for. llama.cpp's `tokens_cached` is none of these: it
//! counts what the slot holds after the answer. Not read: keys written with `\u` escapes, and one
//! event's JSON spread over several `data:` lines, which no engine sends.

use super::usage_scan::{Field, Numbers, Scan};

/// How long a prompt was, and how much of it the worker held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of all prompts of the request.
    pub prompt_tokens: u64,
    /// Of these, taken from the worker's cache; at most all. `None` when the engine does not say
    /// (vLLM without `--enable-prompt-tokens-details`).
    pub cached_tokens: Option<u64>,
}

/// Watches one answer go by, cut into any chunks.
#[derive(Clone, Debug)]
pub struct UsageWatch {
    /// Where in a line the next byte stands; a document is one long data line.
    line: Line,
    is_sse: bool,
    scan: Scan,
    found: Numbers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// So many bytes of `data:` have come.
    Start(usize),
    /// After `data:`.
    Data,
    /// Some other line.
    Skip,
}

const DATA: &[u8] = b"data:";

impl UsageWatch {
    /// For server-sent events, or else for one JSON document.
    pub fn new(is_sse: bool) -> Self {
        let line = if is_sse { Line::Start(0) } else { Line::Data };
        Self { line, is_sse, scan: Scan::default(), found: Numbers::default() }
    }

    /// Takes the next chunk of the (uncompressed) body.
    pub fn feed(&mut self, mut chunk: &[u8]) {
        if !self.is_sse {
            self.scan.feed(chunk);
            return;
        }
        if self.line == Line::Start(0) {
            // Engines send whole events: hardly ever there is anything to look for.
            let whole_lines = match chunk.last() {
                Some(b'\n') => chunk.len(),
                _ => memchr::memrchr(b'\n', chunk).map_or(0, |at| at + 1),
            };
            if !may_hold_usage(&chunk[..whole_lines]) {
                chunk = &chunk[whole_lines..];
            }
        }
        while !chunk.is_empty() {
            chunk = match self.line {
                Line::Start(matched) => self.feed_prefix(matched, chunk),
                Line::Data => {
                    let end = memchr::memchr(b'\n', chunk);
                    self.scan.feed(&chunk[..end.unwrap_or(chunk.len())]);
                    self.end_line(chunk, end)
                }
                Line::Skip => self.end_line(chunk, memchr::memchr(b'\n', chunk)),
            };
        }
    }

    /// The last usage the answer gave; of an answer that broke off, the last one that came whole.
    pub fn finish(mut self) -> Option<Usage> {
        self.take_numbers();
        self.found.usage()
    }

    fn feed_prefix<'a>(&mut self, matched: usize, chunk: &'a [u8]) -> &'a [u8] {
        if chunk[0] == DATA[matched] {
            self.line =
                if matched + 1 < DATA.len() { Line::Start(matched + 1) } else { Line::Data };
            return &chunk[1..];
        }
        self.line = Line::Skip;
        chunk
    }

    fn end_line<'a>(&mut self, chunk: &'a [u8], end: Option<usize>) -> &'a [u8] {
        let Some(end) = end else { return &[] };
        self.take_numbers();
        self.line = Line::Start(0);
        &chunk[end + 1..]
    }

    /// An event or document that is not whole says nothing.
    fn take_numbers(&mut self) {
        if self.line == Line::Data {
            let scan = std::mem::take(&mut self.scan);
            if let Some(numbers) = scan.finish() {
                self.found.take(&numbers);
            }
        }
    }
}

/// Whether any of these lines may count for [`Numbers::take`].
fn may_hold_usage(lines: &[u8]) -> bool {
    names_object(lines, &[USAGE, TIMINGS])
}

/// Whether a `"usage"` stands here that begins an object: SGLang's `"usage":null` does not.
pub(super) fn names_usage(bytes: &[u8]) -> bool {
    names_object(bytes, &[USAGE])
}

/// A key in its quotes, and where in it its only `g` stands.
type Quoted = (&'static [u8], usize);

const USAGE: Quoted = (b"\"usage\"", 4);
const TIMINGS: Quoted = (b"\"timings\"", 6);

/// Whether one of these keys stands here and begins an object. One search for the letter they share
/// takes a third of the time of a search for each.
fn names_object(bytes: &[u8], keys: &[Quoted]) -> bool {
    memchr::memchr_iter(b'g', bytes).any(|g| {
        keys.iter().any(|(key, letter)| {
            let Some(start) = g.checked_sub(*letter) else { return false };
            let Some(behind) = bytes[start..].strip_prefix(*key) else { return false };
            let value = behind.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start);
            value.is_some_and(|value| value.starts_with(b"{"))
        })
    })
}

impl Numbers {
    /// Later events win, field by field: Anthropic's first event has the prompt, its last one may
    /// have no more than the output.
    fn take(&mut self, later: &Self) {
        for (mine, later) in self.0.iter_mut().zip(later.0) {
            *mine = later.or(*mine);
        }
    }

    fn usage(&self) -> Option<Usage> {
        let of = |field: Field| self.0[field as usize];
        let anthropic = |input: u64| {
            let cached = of(Field::CacheRead).unwrap_or(0);
            input.saturating_add(cached).saturating_add(of(Field::CacheCreation).unwrap_or(0))
        };
        let (cache_n, prompt_n) = (of(Field::CacheN), of(Field::PromptN));
        let prompt_tokens = of(Field::PromptTokens)
            .or(of(Field::InputTokens).map(anthropic))
            .or(of(Field::TokensEvaluated))
            .or(cache_n.zip(prompt_n).map(|(cached, rest)| cached.saturating_add(rest)))?;
        let cached_tokens = of(Field::CachedTokens)
            .or(of(Field::CacheRead))
            .or(cache_n)
            // llama.cpp before `cache_n`: `prompt_n` is what was not cached.
            .or(prompt_n.map(|rest| prompt_tokens.saturating_sub(rest)))
            .map(|cached| cached.min(prompt_tokens));
        Some(Usage { prompt_tokens, cached_tokens })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A recording's answer, and whether it is a stream.
    fn answer(recording: &[u8]) -> (Vec<u8>, bool) {
        let mark = b"### RESPONSE";
        let at = memchr::memmem::find(recording, mark).expect("has an answer");
        let header = &recording[at..];
        let end = memchr::memmem::find(header, b"\r\n\r\n").expect("has a header") + 4;
        let (header, mut body) = header.split_at(end);
        let header = header.to_ascii_lowercase();
        let has = |word: &str| memchr::memmem::find(&header, word.as_bytes()).is_some();
        let mut whole = Vec::new();
        if !has("transfer-encoding: chunked") {
            whole = body.to_vec();
        }
        while has("transfer-encoding: chunked") {
            let line = memchr::memmem::find(body, b"\r\n").expect("size of a chunk");
            let size = std::str::from_utf8(&body[..line]).expect("hexadecimal");
            let size = usize::from_str_radix(size, 16).expect("hexadecimal");
            if size == 0 {
                break;
            }
            whole.extend_from_slice(&body[line + 2..line + 2 + size]);
            body = &body[line + 2 + size + 2..];
        }
        (whole, has("text/event-stream"))
    }

    fn usage_in_pieces<'a>(
        is_sse: bool,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Option<(u64, Option<u64>)> {
        let mut watch = UsageWatch::new(is_sse);
        for piece in pieces {
            watch.feed(piece);
        }
        watch.finish().map(|usage| (usage.prompt_tokens, usage.cached_tokens))
    }

    fn document(json: &str) -> Option<(u64, Option<u64>)> {
        usage_in_pieces(false, std::iter::once(json.as_bytes()))
    }

    fn events(payloads: &[&str]) -> Option<(u64, Option<u64>)> {
        let lines: Vec<_> = payloads.iter().map(|payload| format!("data: {payload}\n\n")).collect();
        let stream = lines.concat();
        usage_in_pieces(true, std::iter::once(stream.as_bytes()))
    }

    macro_rules! recorded {
        ($(($name:literal, $expected:expr)),* $(,)?) => {
            [$(($name, &include_bytes!(concat!("../../tests/fixtures/", $name, ".http.txt"))[..],
                $expected)),*]
        };
    }

    type Expected = Option<(u64, Option<u64>)>;

    fn recordings() -> Vec<(&'static str, &'static [u8], Expected)> {
        let some = |prompt, cached| Some((prompt, Some(cached)));
        recorded![
            ("vllm-0.32.0/chat_nonstream", some(30, 0)),
            ("vllm-0.32.0/chat_return_token_ids", some(30, 0)),
            ("vllm-0.32.0/chat_stream_usage", some(30, 0)),
            ("vllm-0.32.0/chat_stream_continuous_usage", some(30, 0)),
            ("vllm-0.32.0/chat_stream_nousage", None),
            ("vllm-0.32.0/chat_stream_return_token_ids", None),
            ("vllm-0.32.0/completion_text", some(4, 0)),
            ("vllm-0.32.0/completion_list_text", some(6, 0)),
            ("vllm-0.32.0/completion_n2_stream", None),
            ("vllm-0.32.0/completion_stream_usage", some(4, 0)),
            ("vllm-0.32.0/completion_warm_cached_tokens", some(241, 224)),
            ("vllm-0.32.0/completion_warm_cached_tokens_stream", some(241, 224)),
            ("vllm-0.32.0/completion_cached_no_details_flag", Some((100, None))),
            ("vllm-0.32.0/responses_nonstream", some(10, 0)),
            ("vllm-0.32.0/responses_stream", some(10, 0)),
            ("vllm-0.32.0/anthropic_messages", some(10, 0)),
            ("vllm-0.32.0/err_model_404", None),
            ("llama.cpp/anthropic", some(29, 1)),
            ("llama.cpp/chat_nonstream", some(29, 0)),
            ("llama.cpp/chat_stream_usage", some(29, 24)),
            ("llama.cpp/chat_stream_timings_per_token", some(29, 24)),
            ("llama.cpp/chat_long_usage_cached_warm", some(824, 823)),
            ("llama.cpp/completion_list", some(3, 1)),
            ("llama.cpp/completion_stream", some(5, 1)),
            ("llama.cpp/native_completion_cold", some(802, 0)),
            ("llama.cpp/native_completion_warm", some(802, 801)),
            ("llama.cpp/native_completion_warm_diff_tail", some(804, 801)),
            ("llama.cpp/native_completion_cache_off", some(802, 0)),
            ("llama.cpp/native_completion_stream", some(2, 0)),
            ("llama.cpp/responses", some(25, 1)),
            ("llama.cpp/err_404", None),
        ]
        .into()
    }

    #[test]
    fn reads_what_engines_were_recorded_to_send() {
        for (name, recording, expected) in recordings() {
            let (body, is_sse) = answer(recording);
            let found = usage_in_pieces(is_sse, std::iter::once(&body[..]));
            assert_eq!(found, expected, "{name}");
            assert_eq!(usage_in_pieces(is_sse, body.chunks(1)), expected, "{name}, byte by byte");
        }
    }

    #[test]
    fn anthropic_totals_include_what_was_cached() {
        // vLLM 0.32: nothing is known of the cache until the last event, which restates the rest.
        let start = r#"{"type":"message_start","message":{"id":"x","usage":{"input_tokens":241,"output_tokens":0}}}"#;
        let delta = r#"{"type":"message_delta","usage":{"input_tokens":17,"output_tokens":4,"cache_creation_input_tokens":0,"cache_read_input_tokens":224}}"#;
        assert_eq!(events(&[start, delta]), Some((241, Some(224))));
        // llama.cpp and SGLang: the first event has it all, the last one only the output.
        let start = r#"{"type":"message_start","message":{"usage":{"cache_read_input_tokens":24,"input_tokens":5,"output_tokens":0}}}"#;
        let delta = r#"{"type":"message_delta","usage":{"output_tokens":4}}"#;
        assert_eq!(events(&[start, delta]), Some((29, Some(24))));
        let created = r#"{"usage":{"input_tokens":5,"cache_read_input_tokens":3,"cache_creation_input_tokens":2}}"#;
        assert_eq!(document(created), Some((10, Some(3))));
    }

    #[test]
    fn llama_tells_in_a_stream_that_did_not_ask() {
        let last = r#"{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"timings":{"cache_n":24,"prompt_n":5,"prompt_ms":1.5}}"#;
        assert_eq!(events(&[r#"{"choices":[]}"#, last]), Some((29, Some(24))));
        let older = r#"{"content":"","tokens_evaluated":29,"tokens_cached":33,"timings":{"prompt_n":5,"prompt_ms":8e-1}}"#;
        assert_eq!(document(older), Some((29, Some(24))));
    }

    #[test]
    fn only_true_keys_in_their_place_count() {
        let fake =
            r#"{\"usage\":{\"prompt_tokens\":9,\"prompt_tokens_details\":{\"cached_tokens\":9}}}"#;
        assert_eq!(document(&format!(r#"{{"choices":[{{"text":"{fake}"}}]}}"#)), None);
        assert_eq!(events(&[&format!(r#"{{"choices":[{{"text":"{fake}"}}]}}"#)]), None);
        assert_eq!(document(r#"{"text":"\\","usage":{"prompt_tokens":3}}"#), Some((3, None)));
        assert_eq!(document(r#"{"a":"\\\"usage","usage":{"prompt_tokens":3}}"#), Some((3, None)));
        for deeper in [
            r#"{"content":[{"input":{"usage":{"prompt_tokens":9}}}]}"#,
            r#"{"choices":[{"usage":{"prompt_tokens":9}}]}"#,
            r#"{"tools":{"usage":{"prompt_tokens":9}}}"#,
            r#"{"usage":[{"prompt_tokens":9}]}"#,
            r#"[{"usage":{"prompt_tokens":9}}]"#,
            r#"{"usage":{"x":{"prompt_tokens":9}}}"#,
            r#"{"response":{"response":{"usage":{"prompt_tokens":9}}}}"#,
            r#"{"metadata":{"response":{"usage":{"prompt_tokens":9}}}}"#,
            r#"{"\"usage":{"prompt_tokens":9}}"#,
        ] {
            assert_eq!(document(deeper), None, "{deeper}");
            assert_eq!(events(&[deeper]), None, "{deeper}");
        }
    }

    #[test]
    fn odd_numbers_are_left_out_and_cached_is_at_most_all() {
        let of = |prompt: &str, cached: &str| {
            document(&format!(
                r#"{{"usage" : {{ "prompt_tokens" :{prompt}, "prompt_tokens_details": {{"cached_tokens":{cached} }} }} }}"#
            ))
        };
        assert_eq!(of("10", "12"), Some((10, Some(10))));
        assert_eq!(of("10", "null"), Some((10, None)));
        assert_eq!(of("10", "-1"), Some((10, None)));
        assert_eq!(of("10", "1.5"), Some((10, None)));
        assert_eq!(of("10", "\"4\""), Some((10, None)));
        assert_eq!(of("null", "4"), None);
        let huge = "9".repeat(40);
        assert_eq!(of(&huge, &huge), Some((u64::MAX, Some(u64::MAX))));
    }

    #[test]
    fn the_last_usage_that_came_whole_counts() {
        let usage =
            |tokens: u64| format!(r#"{{"choices":[],"usage":{{"prompt_tokens":{tokens}}}}}"#);
        assert_eq!(events(&[&usage(1), &usage(2), "[DONE]"]), Some((2, None)));
        let cut = format!("data:{}\r\n\r\ndata:{}", usage(1), &usage(23)[..38]);
        assert_eq!(usage_in_pieces(true, std::iter::once(cut.as_bytes())), Some((1, None)));
        let unended = format!(": hello\ndata: {}", usage(7));
        assert_eq!(usage_in_pieces(true, std::iter::once(unended.as_bytes())), Some((7, None)));
        assert_eq!(document(&usage(23)[..38]), None);
        assert_eq!(document(&format!("{}}}", usage(23))), None);
    }

    #[test]
    fn usage_is_found_at_either_end_of_a_large_document() {
        let text = "lorem \\\"ipsum\\\" \\n".repeat(1 << 18);
        let usage = r#""usage":{"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":5}}"#;
        for json in
            [format!(r#"{{{usage},"text":"{text}"}}"#), format!(r#"{{"text":"{text}",{usage}}}"#)]
        {
            assert_eq!(usage_in_pieces(false, json.as_bytes().chunks(16384)), Some((7, Some(5))));
            let event = format!("data: {json}\n\n");
            assert_eq!(usage_in_pieces(true, event.as_bytes().chunks(16384)), Some((7, Some(5))));
        }
    }

    proptest! {
        #[test]
        fn the_cuts_do_not_matter(
            which in any::<prop::sample::Index>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let recordings = recordings();
            let (name, recording, expected) = recordings[which.index(recordings.len())];
            let (body, is_sse) = answer(recording);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &body[cut[0]..cut[1]]);
            prop_assert_eq!(usage_in_pieces(is_sse, pieces), expected, "{}", name);
        }

        /// Bytes from an alphabet that gets far into the machine, cut anywhere: no panic, and the
        /// same result.
        #[test]
        fn arbitrary_bytes_do_no_harm(
            words in prop::collection::vec(prop::sample::select(vec![
                &b"\""[..], b"{", b"}", b"[", b"]", b":", b",", b"\\", b"\n", b"\r\n", b"data:", b" ",
                b"\"usage\"", b"usage", b"\"prompt_tokens\":", b"1", b"234", b"-", b"e", b"\xff",
                b"\"response\":{", b"\"timings\":{\"cache_n\":", b"null", b"{\"usage\":{\"prompt_tokens\":5}}",
            ]), 0..80),
            is_sse in any::<bool>(),
            cut in 1usize..40,
        ) {
            let bytes = words.concat();
            let whole = usage_in_pieces(is_sse, std::iter::once(&bytes[..]));
            prop_assert_eq!(usage_in_pieces(is_sse, bytes.chunks(cut)), whole);
        }
    }
}
