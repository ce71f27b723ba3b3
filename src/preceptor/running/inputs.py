"""The content of what a stage reads, as hashes: models, datasets, prompts, task files; and commits on the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from preceptor.errors import InputError, shown
from preceptor.evaluation.task_files import task_files
from preceptor.recipe import (
    EvaluateStage,
    InitStage,
    ModelSpec,
    Recipe,
    StoreStage,
    TrainingStage,
    expand,
    local_path,
    models_of,
)
from preceptor.recipe.base import one_or_many, stage_of
from preceptor.system.hashes import Hashes

FILE_KEY = "deepspeed"  # the key of `training:` whose value may be the path of a file


class Inputs:
    """The content of what one stage reads, and an error for each thing that is not there."""

    def __init__(self, recipe: Recipe, name: str, hashes: Hashes, known: dict[str, dict[str, Any]]) -> None:
        self.recipe, self.name, self.hashes, self.known = recipe, name, hashes, known
        self.errors: list[str] = []

    def collect(self) -> dict[str, Any]:
        stage = self.recipe.stages[self.name]
        inputs: dict[str, Any] = {}
        for key, model in models_of(stage).items():
            dotted = ".".join(map(str, key))
            inputs[dotted] = self._model(f"stages.{self.name}.{dotted}", model)
            if isinstance(stage, StoreStage) and key == ("student",):
                inputs[dotted] = _of_tokenizer(inputs[dotted])
        names = self.recipe.stage_datasets(self.name)
        overlap = self.recipe.overlap
        if overlap is not None and set(overlap.losers) & set(names):
            # Which rows it loses depends on all the datasets that `specs_for` takes besides the stage's own.
            inputs["overlap"] = overlap.model_dump(mode="json")
            names += [other for other, spec in self.recipe.data.items() if other not in names and not spec.stages]
        for used in names:
            inputs[f"data.{used}"] = self._dataset(used)
        if isinstance(stage, InitStage) and stage.chat_template not in (None, "default"):
            inputs["chat_template"] = self._content(
                f"stages.{self.name}.chat_template", str(stage.chat_template), None, hub=None
            )
        if isinstance(stage, EvaluateStage):
            for key, text in stage.files.items():
                dotted = ".".join(map(str, key))
                inputs[dotted] = self._content(f"stages.{self.name}.{dotted}", text, None, hub=None)
            if stage.tasks is not None and not self.errors:
                folders = [str(local_path(folder, self.recipe.folder)) for folder in stage.tasks.include]
                outside = task_files(stage.tasks.model_copy(update={"include": folders}))
                inputs["tasks.data"] = [self.hashes.content(file) for file in outside]
        if isinstance(stage, TrainingStage) and isinstance(value := stage.training.get(FILE_KEY), str):
            inputs[f"training.{FILE_KEY}"] = self._training_file(f"stages.{self.name}.training.{FILE_KEY}", value)
        return inputs

    def _training_file(self, where: str, text: str) -> str | None:
        try:
            return self.hashes.file(Path(text))  # from the working directory, as transformers opens it
        except OSError as error:
            self.errors.append(
                f"{self.recipe.source}: {where}: {shown(text)} cannot be read ({error.strerror}); give the path of a "
                "file, from the working directory, or write its content here as a mapping"
            )
        return None

    def _model(self, where: str, model: ModelSpec) -> dict[str, Any]:
        result = {"path": self._content(where, model.path, model.revision, hub="model")}
        if model.adapter is not None:
            result["adapter"] = self._content(f"{where}.adapter", model.adapter, None, hub="model")
        return result

    def _dataset(self, name: str) -> dict[str, Any]:
        spec = self.recipe.dataset(name)
        document = spec.model_dump(mode="json", exclude={"path", "test", "revision"})
        if not isinstance(self.recipe.stages[self.name], EvaluateStage):
            # How rows are scored, and what their score counts as: nothing that training or generating reads.
            document.pop("role")
            document.pop("metric")
        for key, value in (("path", spec.path), ("test", spec.test)):
            document[key] = [
                self._content(f"data.{name}.{key}", text, spec.revision, hub="dataset", only_hub=spec.format == "hub")
                for text in one_or_many(value)
            ]
        return document

    def _content(self, where: str, text: str, revision: str | None, *, hub: str | None, only_hub: bool = False) -> Any:
        source = stage_of(text)
        if source is not None:
            return {"stage": self.known[source]["identity"]}
        try:
            path = None if only_hub else local_path(text, self.recipe.folder)
            if path is not None:
                return self.hashes.content(path)
            if hub is None:
                raise InputError(f"{text!r} does not exist; give the path of a file")
            return {"hub": expand(text), "commit": hub_commit(expand(text), revision, hub)}
        except InputError as error:
            self.errors.append(f"{self.recipe.source}: {where}: {error}")
        except OSError as error:
            self.errors.append(f"{self.recipe.source}: {where}: {text!r} cannot be read ({error.strerror})")
        return None


def _of_tokenizer(model: Any) -> Any:
    """Of a local model's files those that are no weights: a store encodes rows for a student and never reads it."""
    files = model["path"]
    if not isinstance(files, dict) or not files.keys().isdisjoint({"stage", "hub"}):
        return model
    kept = {name: digest for name, digest in files.items() if not name.endswith(".safetensors")}
    return {**model, "path": {name: digest for name, digest in kept.items() if name != "config.json"}}


def hub_commit(name: str, revision: str | None, kind: str) -> str:
    """The commit that `revision` (default `main`) of a Hub `model` or `dataset` stands for.

    Asks the Hub, and without a connection the local cache. Raises InputError when neither knows.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    try:
        info = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=10)
        if info.sha:
            return str(info.sha)
        problem = "the Hub gives no commit"
    except HFValidationError:
        raise InputError(f"{name!r} is neither a path here nor a Hub id; mend the path, or write owner/name") from None
    except Exception as error:  # of a class that depends on the client's HTTP library
        problem = str(error).strip().split("\n")[0][:200] or type(error).__name__
    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / (revision or "main")
    # A revision is a recipe's text: it may not lead to other files, whose content would be recorded as the commit.
    if cached.parent.is_relative_to(constants.HF_HUB_CACHE) and ".." not in cached.parts and cached.is_file():
        return cached.read_text().strip()
    raise InputError(
        f"{name!r} is no path here, and as a Hub {kind} it cannot be found ({problem}); "
        "mend the path or the id, or connect to the Hub"
    )
