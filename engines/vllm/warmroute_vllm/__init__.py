"""vLLM plugin: tells warmroute routers which KV cache blocks an engine holds.

vLLM calls `register` in each of its processes, some of them more than once; what it installs only
acts where a scheduler makes its event publisher, in the EngineCore process.
"""

import logging
import multiprocessing

from .settings import Settings

# Below "vllm" so that vLLM's own handler and format apply.
logger = logging.getLogger("vllm.warmroute")

_registered = False


def register() -> None:
    """The `vllm.general_plugins` entry point. Never raises: a plugin must not stop an engine."""
    global _registered
    if _registered:
        return
    _registered = True
    speaks = multiprocessing.current_process().name == "MainProcess"
    try:
        settings = Settings.from_environment()
        if settings is None:
            if speaks:
                logger.info("warmroute plugin is off: WARMROUTE_URL is not set")
            return
        from . import hook

        hook.install(settings)
    except ValueError as error:
        if speaks:
            logger.error("warmroute plugin is off: %s", error)
    except Exception:
        logger.exception("warmroute plugin is off: it does not fit this engine")
