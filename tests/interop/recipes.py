"""A recipe with every stage kind that writes a model, over checkpoints of two dtypes, tied weights and adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import preceptor
from interop import shop
from preceptor.recipe import parse_recipe

TRAINING = {"per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 0.01, "save_steps": 1, "use_cpu": True}
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "tie_word_embeddings": True,
}
PIECES = b"what transformers never reads"
"""In the place of a SentencePiece model beside `one`, of which all stages but two are made."""
MODELS = {
    "drawn": "float32",
    "taught": "float32",
    "tuned": "bfloat16",
    "mixed": "float32",
    "routed": "float32",
    "merged": "float32",
}
"""The stages that write `model/`, and the dtype that each is written in: that of its source."""


def document(folder: Path) -> dict[str, Any]:
    """The recipe; its data and checkpoints are put into `folder`, and it names them by relative paths."""
    shop.write(folder / "one", "mistral", 1)
    (folder / "one/tokenizer.model").write_bytes(PIECES)
    shop.write(folder / "two", "mistral", 2)
    shop.write(folder / "low", "llama", 3, dtype=torch.bfloat16, tie_word_embeddings=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shop.messages()))
    common = {"data": "rows", "rows_per_step": 2, "max_length": 64, "training": TRAINING}
    tokens = {"kind": "characters", "train_on": ["rows"], "vocab_size": 60}
    stages = {
        "drawn": {"kind": "init", "config": SHAPE, "tokenizer": tokens},
        "tuned": {"kind": "sft", "model": "low", **common},
        "taught": {"kind": "distill", "student": "one", "teacher": "two", **common},
        "mixed": {"kind": "compose", "experts": ["stage:taught", "two"], "experts_per_token": 1},
        "routed": {"kind": "distill", "student": "stage:mixed", "teacher": "stage:taught", **common},
        "merged": {"kind": "merge", "models": ["stage:taught", "two"], "alpha": 0.25},
        "adapted": {"kind": "sft", "model": "stage:taught", "lora": {"r": 2}, **common},
        "lent": {"kind": "sft", "model": "one", "lora": {"r": 2, "modules_to_save": ["lm_head"]}, **common},
    }
    return {"name": "r", "runs_dir": str(folder / "runs"), "data": {"rows": {"path": "rows.jsonl"}}, "stages": stages}


def run(folder: Path) -> Path:
    """Runs it; returns its run directory."""
    preceptor.run(parse_recipe(document(folder), folder=folder), log=lambda line: None)
    return folder / "runs/r"
