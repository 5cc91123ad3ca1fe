//! Records -> figures.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    record::{Cause, Record, Way},
    script::{Phase, Run},
};

/// Seconds of one point of the plot, and of the window in which a dip is looked for.
pub const POINT_S: f64 = 1.0;
/// Seconds after a phase in which its dip is.
const AFTER_S: f64 = 5.0;
/// The hit rate is back when it is this close to what it was.
const BACK_WITHIN: f64 = 0.02;
/// Failures told one by one.
const FAILURES_MAX: usize = 200;

/// Percentiles of the time to the first token of streamed chats, milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Ttft {
    /// Median.
    pub p50: f64,
    /// 95 in 100 were faster.
    pub p95: f64,
    /// 99 in 100 were.
    pub p99: f64,
}

/// Before, during and after a phase.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Three<T> {
    /// Undisturbed.
    pub before: T,
    /// From the first of it to the last.
    pub during: T,
    /// In the seconds after that.
    pub after: T,
}

/// What came of one phase.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Its name.
    pub name: &'static str,
    /// Reloads, upgrades and so on.
    pub events: usize,
    /// Seconds since the load began.
    pub start: f64,
    /// Seconds since the load began.
    pub end: f64,
    /// Requests that ended in it or in the time after it, long streams too.
    pub requests: usize,
    /// Those of them that failed and may not.
    pub failed: usize,
    /// Those that failed and were under way when the router died.
    pub cut: usize,
    /// Those that failed and came while there was none.
    pub refused: usize,
    /// All that failed, by cause.
    pub causes: BTreeMap<Cause, usize>,
    /// All that failed, by the way they came.
    pub ways: BTreeMap<Way, usize>,
    /// Long streams that were whole.
    pub streams: usize,
    /// Long streams that were cut.
    pub streams_truncated: usize,
    /// Cached tokens of all prompt tokens.
    pub hit: Three<f64>,
    /// How far the hit rate of the seconds after lies below that of before, points.
    pub dip_points: f64,
    /// The same, of the worst second within the phase and the time after it.
    pub dip_worst_points: f64,
    /// After so long it was back for good, seconds; nothing if it was not.
    pub back_after_s: Option<f64>,
    /// Time to the first token.
    pub ttft: Three<Ttft>,
    /// What was added to it during the phase.
    pub added: Ttft,
    /// Longest time in which no chat was answered, seconds.
    pub gap_s: f64,
    /// From the first sign of death until it was ready again, seconds.
    pub down_s: Option<f64>,
    /// How long old processes took to leave, seconds.
    pub left_s: Vec<f64>,
    /// Syncs that engines had to make.
    pub syncs: u64,
    /// What was not as it should be.
    pub problems: Vec<String>,
    /// When things were done.
    pub marks: Vec<f64>,
}

/// One second.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Point {
    /// Its beginning.
    pub at: f64,
    /// Requests that ended.
    pub requests: usize,
    /// Those that failed.
    pub failed: usize,
    /// Cached tokens of all prompt tokens, if there were any.
    pub hit: Option<f64>,
}

/// One failure.
#[derive(Debug, Clone, Serialize)]
pub struct Failed {
    /// When it began.
    pub sent: f64,
    /// When it was over.
    pub ended: f64,
    /// How it came.
    pub way: Way,
    /// Whether it was a long stream.
    pub is_long: bool,
    /// Why.
    pub cause: Cause,
    /// In words.
    pub text: String,
}

/// All of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Its name.
    pub name: &'static str,
    /// Requests in all.
    pub requests: usize,
    /// Failed outside of all phases.
    pub failed_between: usize,
    /// Seconds the client was behind its schedule at worst.
    pub behind_s: f64,
    /// Fewest long streams under way at the start of a phase.
    pub live_streams: usize,
    /// Phase by phase.
    pub phases: Vec<Measured>,
    /// The first failures of each phase and of the time between.
    pub failures: Vec<Failed>,
    /// Second by second.
    pub points: Vec<Point>,
}

impl Report {
    /// Figures of a run.
    pub fn of(run: &Run) -> Self {
        let mut records: Vec<&Record> = run.records.iter().collect();
        records.sort_by(|a, b| a.ended.total_cmp(&b.ended));
        let is_within = |at: f64| run.phases.iter().any(|p| at >= p.start && at < p.until);
        let failed = records.iter().filter(|record| record.failure.is_some());
        let failed_between = failed.filter(|record| !is_within(record.ended)).count();
        Self {
            name: run.name,
            requests: records.len(),
            failed_between,
            behind_s: run.behind,
            live_streams: run.live,
            phases: run.phases.iter().map(|p| measured(p, &records)).collect(),
            failures: failures(run, &records),
            points: points(&records, run.ended),
        }
    }

    /// What must not be, one line for each.
    pub fn complaints(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.failed_between > 0 {
            lines.push(format!("{}: {} failed between phases", self.name, self.failed_between));
        }
        for phase in &self.phases {
            if phase.failed > 0 {
                let Measured { name, failed, causes, .. } = phase;
                lines.push(format!("{}: {name}: {failed} requests failed: {causes:?}", self.name));
            }
            let problems = phase.problems.iter();
            lines.extend(
                problems.map(|problem| format!("{}: {}: {problem}", self.name, phase.name)),
            );
        }
        lines
    }
}

fn measured(phase: &Phase, records: &[&Record]) -> Measured {
    let ended_in = |from: f64, to: f64| {
        let first = records.partition_point(|record| record.ended < from);
        let last = records.partition_point(|record| record.ended < to);
        &records[first..last.max(first)]
    };
    let all = ended_in(phase.start, phase.until);
    let before = ended_in(phase.steady, phase.start);
    let during = ended_in(phase.start, phase.end);
    let after = ended_in(phase.end, (phase.end + AFTER_S).min(phase.until));
    let hit = Three {
        before: hit_rate(before).unwrap_or_default(),
        during: hit_rate(during).unwrap_or_default(),
        after: hit_rate(after).unwrap_or_default(),
    };
    // What arrived before, during and after; what took long ended later.
    let came = |from: f64, to: f64| {
        ttft(records.iter().filter(|record| record.sent >= from && record.sent < to))
    };
    let ttft = Three {
        before: came(phase.steady, phase.start),
        during: came(phase.start, phase.end),
        after: came(phase.end, (phase.end + AFTER_S).min(phase.until)),
    };
    let added = Ttft {
        p50: ttft.during.p50 - ttft.before.p50,
        p95: ttft.during.p95 - ttft.before.p95,
        p99: ttft.during.p99 - ttft.before.p99,
    };
    let (mut failed, mut cut, mut refused) = (0, 0, 0);
    let (mut causes, mut ways) = (BTreeMap::new(), BTreeMap::new());
    for record in all {
        let Some(failure) = &record.failure else { continue };
        *causes.entry(failure.cause).or_default() += 1;
        *ways.entry(record.way).or_default() += 1;
        match phase.down {
            Some((died, _)) if record.sent <= died => cut += 1,
            Some((_, lived)) if record.sent <= lived => refused += 1,
            _ => failed += 1,
        }
    }
    let is_truncated = |record: &&&Record| {
        let failure = record.failure.as_ref();
        record.is_long && failure.is_some_and(|failure| failure.cause == Cause::Truncated)
    };
    let (worst, back_after_s) = dip(phase, &ended_in, hit.before);
    Measured {
        name: phase.act.name(),
        events: if phase.down.is_some() { 1 } else { phase.marks.len() },
        start: phase.start,
        end: phase.end,
        requests: all.len(),
        failed,
        cut,
        refused,
        causes,
        ways,
        streams: all.iter().filter(|record| record.is_long && record.failure.is_none()).count(),
        streams_truncated: all.iter().filter(is_truncated).count(),
        dip_points: (hit.before - hit.after) * 100.0,
        dip_worst_points: (hit.before - worst) * 100.0,
        back_after_s,
        hit,
        ttft,
        added,
        gap_s: gap(all, phase),
        down_s: phase.down.map(|(died, lived)| lived - died),
        left_s: phase.left.clone(),
        syncs: phase.syncs,
        problems: phase.problems.clone(),
        marks: phase.marks.clone(),
    }
}

/// The worst second's hit rate, and how long after the phase the rate was back for good.
fn dip<'a>(
    phase: &Phase,
    ended_in: &impl Fn(f64, f64) -> &'a [&'a Record],
    before: f64,
) -> (f64, Option<f64>) {
    let mut worst = before;
    let mut low_until = phase.end;
    let seconds = ((phase.until - phase.start) / POINT_S) as usize;
    for second in 0..seconds {
        let from = phase.start + second as f64 * POINT_S;
        let rate = hit_rate(ended_in(from, from + POINT_S)).unwrap_or(before);
        worst = worst.min(rate);
        if rate < before - BACK_WITHIN {
            low_until = low_until.max(from + POINT_S);
        }
    }
    let is_back = low_until + POINT_S <= phase.until;
    (worst, is_back.then_some(low_until - phase.end))
}

fn hit_rate(records: &[&Record]) -> Option<f64> {
    let (mut prompt, mut cached) = (0, 0);
    for tokens in records.iter().filter(|record| !record.is_long).filter_map(|r| r.tokens) {
        prompt += tokens.0;
        cached += tokens.1;
    }
    (prompt > 0).then(|| cached as f64 / prompt as f64)
}

fn ttft<'a>(records: impl Iterator<Item = &'a &'a Record>) -> Ttft {
    let chats = records.filter(|record| record.is_streamed && !record.is_long);
    let mut times: Vec<f64> =
        chats.filter_map(|record| Some((record.first? - record.sent) * 1e3)).collect();
    times.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let at = (q * times.len().saturating_sub(1) as f64).round() as usize;
        times.get(at).copied().unwrap_or_default()
    };
    Ttft { p50: quantile(0.5), p95: quantile(0.95), p99: quantile(0.99) }
}

/// Longest time between two answers to chats.
fn gap(records: &[&Record], phase: &Phase) -> f64 {
    let answered = records.iter().filter(|record| !record.is_long && record.failure.is_none());
    let mut longest = 0.0_f64;
    let mut last = phase.start;
    for at in answered.map(|record| record.ended).chain([phase.until]) {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

fn failures(run: &Run, records: &[&Record]) -> Vec<Failed> {
    let mut of_phase = BTreeMap::new();
    let mut failures = Vec::new();
    for record in records {
        let Some(failure) = &record.failure else { continue };
        let is_in = |p: &Phase| record.ended >= p.start && record.ended < p.until;
        let phase = run.phases.iter().position(is_in);
        // A router that is down fails thousands, all alike.
        let told: &mut usize = of_phase.entry((phase, failure.cause)).or_default();
        *told += 1;
        if *told <= FAILURES_MAX / 10 && failures.len() < FAILURES_MAX {
            failures.push(Failed {
                sent: record.sent,
                ended: record.ended,
                way: record.way,
                is_long: record.is_long,
                cause: failure.cause,
                text: failure.text.clone(),
            });
        }
    }
    failures
}

fn points(records: &[&Record], ended: f64) -> Vec<Point> {
    let mut points = Vec::new();
    let mut rest = records;
    let mut at = 0.0;
    while at + POINT_S <= ended {
        let count = rest.partition_point(|record| record.ended < at + POINT_S);
        let (of_point, later) = rest.split_at(count);
        rest = later;
        let failed = of_point.iter().filter(|record| record.failure.is_some()).count();
        points.push(Point { at, requests: count, failed, hit: hit_rate(of_point) });
        at += POINT_S;
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upgrade::{record::Failure, script::Act};

    fn chat(sent: f64, cached: u64) -> Record {
        Record {
            way: Way::Kept,
            is_long: false,
            sent,
            first: Some(sent + 0.01),
            is_streamed: true,
            ended: sent + 0.02,
            tokens: Some((100, cached)),
            failure: None,
        }
    }

    fn lost(sent: f64) -> Record {
        let failure = Some(Failure::new(Cause::NoAnswer, "gone"));
        Record { first: None, tokens: None, failure, ..chat(sent, 0) }
    }

    fn run(records: Vec<Record>, down: Option<(f64, f64)>) -> Report {
        let phase = Phase {
            act: Act::Upgrades,
            steady: 10.0,
            start: 20.0,
            end: 22.0,
            until: 32.0,
            marks: vec![20.0],
            down,
            left: Vec::new(),
            syncs: 0,
            problems: Vec::new(),
        };
        Report::of(&Run {
            name: "test",
            phases: vec![phase],
            records,
            ended: 32.0,
            behind: 0.0,
            live: 0,
        })
    }

    #[test]
    fn a_dip_is_seen_and_so_is_its_end() {
        let cached = |at: f64| if (22.0..25.0).contains(&at) { 40 } else { 90 };
        let at = |number: u32| f64::from(number) / 10.0;
        let report = run((0..320).map(|n| chat(at(n), cached(at(n)))).collect(), None);
        let phase = &report.phases[0];
        assert!((phase.hit.before - 0.9).abs() < 1e-9);
        assert!((phase.dip_worst_points - 50.0).abs() < 1e-9, "{phase:?}");
        assert!((28.0..=32.0).contains(&phase.dip_points), "{phase:?}");
        let back = phase.back_after_s.expect("it came back");
        assert!((2.9..=4.1).contains(&back), "{back}");
        assert!((phase.ttft.during.p50 - 10.0).abs() < 1e-6);
        assert!(report.complaints().is_empty());
    }

    #[test]
    fn what_is_lost_is_told_from_what_was_cut() {
        let lost = || vec![lost(19.999), lost(21.0), lost(23.0), lost(12.0)];
        let report = run(lost(), None);
        assert_eq!((report.phases[0].failed, report.failed_between), (3, 1));
        assert_eq!(report.complaints().len(), 2);
        let report = run(lost(), Some((20.0, 22.0)));
        let phase = &report.phases[0];
        assert_eq!((phase.cut, phase.refused, phase.failed), (1, 1, 1));
    }

    #[test]
    fn the_longest_gap_ends_with_an_answer() {
        let records = vec![chat(20.0, 9), chat(24.0, 9), lost(25.0), chat(31.9, 9)];
        let gap = run(records, None).phases[0].gap_s;
        assert!((gap - 7.9).abs() < 1e-6, "{gap}");
    }
}
