"""How the plugin's threads keep out of the engine's way, and its log readable."""

import logging
import threading
import time
from typing import Any

logger = logging.getLogger("vllm.warmroute")


class Pace:
    """Gives the interpreter lock away every half millisecond: a thread that only computes would
    otherwise keep the engine's thread waiting for the interpreter's switch interval, 5 ms."""

    def __init__(self, work_s: float = 0.0005, rest_s: float = 0.0005) -> None:
        self._work_s, self._rest_s = work_s, rest_s
        self._since = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._since > self._work_s:
            time.sleep(self._rest_s)
            self._since = time.perf_counter()


class Complaints:
    """Says a thing at most once a minute, with how often it happened."""

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._said: dict = {}
        self._lock = threading.Lock()

    def say(self, key: str, text: str, *args: Any, level: int = logging.WARNING, trace: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            last, quiet = self._said.get(key, (None, 0))
            if last is not None and now - last < self._every_s:
                self._said[key] = (last, quiet + 1)
                return
            self._said[key] = (now, 0)
        if quiet:
            text += f" ({quiet} more since the last such message)"
        logger.log(level, "warmroute: " + text, *args, exc_info=trace)
