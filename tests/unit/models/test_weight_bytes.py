"""Bytes of a large quantised model from its config alone, against sums written out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import MixtralConfig

from preceptor.models.checkpoint import Checkpoint
from preceptor.models.headers import TensorInfo
from preceptor.models.quantization import weight_bytes
from preceptor.recipe import ModelSpec

# Mixtral-8x7B.
D, F, V, LAYERS, EXPERTS = 4096, 14336, 32000, 32, 8
LINEAR = [(D, D), (D, 1024), (D, 1024), (D, D)]
PLAIN = 2 * V * D + LAYERS * (EXPERTS * D + 2 * D) + D
"""Embeddings, head, routers and norms."""
ROTARY = 2 * 64 * 4
"""Frequencies and their originals, in float32."""


def blocks(weights: int) -> int:
    assert weights % 64 == 0
    return weights // 64


def by_hand(quantization: dict[str, Any] | None) -> int:
    linear = sum(rows * columns for rows, columns in LINEAR) * LAYERS
    experts = 3 * D * F * EXPERTS * LAYERS
    count = len(LINEAR) * LAYERS
    if quantization is None:
        return 2 * (PLAIN + linear + experts) + ROTARY
    if "load_in_8bit" in quantization:
        rows = (4096 + 1024 + 1024 + 4096) * LAYERS + (2 * F + D) * EXPERTS * LAYERS
        return 2 * PLAIN + ROTARY + linear + experts + 4 * rows
    if quantization.get("llm_int8_skip_modules"):
        return 2 * (PLAIN + experts) + ROTARY + linear // 2 + 4 * blocks(linear) + 64 * count
    if "bnb_4bit_use_double_quant" not in quantization:
        return 2 * PLAIN + ROTARY + (linear + experts) // 2 + 4 * blocks(linear + experts) + 64 * count
    second = 4 * blocks(linear + experts) // 256
    tables = count * (64 + 1024 + 4) + 2 * LAYERS * (1024 + 4 * EXPERTS)
    return 2 * PLAIN + ROTARY + (linear + experts) // 2 + blocks(linear + experts) + second + tables


@pytest.mark.parametrize(
    ("quantization", "gigabytes"),
    [
        (None, 93.4),
        ({"load_in_4bit": True, "llm_int8_skip_modules": ["experts"]}, 91.5),
        ({"load_in_8bit": True}, 47.0),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 26.6),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 24.5),
    ],
    ids=["bfloat16", "experts left alone", "8 bit", "4 bit", "double"],
)
def test_mixtral_8x7b(quantization: dict[str, Any] | None, gigabytes: float, tmp_path: Path) -> None:
    MixtralConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_local_experts=EXPERTS,
    ).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    checkpoint = Checkpoint(tmp_path, config, {"any": TensorInfo("BF16", (1,))})
    total = sum(weight_bytes(ModelSpec(path=str(tmp_path), quantization=quantization), checkpoint).values())
    assert total == by_hand(quantization)
    assert total / 1e9 == pytest.approx(gigabytes, abs=0.06)
