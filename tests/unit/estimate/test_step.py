"""A simulated step holds what the same step holds when it is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, MistralConfig, MixtralConfig, TrainingArguments

from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator
from preceptor.estimate.setups import STUDENT, LiveTeacher, ModelSetup, Setup, StoredSetup
from preceptor.estimate.sharding import Sharding, on_each, sharding_of
from preceptor.estimate.step import Simulated, simulate
from preceptor.estimate.storages import ACTIVATIONS, GRADIENTS, OPTIMIZER, SIGNALS, TEACHER_WEIGHTS, WEIGHTS, Storages
from preceptor.objective import Attention, Logits, NextToken, Objective
from preceptor.recipe import LoraSpec
from preceptor.signals import TokenBatch
from preceptor.stages.build import add_lora, lora_config
from preceptor.teachers import ModelTeacher

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


class _Following(TorchDispatchMode):
    """Follows what really is allocated."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self.storages = storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self.storages.see(each)
        return out


def run_for_real(given: Setup) -> int:
    """Bytes at the peak of the second step of a training."""
    storages = Storages()

    def make(model: ModelSetup) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)

    student = make(given.student)
    if given.lora is not None:
        student = add_lora(student, given.lora)
    teacher = None if not given.bases else ModelTeacher(make(given.bases["base"]))
    objective = Objective(given.terms(), route_names=given.route_names, vocabulary=given.vocabulary)
    objective.prepare(student, teacher, [_batch(given)])
    if given.arguments.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    student.train()
    trainable = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, fused=True)

    def step() -> None:
        for _ in range(given.accumulation):
            batch = _batch(given)
            signal = None if teacher is None else teacher(batch, objective.needs)
            objective(student, batch, signal).loss.backward()
            del signal
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    with objective.listening():
        step()
        for model in [student, *([] if teacher is None else [teacher.model])]:
            storages.label([*model.parameters(), *model.buffers()], WEIGHTS)
        storages.label((v for s in optimizer.state.values() for v in s.values()), OPTIMIZER)
        with _Following(storages):
            step()
    return storages.peak().total


def _batch(given: Setup) -> TokenBatch:
    collator = Collator(0, route_names=given.route_names, packing=given.packing, max_length=given.max_length)
    return TokenBatch.from_inputs(collator(given.batch))


CASES = {
    "sft": setup(),
    "accumulated": setup(accumulation=2),
    "checkpointed": setup(arguments={"gradient_checkpointing": True}),
    "packed": setup(packing=True, max_length=120),
    "lora": setup(lora=LoraSpec(r=4), batch=(row(60),) * 4),
    "logits": taught(LARGE, Logits()),
    "both": taught(),
    "sparse teacher": taught(SPARSE),
    "assigned heads": taught(LARGE, Attention(heads="assign", layers="assign"), NextToken()),
}


@pytest.mark.parametrize("name", CASES)
def test_simulated_and_real_steps_hold_the_same(name: str) -> None:
    found, real = simulate(CASES[name]).storages.peak().total, run_for_real(CASES[name])
    assert abs(found / real - 1) < 0.01, (found, real)


def elements(model: ModelSetup) -> int:
    c = model.config
    layer = c.hidden_size * (2 * c.hidden_size + 2 * c.hidden_size // 2) + 3 * c.hidden_size * c.intermediate_size
    return c.num_hidden_layers * (layer + 2 * c.hidden_size) + c.hidden_size + 2 * c.vocab_size * c.hidden_size


def test_parts_that_are_known_beforehand() -> None:
    storages = simulate(taught()).storages
    rotation = 4 * SMALL.config.hidden_size // 4 // 2 * 2  # two float32 buffers of half a head each
    ours, theirs = elements(SMALL), elements(LARGE)
    assert storages.most(WEIGHTS) == 4 * ours + rotation
    assert storages.most(GRADIENTS) == 4 * ours
    count = 2 * 9 + 3  # parameters: the optimiser keeps a step count of each
    assert storages.most(OPTIMIZER) == 8 * ours + 4 * count
    assert storages.most(TEACHER_WEIGHTS) == 4 * theirs + 4 * LARGE.config.hidden_size // 4 // 2 * 2
    B, S, targets = 2, 60, 30 + 25
    per_layer = 4 * 30 * B * LARGE.config.hidden_size + 4 * B * S * LARGE.config.hidden_size // 2
    assert storages.most(SIGNALS) == 4 * targets * LARGE.config.hidden_size + 2 * per_layer


def test_a_teacher_on_the_students_weights_has_none_of_its_own() -> None:
    adapter = lora_config(LoraSpec(r=2))
    given = setup(
        lora=LoraSpec(r=2),
        terms=lambda: [Logits()],
        route_names=("a", "b"),
        batch=(row(60, "a"), row(50, "b")),
        teachers={"one": LiveTeacher(STUDENT), "two": LiveTeacher(STUDENT, adapter)},
        routes={"a": (("one", 1.0),), "b": (("two", 1.0),)},
    )
    found = simulate(given)
    assert found.storages.most(TEACHER_WEIGHTS) == 0
    assert found.storages.most(WEIGHTS) > simulate(setup(lora=LoraSpec(r=2))).storages.most(WEIGHTS)
    assert found.trainable == simulate(setup(lora=LoraSpec(r=2))).trainable


def test_two_teachers_on_one_base_hold_it_once() -> None:
    adapter = lora_config(LoraSpec(r=2))
    given = setup(
        terms=lambda: [Logits()],
        route_names=("a", "b"),
        batch=(row(60, "a"), row(50, "b")),
        bases={"base": LARGE},
        teachers={"one": LiveTeacher("base"), "two": LiveTeacher("base", adapter)},
        routes={"a": (("one", 1.0),)},
        default="two",
    )
    alone = simulate(taught(LARGE, Logits())).storages.most(TEACHER_WEIGHTS)
    assert alone < simulate(given).storages.most(TEACHER_WEIGHTS) < 1.5 * alone


@pytest.mark.parametrize(
    ("mode", "size"), [("sample", 50 * (8 + 8 + 4) + 4 + 8), ("topk", 64 * (8 + 4) + 4), ("full", 2 * 190)]
)
def test_a_stored_teacher_gives_its_numbers_and_has_no_weights(mode: str, size: int) -> None:
    store = StoredSetup(mode, 190)
    found = simulate(setup(terms=lambda: [Logits()], teachers={"store": store})).storages
    assert found.most(TEACHER_WEIGHTS) == 0
    assert abs(found.most(SIGNALS) - 55 * size) <= 8


def test_low_precision_keeps_a_copy_of_the_weights_for_the_backward() -> None:
    # So few tokens that activations are next to nothing beside weights.
    plain, low = (simulate(setup(batch=(row(8),), arguments={"bf16": bf16})) for bf16 in (False, True))
    layers = 2 * (32 * 32 * 3 + 3 * 32 * 48)  # what autocast multiplies; the head's copy is a chunk's
    gained = _most_in(low, ACTIVATIONS, "forward") - _most_in(plain, ACTIVATIONS, "forward")
    assert 0.5 * 2 * layers < gained < 1.5 * 2 * layers


def _most_in(found: Simulated, part: str, phase: str) -> int:
    """The most bytes of a part while a phase ran."""
    held = most = 0
    for number, allocated, during in found.storages._events:
        if found.storages._parts[number] == part:
            held += found.storages._bytes[number] * (1 if allocated else -1)
            most = max(most, held if during == phase else 0)
    return most


@pytest.mark.parametrize(("optimizer", "per_parameter"), [("sgd", 0.0), ("adamw_bnb_8bit", 2.0), ("adafactor", 0.5)])
def test_optimisers(optimizer: str, per_parameter: float) -> None:
    found = simulate(setup(arguments={} if "8bit" in optimizer else {"optim": optimizer}))
    if "8bit" in optimizer:
        arguments = setup().arguments
        arguments.optim = optimizer
        found = simulate(replace(setup(), arguments=arguments))
        big = 2 * 200 * 32  # others have fewer than 4096 elements and stay in float32
        small = found.parameters - big
        assert found.optimizer_bytes == 2 * (big + big // 256 * 4) + 8 * small
        return
    assert found.optimizer_bytes <= per_parameter * 4 * found.parameters


def test_held_out_rows_are_run_without_gradients() -> None:
    with_rows = simulate(taught(LARGE, Logits(), held_out=(row(400),) * 8))
    without = simulate(taught(LARGE, Logits()))
    assert with_rows.storages.peak().phase.startswith("held-out")
    assert with_rows.storages.peak().total > without.storages.peak().total
    assert with_rows.held_out_tokens == 3200
    phases = with_rows.costs.phases
    assert phases["held-out"].total_flops > 0
    assert phases["teacher"].total_flops == without.costs.phases["teacher"].total_flops


def test_the_attention_kernels_blocks_are_counted_though_few_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from preceptor.kernels import attention_kl

    given = taught(LARGE, Attention(), Logits(), batch=(row(120), row(120)))
    every = simulate(given)
    monkeypatch.setattr(attention_kl, "BLOCK_ELEMENTS", 4 * 120 * 10)  # ten rows at once
    few = simulate(given)
    assert few.storages.peak().total <= every.storages.peak().total
    ratio = few.costs.phases["forward"].total_flops / every.costs.phases["forward"].total_flops
    # Blocks of few rows see fewer keys; all rows at once see those of the last one.
    assert 0.9 < ratio < 1.02


# --- several devices ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Simulated:
    return simulate(taught(batch=(row(8),)))


def test_replicas_hold_all_and_a_second_copy_of_gradients(found: Simulated) -> None:
    alone, each = on_each(found, Sharding()), on_each(found, sharding_of({}, 4, low_precision=False))
    assert alone == found.storages.peak()
    assert each.total == alone.total + 4 * elements(SMALL)


def test_shards(found: Simulated) -> None:
    each = on_each(found, sharding_of({"fsdp": "full_shard"}, 4, low_precision=True))
    layer = found.layer
    assert layer == (elements(SMALL) - 32 - 2 * 200 * 32) // 2
    weights = found.storages.most(WEIGHTS)
    assert abs(each.parts[WEIGHTS] - (weights / 4 + 2 * layer * 2)) <= 1
    assert abs(each.parts[OPTIMIZER] - found.storages.most(OPTIMIZER) / 4) <= 1
    assert abs(each.parts[TEACHER_WEIGHTS] - found.storages.most(TEACHER_WEIGHTS) / 4 - 4 * found.teacher_layer) <= 1


@pytest.mark.parametrize(("stage", "weights", "gradients"), [(1, 1.0, 1.0), (2, 1.0, 0.25), (3, 0.25, 0.25)])
def test_zero(stage: int, weights: float, gradients: float, found: Simulated, tmp_path: Path) -> None:
    sharding = sharding_of({"deepspeed": {"zero_optimization": {"stage": stage}}}, 4, low_precision=False)
    assert sharding.engine == f"zero{stage}"
    each = on_each(found, sharding)
    assert abs(each.parts[OPTIMIZER] - found.storages.most(OPTIMIZER) / 4) <= 1
    gathered = 2 * found.layer * 4 if stage == 3 else 0
    assert abs(each.parts[WEIGHTS] - weights * found.storages.most(WEIGHTS) - gathered) <= 1
    assert each.parts[TEACHER_WEIGHTS] == found.storages.most(TEACHER_WEIGHTS)
    file = tmp_path / "zero.json"
    file.write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
    assert sharding_of({"deepspeed": str(file)}, 4, low_precision=False) == sharding
    assert gradients <= weights
