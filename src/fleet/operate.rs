//! What operators do to single workers: drain, undrain, remove.

use std::{sync::Arc, time::Instant};

use super::{Fleet, Member, membership::Origin};
use crate::{
    config::WorkerConfig, routing::WorkerId, telemetry::events, wire::error_body::shorten,
};

/// Removed workers that are kept out at a time.
pub(super) const REMOVED_MAX: usize = 10_000;

/// No worker has this id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no worker `{0}` in the fleet; see GET /workers")]
pub struct UnknownWorker(pub String);

impl UnknownWorker {
    /// Of this id.
    pub fn new(id: &str) -> Self {
        Self(shorten(id))
    }
}

/// Why a worker is not removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// There is none.
    #[error(transparent)]
    Unknown(#[from] UnknownWorker),
    /// Too many are kept out already.
    #[error(
        "{REMOVED_MAX} removed workers are kept out already; undrain some, or take them out of their origins"
    )]
    Full,
}

/// A worker an operator removed: kept out while its origin goes on naming it.
#[derive(Debug)]
pub(super) struct Removed {
    pub(super) origin: Origin,
    /// Until when its last heartbeat named it; `None` where its origin has a list.
    pub(super) named_until: Option<Instant>,
}

impl Fleet {
    /// A drained worker gets no new requests; what runs finishes, and it is checked and heard as
    /// before.
    ///
    /// # Errors
    /// When there is no such worker.
    pub fn drain(&self, id: &str, now: Instant) -> Result<Arc<Member>, UnknownWorker> {
        let _changing = self.membership.lock();
        let member = self.member(id).ok_or_else(|| UnknownWorker::new(id))?;
        if member.set_drained(true) {
            events::drained(member.id().as_str(), true);
        }
        self.look_who_serves(now);
        Ok(member)
    }

    /// Ends a drain, and lets a removed worker come back: at once where its origin names it, else
    /// with its next heartbeat (`None`).
    ///
    /// # Errors
    /// When there is no such worker, and none was removed.
    pub fn undrain(&self, id: &str, now: Instant) -> Result<Option<Arc<Member>>, UnknownWorker> {
        let mut membership = self.membership.lock();
        if let Some(member) = self.member(id) {
            if member.set_drained(false) {
                events::drained(member.id().as_str(), false);
                self.begins_to_serve(&member, now);
            }
            return Ok(Some(member));
        }
        let known = WorkerId::try_new(id).map_err(|_| UnknownWorker::new(id))?;
        membership.removed.remove(&known).ok_or_else(|| UnknownWorker::new(id))?;
        events::removal_lifted(id, "undrained");
        self.reconcile(&mut membership, |_| None, now).tell();
        Ok(self.member(id))
    }

    /// Takes a worker out of the fleet and keeps it out until it is undrained, or its origin has
    /// stopped naming it once. `None` when that was done before.
    ///
    /// # Errors
    /// `RemoveError`; nothing was changed.
    pub fn remove(&self, id: &str, now: Instant) -> Result<Option<Arc<Member>>, RemoveError> {
        let mut membership = self.membership.lock();
        let Some(member) = self.member(id) else {
            let known = WorkerId::try_new(id).is_ok_and(|id| membership.removed.contains_key(&id));
            return if known { Ok(None) } else { Err(UnknownWorker::new(id).into()) };
        };
        if membership.removed.len() >= REMOVED_MAX {
            return Err(RemoveError::Full);
        }
        let named_until = member.lease_until.as_ref().map(|until| *until.lock());
        let removed = Removed { origin: member.origin().clone(), named_until };
        membership.removed.insert(member.id().clone(), removed);
        let gone = |other: &Member| (other.serial() == member.serial()).then_some("removed");
        self.reconcile(&mut membership, gone, now).tell();
        Ok(Some(member))
    }

    /// Workers that are kept out, by name.
    pub fn removed(&self) -> Vec<WorkerId> {
        let mut removed: Vec<_> = self.membership.lock().removed.keys().cloned().collect();
        removed.sort();
        removed
    }

    /// The same, with who named them.
    pub(super) fn removed_by_origin(&self) -> Vec<(WorkerId, Origin)> {
        let membership = self.membership.lock();
        membership.removed.iter().map(|(id, out)| (id.clone(), out.origin.clone())).collect()
    }

    /// A worker that another process was told to keep out; one that only heartbeats name, until
    /// `until` at least.
    pub(super) fn keep_out(&self, id: &WorkerId, origin: Origin, until: Instant, now: Instant) {
        let mut membership = self.membership.lock();
        if membership.removed.len() < REMOVED_MAX {
            let named_until = (origin == Origin::Lease).then_some(until);
            membership.removed.insert(id.clone(), Removed { origin, named_until });
            let gone = |member: &Member| (member.id() == id).then_some("removed");
            self.reconcile(&mut membership, gone, now).tell();
        }
    }

    /// A worker that had joined another process by heartbeat.
    pub(super) fn readmit(
        &self,
        worker: WorkerConfig,
        until: Instant,
        now: Instant,
    ) -> Arc<Member> {
        self.admit_leased(&mut self.membership.lock(), worker, until, now)
    }
}
