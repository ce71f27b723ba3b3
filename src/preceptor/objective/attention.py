"""KL between the teacher's and the student's softmax attention rows (the paper's L_attn)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from preceptor.errors import InputError
from preceptor.objective.terms import Term
from preceptor.signals import LayerShape

LayerPolicy = Literal["auto", "identity", "uniform", "last", "assign"]
HeadPolicy = Literal["auto", "identity", "assign"]


@dataclass
class Attention(Term):
    """(1/(H·L)) Σ_layers Σ_heads KL(A_T[t,:] ‖ A_S[t,:]) at every target position t, over the L mapped layers.

    Alone, this term leaves the last layer's value and output projections and MLP, the final norm and the head without
    gradient: judge such a run by its attention KL.

    Args:
        layers: which teacher layer each student layer follows. "auto" is "identity" for equal depth and "uniform"
            otherwise; "last" follows the teacher's last layers; "assign" chooses a monotone map on calibration rows;
            or pairs (student layer, teacher layer).
        heads: which teacher head each student head follows. "auto" is "identity" for equal head counts and "assign"
            otherwise; "assign" matches heads on calibration rows.
        calibration_rows: how many rows "assign" looks at.
    """

    name: ClassVar[str] = "attention"
    needs_teacher: ClassVar[bool] = True

    layers: LayerPolicy | Sequence[tuple[int, int]] = "auto"
    heads: HeadPolicy = "auto"
    calibration_rows: int = 32

    def layer_map(self, student: Sequence[LayerShape], teacher: Sequence[LayerShape]) -> dict[int, int]:
        """Student layer -> teacher layer, where no calibration is needed ("assign" starts from "uniform").

        Raises:
            InputError: for a policy that does not fit these depths, or a layer that does not exist.
        """
        S, T = len(student), len(teacher)
        if not isinstance(self.layers, str):
            pairs = {int(s): int(t) for s, t in self.layers}
            for s, t in pairs.items():
                if not (0 <= s < S and 0 <= t < T):
                    raise InputError(
                        f"attention: layers names the pair [{s}, {t}], but the student has layers 0..{S - 1} and the "
                        f"teacher 0..{T - 1}; give pairs [student layer, teacher layer] within these"
                    )
            if not pairs:
                raise InputError("attention: layers is empty; give at least one pair [student layer, teacher layer]")
            return pairs
        if self.layers == "identity" and S != T:
            raise InputError(
                f"attention: layers: identity needs equal depth, but the student has {S} layers and the teacher {T}; "
                "use uniform, last, assign or pairs"
            )
        if self.layers == "last":
            shared = min(S, T)
            return {S - shared + i: T - shared + i for i in range(shared)}
        return uniform_layers(S, T)

    def needs_calibration(self, student: Sequence[LayerShape], teacher: Sequence[LayerShape]) -> bool:
        """Whether the maps can only be chosen on data."""
        unequal = len({each.heads for each in (*student, *teacher)}) > 1
        if self.heads == "identity" and unequal:
            raise InputError(
                f"attention: heads: identity needs equal head counts, but the student has {student[0].heads} and the "
                f"teacher {teacher[0].heads}; use assign"
            )
        return self.heads == "assign" or self.layers == "assign" or unequal


def uniform_layers(student: int, teacher: int) -> dict[int, int]:
    """Each student layer follows the teacher layer at the same relative depth, the last one the last."""
    return {s: -(-(s + 1) * teacher // student) - 1 for s in range(student)}


def assign_heads(cost_ST: Tensor) -> Tensor:
    """int64 [H_S]: the teacher head of each student head, of least total cost; one-to-one as far as counts allow.

    Args:
        cost_ST: [H_S, H_T] mean KL of each pair. With more student than teacher heads, each teacher head is followed
            by at most ceil(H_S / H_T) student heads.
    """
    from scipy.optimize import linear_sum_assignment

    S, T = cost_ST.shape
    copies = -(-S // T)
    _, column = linear_sum_assignment(cost_ST.double().repeat(1, copies).cpu().numpy())
    return torch.as_tensor(column, dtype=torch.int64, device=cost_ST.device) % T


def assign_layers(cost_ST: Tensor) -> dict[int, int]:
    """Student layer -> teacher layer of least total cost among monotone maps (strictly, where depth allows).

    Args:
        cost_ST: [L_S, L_T] cost of each pair.
    """
    S, T = cost_ST.shape
    step = 1 if T >= S else 0
    best = torch.full((S, T), torch.inf, dtype=torch.float64)
    came_from = torch.zeros(S, T, dtype=torch.int64)
    best[0] = cost_ST[0]
    for s in range(1, S):
        for t in range(s * step, T):
            before = best[s - 1, : t + 1 - step]
            came_from[s, t] = before.argmin()
            best[s, t] = cost_ST[s, t] + before.min()
    t = int(best[-1].argmin())
    chosen = {S - 1: t}
    for s in range(S - 1, 0, -1):
        t = int(came_from[s, t])
        chosen[s - 1] = t
    return dict(sorted(chosen.items()))
