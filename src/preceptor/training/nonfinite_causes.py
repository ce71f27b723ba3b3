"""Who is to blame for a loss that is not finite: a teacher, or weights of the student."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from preceptor.signals import Needs, Part, Teacher, TokenBatch


@torch.no_grad()
def broken_parameter(model: nn.Module) -> str | None:
    """The first parameter of `model` that holds a value that is not finite; of a sharded one, in this rank's shard."""
    for name, parameter in model.named_parameters():
        here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if here.is_floating_point() and not bool(here.isfinite().all()):
            return name
    return None


@torch.no_grad()
def broken_teachers(teacher: Teacher | None, batch: TokenBatch, needs: Needs) -> list[str]:
    """The teachers that say something on `batch` that is not finite, asked once more."""
    if teacher is None:
        return []
    return [part.teacher for part in teacher(batch, needs).parts if _broken(part)]


def _broken(part: Part) -> bool:
    if part.stored is not None:  # -inf is a token that was left out
        values = (getattr(part.stored, each.name) for each in fields(part.stored))
        return any(isinstance(value, Tensor) and bool(value.isnan().any()) for value in values)
    return any(value.is_floating_point() and not bool(value.isfinite().all()) for value in _values(part))


def _values(part: Part) -> Iterator[Tensor]:
    if part.hidden_ND is not None:
        yield part.hidden_ND
    if part.head is not None:
        yield part.head.weight_VD
        if part.head.bias_V is not None:
            yield part.head.bias_V
    for scores in part.attention.values():
        yield scores.q_BHRD
        yield scores.k_BGSD
