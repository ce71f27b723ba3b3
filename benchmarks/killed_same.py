"""What two runs of one recipe left behind, compared to the bit; times and rates apart, and where they were."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preceptor.errors import InputError
from preceptor.system.files import verify_directory
from preceptor.teachers.store import Store
from preceptor.training.metrics import TIMING

_TIMES = {*TIMING, "written_per_second", "read_per_second", "started", "finished", "hardware", "versions"}
_SHARDS = {"shards", "bytes", "bytes_per_target"}  # of a store, that begin where a process began
_NOT_KEPT = ("manifest.json", "training_args.bin", "trainer_state.json")  # of a checkpoint: times, and their hashes


def differences(got: Path, expected: Path) -> list[str]:
    """Where two run directories, or two stages' directories, differ; empty: nowhere."""
    mine, theirs = dict(_facts(got)), dict(_facts(expected))
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))


def half_written(folder: Path) -> list[str]:
    """What an interrupted write has left aside in a run or a stage."""
    return _ending(folder, (".unfinished", ".writing", ".old"))


def leftovers(folder: Path) -> list[str]:
    """That, and what a stage keeps until it is done."""
    return half_written(folder) + _ending(folder, (".journal", ".partial.jsonl"))


def _ending(folder: Path, endings: tuple[str, ...]) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(endings))


def _facts(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or name.parts[0] in ("report", "recipe.yaml", ".lock", ".hashes.json"):
            continue
        if "checkpoints" in name.parts and path.name in _NOT_KEPT:
            yield str(name), "there"
        elif path.parent.name == "store":
            if path.name == "manifest.json":
                yield str(path.relative_to(folder).parent), _stored(path.parent)
        elif path.name == "manifest.json":
            try:
                verify_directory(path.parent)  # its hashes are those of files that name where they are
                yield str(name), "whole"
            except InputError as error:
                yield str(name), str(error)
        elif path.name == "adapter_config.json":
            given = json.loads(_documents(path, folder)[0])
            yield str(name), {**given, "target_modules": sorted(given["target_modules"])}  # PEFT writes a set
        elif path.suffix in (".json", ".jsonl") and "model" not in name.parts and "adapter" not in name.parts:
            yield str(name), [_timeless(json.loads(line)) for line in _documents(path, folder)]
        else:
            # A model names the folder of its base, which differs between two runs.
            yield str(name), hashlib.sha256(_placeless(path.read_bytes(), folder)).hexdigest()


def _documents(path: Path, folder: Path) -> list[str]:
    text = _placeless(path.read_bytes(), folder).decode()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _placeless(content: bytes, folder: Path) -> bytes:
    for each in (folder, *folder.parents[:2]):
        for name in (str(each), f"{each.parent.name}/{each.name}"):  # adapters name their base from where they are
            content = content.replace(name.encode() + b"/", b"")
    return content


def _stored(folder: Path) -> dict[str, Any]:
    """By row, what a store holds of it: rows have no order, and shards begin where a process began."""
    store = Store(folder)
    rows = {}
    for shard, row in store.places(range(len(store))):
        data, targets = store._shard(shard).row(row)
        rows[bytes(store._shard(shard).keys[row]).hex()] = (data.tobytes(), targets)
    return rows


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in _TIMES | _SHARDS}
    return [_timeless(each) for each in value] if isinstance(value, list) else value
