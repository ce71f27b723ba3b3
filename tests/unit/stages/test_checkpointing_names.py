"""Recomputed layers have two names in transformers; a recipe may write either, and both are one stage."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from invariant.recipes import TRAINING, recipe
from preceptor.errors import InputErrors
from preceptor.running.identity import same_result
from preceptor.stages.build import check_training, training_arguments

NAMES = ("gradient_checkpointing", "activation_checkpointing")


def made(folder: Path, **training: Any) -> Any:
    return recipe(folder, "runs", training={**TRAINING, **training})


@pytest.mark.parametrize("name", NAMES)
def test_either_name_is_followed_without_a_warning(name: str, tmp_path: Path) -> None:
    options = {"use_reentrant": False}
    training = made(tmp_path, **{name: True, f"{name}_kwargs": options}).stages["kd"].training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_training(training)
        arguments = training_arguments(training, tmp_path, seed=0, accumulation=1)
    for each in NAMES:  # transformers 5.17 knows the first alone
        if hasattr(arguments, each):
            assert getattr(arguments, each) is True
            assert getattr(arguments, f"{each}_kwargs") == options


def test_both_are_one_stage(tmp_path: Path) -> None:
    older, newer = (made(tmp_path, **{name: True}) for name in NAMES)
    assert same_result(older, newer, "kd")
    assert not same_result(made(tmp_path), newer, "kd")


def test_both_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputErrors, match=r"stages.kd.training has both .* two names of one key; keep one of them"):
        made(tmp_path, **dict.fromkeys(NAMES, True))
