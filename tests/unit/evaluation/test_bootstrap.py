"""The bootstrap against a slow loop, and what stratifying and pairing are for."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from preceptor.evaluation import bootstrap
from preceptor.evaluation.bootstrap import Estimate, Resampler, resampled_sums

TASKS = {
    "easy": np.array([1.0, 1.0, 1.0, 0.0]),
    "hard": np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
    "graded": np.array([0.2, 0.7, 0.4]),
}


def slow(tasks: dict[str, np.ndarray], seed: int, resamples: int) -> list[float]:
    """Draw by draw: within each task, as many rows as it has; then the mean over tasks of their means."""
    draws = {}
    for name, values in tasks.items():
        digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        draws[name] = rng.integers(0, len(values), (resamples, len(values)))
    found = []
    for r in range(resamples):
        means = []
        for name, values in tasks.items():
            total = 0.0
            for i in draws[name][r]:
                total += values[i]
            means.append(total / len(values))
        found.append(sum(means) / len(means))
    return found


def test_means_over_tasks_are_those_of_the_slow_loop() -> None:
    score, drawn = Resampler(5, 300).mean_over_tasks(TASKS)
    expected = slow(TASKS, 5, 300)
    assert drawn.tolist() == pytest.approx(expected)
    assert score == pytest.approx((0.75 + 0.2 + 1.3 / 3) / 3)
    ranked = sorted(expected)
    found = Estimate.of(score, drawn)
    assert ranked[6] <= found.low <= ranked[8]
    assert ranked[291] <= found.high <= ranked[293]


def test_resamples_keep_every_tasks_share() -> None:
    """Constant tasks have no spread: an unstratified bootstrap would mix them and have some."""
    score, drawn = Resampler(0, 200).mean_over_tasks({"a": np.ones(3), "b": np.zeros(50)})
    assert score == 0.5
    assert set(drawn.tolist()) == {0.5}


def test_the_interval_of_a_mean_is_about_the_textbooks() -> None:
    values = np.random.default_rng(0).random(400)
    found = Estimate.of(*Resampler(1, 4000).mean_over_tasks({"t": values}))
    error = float(values.std() / 20)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_draws_are_alike_for_all_models_and_other_for_another_seed_or_task() -> None:
    values = np.random.default_rng(0).random(30)
    one = Resampler(1, 50).mean_over_tasks({"t": values})[1]
    shifted = Resampler(1, 50).mean_over_tasks({"t": values + 1})[1]
    assert (shifted - one).tolist() == pytest.approx([1.0] * 50)  # paired: the difference has no spread
    assert not np.allclose(Resampler(2, 50).mean_over_tasks({"t": values})[1], one)
    assert not np.allclose(Resampler(1, 50).mean_over_tasks({"u": values})[1], one)


def test_ratios_divide_sums_and_not_means() -> None:
    tasks = {"a": (np.array([2.0, 4.0]), np.array([1.0, 3.0])), "b": (np.array([30.0]), np.array([10.0]))}
    value, drawn = Resampler(0, 100).ratio_of_sums(tasks)
    assert value == pytest.approx(36 / 14)
    assert set(np.round(drawn, 6)) == {round(a / b, 6) for a, b in ((34, 12), (36, 14), (38, 16))}


def test_large_samples_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_BLOCK", 64)
    sums = resampled_sums(np.eye(20), task="t", seed=0, resamples=33)
    assert sums.shape == (33, 20)
    assert (sums.sum(1) == 20).all()
    assert len({tuple(row) for row in sums.tolist()}) == 33
