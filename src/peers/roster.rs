//! The routers we hear: who they are, and whether a message of theirs is news.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::frame::{Head, Refused};

/// Routers told apart, at most.
pub(super) const PEERS_MAX: usize = 64;
/// A router is known while it was heard within this time.
pub(super) const KNOWN_FOR: Duration = Duration::from_secs(3);
/// A router that was silent for so long is forgotten. Longer than `AGE_MAX`, so that a message of
/// one that was forgotten cannot be news when it is repeated.
const REMEMBERED_FOR: Duration = Duration::from_secs(200);
/// How far a sender's clock and the way of its message may be off.
const AGE_MAX: Duration = Duration::from_mins(1);
/// Distinct causes of refusal that are told of; more would only fill the log.
const TOLD_MAX: usize = 16;

/// One router.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// As it calls itself.
    pub(super) name: String,
    /// This life of it.
    pub(super) instance: u64,
    /// When it was heard last.
    pub(super) heard: Instant,
    /// Messages of it that were taken.
    pub(super) messages: u64,
    /// Number of the last of them.
    number: u64,
    silent: bool,
}

impl Peer {
    /// The name its loads are filed under: two lives of one router add up.
    pub(super) fn id(&self) -> String {
        format!("{}#{:016x}", self.name, self.instance)
    }
}

/// What has changed among the routers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// One is heard that was not.
    Heard(String),
    /// One is heard no more.
    Silent(String),
}

/// Those we hear or heard.
#[derive(Debug, Default)]
pub(super) struct Roster {
    peers: Vec<Peer>,
    told: HashSet<Refused>,
}

impl Roster {
    /// A message with a true code has come: whose it is, and what that changes.
    ///
    /// # Errors
    /// `Refused` when it is no news.
    pub(super) fn hear(
        &mut self,
        head: &Head,
        unix_ms: u64,
        now: Instant,
    ) -> Result<(&Peer, Option<Change>), Refused> {
        if unix_ms.abs_diff(head.sent_ms) > AGE_MAX.as_millis() as u64 {
            return Err(Refused::Stale);
        }
        let found = self.peers.iter().position(|peer| peer.instance == head.instance);
        let at = match found {
            Some(at) => at,
            None if self.peers.len() >= PEERS_MAX => return Err(Refused::Full),
            None => {
                self.peers.push(Peer {
                    name: head.name.clone(),
                    instance: head.instance,
                    heard: now,
                    messages: 0,
                    number: 0,
                    silent: true,
                });
                self.peers.len() - 1
            }
        };
        let peer = &mut self.peers[at];
        if head.number <= peer.number {
            return Err(Refused::Repeated);
        }
        peer.number = head.number;
        peer.heard = now;
        peer.messages += 1;
        let change =
            std::mem::replace(&mut peer.silent, false).then(|| Change::Heard(peer.name.clone()));
        Ok((peer, change))
    }

    /// Time passes: who fell silent.
    pub(super) fn age(&mut self, now: Instant) -> Vec<Change> {
        let silent_for = |peer: &Peer| now.saturating_duration_since(peer.heard);
        self.peers.retain(|peer| silent_for(peer) < REMEMBERED_FOR);
        let fell = |peer: &mut Peer| {
            let falls = !peer.silent && silent_for(peer) >= KNOWN_FOR;
            peer.silent |= falls;
            falls.then(|| Change::Silent(peer.name.clone()))
        };
        self.peers.iter_mut().filter_map(fell).collect()
    }

    /// Those that are not silent.
    pub(super) fn known(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| !peer.silent)
    }

    /// Whether a refusal is the first of its cause, and so worth a line.
    pub(super) fn is_first(&mut self, refused: Refused) -> bool {
        self.told.len() < TOLD_MAX && self.told.insert(refused)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn head(instance: u64, number: u64) -> Head {
        Head { instance, number, sent_ms: NOW_MS, name: format!("r{instance}") }
    }

    #[test]
    fn routers_come_and_fall_silent() {
        let t0 = crate::clock::now();
        let mut roster = Roster::default();
        let heard = |roster: &mut Roster, head: &Head, now| {
            roster.hear(head, NOW_MS, now).map(|(_, change)| change)
        };
        let news = Some(Change::Heard("r1".to_owned()));
        assert_eq!(heard(&mut roster, &head(1, 5), t0), Ok(news.clone()));
        assert_eq!(heard(&mut roster, &head(1, 6), t0), Ok(None));
        assert_eq!(heard(&mut roster, &head(1, 6), t0), Err(Refused::Repeated));
        assert_eq!(roster.known().count(), 1);
        assert!(roster.age(t0 + KNOWN_FOR / 2).is_empty());
        assert_eq!(roster.age(t0 + KNOWN_FOR), [Change::Silent("r1".to_owned())]);
        assert!(roster.age(t0 + KNOWN_FOR).is_empty());
        assert_eq!(roster.known().count(), 0);
        let later = t0 + 2 * KNOWN_FOR;
        assert_eq!(heard(&mut roster, &head(1, 4), later), Err(Refused::Repeated));
        assert_eq!(heard(&mut roster, &head(1, 7), later), Ok(news));
        roster.age(later + REMEMBERED_FOR);
        assert!(roster.peers.is_empty());
    }

    #[test]
    fn old_messages_are_no_news() {
        let now = crate::clock::now();
        let mut roster = Roster::default();
        for (sent_ms, fine) in [
            (NOW_MS, true),
            (NOW_MS - 59_000, true),
            (NOW_MS + 59_000, true),
            (NOW_MS - 61_000, false),
            (NOW_MS + 61_000, false),
            (0, false),
            (u64::MAX, false),
        ] {
            let head = Head { sent_ms, ..head(sent_ms, 1) };
            assert_eq!(roster.hear(&head, NOW_MS, now).is_ok(), fine, "{sent_ms}");
        }
    }

    #[test]
    fn routers_and_lines_are_bounded() {
        let now = crate::clock::now();
        let mut roster = Roster::default();
        let taken = (0..1000).filter(|at| roster.hear(&head(*at, 1), NOW_MS, now).is_ok()).count();
        assert_eq!(taken, PEERS_MAX);
        assert_eq!(roster.hear(&head(2000, 1), NOW_MS, now).unwrap_err(), Refused::Full);
        let lines = (0..1000).filter(|print| roster.is_first(Refused::Configuration(*print)));
        assert_eq!(lines.count(), TOLD_MAX);
        assert!(!roster.is_first(Refused::Configuration(3)));
    }

    proptest! {
        #[test]
        fn no_message_is_taken_twice(said in prop::collection::vec((0u64..4, 1u64..30), 0..200)) {
            let now = crate::clock::now();
            let mut roster = Roster::default();
            let mut taken = HashSet::new();
            for (instance, number) in said {
                if roster.hear(&head(instance, number), NOW_MS, now).is_ok() {
                    prop_assert!(taken.insert((instance, number)));
                }
            }
        }
    }
}
