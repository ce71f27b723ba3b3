"""Sums per row against float64 brute force, whatever the batch and the padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from preceptor.data.chat import EncodedRow, encode_rows
from preceptor.data.rows import Row
from preceptor.evaluation import likelihood
from preceptor.evaluation.likelihood import row_sums
from preceptor.teachers import ModelTeacher


def rows(make: Any) -> list[EncodedRow]:
    made = [make.row("abcdefgh"[: 1 + i], "hgfedcba 01"[: 1 + (3 * i) % 11]) for i in range(8)]
    made.append(Row("shop", None, "abc 0123 abc", {}, "t"))
    found = list(encode_rows(made, make.tokenizer, max_length=100))
    assert all(isinstance(row, EncodedRow) for row in found)
    return found  # type: ignore[return-value]


@torch.no_grad()
def brute(model: Any, teacher: Any, row: EncodedRow) -> tuple[int, float, float, int]:
    ids = torch.tensor([row.input_ids.tolist()])
    log_s, log_t = (each(input_ids=ids).logits[0].log_softmax(-1) for each in (model, teacher))
    count, nll, kl, agree = 0, 0.0, 0.0, 0
    for i in np.flatnonzero(row.is_target):
        s, t = log_s[i - 1], log_t[i - 1]
        count, nll = count + 1, nll - float(s[row.input_ids[i]])
        kl += float((t.exp() * (t - s)).sum())
        agree += int(s.argmax() == t.argmax())
    return count, nll, kl, agree


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_sums_are_those_of_each_row_alone(make: Any, batch_size: int) -> None:
    model, other, data = make.model(1), make.model(2), rows(make)
    expected = np.array([brute(model, other, row) for row in data])
    assert 0 < expected[:, 3].sum() < expected[:, 0].sum()
    counted: list[int] = []
    found = row_sums(
        model,
        data,
        vocabulary=len(make.tokenizer),
        pad_token_id=0,
        batch_size=batch_size,
        teacher=ModelTeacher(other),
        advance=counted.append,
    )
    assert sum(counted) == len(data)
    assert found.kl_R is not None
    assert found.targets_R.tolist() == expected[:, 0].tolist()
    np.testing.assert_allclose(found.nll_R, expected[:, 1], atol=1e-9)
    np.testing.assert_allclose(found.kl_R, expected[:, 2], atol=1e-9)
    assert found.agree_R is not None
    assert found.agree_R.tolist() == expected[:, 3].tolist()


def test_padding_side_changes_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make.model(1), rows(make)
    options = {"vocabulary": len(make.tokenizer), "pad_token_id": 0, "batch_size": 4}
    right = row_sums(model, data, teacher=ModelTeacher(make.model(2)), **options)
    collator = likelihood.Collator
    monkeypatch.setattr(likelihood, "Collator", lambda *args, **kwargs: collator(*args, padding_side="left", **kwargs))
    left = row_sums(model, data, teacher=ModelTeacher(make.model(2)), **options)
    np.testing.assert_allclose(left.nll_R, right.nll_R, atol=1e-9)
    assert left.kl_R is not None
    assert right.kl_R is not None
    np.testing.assert_allclose(left.kl_R, right.kl_R, atol=1e-9)


def test_a_model_is_no_distance_from_itself(make: Any) -> None:
    model, data = make.model(1), rows(make)
    found = row_sums(
        model, data, vocabulary=len(make.tokenizer), pad_token_id=0, batch_size=4, teacher=ModelTeacher(model)
    )
    assert found.kl_R is not None
    assert found.kl_R.min() >= 0
    assert found.kl_R.max() < 1e-12
    assert found.agree_R is not None
    assert found.agree_R.tolist() == found.targets_R.tolist()


def widened(make: Any, model: Any, padding: float) -> Any:
    """The model with five rows more in embedding and head, which no token of the tokenizer uses."""
    wide = make.model(1, vocab_size=len(make.tokenizer) + 5)
    with torch.no_grad():
        state = model.state_dict()
        for name, value in wide.state_dict().items():
            value.fill_(padding)
            value[: len(state[name])] = state[name]
    return wide


def test_padding_of_the_vocabulary_is_in_no_distance(make: Any) -> None:
    """Heads with rows beyond the tokenizer's tokens: KL and agreement look at the tokens that both can write."""
    model, data = make.model(1), rows(make)
    wide, wider = (widened(make, model, padding) for padding in (0.9, -0.5))
    for student, teacher in ((wide, model), (wide, wider)):
        found = row_sums(
            student, data, vocabulary=len(make.tokenizer), pad_token_id=0, batch_size=4, teacher=ModelTeacher(teacher)
        )
        assert found.kl_R is not None
        assert found.kl_R.max() < 1e-9
        assert found.agree_R is not None
        assert found.agree_R.tolist() == found.targets_R.tolist()


def test_without_a_teacher_there_is_likelihood_alone(make: Any) -> None:
    found = row_sums(make.model(1), rows(make), vocabulary=len(make.tokenizer), pad_token_id=0, batch_size=4)
    assert found.kl_R is None
    assert found.agree_R is None
    assert (found.nll_R > 0).all()
