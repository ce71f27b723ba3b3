"""What the pocket study compares: its sizes, its methods, and the recipe that states them.

The premise under test is the paper's (arXiv 2406.19112): a teacher is worth more than its instruction data. So the
public rows carry label noise, the teacher was trained on clean ones, and every method sees the same rows in the same
order from the same initial weights; only the objective differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preceptor.files import write_atomic
from preceptor.pocket.tasks import make_rows
from preceptor.pocket.write_data import write_rows

TEACHER = Path(__file__).parent / "teacher"
# bfloat16 as shipped would be slower on most CPUs, and other hardware would round otherwise.
TEACHER_SPEC: dict[str, Any] = {"path": str(TEACHER), "dtype": "float32"}
NOISE = 0.15
"""Share of public training rows whose answer is wrong, truncated or sloppy."""
CONTROL = "sft_clean"
"""Plain fine-tuning on the same rows without noise (full study only): how much of a gain could noise explain?"""
TEST_ROWS = 480
FIRST_SEED = 43


@dataclass(frozen=True)
class Method:
    """One way to train the student: a stage of the recipe.

    `title` names it in tables; `stage` holds the keys in which its stage differs from the others'; `learning_rate` is
    its best of one grid, the same for every method (docs/results.md has the grid); `cost` is its time relative to plain
    SFT, by which jobs are ordered, the longest first.
    """

    title: str
    stage: Mapping[str, Any]
    learning_rate: float
    cost: float


def _distill(*objective: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "distill", "student": "stage:student", "teacher": TEACHER_SPEC, "objective": list(objective)}


# A term of weight 0 is measured and not minimised: the loss curves of all three runs then show both losses.
METHODS: Mapping[str, Method] = {
    "sft": Method("SFT", {"kind": "sft", "model": "stage:student"}, 1.5e-3, 1.0),
    "kd_prediction": Method(
        "KD, prediction", _distill({"kind": "logits"}, {"kind": "attention", "weight": 0.0}), 1.5e-3, 1.5
    ),
    "kd_attention": Method(
        "KD, attention", _distill({"kind": "logits", "weight": 0.0}, {"kind": "attention"}), 3e-3, 1.7
    ),
    "kd_both": Method("KD, both", _distill({"kind": "logits"}, {"kind": "attention"}), 3e-3, 1.8),
}

STUDENT = {
    "model_type": "mistral",
    "hidden_size": 96,
    "intermediate_size": 288,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "max_position_embeddings": 64,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Size:
    """How long the students train: `steps` optimiser steps of `rows_per_step` rows, each row seen `epochs` times."""

    steps: int = 500
    rows_per_step: int = 64
    epochs: int = 2

    @property
    def rows(self) -> int:
        return self.steps * self.rows_per_step // self.epochs


def study_recipe(seed: int, size: Size) -> dict[str, Any]:
    """The recipe of one seed: an untrained student, and every method from it as a stage of its own."""
    training = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": size.steps // 10,
        "weight_decay": 0.01,
        "adam_beta2": 0.99,
        "num_train_epochs": size.epochs,
        "per_device_train_batch_size": size.rows_per_step,
        "per_device_eval_batch_size": 128,
        "logging_steps": max(1, size.steps // 50),
        "save_strategy": "no",
        "use_cpu": True,
    }
    common = {"data": "public", "rows_per_step": size.rows_per_step, "max_length": 64}
    return {
        "name": f"pocket-{seed}",
        "seed": seed,
        "data": {"public": {"path": "public.jsonl", "test": "test.jsonl"}},
        "stages": {
            "student": {"kind": "init", "config": STUDENT, "tokenizer": str(TEACHER)},
            **{
                name: {**method.stage, **common, "training": {"learning_rate": method.learning_rate, **training}}
                for name, method in METHODS.items()
            },
        },
    }


def write_study(folder: Path, seed: int, size: Size, noise: float = NOISE) -> Path:
    """Write one seed's data files and recipe into `folder`; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "public.jsonl", make_rows("train", size.rows, seed, noise=noise))
    write_rows(folder / "test.jsonl", make_rows("test", TEST_ROWS, seed))
    note = (
        f"# The pocket study, seed {seed}: public.jsonl carries {noise:.0%} label noise, test.jsonl is clean.\n"
        f"# Run it whole with `preceptor run recipe.yaml`; the demo runs its methods side by side.\n"
    )
    path = folder / "recipe.yaml"
    write_atomic(path, note + yaml.safe_dump(study_recipe(seed, size), sort_keys=False))
    return path
