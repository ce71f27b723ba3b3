"""router_balance through whole trainings: checkpointing, two ranks, logs, resuming.

It is the exception to the rule that cutting a step otherwise changes nothing: one and two ranks agree for the same
micro-batches, and only for those.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import toys
from invariant import router_steps, steps
from invariant.ranks import on_two_ranks, whole
from invariant.trainers import Stop, StopAt, trainer, weights
from oracle import routers
from preceptor import NextToken, RouterBalance
from same_results import log_lines


@cache
def expected() -> tuple[Any, Any]:
    start = router_steps.student()
    return start, routers.train(
        start, router_steps.STEPS, router_steps.LEARNING_RATE, router_steps.WEIGHT, router_steps.CROSS_ENTROPY
    )


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_accumulated_steps_equal_brute_force(reentrant: bool | None) -> None:
    student = router_steps.student()
    router_steps.train(student, student, lambda step: step, reentrant=reentrant)
    start, last = expected()
    assert steps.distance(whole(student), last, start) <= 1e-7


def test_the_term_matters_in_these_steps() -> None:
    start, last = expected()
    without = routers.train(start, router_steps.STEPS, router_steps.LEARNING_RATE, 0.0, router_steps.CROSS_ENTROPY)
    assert steps.distance(whole(without), last, start) > 0.1


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_two_ranks(router_steps.on_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", router_steps.CASES, ids=lambda case: router_steps.case_name(*case))
def test_two_ranks_equal_brute_force(two_ranks: Path, case: tuple[str, bool | None]) -> None:
    start, last = expected()
    got = torch.load(two_ranks / router_steps.case_name(*case), weights_only=True)
    assert steps.distance(got, last, start) <= 1e-7


# --- the Trainer ------------------------------------------------------------------------------------------------


def run(folder: Path, *callbacks: TrainerCallback, resume_from: str | None = None, **settings: Any) -> Any:
    terms = (NextToken(), RouterBalance(0.5))
    made = trainer(folder, *callbacks, model=toys.sparse("mixtral", 1, attention_dropout=0.3), terms=terms, **settings)
    made.train(resume_from_checkpoint=resume_from)
    return made


def test_logs_tell_the_balance_and_the_load(tmp_path: Path) -> None:
    whole = run(tmp_path, eval_strategy="steps", eval_steps=3)
    logged = [line for line in log_lines(tmp_path) if "loss" in line]
    assert len(logged) == 5
    for line in logged:
        assert line["loss"] == pytest.approx(line["next_token"] + 0.5 * line["router_balance"], rel=1e-6)
        assert 1.5 < line["router_balance"] < 5
        assert 0 <= line["expert_share_min"] < 1 / 5 < line["expert_share_max"] <= 1 / 2
    evaluated = [line for line in log_lines(tmp_path) if "eval_loss" in line]
    assert evaluated
    for line in evaluated:
        assert line["eval_loss"] == pytest.approx(line["eval_next_token"] + 0.5 * line["eval_router_balance"])
    assert not any(layer.mlp.gate._forward_hooks for layer in whole.model.model.layers)


def test_a_dead_expert_is_seen(tmp_path: Path) -> None:
    model = toys.sparse("mixtral", 1)
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight.zero_()
    made = trainer(tmp_path, model=model, terms=(NextToken(), RouterBalance()), max_steps=2, learning_rate=0.0)
    made.train()
    # All logits are equal: the same two experts are taken for every token, which P alone would not tell.
    (line,) = [line for line in log_lines(tmp_path) if "loss" in line]
    assert line["expert_share_min"] == 0
    assert line["expert_share_max"] == 0.5


def test_a_resumed_run_logs_and_trains_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "again", StopAt(4))
    again = run(tmp_path / "again", resume_from=str(tmp_path / "again/checkpoints/checkpoint-3"))
    for name, value in weights(whole.model).items():
        assert torch.equal(weights(again.model)[name], value), name
    assert log_lines(tmp_path / "again") == log_lines(tmp_path / "whole")  # the load of step 3 is in the line of step 4
