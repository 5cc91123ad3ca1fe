//! Listening sockets that came with the process: from systemd, or from the process before it.
//!
//! Pingora looks for a socket under its address before it binds one, but lets nobody put one there.
//! So every listening service is wrapped: it gets our table in the place of Pingora's. What it binds
//! itself it adds to the table, so that a successor gets all.

use std::{
    collections::HashSet,
    net::{SocketAddr, TcpListener},
    os::fd::{IntoRawFd, RawFd},
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire},
        },
    },
};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::{
    server::{Fds, ListenFds, ShutdownWatch},
    services::Service,
};
use tokio::sync::watch;

use crate::config::{Config, ConfigError};

/// All listening sockets of the process, by address.
#[derive(Clone)]
pub struct Sockets {
    table: ListenFds,
    /// Services that listen, and those that are to.
    begun: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

impl Sockets {
    /// The sockets of a predecessor.
    pub fn inherited(addresses: Vec<String>, fds: Vec<RawFd>) -> Self {
        let mut table = Fds::new();
        for (address, fd) in addresses.into_iter().zip(fds) {
            table.add(address, fd);
        }
        Self::of(table)
    }

    fn of(table: Fds) -> Self {
        let (begun, all) = (Arc::default(), Arc::default());
        Self { table: Arc::new(Mutex::new(table)), begun, all }
    }

    /// Those systemd opened for us (`sd_listen_fds(3)`), if it did.
    ///
    /// # Errors
    /// When what it handed over is no listening TCP socket.
    pub fn activated() -> std::io::Result<Self> {
        let mut table = Fds::new();
        let mut given = listenfd::ListenFd::from_env();
        for at in 0..given.len() {
            let Some(listener) = given.take_tcp_listener(at)? else { continue };
            // A blocking one would never be polled.
            listener.set_nonblocking(true)?;
            table.add(listener.local_addr()?.to_string(), listener.into_raw_fd());
        }
        Ok(Self::of(table))
    }

    /// Addresses and descriptors, as they are handed on.
    pub fn list(&self) -> (Vec<String>, Vec<RawFd>) {
        self.table.lock().serialize()
    }

    /// Closes sockets that the configuration has no use for, and binds those that are missing.
    ///
    /// # Errors
    /// For the first address that cannot be bound.
    pub fn fit(&self, config: &Config) -> Result<(), ConfigError> {
        let wanted: HashSet<String> =
            config.addresses().iter().map(|(addr, _)| addr.to_string()).collect();
        for address in self.table.lock().close_unclaimed(&wanted) {
            tracing::warn!(
                address,
                "an inherited socket is no address of the configuration: closed"
            );
        }
        for (addr, key) in config.addresses() {
            let mut table = self.table.lock();
            if table.get(&addr.to_string()).is_none() {
                table.add(addr.to_string(), bind(addr, key)?.into_raw_fd());
            }
        }
        Ok(())
    }

    /// Whether all services listen.
    pub fn all_listen(&self) -> bool {
        self.begun.load(Acquire) >= self.all.load(Acquire)
    }

    /// `service`, which listens on these sockets once `gate` is open.
    pub fn serve<S: Service>(&self, service: S, gate: watch::Receiver<bool>) -> Listening<S> {
        self.all.fetch_add(1, AcqRel);
        let (sockets, begun) = (self.table.clone(), self.begun.clone());
        Listening { service, sockets, gate, begun }
    }
}

/// At once and not when the service starts: who is told that we are ready finds us listening.
fn bind(addr: SocketAddr, key: &str) -> Result<TcpListener, ConfigError> {
    let bound = TcpListener::bind(addr).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|error| {
        let remedy = "stop what listens there, or choose another port";
        ConfigError::new(key, addr, error.to_string(), remedy)
    })
}

/// A service on our own sockets.
pub struct Listening<S> {
    service: S,
    sockets: ListenFds,
    gate: watch::Receiver<bool>,
    begun: Arc<AtomicUsize>,
}

#[async_trait]
impl<S: Service> Service for Listening<S> {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let mut ending = shutdown.clone();
        tokio::select! {
            opened = self.gate.wait_for(|open| *open) => {
                if opened.is_err() {
                    return;
                }
            }
            _ = ending.wait_for(|stop| *stop) => return,
        }
        let sockets = Some(self.sockets.clone());
        // Its sockets queue what comes before it has come as far as to accept.
        self.begun.fetch_add(1, AcqRel);
        self.service.start_service(sockets, shutdown, listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        self.service.name()
    }

    fn threads(&self) -> Option<usize> {
        self.service.threads()
    }
}
