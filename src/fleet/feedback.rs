//! What answers tell: how much of a prompt its worker really had cached.

use std::time::Instant;

use super::{Fleet, Picked, truth::Domain};
use crate::{
    routing::{
        block::BlockHash,
        prefix::Matched,
        trust::{Feedback, Trust, WorkerEvent},
    },
    telemetry::{self, events},
    wire::usage::Usage,
};

/// What was believed of a prompt when its worker was picked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prediction {
    /// Leading blocks held, in any tier.
    pub blocks: usize,
    /// Those of them the worker's reports had confirmed.
    pub confirmed: usize,
    /// Blocks of the prompt.
    pub total_blocks: usize,
    /// Canonical bytes of the prompt.
    pub bytes: u64,
    /// Tokens of the prompt, where they are known.
    pub tokens: Option<u64>,
    /// Tokens a block, where they are.
    pub tokens_a_block: usize,
    /// Prompts in the request.
    pub prompts: usize,
    /// Tokens in an engine block of the worker, where it has said.
    pub engine_block_tokens: Option<u32>,
    /// What it is counted in.
    pub domain: Option<Domain>,
}

impl Prediction {
    /// Tokens of a prompt of `prompt_tokens` that the worker should report as cached.
    pub fn cached_tokens(&self, prompt_tokens: u64, block_bytes: usize) -> u64 {
        let Some(known) = self.tokens else {
            let share = (self.blocks * block_bytes) as f64 / self.bytes.max(1) as f64;
            return ((prompt_tokens as f64 * share) as u64).min(prompt_tokens.saturating_sub(1));
        };
        // The last token of a prompt is always computed, and engines reuse whole blocks.
        let most = known.saturating_sub(self.prompts as u64);
        let held = ((self.blocks * self.tokens_a_block) as u64).min(most);
        let block = u64::from(self.engine_block_tokens.unwrap_or(1).max(1));
        if self.prompts == 1 { held / block * block } else { held }
    }

    pub(super) fn sum(matched: &[Matched]) -> (usize, usize) {
        let all = |m: &Matched| m.gpu + m.cpu + m.storage;
        (matched.iter().map(all).sum(), matched.iter().map(|m| m.confirmed).sum())
    }
}

/// How a prediction did, tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Predicted to be cached.
    pub predicted: u64,
    /// Reported as cached.
    pub actual: u64,
}

impl Fleet {
    /// Takes in what an answer says of its prompt. `None` when it says nothing of the cache.
    pub fn feedback(
        &self,
        picked: &Picked,
        prompts: &[Vec<BlockHash>],
        usage: Option<&Usage>,
        now: Instant,
    ) -> Option<Verdict> {
        let prediction = &picked.prediction;
        if prediction.total_blocks == 0 && prediction.tokens.is_none() {
            return None;
        }
        let (member, metrics) = (&picked.member, &picked.member.metrics);
        let Some((usage, actual)) = usage.and_then(|usage| Some((usage, usage.cached_tokens?)))
        else {
            events::fed_back("absent");
            return None;
        };
        let text_bytes = self.live.load().hashing.block_bytes.get();
        let predicted = prediction.cached_tokens(usage.prompt_tokens, text_bytes);
        metrics.predicted_tokens.inc_by(predicted);
        metrics.actual_tokens.inc_by(actual);
        metrics.stale_tokens.inc_by(predicted.saturating_sub(actual));
        metrics.missed_tokens.inc_by(actual.saturating_sub(predicted));
        telemetry::regret::answered(&picked.account.regret.answered(usage.prompt_tokens, actual));
        let prompt_tokens = usage.prompt_tokens.max(1);
        // Blocks of ours in tokens; exact where prompts are token ids.
        let tokens_a_block = match prediction.tokens {
            Some(_) => prediction.tokens_a_block as f64,
            None => prompt_tokens as f64 * text_bytes as f64 / prediction.bytes.max(1) as f64,
        };
        let block =
            u64::from(prediction.engine_block_tokens.unwrap_or(0)).max(tokens_a_block as u64 + 1);
        events::fed_back(match predicted.abs_diff(actual) {
            apart if apart <= block => "right",
            _ if predicted > actual => "stale",
            _ => "missed",
        });
        let feedback = Feedback {
            predicted_at: picked.at,
            predicted_tokens: predicted,
            actual_tokens: actual,
            block_tokens: block,
            sure: prediction.confirmed > 0,
        };
        member.undergoes(WorkerEvent::Feedback(feedback), now);
        if let Some(sent) = &picked.sent {
            let held = (actual as f64 / tokens_a_block).round() as usize;
            let moved = {
                let mut truth = member.truth.lock();
                truth.state() == Trust::Presumed && truth.answered(sent, held)
            };
            if moved {
                self.rebound(member);
            }
        }
        if let [prompt] = prompts {
            // It is there now, whatever was.
            member.belief.prefilled(prompt, now);
        }
        Some(Verdict { predicted, actual })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_reuse_whole_blocks_short_of_the_last_token() {
        let predict = |blocks, tokens, engine_block_tokens| {
            let prediction = Prediction {
                blocks,
                tokens: Some(tokens),
                tokens_a_block: 16,
                prompts: 1,
                engine_block_tokens,
                ..Prediction::default()
            };
            prediction.cached_tokens(tokens, 128)
        };
        // ENGINES.md: a 64-token repeat reports 32 at block 32.
        assert_eq!(predict(4, 64, Some(32)), 32);
        assert_eq!(predict(4, 65, Some(32)), 64);
        assert_eq!(predict(3, 100, Some(32)), 32);
        assert_eq!(predict(4, 64, None), 63);
        assert_eq!(predict(0, 64, Some(16)), 0);
    }

    #[test]
    fn text_is_predicted_by_its_share() {
        let prediction = Prediction { blocks: 5, bytes: 1280, ..Prediction::default() };
        assert_eq!(prediction.cached_tokens(400, 128), 200);
        let all = Prediction { blocks: 10, bytes: 1280, ..Prediction::default() };
        assert_eq!(all.cached_tokens(400, 128), 399);
    }
}
