//! Every error we answer ourselves, in the shape OpenAI clients read.
//!
//! `code` is stable: clients and alerts may rely on it. `proxy/respond.rs` is the only place that
//! sends one.

use serde_json::json;

use crate::routing::policy::Reason;

/// An answer of our own that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnError {
    /// The body is over the limit.
    #[error("the request body is larger than {limit} bytes")]
    BodyTooLarge {
        /// `limits.body_bytes_max`.
        limit: usize,
    },
    /// The client stopped sending its body, or took too long over it.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// A chunked body over 64 KiB that is JSON without an end.
    #[error("the request body is not complete JSON")]
    BodyIncomplete,
    /// Too many bodies in memory.
    #[error("too many request bytes are in flight; try again shortly")]
    BuffersFull,
    /// `X-Router-Policy` names none.
    #[error("unknown policy in X-Router-Policy; known: {known}")]
    UnknownPolicy {
        /// The known names.
        known: String,
    },
    /// No worker serves the model.
    #[error("the model `{model}` does not exist; available: {known}")]
    UnknownModel {
        /// As asked for, shortened.
        model: String,
        /// What the fleet serves, shortened.
        known: String,
    },
    /// Every worker of the model is out.
    #[error("no worker is available{}", for_model(model.as_deref()))]
    NoWorker {
        /// As asked for.
        model: Option<String>,
    },
    /// Every worker of the model is at its limit.
    #[error("all workers are saturated{}", for_model(model.as_deref()))]
    Saturated {
        /// As asked for.
        model: Option<String>,
    },
    /// The worker broke off before it answered.
    #[error("the worker failed before it answered")]
    WorkerFailed,
    /// The worker could not be reached, nor any other.
    #[error("no worker could be reached")]
    WorkerUnreachable,
    /// The worker was silent for too long.
    #[error("the worker did not answer in time")]
    WorkerTimeout,
    /// The request is malformed at the HTTP level.
    #[error("the request is malformed")]
    BadRequest,
    /// Our own fault.
    #[error("internal error")]
    Internal,
}

fn for_model(model: Option<&str>) -> String {
    model.map_or(String::new(), |model| format!(" for the model `{}`", shorten(model)))
}

/// At most 200 characters of a name that came from outside.
pub fn shorten(name: &str) -> String {
    name.chars().take(200).collect()
}

impl OwnError {
    /// HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            OwnError::BodyTooLarge { .. } => 413,
            OwnError::BodyTimeout => 408,
            OwnError::BodyIncomplete | OwnError::UnknownPolicy { .. } | OwnError::BadRequest => 400,
            OwnError::UnknownModel { .. } => 404,
            OwnError::BuffersFull | OwnError::NoWorker { .. } | OwnError::Saturated { .. } => 503,
            OwnError::WorkerFailed | OwnError::WorkerUnreachable => 502,
            OwnError::WorkerTimeout => 504,
            OwnError::Internal => 500,
        }
    }

    /// Stable machine-readable name.
    pub fn code(&self) -> &'static str {
        match self {
            OwnError::BodyTooLarge { .. } => "body_too_large",
            OwnError::BodyTimeout => "body_timeout",
            OwnError::BodyIncomplete => "body_incomplete",
            OwnError::BuffersFull => "buffers_full",
            OwnError::UnknownPolicy { .. } => "unknown_policy",
            OwnError::UnknownModel { .. } => "model_not_found",
            OwnError::NoWorker { .. } => "no_worker",
            OwnError::Saturated { .. } => "saturated",
            OwnError::WorkerFailed => "worker_failed",
            OwnError::WorkerUnreachable => "worker_unreachable",
            OwnError::WorkerTimeout => "worker_timeout",
            OwnError::BadRequest => "bad_request",
            OwnError::Internal => "internal_error",
        }
    }

    /// Seconds after which the client may try again, where that makes sense.
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            OwnError::BuffersFull | OwnError::Saturated { .. } => Some(1),
            OwnError::NoWorker { .. } => Some(2),
            _ => None,
        }
    }

    /// The reason reported in X-Router-Reason.
    pub fn reason(&self) -> Reason {
        match self {
            OwnError::BodyTooLarge { .. }
            | OwnError::BodyTimeout
            | OwnError::BodyIncomplete
            | OwnError::UnknownPolicy { .. }
            | OwnError::BadRequest => Reason::Rejected,
            OwnError::UnknownModel { .. } => Reason::NoModel,
            OwnError::NoWorker { .. } => Reason::NoWorker,
            OwnError::BuffersFull | OwnError::Saturated { .. } => Reason::Shed,
            OwnError::WorkerFailed
            | OwnError::WorkerUnreachable
            | OwnError::WorkerTimeout
            | OwnError::Internal => Reason::WorkerFailed,
        }
    }

    /// The JSON body.
    pub fn body(&self) -> Vec<u8> {
        let kind = match self.status() {
            404 => "not_found_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let param = matches!(self, OwnError::UnknownModel { .. }).then_some("model");
        json!({"error": {
            "message": self.to_string(), "type": kind, "param": param, "code": self.code(),
        }})
        .to_string()
        .into_bytes()
    }

    /// The same as a last server-sent event, for a stream that breaks off.
    pub fn sse_event(&self) -> Vec<u8> {
        [b"data: ", self.body().as_slice(), b"\n\n"].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_openai_shaped_with_a_stable_code() {
        let error = OwnError::UnknownModel { model: "x\"".into(), known: "a, b".into() };
        let body: serde_json::Value = serde_json::from_slice(&error.body()).expect("JSON");
        assert_eq!(body["error"]["code"], "model_not_found");
        assert_eq!(body["error"]["param"], "model");
        assert_eq!(body["error"]["type"], "not_found_error");
        assert!(body["error"]["message"].as_str().is_some_and(|m| m.contains("a, b")));
    }
}
