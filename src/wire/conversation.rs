//! A conversation to canonical text (docs/text-mode.md): chat, responses and Anthropic messages.

use std::borrow::Cow;

use xxhash_rust::xxh3::Xxh3;

use super::{
    content::{self, Sink, is_filled},
    json::{Malformed, Reader, text},
};
use crate::routing::block::BlockHasher;

/// One message, or one item of `input`: what is read of it as it is written, "" where absent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    role: &'a str,
    content: &'a str,
    tool_calls: &'a str,
    output: &'a str,
}

impl<'a> Message<'a> {
    /// Reads the next value.
    ///
    /// # Errors
    /// It is none, or not of a shape we know.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        const NAMES: [&str; 4] = ["role", "content", "tool_calls", "output"];
        let fields = reader.fields(&NAMES, |_, reader| reader.value())?;
        if fields.repeated != 0 {
            return Err(Malformed);
        }
        let [role, content, tool_calls, output] = fields.values;
        Ok(Self { role, content, tool_calls, output })
    }

    /// Whether it says whose it is; an item of `input` need not.
    pub(super) fn has_role(&self) -> bool {
        self.role.len() > 2
    }

    fn role(&self) -> Cow<'a, str> {
        text(self.role).unwrap_or_default()
    }

    fn leads(&self) -> bool {
        matches!(&*self.role(), "system" | "developer")
    }

    /// `whole` is its JSON, where it may be needed.
    fn write(&self, whole: &str, sink: &mut impl Sink) {
        let role = self.role();
        if role.is_empty() {
            let said = self.output.starts_with('"');
            message("tool", if said { self.output } else { whole }, "", sink);
        } else {
            message(&role, self.content, self.tool_calls, sink);
        }
    }
}

/// The messages, as far as they were read.
#[derive(Clone, Copy)]
pub(super) enum List<'a> {
    /// Read with the body; all have a role.
    Read(&'a [Message<'a>]),
    /// JSON of any shape.
    Raw(&'a str),
}

/// What stands around the messages.
pub(super) struct Frame<'a> {
    /// `system` or `instructions`, raw.
    pub(super) head: &'a str,
    /// `tools` and `functions`, raw.
    pub(super) tools: [&'a str; 2],
    /// Whether system messages may lead the list.
    pub(super) leads: bool,
    /// Whether a string stands for one message of the user.
    pub(super) takes_string: bool,
    /// Whether only the system prompt and tools are asked for; the rest is neither read nor written.
    pub(super) only_leading: bool,
    /// Whether the system prompt and tools are hashed.
    pub(super) hash_leading: bool,
}

/// Hash of a system prompt and tools; `None` where there are none, or nobody asks.
pub(super) type Prefix = Option<u64>;

/// Writes a conversation; gives the hash of its system prompt and tools (if any), or `None` when
/// there is no conversation to be read.
pub(super) fn write(frame: &Frame<'_>, list: List<'_>, hasher: &mut BlockHasher) -> Option<Prefix> {
    let mut writer = Writer {
        frame,
        // The system prompt and tools are hashed once more, without the secret: `prefix-affinity`
        // must agree between routers and over restarts.
        sink: Tee { hasher, leading: frame.hash_leading.then(Xxh3::new) },
        leads: true,
        prefix: None,
    };
    if !frame.head.is_empty() {
        message("system", frame.head, "", &mut writer.sink);
    }
    match list {
        List::Read(messages) => {
            for message in messages {
                if writer.is_done() {
                    break;
                }
                writer.message(message, "");
            }
        }
        List::Raw(list) if list.starts_with('[') => {
            let read = Reader::new(list).array(|items| {
                let whole = items.value()?;
                if writer.is_done() {
                    return Ok(());
                }
                if !whole.starts_with('{') {
                    return Err(Malformed);
                }
                if let Ok(message) = Message::read(&mut Reader::new(whole)) {
                    writer.message(&message, whole);
                } else {
                    writer.end_of_leading();
                    if !writer.is_done() {
                        writer.sink.push(whole.as_bytes());
                    }
                }
                Ok(())
            });
            read.ok()?;
        }
        List::Raw(string) if frame.takes_string && string.starts_with('"') => {
            writer.end_of_leading();
            if !writer.is_done() {
                message("user", string, "", &mut writer.sink);
            }
        }
        List::Raw(_) => return None,
    }
    writer.end_of_leading();
    if !writer.is_done() {
        writer.sink.push(b"<|im_start|>assistant\n");
    }
    Some(writer.prefix)
}

struct Writer<'a> {
    frame: &'a Frame<'a>,
    sink: Tee<'a>,
    /// Whether nothing but leading messages has come.
    leads: bool,
    prefix: Option<u64>,
}

impl Writer<'_> {
    fn is_done(&self) -> bool {
        self.frame.only_leading && !self.leads
    }

    fn message(&mut self, message: &Message<'_>, whole: &str) {
        if !(self.frame.leads && self.leads && message.leads()) {
            self.end_of_leading();
        }
        if !self.is_done() {
            message.write(whole, &mut self.sink);
        }
    }

    /// Behind the leading messages come the tools; there the common part of prompts ends.
    fn end_of_leading(&mut self) {
        if !std::mem::take(&mut self.leads) {
            return;
        }
        for tools in self.frame.tools {
            if is_filled(tools) {
                framed("tools", &mut self.sink, |sink| sink.push(tools.as_bytes()));
            }
        }
        let all = self.sink.leading.take().map(|all| all.digest());
        self.prefix = all.filter(|_| self.sink.hasher.bytes() > 0);
    }
}

/// Hashes blocks, and the leading part as a whole.
struct Tee<'a> {
    hasher: &'a mut BlockHasher,
    leading: Option<Xxh3>,
}

impl Sink for Tee<'_> {
    fn push(&mut self, bytes: &[u8]) {
        self.hasher.push(bytes);
        if let Some(leading) = &mut self.leading {
            leading.update(bytes);
        }
    }
}

fn message(role: &str, content: &str, tool_calls: &str, sink: &mut impl Sink) {
    framed(role, sink, |sink| {
        content::write(content, sink);
        if is_filled(tool_calls) {
            sink.push(b"\n");
            sink.push(tool_calls.as_bytes());
        }
    });
}

fn framed<S: Sink>(role: &str, sink: &mut S, body: impl FnOnce(&mut S)) {
    sink.push(b"<|im_start|>");
    sink.push(role.as_bytes());
    sink.push(b"\n");
    body(sink);
    sink.push(b"<|im_end|>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::block::Secret;

    /// The bytes that were written, and the hash of the leading ones.
    fn written(list: List<'_>, only_leading: bool) -> (u64, Option<Prefix>) {
        let frame = Frame {
            head: "",
            tools: ["", ""],
            leads: true,
            takes_string: true,
            only_leading,
            hash_leading: true,
        };
        let block_bytes = std::num::NonZeroUsize::new(16).expect("not zero");
        let mut hasher = BlockHasher::new(Secret::from_seed(1).root(&[]), block_bytes);
        let prefix = write(&frame, list, &mut hasher);
        (hasher.bytes(), prefix)
    }

    #[test]
    fn only_what_leads_is_hashed_where_no_more_is_asked_for() {
        let system = r#"{"role":"system","content":"S"}"#;
        let users = r#"{"role":"user","content":"0123456789"},{"role":"user","content":"x"}"#;
        let json = format!("[{system},{users}]");
        let mut messages = Vec::new();
        let read = Reader::new(&json).array(|items| {
            messages.push(Message::read(items)?);
            Ok(())
        });
        assert_eq!(read, Ok(()));
        let leading = "<|im_start|>system\nS<|im_end|>\n".len() as u64;
        for list in [List::Read(&messages), List::Raw(&json)] {
            let (bytes, prefix) = written(list, true);
            assert_eq!(bytes, leading);
            let (all, same) = written(list, false);
            assert!(all > bytes && prefix.is_some());
            assert_eq!(prefix, same);
        }
        let odd = format!(r#"[{system},{{"role":"user","role":"x"}}]"#);
        assert_eq!(written(List::Raw(&odd), true).0, leading);
        assert_eq!(written(List::Raw(r#""a string""#), true), (0, Some(None)));
    }
}
