"""The recipe as a whole."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from preceptor.recipe.base import Name, Spec, Text, stage_of, whole
from preceptor.recipe.data import DatasetSpec, OverlapSpec
from preceptor.recipe.stages import Stage, datasets_of, models_of


class Recipe(Spec):
    """A validated recipe. Made by `load_recipe` (from a file) or `parse_recipe` (from a mapping)."""

    name: Name
    """Name of the run: results go to `runs_dir/name`."""
    seed: Annotated[int, whole(0, 2**32 - 1)] = 43
    """The one seed of the run."""
    runs_dir: Text = "runs"
    """Folder of all runs, relative to the working directory."""
    data: dict[str, DatasetSpec] = Field(default_factory=dict)
    """Datasets by name; a name is also the route of the dataset's rows."""
    stages: dict[str, Stage] = Field(min_length=1)
    """Stages in the order in which they run."""
    overlap: OverlapSpec | None = None
    """What to do with prompts that two datasets share; None: they are an error."""

    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _source: str = PrivateAttr(default="recipe")
    _raw: dict[str, Any] = PrivateAttr(default_factory=dict)
    _overrides: tuple[str, ...] = PrivateAttr(default=())
    _again: str | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path:
        """Absolute folder of the recipe file, where relative paths are looked for first."""
        return self._folder

    @property
    def source(self) -> str:
        """The recipe's file as the user named it."""
        return self._source

    @property
    def command(self) -> str:
        """The command line that runs this recipe (again)."""
        return self._again or shlex.join(["preceptor", "run", self._source, *self._overrides])

    @property
    def written(self) -> dict[str, Any]:
        """What the file says with the overrides applied, without defaults filled in."""
        return self._raw

    def dataset(self, name: str) -> DatasetSpec:
        """The dataset of that name; `stage:NAME` is the rows that a stage wrote, with every default."""
        return DatasetSpec(path=name) if stage_of(name) else self.data[name]

    def stage_datasets(self, name: str) -> list[str]:
        """The datasets a stage reads, without repetition."""
        return list(dict.fromkeys(used for names in datasets_of(self.stages[name]).values() for used in names))

    def stage_reads(self, name: str) -> list[str]:
        """The earlier stages whose results a stage reads directly, in the recipe's order."""
        texts = [text for model in models_of(self.stages[name]).values() for text in (model.path, model.adapter)]
        read = {stage_of(text) for text in texts if text is not None}
        read.update(source for used in self.stage_datasets(name) for source in self.dataset(used).stages)
        return [stage for stage in self.stages if stage in read]
