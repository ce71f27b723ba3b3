"""Results kept line by line as they are made, so that work that was killed goes on where it was.

The file is JSON lines: a header that says what the results are of, then one `[key, result]` each. A line that a crash
cut short is dropped when the file is opened again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from preceptor.system.files import append, write_atomic

Key = TypeVar("Key", int, str)
Good: TypeAlias = Callable[[Any, Any], bool]


class Kept(Generic[Key]):
    """The results of one piece of work by key, in memory and in a file that only grows.

    Results of another header are replaced; look at `header_of` first where they are worth keeping.

    Args:
        path: the file; written when the first result is added.
        header: what the results are of, as JSON.
        good: whether a key and a result are as they were added; a line in which they are not was edited, and counts
            as not there.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], good: Good = lambda key, result: True) -> None:
        self.path = path
        self._header = json.dumps(header, ensure_ascii=False)
        self._lines, self.results = _read(path, self._header, good)
        self._begun = False

    def add(self, results: Iterable[tuple[Key, Any]]) -> None:
        """Takes results and returns when they are on the disk."""
        if not self._begun:
            write_atomic(self.path, "".join(f"{line}\n" for line in (self._header, *self._lines)))
            self._begun = True
        new = list(results)
        append(self.path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in new))
        self.results.update(new)


def header_of(path: Path) -> dict[str, Any] | None:
    """What the results in a file are of; None where there is no such file, or where it says nothing."""
    lines = _whole_lines(path)
    try:
        value = json.loads(lines[0]) if lines else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read(path: Path, header: str, whole: Good) -> tuple[list[str], dict[Any, Any]]:
    """The whole lines under `header`, and the results they hold; none where the file has another header."""
    good: list[str] = []
    results: dict[Any, Any] = {}
    lines = _whole_lines(path)
    try:
        if lines and json.loads(lines[0]) == json.loads(header):
            for line in lines[1:]:
                key, result = json.loads(line)
                if whole(key, result):
                    results[key] = result
                    good.append(line.decode())
    except (ValueError, TypeError, RecursionError):  # what follows a torn line is not trusted
        pass
    return good, results


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
