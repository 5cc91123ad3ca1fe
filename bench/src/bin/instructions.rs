//! `make bench-instructions`: instructions a request of warmroute against a bare Pingora proxy.
//!
//! Both run under callgrind with one thread, in front of the same four workers, and get the same
//! requests one by one. What is counted is user space alone: what the kernel does for a request is
//! much the same for both, so the ratio of CPU times (`make bench`) is nearer to one than this one.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use bytes::Bytes;
use clap::Parser;
use tokio::{net::TcpListener, runtime::Runtime};
use warmroute_bench::{
    bare,
    callgrind::Counted,
    load::{chat_bodies, streaming},
    lockstep::{self, Client, Lockstep},
    process::{free_addresses, role, warmroute},
    say,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const WORKERS: usize = 4;
/// Measurements of a case; the median is told.
const ROUNDS: usize = 3;

type Any = Box<dyn std::error::Error>;

/// Instructions a request under callgrind.
#[derive(Debug, Parser)]
struct Options {
    /// Where profiles go (`callgrind_annotate FILE`).
    #[arg(long, default_value = "target/callgrind")]
    out: PathBuf,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// The router alone: its profiles, no ratio.
    #[arg(long)]
    ours: bool,
    /// YAML lines that are put before the router's workers.
    #[arg(long, default_value = "")]
    conf: String,
}

struct Case {
    name: &'static str,
    body_bytes: usize,
    bodies: usize,
    requests: usize,
    /// Content events of the stream; none = the answer is no stream.
    events: Option<usize>,
}

/// Content events of the shorter and the longer stream: the difference is what an event costs.
const EVENTS: (usize, usize) = (8, 136);

#[rustfmt::skip]
const CASES: [Case; 5] = [
    Case { name: "6-KB",           body_bytes: 6_000,     bodies: 48, requests: 192, events: None },
    Case { name: "64-KB",          body_bytes: 64_000,    bodies: 16, requests: 64,  events: None },
    Case { name: "1-MB",           body_bytes: 1_000_000, bodies: 4,  requests: 16,  events: None },
    Case { name: "6-KB-8-events",  body_bytes: 6_000,     bodies: 16, requests: 48,  events: Some(EVENTS.0) },
    Case { name: "6-KB-136-events", body_bytes: 6_000,    bodies: 16, requests: 24,  events: Some(EVENTS.1) },
];

fn main() -> Result<(), Any> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "bare") {
        let addrs: Result<Vec<SocketAddr>, _> = args[1..].iter().map(|addr| addr.parse()).collect();
        let addrs = addrs?;
        bare::serve(addrs[0], addrs[1..].to_vec(), 1);
        return Ok(());
    }
    let options = Options::parse();
    std::fs::create_dir_all(&options.out)?;
    // The workers keep one thread busy at most, and the client another.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let shared = Arc::new(Lockstep::default());
    let workers = serve_workers(&runtime, &shared)?;
    let bare = if options.ours {
        None
    } else {
        Some(measure_bare(&options, &runtime, &shared, &workers)?)
    };
    let ours = measure_ours(&options, &runtime, &shared, &workers)?;
    report(&options, bare.as_deref(), &ours);
    Ok(())
}

fn serve_workers(runtime: &Runtime, shared: &Arc<Lockstep>) -> Result<Vec<SocketAddr>, Any> {
    let mut addrs = Vec::new();
    for _ in 0..WORKERS {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        addrs.push(listener.local_addr()?);
        runtime.spawn(lockstep::serve(listener, shared.clone()));
    }
    Ok(addrs)
}

fn measure_bare(
    options: &Options,
    runtime: &Runtime,
    shared: &Arc<Lockstep>,
    workers: &[SocketAddr],
) -> Result<Vec<Figure>, Any> {
    let listen = free_addresses(1)?[0];
    let args: Vec<_> = [listen].iter().chain(workers).map(ToString::to_string).collect();
    measure(options, runtime, shared, &role("bare", &args)?, "bare", listen)
}

fn measure_ours(
    options: &Options,
    runtime: &Runtime,
    shared: &Arc<Lockstep>,
    workers: &[SocketAddr],
) -> Result<Vec<Figure>, Any> {
    let folder = tempfile::tempdir()?;
    let conf = folder.path().join("bench.yaml");
    let addrs = free_addresses(2)?;
    write_conf(&conf, &addrs, workers, &options.conf)?;
    measure(options, runtime, shared, &warmroute(&conf)?, "ours", addrs[0])
}

fn write_conf(
    path: &Path,
    addrs: &[SocketAddr],
    workers: &[SocketAddr],
    more: &str,
) -> std::io::Result<()> {
    use std::fmt::Write as _;
    let (listen, metrics) = (addrs[0], addrs[1]);
    let mut text = format!(
        "listen: {listen}\nthreads: 1\nmetrics: {{listen: \"{metrics}\"}}\n\
         log: {{level: warn, access: true}}\nhealth: {{interval_ms: 5000, timeout_ms: 5000}}\n{more}\nworkers:\n"
    );
    for (at, worker) in workers.iter().enumerate() {
        let _ = writeln!(text, "  - {{id: w{at}, url: \"http://{worker}\"}}");
    }
    std::fs::write(path, text)
}

/// Instructions a request, of each round, ascending; none where the case was left out.
type Figure = Option<Vec<f64>>;

fn measure(
    options: &Options,
    runtime: &Runtime,
    shared: &Arc<Lockstep>,
    command: &Command,
    name: &str,
    listen: SocketAddr,
) -> Result<Vec<Figure>, Any> {
    let mut counted = Counted::start(command, &options.out, name)?;
    let mut client = connect(runtime, shared, listen)?;
    let mut figures = Vec::new();
    for case in &CASES {
        if !case.name.contains(&options.only) {
            figures.push(None);
            continue;
        }
        let bodies = bodies_of(case);
        // Twice each: workers are known to hold them all, and what grows has grown.
        play(runtime, &mut client, case, &bodies, case.bodies * 2)?;
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            counted.zero()?;
            play(runtime, &mut client, case, &bodies, case.requests)?;
            rounds.push(counted.dump(case.name)? as f64 / case.requests as f64);
        }
        rounds.sort_by(f64::total_cmp);
        figures.push(Some(rounds));
    }
    Ok(figures)
}

/// Under callgrind a program takes its time to start, and to find its workers healthy.
fn connect(runtime: &Runtime, shared: &Arc<Lockstep>, to: SocketAddr) -> Result<Client, Any> {
    let body = &chat_bodies(100, 1)[0];
    for _ in 0..120 {
        let answered = runtime.block_on(async {
            let mut client = Client::connect(to, shared.clone()).await?;
            client.ask(body.clone(), None).await?;
            std::io::Result::Ok(client)
        });
        if let Ok(client) = answered {
            return Ok(client);
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    Err("the proxy does not answer after a minute".into())
}

fn bodies_of(case: &Case) -> Vec<Bytes> {
    let bodies = chat_bodies(case.body_bytes, case.bodies);
    if case.events.is_some() { streaming(&bodies) } else { bodies }
}

fn play(
    runtime: &Runtime,
    client: &mut Client,
    case: &Case,
    bodies: &[Bytes],
    requests: usize,
) -> Result<(), Any> {
    runtime.block_on(async {
        for turn in 0..requests {
            client.ask(bodies[turn % bodies.len()].clone(), case.events).await?;
        }
        Ok(())
    })
}

fn report(options: &Options, bare: Option<&[Figure]>, ours: &[Figure]) {
    say(
        "Instructions in user space a request, one thread each, requests one by one; median (spread)",
    );
    say(&format!("of {ROUNDS} rounds. Profiles: {}\n", options.out.display()));
    say("| request | bare Pingora | warmroute | **ratio** | more |");
    say("| --- | --- | --- | --- | --- |");
    for (at, case) in CASES.iter().enumerate() {
        if let Some(ours) = &ours[at] {
            let bare = bare.and_then(|bare| bare[at].as_ref());
            say(&row(case.name, bare.map(|bare| cell(bare)), &cell(ours)));
        }
    }
    let per_event = |figures: &[Figure]| {
        let of = |at: usize| figures[at].as_ref().map(|rounds| rounds[rounds.len() / 2]);
        let (less, more) = (of(CASES.len() - 2)?, of(CASES.len() - 1)?);
        Some(((more - less) / (EVENTS.1 - EVENTS.0) as f64, 0.0))
    };
    if let Some(ours) = per_event(ours) {
        say(&row("each further event", bare.and_then(per_event), &ours));
    }
}

/// Median, and spread in per cent of it.
fn cell(rounds: &[f64]) -> (f64, f64) {
    let median = rounds[rounds.len() / 2];
    (median, (rounds[rounds.len() - 1] - rounds[0]) / median * 100.0)
}

fn row(name: &str, bare: Option<(f64, f64)>, ours: &(f64, f64)) -> String {
    let text = |(median, spread): &(f64, f64)| format!("{median:.0} ({spread:.1} %)");
    let Some(bare) = bare else { return format!("| {name} | | {} | | |", text(ours)) };
    format!(
        "| {name} | {} | {} | **{:.3}** | {:.0} |",
        text(&bare),
        text(ours),
        ours.0 / bare.0,
        ours.0 - bare.0
    )
}
