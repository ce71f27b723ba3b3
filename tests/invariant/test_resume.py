"""A training stage that was stopped and resumed equals one that was not, bit for bit, its metrics included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import preceptor
import toys
from preceptor import NextToken, Objective
from preceptor.checkpoints import ASIDE, checkpoint_steps, last_checkpoint
from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator
from preceptor.data.mixture import Mixture
from preceptor.errors import InputError, RunFailed
from preceptor.files import MANIFEST
from preceptor.metrics import TIMING, MetricsFile
from preceptor.recipe import Recipe, parse_recipe
from preceptor.trainer import DistillationTrainer

# --- a recipe ---------------------------------------------------------------------------------------------------

SHAPE = {
    "model_type": "mistral",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
}
WORDS = ("tea", "milk", "bread", "salt", "rice", "corn", "plum")
# 5 epochs of 3 steps: log lines after steps 2, 4, ..., checkpoints after 5, 10, 15, so that sums are under way there.
TRAINING = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 5,
    "learning_rate": 0.01,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "logging_steps": 2,
    "save_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_total_limit": 3,
    "use_cpu": True,
}
STEPS = 15
MICRO = 4  # micro-batches of a step


def recipe(folder: Path, runs: str, training: dict[str, Any] | None = None, **stage: Any) -> Recipe:
    for name, sentence in (("shop", "we sell {} for {}"), ("other", "take {} home and eat {}")):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            pairs = [(a, b) for a in WORDS for b in WORDS if a != b][: 24 if name == "shop" else 16]
            messages = [
                [{"role": "user", "content": f"{name} {a} {b}"}, {"role": "assistant", "content": sentence.format(a, b)}]
                for a, b in pairs
            ]
            path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    tokenizer = {"kind": "characters", "train_on": ["shop", "other"], "vocab_size": 60}
    init = {"kind": "init", "config": SHAPE, "tokenizer": tokenizer}
    return parse_recipe(
        {
            "name": "r",
            "runs_dir": str(folder / runs),
            "data": {"shop": {"path": "shop.jsonl", "holdout": 4}, "other": {"path": "other.jsonl", "holdout": 2}},
            "stages": {
                "teacher": init,
                "student": {**init, "config": {**SHAPE, "attention_dropout": 0.2, "hidden_size": 12, "num_hidden_layers": 1}},
                "kd": {
                    "kind": "distill",
                    "student": "stage:student",
                    "teacher": "stage:teacher",
                    "data": {"shop": 0.6, "other": 0.4},
                    "rows": 23,
                    "rows_per_step": 8,
                    "max_length": 96,
                    "objective": [{"kind": "next_token", "weight": 0.5}, {"kind": "logits"}, {"kind": "attention"}],
                    "training": {**TRAINING, **(training or {})},
                    **stage,
                },
            },
        },
        folder=folder,
    )  # fmt: skip


def quiet(line: str) -> None:
    pass


class Stop(RuntimeError):
    """What ends a run in the middle."""


def stop_before(monkeypatch: pytest.MonkeyPatch, micro_batch: int, error: BaseException) -> None:
    """Let the trainer's call number `micro_batch` (from 0, counted from now on) fail."""
    monkeypatch.undo()
    step = DistillationTrainer.training_step
    calls = iter(range(10**6))

    def stopping(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == micro_batch:
            raise error
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", stopping)


def lines(stage: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in found]


def same(got: Any, expected: Any, where: str = "") -> None:
    """Equal to the bit, through dictionaries, lists and tensors."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected:
            same(got[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for i, each in enumerate(expected):
            same(got[i], each, f"{where}[{i}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected), where
    else:
        assert np.array_equal(got, expected), where


def same_checkpoint(got: Path, expected: Path) -> None:
    weights = next(expected.glob("*model.safetensors")).name
    assert (got / weights).read_bytes() == (expected / weights).read_bytes()
    for name in ("optimizer.pt", "scheduler.pt"):
        same(torch.load(got / name, weights_only=True), torch.load(expected / name, weights_only=True), name)
    assert json.loads((got / "metrics_state.json").read_text()) == json.loads(
        (expected / "metrics_state.json").read_text()
    )


@pytest.mark.parametrize("way", ["packed", "lora"])
def test_a_stopped_stage_goes_on_as_if_it_had_not(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"packing": True} if way == "packed" else {"lora": {"r": 2, "dropout": 0.1}}
    preceptor.run(recipe(tmp_path, "whole", **how), log=quiet)
    whole, parts = tmp_path / "whole/r/kd", tmp_path / "parts/r/kd"
    again = recipe(tmp_path, "parts", **how)
    # Before the first checkpoint; in the accumulation of step 9, second epoch behind; after the last checkpoint.
    stop_before(monkeypatch, 3 * MICRO + 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        preceptor.run(again, log=quiet)
    assert not checkpoint_steps(parts / "checkpoints")
    assert lines(parts)[-1]["step"] == 3
    stop_before(monkeypatch, 8 * MICRO + 3, Stop("no more"))
    with pytest.raises(RunFailed, match="no more"):
        preceptor.run(again, log=quiet)
    assert list(checkpoint_steps(parts / "checkpoints")) == [5]
    monkeypatch.undo()
    monkeypatch.setattr("preceptor.stages.train._save", lambda *_: (_ for _ in ()).throw(Stop("full disk")))
    said: list[str] = []
    with pytest.raises(RunFailed, match="full disk"):
        preceptor.run(again, log=said.append)
    assert "kd: resumes from checkpoint-5" in said
    monkeypatch.undo()
    result = preceptor.run(again, log=said.append)["stages"]["kd"]
    assert "kd: resumes from checkpoint-15" in said

    assert lines(parts) == lines(whole)
    assert [line["step"] for line in lines(whole) if "loss" in line] == [2, 4, 6, 8, 10, 12, 14, 15]
    for step in (5, 10, 15):
        same_checkpoint(parts / f"checkpoints/checkpoint-{step}", whole / f"checkpoints/checkpoint-{step}")
    folder = "model" if way == "packed" else "adapter"
    weights = {file.name: file.read_bytes() for file in (whole / folder).glob("*.safetensors")}
    assert weights == {file.name: file.read_bytes() for file in (parts / folder).glob("*.safetensors")}
    assert weights
    expected = json.loads((whole / "stage.json").read_text())["results"]
    for key in ("steps", "before", "after", "data", "skipped_steps"):
        assert result[key] == expected[key]
