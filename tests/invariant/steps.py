"""Six steps of SGD on a toy distillation, in every way that must not matter."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import toys
from preceptor.objective import Attention, Logits, NextToken, Objective
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher

LEARNING_RATE = 0.1
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
    accumulate: Callable[[bool], Any] = lambda last: nullcontext(),
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


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


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


def rank_main(rank: int, directory: str) -> None:
    """Both engines, both heads, all kinds of checkpointing, accumulation 2, on one of two gloo ranks."""
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        for engine, tied, checkpointing in CASES:
            student, teacher = models(tied, torch.float64)
            _run_rank(
                engine, student, teacher, checkpointing, rank, Path(directory) / case_name(engine, tied, checkpointing)
            )
    finally:
        dist.destroy_process_group()


def _run_rank(
    engine: str, student: nn.Module, teacher: nn.Module, checkpointing: bool | None, rank: int, path: Path
) -> None:
    def cut(rows: Rows) -> list[TokenBatch]:
        mine = rows[rank * 4 : rank * 4 + 4]
        return [toys.batch([[row] for row in mine[i : i + 2]]) for i in (0, 2)]

    if engine == "ddp":
        model: nn.Module = nn.parallel.DistributedDataParallel(student)

        def accumulate(last: bool) -> Any:
            return nullcontext() if last else model.no_sync()  # type: ignore[operator]
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        mesh = init_device_mesh("cpu", (2,))
        for layer in student.model.layers:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh)
        if not student.config.tie_word_embeddings:
            # The head alone in its group: its weight exists only inside its own forward.
            fully_shard(student.lm_head, mesh=mesh)
        model = fully_shard(student, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters()), "FSDP2 did not shard"

        def accumulate(last: bool) -> Any:
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()

    run(student, teacher, cut, model=model, world=2, accumulate=accumulate, checkpointing=checkpointing)
    whole = {
        name: (p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach())
        for name, p in student.named_parameters()
    }
    if rank == 0:
        torch.save(whole, path)
