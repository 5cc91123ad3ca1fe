//! Parity: do we tokenize as the workers do?
//!
//! A prompt rendered or tokenized otherwise than by its engine matches nothing, silently. So every
//! worker of an aligned model is asked for the tokens of a few chats, when it comes up and now and
//! then; while one disagrees, the model is matched as text.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use pingora::{server::ShutdownWatch, services::background::BackgroundService};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    clock,
    fleet::{AlignedEntry, Fleet, Health, Live, Member, Models},
    telemetry::events,
    wire::endpoint::PromptForm,
    worker_http::WorkerHttp,
};

/// How soon a worker that has come up is asked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How soon a worker that disagreed, or could not be asked, is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The service.
pub struct ParityService {
    fleet: Arc<Fleet>,
    http: WorkerHttp,
}

/// One worker and model, as of its last check.
struct Checked {
    member: Arc<Member>,
    entry: Arc<AlignedEntry>,
    verdict: Option<bool>,
    due: Instant,
}

impl ParityService {
    /// Checks all workers of aligned models every `aligned.parity_interval_s`.
    pub fn new(fleet: Arc<Fleet>, http: WorkerHttp) -> Self {
        Self { fleet, http }
    }

    async fn look(&self, known: &mut HashMap<(usize, String), Checked>) {
        let live = self.fleet.live();
        let Some(every) = live.config.aligned.parity_interval.filter(|_| !live.aligned.is_empty())
        else {
            known.clear();
            return;
        };
        let members = self.fleet.members();
        let key = |member: &Arc<Member>| Arc::as_ptr(member) as usize;
        known.retain(|(at, _), _| members.iter().any(|member| key(member) == *at));
        for member in members.iter().filter(|member| member.health() == Health::Healthy) {
            for (asked, entry) in models_of(&live, member) {
                let at = (key(member), entry.name.clone());
                let same = |checked: &&Checked| Arc::ptr_eq(&checked.entry, &entry);
                let before =
                    known.get(&at).filter(same).map(|checked| (checked.verdict, checked.due));
                if before.is_some_and(|(_, due)| clock::now() < due) {
                    continue;
                }
                let (verdict, why) = self.check(member, &asked, &entry).await;
                if before.is_none_or(|(before, _)| before != verdict) {
                    // It may have left meanwhile, and its series are not to come back.
                    self.fleet.while_member(member, || {
                        events::parity(member.id().as_str(), &entry.name, verdict, &why);
                    });
                }
                let pause = if verdict == Some(true) { every } else { AGAIN_AFTER };
                let due = clock::now() + pause.min(every);
                let checked = Checked { member: member.clone(), entry, verdict, due };
                known.insert(at, checked);
            }
        }
        for checked in known.values() {
            let same = |other: &&Checked| Arc::ptr_eq(&other.entry, &checked.entry);
            let up = |other: &&Checked| other.member.health() == Health::Healthy;
            let mismatch = known.values().filter(same).filter(up).any(|c| c.verdict == Some(false));
            checked.entry.set_mismatched(mismatch);
        }
    }

    /// Whether a worker agrees with us on all chats it can be asked about; and why not.
    async fn check(
        &self,
        member: &Member,
        model: &str,
        entry: &AlignedEntry,
    ) -> (Option<bool>, String) {
        let (mut verdict, mut why) = (None, "it has no /tokenize".to_owned());
        for (name, mut chat) in chats() {
            chat["model"] = json!(model);
            chat["add_generation_prompt"] = json!(true);
            let body = chat.to_string().into_bytes();
            let Ok(ours) = entry.tokens(PromptForm::Chat, &body) else { continue };
            let Some(ours) = ours.into_iter().next() else { continue };
            match self.http.ask(member.url(), "/tokenize", Some(body)).await {
                Ok((200, answer)) => match tokens_of(&answer) {
                    Some(theirs) if theirs == ours => verdict = verdict.or(Some(true)),
                    Some(theirs) => {
                        let apart = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
                        let (ours, theirs) = (ours.len(), theirs.len());
                        why = format!(
                            "chat `{name}`: {ours} tokens here, {theirs} there, apart from token {apart} on"
                        );
                        return (Some(false), why);
                    }
                    None => "its /tokenize answers without tokens".clone_into(&mut why),
                },
                Ok((status, _)) => why = format!("its /tokenize answers {status}"),
                Err(error) => why = format!("its /tokenize: {error}"),
            }
        }
        (verdict, why)
    }
}

#[async_trait]
impl BackgroundService for ParityService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut known = HashMap::new();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = look.tick() => self.look(&mut known).await,
                _ = shutdown.changed() => return,
            }
        }
    }
}

/// The aligned models a worker serves, by the name it serves them under.
fn models_of(live: &Live, member: &Member) -> Vec<(String, Arc<AlignedEntry>)> {
    let Models::Known(known) = &*member.models() else { return Vec::new() };
    let mut found: Vec<(String, Arc<AlignedEntry>)> = Vec::new();
    for model in known {
        if let Some(entry) = live.aligned.of(&model.id)
            && !found.iter().any(|(_, other)| Arc::ptr_eq(other, &entry))
        {
            found.push((model.id.clone(), entry));
        }
    }
    found
}

fn tokens_of(answer: &[u8]) -> Option<Vec<u32>> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let tokens = answer.get("tokens")?.as_array()?;
    tokens.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// Chats that between them meet what templates and tokenizers differ in.
fn chats() -> [(&'static str, Value); 4] {
    let tool = json!({"type": "function", "function": {
        "name": "look_up", "description": "Looks \"things\" up <fast>",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}}});
    [
        ("user", json!({"messages": [{"role": "user", "content": "What colour is the sky?"}]})),
        (
            "turns",
            json!({"messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello, 1234567890!  Wie geht's?\n\n\tx = 1"},
                {"role": "assistant", "content": "Gut. 你好 \u{1f642}"},
                {"role": "user", "content": "Na\u{ef}ve caf\u{e9}, don't   stop"}]}),
        ),
        (
            "parts",
            json!({"messages": [{"role": "user", "content": [
                {"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]}),
        ),
        (
            "tools",
            json!({"messages": [{"role": "user", "content": "Look it up"}], "tools": [tool]}),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_or_not() {
        assert_eq!(tokens_of(br#"{"count":2,"tokens":[1,2]}"#), Some(vec![1, 2]));
        for bad in [&b"{}"[..], br#"{"tokens":[-1]}"#, br#"{"tokens":["a"]}"#, b"x"] {
            assert_eq!(tokens_of(bad), None);
        }
    }
}
