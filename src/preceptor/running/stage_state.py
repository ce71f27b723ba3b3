"""What is found in a stage's directory: nothing, a stage that was begun or finished, with this recipe or another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preceptor.errors import InputError
from preceptor.running.failures import ERROR_FILE
from preceptor.running.identity import differences
from preceptor.system.files import interrupted_writes

STAGE_FILE = "stage.json"
STARTED_FILE = "started.json"
HASHES_FILE = ".hashes.json"
LEFTOVERS = {STARTED_FILE, ERROR_FILE}  # files that a stage can have without having got anywhere


class StageState:
    """What is found in a stage's directory."""

    def __init__(self, result: dict[str, Any] | None, changed: list[str], foreign: bool = False) -> None:
        self.result = result  # stage.json of a finished stage
        self.changed = changed  # what differs from the recipe, for a finished or begun stage
        self.foreign = foreign  # files of unknown origin


def stage_state(directory: Path, document: dict[str, Any]) -> StageState:
    """What a stage's directory holds, against the identity document the stage has now. Raises InputError."""
    if not directory.exists():
        return StageState(None, [])
    if (directory / STAGE_FILE).exists():
        result = _read(directory / STAGE_FILE)
        return StageState(result, _changes(result, document))
    if not work(directory):
        return StageState(None, [])
    if not (directory / STARTED_FILE).exists():
        return StageState(None, [], foreign=True)
    return StageState(None, _changes(_read(directory / STARTED_FILE), document))


def work(directory: Path) -> list[Path]:
    """The files and folders in a stage's directory that are of use, if it has got anywhere."""
    spare = set(interrupted_writes(directory))
    return [each for each in directory.iterdir() if each.name not in LEFTOVERS and each not in spare]


def _changes(old: dict[str, Any], document: dict[str, Any]) -> list[str]:
    if old["identity"] == document["identity"]:
        return []
    return differences(old, document) or ["its identity differs"]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if {"identity", "spec", "seed", "inputs"} <= value.keys():
            return dict(value)
    except (OSError, ValueError, AttributeError):
        pass
    raise InputError(f"{path}: is not a readable record of a stage; move the folder {path.parent} away and run again")
