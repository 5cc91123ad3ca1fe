//! Prompts to canonical text and blocks.

use super::*;
use serde_json::value::RawValue;

#[derive(serde::Deserialize)]
struct Chat<'a> {
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
}

fn canonical(body: &str) -> String {
    let chat: Chat<'_> = serde_json::from_str(body).expect("a chat");
    canonical_chat(&chat.messages, chat.tools).expect("readable content")
}

#[test]
fn tools_stand_between_leading_and_other_messages() {
    let text = canonical(
        r#"{"messages": [{"role": "system", "content": "S"}, {"role": "developer", "content": "D"},
            {"role": "user", "content": "U"}, {"role": "system", "content": "late"}],
            "tools": [ {"type":  "function"} ]}"#,
    );
    assert_eq!(
        text,
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>developer\nD<|im_end|>\n\
         <|im_start|>tools\n[ {\"type\":  \"function\"} ]<|im_end|>\n\
         <|im_start|>user\nU<|im_end|>\n<|im_start|>system\nlate<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn empty_tools_and_null_content_add_nothing() {
    let text = canonical(
        r#"{"messages": [{"role": "user", "content": null}, {"role": "assistant"}], "tools": []}"#,
    );
    assert_eq!(
        text,
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn parts_are_joined_and_tool_calls_follow_as_sent() {
    let text = canonical(
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "aé"},
            {"type": "image_url", "image_url": {"url": "http://x/y.png"}}, {"type": "odd",  "x": 1}]},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1" }]},
            {"role": "user", "content": [{"type": "tool_use", "name": "f", "input": {"a":  1}},
             {"type": "tool_result", "content": [{"type": "text", "text": "r"}]}]}]}"#,
    );
    let media = format!("<|media:{:032x}|>", xxhash_rust::xxh3::xxh3_128(b"http://x/y.png"));
    let user =
        format!("<|im_start|>user\naé\n{media}\n{{\"type\": \"odd\",  \"x\": 1}}<|im_end|>\n");
    assert!(text.starts_with(&user), "{text}");
    assert!(text.contains("<|im_start|>assistant\n\n[{\"id\": \"1\" }]<|im_end|>\n"), "{text}");
    assert!(text.contains("f{\"a\":  1}\nr<|im_end|>"), "{text}");
}

#[test]
fn roots_that_differ_share_no_block() {
    let plain = Root { model: "m".to_owned(), ..Root::default() };
    let salted = Root { cache_salt: Some(String::new()), ..plain.clone() };
    let tuned = Root { lora_name: Some(String::new()), ..plain.clone() };
    let bytes = [b'x'; 200];
    let hashes = |root: &Root| block_hashes(root, &bytes, 64);
    assert_eq!(hashes(&plain).len(), 3);
    assert_ne!(hashes(&plain), hashes(&salted));
    assert_ne!(hashes(&salted), hashes(&tuned));
    let first = hashes(&plain)[0];
    assert_ne!(first, hashes(&plain)[1], "a hash stands for all text before it too");
}

#[test]
fn a_hit_never_covers_the_last_token() {
    let root = Arc::new(Root::default());
    let hit_max = |len: usize| {
        let answer = Answer::words(1, 1, true);
        Sequence::new(&root, &vec![b'x'; len], answer, 64).hit_blocks_max()
    };
    assert_eq!([hit_max(63), hit_max(64), hit_max(65), hit_max(128)], [0, 0, 1, 1]);
}
