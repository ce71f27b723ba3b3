"""Models whose weights several processes hold together, a part each: FSDP2's shards.

A model is cut where its weights are used: each decoder layer, the embeddings and the output head are gathered for
their own forward alone (a tied head together with its embeddings), and what is left belongs to the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from preceptor.errors import InputError


def is_sharded(model: nn.Module) -> bool:
    """Whether several processes hold it together and must all call it: FSDP2, or DeepSpeed's ZeRO-3."""
    # FSDP2 may leave the root's own parameters whole after a forward without a backward: they do not tell.
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


def packed_weight(model: nn.Module) -> str | None:
    """The name of a quantised weight, which has no rows to cut by; None when there is none."""
    # In whole numbers (bitsandbytes), in one byte, or in a tensor of another kind that passes for 16 bit (torchao).
    return next(
        (
            name
            for name, p in model.named_parameters()
            if not p.is_floating_point() or p.element_size() == 1 or not _plain(p)
        ),
        None,
    )


def _plain(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) or not is_traceable_wrapper_subclass(parameter)


def shard(model: nn.Module, device: torch.device, *, name: str) -> nn.Module:
    """`model` itself, a transformers model that is only run, cut over all processes onto `device`, in its own dtypes.

    All processes call it at the same time, each with the whole model; afterwards each holds its part.

    Raises:
        InputError: when there is one process only, and for weights that have no rows to cut by, as packed quantised
            ones; `name` says whose.
    """
    if (packed := packed_weight(model)) is not None:
        raise InputError(
            f"{name}: its weight {packed!r} is quantised and cannot be cut into shards; write `sharded: false` for a "
            "whole copy on each device, or leave `quantization` out"
        )
    if not torch.distributed.is_initialized():
        raise InputError(
            f"{name}: `sharded: true` cuts it over several processes, and this is the only one; start them with "
            "torchrun or accelerate launch, or leave `sharded` out"
        )
    how: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        # The root too: nothing of a teacher stays whole while the student works.
        "reshard_after_forward": True,
    }
    model.requires_grad_(False)  # before it is cut: weights that learn would have to be of one dtype
    for part in [*([layer] for layer in _layers(model)), *_ends(model)]:
        fully_shard(part, **how)
    fully_shard(model, **how)
    return model


def shard_ends(model: nn.Module, device: torch.device, *, reshard_after_forward: bool) -> None:
    """Cut a student's embeddings and output head, before accelerate cuts the rest, to be gathered in their own dtype.

    Where layers are gathered in bfloat16, these are not: the head's gradient is a sum over all target positions and
    stays in float32, and so does what the embeddings start the residual stream with.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in _ends(model):
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(), reshard_after_forward=reshard_after_forward)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers says are not to be split over devices: decoder layers."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def _ends(model: nn.Module) -> list[list[nn.Module]]:
    """Embeddings and head, each a group of its own unless they share a weight."""
    inner: Any = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]
    embeddings, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    if embeddings is None or head is None:
        return [[each] for each in (embeddings, head) if each is not None]
    shared = {id(p) for p in embeddings.parameters()} & {id(p) for p in head.parameters()}
    return [[embeddings, head]] if shared else [[embeddings], [head]]


def is_adapted(model: nn.Module) -> bool:
    """Whether it is a PEFT model around a transformers model."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """The numbers in its parameters, on all processes together; `trainable`: in those that learn."""
    # ZeRO-3 leaves empty tensors behind.
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters() if p.requires_grad or not trainable)


def reshard(model: nn.Module) -> None:
    """Give back what a forward without a backward left whole; nothing for a model that is not sharded."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def named_tensors(model: nn.Module, *, trainable: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Parameters and kept buffers by the names that they have in a state dict, sharded ones as DTensors.

    `trainable`: parameters that learn, and no more.
    """
    reshard(model)
    for name, parameter in model.named_parameters(remove_duplicate=trainable):
        if parameter.requires_grad or not trainable:
            yield name, parameter
    if trainable:
        return
    for prefix, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if key not in module._non_persistent_buffers_set:
                yield f"{prefix}.{key}" if prefix else key, buffer


@contextmanager
def _gathered(tensor: Tensor) -> Iterator[Tensor]:
    """A weight, whole for the time of the block."""
    if hasattr(tensor, "ds_id"):
        from deepspeed import zero  # type: ignore[import-not-found, unused-ignore]

        with zero.GatheredParameters([tensor]):
            yield tensor
    else:
        yield tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: nn.Module, *, trainable: bool = False) -> dict[str, Tensor]:
    """A sharded model's state dict on the CPU of the first process, and nothing in the others, which all take part.

    One weight after another is gathered (ZeRO-3's too); tied weights are one tensor under both names.
    """
    first = torch.distributed.get_rank() == 0
    found: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model, trainable=trainable):
        if id(tensor) not in found:
            with _gathered(tensor) as whole:
                found[id(tensor)] = whole.detach().to("cpu", copy=True) if first else whole.new_empty(0)
        if first:
            state[name] = found[id(tensor)]
    return state
