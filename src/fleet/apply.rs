//! Cache events -> holdings. Nothing here trusts a reporter: repeats, gaps, unknown ids and foreign
//! epochs are facts to be counted, never errors of ours.

use std::{num::NonZeroUsize, sync::atomic::Ordering::Relaxed, time::Instant};

use super::{
    Fleet, Member,
    heartbeat::too_many_ranks,
    index::BLOCKS_A_HOLD,
    reported::{Entered, RankReports, Sequence},
    truth::{Domain, Source, SourceEvent},
};
use crate::{
    routing::{
        block::Root,
        prefix::{EngineBlockId, StoredOutcome, Tier},
    },
    telemetry::events,
    wire::{
        event::{self, BlockId, Content, Event, Stored},
        prompt::{Hashing, RootFields, TOKEN_BLOCK_BYTES},
        report::{Batch, Malformed},
    },
};

/// Bytes of an engine block that stands for itself by its own hash.
pub(super) const BARE_BLOCK_BYTES: NonZeroUsize = NonZeroUsize::new(8).expect("not zero");

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Applied {
    /// Whether it was a repeat and ignored.
    pub repeat: bool,
    /// Whether batches are missing: the reporter should sync.
    pub resync: bool,
    /// Whether batches are missing right before this one.
    #[serde(skip)]
    pub gap: bool,
    /// Engine blocks newly stored.
    pub stored: usize,
    /// Engine blocks that could not be placed: unknown parent, or the bound is reached.
    pub rejected: usize,
    /// Engine blocks removed.
    pub removed: usize,
    /// Removed ids we did not know.
    pub unknown: usize,
    /// Events of a type we do not know.
    pub skipped: usize,
}

/// Why a report is not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// No such worker.
    #[error(
        "worker_id: no worker `{0}` in the fleet; send a heartbeat first, or add it to `workers`"
    )]
    UnknownWorker(String),
    /// It names something that is not there.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Fleet {
    /// The worker a report is of.
    pub(super) fn reporter(&self, id: &str) -> Result<std::sync::Arc<Member>, ApplyError> {
        let unknown = || ApplyError::UnknownWorker(crate::wire::error_body::shorten(id));
        self.member(id).ok_or_else(unknown)
    }

    /// Applies a batch of pushed events.
    ///
    /// # Errors
    /// `ApplyError`; the batch counts as not received.
    pub fn apply(&self, batch: &Batch, now: Instant) -> Result<Applied, ApplyError> {
        let member = self.reporter(&batch.worker_id)?;
        let model = named_model(&member, &batch.events)?;
        let mut reported = member.reported.lock();
        reported.at = Some(now);
        let rank = reported.rank(batch.rank).ok_or_else(|| too_many_ranks("rank"))?;
        let source = Source::Pushed(batch.rank);
        enter_epoch(&member, batch.rank, rank, &batch.epoch, batch.seq <= 1, now);
        let first = rank.next_seq.is_none();
        let mut applied = Applied::default();
        match rank.take_seq(batch.seq) {
            Sequence::Repeat => {
                let resync = rank.missing || member.ask_resync.load(Relaxed);
                return Ok(Applied { repeat: true, resync, ..applied });
            }
            Sequence::Next if first => {
                member.hears(source, SourceEvent::Connected { complete: true }, now);
            }
            Sequence::Next => member.hears_on(source, now),
            Sequence::Gap { expected } => {
                // What is in this batch is true all the same; what is missing only the reporter
                // can say.
                events::report_gap(member.id().as_str(), expected, batch.seq);
                member.metrics.gaps.inc();
                applied.gap = true;
                if first {
                    member.hears(source, SourceEvent::Connected { complete: false }, now);
                } else {
                    member.hears(source, SourceEvent::Gap, now);
                }
            }
        }
        if batch.events.iter().any(|event| matches!(event, Event::Stored(_))) {
            member.set_pushes(true);
        }
        applied.resync = rank.missing || member.ask_resync.load(Relaxed);
        // `reported` stays locked: batches of one worker are applied one after the other.
        self.apply_events(&member, source, &model, &batch.events, &mut applied, now);
        Ok(applied)
    }

    /// Applies events of one source, in order.
    pub(super) fn apply_events(
        &self,
        member: &Member,
        source: Source,
        model: &str,
        events: &[Event],
        applied: &mut Applied,
        now: Instant,
    ) {
        let rank = source.rank();
        for event in events {
            match event {
                Event::Unknown => applied.skipped += 1,
                Event::Cleared => {
                    drop(member.belief.change(|holdings, index| holdings.cleared(index, rank)));
                    member.hears(source, SourceEvent::Cleared, now);
                }
                Event::Removed { ids, tier } => {
                    for ids in ids.chunks(BLOCKS_A_HOLD) {
                        let ids: Vec<_> = ids.iter().copied().map(engine_id).collect();
                        let outcome = member.belief.change(|holdings, index| {
                            holdings.removed(index, rank, pure(*tier), &ids)
                        });
                        applied.removed += outcome.known;
                        applied.unknown += outcome.unknown;
                    }
                }
                Event::Stored(stored) => {
                    let outcome = self.apply_stored(member, source, model, stored);
                    applied.stored += outcome.engine_blocks;
                    applied.rejected += outcome.rejected_engine_blocks;
                }
            }
        }
        member.metrics.stores.inc_by(applied.stored as u64);
        member.metrics.stores_rejected.inc_by(applied.rejected as u64);
        member.metrics.evictions.inc_by(applied.removed as u64);
    }

    /// Applies one stored event.
    pub(super) fn apply_stored(
        &self,
        member: &Member,
        source: Source,
        model: &str,
        stored: &Stored,
    ) -> StoredOutcome {
        let (rank, tier) = (source.rank(), pure(stored.tier));
        let mut total = StoredOutcome::default();
        let mut parent = stored.parent.map(engine_id);
        if tier != Tier::Gpu && is_known(member, rank, stored) {
            // Moved there from the GPU's memory, which may be the only one to hold the parent.
            return store_known(member, rank, tier, stored);
        }
        let named = stored.model.as_deref().unwrap_or(model);
        let live = self.live.load();
        let bare = live.aligned.of(named).is_some_and(|model| model.block_hash.is_some());
        if bare && stored.is_tokens() {
            // The engine's hash names the prefix by itself; requests are hashed the same way.
            let (root, block_bytes) = (live.bare_root(named), BARE_BLOCK_BYTES);
            for ids in stored.ids.chunks(BLOCKS_A_HOLD) {
                member.belief.prepare(rank, tier, BLOCKS_A_HOLD);
                let bytes: Vec<_> = ids.iter().map(|id| id.0.to_le_bytes()).collect();
                let blocks = ids.iter().zip(&bytes).map(|(id, bytes)| (engine_id(*id), &bytes[..]));
                let outcome = member.belief.change(|holdings, index| {
                    holdings.stored(index, rank, tier, root, parent, blocks, block_bytes)
                });
                add(&mut total, outcome);
                parent = ids.last().copied().map(engine_id);
            }
            member.truth.lock().reports(Domain::Tokens, stored);
            return total;
        }
        let Some(blocks) = stored.blocks() else {
            return store_known(member, rank, tier, stored);
        };
        let (root, block_bytes, domain) = if stored.is_tokens() {
            (token_root_of(&live.hashing, named, stored), TOKEN_BLOCK_BYTES, Domain::Tokens)
        } else {
            let root = text_root_of(&live.hashing, named, stored);
            (root, live.hashing.block_bytes, Domain::Text)
        };
        let mut blocks = blocks.iter().map(|(id, bytes)| (engine_id(id), bytes)).peekable();
        while blocks.peek().is_some() {
            member.belief.prepare(rank, tier, BLOCKS_A_HOLD);
            let part: Vec<_> = blocks.by_ref().take(BLOCKS_A_HOLD).collect();
            let last = part.last().map(|(id, _)| *id);
            let part = part.into_iter();
            let outcome = member.belief.change(|holdings, index| {
                holdings.stored(index, rank, tier, root, parent, part, block_bytes)
            });
            add(&mut total, outcome);
            parent = last;
        }
        member.truth.lock().reports(domain, stored);
        total
    }
}

fn text_root_of(hashing: &Hashing, model: &str, stored: &Stored) -> Root {
    let fields = RootFields {
        model,
        tenant: stored.tenant.as_deref().unwrap_or("").as_bytes(),
        cache_salt: stored.cache_salt.as_deref().unwrap_or(""),
        lora: stored.lora_name.as_deref().unwrap_or(""),
        tokens: false,
    };
    fields.root(&hashing.secret)
}

fn token_root_of(hashing: &Hashing, model: &str, stored: &Stored) -> Root {
    // Engines serve an adapter as a model of its own name.
    let model = stored.lora_name.as_deref().unwrap_or(model);
    hashing.token_root(
        model,
        stored.tenant.as_deref().unwrap_or("").as_bytes(),
        stored.cache_salt.as_deref().unwrap_or(""),
    )
}

/// Whether all blocks of an event are known from before.
fn is_known(member: &Member, rank: u32, stored: &Stored) -> bool {
    stored.ids.chunks(BLOCKS_A_HOLD).all(|ids| {
        let ids: Vec<_> = ids.iter().copied().map(engine_id).collect();
        member.belief.ask(|holdings, index| holdings.knows(index, rank, &ids))
    })
}

/// Applies a stored event by the names of its blocks.
fn store_known(member: &Member, rank: u32, tier: Tier, stored: &Stored) -> StoredOutcome {
    let mut total = StoredOutcome::default();
    for ids in stored.ids.chunks(BLOCKS_A_HOLD) {
        let ids: Vec<_> = ids.iter().copied().map(engine_id).collect();
        let outcome =
            member.belief.change(|holdings, index| holdings.stored_known(index, rank, tier, &ids));
        add(&mut total, outcome);
    }
    total
}

/// The model that stored events are filed under when they name none.
fn named_model(member: &Member, events: &[Event]) -> Result<String, Malformed> {
    if let Some(model) = member.base_model() {
        return Ok(model);
    }
    let unnamed = events.iter().position(|event| {
        matches!(event, Event::Stored(stored) if stored.parent.is_none() && stored.model.is_none())
    });
    match unnamed {
        None => Ok(String::new()),
        Some(at) => Err(Malformed {
            field: format!("events[{at}].model"),
            problem: "the worker's model is not known yet; name it here or in a heartbeat"
                .to_owned(),
            unsupported: true,
        }),
    }
}

/// A rank's reports are of this life of its engine; what an earlier one held is forgotten.
/// `complete` says whether nothing was said of the new one before.
pub(super) fn enter_epoch(
    member: &Member,
    rank: u32,
    reports: &mut RankReports,
    epoch: &str,
    complete: bool,
    now: Instant,
) {
    let source = Source::Pushed(rank);
    // One that only sends heartbeats tells of no cache.
    let told = reports.next_seq.is_some();
    if reports.enter_epoch(epoch) == Entered::Restarted {
        member.ask_resync.store(false, Relaxed);
        events::epoch_changed(member.id().as_str(), epoch);
        if told {
            member.hears(source, SourceEvent::Restarted { complete }, now);
        } else {
            member.drop_all("a new epoch of its engine");
        }
    }
}

pub(super) fn engine_id(id: BlockId) -> EngineBlockId {
    EngineBlockId(id.0)
}

pub(super) fn pure(tier: event::Tier) -> Tier {
    match tier {
        event::Tier::Gpu => Tier::Gpu,
        event::Tier::Cpu => Tier::Cpu,
        event::Tier::Storage => Tier::Storage,
    }
}

fn add(total: &mut StoredOutcome, part: StoredOutcome) {
    total.engine_blocks += part.engine_blocks;
    total.new_blocks += part.new_blocks;
    total.rejected_engine_blocks += part.rejected_engine_blocks;
    total.rejected = total.rejected.or(part.rejected);
}

/// Tokens an engine block of this event holds, where it says so.
pub(super) fn block_tokens_of(stored: &Stored) -> Option<u32> {
    match stored.content {
        Content::Tokens { block_tokens, .. } => u32::try_from(block_tokens).ok(),
        _ => None,
    }
}
