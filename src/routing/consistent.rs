//! Which worker a key belongs to, so that little moves when the fleet changes.
//!
//! Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
//! IEEE/ACM Transactions on Networking 6(1), 1998): every worker gets a score for the key, the
//! highest owns it. When a worker leaves, only its keys move, and they spread over all others. A
//! ring of virtual nodes does the same with a table to build and keep; at fleets of up to a
//! thousand workers the table saves nothing.
//!
//! Weights follow Schindelhauer and Schomaker ("Weighted distributed hash tables", SPAA 2005): the
//! score is `-weight / ln(u)` with `u` uniform in (0, 1), so a worker owns keys in proportion to
//! its weight and changing one weight moves keys only from or to that worker.
//!
//! Bounded loads follow Mirrokni, Thorup and Zadimoghaddam ("Consistent hashing with bounded
//! loads", SODA 2018): nobody may hold more than `c` times the mean, and a key whose owner is at
//! that bound goes to the next in its order.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Score of a worker for a key; the highest owns it. Finite and over 0 for a finite `weight` over
/// 0. The hash is xxh3 with the worker's key as its seed and no secret: equal in every process.
pub fn score(key: u64, worker_key: u64, weight: f64) -> f64 {
    let hash = xxh3_64_with_seed(&key.to_le_bytes(), worker_key);
    // The top 53 bits, moved to the middle of their step: strictly inside (0, 1), so that the
    // logarithm is neither 0 nor infinite.
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -weight / uniform.ln()
}

/// Requests that a worker may hold once one more is placed: its share of them by weight, times
/// `bounded_load` (the paper's `c`, at least 1), rounded up.
///
/// `requests_total` is what the fleet holds before the placement. Rounding up makes the bounds sum
/// to at least the requests there are, so somebody is always under theirs.
pub fn bound(requests_total: u64, weight: f64, weight_total: f64, bounded_load: f64) -> f64 {
    (bounded_load * (requests_total as f64 + 1.0) * weight / weight_total).ceil()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(key: u64, workers: &[(u64, f64)]) -> u64 {
        let by_score = |a: &&(u64, f64), b: &&(u64, f64)| {
            score(key, a.0, a.1).total_cmp(&score(key, b.0, b.1))
        };
        workers.iter().max_by(by_score).unwrap().0
    }

    fn fleet(n: u64) -> Vec<(u64, f64)> {
        (0..n).map(|w| (xxhash_rust::xxh3::xxh3_64(&w.to_le_bytes()), 1.0)).collect()
    }

    #[test]
    fn removing_a_worker_moves_only_its_keys() {
        let before = fleet(10);
        let (gone, after) = before.split_first().unwrap();
        let mut moved = 0;
        for key in 0..5_000 {
            let old = owner(key, &before);
            if old == gone.0 {
                moved += 1;
            } else {
                assert_eq!(owner(key, after), old, "key {key} moved though its worker stayed");
            }
        }
        // A tenth of 5,000, plus or minus five standard deviations of 21.
        assert!((395..=605).contains(&moved), "{moved}");
    }

    #[test]
    fn keys_of_a_removed_worker_spread_over_all_others() {
        let before = fleet(5);
        let (gone, after) = before.split_first().unwrap();
        let mut counts = [0u32; 4];
        for key in (0..20_000).filter(|&key| owner(key, &before) == gone.0) {
            let heir = owner(key, after);
            counts[after.iter().position(|w| w.0 == heir).unwrap()] += 1;
        }
        assert!(counts.iter().all(|&count| (820..=1180).contains(&count)), "{counts:?}");
    }

    #[test]
    fn keys_are_owned_in_proportion_to_weight() {
        let mut workers = fleet(4);
        workers[2].1 = 3.0;
        let mut counts = [0u32; 4];
        for key in 0..12_000 {
            let owner = owner(key, &workers);
            counts[workers.iter().position(|w| w.0 == owner).unwrap()] += 1;
        }
        // Shares of 2,000 and 6,000, each within five standard deviations.
        for (worker, count) in counts.into_iter().enumerate() {
            let (want, slack) = if worker == 2 { (6_000, 275) } else { (2_000, 205) };
            assert!(count.abs_diff(want) <= slack, "{counts:?}");
        }
    }

    #[test]
    fn raising_a_weight_moves_keys_only_to_that_worker() {
        let before = fleet(6);
        let mut after = before.clone();
        after[3].1 = 2.0;
        for key in 0..3_000 {
            let (old, new) = (owner(key, &before), owner(key, &after));
            assert!(new == old || new == after[3].0);
        }
    }

    #[test]
    fn score_is_finite_at_the_ends_of_the_hash() {
        for key in 0..1_000 {
            let score = score(key, !key, 1.0);
            assert!(score.is_finite() && score > 0.0);
        }
    }

    #[test]
    fn bounds_always_leave_room_for_one_more() {
        for requests_total in 0..200_u64 {
            let sum: f64 = (0..7).map(|_| bound(requests_total, 1.0, 7.0, 1.0)).sum();
            assert!(sum >= requests_total as f64 + 1.0);
        }
        assert!((bound(9, 1.0, 5.0, 1.25) - 3.0).abs() < 1e-9, "ceil(1.25 * 10 / 5)");
        assert!((bound(9, 2.0, 5.0, 1.0) - 4.0).abs() < 1e-9, "twice the weight, twice the share");
    }
}
