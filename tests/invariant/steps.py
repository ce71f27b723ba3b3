"""Six steps of SGD on a toy distillation, in every way that must not matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import toys
from invariant import ranks
from preceptor.objective import Attention, Logits, NextToken, Objective
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher

LEARNING_RATE = 0.1
# Arguments of trainings that a brute force repeats: nothing but the gradient moves a weight.
SGD: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0,
    "logging_steps": 1,
    "disable_tqdm": True,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "dataloader_pin_memory": False,
}
WEIGHTS = {"next_token": 0.25, "logits": 1.0, "attention": 2.0}
Rows = list[tuple[Tensor, Tensor]]


def step_rows(step: int) -> Rows:
    """Eight rows of unequal length; one has no target, and so has the last micro-batch of step 2."""
    answers = [4, 3, 0, 5, 2, 6, 3, 1]
    if step == 2:
        answers[6:] = [0, 0]
    return toys.rows(100 + step, [9, 7, 5, 12, 8, 11, 6, 10], answers)


STEPS = [step_rows(step) for step in range(6)]


def models(tied: bool, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    student = toys.llama(1, dtype, tie_word_embeddings=tied, sharpness=2)
    teacher = toys.mistral(2, dtype, sharpness=2, intermediate_size=56)
    return student, teacher


def objective() -> Objective:
    return Objective([NextToken(WEIGHTS["next_token"]), Logits(WEIGHTS["logits"]), Attention(WEIGHTS["attention"])])


def run(
    student: nn.Module,
    teacher: nn.Module,
    cut: Callable[[Rows], Sequence[TokenBatch]],
    *,
    model: nn.Module | None = None,
    world: int = 1,
    accumulate: ranks.Accumulate = lambda last: nullcontext(),
    checkpointing: bool | None = None,
) -> None:
    """Train `student` in place. `cut` makes this rank's micro-batches of a step; `checkpointing` says if reentrant."""
    losses, teaches = objective(), ModelTeacher(teacher)
    if model is None:
        losses.prepare(student, teaches)
    else:
        losses.prepare(toys.llama(1, sharpness=2), teaches)  # a sharded student is not run outside its engine
    if checkpointing is not None:
        student.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        student.enable_input_require_grads()
    student.train()
    model = model or student
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for rows in STEPS:
        n = sum(int(is_target[1:].sum()) for _, is_target in rows)
        batches = cut(rows)
        with losses.listening():
            for i, batch in enumerate(batches):
                with accumulate(i == len(batches) - 1):
                    sums = losses(model, batch, teaches(batch, losses.needs), student=student)
                    (sums.loss * world / n).backward()
        optimizer.step()
        optimizer.zero_grad()


def distance(got: dict[str, Tensor], expected: nn.Module, start: nn.Module) -> float:
    """‖Δθ‖ / ‖θ − θ₀‖ over all parameters."""
    first, last = dict(start.named_parameters()), dict(expected.named_parameters())
    wrong = sum(float((got[name].double() - p.detach().double()).square().sum()) for name, p in last.items())
    moved = sum(float((first[name].detach().double() - p.detach().double()).square().sum()) for name, p in last.items())
    assert moved > 1e-4, "the steps moved nothing"
    return float((wrong / moved) ** 0.5)


# --- two ranks --------------------------------------------------------------------------------------------------

CASES = [
    (engine, tied, checkpointing)
    for engine in ("ddp", "fsdp2")
    for tied in (True, False)
    for checkpointing in (None, True, False)
]


def case_name(engine: str, tied: bool, checkpointing: bool | None) -> str:
    kind = {None: "plain", True: "reentrant", False: "checkpointed"}[checkpointing]
    return f"{engine}-{'tied' if tied else 'untied'}-{kind}"


def on_rank(rank: int, folder: Path) -> None:
    """Both engines, both heads, all kinds of checkpointing, accumulation 2."""

    def cut(rows: Rows) -> list[TokenBatch]:
        mine = rows[rank * 4 : rank * 4 + 4]
        return [toys.batch([[row] for row in mine[i : i + 2]]) for i in (0, 2)]

    for case in CASES:
        name, tied, checkpointing = case
        student, teacher = models(tied, torch.float64)
        model, accumulate = ranks.engine(name, student)
        run(student, teacher, cut, model=model, world=2, accumulate=accumulate, checkpointing=checkpointing)
        trained = ranks.whole(student)
        if rank == 0:
            torch.save(trained, folder / case_name(*case))
