"""One thread a router: heartbeats, batches in order, retries, anti-entropy.

Nothing here is ever waited for by the engine. A router that is down, slow or confused costs this
thread's time and a bounded queue; when that overflows the queue is dropped and the mirror is sent
instead (`_sync`).
"""

import http.client
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .connection import Answer, Connection
from .events import dumps
from .mirror import State
from .restraint import Complaints, Pace
from .settings import Settings

logger = logging.getLogger("vllm.warmroute")

BODY_BYTES_MAX = 4_000_000
BACKOFF_S = (0.1, 5.0)
BACKOFF_REFUSED_S = (1.0, 30.0)
SYNC_AGAIN_S = (0.5, 30.0)


class Report(NamedTuple):
    """A numbered batch, encoded once for all routers."""

    seq: int
    events: int
    body: bytes


class Sender:
    """Sends to one router what the reporter hands it."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        rank: int,
        epoch: Callable[[], str],
        state: Callable[[], tuple[str, int, State]],
        beat: Callable[[], dict],
        with_events: bool,
    ) -> None:
        self.url = url
        self.stats: Counter = Counter()
        self._settings = settings
        self._rank = rank
        self._current_epoch = epoch
        self._state = state
        self._beat = beat
        self._with_events = with_events
        self._connection = Connection(url, settings.token, settings.timeout_s)
        self._complaints = Complaints()
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._pending: deque[Report] = deque()
        self._pending_events = 0
        self._syncs_wanted = 0
        self._syncs_done = 0
        self._covered = False  # a state yet to be taken holds what is pushed now
        self._stopped = False
        # The thread's own:
        self._epoch = ""
        self._acknowledged = -1
        self._admitted = False
        self._failures = 0
        self._not_before = 0.0
        self._beat_at = 0.0
        self._sync_at = 0.0
        self._sync_wait_s = SYNC_AGAIN_S[0]
        self._thread = threading.Thread(target=self._run, name="warmroute-sender", daemon=True)

    # Called by the reporter.

    def start(self) -> None:
        self._thread.start()

    def push(self, report: Report) -> None:
        with self._changed:
            if self._pending_events + report.events > self._settings.buffer_events and self._pending:
                self.stats["overflows"] += 1
                self.stats["dropped_reports"] += len(self._pending) + 1
                self._drop_pending()
                self._syncs_wanted += 1
                self._covered = True
            elif self._covered:
                self.stats["dropped_reports"] += 1
            else:
                self._pending.append(report)
                self._pending_events += report.events
            self._changed.notify()

    def start_over(self) -> None:
        """A new epoch: nothing queued counts, the router gets the state anew."""
        with self._changed:
            self._drop_pending()
            self._syncs_wanted += 1
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def is_idle(self) -> bool:
        """All that was pushed is acknowledged (for tests)."""
        with self._changed:
            return self._admitted and not self._pending and self._syncs_wanted == self._syncs_done

    def _drop_pending(self) -> None:
        self._pending.clear()
        self._pending_events = 0

    # The thread.

    def _run(self) -> None:
        while True:
            try:
                if not self._step():
                    self._connection.close()
                    return
            except (OSError, http.client.HTTPException) as error:
                self.stats["unreachable"] += 1
                self._again()
                self._complaints.say("down", "router %s: %s: %s", self.url, type(error).__name__, error)
                self._back_off(BACKOFF_S)
            except Exception:
                self.stats["errors"] += 1
                self._connection.close()
                self._again()
                self._complaints.say("error", "sender to %s failed", self.url, trace=True)
                self._back_off(BACKOFF_REFUSED_S)

    def _again(self) -> None:
        if not self._admitted:
            self._beat_at = 0.0  # nothing else can be done before a heartbeat got through

    def _step(self) -> bool:
        """Does the next thing that is due, or waits for one. False: stopped."""
        with self._changed:
            while True:
                if self._stopped:
                    return False
                now = time.monotonic()
                due, wait_s = self._next(now)
                if due is not None:
                    break
                self._changed.wait(wait_s)
            report = self._pending[0] if due == "report" else None
        if due == "beat":
            self._send_beat()
        elif due == "sync":
            self._sync()
        elif report is not None:
            self._send_report(report)
        return True

    def _next(self, now: float) -> tuple[str | None, float]:
        if now < self._not_before:
            return None, self._not_before - now
        if now >= self._beat_at:
            return "beat", 0
        wait_s = self._beat_at - now
        if self._admitted and self._with_events:
            if self._syncs_wanted != self._syncs_done:
                if now >= self._sync_at:
                    return "sync", 0
                return None, min(wait_s, self._sync_at - now)
            if self._pending:
                return "report", 0
        return None, wait_s

    def _back_off(self, between: tuple[float, float], at_least: float | None = None) -> None:
        least, most = between
        wait_s = min(most, least * 2 ** min(self._failures, 20)) * random.uniform(0.75, 1.25)
        self._failures += 1
        self._not_before = time.monotonic() + (wait_s if at_least is None else at_least)

    def _refused(self, what: str, answer: Answer) -> None:
        """Any answer but success. Whatever it was about stays queued, unless it never can succeed."""
        self.stats[f"status_{answer.status}"] += 1
        code = answer.body.get("code")
        if code is None and isinstance(answer.body.get("error"), dict):
            code = answer.body["error"].get("code")
        if answer.status == 404:
            self._admitted = False
            self._beat_at = 0.0
            self._complaints.say("unknown", "router %s does not admit this worker (%s)", self.url, code)
            self._back_off(BACKOFF_REFUSED_S)
        elif answer.status in (408, 429, 500, 502, 503, 504):
            if answer.status != 503:
                self._complaints.say(
                    "busy", "router %s: %s answered %d %s", self.url, what, answer.status, code
                )
            self._back_off(BACKOFF_S, answer.retry_after_s)
        else:
            self._complaints.say(
                "refused", "router %s: %s refused: %d %s", self.url, what, answer.status, code
            )
            if what == "report" and answer.status in (400, 413, 422):
                # Sending the same again would be answered the same.
                with self._changed:
                    self._drop_pending()
                    self._syncs_wanted += 1
                self._put_off_sync()
            self._back_off(BACKOFF_REFUSED_S)

    def _send_beat(self) -> None:
        self._enter_epoch(self._current_epoch())
        body = {
            "worker_id": self._settings.worker_id,
            "worker_url": self._settings.worker_url,
            "epoch": self._epoch,
            "rank": self._rank,
            "lease_s": self._settings.lease_s,
        }
        if self._acknowledged >= 0:
            body["seq"] = self._acknowledged
        body.update(self._beat())
        self._beat_at = time.monotonic() + self._settings.heartbeat_s
        answer = self._connection.post("/v1/heartbeat", dumps(body))
        if answer.status != 200:
            return self._refused("heartbeat", answer)
        self.stats["heartbeats"] += 1
        self._failures = 0
        if not self._admitted:
            self._admitted = True
            logger.info("warmroute: router %s knows this worker as %s", self.url, self._settings.worker_id)
        self._heed(answer)

    def _enter_epoch(self, epoch: str) -> None:
        if epoch != self._epoch:
            self._epoch, self._acknowledged = epoch, -1

    def _send_report(self, report: Report) -> None:
        answer = self._connection.post("/v1/events", report.body)
        if answer.status != 200:
            return self._refused("report", answer)
        self._failures = 0
        self._acknowledged = report.seq
        self.stats["reports"] += 1
        self.stats["events"] += report.events
        with self._changed:
            # Unless an overflow has dropped it meanwhile.
            if self._pending and self._pending[0] is report:
                self._pending.popleft()
                self._pending_events -= report.events
        self._heed(answer)

    def _heed(self, answer: Answer) -> None:
        if answer.body.get("resync") is True and self._with_events:
            self.stats["resyncs_asked"] += 1
            with self._changed:
                self._syncs_wanted = self._syncs_done + 1

    def _put_off_sync(self) -> None:
        self._sync_at = time.monotonic() + self._sync_wait_s
        self._sync_wait_s = min(SYNC_AGAIN_S[1], self._sync_wait_s * 2)

    # Anti-entropy.

    def _sync(self) -> None:
        if time.monotonic() - self._sync_at > 2 * SYNC_AGAIN_S[1]:
            self._sync_wait_s = SYNC_AGAIN_S[0]
        self._put_off_sync()  # one router that always asks must not keep us busy
        with self._changed:
            wanted = self._syncs_wanted
            self._covered = False  # first, so that nothing is in neither queue nor state
        epoch, seq, state = self._state()
        with self._changed:
            # The state holds all up to `seq`; what comes later stays queued behind it.
            while self._pending and self._pending[0].seq <= seq:
                self._pending_events -= self._pending.popleft().events
        self._enter_epoch(epoch)
        head = {"worker_id": self._settings.worker_id, "epoch": epoch, "seq": seq, "rank": self._rank}
        answer = self._post_sync({**head, "digest": state.digest()})
        if answer is None:
            return
        self.stats["syncs"] += 1
        want = answer.body.get("want")
        if want == "buckets":
            answer = self._send_buckets(head, state, answer.body.get("differ"))
            if answer is None:
                return
            want = answer.body.get("want")
            if want == "buckets":
                want = "snapshot"
        if want == "snapshot":
            if not self._send_snapshot(head, state):
                return
        elif want != "nothing":
            self._complaints.say("want", "router %s: sync answered %r", self.url, want)
        self._failures = 0
        self._acknowledged = seq
        with self._changed:
            self._syncs_done = wanted  # unless one more was wanted meanwhile
        logger.debug("warmroute: router %s is in step again at batch %d", self.url, seq)

    def _post_sync(self, body: dict) -> Answer | None:
        return self._post_sync_bytes(dumps(body))

    def _post_sync_bytes(self, body: bytes) -> Answer | None:
        answer = self._connection.post("/v1/sync", body)
        if answer.status == 200:
            return answer
        self._refused("sync", answer)
        return None

    def _send_buckets(self, head: dict, state: State, differ: Any) -> Answer | None:
        """Only what differs; a body that would be too big, or a question that makes no sense,
        gets the whole state instead."""
        snapshot = Answer(200, {"want": "snapshot"}, None)
        if not isinstance(differ, list) or not all(isinstance(b, int) and 0 <= b < 256 for b in differ):
            return snapshot
        pace = Pace()
        blocks: list[bytes] = []
        size = 0
        for block_id in state.parents_first(state.in_buckets(differ, pace)):
            blocks.append(state.encode(block_id))
            size += len(blocks[-1]) + 1
            if size > BODY_BYTES_MAX - 10_000:
                return snapshot
            pace()
        self.stats["buckets_sent"] += len(differ)
        of = b',"buckets":{"of":256,"list":' + dumps(differ) + b',"blocks":['
        return self._post_sync_bytes(dumps(head)[:-1] + of + b",".join(blocks) + b"]}}")

    def _send_snapshot(self, head: dict, state: State) -> bool:
        start = dumps(head)[:-1]
        self.stats["snapshots"] += 1
        for part, last, blocks in _parts(state, BODY_BYTES_MAX - 10_000):
            mark = dumps({"part": part, "last": last})[:-1]
            body = start + b',"snapshot":' + mark + b',"blocks":[' + b",".join(blocks) + b"]}}"
            if self._post_sync_bytes(body) is None:
                return False
            self.stats["snapshot_parts"] += 1
        return True


def _parts(state: State, bytes_max: int) -> Iterator[tuple[int, bool, list[bytes]]]:
    """The state in pieces below a size; at least one piece, the last of them marked."""
    pace = Pace()
    part, blocks, size = 0, [], 0
    for block_id in state.parents_first():
        block = state.encode(block_id)
        if blocks and size + len(block) + 1 > bytes_max:
            yield part, False, blocks
            part, blocks, size = part + 1, [], 0
        blocks.append(block)
        size += len(block) + 1
        pace()
    yield part, True, blocks
