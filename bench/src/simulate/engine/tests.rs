//! One engine by itself: nothing is lost, and a small case by hand.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::simulate::cache::CacheEvent;
use crate::simulate::workload::{Line, Workload};

const HARDWARE: Hardware = Hardware {
    request_s: 0.01,
    token_s: 1e-3,
    pair_s: 1e-6,
    step_s: 0.01,
    read_s: 1e-5,
    kv_tokens: 1000,
};

/// When things happened to a request.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    looked_up: Option<(usize, u64)>,
    first: Option<f64>,
    finished: Option<f64>,
}

/// Sends a workload through one engine; asserts what holds at every step.
fn play(workload: &Workload, discipline: Discipline, blocks: usize) -> (Vec<Seen>, BlockCache) {
    let requests = &workload.requests;
    let mut cache = BlockCache::new(blocks, workload.blocks);
    let mut engine = Engine::new(HARDWARE, discipline, 1.0);
    let mut seen = vec![Seen::default(); requests.len()];
    let (mut signs, mut held, mut looked_up) = (Vec::new(), HashSet::new(), 0);
    let (mut now, mut next, mut steps) = (0.0_f64, 0, 0);
    loop {
        while next < requests.len() && requests[next].at <= now {
            engine.push(next);
            next += 1;
        }
        let seconds = engine.begin(requests, &mut cache, now, &mut signs);
        cache.check();
        match seconds {
            Some(seconds) => {
                assert!(seconds > 0.0 && seconds.is_finite());
                now += seconds;
                engine.end(requests, &mut cache, &mut signs);
            }
            None if next < requests.len() => now = requests[next].at,
            None => break,
        }
        cache.check();
        for sign in signs.drain(..) {
            match sign {
                Sign::Prefilled(at, cached) => {
                    assert!(cached <= requests[at].tokens);
                    assert!(seen[at].looked_up.replace((looked_up, cached)).is_none(), "twice");
                    looked_up += 1;
                }
                Sign::FirstToken(at, after) => {
                    assert!(seen[at].first.replace(now + after).is_none(), "twice");
                }
                Sign::Finished(at, after) => {
                    assert!(seen[at].finished.replace(now + after).is_none(), "twice");
                }
            }
        }
        for event in cache.events.drain(..) {
            match event {
                CacheEvent::Stored(block) => assert!(held.insert(block)),
                CacheEvent::Removed(block) => assert!(held.remove(&block)),
            }
        }
        steps += 1;
        assert!(steps < 200_000, "it does not get on");
    }
    assert_eq!((engine.waiting(), held.len()), (0, cache.blocks().count()));
    (seen, cache)
}

/// Conversations over a tree of blocks of ten tokens.
fn workloads() -> impl Strategy<Value = Workload> {
    let request = (1_u64..120, 0_u64..4, 1_u32..60, 0.0_f64..0.4);
    prop::collection::vec(request, 1..40).prop_map(|requests| {
        let mut at = 0.0;
        let mut lines = Vec::new();
        for (tokens, family, output, gap) in requests {
            at += gap;
            let blocks = (0..tokens.div_ceil(10)).map(|depth| family * 100 + depth).collect();
            let session = family.to_string();
            lines.push(Line { t: at, session, tokens, output, block_tokens: 10, blocks });
        }
        Workload::try_new("drawn", &lines).unwrap()
    })
}

fn disciplines() -> impl Strategy<Value = Discipline> {
    prop_oneof![
        Just(Discipline::Fifo),
        (1_u32..200, 1_usize..9)
            .prop_map(|(budget, sequences)| Discipline::Batching { budget, sequences }),
    ]
}

proptest! {
    /// Whatever the memory, down to a single block under prompts of twelve.
    #[test]
    fn every_request_is_answered_once_and_all_memory_comes_back(
        workload in workloads(), discipline in disciplines(), blocks in 1_usize..60,
    ) {
        let (seen, cache) = play(&workload, discipline, blocks);
        prop_assert!(cache.is_at_rest());
        let mut last = 0.0;
        for (at, (seen, request)) in seen.iter().zip(&workload.requests).enumerate() {
            let (first, finished) = (seen.first.unwrap(), seen.finished.unwrap());
            prop_assert!(request.at < first && first <= finished);
            // Taken up in the order of arrival.
            prop_assert_eq!(seen.looked_up.unwrap().0, at);
            if discipline == Discipline::Fifo {
                prop_assert!(last < first);
                last = first;
                let decode = HARDWARE.step_s * f64::from(request.output - 1);
                prop_assert!((finished - first - decode).abs() < 1e-9);
            }
        }
    }

    /// With room for all, what is cached is what a set would say, and every token costs its time.
    #[test]
    fn fifo_computes_what_is_not_held_and_no_more(workload in workloads()) {
        let (seen, cache) = play(&workload, Discipline::Fifo, 10_000);
        let mut known = HashSet::new();
        let (mut free, mut total) = (0.0_f64, 0);
        for (seen, request) in seen.iter().zip(&workload.requests) {
            let held = request.blocks.iter().take_while(|block| known.contains(*block)).count();
            let held = request.tokens_of(held);
            prop_assert_eq!(seen.looked_up.unwrap().1, held);
            free = free.max(request.at) + HARDWARE.prefill_s(request.tokens - held, request.tokens);
            prop_assert!((seen.first.unwrap() - free - HARDWARE.step_s).abs() < 1e-9);
            known.extend(request.blocks.iter().copied());
            total += request.tokens - held;
        }
        prop_assert!(total > 0);
        prop_assert_eq!(cache.blocks().count(), workload.blocks);
    }
}

fn lines(of: &[(f64, u64, u32, &[u64])]) -> Workload {
    let line = |(at, &(t, tokens, output, blocks)): (usize, &(f64, u64, u32, &[u64]))| Line {
        t,
        session: at.to_string(),
        tokens,
        output,
        block_tokens: 10,
        blocks: blocks.to_vec(),
    };
    let lines: Vec<Line> = of.iter().enumerate().map(line).collect();
    Workload::try_new("by hand", &lines).unwrap()
}

/// 30 tokens in steps of 20, then decodes beside the chunks of another prompt.
#[test]
fn batching_is_what_can_be_worked_out_by_hand() {
    let workload = lines(&[(0.0, 30, 3, &[0, 1, 2]), (0.005, 25, 1, &[0, 1, 3])]);
    let discipline = Discipline::Batching { budget: 20, sequences: 8 };
    let (seen, _) = play(&workload, discipline, 100);
    // Step 1: 20 tokens of the first prompt, each attending to 10 others in the mean.
    let first = 0.01 + 20.0 * (1e-3 + 1e-6 * 10.0);
    // Step 2: its last 10, and the first 5 that the second lacks: two blocks of it are there now,
    // as the first step ended before the second one was taken up.
    let second = first + 0.01 + 10.0 * (1e-3 + 1e-6 * 25.0) + 5.0 * (1e-3 + 1e-6 * 22.5);
    assert!((seen[0].first.unwrap() - second).abs() < 1e-12);
    assert_eq!(seen[1].looked_up, Some((1, 20)));
    assert!((seen[1].first.unwrap() - second).abs() < 1e-12);
    assert_eq!(seen[1].finished, seen[1].first);
    // Steps 3 and 4 decode, reading 31 and 32 tokens.
    let last = second + 2.0 * 0.01 + 1e-5 * (31.0 + 32.0);
    assert!((seen[0].finished.unwrap() - last).abs() < 1e-12);
}

#[test]
fn what_outgrows_the_memory_is_sent_back_and_finishes_later() {
    // Two prompts of three blocks fill six; each decodes into two more.
    let workload = lines(&[(0.0, 30, 15, &[0, 1, 2]), (0.0, 30, 15, &[10, 11, 12])]);
    let discipline = Discipline::Batching { budget: 100, sequences: 8 };
    let (seen, _) = play(&workload, discipline, 7);
    let alone = play(&workload, discipline, 100).0;
    assert!((seen[0].finished.unwrap() - alone[0].finished.unwrap()).abs() < 1e-2);
    assert!(seen[1].finished > seen[0].finished, "the last one was sent back");
    assert_eq!(seen[1].first, alone[1].first, "after its first token");
}

#[test]
fn an_answer_is_found_by_the_next_turn() {
    let mut workload = lines(&[(0.0, 25, 10, &[0, 1, 2]), (9.0, 60, 1, &[0, 1, 3, 4, 5, 6])]);
    // 25 + 10 tokens fill the third block of what comes next, not the fourth.
    workload.requests[0].generated = vec![workload.requests[1].blocks[2]];
    let discipline = Discipline::Batching { budget: 100, sequences: 8 };
    let (seen, _) = play(&workload, discipline, 100);
    assert_eq!(seen[1].looked_up, Some((1, 30)));
    assert_eq!(play(&workload, Discipline::Fifo, 100).0[1].looked_up, Some((1, 20)));
}
