//! One publisher, followed: connects, catches up, hands batches on in order, repairs, again.
//!
//! While a replay is read nothing is read from the subscription: what is published meanwhile waits
//! in the socket and in the publisher's queue, so there is no buffer of ours to bound. Whether an
//! engine is still the one we knew is asked, not guessed: a replay must begin with the last batch
//! we have, byte for byte.

use std::sync::Arc;

use tokio::{
    sync::Notify,
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use super::{
    Attach, Place, Settings, Sink, SourceKey,
    backoff::Backoff,
    door::Door,
    replay::{Replay, Stopped, numbered},
    sequence::{Position, Print, Sequence, Step},
    zmtp::{Broken, Connection, Message, Role},
};
use crate::wire::kv_events::Decoder;

/// Messages in a row that are no batches, after which the connection is given up.
const GARBAGE_IN_ROW_MAX: u32 = 100;
/// Requests one replay may take when answers are dropped on the way.
const REPLAY_ROUNDS_MAX: u32 = 16;

/// A source's task.
pub(super) struct Source<S> {
    key: SourceKey,
    place: Place,
    sink: Arc<S>,
    settings: Settings,
    /// Told whenever a connection is lost: the engine may come back elsewhere.
    lost: Arc<Notify>,
    decoder: Decoder,
    sequence: Sequence,
    /// Whether every batch of this life of the engine was seen.
    complete: bool,
    /// Whether the publisher keeps batches, as far as is known.
    buffers: bool,
    /// Whether it was resumed and its engine may have restarted since, unseen.
    unproven: bool,
    /// Whether this connection's engine was found to be the one we know (or a new one).
    verified: bool,
    garbage_in_row: u32,
    no_replay_before: Option<Instant>,
    /// What was said last, so that it is said once.
    said_connected: Option<bool>,
}

/// How a replay ended.
enum Replayed {
    /// At its end, or where it was to stop; with the first number it gave.
    Done(Option<u64>),
    /// Its first batch is not the one we have.
    Other,
    /// Too early.
    Failed,
}

impl<S: Sink> Source<S> {
    /// Of one place.
    pub(super) fn new(
        key: SourceKey,
        place: Place,
        sink: Arc<S>,
        settings: Settings,
        lost: Arc<Notify>,
    ) -> Self {
        Self {
            key,
            buffers: true,
            place,
            sink,
            settings,
            lost,
            decoder: Decoder::default(),
            sequence: Sequence::default(),
            complete: false,
            unproven: false,
            verified: false,
            garbage_in_row: 0,
            no_replay_before: None,
            said_connected: None,
        }
    }

    /// Follows the publisher for as long as it is polled.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.settings.backoff_first, self.settings.backoff_longest);
        let mut door = match self.place.events {
            Attach::Bind(address) => Some(Door::open(address)),
            Attach::Connect(_) => None,
        };
        let mut next = None::<Box<Connection>>;
        loop {
            let connection = match (next.take(), &mut door) {
                (Some(connection), _) => Ok(*connection),
                (None, Some(door)) => door.next().await,
                (None, None) => self.connect().await,
            };
            let broken = match connection {
                Ok(mut connection) => match connection.subscribe(self.place.topic.as_bytes()).await
                {
                    Ok(()) => match self.follow(&mut connection, &mut door, &mut backoff).await {
                        Left::Broken(broken) => broken,
                        Left::Replaced(newer) => {
                            // The engine came back before its old connection was seen to be dead.
                            next = Some(newer);
                            continue;
                        }
                    },
                    Err(broken) => broken,
                },
                Err(broken) => broken,
            };
            self.say_disconnected(&broken);
            self.lost.notify_one();
            sleep(backoff.next()).await;
        }
    }

    async fn connect(&self) -> Result<Connection, Broken> {
        match &self.place.events {
            Attach::Connect(at) => Connection::connect(&at.host, at.port, Role::Sub).await,
            Attach::Bind(_) => Err(Broken::Protocol("not a place to connect to")),
        }
    }

    fn say_disconnected(&mut self, broken: &Broken) {
        let why = match &self.place.events {
            Attach::Connect(at) => format!("{at}: {broken}"),
            Attach::Bind(at) => format!("bound {at}: {broken}"),
        };
        if broken.is_garbage() {
            self.garbage(&why);
        }
        if self.said_connected.replace(false) != Some(false) {
            self.sink.disconnected(&self.key, &why);
        }
    }

    /// Reads from one connection until it is of no more use.
    async fn follow(
        &mut self,
        connection: &mut Connection,
        door: &mut Option<Door>,
        backoff: &mut Backoff,
    ) -> Left {
        let resumed = self.resume().await;
        self.sequence.reconnected();
        if resumed && !self.unproven {
            // What came while we waited may be what we have.
            self.sequence.replays();
        }
        self.verified = self.place.replay.is_none();
        self.no_replay_before = None;
        self.catch_up().await;
        if self.verified && self.place.replay.is_some() {
            backoff.reset();
        }
        self.said_connected = Some(true);
        // A replay has proven it; else the next batch does.
        self.unproven &= self.place.replay.is_none();
        self.sink.connected(&self.key, self.complete && !self.unproven);
        loop {
            let received = tokio::select! {
                received = timeout(self.settings.tail_check_after, connection.recv()) => received,
                newer = Door::newer(door) => return Left::Replaced(Box::new(newer)),
            };
            match received {
                Ok(Ok(message)) => {
                    self.message(message).await;
                    if self.garbage_in_row == 0 {
                        backoff.reset();
                    } else if self.garbage_in_row >= GARBAGE_IN_ROW_MAX {
                        return Left::Broken(Broken::Protocol("nothing but garbage"));
                    }
                }
                Ok(Err(broken)) => return Left::Broken(broken),
                Err(_) => self.check().await,
            }
            // A source that has much to say lets the others have their turn.
            yield_now().await;
        }
    }

    /// Waits until we may go on, and takes up the position to go on from; whether there was one.
    async fn resume(&mut self) -> bool {
        self.sink.admitted(&self.key).await;
        if self.sequence.next().is_some() {
            return false;
        }
        let Some(resume) = self.sink.resume(&self.key) else { return false };
        self.sequence = Sequence::resume(&resume.position);
        self.complete = resume.position.complete;
        self.unproven = !resume.unbroken;
        true
    }

    /// Catches up in the midst of a connection, and says so if the engine restarted.
    async fn check(&mut self) {
        if self.catch_up().await {
            self.sink.connected(&self.key, self.complete);
        }
    }

    /// Finds out whether this is still the engine we knew, and takes what we missed. Gives whether
    /// it restarted.
    async fn catch_up(&mut self) -> bool {
        let had = self.sequence.last();
        let replayed = self.replay(had.map_or(0, |(seq, _)| seq), None).await;
        let was_verified = self.verified;
        self.verified |= !matches!(replayed, Replayed::Failed);
        match replayed {
            Replayed::Other => self.begin_anew(None).await,
            // It has nothing, not even the batch that we have. On a connection on which it was
            // the one we know it has not restarted, so it keeps nothing.
            Replayed::Done(None) if had.is_some() && was_verified => {
                self.buffers = false;
                return false;
            }
            Replayed::Done(None) if had.is_some() && self.buffers => self.begin_anew(None).await,
            Replayed::Done(None) if self.sequence.next().is_none() => {
                self.nothing_yet();
                return false;
            }
            Replayed::Done(_) | Replayed::Failed => return false,
        }
        true
    }

    /// The engine has published nothing so far, so nothing was missed.
    fn nothing_yet(&mut self) {
        self.sequence.starts();
        self.complete = true;
    }

    /// The engine restarted: forgets its last life and takes what there is of the new one.
    async fn begin_anew(&mut self, until: Option<u64>) {
        self.sequence.restarted();
        self.decoder = Decoder::default();
        self.complete = false;
        self.sink.restarted(&self.key);
        if until == Some(0) || matches!(self.replay(0, until).await, Replayed::Done(None)) {
            self.nothing_yet();
        }
    }

    async fn message(&mut self, message: Message) {
        let Some((seq, payload)) = numbered(message, &[3]) else {
            self.garbage("a message that is not [topic, number, batch]");
            return;
        };
        if seq == u64::MAX {
            self.garbage("a batch numbered like an end mark");
            return;
        }
        if !self.verified {
            self.check().await;
        }
        let print = Print::of(&payload);
        match self.sequence.published(seq, print) {
            Step::Repeat => return,
            // Before the first batch of all nothing can have been missed.
            Step::Next => {
                let first = self.sequence.next().is_none();
                self.complete |= first;
                if first | std::mem::take(&mut self.unproven) {
                    self.sink.connected(&self.key, self.complete);
                }
            }
            Step::Gap { expected } if !self.unproven => {
                // It should have `seq` at least.
                let replayed = self.replay(expected, Some(seq)).await;
                self.buffers &= !matches!(replayed, Replayed::Done(None));
                self.missed(seq);
            }
            // After a time unseen a gap may be a restart as well.
            Step::Restart | Step::Gap { .. } => {
                self.unproven = false;
                self.begin_anew(Some(seq)).await;
                self.missed(seq);
                self.take(seq, print, &payload);
                self.sink.connected(&self.key, self.complete);
                return;
            }
        }
        self.take(seq, print, &payload);
    }

    /// Says what is missing before `seq`, if anything still is.
    fn missed(&mut self, seq: u64) {
        let expected = self.sequence.next().unwrap_or(0);
        if expected < seq {
            self.complete = false;
            self.sink.gap(&self.key, expected, seq);
        }
    }

    fn take(&mut self, seq: u64, print: Print, payload: &[u8]) {
        if self.sequence.next().is_some_and(|next| seq < next) {
            return;
        }
        self.sequence.took(seq, print);
        match self.decoder.decode(payload) {
            Ok(batch) => {
                self.garbage_in_row = 0;
                let next = seq.saturating_add(1);
                let position = Position { next, last: Some(print), complete: self.complete };
                self.sink.batch(&self.key, position, batch);
            }
            Err(error) => {
                self.garbage(&format!("batch {seq}: {error}"));
                self.complete = false;
                self.sink.gap(&self.key, seq, seq + 1);
            }
        }
    }

    fn garbage(&mut self, why: &str) {
        self.sink.garbage(&self.key, why, self.garbage_in_row == 0);
        self.garbage_in_row = self.garbage_in_row.saturating_add(1);
    }

    /// Takes what the publisher still has from `from` on, up to `until` or to the end.
    async fn replay(&mut self, from: u64, until: Option<u64>) -> Replayed {
        if self.place.replay.is_none() || self.no_replay_before.is_some_and(|t| Instant::now() < t)
        {
            return Replayed::Failed;
        }
        self.sequence.replays();
        let mut count = 0;
        let total = self.settings.replay_total;
        let replayed = timeout(total, self.replay_rounds(from, until, &mut count)).await;
        if count > 0 {
            self.sink.replayed(&self.key, count);
        }
        let replayed = replayed.unwrap_or(Replayed::Failed);
        let failed = matches!(replayed, Replayed::Failed);
        self.no_replay_before = failed.then(|| Instant::now() + self.settings.replay_pause);
        replayed
    }

    async fn replay_rounds(
        &mut self,
        mut from: u64,
        until: Option<u64>,
        count: &mut u64,
    ) -> Replayed {
        let Some(endpoint) = self.place.replay.clone() else { return Replayed::Failed };
        let within = self.settings.replay_within;
        let mut first = None;
        for _ in 0..REPLAY_ROUNDS_MAX {
            let before = *count;
            let Ok(mut replay) = Replay::ask(&endpoint, from, within).await else { break };
            let mut fresh = true;
            loop {
                let (seq, payload) = match replay.next().await {
                    Ok(Some(batch)) => batch,
                    Ok(None) => return Replayed::Done(first),
                    Err(Stopped::Garbage) => {
                        self.garbage("a replay of what is no batch");
                        return Replayed::Failed;
                    }
                    Err(_) => break,
                };
                let print = Print::of(&payload);
                if first.is_none() {
                    first = Some(seq);
                    self.buffers = true;
                    // What we asked for first is what we have, or there is another engine.
                    let same = self.sequence.last().is_none_or(|(had, _)| from > had)
                        || self.sequence.last() == Some((seq, print));
                    if !same {
                        return Replayed::Other;
                    }
                    self.complete |= seq == 0;
                }
                let expected = self.sequence.next().unwrap_or(0);
                if seq > expected && !fresh {
                    // Dropped on the way. A fresh request begins where this one broke.
                    break;
                }
                fresh = false;
                if until.is_some_and(|until| seq >= until) {
                    return Replayed::Done(first);
                }
                // What is missing before the first is no longer in the buffer.
                self.missed(seq);
                if seq >= expected {
                    self.take(seq, print, &payload);
                    *count += 1;
                    if until == Some(seq + 1) {
                        return Replayed::Done(first);
                    }
                }
                yield_now().await;
            }
            if *count == before {
                break;
            }
            from = self.sequence.next().unwrap_or(from);
        }
        Replayed::Failed
    }
}

/// Why a connection was left.
enum Left {
    Broken(Broken),
    Replaced(Box<Connection>),
}
