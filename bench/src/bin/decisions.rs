//! Decisions a second, and events a second, of a whole fleet in one process: `Fleet::pick` and
//! `Fleet::apply` as the proxy and the report listener call them, without sockets or bodies. Beside
//! each row the same picks without a prompt, which look nothing up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use warmroute::{
    fleet::{Domain, Fleet, Live, PromptAsk},
    routing::{
        Policy, PolicyParams, PromptKind,
        block::{BlockHash, BlockHasher, Secret},
    },
    wire::{
        event::{BlockId, Content, Event, Stored, Tier},
        prompt::TOKEN_BLOCK_BYTES,
        report::Batch,
    },
};
use warmroute_bench::say;

/// Tokens an engine block, as vLLM's default.
const BLOCK_TOKENS: usize = 16;
/// Blocks of a system prompt that all workers hold.
const SYSTEM_BLOCKS: usize = 64;
/// Blocks of a report.
const REPORTED: usize = 256;
const MODEL: &str = "m";

type Any = Box<dyn std::error::Error>;

/// What to fill the fleet with.
#[derive(Debug, Clone, Copy, Parser)]
struct Args {
    /// Workers.
    #[arg(long, default_value_t = 1000)]
    workers: usize,
    /// Blocks held by all of them together.
    #[arg(long, default_value_t = 10_000_000)]
    blocks: usize,
    /// Blocks of a conversation.
    #[arg(long, default_value_t = 1000)]
    length: usize,
    /// Decisions a row.
    #[arg(long, default_value_t = 20_000)]
    decisions: usize,
}

fn main() -> Result<(), Any> {
    let args = Args::parse();
    let bench = Bench::new(args)?;
    say(&format!(
        "{} workers, {} conversations each, of {} blocks, the first {SYSTEM_BLOCKS} everybody's",
        args.workers, bench.conversations, args.length
    ));
    bench.fill()?;
    say(
        "threads  beside                  decisions/s     p50       p99       max   no look-up p50",
    );
    for threads in [1, 2] {
        bench.decide(threads, "nothing", |_| Ok(()))?;
    }
    bench.decide(1, "events", |stop| bench.churn(stop))?;
    bench.decide(1, "workers that restart", |stop| bench.restart(stop))?;
    Ok(())
}

struct Bench {
    args: Args,
    conversations: usize,
    fleet: Arc<Fleet>,
}

fn tokens(conversation: u64, blocks: std::ops::Range<usize>) -> Vec<u32> {
    let of = |block: usize| if block < SYSTEM_BLOCKS { u64::MAX } else { conversation };
    let token = |at: usize| {
        let mut rng = SmallRng::seed_from_u64(of(at / BLOCK_TOKENS) ^ (at as u64) << 20);
        rng.random_range(0..150_000)
    };
    (blocks.start * BLOCK_TOKENS..blocks.end * BLOCK_TOKENS).map(token).collect()
}

/// As an engine that hashes chains names its blocks: the same prefix, the same name.
fn ids(conversation: u64, blocks: std::ops::Range<usize>) -> Vec<BlockId> {
    let id = |block: usize| {
        let of = if block < SYSTEM_BLOCKS { u64::MAX } else { conversation };
        BlockId(SmallRng::seed_from_u64(of ^ (block as u64) << 40).random())
    };
    blocks.map(id).collect()
}

impl Bench {
    fn new(args: Args) -> Result<Self, Any> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x.yaml");
        let worker = |n: usize| {
            format!(
                "  - {{id: w{n}, url: 'http://10.{}.{}.1:80', models: [m]}}\n",
                n / 250,
                n % 250
            )
        };
        let workers: String = (0..args.workers).map(worker).collect();
        std::fs::write(
            &path,
            format!("listen: 127.0.0.1:8080\nindex: {{bytes_max: 256000000}}\nworkers:\n{workers}"),
        )?;
        let config = Arc::new(warmroute::config::load(&path)?);
        let live = Live::new(config, Secret::from_seed(1), None)?;
        let fleet = Arc::new(Fleet::new(live, warmroute::clock::now()));
        for member in fleet.members().iter() {
            member.set_health(true);
        }
        let conversations = (args.blocks / args.workers / args.length).max(1);
        Ok(Self { args, conversations, fleet })
    }

    fn stored(&self, worker: usize, conversation: usize) -> Vec<Event> {
        let seed = (worker * self.conversations + conversation) as u64;
        let starts = (0..self.args.length).step_by(REPORTED);
        let part = |from: usize| {
            let to = self.args.length.min(from + REPORTED);
            let parent = from.checked_sub(1).map(|above| ids(seed, above..from)[0]);
            Event::Stored(Stored {
                ids: ids(seed, from..to),
                parent,
                content: Content::Tokens {
                    tokens: tokens(seed, from..to),
                    block_tokens: BLOCK_TOKENS,
                    extra: Vec::new(),
                },
                model: Some(MODEL.to_owned()),
                lora_name: None,
                cache_salt: None,
                tenant: None,
                tier: Tier::Gpu,
            })
        };
        starts.map(part).collect()
    }

    fn removed(&self, worker: usize, conversation: usize) -> Event {
        let seed = (worker * self.conversations + conversation) as u64;
        let mut ids = ids(seed, SYSTEM_BLOCKS..self.args.length);
        ids.reverse();
        Event::Removed { ids, tier: Tier::Gpu }
    }

    fn send(&self, worker: usize, seq: &mut [u64], events: Vec<Event>) -> Result<Duration, Any> {
        seq[worker] += 1;
        let (worker_id, epoch) = (format!("w{worker}"), "e".to_owned());
        let batch = Batch { worker_id, epoch, seq: seq[worker], rank: 0, events, ts: None };
        let began = Instant::now();
        self.fleet.apply(&batch, warmroute::clock::now())?;
        Ok(began.elapsed())
    }

    fn fill(&self) -> Result<(), Any> {
        let mut spent = Duration::ZERO;
        let mut seq = vec![0; self.args.workers];
        for worker in 0..self.args.workers {
            for conversation in 0..self.conversations {
                spent += self.send(worker, &mut seq, self.stored(worker, conversation))?;
            }
        }
        let blocks = self.args.workers * self.conversations * self.args.length;
        let rate = blocks as f64 / spent.as_secs_f64() / 1e6;
        say(&format!(
            "events: {blocks} blocks stored at {rate:.2} M/s (one thread), {} MiB resident",
            resident()? >> 20
        ));
        Ok(())
    }

    /// Removes conversations and stores them again, until told to stop.
    fn churn(&self, stop: &AtomicBool) -> Result<(), Any> {
        // Goes on behind what was sent.
        let mut seq = vec![self.conversations as u64; self.args.workers];
        let (mut spent, mut blocks) = (Duration::ZERO, 0);
        let mut rng = SmallRng::seed_from_u64(2);
        while !stop.load(Relaxed) {
            let worker = rng.random_range(0..self.args.workers);
            let conversation = rng.random_range(0..self.conversations);
            spent += self.send(worker, &mut seq, vec![self.removed(worker, conversation)])?;
            spent += self.send(worker, &mut seq, self.stored(worker, conversation))?;
            blocks += self.args.length * 2;
        }
        say(&format!(
            "         (events at {:.2} M blocks/s)",
            blocks as f64 / spent.as_secs_f64() / 1e6
        ));
        Ok(())
    }

    /// Workers lose their caches one after the other, and the index is swept.
    fn restart(&self, stop: &AtomicBool) -> Result<(), Any> {
        let mut worker = 0;
        while !stop.load(Relaxed) {
            let (worker_id, epoch) = (format!("w{worker}"), format!("again{worker}"));
            let batch =
                Batch { worker_id, epoch, seq: 1, rank: 0, events: vec![Event::Cleared], ts: None };
            self.fleet.apply(&batch, warmroute::clock::now())?;
            while self.fleet.tidy() && !stop.load(Relaxed) {
                std::thread::yield_now();
            }
            worker = (worker + 1) % self.args.workers;
        }
        Ok(())
    }

    fn prompt(&self, rng: &mut SmallRng) -> Vec<BlockHash> {
        let seed = rng.random_range(0..self.args.workers * self.conversations) as u64;
        let root = self.fleet.live().hashing.token_root(MODEL, b"", "");
        let mut hasher = BlockHasher::new(root, TOKEN_BLOCK_BYTES);
        let from = rng.random_range(self.args.length / 2..=self.args.length);
        for token in tokens(seed, 0..from) {
            hasher.push(&token.to_le_bytes());
        }
        // A new turn.
        for _ in 0..8 * BLOCK_TOKENS {
            hasher.push(&rng.random_range(0..150_000_u32).to_le_bytes());
        }
        hasher.finish()
    }

    fn decide(
        &self,
        threads: u64,
        beside: &str,
        other: impl Fn(&AtomicBool) -> Result<(), Any> + Sync,
    ) -> Result<(), Any> {
        let stop = AtomicBool::new(false);
        let (mut times, mut idle, mut spent) = (Vec::new(), Vec::new(), Duration::ZERO);
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| other(&stop).map_err(|error| error.to_string()));
            let picks: Vec<_> =
                (0..threads).map(|seed| scope.spawn(move || self.picks(seed))).collect();
            for pick in picks {
                let (more, without, took) = pick.join().map_err(|_| "a thread failed")?;
                times.extend(more);
                idle.extend(without);
                spent = spent.max(took);
            }
            stop.store(true, Relaxed);
            beside.join().map_err(|_| "a thread failed")??;
            Ok::<(), Any>(())
        })?;
        times.sort_unstable();
        idle.sort_unstable();
        let at = |of: &[Duration], share: f64| {
            of[((of.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6
        };
        let rate = times.len() as f64 / spent.as_secs_f64();
        say(&format!(
            "{threads:>7}  {beside:<22} {rate:>12.0} {:>6.1} us {:>6.1} us {:>6.0} us {:>12.1} us",
            at(&times, 0.5),
            at(&times, 0.99),
            at(&times, 1.0),
            at(&idle, 0.5)
        ));
        Ok(())
    }

    /// Times of picks with a prompt and without, in turns; and how long those with one took in all.
    fn picks(&self, seed: u64) -> (Vec<Duration>, Vec<Duration>, Duration) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let prompts: Vec<_> = (0..500).map(|_| [self.prompt(&mut rng)]).collect();
        let (mut times, mut idle) = (Vec::new(), Vec::new());
        for at in 0..self.args.decisions {
            let prompt = &prompts[at % prompts.len()];
            times.push(self.pick(prompt));
            idle.push(self.pick(&[]));
        }
        let spent = times.iter().sum();
        (times, idle, spent)
    }

    fn pick(&self, prompts: &[Vec<BlockHash>]) -> Duration {
        let live = self.fleet.live();
        let policy = (Policy::PrefixAware, PolicyParams::default());
        let tokens = prompts.iter().map(Vec::len).sum::<usize>() * BLOCK_TOKENS;
        let ask = PromptAsk {
            model: Some(MODEL),
            policy: &policy,
            prompts,
            domain: Domain::Tokens,
            tenant: false,
            bytes: (tokens * 4) as u64,
            exact_tokens: Some(tokens as u64),
            block_tokens: BLOCK_TOKENS,
            kind: if prompts.is_empty() { PromptKind::NoPrompt } else { PromptKind::Prompt },
            tokens: tokens as u64,
            streams: true,
            session: None,
            prefix: None,
            tried: &[],
            retry: false,
        };
        let began = Instant::now();
        let picked = self.fleet.pick(&live, &ask, warmroute::clock::now());
        let took = began.elapsed();
        drop(picked.expect("somebody has room"));
        took
    }
}

/// Resident memory of this process, bytes.
fn resident() -> Result<usize, Any> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kib: usize = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kib << 10)
}
