"""Two steps of SGD on two gloo processes, with compiled layers and without."""

from __future__ import annotations

from pathlib import Path

import torch

import toys
from invariant import ranks, steps
from preceptor.models.compiled import CompileOptions, compile_layers
from preceptor.teachers import ModelTeacher

CASES: list[tuple[str, bool | None]] = [("ddp", None), ("fsdp2", True)]
"""An engine, and whether checkpointing is reentrant (None: there is none)."""


def on_rank(rank: int, folder: Path) -> None:
    for engine, checkpointing in CASES:
        for how in ("eager", "compiled"):
            student, teacher = steps.models(True, torch.float32)
            objective, teaches = steps.objective(), ModelTeacher(teacher)
            objective.prepare(student, teaches)
            if checkpointing is not None:
                student.gradient_checkpointing_enable({"use_reentrant": checkpointing})
                student.enable_input_require_grads()
            if how == "compiled":
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
                torch.save(trained, folder / f"{engine}-{how}")
