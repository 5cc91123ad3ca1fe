//! What a worker has been given and has not finished.

/// The work of one worker at the moment of a decision, as this process knows it: requests sent by
/// others are not in it. The caller keeps it with guards, so that it falls whatever happens to a
/// request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Requests sent to the worker that have not finished, waiting and decoding alike.
    pub requests: u32,
    /// Prompt tokens that the worker does not hold, dispatched to it and not yet answered by a
    /// first token.
    pub queued_tokens: u64,
    /// Those of `requests` that have sent their first token and are still running.
    pub decodes: u32,
}

impl Load {
    /// Requests still before their first token.
    ///
    /// Zero where `decodes` exceeds `requests`: the caller reads the two at slightly different
    /// moments.
    pub fn waiting(&self) -> u32 {
        self.requests.saturating_sub(self.decodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_what_does_not_decode_and_never_wraps() {
        assert_eq!(Load { requests: 5, decodes: 2, queued_tokens: 0 }.waiting(), 3);
        assert_eq!(Load { requests: 1, decodes: 2, queued_tokens: 0 }.waiting(), 0);
    }
}
