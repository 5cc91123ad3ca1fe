//! `make bench-truth`: the fault suite. See `warmroute_bench::truth`.

use std::{
    io::{IsTerminal, stderr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use warmroute_bench::{
    say,
    truth::{
        Any,
        measure::{Measured, highest},
        plot,
        scenario::{SCENARIOS, Scenario, Times, play},
        table::{self, Row},
    },
};

/// What faults of reports do to the router's beliefs, and how soon it is over.
#[derive(Debug, Parser)]
struct Flags {
    /// Shorter scenarios: less than two minutes in all
    #[arg(long)]
    quick: bool,
    /// Length of the partition, seconds
    #[arg(long)]
    partition_s: Option<u64>,
    /// Only these scenarios, besides the reference
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The router; default: `warmroute` beside this program
    #[arg(long)]
    router: Option<PathBuf>,
    /// Where results go
    #[arg(long, default_value = "target/truth")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(Any::from).and_then(|runtime| runtime.block_on(suite(&flags))) {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            for failure in failures {
                say(&format!("FAILED {failure}"));
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("bench-truth: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn suite(flags: &Flags) -> Result<Vec<String>, Any> {
    let mut times = if flags.quick { Times::QUICK } else { Times::FULL };
    if let Some(seconds) = flags.partition_s {
        times.partition = Duration::from_secs(seconds);
    }
    let program = match &flags.router {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("warmroute"),
    };
    if !program.exists() {
        let text = format!("{} is missing: cargo build --release", program.display());
        return Err(text.into());
    }
    if let Some(name) = flags.only.iter().find(|name| SCENARIOS.iter().all(|s| s.name != **name)) {
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        return Err(format!("no scenario `{name}`; known: {}", names.join(", ")).into());
    }
    std::fs::create_dir_all(&flags.out)?;
    let is_chosen = |at: usize, scenario: &Scenario| {
        at == 0 || flags.only.is_empty() || flags.only.iter().any(|name| name == scenario.name)
    };
    let chosen: Vec<_> =
        SCENARIOS.iter().enumerate().filter(|(at, s)| is_chosen(*at, s)).map(|(_, s)| s).collect();
    let total: Duration = chosen.iter().map(|scenario| times.total(scenario.act)).sum();
    say(&format!("{} scenarios, about {} s", chosen.len(), total.as_secs()));
    let mut rows: Vec<Row> = Vec::new();
    let mut reference = 0.0;
    for (at, scenario) in chosen.iter().enumerate() {
        let progress = Progress::start(scenario, at, chosen.len(), times.total(scenario.act));
        let run = play(scenario, &times, &program, &flags.out).await;
        progress.end();
        let run = run.map_err(|error| format!("{}: {error}", scenario.name))?;
        if at == 0 {
            reference = highest(&run);
        }
        rows.push((**scenario, Measured::of(&run, reference)));
    }
    let tables = table::render(&rows);
    say(&format!("\n{tables}"));
    write(&flags.out, "results.md", &tables)?;
    write(&flags.out, "truth.svg", &plot::svg(&rows))?;
    let json: serde_json::Map<_, _> = rows
        .iter()
        .map(|(scenario, measured)| Ok((scenario.name.to_owned(), serde_json::to_value(measured)?)))
        .collect::<Result<_, serde_json::Error>>()?;
    write(&flags.out, "results.json", &serde_json::to_string_pretty(&json)?)?;
    say(&format!("results.json, results.md and truth.svg are in {}", flags.out.display()));
    Ok(table::failures(&rows))
}

fn write(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    std::fs::write(folder.join(name), text)
}

/// A bar for people, a line for files.
struct Progress(Option<(ProgressBar, tokio::task::JoinHandle<()>)>);

impl Progress {
    fn start(scenario: &Scenario, at: usize, count: usize, lasting: Duration) -> Self {
        let text = format!("[{}/{count}] {}: {}", at + 1, scenario.name, scenario.what);
        if !stderr().is_terminal() {
            say(&text);
            return Self(None);
        }
        let ticks = lasting.as_secs() * 4;
        let style = ProgressStyle::with_template("{bar:24} {msg}");
        let bar = ProgressBar::new(ticks)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(text);
        let ticking = bar.clone();
        let task = tokio::spawn(async move {
            for _ in 0..ticks {
                tokio::time::sleep(Duration::from_millis(250)).await;
                ticking.inc(1);
            }
        });
        Self(Some((bar, task)))
    }

    fn end(self) {
        if let Some((bar, task)) = self.0 {
            task.abort();
            bar.finish();
        }
    }
}
