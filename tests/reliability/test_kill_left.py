"""What a killed process leaves is cleared away by the next, and what a disk has changed is told before it is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import preceptor
import toys
from invariant.recipes import document, quiet
from invariant.trainers import trainer
from preceptor.errors import InputErrors
from preceptor.models.save import save_model
from preceptor.recipe import Recipe, parse_recipe
from preceptor.system import files
from preceptor.training.checkpoints import UNSCHEDULED, checkpoint_steps, drop_spare
from same_results import flip


def recipe(folder: Path) -> Recipe:
    return parse_recipe(document(folder, "runs"), folder=folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher and student are made; the distillation of `invariant.recipes` is not begun."""
    folder = tmp_path_factory.mktemp("left")
    for stage in ("teacher", "student"):
        preceptor.run(recipe(folder), only=stage, log=quiet)
    return folder


def test_what_a_killed_process_left_is_gone_afterwards(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "runs/r"
    (run / "student/stage.json").unlink()
    left = [
        ".recipe.yaml.x1.unfinished", "report/.report.html.x2.unfinished", "report/figures/.a.svg.x3.unfinished",
        "student/.stage.json.x4.unfinished", "student/predictions/.kd.jsonl.x5.unfinished",
    ]  # fmt: skip
    for name in left:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{")
    for name in ("student/.model.writing", "student/.model.old", "student/deep/.x.old"):
        (run / name).mkdir(parents=True)
        (run / name / "model.safetensors").write_text("half")
        left.append(name)
    preceptor.run(recipe(tmp_path), only="student", log=quiet)
    assert [name for name in left if (run / name).exists()] == []
    files.verify_directory(run / "student/model")


def test_a_finished_model_that_has_changed_is_not_read(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    flip(tmp_path / "runs/r/student/model/model.safetensors")
    with pytest.raises(InputErrors) as refused:
        preceptor.run(recipe(tmp_path), only="kd", log=quiet)
    assert str(refused.value) == (
        f"{tmp_path}/runs/r/student/model/model.safetensors: is not the file that manifest.json lists (its SHA-256 or "
        "size differs); copy the folder again, or make it anew with --redo student"
    )
    assert not (tmp_path / "runs/r/kd").exists()
    # A stage that does not read it runs.
    assert preceptor.run(recipe(tmp_path), only="teacher", log=quiet)["stages"]["teacher"]["status"] == "kept"


def test_superfluous_checkpoints_of_a_killed_process_are_dropped(tmp_path: Path) -> None:
    """It was killed after the last one was published and before the oldest was dropped."""
    trainer(tmp_path, save_total_limit=2).train()
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "checkpoint-6", folder / "checkpoint-3")
    trainer(tmp_path, save_total_limit=2).train(resume_from_checkpoint=True)
    assert list(checkpoint_steps(folder)) == [6, 9]


def steps_left(folder: Path, steps: list[int], unscheduled: set[int], keep: int | None, best: int | None) -> list[int]:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        if step in unscheduled:
            (folder / f"checkpoint-{step}" / UNSCHEDULED).touch()
    drop_spare(folder, keep=keep, best=best)
    assert not list(folder.glob(".*"))
    return list(checkpoint_steps(folder))


def test_which_checkpoints_are_superfluous(tmp_path: Path) -> None:
    cases: list[tuple[list[int], set[int], int | None, int | None, list[int]]] = [
        ([5, 10, 15], set(), 2, None, [10, 15]),
        ([5, 10, 15], set(), 2, 5, [5, 15]),
        ([5, 10, 15], set(), None, None, [5, 10, 15]),
        ([5, 10, 12], {12}, 2, None, [5, 10, 12]),  # an interruption takes no scheduled one away
        ([5, 10, 12, 15], {12}, 2, None, [10, 15]),
        ([5, 7, 10], {7}, 2, None, [5, 10]),
        ([5, 7, 10], {7}, None, None, [5, 10]),
        ([5, 7, 10], {7}, 1, 7, [10]),  # the best of an uninterrupted training was kept by no checkpoint
        ([7, 8], {7, 8}, 1, None, [8]),
    ]
    for number, (steps, unscheduled, keep, best, left) in enumerate(cases):
        assert steps_left(tmp_path / str(number), steps, unscheduled, keep, best) == left


def test_a_folder_is_replaced_though_another_try_was_killed(tmp_path: Path) -> None:
    """Between its two renames: the old folder is aside, the name is free."""
    for name in (".final.old", "aside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    files.publish_directory(tmp_path / "aside", tmp_path / "final")
    assert (tmp_path / "final/a").read_text() == "aside"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_an_adapter_is_the_same_file_in_every_process(tmp_path: Path) -> None:
    """PEFT writes the set of its modules in an order of the process's own."""
    model = get_peft_model(toys.llama(1), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    save_model(model, None, tmp_path / "adapter", dtype=torch.float32)
    modules = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["target_modules"]
    assert len(modules) >= 7
    assert modules == sorted(modules)
