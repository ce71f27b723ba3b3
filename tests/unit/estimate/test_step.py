"""A simulated step holds what the same step holds when it is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from preceptor.data.collator import Collator
from preceptor.estimate.setups import STUDENT, LiveTeacher, ModelSetup, Setup, StoredSetup
from preceptor.estimate.sharding import on_each, sharding_of
from preceptor.estimate.step import simulate
from preceptor.estimate.storages import (
    ACTIVATIONS,
    COPIES,
    GRADIENTS,
    OPTIMIZER,
    PARTS,
    SIGNALS,
    TEACHER_WEIGHTS,
    WEIGHTS,
    Storages,
)
from preceptor.objective import Attention, Logits, NextToken, Objective
from preceptor.recipe import LoraSpec
from preceptor.signals import TokenBatch
from preceptor.stages.build import add_lora, lora_config
from preceptor.teachers import ModelTeacher
from steps import LARGE, SMALL, SPARSE, elements, row, setup, taught


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
    plain, low = (simulate(setup(arguments={"bf16": bf16})) for bf16 in (False, True))
    layers = 2 * (32 * 32 * 3 + 3 * 32 * 48)  # what autocast multiplies; the head's copy is a chunk's
    assert low.storages.most(COPIES) == 2 * layers
    assert plain.storages.most(COPIES) == 0
    assert set(low.storages.peak().parts) == set(PARTS)
    # FSDP gathers layers in bfloat16, so that autocast copies nothing.
    gathered = on_each(low, sharding_of({"fsdp": True}, 4, low_precision=True))
    whole = low.storages.peak({WEIGHTS: 0.25, GRADIENTS: 0.25, OPTIMIZER: 0.25})
    assert whole.phase == gathered.phase
    assert layers < whole.parts[ACTIVATIONS] - gathered.parts[ACTIVATIONS] <= 2 * layers


@pytest.mark.parametrize(("optimizer", "per_parameter"), [("sgd", 0.0), ("adamw_bnb_8bit", 2.0), ("adafactor", 0.5)])
def test_optimisers(optimizer: str, per_parameter: float) -> None:
    found = simulate(setup(arguments={} if "8bit" in optimizer else {"optim": optimizer}))
    if "8bit" in optimizer:
        arguments = setup().arguments
        arguments.optim = optimizer
        found = simulate(replace(setup(), arguments=arguments))
        big = 200 * 32  # the head; others have fewer than 4096 elements, or are embeddings, and stay in float32
        small = found.parameters - big
        assert found.optimizer_bytes == 2 * (big + big // 256 * 4) + 8 * small
        return
    assert found.optimizer_bytes <= per_parameter * 4 * found.parameters


def test_held_out_rows_are_run_without_gradients() -> None:
    with_rows = simulate(taught(LARGE, Logits(), held_out=(row(400),) * 8))
    without = simulate(taught(LARGE, Logits()))
    assert with_rows.storages.peak().phase.startswith("held-out")
    assert with_rows.storages.peak().total > without.storages.peak().total
    assert with_rows.storages.peak().parts[GRADIENTS] == 0  # they are gone after the update
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
