"""Mixtures: exact prefixes, orders that depend on nothing else, epochs that go on."""

from __future__ import annotations

import pickle
import random
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from torch.utils.data import DataLoader

from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator
from preceptor.data.mixture import Mixture, MixtureSampler


def rows(name: str, count: int, targets: list[int] | int = 3) -> list[EncodedRow]:
    sizes = [targets] * count if isinstance(targets, int) else targets
    return [
        EncodedRow(name, np.arange(n + 2, dtype=np.int32), np.arange(n + 2) >= 2, f"{name}:{i}")
        for i, n in enumerate(sizes)
    ]


def shares_of(weights: list[int]) -> dict[str, float]:
    return {f"d{i}": weight / sum(weights) for i, weight in enumerate(weights)}


def test_every_prefix_is_exact_to_one_row():
    rng = random.Random(0)
    cases = [[1], [1, 9], [1, 1, 1], [997, 2, 1], [50, 50, 1, 1, 1, 1], [3, 3, 3, 3, 3, 3, 3]]
    cases += [[rng.choice([1, 2, 3, 7, 50, rng.randint(1, 1000)]) for _ in range(rng.randint(1, 9))] for _ in range(60)]
    for weights in cases:
        shares = shares_of(weights)
        mixture = Mixture({name: rows(name, 5) for name in shares}, shares=shares, rows=400, seed=0)
        counts: Counter[str] = Counter()
        for place, row in enumerate(mixture, 1):
            counts[row.dataset] += 1
            for i, name in enumerate(shares):
                exact = Fraction(weights[i], sum(weights)) * place
                assert abs(counts[name] - exact) < 1 + Fraction(1, 10**9), (weights, place)


def test_targets_are_exact_to_one_row():
    rng = random.Random(1)
    for _ in range(40):
        shares = shares_of([rng.randint(1, 50) for _ in range(rng.randint(2, 6))])
        data = {name: rows(name, 20, [rng.randint(1, 60) for _ in range(20)]) for name in shares}
        mixture = Mixture(data, shares=shares, by="targets", rows=400, seed=0)
        counts: Counter[str] = Counter()
        for row in mixture:
            counts[row.dataset] += row.target_count
            total = sum(counts.values())
            assert all(abs(counts[name] - shares[name] * total) <= 60 for name in shares)


def test_default_epoch_is_the_most_without_repeats():
    rng = random.Random(2)
    for by in ("rows", "targets"):
        for _ in range(30):
            shares = shares_of([rng.randint(1, 9) for _ in range(rng.randint(1, 4))])
            data = {n: rows(n, k, [rng.randint(1, 5) for _ in range(k)]) for n in shares for k in [rng.randint(1, 40)]}
            mixture = Mixture(data, shares=shares, by=by, seed=3)
            seen = Counter(row.origin for row in mixture)
            assert max(seen.values()) == 1
            longer = Mixture(data, shares=shares, by=by, rows=mixture.epoch_rows + 1, seed=3)
            assert max(Counter(row.origin for row in longer).values()) == 2
    assert Mixture({"a": rows("a", 7)}, shares={"a": 1.0}, seed=0).epoch_rows == 7


def test_order_depends_on_seed_name_and_pass_alone():
    alone = Mixture({"a": rows("a", 30)}, shares={"a": 1.0}, seed=5)
    mixed = Mixture({"b": rows("b", 9), "a": rows("a", 30)}, shares={"b": 0.7, "a": 0.3}, rows=100, seed=5)
    by_targets = Mixture(
        {"a": rows("a", 30), "b": rows("b", 9)}, shares={"a": 0.3, "b": 0.7}, by="targets", rows=100, seed=5
    )
    order = [row.origin for row in alone]
    assert sorted(order) == sorted(f"a:{i}" for i in range(30))
    assert order != [f"a:{i}" for i in range(30)]
    for other in (mixed, by_targets):
        assert [row.origin for row in other if row.dataset == "a"] == order[: sum(r.dataset == "a" for r in other)]
    assert [row.origin for row in Mixture({"a": rows("a", 30)}, shares={"a": 1.0}, seed=6)] != order
    renamed = [row.origin[1:] for row in Mixture({"c": rows("c", 30)}, shares={"c": 1.0}, seed=5)]
    assert renamed != [origin[1:] for origin in order]


def test_order_is_fixed_over_versions_and_machines():
    """Committed numbers: a change of these changes every result, and needs a new RESULTS_VERSION."""
    mixture = Mixture({"shop": rows("shop", 10)}, shares={"shop": 1.0}, seed=43)
    assert [int(row.origin[5:]) for row in mixture] == [3, 2, 9, 4, 6, 1, 0, 8, 7, 5]


def test_the_order_of_the_recipe_changes_nothing():
    data = {name: rows(name, 50) for name in "abc"}
    one = Mixture(data, shares={"a": 0.2, "b": 0.3, "c": 0.5}, rows=80, seed=1)
    two = Mixture(dict(reversed(data.items())), shares={"c": 0.5, "b": 0.3, "a": 0.2}, rows=80, seed=1)
    assert [r.origin for r in one] == [r.origin for r in two]


def test_epochs_go_on():
    data = {"a": rows("a", 7), "b": rows("b", 100)}
    mixture = Mixture(data, shares={"a": 0.3, "b": 0.7}, rows=10, seed=1)
    long = Mixture(data, shares={"a": 0.3, "b": 0.7}, rows=50, seed=1)
    assert [mixture.row(e, i).origin for e in range(5) for i in range(10)] == [row.origin for row in long]
    passes = [row.origin for row in long if row.dataset == "a"]
    assert sorted(passes[:7]) == sorted(passes[7:14]) == sorted(f"a:{i}" for i in range(7))
    assert passes[:7] != passes[7:14]


def test_a_short_step_is_filled_with_rows_without_targets():
    mixture = Mixture(
        {"a": rows("a", 5), "b": rows("b", 90)}, shares={"a": 0.1, "b": 0.9}, rows=10, seed=1, multiple_of=8
    )
    assert (mixture.epoch_rows, len(mixture)) == (10, 16)
    for epoch in range(2):
        row_targets = [mixture.row(epoch, i).target_count for i in range(16)]
        assert row_targets == [3] * 10 + [0] * 6
    assert mixture[10].dataset == "b"
    assert mixture[16].origin == mixture.row(1, 0).origin != mixture[0].origin
    with pytest.raises(IndexError, match="an epoch has rows 0 to 15"):
        mixture.row(0, 16)


def test_sampler():
    mixture = Mixture({"a": rows("a", 5)}, shares={"a": 1.0}, rows=3, seed=1, multiple_of=2)
    sampler = MixtureSampler(mixture)
    assert len(sampler) == 4
    assert list(sampler) == [0, 1, 2, 3]
    sampler.set_epoch(2)
    assert list(sampler) == [8, 9, 10, 11]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_goes_through_epochs(workers):
    data = {"a": rows("a", 7), "b": rows("b", 40)}
    mixture = Mixture(data, shares={"a": 0.3, "b": 0.7}, rows=10, seed=1, multiple_of=4)
    sampler = MixtureSampler(mixture)
    collate = Collator(0, route_names=["a", "b"], packing=True, max_length=64)
    loader = DataLoader(mixture, batch_size=4, sampler=sampler, collate_fn=collate, num_workers=workers)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == 3
        expected = [sum(mixture.row(epoch, i).target_count for i in range(k, k + 4)) for k in (0, 4, 8)]
        assert [int(batch["target_mask"].sum()) for batch in batches] == expected


def test_pickle_and_random_access():
    data = {"a": rows("a", 20), "b": rows("b", 40)}
    mixture = Mixture(data, shares={"a": 0.25, "b": 0.75}, rows=30, seed=1)
    expected = [mixture[i].origin for i in range(90)]
    fresh = pickle.loads(pickle.dumps(Mixture(data, shares={"a": 0.25, "b": 0.75}, rows=30, seed=1)))
    assert [fresh[i].origin for i in reversed(range(90))] == expected[::-1]
    assert [pickle.loads(pickle.dumps(mixture))[i].origin for i in range(90)] == expected


def test_summary_adds_up():
    data = {"a": rows("a", 20, 2), "b": rows("b", 40, 10)}
    mixture = Mixture(data, shares={"a": 0.2, "b": 0.8}, rows=100, seed=1, multiple_of=16)
    summary = mixture.summary()
    assert summary["a"].as_dict() == {"share": 0.2, "rows": 20, "tokens": 80, "targets": 40, "passes": 1.0}
    assert summary["b"].as_dict() == {"share": 0.8, "rows": 80, "tokens": 960, "targets": 800, "passes": 2.0}


def test_a_hundred_thousand_rows_take_seconds():
    one = rows("a", 1)[0]
    begun = time.process_time()
    mixture = Mixture({"a": [one] * 90_000, "b": [one] * 10_000}, shares={"a": 0.9, "b": 0.1}, seed=1)
    assert mixture.epoch_rows == 100_000
    assert mixture.summary()["b"].rows == 10_000
    assert time.process_time() - begun < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": {"a": 0.5, "b": 0.6}}, "must be positive and sum to 1"),
        ({"shares": {"a": 0.0, "b": 1.0}}, "must be positive and sum to 1"),
        ({"shares": {"a": 1.0}}, r"shares are given for \['a'\] and datasets for \['a', 'b'\]"),
        ({"datasets": {"a": rows("a", 3), "b": []}}, "dataset 'b' has no rows"),
        ({"by": "tokens"}, "accepted are rows or targets"),
        ({"rows": 0}, "must be at least 1"),
    ],
)
def test_wrong_settings(options, message):
    given = {"datasets": {"a": rows("a", 3), "b": rows("b", 3)}, "shares": {"a": 0.5, "b": 0.5}, "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        Mixture(given.pop("datasets"), **given)
