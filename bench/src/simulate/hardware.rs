//! What an engine's hardware and model take, as a handful of numbers.

use std::str::FromStr;

/// What hardware and model take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hardware {
    /// A prefill's fixed part, seconds; an engine of [`super::engine::Discipline::Batching`] has
    /// `step_s` in its place.
    pub request_s: f64,
    /// A token's linear layers, seconds.
    pub token_s: f64,
    /// A token attending to another, seconds.
    pub pair_s: f64,
    /// A decode step, whatever runs, seconds.
    pub step_s: f64,
    /// Reading a token's KV in a decode step, seconds.
    pub read_s: f64,
    /// Tokens of KV cache in accelerator memory.
    pub kv_tokens: usize,
}

/// Llama 3 70B, tensor-parallel over eight A100-80G: 2 * 70.6e9 / (8 * 312e12 * 0.5) s a token; 4 *
/// 80 layers * 8192 / the same a pair; 35 ms a decode step; 320 KiB a token of KV, read at 8 * 1.6
/// TB/s. Arithmetic, not measured.
pub const LLAMA_70B: Hardware = Hardware {
    request_s: 0.02,
    token_s: 1.13e-4,
    pair_s: 2.1e-9,
    step_s: 0.035,
    read_s: 2.6e-8,
    kv_tokens: 1_330_000,
};

/// Llama 3 8B on one A100, likewise: 0.55 of peak, 128 KiB a token.
pub const LLAMA_8B: Hardware = Hardware {
    request_s: 0.02,
    token_s: 9.4e-5,
    pair_s: 3.1e-9,
    step_s: 0.012,
    read_s: 8.2e-8,
    kv_tokens: 427_000,
};

impl Hardware {
    /// Seconds to prefill `uncached` of `tokens`.
    pub fn prefill_s(&self, uncached: u64, tokens: u64) -> f64 {
        let (uncached, tokens) = (uncached as f64, tokens as f64);
        self.request_s
            + self.token_s * uncached
            + self.pair_s * uncached * (tokens - uncached / 2.0)
    }

    /// The cache size that `1x` stands for: what fits the memory, and for the small model a quarter
    /// of it, as published traces of chats would never fill the whole.
    pub fn unit_tokens(&self) -> usize {
        if *self == LLAMA_8B { self.kv_tokens / 4 } else { self.kv_tokens }
    }

    fn check(self, text: &str) -> Result<Self, String> {
        let seconds = [self.request_s, self.token_s, self.pair_s, self.step_s, self.read_s];
        let sound = seconds.iter().all(|s| (0.0..=3600.0).contains(s))
            && self.token_s > 0.0
            && self.step_s > 0.0
            && (1..=1 << 40).contains(&self.kv_tokens);
        if sound {
            return Ok(self);
        }
        Err(format!(
            "{text}: times are 0 to 3600 s, those of a token and a step over 0, and tokens 1 to 2^40"
        ))
    }
}

impl FromStr for Hardware {
    type Err = String;

    /// `70b`, `8b`, or `REQUEST_MS:TOKEN_US:PAIR_NS:STEP_MS:READ_NS:KV_TOKENS`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "70b" => return Ok(LLAMA_70B),
            "8b" => return Ok(LLAMA_8B),
            _ => {}
        }
        let form = "use 70b, 8b or REQUEST_MS:TOKEN_US:PAIR_NS:STEP_MS:READ_NS:KV_TOKENS";
        let numbers: Result<Vec<f64>, _> = text.split(':').map(str::parse).collect();
        let numbers = numbers.map_err(|error| format!("{text}: {error}; {form}"))?;
        let [request_ms, token_us, pair_ns, step_ms, read_ns, kv_tokens] = numbers[..] else {
            return Err(format!("{text} has {} of 6 numbers; {form}", numbers.len()));
        };
        let hardware = Self {
            request_s: request_ms / 1e3,
            token_s: token_us / 1e6,
            pair_s: pair_ns / 1e9,
            step_s: step_ms / 1e3,
            read_s: read_ns / 1e9,
            kv_tokens: kv_tokens as usize,
        };
        hardware.check(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefill_is_what_can_be_worked_out_by_hand() {
        let hardware: Hardware = "10:100:1:30:5:1000".parse().unwrap();
        // 10 ms, 600 tokens of 0.1 ms, and 600 * (1000 - 300) pairs of 1 ns.
        let expected = 0.01 + 0.06 + 600.0 * 700.0 * 1e-9;
        assert!((hardware.prefill_s(600, 1000) - expected).abs() < 1e-12);
        assert!((hardware.prefill_s(0, 1000) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_hardware_is_refused_with_the_form() {
        for text in
            ["", "13b", "1:2:3", "1:2:3:4:5:x", "1:0:3:4:5:6", "1:2:3:4:5:0", "nan:1:1:1:1:1"]
        {
            let error = text.parse::<Hardware>().unwrap_err();
            assert!(error.contains(text) && error.len() > text.len() + 20, "{error}");
        }
        assert_eq!("70b".parse(), Ok(LLAMA_70B));
    }
}
