//! The one task between the fleet and the broker.
//!
//! It alone waits for the network. What it cannot send it drops and counts, so that a request never
//! waits for a peer.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, Event, Message, Subscriber, connection::State};
use async_trait::async_trait;
use futures_util::StreamExt;
use parking_lot::Mutex;
use pingora::{server::ShutdownWatch, services::background::BackgroundService};
use rand::Rng;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{
    Shared,
    frame::{Batch, Entry, Frame, LOADS_MAX, Refused},
    keys::Keys,
    roster::Change,
};
use crate::{
    clock,
    config::{IndexConfig, Login, PeersConfig},
    fleet::{Fleet, Listening, Member, Said},
    routing::{Load, WorkerId},
    telemetry::{access_log::unix_s, events, metrics},
};

/// What is presumed waits for others so long at most before it is sent.
const BATCH_FOR: Duration = Duration::from_millis(10);
/// A message is sent once it has so many bytes.
const BATCH_BYTES: usize = 64 << 10;
/// Presumptions that wait to be sent, at most: some hundred thousand requests a second.
const OUTBOX_ROOM: usize = 4096;
/// Peers' loads are believed for so long.
const LOADS_FOR: Duration = Duration::from_secs(1);
/// Messages received and not yet read, at most; the client drops what comes beyond.
const INBOX_ROOM: usize = 1024;
/// Messages handed to the client and not yet written, at most.
const CLIENT_ROOM: usize = 64;
/// A client without room is waited for so long; then the message is dropped.
const PUBLISH_WITHIN: Duration = Duration::from_millis(20);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two attempts: this, doubled with each up to the longest.
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// A broker that answers neither of two pings is gone.
const PING_EVERY: Duration = Duration::from_secs(2);

/// Keeps the other routers posted, and us.
pub struct PeersService {
    fleet: Arc<Fleet>,
    config: PeersConfig,
    keys: Keys,
    shared: Arc<Shared>,
    /// Why the last attempt to connect failed.
    failure: Arc<Mutex<String>>,
}

impl PeersService {
    /// Tells what `fleet` presumes, and tells it what others do.
    pub fn new(fleet: Arc<Fleet>, config: PeersConfig, index: &IndexConfig) -> Self {
        let instance: u64 = rand::rng().random();
        let name = config.name.clone().unwrap_or_else(|| made_up_name(instance));
        Self {
            keys: Keys::new(config.secret.as_str(), index.block_bytes.get()),
            shared: Arc::new(Shared::new(name, instance)),
            failure: Arc::default(),
            fleet,
            config,
        }
    }

    /// What it knows of the others, for the admin page.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    async fn options(&self) -> Result<ConnectOptions, String> {
        let failure = self.failure.clone();
        let mut options = ConnectOptions::new()
            .name(format!("warmroute {}", self.shared.name))
            .no_echo()
            .retry_on_initial_connect()
            .subscription_capacity(INBOX_ROOM)
            .client_capacity(CLIENT_ROOM)
            .connection_timeout(CONNECT_WITHIN)
            .ping_interval(PING_EVERY)
            .reconnect_delay_callback(pause_before)
            .event_callback(move |event| {
                let failure = failure.clone();
                async move { noted(&event, &failure) }
            });
        options = match &self.config.login {
            Login::Open => options,
            Login::Token(token) => options.token(token.clone()),
            Login::User(user, password) => {
                options.user_and_password(user.clone(), password.clone())
            }
            Login::Credentials(path) => options
                .credentials_file(path)
                .await
                .map_err(|error| format!("peers.credentials: {error}"))?,
        };
        if let Some(ca) = &self.config.ca {
            options = options.add_root_certificates(ca.clone());
        }
        Ok(options)
    }

    async fn connect(&self) -> Result<(Client, Subscriber), String> {
        let options = self.options().await?;
        let client =
            options.connect(&self.config.servers[..]).await.map_err(|error| error.to_string())?;
        let subscriber = client.subscribe(self.config.subject.clone()).await;
        Ok((client, subscriber.map_err(|error| error.to_string())?))
    }

    /// Until the client ends, which it does not by itself.
    async fn converse(&self, client: &Client, inbox: &mut Subscriber, outbox: &Listening) {
        let mut told = HashMap::new();
        let mut batch = Batch::new(self.keys.clone(), self.shared.instance, &self.shared.name);
        let mut flush = interval(BATCH_FOR);
        let mut account = interval(self.config.loads_interval);
        for ticks in [&mut flush, &mut account] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        }
        loop {
            tokio::select! {
                message = inbox.next() => match message {
                    Some(message) => self.hear(&message),
                    None => return,
                },
                _ = flush.tick() => {
                    self.look_at(client);
                    self.push_changes(&mut batch, &mut told);
                    self.tell(client, outbox, &mut batch).await;
                }
                _ = account.tick() => {
                    if is_connected(client) {
                        batch.push(&Entry::Loads(self.loads()));
                        self.publish(client, &mut batch).await;
                    }
                    self.age();
                }
            }
        }
    }

    /// Adds the loads that are others than what was told last: to be sent with what is presumed, or
    /// alone. A prefill is over sooner than the next account of all.
    fn push_changes(&self, batch: &mut Batch, told: &mut HashMap<WorkerId, Load>) {
        let members = self.fleet.members();
        let load_of = |member: &Arc<Member>| member.counts.load();
        let told_of = |id| told.get(id).copied().unwrap_or_default();
        let changed: Vec<_> = members
            .iter()
            .filter(|member| load_of(member) != told_of(member.id()))
            .map(|member| (member.id().clone(), load_of(member)))
            .take(LOADS_MAX)
            .collect();
        if changed.is_empty() {
            return;
        }
        told.extend(changed.iter().cloned());
        // Workers that left must not pile up.
        told.retain(|_, load| *load != Load::default());
        batch.push(&Entry::Changed(changed));
    }

    /// Our own load, without what peers told.
    fn loads(&self) -> Vec<(WorkerId, Load)> {
        let members = self.fleet.members();
        let loads = members.iter().map(|member| (member.id().clone(), member.counts.load()));
        loads.filter(|(_, load)| *load != Load::default()).take(LOADS_MAX).collect()
    }

    async fn tell(&self, client: &Client, outbox: &Listening, batch: &mut Batch) {
        metrics::PEERS_DROPPED.with_label_values(&["outbox_full"]).inc_by(outbox.take_dropped());
        // What is told while we send waits for the next time.
        let said: Vec<Said> = outbox.said.try_iter().take(OUTBOX_ROOM).collect();
        if !is_connected(client) {
            metrics::PEERS_DROPPED.with_label_values(&["disconnected"]).inc_by(said.len() as u64);
            batch.clear();
            return;
        }
        if said.is_empty() && batch.entry_bytes() > 0 {
            self.publish(client, batch).await;
        }
        let mut waiting = said.into_iter();
        while let Some(said) = waiting.next() {
            batch.push(&Entry::Said(said));
            let is_full = batch.entry_bytes() >= BATCH_BYTES || waiting.len() == 0;
            if is_full && !self.publish(client, batch).await {
                // The broker hangs: to wait for it once is enough, or the outbox would fill.
                let lost = metrics::PEERS_DROPPED.with_label_values(&["not_sent"]);
                lost.inc_by(waiting.len() as u64);
                return;
            }
        }
    }

    /// Whether the client has taken it. Only while connected: it would keep the message, and tell it
    /// when it is no longer true.
    async fn publish(&self, client: &Client, batch: &mut Batch) -> bool {
        let message = batch.seal(unix_ms());
        let bytes = message.len() as u64;
        let sent = client.publish(self.config.subject.clone(), message.into());
        let is_taken = matches!(timeout(PUBLISH_WITHIN, sent).await, Ok(Ok(())));
        if is_taken {
            metrics::PEERS_MESSAGES.with_label_values(&["out"]).inc();
            metrics::PEERS_BYTES.with_label_values(&["out"]).inc_by(bytes);
        } else {
            metrics::PEERS_DROPPED.with_label_values(&["not_sent"]).inc();
        }
        is_taken
    }

    fn hear(&self, message: &Message) {
        let now = clock::now();
        metrics::PEERS_MESSAGES.with_label_values(&["in"]).inc();
        metrics::PEERS_BYTES.with_label_values(&["in"]).inc_by(message.payload.len() as u64);
        if let Err(refused) = self.take(&message.payload, now) {
            let first = self.shared.roster.lock().is_first(refused);
            events::peer_refused(refused.label(), first, &detail(refused));
        }
    }

    fn take(&self, payload: &[u8], now: Instant) -> Result<(), Refused> {
        let frame = Frame::read(payload, &self.keys)?;
        if frame.head.instance == self.shared.instance {
            return Ok(());
        }
        let from = {
            let mut roster = self.shared.roster.lock();
            let (peer, change) = roster.hear(&frame.head, unix_ms(), now)?;
            tell_change(change);
            peer.id()
        };
        let mut unknown = 0;
        for entry in &frame.entries {
            match entry {
                Entry::Said(said) => unknown += u64::from(!self.fleet.hear(said, now)),
                Entry::Loads(loads) => self.fleet.hear_loads(&from, loads, now + LOADS_FOR, now),
                Entry::Changed(loads) => {
                    self.fleet.hear_changed_loads(&from, loads, now + LOADS_FOR, now);
                }
            }
        }
        metrics::PEERS_DROPPED.with_label_values(&["unknown_worker"]).inc_by(unknown);
        Ok(())
    }

    /// Sees whether the connection stands; a change is told once.
    fn look_at(&self, client: &Client) {
        let connected = is_connected(client);
        if self.shared.connected.swap(connected, Relaxed) != connected {
            events::peers_connected(connected, &self.config.subject);
        }
        if connected {
            self.failure.lock().clear();
        }
    }

    fn age(&self) {
        let mut roster = self.shared.roster.lock();
        for change in roster.age(clock::now()) {
            tell_change(Some(change));
        }
        metrics::PEERS_KNOWN.set(roster.known().count() as i64);
    }
}

#[async_trait]
impl BackgroundService for PeersService {
    /// Goes on while the process drains: its load counts as long as it lasts.
    async fn start(&self, _shutdown: ShutdownWatch) {
        let outbox = self.fleet.listen(OUTBOX_ROOM);
        loop {
            match self.connect().await {
                Ok((client, mut inbox)) => self.converse(&client, &mut inbox, &outbox).await,
                Err(why) => events::peers_unreachable(&why, &mut self.failure.lock()),
            }
            sleep(RECONNECT_MAX).await;
        }
    }
}

fn is_connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

fn tell_change(change: Option<Change>) {
    match change {
        Some(Change::Heard(name)) => events::peer_heard(&name),
        Some(Change::Silent(name)) => events::peer_silent(&name),
        None => {}
    }
}

/// What the client says of its connection.
fn noted(event: &Event, failure: &Mutex<String>) {
    match event {
        Event::SlowConsumer(_) => {
            metrics::PEERS_DROPPED.with_label_values(&["inbox_full"]).inc();
        }
        Event::ClientError(error) => {
            events::peers_unreachable(&error.to_string(), &mut failure.lock());
        }
        Event::ServerError(error) => {
            events::peers_unreachable(&error.to_string(), &mut failure.lock());
        }
        _ => {}
    }
}

fn detail(refused: Refused) -> String {
    match refused {
        Refused::Garbage => "no message of a router".to_owned(),
        Refused::Version(version) => format!("of protocol version {version}"),
        Refused::Configuration(fingerprint) => {
            format!("of a router with another secret or index.block_bytes ({fingerprint:016x})")
        }
        Refused::Forged => "made without the secret, or damaged".to_owned(),
        Refused::Stale => "sent over a minute ago or ahead: check the clocks".to_owned(),
        Refused::Repeated => "came before".to_owned(),
        Refused::Full => "there are too many routers".to_owned(),
    }
}

/// Before the attempt of this number since the connection was lost. With jitter, so that routers do
/// not come back to a broker in step.
fn pause_before(attempt: usize) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16) as u32;
    let pause = RECONNECT_FIRST.saturating_mul(1 << doublings).min(RECONNECT_MAX);
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

fn unix_ms() -> u64 {
    (unix_s() * 1000.0) as u64
}

fn made_up_name(instance: u64) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let fine = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let host: String = host.chars().filter(|c| fine(*c)).take(40).collect();
    format!("{host}-{}-{:04x}", std::process::id(), instance as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_slow_down_and_never_stop() {
        for attempt in 0..10_000 {
            let pause = pause_before(attempt);
            assert!(pause >= RECONNECT_FIRST / 2 && pause <= RECONNECT_MAX, "{attempt}");
        }
        assert!(pause_before(100) >= RECONNECT_MAX / 2);
    }

    #[test]
    fn made_up_names_can_be_sent() {
        let name = made_up_name(7);
        assert!(name.len() <= super::super::frame::NAME_BYTES_MAX);
        assert!(name.ends_with("-0007") && name.bytes().all(|b| b.is_ascii_graphic()), "{name}");
    }
}
