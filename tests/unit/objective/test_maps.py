"""Layer and head maps against enumeration of all there are."""

from __future__ import annotations

from itertools import combinations, combinations_with_replacement, permutations

import pytest
import torch

from preceptor.objective import Attention
from preceptor.objective.attention import assign_heads, assign_layers, uniform_layers
from preceptor.signals import LayerShape


def shapes(layers: int, heads: int = 4) -> list[LayerShape]:
    return [LayerShape(layer, heads, heads, 8) for layer in range(layers)]


@pytest.mark.parametrize(
    ("policy", "student", "teacher", "expected"),
    [
        ("auto", 3, 3, {0: 0, 1: 1, 2: 2}),
        ("auto", 2, 5, {0: 2, 1: 4}),
        ("uniform", 4, 8, {0: 1, 1: 3, 2: 5, 3: 7}),
        ("uniform", 3, 2, {0: 0, 1: 1, 2: 1}),
        ("last", 2, 5, {0: 3, 1: 4}),
        ("last", 4, 3, {1: 0, 2: 1, 3: 2}),
        ("identity", 2, 2, {0: 0, 1: 1}),
        ([(1, 0), (0, 4)], 2, 5, {1: 0, 0: 4}),
    ],
)
def test_layer_policies(policy: object, student: int, teacher: int, expected: dict[int, int]) -> None:
    assert Attention(layers=policy).layer_map(shapes(student), shapes(teacher)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("student", "teacher"), [(s, t) for s in range(1, 7) for t in range(1, 9)])
def test_uniform_is_monotone_and_ends_at_the_last_layer(student: int, teacher: int) -> None:
    chosen = list(uniform_layers(student, teacher).values())
    assert chosen == sorted(chosen)
    assert chosen[-1] == teacher - 1
    assert len(set(chosen)) == min(student, teacher)


@pytest.mark.parametrize(("student", "teacher"), [(1, 1), (2, 4), (3, 3), (4, 6), (3, 2), (5, 3)])
def test_assigned_layers_are_the_cheapest_monotone_map(student: int, teacher: int) -> None:
    cost = torch.rand(student, teacher, generator=torch.Generator().manual_seed(student * 10 + teacher))
    choose = combinations if teacher >= student else combinations_with_replacement
    cheapest = min(choose(range(teacher), student), key=lambda m: sum(float(cost[s, t]) for s, t in enumerate(m)))
    assert assign_layers(cost) == dict(enumerate(cheapest))


@pytest.mark.parametrize(("student", "teacher"), [(3, 3), (2, 5), (4, 2), (5, 3)])
def test_assigned_heads_are_the_cheapest_and_shared_evenly(student: int, teacher: int) -> None:
    cost = torch.rand(student, teacher, generator=torch.Generator().manual_seed(student * 10 + teacher))
    copies = -(-student // teacher)
    seats = [t for t in range(teacher) for _ in range(copies)]
    best = min(sum(float(cost[s, t]) for s, t in enumerate(seating)) for seating in permutations(seats, student))
    chosen = assign_heads(cost)
    assert sum(float(cost[s, t]) for s, t in enumerate(chosen.tolist())) == pytest.approx(best)
    assert max(chosen.bincount()) <= copies


def test_heads_are_calibrated_only_where_they_must_be() -> None:
    assert not Attention().needs_calibration(shapes(2), shapes(3))
    assert Attention(heads="assign").needs_calibration(shapes(2), shapes(3))
    assert Attention(layers="assign").needs_calibration(shapes(2), shapes(3))
    assert Attention().needs_calibration(shapes(2, heads=3), shapes(2, heads=4))
