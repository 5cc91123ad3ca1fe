//! Recorded vectors, templates, and requests that cannot be aligned.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::LazyLock,
};

use proptest::prelude::*;
use serde_json::{Value as Json, json, value::RawValue};

use super::*;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn subset() -> PathBuf {
    fixtures().join("tokenizer-qwen3-subset")
}

/// The subset of Qwen3's tokenizer, with the ids in between filled, which the fast tokenizer wants;
/// WARMROUTE_QWEN3_DIR may name a folder with the whole.
fn load_fast() -> AlignedModel {
    let options = Options::new(1);
    if let Some(whole) = std::env::var_os("WARMROUTE_QWEN3_DIR") {
        return AlignedModel::load(whole.as_ref(), &options).expect("the whole tokenizer");
    }
    let file = std::fs::read(subset().join("tokenizer.json")).expect("the subset");
    let mut tokenizer: Json = serde_json::from_slice(&file).expect("JSON");
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let used: HashSet<u64> = vocabulary.values().filter_map(Json::as_u64).collect();
    for id in (0..used.iter().copied().max().expect("ids")).filter(|id| !used.contains(id)) {
        // Of characters that bytes are never written as.
        vocabulary.insert(format!("\u{f0000}{id}"), id.into());
    }
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
    let config = "tokenizer_config.json";
    std::fs::copy(subset().join(config), dir.path().join(config)).expect("copied");
    AlignedModel::load(dir.path(), &options).expect("a tokenizer")
}

static FAST: LazyLock<AlignedModel> = LazyLock::new(load_fast);
static REFERENCE: LazyLock<AlignedModel> = LazyLock::new(|| {
    let whole = std::env::var_os("WARMROUTE_QWEN3_DIR").map(PathBuf::from);
    let options = Options { fast_tokenizer: false, ..Options::new(1) };
    AlignedModel::load(&whole.unwrap_or_else(subset), &options).expect("a tokenizer")
});

fn templated(template: &str) -> Template {
    Template::compile(template).expect("a template")
}

fn text(template: &Template, body: &Json) -> Result<String, Unaligned> {
    text_of(template, &body.to_string())
}

fn text_of(template: &Template, body: &str) -> Result<String, Unaligned> {
    chat::parse(body.as_bytes())?.render(template, &[], 1 << 20)
}

/// A recorded chat; requests as written, as the order of keys counts.
#[derive(serde::Deserialize)]
struct Chat {
    request: Box<RawValue>,
    rendered_text: String,
    token_ids: Vec<u32>,
}

#[derive(serde::Deserialize)]
struct Plain {
    text: String,
    token_ids: Vec<u32>,
}

fn user(content: &str) -> Json {
    json!({"messages": [{"role": "user", "content": content}]})
}

#[test]
fn equals_the_tokens_recorded_from_vllm() {
    let path = fixtures().join("vllm-0.32.0-vectors/chat_token_ids_qwen3.json");
    let file = std::fs::read(path).expect("vectors");
    let vectors: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&file).expect("JSON");
    for model in [&*FAST, &*REFERENCE] {
        let (mut chats, mut texts) = (0, 0);
        for (name, vector) in &vectors {
            if name == "_plain_texts" {
                let plain: Vec<Plain> = serde_json::from_str(vector.get()).expect("texts");
                texts += plain.len();
                for case in plain {
                    assert_eq!(model.tokenize_text(&case.text, false), Ok(case.token_ids));
                }
                continue;
            }
            let vector: Chat = serde_json::from_str(vector.get()).expect("a chat");
            let body = vector.request.get().as_bytes();
            assert_eq!(model.render_chat(body), Ok(vector.rendered_text), "{name}");
            assert_eq!(model.chat(body).as_ref(), Ok(&vector.token_ids), "{name}");
            assert_eq!(model.chat(body), Ok(vector.token_ids), "{name}, remembered");
            chats += 1;
        }
        assert_eq!((chats, texts), (9, 12));
    }
}

#[test]
fn the_fast_tokenizer_is_used_where_it_agrees() {
    assert_eq!((FAST.engine(), FAST.engine_note()), ("fastokens", None));
    assert_eq!(REFERENCE.engine(), "tokenizers");
    assert!(REFERENCE.engine_note().is_some());
    assert!(FAST.is_segmented() && REFERENCE.is_segmented());
    assert!(FAST.segment_cache_bytes() <= 64 << 20);
}

#[test]
fn the_reference_stands_in_where_the_fast_one_cannot() {
    let model = AlignedModel::load(&subset(), &Options::new(1)).expect("a tokenizer");
    assert_eq!(model.engine(), "tokenizers");
    assert!(model.engine_note().is_some_and(|note| note.contains("fastokens cannot read it")));
}

/// Request and response bodies of a recorded exchange.
fn exchange(name: &str) -> (Vec<u8>, Json) {
    let path = fixtures().join("vllm-0.32.0").join(name).with_extension("http.txt");
    let text = std::fs::read_to_string(path).expect("a recording");
    let (request, response) = text.split_once("\n### RESPONSE").expect("both");
    let body = |part: &str| part.split_once("\n\n").map(|(_, body)| body.to_owned());
    let request = body(&request.replace("\r\n", "\n")).expect("a body");
    let response = body(&response.replace("\r\n", "\n")).expect("a body");
    (request.into_bytes(), serde_json::from_str(response.trim()).expect("JSON"))
}

#[test]
fn counts_the_tokens_that_recorded_usage_counts() {
    let model = &*FAST;
    let (body, answer) = exchange("responses_nonstream");
    let ids = model.responses(&body).expect("ids");
    assert_eq!(json!(ids.len()), answer["usage"]["input_tokens"]);
    let (body, answer) = exchange("anthropic_messages");
    let ids = model.messages(&body).expect("ids");
    assert_eq!(json!(ids.len()), answer["usage"]["input_tokens"]);
    assert_eq!(ids, model.chat(user("Say hi").to_string().as_bytes()).expect("ids"));
    let (body, answer) = exchange("chat_return_token_ids");
    assert_eq!(json!(model.chat(&body).expect("ids")), answer["prompt_token_ids"]);
    let (body, answer) = exchange("completion_return_token_ids");
    let ids = model.completion(&body).expect("ids");
    assert_eq!(json!(ids[0]), answer["choices"][0]["prompt_token_ids"]);
}

#[test]
fn prompts_of_completions_have_four_forms() {
    let model = &*FAST;
    let ask = |prompt: Json| model.completion(json!({"prompt": prompt}).to_string().as_bytes());
    let one = model.tokenize_text("one two", true).expect("ids");
    assert_eq!(ask(json!("one two")), Ok(vec![one.clone()]));
    assert_eq!(ask(json!(["one two", "one two"])), Ok(vec![one.clone(), one]));
    assert_eq!(ask(json!([1, 2, 3])), Ok(vec![vec![1, 2, 3]]));
    assert_eq!(ask(json!([[1, 2], [3]])), Ok(vec![vec![1, 2], vec![3]]));
    for odd in [json!(null), json!([]), json!([1, "a"]), json!([-1]), json!({}), json!([[[]]])] {
        assert!(matches!(ask(odd), Err(Unaligned::Shape(_))));
    }
}

#[test]
fn tools_are_printed_in_the_order_of_the_engines_fields() {
    let model = templated("{{ tools[0] | tojson }}");
    let body = r#"{"messages": [{"role": "user", "content": "x"}], "tools": [{"function":
        {"parameters": {"z": 1.0, "a": [1e16, 0.00001, "<\u00e9>\n"]}, "unknown": 1, "name": "f",
        "strict": null}, "type": "function"}]}"#;
    let wanted = r#"{"type": "function", "function": {"name": "f", "description": null, "parameters": {"z": 1.0, "a": [1e+16, 1e-05, "<é>\n"]}}}"#;
    assert_eq!(text_of(&model, body).as_deref(), Ok(wanted));
}

#[test]
fn tool_calls_are_put_in_order_and_their_arguments_parsed() {
    let model =
        templated("{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}");
    let call = |arguments: &str| {
        json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{"type": "function",
            "id": "1", "function": {"name": "f", "arguments": arguments}}]}]})
    };
    let wanted = |arguments: &str| {
        format!(
            r#"[{{"id": "1", "function": {{"arguments": {arguments}, "name": "f"}}, "type": "function"}}]"#
        )
    };
    for (sent, seen) in [(r#"{"b":1,"a":[]}"#, r#"{"b": 1, "a": []}"#), ("", "{}"), ("[1]", "{}")] {
        assert_eq!(text(&model, &call(sent)), Ok(wanted(seen)));
    }
    // Python may read these otherwise than we.
    assert!(matches!(text(&model, &call("{\"a\": NaN}")), Err(Unaligned::Shape(_))));
    assert!(matches!(
        text(&model, &call("{\"a\": 36893488147419103232}")),
        Err(Unaligned::Template(_))
    ));
}

#[test]
fn prints_values_as_python_does() {
    let model = templated(
        "{{ none }}|{{ true }}|{{ 1.0 }}|{{ [1, 'a', none] }}|{{ {'k': false} }}|{{ missing }}|\
         {{ {'b': 1, 'a': [1, 2]} | tojson(indent=2) }}|{{ '\u{1c} x ' | trim }}|{{ ' x\u{1f}'.strip() }}",
    );
    let wanted = "None|True|1.0|[1, 'a', None]|{'k': False}||{\n  \"b\": 1,\n  \"a\": [\n    1,\n    2\n  ]\n}|x|x";
    assert_eq!(text(&model, &user("x")).as_deref(), Ok(wanted));
}

#[test]
fn a_template_that_loops_over_content_gets_parts() {
    let two =
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]});
    for (template, wanted) in [
        ("{{ messages[0].content }}", "a\nb"),
        (
            "{% for m in messages %}{% for c in m.content %}[{{ c.text }}]{% endfor %}{% endfor %}",
            "[a][b]",
        ),
        (
            "{% for m in messages[0:] %}{% for c in m['content'] | list %}[{{ c['text'] }}]{% endfor %}{% endfor %}",
            "[a][b]",
        ),
        (
            "{% set l = messages %}{% for m in l %}{% set content = m.content %}{% for c in content %}[{{ c.text }}]{% endfor %}{% endfor %}",
            "[a][b]",
        ),
        (
            "{% macro show(x) %}{% for c in x %}[{{ c.text }}]{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}",
            "[a][b]",
        ),
        (
            "{% macro show(x) %}{% for c in x %}{{ c }}{% endfor %}{% endmacro %}{% for m in messages %}{{ m.content }}{% endfor %}",
            "a\nb",
        ),
    ] {
        assert_eq!(text(&templated(template), &two).as_deref(), Ok(wanted), "{template}");
    }
}

#[test]
fn developers_become_one_system_message_for_templates_without_them() {
    let body = json!({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"},
        {"role": "developer", "content": "c"}]});
    let plain = templated("{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}");
    assert_eq!(text(&plain, &body).as_deref(), Ok("[system:a\n\nc][user:b]"));
    let knows = templated(
        "{% for m in messages %}[{{ 'D' if m.role == 'developer' else m.role }}:{{ m.content }}]{% endfor %}",
    );
    assert_eq!(text(&knows, &body).as_deref(), Ok("[system:a][user:b][D:c]"));
}

#[test]
fn template_arguments_are_merged_as_in_the_engine() {
    let model = templated(
        "{{ a is defined }} {{ b is defined }} {{ enable_thinking }} {{ reasoning_effort }}",
    );
    let mut body = user("x");
    body["chat_template_kwargs"] = json!({"a": null, "b": 1, "add_generation_prompt": false});
    body["reasoning_effort"] = json!("low");
    assert_eq!(text(&model, &body).as_deref(), Ok("False True True low"));
    body["chat_template_kwargs"]["enable_thinking"] = json!(false);
    assert_eq!(text(&model, &body).as_deref(), Ok("False True False low"));
    body["chat_template_kwargs"]["tokenize"] = json!(false);
    assert!(matches!(text(&model, &body), Err(Unaligned::Shape(_))));
}

#[test]
fn marks_of_training_templates_print_what_they_enclose() {
    let model = templated("a{% generation %}b{%- endgeneration -%} c {% if false %}x{% endif %}");
    assert_eq!(text(&model, &user("x")).as_deref(), Ok("abc "));
}

#[test]
fn what_is_not_followed_says_why() {
    let model = &*FAST;
    let with = |field: &str, value: Json| {
        let mut body = user("x");
        body[field] = value;
        model.render_chat(body.to_string().as_bytes()).map_err(|error| error.as_str())
    };
    assert_eq!(with("chat_template", json!("{{ 1 }}")), Err("shape"));
    assert_eq!(with("truncate_prompt_tokens", json!(3)), Err("shape"));
    assert_eq!(with("continue_final_message", json!(true)), Err("shape"));
    assert_eq!(with("kv_transfer_params", json!({"prompt_token_ids": [1]})), Err("shape"));
    assert_eq!(with("tools", json!([])), Err("shape"));
    assert_eq!(with("messages", json!([])), Err("shape"));
    let image =
        json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "b"}}]);
    assert_eq!(with("messages", json!([{"role": "user", "content": image}])), Err("media"));
    let refuses = templated("{{ raise_exception('roles must alternate') }}");
    let told = Unaligned::Template("roles must alternate".to_owned());
    assert_eq!(text(&refuses, &user("x")), Err(told));
    let long = vec![b' '; (4 << 20) + 1];
    assert_eq!(model.chat(&long), Err(Unaligned::TooLong));
}

#[test]
fn a_hostile_request_ends() {
    let looping =
        templated("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}");
    assert_eq!(text(&looping, &user("x")), Err(Unaligned::TooLong));
    let deep = templated("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
    assert!(matches!(text(&deep, &user("x")), Err(Unaligned::Template(_))));
    let model = &*FAST;
    let many: Vec<Json> = (0..20_000).map(|_| json!({"role": "user", "content": ""})).collect();
    let many = json!({"messages": many}).to_string();
    assert_eq!(model.render_chat(many.as_bytes()), Err(Unaligned::TooLong));
    for nested in ["[".repeat(1 << 20), "{\"messages\":".repeat(1 << 17)] {
        assert!(matches!(model.chat(nested.as_bytes()), Err(Unaligned::Shape(_))));
    }
    for text in
        [" ".repeat(1 << 20), "\n".repeat(1 << 20), "a".repeat(1 << 20), "<|im_st".repeat(1 << 17)]
    {
        assert!(model.tokenize_text(&text, false).is_ok());
    }
}

#[test]
fn a_folder_that_cannot_be_used_is_explained() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = |dir: &std::path::Path| {
        AlignedModel::load(dir, &Options::new(1)).expect_err("unusable").to_string()
    };
    assert!(error(dir.path()).contains("tokenizer.json: No such file"));
    std::fs::write(dir.path().join("tokenizer.json"), "{}").expect("written");
    assert!(error(dir.path()).contains("tokenizer.json"));
    std::fs::copy(subset().join("tokenizer.json"), dir.path().join("tokenizer.json"))
        .expect("copied");
    // No chat template: a base model.
    let bare = AlignedModel::load(dir.path(), &Options::new(1)).expect("a base model");
    assert_eq!(bare.chat(user("x").to_string().as_bytes()), Err(Unaligned::NoTemplate));
    assert!(bare.completion(br#"{"prompt": "x"}"#).is_ok());
    std::fs::write(dir.path().join("chat_template.jinja"), "{% if %}").expect("written");
    assert!(error(dir.path()).contains("chat template"));
}

/// Text that tokenizers part over: special tokens whole and cut, white space, marks, scripts.
fn pieces() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "<|im_start|>",
        "<|im_end|>",
        "<|im_st",
        "art|>",
        "<think>",
        "</think>",
        "<|endoftext|>",
        "<",
        "|",
        ">",
        "\n",
        "\n\n",
        " ",
        "   ",
        "\t",
        "\r\n",
        "user",
        "assistant",
        "Hello",
        ", world",
        "'s",
        "DON'T",
        "12345",
        "3.14",
        "_x",
        "é",
        "e\u{301}",
        "\u{301}",
        "Å",
        "A\u{30a}",
        "世界",
        "👩‍👩‍👧",
        "\u{200d}",
        "\u{a0}",
        "\u{2003}",
        "\u{feff}",
        "ﬁ",
        "{\"a\": 1}",
        "the quick brown fox jumps over",
    ]);
    let piece =
        prop_oneof![4 => words.prop_map(str::to_owned), 1 => "\\PC{0,8}", 1 => "[ \\n\\ta]{0,12}"];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn pieces_put_together_are_the_whole(texts in prop::collection::vec(pieces(), 1..12)) {
        let (ours, reference) = (&*FAST, &*REFERENCE);
        for text in texts.iter().chain(&texts) {
            let whole = reference.tokenize_whole(text, false);
            prop_assert_eq!(&ours.tokenize_text(text, false), &whole, "{:?}", text);
            prop_assert_eq!(&reference.tokenize_text(text, false), &whole, "{:?}", text);
            prop_assert_eq!(ours.tokenize_text(text, true), reference.tokenize_whole(text, true));
        }
    }
}

fn any_json() -> impl Strategy<Value = Json> {
    let key = prop::sample::select(vec![
        "messages",
        "role",
        "content",
        "type",
        "text",
        "tools",
        "function",
        "name",
        "arguments",
        "input",
        "tool_calls",
        "prompt",
        "system",
        "image_url",
        "chat_template_kwargs",
        "reasoning",
        "id",
    ]);
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        prop::sample::select(vec!["user", "assistant", "text", "function", "", "<|im_end|>", "{}"])
            .prop_map(Json::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|fields| {
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            }),
        ]
    })
}

#[test]
fn any_body_has_an_answer() {
    let model = &*FAST;
    let ask = |body: &[u8]| {
        let _ = model.chat(body);
        let _ = model.completion(body);
        let _ = model.responses(body);
        let _ = model.messages(body);
    };
    let config = ProptestConfig::with_cases(2_000);
    proptest!(config, |(value in any_json(), bytes in prop::collection::vec(any::<u8>(), 0..64))| {
        ask(value.to_string().as_bytes());
        let nested = json!({"messages": [{"role": "user", "content": value}], "input": [value]});
        ask(nested.to_string().as_bytes());
        let called = json!({"messages": [{"role": "assistant", "tool_calls": [value]}], "tools": [value]});
        ask(called.to_string().as_bytes());
        ask(&bytes);
    });
}
