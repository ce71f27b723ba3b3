"""The rules that hold between the parts of a recipe: names, references, routes, variables in paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from preceptor.errors import InputError, did_you_mean
from preceptor.recipe.base import NAME, NAME_RULE, STAGE_PREFIX, KeyPath, one_or_many, stage_of
from preceptor.recipe.data import DatasetSpec, OverlapSpec
from preceptor.recipe.evaluating import EvaluateStage
from preceptor.recipe.generating import GenerateStage
from preceptor.recipe.making import InitStage
from preceptor.recipe.objective import TAUGHT
from preceptor.recipe.paths import expand
from preceptor.recipe.routes import RoutesSpec
from preceptor.recipe.sharding import check_sharding
from preceptor.recipe.stages import Stage, datasets_of, models_of
from preceptor.recipe.storing import StoreStage, follows_store, reads_store, stored_by, unused_keys
from preceptor.recipe.training import OWNED_TRAINING_KEYS, DistillStage, SftStage

Problem = tuple[KeyPath, str]
RESERVED_NAMES = ("recipe.yaml", "report", "requests")
"""What else lies in a run directory."""


def check(
    datasets: Mapping[str, DatasetSpec | None],
    stages: Mapping[str, Stage | None],
    overlap: OverlapSpec | None,
    runs_dir: str | None = None,
) -> Iterator[Problem]:
    """Yields where and how the parts contradict each other; None stands for a part that is itself invalid.

    Each problem is a key path and the rest of the sentence.
    """
    for section, parts in (("data", datasets), ("stages", stages)):
        for name in parts:
            if not NAME.fullmatch(name):
                yield (section, name), f"is not a usable name; write {NAME_RULE}"
            elif section == "stages" and name.lower() in RESERVED_NAMES:
                yield (section, name), "is the name of something else in the run directory; give the stage another name"
    folders: dict[str, str] = {}
    for name in stages:
        if (other := folders.setdefault(name.lower(), name)) != name:
            yield (
                ("stages", name),
                f"differs from {other!r} in capitals alone, and some file systems take them for one folder; give the "
                "stage another name",
            )
    if runs_dir is not None:
        yield from _check_variables(("runs_dir",), runs_dir)
    for loser in () if overlap is None else overlap.losers:
        if loser not in datasets:
            yield ("overlap", "drop_from"), _unknown(loser, datasets, "dataset")
    for name, dataset in datasets.items():
        if dataset is not None:
            yield from _check_dataset(("data", name), dataset, stages)
    for name, stage in stages.items():
        if stage is not None:
            yield from _check_stage(name, stage, datasets, stages)


def _check_dataset(path: KeyPath, dataset: DatasetSpec, stages: Mapping[str, Stage | None]) -> Iterator[Problem]:
    for key, value in (("path", dataset.path), ("test", dataset.test)):
        for text in one_or_many(value):
            source = stage_of(text)
            if source is None:
                yield from _check_variables((*path, key), text)
            else:
                yield from _check_source((*path, key), text, source, stages, "rows", None)


def _check_stage(
    name: str,
    stage: Stage,
    datasets: Mapping[str, DatasetSpec | None],
    stages: Mapping[str, Stage | None],
) -> Iterator[Problem]:
    path: KeyPath = ("stages", name)
    for key, model in models_of(stage).items():
        stored = stored_by(model, stages) if isinstance(stage, DistillStage) and key[0] == "teacher" else None
        want = "a model" if stored is None else "stored predictions"
        yield from _check_reference((*path, *key), model.path, stages, want, name)
        if model.adapter is not None:
            yield from _check_reference((*path, *key, "adapter"), model.adapter, stages, "an adapter", name)
            if _lora_of(model.path, stages):
                yield (
                    (*path, *key),
                    (
                        f"has an adapter on {model.path!r}, which is an adapter itself; "
                        "take a stage without lora, or leave `adapter` out"
                    ),
                )
    for place, names in datasets_of(stage).items():
        for used in names:
            yield from _check_used_dataset((*path, *place.split(".")), used, name, datasets, stages)
    if isinstance(stage, InitStage) and stage.chat_template not in (None, "default"):
        yield from _check_variables((*path, "chat_template"), str(stage.chat_template))
    yield from check_sharding(path, stage)
    if isinstance(stage, SftStage | DistillStage):
        yield from _check_training(path, stage, datasets, stages)
    if isinstance(stage, EvaluateStage):
        for key, text in stage.files.items():
            yield from _check_variables((*path, *key), text)
        for used in stage.datasets:
            dataset = datasets.get(used)
            if stage_of(used) or (dataset is not None and not dataset.holdout and dataset.test is None):
                yield (
                    (*path, "on"),
                    f"names {used!r}, which keeps no rows to score; give that dataset a `holdout` or a `test` file",
                )
    if isinstance(stage, GenerateStage) and isinstance(stage.prompts, str):
        source = datasets.get(stage.prompts)
        if source is not None and source.targets == "all":
            yield (
                (*path, "prompts"),
                (
                    f"names {stage.prompts!r}, whose `targets: all` says that its rows have no prompts; "
                    "name a dataset of conversations, or leave `prompts` out"
                ),
            )


def _check_training(
    path: KeyPath,
    stage: SftStage | DistillStage,
    datasets: Mapping[str, DatasetSpec | None],
    stages: Mapping[str, Stage | None],
) -> Iterator[Problem]:
    for key in stage.training:
        if key in OWNED_TRAINING_KEYS:
            yield (*path, "training", key), f"is a key preceptor sets itself; {OWNED_TRAINING_KEYS[key]}"
    strategy = stage.training.get("eval_strategy", "no")
    if strategy != "no" and not any(_may_hold_out(name, datasets) for name in stage.dataset_names):
        yield (
            (*path, "training", "eval_strategy"),
            f"is {strategy!r}, but no dataset of the stage keeps rows to evaluate on; give one of "
            f"{', '.join(stage.dataset_names)} a `holdout`, or write eval_strategy: no",
        )
    for name in stage.dataset_names:
        if (dataset := datasets.get(name)) is not None and dataset.holdout == "all":
            yield (*path, "data"), f"names {name!r}, of which every row is held out; give it a number as `holdout`"
    routes = _routes_of(stage, datasets)
    for index, term in enumerate(stage.objective):
        for route in term.routes or ():
            if routes is not None and route not in routes:
                yield (*path, "objective", index, "routes"), _unknown(route, routes, "route of this stage")
    if isinstance(stage, DistillStage) and isinstance(stage.teacher, RoutesSpec):
        yield from _check_routes((*path, "teacher"), stage, stage.teacher, routes)
    if isinstance(stage, DistillStage):
        yield from _check_stored(path, stage, stages)
    key = "model" if isinstance(stage, SftStage) else "student"
    student = models_of(stage)[key,]
    if student.quantization is not None and stage.lora is None:
        yield (
            (*path, key, "quantization"),
            (
                "needs `lora`: quantised weights cannot be trained themselves; add lora: {r: 16} to "
                "the stage, or remove quantization"
            ),
        )
    if stage.lora is not None and (student.adapter is not None or _lora_of(student.path, stages)):
        yield (
            (*path, key),
            (
                "is an adapter already and the stage trains another with lora; remove `lora` (the adapter "
                "is then merged and the whole model trained), or train on the base model"
            ),
        )


def _routes_of(stage: SftStage | DistillStage, datasets: Mapping[str, DatasetSpec | None]) -> list[str] | None:
    """The routes of a stage's rows; None where a column decides, which only the data can tell."""
    specs = [datasets.get(name) for name in stage.dataset_names]
    return None if any(spec is not None and spec.route is not None for spec in specs) else stage.dataset_names


def _check_routes(
    path: KeyPath, stage: DistillStage, teacher: RoutesSpec, routes: list[str] | None
) -> Iterator[Problem]:
    taught = [term for term in stage.objective if term.kind in TAUGHT]
    if not taught:
        yield path, "is followed by no term; add one to `objective`, such as {kind: logits}"
    if routes is None or not taught:
        return
    followed = [route for route in routes if any(term.routes is None or route in term.routes for term in taught)]
    for route in teacher.routes:
        if route not in routes:
            yield (*path, "routes", route), f"is a route without rows: it {_no(route, routes, 'dataset of this stage')}"
        elif route not in followed:
            yield (
                (*path, "routes", route),
                "is used by no term: those that follow a teacher leave the route out; remove it here, or name it there",
            )
    for route in followed:
        if route not in teacher.routes and teacher.default is None:
            yield (
                (*path, "routes"),
                f"has no teacher for {route}, whose rows a term follows; add {route}: MODEL or a `default` teacher, or "
                "give the terms `routes` without it",
            )
    if teacher.default is not None and all(route in teacher.routes for route in followed):
        yield (*path, "default"), "is used by no row: every route has a teacher of its own; remove it"


def _check_stored(path: KeyPath, stage: DistillStage, stages: Mapping[str, Stage | None]) -> Iterator[Problem]:
    """What is refused of teachers that are stored by a stage of this recipe; of others their folder tells."""
    for key, model in stage.teachers.items():
        name = stored_by(model, stages)
        store = None if name is None else stages[name]
        if name is None or not isinstance(store, StoreStage):
            continue
        for unused in unused_keys(model):
            yield (*path, *key, unused), f"is of no use to {model.path!r}, which is stored; remove it"
        for where, what in follows_store(stage, key, store.mode, store.temperature):
            yield (*path, *where), what
        for where, what in reads_store(stage, key, store, name):
            yield (*path, *where), what


def _may_hold_out(name: str, datasets: Mapping[str, DatasetSpec | None]) -> bool:
    if stage_of(name):
        return False
    dataset = datasets.get(name)
    return dataset is None or dataset.holdout != 0  # one that is itself wrong is reported where it is


def _check_used_dataset(
    path: KeyPath,
    used: str,
    reader: str,
    datasets: Mapping[str, DatasetSpec | None],
    stages: Mapping[str, Stage | None],
) -> Iterator[Problem]:
    source = stage_of(used)
    if source is not None:
        yield from _check_source(path, used, source, stages, "rows", reader)
        return
    if used not in datasets:
        yield path, _unknown(used, datasets, "dataset")
        return
    dataset = datasets[used]
    for source in [] if dataset is None else dataset.stages:
        if source in stages:  # an unknown one is reported at the dataset
            yield from _check_order(path, f"{used!r}, which is {STAGE_PREFIX + source!r}", source, stages, reader)


def _check_reference(
    path: KeyPath, text: str, stages: Mapping[str, Stage | None], want: str, reader: str
) -> Iterator[Problem]:
    source = stage_of(text)
    if source is None:
        yield from _check_variables(path, text)
    else:
        yield from _check_source(path, text, source, stages, want, reader)


def _check_source(
    path: KeyPath, text: str, source: str, stages: Mapping[str, Stage | None], want: str, reader: str | None
) -> Iterator[Problem]:
    if source not in stages:
        yield path, f"is {text!r}, but {source!r} {_no(source, stages, 'stage')}"
        return
    stage = stages[source]
    if stage is not None:
        gives = "a model"
        if isinstance(stage, GenerateStage | EvaluateStage):
            gives = "rows" if isinstance(stage, GenerateStage) else "scores"
        if isinstance(stage, StoreStage):
            gives = "stored predictions"
        if isinstance(stage, SftStage | DistillStage) and stage.lora is not None and want == "an adapter":
            gives = "an adapter"
        if gives != want:
            yield (
                path,
                f"is {text!r}, of kind {stage.kind}, which gives {gives}; name a stage that gives {want}",
            )
            return
    if reader is not None:
        yield from _check_order(path, repr(text), source, stages, reader)


def _check_order(
    path: KeyPath, what: str, source: str | None, stages: Mapping[str, Any], reader: str
) -> Iterator[Problem]:
    order = list(stages)
    if source == reader:
        yield path, f"is {what}: the stage would read its own result; name an earlier stage"
    elif source is not None and order.index(source) > order.index(reader):
        yield (
            path,
            (
                f"is {what}, but {source} comes after {reader}, and a stage reads earlier ones only (so "
                f"that no circle can arise); move {source} above {reader}"
            ),
        )


def _check_variables(path: KeyPath, text: str) -> Iterator[Problem]:
    try:
        expand(text)
    except InputError as error:
        yield path, f"is wrong: {error}"


def _lora_of(text: str, stages: Mapping[str, Stage | None]) -> bool:
    stage = stages.get(stage_of(text) or "")
    return isinstance(stage, SftStage | DistillStage) and stage.lora is not None


def _unknown(name: str, options: Mapping[str, Any] | list[str], what: str) -> str:
    return f"names {name!r}, which {_no(name, options, what)}"


def _no(name: str, options: Mapping[str, Any] | list[str], what: str) -> str:
    return f"is no {what}{did_you_mean(name, options)}; there is {', '.join(options) or 'none'}"
