//! Canonical text of a chat, after docs/text-mode.md.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_128;

/// One message as the client sent it.
#[derive(Debug, Deserialize)]
pub(crate) struct Message<'a> {
    #[serde(borrow)]
    pub(crate) role: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) tool_calls: Option<&'a RawValue>,
}

/// A message's content is neither a string nor a list of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message content must be a string, a list of parts or null")]
pub(crate) struct ContentError;

/// The canonical text of a chat: leading messages, tools, other messages, tail.
pub(crate) fn canonical_chat(
    messages: &[Message<'_>],
    tools: Option<&RawValue>,
) -> Result<String, ContentError> {
    let is_leading = |message: &Message<'_>| matches!(&*message.role, "system" | "developer");
    let leading = messages.iter().take_while(|message| is_leading(message)).count();
    let mut text = String::new();
    for message in &messages[..leading] {
        push_message(&mut text, &message.role, &content_of(message)?);
    }
    if let Some(tools) = tools.filter(|tools| is_filled_list(tools)) {
        push_message(&mut text, "tools", tools.get());
    }
    for message in &messages[leading..] {
        push_message(&mut text, &message.role, &content_of(message)?);
    }
    text.push_str("<|im_start|>assistant\n");
    Ok(text)
}

impl Message<'_> {
    /// The content alone, without the tool calls.
    pub(crate) fn content_text(&self) -> Result<String, ContentError> {
        self.content.map_or(Ok(String::new()), raw_content)
    }
}

fn push_message(text: &mut String, role: &str, content: &str) {
    for part in ["<|im_start|>", role, "\n", content, "<|im_end|>\n"] {
        text.push_str(part);
    }
}

fn content_of(message: &Message<'_>) -> Result<String, ContentError> {
    let mut content = message.content_text()?;
    if let Some(calls) = message.tool_calls.filter(|calls| is_filled_list(calls)) {
        content.push('\n');
        content.push_str(calls.get());
    }
    Ok(content)
}

fn is_filled_list(raw: &RawValue) -> bool {
    serde_json::from_str::<Vec<&RawValue>>(raw.get()).is_ok_and(|list| !list.is_empty())
}

fn raw_content(raw: &RawValue) -> Result<String, ContentError> {
    match raw.get().as_bytes().first() {
        Some(b'"') => string_of(raw).ok_or(ContentError),
        Some(b'[') => {
            let parts: Vec<&RawValue> =
                serde_json::from_str(raw.get()).map_err(|_| ContentError)?;
            let texts: Result<Vec<_>, _> = parts.into_iter().map(part_text).collect();
            Ok(texts?.join("\n"))
        }
        Some(b'n') => Ok(String::new()),
        _ => Err(ContentError),
    }
}

fn part_text(raw: &RawValue) -> Result<String, ContentError> {
    let as_sent = || raw.get().to_owned();
    let Ok(part) = serde_json::from_str::<BTreeMap<String, &RawValue>>(raw.get()) else {
        return Ok(as_sent());
    };
    let field = |name: &str| part.get(name).copied();
    let kind = field("type").and_then(string_of).unwrap_or_default();
    Ok(match kind.as_str() {
        "text" | "input_text" | "output_text" => {
            field("text").and_then(string_of).unwrap_or_else(as_sent)
        }
        "tool_use" => {
            let name = field("name").and_then(string_of).unwrap_or_default();
            name + field("input").map_or("", RawValue::get)
        }
        "tool_result" => field("content").map_or(Ok(String::new()), raw_content)?,
        "image_url" | "input_image" | "image" | "input_audio" | "audio_url" | "video_url"
        | "file" | "input_file" | "document" => media_data(&kind, &part)
            .map_or_else(as_sent, |data| format!("<|media:{:032x}|>", xxh3_128(data.as_bytes()))),
        _ => as_sent(),
    })
}

/// The data or URL string of a media part, wherever its type keeps it.
fn media_data(kind: &str, part: &BTreeMap<String, &RawValue>) -> Option<String> {
    const HOLDERS: [&str; 3] = ["image_url", "source", "file"];
    const STRINGS: [&str; 6] = ["url", "data", "file_data", "file_url", "file_id", "image_url"];
    let holders = std::iter::once(kind).chain(HOLDERS);
    for held in holders.filter_map(|name| part.get(name)) {
        if let Some(text) = string_of(held) {
            return Some(text);
        }
        let Ok(inner) = serde_json::from_str::<BTreeMap<String, &RawValue>>(held.get()) else {
            continue;
        };
        if let Some(text) = first_string(&inner, &STRINGS) {
            return Some(text);
        }
    }
    first_string(part, &STRINGS)
}

fn first_string(map: &BTreeMap<String, &RawValue>, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| map.get(*name).and_then(|raw| string_of(raw)))
}

fn string_of(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}
