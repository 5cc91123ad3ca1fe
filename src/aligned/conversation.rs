//! A conversation as the engine hands it to a chat template.
//!
//! The wire formats (`chat.rs`, `convert.rs`) become this; the rest is the work of vLLM 0.32 and of
//! `apply_chat_template` on it: content in the template's format, developer messages for templates
//! that know none, continuation of the last message.

use minijinja::Value;

use super::{
    Unaligned,
    content_format::ContentFormat,
    template::{Template, object},
};

/// Messages of one conversation; each costs a template instructions and its loops memory.
const MESSAGES_MAX: usize = 16_384;
/// Put behind the message to be continued, to find where it ends once rendered.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// Claude Code's attribution line, different in every request; vLLM cuts it out of system texts.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// One message.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) role: String,
    /// Text parts.
    pub(super) content: Vec<String>,
    /// In the shape and order the engine's own parsing leaves them in.
    pub(super) tool_calls: Option<Vec<Value>>,
    pub(super) reasoning: Option<String>,
    pub(super) tool_call_id: Option<Value>,
    pub(super) name: Option<String>,
    pub(super) task: Option<String>,
    /// Of a developer message.
    pub(super) tools: Option<Value>,
}

/// All a template is given by a request.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub(super) turns: Vec<Turn>,
    pub(super) tools: Option<Vec<Value>>,
    pub(super) documents: Option<Value>,
    /// `chat_template_kwargs` and what the engine adds to them.
    pub(super) arguments: Vec<(String, Value)>,
    pub(super) add_generation_prompt: bool,
    pub(super) continue_final_message: bool,
    /// Whether the tokenizer's own special tokens go around the rendered text.
    pub(super) special: bool,
}

impl Conversation {
    /// The text the engine will tokenize.
    pub(super) fn render(
        mut self,
        template: &Template,
        special_tokens: &[(String, Value)],
        bytes_max: usize,
    ) -> Result<String, Unaligned> {
        if self.turns.len() > MESSAGES_MAX {
            return Err(Unaligned::TooLong);
        }
        if self.turns.is_empty() {
            return Err(Unaligned::Shape("no messages"));
        }
        if self.continue_final_message && self.add_generation_prompt {
            return Err(Unaligned::Shape("continues and begins a message"));
        }
        for turn in &mut self.turns {
            if turn.role == "system" {
                without_billing_header(&mut turn.content);
            }
        }
        if !template.knows_developer {
            self.turns = without_developers(std::mem::take(&mut self.turns), template.format);
        }
        let continued = self.mark_continued()?;
        let text = template.render(self.context(template.format, special_tokens), bytes_max)?;
        match continued {
            None => Ok(text),
            Some(message) => cut_at_tag(text, &message),
        }
    }

    fn context(self, format: ContentFormat, special_tokens: &[(String, Value)]) -> Value {
        let messages: Value = self.turns.into_iter().map(|turn| turn.value(format)).collect();
        let tools = self.tools.map_or(Value::from(()), Value::from);
        let fixed = [
            ("messages", messages),
            ("tools", tools),
            ("documents", self.documents.unwrap_or(Value::from(()))),
            ("add_generation_prompt", Value::from(self.add_generation_prompt)),
        ];
        let given = special_tokens.iter().chain(&self.arguments);
        object(given.map(|(name, value)| (name.as_str(), value.clone())).chain(fixed))
    }

    /// Marks the end of the message to be continued; its text.
    fn mark_continued(&mut self) -> Result<Option<String>, Unaligned> {
        if !self.continue_final_message {
            return Ok(None);
        }
        let last = self.turns.last_mut().and_then(|turn| turn.content.last_mut());
        let Some(text) = last else { return Err(Unaligned::Shape("nothing to continue")) };
        let message = text.clone();
        text.push_str(CONTINUE_TAG);
        Ok(Some(message))
    }
}

fn cut_at_tag(mut text: String, message: &str) -> Result<String, Unaligned> {
    let tag = CONTINUE_TAG.trim_end();
    let Some(at) = text.rfind(tag).filter(|_| text.contains(message.trim())) else {
        return Err(Unaligned::Template("the message to continue is not rendered".to_owned()));
    };
    let keeps_space = text[at..].starts_with(CONTINUE_TAG);
    text.truncate(at);
    if !keeps_space {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

fn without_billing_header(texts: &mut Vec<String>) {
    texts.retain_mut(|text| {
        if !text.starts_with(BILLING_HEADER) {
            return true;
        }
        *text = text.split_once('\n').map_or_else(String::new, |(_, rest)| rest.to_owned());
        !text.is_empty()
    });
}

/// Developer messages become system messages, and those one, at the front.
fn without_developers(mut turns: Vec<Turn>, format: ContentFormat) -> Vec<Turn> {
    if !turns.iter().any(|turn| turn.role == "developer") {
        return turns;
    }
    for turn in turns.iter_mut().filter(|turn| turn.role == "developer") {
        turn.role.replace_range(.., "system");
        turn.tools = None;
    }
    if turns.iter().skip(1).all(|turn| turn.role != "system") {
        return turns;
    }
    let (system, others): (Vec<_>, Vec<_>) =
        turns.into_iter().partition(|turn| turn.role == "system");
    let texts: Vec<String> =
        system.iter().map(|turn| turn.text(format)).filter(|text| !text.is_empty()).collect();
    let merged =
        Turn { role: "system".to_owned(), content: vec![texts.join("\n\n")], ..Turn::default() };
    std::iter::once(merged).chain(others).collect()
}

impl Turn {
    fn text(&self, format: ContentFormat) -> String {
        let parts = self.content.iter().map(String::as_str);
        match format {
            ContentFormat::Text => {
                parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
            }
            ContentFormat::Parts => parts.collect::<Vec<_>>().join("\n"),
        }
    }

    fn value(mut self, format: ContentFormat) -> Value {
        let content = if format == ContentFormat::Parts && self.role != "tool" {
            let part = |text| object([("type", "text".into()), ("text", Value::from(text))]);
            self.content.into_iter().map(part).collect()
        } else if self.content.len() == 1 {
            Value::from(self.content.remove(0))
        } else {
            Value::from(self.text(format))
        };
        let mut entries = vec![("role", Value::from(self.role)), ("content", content)];
        entries.extend(self.tool_calls.map(|calls| ("tool_calls", Value::from(calls))));
        if let Some(reasoning) = self.reasoning {
            let reasoning = Value::from(reasoning);
            entries.push(("reasoning", reasoning.clone()));
            entries.push(("reasoning_content", reasoning));
        }
        entries.extend(self.tool_call_id.map(|id| ("tool_call_id", id)));
        entries.extend(self.name.map(|name| ("name", Value::from(name))));
        entries.extend(self.task.map(|task| ("task", Value::from(task))));
        entries.extend(self.tools.map(|tools| ("tools", tools)));
        object(entries)
    }
}
