//! Message content to canonical text (docs/text-mode.md).
//!
//! Works on raw JSON slices: what is not text passes through as the client wrote it, so two
//! requests of one client agree byte for byte and nothing is re-serialized.

use std::borrow::Cow;

use serde::Deserialize;
use sonic_rs::LazyValue;
use xxhash_rust::xxh3::xxh3_128;

/// Where canonical text goes, piece by piece.
pub trait Sink {
    /// Takes the next bytes.
    fn push(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn push(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for crate::routing::block::BlockHasher {
    fn push(&mut self, bytes: &[u8]) {
        self.push(bytes);
    }
}

/// Content nests (a tool result holds parts); deeper than this is written as sent.
const DEPTH_MAX: u32 = 4;

/// The text of a raw JSON string; `None` when it is not one.
pub(super) fn text(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    sonic_rs::from_str::<String>(raw).ok().map(Cow::Owned)
}

/// Raw JSON of `value`, or "" when absent.
pub(super) fn raw<'a>(value: Option<&'a LazyValue<'_>>) -> &'a str {
    value.map_or("", LazyValue::as_raw_str)
}

/// Raw JSON, or "" for `null`.
pub(super) fn nothing_if_null(raw: &str) -> &str {
    if raw == "null" { "" } else { raw }
}

/// Whether raw JSON is a list or object with something in it.
pub(super) fn is_filled(raw: &str) -> bool {
    let mut bytes = raw.bytes().filter(|b| !b.is_ascii_whitespace());
    matches!(bytes.next(), Some(b'[' | b'{')) && !matches!(bytes.next(), Some(b']' | b'}') | None)
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<LazyValue<'a>>,
    #[serde(borrow)]
    text: Option<LazyValue<'a>>,
    #[serde(borrow)]
    content: Option<LazyValue<'a>>,
    #[serde(borrow)]
    name: Option<LazyValue<'a>>,
    #[serde(borrow)]
    input: Option<LazyValue<'a>>,
    #[serde(borrow)]
    image_url: Option<LazyValue<'a>>,
    #[serde(borrow)]
    audio_url: Option<LazyValue<'a>>,
    #[serde(borrow)]
    video_url: Option<LazyValue<'a>>,
    #[serde(borrow)]
    input_audio: Option<LazyValue<'a>>,
    #[serde(borrow)]
    source: Option<LazyValue<'a>>,
    #[serde(borrow)]
    file: Option<LazyValue<'a>>,
    #[serde(borrow)]
    file_id: Option<LazyValue<'a>>,
    #[serde(borrow)]
    file_data: Option<LazyValue<'a>>,
    #[serde(borrow)]
    file_url: Option<LazyValue<'a>>,
}

#[derive(Deserialize)]
struct Media<'a> {
    #[serde(borrow)]
    url: Option<LazyValue<'a>>,
    #[serde(borrow)]
    data: Option<LazyValue<'a>>,
    #[serde(borrow)]
    file_data: Option<LazyValue<'a>>,
    #[serde(borrow)]
    file_id: Option<LazyValue<'a>>,
}

/// Writes message content: a string, nothing, or a list of parts.
pub(super) fn write(content: &str, sink: &mut impl Sink) {
    write_nested(content, sink, 0);
}

fn write_nested(content: &str, sink: &mut impl Sink, depth: u32) {
    match content.as_bytes().first() {
        None | Some(b'n') => {}
        Some(b'"') => match text(content) {
            Some(text) => sink.push(text.as_bytes()),
            None => sink.push(content.as_bytes()),
        },
        Some(b'[') if depth < DEPTH_MAX => write_parts(content, sink, depth),
        Some(_) => sink.push(content.as_bytes()),
    }
}

fn write_parts(list: &str, sink: &mut impl Sink, depth: u32) {
    for (at, part) in sonic_rs::to_array_iter(list).enumerate() {
        let Ok(part) = part else { return };
        if at > 0 {
            sink.push(b"\n");
        }
        let raw = part.as_raw_str();
        match sonic_rs::from_str::<Part<'_>>(raw) {
            Ok(fields) => write_part(raw, &fields, sink, depth),
            Err(_) => write_nested(raw, sink, DEPTH_MAX),
        }
    }
}

fn write_part(whole: &str, part: &Part<'_>, sink: &mut impl Sink, depth: u32) {
    let kind = text(raw(part.kind.as_ref())).unwrap_or_default();
    match &*kind {
        "text" | "input_text" | "output_text" => write_nested(raw(part.text.as_ref()), sink, depth),
        "tool_use" => {
            write_nested(raw(part.name.as_ref()), sink, depth);
            sink.push(raw(part.input.as_ref()).as_bytes());
        }
        "tool_result" => write_nested(raw(part.content.as_ref()), sink, depth + 1),
        "image_url" | "input_image" | "image" | "input_audio" | "audio_url" | "video_url"
        | "file" | "input_file" | "document" => {
            let place = [
                &part.image_url,
                &part.audio_url,
                &part.video_url,
                &part.input_audio,
                &part.source,
                &part.file,
                &part.file_data,
                &part.file_url,
                &part.file_id,
            ];
            let media = place.into_iter().flatten().next().map_or(whole, LazyValue::as_raw_str);
            write_media(media, sink);
        }
        _ => sink.push(whole.as_bytes()),
    }
}

/// Media stands in the text as a hash of its data (or of its URL): equal data, equal prompt.
fn write_media(media: &str, sink: &mut impl Sink) {
    let hash = match text(media) {
        Some(url) => xxh3_128(url.as_bytes()),
        None => match sonic_rs::from_str::<Media<'_>>(media) {
            Ok(Media { url, data, file_data, file_id }) => {
                let data = [&data, &url, &file_data, &file_id].into_iter().flatten().next();
                let data = data.map_or(media, LazyValue::as_raw_str);
                xxh3_128(
                    text(data)
                        .map_or(data.as_bytes().to_vec(), |t| t.as_bytes().to_vec())
                        .as_slice(),
                )
            }
            Err(_) => xxh3_128(media.as_bytes()),
        },
    };
    sink.push(format!("<|media:{hash:032x}|>").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(content: &str) -> String {
        let mut out = Vec::new();
        write(content, &mut out);
        String::from_utf8(out).expect("canonical text of UTF-8 is UTF-8")
    }

    #[test]
    fn a_string_and_its_one_part_list_are_the_same_text() {
        assert_eq!(written(r#""a\n\u00e9""#), "a\né");
        assert_eq!(written(r#"[{"type":"text","text":"a\n\u00e9"}]"#), "a\né");
        assert_eq!(written("null"), "");
    }

    #[test]
    fn the_same_media_is_the_same_text_wherever_it_stands() {
        let openai = written(r#"[{"type":"image_url","image_url":{"url":"data:x"}}]"#);
        let short = written(r#"[{"type":"input_image","image_url":"data:x"}]"#);
        assert_eq!(openai, short);
        assert!(openai.starts_with("<|media:") && openai.len() == 8 + 32 + 2);
        let other = written(r#"[{"type":"input_image","image_url":"data:y"}]"#);
        assert_ne!(openai, other);
        let anthropic = written(
            r#"[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"QQ=="}}]"#,
        );
        let audio = written(r#"[{"type":"input_audio","input_audio":{"data":"QQ=="}}]"#);
        assert_eq!(anthropic, audio);
    }

    #[test]
    fn cache_control_on_a_text_part_does_not_change_its_text() {
        let marked = r#"[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}]"#;
        assert_eq!(written(marked), "a");
    }

    #[test]
    fn tool_parts_and_unknown_parts_are_kept() {
        assert_eq!(
            written(r#"[{"type":"tool_use","id":"1","name":"f","input":{"a": 1}}]"#),
            r#"f{"a": 1}"#
        );
        assert_eq!(
            written(r#"[{"type":"tool_result","content":[{"type":"text","text":"x"}]},"y",7]"#),
            "x\ny\n7"
        );
        assert_eq!(written(r#"[{"type":"new","v":2}]"#), r#"{"type":"new","v":2}"#);
    }

    #[test]
    fn deep_nesting_ends() {
        let mut deep = "\"x\"".to_owned();
        for _ in 0..100 {
            deep = format!(r#"[{{"type":"tool_result","content":{deep}}}]"#);
        }
        assert!(written(&deep).contains("tool_result"));
    }
}
