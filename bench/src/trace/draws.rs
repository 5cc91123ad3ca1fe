//! Random draws that are the same for a seed everywhere and for ever.
//!
//! Not the `rand` crate: its portable generators may change with a version, and a trace must not. The
//! generator is splitmix64, which the rule of `text.rs` needs anyway.

/// One step of splitmix64: a bijection of 64-bit numbers that looks random.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A source of draws.
#[derive(Debug, Clone)]
pub struct Draws {
    state: u64,
}

impl Draws {
    /// Draws of a seed; those of two purposes differ.
    pub fn new(seed: u64, purpose: u64) -> Self {
        Self { state: mix(seed ^ mix(purpose)) }
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        let drawn = mix(self.state);
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        drawn
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // Lemire's multiplication; its bias is below end / 2^64.
        ((u128::from(self.any()) * u128::from(end)) >> 64) as u64
    }

    /// A number between both, which it may equal.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// In [0, 1).
    pub fn share(&mut self) -> f64 {
        (self.any() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Exponentially distributed: the gap between two arrivals of a Poisson process.
    pub fn gap(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.share()).ln()
    }

    /// Lognormally distributed around a median.
    pub fn around(&mut self, median: f64, sigma: f64) -> f64 {
        // Box and Muller.
        let radius = (-2.0 * (1.0 - self.share()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.share()).cos();
        median * (sigma * normal).exp()
    }
}

/// Ranks by Zipf's law: rank `r` is drawn in proportion to 1 / (r + 1).
#[derive(Debug, Clone)]
pub struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    /// Of so many ranks, at least one.
    pub fn new(ranks: usize) -> Self {
        let mut sum = 0.0;
        let weight = |rank: usize| {
            sum += 1.0 / (rank + 1) as f64;
            sum
        };
        Self { sums: (0..ranks.max(1)).map(weight).collect() }
    }

    /// A rank, from 0.
    pub fn draw(&self, draws: &mut Draws) -> usize {
        let total = self.sums.last().copied().unwrap_or_default();
        let at = draws.share() * total;
        self.sums.partition_point(|sum| *sum <= at).min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_spread_as_they_say() {
        let mut draws = Draws::new(7, 1);
        let count = 20_000;
        let mean =
            |of: &mut dyn FnMut() -> f64| (0..count).map(|_| of()).sum::<f64>() / f64::from(count);
        assert!((mean(&mut || draws.share()) - 0.5).abs() < 0.01);
        assert!((mean(&mut || draws.gap(3.0)) - 3.0).abs() < 0.1);
        assert!((mean(&mut || draws.between(2, 4) as f64) - 3.0).abs() < 0.05);
        let below = (0..count).filter(|_| draws.around(2.0, 0.7) < 2.0).count();
        assert!((9_500..10_500).contains(&below), "{below} below the median");
    }

    #[test]
    fn the_first_rank_is_twice_as_likely_as_the_second() {
        let (zipf, mut draws) = (Zipf::new(50), Draws::new(1, 2));
        let mut counts = [0_u32; 50];
        for _ in 0..50_000 {
            counts[zipf.draw(&mut draws)] += 1;
        }
        let ratio = f64::from(counts[0]) / f64::from(counts[1]);
        assert!((1.85..2.15).contains(&ratio), "{ratio}");
        assert!(counts[49] > 0);
    }
}
