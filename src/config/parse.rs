//! File -> `Config`, with errors that name the key, its value and a remedy.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;

use super::{Config, ConfigError, file::File, validate};

/// Reads and validates the file at `path`.
///
/// # Errors
/// `ConfigError` when the file cannot be read, is not YAML, has an unknown key or a value that
/// cannot run. Nothing is bound or started.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    read(path).map(|loaded| loaded.config)
}

/// A configuration and the file it was read from.
#[derive(Debug)]
pub struct Loaded {
    /// What it means.
    pub config: Config,
    /// What it says.
    pub yaml: Value,
}

/// As [`load`], with what the file says.
///
/// # Errors
/// See [`load`].
pub fn read(path: &Path) -> Result<Loaded, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::new("--conf", path.display(), error.to_string(), "name a readable file")
    })?;
    let (file, yaml) = parse(&text)?;
    Ok(Loaded { config: validate::validate(file)?, yaml })
}

#[cfg(test)]
pub(super) fn parse_config(text: &str) -> Result<Config, ConfigError> {
    parse(text).and_then(|(file, _)| validate::validate(file))
}

fn parse(text: &str) -> Result<(File, Value), ConfigError> {
    document(text, "write at least `listen` and `workers`")
}

/// A strict YAML document, with what it says; `remedy` is for an empty one.
pub(super) fn document<T: DeserializeOwned>(
    text: &str,
    remedy: &str,
) -> Result<(T, Value), ConfigError> {
    let value: Value = serde_yaml_ng::from_str(text).map_err(|error| {
        let at = error.location().map_or("file".to_owned(), |l| format!("line {}", l.line()));
        ConfigError::new(at, "not YAML", one_line(&error), "check indentation and quotes")
    })?;
    if value.is_null() {
        return Err(ConfigError::new("file", "empty", "holds no configuration", remedy));
    }
    let file = serde_path_to_error::deserialize(&value).map_err(|error| explain(&error, &value))?;
    Ok((file, value))
}

/// Keys of earlier versions, and what to do about them.
const REMOVED: [(&str, &str); 1] =
    [("request_tokens", "take it out: what a request costs is learned from each worker's answers")];

fn explain(error: &serde_path_to_error::Error<serde_yaml_ng::Error>, root: &Value) -> ConfigError {
    let path = error.path().to_string();
    let text = one_line(error.inner());
    if let Some(unknown) = between(&text, "unknown field `", "`") {
        let parent = parent_of(&path, unknown);
        let key =
            if parent.is_empty() { unknown.to_owned() } else { format!("{parent}.{unknown}") };
        let value = look_up(root, &key);
        let known: Vec<&str> = text.split('`').skip(3).step_by(2).collect();
        let near = known
            .iter()
            .map(|name| (strsim::jaro_winkler(name, unknown), *name))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(likeness, _)| *likeness > 0.75);
        let removed = REMOVED.iter().find(|(name, _)| *name == unknown);
        let remedy = match (removed, near) {
            (Some((_, remedy)), _) => (*remedy).to_owned(),
            (None, Some((_, name))) => format!("did you mean `{name}`?"),
            (None, None) => format!("known keys here: {}", known.join(", ")),
        };
        return ConfigError::new(key, value, "unknown key", remedy);
    }
    if let Some(missing) = between(&text, "missing field `", "`") {
        let key = if path == "." { missing.to_owned() } else { format!("{path}.{missing}") };
        return ConfigError::new(key, "absent", "this key is required", "add it");
    }
    if ["token", "secret", "nats"].iter().any(|secret| path.ends_with(secret)) {
        let remedy = "write a string in quotes";
        return ConfigError::new(path, "(not shown)", "wrong type", remedy);
    }
    let value = look_up(root, &path);
    ConfigError::new(path, value, text, "see conf/example.yaml for the form")
}

/// `serde_path_to_error` may or may not have descended into the unknown key itself.
fn parent_of<'a>(path: &'a str, unknown: &str) -> &'a str {
    if path == "." || path == unknown {
        return "";
    }
    path.strip_suffix(unknown).and_then(|p| p.strip_suffix('.')).unwrap_or(path)
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = &text[text.find(start)? + start.len()..];
    rest.find(end).map(|at| &rest[..at])
}

fn one_line(error: &impl ToString) -> String {
    error.to_string().replace('\n', " ")
}

/// The value at a path like `workers[0].url`, printed on one line.
fn look_up(root: &Value, path: &str) -> String {
    let mut at = root;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (name, indexes) = part.split_once('[').map_or((part, ""), |(n, i)| (n, i));
        if !name.is_empty() {
            let Some(next) = at.get(name) else { return "absent".to_owned() };
            at = next;
        }
        for index in indexes.split('[').filter(|i| !i.is_empty()) {
            let index = index.trim_end_matches(']').parse::<usize>().ok();
            let Some(next) = index.and_then(|i| at.get(i)) else { return "absent".to_owned() };
            at = next;
        }
    }
    match at {
        Value::String(text) => format!("`{text}`"),
        other => serde_json::to_string(other).unwrap_or_else(|_| "unprintable".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse(text).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn unknown_key_names_key_value_and_the_likely_one() {
        assert_eq!(
            message("listen: 127.0.0.1:1\nworkers: [{id: a, url: 'http://x:1', weigth: 2}]"),
            "workers[0].weigth: 2: unknown key; did you mean `weight`?"
        );
        assert_eq!(
            message("listen: 127.0.0.1:1\nlimits: {zzz: 1}").split(';').next().unwrap_or(""),
            "limits.zzz: 1: unknown key"
        );
        assert!(message("polcy: x").starts_with("polcy: `x`: unknown key; did you mean `policy`?"));
    }

    #[test]
    fn wrong_type_names_the_value() {
        let text = message("limits: {inflight_max: many}");
        assert!(text.starts_with("limits.inflight_max: `many`: invalid value"), "{text}");
    }

    #[test]
    fn missing_key_is_named_with_its_place() {
        assert!(message("workers: [{id: a}]").starts_with("workers[0].url: absent:"));
    }

    #[test]
    fn garbage_is_one_line() {
        for text in ["", "\u{0}", "a: [", "- 1\n- 2", "{{{{", "listen: {a: 1}"] {
            assert!(!message(text).contains('\n'), "{text:?}");
        }
    }

    #[test]
    fn the_smallest_file_is_enough() {
        let text = "listen: 127.0.0.1:8080\nworkers: [{id: w0, url: \"http://127.0.0.1:8001\"}]";
        assert!(parse_config(text).is_ok());
    }
}
