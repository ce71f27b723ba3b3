"""A file of JSON objects, one a line and each of a step, which goes on where a training is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preceptor.system.files import append, json_text, write_atomic


class StepLines:
    """Such a file; every line has its `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, step: int) -> None:
        """Leaves the lines up to `step`, from which a training goes on; of one that begins, none."""
        kept = []
        for line in self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else ():
            try:
                of = int(json.loads(line)["step"])
            except (ValueError, TypeError, KeyError, RecursionError):
                break  # what a kill or a power cut has torn is later than any checkpoint
            if of <= step and step > 0:
                kept.append(line.decode() + "\n")
        write_atomic(self.path, "".join(kept))

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line, flushed to the disk: a checkpoint that survives a power cut does so with its lines."""
        append(self.path, json_text({"step": step, **values}, indent=None) + "\n")
