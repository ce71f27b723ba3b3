"""What a recipe would run, without training: stages, sizes, one row per dataset with its targets marked, what it needs.

Only configs, tokenizers and data are read; of weights no more than the headers, unless a finished stage read them:
then their content tells whether its result would be kept. What a stage needs in memory and time is found by simulating
one of its steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preceptor.plan.elsewhere import readable
from preceptor.plan.planner import Planner
from preceptor.plan.render import render
from preceptor.plan.shared import Shared
from preceptor.recipe import DistillStage, EvaluateStage, InitStage, Recipe, SftStage, StoreStage, models_of
from preceptor.running.identity import stage_identities
from preceptor.running.network import only_what_is_named
from preceptor.running.stage_state import HASHES_FILE, STAGE_FILE, stage_state
from preceptor.stages.ahead import check_ahead
from preceptor.stages.context import run_directory
from preceptor.system.hashes import Hashes

if TYPE_CHECKING:
    from preceptor.estimate.target import Device

__all__ = ["plan", "render"]

Log = Callable[[str], None]


def plan(recipe: Recipe, *, log: Log = print, device: Device | None = None) -> dict[str, Any]:
    """Describes each stage as it would run; nothing is written.

    Returns `{"name", "directory", "seed", "stages": {name: {"kind", "done", "changed", "reads", "models", "data",
    ...}}}`; `changed` tells what differs where a stage is finished but with another recipe or other data, which a
    run refuses. What a stage that has not run yet decides is given as `"known after stage NAME"`. For a `device`,
    stages that train or store and are not done have `memory`, `time` and `disk` as well, in bytes and seconds, or
    `{"unknown": why}`. Raises InputError for data and models that are not there or cannot be used, as a run would.
    """
    with only_what_is_named(recipe):
        return _plan(recipe, log, device)


def _plan(recipe: Recipe, log: Log, device: Device | None) -> dict[str, Any]:
    directory = run_directory(recipe)
    changed = _changed(recipe, directory)
    done = {name for name, differences in changed.items() if not differences}
    check_ahead(readable(recipe), list(recipe.stages), models=False)
    stages: dict[str, Any] = {}
    shared = Shared()
    for name, stage in recipe.stages.items():
        planner = Planner(recipe, name, directory, done, log, shared)
        wanted = None if name in done else device
        entry: dict[str, Any] = {
            "kind": stage.kind,
            "done": name in done,
            "changed": changed.get(name, []),
            "reads": recipe.stage_reads(name),
            "spec": stage.model_dump(mode="json", by_alias=True),
            "models": {
                ".".join(map(str, key)): planner.model(model)
                for key, model in models_of(stage).items()
                if key != ("tokenizer",)
            },
        }
        if isinstance(stage, InitStage):
            entry["models"]["result"] = {"parameters": planner.init_parameters(stage)}
        if isinstance(stage, SftStage | DistillStage):
            entry.update(planner.training(stage, wanted))
        if isinstance(stage, EvaluateStage) and stage.has_suites:
            from preceptor.stages.suites import Suites

            entry["suites"] = Suites(stage, planner.context).planned()
        if isinstance(stage, StoreStage):
            entry.update(planner.storing(stage, wanted))
        stages[name] = entry
    return {"name": recipe.name, "directory": str(directory), "seed": recipe.seed, "stages": stages}


def _changed(recipe: Recipe, directory: Path) -> dict[str, list[str]]:
    """For each finished stage what differs from the recipe and data it was finished with."""
    finished = [name for name in recipe.stages if (directory / name / STAGE_FILE).exists()]
    documents = stage_identities(recipe, finished, Hashes(directory / HASHES_FILE))
    return {name: stage_state(directory / name, documents[name]).changed for name in finished}
