"""A user's training script, for `accelerate launch`.

launched.py MODELS OUT BATCH: a distillation of MODELS/s from MODELS/t, BATCH rows per process and pass.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from interop import shop
from preceptor import DistillationTrainer


def trainer(models: Path, out: Path, batch: int) -> Any:
    args = TrainingArguments(
        str(out / "out"), per_device_train_batch_size=batch, num_train_epochs=2, learning_rate=0.01, optim="sgd",
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    return DistillationTrainer(models / "s", args, teacher=models / "t", train_dataset=shop.messages())


if __name__ == "__main__":
    made = trainer(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    made.train()
    made.save_model(f"{sys.argv[2]}/student")
    if made.is_world_process_zero():
        made.state.save_to_json(f"{sys.argv[2]}/state.json")
    print("processes:", made.args.world_size)
