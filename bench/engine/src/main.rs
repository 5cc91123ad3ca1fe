//! Runs one simulated engine by hand.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use warmroute_engine::{Engine, EngineOptions, ReportTo};

/// A SIMULATED inference engine: the cache and the clock of a real one, and nonsense for answers.
#[derive(Debug, Parser)]
#[command(version)]
struct Flags {
    /// TCP port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Model name to serve
    #[arg(long, default_value = "sim-model")]
    model: String,
    /// KV blocks of the cache
    #[arg(long, default_value_t = 4096)]
    kv_blocks: usize,
    /// Prefill speed, in tokens a second
    #[arg(long, default_value_t = 8000.0)]
    prefill_tokens_per_s: f64,
    /// Fixed cost of a step, in milliseconds
    #[arg(long, default_value_t = 8.0)]
    decode_step_ms: f64,
    /// Divides all times
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Report listeners of routers, such as http://127.0.0.1:9000
    #[arg(long, value_delimiter = ',')]
    report_to: Vec<String>,
    /// This worker's id in the router
    #[arg(long, default_value = "sim0")]
    worker_id: String,
    /// Token for the report listener
    #[arg(long)]
    report_token: Option<String>,
    /// Ask the router for membership
    #[arg(long)]
    join: bool,
    /// Begin a new epoch where others would sync
    #[arg(long)]
    no_sync: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let mut routers = flags.report_to.into_iter();
    let reports = routers.next().map(|url| ReportTo {
        also: routers.collect(),
        token: flags.report_token,
        join: flags.join,
        sync: !flags.no_sync,
        ..ReportTo::new(url, flags.worker_id)
    });
    let options = EngineOptions {
        port: flags.port,
        model: flags.model,
        kv_blocks: flags.kv_blocks.max(1),
        prefill_tokens_per_s: flags.prefill_tokens_per_s,
        decode_step_ms: flags.decode_step_ms,
        speed: flags.speed,
        reports,
        ..EngineOptions::default()
    };
    let mut stderr = std::io::stderr().lock();
    let engine = match Engine::start(options) {
        Ok(engine) => engine,
        Err(error) => {
            drop(writeln!(stderr, "cannot listen on 127.0.0.1:{}: {error}", flags.port));
            return ExitCode::FAILURE;
        }
    };
    drop(writeln!(stderr, "simulated engine on {}; Ctrl-C ends it", engine.url()));
    drop(tokio::signal::ctrl_c().await);
    engine.stop();
    ExitCode::SUCCESS
}
