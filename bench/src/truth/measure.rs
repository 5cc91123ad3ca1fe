//! Samples and requests -> figures. Pure.

use serde::Serialize;

use super::{chat::Asked, inject::Injected, sample::Sample};

/// The span over which a stale rate is taken, seconds.
const WINDOW_S: f64 = 1.0;
/// It is over when the stale rate stays low for so long.
const QUIET_S: f64 = 3.0;
/// Low is below this, or what the reference reaches without any fault.
const QUIET_RATE_MIN: f64 = 0.005;
/// A scenario has failed whose last `QUIET_S` are above this, and above the reference: its stale
/// credits are not gone. Single requests whose blocks go between pick and prefill stay below.
const GONE_RATE: f64 = 0.01;

/// What one scenario gave, to be measured.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// In order of time.
    pub samples: Vec<Sample>,
    /// In the order they ended.
    pub asked: Vec<Asked>,
    /// When measuring begins: caches are full.
    pub warm_at: f64,
    /// When the fault begins and ends; equal where it is a moment.
    pub fault: (f64, f64),
    /// Requests that a process had when it was killed.
    pub excused: usize,
    /// Whether requests that were sent within the fault may fail: there is no router.
    pub excuses_all: bool,
    /// Messages the relay did something to.
    pub faults: u64,
    /// Reports that were made up.
    pub injected: Option<Injected>,
    /// Syncs the reporters brought to their end.
    pub engine_syncs: u64,
    /// New epochs the reporters began for want of a sync.
    pub engine_resyncs: u64,
}

/// Rates of a stretch of time.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Rates {
    /// Stale tokens, of those predicted.
    pub stale: f64,
    /// Missed tokens, of those cached.
    pub missed: f64,
    /// Tokens the engines had cached, of those asked for.
    pub hit: f64,
    /// The tokens of `stale`.
    pub stale_tokens: f64,
}

/// One point of the plot.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Point {
    /// Seconds since the load began.
    pub at: f64,
    /// Over the second before.
    pub stale: f64,
}

/// The figures of a scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// After the warm-up, before the fault.
    pub before: Rates,
    /// During it.
    pub during: Rates,
    /// After it.
    pub after: Rates,
    /// From the fault's end until the stale rate is low and stays so; `None`: it never was.
    pub recovery_s: Option<f64>,
    /// The rate that counts as low.
    pub quiet_rate: f64,
    /// The stale rate of the last three seconds.
    pub stale_at_end: f64,
    /// Whether that shows that the stale credits are not gone.
    pub is_stale_at_end: bool,
    /// Requests answered.
    pub answered: usize,
    /// Requests that failed as their process was killed.
    pub errors_excused: usize,
    /// Requests that failed for no such reason.
    pub errors: usize,
    /// The first of them.
    pub first_error: Option<String>,
    /// Syncs: digest, buckets, snapshot.
    pub syncs: [f64; 3],
    /// Gaps the router saw.
    pub gaps: f64,
    /// Times it dropped what it believed of a worker.
    pub drops: f64,
    /// Most workers at once that were not exact after the warm-up.
    pub not_exact: usize,
    /// From the fault's end until all workers were exact for good; `None`: not at the end.
    pub exact_after_s: Option<f64>,
    /// Blocks evicted a second.
    pub evictions_a_s: f64,
    /// Messages the relay did something to.
    pub faults: u64,
    /// Reports that were made up.
    pub injected: Option<Injected>,
    /// Syncs the reporters brought to their end.
    pub engine_syncs: u64,
    /// New epochs the reporters began for want of a sync.
    pub engine_resyncs: u64,
    /// When the fault was.
    pub fault: (f64, f64),
    /// The stale rate over time.
    pub points: Vec<Point>,
}

impl Measured {
    /// The figures of `run`, where `quiet_rate` is what the reference reaches.
    pub fn of(run: &Run, reference: f64) -> Self {
        let quiet_rate = reference.max(QUIET_RATE_MIN);
        let (start, end) = run.fault;
        let last = run.samples.last().map_or(0.0, |sample| sample.at);
        let total = counted(run, 0.0, last);
        let stale_at_end = rates(&counted(run, last - QUIET_S, last)).stale;
        let after_warm_up = run.samples.iter().filter(|sample| sample.at >= run.warm_at);
        let (mut errors, mut excused, mut first_error) = (0, 0, None);
        for asked in &run.asked {
            let Some(error) = &asked.error else { continue };
            let was_cut = asked.sent <= start && asked.ended >= start && excused < run.excused;
            // The router may be asked for a moment after the last request it could not take.
            let is_down = run.excuses_all && asked.sent <= end && asked.ended >= start;
            if was_cut || is_down {
                excused += 1;
            } else {
                errors += 1;
                first_error.get_or_insert_with(|| format!("{:.2} s: {error}", asked.sent));
            }
        }
        Self {
            before: rates(&counted(run, run.warm_at, start)),
            during: rates(&counted(run, start, end)),
            after: rates(&counted(run, end, last)),
            recovery_s: recovery(run, quiet_rate),
            quiet_rate,
            stale_at_end,
            is_stale_at_end: stale_at_end > quiet_rate.max(GONE_RATE),
            answered: run.asked.iter().filter(|asked| asked.error.is_none()).count(),
            errors_excused: excused,
            errors,
            first_error,
            syncs: total.syncs,
            gaps: total.gaps,
            drops: total.drops,
            not_exact: after_warm_up.map(|s| s.trust[0] + s.trust[1]).max().unwrap_or(0),
            exact_after_s: exact_after(run),
            evictions_a_s: total.evicted / total.at.max(f64::EPSILON),
            faults: run.faults,
            injected: run.injected,
            engine_syncs: run.engine_syncs,
            engine_resyncs: run.engine_resyncs,
            fault: run.fault,
            points: points(run),
        }
    }
}

/// The highest stale rate of a second after the warm-up: what is normal without a fault.
pub fn highest(run: &Run) -> f64 {
    let points = points(run);
    let later = points.iter().filter(|point| point.at >= run.warm_at + WINDOW_S);
    later.map(|point| point.stale).fold(0.0, f64::max)
}

/// What was counted between two moments, to the next samples.
fn counted(run: &Run, from: f64, to: f64) -> Sample {
    let mut sum = Sample::default();
    for pair in run.samples.windows(2) {
        if pair[1].at > from && pair[1].at <= to {
            sum.add(&pair[1].since(&pair[0]));
        }
    }
    sum
}

fn rates(sum: &Sample) -> Rates {
    let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
    Rates {
        stale: share(sum.stale, sum.predicted),
        missed: share(sum.missed, sum.actual),
        hit: share(sum.cached, sum.prompt),
        stale_tokens: sum.stale,
    }
}

fn points(run: &Run) -> Vec<Point> {
    let point = |sample: &Sample| Point {
        at: sample.at,
        stale: rates(&counted(run, sample.at - WINDOW_S, sample.at)).stale,
    };
    run.samples.iter().map(point).collect()
}

/// From the fault's end to the first moment from which on the rate is low for `QUIET_S`.
fn recovery(run: &Run, quiet_rate: f64) -> Option<f64> {
    let end = run.fault.1;
    let last = run.samples.last()?.at;
    let points = points(run);
    let later = || points.iter().filter(|point| point.at >= end);
    let begin = later().find(|begin| {
        let until = begin.at + QUIET_S;
        let mut span = later().filter(|point| point.at >= begin.at && point.at <= until);
        until <= last && span.all(|point| point.stale <= quiet_rate)
    });
    begin.map(|point| point.at - end)
}

fn exact_after(run: &Run) -> Option<f64> {
    let exact = |sample: &&Sample| sample.trust[0] + sample.trust[1] == 0;
    let last_not = run.samples.iter().rposition(|sample| !exact(&sample));
    let first = run.samples.get(last_not.map_or(0, |at| at + 1))?;
    Some((first.at - run.fault.1).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request a quarter second, of 100 predicted tokens; stale ones between two moments.
    fn run(stale_from: f64, stale_to: f64) -> Run {
        let mut sum = Sample::default();
        let sample = |at: i32| {
            sum.at = f64::from(at) / 4.0;
            sum.predicted += 100.0;
            sum.trust = if sum.at > 12.0 { [0, 0, 4] } else { [0, 1, 3] };
            sum.stale += if sum.at > stale_from && sum.at <= stale_to { 50.0 } else { 0.0 };
            sum.clone()
        };
        let samples = (0..80).map(sample).collect();
        Run { samples, warm_at: 2.0, fault: (5.0, 10.0), ..Run::default() }
    }

    #[test]
    fn a_window_forgets_what_is_a_second_old() {
        let measured = Measured::of(&run(5.0, 12.0), 0.0);
        assert_eq!(measured.recovery_s, Some(3.0));
        assert!((measured.during.stale - 0.5).abs() < 1e-9 && measured.before.stale == 0.0);
        assert!((measured.during.stale_tokens - 1000.0).abs() < 1e-9);
        assert_eq!(measured.exact_after_s, Some(2.25));
        assert!((highest(&run(5.0, 12.0)) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn never_quiet_is_never_over() {
        let measured = Measured::of(&run(5.0, 17.5), 0.0);
        assert!(measured.recovery_s.is_none() && measured.is_stale_at_end);
        assert!(!Measured::of(&run(5.0, 5.5), 0.0).is_stale_at_end);
        assert_eq!(Measured::of(&run(5.0, 5.5), 0.0).recovery_s, Some(0.0));
        assert_eq!(Measured::of(&run(5.0, 17.5), 0.6).recovery_s, Some(0.0));
    }

    #[test]
    fn only_what_was_cut_is_excused() {
        let asked = |sent, ended| Asked { sent, ended, error: Some("gone".to_owned()) };
        let mut run = Run { excused: 1, ..run(0.0, 0.0) };
        run.asked = vec![asked(4.0, 5.1), asked(4.0, 5.1), asked(6.0, 7.0), asked(11.0, 12.0)];
        let measured = Measured::of(&run, 0.0);
        assert_eq!((measured.errors_excused, measured.errors), (1, 3));
        run.excuses_all = true;
        let measured = Measured::of(&run, 0.0);
        assert_eq!((measured.errors_excused, measured.errors), (3, 1));
    }
}
