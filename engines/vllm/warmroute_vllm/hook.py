"""The only file that knows vLLM: where its scheduler makes its event publisher.

`EventPublisherFactory.create` is wrapped rather than one of the publishers, as "null" publishers are
made there without a look at the registry: with `"publisher": "null"` the scheduler still collects
events, and no port is opened for them.
"""

import logging
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

from .reporter import Reporter
from .settings import Settings

logger = logging.getLogger("vllm.warmroute")

# Kept for whoever debugs an engine; a process makes one, seldom more.
reporters: list = []


def install(settings: Settings) -> None:
    from vllm.distributed import kv_events

    factory = kv_events.EventPublisherFactory
    original = factory.create  # bound to the class
    if getattr(original, "_warmroute", False):
        return

    def create(cls: Any, *args: Any, **kwargs: Any) -> Any:
        publisher = original(*args, **kwargs)
        try:
            config = args[0] if args else kwargs.get("config")
            rank = args[1] if len(args) > 1 else kwargs.get("data_parallel_rank", 0)
            scheduler = sys._getframe(1).f_locals.get("self")
            attach(publisher, settings, config, int(rank or 0), scheduler)
        except Exception:
            logger.exception("warmroute: cannot attach to the event publisher; nothing is reported")
        return publisher

    create._warmroute = True  # type: ignore[attr-defined]
    factory.create = classmethod(create)


def attach(publisher: Any, settings: Settings, config: Any, rank: int, scheduler: Any) -> Reporter:
    """Puts a tee before `publisher.publish`."""
    with_events = bool(getattr(config, "enable_kv_cache_events", False))
    if not with_events:
        logger.warning(
            "warmroute: KV cache events are off, only heartbeats are sent; start with "
            '--kv-events-config \'{"enable_kv_cache_events":true,"publisher":"null"}\''
        )
    reporter = Reporter(settings, rank, load_probe(scheduler), with_events)
    publish, shutdown, feed = publisher.publish, publisher.shutdown, reporter.feed

    def tee(batch: Any) -> Any:
        try:
            feed(batch.ts, batch.events)
        except Exception:
            reporter.complain("an event batch was not understood")
        return publish(batch)

    def shut(*args: Any, **kwargs: Any) -> Any:
        reporter.stop()
        return shutdown(*args, **kwargs)

    publisher.publish, publisher.shutdown = tee, shut
    reporter.start()
    reporters.append(reporter)
    logger.info(
        "warmroute: reporting as %s (rank %d, events %s) to %s",
        settings.worker_id,
        rank,
        "on" if with_events else "off",
        ", ".join(settings.urls),
    )
    return reporter


def load_probe(scheduler: Any) -> Callable[[], dict | None]:
    """Reads counters of the scheduler that made the publisher: lengths and integers, which are safe
    to read from another thread. None until the scheduler is built."""
    if scheduler is None:
        return dict
    try:
        held = weakref.ref(scheduler)
    except TypeError:
        return dict
    until = time.monotonic() + 60

    def probe() -> dict | None:
        scheduler = held()
        manager = getattr(scheduler, "kv_cache_manager", None)
        if manager is None and time.monotonic() < until:
            return None
        total = getattr(getattr(scheduler, "cache_config", None), "num_gpu_blocks", None)
        pool = getattr(manager, "block_pool", None)
        used = None
        if total and hasattr(pool, "get_num_free_blocks"):
            used = max(0, total - 1 - pool.get_num_free_blocks())  # one block is never given out
        return {
            "current_load": _requests(scheduler),
            "kv_blocks_total": total,
            "kv_blocks_used": used,
            "kv_block_tokens": _integer(getattr(scheduler, "block_size", None)),
            "model": _model(scheduler),
        }

    return probe


def _requests(scheduler: Any) -> int | None:
    if hasattr(scheduler, "get_request_counts"):
        return sum(scheduler.get_request_counts())
    if hasattr(scheduler, "running") and hasattr(scheduler, "waiting"):
        return len(scheduler.running) + len(scheduler.waiting)
    return None


def _model(scheduler: Any) -> str | None:
    config = getattr(getattr(scheduler, "vllm_config", None), "model_config", None)
    name = getattr(config, "served_model_name", None) or getattr(config, "model", None)
    return name[0] if isinstance(name, (list, tuple)) and name else name


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None
