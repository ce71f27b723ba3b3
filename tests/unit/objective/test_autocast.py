"""Under autocast the attention term sees what attention multiplies, and its own scores stay float32."""

from __future__ import annotations

import pytest
import torch

import toys
from preceptor.kernels.attention_kl import AttentionKL, attention_kl
from preceptor.kernels.choice import implementation
from preceptor.objective import Attention, Logits, Objective, inside
from preceptor.signals import AttentionScores
from preceptor.teachers import ModelTeacher


def test_the_student_s_queries_and_keys_are_seen_in_autocast_s_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary embeddings make them float32 again: a kernel would multiply in float32 what attention does in bfloat16."""
    seen = []

    def spy(student: AttentionScores, *args: object, **options: object) -> AttentionKL:
        seen.append((student.q_BHRD.dtype, student.k_BGSD.dtype))
        return attention_kl(student, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(inside, "attention_kl", spy)
    student, teacher = toys.mistral(1), ModelTeacher(toys.mistral(2, torch.bfloat16))
    objective = Objective([Logits(), Attention()])
    objective.prepare(student, teacher)
    batch = toys.batch([[row] for row in toys.rows(0, [13, 9], [6, 4])])
    with objective.listening():
        for autocast in (True, False):
            signal = teacher(batch, objective.needs)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                sums = objective(student, batch, signal)
            sums.loss.backward()
    low, full = (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)
    assert seen == [low, low, full, full]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in student.parameters())


def test_scores_are_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = toys.batch([[row] for row in toys.rows(0, [13, 9], [6, 4])])
    R = batch.targets.position_BR.shape[1]

    def scores() -> AttentionScores:
        q, k = (torch.randn(2, 2, length, 8, generator=generator).bfloat16() for length in (R, 13))
        return AttentionScores(q, k, 0.4)

    student, teacher, weight_BR = scores(), scores(), batch.targets.valid_BR.float()
    with implementation("torch"):
        expected = attention_kl(student, teacher, batch.targets, weight_BR)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = attention_kl(student, teacher, batch.targets, weight_BR)
    assert got.value_BHR.dtype == torch.float32
    for name in ("value_BHR", "dq_BHRD", "dk_BGSD"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=0, atol=0)
