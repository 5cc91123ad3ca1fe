"""vLLM's event objects -> our operations -> JSON.

Objects are told apart by the name of their class, so that nothing of vLLM is imported here and the
tests run without it.
"""

import json
from typing import Any, NamedTuple, Union

U64 = (1 << 64) - 1

# Encoding holds the interpreter lock; one piece of JSON stays below about half a millisecond.
TOKENS_PER_PIECE = 8192

# A hybrid model keeps several groups of blocks under the same hashes. The router asks "how long a
# prefix is there", which the full-attention group answers; a sliding window frees blocks earlier.
FULL_ATTENTION = frozenset((None, "full_attention", "mla_attention", "sink_full_attention", "unknown"))


class Stored(NamedTuple):
    """Blocks that follow each other, all tokens known."""

    ids: list[int]
    parent: int | None
    token_ids: list[int]
    block_size: int
    lora_name: str | None
    cache_salt: str | None  # of the first block of a prompt only
    extra_keys: list | None
    medium: str | None

    @property
    def on_gpu(self) -> bool:
        return self.medium is None


class Removed(NamedTuple):
    """One copy of each of these blocks is gone."""

    ids: list[int]
    medium: str | None

    @property
    def on_gpu(self) -> bool:
        return self.medium is None


class Cleared(NamedTuple):
    """All blocks are gone."""


Operation = Union[Stored, Removed, Cleared]


def u64(block_hash: Any) -> int:
    """The router's name of a block: an engine's integer, or the last eight bytes of its digest."""
    if isinstance(block_hash, int):
        return block_hash & U64
    return int.from_bytes(bytes(block_hash)[-8:], "big")


class Translator:
    """Turns event objects into operations; remembers which group it follows."""

    def __init__(self) -> None:
        self._group: int | None = None
        self.skipped = 0

    def operations(self, event: Any) -> list[Operation]:
        kind = type(event).__name__
        if kind == "BlockStored":
            return self._stored(event)
        if kind == "BlockRemoved":
            if not self._is_followed(event):
                return []
            return [Removed([u64(h) for h in event.block_hashes], _medium(event))]
        if kind == "AllBlocksCleared":
            return [Cleared()]
        self.skipped += 1
        return []

    def _is_followed(self, event: Any) -> bool:
        if getattr(event, "locality", None) not in (None, "LOCAL"):
            return False
        group = getattr(event, "group_idx", None)
        return group is None or group == self._group

    def _stored(self, event: Any) -> list[Operation]:
        group = getattr(event, "group_idx", None)
        kind = getattr(event, "kv_cache_spec_kind", None)
        if group is not None and self._group is None and kind in FULL_ATTENTION:
            self._group = group
        if not self._is_followed(event):
            return []
        count = len(event.block_hashes)
        size = event.block_size
        if count == 0:
            return []
        if size <= 0 or len(event.token_ids) != count * size:
            self.skipped += 1
            return []
        ids = [u64(h) for h in event.block_hashes]
        tokens = list(event.token_ids)
        parent = None if event.parent_block_hash is None else u64(event.parent_block_hash)
        lora = getattr(event, "lora_name", None)
        extra = _extra_keys(getattr(event, "extra_keys", None), count)
        salt = None
        if parent is None:
            salt = getattr(event, "cache_salt", None) or (_salt(extra[0], lora) if extra else None)
        medium = _medium(event)
        step = max(1, TOKENS_PER_PIECE // size)
        pieces: list[Operation] = []
        for at in range(0, count, step):
            end = min(count, at + step)
            part = extra[at:end] if extra is not None and any(k is not None for k in extra[at:end]) else None
            pieces.append(
                Stored(
                    ids=ids[at:end],
                    parent=parent if at == 0 else ids[at - 1],
                    token_ids=tokens[at * size : end * size],
                    block_size=size,
                    lora_name=lora,
                    cache_salt=salt if at == 0 else None,
                    extra_keys=part,
                    medium=medium,
                )
            )
        return pieces


def encode(operation: Operation) -> bytes:
    """One event of a report, as JSON."""
    if isinstance(operation, Stored):
        event = {
            "type": "stored",
            "block_hashes": operation.ids,
            "parent_block_hash": operation.parent,
            "token_ids": operation.token_ids,
            "block_size": operation.block_size,
        }
        for name in ("lora_name", "cache_salt", "medium", "extra_keys"):
            value = getattr(operation, name)
            if value is not None:
                event[name] = value
    elif isinstance(operation, Removed):
        event = {"type": "removed", "block_hashes": operation.ids}
        if operation.medium is not None:
            event["medium"] = operation.medium
    else:
        event = {"type": "cleared"}
    return dumps(event)


def dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _medium(event: Any) -> str | None:
    medium = getattr(event, "medium", None)
    return None if medium in (None, "GPU") else str(medium)


def _extra_keys(keys: Any, count: int) -> list | None:
    """Per block, as vLLM has them, bytes as `{"hex": ..}`; None where no block has any."""
    if not keys or len(keys) != count or all(k is None for k in keys):
        return None
    return [None if k is None else _plain(k) for k in keys]


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"hex": bytes(value).hex()}  # not a bare string, which could be taken for a salt
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _salt(keys: list | None, lora_name: str | None) -> str | None:
    """vLLM has no field for the salt: it is the last bare string of the first block's keys."""
    names = [k for k in keys or () if isinstance(k, str)]
    if lora_name is not None and names and names[0] == lora_name:
        names = names[1:]
    return names[-1] if names else None
