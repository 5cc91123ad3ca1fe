//! `warmroute-bench`: replays, their reports, traces (docs/replay.md), and simulations
//! (docs/simulate.md).

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use warmroute_bench::{
    replay::{self, Any, options::ReplayOptions, results::Results, table},
    report, say,
    simulate::{command::simulate, options::SimulateOptions},
    trace::synth::{Size, Workload, draw},
};

/// Measures warmroute, and others, on traces.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

// A further subcommand is a variant here, an arm of `run` and a module of the library.
#[derive(Debug, Subcommand)]
enum Command {
    Replay(Box<ReplayOptions>),
    Report(ReportOptions),
    Trace(TraceOptions),
    Simulate(Box<SimulateOptions>),
}

/// Makes a page and plots of results of replays.
#[derive(Debug, Args)]
struct ReportOptions {
    /// Results that replays wrote
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// The page; plots go beside it as SVG files
    #[arg(long, default_value = "target/replay/report.html")]
    out: PathBuf,
    /// Its title
    #[arg(long, default_value = "warmroute: replay of traces")]
    title: String,
}

/// Writes a workload as a trace file.
#[derive(Debug, Args)]
struct TraceOptions {
    /// The pattern
    #[arg(long)]
    workload: Workload,
    /// Conversations; requests where they have one turn
    #[arg(long, default_value_t = 48)]
    conversations: usize,
    /// Requests of a conversation
    #[arg(long, default_value_t = 6)]
    turns: u32,
    /// Bytes of the common prompt
    #[arg(long, default_value_t = 6_144)]
    system_bytes: usize,
    /// Requests a second
    #[arg(long, default_value_t = 8.0)]
    rate: f64,
    /// What draws it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave the text out
    #[arg(long)]
    shape: bool,
    /// The file; `.zst` is packed
    #[arg(long)]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(Flags::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("warmroute-bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Any> {
    match command {
        Command::Replay(options) => play(&options),
        Command::Report(options) => tell(&options.results, &options.out, &options.title),
        Command::Trace(options) => write_trace(&options),
        Command::Simulate(options) => simulate(&options, replay::results::commit(), &mut say),
    }
}

fn play(options: &ReplayOptions) -> Result<(), Any> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let results = runtime.block_on(replay::replay(options, &mut say))?;
    let file = options.out.join("results.json");
    results.write(&file)?;
    say(&format!("\n{}", table::render(&results)));
    let title = options.label.as_deref().unwrap_or(&results.trace.name);
    tell(&[file], &options.out.join("report.html"), &format!("Replay: {title}"))
}

fn tell(results: &[PathBuf], out: &std::path::Path, title: &str) -> Result<(), Any> {
    let read = results.iter().map(|path| Results::read(path)).collect::<Result<Vec<_>, _>>()?;
    report::write(&read, title, out)?;
    say(&format!("{} and its plots are written", out.display()));
    Ok(())
}

fn write_trace(options: &TraceOptions) -> Result<(), Any> {
    let size = Size {
        conversations: options.conversations.max(1),
        turns: options.turns.max(1),
        system_bytes: options.system_bytes,
        rate: options.rate,
    };
    if !(options.rate > 0.0 && options.rate <= 1e9) {
        return Err(format!("--rate {}: give a number above 0", options.rate).into());
    }
    let mut trace = draw(options.workload, &size, options.seed);
    if options.shape {
        trace = trace.shaped();
    }
    let text = trace.to_jsonl()?;
    let packs = options.out.extension().is_some_and(|extension| extension == "zst");
    let bytes = if packs { zstd::encode_all(text.as_bytes(), 19)? } else { text.into_bytes() };
    std::fs::write(&options.out, bytes)
        .map_err(|error| format!("{}: {error}", options.out.display()))?;
    say(&format!("{} requests in {}", trace.requests.len(), options.out.display()));
    Ok(())
}
