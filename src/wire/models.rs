//! `/v1/models`: what workers answer, and the fleet's merged list.

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

/// Entries of one worker's list that are read; a longer list is cut.
pub const MODELS_MAX: usize = 1024;

/// One model as its worker describes it.
#[derive(Debug, Clone)]
pub struct ModelEntry {
    /// Its id.
    pub id: String,
    /// The model it is an adapter of.
    pub parent: Option<String>,
    /// The worker's own JSON for it.
    pub json: Box<RawValue>,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Id {
    id: String,
    #[serde(default)]
    parent: serde_json::Value,
}

/// Reads a worker's answer; entries without an id are skipped.
///
/// # Errors
/// When the body is not JSON with a list `data`.
pub fn parse(body: &[u8]) -> Result<Vec<ModelEntry>, serde_json::Error> {
    let list: List<'_> = serde_json::from_slice(body)?;
    Ok(list.data.into_iter().take(MODELS_MAX).filter_map(entry_of).collect())
}

fn entry_of(raw: &RawValue) -> Option<ModelEntry> {
    let Id { id, parent } = serde_json::from_str(raw.get()).ok()?;
    let parent = parent.as_str().map(str::to_owned);
    Some(ModelEntry { id, parent, json: raw.to_owned() })
}

/// The entry in a worker's own JSON for one model, as kept from before.
pub fn entry(json: &str) -> Option<ModelEntry> {
    entry_of(serde_json::from_str(json).ok()?)
}

/// The entry of a model that a worker declares in the configuration only.
pub fn declared(id: &str) -> Value {
    json!({"id": id, "object": "model", "created": 0, "owned_by": "warmroute"})
}

/// The merged list; `entries` holds every id once.
pub fn list(entries: &[Value]) -> Vec<u8> {
    json!({"object": "list", "data": entries}).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_workers_own_fields_and_skips_what_has_no_id() {
        let body = br#"{"data":[{"id":"a","max_model_len":8},{"x":1},7]}"#;
        let models = parse(body).expect("parses");
        assert_eq!(models.len(), 1);
        assert_eq!(models[0].json.get(), r#"{"id":"a","max_model_len":8}"#);
        assert!(parse(b"{}").is_err());
        let body = br#"{"data":[{"id":"a","parent":null},{"id":"l","parent":"a"}]}"#;
        let parents: Vec<_> =
            parse(body).expect("parses").into_iter().map(|model| model.parent).collect();
        assert_eq!(parents, [None, Some("a".to_owned())]);
    }
}
