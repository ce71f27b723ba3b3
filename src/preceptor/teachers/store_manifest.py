"""What a store's manifest must look like, so that whatever reads it need not doubt it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from preceptor.errors import shown

SHARD = re.compile(r"[0-9]{1,20}-[0-9]{1,20}\.safetensors")
"""What a shard is called: a file in the store's own folder."""
_COUNTS = ("rows", "target_positions", "bytes")
_MOST_COUNTED = 2**60  # rows, positions or bytes
_MOST_TOKENS = 2**31 - 1  # ids are stored as int32


def malformed(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a manifest of the version read here cannot say: each field and what it is."""
    for path, good in _FIELDS.items():
        value: Any = manifest
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if not good(value):
            yield f"{path} is {shown(value)}"
    for key, mode in (("draws", "sample"), ("k", "topk")):
        if manifest.get("mode") == mode and not _whole(manifest.get(key), 1, _MOST_TOKENS):
            yield f"{key} is {shown(manifest.get(key))}"
    shards = manifest.get("shards")
    if not isinstance(shards, Mapping) or not shards:
        yield f"shards is {shown(shards)}"
        return
    for name, facts in shards.items():
        said = facts if isinstance(facts, Mapping) else {}
        counted = all(_whole(said.get(key), 0, _MOST_COUNTED) for key in _COUNTS)
        if not SHARD.fullmatch(name) or not counted or not isinstance(said.get("sha256"), str):
            yield f"of shard {shown(name)} it says {shown(facts)}"
            return
    for key in _COUNTS:
        total = sum(facts[key] for facts in shards.values())
        if manifest.get(key) != total:
            yield f"{key} is {shown(manifest.get(key))}, and the shards have {total:,}"


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _temperature(value: Any) -> bool:
    # 1e100 before float(): a whole number of a thousand digits is none.
    return type(value) in (int, float) and 0 < value <= 1e100


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "mode": lambda value: value in ("sample", "topk", "full"),
    "temperature": _temperature,
    "vocabulary": lambda value: _whole(value, 2, _MOST_TOKENS),
    "max_length": lambda value: _whole(value, 1, _MOST_TOKENS),
    "data": _names,
    "teacher.model": _text,
    "teacher.sha256": _text,
    "tokenizer.tokens": lambda value: _whole(value, 1, _MOST_TOKENS),
    "tokenizer.sha256": _text,
    "template.text": _text,
    "template.sha256": _text,
}
