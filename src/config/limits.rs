//! The section `limits`, and the one bound that may be found automatically.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};

use super::{
    ConfigError, file,
    validate::{Checked, at_least, between},
};
use crate::routing::{InflightMax, LimitParams};

/// Most further attempts after a failed one.
pub const RETRIES_MAX: usize = 15;

impl<'de> Deserialize<'de> for InflightMax {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AutoOrNumber)
    }
}

struct AutoOrNumber;

impl Visitor<'_> for AutoOrNumber {
    type Value = InflightMax;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`auto` or a number of requests")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<InflightMax, E> {
        match text {
            "auto" => Ok(InflightMax::Auto),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<InflightMax, E> {
        let number = u32::try_from(number);
        number
            .map(InflightMax::Fixed)
            .map_err(|_| E::invalid_value(Unexpected::Other("a larger number"), &self))
    }
}

/// Checks the section; gives what automatic bounds go by.
pub(super) fn limits(limits: &file::Limits) -> Checked<LimitParams> {
    at_least("limits.body_bytes_max", limits.body_bytes_max as u64, 1024)?;
    let body = limits.body_bytes_max as u64;
    at_least("limits.buffered_bytes_max", limits.buffered_bytes_max as u64, body)?;
    inflight_max("limits.inflight_max", limits.inflight_max)?;
    if limits.retries_max > RETRIES_MAX {
        let remedy = "write 0 to 15";
        let value = limits.retries_max;
        return Err(ConfigError::new("limits.retries_max", value, "too many", remedy));
    }
    between("limits.ejected_share_max", limits.ejected_share_max, 0.0, 1.0)?;
    let queue = Duration::from_secs(limits.queue_s);
    LimitParams::try_new(queue, limits.inflight_auto_max).map_err(|error| {
        let remedy = format!("write {}", error.must_be);
        ConfigError::new(format!("limits.{}", error.name), error.value, "out of range", remedy)
    })
}

/// Checks a bound on requests in flight.
pub(super) fn inflight_max(key: &str, inflight_max: InflightMax) -> Checked<InflightMax> {
    if let InflightMax::Fixed(number) = inflight_max {
        at_least(key, u64::from(number), 1)?;
    }
    Ok(inflight_max)
}
