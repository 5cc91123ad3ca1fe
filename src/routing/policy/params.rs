//! The numbers behind the policies.

use super::super::OutOfRange;

/// Settings of the policies, not checked yet. [`Default`] is what ships.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicySettings {
    /// `prefix-aware`: price of one running decode, in tokens of prefill; 0 to 100,000. Default 32.
    ///
    /// A new stream makes each that runs beside it a little slower, and they it. Without this price
    /// a fleet whose prompts are short and whose answers long gathers its streams where the system
    /// prompt was seen first (up to five times the mean in simulation, and answers take 70 % longer);
    /// from 16 on that is gone, and up to 64 nothing else suffers (docs/adr/0016). Dynamo prices the
    /// whole context of a stream instead, which leaves warm workers at the slightest imbalance.
    pub decode_tokens: f64,
    /// `prefix-affinity`: how many times the mean load a worker may hold (`c` of consistent hashing
    /// with bounded loads, Mirrokni et al., SODA 2018); over 1 up to 100. Default 1.25: a quarter
    /// of slack already keeps most keys at home, and nobody far over the mean.
    pub bounded_load: f64,
    /// `weighted`: w1, what a fully held prompt is worth; 0 to 1,000,000. Default 1.
    pub hit_weight: f64,
    /// `weighted`: w2, what an idle worker is worth; 0 to 1,000,000, not 0 together with
    /// `hit_weight`. Default 1. Load is measured against `inflight_max`, so with the default a full
    /// hit outweighs any load that is not saturation.
    pub load_weight: f64,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self { decode_tokens: 32.0, bounded_load: 1.25, hit_weight: 1.0, load_weight: 1.0 }
    }
}

/// Settings that were checked.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PolicyParams(PolicySettings);

impl PolicyParams {
    /// Checks `settings`.
    ///
    /// # Errors
    /// [`OutOfRange`] names the first setting outside the range its field documents.
    pub fn try_new(settings: PolicySettings) -> Result<Self, OutOfRange> {
        let s = &settings;
        let ok = (0.0..=100_000.0).contains(&s.decode_tokens);
        OutOfRange::unless(ok, "decode_tokens", s.decode_tokens, "0 to 100000 tokens")?;
        let ok = s.bounded_load > 1.0 && s.bounded_load <= 100.0;
        OutOfRange::unless(ok, "bounded_load", s.bounded_load, "over 1, up to 100")?;
        for (name, value) in [("hit_weight", s.hit_weight), ("load_weight", s.load_weight)] {
            let ok = (0.0..=1_000_000.0).contains(&value);
            OutOfRange::unless(ok, name, value, "0 to 1000000")?;
        }
        let ok = s.hit_weight + s.load_weight > 0.0;
        OutOfRange::unless(ok, "load_weight", s.load_weight, "over 0 where hit_weight is 0")?;
        Ok(Self(settings))
    }

    /// The checked settings.
    pub fn settings(&self) -> &PolicySettings {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let shipped = PolicySettings::default();
        assert_eq!(PolicyParams::try_new(shipped), Ok(PolicyParams::default()));
        for (settings, name) in [
            (PolicySettings { decode_tokens: -1.0, ..shipped }, "decode_tokens"),
            (PolicySettings { decode_tokens: f64::NAN, ..shipped }, "decode_tokens"),
            (PolicySettings { bounded_load: 1.0, ..shipped }, "bounded_load"),
            (PolicySettings { bounded_load: 125.0, ..shipped }, "bounded_load"),
            (PolicySettings { hit_weight: f64::INFINITY, ..shipped }, "hit_weight"),
            (PolicySettings { load_weight: -0.5, ..shipped }, "load_weight"),
            (PolicySettings { hit_weight: 0.0, load_weight: 0.0, ..shipped }, "load_weight"),
        ] {
            assert_eq!(PolicyParams::try_new(settings).unwrap_err().name, name);
        }
    }
}
