//! One request over a pool of kept connections, read as a user would.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, Response, body::Incoming};
use tokio::time::{Instant, timeout};
use warmroute_engine::load::{ClientError, Connection, SseEvent, SseReader, read_whole};

use super::row::Row;

/// Longest answer that is not streamed, and longest error that is read.
const WHOLE_BYTES_MAX: usize = 64 << 20;
/// Longest error that is kept.
const ERROR_CHARS_MAX: usize = 160;

/// Where requests go and how.
#[derive(Debug)]
pub struct Client {
    url: String,
    headers: Vec<(String, String)>,
    answer_within: Duration,
    idle: Mutex<Vec<Connection>>,
}

/// A request as it leaves.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Below the URL.
    pub path: &'static str,
    /// JSON.
    pub body: Bytes,
    /// Whether the body asks for a stream.
    pub streams: bool,
    /// Sent as X-Session-Id.
    pub session: Option<String>,
}

impl Client {
    /// For one server.
    ///
    /// # Errors
    /// The URL is no `http://host:port`.
    pub fn new(
        url: &str,
        headers: Vec<(String, String)>,
        answer_within: Duration,
    ) -> Result<Self, ClientError> {
        let first = Connection::new(url)?;
        Ok(Self { url: url.to_owned(), headers, answer_within, idle: Mutex::new(vec![first]) })
    }

    /// Sends it and reads the answer to its end; what came of it goes into the row, its text is
    /// given back if it was whole.
    pub async fn ask(&self, ask: Ask, since: Instant, row: &mut Row) -> Option<String> {
        let idle = self.idle().pop();
        let mut connection = match idle.map_or_else(|| Connection::new(&self.url), Ok) {
            Ok(connection) => connection,
            Err(error) => {
                row.error = Some(kept(&error));
                return None;
            }
        };
        let sent = Instant::now();
        row.sent_s = Some((sent - since).as_secs_f64());
        let answered = timeout(self.answer_within, self.exchange(&mut connection, ask, sent, row));
        let answer = answered.await.unwrap_or_else(|_| Err("no whole answer in time".to_owned()));
        row.total_ms = Some(ms(sent.elapsed()));
        match answer {
            Ok(text) => {
                self.idle().push(connection);
                Some(text)
            }
            Err(error) => {
                row.error = Some(error);
                None
            }
        }
    }

    async fn exchange(
        &self,
        connection: &mut Connection,
        ask: Ask,
        sent: Instant,
        row: &mut Row,
    ) -> Result<String, String> {
        let mut headers = self.headers.clone();
        headers.extend(ask.session.map(|session| ("x-session-id".to_owned(), session)));
        let response = connection.send(Method::POST, ask.path, &headers, ask.body).await;
        let response = response.map_err(|error| kept(&error))?;
        row.status = Some(response.status().as_u16());
        let said = |name: &str| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        row.worker = said("x-router-backend");
        row.reason = said("x-router-reason");
        if response.status() != 200 {
            let status = response.status();
            let body = whole(response).await.unwrap_or_default();
            return Err(cut(&format!("{status}: {}", String::from_utf8_lossy(&body).trim())));
        }
        if ask.streams {
            read_stream(response, sent, row).await
        } else {
            let body = whole(response).await?;
            let mut answer = String::new();
            for event in read_whole(&body) {
                take_in(event, sent, row, &mut answer)?;
            }
            // Nothing of it came before all of it.
            row.ttft_ms = Some(ms(sent.elapsed()));
            Ok(answer)
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, String> {
    let body = Limited::new(response.into_body(), WHOLE_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| cut(&error.to_string()))?.to_bytes())
}

async fn read_stream(
    response: Response<Incoming>,
    sent: Instant,
    row: &mut Row,
) -> Result<String, String> {
    let mut body = response.into_body();
    let mut reader = SseReader::default();
    let (mut answer, mut is_done) = (String::new(), false);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| kept(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        for event in reader.push(&data) {
            is_done |= event == SseEvent::Done;
            take_in(event, sent, row, &mut answer)?;
        }
    }
    if is_done { Ok(answer) } else { Err("the stream ended without [DONE]".to_owned()) }
}

fn take_in(
    event: SseEvent,
    sent: Instant,
    row: &mut Row,
    answer: &mut String,
) -> Result<(), String> {
    match event {
        SseEvent::Content(text) => {
            row.ttft_ms.get_or_insert_with(|| ms(sent.elapsed()));
            answer.push_str(&text);
        }
        SseEvent::Other => {
            row.ttft_ms.get_or_insert_with(|| ms(sent.elapsed()));
        }
        SseEvent::Usage { prompt_tokens, cached_tokens, completion_tokens } => {
            row.prompt_tokens = Some(prompt_tokens);
            row.cached_tokens = cached_tokens;
            row.answer_tokens = Some(completion_tokens);
        }
        SseEvent::Error(text) => return Err(cut(&text)),
        SseEvent::Done => {}
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn kept(error: &dyn std::error::Error) -> String {
    let cause = error.source().map_or(String::new(), |cause| format!(": {cause}"));
    cut(&format!("{error}{cause}"))
}

fn cut(text: &str) -> String {
    text.chars().take(ERROR_CHARS_MAX).collect()
}
