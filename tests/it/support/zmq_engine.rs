//! The ZMQ side of an engine: a PUB that numbers batches from 0, and a ROUTER that replays them.
//!
//! Written from the protocol, without the router's code, so that both are held to it; and because
//! no library sends half a frame, a frame of a terabyte, or nothing at all.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Waits longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
/// The topic of all that is published.
pub(crate) const TOPIC: &str = "kv-events";

/// An engine; it is gone when dropped.
pub(crate) struct ZmqEngine {
    shared: Arc<Mutex<Shared>>,
    /// Where it publishes.
    pub(crate) port: u16,
    /// Where it replays.
    pub(crate) replay_port: u16,
    outward: Option<SocketAddr>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    next: u64,
    buffer: VecDeque<(u64, Vec<u8>)>,
    buffer_steps: usize,
    /// Ways to those who subscribed.
    subscribers: Vec<mpsc::UnboundedSender<Vec<u8>>>,
    replays_asked: Vec<u64>,
    replay_is_mute: bool,
    /// Leave out every so manieth batch of a replay, once.
    replay_drops: Option<usize>,
    old_replies: bool,
}

impl ZmqEngine {
    /// Binds two free ports, as with `tcp://*:5557`.
    pub(crate) async fn start() -> Self {
        let mut engine = Self::idle();
        engine.open().await;
        engine
    }

    /// Connects to a subscriber that binds, as with `tcp://router:5557`.
    pub(crate) async fn start_towards(subscriber: SocketAddr) -> Self {
        let mut engine = Self { outward: Some(subscriber), ..Self::idle() };
        engine.open().await;
        engine
    }

    fn idle() -> Self {
        let shared = Shared { buffer_steps: 10_000, ..Shared::default() };
        let shared = Arc::new(Mutex::new(shared));
        Self { shared, port: 0, replay_port: 0, outward: None, tasks: JoinSet::new() }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no test panics inside")
    }

    async fn open(&mut self) {
        let replay = listen(self.replay_port).await;
        self.replay_port = replay.local_addr().expect("bound").port();
        self.tasks.spawn(accept(replay, self.shared.clone(), answer_replays));
        let Some(subscriber) = self.outward else {
            let events = listen(self.port).await;
            self.port = events.local_addr().expect("bound").port();
            self.tasks.spawn(accept(events, self.shared.clone(), publish_to));
            return;
        };
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            loop {
                if let Ok(stream) = TcpStream::connect(subscriber).await {
                    publish_to(stream, shared.clone()).await;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// `tcp://127.0.0.1:port` of the batches.
    pub(crate) fn events_at(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// `tcp://127.0.0.1:port` of the replays.
    pub(crate) fn replays_at(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.replay_port)
    }

    /// What the engine answers to `GET /kv_event_sources`.
    pub(crate) fn sources(&self) -> String {
        Self::sources_of(&[self])
    }

    /// What an engine with these data-parallel ranks answers.
    pub(crate) fn sources_of(ranks: &[&Self]) -> String {
        let source = |(rank, engine): (usize, &&Self)| {
            format!(
                r#""{rank}":{{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:{}","replay_endpoint":"tcp://127.0.0.1:{}","buffer_steps":{},"hwm":100000,"topic":"{TOPIC}"}}"#,
                engine.port,
                engine.replay_port,
                engine.shared().buffer_steps
            )
        };
        let sources: Vec<_> = ranks.iter().enumerate().map(source).collect();
        format!("{{{}}}", sources.join(","))
    }

    /// Waits until somebody subscribed.
    pub(crate) async fn subscribed(&self) {
        let subscribed = async {
            while self.shared().subscribers.is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, subscribed).await.expect("somebody subscribes");
    }

    /// Connections that subscribed and stand, as far as was noticed.
    pub(crate) fn subscribers(&self) -> usize {
        self.shared().subscribers.len()
    }

    /// Publishes a batch; gives its number.
    pub(crate) fn publish(&self, payload: &[u8]) -> u64 {
        let seq = self.publish_unheard(payload);
        self.send(&[TOPIC.as_bytes(), &seq.to_be_bytes(), payload]);
        seq
    }

    /// Publishes a batch that no subscriber gets, as when a queue is full.
    pub(crate) fn publish_unheard(&self, payload: &[u8]) -> u64 {
        let mut shared = self.shared();
        let seq = shared.next;
        shared.next += 1;
        shared.buffer.push_back((seq, payload.to_vec()));
        while shared.buffer.len() > shared.buffer_steps {
            shared.buffer.pop_front();
        }
        seq
    }

    /// Sends any message to the subscribers.
    pub(crate) fn send(&self, frames: &[&[u8]]) {
        self.send_bytes(&message(frames));
    }

    /// Sends bytes that need not be a message.
    pub(crate) fn send_bytes(&self, bytes: &[u8]) {
        self.shared().subscribers.retain(|subscriber| subscriber.send(bytes.to_vec()).is_ok());
    }

    /// Keeps that many batches for replays.
    pub(crate) fn keep(&self, buffer_steps: usize) {
        self.shared().buffer_steps = buffer_steps;
    }

    /// Takes requests for replays and does not answer.
    pub(crate) fn mute_replays(&self, mute: bool) {
        self.shared().replay_is_mute = mute;
    }

    /// The next replay lacks every `every`th batch, as when a ROUTER's queue is full.
    pub(crate) fn drop_in_next_replay(&self, every: usize) {
        self.shared().replay_drops = Some(every);
    }

    /// Replays without the topic, as older engines do.
    pub(crate) fn reply_as_before(&self) {
        self.shared().old_replies = true;
    }

    /// From where replays were asked for, in order.
    pub(crate) fn replays_asked(&self) -> Vec<u64> {
        self.shared().replays_asked.clone()
    }

    /// Cuts all connections and closes the ports; the engine lives.
    pub(crate) async fn vanish(&mut self) {
        self.tasks.shutdown().await;
        self.shared().subscribers.clear();
    }

    /// Opens the same ports again.
    pub(crate) async fn come_back(&mut self) {
        self.open().await;
    }

    /// Another life on the same ports: counts from 0 and remembers nothing.
    pub(crate) async fn restart(&mut self) {
        self.vanish().await;
        {
            let mut shared = self.shared();
            shared.next = 0;
            shared.buffer.clear();
        }
        self.open().await;
    }
}

/// Payloads of a recording below `tests/fixtures/kv_events/vllm-0.32.0`, in order.
pub(crate) fn recording(name: &str) -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/kv_events/vllm-0.32.0/");
    let text = std::fs::read_to_string(format!("{folder}{name}")).expect("a recording");
    let payload = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let hex = json["frames_hex"][2].as_str().expect("three frames").to_owned();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        (0..hex.len()).step_by(2).map(byte).collect()
    };
    text.lines().map(payload).collect()
}

async fn listen(port: u16) -> TcpListener {
    let bind = async {
        loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => return listener,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(DEADLINE, bind).await.expect("the port is free")
}

async fn accept<F, T>(listener: TcpListener, shared: Arc<Mutex<Shared>>, serve: F)
where
    F: Fn(TcpStream, Arc<Mutex<Shared>>) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, shared.clone()));
    }
}

/// Greeting and READY, both ways.
async fn shake(stream: &mut TcpStream, socket_type: &str) -> std::io::Result<()> {
    let mut greeting = b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01NULL".to_vec();
    greeting.resize(64, 0);
    stream.write_all(&greeting).await?;
    stream.read_exact(&mut [0; 64]).await?;
    let mut ready = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    ready.push(socket_type.len() as u8);
    ready.extend(socket_type.bytes());
    stream.write_all(&[&[4, ready.len() as u8], &ready[..]].concat()).await?;
    read_frame(stream).await.map(drop)
}

async fn read_frame(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let flags = stream.read_u8().await?;
    let length =
        if flags & 2 == 0 { u64::from(stream.read_u8().await?) } else { stream.read_u64().await? };
    let mut body = vec![0; usize::try_from(length).expect("a test's frame")];
    stream.read_exact(&mut body).await?;
    Ok((flags, body))
}

fn message(frames: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, frame) in frames.iter().enumerate() {
        let more = u8::from(at + 1 < frames.len());
        if let Ok(length) = u8::try_from(frame.len()) {
            bytes.extend([more, length]);
        } else {
            bytes.push(more | 2);
            bytes.extend((frame.len() as u64).to_be_bytes());
        }
        bytes.extend(*frame);
    }
    bytes
}

async fn publish_to(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) {
    if shake(&mut stream, "PUB").await.is_err() {
        return;
    }
    match read_frame(&mut stream).await {
        Ok((4, command)) if command.starts_with(b"\x09SUBSCRIBE") => {}
        _ => return,
    }
    let (way, mut batches) = mpsc::unbounded_channel::<Vec<u8>>();
    shared.lock().expect("no test panics inside").subscribers.push(way);
    let (mut reader, mut writer) = stream.into_split();
    let mut ignored = [0; 256];
    loop {
        tokio::select! {
            bytes = batches.recv() => match bytes {
                Some(bytes) if writer.write_all(&bytes).await.is_ok() => {}
                _ => return,
            },
            read = reader.read(&mut ignored) => if !matches!(read, Ok(1..)) { return },
        }
    }
}

async fn answer_replays(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) {
    if shake(&mut stream, "ROUTER").await.is_err() {
        return;
    }
    loop {
        let (Ok((1, empty)), Ok((0, from))) =
            (read_frame(&mut stream).await, read_frame(&mut stream).await)
        else {
            return;
        };
        let (true, Ok(from)) = (empty.is_empty(), from.try_into().map(u64::from_be_bytes)) else {
            continue;
        };
        let answer = {
            let mut shared = shared.lock().expect("no test panics inside");
            shared.replays_asked.push(from);
            if shared.replay_is_mute {
                continue;
            }
            let drops = shared.replay_drops.take();
            let topic: &[&[u8]] = if shared.old_replies { &[] } else { &[TOPIC.as_bytes()] };
            let reply = |seq: u64, payload: &[u8]| {
                let mut frames = vec![&b""[..]];
                frames.extend(topic);
                let seq = seq.to_be_bytes();
                frames.extend([&seq[..], payload]);
                message(&frames)
            };
            let wanted = shared.buffer.iter().filter(|(seq, _)| *seq >= from).enumerate();
            let kept = wanted.filter(|(at, _)| drops.is_none_or(|every| (at + 1) % every != 0));
            let mut answer: Vec<u8> =
                kept.flat_map(|(_, (seq, payload))| reply(*seq, payload)).collect();
            answer.extend(reply(u64::MAX, b""));
            answer
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}
