"""A small recipe of two datasets, random teacher and student, and one distillation with everything switched on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preceptor.recipe import Recipe, parse_recipe

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


def recipe(folder: Path, runs: str, **stage: Any) -> Recipe:
    """Teacher, student and the distillation `kd`, whose settings `stage` changes; results go to folder/runs/r."""
    return parse_recipe(document(folder, runs, **stage), folder=folder)


def document(folder: Path, runs: str, dropout: float = 0.2, **stage: Any) -> dict[str, Any]:
    """The recipe as written; its data is put into `folder`."""
    for name, sentence in (("shop", "we sell {} for {}"), ("other", "take {} home and eat {}")):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            pairs = [(a, b) for a in WORDS for b in WORDS if a != b][: 24 if name == "shop" else 16]
            messages = [
                [
                    {"role": "user", "content": f"{name} {a} {b}"},
                    {"role": "assistant", "content": sentence.format(a, b)},
                ]
                for a, b in pairs
            ]
            path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    tokenizer = {"kind": "characters", "train_on": ["shop", "other"], "vocab_size": 60}
    smaller = {**SHAPE, "attention_dropout": dropout, "hidden_size": 12, "num_hidden_layers": 1}
    init = {"kind": "init", "config": SHAPE, "tokenizer": tokenizer}
    return {
        "name": "r",
        "runs_dir": str(folder / runs),
        "data": {"shop": {"path": "shop.jsonl", "holdout": 4}, "other": {"path": "other.jsonl", "holdout": 2}},
        "stages": {
            "teacher": init,
            "student": {**init, "config": smaller},
            "kd": {
                "kind": "distill",
                "student": "stage:student",
                "teacher": "stage:teacher",
                "data": {"shop": 0.6, "other": 0.4},
                "rows": 23,
                "rows_per_step": 8,
                "max_length": 96,
                "objective": [{"kind": "next_token", "weight": 0.5}, {"kind": "logits"}, {"kind": "attention"}],
                "training": TRAINING,
                **stage,
            },
        },
    }


def quiet(line: str) -> None:
    """In the place of a log."""
