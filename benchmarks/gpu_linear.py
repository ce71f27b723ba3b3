"""The prediction loss from hidden states and two output heads: ours, Liger's, TRL's, and whole logits.

Forward and backward, bfloat16 hidden states and weights, gradients for the student's hidden states and head. FLOPs
count four products of N x D x V: both models' logits and the two gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_attention import rated
from gpu_clock import Clock, Deadline, Step, measure
from gpu_report import Report
from preceptor.kernels.choice import implementation
from preceptor.kernels.linear_loss import linear_loss
from preceptor.objective import Logits
from preceptor.objective.chunks import HeadLosses, TermWeights
from preceptor.objective.fused_chunks import FusedLosses
from preceptor.signals import Head, Part


@dataclass(frozen=True)
class Case:
    """N positions, width D, vocabulary V; `beta` is the teacher's share in a divergence of the two, 0: forward KL."""

    N: int
    V: int
    D: int = 4096
    beta: float = 0.0

    @property
    def term(self) -> Logits:
        """Our term."""
        return Logits() if self.beta == 0 else Logits(divergence="jsd", beta=self.beta)


FULL = [
    *(Case(N, V) for V in (32_000, 128_256) for N in (1024, 4096, 8192, 2048)),
    *(Case(8192, V, beta=0.5) for V in (128_256, 32_000)),
]
REHEARSED = [Case(5, 67, D=16), Case(5, 67, D=16, beta=0.5)]


@dataclass(frozen=True)
class Inputs:
    """Hidden states and heads of both models, and labels nobody needs but a peer's signature."""

    h_S: Tensor
    w_S: Tensor
    h_T: Tensor
    w_T: Tensor
    label_N: Tensor

    @classmethod
    def of(cls, case: Case, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Inputs:
        torch.manual_seed(0)

        def drawn(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, device=device, dtype=torch.float32).mul_(scale).to(dtype)

        heads = [drawn(case.V, case.D, scale=2 * case.D**-0.5) for _ in range(2)]  # logits of spread 2
        return cls(
            drawn(case.N, case.D).requires_grad_(), heads[0].requires_grad_(), drawn(case.N, case.D), heads[1],
            torch.randint(case.V, (case.N,), device=device),
        )  # fmt: skip

    def forget(self) -> None:
        """Drop the gradients of the last step."""
        self.h_S.grad = self.w_S.grad = None


def ours(inputs: Inputs, case: Case, how: Any) -> Callable[[], Tensor]:
    """Our path as a student's head runs it; returns values [1, N]."""
    N, device = len(inputs.h_S), inputs.h_S.device
    one = torch.ones(1, 1, dtype=torch.float64)
    weights = TermWeights.of(one, one[0], wants_grad=True, device=device)
    route_N = torch.zeros(N, dtype=torch.int64, device=device)
    part = Part(None, None, hidden_ND=inputs.h_T, head=Head(inputs.w_T))

    def step() -> Tensor:
        inputs.forget()
        with implementation(how):
            losses = HeadLosses((case.term,), (part,), inputs.label_N, route_N, weights=weights, vocabulary=None)
            anchor, values_TN = linear_loss(inputs.h_S, Head(inputs.w_S), losses, 1, fused=FusedLosses.of(losses))
            (anchor / N).backward()
        return values_TN

    return step


def dense(inputs: Inputs, case: Case) -> Step:
    """Whole float32 logits of both models, log-softmaxes and F.kl_div, by autograd."""

    def step() -> None:
        inputs.forget()
        with torch.no_grad():
            log_T = F.linear(inputs.h_T, inputs.w_T).float().log_softmax(-1)
        log_S = F.linear(inputs.h_S, inputs.w_S).float().log_softmax(-1)
        if case.beta == 0:
            loss = F.kl_div(log_S, log_T, reduction="sum", log_target=True)
        else:
            mix = (case.beta * log_T.exp() + (1 - case.beta) * log_S.exp()).log()
            loss = case.beta * F.kl_div(mix, log_T, reduction="sum", log_target=True)
            loss = loss + (1 - case.beta) * F.kl_div(mix, log_S, reduction="sum", log_target=True)
        (loss / len(inputs.h_S)).backward()

    return step


def liger(inputs: Inputs, case: Case) -> Step:
    """Liger's fused linear divergence.

    Raises:
        ImportError: Liger is not installed.
    """
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    module = LigerFusedLinearJSD(jsd_beta=case.beta)

    def step() -> None:
        inputs.forget()
        module(inputs.h_S, inputs.w_S, inputs.h_T, inputs.w_T, None).backward()

    return step


def trl_chunked(inputs: Inputs, case: Case) -> Step:
    """TRL's chunked divergence from hidden states and heads.

    Raises:
        ImportError: TRL is not installed, or this version keeps it elsewhere.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def step() -> None:
        inputs.forget()
        values, _ = ChunkedDivergenceFunction.apply(
            inputs.h_S, inputs.w_S, None, inputs.h_T, inputs.w_T, None, case.beta, 1.0
        )
        values.mean().backward()

    return step


def trl_dense(inputs: Inputs, case: Case) -> Step:
    """TRL's GKD loss function on whole logits.

    Raises:
        ImportError: TRL is not installed, or this version keeps the function elsewhere.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    def step() -> None:
        inputs.forget()
        with torch.no_grad():
            teacher = F.linear(inputs.h_T, inputs.w_T)
        student = F.linear(inputs.h_S, inputs.w_S)
        GKDTrainer.generalized_jsd_loss(student[None], teacher[None], inputs.label_N[None], beta=case.beta).backward()

    return step


PEERS: dict[str, Callable[[Inputs, Case], Step]] = {"liger": liger, "trl chunked": trl_chunked, "trl dense": trl_dense}


def run(report: Report, clock: Clock, deadline: Deadline, *, rehearse: bool, rate: float | None) -> None:
    """Rows of `way`, N, V, D, beta, seconds, tflops, share of the measured matmul `rate`, gigabytes."""
    for case in REHEARSED if rehearse else FULL:
        if deadline.left() < 2:
            report.failed("linear", f"no time left for N={case.N}, V={case.V}, beta {case.beta:g}, and what follows")
            return
        inputs = Inputs.of(case, clock.device)
        ways: dict[str, Step] = {
            "ours": ours(inputs, case, "triton"),
            "ours, torch": ours(inputs, case, "torch"),
            "dense": dense(inputs, case),
        }
        shared = {"N": case.N, "V": case.V, "D": case.D, "beta": case.beta}
        for name, peer in PEERS.items():
            try:
                ways[name] = peer(inputs, case)
            except Exception as error:  # a peer's own import may fail in any way
                report.add(
                    "linear", {"way": name, **shared, "median_s": None, "note": f"not importable: {error}"[:200]}
                )
        # Gradients of the last step would be there before the next one, and its peak that much less above them.
        ways = {name: _forgetting(inputs, step) for name, step in ways.items()}
        found = measure(ways, clock, deadline, rounds=1 if rehearse else 10, limit_s=4.0)
        for way, measured in found.items():
            needed = 8.0 * case.N * case.D * case.V
            report.add("linear", {"way": way, **shared, **rated(measured, needed, rate)})


def _forgetting(inputs: Inputs, step: Step) -> Step:
    def alone() -> None:
        try:
            step()
        finally:
            inputs.forget()

    return alone
