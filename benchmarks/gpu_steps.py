"""Whole training steps at the shapes of Mistral-7B (student) and Mixtral-8x7B (teacher), with random weights.

The student is float32, trained whole under bfloat16 autocast with its layers recomputed in the backward; the teacher is
frozen. A step is forward and backward of one micro-batch, one row of S tokens whose second half is the response;
the optimiser's step is timed apart, since it is the same for all and once per many micro-batches. All ways share both
models and run in turn, so that an overhead is a median over pairs. Utilisation counts the model's FLOPs (nothing that
is recomputed) over the matmul rate measured on this device.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpu_attention import batch_of
from gpu_clock import GIGABYTE, Clock, Deadline, Step, measure
from gpu_models import MISTRAL, MIXTRAL, TEACHERS, TINY, TINY_EXPERTS, Sizes, gigabytes, make_student, make_teacher
from gpu_report import Report
from preceptor.objective import Attention, Logits, Objective
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher

LENGTHS = (2048, 4096, 8192)
WAYS = {
    "teacher_forward": "teacher forward, without its head",
    "sft": "plain SFT",
    "prediction": "prediction",
    "prediction_attention": "prediction + attention",
}


def optimizer(model: nn.Module) -> tuple[str, Step, list[Tensor]]:
    """An AdamW with 8-bit states, or what takes its room: its name, its step, and tensors to keep.

    bitsandbytes' if it is there, else torchao's, else plain SGD beside two bytes per parameter held for nothing.
    """
    parameters = [each for each in model.parameters() if each.requires_grad]
    for module, name in (("bitsandbytes.optim", "AdamW8bit"), ("torchao.optim", "AdamW8bit")):
        try:
            found = getattr(__import__(module, fromlist=[name]), name)(parameters, lr=1e-6)
        except Exception:  # absent, or not for this device or torch: the next will do
            continue
        return f"{module.split('.')[0]} {name}", found.step, []
    held = [torch.zeros(2 * each.numel(), dtype=torch.uint8, device=each.device) for each in parameters]
    sgd = torch.optim.SGD(parameters, lr=1e-6, foreach=False)
    return "SGD, with room held for 8-bit states", sgd.step, held


def steps(student: Any, teacher: Any, batch: TokenBatch, *, objectives: dict[str, Objective]) -> dict[str, Step]:
    """The ways of `WAYS`; each leaves no gradient behind, and takes away what one that failed left."""
    device = batch.input_ids.device
    labels = torch.full_like(batch.input_ids, -100)
    labels[:, 1:] = torch.where(batch.target_mask[:, :-1], batch.input_ids[:, 1:], -100)
    teaching = ModelTeacher(teacher)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def teacher_forward() -> None:
        teacher.model(input_ids=batch.input_ids, use_cache=False)

    def sft() -> None:
        student.zero_grad()
        with autocast():
            loss = student(input_ids=batch.input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        student.zero_grad()

    def ours(objective: Objective) -> Step:
        def step() -> None:
            student.zero_grad()
            # Made anew each time, as a collator would: what a batch derives from its masks is part of the step.
            fresh = TokenBatch.from_inputs(vars(batch))
            with objective.listening():
                signal = teaching(fresh, objective.needs)
                with autocast():
                    sums = objective(student, fresh, signal)
                (sums.loss / fresh.targets.count).backward()
            student.zero_grad()

        return step

    return {
        "teacher_forward": teacher_forward,
        "sft": sft,
        **{name: ours(each) for name, each in objectives.items()},
    }


def flops(way: str, student: Sizes, teacher: Sizes, S: int, N: int, seen: int) -> float:
    """What the mathematics of one step on one row needs; `seen` keys are seen by its N target rows together."""
    taught = teacher.forward_flops(1, S)
    if way == "teacher_forward":
        return taught
    learnt = 3 * student.forward_flops(1, S)
    if way == "sft":
        return learnt + 3 * student.head_flops(S)
    total = taught + teacher.head_flops(N) + learnt + 3 * student.head_flops(N)
    if way == "prediction_attention":
        total += student.layers * 4 * 2.0 * student.heads * student.head_dim * seen
    return total


def run(report: Report, clock: Clock, deadline: Deadline, *, rehearse: bool, rate: float | None) -> None:
    """Rows of `way`, S, teacher, seconds, tokens per second, utilisation, gigabytes, overhead."""
    sizes = (TINY, TINY_EXPERTS) if rehearse else (MISTRAL, MIXTRAL)
    lengths = (32,) if rehearse else LENGTHS
    done = False
    for how in ("int8", "shared") if rehearse else TEACHERS:
        # One packed teacher and the unpacked one: the quickest teacher shows overheads at their largest.
        if deadline.left() < (2 if rehearse else 30) or (done and how != "shared"):
            continue
        try:
            with_teacher(report, clock, deadline, sizes, lengths, how, rate, rounds=1 if rehearse else 7)
            done = True
        except ImportError as error:
            report.add("steps", {"way": "teacher", "teacher": TEACHERS[how], "note": f"not importable: {error}"})
        except torch.OutOfMemoryError as error:
            report.add("steps", {"way": "models", "teacher": TEACHERS[how], "note": f"does not fit: {error}"[:200]})
        except Exception:
            # The other teachers' steps are worth having.
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            report.failed("steps", traceback.format_exc())
        clock.empty()


def with_teacher(
    report: Report,
    clock: Clock,
    deadline: Deadline,
    sizes: tuple[Sizes, Sizes],
    lengths: tuple[int, ...],
    how: str,
    rate: float | None,
    *,
    rounds: int,
) -> None:
    """All lengths with one teacher."""
    teacher, label = make_teacher(sizes[1], clock.device, how)
    student = make_student(sizes[0], clock.device)
    name, step, held = optimizer(student)
    shared = {"teacher": label, "shapes": f"{sizes[0].label} <- {sizes[1].label}, random weights", "optimizer": name}
    objectives = {"prediction": Objective([Logits()]), "prediction_attention": Objective([Logits(), Attention()])}
    for objective in objectives.values():
        objective.prepare(student, ModelTeacher(teacher))
    weights = {"teacher_gb": gigabytes(teacher), "student_gb": gigabytes(student)}
    report.add(
        "steps",
        {"way": "models", **shared, **{key: round(value, 2) for key, value in weights.items()}, "held": len(held)},
    )
    for S in lengths:
        if deadline.left() < 1:
            report.failed("steps", f"no time left for S={S} with the teacher {label}")
            return
        batch = batch_of(1, S, 0.5, sizes[0].vocabulary, clock.device)
        found = measure(
            steps(student, teacher, batch, objectives=objectives), clock, deadline, rounds=rounds, limit_s=25
        )
        N, seen = batch.targets.count, int((batch.targets.position_BR + 1).sum())
        for way, measured in found.items():
            row = {"way": way, "S": S, **shared, **measured.figures(), "tokens_per_s": None, "utilisation": None}
            if row["median_s"]:
                needed = flops(way, *sizes, S, N, seen)
                row["tokens_per_s"] = round(S / row["median_s"], 1)
                row["tflops"] = needed / row["median_s"] / 1e12
                row["utilisation"] = round(row["tflops"] / rate, 4) if rate else None
            if way in objectives:
                row["ratio"] = measured.against(found["sft"], found["teacher_forward"])
            if way == "prediction_attention":
                row["over_prediction"] = measured.against(found["prediction"])
            report.add("steps", row)
    optimise(report, clock, student, step, shared, objectives["prediction"], teacher, lengths[0], sizes[0].vocabulary)


def optimise(
    report: Report,
    clock: Clock,
    student: Any,
    step: Callable[[], object],
    shared: dict[str, Any],
    objective: Objective,
    teacher: Any,
    S: int,
    vocabulary: int,
) -> None:
    """One row: the optimiser's step alone, and the peak of a step that ends with it."""
    batch = batch_of(1, S, 0.5, vocabulary, clock.device)

    def whole() -> None:
        with objective.listening():
            signal = ModelTeacher(teacher)(batch, objective.needs)
            with torch.autocast(clock.device.type, dtype=torch.bfloat16):
                sums = objective(student, batch, signal)
            (sums.loss / batch.targets.count).backward()
        step()

    try:
        whole()
        peak_gb, _ = clock.peak(whole)
        seconds = min(clock.seconds(step) for _ in range(3))
    except torch.OutOfMemoryError:
        report.add("steps", {"way": "optimiser", "S": S, **shared, "note": "does not fit"})
        return
    finally:
        student.zero_grad()
    total = torch.cuda.get_device_properties(clock.device).total_memory / GIGABYTE if peak_gb is not None else None
    row = {
        "median_s": round(seconds, 6),
        "peak_gb": peak_gb and round(peak_gb, 2),
        "device_gb": total and round(total, 2),
    }
    report.add("steps", {"way": "optimiser", "S": S, **shared, **row})
