//! Each policy on fleets where what it should do is plain.

use rand::SeedableRng;
use warmroute::routing::{Forecast, Load};

use super::*;
use crate::simulate::workload::{Line, Workload};

fn workload() -> Workload {
    let line = |session: u64, blocks: Vec<u64>| Line {
        t: 0.0,
        session: session.to_string(),
        tokens: blocks.len() as u64 * 100,
        output: 10,
        block_tokens: 100,
        blocks,
    };
    // Twenty conversations behind one common block.
    let lines = (0..20).map(|s| line(s, vec![0, s * 10 + 1, s * 10 + 2, s * 10 + 3]));
    Workload::try_new("t", &lines.collect::<Vec<_>>()).unwrap()
}

/// A worker that holds `matched` blocks, with `requests` of `queued_tokens` under way.
fn worker(matched: usize, requests: u32, queued_tokens: u64) -> Seen {
    Seen {
        matched,
        hit_tokens: matched as u64 * 100,
        load: Load { requests, queued_tokens, decodes: 0 },
        forecast: Forecast { backlog_s: queued_tokens as f64 * 1.25e-4, ..Forecast::default() },
        prompt_tokens: queued_tokens,
        waiting_prompt_tokens: queued_tokens,
        true_answer_s: queued_tokens as f64,
        held_blocks: matched,
        polled_waiting: requests as usize,
        polled_used_share: 0.0,
    }
}

/// What a fresh router of a name picks, by many seeds: each worker that it picks ever.
fn picks(name: &str, index: usize, workers: &[Seen]) -> Vec<usize> {
    let workload = workload();
    let mut picked: Vec<usize> = (0..64)
        .map(|seed| {
            let mut router = name.parse::<Named>().unwrap().router();
            let request = &workload.requests[index];
            let sight = Sight { index, request, now: 0.0, workers };
            router.pick(&sight, &mut SmallRng::seed_from_u64(seed))
        })
        .collect();
    picked.sort_unstable();
    picked.dedup();
    picked
}

#[test]
fn every_name_is_that_of_one_policy() {
    let mut names: Vec<_> = Named::all().map(Named::as_str).collect();
    for name in &names {
        assert_eq!(name.parse::<Named>().unwrap().as_str(), *name);
    }
    assert_eq!(Named::SHARED.as_str(), "shared");
    assert_eq!(Named::BACKLOG.as_str(), "backlog");
    assert_eq!("least".parse(), Ok(Named::LEAST));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Named::all().count());
    assert!("best".parse::<Named>().unwrap_err().to_string().contains("prefix-aware"));
}

#[test]
fn every_policy_picks_a_worker_of_any_fleet_and_ends_clean() {
    let workload = workload();
    for policy in Named::all() {
        for count in [1, 2, 3, 64] {
            let workers = vec![worker(0, 3, 500); count];
            let mut rng = SmallRng::seed_from_u64(1);
            let mut router = policy.router();
            for (index, request) in workload.requests.iter().enumerate() {
                let sight = Sight { index, request, now: index as f64, workers: &workers };
                let worker = router.pick(&sight, &mut rng);
                assert!(worker < count, "{}", policy.as_str());
                if index % 2 == 0 {
                    router.first_token(index, worker);
                }
                router.finished(&End { index, request, worker, decode_s: 1.0 });
            }
        }
    }
}

#[test]
fn where_one_is_warm_and_idle_all_that_know_of_prefixes_go_there() {
    let fleet = [worker(1, 0, 0), worker(1, 0, 0), worker(4, 0, 0), worker(1, 0, 0)];
    for name in [
        "prefix-aware",
        "sticky-least-loaded",
        "weighted",
        "cost",
        "prefix",
        "prefix-valve",
        "lmetric",
        "dynamo",
        "smg",
        "sglang",
        "llm-d",
        "preble",
        "mooncake",
    ] {
        assert_eq!(picks(name, 5, &fleet), [2], "{name}");
    }
    for name in ["least-loaded", "backlog", "random"] {
        assert_eq!(picks(name, 5, &fleet), [0, 1, 2, 3], "{name}");
    }
}

#[test]
fn a_queue_turns_those_away_who_look_at_it() {
    // Ten seconds of prefill at the warm one; 48 requests more than at the others.
    let fleet = [worker(0, 0, 0), worker(3, 48, 80_000), worker(0, 0, 0)];
    for name in ["prefix-aware", "cost", "prefix-valve", "lmetric", "dynamo", "backlog", "mooncake"]
    {
        if name == "mooncake" {
            continue;
        }
        assert_eq!(picks(name, 5, &fleet), [0, 2], "{name}");
    }
    // Within their thresholds, or without any.
    for name in ["prefix", "smg", "preble"] {
        assert_eq!(picks(name, 5, &fleet), [1], "{name}");
    }
    // 48 is over 32, and the least loaded is the first of the list.
    assert_eq!(picks("sglang", 5, &fleet), [0]);
    let busier = [worker(0, 0, 0), worker(3, 65, 80_000), worker(0, 0, 0)];
    assert_eq!(picks("smg", 5, &busier), [0]);
}

#[test]
fn a_normalised_queue_makes_one_request_all_or_nothing() {
    // Three of four blocks are worth 3 * 0.75; one waiting request more than elsewhere takes 2.
    let half = [worker(2, 1, 100), worker(0, 0, 0)];
    assert_eq!(picks("llm-d", 5, &half), [1]);
    let most = [worker(3, 1, 100), worker(0, 0, 0)];
    assert_eq!(picks("llm-d", 5, &most), [0]);
    // A queue is 1 or 1000 long: it is the longest.
    let long = [worker(3, 1000, 100_000), worker(0, 0, 0)];
    assert_eq!(picks("llm-d", 5, &long), [0]);
}

#[test]
fn lmetric_is_a_product() {
    // (100 + 400) * 2 against (0 + 100) * 10, and 400 * 3.
    let fleet = [worker(0, 1, 100), worker(3, 9, 0), worker(0, 2, 0)];
    assert_eq!(picks("lmetric", 5, &fleet), [0, 1]);
}

#[test]
fn dynamo_counts_blocks_to_prefill_and_blocks_in_use() {
    let workload = workload();
    let mut router = Named::all().find(|named| named.as_str() == "dynamo").unwrap().router();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut pick = |index: usize, workers: &[Seen]| {
        let request = &workload.requests[index];
        router.pick(&Sight { index, request, now: 0.0, workers }, &mut rng)
    };
    // 4 blocks each to prefill; a block of queue decides.
    assert_eq!(pick(0, &[worker(0, 1, 100), worker(0, 0, 0)]), 1);
    // Worker 1 has 4 blocks in use: 3 + 7 there, 4 + 4 elsewhere.
    assert_eq!(pick(1, &[worker(0, 0, 0), worker(1, 0, 0)]), 0);
    // Its own blocks count once: 0 + 4 there against 4 + 4 + 3.
    assert_eq!(pick(0, &[worker(0, 0, 0), worker(4, 0, 0)]), 1);
}

#[test]
fn hashes_stay_with_their_key_until_the_bound() {
    let idle = [worker(0, 0, 0); 4];
    let home = picks("chwbl", 5, &idle);
    assert_eq!(home.len(), 1);
    // The first block is common to all.
    assert_eq!(picks("chwbl", 6, &idle), home);
    let mut busy = [worker(0, 4, 0); 4];
    busy[home[0]].load.requests = 5;
    // 6 requests are over 1.25 * 18 / 4 = 5.6.
    assert_ne!(picks("chwbl", 5, &busy), home);
    busy[home[0]].load.requests = 4;
    assert_eq!(picks("chwbl", 5, &busy), home);
    assert_eq!(picks("session-hash", 5, &idle).len(), 1);
}

#[test]
fn dualmap_spreads_what_all_prompts_begin_with() {
    let workload = workload();
    let idle = [worker(1, 0, 0); 8];
    let mut router = Named::all().find(|named| named.as_str() == "dualmap").unwrap().router();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut picked = std::collections::HashSet::new();
    let mut homes = std::collections::HashMap::<u64, std::collections::HashSet<usize>>::new();
    for round in 0..20 {
        for (index, request) in workload.requests.iter().enumerate() {
            let worker = router.pick(&Sight { index, request, now: 0.0, workers: &idle }, &mut rng);
            picked.insert(worker);
            if round > 0 {
                homes.entry(request.session).or_default().insert(worker);
            }
        }
    }
    assert_eq!(picked.len(), 8);
    assert!(homes.values().all(|workers| workers.len() <= 2));
}
