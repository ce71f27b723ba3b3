"""The load of experts in log lines and checkpoints, over ranks and over a resumed run."""

from __future__ import annotations

import json

import torch

from preceptor.models.router_taps import RouterShape
from preceptor.objective import LossSums, NextToken, Objective, RouterBalance
from preceptor.training.metrics import StepMetrics


def metrics() -> StepMetrics:
    objective = Objective([NextToken(), RouterBalance()])
    objective.routers = RouterShape(layers=2, experts=3, per_token=2)
    return StepMetrics(objective, torch.device("cpu"))


def sums(load: list[list[float]]) -> LossSums:
    values = torch.tensor([[6.0], [9.0]], dtype=torch.float64)
    return LossSums(torch.tensor(1.0), values, torch.tensor([3]), torch.tensor(load, dtype=torch.float64))


def test_shares_are_of_each_layer_and_of_all_ranks() -> None:
    kept = metrics()
    kept.add(sums([[4, 2, 2], [8, 0, 0]]), 4)
    line = kept.read(lambda flat: 2 * flat)  # two ranks that saw the same
    assert line["router_balance"] == 3.0
    assert line["expert_share_min"] == 0
    assert line["expert_share_max"] == 1
    kept.reset()
    kept.add(sums([[4, 2, 2], [3, 3, 2]]), 4)
    other = kept.read(lambda flat: flat)
    assert (other["expert_share_min"], other["expert_share_max"]) == (0.25, 0.5)


def test_a_checkpoint_keeps_the_load() -> None:
    whole, first, second = metrics(), metrics(), metrics()
    for each in (whole, first):
        each.add(sums([[4, 2, 2], [8, 0, 0]]), 4)
    second.load(json.loads(json.dumps(first.state(lambda flat: flat))))
    for each in (whole, second):
        each.add(sums([[0, 5, 3], [2, 3, 3]]), 4)
    for key, value in whole.read(lambda flat: flat).items():
        if not key.endswith(("_per_second", "seconds", "memory_mb")):
            assert second.read(lambda flat: flat)[key] == value


def test_without_the_term_nothing_is_said() -> None:
    plain = StepMetrics(Objective([NextToken()]), torch.device("cpu"))
    values = torch.tensor([[6.0]], dtype=torch.float64)
    plain.add(LossSums(torch.tensor(1.0), values, torch.tensor([3])), 4)
    assert not any("expert" in key for key in plain.read(lambda flat: flat))
