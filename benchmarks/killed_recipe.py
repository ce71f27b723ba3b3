"""The recipe that kill_anywhere.py kills: every kind of stage that works for long, at toy size, in a few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SHAPE = {
    "model_type": "mistral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
    "attention_dropout": 0.1,  # so that a random generator that is not restored shows
}
_WORDS = (
    "tea milk bread salt rice corn plum leek fig oat egg ham pea bean beet kale lime mint date nut pear lamb cod eel"
)
_TRAINING = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 2,
    "learning_rate": 0.01,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "logging_steps": 2,
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_total_limit": 2,
    "use_cpu": True,
}
_EPOCH = {"rows": 16, "rows_per_step": 4, "max_length": 96, "training": _TRAINING}  # 8 steps of 2 micro-batches
_BOTH = {"shop": 0.25, "general": 0.75}
NAME = "r"


def write(folder: Path, runs: str) -> Path:
    """Writes the data and a recipe whose results go to `folder`/`runs`/r; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, sentence, step in (("shop", "we sell {} for {}", 1), ("general", "take {} home and eat {}", 2)):
        pairs = [(a, b) for a in _WORDS.split() for b in _WORDS.split() if a != b][::step]
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"{name} {a} {b}"},
                    {"role": "assistant", "content": sentence.format(a, b)},
                ],
                "metric": "exact",
                "task": "sentences",
            }
            for a, b in pairs
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / f"{runs}.yaml"
    path.write_text(json.dumps(document(folder, runs)), encoding="utf-8")
    return path


def document(folder: Path, runs: str) -> dict[str, Any]:
    """The recipe as written. Relative paths start in the recipe's folder, but `runs_dir` does not."""
    init = {
        "kind": "init",
        "config": _SHAPE,
        "tokenizer": {"kind": "characters", "train_on": ["shop", "general"], "vocab_size": 60},
        "chat_template": "default",
    }
    small = {**_SHAPE, "hidden_size": 16, "num_hidden_layers": 1}
    return {
        "name": NAME,
        "runs_dir": str(folder / runs),
        "data": {
            "shop": {"path": "shop.jsonl", "holdout": 6, "role": "domain"},
            "general": {"path": "general.jsonl", "holdout": 6},
            "written": {"path": "stage:stories"},
        },
        "stages": {
            "teacher": init,
            "student": {**init, "config": small},
            "start": {"kind": "sft", "model": "stage:student", "data": _BOTH, "packing": True, **_EPOCH},
            "said": {
                "kind": "store",
                "teacher": "stage:teacher",
                "student": "stage:start",
                "data": ["shop", "general"],
                "mode": "full",
                "max_length": 96,
                "batch_size": 64,
                "shard_megabytes": 1,
            },
            "taught": {
                "kind": "distill",
                "student": "stage:start",
                "teacher": "stage:said",
                "data": _BOTH,
                "objective": [{"kind": "next_token", "weight": 0.5}, {"kind": "logits"}],
                **_EPOCH,
            },
            "kd": {
                "kind": "distill",
                "student": "stage:taught",
                "teacher": "stage:teacher",
                "data": _BOTH,
                "objective": [{"kind": "logits"}, {"kind": "attention"}],
                **_EPOCH,
            },
            "stories": {"kind": "generate", "model": "stage:kd", "rows": 12, "max_new_tokens": 12, "batch_size": 3},
            "expert": {
                "kind": "sft",
                "model": "stage:kd",
                "data": "shop",
                "lora": {"r": 2, "dropout": 0.1},
                **_EPOCH,
            },
            "dae": {
                "kind": "distill",
                "student": "stage:kd",
                "teacher": {"routes": {"shop": "stage:expert", "general": "stage:kd", "written": "stage:kd"}},
                "data": {"shop": 0.25, "general": 0.5, "written": 0.25},
                "objective": [{"kind": "logits"}],
                **_EPOCH,
            },
            "scores": {
                "kind": "evaluate",
                "models": {"kd": "stage:kd", "expert": "stage:expert", "dae": "stage:dae"},
                "reference": "stage:kd",
                "expert": "stage:expert",
                "on": ["general", "shop"],
                "max_new_tokens": 8,
                "batch_size": 4,
                "resamples": 100,
            },
        },
    }
