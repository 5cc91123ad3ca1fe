//! The files of a model's tokenizer, as HuggingFace lays them out.

use std::{fs, io, path::Path};

use minijinja::Value as Variable;
use serde_json::Value;

/// tokenizer.json of the largest vocabularies has 35 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Why a model's tokenizer could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}; {remedy}")]
pub struct LoadError {
    path: String,
    problem: String,
    remedy: &'static str,
}

impl LoadError {
    pub(super) fn new(path: &Path, problem: &impl ToString, remedy: &'static str) -> Self {
        Self { path: path.display().to_string(), problem: problem.to_string(), remedy }
    }
}

/// What a folder holds.
pub(super) struct Files {
    /// tokenizer.json, with the added tokens that only tokenizer_config.json declares.
    pub(super) tokenizer: Value,
    /// The chat template, and the one for requests with tools if that is another; none for a base
    /// model.
    pub(super) template: Option<String>,
    pub(super) tool_template: Option<String>,
    /// `bos_token` and its like, as templates see them.
    pub(super) special_tokens: Vec<(String, Variable)>,
}

impl Files {
    pub(super) fn read(dir: &Path) -> Result<Self, LoadError> {
        const WHOLE: &str = "point at a folder with the model's tokenizer.json, downloaded whole";
        let mut tokenizer = json(&dir.join("tokenizer.json"), WHOLE)?;
        let config_path = dir.join("tokenizer_config.json");
        let config = if config_path.exists() { json(&config_path, WHOLE)? } else { Value::Null };
        add_declared_tokens(&mut tokenizer, &config).map_err(|problem| {
            LoadError::new(&config_path, &problem, "take both files from the same model")
        })?;
        let mut files =
            Self { tokenizer, template: None, tool_template: None, special_tokens: Vec::new() };
        files.special_tokens = special_tokens(&config);
        files.find_templates(dir, &config)?;
        Ok(files)
    }

    /// A file of its own goes before tokenizer_config.json; a processor's comes last.
    fn find_templates(&mut self, dir: &Path, config: &Value) -> Result<(), LoadError> {
        const REMEDY: &str = "take the chat template from the model's repository";
        match &config["chat_template"] {
            Value::String(template) => self.template = Some(template.clone()),
            Value::Array(templates) => {
                let named = |name: &str| {
                    let found = templates.iter().find(|template| template["name"] == name)?;
                    found["template"].as_str().map(str::to_owned)
                };
                (self.template, self.tool_template) = (named("default"), named("tool_use"));
            }
            _ => {}
        }
        let path = dir.join("chat_template.jinja");
        if path.exists() {
            self.template = Some(text(&path, REMEDY)?);
            self.tool_template = None;
        }
        let path = dir.join("additional_chat_templates").join("tool_use.jinja");
        if path.exists() {
            self.tool_template = Some(text(&path, REMEDY)?);
        }
        let path = dir.join("chat_template.json");
        if self.template.is_none() && path.exists() {
            let template = &json(&path, REMEDY)?["chat_template"];
            self.template = template.as_str().map(str::to_owned);
        }
        Ok(())
    }
}

fn text(path: &Path, remedy: &'static str) -> Result<String, LoadError> {
    let problem = |error: io::Error| LoadError::new(path, &error, remedy);
    let length = fs::metadata(path).map_err(problem)?.len();
    if length > FILE_BYTES_MAX {
        return Err(LoadError::new(path, &format!("{length} bytes are too many"), remedy));
    }
    fs::read_to_string(path).map_err(problem)
}

fn json(path: &Path, remedy: &'static str) -> Result<Value, LoadError> {
    serde_json::from_str(&text(path, remedy)?).map_err(|error| LoadError::new(path, &error, remedy))
}

/// Some models declare added tokens in tokenizer_config.json alone.
fn add_declared_tokens(tokenizer: &mut Value, config: &Value) -> Result<(), &'static str> {
    let Some(declared) = config["added_tokens_decoder"].as_object() else { return Ok(()) };
    let Some(known) = tokenizer["added_tokens"].as_array_mut() else { return Ok(()) };
    let mut missing = Vec::new();
    for (id, token) in declared {
        let id: u32 = id.parse().map_err(|_| "an id of added_tokens_decoder is no number")?;
        if known.iter().any(|it| it["content"] == token["content"]) {
            continue;
        }
        let mut token = token.clone();
        let fields = token.as_object_mut().ok_or("added_tokens_decoder holds no tokens")?;
        fields.insert("id".to_owned(), id.into());
        missing.push((id, token));
    }
    missing.sort_by_key(|(id, _)| *id);
    known.extend(missing.into_iter().map(|(_, token)| token));
    Ok(())
}

/// Each is a text, or an object that has it as `content`; unset ones are not defined at all.
fn special_tokens(config: &Value) -> Vec<(String, Variable)> {
    let Some(fields) = config.as_object() else { return Vec::new() };
    let tokens = fields.iter().filter(|(name, _)| name.ends_with("_token"));
    tokens
        .filter_map(|(name, token)| {
            let text = token.as_str().or_else(|| token["content"].as_str())?;
            Some((name.clone(), Variable::from(text)))
        })
        .collect()
}
