"""A remembered teacher says what the teacher says, and asks it once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preceptor.data.chat import EncodedRow, encode_rows
from preceptor.evaluation.likelihood import row_sums
from preceptor.evaluation.remembered import RememberedTeacher
from preceptor.signals import Needs, Signal, TokenBatch
from preceptor.teachers import ModelTeacher


class Counting(ModelTeacher):
    calls = 0

    def __call__(self, batch: TokenBatch, needs: Needs) -> Signal:
        self.calls += 1
        return super().__call__(batch, needs)


@pytest.mark.parametrize(("limit", "asked"), [(2**20, 3), (1500, 5), (0, 6)])
def test_models_compared_with_it_get_the_same_and_it_runs_once(make: Any, limit: int, asked: int) -> None:
    rows = [make.row("abcdefgh"[: 1 + i], "hgfe"[: 1 + i % 4]) for i in range(8)]
    encoded = [row for row in encode_rows(rows, make.tokenizer, max_length=99) if isinstance(row, EncodedRow)]
    teacher = Counting(make.model(2))
    remembered = RememberedTeacher(teacher, limit_bytes=limit)
    options = {"vocabulary": len(make.tokenizer), "pad_token_id": 0, "batch_size": 3}
    for seed in (1, 3):
        model = make.model(seed)
        found = row_sums(model, encoded, teacher=remembered, **options)
        expected = row_sums(model, encoded, teacher=ModelTeacher(teacher.model), **options)
        assert found.kl_R is not None
        assert expected.kl_R is not None
        np.testing.assert_array_equal(found.kl_R, expected.kl_R)
        np.testing.assert_array_equal(found.agree_R, expected.agree_R)
    assert teacher.calls == asked
    # Other targets on the same tokens are another batch.
    for row in encoded:
        row.is_target[-1] = False
    fewer = row_sums(make.model(1), encoded, teacher=remembered, **options)
    assert fewer.kl_R is not None
    assert teacher.calls > asked
    assert fewer.targets_R.sum() == sum(row.target_count for row in encoded)
