"""The pocket study's tasks: right answers, disjoint splits, stated noise, determinism."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from preceptor.pocket.tasks import DIGIT_WORDS, TASKS, draw, make_rows, split_of, spoil


def solve(kind: str, prompt: str) -> str:
    """The right answer worked out from the prompt alone, independently of how it was drawn."""
    words = prompt.split()
    if kind == "add":
        return str(int(words[1]) + int(words[2]))
    if kind == "subtract":
        return str(int(words[1]) - int(words[2]))
    if kind == "larger":
        return max(words[1:], key=int)
    if kind == "sort":
        return "".join(sorted(words[1]))
    if kind == "count":
        return str(sum(letter == words[1] for letter in words[3]))
    if kind == "reverse":
        return "".join(reversed(words[1]))
    if kind == "spell":
        return " ".join(DIGIT_WORDS[int(digit)] for digit in words[1])
    if kind == "vowels":
        return "".join(letter for letter in words[2] if letter in set("aeiou")) or "none"
    if kind == "shift":
        return "".join("a" if letter == "z" else chr(ord(letter) + 1) for letter in words[1])
    if kind == "letter":
        return words[3][int(words[1]) - 1]
    if kind == "ends":
        return words[2][0] + words[2][-1]
    if kind == "initials":
        return "".join(word[0] for word in words[1:])
    raise AssertionError(f"no solver for {kind}")


def test_there_are_at_least_ten_kinds_in_equal_shares() -> None:
    rows = make_rows("train", 20 * len(TASKS) + 5, seed=3)
    counts = Counter(row["task"] for row in rows)
    assert len(counts) == len(TASKS) >= 10
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_clean_answers_are_right(split: str) -> None:
    for row in make_rows(split, 1200, seed=5):  # type: ignore[arg-type]
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"], row["metric"]) == ("user", "assistant", "exact")
        assert assistant["content"] == solve(row["task"], user["content"]), user["content"]


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    first = make_rows("train", 300, seed=1, noise=0.15)
    assert first == make_rows("train", 300, seed=1, noise=0.15)
    assert first != make_rows("train", 300, seed=2, noise=0.15)
    # Pinned: rows must not change with the Python version or machine, or shipped results would not repeat.
    assert first[0]["messages"][0]["content"] == make_rows("train", 300, seed=1)[0]["messages"][0]["content"]


def test_train_and_test_prompts_are_disjoint_for_any_seeds() -> None:
    train = {row["messages"][0]["content"] for seed in range(4) for row in make_rows("train", 2400, seed)}
    test = {row["messages"][0]["content"] for seed in range(4) for row in make_rows("test", 600, seed)}
    assert train
    assert test
    assert not train & test
    assert {split_of(prompt) for prompt in test} == {"test"}


def test_noise_spoils_the_stated_share_of_answers_and_no_prompt() -> None:
    clean = make_rows("train", 6000, seed=9)
    noisy = make_rows("train", 6000, seed=9, noise=0.15)
    assert [row["messages"][0] for row in clean] == [row["messages"][0] for row in noisy]
    spoiled = sum(a["messages"][1] != b["messages"][1] for a, b in zip(clean, noisy, strict=True))
    # Binomial with 6000 draws: 4 standard deviations are 0.0184.
    assert abs(spoiled / 6000 - 0.15) < 0.0185


@pytest.mark.parametrize("kind", list(TASKS))
def test_a_spoiled_answer_is_never_the_right_one_nor_empty(kind: str) -> None:
    rng = random.Random(kind)
    manners = Counter[str]()
    for _ in range(300):
        _, answer = draw(kind, "train", rng)
        bad = spoil(kind, answer, rng)
        assert bad
        assert bad != answer
        manners["truncated" if answer.startswith(bad) else "other"] += 1
    longest = max(len(draw(kind, "train", rng)[1]) for _ in range(50))
    assert manners["truncated"] > 0 or longest == 1


def test_test_rows_are_always_clean_and_noise_is_a_probability() -> None:
    with pytest.raises(ValueError, match="test rows are always clean"):
        make_rows("test", 5, seed=0, noise=0.15)
    with pytest.raises(ValueError, match=r"1\.5 is not a probability; give a number from 0 to 1"):
        make_rows("train", 5, seed=0, noise=1.5)
