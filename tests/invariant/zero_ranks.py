"""What each of two gloo processes does in test_zero: trainings through DistillationTrainer under DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from invariant import sharded_ranks
from invariant.ranks import whole as all_weights

STAGES = (2, 3)


def config(stage: int) -> dict[str, Any]:
    return {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }


def on_rank(rank: int, folder: Path) -> None:
    found: dict[str, Any] = {}
    for stage in STAGES:
        at = folder / str(stage)
        trainer = sharded_ranks.kd(at, tied=False, deepspeed=config(stage), save_strategy="steps", save_steps=2)
        trainer.train()
        again = sharded_ranks.kd(at, tied=False, deepspeed=config(stage))
        again.train(resume_from_checkpoint=str(at / "checkpoint-4"))
        again.save_model(str(at / "exported"))
        dist.barrier()
        found[str(stage)] = {
            "whole": trainer.whole_weights(),
            "again": again.whole_weights(),
            "partitioned": all(hasattr(p, "ds_id") for p in trainer.model.parameters()),
            "evaluated": again.evaluate(),
        }
    torch.save(found, folder / f"rank{rank}.pt")


def alone(folder: Path) -> dict[str, Any]:
    trainer = sharded_ranks.kd(folder, tied=False, sharded=False, per_device_train_batch_size=4)
    trainer.train()
    return {"weights": all_weights(trainer.model), "evaluated": trainer.evaluate()}
