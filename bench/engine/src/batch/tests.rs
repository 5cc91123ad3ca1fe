//! The scheduler: what a step does, and what waits.

use std::sync::Arc;

use super::*;
use crate::answer::Answer;
use crate::prompt::Root;

fn batch(options: &EngineOptions) -> Batch {
    Batch::new(options, Vec::new())
}

fn options() -> EngineOptions {
    EngineOptions { kv_blocks: 64, ..EngineOptions::default() }
}

/// A prompt of `tokens` tokens that begins like every other of the same `letter`.
fn sequence(letter: char, tokens: usize, answer_tokens: usize) -> Sequence {
    let root = Arc::new(Root::default());
    let prompt = letter.to_string().repeat(tokens * TOKEN_BYTES);
    Sequence::new(&root, prompt.as_bytes(), Answer::words(1, answer_tokens, true), 64)
}

/// Steps until idle; gives the tokens of each step.
fn drain(batch: &mut Batch) -> Vec<Vec<Token>> {
    let mut steps = Vec::new();
    while let Some(step) = batch.begin_step() {
        steps.push(batch.end_step(&step));
    }
    steps
}

#[test]
fn a_repeat_is_cached_up_to_its_last_token() {
    let mut batch = batch(&options());
    batch.submit(sequence('a', 64, 2));
    drain(&mut batch);
    batch.submit(sequence('a', 64, 2));
    let tokens = drain(&mut batch).concat();
    assert_eq!(tokens[0].cached_tokens, 48, "64 tokens are 4 blocks, the last is computed again");
    assert_eq!(batch.totals().prefilled_tokens, 64 + 16);
    assert_eq!((batch.totals().prompt_tokens, batch.totals().cached_tokens), (128, 48));
    assert_eq!(batch.gauges().used_blocks, 0);
}

#[test]
fn blocks_filled_by_decoding_are_cached_too() {
    let mut batch = batch(&options());
    let first = sequence('a', 20, 30);
    let next_turn = first.bytes.to_vec();
    let root = Arc::clone(&first.root);
    batch.submit(first);
    drain(&mut batch);
    batch.submit(Sequence::new(&root, &next_turn, Answer::words(1, 1, true), 64));
    // 50 tokens are 3 full blocks; the KV of the last token was never computed.
    assert_eq!(drain(&mut batch).concat()[0].cached_tokens, 48);
}

#[test]
fn a_long_prefill_is_chunked_and_decodes_go_first() {
    let mut batch = batch(&EngineOptions { max_batched_tokens: 100, ..options() });
    let short = batch.submit(sequence('a', 10, 9));
    let step = batch.begin_step().expect("work");
    batch.end_step(&step);
    let long = batch.submit(sequence('b', 250, 1));
    let mut chunks = Vec::new();
    let mut first_of_long = None;
    while let Some(step) = batch.begin_step() {
        assert!(step.prefill_tokens + step.decodes <= 100);
        chunks.push((step.decodes, step.prefill_tokens));
        let tokens = batch.end_step(&step);
        if tokens.iter().any(|token| token.id == long) {
            first_of_long = Some(chunks.len());
            assert!(tokens.iter().any(|token| token.id == short));
        }
    }
    assert_eq!(chunks[..4], [(1, 99), (1, 99), (1, 52), (1, 0)]);
    assert_eq!(first_of_long, Some(3));
}

#[test]
fn what_does_not_fit_waits_and_holds_up_those_behind_it() {
    let mut batch = batch(&EngineOptions { kv_blocks: 10, ..options() });
    batch.submit(sequence('a', 100, 4));
    batch.submit(sequence('b', 100, 4));
    batch.submit(sequence('c', 4, 4));
    let step = batch.begin_step().expect("work");
    assert_eq!((batch.gauges().running, batch.gauges().waiting), (1, 2));
    batch.end_step(&step);
    drain(&mut batch);
    assert_eq!(batch.totals().finished, 3);
    assert!(batch.totals().evicted_blocks > 0);
}

#[test]
fn max_num_seqs_bounds_the_batch() {
    let mut batch = batch(&EngineOptions { max_num_seqs: 2, ..options() });
    for letter in ['a', 'b', 'c'] {
        batch.submit(sequence(letter, 4, 2));
    }
    batch.begin_step();
    assert_eq!((batch.gauges().running, batch.gauges().waiting), (2, 1));
}

#[test]
fn cancelling_frees_blocks_even_in_the_middle_of_a_step() {
    let mut batch = batch(&options());
    let running = batch.submit(sequence('a', 100, 4));
    let waiting = batch.submit(sequence('b', 3000, 4));
    let step = batch.begin_step().expect("work");
    assert!(batch.cancel(running));
    assert!(batch.cancel(waiting));
    assert!(!batch.cancel(waiting), "only once");
    assert_eq!(batch.end_step(&step), []);
    let gauges = batch.gauges();
    assert_eq!((gauges.running, gauges.waiting, gauges.used_blocks), (0, 0, 0));
    assert_eq!(batch.totals().cancelled, 2);
    assert!(batch.begin_step().is_none());
}

#[test]
fn two_equal_prompts_at_once_are_both_computed_and_merged() {
    let mut batch = batch(&options());
    batch.submit(sequence('a', 64, 2));
    batch.submit(sequence('a', 64, 2));
    drain(&mut batch);
    assert_eq!(batch.totals().prefilled_tokens, 128);
    assert_eq!(batch.gauges().named_blocks, 4);
}
