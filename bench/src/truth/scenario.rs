//! The scenarios: what is done to the reports, the engines and the router, and for how long.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use warmroute_engine::EngineHandle;

use super::{
    Any,
    bed::Bed,
    chat,
    inject::{self, Injected},
    measure::Run,
    relay::Fault,
    sample::Sample,
};

/// How often the counters are read.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// How long a killed engine is dead.
const DEAD_FOR: Duration = Duration::from_secs(2);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Act {
    /// Nothing, and engines report.
    Reference,
    /// Nothing, and engines do not report.
    Silence,
    /// The relay does something.
    Relay(Fault),
    /// Bogus reports come.
    Bogus,
    /// Far too many do.
    Flood,
    /// One engine is killed, and started again.
    KillEngine,
    /// Two engines lose their caches.
    Reset,
    /// The router is killed, and started again.
    KillRouter,
}

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// For tables and files.
    pub name: &'static str,
    /// What is done.
    pub act: Act,
    /// In a few words.
    pub what: &'static str,
}

/// All of them; the reference is the first.
#[rustfmt::skip]
pub const SCENARIOS: [Scenario; 13] = [
    Scenario { name: "exact",      act: Act::Reference,                                  what: "reports, no fault: the reference" },
    Scenario { name: "presumed",   act: Act::Silence,                                    what: "no reports at all: the baseline" },
    Scenario { name: "drop",       act: Act::Relay(Fault::Drop(0.01)),                   what: "1 % of batches: connection closed before or after" },
    Scenario { name: "lose",       act: Act::Relay(Fault::Lose(0.05)),                   what: "5 % of batches: gone, though acknowledged" },
    Scenario { name: "duplicate",  act: Act::Relay(Fault::Duplicate(0.2)),               what: "20 % of batches: twice, and once more 1 s later" },
    Scenario { name: "reorder",    act: Act::Relay(Fault::Reorder(0.05)),                what: "5 % of batches: 300 ms late, others overtake" },
    Scenario { name: "delay",      act: Act::Relay(Fault::Delay(Duration::from_secs(5))), what: "all batches and heartbeats 5 s late" },
    Scenario { name: "partition",  act: Act::Relay(Fault::Partition),                    what: "no report gets through" },
    Scenario { name: "bogus",      act: Act::Bogus,                                      what: "25 bogus reports a second" },
    Scenario { name: "flood",      act: Act::Flood,                                      what: "50,000 blocks a second under one worker's name" },
    Scenario { name: "kill",       act: Act::KillEngine,                                 what: "kill -9 of an engine, back after 2 s" },
    Scenario { name: "reset",      act: Act::Reset,                                      what: "/reset_prefix_cache on two engines" },
    Scenario { name: "restart",    act: Act::KillRouter,                                 what: "kill -9 of the router, back at once" },
];

/// How long things last.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Until the caches are full.
    pub warm: Duration,
    /// From then to the fault.
    pub before: Duration,
    /// Faults that last.
    pub fault: Duration,
    /// The partition.
    pub partition: Duration,
    /// From its end to the scenario's.
    pub after: Duration,
}

impl Times {
    /// The whole suite in less than eight minutes.
    pub const FULL: Self = Self {
        warm: Duration::from_secs(6),
        before: Duration::from_secs(4),
        fault: Duration::from_secs(10),
        partition: Duration::from_mins(1),
        after: Duration::from_secs(12),
    };
    /// In less than two.
    pub const QUICK: Self = Self {
        warm: Duration::from_millis(1500),
        before: Duration::from_secs(1),
        fault: Duration::from_secs(2),
        partition: Duration::from_secs(5),
        after: Duration::from_millis(4500),
    };

    fn fault_of(&self, act: Act) -> Duration {
        match act {
            Act::Relay(Fault::Partition) => self.partition,
            Act::KillEngine | Act::Reset | Act::KillRouter => Duration::ZERO,
            _ => self.fault,
        }
    }

    /// How long a scenario takes, about.
    pub fn total(&self, act: Act) -> Duration {
        self.warm + self.before + self.fault_of(act) + self.after
    }
}

/// Plays a scenario on a bed of its own.
///
/// # Errors
/// When something does not start; what fails later is measured.
pub async fn play(
    scenario: &Scenario,
    times: &Times,
    program: &Path,
    folder: &Path,
) -> Result<Run, Any> {
    let reporting = scenario.act != Act::Silence;
    let mut bed = Bed::start(program, folder, scenario.name, reporting).await?;
    let begun = Instant::now();
    let asked = Mutex::new(Vec::new());
    let on_done = |done| asked.lock().unwrap_or_else(PoisonError::into_inner).push(done);
    let mut run = Run { warm_at: times.warm.as_secs_f64(), ..Run::default() };
    {
        let load = std::pin::pin!(chat::play(bed.url(), begun, on_done));
        let script = std::pin::pin!(script(scenario.act, times, &mut bed, begun, &mut run));
        tokio::select! {
            biased;
            done = script => done?,
            () = load => return Err("the load ran out of chats".into()),
        }
    }
    run.asked = asked.into_inner().unwrap_or_else(PoisonError::into_inner);
    run.faults = bed.relay.faults();
    let engines = bed.counted();
    (run.engine_syncs, run.engine_resyncs) = (engines.syncs, engines.resyncs);
    Ok(run)
}

async fn script(
    act: Act,
    times: &Times,
    bed: &mut Bed,
    begun: Instant,
    run: &mut Run,
) -> Result<(), Any> {
    watch(bed, begun, run, times.warm + times.before).await;
    let start = begun.elapsed();
    run.fault.0 = start.as_secs_f64();
    let until = start + times.fault_of(act);
    match act {
        Act::Reference | Act::Silence => watch(bed, begun, run, until).await,
        Act::Relay(fault) => {
            bed.relay.set(fault);
            watch(bed, begun, run, until).await;
            bed.relay.set(Fault::Pass);
        }
        Act::Bogus | Act::Flood => {
            run.injected = Some(inject(act, bed, begun, run, until).await);
        }
        Act::KillEngine => {
            let url = bed.engine(0).map(EngineHandle::url).unwrap_or_default();
            run.excused = bed.kill_engine(0);
            watch(bed, begun, run, start + DEAD_FOR).await;
            bed.revive_engine(0, &url)?;
        }
        Act::Reset => {
            for engine in [0, 1].into_iter().filter_map(|at| bed.engine(at)) {
                engine.clear_cache();
            }
        }
        Act::KillRouter => {
            run.excuses_all = true;
            bed.restart_router().await?;
        }
    }
    run.fault.1 = begun.elapsed().as_secs_f64();
    watch(bed, begun, run, begun.elapsed() + times.after).await;
    Ok(())
}

async fn inject(act: Act, bed: &Bed, begun: Instant, run: &mut Run, until: Duration) -> Injected {
    let lasting = until.saturating_sub(begun.elapsed());
    let injecting = async {
        match act {
            Act::Bogus => inject::bogus(&bed.relay, bed.reports, lasting).await,
            _ => inject::flood(&bed.relay, bed.reports, lasting).await,
        }
    };
    let mut injecting = std::pin::pin!(injecting);
    loop {
        tokio::select! {
            injected = &mut injecting => return injected,
            () = watch(bed, begun, run, begun.elapsed() + SAMPLE_EVERY) => {}
        }
    }
}

/// Reads the counters until it is so late.
async fn watch(bed: &Bed, begun: Instant, run: &mut Run, until: Duration) {
    let mut ticks = interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let left = until.saturating_sub(begun.elapsed());
        if left < SAMPLE_EVERY {
            sleep(left).await;
        } else {
            ticks.tick().await;
        }
        if let Some(page) = bed.metrics().await {
            let at = begun.elapsed().as_secs_f64();
            run.samples.push(Sample::read(at, &page, &bed.counted()));
        }
        if left < SAMPLE_EVERY {
            return;
        }
    }
}
