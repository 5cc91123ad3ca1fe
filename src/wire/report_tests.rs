//! Reports, well formed and not.

use proptest::prelude::*;

use super::{
    super::event::{BlockId, Content, Tier},
    *,
};

fn batch(events: &str) -> Result<Batch, Malformed> {
    let body = format!(r#"{{"worker_id":"w","epoch":7,"seq":1,"events":{events}}}"#);
    parse(body.as_bytes())
}

fn field(events: &str) -> String {
    batch(events).expect_err("malformed").field
}

#[test]
fn reads_the_three_kinds_and_skips_others() {
    let batch = batch(
        r#"[{"type":"stored","block_hashes":[1,-2,"ab"],"parent_block_hash":null,"text":"aabbcc","block_size":2,"new":1},
            {"type":"removed","block_hashes":[18446744073709551615]},
            {"type":"cleared"},{"type":"rotated"}]"#,
    )
    .expect("well formed");
    assert_eq!(batch.epoch, "7");
    let Event::Stored(stored) = &batch.events[0] else { panic!("stored first") };
    let blocks = stored.blocks().expect("text");
    let blocks: Vec<_> = blocks.iter().collect();
    assert_eq!(blocks[0], (BlockId(1), &b"aa"[..]));
    assert_eq!(blocks[1], (BlockId((-2i64).cast_unsigned()), &b"bb"[..]));
    assert_eq!(blocks[2].1, b"cc");
    assert!(matches!(&batch.events[1], Event::Removed { ids, .. } if ids[0] == BlockId(u64::MAX)));
    assert!(matches!(batch.events[2], Event::Cleared));
    assert!(matches!(batch.events[3], Event::Unknown));
}

#[test]
fn text_may_come_block_by_block() {
    let batch = batch(r#"[{"type":"stored","block_hashes":[1,2],"text":["a","bcd"]}]"#);
    let Event::Stored(stored) = &batch.expect("well formed").events[0].clone() else { panic!() };
    let blocks = stored.blocks().expect("text");
    assert_eq!(blocks.iter().map(|(_, text)| text.len()).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn names_the_field_that_is_wrong() {
    assert_eq!(field(r#"[{"type":"removed"}]"#), "events[0].block_hashes");
    assert_eq!(field(r#"[{"type":"stored","block_hashes":[1]}]"#), "events[0].text");
    assert_eq!(
        field(
            r#"[{"type":"cleared"},{"type":"stored","block_hashes":[1],"text":"abc","block_size":2}]"#
        ),
        "events[1].text"
    );
    assert_eq!(
        field(r#"[{"type":"stored","block_hashes":[1],"token_ids":[1],"block_size":2}]"#),
        "events[0].token_ids"
    );
    assert_eq!(
        field(r#"[{"type":"stored","block_hashes":[1],"text":"a"}]"#),
        "events[0].block_size"
    );
    assert_eq!(
        field(r#"[{"type":"stored","block_hashes":[1],"text":"a","block_size":0}]"#),
        "events[0].block_size"
    );
    assert_eq!(field(r#"[{"block_hashes":[1]}]"#), "events[0].type");
    assert!(field(r#"[{"type":"removed","block_hashes":[1.5]}]"#).starts_with("events[0]"));
    assert_eq!(field("7"), "events");
    let missing = parse::<Batch>(br#"{"epoch":"a","seq":1,"events":[]}"#).expect_err("no worker");
    assert_eq!(missing.field, "worker_id");
    let negative = parse::<Batch>(br#"{"worker_id":"w","epoch":"a","seq":-1,"events":[]}"#);
    assert_eq!(negative.expect_err("negative").field, "seq");
    assert_eq!(parse::<Heartbeat>(b"nonsense").expect_err("no JSON").field, "body");
}

#[test]
fn token_ids_come_with_what_else_a_block_depends_on() {
    let batch = batch(
        r#"[{"type":"stored","block_hashes":[1,2],"token_ids":[1,2,3,4],"block_size":2,
             "lora_name":"a","extra_keys":[["a","salt"],["a",["image",0]]]},
            {"type":"stored","block_hashes":[1],"medium":"CPU"},
            {"type":"removed","block_hashes":[1],"medium":"DISK"}]"#,
    )
    .expect("well formed");
    let Event::Stored(stored) = &batch.events[0] else { panic!("stored first") };
    assert_eq!(stored.cache_salt.as_deref(), Some("salt"));
    let Content::Tokens { tokens, block_tokens: 2, extra } = &stored.content else { panic!() };
    assert_eq!((tokens.len(), extra.len(), extra[0].0), (4, 1, 1));
    let Event::Stored(lower) = &batch.events[1] else { panic!("stored second") };
    assert_eq!((lower.tier, &lower.content), (Tier::Cpu, &Content::Bare));
    assert!(matches!(batch.events[2], Event::Removed { tier: Tier::Storage, .. }));
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse::<Batch>(&bytes);
        let _ = parse::<Heartbeat>(&bytes);
    }

    #[test]
    fn arbitrary_events_do_no_harm(hashes in prop::collection::vec(any::<u64>(), 0..9), text in ".{0,40}", size in 0usize..20) {
        let events = serde_json::json!([{"type":"stored","block_hashes":hashes,"text":text,"block_size":size}]);
        if let Ok(batch) = batch(&events.to_string())
            && let Event::Stored(stored) = &batch.events[0] {
            let blocks = stored.blocks().expect("text");
            let total: usize = blocks.iter().map(|(_, text)| text.len()).sum();
            prop_assert_eq!(total, text.len());
        }
    }
}
