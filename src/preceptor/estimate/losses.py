"""The losses' kernels in a simulated step: real code, of which the many equal blocks of scores are run once.

The attention kernel goes through its scores in small blocks, thousands of them at full size. Here it sees the last
target rows only, those with the longest range of keys: what it allocates at once is the same, and what it computes is
counted as often as the blocks' sizes say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from preceptor.estimate.simulation import Simulation
from preceptor.estimate.storages import WORKSPACES
from preceptor.kernels import attention_kl as attention_kernel
from preceptor.kernels.attention_kl import AttentionKL, attention_kl
from preceptor.kernels.choice import implementation
from preceptor.kernels.linear_loss import linear_loss
from preceptor.models.taps import replaced
from preceptor.objective import inside
from preceptor.signals import AttentionScores, TargetPositions


@contextmanager
def simulated_losses(simulation: Simulation) -> Iterator[None]:
    """Within the block objectives run their kernels as a simulation can: PyTorch's versions, blocks counted."""

    def attention(
        student: AttentionScores,
        teacher: AttentionScores,
        targets: TargetPositions,
        weight_BR: Tensor,
        **options: Any,
    ) -> AttentionKL:
        with simulation.storages.making(WORKSPACES):
            return _attention(simulation, student, teacher, targets, weight_BR, **options)

    def linear(*args: Any, **options: Any) -> Any:
        with simulation.storages.making(WORKSPACES):
            return linear_loss(*args, **options)

    with (
        implementation("torch"),
        replaced(inside, "attention_kl", attention),
        replaced(inside, "linear_loss", linear),
    ):
        yield


def _attention(
    simulation: Simulation,
    student: AttentionScores,
    teacher: AttentionScores,
    targets: TargetPositions,
    weight_BR: Tensor,
    *,
    needs_grad: bool = True,
    **options: Any,
) -> AttentionKL:
    B, H, R, _ = student.q_BHRD.shape
    S = student.k_BGSD.shape[2]
    rows = max(1, min(R, attention_kernel.BLOCK_ELEMENTS // (H * S)))
    if rows == R:
        return attention_kl(student, teacher, targets, weight_BR, needs_grad=needs_grad, **options)
    last = slice(R - rows, R)
    value_BHR = torch.zeros(B, H, R, dtype=torch.promote_types(student.q_BHRD.dtype, torch.float32))
    dq_BHRD = torch.empty_like(student.q_BHRD) if needs_grad else None
    keys_BR = targets.position_BR - targets.start_BR + 1
    with simulation.costs.times(float(keys_BR.sum()) / float(keys_BR[:, last].sum())):
        found = attention_kl(
            replace(student, q_BHRD=student.q_BHRD[:, :, last]),
            replace(teacher, q_BHRD=teacher.q_BHRD[:, :, last]),
            _only(targets, last),
            weight_BR[:, last],
            needs_grad=needs_grad,
            **options,
        )
    return AttentionKL(value_BHR, dq_BHRD, found.dk_BGSD)


def _only(targets: TargetPositions, rows: slice) -> TargetPositions:
    """Some of each batch row's targets."""
    return replace(
        targets,
        position_BR=targets.position_BR[:, rows],
        valid_BR=targets.valid_BR[:, rows],
        start_BR=targets.start_BR[:, rows],
    )
