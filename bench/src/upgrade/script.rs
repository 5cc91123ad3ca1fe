//! What is done to the router, and when.

use std::{path::Path, time::Duration};

use rustix::process::Signal;
use serde::Serialize;
use tokio::time::sleep;

use super::{
    Any,
    bed::{Bed, Plan, Settings},
    process,
    record::Record,
    reloads,
    router::Broken,
};
use crate::say;

/// One thing after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// New configurations, one in ten of them bad.
    Reloads,
    /// New processes.
    Upgrades,
    /// Successors that are none.
    FailedUpgrades,
    /// SIGKILL and a start, with what was kept on disk.
    Crash,
    /// SIGTERM, and a start once it has ended.
    PlainRestart,
    /// SIGKILL and a start, with nothing kept.
    PlainCrash,
}

impl Act {
    /// As it stands in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reloads => "reloads",
            Self::Upgrades => "upgrades",
            Self::FailedUpgrades => "failed upgrades",
            Self::Crash => "kill -9, state kept",
            Self::PlainRestart => "plain restart",
            Self::PlainCrash => "kill -9, nothing kept",
        }
    }

    /// Whether requests may fail that were under way, or came while nobody listened.
    pub fn is_outage(self) -> bool {
        matches!(self, Self::Crash | Self::PlainRestart | Self::PlainCrash)
    }
}

/// How often and how long.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Until caches are warm and streams are open.
    pub warm: Duration,
    /// Undisturbed before every phase.
    pub steady: Duration,
    /// After every phase.
    pub after: Duration,
    /// Reloads, and the time between two.
    pub reloads: (usize, Duration),
    /// Upgrades, and the time between two.
    pub upgrades: (usize, Duration),
    /// An old process has so long to leave.
    pub leave: Duration,
    /// Whether all orders go by signal, none over the admin listener.
    pub signals_only: bool,
}

impl Times {
    /// Some seven minutes.
    pub const FULL: Self = Self {
        warm: Duration::from_secs(25),
        steady: Duration::from_secs(10),
        after: Duration::from_secs(10),
        reloads: (50, Duration::from_millis(400)),
        upgrades: (10, Duration::from_secs(6)),
        leave: Duration::from_secs(90),
        signals_only: false,
    };
    /// Less than two.
    pub const QUICK: Self = Self {
        warm: Duration::from_secs(8),
        steady: Duration::from_secs(4),
        after: Duration::from_secs(5),
        reloads: (20, Duration::from_millis(250)),
        upgrades: (3, Duration::from_secs(4)),
        leave: Duration::from_secs(45),
        signals_only: false,
    };
}

/// One phase; times in seconds since the load began.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What was done.
    pub act: Act,
    /// Since when nothing was done.
    pub steady: f64,
    /// When it began.
    pub start: f64,
    /// When the last of it was done.
    pub end: f64,
    /// When it was over, with the time after it.
    pub until: f64,
    /// Moments at which something was done.
    pub marks: Vec<f64>,
    /// From death to life, where there was nobody.
    pub down: Option<(f64, f64)>,
    /// How long each old process took to leave.
    pub left: Vec<f64>,
    /// Syncs the engines had to make.
    pub syncs: u64,
    /// What was not as it should be.
    pub problems: Vec<String>,
}

/// All of one run.
pub struct Run {
    /// Its name.
    pub name: &'static str,
    /// What was done.
    pub phases: Vec<Phase>,
    /// What became of the requests.
    pub records: Vec<Record>,
    /// When it was over.
    pub ended: f64,
    /// Seconds the schedule was behind at worst.
    pub behind: f64,
    /// Fewest long streams under way at the start of a phase.
    pub live: usize,
}

/// Plays these acts on a bed of its own.
///
/// # Errors
/// When something does not start.
pub async fn play(
    name: &'static str,
    acts: &[Act],
    times: &Times,
    plan: &Plan,
    program: &Path,
    out: &Path,
) -> Result<Run, Any> {
    let mut bed = Bed::start(program, out, &name.replace(' ', "-"), plan).await?;
    sleep(times.warm).await;
    let (mut phases, mut live) = (Vec::new(), usize::MAX);
    for act in acts {
        let steady = bed.recorder.now();
        sleep(times.steady).await;
        live = live.min(bed.recorder.live());
        let (failed_before, _) = bed.recorder.counts();
        say(&format!("{name}: {} ...", act.name()));
        let phase = phase(*act, steady, times, &mut bed).await?;
        let (failed, _) = bed.recorder.counts();
        let Phase { start, end, problems, .. } = &phase;
        say(&format!("    {:.1} s, {} requests failed", end - start, failed - failed_before));
        for problem in problems {
            say(&format!("    PROBLEM {problem}"));
        }
        phases.push(phase);
    }
    let (ended, behind) = (bed.recorder.now(), bed.recorder.behind());
    let recorder = bed.end().await;
    Ok(Run { name, phases, records: recorder.take(), ended, behind, live })
}

async fn phase(act: Act, steady: f64, times: &Times, bed: &mut Bed) -> Result<Phase, Any> {
    let syncs = bed.syncs();
    let start = bed.recorder.now();
    let mut phase = Phase {
        act,
        steady,
        start,
        end: start,
        until: start,
        marks: Vec::new(),
        down: None,
        left: Vec::new(),
        syncs: 0,
        problems: Vec::new(),
    };
    match act {
        Act::Reloads => reload(times, bed, &mut phase).await?,
        Act::Upgrades => upgrade(times, bed, &mut phase).await,
        Act::FailedUpgrades => fail_to_upgrade(times, bed, &mut phase).await?,
        Act::Crash | Act::PlainCrash => restart(Signal::KILL, times, bed, &mut phase).await?,
        Act::PlainRestart => restart(Signal::TERM, times, bed, &mut phase).await?,
    }
    if phase.end <= start {
        phase.end = bed.recorder.now();
    }
    let rest = phase.end + times.after.as_secs_f64() - bed.recorder.now();
    sleep(Duration::from_secs_f64(rest.max(0.0))).await;
    phase.until = bed.recorder.now();
    phase.syncs = bed.syncs() - syncs;
    Ok(phase)
}

async fn reload(times: &Times, bed: &mut Bed, phase: &mut Phase) -> Result<(), Any> {
    let mut settings = Settings::default();
    let (count, every) = times.reloads;
    for number in 0..count {
        let reload = reloads::reload(number, &bed.fleet, &mut settings);
        bed.write_conf(&reload.yaml)?;
        phase.marks.push(bed.recorder.now());
        let result = if reload.is_bad { "refused" } else { "ok" };
        // By signal and over the admin listener in turn, also the bad ones.
        let by_turns = (number + number / reloads::BAD_EVERY).is_multiple_of(2);
        let problem = if times.signals_only || by_turns {
            by_signal(bed, result).await?
        } else {
            let expected = if reload.is_bad { 422 } else { 200 };
            match bed.router.ask("POST", "/reload").await {
                Ok((status, _)) if status == expected => None,
                Ok((status, answer)) => Some(format!("{status}: {answer}")),
                Err(error) => Some(error.to_string()),
            }
        };
        if let Some(problem) = problem {
            phase.problems.push(format!("reload {number} ({}): {problem}", reload.what));
        }
        sleep(every).await;
    }
    phase.end = bed.recorder.now();
    // Upgrades begin from a good file.
    bed.write_conf(&bed.fleet.yaml(&Settings::default()))?;
    phase.problems.extend(by_signal(bed, "ok").await?);
    Ok(())
}

/// SIGHUP, and a look at the counter of what came of it.
async fn by_signal(bed: &Bed, result: &str) -> Result<Option<String>, Any> {
    let label = format!("\"{result}\"");
    let name = "warmroute_reloads_total";
    let before = bed.router.metric(name, &label).await;
    let (pid, begun) = (bed.router.pid(), bed.recorder.now());
    bed.router.signal(Signal::HUP)?;
    while bed.recorder.now() < begun + 5.0 {
        if bed.router.metric(name, &label).await > before {
            return Ok(None);
        }
        if !process::is_alive(pid) {
            return Err(format!("process {pid} died of SIGHUP").into());
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(Some(format!("SIGHUP: no reload is counted as {result}")))
}

async fn upgrade(times: &Times, bed: &mut Bed, phase: &mut Phase) {
    let (count, every) = times.upgrades;
    let mut leaving: Vec<(u32, f64)> = Vec::new();
    for number in 0..count {
        let (old, asked) = (bed.router.pid(), bed.recorder.now());
        phase.marks.push(asked);
        let is_new_file = bed.router.restore_program();
        match bed.router.upgrade(times.signals_only || number % 2 == 1).await {
            Ok(_) => leaving.push((old, asked)),
            Err(error) => phase.problems.push(format!("upgrade {number}: {error}")),
        }
        if let Err(error) = is_new_file {
            phase.problems.push(error.to_string());
        }
        phase.end = bed.recorder.now();
        let next = asked + every.as_secs_f64();
        while bed.recorder.now() < next {
            look(&mut leaving, bed, phase);
            sleep(Duration::from_millis(20)).await;
        }
    }
    let until = bed.recorder.now() + times.leave.as_secs_f64();
    while !leaving.is_empty() && bed.recorder.now() < until {
        look(&mut leaving, bed, phase);
        sleep(Duration::from_millis(20)).await;
    }
    for (pid, _) in leaving {
        phase.problems.push(format!("process {pid} has not left after {:?}", times.leave));
    }
}

/// Takes note of those that are gone.
fn look(leaving: &mut Vec<(u32, f64)>, bed: &Bed, phase: &mut Phase) {
    leaving.retain(|(pid, asked)| {
        let stays = process::is_alive(*pid);
        if !stays {
            phase.left.push(bed.recorder.now() - asked);
        }
        stays
    });
}

async fn fail_to_upgrade(times: &Times, bed: &mut Bed, phase: &mut Phase) -> Result<(), Any> {
    for broken in Broken::ALL {
        let (pid, name) = (bed.router.pid(), "warmroute_upgrades_total");
        let before = bed.router.metric(name, "\"failed\"").await;
        bed.router.break_program(broken)?;
        if broken == Broken::Configuration {
            bed.write_conf(&reloads::bad(0, &bed.fleet.yaml(&Settings::default())).1)?;
        }
        phase.marks.push(bed.recorder.now());
        if let Ok(successor) = bed.router.upgrade(times.signals_only).await {
            let text = format!("{}: the upgrade went through, {successor} serves", broken.name());
            phase.problems.push(text);
        }
        bed.router.restore_program()?;
        bed.write_conf(&bed.fleet.yaml(&Settings::default()))?;
        phase.end = bed.recorder.now();
        let serving = bed.router.serving().await;
        if serving != Some(pid) {
            phase.problems.push(format!("{}: {serving:?} serves, not {pid}", broken.name()));
        }
        let counted = bed.router.metric(name, "\"failed\"").await - before;
        if (counted - 1.0).abs() > 0.01 {
            let text = format!("{}: {counted} failed upgrades are counted", broken.name());
            phase.problems.push(text);
        }
        if let Some(hung) = bed.router.hung().filter(|hung| process::is_alive(*hung)) {
            phase.problems.push(format!("the successor that hung, {hung}, is still there"));
            process::send(hung, Signal::KILL)?;
        }
        sleep(times.steady / 4).await;
    }
    // It must not have lost the ability.
    phase.marks.push(bed.recorder.now());
    if let Err(error) = bed.router.upgrade(times.signals_only).await {
        phase.problems.push(format!("a good upgrade after the failed ones: {error}"));
    }
    phase.end = bed.recorder.now();
    Ok(())
}

async fn restart(
    signal: Signal,
    times: &Times,
    bed: &mut Bed,
    phase: &mut Phase,
) -> Result<(), Any> {
    let pid = bed.router.pid();
    let begun = bed.recorder.now();
    phase.marks.push(begun);
    bed.router.signal(signal)?;
    bed.router.gone(pid, times.leave).await?;
    phase.left.push(bed.recorder.now() - begun);
    bed.router.launch().await?;
    phase.end = bed.recorder.now();
    phase.marks.push(phase.end);
    phase.down = Some((begun, phase.end));
    Ok(())
}
