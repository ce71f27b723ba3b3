"""The engine that a student is trained under: alone, DDP, FSDP2 or DeepSpeed, by accelerate.

Three things differ from what transformers' Trainer does by itself. FSDP2 that was asked for is FSDP2, on CPUs as well,
where accelerate trains under DDP and says nothing. A student is cut into shards before its first forward, not after
the objective has measured it whole. And a sharded checkpoint is written by all processes, each its part, in
safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs, DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations import deepspeed

from preceptor.errors import InputError
from preceptor.models.sharding import is_adapted, is_sharded, shard_ends, whole_state
from preceptor.models.taps import replaced
from preceptor.system.environment import environment_kept
from preceptor.training.checkpoints import check_best
from preceptor.training.engine_checks import check_plugin, wants_fsdp
from preceptor.training.sharded_state import has_shards, load_optimizer, load_weights, save_shards

_SCHEDULER = "scheduler.pt"
_OF_DEEPSPEED = "latest"  # a file of its checkpoints


@contextmanager
def models_read_whole(args: TrainingArguments | None = None) -> Iterator[None]:
    """Has transformers read models whole, which under ZeRO-3 it would cut while it reads them, for DeepSpeed alone.

    `args`: those whose training goes on afterwards.
    """
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        config = getattr(args, "hf_deepspeed_config", None)
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)


class EngineTrainer(Trainer):
    """A Trainer under the engine that was asked for."""

    model: Any
    optimizer: Any

    # --- choosing it --------------------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        # accelerate leaves marks there that would have a process's later trainings under FSDP too.
        with environment_kept("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
            super().create_accelerator_and_postprocess()
            if wants_fsdp(self.args) and not self.is_fsdp_enabled:
                self._force_fsdp()
        if not self.is_fsdp_enabled:
            return
        plugin = self.accelerator.state.fsdp_plugin
        check_plugin(plugin)
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        # Autocast computes; gathering layers in its dtype spares it a copy of every weight from forward to backward,
        # and the links half their traffic. Gradients are summed, over micro-batches and ranks, in float32.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=low, reduce_dtype=None if low is None else torch.float32, cast_forward_inputs=False
        )
        plugin.set_state_dict_type("SHARDED_STATE_DICT")  # Trainer then gathers nothing for a checkpoint
        self.accelerator.prepare = partial(_prepare_once, self.accelerator, self.accelerator.prepare)

    def _force_fsdp(self) -> None:
        """What accelerate does for an FSDP plugin on GPUs, and leaves out on CPUs."""
        state = self.accelerator.state
        if state.distributed_type != DistributedType.MULTI_CPU:
            raise InputError(
                f"training.fsdp: accelerate chose {state.distributed_type.value} instead of FSDP; remove `fsdp`, or "
                "start the processes with torchrun or accelerate launch"
            )
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
        state.distributed_type = DistributedType.FSDP
        self.is_fsdp_enabled = True

    def prepare_student(self) -> None:
        """Cut the student into shards now, so that no forward ever needs it whole; nothing under other engines."""
        if not self.is_fsdp_enabled or is_sharded(self.model):
            return
        plugin = self.accelerator.state.fsdp_plugin
        self.create_optimizer()  # of plain parameters: Trainer would keep those that are cut in groups apart
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        shard_ends(self.model, self.args.device, reshard_after_forward=plugin.reshard_after_forward)
        now = dict(self.model.named_parameters())
        for group in self.optimizer.param_groups:
            group["params"] = [now[names[id(parameter)]] for parameter in group["params"]]
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.model_wrapped = self.model
        if not is_sharded(self.model):
            raise RuntimeError("FSDP was asked for, and accelerate did not shard the student")

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision around a forward of the student: accelerate wraps it into DDP's forward, not into FSDP2's."""
        # Cached casts of a layer's weights would keep them whole beyond its forward.
        handler = AutocastKwargs(cache_enabled=not self.is_fsdp_enabled)
        with self.accelerator.autocast(handler):
            yield

    # --- finished models ----------------------------------------------------------------------------------------

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """The student's weights as a plain checkpoint has them, in the first process; all processes call it.

        Of a sharded student with an adapter, what was trained.
        """
        if self.is_fsdp_enabled or (self.is_deepspeed_enabled and is_sharded(self.model)):
            return whole_state(self.model, trainable=is_adapted(self.model))
        weights: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
        return weights

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)
        elif not _internal_call:  # a checkpoint has its shards
            weights = self.whole_weights()
            if self.is_world_process_zero():  # which alone has them
                self._save(output_dir, state_dict=weights)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def check_checkpoint(self, folder: Path) -> None:
        """Raises InputError for a checkpoint of another engine, from which this one cannot go on."""
        theirs = "FSDP" if has_shards(folder) else "DeepSpeed" if (folder / _OF_DEEPSPEED).is_file() else None
        ours = "FSDP" if self.is_fsdp_enabled else "DeepSpeed" if self.is_deepspeed_enabled else None
        if theirs == ours or (theirs == "FSDP" and ours is None):
            return
        raise InputError(
            f"{folder}: was written under {theirs or 'one process or DDP'}, and this training runs under "
            f"{ours or 'one process or DDP'}, which cannot go on from it; take that engine again, or delete the "
            "checkpoints to start over"
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """As Trainer's, under the names that weights have in the model.

        Trainer writes a mixture's experts under their published names and reads back by the model's: a resumed run
        would go on with the experts and routers it began with, after no more than a warning.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PreTrainedModel):
            super()._save(output_dir, state_dict)
            return
        with replaced(model, "save_pretrained", partial(model.save_pretrained, save_original_format=False)):
            super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer warns of weights that a checkpoint lacks and trains on from others; here that is an end."""
        missing = set(load_result.missing_keys)
        names: dict[int, set[str]] = {}  # of each parameter: tied ones have several, of which one is stored
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), set()).add(name)
        lost = sorted(min(known) for known in names.values() if known <= missing)
        if lost:
            raise RuntimeError(f"the checkpoint lacks {len(lost)} of the model's weights, first {lost[0]!r}")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_shards(Path(output_dir), self.model, self.optimizer, rank=self.args.process_index)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, _SCHEDULER))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not has_shards(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            self._load_own_adapter(Path(resume_from_checkpoint))
            return
        load_weights(Path(resume_from_checkpoint), self.accelerator.unwrap_model(self.model))

    def _load_own_adapter(self, checkpoint: Path) -> None:
        """The trained adapter again, which transformers 5.17 passes over where a checkpoint holds others beside it."""
        model: Any = self.accelerator.unwrap_model(self.model)
        if any(checkpoint.glob("*/adapter_config.json")) and (checkpoint / "adapter_config.json").exists():
            model.load_adapter(str(checkpoint), model.active_adapters[0], is_trainable=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not has_shards(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(Path(checkpoint), self.accelerator.unwrap_model(self.model), self.optimizer)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, _SCHEDULER), weights_only=True))

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        check_best(best)
        if not has_shards(best):
            super()._load_best_model()
            return
        load_weights(best, self.accelerator.unwrap_model(self.model))


def _prepare_once(accelerator: Any, prepare: Any, *objects: Any, **how: Any) -> Any:
    """accelerate's `prepare`, which is called again when training begins, on what it has prepared already.

    A second time it would match parameters by the addresses of their shards, and empty shards have one address.
    """
    if not objects or not all(getattr(each, "_is_accelerate_prepared", False) for each in objects):
        return prepare(*objects, **how)
    for each in objects:  # Trainer has it forget what it knows before training
        known = accelerator._models if isinstance(each, nn.Module) else accelerator._optimizers
        if not any(each is other for other in known):
            known.append(each)
    return objects if len(objects) > 1 else objects[0]


def _on_numbered_cpu(storage: Any, location: str) -> Any:
    """For `cpu:0`, where transformers loads checkpoints in several CPU processes; torch 2.11 knows `cpu` only."""
    return storage if location.startswith("cpu:") else None


torch.serialization.register_package(90, lambda storage: None, _on_numbered_cpu)
