//! Message content to canonical text (docs/text-mode.md).
//!
//! Works on raw JSON slices: what is not text passes through as the client wrote it, so two
//! requests of one client agree byte for byte and nothing is re-serialized.

use xxhash_rust::xxh3::xxh3_128;

use super::json::{self, Reader, fields, text};

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

/// Whether raw JSON is a list or object with something in it.
pub(super) fn is_filled(raw: &str) -> bool {
    let mut bytes = raw.bytes().filter(|b| !b.is_ascii_whitespace());
    matches!(bytes.next(), Some(b'[' | b'{')) && !matches!(bytes.next(), Some(b']' | b'}') | None)
}

/// What is read of a part of a content: first what it says of itself, then where media may stand, the
/// likeliest first.
const PART: [&str; 14] = [
    "type",
    "text",
    "content",
    "name",
    "input",
    "image_url",
    "audio_url",
    "video_url",
    "input_audio",
    "source",
    "file",
    "file_data",
    "file_url",
    "file_id",
];

/// Where the data of media stands in its object, the likeliest first.
const MEDIA: [&str; 4] = ["data", "url", "file_data", "file_id"];

/// Writes message content: a string, nothing, or a list of parts.
pub(super) fn write(content: &str, sink: &mut impl Sink) {
    write_nested(content, sink, 0);
}

fn write_nested(content: &str, sink: &mut impl Sink, depth: u32) {
    match content.as_bytes().first() {
        None | Some(b'n') => {}
        Some(b'"') => {
            if !json::write_text(content, |piece| sink.push(piece)) {
                sink.push(content.as_bytes());
            }
        }
        Some(b'[') if depth < DEPTH_MAX => write_parts(content, sink, depth),
        Some(_) => sink.push(content.as_bytes()),
    }
}

fn write_parts(list: &str, sink: &mut impl Sink, depth: u32) {
    let mut first = true;
    // It was read once already: that it is malformed cannot be.
    let _ = Reader::new(list).array(|items| {
        if !first {
            sink.push(b"\n");
        }
        first = false;
        let raw = items.value()?;
        match fields(raw, &PART) {
            Ok(part) => write_part(raw, part, sink, depth),
            Err(_) => write_nested(raw, sink, DEPTH_MAX),
        }
        Ok(())
    });
}

fn write_part(whole: &str, part: [&str; PART.len()], sink: &mut impl Sink, depth: u32) {
    let [kind, written, content, name, input, media @ ..] = part;
    match &*text(kind).unwrap_or_default() {
        "text" | "input_text" | "output_text" => write_nested(written, sink, depth),
        "tool_use" => {
            write_nested(name, sink, depth);
            sink.push(input.as_bytes());
        }
        "tool_result" => write_nested(content, sink, depth + 1),
        "image_url" | "input_image" | "image" | "input_audio" | "audio_url" | "video_url"
        | "file" | "input_file" | "document" => {
            write_media(first_filled(&media).unwrap_or(whole), sink);
        }
        _ => sink.push(whole.as_bytes()),
    }
}

/// Media stands in the text as a hash of its data (or of its URL): equal data, equal prompt.
fn write_media(media: &str, sink: &mut impl Sink) {
    let data = match fields(media, &MEDIA) {
        Ok(places) => first_filled(&places).unwrap_or(media),
        Err(_) => media,
    };
    let hash = match text(data) {
        Some(text) => xxh3_128(text.as_bytes()),
        None => xxh3_128(data.as_bytes()),
    };
    sink.push(format!("<|media:{hash:032x}|>").as_bytes());
}

fn first_filled<'a>(places: &[&'a str]) -> Option<&'a str> {
    places.iter().copied().find(|raw| !raw.is_empty())
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
