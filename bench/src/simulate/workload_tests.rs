//! Making traces ready.

use super::super::hardware::LLAMA_8B;
use super::*;

fn line(t: f64, session: &str, tokens: u64, output: u32, blocks: &[u64]) -> Line {
    Line { t, session: session.into(), tokens, output, block_tokens: 10, blocks: blocks.to_vec() }
}

#[test]
fn equal_blocks_have_equal_names_and_parents() {
    let lines = [line(0.0, "a", 25, 1, &[70, 71, 72]), line(1.0, "b", 30, 1, &[70, 71, 75])];
    let workload = Workload::try_new("t", &lines).unwrap();
    let [a, b] = &workload.requests[..] else { panic!("two requests") };
    assert_eq!((&a.blocks[..], &b.blocks[..]), (&[0, 1, 2][..], &[0, 1, 3][..]));
    assert_eq!(a.hashes[..2], b.hashes[..2]);
    assert_ne!(a.hashes[2], b.hashes[2]);
    assert_eq!(workload.parents, [None, Some(0), Some(1), Some(1)]);
    assert_eq!((a.tokens_of(2), a.tokens_of(3), a.blocks_for(31)), (20, 25, 4));
}

#[test]
fn what_is_not_chained_is_refused_with_its_request() {
    for (blocks, tokens) in
        [(&[5, 1][..], 20), (&[0, 1, 0], 30), (&[1], 10), (&[0, 1], 60), (&[], 0)]
    {
        let lines = [line(0.0, "a", 20, 1, &[0, 1]), line(1.0, "b", tokens, 1, blocks)];
        let error = Workload::try_new("t", &lines).unwrap_err();
        assert!(error.to_string().starts_with("t: request 2 has"), "{error}");
    }
    // Estimated from bytes, a token over the edge.
    let fits = Workload::try_new("t", &[line(0.0, "a", 21, 1, &[0, 1])]).unwrap();
    assert_eq!(fits.requests[0].tokens, 20);
}

#[test]
fn an_answer_leaves_the_blocks_it_fills() {
    let lines = [
        line(0.0, "a", 25, 20, &[0, 1, 2]),
        line(1.0, "b", 25, 20, &[0, 1, 9]),
        // 25 + 20 tokens fill the third and the fourth block, the fifth is the user's.
        line(5.0, "a", 60, 1, &[0, 1, 3, 4, 5, 6]),
        // Not a continuation.
        line(6.0, "b", 30, 1, &[20, 21, 22]),
    ];
    let workload = Workload::try_new("t", &lines).unwrap();
    let generated = |at: usize| {
        let names = |number: &u32| workload.parents[*number as usize];
        workload.requests[at].generated.iter().map(names).collect::<Vec<_>>()
    };
    let third = workload.requests[2].blocks[2];
    assert_eq!(generated(0), [Some(1), Some(third)]);
    assert_eq!((generated(1), generated(2)), (vec![], vec![]));
}

#[test]
fn a_redraw_moves_conversations_as_a_whole() {
    let lines: Vec<Line> = (0..40)
        .map(|at| line(f64::from(at), &(at % 10).to_string(), 10, 1, &[u64::from(at as u32)]))
        .collect();
    let workload = Workload::try_new("t", &lines).unwrap();
    assert_eq!(workload.tick_s, None);
    let redrawn = workload.redrawn(None, 3);
    assert_eq!(redrawn.requests.len(), 40);
    assert!(redrawn.requests.windows(2).all(|pair| pair[0].at <= pair[1].at));
    let times = |workload: &Workload, session| -> Vec<f64> {
        let own = workload.requests.iter().filter(|request| request.session == session);
        own.map(|request| request.at).collect()
    };
    for session in 0..10 {
        let (before, after) = (times(&workload, session), times(&redrawn, session));
        assert!((0.0..=9.0).contains(&after[0]), "starts lie where starts lay");
        for (before, after) in before.windows(2).zip(after.windows(2)) {
            assert!((before[1] - before[0] - after[1] + after[0]).abs() < 1e-9);
        }
    }
    let at = |seed| workload.redrawn(None, seed).requests[0].at.to_bits();
    assert!(at(1) == at(1) && at(1) != at(2));
}

#[test]
fn ticks_are_spread_and_real_arrivals_stay() {
    let lines: Vec<Line> = (0..30)
        .map(|at| line(f64::from(at / 10 * 3), &at.to_string(), 10, 1, &[u64::from(at as u32)]))
        .collect();
    let workload = Workload::try_new("t", &lines).unwrap();
    assert_eq!(workload.tick_s, Some(3.0));
    let spread = workload.redrawn(workload.tick_s, 1);
    for request in &spread.requests {
        let stamp = f64::from(request.session as u32 / 10 * 3);
        assert!((stamp..stamp + 3.0).contains(&request.at));
    }
}

#[test]
fn load_is_the_share_of_time_that_cold_workers_would_be_busy() {
    let lines: Vec<Line> =
        (0..50).map(|at| line(f64::from(at), "a", 10, 1, &[u64::from(at as u32)])).collect();
    let mut workload = Workload::try_new("t", &lines).unwrap();
    workload.scale_to(&LLAMA_8B, 4.0, 0.5);
    let work = 50.0 * LLAMA_8B.prefill_s(10, 10);
    let span = workload.requests[49].at - workload.requests[0].at;
    assert!((work / (4.0 * span) - 0.5).abs() < 1e-9);
    workload.silence(0.5, 1);
    let silent = workload.requests.iter().filter(|request| request.silent).count();
    // Ten and forty are five standard deviations of 3.5 away.
    assert!((10..=40).contains(&silent));
    workload.silence(0.0, 1);
    assert!(!workload.requests.iter().any(|request| request.silent));
}
