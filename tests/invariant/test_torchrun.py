"""`torchrun -m preceptor run`: two processes make one run, which one process began and could have finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import preceptor
from invariant.recipes import MICRO, document, quiet
from invariant.trainers import stop_before
from preceptor.recipe import load_recipe
from preceptor.running.launching import launch_arguments
from preceptor.system.files import verify_directory
from preceptor.training.checkpoints import checkpoint_steps

MORE = {
    "stories": {"kind": "generate", "model": "stage:kd", "rows": 6, "max_new_tokens": 8},
    "expert": {
        "kind": "sft",
        "model": "stage:kd",
        "data": "written",
        "rows_per_step": 4,
        "lora": {"r": 2},
        "training": {"per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"},
    },
}


def write(folder: Path, runs: str) -> Path:
    """The recipe of test_resume without dropout, whose masks would depend on the process, and two more stages."""
    recipe = document(folder, runs, dropout=0.0)
    recipe["data"]["written"] = {"path": "stage:stories"}
    recipe["stages"] |= MORE
    path = folder / f"{runs}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def logged(stage: Path, key: str) -> list[Any]:
    return [line[key] for line in map(json.loads, (stage / "metrics.jsonl").read_text().splitlines()) if key in line]


def test_two_processes_go_on_where_one_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = preceptor.run(load_recipe(write(tmp_path, "whole"), []), log=quiet)["stages"]
    stop_before(monkeypatch, 7 * MICRO, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        preceptor.run(load_recipe(write(tmp_path, "parts"), []), log=quiet)
    whole, parts = tmp_path / "whole/r", tmp_path / "parts/r"
    assert list(checkpoint_steps(parts / "kd/checkpoints")) == [5]

    command = launch_arguments(["run", str(tmp_path / "parts.yaml"), "--json"], 2)
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command],
        capture_output=True, text=True, timeout=280, env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["stages"]  # one object, from the first process
    assert {name: stage["status"] for name, stage in result.items()} == {
        "teacher": "kept", "student": "kept", "kd": "done", "stories": "done", "expert": "done",
    }  # fmt: skip
    said = done.stderr.splitlines()
    assert said.count("kd: resumes from checkpoint-5") == 1
    assert sum(line.startswith("expert: done in") for line in said) == 1

    assert json.loads((parts / "kd/before.json").read_text()) == json.loads((whole / "kd/before.json").read_text())
    for stage in ("kd", "expert"):
        for key in ("step", "targets", "tokens", "epoch"):
            assert logged(parts / stage, key) == logged(whole / stage, key)
        assert logged(parts / stage, "loss") == pytest.approx(logged(whole / stage, "loss"), rel=2e-3)
    for name, terms in expected["kd"]["after"].items():
        assert result["kd"]["after"][name] == pytest.approx(terms, rel=2e-3)
    assert result["kd"]["steps"] == 15
    assert result["expert"]["data"] == expected["expert"]["data"]
    left, wanted = ({file.name for file in (run / "kd").iterdir()} for run in (parts, whole))
    assert left == wanted
    verify_directory(parts / "kd/model")
    verify_directory(parts / "expert/adapter")
