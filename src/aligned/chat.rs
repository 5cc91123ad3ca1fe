//! `/v1/chat/completions` bodies to conversations, as vLLM 0.32 reads them.
//!
//! vLLM's request models are followed where they change what a template sees: tools are printed
//! field by field in the model's order, absent ones as null; tool calls are put in order, and their
//! arguments parsed. What they refuse is unaligned here: the engine will answer with an error.

use minijinja::{Value, value::ValueKind};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    Unaligned,
    content::Content,
    conversation::{Conversation, Turn},
    template::object,
};

/// Arguments of `apply_chat_template` that are not the template's.
const RESERVED: [&str; 13] = [
    "chat_template",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "self",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
];

/// The fields of a chat body that reach its prompt.
#[derive(Deserialize)]
struct ChatBody {
    messages: Vec<Message>,
    tools: Option<Vec<Tool>>,
    documents: Option<Vec<Value>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    add_special_tokens: Option<bool>,
    reasoning_effort: Option<String>,
    chat_template: Option<IgnoredAny>,
    chat_template_kwargs: Option<Value>,
    truncate_prompt_tokens: Option<IgnoredAny>,
    kv_transfer_params: Option<KvTransfer>,
}

/// Prompts of disaggregated engines may come as ids from the engine that prefilled them.
#[derive(Deserialize)]
pub(super) struct KvTransfer {
    prompt_token_ids: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Content,
    tool_calls: Option<Vec<Value>>,
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    tool_call_id: Option<Value>,
    name: Option<Value>,
    task: Option<Value>,
    tools: Option<Value>,
}

#[derive(Deserialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Function,
    defer_loading: Option<bool>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
    defer_loading: Option<bool>,
}

/// The conversation of a chat body.
pub(super) fn parse(body: &[u8]) -> Result<Conversation, Unaligned> {
    let body: ChatBody = serde_json::from_slice(body).map_err(|_| Unaligned::Shape("chat body"))?;
    if body.chat_template.is_some() {
        return Err(Unaligned::Shape("chat_template in the request"));
    }
    if body.truncate_prompt_tokens.is_some() {
        return Err(Unaligned::Shape("truncate_prompt_tokens"));
    }
    refuse_forwarded_ids(body.kv_transfer_params.as_ref())?;
    let tools = match body.tools {
        None => None,
        Some(tools) if tools.is_empty() => return Err(Unaligned::Shape("empty tools")),
        Some(tools) => Some(tools.into_iter().map(Tool::value).collect::<Result<_, _>>()?),
    };
    let documents = body.documents.map(Value::from);
    let mut arguments = arguments(body.chat_template_kwargs, body.reasoning_effort)?;
    // The fields of the body stand above the arguments of the same names.
    let given = arguments.iter().position(|(name, _)| name == "documents");
    let argued = given.map(|at| arguments.remove(at).1);
    Ok(Conversation {
        turns: body.messages.into_iter().map(Message::turn).collect::<Result<_, _>>()?,
        tools,
        documents: documents.or(argued),
        arguments,
        add_generation_prompt: body.add_generation_prompt.unwrap_or(true),
        continue_final_message: body.continue_final_message.unwrap_or(false),
        special: body.add_special_tokens.unwrap_or(false),
    })
}

/// Refuses a request that brings its prompt's ids along.
pub(super) fn refuse_forwarded_ids(transfer: Option<&KvTransfer>) -> Result<(), Unaligned> {
    match transfer.and_then(|transfer| transfer.prompt_token_ids.as_ref()) {
        Some(_) => Err(Unaligned::Shape("prompt_token_ids of a transfer")),
        None => Ok(()),
    }
}

/// What `chat_template_kwargs` and the reasoning effort add to a template's variables.
pub(super) fn arguments(
    given: Option<Value>,
    reasoning_effort: Option<String>,
) -> Result<Vec<(String, Value)>, Unaligned> {
    let mut arguments = Vec::new();
    let mut thinks = reasoning_effort.as_ref().map(|effort| effort != "none");
    if let Some(given) = given.filter(|given| !given.is_none()) {
        for (name, value) in entries(&given, "chat_template_kwargs")? {
            if RESERVED.contains(&name.as_str()) {
                return Err(Unaligned::Shape("reserved name in chat_template_kwargs"));
            }
            if name == "enable_thinking" {
                thinks = None;
            }
            let is_unset = value.is_none() || value.as_str() == Some("auto");
            let is_field =
                matches!(name.as_str(), "add_generation_prompt" | "continue_final_message")
                    || name == "reasoning_effort" && reasoning_effort.is_some();
            if !is_unset && !is_field {
                arguments.push((name, value));
            }
        }
    }
    arguments.extend(thinks.map(|thinks| ("enable_thinking".to_owned(), Value::from(thinks))));
    arguments.extend(reasoning_effort.map(|it| ("reasoning_effort".to_owned(), Value::from(it))));
    Ok(arguments)
}

/// The entries of a JSON object.
fn entries(value: &Value, what: &'static str) -> Result<Vec<(String, Value)>, Unaligned> {
    if value.kind() != ValueKind::Map {
        return Err(Unaligned::Shape(what));
    }
    let keys = value.try_iter().map_err(|_| Unaligned::Shape(what))?;
    keys.map(|key| {
        let name = key.as_str().ok_or(Unaligned::Shape(what))?.to_owned();
        let value = value.get_item(&key).map_err(|_| Unaligned::Shape(what))?;
        Ok((name, value))
    })
    .collect()
}

impl Message {
    fn turn(self) -> Result<Turn, Unaligned> {
        let is = |role: &str| self.role == role;
        let text = |value: Option<Value>| value.and_then(|it| it.as_str().map(str::to_owned));
        let calls = self.tool_calls.filter(|calls| is("assistant") && !calls.is_empty());
        let calls = calls.map(|calls| calls.iter().map(tool_call).collect::<Result<_, _>>());
        Ok(Turn {
            content: self.content.texts()?,
            tool_calls: calls.transpose()?,
            reasoning: self.reasoning.or(self.reasoning_content).filter(|_| is("assistant")),
            tool_call_id: self.tool_call_id.filter(|_| is("tool")),
            name: text(self.name),
            task: text(self.task),
            tools: is("developer").then(|| self.tools.unwrap_or(Value::from(()))),
            role: self.role,
        })
    }
}

/// A tool call with its known fields in front, and its arguments as an object.
fn tool_call(call: &Value) -> Result<Value, Unaligned> {
    const WHAT: &str = "tool call";
    let mut fields = entries(call, WHAT)?;
    let mut take = |name: &str| {
        let at = fields.iter().position(|(field, _)| field == name)?;
        Some(fields.remove(at).1)
    };
    let (id, function, kind) = (take("id"), take("function"), take("type"));
    let (Some(id), Some(function), Some("function")) =
        (id, function, kind.as_ref().and_then(Value::as_str))
    else {
        return Err(Unaligned::Shape(WHAT));
    };
    let mut inner = entries(&function, WHAT)?;
    let mut take = |name: &str| {
        let at = inner.iter().position(|(field, _)| field == name)?;
        Some(inner.remove(at).1)
    };
    let (arguments, name) = (take("arguments"), take("name"));
    let Some(name) = name.filter(|name| name.as_str().is_some()) else {
        return Err(Unaligned::Shape(WHAT));
    };
    let function = [("arguments", tool_arguments(arguments)?), ("name", name)];
    let others = inner.iter().map(|(name, value)| (name.as_str(), value.clone()));
    let function = object(function.into_iter().chain(others));
    let call = [("id", id), ("function", function), ("type", "function".into())];
    let others = fields.iter().map(|(name, value)| (name.as_str(), value.clone()));
    Ok(object(call.into_iter().chain(others)))
}

/// Arguments are sent as JSON in a string; what is no object becomes an empty one. JSON that we
/// cannot read may be some that Python can (NaN, half surrogates), so that is not decided here.
fn tool_arguments(arguments: Option<Value>) -> Result<Value, Unaligned> {
    let empty = || object([]);
    let Some(arguments) = arguments else { return Ok(empty()) };
    let parsed = match arguments.as_str() {
        Some("") => return Ok(empty()),
        Some(text) => serde_json::from_str::<Value>(text)
            .map_err(|_| Unaligned::Shape("arguments of a tool call"))?,
        None => arguments,
    };
    Ok(if parsed.kind() == ValueKind::Map { parsed } else { empty() })
}

impl Tool {
    fn value(self) -> Result<Value, Unaligned> {
        const WHAT: &str = "tool";
        if self.kind.is_some_and(|kind| kind != "function") {
            return Err(Unaligned::Shape(WHAT));
        }
        let function = self.function;
        let parameters = function.parameters.unwrap_or(Value::from(()));
        if !parameters.is_none() && parameters.kind() != ValueKind::Map {
            return Err(Unaligned::Shape(WHAT));
        }
        let optional = |name, value: Option<bool>| value.map(|it| (name, Value::from(it)));
        let mut fields = vec![
            ("name", Value::from(function.name)),
            ("description", function.description.map_or(Value::from(()), Value::from)),
            ("parameters", parameters),
        ];
        fields.extend(optional("strict", function.strict));
        fields.extend(optional("defer_loading", function.defer_loading.or(self.defer_loading)));
        let mut tool = vec![("type", "function".into()), ("function", object(fields))];
        tool.extend(optional("defer_loading", self.defer_loading));
        Ok(object(tool))
    }
}
