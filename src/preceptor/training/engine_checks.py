"""Which engine a training asks for, and whether it can train the student: asked before anything is cut."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from transformers import PreTrainedModel, TrainingArguments

from preceptor.distributed import world_size
from preceptor.errors import InputError
from preceptor.models.sharding import packed_weight


def wants_fsdp(args: TrainingArguments) -> bool:
    """Whether FSDP was asked for, in the arguments or by `accelerate launch`."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def shards_student(args: TrainingArguments) -> bool:
    """Whether no process will have the student's weights whole: FSDP, or DeepSpeed's ZeRO-3."""
    config = getattr(args, "hf_deepspeed_config", None)
    return wants_fsdp(args) or (config is not None and bool(config.is_zero3()))


def check_engine(model: nn.Module, args: TrainingArguments) -> None:
    """Raises InputError for an engine that cannot train `model` here."""
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs are visible to one process, which would train with nn.DataParallel; start one "
            "process per GPU with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES"
        )
    if world_size() > 1 and args.world_size == 1:
        raise InputError(
            f"{world_size()} processes were started, but each would train alone: no accelerator was found; set "
            "use_cpu=True in TrainingArguments to train on CPUs together"
        )
    if args.save_only_model and (wants_fsdp(args) or args.deepspeed):
        raise InputError(
            "training.save_only_model: under FSDP and DeepSpeed a checkpoint has weights and optimiser states in the "
            "same files; remove it"
        )
    if not wants_fsdp(args):
        return
    if args.deepspeed:
        raise InputError("training: has both `fsdp` and `deepspeed`; keep one of them")
    if world_size() == 1:
        raise InputError(
            "training.fsdp: shards the student over several processes, and this is the only one; start them with "
            "torchrun or accelerate launch, or remove `fsdp`"
        )
    if getattr(model, "hf_device_map", None) is not None:
        raise InputError(
            "student: `device_map` and FSDP both decide where its weights are; remove `device_map`, or `fsdp` of "
            "`training`"
        )
    if (packed := packed_weight(model)) is not None:
        raise InputError(
            f"student: its weight {packed!r} is quantised and cannot be cut into shards; leave out `quantization`, or "
            "`fsdp` of `training`"
        )


def check_plugin(plugin: Any) -> None:
    """Raises InputError for settings of accelerate's FSDP plugin, perhaps the launcher's, that cannot be used here."""
    if plugin.fsdp_version != 2:
        raise InputError(
            "training.fsdp_config: version 1 of FSDP keeps no weight in its own shape, and the losses need the head's; "
            "write `version: 2` (accelerate launch: --fsdp_version 2)"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise InputError("training.fsdp_config: `cpu_offload` is not used here; remove it")
    policy = plugin.auto_wrap_policy
    if getattr(policy, "func", policy) is size_based_auto_wrap_policy:
        raise InputError(
            "training.fsdp_config: SIZE_BASED_WRAP would cut lists of layers, which nobody calls; write "
            "`auto_wrap_policy: TRANSFORMER_BASED_WRAP`, or remove it"
        )
    if plugin.activation_checkpointing:
        raise InputError(
            "training.fsdp_config: `activation_checkpointing` is FSDP's own way of recomputing layers; write "
            "`gradient_checkpointing: true` into `training` instead"
        )


def check_precision(model: nn.Module, args: TrainingArguments) -> None:
    """Raises InputError: packed weights cannot be trained; bf16 ones lose most updates at the paper's learning rate."""
    packed = isinstance(model, PreTrainedModel) and getattr(model, "is_quantized", False)
    if packed and not getattr(getattr(model, "hf_quantizer", None), "is_qat_trainable", False):
        raise InputError(
            "student: its checkpoint is quantised, and quantised weights cannot be trained themselves; train an "
            "adapter on it (`lora: {r: 16}`), or start from the checkpoint that was not quantised"
        )
    low = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)}
    if low:
        given = str(next(iter(low))).removeprefix("torch.")
        raise InputError(
            f"student: its trainable parameters are {given}, in which most updates round away (learning rate "
            f"{args.learning_rate:g}); load it in float32 and set `training: {{bf16: true}}` to compute in bfloat16"
        )
