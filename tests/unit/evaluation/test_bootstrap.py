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
    """Draw by draw: within each task, one row less than it has; then the mean over tasks of their means."""
    draws = {}
    for name, values in tasks.items():
        digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        draws[name] = rng.integers(0, len(values), (resamples, len(values) - 1))
    found = []
    for r in range(resamples):
        means = []
        for name, values in tasks.items():
            total = 0.0
            for i in draws[name][r]:
                total += values[i]
            means.append(total / (len(values) - 1))
        found.append(sum(means) / len(means))
    return found


def test_means_over_tasks_are_those_of_the_slow_loop() -> None:
    score, drawn, rows = Resampler(5, 300).mean_over_tasks(TASKS)
    expected = slow(TASKS, 5, 300)
    assert drawn.tolist() == pytest.approx(expected)
    assert score == pytest.approx((0.75 + 0.2 + 1.3 / 3) / 3)
    ranked = sorted(expected)
    assert rows == 17
    found = Estimate.of(score, drawn, rows)
    assert found.low is not None
    assert found.high is not None
    assert ranked[6] <= found.low <= ranked[8]
    assert ranked[291] <= found.high <= ranked[293]


def test_resamples_keep_every_tasks_share() -> None:
    """Constant tasks have no spread: an unstratified bootstrap would mix them and have some."""
    score, drawn, _ = Resampler(0, 200).mean_over_tasks({"a": np.ones(3), "b": np.zeros(50)})
    assert score == 0.5
    assert drawn == pytest.approx(0.5, abs=1e-12)


def test_the_interval_of_a_mean_is_about_the_textbooks() -> None:
    values = np.random.default_rng(0).random(400)
    found = Estimate.of(*Resampler(1, 4000).mean_over_tasks({"t": values}))
    error = float(values.std(ddof=1) / 20)
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
    tasks = {"a": (np.array([2.0, 4.0]), np.array([1.0, 3.0])), "b": (np.array([30.0, 8.0]), np.array([10.0, 5.0]))}
    value, drawn, rows = Resampler(0, 100).ratio_of_sums(tasks)
    assert rows == 4
    assert value == pytest.approx(44 / 19)
    # One of each two rows, counted twice.
    quotients = [(2 * (a + b), 2 * (c + d)) for a, c in ((2, 1), (4, 3)) for b, d in ((30, 10), (8, 5))]
    assert set(np.round(drawn, 6)) == {round(a / b, 6) for a, b in quotients}


def test_rows_without_a_denominator_are_not_there() -> None:
    full = {"a": (np.array([2.0, 4.0, 7.0]), np.ones(3))}
    holes = {"a": (np.array([2.0, 0.0, 4.0, 7.0]), np.array([1.0, 0.0, 1.0, 1.0])), "b": (np.zeros(2), np.zeros(2))}
    (value, drawn, rows), (other, others, counted) = (Resampler(0, 50).ratio_of_sums(each) for each in (full, holes))
    assert (value, rows) == (other, counted)
    assert rows == 3
    assert value == pytest.approx(13 / 3)
    assert drawn.tolist() == others.tolist()


# --- few rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_a_resampled_mean_varies_as_a_mean_does(n: int) -> None:
    """By s²/n: with n draws in place of n − 1 it would be (n − 1)/n of it, half of it for two rows."""
    values = np.random.default_rng(n).random(n)
    drawn = Resampler(0, 40_000).mean_over_tasks({"t": values})[1]
    assert drawn.var() == pytest.approx(values.var(ddof=1) / n, rel=0.03)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.01)
    assert values.min() <= drawn.min()
    assert drawn.max() <= values.max() + 1e-12


def test_tasks_of_one_row_are_drawn_together() -> None:
    """Eleven of twelve right, each in a task of its own: as wide as the same rows in one task, and not of width 0."""
    values = np.array([0.0] + [1.0] * 11)
    alone = {f"t{number:02}": values[[number]] for number in range(12)}
    score, drawn, rows = Resampler(0, 40_000).mean_over_tasks(alone)
    assert rows == 12
    assert score == pytest.approx(11 / 12)
    assert drawn.var() == pytest.approx(values.var(ddof=1) / 12, rel=0.03)
    found = Estimate.of(score, drawn, rows)
    assert found.low is not None
    assert found.low < score < 1.0 == found.high
    turned = Resampler(0, 40_000).mean_over_tasks(dict(reversed(alone.items())))[1]
    assert turned.tolist() == drawn.tolist()  # the order of tasks is no part of the draws
    # Beside larger tasks each weighs a whole task: Σ s² over the two, and s²/4 of the third, by 3².
    mixed = {"a": np.array([0.0]), "b": np.array([1.0]), "c": np.array([0.0, 1.0, 1.0, 1.0])}
    drawn = Resampler(0, 40_000).mean_over_tasks(mixed)[1]
    assert drawn.var() == pytest.approx((2 * 0.5 + 0.25 / 4) / 9, rel=0.03)


def test_one_row_alone_has_no_interval_and_neither_has_a_mean_it_weighs_in() -> None:
    one, large = np.array([1.0]), np.arange(20.0)
    for tasks in ({"a": one}, {"a": one, "b": large}):
        found = Estimate.of(*Resampler(0, 100).mean_over_tasks(tasks))
        assert (found.low, found.high, found.above_0) == (None, None, False)
    alone = Estimate.of(*Resampler(0, 100).ratio_of_sums({"a": (one, one)}))
    assert alone.as_dict() == {"score": 1.0, "low": None, "high": None}


def test_in_a_ratio_all_rows_weigh_alike_so_that_one_joins_the_smallest_task() -> None:
    few, many = np.arange(1.0, 5.0), np.arange(30.0)
    tasks = {"a": (np.array([9.0]), np.ones(1)), "b": (many, np.ones(30)), "c": (few, np.ones(4))}
    value, drawn, rows = Resampler(0, 40_000).ratio_of_sums(tasks)
    assert rows == 35
    assert value == pytest.approx((9 + few.sum() + many.sum()) / 35)
    variance = 5 * np.append(few, 9.0).var(ddof=1) + 30 * many.var(ddof=1)
    assert drawn.var() == pytest.approx(variance / 35**2, rel=0.03)


@pytest.mark.parametrize(("rows", "known"), [(2, False), (5, False), (6, True), (30, True)])
def test_of_fewer_than_six_rows_no_interval_is_known(rows: int, known: bool) -> None:
    """Their range holds the median in 1 − 2/2ⁿ of cases: 94 % of 5 rows, 97 % of 6."""
    alike = {"t": np.full(rows, 0.1)}
    spread = {"t": np.arange(rows) / 1.0}
    alone = {f"t{number}": np.array([0.1]) for number in range(rows)}
    for tasks in (alike, spread, alone):
        found = Estimate.of(*Resampler(0, 100).mean_over_tasks(tasks))
        assert found.score == pytest.approx(np.mean([each.mean() for each in tasks.values()]))
        assert [each is not None for each in (found.low, found.high)] == [known, known]


@pytest.mark.parametrize(("sizes", "least"), [([1] * 8, 0.85), ([2] * 8, 0.85), ([3] * 8, 0.88), ([10] * 8, 0.91)])
def test_intervals_of_small_tasks_cover_what_they_should(sizes: list[int], least: float) -> None:
    """Of 400 sets of rows 95 % should cover the truth: with n draws 0 % did for one row, 78 % for two."""
    rng, truth = np.random.default_rng(0), np.linspace(0.4, 0.9, len(sizes))
    hits = 0
    for seed in range(400):
        tasks = {f"t{i}": rng.normal(mean, 1, n) for i, (mean, n) in enumerate(zip(truth, sizes, strict=True))}
        found = Estimate.of(*Resampler(seed, 200).mean_over_tasks(tasks))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth.mean() <= found.high
    assert least <= hits / 400 <= 0.98


def test_large_samples_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_BLOCK", 64)
    sums = resampled_sums(np.eye(20), task="t", seed=0, resamples=33)
    assert sums.shape == (33, 20)
    assert sums.sum(1) == pytest.approx(20)
    assert len({tuple(row) for row in sums.tolist()}) == 33
