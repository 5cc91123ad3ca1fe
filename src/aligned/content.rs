//! Message content: a text, nothing, or a list of parts.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::Unaligned;

/// Content as sent.
#[derive(Debug, Default)]
pub(super) enum Content {
    /// None, or `null`.
    #[default]
    Nothing,
    /// A string.
    Text(String),
    /// A list.
    Parts(Vec<Part>),
}

/// One of a list of parts.
#[derive(Debug)]
pub(super) enum Part {
    /// Text; `None` is passed over, as by the engine.
    Text(Option<String>),
    /// Something that becomes other tokens than its text.
    Media,
    /// Of a kind that the engine refuses, or that we do not follow.
    Other,
}

impl Content {
    /// The texts, one a part.
    pub(super) fn texts(self) -> Result<Vec<String>, Unaligned> {
        let parts = match self {
            Self::Nothing => return Ok(Vec::new()),
            Self::Text(text) => return Ok(vec![text]),
            Self::Parts(parts) => parts,
        };
        let mut texts = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                Part::Text(text) => texts.extend(text),
                Part::Media => return Err(Unaligned::Media),
                Part::Other => return Err(Unaligned::Shape("content part")),
            }
        }
        Ok(texts)
    }
}

const MEDIA: [&str; 14] = [
    "image_url",
    "input_image",
    "image",
    "image_embeds",
    "image_pil",
    "audio_url",
    "input_audio",
    "audio",
    "audio_embeds",
    "video_url",
    "video",
    "video_embeds",
    "prompt_embeds",
    "document",
];

#[derive(Deserialize)]
struct PartFields {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    refusal: Option<String>,
    thinking: Option<String>,
    uuid: Option<IgnoredAny>,
    #[serde(alias = "audio_url", alias = "video_url")]
    image_url: Option<IgnoredAny>,
    #[serde(alias = "audio_embeds", alias = "video_embeds", alias = "prompt_embeds")]
    image_embeds: Option<IgnoredAny>,
    input_audio: Option<IgnoredAny>,
}

impl PartFields {
    fn part(self) -> Part {
        let is_media = self.image_url.is_some()
            || self.image_embeds.is_some()
            || self.input_audio.is_some()
            || self.kind.as_deref().is_some_and(|kind| MEDIA.contains(&kind));
        if is_media {
            return Part::Media;
        }
        match self.kind.as_deref() {
            _ if self.uuid.is_some() => Part::Other,
            Some("text" | "input_text" | "output_text") => Part::Text(self.text),
            Some("refusal") => Part::Text(self.refusal),
            Some("thinking") => Part::Text(self.thinking),
            _ => Part::Other,
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text, null or a list of parts")
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Content, E> {
        Ok(Content::Text(text))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = items.next_element()? {
            parts.push(part);
        }
        Ok(Content::Parts(parts))
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PartVisitor)
    }
}

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = Part;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a text or a part")
    }

    fn visit_str<E>(self, text: &str) -> Result<Part, E> {
        Ok(Part::Text(Some(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Part, A::Error> {
        PartFields::deserialize(MapAccessDeserializer::new(fields)).map(PartFields::part)
    }
}
