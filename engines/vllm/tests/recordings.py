"""Recorded ZMQ messages of a real engine -> event objects such as vLLM hands to its publisher."""

import json
import struct
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "tests/fixtures/kv_events/vllm-0.32.0"


class Event:
    """As vLLM's structs: fields left at their default read as None."""

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class BlockStored(Event):
    pass


class BlockRemoved(Event):
    pass


class AllBlocksCleared(Event):
    pass


KINDS = {kind.__name__: kind for kind in (BlockStored, BlockRemoved, AllBlocksCleared)}


def read(name):
    """[(ts, [event])]"""
    batches = []
    for line in (FOLDER / name).read_text().splitlines():
        frames = json.loads(line)["frames_hex"]
        ts, events, _rank = unpack(bytes.fromhex(frames[2]))
        batches.append((ts, [KINDS[e.pop("type")](**e) for e in events]))
    return batches


def unpack(data):
    value, at = _unpack(data, 0)
    assert at == len(data)
    return value


def _unpack(data, at):
    """MessagePack, as much of it as these recordings have."""
    tag = data[at]
    at += 1
    if tag <= 0x7F:
        return tag, at
    if tag >= 0xE0:
        return tag - 256, at
    if tag <= 0x8F:
        return _map(data, at, tag & 15)
    if tag <= 0x9F:
        return _array(data, at, tag & 15)
    if tag <= 0xBF:
        return data[at : at + (tag & 31)].decode(), at + (tag & 31)
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], at
    fixed = {
        0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
        0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
    }  # fmt: skip
    if tag in fixed:
        size = struct.calcsize(fixed[tag])
        return struct.unpack(fixed[tag], data[at : at + size])[0], at + size
    sized = {
        0xC4: (1, "bin"), 0xC5: (2, "bin"), 0xD9: (1, "str"), 0xDA: (2, "str"),
        0xDC: (2, "array"), 0xDD: (4, "array"), 0xDE: (2, "map"),
    }  # fmt: skip
    width, what = sized[tag]
    count = int.from_bytes(data[at : at + width], "big")
    at += width
    if what == "array":
        return _array(data, at, count)
    if what == "map":
        return _map(data, at, count)
    raw = data[at : at + count]
    return (raw.decode() if what == "str" else raw), at + count


def _array(data, at, count):
    values = []
    for _ in range(count):
        value, at = _unpack(data, at)
        values.append(value)
    return values, at


def _map(data, at, count):
    values = {}
    for _ in range(count):
        key, at = _unpack(data, at)
        values[key], at = _unpack(data, at)
    return values, at
