//! `make bench`: CPU time and latency of warmroute against a bare Pingora proxy, in the same run.
//!
//! Both stand in front of the same four workers and get the same requests, in turns; every figure is
//! the median of the rounds. CPU is the proxy process's user and system time per request.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use warmroute_bench::{
    bare,
    load::{Outcome, Shot, chat_bodies, closed_loop, streaming},
    process::{Running, free_addresses, role, wait_for, warmroute, write_conf},
    say, worker,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const WORKERS: usize = 4;
const ROUNDS: usize = 5;

type Any = Box<dyn std::error::Error>;

fn main() -> Result<(), Any> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("worker") => serve_workers(&args[1..]),
        Some("bare") => {
            let addrs: Vec<SocketAddr> =
                args[1..].iter().map(|addr| addr.parse()).collect::<Result<_, _>>()?;
            bare::serve(addrs[0], addrs[1..].to_vec(), 2);
            Ok(())
        }
        // For a profiler: load on a proxy that runs already.
        Some("drive") => drive(&args[1..]),
        _ => bench(args.iter().any(|arg| arg == "--quick")),
    }
}

fn serve_workers(addrs: &[String]) -> Result<(), Any> {
    let listeners = addrs.iter().map(std::net::TcpListener::bind).collect::<Result<Vec<_>, _>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(worker::serve(listeners, Duration::ZERO))?;
    Ok(())
}

fn drive(args: &[String]) -> Result<(), Any> {
    let [target, bytes, connections, requests, kind @ ..] = args else {
        return Err("drive ADDRESS BODY_BYTES CONNECTIONS REQUESTS [EVENTS]".into());
    };
    let events = kind.first().map(|events| events.parse()).transpose()?;
    let shot = Shot { bodies: Arc::new(chat_bodies(bytes.parse()?, 64)), events };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let load = closed_loop(target.parse()?, &shot, connections.parse()?, requests.parse()?);
    let outcome = runtime.block_on(load);
    let (answered, failed) = (outcome.latencies.len(), outcome.errors);
    say(&format!("{answered} answered, {failed} failed in {:?}", outcome.took));
    Ok(())
}

struct Case {
    name: &'static str,
    body_bytes: usize,
    events: Option<usize>,
    connections: usize,
    requests: usize,
}

/// Events of the shorter and of the longer stream: the difference is what an event costs.
const EVENTS: (usize, usize) = (8, 256);

#[rustfmt::skip]
const CASES: [Case; 10] = [
    Case { name: "6 KB",   body_bytes: 6_000,     events: None, connections: 1,   requests: 6_000 },
    Case { name: "6 KB",   body_bytes: 6_000,     events: None, connections: 32,  requests: 16_000 },
    Case { name: "6 KB",   body_bytes: 6_000,     events: None, connections: 256, requests: 16_000 },
    Case { name: "64 KB",  body_bytes: 64_000,    events: None, connections: 32,  requests: 6_000 },
    Case { name: "256 KB", body_bytes: 256_000,   events: None, connections: 1,   requests: 1_500 },
    Case { name: "256 KB", body_bytes: 256_000,   events: None, connections: 32,  requests: 3_000 },
    Case { name: "256 KB", body_bytes: 256_000,   events: None, connections: 256, requests: 3_000 },
    Case { name: "1 MB",   body_bytes: 1_000_000, events: None, connections: 32,  requests: 800 },
    Case { name: "6 KB, 8 events",   body_bytes: 6_000, events: Some(EVENTS.0), connections: 64, requests: 1_600 },
    Case { name: "6 KB, 256 events", body_bytes: 6_000, events: Some(EVENTS.1), connections: 64, requests: 128 },
];

fn bench(quick: bool) -> Result<(), Any> {
    let folder = tempfile::tempdir()?;
    let mut addrs = free_addresses(WORKERS + 3)?;
    let rest = addrs.split_off(WORKERS);
    let (bare_at, ours_at, metrics) = (rest[0], rest[1], rest[2]);
    let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    let _workers = Running::start(role("worker", &texts)?)?;
    for addr in &addrs {
        wait_for(*addr);
    }

    let mut bare_args = vec![bare_at.to_string()];
    bare_args.extend(texts);
    let bare = Running::start(role("bare", &bare_args)?)?;
    let conf = folder.path().join("bench.yaml");
    write_conf(&conf, ours_at, metrics, &addrs, 2)?;
    let ours = Running::start(warmroute(&conf)?)?;
    wait_for(bare_at);
    wait_for(ours_at);

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    say("warmroute against a bare Pingora pass-through, 4 workers, 2 threads each, closed loop;");
    say(&format!("medians of {ROUNDS} rounds in turns. CPU: proxy process, us a request.\n"));
    say(
        "| body | conns | bare CPU | ours CPU | **CPU ratio** | bare p50/p99 ms | ours p50/p99 ms | errors bare/ours |",
    );
    say("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut streams = Vec::new();
    for case in &CASES {
        let bodies = chat_bodies(case.body_bytes, 64);
        let bodies = if case.events.is_some() { streaming(&bodies) } else { bodies };
        let shot = Shot { bodies: Arc::new(bodies), events: case.events };
        let requests = if quick { case.requests / 8 } else { case.requests };
        let mut rounds = Vec::new();
        for round in 0..=ROUNDS {
            let a = measure(&runtime, &bare, bare_at, &shot, case.connections, requests);
            let b = measure(&runtime, &ours, ours_at, &shot, case.connections, requests);
            if round > 0 {
                rounds.push((a, b));
            }
        }
        say(&row(case, &rounds));
        if case.events.is_some() {
            let of = |f: &dyn Fn(&(Measured, Measured)) -> f64| median(rounds.iter().map(f));
            streams.push((of(&|(a, _)| a.cpu_us), of(&|(_, b)| b.cpu_us)));
        }
    }
    if let [less, more] = streams[..] {
        let events = (EVENTS.1 - EVENTS.0) as f64;
        let (a, b) = ((more.0 - less.0) / events, (more.1 - less.1) / events);
        say(&format!("\neach further event: bare {a:.1} us, ours {b:.1} us, **{:.2}**", b / a));
    }
    let mib = |running: &Running| running.resident() as f64 / f64::from(1 << 20);
    say(&format!("\nresident memory: bare {:.0} MiB, ours {:.0} MiB", mib(&bare), mib(&ours)));
    Ok(())
}

struct Measured {
    cpu_us: f64,
    outcome: Outcome,
}

fn measure(
    runtime: &tokio::runtime::Runtime,
    proxy: &Running,
    at: SocketAddr,
    shot: &Shot,
    connections: usize,
    requests: usize,
) -> Measured {
    let before = proxy.cpu();
    let outcome = runtime.block_on(closed_loop(at, shot, connections, requests));
    let cpu = proxy.cpu().saturating_sub(before);
    Measured { cpu_us: cpu.as_secs_f64() * 1e6 / requests as f64, outcome }
}

fn row(case: &Case, rounds: &[(Measured, Measured)]) -> String {
    let figure = |f: &dyn Fn(&(Measured, Measured)) -> f64| median(rounds.iter().map(f));
    let ms = |outcome: &Outcome, q: f64| outcome.quantile(q).as_secs_f64() * 1e3;
    let errors = |f: &dyn Fn(&(Measured, Measured)) -> usize| rounds.iter().map(f).sum::<usize>();
    let (bare, ours) = (errors(&|(a, _)| a.outcome.errors), errors(&|(_, b)| b.outcome.errors));
    format!(
        "| {} | {} | {:.1} | {:.1} | **{:.2}** | {:.2} / {:.2} | {:.2} / {:.2} | {bare} / {ours} |",
        case.name,
        case.connections,
        figure(&|(a, _)| a.cpu_us),
        figure(&|(_, b)| b.cpu_us),
        figure(&|(a, b)| b.cpu_us / a.cpu_us),
        figure(&|(a, _)| ms(&a.outcome, 0.5)),
        figure(&|(a, _)| ms(&a.outcome, 0.99)),
        figure(&|(_, b)| ms(&b.outcome, 0.5)),
        figure(&|(_, b)| ms(&b.outcome, 0.99)),
    )
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
