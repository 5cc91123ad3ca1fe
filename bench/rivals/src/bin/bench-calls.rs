//! How long single calls of the product's index take: `make bench-calls`.
//!
//! Stores and removals in parts of 32 blocks, an image, a trim and a worker dropped, as the router
//! does it and with the router's allocator. Whoever looks a prompt up meanwhile waits for so long.
//! The first row is arithmetic alone: what takes longer there is the machine's doing.

#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

use clap::Parser;
use cpu_time::ThreadTime;
use tikv_jemallocator::Jemalloc;
use warmroute_rivals::{
    index::Change,
    ours::Shared,
    routing::{
        block::BlockHash,
        index::{Holder, SharedIndex},
    },
    workload::{Workload, mix},
};

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// How large an index.
#[derive(Parser)]
struct Args {
    /// Workers.
    #[arg(long, default_value = "32")]
    workers: u32,
    /// Blocks of a prompt.
    #[arg(long, default_value = "1000")]
    length: usize,
    /// Blocks stored in all.
    #[arg(long, value_delimiter = ',', default_value = "1000000,10000000")]
    blocks: Vec<usize>,
}

fn main() {
    let args = Args::parse();
    for blocks in args.blocks {
        println!("\n{blocks} blocks, prompts of {}, {} workers\n", args.length, args.workers);
        time_all(&Workload::synthetic(args.workers, args.length, blocks, 1));
    }
}

/// How long calls take, in CPU time of the thread: what a lock around them would be held for.
#[derive(Default)]
struct Calls(Vec<u128>);

impl Calls {
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let begun = ThreadTime::now();
        let result = call();
        self.0.push(begun.elapsed().as_nanos());
        result
    }

    fn print(mut self, name: &str) {
        self.0.sort_unstable();
        let at = |share: f64| self.0[(self.0.len() as f64 * share) as usize] as f64 / 1e3;
        let last = self.0.last().map_or(0.0, |&nanos| nanos as f64 / 1e3);
        let (p50, p99, p9999) = (at(0.5), at(0.99), at(0.9999));
        println!("| {name} | {} | {p50:.1} | {p99:.1} | {p9999:.1} | {last:.1} |", self.0.len());
    }
}

fn time_all(load: &Workload) {
    // As src/fleet/index.rs bounds what it does under one hold of the lock.
    const PART: usize = 32;
    const PRESUMED: usize = 64;
    const TOLD: usize = 2_048;
    const TIDIED: usize = 96;
    /// Some five microseconds.
    const ROUNDS: u64 = 2_500;
    type Eight = Shared<8, true>;
    println!("| call | calls | p50, us | p99 | p99.99 | longest |\n|---|---|---|---|---|---|");
    let mut machine = Calls::default();
    for _ in 0..320_000 {
        machine.time(|| (0..ROUNDS).fold(0, |sum, at| std::hint::black_box(sum ^ mix(at))));
    }
    machine.print("arithmetic");
    let mut index = Eight::of_rows(load.workers, usize::MAX);
    let mut holds = Calls::default();
    let mut releases = Calls::default();
    let blocks_of = |change: &Change| -> Vec<BlockHash> {
        let blocks = &load.prompts[change.prompt].blocks;
        blocks[..change.to].iter().map(|&block| BlockHash::new(block)).collect()
    };
    let hold = |index: &mut SharedIndex<8>, part: usize, holds: &mut Calls, change: &Change| {
        let blocks = blocks_of(change);
        for from in (change.from..change.to).step_by(part) {
            let above = from.checked_sub(1).map(|at| blocks[at]);
            let part = &blocks[from..change.to.min(from + part)];
            holds.time(|| index.hold(Eight::holder(*change), above, from as u32, part));
        }
    };
    load.stores.iter().for_each(|change| hold(&mut index, PART, &mut holds, change));
    holds.print("hold 32 blocks, growing");
    for change in &load.removals {
        let mut blocks = blocks_of(change)[change.from..].to_vec();
        blocks.reverse();
        for part in blocks.chunks(PART) {
            releases.time(|| index.release(Eight::holder(*change), part));
        }
    }
    releases.print("release 32 blocks");
    let mut again = Calls::default();
    load.removals.iter().for_each(|change| hold(&mut index, PART, &mut again, change));
    again.print("hold 32 blocks again");
    for change in &load.removals {
        index.release(Eight::holder(*change), &blocks_of(change)[change.from..]);
    }
    let mut presumed = Calls::default();
    load.removals.iter().for_each(|change| hold(&mut index, PRESUMED, &mut presumed, change));
    presumed.print("hold 64 blocks again");
    let (mut images, mut trims, mut sweeps) =
        (Calls::default(), Calls::default(), Calls::default());
    let holder = Holder { row: 1, layer: 0 };
    let mut cursor = index.begin_image(holder);
    let mut told = Vec::new();
    while images
        .time(|| index.image_part(&mut cursor, TOLD, |_, _, blocks| told.extend_from_slice(blocks)))
    {
    }
    assert_eq!(told.len() as u64, index.blocks_of(holder), "all is told");
    images.print("tell 2,048 blocks of an image");
    while trims.time(|| index.trim_part(holder, 0, TIDIED)) == TIDIED {}
    trims.print("trim 96 blocks");
    for layer in 0..8 {
        index.drop_holder(Holder { row: 0, layer });
    }
    while sweeps.time(|| index.sweep(TIDIED)) {}
    sweeps.print("sweep 96 blocks");
    index.set_bytes_max(index.stats().bytes / 2);
    let mut settles = Calls::default();
    while settles.time(|| index.settle(TIDIED)) {}
    settles.print("settle 96 blocks");
    let (first, second) = load.stores.split_at(load.stores.len() / 2);
    for (part, stores) in [(PART, first), (PRESUMED, second)] {
        let mut bounded = Calls::default();
        stores.iter().for_each(|change| hold(&mut index, part, &mut bounded, change));
        bounded.print(&format!("hold {part} blocks at the bound"));
    }
}
