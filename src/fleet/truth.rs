//! How far a worker's holdings are known to be true, and what follows from it.
//!
//! The rules are `routing::trust`'s and `routing::capacity`'s; here they meet the worker's index.

use std::{
    sync::{LazyLock, atomic::Ordering::Relaxed},
    time::Instant,
};

use super::{Cause, Fleet, Live, Member, apply::block_tokens_of};
use crate::{
    config::IndexConfig,
    routing::{
        block::BlockHash,
        capacity::{CapacityEstimate, Sent},
        prefix::{Forgotten, Holdings, HoldingsParams, Index},
        trust::{Action, Rank, Trust, TrustParams, TrustState, WorkerEvent},
    },
    state::TruthState,
    telemetry::events,
    wire::event::Stored,
};

pub(super) use crate::routing::trust::SourceEvent;

/// What prompts and engine blocks are named by: the two never match each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Bytes of canonical text.
    Text,
    /// Token ids.
    Tokens,
}

/// Who tells of a worker's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Source {
    /// Its pushed reports, by data-parallel rank.
    Pushed(u32),
    /// Its published KV events, by data-parallel rank.
    Published(u32),
}

/// Ranks of published events are told apart from those of pushed reports by this bit.
const PUBLISHED: u32 = 1 << 31;

impl Source {
    /// The rank its blocks are filed under.
    pub(super) fn rank(self) -> u32 {
        match self {
            Self::Pushed(rank) => rank & !PUBLISHED,
            Self::Published(rank) => rank | PUBLISHED,
        }
    }
}

/// What we know of a worker besides its blocks.
#[derive(Debug)]
pub(super) struct Truth {
    trust: TrustState,
    /// The trust acted upon; it also falls with time.
    acted: Trust,
    capacity: CapacityEstimate,
    /// What the estimate began with, blocks.
    configured: usize,
    /// What its last stored event named blocks by.
    domain: Option<Domain>,
    /// Whether its stored events name tenants.
    names_tenants: bool,
    /// Tokens in one of its engine blocks, once it has said.
    pub(super) block_tokens: Option<u32>,
}

impl Truth {
    pub(super) fn new(blocks_max: usize) -> Self {
        Self {
            trust: TrustState::new(TrustParams::default()),
            acted: Trust::Presumed,
            capacity: CapacityEstimate::new(blocks_max),
            configured: blocks_max,
            domain: None,
            names_tenants: false,
            block_tokens: None,
        }
    }

    /// All of it, for another process.
    pub(super) fn image(&self, now: Instant) -> TruthState {
        TruthState {
            configured: self.configured as u64,
            domain: self.domain.map(|domain| u8::from(domain == Domain::Tokens)),
            names_tenants: self.names_tenants,
            block_tokens: self.block_tokens,
            trust: self.trust.image(now),
            capacity: self.capacity.image(),
        }
    }

    /// Goes on from an image. A capacity that was configured otherwise, and that nobody `said`, is
    /// not taken over.
    pub(super) fn restore(&mut self, image: &TruthState, said: bool, cause: Cause, now: Instant) {
        let crashed = cause != Cause::HandOver;
        let params = TrustParams::default();
        self.trust = TrustState::restore(params, &image.trust, crashed, cause.away(), now);
        self.acted = self.trust.trust(now);
        self.domain = match image.domain {
            Some(0) => Some(Domain::Text),
            Some(1) => Some(Domain::Tokens),
            _ => None,
        };
        self.names_tenants = image.names_tenants;
        self.block_tokens = image.block_tokens;
        if said || image.configured == self.configured as u64 {
            self.configured = usize::try_from(image.configured).unwrap_or(self.configured);
            self.capacity = CapacityEstimate::restore(&image.capacity);
        }
    }

    /// How far to believe what we hold.
    pub(super) fn state(&self) -> Trust {
        self.acted
    }

    /// Blocks the worker's cache is believed to hold.
    pub(super) fn budget(&self) -> usize {
        self.capacity.blocks()
    }

    /// The worker said how much it holds, blocks.
    pub(super) fn said_capacity(&mut self, blocks: usize) {
        if blocks != self.configured {
            self.configured = blocks;
            self.capacity = CapacityEstimate::new(blocks);
        }
    }

    /// It told of these blocks.
    pub(super) fn reports(&mut self, domain: Domain, stored: &Stored) {
        self.domain = Some(domain);
        self.names_tenants |= stored.tenant.is_some();
        self.block_tokens = block_tokens_of(stored).or(self.block_tokens);
    }

    /// Whether what we presume of such a prompt will be confirmed by its reports, if true.
    /// (Of a worker that does not report, nothing needs to be.)
    pub(super) fn confirms(&self, domain: Domain, tenant: bool) -> bool {
        self.acted == Trust::Presumed
            || (self.domain == Some(domain) && (!tenant || self.names_tenants))
    }

    /// A prompt goes to the worker; what its answer will tell of the worker's capacity.
    pub(super) fn sent(&mut self, prompt: &[BlockHash]) -> Option<Sent> {
        (self.acted == Trust::Presumed).then(|| self.capacity.sent(prompt))
    }

    /// It was answered; whether the capacity is believed to be another now.
    pub(super) fn answered(&mut self, sent: &Sent, cached_blocks: usize) -> bool {
        self.capacity.answered(sent, cached_blocks)
    }
}

impl Member {
    /// A source said something; acts on what follows.
    pub(super) fn hears(&self, source: Source, said: SourceEvent, now: Instant) {
        let rank = Rank(source.rank());
        self.judge(now, |trust| trust.on_source(rank, said, now));
    }

    /// A source goes on from where it was.
    pub(super) fn hears_on(&self, source: Source, now: Instant) {
        if self.truth.lock().trust.wants_proof() {
            self.hears(source, SourceEvent::Continued, now);
        }
    }

    /// Something happened to the worker; acts on what follows.
    pub(super) fn undergoes(&self, event: WorkerEvent, now: Instant) {
        self.judge(now, |trust| trust.on_worker(event, now));
    }

    /// A source will say no more.
    pub(super) fn forgets(&self, source: Source, now: Instant) {
        drop(self.belief.change(|holdings, index| holdings.drop_rank(index, source.rank())));
        self.judge(now, |trust| {
            trust.forget_source(Rank(source.rank()));
            Action::None
        });
    }

    /// Time passes.
    pub(super) fn ages(&self, now: Instant) {
        self.judge(now, |_| Action::None);
        self.belief.change(|holdings, index| holdings.expire(index, now));
        self.belief.alone(Holdings::shrink_when_sparse);
    }

    fn judge(&self, now: Instant, judge: impl FnOnce(&mut TrustState) -> Action) {
        let (action, before, after) = {
            let mut truth = self.truth.lock();
            let action = judge(&mut truth.trust);
            let after = truth.trust.trust(now);
            let unhealed = truth.trust.unhealed().next().is_some();
            if unhealed && matches!(action, Action::DropAll | Action::DropSource(_)) {
                self.ask_resync.store(true, Relaxed);
            }
            (action, std::mem::replace(&mut truth.acted, after), after)
        };
        if before != after {
            self.metrics.trust.set(after.as_gauge());
            let confirming = after != Trust::Presumed;
            self.belief.change(|holdings, index| holdings.set_confirming(index, confirming, now));
            events::trust_changed(self.id().as_str(), before.as_str(), after.as_str());
        }
        match action {
            Action::None => {}
            Action::AskResync => self.ask_resync.store(true, Relaxed),
            Action::DropSource(rank) => {
                self.drop_holdings("its engine's cache is empty", |holdings, index| {
                    holdings.drop_rank(index, rank.0)
                });
            }
            Action::DropAll => self.drop_all("it is empty, or must be"),
        }
    }

    /// Forgets all that is believed of its cache.
    pub(super) fn drop_all(&self, why: &str) {
        self.drop_holdings(why, Holdings::drop_all);
    }

    fn drop_holdings(
        &self,
        why: &str,
        drop_it: impl FnOnce(&mut Holdings, &mut Index) -> Forgotten,
    ) {
        let (blocks, forgotten) = self.belief.change(|holdings, index| {
            let blocks = holdings.stats(index).blocks();
            let forgotten = drop_it(holdings, index);
            holdings.drop_unconfirmed(index);
            (blocks, forgotten)
        });
        drop(forgotten);
        self.truth.lock().capacity.cleared();
        events::holdings_dropped(self.id().as_str(), blocks, why);
        self.metrics.drops.inc();
    }

    /// The model its blocks are of when they name none: adapters come after their base model.
    pub fn base_model(&self) -> Option<String> {
        let said = self.reported.lock().model().cloned();
        said.or_else(|| self.first_model())
    }
}

impl Fleet {
    /// What the index of `members` workers may take, bytes: the parts of all, which whoever needs
    /// more than its own may use while others do not.
    pub(super) fn index_bytes_max(live: &Live, members: usize) -> usize {
        live.config.index.tree_bytes_max().saturating_mul(members.max(1))
    }

    /// Bounds a worker's index by what we know of its cache now.
    pub(super) fn rebound(&self, member: &Member) {
        let budget = member.truth.lock().budget();
        let live = self.live.load();
        let index = &live.config.index;
        // What is over them goes by and by.
        member.belief.alone(|holdings| holdings.set_params(holdings_params(index, budget)));
    }
}

/// Another in each process.
static ID_SEED: LazyLock<u64> = LazyLock::new(rand::random);

/// Bounds of a worker's holdings.
pub(super) fn holdings_params(index: &IndexConfig, blocks_max: usize) -> HoldingsParams {
    HoldingsParams {
        blocks_max,
        engine_bytes_max: index.engine_bytes_max(),
        id_seed: *ID_SEED,
        presumed_ttl: index.presumed_ttl,
    }
}
