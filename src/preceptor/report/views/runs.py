"""What was run: stages, what they were given, on what, and for how long."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preceptor.report.views.numbers import duration
from preceptor.report.views.table import EMPTY, Cell, Column, Table, plain, without_empty, words


@dataclass(frozen=True)
class Facts:
    """Pairs of name and value that hold for `stages`."""

    stages: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Run:
    """One run as the page shows it."""

    id: str
    path: str
    seed: str
    problems: Sequence[str]
    recipe: str
    stages: Table | None
    mixtures: Table | None
    versions: Sequence[Facts]
    hardware: Sequence[Facts]
    settings: Sequence[Facts]


def runs(report: Mapping[str, Any]) -> list[Run]:
    """All runs, in the report's order."""
    return [_run(place, run) for place, run in enumerate(report["runs"])]


def _run(place: int, run: Mapping[str, Any]) -> Run:
    stages = run["stages"]
    return Run(
        str(run["id"]),
        str(run.get("path") or ""),
        "" if run.get("seed") is None else str(run["seed"]),
        run.get("problems") or [],
        run.get("recipe") or "",
        _stages(place, run),
        _mixtures(place, run),
        _shared(stages, "versions"),
        _shared(stages, "hardware"),
        [Facts(str(stage["name"]), _pairs(stage["settings"])) for stage in stages if stage.get("settings")],
    )


def _stages(place: int, run: Mapping[str, Any]) -> Table | None:
    columns = [
        Column("Stage", numeric=False),
        Column("Kind", numeric=False),
        Column("Status", numeric=False),
        Column("Duration"),
        Column("Steps"),
        Column("Memory, MB", "peak, of the device or of the process on a CPU"),
        Column("Parameters"),
        Column("Trained"),
        Column("Started", numeric=False),
    ]
    rows = []
    for stage in run["stages"]:
        results, seconds = stage.get("results") or {}, stage.get("seconds")
        rows.append(
            [
                words(str(stage["name"])),
                words(str(stage.get("kind") or "")),
                words(str(stage["status"])),
                EMPTY if seconds is None else Cell(duration(seconds), order=float(seconds)),
                *(
                    plain(_number(results.get(key)))
                    for key in ("steps", "peak_memory_mb", "parameters", "trainable_parameters")
                ),
                EMPTY if not stage.get("started") else words(_moment(str(stage["started"]))),
            ]
        )
    return without_empty(f"stages-{place}", f"Stages of {run['id']}.", columns, rows)


def _mixtures(place: int, run: Mapping[str, Any]) -> Table | None:
    columns = [
        Column("Stage", numeric=False),
        Column("Dataset", numeric=False),
        Column("Rows, %", "share of all rows"),
        Column("Rows"),
        Column("Tokens"),
        Column("Targets"),
        Column("Passes"),
    ]
    rows = [
        [
            words(str(stage["name"])),
            words(str(dataset)),
            EMPTY if each.get("share") is None else Cell(f"{100 * each['share']:.1f}", order=float(each["share"])),
            *(plain(_number(each.get(key))) for key in ("rows", "tokens", "targets")),
            plain(_number(each.get("passes")), 2),
        ]
        for stage in run["stages"]
        for dataset, each in (stage.get("data") or {}).items()
    ]
    return without_empty(f"mixtures-{place}", f"Data each stage of {run['id']} was trained on.", columns, rows)


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _moment(iso: str) -> str:
    """To the minute, as it stands in the file."""
    return iso[:16].replace("T", " ")


def _shared(stages: Sequence[Mapping[str, Any]], key: str) -> list[Facts]:
    """What stages say alike is said once."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for stage in stages:
        if stage.get(key):
            found.setdefault(_pairs(stage[key]), []).append(str(stage["name"]))
    alone = len(found) == 1
    return [Facts("all stages" if alone else ", ".join(names), pairs) for pairs, names in found.items()]


def _pairs(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((str(name), _text(value)) for name, value in values.items() if value not in (None, [], {}))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, ensure_ascii=False, default=str)
