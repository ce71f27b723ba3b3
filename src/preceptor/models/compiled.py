"""torch.compile, one decoder layer at a time.

All layers of a model share their graphs, embeddings and the output head stay as they are, and so does whatever stands
around a layer: gradient checkpointing, hooks of FSDP2 and DDP. Inside a layer nothing may break the graph: what would
have to is an operator (`opaque.py`), and a model whose layers cannot be traced whole is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from preceptor.errors import InputError, accepted, shown
from preceptor.models.opaque import NUMBER, traced
from preceptor.models.router_taps import hook_for_good, routers_of
from preceptor.models.taps import SEAT, replaced, text_config

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainingArguments

GRAPHS = 64
"""Graphs of one model before torch refuses to make more: training, evaluation and recomputation, batches with and
without a mask, and lengths that vary have graphs of their own, and torch's 8 may not do."""
WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class CompileOptions:
    """Of torch.compile, as transformers.TrainingArguments calls them (`torch_compile_backend`, `torch_compile_mode`).

    Raises:
        InputError: for a backend or a mode that torch does not know or that cannot be used here.
    """

    backend: str = "inductor"
    mode: str | None = None

    def __post_init__(self) -> None:
        if self.backend == "cudagraphs" or self.mode in WITH_CUDA_GRAPHS:
            key, given = ("mode", self.mode) if self.mode in WITH_CUDA_GRAPHS else ("backend", self.backend)
            raise InputError(
                f"training.torch_compile_{key}: {given} replays recorded CUDA graphs, which would leave out the losses "
                "that are computed inside the layers; use the backend inductor without a mode, or with the mode "
                "max-autotune-no-cudagraphs"
            )
        if self.backend not in torch._dynamo.list_backends(None):
            known = [each for each in torch._dynamo.list_backends() if each != "cudagraphs"]
            raise InputError(
                f"training.torch_compile_backend: {shown(self.backend)} is no backend of torch.compile here; accepted "
                f"are {accepted(known)}"
            )
        modes = [each for each in torch._inductor.list_mode_options() if each not in WITH_CUDA_GRAPHS]
        if self.mode is not None and (self.backend != "inductor" or self.mode not in modes):
            raise InputError(
                f"training.torch_compile_mode: {shown(self.mode)} with the backend {self.backend}; accepted are "
                f"{accepted(modes)}, with the backend inductor"
            )


def compile_options(args: TrainingArguments) -> CompileOptions | None:
    """What `args` ask for; None: nothing is compiled.

    Raises:
        InputError: as `CompileOptions`, and with DeepSpeed, which runs a layer's modules by hooks of its own.
    """
    if not args.torch_compile:
        return None
    if args.deepspeed:
        raise InputError(
            "training.torch_compile: cannot be combined with `deepspeed`, whose hooks inside the layers no graph can "
            "hold; leave one of the two out, or shard with `fsdp`"
        )
    return CompileOptions(args.torch_compile_backend or "inductor", args.torch_compile_mode)


def compile_no_model(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Keep accelerate from compiling a student whole: its layers are compiled, which `args` must ask for.

    Raises:
        InputError: when accelerate was told to compile by its own settings.
    """
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend != DynamoBackend.NO and not args.torch_compile:
        raise InputError(
            f"accelerate: its dynamo_backend is {plugin.backend.value.lower()}, which compiles whole models, and the "
            "losses are computed inside them; set it to no and write `torch_compile: true` into `training`"
        )
    plugin.backend = DynamoBackend.NO


def compiles(model: nn.Module) -> bool:
    """Whether a model's layers can be expected to be traced whole; those of a quantised model are not tried."""
    layers = _layers(model)
    own_hooks = any("forward" in vars(layer) for layer in layers)
    return bool(layers) and not own_hooks and not _quantised(model) and not _loops_over_experts(model)


def compile_layers(model: nn.Module, options: CompileOptions, *, name: str) -> None:
    """Compile the decoder layers of `model`, an unwrapped transformers or PEFT model, in place and for good.

    Compilation happens in the first forwards. Names of parameters, hooks and checkpoints stay what they were.

    Raises:
        InputError: for a model without layers to compile, now, and for layers that cannot be traced whole, in the first
            forward; `name` says whose.
    """
    layers = _layers(model)
    if not layers:
        raise InputError(
            f"training.torch_compile: {name} ({type(model).__name__}) has no decoder layers that could be compiled one "
            "by one (transformers' GradientCheckpointingLayer); leave `torch_compile` out"
        )
    if all(hasattr(layer, "_preceptor_compiled") for layer in layers):
        return
    if any("forward" in vars(layer) for layer in layers):
        raise InputError(
            f"training.torch_compile: the layers of {name} are run by hooks such as those of `device_map`, which no "
            "graph can hold; leave `torch_compile` or the `device_map` out"
        )
    if _loops_over_experts(model):
        other = ", or choose another implementation with model.set_experts_implementation('grouped_mm')"
        raise InputError(
            f"training.torch_compile: the experts of {name} are called in a loop over those that are chosen, which no "
            # Packed experts have no other (`quantized_experts.py`).
            f"graph can hold; leave `torch_compile` out{'' if _quantised(model) else other}"
        )
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    for layer in layers:
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, NUMBER, torch.tensor(module.layer_idx, device="cpu"))
    for place, router in enumerate(routers_of(model)):
        setattr(router, NUMBER, torch.tensor(place, device="cpu"))
        hook_for_good(router)
    # dynamo keeps graphs with the code they were made of: with a copy, a model's graphs are its own and go with it.
    whole = FunctionType(_whole.__code__.replace(), globals(), "whole_layer")
    compiled = torch.compile(whole, fullgraph=True, dynamic=True, backend=options.backend, mode=options.mode)
    for layer in layers:
        layer._preceptor_compiled = _Compiled(compiled, name)  # type: ignore[assignment]
        layer.forward = MethodType(_forward, layer)  # a bound method is copied with its module, a closure is not


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _quantised(model: nn.Module) -> bool:
    return getattr(text_config(model), "quantization_config", None) is not None


def _loops_over_experts(model: nn.Module) -> bool:
    """Whether a sparse model's experts run as its modelling file has them: as many turns as experts are chosen."""
    return bool(routers_of(model)) and getattr(text_config(model), "_experts_implementation", None) == "eager"


@dataclass(frozen=True)
class _Compiled:
    call: Callable[..., Any]
    name: str


def _whole(forward: Callable[..., Any], layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A layer's forward, as the compiler sees it."""
    traced.seat = kwargs.get(SEAT)
    output = forward(layer, *args, **kwargs)
    traced.seat = None
    return output


# Where transformers checkpoints layers: in later versions in their forward, which is replaced here, before in __call__.
_CHECKPOINTS_IN_FORWARD = "__call__" not in vars(GradientCheckpointingLayer)


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in for a layer's forward: gradient checkpointing around a compiled graph."""
    if _CHECKPOINTS_IN_FORWARD and layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(partial(_run, layer, **kwargs), *args)
    return _run(layer, *args, **kwargs)


# The last but one: what a backend fails with, a Triton or a compiler that is missing included; the last: `GRAPHS`.
_NOT_WHOLE = (
    torch._dynamo.exc.Unsupported,
    torch._dynamo.exc.UserError,
    torch._dynamo.exc.ShortenTraceback,
    torch._dynamo.exc.FailOnRecompileLimitHit,
)


def _run(layer: Any, *args: Any, **kwargs: Any) -> Any:
    compiled: _Compiled = layer._preceptor_compiled
    with replaced(layer, "gradient_checkpointing", False):
        try:
            return compiled.call(type(layer).forward, layer, *args, **kwargs)
        except _NOT_WHOLE as error:
            why = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
            raise InputError(
                f"training.torch_compile: the {type(layer).__name__} of {compiled.name} cannot be compiled whole "
                f"({why}); leave `torch_compile` out"
            ) from error
