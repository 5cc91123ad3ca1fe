//! The fleet: routing values behind locks. Synchronous, no sockets.
//!
//! The member list is swapped whole; a request keeps the `Arc` of its worker, so a worker that
//! leaves goes when its last request does.

mod account;
mod aligned;
mod apply;
mod belief;
mod feedback;
mod forecast;
mod heartbeat;
mod index;
pub mod inflight;
mod limit;
mod live;
pub mod member;
pub mod membership;
mod operate;
mod outbox;
mod peer_loads;
mod pick;
mod published;
pub mod reported;
mod serving;
mod state;
mod status;
mod sync;
mod truth;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

pub use account::{Account, Shadowed};
pub use aligned::{AlignedEntry, AlignedModels};
pub use apply::{Applied, ApplyError};
pub use feedback::{Prediction, Verdict};
pub use heartbeat::{Beaten, HeartbeatError};
pub use limit::{Ahead, LimitStatus};
pub use live::Live;
pub use member::{Health, Member, Models};
use membership::Membership;
pub use membership::{Changed, Origin};
pub use operate::{RemoveError, UnknownWorker};
pub use outbox::{BLOCKS_MAX, Listening, Presumption, Said};
pub use pick::{PickError, Picked, PromptAsk};
pub use state::Cause;
pub use status::WorkerStatus;
pub use sync::Synced;
pub use truth::Domain;
use truth::{Source, SourceEvent};

use crate::{
    routing::{
        Outcome, WorkerId,
        breaker::{BreakerState, may_eject},
        trust::WorkerEvent,
    },
    telemetry::events,
};

/// How long a heartbeat's word on others' requests is believed.
const FOREIGN_FOR: Duration = Duration::from_secs(5);

/// All workers, and what is needed to pick one.
#[derive(Debug)]
pub struct Fleet {
    live: ArcSwap<Live>,
    members: ArcSwap<Vec<Arc<Member>>>,
    /// What they are believed to hold.
    index: Arc<index::FleetIndex>,
    /// Serializes changes of `members` and `live`; readers never take it.
    membership: Mutex<Membership>,
    /// Since when requests go to some member, if they do.
    serving_since: Mutex<Option<Instant>>,
    turn: AtomicU64,
    /// The policy beside the live one.
    shadow: account::Shadow,
    /// True once some worker has a verdict of its health checks.
    verdict: watch::Sender<bool>,
    /// Whom we tell what we presume.
    outbox: outbox::Outbox,
}

impl Fleet {
    /// The static fleet of a configuration.
    pub fn new(live: Live, now: Instant) -> Self {
        let workers = live.config.workers.clone();
        let bytes_max = Self::index_bytes_max(&live, workers.len());
        let fleet = Self {
            live: ArcSwap::from_pointee(live),
            members: ArcSwap::default(),
            index: Arc::new(index::FleetIndex::new(bytes_max)),
            membership: Mutex::default(),
            serving_since: Mutex::new(None),
            turn: AtomicU64::new(0),
            shadow: account::Shadow::new(),
            verdict: watch::Sender::new(false),
            outbox: outbox::Outbox::default(),
        };
        fleet.seed(workers, now);
        fleet
    }

    /// The configuration in force.
    pub fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// The aligned model that prompts for `model` are tokenized with: its own, or that of the model
    /// it is an adapter of.
    pub fn aligned_for(&self, live: &Live, model: &str) -> Option<Arc<AlignedEntry>> {
        if live.aligned.is_empty() {
            return None;
        }
        live.aligned.of(model).or_else(|| {
            let members = self.members.load();
            let parent = members.iter().find_map(|member| member.parent_of(model))?;
            live.aligned.of(&parent)
        })
    }

    /// Everybody, as of now.
    pub fn members(&self) -> Arc<Vec<Arc<Member>>> {
        self.members.load_full()
    }

    /// The worker with this id.
    pub fn member(&self, id: &str) -> Option<Arc<Member>> {
        self.members.load().iter().find(|member| member.id().as_str() == id).cloned()
    }

    /// Becomes true when some worker has been checked.
    pub fn first_verdict(&self) -> watch::Receiver<bool> {
        self.verdict.subscribe()
    }

    /// Whether some worker takes traffic.
    pub fn is_ready(&self) -> bool {
        let takes = |member: &Member| member.health() == Health::Healthy && !member.is_drained();
        self.members.load().iter().any(|member| takes(member))
    }

    /// Whether some worker, be it up, down or drained, serves `model`. An empty fleet may serve anything.
    pub fn serves(&self, model: Option<&str>) -> bool {
        let members = self.members.load();
        members.is_empty() || members.iter().any(|member| member.serves(model))
    }

    /// Takes in the verdict of a health check.
    pub fn record_health(&self, member: &Member, healthy: bool, why: &str, refused: bool) {
        if member.set_health(healthy) {
            events::health_changed(member.id().as_str(), healthy, why);
            let now = crate::clock::now();
            if healthy {
                self.begins_to_serve(member, now);
            } else {
                self.look_who_serves(now);
            }
            let event =
                if healthy { WorkerEvent::HealthBack } else { WorkerEvent::HealthLost { refused } };
            member.undergoes(event, now);
        }
        self.verdict.send_if_modified(|known| !std::mem::replace(known, true));
    }

    /// Takes up a verdict that another process had come to. Nothing follows from it here: no worker
    /// starts slowly, and what is held stays.
    fn restore_health(&self, member: &Member, health: Health, now: Instant) {
        member.set_health(health == Health::Healthy);
        self.look_who_serves(now);
        self.verdict.send_replace(true);
    }

    /// Takes in how an attempt ended that was sent at `sent`.
    pub fn record_outcome(&self, member: &Member, outcome: Outcome, sent: Instant, now: Instant) {
        let may_trip = outcome == Outcome::Failure && self.may_eject(member, now);
        let transition = member.breaker.lock().on_outcome(outcome, sent, now, may_trip);
        if let Some(transition) = transition {
            events::breaker_moved(member.id().as_str(), &member.metrics, &transition);
            if transition.to == BreakerState::Closed {
                self.begins_to_serve(member, now);
            } else {
                self.look_who_serves(now);
            }
        }
    }

    /// The probe sent at `sent` says nothing: its client left.
    pub fn abandon_probe(member: &Member, sent: Instant) {
        member.breaker.lock().probe_abandoned(sent);
    }

    /// Whether `member` may be ejected beside those that are: never the last that works.
    fn may_eject(&self, member: &Member, now: Instant) -> bool {
        let members = self.members.load();
        let others = members.iter().filter(|other| other.id() != member.id());
        let (mut working, mut ejected) = (1, 0);
        let takes = |other: &&Arc<Member>| other.health() == Health::Healthy && !other.is_drained();
        for other in others.filter(takes) {
            working += 1;
            ejected += usize::from(other.breaker.lock().state(now) != BreakerState::Closed);
        }
        may_eject(working, ejected, self.live.load().config.limits.ejected_share_max)
    }

    /// Regular upkeep, about once a second: makes paces comparable, lets leases lapse, sets gauges.
    pub fn upkeep(&self, now: Instant) {
        let members = self.members();
        let bytes_max = Self::index_bytes_max(&self.live.load(), members.len());
        self.index.write(|index| index.set_bytes_max(bytes_max));
        forecast::believe(&members, now);
        let auto_limit = self.live.load().config.auto_limit;
        for member in members.iter() {
            member.ages(now);
            member.limit_ages(&auto_limit, now);
            member.peers_age(now);
            let (at, silent) = {
                let mut reported = member.reported.lock();
                let overdue = reported.due.take_if(|due| *due <= now).is_some();
                (reported.at, if overdue { reported.telling() } else { Vec::new() })
            };
            if !silent.is_empty() {
                // What it publishes, if anything, is all there is now.
                member.set_pushes(false);
            }
            for rank in silent {
                member.hears(Source::Pushed(rank), SourceEvent::Lost, now);
            }
            if at.is_none_or(|at| now.saturating_duration_since(at) > FOREIGN_FOR) {
                member.set_foreign(0);
            }
        }
        self.lapse_leases(now);
        self.look_who_serves(now);
        self.set_gauges(now);
    }

    /// Takes a part of what is forgotten or over its bounds out of the index; whether there may be
    /// more. A request waits for no more than such a part.
    pub fn tidy(&self) -> bool {
        self.index.write_fairly(|index| index.settle(index::TIDIED_A_HOLD))
            || self.members.load().iter().any(|member| member.belief.settle())
    }

    /// Models of the fleet in order of the members, each id once, as JSON.
    pub fn models(&self) -> Vec<(String, serde_json::Value)> {
        let mut seen = HashMap::new();
        let mut list = Vec::new();
        for member in self.members.load().iter() {
            let Models::Known(known) = &*member.models() else { continue };
            for model in known {
                let described = model.entry.as_ref();
                let json = described.and_then(|entry| serde_json::from_str(entry.json.get()).ok());
                let position = *seen.entry(model.id.clone()).or_insert_with(|| {
                    list.push((model.id.clone(), crate::wire::models::declared(&model.id)));
                    list.len() - 1
                });
                // A worker's own description beats ours.
                if let Some(json) = json
                    && list[position].1["owned_by"] == "warmroute"
                {
                    list[position].1 = json;
                }
            }
        }
        list
    }
}

/// Whether two names are one worker's.
pub(crate) fn is_tried(tried: &[WorkerId], id: &WorkerId) -> bool {
    tried.iter().any(|other| other == id)
}
