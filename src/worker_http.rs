//! Small questions to a worker: its models, its event sources, its tokenizer.

use std::sync::Arc;

use pingora::{connectors::http::Connector, http::RequestHeader, prelude::HttpPeer};
use tokio::time::timeout;

use crate::{config::WorkerUrl, proxy::SharedSettings};

/// Largest answer read, bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing, or not all of it, came in time.
    #[error("no answer in time")]
    Timeout,
    /// The answer is larger than anything we ask for.
    #[error("the answer is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
    /// The connection failed.
    #[error("{0}")]
    Pingora(#[from] Box<pingora::Error>),
}

/// Asks workers; clones share connections.
#[derive(Clone)]
pub struct WorkerHttp {
    connector: Arc<Connector>,
    settings: SharedSettings,
}

impl WorkerHttp {
    /// Asks with the settings in force; each question takes at most `health.timeout_ms`.
    pub fn new(settings: SharedSettings) -> Self {
        Self { connector: Arc::new(Connector::new(None)), settings }
    }

    /// GET, or POST of a JSON body; gives status and body.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn ask(
        &self,
        url: &WorkerUrl,
        path: &str,
        json: Option<Vec<u8>>,
    ) -> Result<(u16, Vec<u8>), AskError> {
        let within = self.settings.load().config().health.timeout;
        timeout(within, self.exchange(url, path, json)).await.map_err(|_| AskError::Timeout)?
    }

    async fn exchange(
        &self,
        url: &WorkerUrl,
        path: &str,
        json: Option<Vec<u8>>,
    ) -> Result<(u16, Vec<u8>), AskError> {
        let peer: HttpPeer = self.settings.load().peers.of(url);
        let (mut session, _) = self.connector.get_http_session(&peer).await?;
        session.set_read_timeout(Some(self.settings.load().config().health.timeout));
        let method = if json.is_some() { "POST" } else { "GET" };
        let mut request = RequestHeader::build(method, path.as_bytes(), None)?;
        request.insert_header("host", host_header(url))?;
        request.insert_header("accept", "application/json")?;
        if let Some(json) = &json {
            request.insert_header("content-type", "application/json")?;
            request.insert_header("content-length", json.len())?;
        }
        session.write_request_header(Box::new(request)).await?;
        if let Some(json) = json {
            session.write_request_body(json.into(), true).await?;
        }
        session.finish_request_body().await?;
        session.read_response_header().await?;
        let status = session.response_header().map_or(0, |header| header.status.as_u16());
        let mut body = Vec::new();
        while let Some(piece) = session.read_response_body().await? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(AskError::TooLarge);
            }
            body.extend_from_slice(&piece);
        }
        Ok((status, body))
    }
}

/// A worker's `Host`.
pub(crate) fn host_header(url: &WorkerUrl) -> String {
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    format!("{host}:{}", url.addr.port())
}
