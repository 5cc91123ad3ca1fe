//! The way in: body, facts, policy, and the wait for a first verdict.

use std::{
    str::FromStr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, header};
use pingora::{Result as PingoraResult, prelude::Session};

use super::{
    Proxy, Settings,
    body::{self, BodyError, BodyLimits},
    context::RequestContext,
    respond,
};
use crate::{
    aligned::Unaligned,
    clock,
    fleet::{AlignedEntry, Live},
    routing::{Policy, PromptKind},
    telemetry::{events, metrics},
    wire::{
        endpoint::{Endpoint, PromptForm},
        error_body::OwnError,
        include_usage, multipart,
        prompt::{self, Facts, session_key},
    },
};

/// Larger bodies are tokenized on another thread, bytes.
const ALIGN_INLINE_MAX: usize = 64 << 10;

/// How long after the start a request may wait for the first health check of any worker.
const FIRST_VERDICT_MAX: Duration = Duration::from_secs(5);

impl Proxy {
    /// Reads the request far enough to route it. `Err(None)` means the client is gone.
    pub(super) async fn take_in(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<(), BodyError> {
        let settings = ctx.settings.clone();
        let limits = BodyLimits {
            bytes_max: settings.config().limits.body_bytes_max,
            timeouts: &settings.config().timeouts,
            buffered_bytes_max: settings.config().limits.buffered_bytes_max,
            budget: &self.budget,
        };
        ctx.held = body::receive(session.as_downstream_mut(), &limits).await?;
        let bytes = ctx.held.as_ref().map(|held| held.bytes.clone()).unwrap_or_default();
        ctx.body_bytes = bytes.len();
        self.read_facts(session, ctx, &settings, bytes).await;
        ask_for_usage(ctx);
        choose_policy(session, ctx, &settings)?;
        Ok(())
    }

    async fn read_facts(
        &self,
        session: &Session,
        ctx: &mut RequestContext,
        settings: &Settings,
        bytes: Bytes,
    ) {
        let headers = &session.req_header().headers;
        let value = |name: &http::HeaderName| headers.get(name).map(HeaderValue::as_bytes);
        let tenant = settings.config().headers.tenant.as_ref().and_then(value).unwrap_or_default();
        let content_type =
            headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        ctx.facts = match ctx.endpoint {
            Endpoint::Prompt(form) => {
                ctx.tenant = !tenant.is_empty();
                self.prompt_facts(&settings.live, form, bytes, tenant).await
            }
            _ if content_type.starts_with("multipart/form-data") => prompt::Facts {
                model: multipart::model(content_type, bytes).await,
                ..prompt::Facts::default()
            },
            _ => prompt::facts_without_prompt(&bytes),
        };
        ctx.kind = match ctx.endpoint {
            Endpoint::Prompt(_) if ctx.facts.readable => PromptKind::Prompt,
            Endpoint::Prompt(_) => PromptKind::Unreadable,
            _ => PromptKind::NoPrompt,
        };
        ctx.matched.1 = ctx.facts.prompts.iter().map(Vec::len).sum();
        ctx.session = value(&settings.config().headers.session).map(session_key).or(ctx.facts.user);
    }

    /// Names the prompt by its tokens where the model's tokenizer is at hand and knows how, by its
    /// text otherwise.
    async fn prompt_facts(
        &self,
        live: &Arc<Live>,
        form: PromptForm,
        body: Bytes,
        tenant: &[u8],
    ) -> Facts {
        let mut tokenized = None;
        let facts = prompt::facts_if(form, &body, tenant, &live.hashing, |model| {
            tokenized = self.fleet.aligned_for(live, model).filter(|aligned| {
                let mismatch = aligned.is_mismatched();
                if mismatch {
                    events::aligned("mismatch");
                }
                !mismatch
            });
            tokenized.is_none()
        });
        let Some(aligned) = tokenized else { return facts };
        let (of, large) = (body.clone(), body.len() > ALIGN_INLINE_MAX);
        let job = Alignment { live: live.clone(), form, body: of, tenant: tenant.to_vec(), facts };
        if !large {
            return job.run(&aligned);
        }
        // Milliseconds: not where other requests wait for their turn.
        let run = tokio::task::spawn_blocking(move || job.run(&aligned));
        run.await.unwrap_or_else(|_| prompt::facts(form, &body, tenant, &live.hashing))
    }

    /// Right after the start nobody has been checked yet: wait for a first verdict rather than
    /// refuse.
    pub(super) async fn wait_for_verdict(&self, session: &mut Session) -> PingoraResult<()> {
        if self.first_verdict_known.load(Relaxed) {
            return Ok(());
        }
        let mut verdict = self.fleet.first_verdict();
        if *verdict.borrow() {
            self.first_verdict_known.store(true, Relaxed);
            return Ok(());
        }
        let up_for = clock::now().saturating_duration_since(self.started);
        let known = tokio::time::timeout(FIRST_VERDICT_MAX.saturating_sub(up_for), async move {
            let _ = verdict.wait_for(|known| *known).await;
        });
        body::while_client_waits(session.as_downstream_mut(), known).await.map(|_| ())
    }
}

/// A prompt to be named by its tokens.
struct Alignment {
    live: Arc<Live>,
    form: PromptForm,
    body: Bytes,
    tenant: Vec<u8>,
    /// What is known of it but for its prompts.
    facts: Facts,
}

impl Alignment {
    fn run(self, aligned: &AlignedEntry) -> Facts {
        let Self { live, form, body, tenant, mut facts } = self;
        let began = clock::now();
        let outcome = aligned.align(form, &body, &tenant, &live.hashing, &mut facts);
        events::aligned(outcome.as_ref().map_or_else(Unaligned::as_str, |()| "aligned"));
        let took = clock::now().saturating_duration_since(began);
        metrics::ALIGN_SECONDS.observe(took.as_secs_f64());
        match outcome {
            Ok(()) => facts,
            Err(_) => prompt::facts(form, &body, &tenant, &live.hashing),
        }
    }
}

/// Asks for the usage of a stream whose client did not, where that is configured.
fn ask_for_usage(ctx: &mut RequestContext) {
    let streams = ctx.facts.stream && ctx.facts.readable;
    let form = matches!(ctx.endpoint, Endpoint::Prompt(PromptForm::Chat | PromptForm::Completion));
    if !(ctx.config().include_usage && streams && form) {
        return;
    }
    if let Some(held) = ctx.held.as_mut().filter(|held| held.whole)
        && let Some(body) = include_usage::ask(&held.bytes)
    {
        held.bytes = body;
        ctx.stream.strip = Some(include_usage::Strip::default());
    }
}

fn choose_policy(
    session: &Session,
    ctx: &mut RequestContext,
    settings: &Settings,
) -> Result<(), OwnError> {
    let policies = &settings.config().policies;
    ctx.policy = *policies.of(ctx.facts.model.as_deref());
    if !policies.override_allowed {
        return Ok(());
    }
    if let Some(name) = session.req_header().headers.get(respond::POLICY) {
        let named = name.to_str().ok().and_then(|name| Policy::from_str(name).ok());
        ctx.policy.0 =
            named.ok_or_else(|| OwnError::UnknownPolicy { known: Policy::NAMES.join(", ") })?;
    }
    Ok(())
}
