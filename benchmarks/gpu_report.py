"""gpu.json: rows per section, on the disk after each row, so that what a timeout cuts off is only what was to come."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Report:
    """The file of one run; several processes may write to it one after another.

    {"SECTION": {"rows": [{...}], "seconds": s, "error": traceback or None}}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = time.time()

    def read(self) -> dict[str, Any]:
        """All sections so far."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def rows(self, section: str) -> list[dict[str, Any]]:
        """The rows of one section, [] where it has none."""
        rows: list[dict[str, Any]] = self.read().get(section, {}).get("rows", [])
        return rows

    def add(self, section: str, row: dict[str, Any]) -> None:
        """Append a row, on the disk before this returns."""
        sections = self._sections(section)
        sections[section]["rows"].append(row)
        sections[section]["seconds"] = round(time.time() - self._begun, 1)
        self._write(sections)

    def failed(self, section: str, why: str) -> None:
        """Say why a section ended before its end; it may have rows all the same."""
        sections = self._sections(section)
        sections[section]["error"] = why
        self._write(sections)

    def _sections(self, section: str) -> dict[str, Any]:
        sections = self.read()
        sections.setdefault(section, {"rows": [], "seconds": 0.0, "error": None})
        return sections

    def _write(self, sections: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(sections, indent=1) + "\n")
        beside.replace(self.path)
