//! What one request carries between Pingora's phases.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderValue;
use rand::Rng;
use smallvec::SmallVec;

use super::{
    Settings,
    body::{Held, Replay},
};
use crate::{
    config::{BYTES_PER_TOKEN, Config},
    drain::OpenRequest,
    fleet::{Domain, Fleet, Member, Picked, Verdict},
    routing::{Outcome, Policy, PolicyParams, PromptKind, Reason, Regret, WorkerId},
    wire::{
        endpoint::Endpoint, error_body::OwnError, include_usage::Strip, prompt::Facts,
        sse::FirstContent, usage::UsageWatch,
    },
};

/// Context of one request.
#[derive(Debug)]
pub struct RequestContext {
    /// What it goes by from its start to its end.
    pub settings: Arc<Settings>,
    /// When its header was read.
    pub arrived: Instant,
    /// X-Request-Id.
    pub request_id: HeaderValue,
    /// What is asked for.
    pub endpoint: Endpoint,
    /// Policy in force.
    pub policy: (Policy, PolicyParams),
    /// What the body says.
    pub facts: Facts,
    /// Whether there is a prompt.
    pub kind: PromptKind,
    /// Session, hashed.
    pub session: Option<u64>,
    /// Whether it is some tenant's.
    pub tenant: bool,
    /// How what we predicted did.
    pub verdict: Option<Verdict>,
    /// The body, until it cannot be needed any more.
    pub held: Option<Held>,
    /// Its size.
    pub body_bytes: usize,
    /// How it is sent.
    pub replay: Replay,
    /// The attempt under way.
    pub attempt: Option<Attempt>,
    /// Workers tried in vain.
    pub tried: SmallVec<[WorkerId; 4]>,
    /// Attempts made.
    pub tries: usize,
    /// Whether a stale connection was the cause of one of them.
    pub stale_retried: bool,
    /// Our own error, once there is one.
    pub failure: Option<OwnError>,
    /// Reason told to the client.
    pub reason: Option<Reason>,
    /// Matched and total blocks told to the client.
    pub matched: (usize, usize),
    /// What the last pick left unused.
    pub regret: Regret,
    /// Whom the shadow policy would have picked there.
    pub shadow: Option<WorkerId>,
    /// Worker told to the client.
    pub worker: Option<Arc<Member>>,
    /// Status of an answer of our own.
    pub own_status: Option<u16>,
    /// The answer as it streams by.
    pub stream: StreamWatch,
    /// Keeps a draining process from leaving before the answer has ended.
    _open: OpenRequest,
}

/// One attempt at one worker.
#[derive(Debug)]
pub struct Attempt {
    /// Where, and the load it counts as.
    pub picked: Picked,
    /// When the connection stood.
    pub connected_at: Option<Instant>,
    /// Whether its outcome was recorded.
    pub outcome_known: bool,
}

/// What is seen of a streamed answer.
#[derive(Debug, Default)]
pub struct StreamWatch {
    /// Whether the answer is server-sent events.
    pub is_sse: bool,
    /// Finds the first content.
    pub first: FirstContent,
    /// Time to it.
    pub ttft: Option<Duration>,
    /// When the last chunk came.
    pub last_chunk: Option<Instant>,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Finds what the answer says of the cache; none where nobody asks.
    pub usage: Option<UsageWatch>,
    /// Takes out the usage that only we asked for.
    pub strip: Option<Strip>,
}

impl RequestContext {
    /// A request that has just arrived.
    pub fn new(settings: Arc<Settings>, open: OpenRequest, now: Instant) -> Self {
        Self {
            policy: settings.config().policies.default,
            settings,
            arrived: now,
            request_id: new_request_id(),
            endpoint: Endpoint::Other,
            facts: Facts::default(),
            kind: PromptKind::NoPrompt,
            session: None,
            tenant: false,
            verdict: None,
            held: None,
            body_bytes: 0,
            replay: Replay::default(),
            attempt: None,
            tried: SmallVec::new(),
            tries: 0,
            stale_retried: false,
            failure: None,
            reason: None,
            matched: (0, 0),
            regret: Regret::default(),
            shadow: None,
            worker: None,
            own_status: None,
            stream: StreamWatch::default(),
            _open: open,
        }
    }

    /// The configuration it goes by.
    pub fn config(&self) -> &Config {
        self.settings.config()
    }

    /// What the prompt's blocks are named by.
    pub fn domain(&self) -> Domain {
        if self.facts.tokens.is_some() { Domain::Tokens } else { Domain::Text }
    }

    /// Prompt tokens, estimated where they are not known.
    pub fn tokens(&self) -> u64 {
        if let Some(tokens) = self.facts.tokens {
            return tokens;
        }
        let bytes = match self.kind {
            PromptKind::Prompt => self.facts.prompt_bytes,
            PromptKind::NoPrompt | PromptKind::Unreadable => self.body_bytes as u64,
        };
        bytes / BYTES_PER_TOKEN as u64
    }

    /// Records how the present attempt ended; only its first outcome counts.
    pub fn record_outcome(&mut self, fleet: &Fleet, outcome: Outcome, now: Instant) {
        let Some(attempt) = &mut self.attempt else { return };
        if attempt.outcome_known {
            return;
        }
        attempt.outcome_known = true;
        fleet.record_outcome(&attempt.picked.member, outcome, attempt.picked.at, now);
    }

    /// The worker got the request, and no other will: what was decided counts.
    pub fn stands(&mut self) {
        if let Some(attempt) = &mut self.attempt {
            attempt.picked.account.count();
        }
    }

    /// The attempt is over: it counts unless it was struck before, and says nothing on the worker's
    /// health, if nothing was recorded.
    pub fn end_attempt(&mut self) {
        self.stands();
        if let Some(attempt) = self.attempt.take()
            && !attempt.outcome_known
            && attempt.picked.probe
        {
            Fleet::abandon_probe(&attempt.picked.member, attempt.picked.at);
        }
    }

    /// The first content of a stream has come.
    pub fn first_token(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.picked.guard.first_token(now);
        }
    }

    /// An answer that is no stream begins.
    pub fn whole_answer(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.picked.guard.whole_answer(now);
        }
    }

    /// The worker says no.
    pub fn refused(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.picked.guard.refused(now);
        }
    }

    /// The answer goes well so far. Only a breaker's probe is judged by that, as others wait for its
    /// verdict; an answer may still break off, and is judged by its end.
    pub fn goes_well(&mut self, fleet: &Fleet, now: Instant) {
        if self.attempt.as_ref().is_some_and(|attempt| attempt.picked.probe) {
            self.record_outcome(fleet, Outcome::Success, now);
        }
    }

    /// X-Request-Id, as text.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// Name of the worker, for logs and metrics.
    pub fn worker_label(&self) -> &str {
        self.worker.as_ref().map_or("none", |worker| worker.id().as_str())
    }
}

impl Drop for RequestContext {
    fn drop(&mut self) {
        // Whatever ended the request, a probe must not stay out for ever.
        self.end_attempt();
    }
}

/// 128 random bits: never two alike, and nobody can guess another's.
fn new_request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let random: [u8; 16] = rand::rng().random();
    let mut id = [0; 32];
    for (pair, byte) in id.chunks_exact_mut(2).zip(random) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    HeaderValue::from_bytes(&id).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_128_bits_in_hexadecimal() {
        let ids = (0..64).map(|_| new_request_id());
        let ids: Vec<_> = ids.map(|id| id.to_str().expect("digits").to_owned()).collect();
        for id in &ids {
            assert!(id.len() == 32 && u128::from_str_radix(id, 16).is_ok(), "{id}");
        }
        // Every digit comes somewhere, at each end of a byte.
        for place in [0, 1] {
            let drawn: String =
                ids.iter().flat_map(|id| id.chars().skip(place).step_by(2)).collect();
            assert!("0123456789abcdef".chars().all(|digit| drawn.contains(digit)), "{drawn}");
        }
    }
}
