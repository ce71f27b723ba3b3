"""One model's entry from those of its seeds, and from those of several stages that measured different things of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from preceptor.report.seeds import interval_over, mean_over

Entry = Mapping[str, Any]
_SCORES = ("general", "domain")
_VALUES = ("recovery", "retention", "kl_reference", "kl_expert")


def fill(entry: dict[str, Any], other: Entry) -> bool:
    """Adds to a model's entry what another evaluation has measured of it.

    False, and nothing is added, where both have measured the same thing.
    """
    single = (*_SCORES, *_VALUES, "mt_bench", "alpaca_eval")
    if any(entry[key] is not None and other[key] is not None for key in single):
        return False
    keyed = {key: (entry[key] or {}, other[key] or {}) for key in ("flips", "over_reference", "tasks", "suites")}
    for ours, theirs in keyed.values():
        if any(ours.get(key) is not None and theirs[key] is not None for key in theirs):
            return False
    for key in single:
        entry[key] = other[key] if entry[key] is None else entry[key]
    for key, (ours, theirs) in keyed.items():
        joined = {**theirs, **{name: value for name, value in ours.items() if value is not None or name not in theirs}}
        entry[key] = joined or (None if key == "flips" else {})
    return True


def over(entries: Sequence[Entry]) -> dict[str, Any]:
    """The figures of a model from the entries of its seeds: means with Student's t interval, counts as sums."""
    found: dict[str, Any] = {key: interval_over([each[key] for each in entries]) for key in _SCORES}
    found |= {key: interval_over([each[key] for each in entries], "value") for key in _VALUES}
    found["flips"] = _flips([each["flips"] for each in entries])
    found["tasks"] = {
        task: {**interval, **{key: facts[key] for key in ("role", "dataset", "metric")}}
        for task, facts in entries[0]["tasks"].items()
        if (interval := interval_over([each["tasks"].get(task) for each in entries])) is not None
    }
    found["mt_bench"] = _mt_bench([each["mt_bench"] for each in entries])
    found["alpaca_eval"] = _alpaca_eval([each["alpaca_eval"] for each in entries])
    found["suites"] = {
        task: suite
        for task in entries[0]["suites"]
        if (suite := _suite([each["suites"].get(task) for each in entries])) is not None
    }
    return found


def _flips(seeds: Sequence[Entry | None]) -> dict[str, Any] | None:
    """Rows and counts are sums over seeds, shares are means."""
    if any(each is None for each in seeds):
        return None
    found: dict[str, Any] = {}
    for role in _SCORES:
        each = [seed.get(role) for seed in seeds if seed is not None]
        found[role] = (
            None if any(one is None for one in each) else _flips_of_role([one for one in each if one is not None])
        )
    return found


def _flips_of_role(seeds: Sequence[Entry]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rows": _sum(seeds, "rows"),
        "tasks": seeds[0]["tasks"],
        "chance": mean_over([each["chance"] for each in seeds]),
    }
    for kind in ("forgotten", "gained"):
        parts = [each[kind] for each in seeds]
        interval = interval_over(parts, "rate") or dict.fromkeys(("rate", "low", "high"))
        found[kind] = {
            "count": _sum(parts, "count"),
            **interval,
            "adjusted": mean_over([part["adjusted"] for part in parts]),
        }
    return found


def _mt_bench(seeds: Sequence[Entry | None]) -> dict[str, Any] | None:
    found = [each for each in seeds if each is not None]
    if not found or len(found) < len(seeds):
        return None
    categories = {}
    for name in found[0]["categories"]:
        each = [seed["categories"].get(name) for seed in found]
        interval = interval_over(each)
        if interval is not None:
            categories[name] = {**interval, "rows": _sum([one for one in each if one is not None], "rows")}
    return {
        "source": found[0]["source"],
        "judge": found[0]["judge"],
        "score": interval_over([each["score"] for each in found]),
        "turns": {turn: interval_over([each["turns"][turn] for each in found]) for turn in ("1", "2")},
        "categories": categories,
        **{key: _sum(found, key) for key in ("rows", "failed", "missing")},
    }


def _alpaca_eval(seeds: Sequence[Entry | None]) -> dict[str, Any] | None:
    found = [each for each in seeds if each is not None]
    if not found or len(found) < len(seeds):
        return None
    rates = [each["win_rate"] for each in found]
    interval = None if None in rates else interval_over(found, "win_rate")
    return {
        "source": found[0]["source"],
        "judge": found[0]["judge"],
        **(interval or dict.fromkeys(("win_rate", "low", "high"))),
        "standard_error": found[0]["standard_error"] if len(found) == 1 else _standard_error(rates),
        **{key: _sum(found, key) for key in ("wins", "losses", "ties", "rows", "failed", "missing")},
        **{key: mean_over([each[key] for each in found]) for key in ("mean_length", "baseline_mean_length")},
    }


def _suite(seeds: Sequence[Entry | None]) -> dict[str, Any] | None:
    found = [each for each in seeds if each is not None]
    if len(found) < len(seeds):
        return None
    values = [each["value"] for each in found]
    return {
        **found[0],
        "value": mean_over(values),
        "stderr": found[0]["stderr"] if len(found) == 1 else _standard_error(values),
        "rows": _sum(found, "rows"),
    }


def _standard_error(values: Sequence[float | None]) -> float | None:
    """Of the mean over seeds."""
    found = [value for value in values if value is not None]
    return float(np.std(found, ddof=1)) / math.sqrt(len(found)) if len(found) == len(values) > 1 else None


def _sum(entries: Sequence[Entry], key: str) -> float | None:
    values = [each[key] for each in entries]
    return None if any(value is None for value in values) else sum(values)
