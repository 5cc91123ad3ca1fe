//! Orders to the process that come by the admin listener, carried out where signals are.

use tokio::sync::{mpsc, oneshot};

use super::{Reloaded, upgrade::UpgradeError};
use crate::config::ConfigError;

/// Orders that may wait.
const WAITING_MAX: usize = 16;

/// An order, and where its outcome goes.
#[derive(Debug)]
pub enum Command {
    /// Read the configuration again.
    Reload(oneshot::Sender<Result<Reloaded, ConfigError>>),
    /// Hand over to a new process; gives its id.
    Upgrade(oneshot::Sender<Result<u32, UpgradeError>>),
}

/// Gives orders.
#[derive(Debug, Clone)]
pub struct Control(mpsc::Sender<Command>);

/// The process takes no more orders: it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process is ending")]
pub struct Ending;

impl Control {
    /// A way to give orders, and where they arrive.
    pub fn new() -> (Self, mpsc::Receiver<Command>) {
        let (orders, arrive) = mpsc::channel(WAITING_MAX);
        (Self(orders), arrive)
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    /// `Ending` when nobody carries it out any more.
    pub async fn reload(&self) -> Result<Result<Reloaded, ConfigError>, Ending> {
        let (reply, outcome) = oneshot::channel();
        self.0.send(Command::Reload(reply)).await.map_err(|_| Ending)?;
        outcome.await.map_err(|_| Ending)
    }

    /// Hands over to a new process.
    ///
    /// # Errors
    /// `Ending` when nobody carries it out any more.
    pub async fn upgrade(&self) -> Result<Result<u32, UpgradeError>, Ending> {
        let (reply, outcome) = oneshot::channel();
        self.0.send(Command::Upgrade(reply)).await.map_err(|_| Ending)?;
        outcome.await.map_err(|_| Ending)
    }
}
