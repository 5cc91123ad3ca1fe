//! Open loop: requests arrive by schedule, whatever became of those before.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until, timeout};

use super::{
    answer::{self, Body, Read},
    asks::{Chat, PATH, between},
    http1,
    http2::Pool,
    io::Target,
    record::{Cause, Failure, Record, Recorder, Way},
};

/// Requests under way at once; beyond it they are counted as failed, not sent.
const OPEN_MAX: usize = 5_000;
/// A client waits so long for a whole answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests on one connection in TLS, so that there are handshakes all the time.
const TLS_USES_MAX: usize = 50;
/// Connections shared by chats over HTTP/2: plain, TLS.
const H2_CONNECTIONS: (usize, usize) = (4, 2);
/// How often the schedule is looked at.
const TICK: Duration = Duration::from_millis(1);

/// Of twenty requests, so many come each way.
const WAYS: [(Way, u64); 5] =
    [(Way::Kept, 8), (Way::Fresh, 3), (Way::H2, 5), (Way::TlsKept, 2), (Way::TlsH2, 2)];

/// The chats, and the connections they come over.
pub struct Load {
    recorder: Arc<Recorder>,
    target: Target,
    chats: Mutex<Chats>,
    kept: [Mutex<Vec<http1::Conn>>; 2],
    h2: [Pool; 2],
    /// Milliseconds a user thinks, from and to.
    think: (u64, u64),
    /// Chats that are under way when the load begins.
    under_way: u64,
    /// Arrivals a second, in thousandths.
    rate: AtomicU64,
    open: AtomicUsize,
    ended: AtomicBool,
}

#[derive(Default)]
struct Chats {
    /// By the microsecond at which the user is ready, and a number.
    waiting: BTreeMap<(u64, u64), Chat>,
    begun: u64,
}

impl Load {
    /// A load of so many arrivals a second, not started.
    pub fn new(recorder: Arc<Recorder>, target: Target, rate: f64, think: (u64, u64)) -> Arc<Self> {
        let pool = |tls, count| Pool::new(target.clone(), tls, count);
        let h2 = [pool(false, H2_CONNECTIONS.0), pool(true, H2_CONNECTIONS.1)];
        let under_way = (rate * live_seconds(think)) as u64;
        Arc::new(Self {
            recorder,
            target,
            chats: Mutex::default(),
            kept: Default::default(),
            h2,
            think,
            under_way,
            rate: AtomicU64::new((rate * 1e3) as u64),
            open: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// Changes the rate.
    pub fn set_rate(&self, rate: f64) {
        self.rate.store((rate * 1e3) as u64, Relaxed);
    }

    /// Nothing arrives any more.
    pub fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    /// Requests under way.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Lets requests arrive until told to end.
    pub async fn run(self: Arc<Self>) {
        let mut due = Instant::now();
        let mut number = 0;
        while !self.ended.load(Relaxed) {
            let now = Instant::now();
            if due > now {
                sleep_until(due.max(now + TICK)).await;
                continue;
            }
            self.recorder.was_behind((now - due).as_secs_f64());
            tokio::spawn(self.clone().arrive(number, due));
            number += 1;
            due += Duration::from_secs_f64(1e3 / self.rate.load(Relaxed).max(1) as f64);
        }
    }

    /// One request. Its time counts from when it was due.
    async fn arrive(self: Arc<Self>, number: u64, due: Instant) {
        let way = way_of(number);
        let sent = self.recorder.at(due);
        let is_full = self.open.fetch_add(1, Relaxed) >= OPEN_MAX;
        let mut chat = self.next_chat();
        let expect = chat.expect();
        let read = if is_full {
            Err(Failure::new(Cause::Full, format!("{OPEN_MAX} requests are under way")))
        } else {
            let late = || Err(Failure::new(Cause::Late, format!("not within {PATIENCE:?}")));
            timeout(PATIENCE, self.ask(way, &chat)).await.unwrap_or_else(|_| late())
        };
        self.open.fetch_sub(1, Relaxed);
        let mut record = Record {
            way,
            is_long: false,
            sent,
            first: None,
            is_streamed: expect.is_streamed,
            ended: self.recorder.now(),
            tokens: None,
            failure: None,
        };
        // A user who got no answer asks again after a while.
        let mut goes_on = true;
        match read {
            Ok(read) => {
                record.first = read.first.map(|first| self.recorder.at(first));
                record.tokens = Some(read.tokens);
                goes_on = chat.go_on(&read.content);
            }
            Err(failure) => record.failure = Some(failure),
        }
        self.recorder.push(record);
        if goes_on {
            let think = between(self.think, chat.draw()) as f64 / 1e3;
            let ready = ((self.recorder.now() + think) * 1e6) as u64;
            self.chats().waiting.insert((ready, number), chat);
        }
    }

    async fn ask(&self, way: Way, chat: &Chat) -> Result<Read, Failure> {
        let (body, expect) = (chat.body(), chat.expect());
        match way {
            Way::H2 | Way::TlsH2 => {
                let pool = &self.h2[usize::from(way == Way::TlsH2)];
                let (head, body) = pool.ask(PATH, body).await?;
                answer::chat(&head, Body::H2(body), expect, || {}).await
            }
            Way::Kept | Way::TlsKept | Way::Fresh => {
                let tls = way == Way::TlsKept;
                let kept = if way == Way::Fresh { None } else { self.kept_open(tls) };
                let mut conn = match kept {
                    Some(conn) => conn,
                    None => http1::Conn::open(&self.target, tls).await?,
                };
                let head = conn.ask("POST", PATH, &body).await?;
                let read = answer::chat(&head, Body::H1(&mut conn), expect, || {}).await?;
                if way != Way::Fresh && !(tls && conn.uses >= TLS_USES_MAX) {
                    lock(&self.kept[usize::from(tls)]).push(conn);
                }
                Ok(read)
            }
        }
    }

    /// A kept connection that is still open, looked at just now.
    fn kept_open(&self, tls: bool) -> Option<http1::Conn> {
        let mut kept = lock(&self.kept[usize::from(tls)]);
        while !kept.is_empty() {
            // Not the last one used: some should be idle for long.
            let at = (self.recorder.now() * 1e6) as usize % kept.len();
            let conn = kept.swap_remove(at);
            if conn.is_open() {
                return Some(conn);
            }
        }
        None
    }

    /// The chat whose user waits longest, or a new one.
    fn next_chat(&self) -> Chat {
        let now = (self.recorder.now() * 1e6) as u64;
        let mut chats = self.chats();
        if let Some(first) = chats.waiting.first_entry()
            && first.key().0 <= now
        {
            return first.remove();
        }
        chats.begun += 1;
        Chat::begin(chats.begun, chats.begun <= self.under_way)
    }

    fn chats(&self) -> MutexGuard<'_, Chats> {
        lock(&self.chats)
    }
}

/// How long a turn takes its user, seconds.
pub fn live_seconds(think: (u64, u64)) -> f64 {
    (think.0 + think.1) as f64 / 2e3
}

/// How the request of this number comes; neighbours come differently.
pub fn way_of(number: u64) -> Way {
    let mut at = number * 7 % 20;
    for (way, share) in WAYS {
        if at < share {
            return way;
        }
        at -= share;
    }
    Way::Fresh
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_its_share() {
        for (way, share) in WAYS {
            let count = (0..2_000).filter(|number| way_of(*number) == way).count();
            assert_eq!(count as u64, share * 100, "{way:?}");
        }
    }
}
