"""What a user may name as RUN, and the stage directories that are meant by it.

A run directory is what `preceptor run` makes; people also name one stage of it, or the folder that holds several runs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preceptor.recipe.yaml_text import parse_yaml
from preceptor.report.lines import text_of
from preceptor.report.values import cleaned

SIGNS = ("stage.json", "started.json", "scores.json", "metrics.jsonl")
"""A folder that has one of these is read as a stage; the last two alone are what is left of one."""
_INSIDE = {"model", "adapter", "checkpoints", "store", "predictions", "requests"}
"""Folders of a stage, in which no run is looked for."""
_DEPTH = 4
_MOVED = re.compile(r"(.+)\.\d+")


@dataclass(frozen=True)
class RunSource:
    """Several directories that are one run: the pocket study runs each stage in a run directory of its own.

    Args:
        title: what the report calls the run.
        directories: run directories or stage directories.
        seed: of the run; None is what its stages say.
        titles: what the report calls its models and stages, by name; others keep their names.
        measured: further figures by model, which become fields of the model: `kl_teacher` and the like.
        recipe: the file shown as the run's recipe; None is the recipe.yaml of the first directory that has one.
    """

    title: str
    directories: tuple[Path, ...]
    seed: int | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    recipe: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where one run's stages are: `problems` are sentences about what was found instead."""

    title: str
    path: str
    stages: tuple[Path, ...]
    recipe: Path | None = None
    problems: tuple[str, ...] = ()
    whole: bool = True
    """False where one stage of a run was named: the others are not missed."""
    given: RunSource | None = None


def places(source: Path | RunSource) -> list[Place]:
    """The runs that `source` stands for, in the order of their names; one without stages where it is none."""
    if isinstance(source, RunSource):
        found = [place for directory in source.directories for place in _of_path(Path(directory))]
        problems = [problem for place in found for problem in place.problems]
        return [
            Place(
                title=source.title,
                path=_common([place.path for place in found]),
                stages=tuple(stage for place in found for stage in place.stages),
                recipe=source.recipe or next((place.recipe for place in found if place.recipe is not None), None),
                problems=tuple(problems),
                whole=all(place.whole for place in found),
                given=source,
            )
        ]
    return _side_by_side(_of_path(Path(source)))


def _common(paths: Sequence[str]) -> str:
    try:
        return os.path.commonpath(paths)
    except ValueError:  # none, or some relative and some not
        return paths[0] if paths else ""


def _of_path(path: Path) -> list[Place]:
    """The runs at or below `path`."""
    title = path.name or path.resolve().name or str(path)
    try:
        if not path.exists():
            return [_nothing(title, path, f"{path}: does not exist; give a run directory, such as runs/NAME")]
        if not path.is_dir():
            wanted = "the run directory, such as runs/NAME, that `preceptor run` made of it"
            return [_nothing(title, path, f"{path}: is a file; give {wanted}")]
        if is_stage(path):
            beside = path.resolve().parent
            recipe = beside / "recipe.yaml"
            return [Place(title, str(path), (path,), recipe if recipe.is_file() else None, whole=False)]
        found = list(_runs(path, _DEPTH))
    except OSError as error:
        return [_nothing(title, path, f"{error.filename or path}: cannot be read ({error.strerror})")]
    if found:
        return found
    if (path / "recipe.yaml").is_file():
        why = "has a recipe.yaml and no stage begun; run `preceptor run` with that recipe first"
        return [Place(title, str(path), (), path / "recipe.yaml", (f"{path}: {why}",))]
    why = "holds no run: no folder in it has a stage.json; give a run directory, such as runs/NAME"
    return [_nothing(title, path, f"{path}: {why}")]


def _nothing(title: str, path: Path, problem: str) -> Place:
    return Place(title, str(path), (), None, (problem,))


def is_stage(path: Path) -> bool:
    """Whether the folder is read as a stage."""
    return any((path / sign).is_file() for sign in SIGNS)


def _runs(path: Path, depth: int) -> Iterator[Place]:
    """`path` itself where stages lie in it, else the runs in its folders."""
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    out = [each for each in folders if each.is_symlink() and _leads_out(each, path) and is_stage(each)]
    folders = [each for each in folders if each not in out]
    stages = tuple(each for each in folders if is_stage(each) and not _moved_aside(each))
    linked = tuple(f"{each.name}: is a link that leads out of the run; left out" for each in out)
    recipe = path / "recipe.yaml"
    others = [each for each in folders if not is_stage(each) and not _is_report(each) and each.name not in _INSIDE]
    if stages and recipe.is_file():
        why = "has no stage.json and no started.json, so it is no stage; left out"
        problems = (*linked, *(f"{each.name}: {why}" for each in others))
        yield Place(path.name or path.resolve().name, str(path), stages, recipe, problems)
        return
    if stages or linked:
        yield Place(path.name or path.resolve().name, str(path), stages, problems=linked)
    if depth > 1:
        for each in others:
            yield from _runs(each, depth - 1)


def _leads_out(link: Path, folder: Path) -> bool:
    return not link.resolve().is_relative_to(folder.resolve())


def _is_report(path: Path) -> bool:
    """Whether an earlier report was written there, or beside it."""
    return path.name == "figures" or (path / "report.json").is_file()


def _moved_aside(path: Path) -> bool:
    """Whether `--redo` has given this old result another name: NAME.1 and so on."""
    match = _MOVED.fullmatch(path.name)
    if match is None or _record(path).get("stage") == path.name:
        return False
    return _record(path).get("stage") == match[1] or (path.parent / match[1]).is_dir()


def _record(path: Path) -> Mapping[str, Any]:
    """What a stage says of itself, as far as it can be read here; what is wrong with it is said elsewhere."""
    for name in ("stage.json", "started.json"):
        try:
            value = json.loads(text_of(path / name, path))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return {}


def _side_by_side(found: Sequence[Place]) -> list[Place]:
    """Runs of one folder, seed and recipe that have each done other stages of it are one run.

    `preceptor demo` leaves a seed so: a folder of ten runs, each of one stage.
    """
    groups: dict[str, list[Place]] = {}
    for number, place in enumerate(found):
        groups.setdefault(_recipe_key(place) or str(number), []).append(place)
    kept: list[Place] = []
    for group in groups.values():
        kept += [_joined(group)] if len(group) > 1 and _agree(group) else group
    return sorted(kept, key=lambda place: place.path)


def _joined(group: Sequence[Place]) -> Place:
    folder = Path(group[0].path).parent
    named = folder.resolve()
    parts = recipe_value(group[0].recipe) if group[0].recipe is not None else {}
    whole = recipe_value(folder.parent / "recipe.yaml")  # the parts' own have paths where it has `stage:NAME`
    same = bool(whole) and all(whole.get(key) == parts.get(key) for key in ("seed", "data"))
    return Place(
        title=named.parent.name if named.name == "runs" else named.name,
        path=str(folder),
        stages=tuple(stage for place in group for stage in place.stages),
        recipe=folder.parent / "recipe.yaml" if same else group[0].recipe,
        problems=tuple(problem for place in group for problem in place.problems),
    )


def _recipe_key(place: Place) -> str | None:
    """What two parts of one run have in common: folder, seed, data and the names of all stages."""
    if place.recipe is None:
        return None
    value = recipe_value(place.recipe)
    if not value:
        return None
    parts = (str(Path(place.path).parent), value.get("seed"), value.get("data"), sorted(map(str, value["stages"])))
    try:
        return json.dumps(parts, sort_keys=True, default=str)
    except (TypeError, ValueError):  # YAML has keys that JSON has not
        return None


def recipe_value(path: Path) -> Mapping[str, Any]:
    """A recipe.yaml as a mapping that has `stages`; empty where it cannot be read as one."""
    try:
        # Not a plain safe loader, which unfolds a page of aliases to more values than there is memory for.
        value = cleaned(parse_yaml(text_of(path, path.parent), path.name)[0], set())
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("stages"), dict) else {}


def _agree(group: Sequence[Place]) -> bool:
    """Whether no stage was done in two of them with other results; an untrained student may well be in all."""
    seen: dict[str, Any] = {}
    records = [_record(stage) for place in group for stage in place.stages]
    return all(
        seen.setdefault(str(each.get("stage")), each.get("identity")) == each.get("identity") for each in records
    )
