//! Pieces tokenize as the whole does.

use super::*;

type Never = std::convert::Infallible;

fn ids(count: usize) -> impl FnOnce(&str) -> Result<Vec<u32>, Never> {
    move |text| Ok(vec![text.len() as u32; count])
}

fn forgotten(text: &str) -> Result<Vec<u32>, Never> {
    panic!("{text:?} is forgotten")
}

#[test]
fn remembers_within_its_bound() {
    let cache = SegmentCache::new(64 << 10, 7);
    let mut out = Vec::new();
    for turn in 0..2_000 {
        let text = format!("a text of some length, number {turn}");
        let Ok(()) = cache.extend(&text, &mut out, ids(100));
        assert!(cache.bytes() <= 64 << 10, "{} bytes after {turn}", cache.bytes());
        let known = out.split_off(out.len() - 100);
        let Ok(()) = cache.extend(&text, &mut out, forgotten);
        assert_eq!(known, out.split_off(out.len() - 100));
    }
}

#[test]
fn keeps_what_is_used() {
    let cache = SegmentCache::new(64 << 10, 7);
    let mut out = Vec::new();
    let system = "the system prompt that every request has";
    let Ok(()) = cache.extend(system, &mut out, ids(100));
    for turn in 0..2_000 {
        let Ok(()) = cache.extend(&format!("what the user says at {turn}"), &mut out, ids(100));
        let Ok(()) = cache.extend(system, &mut out, forgotten);
    }
}

#[test]
fn a_text_too_big_for_it_passes_by() {
    let cache = SegmentCache::new(4 << 10, 7);
    let mut out = Vec::new();
    for _ in 0..2 {
        let Ok(()) = cache.extend("a text of some length", &mut out, ids(10_000));
    }
    assert_eq!((out.len(), cache.bytes()), (20_000, 0));
    let none = SegmentCache::new(0, 7);
    let Ok(()) = none.extend("a text of some length", &mut out, ids(1));
    assert_eq!(none.bytes(), 0);
}

fn splitter(json: &str, token: &AddedToken) -> Option<Splitter> {
    Splitter::new(&serde_json::from_str(json).expect("JSON"), [(9, token)].into_iter())
}

#[test]
fn cuts_only_where_pieces_stand_alone() {
    let local = r#"{"normalizer": {"type": "NFC"}, "model": {"type": "BPE"}, "pre_tokenizer":
        {"type": "Sequence", "pretokenizers": [{"type": "Split"},
        {"type": "ByteLevel", "add_prefix_space": false}]}}"#;
    let token = AddedToken::from("<|end|>", true);
    let found = splitter(local, &token).expect("local");
    let pieces: Vec<_> = found.pieces("a<|end|><|end|>b").collect();
    assert_eq!(pieces, [("a", Some(9)), ("", Some(9)), ("b", None)]);

    for (from, to) in [
        ("NFC", "Prepend"),
        ("\"Split\"", "\"Metaspace\""),
        ("false", "true"),
        ("BPE", "Unigram"),
        ("\"BPE\"", "\"BPE\", \"dropout\": 0.1"),
    ] {
        let other = local.replace(from, to);
        assert_ne!(other, local);
        assert!(splitter(&other, &token).is_none(), "{other}");
    }
    for token in [
        token.clone().lstrip(true),
        token.clone().rstrip(true),
        token.clone().single_word(true),
        token.clone().normalized(true),
    ] {
        assert!(splitter(local, &token).is_none(), "{token:?}");
    }
}
