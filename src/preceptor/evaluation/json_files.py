"""Reading other tools' JSON and JSONL files row by row, so that an error names the line to mend.

The official files of MT-Bench and AlpacaEval are made by hand and by many scripts; what is wrong with one must be said
before a judge is paid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from preceptor.errors import InputError, shown

_LISTED = 5  # names shown of many
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # whole pairs are one character by now


class Row:
    """An object of a file and where it stands; its fields are read with their types checked.

    A model may have been cut in the middle of a character, so answers may hold half of a surrogate pair, which JSON can
    spell and UTF-8 cannot; names, and what a model is to be asked, may not.
    """

    def __init__(self, origin: str, fields: dict[str, Any], expected: str) -> None:
        self.origin, self.fields, self._expected = origin, fields, expected

    def text(self, key: str, *, empty: bool = True) -> str:
        """A text; unless `empty`, one that is not blank and has no half of a surrogate pair."""
        value = self._given(key)
        if not isinstance(value, str):
            self.refuse(f"`{key}` is {shown(value)} and must be a text")
        if not empty and not value.strip():
            self.refuse(f"`{key}` is an empty text")
        if not empty:
            self._check_whole(key, value)
        return value

    def value(self, key: str) -> Any:
        """Any value. Raises InputError where the key is absent, or a text (or one of a list) has half a pair."""
        value = self._given(key)
        for each in value if isinstance(value, list) else [value]:
            self._check_whole(key, each)
        return value

    def _given(self, key: str) -> Any:
        if key not in self.fields:
            has = accepted_keys(self.fields)
            self.refuse(f"has no `{key}`" + (f" (it has {has})" if has else ""))
        return self.fields[key]

    def _check_whole(self, key: str, value: object) -> None:
        if isinstance(value, str) and (half := _HALF_PAIR.search(value)) is not None:
            said = f"`{key}` holds {half.group()!r}, one half of a surrogate pair, in place of a character"
            self.refuse(f"{said}; write the whole character")

    def refuse(self, what: str) -> NoReturn:
        """Raises InputError: where, `what`, and what file is expected."""
        raise InputError(f"{self.origin}: {what}; {self._expected}")


def accepted_keys(fields: dict[str, Any]) -> str:
    """The first keys of an object, for a message."""
    return listed(f"`{key}`" for key in fields)


def listed(values: Iterable[object]) -> str:
    """The first five values joined by commas, and an ellipsis where there are more."""
    names = [str(value) for value in values]
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")


def read_jsonl(path: Path, expected: str, *, where: str = "") -> list[Row]:
    """The objects of a JSONL file with `PATH:LINE` as their origin; blank lines are passed over.

    Args:
        path: the file, UTF-8.
        expected: what the file is to be, as the end of a sentence ("give the official question.jsonl").
        where: a prefix of messages, such as the place of the path in a recipe.

    Raises:
        InputError: no such file, not UTF-8, a line that is no JSON object, or no row at all.
    """
    return _some(list(_jsonl(path, expected, where)), path, expected, where)


def read_json_list(path: Path, expected: str, *, where: str = "") -> list[Row]:
    """The objects of a JSON file that holds one list, with `PATH: row N` (from 1) as their origin.

    Args and Raises as `read_jsonl`.
    """
    content = _content(path, expected, where)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{where}{path}{line}: not valid JSON: {_said(error)}; {expected}") from None
    if not isinstance(value, list):
        raise InputError(f"{where}{path}: must hold a list of objects, not {shown(value)}; {expected}")
    rows = [_row(f"{where}{path}: row {number}", each, expected) for number, each in enumerate(value, 1)]
    return _some(rows, path, expected, where)


def _jsonl(path: Path, expected: str, where: str) -> Iterator[Row]:
    # Not splitlines: answers may hold other line separators (U+2028) unescaped, which do not end a JSONL row.
    for number, line in enumerate(_content(path, expected, where).split("\n"), 1):
        if not line.strip():
            continue
        origin = f"{where}{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{origin}: not valid JSON: {_said(error)}; JSONL has one object per line, and the line may have been "
                "cut off while the file was written"
            ) from None
        yield _row(origin, value, expected)


def _content(path: Path, expected: str, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}{path}: is not UTF-8 text; {expected}") from None
    except FileNotFoundError:
        raise InputError(f"{where}{path}: does not exist; {expected}") from None
    except OSError as error:
        raise InputError(f"{where}{path}: cannot be read ({error.strerror}); {expected}") from None


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "too deep" if isinstance(error, RecursionError) else "a number has too many digits"


def _row(origin: str, value: object, expected: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{origin}: must be an object, not {shown(value)}; {expected}")
    return Row(origin, value, expected)


def _some(rows: Sequence[Row], path: Path, expected: str, where: str) -> list[Row]:
    if not rows:
        raise InputError(f"{where}{path}: has no rows; {expected}")
    return list(rows)
