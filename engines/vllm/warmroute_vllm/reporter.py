"""Between the engine and the senders.

`feed` runs on the engine's thread and only appends to a deque. The pump thread takes it from there:
keeps the mirror, numbers the batches, hands them to every sender. As the pump never waits for the
network, the mirror is right even while a router is down.
"""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from .events import Operation, Translator, dumps, encode
from .mirror import Mirror, State
from .restraint import Complaints, Pace
from .sender import Report, Sender
from .settings import Settings

# Batches are this big at most (a sync may use all of 4 MB).
REPORT_BYTES_MAX = 1 << 20
READY_WAIT_S = 10.0


class Reporter:
    """One a publisher, hence one a scheduler."""

    def __init__(
        self,
        settings: Settings,
        rank: int = 0,
        probe: Callable[[], dict | None] = dict,
        with_events: bool = True,
    ) -> None:
        """`probe` tells load and cache size for heartbeats; None: not known yet."""
        self.stats: Counter = Counter()
        self._settings = settings
        self._rank = rank
        self._probe = probe
        self._complaints = Complaints()
        self._stopped = threading.Event()
        # Engine thread -> pump. `_fed` is written by the engine's thread alone, `_taken` by the pump.
        self._queue: deque[tuple[float, list[Any]]] = deque()
        self._fed = 0
        self._taken = 0
        self._lost = False
        self._awake = False
        self._wake = threading.Event()
        # Guards mirror, epoch and seq, which change together.
        self._lock = threading.Lock()
        self._mirror = Mirror()
        self._epoch = os.urandom(8).hex()
        self._seq = -1
        self._translator = Translator()
        self._block_size: int | None = None
        self.senders = [
            Sender(url, settings, rank, self.epoch, self.state, self._beat, with_events)
            for url in settings.urls
        ]
        self._pump = threading.Thread(target=self._run, name="warmroute-pump", daemon=True)

    def start(self) -> None:
        self._pump.start()

    def feed(self, ts: float, events: list[Any]) -> None:
        """On the engine's thread: no lock that another thread holds for long, no I/O."""
        count = len(events)
        if self._fed - self._taken + count > self._settings.buffer_events:
            self._lost = True
        else:
            self._queue.append((ts, events))
            self._fed += count
        if not self._awake:
            self._awake = True
            self._wake.set()

    def complain(self, text: str) -> None:
        self.stats["errors"] += 1
        self._complaints.say(text, text, trace=True)

    def stop(self) -> None:
        """Returns at once; the threads are daemons and end by themselves."""
        self._stopped.set()
        self._wake.set()
        for sender in self.senders:
            sender.stop()

    def epoch(self) -> str:
        with self._lock:
            return self._epoch

    def state(self) -> tuple[str, int, State]:
        with self._lock:
            return self._epoch, self._seq, self._mirror.state()

    def held(self) -> int:
        with self._lock:
            return len(self._mirror)

    # The pump.

    def _run(self) -> None:
        self._wait_ready()
        for sender in self.senders:
            sender.start()
        while True:
            self._wake.wait()
            if self._stopped.is_set():
                return
            self._wake.clear()
            self._awake = False  # before the look, so that nothing fed after it is slept over
            try:
                self._drain()
            except Exception:
                self.complain("the pump failed")
                self._lost = True
            if self._lost:
                self._start_over()
            if self._stopped.wait(self._settings.interval_s):
                return

    def _wait_ready(self) -> None:
        """The scheduler is still being built when its publisher is made."""
        until = time.monotonic() + READY_WAIT_S
        while self._probed() is None and time.monotonic() < until:
            if self._stopped.wait(0.05):
                return

    def _probed(self) -> dict | None:
        try:
            return self._probe()
        except Exception:
            self.complain("cannot read the engine's load")
            return {}

    def _beat(self) -> dict:
        values = {k: v for k, v in (self._probed() or {}).items() if v is not None}
        if self._settings.model:
            values["model"] = self._settings.model
        if self._block_size is not None:
            values["kv_block_tokens"] = self._block_size
        values.setdefault("kv_blocks_used", self.held())
        return values

    def _drain(self) -> None:
        pace = Pace()
        since: float | None = None
        operations: list[Operation] = []
        pieces: list[bytes] = []
        size = 0
        while self._queue:
            ts, events = self._queue.popleft()
            for event in events:
                for operation in self._translator.operations(event):
                    piece = encode(operation)
                    if pieces and size + len(piece) > REPORT_BYTES_MAX:
                        self._hand_over(since, operations, pieces)
                        since, operations, pieces, size = None, [], [], 0
                    since = ts if since is None else since
                    operations.append(operation)
                    pieces.append(piece)
                    size += len(piece) + 1
                    if self._block_size is None:
                        self._block_size = getattr(operation, "block_size", None)
                    pace()
            self._taken += len(events)
        if pieces:
            self._hand_over(since, operations, pieces)

    def _hand_over(self, ts: float | None, operations: list[Operation], pieces: list[bytes]) -> None:
        pace = Pace()
        with self._lock:
            for operation in operations:
                self._mirror.apply(operation)
                pace()
            self._seq += 1
            head = dumps(
                {
                    "worker_id": self._settings.worker_id,
                    "epoch": self._epoch,
                    "seq": self._seq,
                    "rank": self._rank,
                    "ts": ts,
                }
            )
            body = head[:-1] + b',"events":[' + b",".join(pieces) + b"]}"
            self.stats["reports"] += 1
            self.stats["operations"] += len(operations)
            # In the lock: a state taken after this one must not find its report unsent and unqueued.
            for sender in self.senders:
                sender.push(Report(self._seq, len(operations), body))

    def _start_over(self) -> None:
        """Events were lost before the mirror saw them, so it may hold what the engine evicted.
        Believe nothing of it: a new life, which has stored nothing yet."""
        self.stats["lost"] += 1
        self._complaints.say("lost", "events were lost in this process; the mirror starts anew")
        self._lost = False
        while self._queue:
            self._taken += len(self._queue.popleft()[1])
        with self._lock:
            self._mirror.clear()
            self._epoch = os.urandom(8).hex()
            self._seq = -1
        for sender in self.senders:
            sender.start_over()
