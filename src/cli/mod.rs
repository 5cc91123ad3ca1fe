//! The command line.

pub mod admin_client;
mod generate;
mod process;
mod workers;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use generate::Generate;

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
    /// Have a running warmroute read its configuration again
    Reload {
        #[command(flatten)]
        admin: admin_client::AdminArgs,
    },
    /// Have a new process take over from a running warmroute: of the program that is installed now
    Upgrade {
        #[command(flatten)]
        admin: admin_client::AdminArgs,
    },
    /// See and change the workers of a running warmroute
    #[command(subcommand)]
    Workers(workers::WorkersCommand),
    /// Show what it does, with four simulated engines on this machine
    #[cfg(feature = "demo")]
    Demo {
        /// Leave the engines and the router running afterwards
        #[arg(long)]
        stay: bool,
    },
    /// Write the manual page and shell completions, for packages
    #[command(hide = true)]
    Generate(Generate),
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
        Command::Reload { admin } => process::reload(&admin),
        Command::Upgrade { admin } => process::upgrade(&admin),
        Command::Workers(command) => workers::run(&command),
        #[cfg(feature = "demo")]
        Command::Demo { stay } => demo(stay),
        Command::Generate(generate) => match generate.run(&Cli::command()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "warmroute generate: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn run(conf: &std::path::Path) -> ExitCode {
    crate::server::run(conf).map_or_else(|error| refuse(conf, &error), |()| ExitCode::SUCCESS)
}

fn check(conf: &std::path::Path) -> ExitCode {
    let checked = config::load(conf).and_then(|config| {
        crate::fleet::AlignedModels::load(&config, None)?;
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
