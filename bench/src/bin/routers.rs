//! `make bench-routers`. See `warmroute_bench::routers`.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use warmroute_bench::{
    routers::{
        Any, Routers,
        bed::{self, Bed, Plan},
        chats::{self, Size},
        measure::{HEAD, Measured},
    },
    say,
};

/// One router and two, with and without a broker, on the same chats.
#[derive(Debug, Parser)]
struct Flags {
    /// Sessions of each of the six applications
    #[arg(long, default_value_t = 30)]
    sessions: u64,
    /// Sessions of an application that are open at once
    #[arg(long, default_value_t = 6)]
    open: usize,
    /// Runs of each kind
    #[arg(long, default_value_t = 2)]
    runs: u64,
    /// Only with (true) or without (false) reports of the engines
    #[arg(long)]
    reporting: Option<bool>,
    /// The router; default: `warmroute` beside this program
    #[arg(long)]
    router: Option<PathBuf>,
    /// The broker
    #[arg(long, default_value_os_t = bed::nats_server())]
    nats: PathBuf,
    /// Where configurations, logs and results go
    #[arg(long, default_value = "target/routers")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(Any::from).and_then(|runtime| runtime.block_on(all(&flags))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bench-routers: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn all(flags: &Flags) -> Result<(), Any> {
    let program = match &flags.router {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("warmroute"),
    };
    if !program.exists() {
        let text = format!("{} is missing: cargo build --release", program.display());
        return Err(text.into());
    }
    std::fs::create_dir_all(&flags.out)?;
    let size = Size { sessions: flags.sessions, open: flags.open };
    let mut report = String::new();
    let mut tell = |line: &str| {
        say(line);
        report.push_str(line);
        report.push('\n');
    };
    for (reporting, title) in [(true, "Engines report"), (false, "Engines say nothing")] {
        if flags.reporting.is_some_and(|only| only != reporting) {
            continue;
        }
        tell(&format!("\n{title}:\n\n{HEAD}"));
        let mut one = None;
        for routers in Routers::ALL {
            let (program, nats, folder) = (&*program, &*flags.nats, &*flags.out);
            let plan = Plan { program, nats, folder, routers, reporting };
            let mut runs = Vec::new();
            for run in 0..flags.runs {
                let bed = Bed::start(&plan).await?;
                let records = chats::play(bed.urls(), size, run).await?;
                runs.push(Measured::of(&records, &bed.counted(), &bed.metrics().await));
            }
            let mean = Measured::mean(&runs);
            tell(&mean.line(routers.name(), one.get_or_insert(mean)));
        }
    }
    std::fs::write(flags.out.join("results.md"), report)?;
    Ok(())
}
