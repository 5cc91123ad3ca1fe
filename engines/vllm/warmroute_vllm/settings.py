"""The plugin's settings, from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Settings:
    """What one engine process needs to know to report; `from_environment` is the way to it."""

    urls: tuple[str, ...]
    worker_id: str
    worker_url: str
    token: str | None = None
    model: str | None = None
    interval_s: float = 0.1
    heartbeat_s: float = 5.0
    buffer_events: int = 100_000
    timeout_s: float = 5.0

    @staticmethod
    def from_environment(env: Mapping[str, str] | None = None) -> Optional["Settings"]:
        """None when WARMROUTE_URL is unset; ValueError names the variable that is wrong."""
        env = os.environ if env is None else env
        urls = tuple(u.strip().rstrip("/") for u in env.get("WARMROUTE_URL", "").split(",") if u.strip())
        if not urls:
            return None
        for url in urls:
            _check_url("WARMROUTE_URL", url)
        worker_id = env.get("WARMROUTE_WORKER_ID", "").strip()
        worker_url = env.get("WARMROUTE_WORKER_URL", "").strip()
        if not worker_id:
            raise ValueError("WARMROUTE_WORKER_ID is not set (the worker's id in the router)")
        if not worker_url:
            raise ValueError("WARMROUTE_WORKER_URL is not set (where the router reaches this server)")
        _check_url("WARMROUTE_WORKER_URL", worker_url)
        return Settings(
            urls=urls,
            worker_id=worker_id,
            worker_url=worker_url,
            token=env.get("WARMROUTE_TOKEN") or None,
            model=env.get("WARMROUTE_MODEL") or None,
            interval_s=_number(env, "WARMROUTE_INTERVAL_MS", 100, 1, 60_000) / 1000,
            heartbeat_s=_number(env, "WARMROUTE_HEARTBEAT_S", 5, 0.05, 600),
            buffer_events=int(_number(env, "WARMROUTE_BUFFER_EVENTS", 100_000, 1, 100_000_000)),
            timeout_s=_number(env, "WARMROUTE_TIMEOUT_S", 5, 0.1, 600),
        )

    @property
    def lease_s(self) -> int:
        """How long a router that let us join should wait for the next heartbeat."""
        return max(1, min(3600, int(3 * self.heartbeat_s + self.timeout_s)))


def _check_url(name: str, url: str) -> None:
    parts = urlsplit(url)
    try:
        ok = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        ok = False
    if not ok:
        raise ValueError(f"{name}: {url!r} is not a URL such as http://10.0.0.1:9001")


def _number(env: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise ValueError(f"{name}: {text!r} is not a number from {least} to {most}")
    return value
