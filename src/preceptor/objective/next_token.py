"""Cross-entropy with the row's own next token: what plain fine-tuning minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from preceptor.kernels.fused import FusedCrossEntropy
from preceptor.objective.terms import HeadChunk, HeadTerm


@dataclass
class NextToken(HeadTerm):
    """−log p_S(label); gradient p_S − onehot(label)."""

    name: ClassVar[str] = "next_token"

    def fused(self) -> FusedCrossEntropy:
        return FusedCrossEntropy()

    def evaluate(self, chunk: HeadChunk, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        student = chunk.student(1.0, chunk.logits_nV.shape[1])
        label = chunk.label_n[:, None]
        value = student.lse_n - student.scaled_nV.gather(1, label).squeeze(1)
        if not wants_grad:
            return value, None
        return value, student.probs_nV.scatter_add(1, label, torch.full_like(label, -1, dtype=value.dtype))
