//! Dynamo's indexes: `dynamo-kv-router`, as its router drives them.

use std::{cell::RefCell, sync::Arc, thread::JoinHandle};

use dynamo_kv_router::{
    ConcurrentRadixTreeCompressed, PositionalIndexer, RadixTree,
    indexer::{SyncIndexer, WorkerTask},
    protocols::{
        ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData,
        KvCacheStoreData, KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent,
        WorkerWithDpRank,
    },
};
use tokio::sync::oneshot;

use crate::index::{Change, Index, Prompt};

fn event(worker: u32, data: KvCacheEventData) -> RouterEvent {
    RouterEvent::new(u64::from(worker), KvCacheEvent { event_id: 0, data, dp_rank: 0 })
}

fn stored(change: Change, prompt: &Prompt) -> RouterEvent {
    let Change { from, to, .. } = change;
    let parent = from.checked_sub(1).map(|at| ExternalSequenceBlockHash(prompt.blocks[at]));
    let blocks = prompt.contents[from..to].iter().zip(&prompt.blocks[from..to]);
    let block = |(&content, &block)| KvCacheStoredBlockData {
        block_hash: ExternalSequenceBlockHash(block),
        tokens_hash: LocalBlockHash(content),
        mm_extra_info: None,
    };
    let blocks = blocks.map(block).collect();
    let data = KvCacheStoreData { parent_hash: parent, start_position: None, blocks };
    event(change.worker, KvCacheEventData::Stored(data))
}

/// One event a block, as an engine that evicts one block at a time sends them.
fn removed(change: Change, prompt: &Prompt) -> Vec<RouterEvent> {
    let blocks = prompt.blocks[change.from..change.to].iter().rev();
    blocks
        .map(|&block| {
            let block_hashes = vec![ExternalSequenceBlockHash(block)];
            event(change.worker, KvCacheEventData::Removed(KvCacheRemoveData { block_hashes }))
        })
        .collect()
}

fn query(prompt: &Prompt) -> Vec<LocalBlockHash> {
    prompt.contents.iter().map(|&content| LocalBlockHash(content)).collect()
}

fn depths(scores: &OverlapScores, depths: &mut [u32]) {
    depths.fill(0);
    for (worker, &depth) in &scores.scores {
        depths[worker.worker_id as usize] = depth;
    }
}

/// The single-threaded tree.
pub struct Radix(RadixTree);

impl Index for Radix {
    type Change = Vec<RouterEvent>;
    type Query = Vec<LocalBlockHash>;
    type Answer = OverlapScores;

    fn new(_: u32) -> Self {
        Self(RadixTree::new())
    }

    fn stored(change: Change, prompt: &Prompt) -> Self::Change {
        vec![stored(change, prompt)]
    }

    fn removed(change: Change, prompt: &Prompt) -> Self::Change {
        removed(change, prompt)
    }

    fn apply(&mut self, changes: Vec<Self::Change>) {
        for event in changes.into_iter().flatten() {
            self.0.apply_event(event).expect("a valid event");
        }
    }

    fn drop_worker(&mut self, worker: u32) {
        self.0.remove_worker(u64::from(worker));
    }

    fn query(prompt: &Prompt) -> Self::Query {
        query(prompt)
    }

    fn look_up(&self, query: &mut Self::Query, answer: &mut OverlapScores) {
        *answer = self.0.find_matches(std::mem::take(query), false);
    }

    fn answer(&self) -> OverlapScores {
        OverlapScores::default()
    }

    fn depths(&self, answer: &OverlapScores, out: &mut [u32]) {
        depths(answer, out);
    }
}

/// The concurrent compressed tree behind one event thread, Dynamo's default.
pub struct Compressed {
    index: Arc<ConcurrentRadixTreeCompressed>,
    events: flume::Sender<WorkerTask>,
    thread: Option<JoinHandle<()>>,
}

impl Compressed {
    /// Sends events on their way.
    pub fn send(&self, events: Vec<RouterEvent>) {
        for event in events {
            self.events.send(WorkerTask::Event(event)).expect("the thread runs");
        }
    }

    /// Waits until all that was sent is applied.
    fn flush(&self) {
        let (done, wait) = oneshot::channel();
        self.events.send(WorkerTask::Flush(done)).expect("the thread runs");
        wait.blocking_recv().expect("the thread runs");
    }
}

impl Drop for Compressed {
    fn drop(&mut self) {
        let _ = self.events.send(WorkerTask::Terminate);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Index for Compressed {
    type Change = Vec<RouterEvent>;
    type Query = Vec<LocalBlockHash>;
    type Answer = OverlapScores;

    fn new(_: u32) -> Self {
        let index = Arc::new(ConcurrentRadixTreeCompressed::new());
        let (events, tasks) = flume::unbounded();
        let applied = Arc::clone(&index);
        let thread = std::thread::spawn(move || applied.worker(tasks, None).expect("runs"));
        Self { index, events, thread: Some(thread) }
    }

    fn stored(change: Change, prompt: &Prompt) -> Self::Change {
        vec![stored(change, prompt)]
    }

    fn removed(change: Change, prompt: &Prompt) -> Self::Change {
        removed(change, prompt)
    }

    fn apply(&mut self, changes: Vec<Self::Change>) {
        for events in changes {
            self.send(events);
        }
        self.flush();
    }

    fn drop_worker(&mut self, worker: u32) {
        let (resp, done) = oneshot::channel();
        let task =
            WorkerTask::RemoveWorker { worker_id: u64::from(worker), sweep_tree: true, resp };
        self.events.send(task).expect("the thread runs");
        done.blocking_recv().expect("the thread runs");
    }

    fn query(prompt: &Prompt) -> Self::Query {
        query(prompt)
    }

    fn look_up(&self, query: &mut Self::Query, answer: &mut OverlapScores) {
        *answer = self.index.find_matches(query, false);
    }

    fn answer(&self) -> OverlapScores {
        OverlapScores::default()
    }

    fn depths(&self, answer: &OverlapScores, out: &mut [u32]) {
        depths(answer, out);
    }
}

/// The positional index, with its own default (strided) search.
pub struct Positional {
    index: PositionalIndexer,
    blocks: RefCell<
        rustc_hash::FxHashMap<WorkerWithDpRank, dynamo_kv_router::indexer::positional::LevelIndex>,
    >,
}

impl Index for Positional {
    type Change = Vec<RouterEvent>;
    type Query = Vec<LocalBlockHash>;
    type Answer = OverlapScores;

    fn new(_: u32) -> Self {
        Self { index: PositionalIndexer::new(32), blocks: RefCell::default() }
    }

    fn stored(change: Change, prompt: &Prompt) -> Self::Change {
        vec![stored(change, prompt)]
    }

    fn removed(change: Change, prompt: &Prompt) -> Self::Change {
        removed(change, prompt)
    }

    fn apply(&mut self, changes: Vec<Self::Change>) {
        let blocks = self.blocks.get_mut();
        for event in changes.into_iter().flatten() {
            self.index.apply_event(blocks, event, None).expect("a valid event");
        }
    }

    fn drop_worker(&mut self, worker: u32) {
        let cleared = event(worker, KvCacheEventData::Cleared);
        self.index.apply_event(self.blocks.get_mut(), cleared, None).expect("a valid event");
    }

    fn query(prompt: &Prompt) -> Self::Query {
        query(prompt)
    }

    fn look_up(&self, query: &mut Self::Query, answer: &mut OverlapScores) {
        *answer = self.index.find_matches(query, false);
    }

    fn answer(&self) -> OverlapScores {
        OverlapScores::default()
    }

    fn depths(&self, answer: &OverlapScores, out: &mut [u32]) {
        depths(answer, out);
    }
}
