"""Values of a run's files as the report can use them: what JSON allows and a page cannot show is taken out here.

Every file of a run goes through `cleaned` when it is read, and every figure of scores.json and stage.json through one
of the functions below; nothing after reading checks a type again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from preceptor.errors import shown

LARGEST = 1e100
"""Beyond this a number cannot be squared or drawn; no loss, count or duration is."""
_DEEPEST = 64
_SURROGATES = re.compile("[\ud800-\udfff]")


class MalformedError(ValueError):
    """A part of a file is not what its description says: the place, and what was found there."""


def cleaned(value: Any, faults: set[str], depth: int = 0) -> Any:
    """The value without numbers beyond `LARGEST` and what is nested too deep (null), and without lone surrogates.

    Args:
        faults: gets the name of each kind of thing that was replaced.
    """
    if isinstance(value, str):
        return _encodable(value, faults)
    if isinstance(value, int | float) and abs(value) > LARGEST and value == value and abs(value) != math.inf:
        faults.add(f"numbers beyond {LARGEST:g}")
        return None
    if not isinstance(value, dict | list):
        return value
    if depth == _DEEPEST:
        faults.add(f"values nested deeper than {_DEEPEST}")
        return None
    if isinstance(value, list):
        return [cleaned(item, faults, depth + 1) for item in value]
    return {
        _encodable(key, faults) if isinstance(key, str) else key: cleaned(item, faults, depth + 1)
        for key, item in value.items()
    }


def _encodable(text: str, faults: set[str]) -> str:
    """The text with U+FFFD for lone surrogates, which JSON can carry and UTF-8 cannot."""
    found = _SURROGATES.sub("\ufffd", text)
    if found != text:
        faults.add("broken characters")
    return found


def encodable(text: str) -> str:
    """A text of the file system, whose names may be of any bytes."""
    return _encodable(text, set())


# --- figures: each raises MalformedError ------------------------------------------------------------------------


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise MalformedError(f"{where} is {shown(value)} where a JSON object belongs")
    return value


def number(value: Any, where: str) -> float | int | None:
    """A finite number, or null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MalformedError(f"{where} is {shown(value)} where a number belongs")
    return value


def text(value: Any, where: str) -> str | None:
    """A text, or null."""
    if value is not None and not isinstance(value, str):
        raise MalformedError(f"{where} is {shown(value)} where a text belongs")
    return value


def interval(value: Any, where: str, key: str) -> dict[str, float | None] | None:
    """{key, low, high}; None where the figure itself is null. Without one end there is no interval: both are null."""
    if value is None:
        return None
    found = {name: number(mapping(value, where).get(name), f"{where}.{name}") for name in (key, "low", "high")}
    return None if found[key] is None else with_ends(found)


def with_ends(found: dict[str, Any]) -> dict[str, Any]:
    """`low` and `high` are both numbers or both null."""
    return found if None not in (found["low"], found["high"]) else {**found, "low": None, "high": None}


def items(value: Any) -> Iterable[Any]:
    """The items of a list; of anything else none."""
    return value if isinstance(value, list) else []
