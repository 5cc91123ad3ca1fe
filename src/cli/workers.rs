//! `warmroute workers`: the fleet of a running warmroute, seen and changed.

use std::{io::Write, process::ExitCode};

use clap::Subcommand;
use serde_json::Value;

use super::{
    EXIT_USAGE,
    admin_client::{AdminArgs, AdminError, AdminTarget, accepted, get, post},
};
use crate::routing::WorkerId;

#[derive(Debug, Subcommand)]
pub(super) enum WorkersCommand {
    /// Show all workers
    List {
        #[command(flatten)]
        admin: AdminArgs,
        /// As JSON, with all that GET /workers tells
        #[arg(long)]
        json: bool,
    },
    /// Send a worker no new requests; what runs finishes
    Drain {
        /// The worker
        id: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// End a drain, or let a removed worker come back
    Undrain {
        /// The worker
        id: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Take a worker out and keep it out until it is undrained
    Remove {
        /// The worker
        id: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

pub(super) fn run(command: &WorkersCommand) -> ExitCode {
    if let Some(id) = command.id()
        && let Err(error) = WorkerId::try_new(id)
    {
        let _ = writeln!(std::io::stderr(), "warmroute: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    match command.answer() {
        Ok(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "warmroute: {error}");
            error.exit_code()
        }
    }
}

impl WorkersCommand {
    fn id(&self) -> Option<&str> {
        match self {
            Self::List { .. } => None,
            Self::Drain { id, .. } | Self::Undrain { id, .. } | Self::Remove { id, .. } => Some(id),
        }
    }

    fn answer(&self) -> Result<String, AdminError> {
        let act = |admin: &AdminArgs, id: &str, act: &str| {
            let target = AdminTarget::of(admin)?;
            accepted(post(&target, &format!("/workers/{id}/{act}"))?)
        };
        match self {
            Self::List { admin, json } => {
                let fleet = accepted(get(&AdminTarget::of(admin)?, "/workers")?)?;
                Ok(if *json { format!("{fleet:#}") } else { table(&fleet) })
            }
            Self::Drain { id, admin } => {
                let done = act(admin, id, "drain")?;
                Ok(format!("{id}: drained, {} requests in flight", done["inflight"]))
            }
            Self::Undrain { id, admin } => {
                let done = act(admin, id, "undrain")?;
                Ok(if done["in_fleet"] == true {
                    format!("{id}: undrained")
                } else {
                    format!("{id}: may join again; its next heartbeat brings it back")
                })
            }
            Self::Remove { id, admin } => {
                let done = act(admin, id, "remove")?;
                Ok(format!("{id}: removed, {} requests in flight", done["inflight"]))
            }
        }
    }
}

/// Columns by the keys of `/workers` they show.
const COLUMNS: [(&str, &str); 11] = [
    ("ID", "id"),
    ("URL", "url"),
    ("ORIGIN", "origin"),
    ("HEALTH", "health"),
    ("BREAKER", "breaker"),
    ("DRAINED", "drained"),
    ("TRUST", "trust"),
    ("INFLIGHT", "inflight"),
    ("WEIGHT", "weight"),
    ("NOW", "weight_now"),
    ("MODELS", "models"),
];

fn table(fleet: &Value) -> String {
    let mut rows = vec![COLUMNS.map(|(title, _)| title.to_owned())];
    for worker in fleet["workers"].as_array().into_iter().flatten() {
        rows.push(COLUMNS.map(|(_, key)| cell(&worker[key])));
    }
    let mut lines = aligned(&rows);
    for id in fleet["removed"].as_array().into_iter().flatten() {
        lines.push(format!("removed, kept out until undrained: {}", cell(id)));
    }
    lines.join("\n")
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Null => "-".to_owned(),
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(","),
        // A weight of a slow start has many digits.
        Value::Number(number) => match number.as_u64() {
            Some(whole) => whole.to_string(),
            None => number.as_f64().map_or_else(|| number.to_string(), |n| format!("{n:.2}")),
        },
        other @ Value::Object(_) => other.to_string(),
    }
}

/// Each column as wide as its widest cell; no spaces at the ends of lines.
fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let worker = |id: &str, models: Value| {
            json!({
                "id": id, "url": "http://h:1", "origin": "static", "health": "healthy",
                "breaker": "closed", "drained": false, "trust": "exact", "inflight": 3,
                "weight": 1.0, "weight_now": 0.325, "models": models,
            })
        };
        let workers = [worker("a", json!([])), worker("longer", json!(["m", "n"]))];
        let shown = table(&json!({"workers": workers, "removed": ["w9"]}));
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 4, "{shown}");
        assert!(
            lines[2].starts_with("longer  http://h:1  static  healthy  closed   no "),
            "{shown}"
        );
        assert!(lines[2].ends_with("3         1.00    0.33  m,n"), "{shown}");
        assert!(lines[1].ends_with("0.33  -"), "{shown}");
        let column = |line: &str, text: &str| line.find(text);
        assert_eq!(column(lines[0], "HEALTH"), column(lines[1], "healthy"), "{shown}");
        assert_eq!(lines[3], "removed, kept out until undrained: w9");
    }

    #[test]
    fn an_empty_fleet_has_a_head() {
        assert_eq!(table(&json!({"workers": []})).lines().count(), 1);
    }
}
