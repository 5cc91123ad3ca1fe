"""The plugin without vLLM: recorded events through the whole of it against a fake router."""

import logging
import random
import sys
import time
import types
import unittest
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import recordings
from fake_router import FakeRouter, reference_sums
from recordings import AllBlocksCleared, BlockRemoved, BlockStored
from warmroute_vllm import events, hook, mirror, sender
from warmroute_vllm.reporter import Reporter
from warmroute_vllm.settings import Settings

STORM = "eviction_storm_64blocks.jsonl"
BASIC = "basic_sequence.jsonl"

logging.getLogger("vllm.warmroute").addHandler(logging.NullHandler())
logging.getLogger("vllm.warmroute").propagate = False


def settings(*routers, **changes):
    values = dict(
        urls=tuple(r if isinstance(r, str) else r.url for r in routers),
        worker_id="w0",
        worker_url="http://127.0.0.1:8000",
        interval_s=0.005,
        heartbeat_s=0.1,
        timeout_s=1.0,
    )
    values.update(changes)
    return Settings(**values)


def expected_copies(batches):
    """The reference: a plain count over the recording."""
    copies = {}
    for _, batch in batches:
        for event in batch:
            if type(event) is BlockStored:
                for h in event.block_hashes:
                    copies[h] = copies.get(h, 0) + 1
            elif type(event) is BlockRemoved:
                for h in event.block_hashes:
                    copies[h] -= 1
                    if not copies[h]:
                        del copies[h]
            else:
                copies.clear()
    return copies


def chain(count, size=4, start=1, parent=None):
    """One stored event: `count` blocks with ids start, start+1, ..."""
    ids = list(range(start, start + count))
    return BlockStored(
        block_hashes=ids, parent_block_hash=parent, token_ids=list(range(count * size)), block_size=size,
        medium="GPU", lora_name=None, group_idx=0, kv_cache_spec_kind="full_attention",
    )  # fmt: skip


class Case(unittest.TestCase):
    def setUp(self):
        self.router = FakeRouter()
        self.addCleanup(lambda: self.router.stop())
        fast = [
            mock.patch.object(sender, "BACKOFF_S", (0.02, 0.1)),
            mock.patch.object(sender, "BACKOFF_REFUSED_S", (0.02, 0.1)),
            mock.patch.object(sender, "SYNC_AGAIN_S", (0.02, 0.1)),
        ]
        for patch in fast:
            patch.start()
            self.addCleanup(patch.stop)

    def reporter(self, *args, **kwargs):
        reporter = Reporter(*args, **kwargs)
        self.addCleanup(reporter.stop)
        reporter.start()
        return reporter

    def until(self, holds, what="", limit_s=5.0):
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if holds():
                return
            time.sleep(0.005)
        self.fail(f"not within {limit_s} s: {what or holds}; router: {self.router.summary()}")

    def in_step(self, reporter, router=None, index=0):
        """All was acknowledged, and the router's belief is the engine's truth."""
        router = router or self.router
        one = reporter.senders[index]
        self.until(lambda: not reporter._queue and reporter._fed == reporter._taken and one.is_idle(), "idle")

        def same():
            epoch, seq, state = reporter.state()
            with router.lock:
                life = router.lives.get(("w0", 0))
                return (
                    life is not None
                    and life.epoch == epoch
                    and life.expected == seq + 1
                    and reference_sums(life.copies) == state.sums
                    and set(life.copies) == set(state.blocks)
                )

        self.until(same, "in step")

    def belief(self, rank=0):
        return dict(self.router.lives[("w0", rank)].copies)


class Replay(Case):
    def test_recorded_events_arrive_whole_and_in_order(self):
        for name in (BASIC, STORM):
            with self.subTest(name):
                self.router.lives.clear()
                batches = recordings.read(name)
                reporter = self.reporter(settings(self.router))
                for ts, batch in batches:
                    reporter.feed(ts, batch)
                self.in_step(reporter)
                self.assertEqual(self.belief(), expected_copies(batches))
                self.assertEqual(self.router.violations, [])
                seqs = [s for e, s, _ in self.router.batches if e == reporter.epoch()]
                self.assertEqual(seqs, list(range(len(seqs))))
                reporter.stop()

    def test_several_batches_while_it_runs(self):
        batches = recordings.read(STORM)
        reporter = self.reporter(settings(self.router))
        part = len(batches) // 8 + 1
        for begin in range(0, len(batches), part):
            for ts, batch in batches[begin : begin + part]:
                reporter.feed(ts, batch)
            self.in_step(reporter)
        self.assertEqual(self.belief(), expected_copies(batches))
        self.assertGreaterEqual(len(self.router.batches), 4)

    def test_every_prefix_of_the_storm_keeps_mirror_and_digest_right(self):
        batches = recordings.read(STORM)
        translator, held = events.Translator(), mirror.Mirror()
        for index, (_, batch) in enumerate(batches):
            for event in batch:
                for operation in translator.operations(event):
                    held.apply(operation)
            expected = expected_copies(batches[: index + 1])
            state = held.state()
            self.assertEqual({b: 1 + state.more.get(b, 0) for b in state.blocks}, expected)
            self.assertEqual(state.sums, reference_sums(expected))
        self.assertEqual(held.unknown_removed, 0)
        self.assertEqual(translator.skipped, 0)

    def test_two_routers_are_told_the_same(self):
        other = FakeRouter()
        self.addCleanup(other.stop)
        batches = recordings.read(STORM)
        reporter = self.reporter(settings(self.router, other))
        for ts, batch in batches:
            reporter.feed(ts, batch)
        self.in_step(reporter)
        self.in_step(reporter, other, 1)
        self.assertEqual(other.batches, self.router.batches)

    def test_of_two_routers_only_the_one_that_missed_something_is_synced(self):
        other = FakeRouter()
        self.addCleanup(other.stop)
        other.swallow = {1}
        reporter = self.reporter(settings(self.router, other))
        for start in range(1, 41, 4):
            reporter.feed(1.0, [chain(4, start=start)])
            self.until(lambda: reporter.senders[0].stats["events"] == (start + 3) // 4)
        self.in_step(reporter)
        self.in_step(reporter, other, 1)
        self.assertGreaterEqual(reporter.senders[1].stats["syncs"], 1)
        self.assertEqual(reporter.senders[0].stats["syncs"], 0)
        self.assertEqual(self.belief(), {block: 1 for block in range(1, 41)})

    def test_ranks_and_token_and_heartbeat(self):
        probe = lambda: {"current_load": 3, "kv_blocks_total": 96, "kv_blocks_used": 7, "model": "m"}
        reporter = self.reporter(settings(self.router, token="secret"), rank=2, probe=probe)
        reporter.feed(1.0, [chain(3)])
        self.until(lambda: self.router.beats and "seq" in self.router.beats[-1])
        first, last = self.router.beats[0], self.router.beats[-1]
        self.assertNotIn("seq", first)
        self.assertEqual(last["seq"], 0)
        self.assertEqual((last["rank"], last["current_load"], last["kv_blocks_total"]), (2, 3, 96))
        self.assertEqual((last["kv_blocks_used"], last["kv_block_tokens"], last["model"]), (7, 4, "m"))
        self.assertEqual(last["worker_url"], "http://127.0.0.1:8000")
        self.assertEqual(self.router.tokens_seen, {"Bearer secret"})
        self.assertEqual(self.belief(rank=2), {1: 1, 2: 1, 3: 1})

    def test_heartbeats_only(self):
        reporter = self.reporter(settings(self.router), with_events=False)
        self.router.ask_resync = True
        self.until(lambda: len(self.router.beats) >= 3)
        self.assertEqual(self.router.seen["/v1/sync"], 0)
        self.assertTrue(reporter.senders[0].stats["heartbeats"] >= 2)


class Trouble(Case):
    def storm(self, reporter):
        batches = recordings.read(STORM)
        for ts, batch in batches:
            reporter.feed(ts, batch)
        return expected_copies(batches)

    def test_lost_answers_are_sent_again_and_taken_once(self):
        self.router.lose_answers = 3
        reporter = self.reporter(settings(self.router))
        for start in range(1, 40, 4):
            reporter.feed(1.0, [chain(4, start=start)])
            time.sleep(0.01)
        self.in_step(reporter)
        self.assertEqual(set(self.belief().values()), {1})
        self.assertEqual(reporter.senders[0].stats["syncs"], 0)

    def test_queue_full_sends_the_same_batch_later(self):
        self.router.answers = [("/v1/events", 503, {"Retry-After": "0.1"}, {"code": "queue_full"})] * 2
        reporter = self.reporter(settings(self.router))
        since = time.monotonic()
        expected = self.storm(reporter)
        self.in_step(reporter)
        self.assertEqual(self.belief(), expected)
        self.assertGreater(time.monotonic() - since, 0.2)
        self.assertEqual(reporter.senders[0].stats["syncs"], 0)

    def test_router_down_at_first_and_restarted_later(self):
        port = self.router.port
        self.router.stop()
        reporter = self.reporter(settings(self.router.url))
        expected = self.storm(reporter)
        self.until(lambda: reporter.senders[0].stats["unreachable"] >= 3)
        self.router.start(port)
        self.in_step(reporter)
        self.assertEqual(self.belief(), expected)
        # A router that starts anew knows nothing: batch 1 is a gap to it, it asks, it is told all.
        with self.router.lock:
            self.router.lives.clear()
        reporter.feed(2.0, [chain(2, start=10_000)])
        self.in_step(reporter)
        self.assertEqual(self.belief(), {**expected, 10_000: 1, 10_001: 1})
        self.assertEqual(reporter.senders[0].stats["syncs"], 1)

    def test_unknown_worker_keeps_knocking(self):
        self.router.admits = False
        reporter = self.reporter(settings(self.router))
        expected = self.storm(reporter)
        self.until(lambda: len(self.router.beats) >= 3)
        self.assertEqual(self.router.seen["/v1/events"], 0)
        self.router.admits = True
        self.in_step(reporter)
        self.assertEqual(self.belief(), expected)

    def test_slow_and_dead_routers_never_block_the_engine(self):
        self.router.delay_s = 0.5
        reporter = self.reporter(settings(self.router, "http://127.0.0.1:9"))
        slowest = 0.0
        for start in range(1, 4001, 4):
            since = time.perf_counter()
            reporter.feed(1.0, [chain(4, start=start)])
            slowest = max(slowest, time.perf_counter() - since)
            if start % 40 == 1:
                time.sleep(0.001)
        self.assertLess(slowest, 0.1)
        since = time.perf_counter()
        reporter.stop()
        self.assertLess(time.perf_counter() - since, 0.1)

    def test_overflow_drops_the_queue_and_syncs(self):
        port = self.router.port
        self.router.stop()
        reporter = self.reporter(settings(self.router.url, buffer_events=20))
        for start in range(1, 401, 4):
            reporter.feed(1.0, [chain(4, start=start), BlockRemoved(block_hashes=[start + 3], group_idx=0)])
            time.sleep(0.002)
        self.assertGreaterEqual(reporter.senders[0].stats["overflows"], 1)
        self.assertEqual(reporter.stats["lost"], 0)
        self.router.start(port)
        self.in_step(reporter)
        self.assertEqual(len(self.belief()), 300)
        reporter.feed(2.0, [chain(2, start=10_000)])
        self.in_step(reporter)
        self.assertIn(10_001, self.belief())
        self.assertEqual(self.router.violations, [])

    def test_events_lost_before_the_mirror_begin_a_new_epoch(self):
        reporter = self.reporter(settings(self.router, buffer_events=5))
        reporter.feed(1.0, [chain(2)])
        self.in_step(reporter)
        old = reporter.epoch()
        reporter.feed(1.0, [chain(1, start=100 + i) for i in range(6)])
        self.until(lambda: reporter.epoch() != old)
        reporter.feed(1.0, [chain(1, start=200)])
        self.in_step(reporter)
        self.assertEqual(self.belief(), {200: 1})
        self.assertEqual(reporter.stats["lost"], 1)

    def test_refused_reports_end_in_a_sync(self):
        self.router.answers = [("/v1/events", 400, {}, {"code": "malformed"})]
        reporter = self.reporter(settings(self.router))
        expected = self.storm(reporter)
        self.in_step(reporter)
        self.assertEqual(self.belief(), expected)
        self.assertEqual(reporter.senders[0].stats["snapshots"], 1)

    def test_events_that_make_no_sense_break_nothing(self):
        reporter = self.reporter(settings(self.router))
        publisher = types.SimpleNamespace(publish=mock.Mock(return_value="sent"), shutdown=mock.Mock())
        config = types.SimpleNamespace(enable_kv_cache_events=True)
        attached = hook.attach(publisher, settings(self.router), config, 0, None)
        self.addCleanup(attached.stop)
        inner = publisher.publish
        for batch in (None, 3, types.SimpleNamespace(ts=1.0, events=[object()])):
            self.assertEqual(inner(batch), "sent")
        reporter.feed(1.0, [object(), BlockStored(block_hashes=[1], token_ids=[1, 2], block_size=3)])
        reporter.feed(1.0, [chain(2)])
        self.in_step(reporter)
        self.assertEqual(set(self.belief()), {1, 2})
        self.assertEqual(attached.stats["errors"], 2)


class Sync(Case):
    def fill(self, reporter, chains=60, length=5):
        """Many short prompts; ids are spread over the buckets. Returns {id: copies}."""
        copies = {}
        for index in range(chains):
            start = 1 + index * length
            reporter.feed(1.0, [chain(length, start=start)])
            copies.update({i: 1 for i in range(start, start + length)})
        return copies

    def test_nothing_to_do(self):
        reporter = self.reporter(settings(self.router))
        copies = self.fill(reporter)
        self.in_step(reporter)
        self.router.ask_resync = True
        self.until(lambda: self.router.seen["digest"] == 1)
        self.in_step(reporter)
        self.assertEqual(self.belief(), copies)
        self.assertEqual((self.router.seen["buckets"], self.router.seen["snapshot"]), (0, 0))

    def test_only_what_differs_is_sent(self):
        reporter = self.reporter(settings(self.router))
        copies = self.fill(reporter)
        self.in_step(reporter)
        with self.router.lock:
            life = self.router.lives[("w0", 0)]
            life.remove(7)
            life.copies[20] += 1
            life.store(999_999, None, [0] * 4)
            self.router.ask_resync = True
        self.in_step(reporter)
        self.assertEqual(self.belief(), copies)
        self.assertEqual((self.router.seen["buckets"], self.router.seen["snapshot"]), (1, 0))
        reporter.feed(1.0, [chain(1, start=5_000)])
        self.in_step(reporter)
        self.assertEqual(self.belief(), {**copies, 5_000: 1})
        self.assertEqual(self.router.violations, [])

    def test_a_swallowed_batch_is_found_by_the_digest(self):
        self.router.swallow = {1}
        reporter = self.reporter(settings(self.router))
        for start in (1, 11, 21, 31):
            reporter.feed(1.0, [chain(4, start=start)])
            time.sleep(0.05)
        self.in_step(reporter)
        self.assertEqual(len(self.belief()), 16)

    def test_snapshot_in_parts_with_parents_first(self):
        with mock.patch.object(sender, "BODY_BYTES_MAX", 14_000):
            reporter = self.reporter(settings(self.router))
            copies = self.fill(reporter)
            # A parent that went and came back stands behind its child in the mirror's own order.
            reporter.feed(1.0, [BlockRemoved(block_hashes=[1], group_idx=0), chain(1, start=1)])
            # Two copies.
            reporter.feed(1.0, [chain(5, start=6)])
            copies.update({i: 2 for i in range(6, 11)})
            self.in_step(reporter)
            with self.router.lock:
                self.router.lives.clear()
                self.router.ask_resync = True
            self.in_step(reporter)
        self.assertGreater(reporter.senders[0].stats["snapshot_parts"], 3)
        self.assertEqual(self.belief(), copies)
        self.assertEqual(self.router.violations, [])

    def test_buckets_too_big_for_one_body_become_a_snapshot(self):
        reporter = self.reporter(settings(self.router))
        copies = self.fill(reporter)
        self.in_step(reporter)
        with mock.patch.object(sender, "BODY_BYTES_MAX", 14_000):
            with self.router.lock:
                for block_id in list(self.router.lives[("w0", 0)].copies)[:250]:
                    self.router.lives[("w0", 0)].remove(block_id)
                self.router.ask_resync = True
            self.until(lambda: self.router.seen["snapshot"] > 1)
            self.in_step(reporter)
        self.assertEqual(self.belief(), copies)
        self.assertEqual(self.router.seen["buckets"], 0)

    def test_syncs_under_traffic_and_losses_end_in_step(self):
        """Random stores, removals and clears, while the router loses batches, answers and all."""
        rng = random.Random(7)
        reporter = self.reporter(settings(self.router, buffer_events=400))
        held, fresh = [], 1
        for step in range(300):
            batch = []
            for _ in range(rng.randrange(1, 4)):
                roll = rng.random()
                if roll < 0.55 or not held:
                    count = rng.randrange(1, 5)
                    parent = rng.choice(held) if held and rng.random() < 0.6 else None
                    batch.append(chain(count, start=fresh, parent=parent))
                    held += range(fresh, fresh + count)
                    fresh += count
                elif roll < 0.99:
                    batch.append(BlockRemoved(block_hashes=[held.pop(rng.randrange(len(held)))], group_idx=0))
                else:
                    batch.append(AllBlocksCleared())
                    held.clear()
            reporter.feed(1.0, batch)
            if step % 10 == 0:
                with self.router.lock:
                    self.router.swallow = (
                        {self.router.lives[("w0", 0)].expected + 1} if self.router.lives else set()
                    )
                    self.router.lose_answers = 1
            if step % 70 == 0:
                with self.router.lock:
                    self.router.lives.clear()
            if step % 40 == 0:
                self.router.answers.append(("/v1/sync", 503, {"Retry-After": "0.05"}, {}))
            time.sleep(0.003)
        self.router.swallow = set()
        self.router.lose_answers = 0
        self.router.ask_resync = True
        reporter.feed(1.0, [chain(1, start=fresh)])
        self.in_step(reporter)
        self.assertEqual(set(self.belief()), set(held) | {fresh})

    def test_a_router_that_always_asks_is_held_off(self):
        reporter = self.reporter(settings(self.router, heartbeat_s=0.05))
        self.fill(reporter)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            self.router.ask_resync = True
            time.sleep(0.005)
        self.assertLess(self.router.seen["digest"], 12)


class Translation(unittest.TestCase):
    def test_digest_of_known_ids(self):
        held = mirror.Mirror()
        held.apply(events.Translator().operations(chain(3))[0])
        digest = held.state().digest()
        self.assertEqual((digest["buckets"], digest["blocks"]), (256, 3))
        self.assertEqual(
            {i: s for i, s in enumerate(digest["sums"]) if s},
            {reference >> 56: reference for reference in (
                10451216379200822465, 10905525725756348110, 2092789425003139053,
            )},
        )  # fmt: skip

    def test_hashes_of_every_form(self):
        self.assertEqual(events.u64(-1), 2**64 - 1)
        self.assertEqual(events.u64(b"\xff" * 24 + b"\0" * 7 + b"\5"), 5)

    def test_fields(self):
        stored = BlockStored(
            block_hashes=[b"\0" * 31 + b"\1", b"\0" * 31 + b"\2"], parent_block_hash=None,
            token_ids=[1, 2, 3, 4], block_size=2, medium="CPU", lora_name="ada",
            extra_keys=[("ada", ("image", 0), "salty", b"\xab"), ("ada",)],
        )  # fmt: skip
        (operation,) = events.Translator().operations(stored)
        self.assertEqual(
            events.encode(operation),
            b'{"type":"stored","block_hashes":[1,2],"parent_block_hash":null,"token_ids":[1,2,3,4],'
            b'"block_size":2,"lora_name":"ada","cache_salt":"salty","medium":"CPU",'
            b'"extra_keys":[["ada",["image",0],"salty",{"hex":"ab"}],["ada"]]}',
        )
        held = mirror.Mirror()
        held.apply(operation)
        self.assertEqual(len(held), 0, "only the GPU's blocks are mirrored")
        stored.medium = "GPU"
        held.apply(events.Translator().operations(stored)[0])
        self.assertEqual(
            held.state().encode(2),
            b'{"block_hash":2,"parent_block_hash":1,"copies":1,"token_ids":[3,4],"block_size":2,'
            b'"lora_name":"ada","extra_keys":[["ada"]]}',
        )
        stored.extra_keys, stored.lora_name = [None, None], None
        (operation,) = events.Translator().operations(stored)
        self.assertIsNone(operation.extra_keys)
        self.assertEqual(events.encode(events.Removed([3], None)), b'{"type":"removed","block_hashes":[3]}')
        self.assertEqual(events.encode(events.Cleared()), b'{"type":"cleared"}')

    def test_of_several_groups_the_full_attention_one_counts(self):
        translator = events.Translator()
        window = chain(2)
        window.group_idx, window.kv_cache_spec_kind = 0, "sliding_window"
        full = chain(2)
        full.group_idx = 1
        self.assertEqual(translator.operations(window), [])
        self.assertEqual(len(translator.operations(full)), 1)
        self.assertEqual(translator.operations(BlockRemoved(block_hashes=[1], group_idx=0)), [])
        self.assertEqual(len(translator.operations(BlockRemoved(block_hashes=[1], group_idx=1))), 1)

    def test_long_prompts_are_cut(self):
        pieces = events.Translator().operations(chain(1000, size=16))
        self.assertEqual(sum(len(p.ids) for p in pieces), 1000)
        self.assertEqual(pieces[1].parent, pieces[0].ids[-1])
        self.assertLessEqual(max(len(p.token_ids) for p in pieces), events.TOKENS_PER_PIECE)


class Setup(unittest.TestCase):
    ENV = {
        "WARMROUTE_URL": "http://10.0.0.1:9001/, https://b",
        "WARMROUTE_WORKER_ID": "w0",
        "WARMROUTE_WORKER_URL": "http://10.0.0.5:8000",
    }

    def test_environment(self):
        self.assertIsNone(Settings.from_environment({}))
        self.assertEqual(Settings.from_environment(self.ENV).urls, ("http://10.0.0.1:9001", "https://b"))
        for name, value in (
            ("WARMROUTE_WORKER_ID", ""), ("WARMROUTE_WORKER_URL", "x"), ("WARMROUTE_URL", "10.0.0.1:9001"),
            ("WARMROUTE_INTERVAL_MS", "soon"), ("WARMROUTE_BUFFER_EVENTS", "0"), ("WARMROUTE_HEARTBEAT_S", "nan"),
        ):  # fmt: skip
            with self.subTest(name), self.assertRaisesRegex(ValueError, name):
                Settings.from_environment({**self.ENV, name: value})

    def test_hook_wraps_the_factory_once_and_reads_the_scheduler(self):
        router = FakeRouter()
        self.addCleanup(router.stop)
        published = []

        class Publisher:
            def publish(self, batch):
                published.append(batch)

            def shutdown(self):
                published.append("shutdown")

        class EventPublisherFactory:
            @classmethod
            def create(cls, config, data_parallel_rank=0):
                return Publisher()

        class Scheduler:
            cache_config = types.SimpleNamespace(num_gpu_blocks=97)
            block_size = 32
            running, waiting = [1], [2, 3]

            def __init__(self):
                config = types.SimpleNamespace(enable_kv_cache_events=True, publisher="null")
                self.kv_event_publisher = EventPublisherFactory.create(config, 1)
                pool = types.SimpleNamespace(get_num_free_blocks=lambda: 90)
                self.kv_cache_manager = types.SimpleNamespace(block_pool=pool)

        kv_events = types.ModuleType("vllm.distributed.kv_events")
        kv_events.EventPublisherFactory = EventPublisherFactory
        distributed = types.ModuleType("vllm.distributed")
        distributed.kv_events = kv_events
        modules = {"vllm": types.ModuleType("vllm"), "vllm.distributed": distributed}
        modules["vllm.distributed.kv_events"] = kv_events
        with mock.patch.dict(sys.modules, modules):
            hook.install(settings(router))
            wrapped = EventPublisherFactory.__dict__["create"]
            hook.install(settings(router))
            self.assertIs(EventPublisherFactory.__dict__["create"], wrapped)
            scheduler = Scheduler()
        batch = types.SimpleNamespace(ts=1.0, events=[chain(2)])
        scheduler.kv_event_publisher.publish(batch)
        end = time.monotonic() + 5
        while not (router.batches and router.beats) and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual(published, [batch])
        beat = router.beats[-1]
        self.assertEqual((beat["rank"], beat["current_load"]), (1, 3))
        self.assertEqual((beat["kv_blocks_total"], beat["kv_blocks_used"]), (97, 6))
        scheduler.kv_event_publisher.shutdown()
        self.assertEqual(published[-1], "shutdown")


if __name__ == "__main__":
    unittest.main()
