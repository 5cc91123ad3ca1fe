//! Which kind of request a method and path are.

use http::Method;

/// How a prompt is laid out in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptForm {
    /// OpenAI chat: `messages`, `tools`.
    Chat,
    /// OpenAI completions and llama.cpp's own: `prompt`.
    Completion,
    /// OpenAI responses: `instructions`, `input`, `tools`.
    Responses,
    /// Anthropic messages: `system`, `messages`, `tools`.
    Messages,
}

/// What is asked of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The proxy's own health, answered here.
    Health,
    /// The fleet's models, answered here.
    Models,
    /// One of the fleet's models, answered here.
    Model,
    /// Carries a prompt an engine will cache.
    Prompt(PromptForm),
    /// Anything else: by load among the workers of its model.
    Other,
}

impl Endpoint {
    /// Classifies a request.
    pub fn of(method: &Method, path: &str) -> Endpoint {
        if *method == Method::GET || *method == Method::HEAD {
            return match path {
                "/health" => Endpoint::Health,
                "/v1/models" | "/v1/models/" => Endpoint::Models,
                _ if path.strip_prefix("/v1/models/").is_some_and(|id| !id.is_empty()) => {
                    Endpoint::Model
                }
                _ => Endpoint::Other,
            };
        }
        if *method != Method::POST {
            return Endpoint::Other;
        }
        match path.trim_end_matches('/') {
            "/v1/chat/completions" | "/chat/completions" => Endpoint::Prompt(PromptForm::Chat),
            "/v1/completions" | "/completions" | "/completion" => {
                Endpoint::Prompt(PromptForm::Completion)
            }
            "/v1/responses" | "/responses" => Endpoint::Prompt(PromptForm::Responses),
            "/v1/messages" => Endpoint::Prompt(PromptForm::Messages),
            _ => Endpoint::Other,
        }
    }

    /// A closed label for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::Health => "health",
            Endpoint::Models | Endpoint::Model => "models",
            Endpoint::Prompt(PromptForm::Chat) => "chat",
            Endpoint::Prompt(PromptForm::Completion) => "completions",
            Endpoint::Prompt(PromptForm::Responses) => "responses",
            Endpoint::Prompt(PromptForm::Messages) => "messages",
            Endpoint::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_posts_carry_prompts() {
        let of = Endpoint::of;
        assert_eq!(of(&Method::POST, "/v1/messages"), Endpoint::Prompt(PromptForm::Messages));
        assert_eq!(of(&Method::POST, "/completion"), Endpoint::Prompt(PromptForm::Completion));
        assert_eq!(of(&Method::GET, "/v1/chat/completions"), Endpoint::Other);
        assert_eq!(of(&Method::POST, "/v1/messages/count_tokens"), Endpoint::Other);
        assert_eq!(of(&Method::GET, "/v1/models/a/b"), Endpoint::Model);
        assert_eq!(of(&Method::DELETE, "/v1/models/a"), Endpoint::Other);
        assert_eq!(of(&Method::POST, "/health"), Endpoint::Other);
    }
}
