//! Tells cleartext HTTP/2 from HTTP/1.1 on a new connection.
//!
//! Pingora 0.9.1 does this by reading 24 bytes (the HTTP/2 preface) with no time limit: an HTTP/1
//! request shorter than that (`GET / HTTP/1.0`, a load balancer's check) is never answered, and a
//! client that sends less is held for ever. Here the first byte that differs from the preface
//! settles it, and a client has so long to send as it has between two requests.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use pingora::{
    apps::{HttpServerOptions, ServerApp},
    protocols::{Stream, l4::stream::Stream as TcpStream},
    server::{ShutdownWatch, configuration::ServerConf},
};
use pingora_proxy::{HttpProxy, http_proxy};
use tokio::{io::AsyncReadExt, time::timeout};

use super::Proxy;
use crate::drain::DrainState;

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long an idle client may take to send one more request after a hand-over, and to learn by the
/// answer that it should connect anew.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// How long a new connection may stay silent: Pingora's own keep-alive time.
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// Both protocols in front of the same logic. Each has its own pool of connections to workers.
pub struct Front {
    http1: Arc<HttpProxy<Proxy>>,
    http2: Arc<HttpProxy<Proxy>>,
    drain: Arc<DrainState>,
}

impl Front {
    /// Serves `logic`.
    pub fn new(conf: &Arc<ServerConf>, logic: &Proxy) -> Self {
        let http1 = http_proxy(conf, logic.clone());
        let mut http2 = http_proxy(conf, logic.clone());
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        http2.server_options = Some(options);
        Self { http1: Arc::new(http1), http2: Arc::new(http2), drain: logic.drain.clone() }
    }
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _counted = self.drain.connected();
        // Over TLS the protocol was agreed on in the handshake.
        if !(*stream).as_any().is::<TcpStream>() {
            return self.http1.process_new(stream, shutdown).await;
        }
        let mut tcp = stream.into_any().downcast::<TcpStream>().ok()?;
        let is_http2 = timeout(SILENCE_MAX, begins_with_preface(&mut tcp)).await.ok()??;
        let app = if is_http2 { &self.http2 } else { &self.http1 };
        app.process_new(tcp, shutdown).await
    }

    /// Called when nothing is accepted any more. What is told to the proxies here makes them close
    /// idle connections.
    async fn cleanup(&self) {
        self.drain.wait_for_idle_clients(IDLE_MAX).await;
        ServerApp::cleanup(&*self.http1).await;
        ServerApp::cleanup(&*self.http2).await;
    }
}

/// Reads until the answer is clear and puts back what was read; `None` when the client left.
async fn begins_with_preface(tcp: &mut TcpStream) -> Option<bool> {
    let mut read = [0; PREFACE.len()];
    let mut len = 0;
    let mut same = true;
    while same && len < PREFACE.len() {
        let more = tcp.read(&mut read[len..]).await.ok().filter(|more| *more > 0)?;
        len += more;
        same = PREFACE.starts_with(&read[..len]);
    }
    tcp.rewind(&read[..len]);
    Some(same)
}
