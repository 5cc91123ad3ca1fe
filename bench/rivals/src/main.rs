//! Checks that every prefix index gives the same depths, then times it: `make bench-index`.
//!
//! Look-ups are timed one by one by the time stamp counter (median and 99th percentile: means mean
//! nothing on a shared machine), with the query in the cache and the index as cold as a thousand
//! other look-ups leave it. Stores and removals are CPU time of the whole process, in batches of a
//! thousand reports prepared before. Memory is what was asked of the allocator.

#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::{alloc::System, fs::File, io::BufReader, path::PathBuf};

use clap::Parser;
use cpu_time::ProcessTime;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use warmroute_rivals::{
    dynamo,
    index::{self, Change, Index, Plain},
    mix::{self, Mixed},
    ours, smg,
    workload::Workload,
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[derive(Parser)]
struct Args {
    /// Workers.
    #[arg(long, value_delimiter = ',', default_value = "32")]
    workers: Vec<u32>,
    /// Blocks of a prompt.
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    length: Vec<usize>,
    /// Blocks stored in all.
    #[arg(long, value_delimiter = ',', default_value = "1000000")]
    blocks: Vec<usize>,
    /// A trace in place of synthetic chats; decompressed JSON lines.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Only these indexes, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only the mix of look-ups and stores, by one thread and by two.
    #[arg(long)]
    mix: bool,
    /// Look-ups of each prompt.
    #[arg(long, default_value = "3")]
    rounds: usize,
    /// Seed of everything random.
    #[arg(long, default_value = "1")]
    seed: u64,
}

/// All workers' depths for all queries.
type Depths = Vec<Vec<u32>>;

/// What every index must answer: after the stores, the removals, and without worker 0.
struct Expected {
    stored: Depths,
    removed: Depths,
    dropped: Depths,
}

impl Expected {
    fn of(load: &Workload) -> Self {
        let mut plain = Plain::new(load.workers);
        let all = |plain: &Plain| {
            let depths = |query| {
                let mut depths = vec![0; load.workers as usize];
                plain.depths(query, &mut depths);
                depths
            };
            load.queries.iter().map(depths).collect::<Depths>()
        };
        let set = |plain: &mut Plain, changes: &[Change], held| {
            for change in changes {
                plain.set(*change, &load.prompts[change.prompt], held);
            }
        };
        set(&mut plain, &load.stores, true);
        let stored = all(&plain);
        set(&mut plain, &load.removals, false);
        let removed = all(&plain);
        set(&mut plain, &load.removals, true);
        plain.drop_worker(0);
        Self { stored, removed, dropped: all(&plain) }
    }
}

/// CPU seconds that `changes` take, prepared in batches.
fn apply<I: Index>(
    index: &mut I,
    load: &Workload,
    changes: &[Change],
    prepare: fn(Change, &index::Prompt) -> I::Change,
) -> f64 {
    let mut seconds = 0.0;
    for batch in changes.chunks(1000) {
        let batch = batch.iter().map(|&c| prepare(c, &load.prompts[c.prompt])).collect();
        let begun = ProcessTime::now();
        index.apply(batch);
        seconds += begun.elapsed().as_secs_f64();
    }
    seconds
}

fn check<I: Index>(name: &str, when: &str, index: &I, load: &Workload, expected: &Depths) {
    let mut answer = index.answer();
    let mut depths = vec![0; load.workers as usize];
    for (at, (query, expected)) in load.queries.iter().zip(expected).enumerate() {
        index.look_up(&mut I::query(query), &mut answer);
        index.depths(&answer, &mut depths);
        assert_eq!(&depths, expected, "{name} {when}: query {at}");
    }
}

fn run<I: Index>(name: &str, args: &Args, load: &Workload, expected: &Expected) {
    if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
        return;
    }
    let held = |changes: &[Change]| changes.iter().map(|c| c.to - c.from).sum::<usize>() as f64;
    let region = Region::new(ALLOCATOR);
    let mut index = I::new(load.workers);
    let store = apply(&mut index, load, &load.stores, I::stored);
    let change = region.change();
    let bytes = change.bytes_allocated as f64 - change.bytes_deallocated as f64
        + change.bytes_reallocated as f64;
    check(name, "stored", &index, load, &expected.stored);

    let clock = quanta::Clock::new();
    let mut ticks = Vec::new();
    let mut answer = index.answer();
    for query in (0..args.rounds).flat_map(|_| &load.queries) {
        let mut query = I::query(query);
        let begun = clock.raw();
        index.look_up(&mut query, &mut answer);
        let ended = clock.raw();
        ticks.push(clock.delta_as_nanos(begun, ended));
    }
    ticks.sort_unstable();
    let at = |share: f64| ticks[(ticks.len() as f64 * share) as usize];

    let remove = apply(&mut index, load, &load.removals, I::removed);
    check(name, "removed", &index, load, &expected.removed);
    let again = apply(&mut index, load, &load.removals, I::stored);
    check(name, "stored again", &index, load, &expected.stored);
    let begun = ProcessTime::now();
    index.drop_worker(0);
    let dropped = begun.elapsed();
    check(name, "dropped", &index, load, &expected.dropped);
    let (blocks, removed) = (held(&load.stores), held(&load.removals));
    println!(
        "| {} | {name} | {} / {} | {:.1} | {:.1} | {:.0} | {:.1} | {} |",
        load.workers,
        at(0.5),
        at(0.99),
        blocks / store / 1e6,
        removed / again / 1e6,
        removed / remove / 1e3,
        bytes / blocks,
        dropped.as_micros(),
    );
}

/// CPU time of an operation of the mix, by one thread and by two.
fn run_mix<M: Mixed>(name: &str, load: &Workload)
where
    <M::Index as Index>::Query: Clone,
{
    const OPS: u32 = 200_000;
    let nanos = [1, 2].map(|threads| {
        let mut index = M::Index::new(load.workers);
        apply(&mut index, load, &load.stores, M::Index::stored);
        let mixed = M::share(index);
        let begun = ProcessTime::now();
        mix::run(&mixed, &load.queries, load.workers, threads, OPS);
        begun.elapsed().as_nanos() / u128::from(OPS * threads)
    });
    println!("| {} | {name} | {} | {} |", load.workers, nanos[0], nanos[1]);
}

fn mix_all(load: &Workload) {
    println!(
        "| workers | index | ns of CPU an operation, 1 thread | 2 threads |\n|---|---|---|---|"
    );
    run_mix::<dynamo::Compressed>("dynamo compressed", load);
    run_mix::<mix::SharedChain>("smg chain", load);
    run_mix::<ours::Trees>("ours: trees", load);
    run_mix::<mix::OneLock<false>>("ours: levels, 8 layers", load);
    run_mix::<mix::OneLock<true>>("ours: levels, 8 layers, fair", load);
    run_mix::<mix::EightLocks>("ours: levels, 8 layers, ShardedLock", load);
}

fn run_all(args: &Args, load: &Workload) {
    let expected = Expected::of(load);
    run::<dynamo::Radix>("dynamo radix", args, load, &expected);
    run::<dynamo::Compressed>("dynamo compressed", args, load, &expected);
    run::<dynamo::Positional>("dynamo positional", args, load, &expected);
    run::<smg::Chain>("smg chain", args, load, &expected);
    run::<ours::Trees>("ours: trees", args, load, &expected);
    run::<ours::Shared<1, false>>("ours: shared", args, load, &expected);
    run::<ours::Shared<1, true>>("ours: levels", args, load, &expected);
    run::<ours::Shared<8, false>>("ours: shared (8 layers)", args, load, &expected);
    run::<ours::Shared<8, true>>("ours: levels (8 layers)", args, load, &expected);
}

fn main() {
    let args = Args::parse();
    let head = "workers | index | look-up p50 / p99, ns | store M/s | again M/s | remove k/s | bytes a held block | drop a worker, us";
    let rule = "|---".repeat(8);
    if let Some(path) = &args.trace {
        let lines = BufReader::new(File::open(path).expect("the trace can be read"));
        println!("trace\n\n| {head} |\n{rule}|");
        run_all(&args, &Workload::of_trace(args.workers[0], lines, args.seed));
        return;
    }
    for &blocks in &args.blocks {
        for &length in &args.length {
            println!("\n{blocks} blocks, prompts of {length}\n");
            if !args.mix {
                println!("| {head} |\n{rule}|");
            }
            for &workers in &args.workers {
                let load = Workload::synthetic(workers, length, blocks, args.seed);
                if args.mix {
                    mix_all(&load);
                } else {
                    run_all(&args, &load);
                }
            }
        }
    }
}
