//! Values as Python writes them.
//!
//! Chat templates are written for Jinja2, where `{{ x }}` is Python's `str(x)`, `tojson` is
//! `json.dumps` and `strip` knows Python's white space. Where minijinja differs, this takes over.
//! What Python would print in a way we cannot tell is an error, never a guess.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind},
};
use minijinja_contrib::pycompat;

/// From here on a number without a fraction may have been an integer to Python: 2^63.
const INTEGERS_END: f64 = 9_223_372_036_854_775_808.0;

/// How `json.dumps` was called.
#[derive(Debug, Clone)]
struct Dump {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

/// The `tojson` of HuggingFace's templates: `json.dumps` without HTML escaping, keys in order.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a filter")]
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(value)?.min(16)),
        }),
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(refuse("tojson: separators must be two texts")),
    };
    let dump = Dump {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    dump.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

impl Dump {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)?),
            ValueKind::String => self.text(value.as_str().unwrap_or(""), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.all('[', ']', &items, depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.all('{', '}', &keys, depth, out, |key, out| {
                    match key.as_str() {
                        Some(text) => self.text(text, out),
                        None => return Err(refuse("tojson: a key is no text")),
                    }
                    out.push_str(&self.key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            kind => return Err(refuse(format!("tojson: {kind} is not JSON"))),
        }
        Ok(())
    }

    fn all(
        &self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        out: &mut String,
        write: impl Fn(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                out.push_str(&self.item);
            }
            self.line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for char in text.chars() {
            match char {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..' ' => escape(char as u16, out),
                _ if self.ascii && !char.is_ascii() => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        escape(*unit, out);
                    }
                }
                _ => out.push(char),
            }
        }
        out.push('"');
    }
}

fn escape(unit: u16, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\\u{unit:04x}");
}

fn refuse(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let value = f64::try_from(value.clone())?;
    // Python keeps integers of any size apart from floats, and -0 is one; our parser does not.
    if value.fract() == 0.0 && value.abs() >= INTEGERS_END
        || value == 0.0 && value.is_sign_negative()
    {
        return Err(refuse("a number that may be an integer or not"));
    }
    Ok(float(value))
}

/// `repr` of a float: the shortest digits, an exponent from 1e16 on and below 1e-4.
fn float(value: f64) -> String {
    if !value.is_finite() {
        let sign = if value < 0.0 { "-" } else { "" };
        return if value.is_nan() { "NaN".to_owned() } else { format!("{sign}Infinity") };
    }
    let scientific = format!("{value:e}");
    let exponent = scientific.split_once('e').and_then(|(_, e)| e.parse::<i32>().ok()).unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let digits = scientific.split('e').next().unwrap_or("");
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `{{ value }}`.
pub(super) fn formatter(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => out.write_str(text)?,
        None => out.write_str(&str_of(value)?)?,
    }
    Ok(())
}

/// The `string` filter.
pub(super) fn string(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value.clone());
    }
    str_of(value).map(Value::from)
}

fn str_of(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    if value.is_undefined() {
        return Ok(out);
    }
    repr(value, &mut out)?;
    Ok(out)
}

fn repr(value: &Value, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)?),
        ValueKind::String => quoted(value.as_str().unwrap_or(""), out)?,
        ValueKind::Seq => {
            out.push('[');
            for (at, item) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(&item, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(&key, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, out)?;
            }
            out.push('}');
        }
        kind => return Err(refuse(format!("cannot print {kind} as Python does"))),
    }
    Ok(())
}

fn quoted(text: &str, out: &mut String) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if char == quote => out.extend(['\\', char]),
            ' '..='~' => out.push(char),
            _ if char.is_alphanumeric() => out.push(char),
            // Python escapes what it does not hold printable; we have no table of that.
            _ => return Err(refuse("a text inside a printed list holds unusual characters")),
        }
    }
    out.push(quote);
    Ok(())
}

/// Python's white space: Unicode's, and four separators.
fn is_space(char: char) -> bool {
    char.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&char)
}

/// The `trim` filter.
pub(super) fn trim(value: &Value, chars: Option<&str>) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return Ok(Value::from(str_of(value)?.trim()));
    };
    Ok(Value::from(match chars {
        Some(chars) => text.trim_matches(|char| chars.contains(char)),
        None => text.trim_matches(is_space),
    }))
}

/// Methods of Python's values.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let odd = |char: char| is_space(char) && !matches!(char, ' ' | '\n' | '\t' | '\u{a0}');
    match (value.as_str(), name, args) {
        (Some(text), "strip", []) => Ok(Value::from(text.trim_matches(is_space))),
        (Some(text), "lstrip", []) => Ok(Value::from(text.trim_start_matches(is_space))),
        (Some(text), "rstrip", []) => Ok(Value::from(text.trim_end_matches(is_space))),
        (Some(text), "title", []) if text.is_ascii() => Ok(Value::from(title(text))),
        (Some(_), "title", _) => Err(refuse("a title of unusual letters")),
        // These know fewer separators than Python's.
        (Some(text), "splitlines" | "isspace", _) if text.contains(odd) => {
            Err(refuse("unusual white space in a text that is taken apart"))
        }
        (Some(text), "split", []) if text.contains(odd) => {
            Err(refuse("unusual white space in a text that is taken apart"))
        }
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// A letter is upper case unless it follows another.
fn title(text: &str) -> String {
    let mut after_letter = false;
    let mut one = |char: char| {
        let lower = std::mem::replace(&mut after_letter, char.is_ascii_alphabetic());
        if lower { char.to_ascii_lowercase() } else { char.to_ascii_uppercase() }
    };
    text.chars().map(&mut one).collect()
}

/// `strftime_now` of templates that print the date. Engines use their local time; ours is UTC, as
/// that of nearly every container.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(|error| refuse(error.to_string()))
}

/// `raise_exception`: the template refuses the request, and so will the engine.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}
