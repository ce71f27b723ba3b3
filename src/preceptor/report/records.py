"""A stage's own record, `stage.json` or `started.json`, with each field of its type or null."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from preceptor.errors import shown
from preceptor.report.lines import Say
from preceptor.report.values import MalformedError, mapping, number, text


def checked(file: str, record: Mapping[str, Any], say: Say) -> Mapping[str, Any]:
    """A stage's record in which each field is of its type or null."""
    found = dict(record)

    def check(fields: dict[str, Any], key: str, kind: Callable[[Any, str], Any], where: str) -> None:
        try:
            fields[key] = kind(fields.get(key), where)
        except MalformedError as error:
            say(f"{file}: {error}; it is left out")
            fields[key] = None

    for key in ("given", "spec", "results", "versions", "hardware", "inputs"):
        if found.get(key) is None:
            found.pop(key, None)
        else:
            check(found, key, mapping, key)
    for key in ("stage", "kind", "identity", "started", "finished"):
        check(found, key, text, key)
    check(found, "seed", _integer, "seed")
    check(found, "seconds", _duration, "seconds")
    if (found.get("results") or {}).get("data") is not None:
        found["results"] = dict(found["results"])
        check(found["results"], "data", _mixture, "results.data")
    return found


def _integer(value: Any, where: str) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is None or whole:
        return None if value is None else int(value)
    raise MalformedError(f"{where} is {shown(value)} where a whole number belongs")


def _duration(value: Any, where: str) -> float | None:
    found = number(value, where)
    if found is not None and found < 0:
        raise MalformedError(f"{where} is {found:g} where a duration belongs")
    return None if found is None else float(found)


def _mixture(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """What each dataset of a training stage contributed."""
    return {
        name: {key: number(each, f"{where}.{name}.{key}") for key, each in mapping(facts, f"{where}.{name}").items()}
        for name, facts in mapping(value, where).items()
    }
