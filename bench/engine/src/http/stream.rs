//! Server-sent events, one HTTP chunk each, exactly as vLLM sends them.
//!
//! The first chunk of a chat has a role and no content and leaves before any prefill: it says
//! that the request was accepted, not that a token is there.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame};

use super::desk::{Arrival, Ticket};
use super::job::{Form, Job};
use super::reply::{Usage, fingerprint, finish_reason, head, quoted};

/// A streamed response. Dropping it cancels what is left of it.
#[derive(Debug)]
pub(crate) struct SseBody {
    job: Job,
    ticket: Ticket,
    head: String,
    usage: Usage,
    /// Events that are due now.
    due: VecDeque<String>,
    /// Choices that have not had their last token.
    left: usize,
}

impl SseBody {
    pub(super) fn new(job: Job, ticket: Ticket) -> Self {
        let is_chat = job.form == Form::Chat;
        let object = if is_chat { "chat.completion.chunk" } else { "text_completion" };
        let head = head(&job, object);
        let role = |choice: usize| {
            format!(
                "{head}\"choices\":[{{\"index\":{choice},\"delta\":{{\"role\":\"assistant\",\
                 \"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}],\
                 \"prompt_token_ids\":null,\"prompt_text\":null}}"
            )
        };
        let left = job.sequences.len();
        let due = (0..left).filter(|_| is_chat).map(role).collect();
        Self { usage: Usage::new(&job), job, ticket, head, due, left }
    }

    /// Turns a token into events.
    fn push(&mut self, arrival: Arrival) {
        self.usage.add(arrival, self.job.choices_per_prompt);
        let event = match self.job.form {
            Form::Chat => self.chat_event(arrival),
            Form::Completion => Some(self.completion_event(arrival)),
        };
        self.due.extend(event);
        if arrival.last {
            self.left -= 1;
        }
        if self.left == 0 {
            if self.job.has_usage {
                let (usage, fingerprint) = (self.usage.to_json(), fingerprint());
                let head = &self.head;
                self.due
                    .push_back(format!("{head}\"choices\":[],\"usage\":{usage},{fingerprint}}}"));
            }
            self.due.push_back("[DONE]".to_owned());
        }
    }

    fn chat_event(&self, arrival: Arrival) -> Option<String> {
        let answer = &self.job.sequences[arrival.choice].answer;
        let piece = answer.piece(arrival.index);
        let delta = match &answer.tool_call {
            None => format!("\"content\":{}", quoted(piece)),
            Some(call) if arrival.index == 0 => format!(
                "\"tool_calls\":[{{\"id\":\"{}\",\"type\":\"function\",\"index\":0,\
                 \"function\":{{\"name\":{},\"arguments\":\"\"}}}}]",
                call.id,
                quoted(&call.name)
            ),
            Some(_) if !piece.is_empty() => format!(
                "\"tool_calls\":[{{\"index\":0,\"function\":{{\"arguments\":{}}}}}]",
                quoted(piece)
            ),
            // Tokens of a call that a client never sees, such as its closing bracket.
            Some(_) if arrival.last => String::new(),
            Some(_) => return None,
        };
        let finish = if arrival.last {
            format!("\"{}\",\"stop_reason\":null", finish_reason(answer))
        } else {
            "null".to_owned()
        };
        Some(format!(
            "{}\"choices\":[{{\"index\":{},\"delta\":{{{delta}}},\"logprobs\":null,\
             \"finish_reason\":{finish},\"token_ids\":null}}]}}",
            self.head, arrival.choice
        ))
    }

    fn completion_event(&self, arrival: Arrival) -> String {
        let answer = &self.job.sequences[arrival.choice].answer;
        let finish = if arrival.last { quoted(finish_reason(answer)) } else { "null".to_owned() };
        format!(
            "{}\"choices\":[{{\"index\":{},\"text\":{},\"logprobs\":null,\"finish_reason\":\
             {finish},\"stop_reason\":null,\"prompt_token_ids\":null,\"token_ids\":null}}]}}",
            self.head,
            arrival.choice,
            quoted(answer.piece(arrival.index))
        )
    }
}

impl Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(event) = self.due.pop_front() {
                let chunk = Bytes::from(format!("data: {event}\n\n"));
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if self.left == 0 {
                return Poll::Ready(None);
            }
            match ready!(self.ticket.tokens.poll_recv(context)) {
                Some(arrival) => self.push(arrival),
                None => return Poll::Ready(None),
            }
        }
    }
}
