"""Correctness before speed: kernels against whole float64 tensors on the same device, and the tests marked `gpu`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gpu_attention
import gpu_linear
from gpu_clock import Clock, Deadline
from gpu_report import Report

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Of ‖ours − float64‖ / ‖float64‖. In bfloat16 both heads' scores are rounded before the loss sees them: PyTorch's own
way is off by up to 1.1e-2 in the head's gradient of these cases, and by 1.7e-3 in those of attention."""
ATTENTION = [gpu_attention.Case(333, 0.6, B=2, H=8, G=2, D=128), gpu_attention.Case(130, 1.0, H=4, G=4, D=64)]
LINEAR = [gpu_linear.Case(205, 3001, D=256), gpu_linear.Case(205, 3001, D=256, beta=0.3)]
SMALL_ATTENTION = [gpu_attention.Case(37, 0.6, B=2, H=4, G=2, D=16)]
SMALL_LINEAR = [gpu_linear.Case(11, 67, D=16), gpu_linear.Case(11, 67, D=16, beta=0.3)]


def run(report: Report, clock: Clock, deadline: Deadline, *, rehearse: bool, rate: float | None) -> None:
    """Rows of `check`, dtype, errors, passed; and what pytest says."""
    dtypes = (torch.float32,) if rehearse else tuple(TOLERANCE)
    for dtype in dtypes:
        for attention in SMALL_ATTENTION if rehearse else ATTENTION:
            checked(report, f"attention S={attention.S} D={attention.D}", dtype, attention_errors, attention, clock)
        for linear in SMALL_LINEAR if rehearse else LINEAR:
            kind = "forward KL" if linear.beta == 0 else f"JSD {linear.beta:g}"
            checked(report, f"linear {kind} N={linear.N} V={linear.V}", dtype, linear_errors, linear, clock)
    pytest_says(report, deadline, rehearse=rehearse)


def checked(report: Report, name: str, dtype: torch.dtype, errors_of: Any, case: Any, clock: Clock) -> None:
    """One row; a kernel that raises has not passed."""
    row: dict[str, Any] = {"check": name, "dtype": str(dtype).removeprefix("torch."), "tolerance": TOLERANCE[dtype]}
    try:
        errors = errors_of(case, clock.device, dtype)
        # Written so that NaN does not pass.
        row |= {"errors": errors, "passed": all(error <= TOLERANCE[dtype] for error in errors.values())}
    except Exception as error:
        row |= {"passed": False, "note": f"{type(error).__name__}: {error}"[:500]}
    report.add("checks", row)


def apart(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖ / ‖expected‖."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def attention_errors(case: gpu_attention.Case, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Of the values and of both gradients."""
    inputs = gpu_attention.Inputs.of(case, device, dtype)
    got = gpu_attention.ours(inputs, grads=True, how="triton")()
    q_S, k_S, q_T, k_T = (each.double().requires_grad_() for each in (inputs.q_S, inputs.k_S, inputs.q_T, inputs.k_T))
    group = case.H // case.G
    hidden = torch.ones(case.S, case.S, dtype=torch.bool, device=device).triu(1)

    def log_map(q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.repeat_interleave(group, 1).mT * inputs.scale
        return scores.masked_fill(hidden, -torch.inf).log_softmax(-1)

    log_S, log_T = log_map(q_S, k_S), log_map(q_T, k_T).detach()
    difference = (log_T - log_S).masked_fill(hidden, 0.0)
    value_BHS = (log_T.exp() * difference).sum(-1)
    is_target = inputs.batch.target_mask[:, None]
    (value_BHS * is_target).sum().backward()
    targets = inputs.batch.targets
    index = targets.position_BR[:, None].expand(-1, case.H, -1)
    assert q_S.grad is not None
    assert k_S.grad is not None
    assert bool(targets.valid_BR.all())
    expected_dq = q_S.grad.gather(2, index[..., None].expand(*index.shape, case.D))
    return {
        "value": apart(got.value_BHR, value_BHS.detach().gather(2, index)),
        "dq": apart(got.dq_BHRD, expected_dq),
        "dk": apart(got.dk_BGSD, k_S.grad),
    }


def linear_errors(case: gpu_linear.Case, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Of the values and of the gradients on hidden states and head."""
    inputs = gpu_linear.Inputs.of(case, device, dtype)
    values_TN = gpu_linear.ours(inputs, case, "triton")()
    h, w = (each.detach().double().requires_grad_() for each in (inputs.h_S, inputs.w_S))
    log_S = (h @ w.T).log_softmax(-1)
    log_T = (inputs.h_T.double() @ inputs.w_T.double().T).log_softmax(-1)
    if case.beta == 0:
        value_N = (log_T.exp() * (log_T - log_S)).sum(-1)
    else:
        mix = case.beta * log_T.exp() + (1 - case.beta) * log_S.exp()
        value_N = (
            case.beta * log_T.exp() * (log_T - mix.log()) + (1 - case.beta) * log_S.exp() * (log_S - mix.log())
        ).sum(-1)
    value_N.mean().backward()
    pairs = {
        "value": (values_TN[0], value_N.detach()),
        "dh": (inputs.h_S.grad, h.grad),
        "dw": (inputs.w_S.grad, w.grad),
    }
    found = {}
    for name, (got, expected) in pairs.items():
        assert got is not None
        assert expected is not None
        found[name] = apart(got, expected)
    return found


def pytest_says(report: Report, deadline: Deadline, *, rehearse: bool) -> None:
    """Run the tests marked `gpu` in processes of their own (collect them only, when rehearsing)."""
    seconds = min(deadline.left() - 2, 30 if rehearse else 150)
    if seconds < 5:
        report.failed("checks", "no time left for pytest")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--no-header", "-p", "no:cacheprovider", "-ra"]
    command += ["--collect-only"] if rehearse else _workers()
    folders = [str(ROOT / "tests" / name) for name in ("gpu", "oracle") if (ROOT / "tests" / name).is_dir()]
    searched = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(searched)}
    # A file and no pipe: of a pipe its end is waited for, and workers may hold it open after a timeout.
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        try:
            code = subprocess.run(
                [*command, *folders],
                cwd=ROOT,
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        said.seek(0)
        output = said.read()
    lines = [line for line in output.strip().splitlines() if line.strip()] or ["no output"]
    says = "did not end in time" if code is None else lines[-1]
    # 5: no test was collected.
    passed = code in (0, 5) if rehearse else code == 0
    report.add("checks", {"check": "pytest -m gpu", "passed": passed, "says": says, "output": "\n".join(lines)[-6000:]})


def _workers() -> list[str]:
    import importlib.util

    parallel = importlib.util.find_spec("xdist") is not None
    return ["-n", "8"] if parallel else []
