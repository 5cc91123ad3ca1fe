//! Do KV events cost requests anything? 32 workers publish blocks over ZMQ, up to 100,000 a second
//! in all and more, while clients ask; side by side with the same fleet in silence.

use std::{
    fmt::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use warmroute_bench::{
    load::{Outcome, Shot, chat_bodies, closed_loop},
    process::{Running, free_addresses, role, wait_for, warmroute},
    say, scrape, worker,
};

#[path = "../../../tests/it/support/zmq_engine.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod zmq_engine;

const WORKERS: usize = 32;
/// Tokens a block, as vLLM's default.
const BLOCK_TOKENS: usize = 16;
/// Blocks an engine holds; older ones are removed as new ones come.
const HELD_BLOCKS: usize = 20_000;
const BATCHES_A_SECOND: usize = 10;
const CONNECTIONS: usize = 8;
const REQUESTS: usize = 8_000;
/// All engines together, blocks a second.
const RATES: [usize; 3] = [0, 100_000, 400_000];

type Any = Box<dyn std::error::Error>;

fn main() -> Result<(), Any> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match args.first().map(String::as_str) {
        Some("worker") => {
            let listeners =
                args[1..].iter().map(std::net::TcpListener::bind).collect::<Result<Vec<_>, _>>()?;
            runtime.block_on(worker::serve(listeners, Duration::ZERO))?;
            Ok(())
        }
        Some("publish") => runtime.block_on(publish(Path::new(&args[1]), args[2].parse()?)),
        _ => compare(&runtime),
    }
}

fn compare(runtime: &tokio::runtime::Runtime) -> Result<(), Any> {
    say(&format!(
        "{WORKERS} workers, {CONNECTIONS} connections, {REQUESTS} requests of 6 KB each row"
    ));
    say("blocks/s sent   applied   request p50      p99   decision p99   router CPU   memory");
    for rate in RATES {
        let row = one(runtime, rate)?;
        say(&row);
    }
    Ok(())
}

fn one(runtime: &tokio::runtime::Runtime, rate: usize) -> Result<String, Any> {
    let folder = tempfile::tempdir()?;
    let ports = folder.path().join("ports");
    let publisher = role("publish", &[ports.display().to_string(), rate.to_string()])?;
    let _publisher = Running::start(publisher)?;
    let mut addrs = free_addresses(WORKERS + 2)?;
    let rest = addrs.split_off(WORKERS);
    let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    let _workers = Running::start(role("worker", &texts)?)?;
    for addr in &addrs {
        wait_for(*addr);
    }
    let published = wait_for_file(&ports)?;
    let mut conf = format!(
        "listen: {}\nthreads: 2\nmetrics: {{listen: \"{}\"}}\nlog: {{level: error}}\nworkers:\n",
        rest[0], rest[1]
    );
    for ((at, addr), port) in addrs.iter().enumerate().zip(published.lines()) {
        let events = format!("{{endpoint: \"tcp://127.0.0.1:{port}\"}}");
        writeln!(conf, "  - {{id: w{at}, url: \"http://{addr}\", kv_events: {events}}}")?;
    }
    let file = folder.path().join("events.yaml");
    std::fs::write(&file, conf)?;
    let ours = Running::start(warmroute(&file)?)?;
    wait_for(rest[0]);
    // Until the engines are full and the events flow.
    std::thread::sleep(Duration::from_secs(8));
    let applied = |page: &str| total(page, "warmroute_stores_applied_total");
    let (began, cpu) = (Instant::now(), ours.cpu());
    let before = applied(&page_of(runtime, rest[1])?);
    let shot = Shot { bodies: Arc::new(chat_bodies(6_000, 2_000)), events: None };
    let outcome = runtime.block_on(closed_loop(rest[0], &shot, CONNECTIONS, REQUESTS));
    let page = page_of(runtime, rest[1])?;
    let took = began.elapsed().as_secs_f64();
    let cpu = (ours.cpu().saturating_sub(cpu)).as_secs_f64();
    let failed = outcome.errors + outcome.unsent;
    let millis = |outcome: &Outcome, q| outcome.quantile(q).as_secs_f64() * 1e3;
    Ok(format!(
        "{rate:13} {:9.0} {:10.2} ms {:5.2} ms {:11} us {:11.2} s {:5} MiB{}",
        (applied(&page) - before) / took,
        millis(&outcome, 0.5),
        millis(&outcome, 0.99),
        scrape::decision(&page, 0.99),
        cpu,
        ours.resident() >> 20,
        if failed > 0 { format!("   {failed} FAILED") } else { String::new() },
    ))
}

/// Publishes from all engines until killed; writes their ports, a line each.
async fn publish(ports: &Path, rate: usize) -> Result<(), Any> {
    let mut engines = Vec::new();
    for _ in 0..WORKERS {
        let engine = zmq_engine::ZmqEngine::start().await;
        engine.keep(20);
        engines.push(engine);
    }
    let text: Vec<String> = engines.iter().map(|engine| engine.port.to_string()).collect();
    let half = ports.with_extension("part");
    std::fs::write(&half, text.join("\n") + "\n")?;
    std::fs::rename(&half, ports)?;
    let blocks = rate / WORKERS / BATCHES_A_SECOND;
    let mut due = tokio::time::interval(Duration::from_millis(1000 / BATCHES_A_SECOND as u64));
    let mut next = 0_u64;
    loop {
        due.tick().await;
        if blocks == 0 {
            continue;
        }
        let payload = batch(next, blocks)?;
        for engine in &engines {
            engine.publish(&payload);
        }
        next += blocks as u64;
    }
}

/// One prompt of so many blocks stored, and as many old ones removed.
fn batch(next: u64, blocks: usize) -> Result<Vec<u8>, Any> {
    use rmp::encode as put;
    let old = (next + blocks as u64).saturating_sub(HELD_BLOCKS as u64);
    let removed = (next.saturating_sub(HELD_BLOCKS as u64))..old;
    let mut out = Vec::new();
    put::write_array_len(&mut out, 3)?;
    put::write_f64(&mut out, unix_s())?;
    put::write_array_len(&mut out, 1 + u32::from(!removed.is_empty()))?;
    if !removed.is_empty() {
        put::write_map_len(&mut out, 2)?;
        put::write_str(&mut out, "type")?;
        put::write_str(&mut out, "BlockRemoved")?;
        put::write_str(&mut out, "block_hashes")?;
        put::write_array_len(&mut out, (removed.end - removed.start) as u32)?;
        removed.map(id).try_for_each(|id| put::write_uint(&mut out, id).map(drop))?;
    }
    put::write_map_len(&mut out, 7)?;
    put::write_str(&mut out, "type")?;
    put::write_str(&mut out, "BlockStored")?;
    put::write_str(&mut out, "block_hashes")?;
    put::write_array_len(&mut out, blocks as u32)?;
    for at in 0..blocks as u64 {
        put::write_uint(&mut out, id(next + at))?;
    }
    put::write_str(&mut out, "parent_block_hash")?;
    put::write_nil(&mut out)?;
    put::write_str(&mut out, "token_ids")?;
    put::write_array_len(&mut out, (blocks * BLOCK_TOKENS) as u32)?;
    for at in 0..(blocks * BLOCK_TOKENS) as u64 {
        put::write_uint(&mut out, id(next * 31 + at) % 150_000)?;
    }
    put::write_str(&mut out, "block_size")?;
    put::write_uint(&mut out, BLOCK_TOKENS as u64)?;
    for name in ["lora_id", "medium"] {
        put::write_str(&mut out, name)?;
        put::write_nil(&mut out)?;
    }
    put::write_uint(&mut out, 0)?;
    Ok(out)
}

/// Names that do not follow each other.
fn id(at: u64) -> u64 {
    at.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31)
}

fn unix_s() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

fn wait_for_file(path: &Path) -> std::io::Result<String> {
    for _ in 0..500 {
        if path.exists() {
            return std::fs::read_to_string(path);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(std::io::Error::other("the publishers did not start"))
}

fn page_of(
    runtime: &tokio::runtime::Runtime,
    metrics: std::net::SocketAddr,
) -> Result<String, Any> {
    Ok(runtime.block_on(scrape::page(metrics)).map_err(|error| error.to_string())?)
}

fn total(page: &str, name: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
