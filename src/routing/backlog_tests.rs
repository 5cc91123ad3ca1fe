//! The backlog beside an engine that serves first come, first served, and against its own rules.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const COST: PrefillCost = PrefillCost { request_s: 0.01, token_s: 1e-3, pair_s: 0.0 };

fn t0() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(crate::clock::now)
}

fn at(ms: u64) -> Instant {
    t0() + Duration::from_millis(ms)
}

/// `ms` of prefill at [`COST`], more than 10.
fn work(ms: u64) -> Work {
    Work { requests: 1, tokens: ms - 10, pairs: 0 }
}

fn assert_near(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-6, "{got} is not {want}");
}

/// A backlog with the cost it is asked at.
#[derive(Default)]
struct Scene(Backlog);

impl Scene {
    fn sent(&mut self, ms: u64, now: u64) -> Ticket {
        self.0.sent(work(ms), false, &COST, at(now))
    }

    fn silent(&mut self, ms: u64, now: u64) -> Ticket {
        self.0.sent(work(ms), true, &COST, at(now))
    }

    /// The milliseconds that what was observed should take, and those it took.
    fn first_token(&mut self, ticket: Ticket, now: u64) -> Option<(u64, u64)> {
        let Observed { work, took } = self.0.first_token(ticket, &COST, at(now))?;
        Some(((COST.seconds(&work) * 1e3).round() as u64, took.as_millis() as u64))
    }

    fn gone(&mut self, ticket: Ticket, now: u64) {
        self.0.gone(ticket, &COST, at(now));
    }

    fn assert_running(&self, now: u64, want: u32) {
        assert_eq!(self.0.running(&COST, at(now)), want);
    }

    fn assert_ms(&self, now: u64, want: u64) {
        assert_near(self.0.seconds(&COST, at(now)), want as f64 / 1e3);
    }
}

#[test]
fn what_was_sent_waits_and_the_foremost_is_credited_its_time() {
    let mut scene = Scene::default();
    scene.assert_ms(0, 0);
    let first = scene.sent(100, 0);
    let second = scene.sent(50, 20);
    scene.assert_ms(20, 130);
    scene.assert_ms(60, 90);
    // It is late: nothing of the second is done before its turn.
    scene.assert_ms(400, 50);
    assert_eq!(scene.first_token(first, 120), None);
    scene.assert_ms(130, 40);
    assert_eq!(scene.first_token(second, 170), Some((100, 120)), "the first one's");
    scene.assert_ms(170, 0);
    assert!(scene.0.work().is_none());
}

#[test]
fn a_lone_request_is_observed_from_when_it_was_sent() {
    let mut scene = Scene::default();
    let first = scene.sent(100, 1000);
    scene.first_token(first, 1100);
    let second = scene.sent(200, 5000);
    assert_eq!(scene.first_token(second, 5300), Some((100, 100)));
    let third = scene.sent(200, 9000);
    assert_eq!(scene.first_token(third, 9300), Some((200, 300)));
}

#[test]
fn first_tokens_of_one_step_are_one_observation() {
    let mut scene = Scene::default();
    let tickets = [scene.sent(100, 0), scene.sent(50, 0), scene.sent(70, 0)];
    for ticket in tickets {
        assert_eq!(scene.first_token(ticket, 200), None);
    }
    let later = scene.sent(30, 500);
    assert_eq!(scene.first_token(later, 540), Some((220, 200)));
}

#[test]
fn first_tokens_of_one_step_that_straggle_are_one_observation_too() {
    let mut scene = Scene::default();
    let tickets: Vec<_> = (0..5).map(|_| scene.sent(100, 0)).collect();
    for (ticket, now) in tickets.into_iter().zip([300, 303, 305, 309, 312]) {
        assert_eq!(scene.first_token(ticket, now), None);
    }
    let later = scene.sent(100, 400);
    assert_eq!(scene.first_token(later, 420), Some((500, 312)));
    // A worker five times as fast as believed is observed all the same, some at a time.
    let fast: Vec<_> = (0..100).map(|_| scene.sent(100, 1_000)).collect();
    let told = fast.into_iter().zip(1_u64..);
    let told: Vec<_> =
        told.filter_map(|(ticket, nth)| scene.first_token(ticket, 1_000 + 20 * nth)).collect();
    assert_eq!(told, [(100, 20), (3_200, 640), (3_200, 640), (3_200, 640)]);
}

#[test]
fn who_overtakes_adds_its_work_to_the_foremost_ones_time() {
    let mut scene = Scene::default();
    let (long, short) = (scene.sent(500, 0), scene.sent(50, 100));
    assert_eq!(scene.first_token(short, 200), None);
    // 200 ms served, 50 of them for the other.
    scene.assert_ms(200, 350);
    assert_eq!(scene.first_token(long, 550), None);
    let next = scene.sent(50, 600);
    assert_eq!(scene.first_token(next, 650), Some((550, 550)));
}

#[test]
fn time_that_may_have_gone_into_a_cancelled_request_tells_nothing() {
    let mut scene = Scene::default();
    let (first, second, third) = (scene.sent(100, 0), scene.sent(50, 0), scene.sent(50, 0));
    scene.gone(first, 90);
    scene.assert_ms(90, 100);
    assert_eq!(scene.first_token(second, 150), None);
    assert_eq!(scene.first_token(third, 200), None, "the second's would have come now");
    let next = scene.sent(50, 300);
    assert_eq!(scene.first_token(next, 350), Some((50, 50)), "the third's");
    // One that waits behind is none the foremost waits for, but an engine may have begun it.
    let (first, second) = (scene.sent(100, 400), scene.sent(50, 400));
    scene.gone(second, 450);
    assert_eq!(scene.first_token(first, 520), Some((50, 50)));
    let last = scene.sent(50, 600);
    assert_eq!(scene.first_token(last, 650), None, "the 120 ms are not told");
}

#[test]
fn what_comes_with_the_step_of_an_untold_one_is_not_told_either() {
    let mut scene = Scene::default();
    let (gone, first, second) = (scene.sent(50, 0), scene.sent(50, 0), scene.sent(50, 0));
    scene.gone(gone, 10);
    assert_eq!(scene.first_token(first, 100), None);
    assert_eq!(scene.first_token(second, 100), None);
    // Nor does an answer out of nowhere belong to a step of long ago.
    let known = scene.sent(50, 200);
    assert_eq!(scene.first_token(known, 250), None);
    let sudden = scene.sent(50, 9000);
    assert_eq!(scene.first_token(sudden, 9000), Some((50, 50)));
}

#[test]
fn silent_requests_are_done_when_their_time_is_over() {
    let mut scene = Scene::default();
    let silent = scene.silent(100, 0);
    let second = scene.silent(50, 0);
    scene.assert_ms(0, 150);
    scene.assert_ms(120, 30);
    scene.assert_ms(150, 0);
    scene.assert_ms(900, 0);
    scene.assert_running(120, 1);
    scene.assert_running(900, 2);
    // The worker has been idle: who comes now has not been served yet.
    let loud = scene.sent(200, 1000);
    scene.assert_ms(1000, 200);
    scene.assert_running(1000, 2);
    scene.gone(silent, 1050);
    scene.gone(second, 1060);
    scene.assert_ms(1100, 100);
    scene.assert_running(1100, 0);
    scene.first_token(loud, 1200);
    let last = scene.sent(30, 1300);
    assert_eq!(scene.first_token(last, 1330), Some((200, 200)));
}

#[test]
fn silent_requests_before_a_first_token_had_their_turn() {
    let mut scene = Scene::default();
    let (silent, loud, after) = (scene.silent(100, 0), scene.sent(50, 0), scene.silent(40, 0));
    // The engine is slower than believed, and what it did is known together.
    assert_eq!(scene.first_token(loud, 300), None);
    scene.assert_ms(300, 40);
    scene.assert_running(300, 1);
    scene.gone(silent, 310);
    scene.gone(after, 320);
    scene.assert_ms(320, 0);
    scene.assert_running(320, 0);
    let next = scene.sent(30, 400);
    assert_eq!(scene.first_token(next, 430), Some((150, 300)));
}

#[test]
fn a_silent_request_may_answer_in_a_stream_after_all() {
    let mut scene = Scene::default();
    let (soon, late) = (scene.silent(100, 0), scene.silent(100, 0));
    scene.first_token(soon, 90);
    scene.assert_ms(90, 100);
    scene.first_token(late, 5000);
    scene.assert_ms(5000, 0);
    scene.assert_running(5000, 0);
}

#[test]
fn what_never_got_there_is_taken_back() {
    let mut scene = Scene::default();
    let (first, second) = (scene.sent(100, 0), scene.sent(50, 0));
    assert_eq!(scene.0.take_back(second, at(10)), work(50));
    scene.assert_ms(50, 50);
    scene.first_token(first, 100);
    let next = scene.sent(50, 200);
    assert_eq!(scene.first_token(next, 250), Some((100, 100)), "it changed nothing for the first");
    let only = scene.sent(50, 300);
    assert_eq!(scene.0.take_back(only, at(310)), work(50));
    assert_eq!(scene.0.take_back(only, at(310)), Work::default());
    scene.assert_ms(310, 0);
}

#[test]
fn an_end_that_is_told_twice_changes_nothing() {
    let mut scene = Scene::default();
    let (first, _) = (scene.sent(100, 0), scene.sent(50, 0));
    scene.first_token(first, 100);
    scene.gone(first, 120);
    assert_eq!(scene.first_token(first, 130), None);
    scene.assert_ms(120, 30);
}

/// An engine that serves one after the other: what it has not done, by when it will be.
#[derive(Default)]
struct Engine {
    queue: VecDeque<(u64, Option<Ticket>)>,
    free_at: u64,
}

impl Engine {
    fn send(&mut self, ms: u64, now: u64, ticket: Option<Ticket>) {
        self.free_at = self.free_at.max(now) + ms;
        self.queue.push_back((self.free_at, ticket));
    }

    /// Tells `scene` of the first tokens until `now`, and gives what that told.
    fn pass(&mut self, scene: &mut Scene, now: u64) -> Vec<(u64, u64)> {
        let mut told = Vec::new();
        while let Some((done, ticket)) = self.queue.pop_front_if(|(done, _)| *done <= now) {
            told.extend(ticket.and_then(|ticket| scene.first_token(ticket, done)));
        }
        told
    }

    fn left_ms(&self, now: u64) -> u64 {
        self.free_at.saturating_sub(now)
    }
}

/// Milliseconds until it is sent, its own, and whether it is silent.
fn sends() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
    let wait = prop_oneof![Just(0), 0_u64..100, 0_u64..1000];
    prop::collection::vec((wait, 11_u64..400, prop::bool::weighted(0.3)), 1..60)
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Send { ms: u64, silent: bool },
    FirstToken,
    Gone,
    TakeBack,
}

fn acts() -> impl Strategy<Value = Vec<(u64, Act, usize)>> {
    let send = (11_u64..400, any::<bool>()).prop_map(|(ms, silent)| Act::Send { ms, silent });
    let act = prop_oneof![4 => send, 2 => Just(Act::FirstToken), 1 => Just(Act::Gone),
        1 => Just(Act::TakeBack)];
    prop::collection::vec((0_u64..200, act, any::<usize>()), 1..200)
}

proptest! {
    /// Where the cost is right and nobody is cancelled, what is known is what is true, though
    /// nothing is heard of silent requests; and what is observed took what it costs.
    #[test]
    fn it_is_the_engines_own(sends in sends()) {
        let (mut scene, mut engine, mut now) = (Scene::default(), Engine::default(), 0);
        let mut observed = Vec::new();
        let loud = (10_000, 50, false);
        for (wait, ms, silent) in sends.into_iter().chain([loud; 3]) {
            now += wait;
            observed.extend(engine.pass(&mut scene, now));
            scene.assert_ms(now, engine.left_ms(now));
            let ticket = scene.0.sent(work(ms), silent, &COST, at(now));
            engine.send(ms, now, (!silent).then_some(ticket));
            scene.assert_ms(now, engine.left_ms(now));
        }
        prop_assert!(!observed.is_empty());
        for (cost_ms, took_ms) in observed {
            prop_assert_eq!(cost_ms, took_ms);
        }
    }

    /// Whatever comes, in whatever order: never more than what stands there, never less than what
    /// waits behind the foremost, and nothing once all have ended.
    #[test]
    fn it_keeps_within_what_was_sent(acts in acts()) {
        let (mut scene, mut now) = (Scene::default(), 0);
        let mut out: Vec<(Ticket, u64, bool)> = Vec::new();
        for (wait, act, nth) in acts {
            now += wait;
            let place = nth % out.len().max(1);
            match act {
                Act::Send { ms, silent } => {
                    let ticket = scene.0.sent(work(ms), silent, &COST, at(now));
                    out.push((ticket, ms, silent));
                }
                _ if out.is_empty() => {}
                Act::FirstToken => {
                    let (ticket, ..) = out.remove(place);
                    if let Some((_, took)) = scene.first_token(ticket, now) {
                        prop_assert!(took <= now);
                    }
                }
                Act::Gone => scene.gone(out.remove(place).0, now),
                Act::TakeBack => {
                    let (ticket, ms, silent) = out.remove(place);
                    let back = scene.0.take_back(ticket, at(now));
                    prop_assert!(back == work(ms) || silent && back.is_none());
                }
            }
            for later in [0, 50, 100_000] {
                let seconds = scene.0.seconds(&COST, at(now + later));
                let all: u64 = out.iter().map(|(_, ms, _)| ms).sum();
                let loud: u64 = out.iter().filter(|o| !o.2).skip(1).map(|(_, ms, _)| ms).sum();
                prop_assert!(seconds <= all as f64 / 1e3 + 1e-9, "{seconds} of {all}");
                prop_assert!(seconds + 1e-9 >= loud as f64 / 1e3, "{seconds} under {loud}");
                // An earlier moment is none: clocks of threads are read in any order.
                let _ = scene.0.seconds(&COST, at(now.saturating_sub(later)));
            }
            let (running, silent) = (scene.0.running, out.iter().filter(|out| out.2).count());
            prop_assert!(running as usize <= silent, "{running} of {silent}");
            prop_assert!(scene.0.items.len() + running as usize == out.len());
        }
        for (ticket, ..) in out {
            scene.gone(ticket, now);
        }
        scene.assert_ms(now, 0);
        prop_assert!(scene.0.items.is_empty() && scene.0.work().is_none());
        prop_assert_eq!(scene.0.running(&COST, at(now + 9_000)), 0);
    }
}
