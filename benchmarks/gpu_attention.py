"""The attention kernel: ours in Triton, ours in PyTorch, whole maps as the paper has them, and plain flash attention.

All in bfloat16 with float32 scores (whole maps too: they would otherwise be half of nothing). FLOPs of the kernel
are what the mathematics needs: two products of queries and keys over the keys that each target row sees, one per model,
and for the gradients two more, with the student's keys and queries. Recomputing is not counted. Flash attention is the
reference for what attention itself costs: its forward counts two products over all rows, its backward five.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_clock import Clock, Deadline, Measured, Step, measure
from gpu_report import Report
from preceptor.kernels.attention_kl import attention_kl
from preceptor.kernels.choice import implementation
from preceptor.signals import AttentionScores, TokenBatch


@dataclass(frozen=True)
class Case:
    """B rows of S tokens of which the last `fraction` are targets."""

    S: int
    fraction: float = 0.5
    B: int = 1
    H: int = 32
    G: int = 8
    D: int = 128


FULL = [Case(S, fraction) for fraction in (0.5, 1.0, 0.25) for S in (2048, 4096, 8192)] + [Case(2048, B=2)]
REHEARSED = [Case(32, H=2, G=1, D=16)]


def batch_of(B: int, S: int, fraction: float, vocabulary: int, device: torch.device) -> TokenBatch:
    """Random tokens of which the last `fraction` of each row are targets."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(vocabulary, (B, S), generator=generator)
    target_mask = torch.zeros(B, S, dtype=torch.bool)
    target_mask[:, S - 1 - max(1, int(fraction * (S - 1))) : S - 1] = True
    return TokenBatch(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        position_ids=torch.arange(S).expand(B, -1),
        segment_ids=torch.zeros_like(input_ids),
        target_mask=target_mask,
        routes=torch.zeros(B, dtype=torch.int64),
    ).to(device)


@dataclass(frozen=True)
class Inputs:
    """Queries and keys of both models, and which rows are targets."""

    batch: TokenBatch
    q_S: Tensor
    k_S: Tensor
    v_S: Tensor
    q_T: Tensor
    k_T: Tensor
    scale: float

    @classmethod
    def of(cls, case: Case, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Inputs:
        torch.manual_seed(0)
        queries, keys = (case.B, case.H, case.S, case.D), (case.B, case.G, case.S, case.D)
        drawn = [torch.randn(shape, device=device, dtype=dtype) for shape in (queries, keys, keys, queries, keys)]
        return cls(batch_of(case.B, case.S, case.fraction, 8, device), *drawn, scale=case.D**-0.5)

    def scores(self, q_BHSD: Tensor, k_BGSD: Tensor) -> AttentionScores:
        """As a tap gives them: queries gathered at the target rows."""
        index = self.batch.targets.position_BR[:, None, :, None].expand(-1, q_BHSD.shape[1], -1, q_BHSD.shape[-1])
        return AttentionScores(q_BHSD.gather(2, index), k_BGSD, self.scale)

    def seen(self) -> int:
        """How many keys all target rows see together."""
        return int((self.batch.targets.position_BR[self.batch.targets.valid_BR] + 1).sum())


def ours(inputs: Inputs, *, grads: bool, how: Any) -> Callable[[], Any]:
    """Our kernel on gathered rows."""
    student, teacher = inputs.scores(inputs.q_S, inputs.k_S), inputs.scores(inputs.q_T, inputs.k_T)
    targets = inputs.batch.targets
    weight_BR = targets.valid_BR.float()

    def step() -> Any:
        with implementation(how):
            return attention_kl(student, teacher, targets, weight_BR, needs_grad=grads)

    return step


def maps(inputs: Inputs, *, grads: bool) -> Step:
    """The paper's way: both models' maps of all rows, masked softmaxes, and the divergence of the target rows."""
    q_S, k_S = (each.clone().requires_grad_(grads) for each in (inputs.q_S, inputs.k_S))
    S = q_S.shape[2]
    hidden_SS = torch.ones(S, S, dtype=torch.bool, device=q_S.device).triu(1)
    target_B1S = inputs.batch.target_mask[:, None]

    def map_of(q_BHSD: Tensor, k_BGSD: Tensor) -> Tensor:
        k_BHSD = k_BGSD.repeat_interleave(q_BHSD.shape[1] // k_BGSD.shape[1], 1)
        scores = (q_BHSD @ k_BHSD.mT).float() * inputs.scale
        return scores.masked_fill(hidden_SS, -torch.inf).softmax(-1)

    def step() -> None:
        with torch.no_grad():
            teacher = map_of(inputs.q_T, inputs.k_T)
        with torch.set_grad_enabled(grads):
            student = map_of(q_S, k_S)
            tiny = torch.finfo(torch.float32).tiny
            kl = F.kl_div(
                student.clamp_min(tiny).log(), teacher.clamp_min(tiny).log(), reduction="none", log_target=True
            )
            loss = (kl.sum(-1) * target_B1S).sum()
        if grads:
            loss.backward()
            q_S.grad = k_S.grad = None

    return step


def flash(inputs: Inputs, *, grads: bool) -> Step:
    """Attention itself by scaled_dot_product_attention, all rows; on a GPU its flash kernel."""
    q, k, v = (each.clone().requires_grad_(grads) for each in (inputs.q_S, inputs.k_S, inputs.v_S))
    weight = torch.randn_like(q)

    def attend() -> Tensor:
        if q.device.type != "cuda":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=inputs.scale, enable_gqa=True)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=inputs.scale, enable_gqa=True)

    def step() -> None:
        with torch.set_grad_enabled(grads):
            output = attend()
        if grads:
            output.backward(weight)
            q.grad = k.grad = v.grad = None

    return step


def flops(case: Case, inputs: Inputs, way: str) -> float:
    """What a way's mathematics needs."""
    product = 2.0 * case.H * case.D
    whole = case.B * case.S * (case.S + 1) / 2
    if way.startswith("flash"):
        return product * whole * (7 if way.endswith("grads") else 2)
    return product * inputs.seen() * (4 if way.endswith("grads") else 2)


def run(report: Report, clock: Clock, deadline: Deadline, *, rehearse: bool, rate: float | None) -> None:
    """Rows of `way`, S, B, fraction, seconds, tflops, share of the measured matmul `rate` (TFLOP/s), gigabytes."""
    for case in REHEARSED if rehearse else FULL:
        if deadline.left() < 2:
            report.failed("attention", f"no time left for S={case.S}, fraction {case.fraction:g}, and what follows")
            return
        inputs = Inputs.of(case, clock.device)
        ways: dict[str, Step] = {}
        for suffix, grads in (("", False), (" + grads", True)):
            ways[f"triton{suffix}"] = ours(inputs, grads=grads, how="triton")
            if case.fraction == 0.5 and case.B == 1:  # thousands of small launches: once per length is enough
                ways[f"torch{suffix}"] = ours(inputs, grads=grads, how="torch")
            ways[f"maps{suffix}"] = maps(inputs, grads=grads)
            ways[f"flash{suffix}"] = flash(inputs, grads=grads)
        found = measure(ways, clock, deadline, rounds=1 if rehearse else 20, limit_s=3.0)
        shared = {"S": case.S, "B": case.B, "fraction": case.fraction, "H": case.H, "G": case.G, "D": case.D}
        for way, measured in found.items():
            report.add("attention", {"way": way, **shared, **rated(measured, flops(case, inputs, way), rate)})
        if all(way in found and found[way].seconds for way in ("triton", "torch")):
            report.add("attention", {"way": "agreement", **shared, **agreement(inputs)})


def rated(measured: Measured, needed: float, rate: float | None) -> dict[str, Any]:
    """Figures with TFLOP/s, and their share of the device's measured matmul rate."""
    row = {**measured.figures(), "tflops": None, "share": None}
    if row["median_s"]:
        row["tflops"] = needed / row["median_s"] / 1e12
        row["share"] = None if not rate else round(needed / row["median_s"] / 1e12 / rate, 4)
    return row


def agreement(inputs: Inputs) -> dict[str, float]:
    """How far both implementations of ours are apart, as norms: values, dq, dk. All 0 would mean that one ran twice."""
    a, b = (ours(inputs, grads=True, how=how)() for how in ("triton", "torch"))

    def apart(x: Tensor, y: Tensor) -> float:
        return float((x.double() - y.double()).norm() / y.double().norm())

    pairs = {"value": (a.value_BHR, b.value_BHR), "dq": (a.dq_BHRD, b.dq_BHRD), "dk": (a.dk_BGSD, b.dk_BGSD)}
    return {name: apart(x, y) for name, (x, y) in pairs.items()}
