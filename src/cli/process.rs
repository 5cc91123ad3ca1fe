//! `warmroute reload` and `warmroute upgrade`: the running process, told to change.

use std::{io::Write, process::ExitCode};

use serde_json::Value;

use super::admin_client::{AdminArgs, AdminError, AdminTarget, accepted, post};

/// Has the configuration read again.
pub(super) fn reload(admin: &AdminArgs) -> ExitCode {
    print(act(admin, "/reload").map(|done| {
        let changed = list(&done["changed"]);
        let mut text = match &*changed {
            "" => "reloaded: nothing has changed".to_owned(),
            keys => format!("reloaded: {keys}"),
        };
        let waiting = list(&done["needs_upgrade"]);
        if !waiting.is_empty() {
            text = format!("{text}\nwarmroute upgrade is due for: {waiting}");
        }
        text
    }))
}

/// Has a new process take over.
pub(super) fn upgrade(admin: &AdminArgs) -> ExitCode {
    print(act(admin, "/upgrade").map(|done| format!("upgraded: process {} serves", done["pid"])))
}

fn act(admin: &AdminArgs, path: &str) -> Result<Value, AdminError> {
    accepted(post(&AdminTarget::of(admin)?, path)?)
}

fn list(keys: &Value) -> String {
    let keys = keys.as_array().into_iter().flatten().filter_map(Value::as_str);
    keys.collect::<Vec<_>>().join(", ")
}

fn print(outcome: Result<String, AdminError>) -> ExitCode {
    match outcome {
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
