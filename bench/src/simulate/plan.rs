//! What is to be run: cells, each a workload at a load on a fleet.

use std::str::FromStr;

use super::engine::Discipline;
use super::hardware::{Hardware, LLAMA_8B, LLAMA_70B};
use super::observer::Knowledge;
use super::run::Fleet;
use super::run::Sharing;
use super::workload::Workload;

/// Mean prompt length from which on a trace is run on the big model, in tokens.
const BIG_TOKENS: f64 = 8_000.0;

/// A kind of engine, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineKind {
    /// One prefill after the other, decodes beside them
    Fifo,
    /// Continuous batching with chunked prefill
    Batching,
}

impl EngineKind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::Batching => "batching",
        }
    }
}

/// Hardware, or the choice by trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HardwareChoice {
    /// 70b where prompts are long, else 8b.
    Auto,
    /// This.
    Given(Hardware),
}

impl HardwareChoice {
    /// For a trace.
    pub fn of(self, workload: &Workload) -> Hardware {
        match self {
            Self::Auto if workload.mean_tokens() >= BIG_TOKENS => LLAMA_70B,
            Self::Auto => LLAMA_8B,
            Self::Given(hardware) => hardware,
        }
    }
}

impl FromStr for HardwareChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Given) }
    }
}

/// Cache of a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CacheSize {
    /// Tokens.
    Tokens(usize),
    /// Times the accelerator's memory.
    Hbm(f64),
    /// Times [`Hardware::unit_tokens`].
    Units(f64),
}

impl CacheSize {
    /// In tokens.
    pub fn tokens(self, hardware: &Hardware) -> usize {
        match self {
            Self::Tokens(tokens) => tokens,
            Self::Hbm(times) => (hardware.kv_tokens as f64 * times) as usize,
            Self::Units(times) => (hardware.unit_tokens() as f64 * times) as usize,
        }
    }
}

impl std::fmt::Display for CacheSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tokens(tokens) => write!(f, "{tokens}"),
            Self::Hbm(times) => write!(f, "{times}hbm"),
            Self::Units(times) => write!(f, "{times}x"),
        }
    }
}

impl FromStr for CacheSize {
    type Err = String;

    /// `106000`, `106k`, `0.25x` or `1hbm`.
    fn from_str(text: &str) -> Result<Self, String> {
        let remedy = "use tokens (106000 or 106k), 0.25x or 0.25hbm";
        let number = |digits: &str, most: f64| {
            let number: f64 =
                digits.parse().map_err(|_| format!("{text} is no cache size: {remedy}"))?;
            let ok = number > 0.0 && number <= most;
            if ok {
                Ok(number)
            } else {
                Err(format!("{text} is not over 0 and at most {most}: {remedy}"))
            }
        };
        if let Some(times) = text.strip_suffix("hbm") {
            return Ok(Self::Hbm(number(times, 1e6)?));
        }
        if let Some(times) = text.strip_suffix('x') {
            return Ok(Self::Units(number(times, 1e6)?));
        }
        let thousands = text.strip_suffix('k').map(|digits| number(digits, 1e9).map(|n| n * 1e3));
        Ok(Self::Tokens(thousands.unwrap_or_else(|| number(text, 1e12))?.ceil() as usize))
    }
}

impl FromStr for Knowledge {
    type Err = String;

    /// `exact`, `late:SECONDS`, `lossy:SHARE`, or `presumed[:FACTOR][,no-feedback]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = "use exact, late:SECONDS, lossy:SHARE or presumed[:FACTOR][,no-feedback]";
        let number = |digits: &str, least: f64, most: f64| match digits.parse::<f64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(format!("{digits} in {text} is not {least} to {most}: {form}")),
        };
        if text == "exact" {
            return Ok(Self::Events { late: 0.0 });
        }
        if let Some(late) = text.strip_prefix("late:") {
            return Ok(Self::Events { late: number(late, 0.0, 86_400.0)? });
        }
        if let Some(share) = text.strip_prefix("lossy:") {
            return Ok(Self::Lossy { share: number(share, 0.0, 1.0)? });
        }
        let (presumed, feedback) = match text.strip_suffix(",no-feedback") {
            Some(presumed) => (presumed, false),
            None => (text, true),
        };
        let factor = match presumed.strip_prefix("presumed") {
            Some("") => 1.0,
            Some(factor) if factor.starts_with(':') => number(&factor[1..], 0.001, 1000.0)?,
            _ => return Err(format!("{text} is no kind of knowledge: {form}")),
        };
        Ok(Self::Presumed { factor, feedback })
    }
}

impl std::fmt::Display for Knowledge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Events { late } if *late <= 0.0 => f.write_str("exact"),
            Self::Events { late } => write!(f, "late:{late}"),
            Self::Lossy { share } => write!(f, "lossy:{share}"),
            Self::Presumed { factor, feedback: true } => write!(f, "presumed:{factor}"),
            Self::Presumed { factor, feedback: false } => {
                write!(f, "presumed:{factor},no-feedback")
            }
        }
    }
}

/// A workload at a load on a fleet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// Place of the workload.
    pub trace: usize,
    /// Engines.
    pub engine: EngineKind,
    /// Workers.
    pub workers: usize,
    /// Cache of each.
    pub cache: CacheSize,
    /// How many times slower the first worker is.
    pub slow: f64,
    /// Prefill without any cache, over what the fleet can do.
    pub load: f64,
}

/// What all cells have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Common {
    /// Hardware.
    pub hardware: HardwareChoice,
    /// Tokens a step, of batching engines.
    pub step_tokens: u32,
    /// Sequences at a time, of batching engines.
    pub sequences: usize,
    /// What the router gets to know.
    pub knowledge: Knowledge,
    /// Whether it knows prefill costs beforehand.
    pub costs_known: bool,
    /// Share of requests that are not streamed.
    pub silent: f64,
}

impl Cell {
    /// Relative speeds of its workers.
    pub fn speeds(&self) -> Vec<f64> {
        let mut speeds = vec![1.0; self.workers];
        speeds[0] = 1.0 / self.slow;
        speeds
    }

    /// Its fleet.
    pub fn fleet(&self, common: &Common, hardware: Hardware, sharing: Sharing) -> Fleet {
        Fleet {
            hardware,
            discipline: match self.engine {
                EngineKind::Fifo => Discipline::Fifo,
                EngineKind::Batching => {
                    let (budget, sequences) = (common.step_tokens, common.sequences);
                    Discipline::Batching { budget, sequences }
                }
            },
            speeds: self.speeds(),
            cache_tokens: self.cache.tokens(&hardware),
            sharing,
            knowledge: common.knowledge,
            costs_known: common.costs_known,
        }
    }

    /// Its workload, with arrivals drawn by `seed`.
    pub fn workload(&self, common: &Common, trace: &Workload, seed: u64) -> Workload {
        let mut workload = trace.redrawn(trace.tick_s, seed);
        workload.silence(common.silent, seed);
        workload.scale_to(&common.hardware.of(trace), self.speeds().iter().sum(), self.load);
        workload
    }

    /// In words, without the trace.
    pub fn describe(&self) -> String {
        let Self { engine, workers, cache, slow, load, .. } = self;
        let slow = if *slow > 1.0 { format!(", one {slow}x slower") } else { String::new() };
        format!("{}, {workers} workers{slow}, cache {cache}, load {load}", engine.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_bad_ones_refused() {
        for (text, tokens) in
            [("106000", 106_000), ("106k", 106_000), ("0.25x", 332_500), ("2hbm", 2_660_000)]
        {
            let size: CacheSize = text.parse().unwrap();
            assert_eq!(size.tokens(&LLAMA_70B), tokens, "{text}");
        }
        assert_eq!("1x".parse::<CacheSize>().unwrap().tokens(&LLAMA_8B), 106_750);
        for text in ["", "x", "0", "-1x", "1g", "nanx", "infhbm"] {
            assert!(text.parse::<CacheSize>().unwrap_err().contains("use tokens"), "{text}");
        }
    }

    #[test]
    fn knowledge_is_read_and_what_is_none_refused() {
        for (text, knowledge) in [
            ("exact", Knowledge::Events { late: 0.0 }),
            ("late:1.5", Knowledge::Events { late: 1.5 }),
            ("lossy:0.01", Knowledge::Lossy { share: 0.01 }),
            ("presumed", Knowledge::Presumed { factor: 1.0, feedback: true }),
            ("presumed:4,no-feedback", Knowledge::Presumed { factor: 4.0, feedback: false }),
        ] {
            assert_eq!(text.parse(), Ok(knowledge));
        }
        for text in
            ["", "late", "late:-1", "lossy:2", "presumed4", "presumed:0", "late:nan", "exact,"]
        {
            assert!(text.parse::<Knowledge>().unwrap_err().contains("use exact"), "{text}");
        }
    }
}
