"""Setups of small training steps, for tests of what a plan predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, MistralConfig, MixtralConfig, TrainingArguments

from preceptor.data.chat import EncodedRow
from preceptor.estimate.setups import LiveTeacher, ModelSetup, Setup
from preceptor.objective import Attention, Logits, NextToken

SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
SMALL = ModelSetup(MistralConfig(**SIZES, sliding_window=None), torch.float32)
LARGE = ModelSetup(LlamaConfig(**{**SIZES, "hidden_size": 48}), torch.float32)
SPARSE = ModelSetup(MixtralConfig(**SIZES, num_local_experts=3), torch.float32)


def row(length: int, dataset: str = "a") -> EncodedRow:
    targets = np.arange(length) >= length // 2
    return EncodedRow(dataset, np.arange(length, dtype=np.int32) % 190, targets, origin="test")


def setup(**changes: Any) -> Setup:
    arguments = changes.pop("arguments", {})
    given: dict[str, Any] = {
        "student": SMALL,
        "arguments": TrainingArguments("unused", use_cpu=True, report_to="none", **arguments),
        "terms": lambda: [NextToken()],
        "route_names": ("a",),
        "vocabulary": 190,
        "batch": (row(60), row(50)),
    }
    return Setup(**{**given, **changes})


def taught(by: ModelSetup = LARGE, *terms: Any, **changes: Any) -> Setup:
    return setup(
        terms=lambda: terms or (Logits(), Attention()),
        bases={"base": by},
        teachers={"teacher": LiveTeacher("base")},
        **changes,
    )


def elements(model: ModelSetup) -> int:
    c = model.config
    layer = c.hidden_size * (2 * c.hidden_size + 2 * c.hidden_size // 2) + 3 * c.hidden_size * c.intermediate_size
    return int(c.num_hidden_layers * (layer + 2 * c.hidden_size) + c.hidden_size + 2 * c.vocab_size * c.hidden_size)
