//! Whole runs: whatever the fleet, everybody is answered, and the router's books balance.

use proptest::prelude::*;

use super::super::hardware::LLAMA_8B;
use super::super::policies::Named;
use super::super::workload::Line;
use super::*;

fn workloads() -> impl Strategy<Value = Workload> {
    let request = (1_u64..200, 0_u64..5, 1_u32..40, 0.0_f64..0.3);
    (prop::collection::vec(request, 1..60), 0.0_f64..=1.0).prop_map(|(requests, silent)| {
        let mut at = 0.0;
        let mut lines = Vec::new();
        for (tokens, family, output, gap) in requests {
            at += gap;
            // Families share a first block and, among themselves, all others.
            let deeper = (1..tokens.div_ceil(16)).map(|depth| family * 100 + depth);
            let blocks = std::iter::once(0).chain(deeper).collect();
            let session = family.to_string();
            lines.push(Line { t: at, session, tokens, output, block_tokens: 16, blocks });
        }
        let mut workload = Workload::try_new("drawn", &lines).unwrap();
        workload.silence(silent, 1);
        workload
    })
}

fn knowledge() -> impl Strategy<Value = Knowledge> {
    prop_oneof![
        (0.0_f64..3.0).prop_map(|late| Knowledge::Events { late }),
        (0.0_f64..=1.0).prop_map(|share| Knowledge::Lossy { share }),
        (0.1_f64..8.0, any::<bool>())
            .prop_map(|(factor, feedback)| Knowledge::Presumed { factor, feedback }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn everybody_is_answered_once_under_any_policy(
        workload in workloads(),
        knowledge in knowledge(),
        policy in prop::sample::select(Named::all().collect::<Vec<_>>()),
        speeds in prop::collection::vec(0.3_f64..2.0, 1..5),
        cache_tokens in 1_usize..2000,
        batching in prop::option::of((1_u32..300, 1_usize..6)),
        costs_known: bool,
        seed: u64,
    ) {
        let fleet = Fleet {
            hardware: LLAMA_8B,
            discipline: batching.map_or(Discipline::Fifo, |(budget, sequences)| {
                Discipline::Batching { budget, sequences }
            }),
            speeds: speeds.clone(),
            cache_tokens,
            sharing: policy.sharing(),
            knowledge,
            costs_known,
        };
        let fates = run(&workload, &fleet, &mut *policy.router(), seed);
        prop_assert_eq!(fates.len(), workload.requests.len());
        for (fate, request) in fates.iter().zip(&workload.requests) {
            prop_assert!((fate.worker as usize) < speeds.len());
            prop_assert!(0.0 < fate.ttft && fate.ttft <= fate.total && fate.total.is_finite());
            prop_assert!(fate.tokens == request.tokens);
            prop_assert!(fate.cached <= fate.tokens && fate.predicted <= fate.tokens);
        }
        let again = run(&workload, &fleet, &mut *policy.router(), seed);
        prop_assert!(fates.iter().zip(&again).all(|(a, b)| a.ttft.to_bits() == b.ttft.to_bits()));
    }
}

/// With all that can be known, nothing that is predicted is missing in an unhurried fleet, and
/// nothing that is there goes unpredicted.
#[test]
fn exact_knowledge_predicts_exactly_where_nobody_waits() {
    let line = |at: u64| Line {
        t: at as f64 * 50.0,
        session: (at % 3).to_string(),
        tokens: 160 + at / 3 * 32,
        output: 20,
        block_tokens: 16,
        blocks: (0..10 + at / 3 * 2).map(|depth| at % 3 * 1000 + depth).collect(),
    };
    let workload = Workload::try_new("chat", &(0..30).map(line).collect::<Vec<_>>()).unwrap();
    for discipline in [Discipline::Fifo, Discipline::Batching { budget: 512, sequences: 8 }] {
        let fleet = Fleet {
            hardware: LLAMA_8B,
            discipline,
            speeds: vec![1.0; 2],
            // Less than there is, so that something is evicted.
            cache_tokens: 500,
            sharing: Sharing::Own,
            knowledge: Knowledge::Events { late: 0.0 },
            costs_known: true,
        };
        let fates = run(&workload, &fleet, &mut *Named::LEAST.router(), 1);
        assert!(fates.iter().any(|fate| fate.cached > 0));
        assert!(fates.iter().all(|fate| fate.cached == fate.predicted), "{fates:?}");
    }
}
