//! Errors in the OpenAI shape, with vLLM's words where it has some.

use hyper::{Method, Response, StatusCode};
use serde_json::json;

use super::{Body, plain};

/// A request that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<&'static str>,
}

impl ApiError {
    fn bad(kind: &'static str, param: Option<&'static str>, message: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind, message, param }
    }

    pub(super) fn bad_json(error: &serde_json::Error) -> Self {
        Self::bad("Bad Request", Some("body"), format!("1 validation error:\n  {error}"))
    }

    pub(super) fn missing(param: &'static str) -> Self {
        Self::bad(
            "Bad Request",
            Some(param),
            format!("1 validation error:\n  {param}: Field required"),
        )
    }

    pub(super) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self::bad("BadRequestError", Some(param), message.into())
    }

    pub(super) fn too_long(tokens: usize, tokens_max: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {tokens_max} tokens. However, your request \
             has {tokens} input tokens. Please reduce the length of the input messages."
        );
        Self::invalid("input_tokens", message)
    }

    pub(super) fn unread_body() -> Self {
        Self::bad("Bad Request", None, "the request body could not be read".to_owned())
    }

    pub(super) fn no_such_model(asked: &str, served: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            message: format!("The model `{asked}` does not exist. Valid aliases: {served}."),
            param: Some("model"),
        }
    }

    pub(super) fn no_such_path(path: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            message: format!("Not Found: {path}"),
            param: None,
        }
    }

    pub(super) fn wrong_verb(verb: &Method) -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            kind: "BadRequestError",
            message: format!("Method Not Allowed: {verb}"),
            param: None,
        }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let body = json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param,
            "code": self.status.as_u16(),
        }});
        plain(self.status, body.to_string(), "application/json")
    }
}
