//! Sources over real sockets: what the sink is told, whatever happens to publisher and network.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use warmroute::{
    kv_events::{
        Attach, Endpoint, KvEventService, Mode, Place, Position, Print, Resume, Settings, Sink,
        SourceKey, Worker, Workers,
    },
    wire::{
        event::{BlockId, Event},
        kv_events::DecodedBatch,
    },
};

use crate::support::zmq_engine::{TOPIC, ZmqEngine, recording};

/// Everything a sink is told, in order.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Batch(u64, f64),
    Restarted,
    Gap(u64, u64),
    Connected(bool),
    Disconnected,
    Replayed(u64),
    Garbage(bool),
    Discovered(Option<usize>),
}

#[derive(Default)]
struct Log {
    /// Where the source goes on, and what it waits for.
    resume: Option<Resume>,
    gate: Option<watch::Receiver<bool>>,
    said: Mutex<Vec<Said>>,
    copies: Mutex<HashMap<BlockId, i64>>,
}

impl Log {
    fn say(&self, said: Said) {
        self.said.lock().expect("no panic").push(said);
    }

    fn said(&self) -> Vec<Said> {
        self.said.lock().expect("no panic").clone()
    }

    fn batches(&self) -> Vec<u64> {
        let seq = |said| if let Said::Batch(seq, _) = said { Some(seq) } else { None };
        self.said().into_iter().filter_map(seq).collect()
    }

    fn has(&self, wanted: &Said) -> bool {
        self.said().contains(wanted)
    }

    async fn until(&self, what: &str, reached: impl Fn(&[Said]) -> bool) {
        let reach = async {
            while !reached(&self.said()) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = timeout(Duration::from_secs(30), reach).await;
        assert!(reached.is_ok(), "never {what}: {:?}", self.said());
    }

    async fn until_batch(&self, seq: u64, ts: f64) {
        self.until(&format!("batch {seq}"), |said| said.contains(&Said::Batch(seq, ts))).await;
    }

    async fn until_said(&self, wanted: Said) {
        self.until(&format!("{wanted:?}"), |said| said.contains(&wanted)).await;
    }
}

impl Sink for Log {
    async fn admitted(&self, _: &SourceKey) {
        if let Some(mut gate) = self.gate.clone() {
            gate.wait_for(|open| *open).await.expect("opens");
        }
    }
    fn resume(&self, _: &SourceKey) -> Option<Resume> {
        self.resume
    }
    fn batch(&self, _: &SourceKey, position: Position, batch: DecodedBatch) {
        self.say(Said::Batch(position.next - 1, batch.ts));
        let mut copies = self.copies.lock().expect("no panic");
        for event in batch.events {
            match event {
                Event::Stored(stored) => {
                    for id in stored.ids {
                        *copies.entry(id).or_default() += 1;
                    }
                }
                Event::Removed { ids, .. } => {
                    for id in ids {
                        *copies.entry(id).or_default() -= 1;
                    }
                }
                Event::Cleared => copies.clear(),
                Event::Unknown => {}
            }
        }
    }
    fn restarted(&self, _: &SourceKey) {
        self.copies.lock().expect("no panic").clear();
        self.say(Said::Restarted);
    }
    fn gap(&self, _: &SourceKey, expected: u64, got: u64) {
        self.say(Said::Gap(expected, got));
    }
    fn connected(&self, _: &SourceKey, complete: bool) {
        self.say(Said::Connected(complete));
    }
    fn disconnected(&self, _: &SourceKey, _: &str) {
        self.say(Said::Disconnected);
    }
    fn replayed(&self, _: &SourceKey, batches: u64) {
        self.say(Said::Replayed(batches));
    }
    fn garbage(&self, _: &SourceKey, _: &str, first: bool) {
        self.say(Said::Garbage(first));
    }
    fn discovered(&self, _: &Arc<str>, sources: Result<usize, &str>) {
        self.say(Said::Discovered(sources.ok()));
    }
}

#[derive(Default)]
struct Fleet {
    workers: Mutex<Vec<Worker>>,
    answer: Mutex<Option<String>>,
}

#[async_trait]
impl Workers for Fleet {
    fn workers(&self) -> Vec<Worker> {
        self.workers.lock().expect("no panic").clone()
    }
    async fn get(&self, _: &Worker, path: &str) -> Result<Vec<u8>, String> {
        assert_eq!(path, "/kv_event_sources");
        let answer = self.answer.lock().expect("no panic").clone();
        answer.map(String::into_bytes).ok_or_else(|| "answered 404".to_owned())
    }
}

struct Running {
    log: Arc<Log>,
    fleet: Arc<Fleet>,
    _stop: oneshot::Sender<()>,
    service: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.service.abort();
    }
}

fn settings() -> Settings {
    Settings {
        look_every: Duration::from_millis(10),
        replay_within: Duration::from_millis(500),
        replay_pause: Duration::from_millis(500),
        backoff_first: Duration::from_millis(20),
        backoff_longest: Duration::from_millis(100),
        ..Settings::default()
    }
}

fn run(mode: Mode, answer: Option<String>, settings: Settings) -> Running {
    run_with(Log::default(), mode, answer, settings)
}

fn run_with(log: Log, mode: Mode, answer: Option<String>, settings: Settings) -> Running {
    let worker = Worker {
        id: "w".into(),
        host: "127.0.0.1".into(),
        mode: Arc::new(mode),
        life: 0,
        flaps: 0,
    };
    let fleet = Arc::new(Fleet { workers: Mutex::new(vec![worker]), answer: Mutex::new(answer) });
    let log = Arc::new(log);
    let (stop, stopped) = oneshot::channel();
    let service = KvEventService::new(fleet.clone(), log.clone(), settings);
    let service = tokio::spawn(async move {
        service.run(async move { drop(stopped.await) }).await;
    });
    Running { log, fleet, _stop: stop, service }
}

fn place(engine: &ZmqEngine, replay: bool) -> Place {
    let parse = |text: String| Endpoint::parse(&text).expect("an endpoint");
    Place {
        events: Attach::Connect(parse(engine.events_at())),
        replay: replay.then(|| parse(engine.replays_at())),
        topic: TOPIC.to_owned(),
    }
}

fn follow(engine: &ZmqEngine) -> Running {
    run(Mode::Explicit(vec![place(engine, true)]), None, settings())
}

/// A batch of no events, told apart by its time.
fn batch(ts: u8) -> Vec<u8> {
    vec![0x93, ts, 0x90, 0]
}

fn said_once(log: &Log, wanted: &Said) -> usize {
    log.said().iter().filter(|said| *said == wanted).count()
}

#[tokio::test]
async fn recordings_arrive_whole_by_discovery() {
    let engine = ZmqEngine::start().await;
    let payloads = recording("eviction_storm_64blocks.jsonl");
    let half = payloads.len() / 2;
    for payload in &payloads[..half] {
        engine.publish(payload);
    }
    let running = run(Mode::Auto, Some(engine.sources()), settings());
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    for payload in &payloads[half..] {
        engine.publish(payload);
    }
    let all: Vec<u64> = (0..payloads.len() as u64).collect();
    running.log.until("all batches", |said| said.len() > payloads.len() + 2).await;
    assert_eq!(running.log.batches(), all);
    assert!(running.log.has(&Said::Discovered(Some(1))));
    assert!(running.log.has(&Said::Replayed(half as u64)));
    assert!(
        !running.log.said().iter().any(|said| matches!(said, Said::Gap(..) | Said::Garbage(_)))
    );
    // The last request of the recording was for 70 tokens after a reset.
    let copies = running.log.copies.lock().expect("no panic");
    assert_eq!(copies.values().filter(|count| **count > 0).count(), 2);
    assert!(copies.values().all(|count| *count >= 0));
}

#[tokio::test]
async fn a_gap_is_closed_by_a_replay() {
    let engine = ZmqEngine::start().await;
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    engine.publish(&batch(1));
    running.log.until_batch(0, 1.0).await;
    engine.publish_unheard(&batch(2));
    engine.publish_unheard(&batch(3));
    engine.publish(&batch(4));
    engine.publish(&batch(5));
    running.log.until_batch(4, 5.0).await;
    assert_eq!(running.log.batches(), [0, 1, 2, 3, 4]);
    assert!(running.log.has(&Said::Replayed(2)));
    assert!(!running.log.said().iter().any(|said| matches!(said, Said::Gap(..))));
}

#[tokio::test]
async fn a_gap_that_cannot_be_closed_is_said() {
    let engine = ZmqEngine::start().await;
    engine.keep(2);
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    engine.publish(&batch(1));
    running.log.until_batch(0, 1.0).await;
    for ts in 2..6 {
        engine.publish_unheard(&batch(ts));
    }
    engine.publish(&batch(6));
    running.log.until_batch(5, 6.0).await;
    // Of 1 to 4 only 4 is left in the buffer, beside 5.
    assert_eq!(running.log.batches(), [0, 4, 5]);
    assert!(running.log.has(&Said::Gap(1, 4)));
}

#[tokio::test]
async fn without_replays_gaps_are_said_and_it_goes_on() {
    let engine = ZmqEngine::start().await;
    engine.publish(&batch(1));
    let running = run(Mode::Explicit(vec![place(&engine, false)]), None, settings());
    running.log.until_said(Said::Connected(false)).await;
    engine.subscribed().await;
    engine.publish(&batch(2));
    engine.publish_unheard(&batch(3));
    engine.publish(&batch(4));
    running.log.until_batch(3, 4.0).await;
    let said = running.log.said();
    assert_eq!(
        said[1..],
        [
            Said::Connected(false),
            Said::Gap(0, 1),
            Said::Batch(1, 2.0),
            Said::Gap(2, 3),
            Said::Batch(3, 4.0)
        ]
    );
}

#[tokio::test]
async fn an_engine_that_keeps_nothing_is_not_taken_for_a_restarted_one() {
    let engine = ZmqEngine::start().await;
    engine.keep(0);
    let settings = Settings { tail_check_after: Duration::from_millis(100), ..settings() };
    let running = run(Mode::Explicit(vec![place(&engine, true)]), None, settings);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    engine.publish(&batch(1));
    running.log.until_batch(0, 1.0).await;
    let asked = engine.replays_asked().len();
    while engine.replays_asked().len() < asked + 3 {
        sleep(Duration::from_millis(20)).await;
    }
    engine.publish_unheard(&batch(2));
    engine.publish(&batch(3));
    running.log.until_batch(2, 3.0).await;
    assert!(running.log.has(&Said::Gap(1, 2)));
    assert!(!running.log.has(&Said::Restarted));
}

#[tokio::test]
async fn a_mute_replay_socket_stops_nothing() {
    let engine = ZmqEngine::start().await;
    engine.mute_replays(true);
    engine.publish(&batch(1));
    let running = follow(&engine);
    running.log.until_said(Said::Connected(false)).await;
    engine.subscribed().await;
    engine.publish(&batch(2));
    running.log.until_batch(1, 2.0).await;
    assert!(running.log.has(&Said::Gap(0, 1)));
}

#[tokio::test]
async fn a_replay_with_holes_is_asked_for_again() {
    let engine = ZmqEngine::start().await;
    for ts in 0..100 {
        engine.publish(&batch(ts));
    }
    engine.drop_in_next_replay(7);
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    assert_eq!(running.log.batches(), (0..100).collect::<Vec<_>>());
    assert_eq!(engine.replays_asked(), [0, 6]);
    assert!(!running.log.said().iter().any(|said| matches!(said, Said::Gap(..))));
}

#[tokio::test]
async fn joining_in_the_middle_gives_what_the_buffer_has() {
    let engine = ZmqEngine::start().await;
    engine.keep(5);
    engine.reply_as_before();
    for ts in 0..20 {
        engine.publish(&batch(ts));
    }
    let running = follow(&engine);
    running.log.until_said(Said::Connected(false)).await;
    assert_eq!(running.log.batches(), [15, 16, 17, 18, 19]);
    assert!(running.log.has(&Said::Gap(0, 15)));
}

#[tokio::test]
async fn a_lost_connection_to_the_same_engine_loses_nothing() {
    let mut engine = ZmqEngine::start().await;
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    engine.publish(&batch(1));
    engine.publish(&batch(2));
    running.log.until_batch(1, 2.0).await;
    engine.vanish().await;
    running.log.until_said(Said::Disconnected).await;
    engine.publish(&batch(3));
    sleep(Duration::from_millis(200)).await;
    engine.come_back().await;
    running.log.until_batch(2, 3.0).await;
    engine.subscribed().await;
    engine.publish(&batch(4));
    running.log.until_batch(3, 4.0).await;
    assert_eq!(running.log.batches(), [0, 1, 2, 3]);
    assert_eq!(said_once(&running.log, &Said::Disconnected), 1);
    assert_eq!(said_once(&running.log, &Said::Connected(true)), 2);
    assert!(!running.log.has(&Said::Restarted));
}

#[tokio::test]
async fn a_restart_is_noticed_before_anything_is_published() {
    let mut engine = ZmqEngine::start().await;
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    engine.publish(&batch(1));
    running.log.until_batch(0, 1.0).await;
    engine.restart().await;
    running.log.until_said(Said::Restarted).await;
    engine.subscribed().await;
    engine.publish(&batch(9));
    running.log.until_batch(0, 9.0).await;
    assert_eq!(said_once(&running.log, &Said::Restarted), 1);
}

#[tokio::test]
async fn a_restart_that_already_counted_past_ours_is_noticed() {
    let mut engine = ZmqEngine::start().await;
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    for ts in 0..3 {
        engine.publish(&batch(ts));
    }
    running.log.until_batch(2, 2.0).await;
    engine.vanish().await;
    running.log.until_said(Said::Disconnected).await;
    engine.restart().await;
    for ts in 100..110 {
        engine.publish_unheard(&batch(ts));
    }
    running.log.until_batch(9, 109.0).await;
    assert_eq!(said_once(&running.log, &Said::Restarted), 1);
    assert_eq!(running.log.batches()[3..], (0..10).collect::<Vec<_>>());
    running.log.until("complete", |said| said.last() == Some(&Said::Connected(true))).await;
}

#[tokio::test]
async fn a_restart_without_replays_is_noticed_by_its_number() {
    let mut engine = ZmqEngine::start().await;
    let running = run(Mode::Explicit(vec![place(&engine, false)]), None, settings());
    running.log.until_said(Said::Connected(false)).await;
    engine.subscribed().await;
    for ts in 0..3 {
        engine.publish(&batch(ts));
    }
    running.log.until_batch(2, 2.0).await;
    engine.restart().await;
    engine.subscribed().await;
    engine.publish(&batch(50));
    running.log.until_batch(0, 50.0).await;
    assert!(running.log.has(&Said::Restarted));
    running.log.until_said(Said::Connected(true)).await;
}

#[tokio::test]
async fn an_engine_that_connects_is_waited_for() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: SocketAddr = free.local_addr().expect("bound");
    drop(free);
    let mut engine = ZmqEngine::start_towards(address).await;
    engine.publish_unheard(&batch(1));
    let replay = Endpoint::parse(&engine.replays_at()).expect("an endpoint");
    let place = Place { events: Attach::Bind(address), replay: Some(replay), topic: String::new() };
    let running = run(Mode::Explicit(vec![place]), None, settings());
    engine.subscribed().await;
    running.log.until_batch(0, 1.0).await;
    engine.publish(&batch(2));
    running.log.until_batch(1, 2.0).await;
    // A stranger that says nothing does not disturb it.
    let _stranger = tokio::net::TcpStream::connect(address).await.expect("bound");
    engine.publish(&batch(3));
    running.log.until_batch(2, 3.0).await;
    engine.restart().await;
    engine.subscribed().await;
    engine.publish(&batch(4));
    running.log.until_batch(0, 4.0).await;
    assert!(running.log.has(&Said::Restarted));
}

#[tokio::test]
async fn garbage_is_counted_and_survived() {
    let engine = ZmqEngine::start().await;
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    let seq = 0_u64.to_be_bytes();
    engine.send(&[b"one"]);
    engine.send(&[b"kv-events", b"short", &batch(1)]);
    engine.send(&[b"kv-events", &u64::MAX.to_be_bytes(), &batch(1)]);
    engine.send(&[b"kv-events", &seq, b"\xc1"]);
    engine.publish_unheard(b"");
    engine.publish(&batch(2));
    running.log.until_batch(1, 2.0).await;
    let garbage: Vec<_> =
        running.log.said().into_iter().filter(|said| matches!(said, Said::Garbage(_))).collect();
    let wanted: Vec<_> = [true, false, false, false].map(Said::Garbage).into();
    assert_eq!(garbage, wanted);
    assert!(running.log.has(&Said::Gap(0, 1)));
    assert!(!running.log.has(&Said::Disconnected));
}

#[tokio::test]
async fn frames_that_claim_a_terabyte_or_break_the_protocol_cost_a_connection() {
    let mut bad = vec![b"\x02\0\0\x01\0\0\0\0\0xxxx".to_vec(), vec![0xff; 100], [1, 0].repeat(20)];
    bad.push(b"\x06\x7f\xff\xff\xff\xff\xff\xff\xffzz".to_vec());
    bad.push(b"\x04\x06\x05ERROR".to_vec());
    let engine = ZmqEngine::start().await;
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    for (round, bytes) in bad.iter().enumerate() {
        engine.subscribed().await;
        engine.send_bytes(bytes);
        let connected = |said: &[Said]| {
            said.iter().filter(|said| matches!(said, Said::Connected(_))).count() > round + 1
        };
        running.log.until("connected again", connected).await;
    }
    engine.subscribed().await;
    engine.publish(&batch(1));
    running.log.until_batch(0, 1.0).await;
    assert_eq!(said_once(&running.log, &Said::Garbage(true)), 1);
}

#[tokio::test]
async fn nothing_but_garbage_ends_a_connection_and_the_next_begins_clean() {
    let engine = ZmqEngine::start().await;
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    for _ in 0..100 {
        engine.send(&[b"one"]);
    }
    running.log.until_said(Said::Disconnected).await;
    running.log.until("again", |said| said.last() == Some(&Said::Connected(true))).await;
}

#[tokio::test]
async fn a_lost_tail_is_found_when_it_is_quiet() {
    let engine = ZmqEngine::start().await;
    let settings = Settings { tail_check_after: Duration::from_millis(300), ..settings() };
    let running = run(Mode::Explicit(vec![place(&engine, true)]), None, settings);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    engine.publish(&batch(1));
    engine.publish_unheard(&batch(2));
    running.log.until_batch(1, 2.0).await;
    assert_eq!(running.log.batches(), [0, 1]);
}

#[tokio::test]
async fn a_worker_is_asked_again_until_it_answers_and_after_it_flapped() {
    let engine = ZmqEngine::start().await;
    engine.publish(&batch(1));
    let settings = Settings { ask_every: Duration::from_hours(1), ..settings() };
    let running = run(Mode::Auto, Some("{}".to_owned()), settings);
    running.log.until_said(Said::Discovered(Some(0))).await;
    *running.fleet.answer.lock().expect("no panic") = Some(engine.sources());
    running.fleet.workers.lock().expect("no panic")[0].flaps += 1;
    running.log.until_batch(0, 1.0).await;
    // Then another process answers for the same worker.
    let other = ZmqEngine::start().await;
    other.publish(&batch(2));
    *running.fleet.answer.lock().expect("no panic") = Some(other.sources());
    running.fleet.workers.lock().expect("no panic")[0].flaps += 1;
    running.log.until_batch(0, 2.0).await;
    assert!(running.log.has(&Said::Restarted));
    // And one without events.
    *running.fleet.answer.lock().expect("no panic") = Some("[]".to_owned());
    running.fleet.workers.lock().expect("no panic")[0].flaps += 1;
    running.log.until("gone", |said| said.last() == Some(&Said::Disconnected)).await;
}

#[tokio::test]
async fn a_worker_that_left_is_let_go() {
    let engine = ZmqEngine::start().await;
    let running = follow(&engine);
    running.log.until_said(Said::Connected(true)).await;
    engine.subscribed().await;
    running.fleet.workers.lock().expect("no panic").clear();
    let gone = async {
        loop {
            engine.publish(&batch(1));
            let before = running.log.said().len();
            sleep(Duration::from_millis(200)).await;
            engine.publish(&batch(2));
            sleep(Duration::from_millis(200)).await;
            if running.log.said().len() == before {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), gone).await.expect("nothing more is said");
}

/// Where a source stands that has batches up to `ts`, which was number `ts - 1`.
fn stands_after(ts: u8, unbroken: bool) -> Resume {
    let last = Some(Print::of(&batch(ts)));
    let position = Position { next: u64::from(ts), last, complete: true };
    Resume { position, unbroken }
}

#[tokio::test]
async fn what_came_while_state_was_handed_over_is_taken_once() {
    for replay in [false, true] {
        let engine = ZmqEngine::start().await;
        engine.publish(&batch(1));
        let (open, gate) = watch::channel(false);
        let log = Log { resume: Some(stands_after(3, true)), gate: Some(gate), ..Log::default() };
        let places = vec![place(&engine, replay)];
        let running = run_with(log, Mode::Explicit(places), None, settings());
        engine.subscribed().await;
        // The predecessor took 2 and 3 while we waited; 4 is ours.
        for ts in 2..5 {
            engine.publish(&batch(ts));
        }
        assert!(running.log.batches().is_empty());
        open.send_replace(true);
        engine.publish(&batch(5));
        running.log.until_batch(4, 5.0).await;
        assert_eq!(running.log.batches(), [3, 4], "replay {replay}");
        assert!(running.log.has(&Said::Connected(true)));
        let broken = |said: &Said| matches!(said, Said::Gap(..) | Said::Restarted);
        assert!(!running.log.said().iter().any(broken), "{:?}", running.log.said());
    }
}

#[tokio::test]
async fn after_a_time_unseen_the_next_batch_proves_the_engine() {
    let engine = ZmqEngine::start().await;
    for ts in 1..4 {
        engine.publish(&batch(ts));
    }
    let log = Log { resume: Some(stands_after(3, false)), ..Log::default() };
    let places = vec![place(&engine, false)];
    let running = run_with(log, Mode::Explicit(places), None, settings());
    running.log.until_said(Said::Connected(false)).await;
    engine.subscribed().await;
    assert!(!running.log.has(&Said::Connected(true)), "nothing is proven yet");
    engine.publish(&batch(4));
    running.log.until_batch(3, 4.0).await;
    assert!(running.log.has(&Said::Connected(true)));
    assert!(!running.log.has(&Said::Restarted));
}

#[tokio::test]
async fn after_a_time_unseen_any_other_batch_means_another_engine() {
    // Numbers that begin again, and numbers that have gone on while nobody looked.
    for before in [0_u8, 7] {
        let engine = ZmqEngine::start().await;
        for ts in 0..before {
            engine.publish(&batch(ts));
        }
        let log = Log { resume: Some(stands_after(3, false)), ..Log::default() };
        let places = vec![place(&engine, false)];
        let running = run_with(log, Mode::Explicit(places), None, settings());
        running.log.until_said(Said::Connected(false)).await;
        engine.subscribed().await;
        engine.publish(&batch(9));
        running.log.until_batch(u64::from(before), 9.0).await;
        assert!(running.log.has(&Said::Restarted), "{:?}", running.log.said());
    }
}

#[tokio::test]
async fn after_a_time_unseen_a_replay_tells_whether_it_is_the_same_engine() {
    for same in [true, false] {
        let engine = ZmqEngine::start().await;
        for ts in 1..6 {
            engine.publish(&batch(if same { ts } else { ts + 100 }));
        }
        let log = Log { resume: Some(stands_after(3, false)), ..Log::default() };
        let places = vec![place(&engine, true)];
        let running = run_with(log, Mode::Explicit(places), None, settings());
        running.log.until_said(Said::Connected(true)).await;
        let missed: &[u64] = if same { &[3, 4] } else { &[0, 1, 2, 3, 4] };
        assert_eq!(running.log.batches(), missed);
        assert_eq!(running.log.has(&Said::Restarted), !same);
    }
}
