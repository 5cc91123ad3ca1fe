//! The scale test: 100 workers, 1,000 requests at once; every one answered, and how long a decision
//! takes (published figures of another router at this size: p50 28 ms, p99 64 ms).

use std::{sync::Arc, time::Duration};

use warmroute_bench::{
    load::{Shot, chat_bodies, closed_loop},
    process::{Running, free_addresses, role, wait_for, warmroute, write_conf},
    say, scrape, worker,
};

const WORKERS: usize = 100;
const CONCURRENT: usize = 1_000;
const REQUESTS: usize = 20_000;
/// A worker takes so long over an answer, so that a thousand requests really are in flight.
const ANSWER_AFTER: Duration = Duration::from_millis(100);

type Any = Box<dyn std::error::Error>;

fn main() -> Result<(), Any> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if args.first().map(String::as_str) == Some("worker") {
        let listeners =
            args[1..].iter().map(std::net::TcpListener::bind).collect::<Result<Vec<_>, _>>()?;
        runtime.block_on(worker::serve(listeners, ANSWER_AFTER))?;
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut addrs = free_addresses(WORKERS + 2)?;
    let rest = addrs.split_off(WORKERS);
    let (listen, metrics) = (rest[0], rest[1]);
    let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    let _workers = Running::start(role("worker", &texts)?)?;
    for addr in &addrs {
        wait_for(*addr);
    }
    let conf = folder.path().join("scale.yaml");
    write_conf(&conf, listen, metrics, &addrs, 2)?;
    let ours = Running::start(warmroute(&conf)?)?;
    wait_for(listen);

    let shot = Shot { bodies: Arc::new(chat_bodies(6_000, 2_000)), events: None };
    let outcome = runtime.block_on(closed_loop(listen, &shot, CONCURRENT, REQUESTS));
    let page = runtime.block_on(scrape::page(metrics)).map_err(|error| error.to_string())?;
    let (p50, p99) = (scrape::decision(&page, 0.5), scrape::decision(&page, 0.99));
    say(&format!("{WORKERS} workers, {CONCURRENT} concurrent, {REQUESTS} requests of 6 KB"));
    say(&format!(
        "answered: {}, failed: {}, not sent: {}",
        outcome.latencies.len(),
        outcome.errors,
        outcome.unsent
    ));
    say(&format!(
        "latency p50 {:.1} ms, p99 {:.1} ms (workers take {} ms); {:.0} requests/s",
        outcome.quantile(0.5).as_secs_f64() * 1e3,
        outcome.quantile(0.99).as_secs_f64() * 1e3,
        ANSWER_AFTER.as_millis(),
        outcome.latencies.len() as f64 / outcome.took.as_secs_f64(),
    ));
    say(&format!("decision time: p50 at most {p50} us, p99 at most {p99} us"));
    say(&format!("resident memory: {} MiB", ours.resident() >> 20));
    for line in page.lines().filter(|line| line.starts_with("warmroute_decisions_total")) {
        say(line);
    }
    Ok(())
}
