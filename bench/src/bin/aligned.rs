//! What the token ids of a prompt cost: rendering, both tokenizers, and remembered text.
//! `--tokenizer DIR` names a folder with tokenizer.json and its like.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::{hint::black_box, path::PathBuf, time::Instant};

use warmroute::aligned::{AlignedModel, Options};

/// Sizes of a conversation's text before its newest turn, KiB.
const SIZES: [usize; 3] = [6, 64, 256];
/// What the newest turn adds, bytes.
const TURN_BYTES: usize = 600;
/// Conversations measured a size.
const ROUNDS: usize = 12;

const WORDS: [&str; 40] = [
    "the",
    "worker",
    "that",
    "holds",
    "longest",
    "prefix",
    "takes",
    "request",
    "and",
    "answers",
    "when",
    "it",
    "is",
    "busy",
    "another",
    "one",
    "steps",
    "in",
    "for",
    "2,048",
    "tokens",
    "of",
    "cache",
    "which",
    "must",
    "be",
    "computed",
    "again;",
    "this",
    "costs",
    "time,",
    "memory",
    "(and",
    "patience)",
    "fn",
    "main()",
    "{",
    "return",
    "x[i];",
    "}\n",
];

type Any = Box<dyn std::error::Error>;

/// Text that differs from seed to seed and looks like prose and code.
struct Prose(u64);

impl Prose {
    fn text(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 16);
        while text.len() < bytes {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            if self.0.is_multiple_of(11) {
                text.push_str(&(self.0 >> 32).to_string());
            }
            text.push_str(WORDS[(self.0 >> 20) as usize % WORDS.len()]);
            text.push(' ');
        }
        text
    }
}

/// A chat of about `bytes`, as JSON, and the same with one more turn.
fn chats(bytes: usize, seed: u64) -> (String, String) {
    let mut prose = Prose(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut messages = vec![message("system", &prose.text(1_500))];
    let mut sum = 1_500;
    while sum < bytes {
        messages.push(message("user", &prose.text(TURN_BYTES)));
        messages.push(message("assistant", &prose.text(TURN_BYTES * 2)));
        sum += TURN_BYTES * 3;
    }
    let before = body(&messages);
    messages.push(message("user", &prose.text(TURN_BYTES)));
    (before, body(&messages))
}

fn message(role: &str, text: &str) -> String {
    let text = text.replace('\n', "\\n");
    format!("{{\"role\": \"{role}\", \"content\": \"{text}\"}}")
}

fn body(messages: &[String]) -> String {
    format!("{{\"model\": \"m\", \"messages\": [{}]}}", messages.join(", "))
}

/// Median microseconds of what `run` measures of each round.
fn median(mut run: impl FnMut(u64) -> Result<f64, Any>) -> Result<f64, Any> {
    let mut all = (0..ROUNDS as u64).map(&mut run).collect::<Result<Vec<_>, _>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

fn micros<T, E: Into<Any>>(run: impl FnOnce() -> Result<T, E>) -> Result<f64, Any> {
    let start = Instant::now();
    black_box(run().map_err(Into::into)?);
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

fn main() -> Result<(), Any> {
    let mut args = std::env::args().skip(1);
    let folder = match (args.next().as_deref(), args.next()) {
        (Some("--tokenizer"), Some(folder)) => PathBuf::from(folder),
        _ => return Err("usage: bench-aligned --tokenizer DIR".into()),
    };
    let start = Instant::now();
    let fast = AlignedModel::load(&folder, &Options::new(1))?;
    println!(
        "loaded in {:.2} s: {} {:?}",
        start.elapsed().as_secs_f64(),
        fast.engine(),
        fast.engine_note()
    );
    let reference =
        AlignedModel::load(&folder, &Options { fast_tokenizer: false, ..Options::new(1) })?;
    println!("median microseconds a prompt, one thread, {ROUNDS} conversations a size");
    println!(
        "| prompt | tokens | parse + render | tokenizers | fastokens | newest turn only | all |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for kib in SIZES {
        let size = kib << 10;
        let seed = |round: u64| round + (kib as u64) * 1_000;
        let (_, sample) = chats(size, seed(0));
        let tokens = fast.chat(sample.as_bytes())?.len();
        let render = median(|round| {
            let (_, chat) = chats(size, seed(round));
            micros(|| fast.render_chat(chat.as_bytes()))
        })?;
        let whole = |model: &AlignedModel, apart: u64| {
            median(|round| {
                let text = model.render_chat(chats(size, seed(round) + apart).1.as_bytes())?;
                micros(|| model.tokenize_whole(&text, false))
            })
        };
        let (slow, quick) = (whole(&reference, 100)?, whole(&fast, 200)?);
        let warm = median(|round| {
            let (before, after) = chats(size, seed(round) + 300);
            fast.chat(before.as_bytes())?;
            let text = fast.render_chat(after.as_bytes())?;
            micros(|| fast.tokenize_text(&text, false))
        })?;
        let all = median(|round| {
            let (before, after) = chats(size, seed(round) + 400);
            fast.chat(before.as_bytes())?;
            micros(|| fast.chat(after.as_bytes()))
        })?;
        println!(
            "| {kib} KiB | {tokens} | {render:.0} | {slow:.0} | {quick:.0} | {warm:.0} | {all:.0} |"
        );
    }
    println!("remembered text: {} KiB", fast.segment_cache_bytes() >> 10);
    Ok(())
}
