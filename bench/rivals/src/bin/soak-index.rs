//! Whether the index's memory stays flat for ever: unique blocks without end through a byte bound,
//! `make soak-index`. Arguments: millions of blocks (100), the bound in MiB (256).
//!
//! Chats of 20 to 1,500 blocks of 64 workers in two of eight layers, in parts of 32 blocks; now and
//! then a worker releases some of what it holds, or is dropped, or the bound changes for a while.
//! Asserts the bound after every chat, and that the process takes no more than that and an eighth, which
//! allocators keep.

#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

use rand::{Rng, SeedableRng, rngs::StdRng};
use warmroute_rivals::routing::block::BlockHash;
use warmroute_rivals::routing::index::{Holder, SLACK_BYTES, SharedIndex};

const ROWS: u32 = 64;

fn argument(at: usize, default: usize) -> usize {
    std::env::args().nth(at).map_or(default, |value| value.parse().expect("a number"))
}

/// Memory of the process, in MiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") / 1024
}

fn main() {
    let (total, bound) = (argument(1, 100) * 1_000_000, argument(2, 256) << 20);
    let mut rng = StdRng::seed_from_u64(1);
    let mut index = SharedIndex::<8>::new(bound);
    for row in 0..ROWS {
        let owner = index.add_owner();
        assert_eq!(index.add_row(owner), Some(row));
    }
    let (mut gained, mut refused, mut next, mut bound_now) = (0, 0, 0, bound);
    println!("| M blocks gained | refused | held M | runs k | index MiB | process MiB |");
    println!("|---|---|---|---|---|---|");
    while gained < total {
        let layer = if rng.random_range(0..3) == 0 { 3 } else { 0 };
        let holder = Holder { row: rng.random_range(0..ROWS), layer };
        while index.is_dropped(holder) {
            index.settle(256);
        }
        let length = rng.random_range(20..1_500);
        let chat: Vec<_> = (0..length).map(|_| BlockHash::new(rng.random())).collect();
        for from in (0..length).step_by(32) {
            let part = &chat[from..length.min(from + 32)];
            let above = from.checked_sub(1).map(|at| chat[at]);
            let held = index.hold(holder, above, from as u32, part);
            gained += held.gained;
            refused += held.refused;
            if held.refused > 0 {
                break;
            }
        }
        match rng.random_range(0..2_000) {
            0..100 => {
                index.release(holder, &chat[length / 2..length / 2 + 3]);
            }
            100 => index.drop_holder(holder),
            101 if bound_now == bound => {
                bound_now = bound / 2;
                index.set_bytes_max(bound_now);
                while index.settle(256) {}
            }
            101..110 => {
                bound_now = bound;
                index.set_bytes_max(bound);
            }
            _ => {}
        }
        let stats = index.stats();
        assert!(stats.bytes <= bound_now + SLACK_BYTES, "{stats:?}");
        if gained >= next {
            let process = resident();
            let (millions, held) = (gained as f64 / 1e6, stats.held as f64 / 1e6);
            let (runs, mib) = (stats.runs as f64 / 1e3, stats.bytes as f64 / 1024.0 / 1024.0);
            println!(
                "| {millions:.1} | {refused} | {held:.2} | {runs:.1} | {mib:.1} | {process} |"
            );
            assert!(process <= (bound >> 20) * 9 / 8 + 16, "{process} MiB");
            next += total / 10;
        }
    }
    index.check();
}
