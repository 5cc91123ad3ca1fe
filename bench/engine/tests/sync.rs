//! How a reporter and a router that differ come to agree again, against a router of few lines.

mod support;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use support::receiver::Receiver;
use support::{eventually, post};
use warmroute_engine::{Engine, EngineHandle, EngineOptions, ReportTo};

/// What a router believes of one worker, by block: all text up to its end.
#[derive(Default)]
struct Believed {
    epoch: Value,
    next_seq: Option<u64>,
    missing: bool,
    blocks: HashMap<u64, (Option<u64>, String)>,
    /// Steps of syncs taken, in order.
    steps: Vec<&'static str>,
    /// Whether a sync is in the middle.
    is_syncing: bool,
    /// How many of the next batches are lost on the way, though their sender is told otherwise.
    lose: usize,
    /// How many of the next messages are hung up on after they are taken in.
    hang_up: usize,
    /// Status and body of the next answers to syncs.
    refuse: Vec<(u16, &'static str)>,
    snapshots_only: bool,
    rejected: usize,
}

impl Believed {
    fn answer(&mut self, path: &str, body: &Value) -> Option<(u16, String)> {
        if path == "/v1/events" && self.lose > 0 {
            self.lose -= 1;
            return Some((200, "{}".to_owned()));
        }
        if path == "/v1/sync" && !self.refuse.is_empty() {
            let (status, body) = self.refuse.remove(0);
            return Some((status, body.to_owned()));
        }
        if self.epoch != body["epoch"] {
            *self = Self {
                epoch: body["epoch"].clone(),
                steps: std::mem::take(&mut self.steps),
                hang_up: self.hang_up,
                snapshots_only: self.snapshots_only,
                rejected: self.rejected,
                ..Self::default()
            };
        }
        let answer = match path {
            "/v1/heartbeat" => self.heartbeat(body),
            "/v1/events" => self.events(body),
            _ => self.sync(body),
        };
        if path != "/v1/heartbeat" && self.hang_up > 0 {
            self.hang_up -= 1;
            return None;
        }
        Some((200, answer.to_string()))
    }

    fn heartbeat(&mut self, body: &Value) -> Value {
        let behind = body["seq"].as_u64().is_some_and(|seq| self.next_seq != Some(seq + 1));
        json!({"ok": true, "joined": false, "resync": self.missing || behind})
    }

    fn events(&mut self, body: &Value) -> Value {
        let seq = body["seq"].as_u64().expect("a number");
        if self.next_seq.is_some_and(|next| seq < next) {
            return json!({"repeat": true, "resync": self.missing});
        }
        self.missing |= seq != self.next_seq.unwrap_or(1);
        self.next_seq = Some(seq + 1);
        for event in body["events"].as_array().expect("a list") {
            match event["type"].as_str() {
                Some("cleared") => self.blocks.clear(),
                Some("removed") => {
                    for hash in event["block_hashes"].as_array().expect("a list") {
                        self.blocks.remove(&hash.as_u64().expect("a hash"));
                    }
                }
                _ => self.stored(event),
            }
        }
        json!({"repeat": false, "resync": self.missing})
    }

    fn stored(&mut self, event: &Value) {
        let mut parent = event["parent_block_hash"].as_u64();
        let text = event["text"].as_str().expect("all is ASCII here");
        let hashes = event["block_hashes"].as_array().expect("a list");
        assert_eq!(text.len(), 64 * hashes.len());
        for (at, hash) in hashes.iter().enumerate() {
            let hash = hash.as_u64().expect("a hash");
            self.place(hash, parent, &text[64 * at..64 * (at + 1)]);
            parent = Some(hash);
        }
    }

    fn place(&mut self, hash: u64, parent: Option<u64>, text: &str) {
        let before = parent.map(|parent| self.blocks.get(&parent));
        let Some(before) = before.map_or(Some(""), |held| held.map(|(_, text)| text.as_str()))
        else {
            self.rejected += 1;
            return;
        };
        self.blocks.insert(hash, (parent, format!("{before}{text}")));
    }

    fn sync(&mut self, body: &Value) -> Value {
        let place_all = |believed: &mut Self, blocks: &Value| {
            for block in blocks.as_array().expect("a list") {
                assert_eq!(block["copies"], 1);
                let parent = block["parent_block_hash"].as_u64();
                assert_eq!(parent.is_none(), block["model"] == "sim-model");
                let hash = block["block_hash"].as_u64().expect("a hash");
                believed.place(hash, parent, block["text"][0].as_str().expect("text"));
            }
        };
        if let Some(digest) = body.get("digest") {
            self.steps.push("digest");
            assert_eq!(digest["buckets"], 256);
            let mut ours = vec![0_u64; 256];
            for hash in self.blocks.keys() {
                let sum = &mut ours[(mixed(*hash) >> 56) as usize];
                *sum = sum.wrapping_add(mixed(*hash));
            }
            let theirs: Vec<_> = digest["sums"].as_array().expect("a list").iter().collect();
            let differ: Vec<_> =
                (0..256).filter(|at| Some(ours[*at]) != theirs[*at].as_u64()).collect();
            self.is_syncing = self.snapshots_only || !differ.is_empty();
            if self.snapshots_only {
                return json!({"want": "snapshot"});
            }
            if !differ.is_empty() {
                return json!({"want": "buckets", "differ": differ});
            }
            assert_eq!(digest["blocks"], self.blocks.len());
        } else if let Some(buckets) = body.get("buckets") {
            self.steps.push("buckets");
            let list: BTreeSet<u64> = buckets["list"]
                .as_array()
                .expect("a list")
                .iter()
                .filter_map(Value::as_u64)
                .collect();
            self.blocks.retain(|hash, _| !list.contains(&(mixed(*hash) >> 56)));
            place_all(self, &buckets["blocks"]);
        } else {
            self.steps.push("snapshot");
            let snapshot = &body["snapshot"];
            if snapshot["part"] == 0 {
                self.blocks.clear();
            }
            place_all(self, &snapshot["blocks"]);
            if snapshot["last"] != true {
                return json!({"want": "snapshot"});
            }
        }
        self.next_seq =
            Some(u64::try_from(body["seq"].as_i64().expect("a number")).unwrap_or(0) + 1);
        (self.missing, self.is_syncing) = (false, false);
        json!({"want": "nothing", "differ": [], "stored": 0, "removed": 0, "rejected": 0})
    }
}

fn mixed(hash: u64) -> u64 {
    let z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct Bed {
    believed: Arc<Mutex<Believed>>,
    receiver: Receiver,
    engine: EngineHandle,
}

impl Bed {
    fn new() -> Self {
        let believed = Arc::new(Mutex::new(Believed::default()));
        let answering = Arc::clone(&believed);
        let receiver = Receiver::start(move |path, body| {
            answering.lock().expect("no panic").answer(path, body)
        });
        let reports = ReportTo {
            token: Some("secret".to_owned()),
            interval: Duration::from_millis(10),
            ..ReportTo::new(&receiver.url, "sim7")
        };
        let options =
            EngineOptions { kv_blocks: 60, reports: Some(reports), ..EngineOptions::instant() };
        let engine = Engine::start(options).expect("a free port");
        Self { believed, receiver, engine }
    }

    fn set(&self, change: impl FnOnce(&mut Believed)) {
        change(&mut self.believed.lock().expect("no panic"));
    }

    /// Sends prompts that push each other out of the cache, in several batches.
    fn work(&self, name: &str) {
        for number in 0..12 {
            let prompt = format!("{name} {number:02} ").repeat(60);
            let body = json!({"prompt": prompt, "max_tokens": 1});
            assert_eq!(post(&self.engine.url(), "/v1/completions", &body).0, 200);
            std::thread::sleep(Duration::from_millis(4));
        }
    }

    /// Waits until the router believes as many blocks as there are, then asks for proof.
    fn agrees(&self, digests: usize) -> Vec<&'static str> {
        eventually("they agree", || {
            let held = self.engine.stats().kv_blocks_cached;
            let believed = self.believed.lock().expect("no panic");
            let is_quiet = !believed.missing && !believed.is_syncing;
            is_quiet && believed.blocks.len() == held && believed.steps.len() >= digests
        });
        // Everything is in one last digest that must find nothing.
        self.set(|believed| {
            believed.missing = true;
            believed.snapshots_only = false;
        });
        let before = self.believed.lock().expect("no panic").steps.len();
        eventually("the proof", || !self.believed.lock().expect("no panic").missing);
        let believed = self.believed.lock().expect("no panic");
        assert_eq!(believed.steps[before..], ["digest"], "they did not agree");
        assert_eq!(believed.rejected, 0);
        believed.steps[..before].to_vec()
    }
}

#[test]
fn without_a_fault_nothing_is_synced_and_heartbeats_count() {
    let bed = Bed::new();
    bed.work("all is well");
    eventually("a heartbeat that counts", || {
        let last = bed.receiver.bodies("/v1/heartbeat").pop();
        last.is_some_and(|beat| beat["seq"].as_u64() == Some(bed.receiver.batches().len() as u64))
    });
    assert!(bed.receiver.bodies("/v1/heartbeat")[0].get("seq").is_none());
    assert_eq!(bed.agrees(0), [""; 0]);
    assert_eq!(bed.engine.stats().resyncs, 0);
}

#[test]
fn a_lost_batch_is_made_good_by_what_differs() {
    let bed = Bed::new();
    bed.work("before");
    bed.set(|believed| believed.lose = 1);
    bed.work("after");
    let steps = bed.agrees(2);
    assert_eq!(steps[..2], ["digest", "buckets"]);
    assert!(bed.engine.stats().syncs >= 1);
    assert_eq!(bed.engine.stats().resyncs, 0);
}

#[test]
fn a_heartbeat_finds_a_lost_last_batch() {
    let bed = Bed::new();
    bed.work("before");
    bed.agrees(0);
    std::thread::sleep(Duration::from_millis(50));
    bed.set(|believed| believed.lose = 1);
    let body = json!({"prompt": "and silence ".repeat(60), "max_tokens": 1});
    assert_eq!(post(&bed.engine.url(), "/v1/completions", &body).0, 200);
    bed.agrees(2);
}

#[test]
fn a_lost_answer_is_no_loss() {
    let bed = Bed::new();
    bed.set(|believed| believed.hang_up = 3);
    bed.work("hung up on");
    assert_eq!(bed.agrees(0), [""; 0]);
}

#[test]
fn everything_is_sent_where_that_is_asked_for() {
    let bed = Bed::new();
    bed.work("before");
    bed.set(|believed| {
        believed.missing = true;
        believed.snapshots_only = true;
        believed.blocks.clear();
    });
    bed.work("after");
    assert_eq!(bed.agrees(2)[..2], ["digest", "snapshot"]);
}

#[test]
fn a_busy_router_gets_its_sync_later_and_an_old_one_a_new_epoch() {
    let bed = Bed::new();
    bed.work("before");
    bed.set(|believed| {
        believed.missing = true;
        believed.refuse = vec![(503, ""), (404, "{\"error\":{\"code\":\"unknown_worker\"}}")];
    });
    bed.agrees(1);
    assert_eq!(bed.engine.stats().resyncs, 0);
    bed.set(|believed| {
        believed.missing = true;
        believed.refuse = vec![(404, "{\"error\":{\"code\":\"not_found\"}}")];
    });
    eventually("a new epoch", || bed.engine.stats().resyncs == 1);
    bed.agrees(1);
}

#[test]
fn a_reset_is_told_and_a_restart_is_another_life() {
    let mut bed = Bed::new();
    bed.work("before");
    bed.agrees(0);
    assert_eq!(post(&bed.engine.url(), "/reset_prefix_cache", &json!({})).0, 200);
    eventually("told", || bed.believed.lock().expect("no panic").blocks.is_empty());
    bed.work("between");
    let port = bed.engine.port();
    let epoch = bed.believed.lock().expect("no panic").epoch.clone();
    bed.engine = bed.engine.restart().expect("its port is free");
    assert_eq!((bed.engine.port(), bed.engine.stats().requests), (port, 0));
    bed.work("after");
    bed.agrees(0);
    assert_ne!(bed.believed.lock().expect("no panic").epoch, epoch);
}

#[test]
fn a_reporter_may_stop_and_has_the_state_told_afterwards() {
    let bed = Bed::new();
    bed.work("before");
    bed.engine.pause_reports();
    std::thread::sleep(Duration::from_millis(50));
    let told = bed.receiver.all().len();
    // More than the journal takes.
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i"] {
        bed.work(&name.repeat(10));
    }
    assert_eq!(bed.receiver.all().len(), told);
    bed.engine.resume_reports();
    bed.agrees(1);
}

#[test]
fn each_of_several_routers_is_told_all_and_kept_in_step_by_itself() {
    let routers = [(); 2].map(|()| {
        let believed = Arc::new(Mutex::new(Believed::default()));
        let answering = Arc::clone(&believed);
        let receiver = Receiver::start(move |path, body| {
            answering.lock().expect("no panic").answer(path, body)
        });
        (believed, receiver)
    });
    let reports = ReportTo {
        also: vec![routers[1].1.url.clone()],
        token: Some("secret".to_owned()),
        interval: Duration::from_millis(10),
        ..ReportTo::new(&routers[0].1.url, "sim7")
    };
    let options =
        EngineOptions { kv_blocks: 60, reports: Some(reports), ..EngineOptions::instant() };
    let engine = Engine::start(options).expect("a free port");
    let work = |name: &str| {
        for number in 0..12 {
            let prompt = format!("{name} {number:02} ").repeat(60);
            let body = json!({"prompt": prompt, "max_tokens": 1});
            assert_eq!(post(&engine.url(), "/v1/completions", &body).0, 200);
        }
    };
    work("before");
    routers[1].0.lock().expect("no panic").lose = 1;
    work("after");
    eventually("both hold what it holds", || {
        routers.iter().all(|(believed, _)| {
            let believed = believed.lock().expect("no panic");
            let is_quiet = !believed.missing && !believed.is_syncing;
            is_quiet && believed.blocks.len() == engine.stats().kv_blocks_cached
        })
    });
    let steps = |at: usize| routers[at].0.lock().expect("no panic").steps.len();
    assert_eq!(steps(0), 0, "it missed nothing");
    assert!(steps(1) > 0, "it did");
}
