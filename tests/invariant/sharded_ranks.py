"""What each of two gloo processes does in test_sharded: trainings through DistillationTrainer under FSDP2."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

import toys
from invariant import routed, steps, trainers
from preceptor import Attention, Logits, ModelTeacher, NextToken, Objective, RoutedTeacher
from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator
from preceptor.models.sharding import shard, whole_state
from preceptor.trainer import DistillationTrainer
from preceptor.training.engine_checks import wants_fsdp

CPU = torch.device("cpu")
SGD: dict[str, Any] = {**steps.SGD, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


class InOrder(DistillationTrainer):
    """Trains on rows one after another: two on each rank, the next two, and that is a step."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)


def kd(folder: Path, *, tied: bool, sharded: bool = True, **settings: Any) -> InOrder:
    """The steps of the brute force in float64."""
    student, teacher = steps.models(tied, torch.float64)
    rows = [(*row, 0) for step in steps.STEPS for row in step]
    terms = [NextToken(0.25), Logits(1.0), Attention(2.0)]
    assert steps.WEIGHTS == {"next_token": 0.25, "logits": 1.0, "attention": 2.0}
    return made(
        folder, student, ModelTeacher(cut(teacher, sharded)), Objective(terms, route_names=("a",)), rows, settings
    )


def dae(folder: Path, counted: list[routed.Counting], **settings: Any) -> InOrder:
    """The routed steps of the brute force; `counted` is given the two teachers."""
    counted += [routed.Counting(cut(each, True), name) for each, name in zip(routed.teachers(), routed.ROUTES)]
    teacher = RoutedTeacher(dict(zip(routed.ROUTES, counted)), route_names=routed.ROUTES)
    rows = [row for step in routed.STEPS for row in step]
    return made(folder, routed.student(), teacher, routed.objective(), rows, settings)


def adapters(folder: Path, **settings: Any) -> InOrder:
    """A student that trains an adapter, and two teachers on its own base weights."""
    model, teacher = routed.adapted()
    rows = [row for step in routed.STEPS for row in step]
    return made(folder, model, teacher, routed.objective(), rows, settings)


def cut(teacher: nn.Module, sharded: bool) -> nn.Module:
    if not sharded:
        return teacher
    shard(teacher, CPU, name="teacher")
    assert all(isinstance(p, DTensor) for p in teacher.parameters())
    return teacher


def made(
    folder: Path, model: nn.Module, teacher: Any, objective: Objective, rows: list[Any], settings: dict[str, Any]
) -> InOrder:
    names = objective.route_names
    encoded = [
        EncodedRow(names[route], ids.numpy().astype(np.int32), is_target.numpy().astype(np.bool_), origin="toy")
        for ids, is_target, route in rows
    ]
    arguments = toys.training_arguments(output_dir=str(folder), **{**SGD, **settings})
    trainer = InOrder(
        model,
        arguments,
        objective=objective,
        teacher=teacher,
        train_dataset=encoded,
        eval_dataset=encoded[:7],
        data_collator=Collator(3, route_names=names),
    )
    if wants_fsdp(arguments):
        assert all(isinstance(p, DTensor) for p in trainer.model.parameters()), "FSDP2 did not shard the student"
    return trainer


# --- two ranks --------------------------------------------------------------------------------------------------

CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
CASES: dict[str, dict[str, Any]] = {
    "tied": {"tied": True},
    "untied": {"tied": False},
    "tied, checkpointed, the teacher whole": {"tied": True, "sharded": False, **CHECKPOINTING},
}
LAUNCHED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` leaves in the environment."""
ADAMW: dict[str, Any] = {
    "optim": "adamw_torch", "weight_decay": 0.3, "learning_rate": 0.01, "per_device_train_batch_size": 1,
    "lr_scheduler_type": "cosine",
}  # fmt: skip
BEST: dict[str, Any] = {
    "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1,
    "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False,
}  # fmt: skip


def on_rank(rank: int, folder: Path) -> None:
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        trainer = kd(folder / "kd", fsdp=True, **case)
        trainer.train()
        found[name] = whole_state(trainer.model)
    os.environ.update(LAUNCHED)
    found["clipped"] = clipped(folder, sharded=True)
    for name in LAUNCHED:
        del os.environ[name]
    found |= routing(folder)
    found["bf16"] = low_precision(folder, fsdp=True)
    found["coarse"] = [coarse(folder, one_taught=one_taught) for one_taught in (False, True)]
    found["skipped"] = skipped(folder)
    found["resumed"] = resumed(folder)
    found["evaluated"] = evaluated(folder, fsdp=True)
    torch.save(found, folder / f"rank{rank}.pt")


def clipped(folder: Path, **settings: Any) -> dict[str, Any]:
    """Weights and gradient norms of steps whose gradients are clipped; under FSDP because the launcher says so."""
    trainer = kd(folder / "clipped", tied=False, max_grad_norm=2.0, **settings)
    trainer.train()
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    return {"weights": weights(trainer), "norms": norms}


def routing(folder: Path) -> dict[str, Any]:
    counted: list[routed.Counting] = []
    trainer = dae(folder / "dae", counted, fsdp=True)
    for each in counted:
        each.rows.clear()
    trainer.train()
    found: dict[str, Any] = {"dae": whole_state(trainer.model), "rows": [each.rows for each in counted]}
    trainer = adapters(folder / "lora", fsdp=True)
    trainer.train()
    found["lora"] = whole_state(trainer.model)
    found["lora alone"] = sorted(trainer.whole_weights())
    return found


def low_precision(folder: Path, **settings: Any) -> dict[str, Any]:
    """One step in bfloat16 on float32 weights, teacher and student cut."""
    learner, teacher = steps.models(False, torch.float32)
    rows = [(*row, 0) for row in steps.STEPS[0]]
    teaches = ModelTeacher(cut(teacher.bfloat16(), "fsdp" in settings))
    objective = Objective([Logits(1.0), Attention(2.0)], route_names=("a",))
    trainer = made(folder / "bf16", learner, teaches, objective, rows, {"bf16": True, **settings})
    trainer.train()
    found = weights(trainer)
    assert all(value.dtype == torch.float32 for value in found.values())
    return found


class Coarse(TrainerCallback):
    """How much of each gradient bfloat16 could hold: all of it where it was summed so, next to nothing otherwise."""

    share: dict[str, float]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        whole = {name: p.grad.full_tensor() for name, p in model.named_parameters()}  # type: ignore[union-attr]
        self.share = {name: float((grad.bfloat16().float() == grad).float().mean()) for name, grad in whole.items()}


def coarse(folder: Path, *, one_taught: bool) -> dict[str, float]:
    """Of one step in bfloat16; with `one_taught` the second rank has no target, so that nothing is added up."""
    learner, _ = steps.models(False, torch.float32)
    rows = [(*row, 0) for row in steps.STEPS[0]]
    if one_taught:
        rows = rows[:2] + [(ids, torch.zeros_like(is_target), 0) for ids, is_target, _ in rows[2:4]]
    settings = {"fsdp": True, "bf16": True, "gradient_accumulation_steps": 1 if one_taught else 2}
    trainer = made(folder / "coarse", learner, None, Objective([NextToken()], route_names=("a",)), rows, settings)
    seen = Coarse()
    trainer.add_callback(seen)
    trainer.train()
    return seen.share


def weights(trainer: DistillationTrainer) -> dict[str, Tensor]:
    return whole_state(trainer.model) if dist.is_initialized() else trainers.weights(trainer.model)


def skipped(folder: Path) -> dict[str, Any]:
    """A step without targets between two others: AdamW's decay and momentum must not move a weight in it."""
    learner, _ = steps.models(True, torch.float32)
    first, second = ([(*row, 0) for row in steps.STEPS[i]] for i in (0, 1))
    nothing = [(ids, torch.zeros_like(is_target), 0) for ids, is_target, _ in first]
    seen = []
    for rows in (first + nothing + second, first + second):
        objective = Objective([NextToken()], route_names=("a",))
        settings = {"fsdp": True, "optim": "adamw_torch", "weight_decay": 0.3}
        trainer = made(folder / "skipped", learner, None, objective, rows, settings)
        trainer.train()
        seen.append({"weights": whole_state(trainer.model), "skipped": trainer.step_metrics.skipped_total})
        learner, _ = steps.models(True, torch.float32)
    return {"with": seen[0], "without": seen[1]}


def resumed(folder: Path) -> dict[str, Any]:
    """AdamW through six steps whole, and again from the second: to the bit; and what was written on the way."""
    settings: dict[str, Any] = {
        **ADAMW, "gradient_accumulation_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2,
    }  # fmt: skip
    whole = kd(folder / "resumed", tied=False, fsdp=True, **{**settings, "save_total_limit": 3})
    whole.train()
    dist.barrier()
    middle = folder / "resumed/checkpoint-2"
    files = sorted(file.name for file in middle.iterdir())
    again = kd(folder / "resumed", tied=False, fsdp=True, **settings)
    again.train(resume_from_checkpoint=str(middle))
    dist.barrier()
    again.save_model(str(folder / "exported"))
    states = [
        {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}
        for state in again.optimizer.state.values()
    ]
    return {
        "whole": whole_state(whole.model),
        "again": whole_state(again.model),
        "files": files,
        "left": sorted(path.name for path in (folder / "resumed").iterdir()),
        "states": len(states),
        "losses": [[line["loss"] for line in each.state.log_history if "loss" in line] for each in (whole, again)],
    }


def evaluated(folder: Path, **settings: Any) -> dict[str, float]:
    """The objective on held-out rows before and after a training, which goes back to the first of its checkpoints."""
    trainer = kd(folder / "evaluated", tied=False, sharded="fsdp" in settings, max_steps=2, **BEST, **settings)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate(metric_key_prefix="after")
    assert json.dumps(before)
    first, second = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    return {**before, **after, "first": first, "second": second}
