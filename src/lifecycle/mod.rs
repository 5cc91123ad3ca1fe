//! The life of the process: signals, reload, hand-over to a successor, service manager.

pub mod control;
pub mod notify;
mod protocol;
pub mod ready;
pub mod reload;
mod signals;
pub mod snapshot;
pub mod sockets;
pub mod takeover;
pub mod upgrade;

use std::io::{self, Write};

use crate::{
    clock,
    fleet::{Fleet, Member},
    state::Writer,
};

pub use control::{Command, Control};
pub use reload::{Reloaded, Reloader};
pub use signals::Signals;
pub use sockets::Sockets;
pub use takeover::{Finish, Given, Predecessor, launch};
pub use upgrade::{UpgradeError, Upgrader};

/// Writes the state of all workers that are `wanted`; gives their number.
fn write_state(
    fleet: &Fleet,
    out: impl Write,
    wanted: impl Fn(&Member) -> bool,
) -> io::Result<usize> {
    let mut state = Writer::new(out, &fleet.state_header())?;
    let mut workers = 0;
    for member in fleet.members().iter().filter(|member| wanted(member)) {
        state.worker(&member.state(clock::now()))?;
        workers += 1;
    }
    for removed in fleet.removed_states() {
        state.worker(&removed)?;
    }
    state.end()?;
    Ok(workers)
}
