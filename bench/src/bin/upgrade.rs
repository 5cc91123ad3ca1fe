//! `make bench-upgrade`: reloads, upgrades and crashes under load. See `warmroute_bench::upgrade`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use warmroute_bench::{
    say,
    upgrade::{
        Any,
        bed::Plan,
        http2,
        measure::Report,
        plot,
        script::{Act, Times, play},
        sizing, table,
    },
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Failures shown of each run.
const SHOWN: usize = 8;

/// What reloads, upgrades and crashes cost: requests, streams, knowledge of the caches.
#[derive(Debug, Parser)]
struct Flags {
    /// Less than two minutes in all
    #[arg(long)]
    quick: bool,
    /// Arrivals a second; default: what takes 60 % of two cores
    #[arg(long)]
    rate: Option<f64>,
    /// Streams that are open all the time
    #[arg(long, default_value_t = 500)]
    streams: u64,
    /// Have engines report what they hold
    #[arg(long)]
    reporting: bool,
    /// Order reloads and upgrades by signal alone, not over the admin listener too
    #[arg(long)]
    signals_only: bool,
    /// Only these runs: warmroute, plain
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these phases, by a part of their name
    #[arg(long, value_delimiter = ',')]
    phases: Vec<String>,
    /// The router; default: `warmroute` beside this program
    #[arg(long)]
    router: Option<PathBuf>,
    /// Where results go
    #[arg(long, default_value = "target/bench-upgrade")]
    out: PathBuf,
}

/// Name, acts, and whether state is kept on disk.
const RUNS: [(&str, &[Act], bool); 2] = [
    ("warmroute", &[Act::Reloads, Act::Upgrades, Act::FailedUpgrades, Act::Crash], true),
    ("plain restart", &[Act::PlainRestart, Act::PlainCrash], false),
];

fn main() -> ExitCode {
    let flags = Flags::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(Any::from).and_then(|runtime| runtime.block_on(suite(&flags))) {
        Ok(complaints) if complaints.is_empty() => ExitCode::SUCCESS,
        Ok(complaints) => {
            for complaint in complaints {
                say(&format!("FAILED {complaint}"));
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("bench-upgrade: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn suite(flags: &Flags) -> Result<Vec<String>, Any> {
    let program = match &flags.router {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("warmroute"),
    };
    if !program.exists() {
        let text = format!("{} is missing: cargo build --release", program.display());
        return Err(text.into());
    }
    std::fs::create_dir_all(&flags.out)?;
    let mut times = if flags.quick { Times::QUICK } else { Times::FULL };
    times.signals_only = flags.signals_only;
    let mut plan = Plan {
        rate: 0.0,
        streams: flags.streams,
        stream_s: if flags.quick { (4.0, 12.0) } else { (10.0, 30.0) },
        think: if flags.quick { (1_000, 3_000) } else { (3_000, 7_000) },
        is_reporting: flags.reporting,
        has_state: false,
    };
    plan.rate = match flags.rate {
        Some(rate) => rate,
        None => sizing::rate(&program, &flags.out, &plan).await?,
    };
    let is_named = |names: &[String], name: &str| {
        names.is_empty() || names.iter().any(|part| name.contains(part.as_str()))
    };
    let mut reports = Vec::new();
    for (name, acts, has_state) in RUNS {
        let acts: Vec<Act> =
            acts.iter().copied().filter(|act| is_named(&flags.phases, act.name())).collect();
        if acts.is_empty() || !is_named(&flags.only, name) {
            continue;
        }
        say(&format!("{name}: {:.0} chats a second, {} streams", plan.rate, plan.streams));
        let plan = Plan { has_state, ..plan.clone() };
        let run = play(name, &acts, &times, &plan, &program, &flags.out).await?;
        let report = Report::of(&run);
        for failed in report.failures.iter().take(SHOWN) {
            let long = if failed.is_long { " stream" } else { "" };
            say(&format!(
                "    {:.3} to {:.3} s: {:?}{long}: {:?}: {}",
                failed.sent, failed.ended, failed.way, failed.cause, failed.text
            ));
        }
        reports.push(report);
    }
    let tables = table::render(&reports);
    let again = http2::sent_again();
    let tables = format!(
        "{tables}\n{again} requests were sent again over HTTP/2, as the server had said that it had not \
         taken them (RFC 9113, 8.7).\n"
    );
    say(&format!("\n{tables}"));
    write(&flags.out, "results.md", &tables)?;
    write(&flags.out, "upgrade.svg", &plot::svg(&reports))?;
    let json = serde_json::json!({
        "rate": plan.rate, "streams": plan.streams, "reporting": plan.is_reporting,
        "quick": flags.quick, "sent_again": again, "runs": reports,
    });
    write(&flags.out, "results.json", &serde_json::to_string_pretty(&json)?)?;
    say(&format!("results.json, results.md and upgrade.svg are in {}", flags.out.display()));
    Ok(reports.iter().flat_map(Report::complaints).collect())
}

fn write(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    std::fs::write(folder.join(name), text)
}
