"""Run directories as they are found, finished or not: what is there is read, what is missing is said in a sentence.

Only `stage.json`, `started.json`, `scores.json`, `predictions/*.jsonl`, `metrics.jsonl` and the text of `recipe.yaml`
are read; no model, and nothing that needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from preceptor.report.lines import Say, of_newer_format, read_lines, read_object, text_of
from preceptor.report.predictions import read_predictions
from preceptor.report.records import checked
from preceptor.report.scores_file import Scores, read_scores, scores_of_record
from preceptor.report.sources import Place, recipe_value
from preceptor.report.values import encodable

STAGE_FORMAT = 1
TRAINING = ("sft", "distill")
Status = Literal["done", "unfinished", "unreadable"]


@dataclass
class Stage:
    """One stage's directory. `record` is its stage.json, or of an unfinished one its started.json."""

    name: str
    kind: str | None
    directory: Path
    status: Status
    record: Mapping[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    scores: Scores | None = None
    predictions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def given(self) -> Mapping[str, Any]:
        """The stage's spec, defaults included; of an unfinished stage without what cannot change a result."""
        value = self.record.get("given", self.record.get("spec"))
        return value if isinstance(value, dict) else {}

    @property
    def results(self) -> Mapping[str, Any]:
        value = self.record.get("results")
        return value if isinstance(value, dict) else {}

    @property
    def reportable(self) -> bool:
        return self.status != "unreadable" or bool(self.metrics) or self.scores is not None


@dataclass
class Run:
    """One run: its stages in the recipe's order, and what is to be said of it."""

    id: str
    path: str
    seed: int | None
    recipe: str | None
    plan: Mapping[str, Any]
    """The recipe as a mapping; empty where it could not be read."""
    stages: list[Stage]
    problems: list[str]
    titles: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def title_of(self, name: str) -> str:
        """What a model or stage is called in the report."""
        return self.titles.get(name, name)


def read_run(place: Place) -> Run:
    """Reads all of one run that can be read; its `problems` say what cannot."""
    problems = list(place.problems)
    stages = _one_of_each([read_stage(directory, problems.append) for directory in place.stages], problems.append)
    recipe, plan = _recipe(place, problems.append)
    planned = list(plan.get("stages", {}))
    waiting = [name for name in planned if name not in stages] if place.whole and stages else []
    if waiting:
        problems.append(f"{', '.join(map(str, waiting))}: not begun; {_AGAIN} goes on with the run")
    given = place.given
    seeds = [stage.record.get("seed") for stage in stages.values()]
    seed = given.seed if given is not None and given.seed is not None else next((s for s in seeds if _whole(s)), None)
    key = {name: number for number, name in enumerate(planned)}
    return Run(
        id=encodable(place.title),
        path=encodable(place.path),
        seed=seed,
        recipe=recipe,
        plan=plan,
        stages=sorted(stages.values(), key=lambda s: (key.get(s.name, len(key)), str(s.record.get("started")), s.name)),
        problems=[encodable(problem.replace(_AGAIN, _command(recipe))) for problem in problems],
        titles={} if given is None else given.titles,
        measured={} if given is None else given.measured,
    )


def _one_of_each(read: Sequence[Stage], say: Say) -> dict[str, Stage]:
    """Of the folders that hold one stage the one that bears its name, then a finished one, then the newest.

    An untrained student may be in several directories of one run; other results that are left out are named.
    """
    found: dict[str, Stage] = {}
    for name in dict.fromkeys(stage.name for stage in read):
        same = [stage for stage in read if stage.name == name]
        found[name] = max(same, key=_worth)
        for stage in same:
            folder, kept = (encodable(each.directory.name) for each in (stage, found[name]))
            if stage is not found[name] and (folder != name or not _same_result(stage, found[name])):
                place = f"{encodable(stage.directory.parent.name)}/{folder}" if folder == kept else folder
                say(f"{place}: is left out: it holds a result of the stage {name} too, and that of {kept} is shown")
    return found


def _worth(stage: Stage) -> tuple[bool, bool, bool, str]:
    finished = stage.record.get("finished")
    named = encodable(stage.directory.name) == stage.name
    return (
        stage.status != "unreadable",
        named,
        stage.status == "done",
        finished if isinstance(finished, str) else "",
    )


def _same_result(a: Stage, b: Stage) -> bool:
    return a.status == b.status and a.record.get("identity") == b.record.get("identity")


def named_apart(runs: Sequence[Run]) -> list[Run]:
    """Gives runs of one name as many of their folders as tell them apart, and a number where none does."""
    longer = {run.id: [each for each in runs if each.id == run.id] for run in runs}
    for same in (each for each in longer.values() if len(each) > 1):
        folders = [Path(run.path).resolve().parent.parts[1:] for run in same]
        depth = next((n for n in range(1, 9) if len({parts[-n:] for parts in folders}) == len(same)), 1)
        for run, parts in zip(same, folders, strict=True):
            run.id = "/".join((*parts[-depth:], run.id))
    names = [run.id for run in runs]
    for number, run in enumerate(runs):
        if names.count(names[number]) > 1:
            run.id = f"{names[number]} ({names[: number + 1].count(names[number])})"
    return list(runs)


_AGAIN = "\0the same command\0"
"""Stands in a problem for the command that goes on with the run, which is known only with its recipe."""
_COMMAND_LINE = "# Run it again with: "


def _command(recipe: str | None) -> str:
    """The command that goes on with a run, as the comments at the top of its recipe.yaml have it.

    Where they do not, the recipe they name; that of `preceptor evaluate` is no file, and runs no recipe.
    """
    comments = [line for line in (recipe or "").split("\n")[:3] if line.startswith("# ")]
    for line in comments:
        if line.startswith(_COMMAND_LINE) and line[len(_COMMAND_LINE) :].strip():
            return f"`{line[len(_COMMAND_LINE) :].strip()}`"
    first = comments[0] if comments else ""
    if not first.startswith("# From ") or ", overrides applied;" not in first:
        return "`preceptor run recipe.yaml`"
    source = first[len("# From ") : first.index(", overrides applied;")]
    return f"`preceptor run {source}`" if Path(source).suffix in (".yaml", ".yml") else "the command that began it"


def _recipe(place: Place, say: Say) -> tuple[str | None, Mapping[str, Any]]:
    if place.recipe is None:
        if place.stages:
            say("recipe.yaml: is missing, so that what the run was given is known from its stages alone")
        return None, {}
    try:
        recipe = text_of(place.recipe, place.recipe.parent)
    except (OSError, ValueError):
        say("recipe.yaml: cannot be read as text, so that what the run was given is known from its stages alone")
        return None, {}
    value = recipe_value(place.recipe)
    if not value:
        say("recipe.yaml: is no recipe; it is shown as it is")
    return recipe, value


def read_stage(directory: Path, say: Say) -> Stage:
    """One stage's directory, whatever state it is in."""
    record, status = _record(directory, lambda problem: say(f"{directory.name}: {problem}"))
    name = record.get("stage") or encodable(directory.name)
    stage = Stage(str(name), _kind(record), directory, status, record)

    def told(problem: str) -> None:
        say(f"{stage.name}: {problem}")

    if (directory / "metrics.jsonl").is_file():
        stage.metrics = _metrics(directory / "metrics.jsonl", told)
    elif status == "done" and stage.kind in TRAINING:
        told("metrics.jsonl is missing, so that there are no curves of it")
    if (directory / "scores.json").is_file():
        stage.scores = read_scores(directory / "scores.json", told)
    elif status == "done" and stage.kind == "evaluate":
        told("scores.json is missing; its means are those of stage.json, without tasks and examples")
        stage.scores = scores_of_record(stage.results)
    if stage.scores is not None:
        stage.predictions = read_predictions(directory / "predictions", stage.scores, told)
    return stage


def _record(directory: Path, say: Say) -> tuple[Mapping[str, Any], Status]:
    """stage.json, else started.json, else nothing; with what that says about the stage."""
    if (directory / "stage.json").exists():
        value = read_object(directory / "stage.json", say)
        if value is None:
            return {}, "unreadable"
        if of_newer_format(value, STAGE_FORMAT):
            say(
                f"stage.json: is of format {value['format']}, and this preceptor reads format {STAGE_FORMAT}; "
                "make the report with the version that wrote it"
            )
            return {}, "unreadable"
        if not isinstance(value.get("stage"), str) or not isinstance(value.get("kind"), str):
            say("stage.json: is not the record of a stage of preceptor; it is left out")
            return {}, "unreadable"
        return checked("stage.json", value, say), "done"
    if not (directory / "started.json").exists():
        say("has no stage.json and no started.json, so that what made it is unknown; what can be read of it is shown")
        return {}, "unreadable"
    value = read_object(directory / "started.json", say) or {}
    cause = _cause(directory / "error.txt")
    how = "it was stopped, or is still running" if cause is None else f"it failed ({cause})"
    say(f"has started.json and no stage.json: {how}; {_AGAIN} goes on with it")
    return checked("started.json", value, say), "unfinished"


def _cause(path: Path) -> str | None:
    """The last line of a traceback."""
    try:
        lines = text_of(path, path.parent, errors="replace").strip().splitlines()
    except OSError:
        return None
    return lines[-1][:200] if lines else None


def _kind(record: Mapping[str, Any]) -> str | None:
    kind = record.get("kind")
    if kind is None and isinstance(record.get("spec"), dict):
        kind = record["spec"].get("kind")
    return kind if isinstance(kind, str) else None


def _metrics(path: Path, say: Say) -> list[dict[str, Any]]:
    """The log lines that name a step."""
    lines = read_lines(path, say)
    found = [line for line in lines if _whole(line.get("step"))]
    if len(found) < len(lines):
        say(f"{path.name}: {len(lines) - len(found):,} of {len(lines):,} lines name no step; they are in no curve")
    elif not lines and path.stat().st_size == 0:
        say(f"{path.name}: is empty; no step was logged")
    return found


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
