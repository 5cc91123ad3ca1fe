//! A socket to which engines connect, for those that were told to publish to us.

use std::net::SocketAddr;

use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};

use super::zmtp::{Broken, Connection, Role};

/// Engines that connected and shake hands, at a time.
const SHAKING_MAX: usize = 4;

/// A socket to which engines connect.
pub(super) struct Door {
    arrivals: mpsc::Receiver<Result<Connection, Broken>>,
    _acceptor: JoinSet<()>,
}

impl Door {
    /// Binds, again and again until it works, and waits for engines.
    pub(super) fn open(address: SocketAddr) -> Self {
        let (arrive, arrivals) = mpsc::channel(1);
        let mut acceptor = JoinSet::new();
        acceptor.spawn(Self::accept(address, arrive));
        Self { arrivals, _acceptor: acceptor }
    }

    async fn accept(address: SocketAddr, arrive: mpsc::Sender<Result<Connection, Broken>>) {
        let mut shaking = JoinSet::new();
        loop {
            let listener = match TcpListener::bind(address).await {
                Ok(listener) => listener,
                Err(error) => {
                    if arrive.send(Err(error.into())).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            while let Ok((stream, _)) = listener.accept().await {
                while shaking.len() >= SHAKING_MAX {
                    shaking.join_next().await;
                }
                let arrive = arrive.clone();
                shaking.spawn(async move {
                    // Whoever cannot shake hands disturbs nobody.
                    if let Ok(connection) = Connection::accepted(stream, Role::Sub).await {
                        let _ = arrive.send(Ok(connection)).await;
                    }
                });
                while shaking.try_join_next().is_some() {}
            }
        }
    }

    /// The next engine that shook hands, or why there can be none.
    pub(super) async fn next(&mut self) -> Result<Connection, Broken> {
        self.arrivals.recv().await.unwrap_or(Err(Broken::Closed))
    }

    /// Waits for an engine that connects although one is connected.
    pub(super) async fn newer(door: &mut Option<Self>) -> Connection {
        if let Some(door) = door {
            while let Some(arrival) = door.arrivals.recv().await {
                if let Ok(connection) = arrival {
                    return connection;
                }
            }
        }
        std::future::pending().await
    }
}
