"""Quantised weights: their bytes, and what is unpacked of them when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MixtralConfig

from preceptor.estimate.models import meta_model
from preceptor.estimate.setups import ModelSetup
from preceptor.estimate.simulation import Simulation
from preceptor.estimate.storages import TEACHER_WEIGHTS

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True}
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
PLAIN = 2 * 96 * 64 + 3 * 64  # embeddings, head and norms, elements
DENSE = 4 * 64 * 64 + 3 * 64 * 128


def held(setup: ModelSetup) -> int:
    simulation = Simulation()
    model = simulation.adopt(meta_model(setup))
    simulation.storages.label(model.parameters(), TEACHER_WEIGHTS)
    return simulation.storages.most(TEACHER_WEIGHTS)


def test_four_bits_and_a_scale_for_64_values() -> None:
    setup = ModelSetup(LlamaConfig(**SIZES), torch.bfloat16, FOUR)
    table = 7 * 16 * 4  # of the 16 values, with each layer's weight
    assert held(setup) == 2 * PLAIN + DENSE // 2 + 4 * DENSE // 64 + table


def test_eight_bits_and_a_scale_for_each_row() -> None:
    setup = ModelSetup(LlamaConfig(**SIZES), torch.float32, {"load_in_8bit": True})
    rows = 4 * 64 + 2 * 128 + 64
    assert held(setup) == 4 * PLAIN + DENSE + 4 * rows


def test_experts_are_quantised_too() -> None:
    setup = ModelSetup(MixtralConfig(**SIZES, num_local_experts=4), torch.bfloat16, FOUR)
    experts, attention = 4 * 3 * 64 * 128, 4 * 64 * 64
    router = 4 * 64
    packed = (experts + attention) // 2 + 4 * (experts + attention) // 64
    assert held(setup) == 2 * (PLAIN + router) + packed + 4 * 16 * 4


def test_a_checkpoint_that_is_quantised_already_takes_what_its_files_do() -> None:
    size = 2 * PLAIN + 5000
    assert abs(held(ModelSetup(LlamaConfig(**SIZES), torch.float16, packed_bytes=size)) - size) <= 7


def test_another_method_is_not_guessed() -> None:
    with pytest.raises(LookupError, match="how much memory hqq takes is not known"):
        meta_model(ModelSetup(LlamaConfig(**SIZES), torch.float32, {"quant_method": "hqq"}))


def test_a_weight_is_unpacked_for_its_product_and_no_longer() -> None:
    simulation = Simulation()
    wide = LlamaConfig(**{**SIZES, "hidden_size": 512, "intermediate_size": 1024})
    model = simulation.adopt(meta_model(ModelSetup(wide, torch.float32, FOUR)))
    layer = model.model.layers[0].self_attn.q_proj
    x = simulation.empty((300, 512), torch.float32).requires_grad_()
    with simulation:
        out = layer(x)
        before = simulation.storages.peak().total
        second = layer(x)
        # One more result, and not one more weight: the first one's unpacked weight is gone.
        assert simulation.storages.peak().total - before == 300 * 512 * 4
        (out + second).sum().backward()
    assert x.grad is not None
    assert simulation.costs.phases["start"].total_flops == 4 * (2 * 300 * 512 * 512)


def test_quantised_experts_run_one_after_the_other() -> None:
    simulation = Simulation()
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    model = simulation.adopt(meta_model(ModelSetup(config, torch.float32, FOUR)))
    with simulation, torch.no_grad(), simulation.phase("forward"):
        model.model(input_ids=torch.zeros(2, 50, dtype=torch.int64), use_cache=False)
    # Each of 100 tokens meets 2 experts; attention is causal.
    products = 2 * 100 * 2 * 3 * 64 * 128 + 2 * 100 * (4 * 64 * 64 + 4 * 64)
    attention = 2 * 2 * 2 * 2 * 50 * 50 * 32 // 2
    flops = simulation.costs.phases["forward"].total_flops
    assert products + attention <= flops <= 1.01 * (products + attention)  # and the rotation's angles
