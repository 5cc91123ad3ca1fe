//! Files a router is reloaded with, good and bad.

use super::bed::{CHATS, Fleet, Settings};

/// Of so many reloads, one is bad.
pub const BAD_EVERY: usize = 10;

/// What a reload is about.
#[derive(Debug)]
pub struct Reload {
    /// The file.
    pub yaml: String,
    /// A few words for what it changes.
    pub what: &'static str,
    /// Whether it must be refused.
    pub is_bad: bool,
}

/// The reload of this number, counted from 0; `settings` are those in force and change with it.
pub fn reload(number: usize, fleet: &Fleet, settings: &mut Settings) -> Reload {
    let round = number / BAD_EVERY;
    let what = match number % BAD_EVERY {
        0 | 3 | 6 => {
            let turned = (number + round) % CHATS;
            settings.weights[turned] = [1.0, 1.25, 0.8][(number / 3 + round) % 3];
            "weights"
        }
        1 | 4 => {
            settings.inflight_max = 2_000 + number;
            "limits"
        }
        2 => {
            settings.has_spare = true;
            "a worker more"
        }
        5 => {
            settings.has_spare = false;
            "a worker less"
        }
        7 => {
            settings.decode_tokens = 60 + number as u64 % 10;
            "policy"
        }
        8 => {
            settings.retries_max = 1 + round as u64 % 3;
            "retries"
        }
        _ => {
            let (what, yaml) = bad(round, &fleet.yaml(settings));
            return Reload { yaml, what, is_bad: true };
        }
    };
    Reload { yaml: fleet.yaml(settings), what, is_bad: false }
}

/// A file that must be refused.
pub fn bad(kind: usize, good: &str) -> (&'static str, String) {
    match kind % 5 {
        0 => ("unknown key", format!("{good}no_such_key: 1\n")),
        1 => ("bad value", good.replace("threads: ", "threads: -")),
        2 => ("not YAML", format!("{good}: [}}\n")),
        3 => ("worker twice", {
            let worker = good.lines().rfind(|line| line.starts_with("  - {id:"));
            format!("{good}{}\n", worker.unwrap_or_default())
        }),
        _ => ("empty", String::new()),
    }
}
