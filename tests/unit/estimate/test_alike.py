"""Setups that take the same step, and ones that do not."""

from __future__ import annotations

from typing import Any

import pytest

from preceptor.estimate.alike import key_of
from preceptor.objective import Logits
from preceptor.recipe import LoraSpec
from steps import LARGE, SPARSE, row, setup, taught


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"learning_rate": 1e-3, "num_train_epochs": 9, "warmup_steps": 3}},
        {"terms": lambda: [Logits(weight=0.5)]},
        {"accumulation": 1},
    ],
)
def test_what_changes_no_size_is_alike(changes: dict[str, Any]) -> None:
    assert key_of(taught(LARGE, Logits())) == key_of(_changed(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"bf16": True}},
        {"arguments": {"gradient_checkpointing": True}},
        {"arguments": {"optim": "sgd"}},
        {"terms": lambda: [Logits(), Logits(temperature=2.0)]},
        {"batch": (row(60), row(51))},
        {"batch": (row(60),)},
        {"held_out": (row(10),)},
        {"accumulation": 2},
        {"lora": LoraSpec(r=2)},
        {"bases": {"base": SPARSE}},
        {"packing": True},
    ],
)
def test_what_changes_a_size_is_not(changes: dict[str, Any]) -> None:
    assert key_of(taught(LARGE, Logits())) != key_of(_changed(changes))


def _changed(changes: dict[str, Any]) -> Any:
    plain = taught(LARGE, Logits())
    return setup(**{"terms": plain.terms, "bases": plain.bases, "teachers": plain.teachers, **changes})
