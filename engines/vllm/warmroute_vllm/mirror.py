"""What the engine holds in its GPU's KV cache, kept from its events.

The router can lose track (a lost batch, a restart); the engine cannot tell a second time what it
holds. So the plugin keeps a mirror: per block its parent, tokens and copies, about 200 bytes and
4 bytes a token each, and a digest by which the two sides find what differs.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .events import U64, Cleared, Operation, Removed, Stored, dumps

BUCKETS = 256


def mix(block_id: int) -> int:
    """splitmix64's finalizer."""
    z = (block_id + 0x9E3779B97F4A7C15) & U64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U64
    return z ^ (z >> 31)


def bucket_of(block_id: int) -> int:
    return mix(block_id) >> 56


class Block(NamedTuple):
    """Immutable, so that a copy of the mirror is a copy of its dict."""

    parent: int | None
    tokens: bytes
    block_size: int
    lora_name: str | None
    cache_salt: str | None
    extra_keys: list | None


class State:
    """The blocks at one point between two batches."""

    def __init__(self, blocks: dict[int, Block], more: dict[int, int], sums: list[int]) -> None:
        self.blocks = blocks
        self.more = more
        self.sums = sums

    def digest(self) -> dict:
        return {"buckets": BUCKETS, "blocks": len(self.blocks), "sums": self.sums}

    def parents_first(self, ids: Iterable[int] | None = None) -> Iterator[int]:
        """All ids (or these) with each parent before its children. A mirror's own order is nearly
        that, except where a parent was evicted and stored again while a child stayed."""
        wanted = self.blocks if ids is None else dict.fromkeys(ids)
        done = set()
        for start in wanted:
            chain = []
            at: int | None = start
            while at is not None and at in wanted and at not in done:
                done.add(at)
                chain.append(at)
                at = self.blocks[at].parent
            yield from reversed(chain)

    def in_buckets(self, buckets: Iterable[int], pace: Callable[[], None]) -> list[int]:
        of = frozenset(buckets)
        found = []
        for block_id in self.blocks:
            if bucket_of(block_id) in of:
                found.append(block_id)
            pace()
        return found

    def encode(self, block_id: int) -> bytes:
        block = self.blocks[block_id]
        tokens = array("I")
        tokens.frombytes(block.tokens)
        value = {
            "block_hash": block_id,
            "parent_block_hash": block.parent,
            "copies": 1 + self.more.get(block_id, 0),
            "token_ids": tokens.tolist(),
            "block_size": block.block_size,
        }
        for name in ("lora_name", "cache_salt"):
            if getattr(block, name) is not None:
                value[name] = getattr(block, name)
        if block.extra_keys is not None:
            value["extra_keys"] = [block.extra_keys]  # a list with one entry a block, as in events
        return dumps(value)


class Mirror:
    """Applies operations. Engines store a hash in several copies and remove each: copies count."""

    def __init__(self) -> None:
        self.clear()
        self.unknown_removed = 0

    def clear(self) -> None:
        self._blocks: dict[int, Block] = {}
        self._more: dict[int, int] = {}  # copies beyond the first; few blocks have any
        self._sums = [0] * BUCKETS

    def __len__(self) -> int:
        return len(self._blocks)

    def copies(self, block_id: int) -> int:
        return 1 + self._more.get(block_id, 0) if block_id in self._blocks else 0

    def state(self) -> State:
        return State(dict(self._blocks), dict(self._more), list(self._sums))

    def apply(self, operation: Operation) -> None:
        if isinstance(operation, Cleared):
            self.clear()
        elif not operation.on_gpu:
            pass  # offloaded copies are reported but not mirrored
        elif isinstance(operation, Stored):
            self._store(operation)
        elif isinstance(operation, Removed):
            for block_id in operation.ids:
                self._remove(block_id)

    def _store(self, stored: Stored) -> None:
        parent = stored.parent
        size = stored.block_size
        for index, block_id in enumerate(stored.ids):
            if block_id in self._blocks:
                self._more[block_id] = self._more.get(block_id, 0) + 1
            else:
                keys = stored.extra_keys[index] if stored.extra_keys is not None else None
                self._blocks[block_id] = Block(
                    parent=parent,
                    tokens=array("I", stored.token_ids[index * size : (index + 1) * size]).tobytes(),
                    block_size=size,
                    lora_name=stored.lora_name,
                    cache_salt=stored.cache_salt if index == 0 else None,
                    extra_keys=keys,
                )
            self._count(block_id, 1)
            parent = block_id

    def _remove(self, block_id: int) -> None:
        if block_id not in self._blocks:
            self.unknown_removed += 1
            return
        more = self._more.get(block_id, 0)
        if more > 1:
            self._more[block_id] = more - 1
        elif more == 1:
            del self._more[block_id]
        else:
            del self._blocks[block_id]
        self._count(block_id, -1)

    def _count(self, block_id: int, copies: int) -> None:
        mixed = mix(block_id)
        self._sums[mixed >> 56] = (self._sums[mixed >> 56] + copies * mixed) & U64
