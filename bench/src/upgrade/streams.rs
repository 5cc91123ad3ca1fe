//! Hundreds of streams that are open all the time, each as long as a long answer.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use warmroute_engine::{Engine, EngineOptions};

use super::{
    Any,
    answer::{self, Body, Expect, Read},
    asks::{PATH, STREAM_MODEL, STREAM_PROMPTS, between, stream_body},
    http1,
    http2::Pool,
    io::Target,
    load::way_of,
    record::{Cause, Failure, Record, Recorder, Way},
};
use crate::truth::relay::mixed;

/// Seconds that one token of a stream takes.
pub const TOKEN_S: f64 = 0.2;
/// One in so many streams is this many times as long as the others.
const EXTRA: (u64, u64) = (25, 2);
/// A stream that failed is opened again after this.
const PAUSE: Duration = Duration::from_millis(500);
/// Connections of streams over HTTP/2: plain, TLS.
const H2_CONNECTIONS: (usize, usize) = (4, 2);
/// Beyond its length, a stream gets this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The streams.
pub struct Streams {
    recorder: Arc<Recorder>,
    target: Target,
    h2: [Pool; 2],
    /// Tokens of a stream, from and to.
    tokens: (u64, u64),
    texts: Vec<String>,
}

impl Streams {
    /// Asks an engine that answers at once what all streams will say.
    ///
    /// # Errors
    /// It does not.
    pub async fn prepare(
        recorder: Arc<Recorder>,
        target: Target,
        seconds: (f64, f64),
    ) -> Result<Arc<Self>, Any> {
        let tokens = ((seconds.0 / TOKEN_S) as u64, (seconds.1 / TOKEN_S) as u64);
        let longest = (tokens.1 * EXTRA.1) as usize;
        let options = EngineOptions { model: STREAM_MODEL.to_owned(), ..EngineOptions::instant() };
        let engine = Engine::start(options)?;
        let addr = engine.url().trim_start_matches("http://").parse()?;
        let mut texts = Vec::new();
        let failed = |failure: Failure| format!("no reference: {}", failure.text);
        let mut conn = http1::Conn::to(addr).await.map_err(failed)?;
        for prompt in 0..STREAM_PROMPTS {
            let body = stream_body(prompt, longest, false);
            conn.ask("POST", PATH, &body).await.map_err(failed)?;
            let whole = Body::H1(&mut conn).whole().await.map_err(failed)?;
            let answer: serde_json::Value = serde_json::from_slice(&whole)?;
            let text = answer["choices"][0]["message"]["content"].as_str();
            texts.push(text.ok_or("the reference has no text")?.to_owned());
        }
        let pool = |tls, count| Pool::new(target.clone(), tls, count);
        let h2 = [pool(false, H2_CONNECTIONS.0), pool(true, H2_CONNECTIONS.1)];
        Ok(Arc::new(Self { recorder, target, h2, tokens, texts }))
    }

    /// Keeps so many open until the set is dropped.
    pub fn keep_open(self: &Arc<Self>, count: u64) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for place in 0..count {
            tasks.spawn(self.clone().one_after_another(place));
        }
        tasks
    }

    async fn one_after_another(self: Arc<Self>, place: u64) {
        let way = way_of(place);
        let mut conn = None;
        // Spread over the first seconds.
        let spread = self.tokens.0 as f64 * TOKEN_S;
        sleep(Duration::from_secs_f64(place as f64 * 0.618 % 1.0 * spread.min(5.0))).await;
        for turn in 0.. {
            let draw = mixed(place << 20 | turn);
            let times = if draw >> 8 & 0xffff < 0xffff / EXTRA.0 { EXTRA.1 } else { 1 };
            let tokens = (between(self.tokens, draw) * times) as usize;
            let is_ok = self.stream(way, draw, tokens, &mut conn).await;
            if !is_ok {
                sleep(PAUSE).await;
            }
        }
    }

    /// Opens one and reads it to its end; says whether it was whole.
    async fn stream(
        &self,
        way: Way,
        draw: u64,
        tokens: usize,
        conn: &mut Option<http1::Conn>,
    ) -> bool {
        let sent = self.recorder.now();
        let patience = PATIENCE + Duration::from_secs_f64(tokens as f64 * TOKEN_S);
        let late = || Err(Failure::new(Cause::Late, format!("not within {patience:?}")));
        let read = timeout(patience, self.ask(way, draw, tokens, conn)).await;
        let read = read.unwrap_or_else(|_| late());
        if read.is_err() {
            *conn = None;
        }
        let record = Record {
            way,
            is_long: true,
            sent,
            first: read.as_ref().ok().and_then(|read| read.first).map(|at| self.recorder.at(at)),
            is_streamed: true,
            ended: self.recorder.now(),
            tokens: read.as_ref().ok().map(|read| read.tokens),
            failure: read.err(),
        };
        let is_ok = record.failure.is_none();
        self.recorder.push(record);
        is_ok
    }

    async fn ask(
        &self,
        way: Way,
        draw: u64,
        tokens: usize,
        conn: &mut Option<http1::Conn>,
    ) -> Result<Read, Failure> {
        let prompt = draw % STREAM_PROMPTS;
        let body = stream_body(prompt, tokens, true);
        let expect = Expect { tokens, is_streamed: true, text: &self.texts[prompt as usize] };
        let mut live = None;
        let on_first = || live = Some(self.recorder.enter());
        let tls = way == Way::TlsKept;
        match way {
            Way::H2 | Way::TlsH2 => {
                let pool = &self.h2[usize::from(way == Way::TlsH2)];
                let (head, body) = pool.ask(PATH, body).await?;
                answer::chat(&head, Body::H2(body), expect, on_first).await
            }
            Way::Kept | Way::TlsKept | Way::Fresh => {
                let is_kept = way != Way::Fresh;
                let conn = match conn.take().filter(|conn| is_kept && conn.is_open()) {
                    Some(open) => conn.insert(open),
                    None => conn.insert(http1::Conn::open(&self.target, tls).await?),
                };
                let head = conn.ask("POST", PATH, &body).await?;
                answer::chat(&head, Body::H1(conn), expect, on_first).await
            }
        }
    }
}
