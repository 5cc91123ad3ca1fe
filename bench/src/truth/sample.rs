//! What the router and the engines had counted at one moment.

use warmroute_engine::EngineStats;

/// Sums over all workers since the router started, and states.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Seconds since the load began.
    pub at: f64,
    /// Tokens predicted to be cached.
    pub predicted: f64,
    /// Tokens that were.
    pub actual: f64,
    /// Predicted and not cached.
    pub stale: f64,
    /// Cached and not predicted.
    pub missed: f64,
    /// Times that batches were missing.
    pub gaps: f64,
    /// Beliefs about a worker dropped.
    pub drops: f64,
    /// Syncs by how they ended: digest, buckets, snapshot.
    pub syncs: [f64; 3],
    /// Workers by trust: presumed, degraded, exact.
    pub trust: [usize; 3],
    /// Prompt tokens the engines looked up.
    pub prompt: f64,
    /// Those of them that they held.
    pub cached: f64,
    /// Blocks they evicted.
    pub evicted: f64,
}

/// The last steps of a sync, as the metric's label has them.
const SYNCS: [&str; 3] = ["digest", "buckets", "snapshot"];

impl Sample {
    /// Reads a metrics page.
    pub fn read(at: f64, page: &str, engines: &EngineStats) -> Self {
        let sum = |name: &str| values(page, name).map(|(_, value)| value).sum();
        let sync = |how: &str| {
            let label = format!("=\"{how}\"");
            let ours = values(page, "warmroute_resyncs_total");
            ours.filter(|(labels, _)| labels.contains(&label)).map(|(_, value)| value).sum()
        };
        let mut trust = [0; 3];
        for (_, value) in values(page, "warmroute_trust_state") {
            trust[(value as usize).min(2)] += 1;
        }
        Self {
            at,
            predicted: sum("warmroute_predicted_cached_tokens_total"),
            actual: sum("warmroute_actual_cached_tokens_total"),
            stale: sum("warmroute_stale_tokens_total"),
            missed: sum("warmroute_missed_tokens_total"),
            gaps: sum("warmroute_report_gaps_total"),
            drops: sum("warmroute_holdings_dropped_total"),
            syncs: SYNCS.map(sync),
            trust,
            prompt: engines.prompt_tokens as f64,
            cached: engines.cached_tokens as f64,
            evicted: engines.evicted_blocks as f64,
        }
    }

    /// What was counted since `before`; a router started in between counts from nothing.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let is_new = self.predicted < before.predicted;
        let grown = |of: fn(&Self) -> f64| {
            let (old, new) = (of(before), of(self));
            if is_new || new < old { new } else { new - old }
        };
        Self {
            at: self.at - before.at,
            predicted: grown(|sample| sample.predicted),
            actual: grown(|sample| sample.actual),
            stale: grown(|sample| sample.stale),
            missed: grown(|sample| sample.missed),
            gaps: grown(|sample| sample.gaps),
            drops: grown(|sample| sample.drops),
            syncs: [
                grown(|sample| sample.syncs[0]),
                grown(|sample| sample.syncs[1]),
                grown(|sample| sample.syncs[2]),
            ],
            trust: self.trust,
            // The engines outlive the router.
            prompt: self.prompt - before.prompt,
            cached: self.cached - before.cached,
            evicted: self.evicted - before.evicted,
        }
    }

    /// Adds what was counted in a further stretch of time.
    pub fn add(&mut self, more: &Self) {
        self.at += more.at;
        self.predicted += more.predicted;
        self.actual += more.actual;
        self.stale += more.stale;
        self.missed += more.missed;
        self.gaps += more.gaps;
        self.drops += more.drops;
        for (sum, more) in self.syncs.iter_mut().zip(more.syncs) {
            *sum += more;
        }
        self.trust = more.trust;
        self.prompt += more.prompt;
        self.cached += more.cached;
        self.evicted += more.evicted;
    }
}

/// Labels and values of a metric.
fn values<'a>(page: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with(['{', ' ']) {
            return None;
        }
        let (labels, value) = rest.rsplit_once(' ')?;
        Some((labels, value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sums_and_states() {
        let page = "# HELP warmroute_stale_tokens_total x\n\
            warmroute_stale_tokens_total{worker=\"w0\"} 3\n\
            warmroute_stale_tokens_total{worker=\"w1\"} 4\n\
            warmroute_stale_tokens_total_other 9\n\
            warmroute_resyncs_total{worker=\"w0\",how=\"digest\"} 5\n\
            warmroute_trust_state{worker=\"w0\"} 2\nwarmroute_trust_state{worker=\"w1\"} 0\n";
        let sample = Sample::read(1.0, page, &EngineStats::default());
        assert_eq!((sample.stale, sample.syncs, sample.trust), (7.0, [5.0, 0.0, 0.0], [1, 0, 1]));
    }

    #[test]
    fn a_new_router_counts_from_nothing() {
        let sample = |predicted, stale| Sample { predicted, stale, ..Sample::default() };
        let grown = sample(5.0, 4.0).since(&sample(9.0, 3.0));
        assert_eq!((grown.predicted, grown.stale), (5.0, 4.0));
        let grown = sample(15.0, 4.0).since(&sample(9.0, 3.0));
        assert!((grown.stale - 1.0).abs() < 1e-9);
    }
}
