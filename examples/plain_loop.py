"""Distillation without Trainer: what `preceptor run` does on one device, in a loop you can change.

    python examples/plain_loop.py TEACHER STUDENT ROWS.jsonl OUT

TEACHER and STUDENT are transformers folders or Hub ids with one tokenizer; the rows are chat messages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from preceptor import Attention, Collator, Logits, ModelTeacher, Objective, TokenBatch, load_rows


def distil(
    student: PreTrainedModel,
    teacher: ModelTeacher,
    steps: Sequence[Sequence[TokenBatch]],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
) -> None:
    """One optimiser step for each entry of `steps`, which holds that step's micro-batches."""
    objective.prepare(student, teacher, calibration=steps[0])
    student.train()
    for number, batches in enumerate(steps, 1):
        # N is counted over all micro-batches before the first forward: each target position weighs the same.
        targets = sum(batch.targets.count for batch in batches)
        with objective.listening():
            for batch in batches:
                sums = objective(student, batch, teacher(batch, objective.needs))
                (sums.loss / targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {number}/{len(steps)}")


def main(teacher_path: str, student_path: str, rows_path: str, out: str) -> None:
    """Distil STUDENT on the rows of one file with both of the paper's losses."""
    tokenizer = AutoTokenizer.from_pretrained(student_path)
    student = AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float32)
    teacher = ModelTeacher(AutoModelForCausalLM.from_pretrained(teacher_path))
    rows = load_rows(rows_path, tokenizer, max_length=512)
    collate = Collator(tokenizer.pad_token_id or tokenizer.eos_token_id, route_names=["rows"])
    batches = [TokenBatch.from_inputs(collate(rows[i : i + 8])) for i in range(0, len(rows) - 7, 8)]
    steps = [batches[i : i + 2] for i in range(0, len(batches) - 1, 2)]
    distil(
        student, teacher, steps,
        Objective([Logits(), Attention()], route_names=["rows"], vocabulary=len(tokenizer)),
        torch.optim.AdamW(student.parameters(), lr=2e-4),
    )  # fmt: skip
    student.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
