//! How much load two cores take.

use std::{path::Path, time::Duration};

use tokio::time::sleep;

use super::{
    Any,
    bed::{Bed, Plan},
};
use crate::say;

/// Cores that client, engines and router share.
const CORES: f64 = 2.0;
/// Of them, so much is used: a reload or an upgrade needs room, and so do the measurements.
const SHARE: f64 = 0.6;
const RATES: (f64, f64) = (50.0, 200.0);
const WARM: Duration = Duration::from_secs(6);
const MEASURED: Duration = Duration::from_secs(5);
const RATE_MIN: f64 = 20.0;
const RATE_MAX: f64 = 3_000.0;

/// The rate at which all processes together use a share of two cores, from their processor time at
/// two low rates: neighbours on the machine do not count.
///
/// # Errors
/// When something does not start.
pub async fn rate(program: &Path, out: &Path, plan: &Plan) -> Result<f64, Any> {
    let plan = Plan { rate: RATES.1, ..plan.clone() };
    let bed = Bed::start(program, out, "sizing", &plan).await?;
    bed.load.set_rate(RATES.0);
    sleep(WARM).await;
    let low = used(&bed).await;
    bed.load.set_rate(RATES.1);
    sleep(WARM / 3).await;
    let high = used(&bed).await;
    bed.end().await;
    let each = (high.0 + high.1 - low.0 - low.1) / (RATES.1 - RATES.0);
    let idle = low.0 + low.1 - each * RATES.0;
    let rate = (CORES * SHARE - idle) / each.max(1e-6);
    say(&format!(
        "streams alone take {idle:.2} cores, a chat {:.2} ms (the router {:.2} ms): {rate:.0} a second",
        each * 1e3,
        (high.0 - low.0) / (RATES.1 - RATES.0) * 1e3,
    ));
    Ok(rate.clamp(RATE_MIN, RATE_MAX))
}

/// Cores in use: the router's, ours.
async fn used(bed: &Bed) -> (f64, f64) {
    let (router, us) = bed.cpu();
    sleep(MEASURED).await;
    let (router_now, us_now) = bed.cpu();
    let cores = |now: Duration, before: Duration| {
        now.saturating_sub(before).as_secs_f64() / MEASURED.as_secs_f64()
    };
    (cores(router_now, router), cores(us_now, us))
}
