//! Batches of real engines and of hostile ones.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::wire::event::{BlockId, Stored, Tier};

struct Recorded {
    seq: u64,
    payload: Vec<u8>,
    decoded: Value,
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digit).collect()
}

fn fixture(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/kv_events/vllm-0.32.0/");
    std::fs::read_to_string(format!("{folder}{name}")).expect("fixture")
}

fn recording(name: &str) -> Vec<Recorded> {
    let line = |line: &str| {
        let json: Value = serde_json::from_str(line).expect("a JSON line");
        Recorded {
            seq: json["seq"].as_u64().expect("seq"),
            payload: unhex(json["frames_hex"][2].as_str().expect("payload")),
            decoded: json["decoded"].clone(),
        }
    };
    fixture(name).lines().map(line).collect()
}

const RECORDINGS: [&str; 3] =
    ["basic_sequence.jsonl", "eviction_storm_64blocks.jsonl", "http_recording_stream.jsonl"];

fn id_of(json: &Value) -> BlockId {
    match json["__bytes_hex__"].as_str() {
        Some(hex) => BlockId::of_digest(&unhex(hex)),
        None => BlockId(json.as_u64().expect("an unsigned hash")),
    }
}

fn ids_of(json: &Value) -> Vec<BlockId> {
    json.as_array().expect("a list").iter().map(id_of).collect()
}

/// The event as the recorder's own decoder (msgspec) saw it.
fn event_of(json: &Value) -> Event {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match json["type"].as_str().expect("a tag") {
        "AllBlocksCleared" => Event::Cleared,
        "BlockRemoved" => Event::Removed { ids: ids_of(&json["block_hashes"]), tier: Tier::Gpu },
        "BlockStored" => {
            let token = |token: &Value| token.as_u64().expect("a token") as u32;
            Event::Stored(Stored {
                ids: ids_of(&json["block_hashes"]),
                parent: Some(&json["parent_block_hash"]).filter(|p| !p.is_null()).map(id_of),
                content: Content::Tokens {
                    tokens: json["token_ids"]
                        .as_array()
                        .expect("a list")
                        .iter()
                        .map(token)
                        .collect(),
                    block_tokens: json["block_size"].as_u64().expect("a size") as usize,
                    extra: Vec::new(),
                },
                model: None,
                lora_name: text(&json["lora_name"]),
                cache_salt: text(&json["extra_keys"][0][0]),
                tenant: None,
                tier: Tier::Gpu,
            })
        }
        other => panic!("no {other} was recorded"),
    }
}

/// Copies of each block, as a router counts them.
#[derive(Default)]
struct Model {
    copies: HashMap<BlockId, u32>,
    total: u32,
    most: u32,
}

impl Model {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Stored(stored) => {
                for id in &stored.ids {
                    *self.copies.entry(*id).or_default() += 1;
                    self.total += 1;
                }
            }
            Event::Removed { ids, .. } => {
                for id in ids {
                    let copies = self.copies.get_mut(id).expect("was stored before");
                    *copies = copies.checked_sub(1).expect("not removed more often than stored");
                    self.total -= 1;
                }
            }
            Event::Cleared => {
                self.copies.clear();
                self.total = 0;
            }
            Event::Unknown => panic!("nothing unknown was recorded"),
        }
        self.most = self.most.max(self.total);
    }
}

#[test]
fn recordings_decode_to_what_the_recorder_decoded() {
    for name in RECORDINGS {
        let mut decoder = Decoder::default();
        for recorded in recording(name) {
            let batch = decoder.decode(&recorded.payload).expect("decodes");
            assert_eq!(batch.skipped, Skipped::default(), "{name} {}", recorded.seq);
            // serde_json reads floats to the last bit but one.
            let ts = recorded.decoded[0].as_f64().expect("a time");
            assert!((batch.ts - ts).abs() < 1e-6);
            assert_eq!(batch.rank, Some(0));
            let mut wanted = Vec::new();
            for json in recorded.decoded[1].as_array().expect("events") {
                push(&mut wanted, event_of(json));
            }
            assert_eq!(batch.events, wanted, "{name} {}", recorded.seq);
        }
    }
}

#[test]
fn replay_socket_answers_decode_with_either_form_of_hash() {
    for (name, ids) in [("replay_socket.json", 3), ("replay_socket_buffer5.json", 3)] {
        let json: Value = serde_json::from_str(&fixture(name)).expect("JSON");
        let first = &json["dealer_reply_messages_hex"][0];
        let payload = unhex(first[3].as_str().expect("payload"));
        let batch = Decoder::default().decode(&payload).expect("decodes");
        let Some(Event::Stored(stored)) = batch.events.last() else { panic!("{name}: stored") };
        assert_eq!(stored.ids.len(), ids);
    }
    // The same prompt, on an engine that sends 16-byte digests.
    let json: Value = serde_json::from_str(&fixture("replay_socket_buffer5.json")).expect("JSON");
    let payload = unhex(json["dealer_reply_messages_hex"][0][3].as_str().expect("payload"));
    let batch = Decoder::default().decode(&payload).expect("decodes");
    let Event::Stored(stored) = &batch.events[0] else { panic!("stored") };
    assert_eq!(stored.ids[0], BlockId(0x697d_6e7a_1d26_b639));
}

#[test]
fn counting_copies_never_goes_below_zero_nor_over_the_capacity() {
    // 64 blocks of which one is the engine's own; the recordings begin in the middle, but after
    // an AllBlocksCleared, or at the start.
    for (name, capacity) in [("basic_sequence.jsonl", 1024), ("eviction_storm_64blocks.jsonl", 63)]
    {
        let (mut model, mut decoder) = (Model::default(), Decoder::default());
        for recorded in recording(name) {
            for event in decoder.decode(&recorded.payload).expect("decodes").events {
                model.apply(&event);
                assert!(model.total <= capacity, "{name} {}: {}", recorded.seq, model.total);
            }
        }
        assert!(model.most > 8, "{name}: {}", model.most);
    }
}

#[test]
fn a_storm_fills_the_cache_and_keeps_some_blocks_twice() {
    let (mut model, mut decoder) = (Model::default(), Decoder::default());
    let (mut before_reset, mut twice) = (0, false);
    for recorded in recording("eviction_storm_64blocks.jsonl") {
        for event in decoder.decode(&recorded.payload).expect("decodes").events {
            if event == Event::Cleared && model.total > 0 {
                before_reset = model.total;
            }
            model.apply(&event);
            twice |= model.copies.values().any(|copies| *copies > 1);
        }
    }
    assert_eq!(before_reset, 61);
    assert!(twice);
}

// ---- made by hand ----

fn pack(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    pack_into(value, &mut out);
    out
}

/// MessagePack of a JSON value; `{"bin": "hex"}` becomes bytes.
fn pack_into(value: &Value, out: &mut Vec<u8>) {
    use rmp::encode as put;
    match value {
        Value::Null => put::write_nil(out).expect("a vector takes all"),
        Value::Bool(yes) => put::write_bool(out, *yes).expect("a vector takes all"),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => drop(put::write_uint(out, value)),
            (_, Some(value)) => drop(put::write_sint(out, value)),
            _ => put::write_f64(out, number.as_f64().expect("a float")).expect("a vector"),
        },
        Value::String(text) => put::write_str(out, text).expect("a vector takes all"),
        Value::Array(list) => {
            put::write_array_len(out, list.len() as u32).expect("a vector takes all");
            for value in list {
                pack_into(value, out);
            }
        }
        Value::Object(map) if map.contains_key("bin") => {
            let bytes = unhex(map["bin"].as_str().expect("hex"));
            put::write_bin(out, &bytes).expect("a vector takes all");
        }
        Value::Object(map) => {
            put::write_map_len(out, map.len() as u32).expect("a vector takes all");
            for (key, value) in map {
                put::write_str(out, key).expect("a vector takes all");
                pack_into(value, out);
            }
        }
    }
}

fn decode(json: &Value) -> DecodedBatch {
    Decoder::default().decode(&pack(json)).expect("decodes")
}

fn one(event: &Value) -> (Vec<Event>, Skipped) {
    let batch = decode(&json!([1.5, [event], 2]));
    assert_eq!((batch.ts, batch.rank), (1.5, Some(2)));
    (batch.events, batch.skipped)
}

fn stored(event: &Value) -> Stored {
    match one(event) {
        (mut events, skipped) if events.len() == 1 && skipped.malformed == 0 => {
            match events.remove(0) {
                Event::Stored(stored) => stored,
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

fn two_blocks(more: &Value) -> Value {
    let mut event = json!({
        "type": "BlockStored", "block_hashes": [1, 2], "parent_block_hash": null,
        "token_ids": [1, 2, 3, 4], "block_size": 2, "lora_id": null, "medium": "GPU",
        "lora_name": null,
    });
    for (key, value) in more.as_object().expect("fields") {
        event[key] = value.clone();
    }
    event
}

fn extra_of(stored: &Stored) -> &[(usize, u64)] {
    match &stored.content {
        Content::Tokens { extra, .. } => extra,
        other => panic!("{other:?}"),
    }
}

#[test]
fn older_engines_send_events_as_arrays() {
    let event = json!(["BlockStored", [7, -8], 6, [300, 70000, 1, 2], 2, null, "CPU", "ad"]);
    let got = stored(&event);
    assert_eq!(got.ids, [BlockId(7), BlockId((-8i64).cast_unsigned())]);
    assert_eq!(got.parent, Some(BlockId(6)));
    assert_eq!((got.tier, got.lora_name.as_deref()), (Tier::Cpu, Some("ad")));
    let tokens = vec![300, 70000, 1, 2];
    assert_eq!(got.content, Content::Tokens { tokens, block_tokens: 2, extra: vec![] });
    let removed = one(&json!(["BlockRemoved", [{"bin": "00ff"}]])).0;
    assert_eq!(removed, [Event::Removed { ids: vec![BlockId(255)], tier: Tier::Gpu }]);
    assert_eq!(one(&json!(["AllBlocksCleared"])).0, [Event::Cleared]);
}

#[test]
fn a_batch_may_be_a_map() {
    let json = json!({"events": [["AllBlocksCleared"]], "ts": 3, "attn_dp_rank": 4, "x": 1});
    let batch = decode(&json);
    assert_eq!((batch.ts, batch.rank, batch.events.len()), (3.0, Some(4), 1));
    assert_eq!(batch.skipped.fields, 1);
}

#[test]
fn what_is_unknown_is_counted_and_left_out() {
    let json = json!([1, [
        {"type": "BlockMigrated", "block_hashes": "anything"}, {"type": "AllBlocksCleared", "why": []},
        two_blocks(&json!({"token_ids": [1, 2, 3]})), 17, [], {}, ["BlockRemoved", 1],
        two_blocks(&json!({"block_size": "2"})), two_blocks(&json!({"block_hashes": []})),
        two_blocks(&json!({"token_ids": [1, 2, 3, -4]})),
    ], null, "later"]);
    let batch = decode(&json);
    assert_eq!(batch.events, [Event::Unknown, Event::Cleared]);
    assert_eq!(batch.skipped, Skipped { fields: 2, kinds: 1, malformed: 8, groups: 0 });
    assert_eq!(batch.rank, None);
}

#[test]
fn names_without_tokens_are_bare() {
    assert_eq!(stored(&two_blocks(&json!({"token_ids": []}))).content, Content::Bare);
}

#[test]
fn media_are_tiers() {
    for (medium, tier) in [
        (Value::Null, Tier::Gpu),
        ("GPU".into(), Tier::Gpu),
        ("CPU_PINNED".into(), Tier::Cpu),
        ("CPU_TIER2".into(), Tier::Cpu),
        ("STORAGE".into(), Tier::Storage),
        ("DISK".into(), Tier::Storage),
        ("EXTERNAL".into(), Tier::Storage),
        ("TAPE".into(), Tier::Storage),
    ] {
        assert_eq!(stored(&two_blocks(&json!({"medium": medium}))).tier, tier);
    }
}

#[test]
fn salt_lora_and_media_are_told_apart_in_extra_keys() {
    let keys = |lora: Value, parent: Value, keys: Value| {
        let more = json!({"lora_name": lora, "parent_block_hash": parent, "extra_keys": keys});
        let got = stored(&two_blocks(&more));
        (got.cache_salt.clone(), extra_of(&got).iter().map(|(at, _)| *at).collect::<Vec<_>>())
    };
    let salt = |text: &str| Some(text.to_owned());
    assert_eq!(keys(Value::Null, Value::Null, json!([["s"], null])), (salt("s"), vec![]));
    assert_eq!(keys("ad".into(), Value::Null, json!([["ad"], ["ad"]])), (None, vec![]));
    assert_eq!(keys("ad".into(), Value::Null, json!([["ad", "s"], ["ad"]])), (salt("s"), vec![]));
    assert_eq!(keys("s".into(), Value::Null, json!([["s", "s"], ["s"]])), (salt("s"), vec![]));
    assert_eq!(
        keys(
            "ad".into(),
            Value::Null,
            json!([["ad", ["m", 0], "s", {"bin": "aa"}], ["ad", ["m", -1]]])
        ),
        (salt("s"), vec![0, 1])
    );
    // Behind a parent there is no first block; a string there is something else.
    assert_eq!(keys(Value::Null, json!(9), json!([["s"], null])), (None, vec![0]));
    // Shorter and longer lists than blocks.
    assert_eq!(keys(Value::Null, Value::Null, json!([])), (None, vec![]));
    assert_eq!(keys(Value::Null, Value::Null, json!([null, null, ["x"]])), (None, vec![]));
}

#[test]
fn the_same_media_hash_alike_and_others_do_not() {
    let hash = |offset: i64| {
        let keys = json!({"extra_keys": [null, [["image", offset]]]});
        extra_of(&stored(&two_blocks(&keys)))[0]
    };
    assert_eq!(hash(3), hash(3));
    assert_ne!(hash(3), hash(4));
}

#[test]
fn adapters_without_a_name_are_told_apart() {
    let got = stored(&two_blocks(&json!({"lora_id": 7})));
    assert_eq!(got.lora_name.as_deref(), Some("lora_id:7"));
}

#[test]
fn pages_told_one_by_one_are_joined() {
    let page = |id: i64, parent: Value, salt: &str| {
        json!({"type": "BlockStored", "block_hashes": [id], "parent_block_hash": parent,
            "token_ids": [id.unsigned_abs()], "block_size": 1, "lora_id": null, "medium": "GPU",
            "cache_salt": salt, "session_id": "x"})
    };
    let events = [
        page(-1, Value::Null, "a"),
        page(-2, (-1).into(), "a"),
        page(-3, (-2).into(), "a"),
        page(-4, (-3).into(), "b"),
        page(-6, (-5).into(), "b"),
    ];
    let batch = decode(&json!([1, events, 0]));
    assert_eq!(batch.events.len(), 3);
    let Event::Stored(first) = &batch.events[0] else { panic!("stored") };
    assert_eq!(first.ids.len(), 3);
    let Content::Tokens { tokens, .. } = &first.content else { panic!("tokens") };
    assert_eq!(tokens, &[1, 2, 3]);
    assert_eq!(batch.skipped, Skipped::default());
}

#[test]
fn only_full_attention_groups_are_taken() {
    let mut decoder = Decoder::default();
    let mut events = |events: Value| {
        let batch = decoder.decode(&pack(&json!([1, events, 0]))).expect("decodes");
        (batch.events.len(), batch.skipped.groups)
    };
    let of = |group: Value, kind: Value| {
        two_blocks(&json!({"group_idx": group, "kv_cache_spec_kind": kind}))
    };
    let gone = |group: u32| json!({"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": group});
    // Before anything is known only group 0 counts.
    assert_eq!(events(json!([gone(0), gone(1)])), (1, 1));
    assert_eq!(events(json!([of(0.into(), "sliding_window".into())])), (0, 1));
    assert_eq!(events(json!([of(1.into(), "full_attention".into())])), (1, 0));
    assert_eq!(events(json!([gone(0), gone(1), gone(2)])), (1, 2));
    assert_eq!(events(json!([of(Value::Null, Value::Null)])), (1, 0));
    assert_eq!(events(json!([of(2.into(), "mamba".into()), gone(2)])), (0, 2));
    assert_eq!(events(json!([of(64.into(), "full_attention".into()), gone(64)])), (0, 2));
}

#[test]
fn claims_beyond_the_payload_are_refused() {
    let claimed = |bytes: &[u8]| Decoder::default().decode(bytes);
    assert_eq!(claimed(&[]), Err(DecodeError::Cut));
    assert_eq!(claimed(&[0xdd, 255, 255, 255, 255]), Err(DecodeError::Cut));
    assert_eq!(claimed(&[0x92, 1, 0xdd, 255, 255, 255, 255, 0x80]), Err(DecodeError::Cut));
    assert!(matches!(claimed(&[0x91, 1]), Err(DecodeError::Malformed { field: "batch", .. })));
    assert!(matches!(claimed(&[0x92, 1, 1]), Err(DecodeError::Malformed { field: "events", .. })));
    assert_eq!(
        claimed(&vec![0; PAYLOAD_BYTES_MAX + 1]),
        Err(DecodeError::TooLong(PAYLOAD_BYTES_MAX + 1))
    );
    let mut many = vec![0x92, 1, 0xdd, 0, 4, 0, 1];
    many.resize(EVENTS_MAX + 100, 0xc0);
    assert_eq!(claimed(&many), Err(DecodeError::TooMany(EVENTS_MAX + 1)));
    // Nesting costs no stack.
    let mut deep = vec![0x92, 1];
    deep.resize(1 << 20, 0x91);
    assert!(claimed(&deep).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Decoder::default().decode(&bytes);
    }

    #[test]
    fn arbitrary_events_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for start in [&b"\x92\x01\x91\x8b\xa4type\xabBlockStored"[..], b"\x92\x01\x91\x9b\xabBlockStored"] {
            let _ = Decoder::default().decode(&[start, &bytes].concat());
        }
    }

    #[test]
    fn mutated_recordings_never_panic_and_stay_consistent(
        which in 0..100_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut all = recording("basic_sequence.jsonl");
        let mut payload = all.swap_remove(which % all.len()).payload;
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if cut.index(4) == 0 {
            payload.truncate(cut.index(payload.len()));
        }
        if let Ok(batch) = Decoder::default().decode(&payload) {
            for event in &batch.events {
                if let Event::Stored(Stored { ids, content: Content::Tokens { tokens, block_tokens, extra }, .. }) = event {
                    prop_assert_eq!(ids.len() * block_tokens, tokens.len());
                    prop_assert!(extra.iter().all(|(at, _)| *at < ids.len()));
                }
            }
        }
    }
}
