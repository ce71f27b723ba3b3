"""What `preceptor plan` predicts of a step's peak memory, against the peak of that very step on this device."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gpu_attention import batch_of
from gpu_clock import GIGABYTE, Clock, Deadline
from gpu_models import MISTRAL, MIXTRAL, TINY, TINY_EXPERTS, Sizes, make_model
from gpu_report import Report
from preceptor.data.chat import EncodedRow
from preceptor.objective import Attention, Logits, Objective, Term
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher


@dataclass(frozen=True)
class Case:
    """One training: models of fewer layers than the real ones, which take their time only."""

    name: str
    student: Sizes
    teacher: Sizes
    S: int
    optimizer: str
    checkpointing: bool
    attention: bool
    B: int = 1

    def terms(self) -> list[Term]:
        """The objective's."""
        return [Logits(), Attention()] if self.attention else [Logits()]


def cases(rehearse: bool) -> list[Case]:
    """Both losses with recomputation; prediction without; two rows."""
    students = (TINY, TINY) if rehearse else (replace(MISTRAL, layers=6), replace(MISTRAL, layers=3))
    teacher = TINY_EXPERTS if rehearse else replace(MIXTRAL, layers=3)
    short, long = (16, 24) if rehearse else (2048, 4096)
    return [
        Case("both losses, layers recomputed, AdamW", students[0], teacher, long, "adamw_torch", True, True),
        Case("prediction, nothing recomputed, SGD", students[1], teacher, short, "sgd", False, False),
        Case("both losses, nothing recomputed, 2 rows", students[1], teacher, short, "adamw_torch", False, True, B=2),
    ][: 1 if rehearse else 3]


def run(report: Report, clock: Clock, deadline: Deadline, *, rehearse: bool, rate: float | None) -> None:
    """Rows of `case`, predicted and measured gigabytes, and by how much the prediction is off."""
    for case in cases(rehearse):
        if deadline.left() < 1:
            report.failed("plan", f"no time left for {case.name}, and what follows")
            return
        row: dict[str, Any] = {"case": case.name, "S": case.S, "predicted_gb": None, "measured_gb": None, "error": None}
        try:
            row["predicted_gb"] = round(predicted(case) / GIGABYTE, 4)
            measured = peak(case, clock)
            if measured is not None:
                row["measured_gb"] = round(measured / GIGABYTE, 4)
                row["error"] = round(row["predicted_gb"] / row["measured_gb"] - 1, 4)
        except Exception as error:
            row["note"] = f"{type(error).__name__}: {error}"[:300]
        clock.empty()
        report.add("plan", row)


def predicted(case: Case) -> int:
    """Bytes at the peak, by running the step without memory."""
    from transformers import TrainingArguments

    from preceptor.estimate.setups import LiveTeacher, ModelSetup, Setup
    from preceptor.estimate.step import simulate

    is_target = np.arange(case.S) >= case.S - max(1, int(0.5 * (case.S - 1)))
    row = EncodedRow("default", np.ones(case.S, dtype=np.int32), is_target, "random")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            optim=case.optimizer,
            gradient_checkpointing=case.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            report_to=[],
        )
    setup = Setup(
        student=ModelSetup(case.student.config(), torch.float32),
        arguments=arguments,
        terms=case.terms,
        route_names=("default",),
        vocabulary=None,
        batch=(row,) * case.B,
        accumulation=2,
        bases={"teacher": ModelSetup(case.teacher.config(), torch.bfloat16)},
        teachers={"teacher": LiveTeacher("teacher")},
    )
    return simulate(setup).storages.peak().total


def peak(case: Case, clock: Clock) -> int | None:
    """Bytes at the peak of the second optimiser step of two micro-batches; None on a CPU."""
    cuda = clock.device.type == "cuda"
    gc.collect()
    before = torch.cuda.memory_allocated() if cuda else 0
    step = training(case, clock.device)
    step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    step()
    if not cuda:
        return None
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def training(case: Case, device: torch.device) -> Callable[[], None]:
    """One optimiser step, as the trainer makes it."""
    student: Any = make_model(case.student, device, torch.float32, seed=1).train()
    if case.checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    teacher = ModelTeacher(make_model(case.teacher, device, torch.bfloat16, seed=2))
    objective = Objective(case.terms())
    objective.prepare(student, teacher)
    batch = batch_of(case.B, case.S, 0.5, case.student.vocabulary, device)
    parameters = list(student.parameters())
    made: Any = torch.optim.SGD if case.optimizer == "sgd" else torch.optim.AdamW
    optimizer = made(parameters, lr=1e-6)

    def step() -> None:
        with objective.listening():
            for _ in range(2):
                fresh = TokenBatch.from_inputs(vars(batch))
                signal = teacher(fresh, objective.needs)
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    sums = objective(student, fresh, signal)
                (sums.loss / fresh.targets.count).backward()
                del signal, sums
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
