"""What a store holds, in figures and in words: `preceptor store info` and `preceptor store verify`.

Only `measured` imports torch: what looks at a store's files starts at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.teachers.store_files import check_files, read_manifest

_SECONDS = 2.0  # of reading back: enough for a rate, and for the spread of what was drawn


def info(folder: Path) -> dict[str, Any]:
    """What a store is of and what it takes, from its manifest; shards are not opened.

    Raises:
        InputError: as `read_manifest`.
    """
    manifest = read_manifest(folder)
    return {
        "store": str(folder),
        **summary(manifest),
        **{key: value for key, value in manifest.items() if key != "shards"},
        "shards": len(manifest["shards"]),
    }


def verify(folder: Path) -> dict[str, Any]:
    """Reads every byte of a store and compares it with its manifest.

    Raises:
        InputError: naming the first shard that is missing, cut short or changed.
    """
    manifest = read_manifest(folder)
    begun = time.perf_counter()
    size = check_files(folder, manifest)
    seconds = max(time.perf_counter() - begun, 1e-9)
    return {
        "store": str(folder),
        "whole": True,
        "shards": len(manifest["shards"]),
        "bytes": size,
        "megabytes_per_second": round(size / 1e6 / seconds, 1),
    }


def summary(manifest: dict[str, Any]) -> dict[str, Any]:
    """Rows, target positions, bytes on disk, and bytes per target position with keys and headers counted in."""
    counts = {key: int(manifest[key]) for key in ("rows", "target_positions", "bytes")}
    return {**counts, "bytes_per_target": round(counts["bytes"] / max(counts["target_positions"], 1), 2)}


def in_short(folder: Path) -> str:
    """A store in a few words; raises InputError as `read_manifest` does."""
    found = info(folder)
    size = f"{found['bytes'] / 1e6:,.1f} MB"
    return f"stored ({found['mode']}): {found['rows']:,} rows, {found['target_positions']:,} targets, {size}"


def measured(folder: Path, batch_size: int) -> dict[str, Any]:
    """Target positions read per second, rows in random order and `batch_size` at once; and how many tokens were drawn.

    `distinct_tokens` are the mean, the median, the 90th percentile and the most at one position.
    """
    from preceptor.stored_signals import SampledTokens
    from preceptor.teachers.store import Store

    store = Store(folder, verify=False)
    order = np.random.default_rng(0).permutation(len(store))
    distinct, count, begun = [], 0, time.perf_counter()
    for start in range(0, len(order), batch_size):
        found = store.read(store.places(order[start : start + batch_size]))
        count += len(found)
        if isinstance(found, SampledTokens):
            distinct.append(np.diff(found.first_N.numpy()))
        if time.perf_counter() - begun > _SECONDS:
            break
    rate = round(count / max(time.perf_counter() - begun, 1e-9), 1)
    if not distinct:
        return {"read_per_second": rate}
    tokens = np.concatenate(distinct)
    spread = {
        "mean": round(float(tokens.mean()), 2),
        "median": float(np.median(tokens)),
        "p90": float(np.percentile(tokens, 90)),
        "most": int(tokens.max()),
    }
    return {"read_per_second": rate, "distinct_tokens": spread}


def render_info(found: dict[str, Any]) -> str:
    """The result of `info` for a terminal."""
    teacher, tokenizer = found["teacher"], found["tokenizer"]
    kept = {"sample": f"{found['draws']} draws", "topk": f"the {found['k']} most probable tokens and the rest's mass"}
    return "\n".join(
        [
            f"{found['store']}: format version {found['version']}",
            f"  teacher: {teacher['model']} (SHA-256 {teacher['sha256'][:12]}…)",
            f"  mode: {found['mode']}, {kept.get(found['mode'], 'whole distributions')} at temperature "
            f"{found['temperature']:g}",
            f"  tokenizer: {tokenizer['tokens']:,} tokens (SHA-256 {tokenizer['sha256'][:12]}…); chat template SHA-256 "
            f"{found['template']['sha256'][:12]}…",
            f"  data: {', '.join(found['data'])}, rows of at most {found['max_length']:,} tokens",
            f"  {found['rows']:,} rows, {found['target_positions']:,} target positions in {_shards(found)}, "
            f"{found['bytes'] / 1e6:,.1f} MB: {found['bytes_per_target']:.1f} bytes per target position",
        ]
    )


def render_verify(found: dict[str, Any]) -> str:
    """The result of `verify` for a terminal."""
    return (
        f"{found['store']}: whole; {_shards(found)}, {found['bytes'] / 1e6:,.1f} MB read at "
        f"{found['megabytes_per_second']:,.0f} MB/s"
    )


def _shards(found: dict[str, Any]) -> str:
    return "1 shard" if found["shards"] == 1 else f"{found['shards']:,} shards"
