//! `make bench-streams`: memory of a proxy that holds many silent streams.
//!
//! Each stream has got its header and one event. What is told is the resident memory of the proxy
//! before, with all open, and after all have closed; sockets' buffers are the kernel's and not in it.

use std::{io::Error, net::SocketAddr, path::Path, process::Command, time::Duration};

use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::JoinSet,
};
use warmroute_bench::{
    bare, idle,
    load::{chat_bodies, streaming},
    process::{Running, free_addresses, role, wait_for, warmroute},
    say,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const WORKERS: usize = 4;
const STREAMS: usize = 10_000;
/// Files a proxy needs besides two a stream.
const FILES_BESIDES: usize = 200;
/// Streams that are being opened at a time.
const AT_ONCE: usize = 64;
/// Different bodies: few, so that the index is full before the first measurement.
const BODIES: usize = 64;
const SIZES: [(&str, usize); 2] = [("6 KB", 6_000), ("200 KB", 200_000)];

type Any = Box<dyn std::error::Error>;

fn main() -> Result<(), Any> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let files = raise_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match args.first().map(String::as_str) {
        Some("worker") => {
            for addr in &args[1..] {
                let listener = runtime.block_on(TcpListener::bind(addr))?;
                runtime.spawn(idle::serve(listener));
            }
            runtime.block_on(std::future::pending::<()>());
            Ok(())
        }
        Some("bare") => {
            let addrs: Result<Vec<SocketAddr>, _> =
                args[1..].iter().map(|addr| addr.parse()).collect();
            let addrs = addrs?;
            bare::serve(addrs[0], addrs[1..].to_vec(), 2);
            Ok(())
        }
        // The router alone, which an allocator may have been preloaded into.
        Some("--ours") => bench(&runtime, streams(files), &[true]),
        _ => bench(&runtime, streams(files), &[false, true]),
    }
}

/// As many streams as are wanted, or as a proxy may have files for.
fn streams(files: usize) -> usize {
    STREAMS.min(files.saturating_sub(FILES_BESIDES) / 2)
}

/// As many open files as we may have, for us and our children.
fn raise_files() -> Result<usize, Error> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX)))
}

fn bench(runtime: &Runtime, streams: usize, proxies: &[bool]) -> Result<(), Any> {
    say(&format!(
        "{streams} silent streams ({STREAMS} wanted), resident memory in MiB, 2 threads.\n"
    ));
    say(
        "| body | proxy | before | all open | **KiB a stream** | 10 s after | 256 streams and 10 s later |",
    );
    say("| --- | --- | --- | --- | --- | --- | --- |");
    for (size, bytes) in SIZES {
        let bodies = streaming(&chat_bodies(bytes, BODIES));
        for ours in proxies {
            let row = measure(runtime, &bodies, streams, *ours)?;
            say(&format!("| {size} | {row}"));
        }
    }
    Ok(())
}

fn measure(runtime: &Runtime, bodies: &[Bytes], streams: usize, ours: bool) -> Result<String, Any> {
    let folder = tempfile::tempdir()?;
    let mut workers = free_addresses(WORKERS + 2)?;
    let rest = workers.split_off(WORKERS);
    let texts: Vec<String> = workers.iter().map(ToString::to_string).collect();
    let _workers = Running::start(role("worker", &texts)?)?;
    for addr in &workers {
        wait_for(*addr);
    }
    let command = if ours {
        configured(folder.path(), rest[0], rest[1], &workers)?
    } else {
        role("bare", &[vec![rest[0].to_string()], texts].concat())?
    };
    let proxy = Running::start(command)?;
    wait_for(rest[0]);

    // What grows with the bodies has grown, and what is made at first use is made.
    drop(runtime.block_on(open(rest[0], bodies, BODIES * 4))?);
    std::thread::sleep(Duration::from_secs(2));
    let before = proxy.resident();
    let held = runtime.block_on(open(rest[0], bodies, streams))?;
    std::thread::sleep(Duration::from_secs(2));
    let during = proxy.resident();
    drop(held);
    std::thread::sleep(Duration::from_secs(10));
    let after = proxy.resident();
    // Allocators give memory back when they are next asked for some.
    drop(runtime.block_on(open(rest[0], bodies, BODIES * 4))?);
    std::thread::sleep(Duration::from_secs(10));
    let later = proxy.resident();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let each = during.saturating_sub(before) as f64 / 1024.0 / streams as f64;
    let name = if ours { "warmroute" } else { "bare Pingora" };
    Ok(format!(
        "{name} | {:.0} | {:.0} | **{each:.1}** | {:.0} | {:.0} |",
        mib(before),
        mib(during),
        mib(after),
        mib(later)
    ))
}

fn configured(
    folder: &Path,
    listen: SocketAddr,
    metrics: SocketAddr,
    workers: &[SocketAddr],
) -> Result<Command, Error> {
    use std::fmt::Write as _;
    let conf = folder.join("bench.yaml");
    let mut text = format!(
        "listen: {listen}\nthreads: 2\nmetrics: {{listen: \"{metrics}\"}}\n\
         log: {{level: warn, access: true}}\nlimits: {{inflight_max: {STREAMS}}}\nworkers:\n"
    );
    for (at, worker) in workers.iter().enumerate() {
        let _ = writeln!(text, "  - {{id: w{at}, url: \"http://{worker}\"}}");
    }
    std::fs::write(&conf, text)?;
    warmroute(&conf)
}

/// Opens `count` streams, each with one of `bodies`.
async fn open(proxy: SocketAddr, bodies: &[Bytes], count: usize) -> Result<Vec<TcpStream>, Error> {
    let (mut opening, mut held) = (JoinSet::new(), Vec::with_capacity(count));
    for turn in 0..count {
        if opening.len() == AT_ONCE {
            held.push(
                opening
                    .join_next()
                    .await
                    .expect("some are being opened")
                    .map_err(Error::other)??,
            );
        }
        let body = bodies[turn % bodies.len()].clone();
        opening.spawn(async move { idle::open(proxy, &body).await });
    }
    while let Some(opened) = opening.join_next().await {
        held.push(opened.map_err(Error::other)??);
    }
    Ok(held)
}
