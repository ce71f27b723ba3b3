"""Choices against one float64 forward per choice, without cache, padding or batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from preceptor.data.chat import Dropped, EncodedRow
from preceptor.evaluation.choices import choice_log_likelihoods
from preceptor.evaluation.encode import encode_questions


@torch.no_grad()
def alone(model: Any, tokenizer: Any, prompt: str, choice: str) -> float:
    """Σ log p of the characters of ` choice` behind the rendered prompt."""
    head = tokenizer(f"<s>User: {prompt}\n\nAssistant:", add_special_tokens=False)["input_ids"]
    tail = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
    log_p = model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(float(log_p[len(head) + i - 1, token]) for i, token in enumerate(tail))


def encoded(make: Any, rows: list[Any]) -> list[tuple[EncodedRow, ...]]:
    found = encode_questions(make.set(rows), make.tokenizer, max_length=100)
    return [each.choices for each in found if not isinstance(each, Dropped)]


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 16}], ids=["full", "window"])
def test_every_choice_is_what_a_forward_of_its_own_gives(make: Any, changes: dict[str, Any]) -> None:
    model, rows = make.model(1, **changes), make.choice_rows()
    expected = [[alone(model, make.tokenizer, r.messages[0]["content"], c) for c in r.extra["choices"]] for r in rows]
    assert len({round(value, 6) for values in expected for value in values}) == sum(map(len, expected))
    for batch_size in (1, 2, 50):
        found = choice_log_likelihoods(model, encoded(make, rows), pad_token_id=0, batch_size=batch_size)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-9)


def test_what_pads_changes_nothing_and_progress_counts_questions(make: Any) -> None:
    model, questions = make.model(2), encoded(make, make.choice_rows())
    counted: list[int] = []
    first = choice_log_likelihoods(model, questions, pad_token_id=0, batch_size=1, advance=counted.append)
    assert sum(counted) == len(questions)
    assert len(counted) > 3
    other = choice_log_likelihoods(model, questions, pad_token_id=7, batch_size=50)
    assert [v for row in other for v in row] == pytest.approx([v for row in first for v in row], abs=1e-9)


def test_choices_without_a_common_beginning(make: Any) -> None:
    """Where nothing is shared nothing is cached, alone or beside questions that share their prompt."""
    model = make.model(3)
    import numpy as np

    def row(ids: list[int], targets: int) -> EncodedRow:
        return EncodedRow("d", np.array(ids, np.int32), np.arange(len(ids)) >= len(ids) - targets, "o")

    odd = [row([5, 6, 7], 2), row([8, 9, 10, 11], 3)]
    shared = encoded(make, make.choice_rows()[:1])[0]

    def brute(choice: EncodedRow) -> float:
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([choice.input_ids.tolist()])).logits[0].log_softmax(-1)
        return sum(float(log_p[i - 1, choice.input_ids[i]]) for i in np.flatnonzero(choice.is_target))

    for questions in ([odd], [odd, shared]):
        found = choice_log_likelihoods(model, questions, pad_token_id=0, batch_size=8)
        expected = [brute(choice) for choices in questions for choice in choices]
        assert [v for values in found for v in values] == pytest.approx(expected, abs=1e-9)


def test_a_choice_is_its_own_tokens_without_the_end_token(make: Any) -> None:
    for choices in encoded(make, make.choice_rows()):
        for choice in choices:
            text = make.tokenizer.decode(choice.input_ids[choice.is_target])
            assert text.strip() in ("ab", "c d efgh", "b", "hgfe 01", "c d")
            assert choice.input_ids[-1] != make.tokenizer.eos_token_id


def test_earlier_turns_are_prompt(make: Any) -> None:
    messages = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = make.row("", "d", metric="accuracy", choices=["d", "ef"])
    row = type(row)(row.dataset, tuple({"role": r, "content": c} for r, c in messages), None, row.extra, row.origin)
    (choices,) = encoded(make, [row])
    assert [make.tokenizer.decode(c.input_ids[c.is_target]).strip() for c in choices] == ["d", "ef"]
    assert make.set([row]).questions[0].prompt == "user: a\n\nassistant: b\n\nuser: c"
