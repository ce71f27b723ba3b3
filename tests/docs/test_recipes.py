"""The shipped recipes load, say which variables they need, and name files that the data folder holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from preceptor.errors import InputErrors
from preceptor.recipe import DistillStage, GenerateStage, TrainingStage, load_recipe, models_of
from preceptor.stages.ahead import check_ahead

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ON_REAL_DATA = [path for path in RECIPES if "$PRECEPTOR_DATA" in path.read_text(encoding="utf-8")]
IDS = {"ids": lambda path: path.stem}


@pytest.mark.parametrize("path", RECIPES, **IDS)
def test_it_loads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_DATA", str(tmp_path))
    recipe = load_recipe(path)
    assert recipe.name == path.stem  # two recipes of one name would share a run directory
    assert recipe.stages


@pytest.mark.parametrize("path", RECIPES, **IDS)
def test_its_first_lines_say_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("\nname:")]
    assert f"preceptor run recipes/{path.name}" in head
    for variable in set(re.findall(r"\$\{?(\w+)", text)):
        assert f"export {variable}=" in head


@pytest.mark.parametrize("path", RECIPES, **IDS)
def test_it_names_no_place_of_one_machine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_DATA", "data")
    recipe = load_recipe(path)
    named = [str(spec.path) for spec in recipe.data.values()]
    named += [model.path for stage in recipe.stages.values() for model in models_of(stage).values()]
    assert not [given for given in named if given.startswith(("/", "~", ".."))]


@pytest.mark.parametrize("path", ON_REAL_DATA, **IDS)
def test_without_the_variable_it_says_which_to_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRECEPTOR_DATA", raising=False)
    with pytest.raises(InputErrors, match="PRECEPTOR_DATA, which is not set; export PRECEPTOR_DATA first"):
        load_recipe(path)


@pytest.mark.parametrize("path", ON_REAL_DATA, **IDS)
def test_what_it_reads_is_in_the_data_folder(path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_DATA", str(data_folder))
    recipe = load_recipe(path)
    if not torch.cuda.is_available():  # transformers refuses what a recipe for a GPU asks of it
        trained = [name for name, stage in recipe.stages.items() if isinstance(stage, TrainingStage)]
        recipe = load_recipe(path, [f"stages.{name}.training.use_cpu=true" for name in trained])
    check_ahead(recipe, list(recipe.stages))


def test_stories_distils_both_students_on_what_their_teacher_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_DATA", "data")
    recipe = load_recipe(ROOT / "recipes" / "stories.yaml")
    stages = recipe.stages.values()
    (writer,) = (stage for stage in stages if isinstance(stage, GenerateStage))
    students = [stage for stage in stages if isinstance(stage, DistillStage)]
    assert [Path(stage.student.path).name for stage in students] == ["stories260K-hf", "tinystories-bitnet-1M-hf"]
    for stage in students:
        assert stage.teacher.path == writer.model.path
        assert {term.kind for term in stage.objective if term.weight > 0} == {"logits", "attention"}
        assert recipe.dataset("stories").path == "stage:written"
        assert stage.data == "stories"
