"""Flips, recovery and retention on tables small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from preceptor.evaluation.bootstrap import Resampler
from preceptor.evaluation.comparison import BinaryTask, Drawn, flips, recovery, retention

RESAMPLER = Resampler(0, 400)


def bits(text: str) -> np.ndarray:
    return np.array([float(bit) for bit in text])


def drawn(text: str, task: str = "t") -> Drawn:
    return Drawn(*RESAMPLER.mean_over_tasks({task: bits(text)}))


def test_flips_are_counted_per_row_and_averaged_over_tasks() -> None:
    tasks = {
        "a": BinaryTask(bits("1100"), bits("0111"), np.zeros(4)),  # one lost, two gained
        "b": BinaryTask(bits("11"), bits("10"), np.zeros(2)),  # one lost
    }
    found = flips(tasks, RESAMPLER)
    assert found is not None
    assert (found["rows"], found["tasks"], found["chance"]) == (6, 2, 0.0)
    assert found["forgotten"]["count"] == 2
    assert found["forgotten"]["rate"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert found["gained"]["count"] == 2
    assert found["gained"]["rate"] == pytest.approx(2 / 4 / 2)
    # Without guessing nothing is taken off, and the rates add up to the change of the score.
    assert found["forgotten"]["adjusted"] == found["forgotten"]["rate"]
    change = np.mean([task.after_n.mean() - task.before_n.mean() for task in tasks.values()])
    assert found["gained"]["rate"] - found["forgotten"]["rate"] == pytest.approx(float(change))
    assert found["forgotten"]["low"] < found["forgotten"]["rate"] < found["forgotten"]["high"]


def test_what_guessing_flips_is_taken_off() -> None:
    """Four choices, half right before and after: (1-a)(1-b)/(c-1) = 0.5 * 0.5 / 3."""
    before, after = bits("1111100000"), bits("0011111000")
    found = flips({"t": BinaryTask(before, after, np.full(10, 1 / 3))}, RESAMPLER)
    assert found is not None
    assert found["chance"] == pytest.approx(0.25 / 3)
    assert found["forgotten"]["rate"] == found["gained"]["rate"] == pytest.approx(0.2)
    assert found["forgotten"]["adjusted"] == pytest.approx(0.2 - 0.25 / 3)
    alike = flips({"t": BinaryTask(before, before, np.full(10, 1 / 3))}, RESAMPLER)
    assert alike is not None
    assert alike["forgotten"]["adjusted"] == 0.0  # never below nothing


@pytest.mark.parametrize("choices", [2, 4])
def test_knowledge_that_is_lost_shows_through_guessing(choices: int) -> None:
    """Of two models that know independently of one another, the paper's correction leaves what was known and is not."""
    rng, n = np.random.default_rng(choices), 200_000
    known = [rng.random(n) < share for share in (0.6, 0.5)]
    before, after = (np.where(each, 1.0, rng.integers(0, choices, n) == 0) for each in known)
    found = flips({"t": BinaryTask(before, after, np.full(n, 1 / (choices - 1)))}, Resampler(0, 2))
    assert found is not None
    wrong = 1 - 1 / choices
    assert found["chance"] == pytest.approx(0.4 * 0.5 * wrong / choices, abs=0.002)
    assert found["forgotten"]["rate"] == pytest.approx((0.6 + 0.4 / choices) * 0.5 * wrong, abs=0.004)
    assert found["forgotten"]["adjusted"] == pytest.approx(0.6 * 0.5 * wrong, abs=0.004)
    assert found["gained"]["adjusted"] == pytest.approx(0.5 * 0.4 * wrong, abs=0.004)


def test_models_that_guess_on_the_same_questions_are_corrected_too_little() -> None:
    """As documented: nothing is forgotten here, and some of the guessed flips remain."""
    rng, n = np.random.default_rng(0), 200_000
    known = np.arange(n) < 0.6 * n
    before, after = (np.where(known, 1.0, rng.integers(0, 4, n) == 0) for _ in range(2))
    found = flips({"t": BinaryTask(before, after, np.full(n, 1 / 3))}, Resampler(0, 2))
    assert found is not None
    assert found["forgotten"]["adjusted"] == pytest.approx(0.4 * 0.6 * 0.25 * 0.75, abs=0.003)


def test_no_binary_task_no_flips() -> None:
    assert flips({}, RESAMPLER) is None


def test_recovery_is_the_share_of_the_experts_gain() -> None:
    reference, expert = drawn("0" * 60 + "1" * 40), drawn("1" * 90 + "0" * 10)
    half = drawn("0" * 35 + "1" * 65)
    found = recovery(half, reference, expert)
    assert found is not None
    assert found.score == pytest.approx(0.5)
    assert found.low < 0.5 < found.high
    ends = [recovery(each, reference, expert) for each in (reference, expert)]
    # Paired draws: the reference recovers exactly nothing, the expert exactly all, in every resample.
    assert [(e.score, e.low, e.high) for e in ends if e is not None] == [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]


def test_recovery_is_undefined_where_the_expert_gains_nothing_certain() -> None:
    reference = drawn("0" * 10 + "1" * 10)
    for expert in ("0" * 9 + "1" * 11, "0" * 10 + "1" * 10, "0" * 19 + "1"):
        assert recovery(reference, reference, drawn(expert)) is None


def test_retention_is_the_quotient_of_scores() -> None:
    reference, model = drawn("1" * 80 + "0" * 20), drawn("1" * 76 + "0" * 24)
    found = retention(model, reference)
    assert found is not None
    assert found.score == pytest.approx(0.95)
    assert found.low < 0.95 < found.high < 1.0  # the rows are the same, and four were lost
    assert retention(model, drawn("0" * 100)) is None


# --- few rows --------------------------------------------------------------------------------------------------


def test_a_gain_of_too_few_rows_is_no_gain() -> None:
    """Five rows that all gained are chance in 6 % of cases, six in 3 %."""
    for rows, known in ((1, False), (2, False), (5, False), (6, True)):
        reference, expert = drawn("0" * rows), drawn("1" * rows)
        gain = expert.minus(reference)
        assert gain.score == 1.0
        assert (gain.low, gain.high) == ((pytest.approx(1.0),) * 2 if known else (None, None))
        found = [recovery(expert, reference, expert), retention(reference, expert)]
        assert all((each is not None) is known for each in found)


def test_differences_vary_where_each_score_does_not_and_the_reverse() -> None:
    """Twelve tasks of a row each: what is drawn together is drawn alike for both models."""

    def alone(text: str) -> Drawn:
        return Drawn(*RESAMPLER.mean_over_tasks({f"t{i:02}": np.array([float(bit)]) for i, bit in enumerate(text)}))

    one, other = alone("1" * 11 + "0"), alone("1" * 5 + "0" * 7)
    same, gain = one.minus(one), one.minus(other)
    assert (same.low, same.high) == (0.0, 0.0)
    assert gain.low is not None
    assert gain.high is not None
    assert gain.low < gain.score < gain.high
    assert gain.score == pytest.approx(0.5)
    assert one.minus(alone("1" * 12)).above_0 is False


def test_flips_of_a_single_row_have_no_interval() -> None:
    found = flips({"t": BinaryTask(bits("1"), bits("0"), np.zeros(1))}, RESAMPLER)
    assert found is not None
    assert (found["forgotten"]["rate"], found["forgotten"]["low"], found["forgotten"]["high"]) == (1.0, None, None)
