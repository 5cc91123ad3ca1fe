//! The baseline: a Pingora proxy that does nothing but pass requests on, round robin.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use async_trait::async_trait;
use pingora::{
    Result,
    modules::http::HttpModules,
    prelude::{HttpPeer, Server, Session},
    proxy::{ProxyHttp, http_proxy_service},
    server::{RunArgs, configuration::ServerConf},
};

struct Bare {
    workers: Vec<SocketAddr>,
    turn: AtomicUsize,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();
    fn new_ctx(&self) {}
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}
    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let turn = self.turn.fetch_add(1, Relaxed);
        let worker = self.workers[turn % self.workers.len()];
        Ok(Box::new(HttpPeer::new(worker, false, String::new())))
    }
}

/// Serves on `listen` until the process ends.
pub fn serve(listen: SocketAddr, workers: Vec<SocketAddr>, threads: usize) {
    let conf =
        ServerConf { threads, upstream_keepalive_pool_size: 16_384, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let logic = Bare { workers, turn: AtomicUsize::new(0) };
    let mut service = http_proxy_service(&server.configuration, logic);
    service.threads = Some(threads);
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run(RunArgs::default());
}
