//! The proxy: one delegating call per Pingora phase.

mod body;
mod buffered;
mod certificates;
mod context;
mod finish;
mod front;
mod intake;
mod json_end;
mod local;
mod respond;
mod settings;
mod upstream;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use pingora::{
    Error, ErrorType, Result as PingoraResult,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    prelude::{HttpPeer, Session},
    proxy::{FailToProxy, ProxyHttp},
};

use self::{
    body::BodyError,
    buffered::Budget,
    context::{Attempt, RequestContext},
    upstream::Loss,
};
use crate::{
    clock,
    drain::DrainState,
    fleet::{Fleet, PickError, PromptAsk},
    routing::Outcome,
    telemetry::events,
    wire::{endpoint::Endpoint, error_body::OwnError},
};
pub use certificates::{CertKey, Certificates, Presenter};
pub use front::Front;
pub use settings::{Settings, SharedSettings};
pub use upstream::Peers;

/// Bytes of a refused request's rest that are read and dropped before the connection is closed.
const LINGER_BYTES_MAX: usize = 16 << 20;
/// How long that may take.
const LINGER_TIME_MAX: Duration = Duration::from_secs(2);

/// The proxy service's logic; clones share everything.
#[derive(Clone)]
pub struct Proxy {
    settings: SharedSettings,
    fleet: Arc<Fleet>,
    budget: Arc<Budget>,
    started: Instant,
    /// Spares each request the look at what is known once and for all.
    first_verdict_known: Arc<AtomicBool>,
    drain: Arc<DrainState>,
}

impl Proxy {
    /// A proxy in front of `fleet`; `drain` tells when to let go of clients.
    pub fn new(settings: SharedSettings, fleet: Arc<Fleet>, drain: Arc<DrainState>) -> Self {
        Self {
            settings,
            fleet,
            budget: Arc::default(),
            started: clock::now(),
            first_verdict_known: Arc::default(),
            drain,
        }
    }

    fn pick(&self, ctx: &mut RequestContext) -> Result<HttpPeer, OwnError> {
        let ask = PromptAsk {
            model: ctx.facts.model.as_deref(),
            policy: &ctx.policy,
            prompts: &ctx.facts.prompts,
            kind: ctx.kind,
            tokens: ctx.tokens(),
            domain: ctx.domain(),
            tenant: ctx.tenant,
            bytes: ctx.facts.prompt_bytes,
            exact_tokens: ctx.facts.tokens,
            block_tokens: ctx.facts.block_tokens,
            streams: ctx.facts.stream,
            session: ctx.session,
            prefix: ctx.facts.prefix,
            tried: &ctx.tried,
            retry: ctx.tries > 0,
        };
        let live = &ctx.settings.live;
        let picked = self.fleet.pick(live, &ask, clock::now()).map_err(|error| match error {
            PickError::UnknownModel => {
                local::unknown_model(&self.fleet, ctx.facts.model.as_deref().unwrap_or(""))
            }
            // What went wrong at the last worker tells more than that nobody is left.
            PickError::NoWorker => ctx
                .failure
                .clone()
                .unwrap_or_else(|| OwnError::NoWorker { model: ctx.facts.model.clone() }),
            PickError::Saturated => OwnError::Saturated { model: ctx.facts.model.clone() },
        })?;
        let peer = ctx.settings.peers.of(picked.member.url());
        ctx.tries += 1;
        ctx.failure = None;
        ctx.replay.restart();
        ctx.reason = Some(picked.reason);
        ctx.matched = (picked.matched_blocks, picked.total_blocks);
        ctx.regret = picked.account.regret;
        ctx.shadow = picked.account.shadow.as_ref().map(|shadow| shadow.worker.clone());
        ctx.worker = Some(picked.member.clone());
        ctx.attempt = Some(Attempt { picked, connected_at: None, outcome_known: false });
        Ok(peer)
    }

    /// A client connection is kept only while we are not draining.
    fn keeps_clients(&self) -> bool {
        !self.drain.is_draining()
    }
}

/// Ends the attempt, which never got to its worker; true when another one is allowed.
fn give_up(ctx: &mut RequestContext, error: OwnError, cause: &'static str) -> bool {
    if let Some(attempt) = &mut ctx.attempt {
        attempt.picked.account.strike();
        attempt.picked.guard.never_sent(clock::now());
        ctx.tried.push(attempt.picked.member.id().clone());
    }
    ctx.end_attempt();
    ctx.failure = Some(error);
    let again = ctx.tries <= ctx.config().limits.retries_max;
    if again {
        events::retried(cause);
    }
    again
}

/// Whether the whole body was read.
fn is_read(ctx: &RequestContext) -> bool {
    ctx.held.as_ref().is_none_or(|held| held.whole)
}

/// Carries one of our own errors through Pingora to `fail_to_proxy`.
#[expect(clippy::unnecessary_box_returns, reason = "Pingora's errors are boxed")]
fn own(ctx: &mut RequestContext, error: OwnError) -> Box<Error> {
    let status = error.status();
    ctx.failure = Some(error);
    Error::new(ErrorType::HTTPStatus(status))
}

#[async_trait]
impl ProxyHttp for Proxy {
    /// Boxed: Pingora's future of a request has room for it in several places, is copied twice, and
    /// stays as long as the answer streams.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Self::CTX {
        let settings = self.settings.load_full();
        Box::new(RequestContext::new(settings, self.drain.enter(), clock::now()))
    }

    /// None: Pingora's default adds a compression module we never want between us and a stream.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> PingoraResult<bool> {
        session.as_downstream_mut().set_write_timeout(Some(ctx.config().timeouts.client_write));
        let header = session.req_header();
        ctx.endpoint = Endpoint::of(&header.method, header.uri.path());
        if ctx.config().headers.trust_request_id
            && let Some(id) = header.headers.get(respond::REQUEST_ID)
            && id.to_str().is_ok_and(|id| !id.is_empty() && id.len() <= 200)
        {
            ctx.request_id = id.clone();
        }
        if local::answer(session, ctx, &self.fleet, !self.keeps_clients()).await? {
            return Ok(true);
        }
        match self.take_in(session, ctx).await {
            Ok(()) => {}
            Err(BodyError::Gone(error)) => return Err(error),
            Err(BodyError::Own(error)) => {
                respond::send_error(session, ctx, &error, false).await?;
                body::linger(session.as_downstream_mut(), LINGER_BYTES_MAX, LINGER_TIME_MAX).await;
                return Ok(true);
            }
        }
        if !self.fleet.serves(ctx.facts.model.as_deref()) {
            // Said here, an error of ours leaves the connection usable; Pingora closes it after one
            // that comes from `upstream_peer`.
            let error = local::unknown_model(&self.fleet, ctx.facts.model.as_deref().unwrap_or(""));
            let keep = self.keeps_clients() && is_read(ctx);
            respond::send_error(session, ctx, &error, keep).await?;
            return Ok(true);
        }
        // After the body: only then is the client's silence the silence of one who waits.
        if is_read(ctx) {
            self.wait_for_verdict(session).await?;
        } else {
            // Pingora reads the rest, within the same patience.
            let silence = ctx.config().timeouts.body_silence;
            session.as_downstream_mut().set_read_timeout(Some(silence));
        }
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> PingoraResult<Box<HttpPeer>> {
        self.pick(ctx).map(Box::new).map_err(|error| own(ctx, error))
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&pingora::protocols::Digest>,
        ctx: &mut Self::CTX,
    ) -> PingoraResult<()> {
        if let Some(attempt) = &mut ctx.attempt {
            attempt.connected_at = Some(clock::now());
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> PingoraResult<()> {
        if request.headers.keys().any(|name| name.as_str().starts_with("x-")) {
            for name in &respond::OURS {
                request.remove_header(name);
            }
        }
        upstream::name_request(request, ctx.request_id.clone())?;
        request.remove_header(&header::EXPECT);
        if let Some(held) = ctx.held.as_ref().filter(|held| held.whole) {
            body::frame(request, held.bytes.len())?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        piece: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> PingoraResult<()> {
        let bytes_max = ctx.config().limits.body_bytes_max;
        ctx.replay
            .filter(ctx.held.as_ref(), piece, end, bytes_max)
            .map_err(|error| own(ctx, error).into_down())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        ctx.record_outcome(&self.fleet, Outcome::Failure, clock::now());
        if let Some(attempt) = &ctx.attempt {
            self.fleet.take_back(&attempt.picked, &ctx.facts.prompts);
        }
        let again = give_up(ctx, OwnError::WorkerUnreachable, "connect");
        error.set_retry(again);
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Self::CTX,
        reused: bool,
    ) -> Box<Error> {
        error.set_retry(false);
        let answered =
            session.response_written().is_some_and(|response| !response.status.is_informational());
        let Some(attempt) = &ctx.attempt else { return error };
        let now = clock::now();
        let loss = Loss::of(&error, attempt, reused, answered, now);
        match loss {
            Loss::Client => {
                if ctx.stream.first.seen() {
                    // The worker was answering when the client left.
                    ctx.record_outcome(&self.fleet, Outcome::Success, now);
                }
                ctx.end_attempt();
            }
            // Once a request: were it the request that kills the worker, it would go round.
            Loss::Stale if !ctx.stale_retried && ctx.replay.can_replay(ctx.held.as_ref()) => {
                ctx.stale_retried = true;
                let again = give_up(ctx, OwnError::WorkerFailed, "stale-connection");
                if again && !self.others_left(ctx) {
                    // Its connection was stale, the worker is not: better it than nobody.
                    ctx.tried.clear();
                }
                error.set_retry(again);
            }
            Loss::Stale | Loss::Timeout | Loss::Broken => {
                ctx.record_outcome(&self.fleet, Outcome::Failure, now);
                ctx.failure = ctx.failure.take().or(loss.own_error());
            }
        }
        error
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> PingoraResult<()> {
        finish::on_response_header(&self.fleet, response, ctx);
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> PingoraResult<()> {
        respond::stamp(response, ctx)?;
        if !response.status.is_informational() {
            // Nothing can be retried from here on.
            ctx.held = None;
            if ctx.stream.usage.is_none() {
                // Nobody will say how the prediction did.
                ctx.facts.prompts = Vec::new();
            }
            if !self.keeps_clients() {
                session.set_keepalive(None);
            }
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        chunk: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> PingoraResult<Option<Duration>> {
        finish::on_response_chunk(&self.fleet, chunk, end, ctx);
        Ok(None)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        let error_code = finish::on_failure(session, error, ctx).await;
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Self::CTX) {
        finish::on_end(session, error, ctx);
    }

    /// Pingora's own error lines name peers and headers; ours are in the access log.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Self::CTX, _error: &Error) -> bool {
        true
    }
}

impl Proxy {
    fn others_left(&self, ctx: &RequestContext) -> bool {
        let model = ctx.facts.model.as_deref();
        self.fleet.members().iter().any(|member| {
            member.health() == crate::fleet::Health::Healthy
                && member.serves(model)
                && !crate::fleet::is_tried(&ctx.tried, member.id())
        })
    }
}
