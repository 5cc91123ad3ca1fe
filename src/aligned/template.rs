//! A model's chat template, and rendering within bounds.
//!
//! The environment is the one of HuggingFace's `apply_chat_template`: trimmed blocks, loop
//! controls, Python's methods, its own `tojson`. Templates come with the model and are trusted as
//! far as the model is; requests are not, so instructions, recursion and output are limited.

use std::io;

use minijinja::{AutoEscape, Environment, ErrorKind, Value, machinery, syntax::SyntaxConfig};

use super::{
    Unaligned,
    content_format::{self, ContentFormat},
    python,
};

/// VM instructions one rendering may take: some 40 a message and as many a tool, so 100,000
/// messages; a few tenths of a second at the most.
const FUEL: u64 = 5_000_000;
/// Macros may call themselves this deep.
const RECURSION_MAX: usize = 64;
/// Characters of a template's complaint that are kept.
const DETAIL_CHARS_MAX: usize = 200;

/// The name of the one template of an environment.
const NAME: &str = "chat";

/// One compiled chat template.
pub(super) struct Template {
    environment: Environment<'static>,
    /// How it wants message content.
    pub(super) format: ContentFormat,
    /// Whether it tells `developer` from `system`.
    pub(super) knows_developer: bool,
    /// Whether it refuses a system message that is not the first.
    pub(super) system_first: bool,
}

impl Template {
    /// Compiles `source`; the error says what is wrong with it.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        let source = without_generation_marks(source);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|error| error.to_string())?;
        let tree = machinery::parse(&source, NAME, syntax.clone());
        let format = content_format::detect(&tree.map_err(|error| error.to_string())?);
        let knows_developer = source.contains("\"developer\"") || source.contains("'developer'");

        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_formatter(python::formatter);
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("string", python::string);
        environment.add_filter("trim", python::trim);
        environment.add_function("strftime_now", python::strftime_now);
        environment.add_function("raise_exception", python::raise_exception);
        environment.add_template_owned(NAME, source).map_err(|error| error.to_string())?;
        let mut template = Self { environment, format, knows_developer, system_first: false };
        template.system_first = template.render(system_probe(), 1 << 20).is_err();
        Ok(template)
    }

    /// The text of `context`, of at most `bytes_max`.
    pub(super) fn render(&self, context: Value, bytes_max: usize) -> Result<String, Unaligned> {
        let template = self.environment.get_template(NAME).map_err(|error| refused(&error))?;
        let mut out = Bounded { bytes: Vec::new(), bytes_max, full: false };
        let done = template.render_captured_to(context, &mut out).map(drop);
        if out.full {
            return Err(Unaligned::TooLong);
        }
        done.map_err(|error| refused(&error))?;
        String::from_utf8(out.bytes).map_err(|_| Unaligned::Template("not UTF-8".to_owned()))
    }
}

fn refused(error: &minijinja::Error) -> Unaligned {
    if error.kind() == ErrorKind::OutOfFuel {
        return Unaligned::TooLong;
    }
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Unaligned::Template(detail.chars().take(DETAIL_CHARS_MAX).collect())
}

/// The conversation vLLM tries a template with, to learn where system messages may stand.
fn system_probe() -> Value {
    let turns = ["system", "user", "system", "user"];
    let messages = turns.map(|role| object([("role", role.into()), ("content", "t".into())]));
    object([
        ("messages", messages.into_iter().collect()),
        ("add_generation_prompt", Value::from(false)),
    ])
}

/// A map with these entries, in this order.
pub(super) fn object<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::from_pairs(entries)
}

/// `{% generation %}` marks what the assistant said, for training; it prints what it encloses.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        let Some(end) = tag.find("%}").map(|end| end + 2) else { break };
        out.push_str(before);
        let inner = &tag[2..end - 2];
        let name = inner.trim_matches(['-', '+']).trim();
        match name {
            "generation" => out.push_str(&tag[..end].replace(name, "if true")),
            "endgeneration" => out.push_str(&tag[..end].replace(name, "endif")),
            _ => out.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.bytes_max - self.bytes.len() {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
