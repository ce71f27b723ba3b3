"""Routed batches: what must not matter on one process does not; two gloo ranks equal brute force."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from invariant import routed, steps
from invariant.ranks import on_two_ranks, whole
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher, RoutedTeacher
from preceptor.training.metrics import TIMING

expected = cache(routed.by_brute_force)
alone = cache(routed.adapters_alone)


def chunks(size: int, **how: Any) -> routed.Cut:
    return lambda rows: [routed.batch(rows[i : i + size], **how) for i in range(0, len(rows), size)]


def packed(rows: list[routed.RoutedRow]) -> Sequence[TokenBatch]:
    """Two micro-batches; rows of one route share packed rows."""
    found = []
    for half in (rows[:4], rows[4:]):
        by_route = [[row[:2] for row in half if row[2] == route] for route in (0, 1)]
        segments = [(route, each[i : i + 3]) for route, each in enumerate(by_route) for i in range(0, len(each), 3)]
        found.append(toys.batch([each for _, each in segments], routes=[route for route, _ in segments]))
    return found


CUTS: dict[str, tuple[routed.Cut, bool | None]] = {
    "8x1": (chunks(8), None),
    "1x8": (chunks(1), None),
    "3+3+2": (chunks(3), None),
    "left padding": (chunks(8, padding_side="left"), None),
    "more padding": (chunks(4, extra=5), None),
    "packed": (packed, None),
    "another order": (lambda rows: chunks(4)(rows[::-1]), None),
    "reentrant checkpointing": (chunks(4), True),
    "checkpointing": (chunks(4, padding_side="left"), False),
}


@pytest.mark.parametrize("name", CUTS)
def test_five_routed_steps_equal_brute_force(name: str) -> None:
    cut, checkpointing = CUTS[name]
    learner = routed.student()
    made = [ModelTeacher(each, name=route) for each, route in zip(routed.teachers(), routed.ROUTES)]
    teaches = RoutedTeacher(dict(zip(routed.ROUTES, made)), route_names=routed.ROUTES)
    routed.run(learner, teaches, cut, checkpointing=checkpointing)
    start, last = expected()
    assert steps.distance(whole(learner), last, start) <= 1e-7


def test_the_steps_need_both_teachers() -> None:
    """Or the comparisons above would hold for any routing."""
    start, last = expected()
    made = [ModelTeacher(each, name=route) for each, route in zip(routed.teachers(), routed.ROUTES)]
    swapped = RoutedTeacher(dict(zip(routed.ROUTES, made[::-1])), route_names=routed.ROUTES)
    learner = routed.student()
    routed.run(learner, swapped, chunks(8))
    assert steps.distance(whole(learner), last, start) > 0.1


@pytest.mark.parametrize("size", [1, 3, 8])
def test_adapters_on_the_students_base_under_accumulation(size: int) -> None:
    start, last = alone()
    learner, teaches = routed.adapted()
    routed.run(learner, teaches, chunks(size))
    same_adapters(whole(learner), last, start)


def same_adapters(got: dict[str, torch.Tensor], last: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> None:
    learnt = [name for name in last if not torch.equal(last[name], start[name])]
    assert learnt == [name for name in last if "lora" in name and "default" in name]
    moved = sum(float((last[name] - start[name]).square().sum()) for name in last) ** 0.5
    wrong = sum(float((got[name] - last[name]).square().sum()) for name in last) ** 0.5
    assert moved > 1e-2
    assert wrong <= 1e-7 * moved


# --- two ranks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_two_ranks(routed.on_rank, tmp_path_factory.mktemp("routed"))


def found(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}.{rank}", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", routed.CASES, ids=lambda case: routed.case_name(*case))
def test_two_ranks_equal_brute_force(two_ranks: Path, case: tuple[str, str]) -> None:
    start, last = expected()
    for each in found(two_ranks, routed.case_name(*case)):
        assert steps.distance(each["weights"], last, start) <= 1e-7


def taught_rows(rank: int, route: int) -> list[int]:
    """Rows with a target that a rank has of a route, by micro-batch."""
    return [
        sum(bool(is_target[1:].any()) and theirs == route for _, is_target, theirs in rows[at : at + 2])
        for rows in routed.STEPS
        for at in (rank * 4, rank * 4 + 2)
    ]


@pytest.mark.parametrize("case", routed.CASES, ids=lambda case: routed.case_name(*case))
def test_who_is_called_on_a_rank_without_its_rows(two_ranks: Path, case: tuple[str, str]) -> None:
    """A sharded teacher with one row, which nobody counts; one that is not sharded not at all."""
    sharded = {"no teacher": (), "the expert": ("shop",), "both teachers": routed.ROUTES}[case[1]]
    for rank, each in enumerate(found(two_ranks, routed.case_name(*case))):
        for route, name in enumerate(routed.ROUTES):
            rows = taught_rows(rank, route)
            assert 0 in rows, "the case must have micro-batches without rows of the route"
            wanted = [max(count, 1) for count in rows] if name in sharded else [count for count in rows if count]
            assert each["rows"][name] == wanted, name


@pytest.mark.parametrize("engine", routed.ADAPTERS)
def test_adapters_on_the_base_of_a_student_on_two_ranks(two_ranks: Path, engine: str) -> None:
    start, last = alone()
    for each in found(two_ranks, f"{engine} adapters"):
        same_adapters(each, last, start)


def test_the_trainer_on_two_ranks_logs_and_learns_what_one_process_does(two_ranks: Path, tmp_path: Path) -> None:
    one = routed.trained(tmp_path, per_device_train_batch_size=2)
    ranks = found(two_ranks, "trainer")
    for got, wanted in zip(ranks[0]["lines"], one["lines"], strict=True):
        assert got.keys() == wanted.keys()
        for key in got.keys() - set(TIMING):
            assert got[key] == pytest.approx(wanted[key], rel=2e-4), key
    for each in ranks:
        for name, value in one["weights"].items():
            torch.testing.assert_close(each["weights"][name], value, rtol=1e-4, atol=1e-5)
    for route in (0, 1):  # each row with a target once in each epoch, whoever had it
        assert sum(sum(each["rows"][route]) for each in ranks) == sum(one["rows"][route])
        assert len(ranks[0]["rows"][route]) < 6 * 3, "somewhere a rank had no row of the route"
    line = one["lines"][-1]
    assert {"targets/a", "targets/b", "logits/a", "logits/b", "attention/b", "next_token/a"} <= line.keys()
