//! What is JSON and what is not, held against serde_json.

use std::borrow::Cow;

use proptest::prelude::*;
use serde::de::IgnoredAny;

use super::*;

fn read_whole(text: &str) -> Option<&str> {
    let mut reader = Reader::new(text);
    let value = reader.value().ok()?;
    reader.end().ok()?;
    Some(value)
}

fn written(raw: &str) -> Option<String> {
    let mut pieces = Vec::new();
    let whole = write_text(raw, |piece| pieces.extend_from_slice(piece));
    assert!(whole || pieces.is_empty(), "nothing is given of what has no text");
    whole.then(|| String::from_utf8(pieces).expect("text is UTF-8"))
}

/// Pieces of JSON, well and badly put together.
fn fragments() -> impl Strategy<Value = String> {
    let fragment = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\"a\"",
        "\"role\"",
        "\"\\n\"",
        "\"\\u00e9\"",
        "\\",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\u12\"",
        "\"\\x\"",
        "null",
        "true",
        "false",
        "nul",
        "0",
        "-0",
        "01",
        "-",
        "1.",
        "1.5",
        "1e5",
        "1E-7",
        "1e",
        "2.5e+3",
        "9999999999999999999999",
        " ",
        "\n",
        "\t",
        "\u{1}",
        "é",
        "\"é😀 and more than thirty-two bytes of text\"",
    ]);
    prop::collection::vec(fragment, 0..24).prop_map(|fragments| fragments.concat())
}

fn values() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,80}".prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((".{0,12}", inner), 0..6)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

#[test]
fn brackets_end_in_an_error_not_in_the_stack() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth| format!("{}0{}", open.repeat(depth), close.repeat(depth));
        assert!(read_whole(&nested(DEPTH_MAX)).is_some());
        assert_eq!(read_whole(&nested(DEPTH_MAX + 1)), None);
        assert_eq!(read_whole(&nested(1_000_000)), None);
        assert_eq!(read_whole(&open.repeat(1_000_000)), None);
    }
}

#[test]
fn half_a_surrogate_pair_is_json_and_no_text() {
    for raw in [r#""\ud83d""#, r#""\ud83d\n""#, r#""\ud83dA""#, r#""x\ude00""#, r#""\uD83D\uD83D""#]
    {
        assert_eq!(read_whole(raw), Some(raw));
        assert_eq!((text(raw), written(raw)), (None, None), "{raw}");
    }
    assert_eq!(text(r#""\uD83D\uDE00\/""#).as_deref(), Some("😀/"));
}

#[test]
fn fields_are_as_they_are_written_and_come_once() {
    let names = ["a", "b", "c"];
    let object = r#" {"a": [1, {"b": 2}] ,"x":7, "\u0062":null,"c" :"\""}"#;
    assert_eq!(fields(object, &names), Ok([r#"[1, {"b": 2}]"#, "", r#""\"""#]));
    assert_eq!(fields(r#"{"a":1,"x":2,"x":3}"#, &names), Ok(["1", "", ""]));
    for wrong in [r#"{"a":1,"a":2}"#, r#"{"b":null,"\u0062":1}"#, "[1]", "7", "", r#"{"a":1,}"#] {
        assert_eq!(fields(wrong, &names), Err(Malformed), "{wrong}");
    }
}

proptest! {
    #[test]
    fn what_serde_json_takes_for_json_is_json(json in fragments()) {
        let taken = serde_json::from_str::<IgnoredAny>(&json).is_ok();
        prop_assert_eq!(read_whole(&json), taken.then(|| json.trim_matches([' ', '\n', '\t'])));
    }

    #[test]
    fn a_value_ends_where_it_ends(value in values(), pretty in any::<bool>()) {
        let to_text = if pretty { serde_json::to_string_pretty } else { serde_json::to_string };
        let json = to_text(&value).expect("a value is JSON");
        prop_assert_eq!(read_whole(&json), Some(&*json));
        let list = format!("[0, {json} , {json}]");
        let mut items = Vec::new();
        let mut reader = Reader::new(&list);
        let read = reader.array(|items_left| {
            items.push(items_left.value()?);
            Ok(())
        });
        prop_assert_eq!(read, Ok(()));
        prop_assert_eq!(items, ["0", &*json, &*json]);
        for (cut, _) in json.char_indices().filter(|_| json.starts_with(['{', '[', '"'])) {
            prop_assert_eq!(read_whole(&json[..cut]), None);
        }
    }

    /// Long enough for several chunks and several pieces.
    #[test]
    fn strings_are_unescaped_as_by_serde_json(
        parts in prop::collection::vec(
            prop_oneof![
                "[a-z é😀\"\\\\/\u{1}\n\t]{0,40}".prop_map(|text| {
                    let quoted = serde_json::to_string(&text).expect("a string is JSON");
                    quoted[1..quoted.len() - 1].to_owned()
                }),
                any::<u16>().prop_map(|code| format!("\\u{code:04x}")),
                any::<char>().prop_map(|char| {
                    let mut units = [0; 2];
                    let units = char.encode_utf16(&mut units).iter();
                    units.map(|unit| format!("\\u{unit:04X}")).collect::<Vec<_>>().concat()
                }),
                Just("\\b\\f\\r\\/".to_owned()),
                (0..2500_usize).prop_map(|len| "z".repeat(len)),
            ],
            0..12,
        )
    ) {
        let raw = format!("\"{}\"", parts.concat());
        let expected = serde_json::from_str::<String>(&raw).ok();
        prop_assert_eq!(read_whole(&raw), Some(&*raw));
        let whole = text(&raw).map(Cow::into_owned);
        prop_assert_eq!(&whole, &expected);
        prop_assert_eq!(written(&raw), expected);
    }

    #[test]
    fn arbitrary_text_does_no_harm(json in any::<String>()) {
        let _ = (read_whole(&json), text(&json));
        write_text(&json, |_| ());
    }
}

#[test]
fn a_mark_is_seen_wherever_it_stands_in_a_long_string() {
    for len in [0, 31, 32, 33, 64, 100] {
        for at in 0..=len {
            for mark in ["\"", "\\n", "\\u00e9", "\\x", "\\", "\n", "\u{1}", "é", "\u{7f}"] {
                let string = format!("\"{}{mark}{}\"", "a".repeat(at), "b".repeat(len - at));
                for json in [format!("[{string},1]"), format!("[{string},\n1]"), string] {
                    let valid = serde_json::from_str::<IgnoredAny>(&json).is_ok();
                    assert_eq!(read_whole(&json).is_some(), valid, "{json}");
                }
            }
        }
    }
}
