"""What each of two gloo processes does in test_trainer_ranks: whole trainings through DistillationTrainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import toys
from invariant.test_one_process import make_trainer
from invariant.trainers import trainer, weights
from preceptor import Attention, Logits, ModelTeacher, distributed
from preceptor.distributed import from_main
from preceptor.errors import InputError
from preceptor.recipe import LoraSpec
from preceptor.stages.build import add_lora
from preceptor.training.checkpoints import last_checkpoint
from preceptor.training.metrics import MetricsFile


def on_rank(rank: int, folder: Path) -> None:
    """Writes results of this rank to `folder`."""
    results: dict[str, Any] = {
        "exact": exact(folder / "exact"),
        "resumed": resumed(folder / "resumed"),
        "lora": lora(folder / "lora"),
        "heard": from_main(lambda: {"rank": rank}),
        "led": led(rank),
    }
    torch.save(results, folder / f"rank{rank}.pt")


def exact(folder: Path) -> dict[str, torch.Tensor]:
    """The steps of the brute force in float64, 2 processes x 2 micro-batches x 2 rows."""
    made = make_trainer(folder, torch.float64, 2, gradient_accumulation_steps=2)
    made.add_callback(MetricsFile(folder / "metrics.jsonl"))
    folder.mkdir(exist_ok=True)
    made.train()
    assert made.args.world_size == 2
    assert isinstance(made.model_wrapped, torch.nn.parallel.DistributedDataParallel)
    return weights(made.model)


SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "learning_rate": 0.5,
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "greater_is_better": True,  # the worst one, for that is not the last
    "seed": 5,
}


def resumed(folder: Path) -> dict[str, Any]:
    """Three epochs whole; and again from the middle of the second, with sums of both ranks under way."""
    whole = trainer(folder, **SETTINGS)
    whole.train()
    last = last_checkpoint(folder / "checkpoints")
    lines = (folder / "metrics.jsonl").read_text()
    dist.barrier()
    if dist.get_rank() == 0:
        for step in range(6, 10):
            (folder / f"checkpoints/checkpoint-{step}/model.safetensors").write_bytes(b"")
    dist.barrier()
    again = trainer(folder, **SETTINGS)
    again.train(resume_from_checkpoint=True)  # from the fifth step
    return {
        "damaged": sorted(path.name for path in (folder / "checkpoints").glob("*.damaged*")),
        "whole": weights(whole.model),
        "again": weights(again.model),
        "last": None if last is None else last.name,
        "lines": lines,
        "again_lines": (folder / "metrics.jsonl").read_text(),
        "measured": whole.evaluate(),
        "best": max(line["eval_loss"] for line in map(json.loads, lines.splitlines()) if "eval_loss" in line),
    }


def adapted() -> Any:
    return add_lora(toys.llama(1, torch.float64), LoraSpec(r=2))


def lora(folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """An adapter under reentrant gradient checkpointing."""
    torch.manual_seed(3)
    model = adapted()
    model.enable_input_require_grads()
    made = trainer(
        folder,
        model=model,
        terms=(Logits(), Attention(2.0)),
        teacher=ModelTeacher(toys.mistral(2, torch.float64)),
        **{
            "per_device_train_batch_size": 1,
            "optim": "sgd",
            "learning_rate": 1.0,
            "save_strategy": "no",
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
            **settings,
        },
    )
    made.train()
    return {name: p for name, p in weights(made.model).items() if "lora" in name}


def led(rank: int) -> list[Any]:
    """What the second process sees of a first one that finishes, that fails, and that does not see it fail."""
    seen: list[Any] = []
    if rank == 0:
        with distributed.leading():
            distributed.tell({"stage": "one"})
            distributed.tell({"stage": "two"})
        for error in (InputError("wrong"), KeyboardInterrupt(), OSError("disk")):
            try:
                with distributed.leading():
                    distributed.tell({"stage": "three"})
                    raise error
            except BaseException as raised:
                seen.append(raised is error)
        distributed.tell({"stage": "four"})
        return seen

    def fails(word: dict[str, Any]) -> None:
        raise RuntimeError(f"here alone, in {word['stage']}")

    distributed.following(seen.append)
    for take_part in (seen.append, fails, seen.append):  # a failure everywhere is the first one's to tell
        try:
            distributed.following(take_part)
        except distributed.LeaderEnded as end:
            seen.append(end.code)
    distributed._PARTING = 0.3
    try:
        distributed.following(fails)
    except RuntimeError as error:
        seen.append(str(error))
    return seen
