"""A small recipe of the paper's second stage: a base, an expert in full and as an adapter, and their alignment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from invariant.recipes import SHAPE, WORDS
from preceptor.recipe import Recipe, parse_recipe

TRAINING = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1,
    "learning_rate": 0.01,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
}
DAE: dict[str, Any] = {
    "kind": "distill",
    "student": "stage:kd",
    "teacher": {"routes": {"shop": "stage:expert", "general": "stage:kd"}},
    "data": {"shop": 0.25, "general": 0.75},
    "rows": 12,
    "rows_per_step": 4,
    "max_length": 96,
    "training": TRAINING,
}


def write_data(folder: Path) -> None:
    """shop.jsonl, general.jsonl, and both.jsonl, whose column `topic` tells them apart."""
    both = []
    for name, sentence, count in (("shop", "we sell {} for {}", 20), ("general", "take {} home and eat {}", 16)):
        pairs = [(a, b) for a in WORDS for b in WORDS if a != b][:count]
        own = [row(f"{name} {a} {b}", sentence.format(a, b)) for a, b in pairs]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in own))
        both += [{**row(f"{a} {name} {b}", sentence.format(a, b)), "topic": name} for a, b in pairs]
    (folder / "both.jsonl").write_text("".join(json.dumps(each) + "\n" for each in both))


def row(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def document(folder: Path, runs: str = "runs", dtype: str = "float32", **dae: Any) -> dict[str, Any]:
    """The recipe as written, its data put into `folder`; `dae` changes the last stage (None removes a key)."""
    if not (folder / "both.jsonl").exists():
        write_data(folder)
    tokenizer = {"kind": "characters", "train_on": ["shop", "general"], "vocab_size": 60}
    sft = {"kind": "sft", "rows": 8, "rows_per_step": 4, "max_length": 96, "training": TRAINING}
    stage = {key: value for key, value in {**DAE, **dae}.items() if value is not None}
    return {
        "name": "r",
        "runs_dir": str(folder / runs),
        "data": {
            "shop": {"path": str(folder / "shop.jsonl"), "holdout": 4},
            "general": {"path": str(folder / "general.jsonl"), "holdout": 2},
        },
        "stages": {
            "start": {"kind": "init", "config": SHAPE, "tokenizer": tokenizer, "dtype": dtype},
            "kd": {**sft, "model": "stage:start", "data": "general"},
            "expert": {**sft, "model": "stage:kd", "data": "shop"},
            "adapter": {
                **sft,
                "model": "stage:kd",
                "data": "shop",
                "lora": {"r": 2, "dropout": 0.3},
                "training": {**TRAINING, "learning_rate": 0.2},
            },
            "dae": stage,
        },
    }


def recipe(folder: Path, runs: str = "runs", dtype: str = "float32", **dae: Any) -> Recipe:
    return parse_recipe(document(folder, runs, dtype, **dae), folder=folder)
