//! Figures -> a table for people.

use std::fmt::Write;

use super::{
    measure::{Measured, Rates},
    scenario::{Act, Scenario},
};

/// One scenario and what it gave.
pub type Row = (Scenario, Measured);

/// Two tables in Markdown: what was believed, and what it took.
pub fn render(rows: &[Row]) -> String {
    let mut text = String::from(
        "| scenario | stale before / during / after | missed before / during / after | \
         hit rate before / during / after | stale tokens in the fault | recovery | exact again |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for (scenario, measured) in rows {
        let three = |of: fn(&Rates) -> f64, digits: usize| {
            let Measured { before, during, after, .. } = measured;
            // Nothing is counted within a moment.
            let is_moment = measured.fault.1 - measured.fault.0 < 0.25;
            let percent = |rates| format!("{:.digits$}", of(rates) * 100.0);
            let middle = if is_moment { "-".to_owned() } else { percent(during) };
            format!("{} / {middle} / {} %", percent(before), percent(after))
        };
        let recovery = match (scenario.act, measured.recovery_s) {
            (Act::Silence | Act::Reference, _) => "-".to_owned(),
            (_, Some(seconds)) => format!("{seconds:.1} s"),
            (_, None) => "**not**".to_owned(),
        };
        let exact = match (scenario.act, measured.exact_after_s) {
            (Act::Silence, _) => "-".to_owned(),
            _ if measured.not_exact == 0 => "always".to_owned(),
            (_, Some(seconds)) => format!("{seconds:.1} s"),
            (_, None) => "**not**".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.0} | {recovery} | {exact} |",
            scenario.name,
            three(|rates| rates.stale, 2),
            three(|rates| rates.missed, 2),
            three(|rates| rates.hit, 0),
            measured.during.stale_tokens,
        );
    }
    text += "\n| scenario | requests | failed as cut / **for no reason** | messages hit | \
             made up: taken / refused / no answer | gaps | \
             syncs: digest / buckets / snapshot | new epochs | beliefs dropped | evictions/s |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for (scenario, measured) in rows {
        let [digest, buckets, snapshot] = measured.syncs;
        let injected = measured.injected.map_or_else(
            || "-".to_owned(),
            |made_up| format!("{} / {} / {}", made_up.taken, made_up.refused, made_up.unanswered),
        );
        let _ = writeln!(
            text,
            "| {} | {} | {} / **{}** | {} | {injected} | {} | {digest} / {buckets} / {snapshot} | \
             {} | {} | {:.0} |",
            scenario.name,
            measured.answered,
            measured.errors_excused,
            measured.errors,
            measured.faults,
            measured.gaps,
            measured.engine_resyncs,
            measured.drops,
            measured.evictions_a_s,
        );
    }
    text
}

/// What must not be, one line for each.
pub fn failures(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for (scenario, measured) in rows {
        if scenario.act != Act::Silence && measured.is_stale_at_end {
            let percent = measured.stale_at_end * 100.0;
            lines.push(format!("{}: {percent:.2} % stale at the end", scenario.name));
        }
        if measured.errors > 0 {
            let first = measured.first_error.as_deref().unwrap_or_default();
            let lost = measured.errors;
            lines.push(format!("{}: {lost} requests lost, the first at {first}", scenario.name));
        }
    }
    lines
}
