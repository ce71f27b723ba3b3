"""Two steps of SGD on two gloo processes, with compiled layers and without; engines change nothing either."""

from __future__ import annotations

from pathlib import Path

import torch

import toys
from invariant import ranks, steps
from preceptor.models.compiled import CompileOptions, compile_layers
from preceptor.teachers import ModelTeacher

CASES: dict[str, tuple[str, bool, bool]] = {
    "eager": ("ddp", False, False),
    "ddp": ("ddp", True, False),
    "fsdp2": ("fsdp2", True, True),
}
"""An engine, and whether layers are compiled, and checkpointed reentrantly."""


def on_rank(rank: int, folder: Path) -> None:
    for name, (engine, compiling, checkpointing) in CASES.items():
        student, teacher = steps.models(True, torch.float32)
        objective, teaches = steps.objective(), ModelTeacher(teacher)
        objective.prepare(student, teaches)
        if checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": True})
            student.enable_input_require_grads()
        if compiling:
            compile_layers(student, CompileOptions("eager"), name="student")
        model, _ = ranks.engine(engine, student)
        student.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=steps.LEARNING_RATE)
        for rows in steps.STEPS[:2]:
            batch = toys.batch([[row] for row in rows[rank * 4 : rank * 4 + 4]])
            with objective.listening():
                sums = objective(model, batch, teaches(batch, objective.needs), student=student)
                (sums.loss * 2 / 24).backward()
            optimizer.step()
            optimizer.zero_grad()
        trained = ranks.whole(student)
        if rank == 0:
            torch.save(trained, folder / name)
