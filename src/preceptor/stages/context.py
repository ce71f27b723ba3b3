"""What a stage is given besides its spec: where to write, the seed, and how references become paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from preceptor.errors import InputError
from preceptor.recipe import DatasetSpec, DistillStage, ModelSpec, Recipe, SftStage, StoreStage, expand, local_path
from preceptor.recipe.base import stage_of


def run_directory(recipe: Recipe) -> Path:
    """The absolute folder of a recipe's run, `runs_dir/name`, from the working directory."""
    return Path(expand(recipe.runs_dir)).absolute() / recipe.name


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one stage. `directory` exists when the stage is executed; `log` takes one line."""

    recipe: Recipe
    name: str
    directory: Path
    seed: int
    log: Callable[[str], None]

    def resolve_model(self, spec: ModelSpec) -> ModelSpec:
        """The spec with references replaced by what can be loaded.

        `stage:NAME` becomes the stage's `model/` (or `store/`), or for a stage with `lora` that stage's own base and
        its `adapter/`; local paths become absolute; Hub ids stay. Raises InputError for a path that does not
        exist.
        """
        changes: dict[str, object] = {}
        if spec.adapter is not None:
            source = stage_of(spec.adapter)
            changes["adapter"] = self._local(spec.adapter) if source is None else str(self._of(source) / "adapter")
        source = stage_of(spec.path)
        if source is None:
            return spec.model_copy(update={**changes, "path": self._local(spec.path)})
        stage = self.recipe.stages[source]
        if isinstance(stage, SftStage | DistillStage) and stage.lora is not None:
            base = self.resolve_model(stage.student if isinstance(stage, DistillStage) else stage.model)
            changes["adapter"] = str(self._of(source) / "adapter")
            changes["path"] = base.path
            changes["revision"] = base.revision
            # Consent to run a model's code was given where the base model was named.
            changes["trust_remote_code"] = spec.trust_remote_code or base.trust_remote_code
        else:
            changes["path"] = str(self._of(source) / ("store" if isinstance(stage, StoreStage) else "model"))
        return spec.model_copy(update=changes)

    def name_of(self, spec: ModelSpec) -> str:
        """What files that leave this machine call a model without an adapter: the recipe's word for it.

        A stage's model is named from the folder that has the run directories, `runs/RUN/STAGE/model`: it is found there
        from that folder, wherever it has been moved to. An absolute path would be found nowhere else.
        """
        source = stage_of(spec.path)
        if source is None:
            return spec.path
        folder = self._of(source) / "model"
        return folder.relative_to(folder.parents[3]).as_posix()

    def resolve_dataset(self, name: str) -> DatasetSpec:
        """The dataset `name` (or `stage:NAME`, the rows that stage wrote) with paths that can be opened.

        Raises InputError for a path that does not exist.
        """
        spec = self.recipe.dataset(name)
        changes = {"path": self._data(spec.path, spec.format)}
        if spec.test is not None:
            changes["test"] = self._data(spec.test, spec.format)
        return spec.model_copy(update=changes)

    def resolve_file(self, text: str) -> str:
        """The absolute path of a file or folder that the recipe names. Raises InputError where there is none."""
        path = local_path(text, self.recipe.folder)
        if path is None:
            raise InputError(f"{text!r} does not exist; give the path of a file")
        return str(path)

    def _data(self, value: str | list[str], format_: str | None) -> str | list[str]:
        if isinstance(value, list):
            return [str(self._data(item, format_)) for item in value]
        source = stage_of(value)
        if source is not None:
            return str(self._of(source) / "rows.jsonl")
        return value if format_ == "hub" else self._local(value)

    def _local(self, text: str) -> str:
        path = local_path(text, self.recipe.folder)
        return expand(text) if path is None else str(path)

    def _of(self, stage: str) -> Path:
        return run_directory(self.recipe) / stage
