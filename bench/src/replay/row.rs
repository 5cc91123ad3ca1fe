//! What became of one request.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::trace::Request;

/// A row of the results.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Row {
    /// Its place in the trace.
    pub request: usize,
    /// Its conversation.
    pub session: Option<Arc<str>>,
    /// Its turn in that.
    pub turn: u32,
    /// When it was due, seconds since the run began.
    pub due_s: f64,
    /// When it was sent; `None` if it never was.
    pub sent_s: Option<f64>,
    /// From sending to the first content.
    pub ttft_ms: Option<f64>,
    /// From sending to the end of the answer.
    pub total_ms: Option<f64>,
    /// Tokens of the prompt, as the answer says.
    pub prompt_tokens: Option<u64>,
    /// Those of them that were cached, as the answer says.
    pub cached_tokens: Option<u64>,
    /// Tokens of the answer.
    pub answer_tokens: Option<u64>,
    /// X-Router-Backend.
    pub worker: Option<String>,
    /// X-Router-Reason.
    pub reason: Option<String>,
    /// HTTP status, once there was one.
    pub status: Option<u16>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Row {
    /// Of a request that is not sent yet.
    pub fn new(place: usize, request: &Request, due_s: f64) -> Self {
        Self {
            request: place,
            session: request.session.clone(),
            turn: request.turn,
            due_s,
            ..Self::default()
        }
    }

    /// Whether it was answered in full.
    pub fn is_answered(&self) -> bool {
        self.error.is_none() && self.total_ms.is_some()
    }

    /// How late it was sent: more than some milliseconds say that the client could not keep up.
    pub fn late_ms(&self) -> Option<f64> {
        self.sent_s.map(|sent| (sent - self.due_s) * 1e3)
    }
}
