//! Several routers in front of one fleet: what each presumes and how much it has in flight, told to
//! the others through a NATS broker.
//!
//! Only what nobody else could tell them is shared. What engines report, every router hears from the
//! engines themselves; who is healthy, it finds out itself. Messages are fire and forget: one that
//! is lost costs a cache miss or a detour, never a request, and a broker that is gone leaves each
//! router to itself. There is no leader, no agreement and no state to catch up on, so there is
//! nothing to wait for either (docs/adr/0013).
//!
//! ```text
//! Fleet -> outbox -> service -> frame -> broker -> frame -> roster -> Fleet::hear
//! ```

mod frame;
mod keys;
mod roster;
mod service;
mod status;

pub use self::{
    service::PeersService,
    status::{PeerStatus, PeersStatus, Shared},
};
