"""The pocket study's general instruction set: small problems whose answers a program can check.

A study of distillation needs a general ability to pass on, clean tests of it, and public data worse than the
teacher. Real benchmarks give none of these at a size a CPU trains in minutes, so this module writes its own: twelve
kinds of short instructions, drawn from a seed, with exactly one right answer each.

Train and test prompts are disjoint by construction and not by bookkeeping: the sha256 of a prompt decides its split,
whatever the seed, so nothing trained on any `train` rows has seen any `test` prompt.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Literal, TypedDict

Split = Literal["train", "test"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOWELS = "aeiou"
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_TEST_BUCKETS = 10
"""One prompt in ten belongs to the test split."""


class ChatMessage(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class TaskRow(TypedDict):
    """One example: a user turn, its answer, the task kind, and how the answer is scored."""

    messages: list[ChatMessage]
    task: str
    metric: str


def _word(rng: random.Random, shortest: int, longest: int, letters: str = LETTERS) -> str:
    return "".join(rng.choice(letters) for _ in range(rng.randint(shortest, longest)))


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"add {a} {b}", str(a + b)


def _subtract(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"subtract {max(a, b)} {min(a, b)}", str(abs(a - b))


def _larger(rng: random.Random) -> tuple[str, str]:
    a = rng.randint(100, 999)
    # Half of the pairs share their first digit, so that looking at it alone does not solve the task.
    b = rng.randint(100, 999) if rng.random() < 0.5 else a // 100 * 100 + rng.randint(0, 99)
    return f"larger {a} {b}", str(max(a, b))


def _sort(rng: random.Random) -> tuple[str, str]:
    digits = _word(rng, 4, 6, "0123456789")
    return f"sort {digits}", "".join(sorted(digits))


def _count(rng: random.Random) -> tuple[str, str]:
    word = "".join(rng.choice(("a", rng.choice("kxz"))) for _ in range(rng.randint(5, 9)))
    return f"count a in {word}", str(word.count("a"))


def _reverse(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 4, 6)
    return f"reverse {word}", word[::-1]


def _spell(rng: random.Random) -> tuple[str, str]:
    digits = _word(rng, 2, 4, "0123456789")
    return f"spell {digits}", " ".join(DIGIT_WORDS[int(digit)] for digit in digits)


def _vowels(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 5, 7, LETTERS + VOWELS * 3)
    kept = "".join(letter for letter in word if letter in VOWELS)
    return f"vowels in {word}", kept or "none"


def _shift(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 3, 5)
    return f"next {word}", "".join(LETTERS[(LETTERS.index(letter) + 1) % 26] for letter in word)


def _letter(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 5, 7)
    position = rng.randint(1, len(word))
    return f"letter {position} of {word}", word[position - 1]


def _ends(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 4, 7)
    return f"ends of {word}", word[0] + word[-1]


def _initials(rng: random.Random) -> tuple[str, str]:
    words = [_word(rng, 2, 4) for _ in range(rng.randint(2, 4))]
    return f"initials {' '.join(words)}", "".join(word[0] for word in words)


Tasks = Mapping[str, Callable[[random.Random], tuple[str, str]]]
"""Task kind to the function which draws one (prompt, right answer)."""

TASKS: Tasks = {
    "add": _add,
    "subtract": _subtract,
    "larger": _larger,
    "sort": _sort,
    "count": _count,
    "reverse": _reverse,
    "spell": _spell,
    "vowels": _vowels,
    "shift": _shift,
    "letter": _letter,
    "ends": _ends,
    "initials": _initials,
}
"""The general kinds."""


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to, for every seed."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") % _TEST_BUCKETS == 0 else "train"


def draw(kind: str, split: Split, rng: random.Random, tasks: Tasks = TASKS) -> tuple[str, str]:
    """One (prompt, right answer) of `kind` whose prompt belongs to `split`."""
    while True:
        prompt, answer = tasks[kind](rng)
        if split_of(prompt) == split:
            return prompt, answer


def spoil(kind: str, answer: str, rng: random.Random, tasks: Tasks = TASKS) -> str:
    """A public annotator's bad answer: wrong, truncated or sloppy, and never equal to `answer`.

    - wrong: the right answer of some other prompt of the same kind;
    - truncated: the answer stops early;
    - sloppy: two neighbouring characters swapped, or one character left out or typed twice.

    Answers too short to truncate or to scramble are answered wrongly.
    """
    manner = rng.choice(("wrong", "truncated", "sloppy"))
    if manner == "truncated" and len(answer) > 1:
        return answer[: rng.randint(1, len(answer) - 1)]
    if manner == "sloppy" and len(answer) > 1:
        i = rng.randrange(len(answer) - 1)
        slip = rng.choice(
            (
                answer[:i] + answer[i + 1] + answer[i] + answer[i + 2 :],
                answer[:i] + answer[i + 1 :],
                answer[:i] + answer[i] + answer[i:],
            )
        )
        if slip != answer:
            return slip
    while True:
        other = tasks[kind](rng)[1]
        if other != answer:
            return other


def make_rows(split: Split, rows: int, seed: int, *, noise: float = 0.0, tasks: Tasks = TASKS) -> list[TaskRow]:
    """`rows` examples, the kinds in equal shares to one row, in an order which depends on the seed alone.

    Args:
        split: which prompts may be drawn.
        rows: how many examples.
        seed: the same seed gives the same rows on every machine.
        noise: probability, per row, that the answer is spoiled (see `spoil`). A spoiled row keeps its prompt, and the
            prompts of a noisy set are those of the clean set with the same seed.
        tasks: the kinds to draw from.

    Raises:
        ValueError: `noise` for test rows, which are always clean, or outside [0, 1].
    """
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"noise: {noise} is not a probability; give a number from 0 to 1")
    if split == "test" and noise:
        raise ValueError("noise: test rows are always clean; give 0, or split 'train'")
    drawing = random.Random(f"rows {split} {seed}")
    spoiling = random.Random(f"noise {split} {seed}")
    kinds = list(tasks)
    order = [kinds[i % len(kinds)] for i in range(rows)]
    drawing.shuffle(order)
    made: list[TaskRow] = []
    for kind in order:
        prompt, answer = draw(kind, split, drawing, tasks)
        if spoiling.random() < noise:
            answer = spoil(kind, answer, spoiling, tasks)
        turns: list[ChatMessage] = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        made.append({"messages": turns, "task": kind, "metric": "exact"})
    return made
