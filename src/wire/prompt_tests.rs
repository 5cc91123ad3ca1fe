//! Bodies to prompts: what shares blocks, what must not, and what is not read at all.

use proptest::prelude::*;

use super::*;

fn hashing() -> Hashing {
    let block_bytes = NonZeroUsize::new(16).expect("not zero");
    Hashing { secret: Secret::from_seed(1), block_bytes, aliases: Arc::default(), prefixes: true }
}

fn read(form: PromptForm, body: &str) -> Facts {
    facts(form, body.as_bytes(), b"", &hashing())
}

/// The blocks of `text` under the root of a model "m" and nothing else.
fn blocks_of(text: &str) -> Vec<BlockHash> {
    let root = RootFields { model: "m", ..RootFields::default() }.root(&hashing().secret);
    let mut hasher = BlockHasher::new(root, hashing().block_bytes);
    hasher.push(text.as_bytes());
    hasher.finish()
}

fn shared(a: &Facts, b: &Facts) -> usize {
    a.prompts[0].iter().zip(&b.prompts[0]).take_while(|(a, b)| a == b).count()
}

#[test]
fn chat_is_written_as_documented() {
    let facts = read(
        PromptForm::Chat,
        r#"{"model":"m","stream":true,"user":"u","tools":[{"type":"function"}],
            "messages":[{"role":"system","content":"Be brief."},
                        {"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                        {"role":"user","content":"Hi\n"},
                        {"role":"assistant","content":null,"tool_calls":[{"id":"1"}]},
                        {"role":"tool","tool_call_id":"1","content":"42"}]}"#,
    );
    let text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>developer\na\nb<|im_end|>\n\
                <|im_start|>tools\n[{\"type\":\"function\"}]<|im_end|>\n\
                <|im_start|>user\nHi\n<|im_end|>\n\
                <|im_start|>assistant\n\n[{\"id\":\"1\"}]<|im_end|>\n\
                <|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(facts.prompts, [blocks_of(text)]);
    assert_eq!(facts.prompt_bytes, text.len() as u64);
    assert_eq!(facts.model.as_deref(), Some("m"));
    assert!(facts.stream && facts.readable && facts.user.is_some() && facts.prefix.is_some());
}

#[test]
fn the_three_chat_forms_of_one_conversation_share_their_blocks() {
    let chat = read(
        PromptForm::Chat,
        r#"{"model":"m","messages":[{"role":"system","content":"S"},{"role":"user","content":"U, somewhat longer"}]}"#,
    );
    let responses = read(
        PromptForm::Responses,
        r#"{"model":"m","instructions":"S","input":"U, somewhat longer"}"#,
    );
    let items = read(
        PromptForm::Responses,
        r#"{"model":"m","instructions":"S","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"U, somewhat longer"}]}]}"#,
    );
    let messages = read(
        PromptForm::Messages,
        r#"{"model":"m","system":[{"type":"text","text":"S","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":"U, somewhat longer"}]}"#,
    );
    for other in [&responses, &items, &messages] {
        assert_eq!(other.prompts, chat.prompts);
        assert_eq!(other.prefix, chat.prefix);
    }
}

#[test]
fn function_items_of_responses_are_tool_messages() {
    let facts = read(
        PromptForm::Responses,
        r#"{"model":"m","input":[{"type":"function_call","name":"f"},{"type":"function_call_output","call_id":"1","output":"42"}]}"#,
    );
    let text = "<|im_start|>tool\n{\"type\":\"function_call\",\"name\":\"f\"}<|im_end|>\n\
                <|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(facts.prompts, [blocks_of(text)]);
    assert_eq!(facts.prefix, None);
}

#[test]
fn the_next_turn_extends_the_last() {
    let first = r#"{"role":"user","content":"What is the capital of France?"}"#;
    let one = read(PromptForm::Chat, &format!(r#"{{"model":"m","messages":[{first}]}}"#));
    let two = read(
        PromptForm::Chat,
        &format!(
            r#"{{"model":"m","messages":[{first},{{"role":"assistant","content":"Paris."}},{{"role":"user","content":"Sure?"}}]}}"#
        ),
    );
    assert_eq!(shared(&one, &two), one.prompts[0].len());
    assert!(two.prompts[0].len() > one.prompts[0].len());
}

#[test]
fn what_the_engine_keys_on_separates_prompts() {
    let body = |extra: &str| {
        format!(
            r#"{{"model":"m"{extra},"messages":[{{"role":"user","content":"0123456789abcdef0123456789abcdef"}}]}}"#
        )
    };
    let plain = read(PromptForm::Chat, &body(""));
    for extra in [
        r#","cache_salt":"s""#,
        r#","lora_name":"l""#,
        r#","lora_path":"p""#,
        r#","lora":[{"id":0,"scale":1}]"#,
        r#","chat_template":"t""#,
        r#","chat_template_kwargs":{"enable_thinking":false}"#,
        r#","previous_response_id":"r""#,
    ] {
        assert_eq!(shared(&plain, &read(PromptForm::Chat, &body(extra))), 0, "{extra}");
    }
    for nothing in [r#","cache_salt":null"#, r#","cache_salt":"""#, r#","temperature":0.5"#] {
        assert_eq!(read(PromptForm::Chat, &body(nothing)).prompts, plain.prompts, "{nothing}");
    }
    let tenant = facts(PromptForm::Chat, body("").as_bytes(), b"t", &hashing());
    assert_eq!(shared(&plain, &tenant), 0);
    let model = read(PromptForm::Chat, &body("").replace("\"m\"", "\"n\""));
    assert_eq!(shared(&plain, &model), 0);
}

#[test]
fn media_is_part_of_the_prompt() {
    let body = |url: &str| {
        format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"{url}"}}}},{{"type":"text","text":"What is this, in a few words?"}}]}}]}}"#
        )
    };
    let (a, same, b) = (body("data:a"), body("data:a"), body("data:b"));
    let (a, same, b) =
        (read(PromptForm::Chat, &a), read(PromptForm::Chat, &same), read(PromptForm::Chat, &b));
    assert_eq!(a.prompts, same.prompts);
    assert!(shared(&a, &b) <= 1, "only what stands before the image");
}

#[test]
fn completions_take_strings_lists_and_token_ids() {
    let text = "0123456789abcdef0123456789abcdef";
    let one = read(PromptForm::Completion, &format!(r#"{{"model":"m","prompt":"{text}"}}"#));
    assert_eq!(one.prompts, [blocks_of(text)]);
    let list = read(PromptForm::Completion, &format!(r#"{{"model":"m","prompt":["{text}","x"]}}"#));
    assert_eq!(list.prompts, [blocks_of(text), Vec::new()]);
    assert_eq!((one.tokens, list.tokens), (None, None));
    let body = |ids: &[u32]| serde_json::json!({"model": "m", "prompt": ids}).to_string();
    let ids: Vec<u32> = (1..=20).collect();
    let ids = read(PromptForm::Completion, &body(&ids));
    assert_eq!((ids.prompts.len(), ids.prompts[0].len(), ids.prompt_bytes), (1, 1, 80));
    assert_eq!(ids.tokens, Some(20));
    let whole: Vec<u32> = (1..=16).collect();
    let lists = serde_json::json!({"model": "m", "prompt": [whole, whole]}).to_string();
    let lists = read(PromptForm::Completion, &lists);
    assert_eq!((&lists.prompts[0], lists.tokens), (&ids.prompts[0], Some(32)));
    assert_eq!(lists.prompts[1], ids.prompts[0]);
    // The engine's tokens are named alike, and no text is.
    let hashing = hashing();
    let root = hashing.token_root("m", b"", "");
    assert_eq!(hashing.token_blocks(root, &whole), ids.prompts[0]);
    let text: Vec<u8> = whole.iter().flat_map(|id| id.to_le_bytes()).collect();
    assert_ne!(ids.prompts[0], blocks_of(std::str::from_utf8(&text).expect("ASCII")));
    // An adapter is a model of its own name.
    let lora = read(
        PromptForm::Completion,
        &serde_json::json!({"model": "m", "lora_name": "a", "prompt": whole}).to_string(),
    );
    assert_eq!(lora.prompts[0], hashing.token_blocks(hashing.token_root("a", b"", ""), &whole));
}

#[test]
fn unknown_shapes_give_no_prompt_but_their_model() {
    for (form, body) in [
        (PromptForm::Chat, r#"{"model":"m"}"#),
        (PromptForm::Chat, r#"{"model":"m","messages":"hello"}"#),
        (PromptForm::Chat, r#"{"model":"m","messages":[1,2]}"#),
        (PromptForm::Completion, r#"{"model":"m","prompt":{"a":1}}"#),
        (PromptForm::Completion, r#"{"model":"m","prompt":[12,"mixed"]}"#),
        (PromptForm::Responses, r#"{"model":"m","input":7}"#),
    ] {
        let facts = read(form, body);
        assert!(!facts.readable && facts.prompts.is_empty(), "{body}");
        assert_eq!(facts.model.as_deref(), Some("m"), "{body}");
    }
    for body in ["", "hello", "{\"model\":", "[]", "\u{fffd}"] {
        let facts = read(PromptForm::Chat, body);
        assert!(!facts.readable && facts.model.is_none(), "{body}");
    }
}

#[test]
fn what_is_named_by_tokens_is_not_hashed_as_text() {
    let body = r#"{"model":"m","user":"u","stream":true,"cache_salt":"s","lora_name":"l",
        "messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"0123456789abcdef"}]}"#;
    let named = read(PromptForm::Chat, body);
    let mut asked = None;
    let facts = facts_if(PromptForm::Chat, body.as_bytes(), b"", &hashing(), |model| {
        asked = Some(model.to_owned());
        false
    });
    assert_eq!(asked.as_deref(), Some("m"));
    assert!(!named.prompts.is_empty() && facts.prompts.is_empty() && !facts.readable);
    assert_eq!((&facts.model, facts.stream, facts.user), (&named.model, true, named.user));
    assert_eq!(
        (facts.prefix, &facts.cache_salt, &facts.lora),
        (named.prefix, &named.cache_salt, &named.lora)
    );
    assert!(facts.prefix.is_some());
}

#[test]
fn what_is_said_twice_is_not_believed() {
    let message = r#"{"role":"user","content":"0123456789abcdef"}"#;
    let body = |more: &str| format!(r#"{{"model":"m","messages":[{message}]{more}}}"#);
    assert!(read(PromptForm::Chat, &body("")).readable);
    let twice = read(PromptForm::Chat, &body(&format!(r#","messages":[{message}]"#)));
    assert_eq!((twice.readable, twice.model.as_deref()), (false, Some("m")));
    let twice = read(PromptForm::Chat, &body(r#","model":"n""#));
    assert_eq!((twice.readable, twice.model), (false, None));
}

#[test]
fn an_escaped_key_is_the_key() {
    let plain = r#"{"model":"m","messages":[{"role":"user","content":"0123456789abcdef"}]}"#;
    let escaped = plain.replace("messages", r"mess\u0061ges").replace("role", r"r\u006fle");
    assert_eq!(read(PromptForm::Chat, &escaped).prompts, read(PromptForm::Chat, plain).prompts);
}

#[test]
fn a_reporter_without_optional_fields_has_the_same_root() {
    let text = "0123456789abcdef";
    let facts = read(PromptForm::Completion, &format!(r#"{{"model":"m","prompt":"{text}"}}"#));
    assert_eq!(facts.prompts[0], blocks_of(text));
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for form in [PromptForm::Chat, PromptForm::Completion, PromptForm::Responses, PromptForm::Messages] {
            let _ = facts(form, &bytes, b"", &hashing());
        }
    }

    #[test]
    fn any_content_gives_the_same_text_as_string_and_as_part(content in ".{0,120}") {
        let quoted = serde_json::to_string(&content).expect("a string is JSON");
        let plain = read(PromptForm::Chat, &format!(r#"{{"model":"m","messages":[{{"role":"user","content":{quoted}}}]}}"#));
        let part = read(PromptForm::Chat, &format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"text","text":{quoted}}}]}}]}}"#));
        prop_assert_eq!(&plain.prompts, &part.prompts);
        let text = format!("<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n");
        prop_assert_eq!(&plain.prompts[0], &blocks_of(&text));
    }
}
