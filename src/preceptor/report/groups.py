"""Which runs are seeds of one recipe, what each run's models are, and how these are called.

A model's key is its name, and RUN/NAME where several runs that are not seeds of one another have models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from preceptor.report.merge import fill
from preceptor.report.read import Run, Stage

Kind = Literal["reference", "expert", "model", "other"]


@dataclass
class RunModels:
    """The models of one run's evaluate stages; `names` maps (stage, model) to the name in `entries`."""

    run: Run
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass
class Group:
    """Runs that differ in their seed alone, shown as one set of models; mostly it is one run."""

    title: str
    runs: list[RunModels]
    prefix: str = ""

    def key(self, name: str) -> str:
        """A model's key in the report."""
        return f"{self.prefix}{name}"

    @property
    def names(self) -> list[str]:
        """The models of any of its seeds, in the order of the first that has them."""
        return list(dict.fromkeys(name for run in self.runs for name in run.entries))


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs in groups, in the order given; keys of models carry the group's title where several groups have models."""
    sets: list[list[Run]] = []
    for run in runs:
        # Compared with all of a group: being alike to one stage of one seed is not yet being of its recipe.
        home = next((group for group in sets if all(_alike(run, other) for other in group)), None)
        if home is None:
            sets.append([run])
        else:
            home.append(run)
    groups: list[Group] = []
    for each in sets:
        ordered = sorted(each, key=lambda run: (run.seed is None, run.seed or 0))
        groups.append(Group(_title(ordered), [models_of(run) for run in ordered]))
    titles = [group.title for group in groups]
    for number, group in enumerate(groups):
        if titles.count(group.title) > 1:
            group.title = f"{group.title} ({titles[: number + 1].count(group.title)})"
    if sum(any(run.entries for run in group.runs) for group in groups) > 1:
        for group in groups:
            group.prefix = f"{group.title}/"
    return groups


def _title(runs: Sequence[Run]) -> str:
    """A run's own name; of several seeds what their names have in common without the seed."""
    if len(runs) == 1:
        return runs[0].id
    bare = {re.sub(rf"(seed[-_. ]*)?(?<!\d){run.seed}(?!\d)", "", run.id).strip("-_. /") for run in runs}
    named = bare.pop() if len(bare) == 1 else ""
    return named or f"{len(runs)} seeds"


# --- seeds of one recipe ---------------------------------------------------------------------------------------


def _alike(a: Run, b: Run) -> bool:
    """Whether two runs are of one recipe and of other seeds, as far as the stages show that both have."""
    if a.seed is None or b.seed is None or a.seed == b.seed:
        return False
    theirs = {stage.name: stage for stage in b.stages}
    pairs = [(stage, theirs[stage.name]) for stage in a.stages if stage.name in theirs]
    if not pairs or not all(_spec(one) is not None and _spec(one) == _spec(other) for one, other in pairs):
        return False
    if not a.plan or not b.plan:
        return not a.plan and not b.plan
    seeds = (a.seed, b.seed)
    if _seedless(a.plan.get("data"), seeds) != _seedless(b.plan.get("data"), seeds):
        return False
    return all(_same_stage(a, b, one, other, seeds) for one, other in pairs)


def _same_stage(a: Run, b: Run, one: Stage, other: Stage, seeds: Sequence[int]) -> bool:
    """Whether the recipes ask the same of a stage, but for the seed and for where files lie.

    Another path is another model, unless the seed alone tells the paths apart and both read the same content there.
    """
    asked = [_own_models((run.plan.get("stages") or {}).get(one.name), run) for run in (a, b)]
    first, second = (_seedless(each, seeds, _NAMES) for each in asked)
    if first == second:
        return True
    read = [_files_read(stage) for stage in (one, other)]
    return bool(read[0]) and read[0] == read[1] and _seedless(asked[0], seeds) == _seedless(asked[1], seeds)


_NAMES = ("run_name", "logging_dir", "output_dir")
"""Settings that name a run and change no result."""


def _files_read(stage: Stage) -> dict[str, Any]:
    """The hashes of what a stage read beside its data and its own run's models."""
    inputs = stage.record.get("inputs")
    found = inputs.items() if isinstance(inputs, dict) else ()
    return {key: value for key, value in found if not key.startswith(("data.", "overlap")) and not _of_stage(value)}


def _of_stage(value: Any) -> bool:
    path = value.get("path") if isinstance(value, dict) else None
    return isinstance(path, dict) and path.keys() == {"stage"}


def _own_models(part: Any, run: Run) -> Any:
    """The paths of models that the run's own stages made, as `stage:NAME`."""
    if isinstance(part, dict):
        return {key: _own_models(item, run) for key, item in part.items()}
    if isinstance(part, list):
        return [_own_models(item, run) for item in part]
    made = _maker(run, part) if isinstance(part, str) else None
    return part if made is None else f"stage:{made.name}"


def _spec(stage: Stage) -> Any:
    return stage.record.get("spec")


def _seedless(part: Any, seeds: Sequence[int], keys: Sequence[str] | None = None) -> Any:
    """The part of a recipe with the seeds taken out of its texts: `data-43/x.jsonl` is the same as `data-44/x.jsonl`.

    With `keys` only out of what these hold.
    """
    number = re.compile(rf"(?<!\d)({'|'.join(map(str, seeds))})(?!\d)")

    def without(part: Any, within: bool) -> Any:
        if isinstance(part, dict):
            return {key: without(item, within or (keys is not None and key in keys)) for key, item in part.items()}
        if isinstance(part, list):
            return [without(item, within) for item in part]
        return number.sub("SEED", part) if within and isinstance(part, str) else part

    return without(part, keys is None)


# --- the models of a run ---------------------------------------------------------------------------------------


def models_of(run: Run) -> RunModels:
    """The models that the run's evaluate stages scored.

    What several stages measured of one model is one entry; a second measurement of the same thing, or another model of
    the same name, is called STAGE/NAME.
    """
    found = RunModels(run)
    specs: dict[str, Any] = {}
    for stage in run.stages:
        if stage.scores is None:
            continue
        given = _models_given(stage)
        for name, entry in stage.scores.models.items():
            called = name
            if name in found.entries:
                same = specs[name] == given.get(name)
                if not (same and fill(found.entries[name], entry)):
                    called = f"{stage.name}/{name}"
            if called not in found.entries:
                found.entries[called] = dict(entry)
                specs[called] = given.get(name)
                found.seconds[called] = _seconds(run, given.get(name))
            found.names[stage.name, name] = called
            kind = _kind(stage, name, entry)
            if found.kinds.get(called, "other") == "other" or kind in ("reference", "expert"):
                found.kinds[called] = kind
    return found


def _kind(stage: Stage, name: str, entry: Mapping[str, Any]) -> Kind:
    assert stage.scores is not None
    if name == stage.scores.reference:
        return "reference"
    if name == stage.scores.expert:
        return "expert"
    return "model" if entry["listed"] else "other"


def _models_given(stage: Stage) -> Mapping[str, Any]:
    """The spec of each model by the name it is scored under."""
    models = stage.given.get("models")
    found = dict(models) if isinstance(models, dict) else {}
    if isinstance(models, list):
        found = {name: each for each in models if (name := _short_name(each)) is not None}
    for role in ("reference", "expert"):  # scored as well where it is not among the models
        name = getattr(stage.scores, role, None)
        if name is not None:
            found.setdefault(name, stage.given.get(role))
    return found


def _short_name(model: Any) -> str | None:
    """What an evaluate stage calls a model without a name: its stage, or the last part of its path."""
    text = (model.get("adapter") or model.get("path")) if isinstance(model, dict) else None
    if not isinstance(text, str):
        return None
    return text.removeprefix("stage:") if text.startswith("stage:") else text.rstrip("/").rpartition("/")[2]


def _seconds(run: Run, model: Any) -> float | None:
    """How long the stage took that made a model; None for one that no stage of this run made."""
    texts = [model.get(key) for key in ("adapter", "path")] if isinstance(model, dict) else []
    for text in (each for each in texts if isinstance(each, str)):
        made = _maker(run, text)
        if made is not None:
            seconds: float | None = made.record.get("seconds")
            return seconds
    return None


def _maker(run: Run, text: str) -> Stage | None:
    """The run's stage that made the model at a path of its recipe, which may be relative to the recipe's folder."""
    for stage in run.stages:
        own = [str(stage.directory.resolve() / name) for name in ("model", "adapter")]
        if text == f"stage:{stage.name}" or text in own:
            return stage
        nested = text.removeprefix("./")
        if nested.count("/") > 1 and any(path.endswith(f"/{nested}") for path in own):
            return stage
    return None


# --- differences between models --------------------------------------------------------------------------------


def differences(group: Group) -> Iterator[tuple[dict[str, Any], list[dict[str, Any] | None]]]:
    """Each paired difference of the group's models, named by their keys, with that of each run, or None."""
    seeds: dict[str, dict[int, dict[str, Any]]] = {}
    names: dict[str, dict[str, Any]] = {}
    for number, run in enumerate(group.runs):
        for stage in run.run.stages:
            for each in stage.scores.differences if stage.scores is not None else ():
                called = [run.names.get((stage.name, each[role])) for role in ("model", "than")]
                if None in called:
                    continue
                keys = [group.key(str(name)) for name in called]
                identity = json.dumps([each["measure"], *keys])
                names[identity] = {"measure": each["measure"], "model": keys[0], "than": keys[1]}
                seeds.setdefault(identity, {})[number] = each
    for identity, found in seeds.items():
        yield names[identity], [found.get(number) for number in range(len(group.runs))]
