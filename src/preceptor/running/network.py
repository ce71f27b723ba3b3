"""No network unless the recipe names something that is not here.

Libraries ask the Hub of their own accord: for chat templates beside a local tokenizer, for another form of local
weights, to count that a data set was read, to fetch compiled code for this processor. Where a recipe names nothing on
the Hub they are told that there is no connection; where it does, they may fetch that. What bitsandbytes would add of
its own is refused; kernels that a model needs are for those who have installed the package `kernels` for them.
Endpoints and trackers have connections of their own, which are not in question here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from preceptor.errors import InputError
from preceptor.recipe import EvaluateStage, ModelSpec, Recipe, TrainingStage, local_path, models_of
from preceptor.recipe.base import one_or_many, stage_of
from preceptor.system.environment import environment_kept

_UNASKED = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # a request for each data set read, local files included
}


def named_elsewhere(recipe: Recipe) -> list[str]:
    """What a recipe names that may be on the Hub: models, adapters, tokenizers, data sets, tasks of the harness."""
    found: list[str] = []
    for spec in recipe.data.values():
        texts = [*one_or_many(spec.path), *one_or_many(spec.test)]
        found += [text for text in texts if spec.format == "hub" or _on_hub(text, recipe)]
    for stage in recipe.stages.values():
        for model in models_of(stage).values():
            found += [text for text in (model.path, model.adapter) if text is not None and _on_hub(text, recipe)]
            if model.path not in found and _goes_on_the_hub(model, recipe):
                found.append(model.path)
        if isinstance(stage, EvaluateStage) and stage.tasks is not None:
            found += one_or_many(stage.tasks.names)  # whose data only the task's own file names
        if isinstance(stage, TrainingStage):
            found += [each for each in one_or_many(stage.training.get("report_to")) if each == "trackio"]
    return list(dict.fromkeys(found))


@contextmanager
def only_what_is_named(recipe: Recipe) -> Iterator[None]:
    """Within the block, and in processes started there, libraries fetch nothing that `recipe` does not name."""
    with ExitStack() as changes:
        for name, value in _UNASKED.items():
            if name not in os.environ:
                changes.enter_context(environment_kept(**{name: value}))
                changes.enter_context(_attributes(name, value == "1"))
        changes.enter_context(_without_kernels())
        if not named_elsewhere(recipe):
            changes.enter_context(environment_kept(HF_HUB_OFFLINE="1"))
            changes.enter_context(_attributes("HF_HUB_OFFLINE", True))
        yield


def _on_hub(text: str, recipe: Recipe) -> bool:
    if stage_of(text) is not None:
        return False
    try:
        return local_path(text, recipe.folder) is None
    except InputError:
        return False  # neither; said where it is read


def _goes_on_the_hub(model: ModelSpec, recipe: Recipe) -> bool:
    """Whether a model here needs something that lies there: the code it names, or the kernels of its quantisation."""
    try:
        folder = None if stage_of(model.path) is not None else local_path(model.path, recipe.folder)
        config = None if folder is None else json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (InputError, OSError, ValueError, RecursionError):
        return False  # said where it is read
    if not isinstance(config, dict):
        return False
    if model.trust_remote_code and "--" in str(config.get("auto_map")):  # owner/name--module.Class
        return True
    quantised = config.get("quantization_config")
    return isinstance(quantised, dict) and quantised.get("quant_method") == "mxfp4"


@contextmanager
def _without_kernels() -> Iterator[None]:
    """Keeps bitsandbytes, which comes with PEFT, from fetching compiled code from the Hub as it is imported.

    It does so on certain processors where the package `kernels` is installed, and has its own code besides.
    """
    finder = _Bitsandbytes()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Bitsandbytes(MetaPathFinder):
    """Finds bitsandbytes as ever, and has its import find no package `kernels`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As of any finder: None for all other modules."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == "bitsandbytes" else None
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _hiding_kernels(spec.loader.exec_module)  # type: ignore[assignment, method-assign]
        return spec


def _hiding_kernels(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def hidden(module: ModuleType) -> None:
        before = {name: each for name, each in sys.modules.items() if name.split(".")[0] == "kernels"}
        for name in before:
            del sys.modules[name]
        sys.modules["kernels"] = None  # type: ignore[assignment]  # which makes its import fail
        try:
            execute(module)
        finally:
            del sys.modules["kernels"]
            sys.modules.update(before)

    return hidden


@contextmanager
def _attributes(name: str, value: bool) -> Iterator[None]:
    """Sets what libraries have read from the environment as they were imported, and keep under its name."""
    from huggingface_hub import constants

    before = {module: vars(module)[name] for module in _readers() if name in vars(module)}
    for module in before:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module in _readers():  # one that was imported in the block has read what is said here only
            if name in vars(module):
                setattr(module, name, before.get(module, before.get(constants, vars(module)[name])))


def _readers() -> list[ModuleType]:
    return [sys.modules[name] for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules]
