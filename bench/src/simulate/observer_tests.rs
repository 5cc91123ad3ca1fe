//! What the router believes under each kind of knowledge.

use rand::SeedableRng;

use super::super::workload::Line;
use super::*;

fn workload() -> Workload {
    let line = |at: u64, blocks: &[u64]| Line {
        t: at as f64,
        session: at.to_string(),
        tokens: blocks.len() as u64 * 10,
        output: 5,
        block_tokens: 10,
        blocks: blocks.to_vec(),
    };
    Workload::try_new("t", &[line(0, &[0, 1, 2]), line(1, &[0, 1, 3]), line(2, &[7])]).unwrap()
}

fn observer(knowledge: Knowledge) -> Observer {
    Observer::new(knowledge, 2, 100, 3, None, Instant::now())
}

fn seen(observer: &mut Observer, workload: &Workload, at: usize, now: f64) -> Vec<Seen> {
    let mut seen = Vec::new();
    observer.see(&workload.requests[at], now, &mut seen);
    seen
}

fn stored(workload: &Workload, at: usize) -> Vec<CacheEvent> {
    workload.requests[at].blocks.iter().map(|block| CacheEvent::Stored(*block)).collect()
}

#[test]
fn what_was_sent_is_marked_at_once_and_taken_off_in_the_end() {
    let workload = workload();
    for silent in [false, true] {
        let request = Request { silent, ..workload.requests[0].clone() };
        let mut observer = observer(Knowledge::Events { late: 5.0 });
        let before = seen(&mut observer, &workload, 0, 0.0);
        observer.sent(0, &request, 1, &before, 0.0);
        let sent = seen(&mut observer, &workload, 1, 0.0)[1];
        assert_eq!((sent.matched, sent.hit_tokens), (2, 20), "presumed");
        assert_eq!((sent.load.requests, sent.load.queued_tokens, sent.load.decodes), (1, 30, 0));
        assert!(sent.forecast.backlog_s > 0.0);
        observer.first_token(0, &request, 1.0);
        let first = seen(&mut observer, &workload, 1, 1.0)[1];
        let expected = if silent { (30, 0, 30) } else { (0, 1, 0) };
        let load = first.load;
        assert_eq!((load.queued_tokens, load.decodes, first.waiting_prompt_tokens), expected);
        observer.finished(0, &request, 0, 2.0);
        let last = seen(&mut observer, &workload, 1, 2.0)[1];
        assert_eq!(last.load, Load::default());
        assert_eq!((last.prompt_tokens, last.waiting_prompt_tokens), (0, 0));
        assert!(last.forecast.backlog_s.abs() < 1e-9);
    }
}

#[test]
fn events_are_believed_and_taken_back() {
    let workload = workload();
    let mut observer = observer(Knowledge::Events { late: 0.0 });
    let mut rng = SmallRng::seed_from_u64(1);
    observer.hear(0, &workload, &stored(&workload, 0), (0.0, 0.0), &mut rng);
    assert_eq!(seen(&mut observer, &workload, 0, 0.0)[0].matched, 3);
    observer.hear(0, &workload, &[CacheEvent::Removed(2)], (1.0, 1.0), &mut rng);
    assert_eq!(seen(&mut observer, &workload, 0, 1.0)[0].matched, 2);
    assert_eq!(seen(&mut observer, &workload, 0, 1.0)[1].matched, 0);
}

/// What was under way when a worker stated all it holds is in that statement already: applied once
/// more it would count twice, and a single removal would not undo it.
#[test]
fn a_statement_covers_what_happened_before_it() {
    let workload = workload();
    let mut observer = observer(Knowledge::Lossy { share: 0.0 });
    let mut rng = SmallRng::seed_from_u64(1);
    let mut cache = BlockCache::new(10, workload.blocks);
    cache.store(&workload.requests[0].blocks);
    observer.heal(0, &workload, &cache, 1.0);
    observer.hear(0, &workload, &stored(&workload, 0), (0.95, 1.05), &mut rng);
    let removed: Vec<_> = [2, 1, 0].map(CacheEvent::Removed).to_vec();
    observer.hear(0, &workload, &removed, (1.2, 1.3), &mut rng);
    assert_eq!(seen(&mut observer, &workload, 0, 1.3)[0].matched, 0);
}

#[test]
fn a_loss_is_told_of_once_until_it_is_healed() {
    let workload = workload();
    let mut observer = observer(Knowledge::Lossy { share: 1.0 });
    let mut rng = SmallRng::seed_from_u64(1);
    let events = stored(&workload, 0);
    assert!(observer.hear(0, &workload, &events, (0.0, 0.1), &mut rng));
    assert!(!observer.hear(0, &workload, &events, (0.2, 0.3), &mut rng));
    assert_eq!(seen(&mut observer, &workload, 0, 0.3)[0].matched, 0);
    let mut cache = BlockCache::new(10, workload.blocks);
    cache.store(&workload.requests[0].blocks);
    observer.heal(0, &workload, &cache, 1.0);
    assert_eq!(seen(&mut observer, &workload, 0, 1.0)[0].matched, 3);
    assert!(observer.hear(0, &workload, &events, (1.2, 1.3), &mut rng));
}

#[test]
fn without_events_nothing_is_heard() {
    let presumed = |feedback| observer(Knowledge::Presumed { factor: 4.0, feedback });
    assert_eq!(presumed(true).hears_after(), None);
    assert_eq!(presumed(false).hears_after(), None);
}
