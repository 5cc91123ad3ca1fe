//! The command line.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::config;

/// Exit status of a bad configuration or command line (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// Cache-aware load balancer for fleets of LLM inference engines.
#[derive(Debug, Parser)]
#[command(name = "warmroute", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve traffic
    Run {
        /// Configuration file (YAML)
        #[arg(long, value_name = "FILE")]
        conf: PathBuf,
    },
    /// Validate a configuration file and leave
    Check {
        /// Configuration file (YAML)
        #[arg(long, value_name = "FILE")]
        conf: PathBuf,
    },
    /// Show what it does, with four simulated engines on this machine
    #[cfg(feature = "demo")]
    Demo {
        /// Leave the engines and the router running afterwards
        #[arg(long)]
        stay: bool,
    },
}

/// Runs the command; its exit status says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Run { conf } => run(&conf),
        Command::Check { conf } => check(&conf),
        #[cfg(feature = "demo")]
        Command::Demo { stay } => demo(stay),
    }
}

fn run(conf: &std::path::Path) -> ExitCode {
    let outcome = config::load(conf).and_then(crate::server::run);
    outcome.map_or_else(|error| refuse(conf, &error), |()| ExitCode::SUCCESS)
}

fn check(conf: &std::path::Path) -> ExitCode {
    let checked = config::load(conf).and_then(|config| {
        crate::fleet::AlignedModels::load(&config)?;
        Ok(config)
    });
    match checked {
        Ok(config) => {
            let (workers, policy) = (config.workers.len(), config.policies.default.0);
            let text = format!("{}: ok, {workers} workers, policy {policy}", conf.display());
            let _ = writeln!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => refuse(conf, &error),
    }
}

fn refuse(conf: &std::path::Path, error: &config::ConfigError) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "warmroute: {}: {error}", conf.display());
    ExitCode::from(EXIT_USAGE)
}

#[cfg(feature = "demo")]
fn demo(stay: bool) -> ExitCode {
    match crate::demo::run(crate::demo::DemoOptions { stay, ..Default::default() }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "warmroute demo: {error}");
            ExitCode::FAILURE
        }
    }
}
