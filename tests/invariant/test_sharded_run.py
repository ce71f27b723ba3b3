"""`torchrun -m preceptor run` of a recipe whose stages shard student, teachers, or both: as one process runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import preceptor
from invariant.recipes import document
from preceptor.recipe import load_recipe
from preceptor.running.launching import launch_arguments
from preceptor.system.files import verify_directory

SMALL = {"per_device_train_batch_size": 2, "use_cpu": True, "logging_steps": 1, "save_strategy": "no"}
TOGETHER: dict[str, Any] = {"rows_per_step": 8, "max_length": 96, "rows": 16}


def write(folder: Path, runs: str, *, sharded: bool) -> Path:
    """The paper's two stages: kd and the expert's adapter under FSDP, then DAE under DDP from two cut teachers."""
    fsdp = {"fsdp": True} if sharded else {}
    recipe = document(folder, runs, dropout=0.0, training={**SMALL, "learning_rate": 0.01, "save_strategy": "steps",
                                                           "save_steps": 2, **fsdp})  # fmt: skip
    del recipe["stages"]["kd"]["rows"]
    recipe["stages"]["kd"] |= TOGETHER
    cut = {"sharded": True} if sharded else {}
    recipe["stages"] |= {
        "expert": {
            "kind": "sft", "model": "stage:kd", "data": "shop", "lora": {"r": 2}, **TOGETHER,
            "training": {**SMALL, "learning_rate": 0.05, "gradient_checkpointing": True, **fsdp},
        },
        "dae": {
            "kind": "distill", "student": "stage:kd", "data": {"shop": 0.5, "other": 0.5}, **TOGETHER,
            "teacher": {"routes": {"shop": {"path": "stage:expert", **cut}, "other": {"path": "stage:kd", **cut}}},
            "training": {**SMALL, "learning_rate": 0.01},
        },
    }  # fmt: skip
    path = folder / f"{runs}.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded_run")
    preceptor.run(load_recipe(write(folder, "alone", sharded=False), []), log=lambda line: None)
    command = launch_arguments(["run", str(write(folder, "two", sharded=True)), "--json"], 2)
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command],
        capture_output=True, text=True, timeout=280, env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr
    (folder / "said").write_text(done.stderr)
    return folder


@pytest.mark.parametrize("stage", ["kd", "expert", "dae"])
def test_two_processes_do_what_one_does(folder: Path, stage: str) -> None:
    one, two = (
        json.loads((folder / f"{runs}/r/{stage}/stage.json").read_text())["results"] for runs in ("alone", "two")
    )
    for when in ("before", "after"):
        for part, terms in one[when].items():
            assert two[when][part] == pytest.approx(terms, rel=2e-3), (when, part)
    for key in ("steps", "parameters", "trainable_parameters", "data", "skipped_steps"):
        assert two[key] == one[key], key


def test_stages_were_sharded_as_asked(folder: Path) -> None:
    run = folder / "two/r"
    kd = sorted(path.name for path in (run / "kd/checkpoints").glob("checkpoint-6/*"))
    assert {"shards-00000.safetensors", "shards-00001.safetensors"} <= set(kd)
    assert "model.safetensors" not in kd
    said = (folder / "said").read_text()
    for line in (
        "kd: the student is cut over 2 processes [(]FSDP[)]",
        "kd: teacher .*/teacher/model is cut over 2 processes",
        "expert: the student is cut over 2 processes [(]FSDP[)]",
        "dae: teacher .*/kd/model is cut over 2 processes",
        "dae: 2 teachers on one copy of .*/kd/model",
    ):
        assert len(re.findall(line, said)) == 1, line
    assert "dae: the student is cut" not in said


def test_finished_models_are_plain_checkpoints(folder: Path) -> None:
    for stage in ("kd/model", "dae/model", "expert/adapter"):
        one, two = folder / "alone/r" / stage, folder / "two/r" / stage
        verify_directory(two)
        assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
        for file in two.glob("*.safetensors"):
            ours, theirs = load_file(file), load_file(one / file.name)
            assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
                k: (v.shape, v.dtype) for k, v in theirs.items()
            }
    AutoModelForCausalLM.from_pretrained(folder / "two/r/dae/model")
