//! Anti-entropy: what a reporter's engine holds against what we believe.

use std::{collections::HashMap, sync::atomic::Ordering::Relaxed, time::Instant};

use super::{
    Fleet, Member,
    apply::{ApplyError, engine_id, enter_epoch},
    heartbeat::too_many_ranks,
    truth::{Source, SourceEvent},
};
use crate::{
    telemetry::events,
    wire::{
        report::Malformed,
        sync::{Block, Step, Sync, Want},
    },
};

/// What the router says to a step.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Synced {
    /// What the reporter should send next.
    pub want: Want,
    /// Buckets that differ, with `want: buckets`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differ: Vec<usize>,
    /// Blocks stored by this step.
    pub stored: usize,
    /// Blocks forgotten by this step.
    pub removed: usize,
    /// Blocks that could not be placed.
    pub rejected: usize,
}

impl Synced {
    fn want(want: Want) -> Self {
        Self { want, differ: Vec::new(), stored: 0, removed: 0, rejected: 0 }
    }
}

impl Fleet {
    /// Takes one step of a sync.
    ///
    /// # Errors
    /// `ApplyError`; nothing was changed.
    pub fn sync(&self, sync: &Sync, now: Instant) -> Result<Synced, ApplyError> {
        let member = self.reporter(&sync.worker_id)?;
        let model = member.base_model().unwrap_or_default();
        let mut reported = member.reported.lock();
        reported.at = Some(now);
        let rank = reported.rank(sync.rank).ok_or_else(|| too_many_ranks("rank"))?;
        enter_epoch(&member, sync.rank, rank, &sync.epoch, false, now);
        let source = Source::Pushed(sync.rank);
        let (answer, how) = match &sync.step {
            Step::Digest { sums, .. } => (compare(&member, source, sums), "digest"),
            Step::Buckets { of, list, blocks } => {
                (self.mend(&member, source, &model, (*of, list), blocks), "buckets")
            }
            Step::Snapshot { part, last, blocks } => {
                if *part == 0 {
                    let rank = source.rank();
                    drop(member.belief.change(|holdings, index| holdings.drop_rank(index, rank)));
                } else if rank.snapshot_part != Some(*part) {
                    let problem = "is not the next part; begin again with part 0";
                    return Err(Malformed::new("snapshot.part", problem).into());
                }
                rank.snapshot_part = Some(part.saturating_add(1));
                let mut answer = self.take(&member, source, &model, blocks);
                if !last {
                    answer.want = Want::Snapshot;
                }
                (answer, "snapshot")
            }
        };
        // What it also publishes is not needed.
        member.set_pushes(true);
        if answer.want == Want::Nothing {
            rank.synced(sync.seq);
            member.ask_resync.store(false, Relaxed);
            events::resynced(member.id().as_str(), how, answer.stored, answer.removed);
            member.metrics.resync(how);
            if answer.rejected == 0 {
                member.hears(source, SourceEvent::Resynced, now);
            }
        }
        Ok(answer)
    }

    /// Makes some buckets equal to what the reporter says of them.
    fn mend(
        &self,
        member: &Member,
        source: Source,
        model: &str,
        (of, list): (usize, &[usize]),
        blocks: &[Block],
    ) -> Synced {
        let rank = source.rank();
        let mut wanted: HashMap<_, _> =
            blocks.iter().map(|block| (engine_id(block.stored.ids[0]), block.copies)).collect();
        let wanted_here = |bucket| list.contains(&bucket);
        let believed = member.belief.alone(|holdings| holdings.copies_in(rank, wanted_here, of));
        let mut removed = 0;
        for (id, copies) in believed {
            let right = wanted.remove(&id).unwrap_or(0);
            if right != copies {
                removed += usize::from(right == 0);
                member.belief.change(|holdings, index| holdings.set_copies(index, rank, id, right));
            }
        }
        // What is left we do not hold.
        let missing = blocks.iter().filter(|b| wanted.contains_key(&engine_id(b.stored.ids[0])));
        let mut answer = self.take(member, source, model, missing);
        answer.removed = removed;
        if answer.rejected > 0 {
            // A parent we hold otherwise, or not at all: only everything can tell.
            answer.want = Want::Snapshot;
        }
        answer
    }

    fn take<'a>(
        &self,
        member: &Member,
        source: Source,
        model: &str,
        blocks: impl IntoIterator<Item = &'a Block>,
    ) -> Synced {
        let mut answer = Synced::want(Want::Nothing);
        for block in blocks {
            let outcome = self.apply_stored(member, source, model, &block.stored);
            answer.stored += outcome.engine_blocks;
            answer.rejected += outcome.rejected_engine_blocks;
            if outcome.engine_blocks > 0 && block.copies > 1 {
                let id = engine_id(block.stored.ids[0]);
                let (rank, copies) = (source.rank(), block.copies);
                member
                    .belief
                    .change(|holdings, index| holdings.set_copies(index, rank, id, copies));
            }
        }
        answer
    }
}

/// Where a reporter's digest differs from ours.
fn compare(member: &Member, source: Source, sums: &[u64]) -> Synced {
    let ours = member.belief.alone(|holdings| holdings.digest(source.rank(), sums.len()));
    let pairs = ours.sums.iter().zip(sums);
    let differ: Vec<_> = pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect();
    let filled = ours.sums.iter().zip(sums).filter(|(a, b)| **a != 0 || **b != 0).count();
    let mut answer = Synced::want(match differ.len() {
        0 => Want::Nothing,
        // Most of it: telling the rest apart costs more than it saves.
        many if many * 2 > filled => Want::Snapshot,
        _ => Want::Buckets,
    });
    if answer.want == Want::Buckets {
        answer.differ = differ;
    }
    answer
}
